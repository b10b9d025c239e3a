"""How sure a number is: said where it is known, and that it is not known where it is not."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_ind

from esper_ray.cli.train import summary
from esper_ray.cli.tune import _row as tune_row
from esper_ray.orchestration.config import TrainConfig
from esper_ray.orchestration.held_out.paired import Difference, paired_difference, verdict
from esper_ray.orchestration.run.metrics import difference_interval, standard_deviation
from esper_ray.orchestration.run.run_result import RunResult, RunTally
from esper_ray.orchestration.tuning.ranking import RankedSetting, TrialResult
from esper_ray.report.aggregate import learning_curve
from esper_ray.report.run_charts import forest_chart
from esper_ray.report.run_page import _tiles
from esper_ray.report.search_charts import ranking_chart


def test_the_interval_of_a_difference_is_welchs() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(90, 3, size=12).tolist(), rng.normal(62, 6, size=5).tolist()
    expected = ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    assert difference_interval(ours, theirs) == pytest.approx((expected.low, expected.high))
    assert difference_interval([2.0, 2.0], [1.0, 1.0]) is None, "all alike"
    assert difference_interval(ours, theirs[:1]) is None
    assert difference_interval(ours[:1], theirs) is None
    assert standard_deviation([3.0]) is None


def said(trained: list[float], wait_only: list[float]) -> str:
    plan: Any = SimpleNamespace(out=Path("run"), iterations=1, config=TrainConfig())
    return "\n".join(summary(RunResult(plan, RunTally(wait_only=wait_only, trained=trained))))


def test_one_episode_and_one_waiting_host_have_no_known_error() -> None:
    text = said([70.0, 80.0], [60.0])
    assert "of the last episode: 80.0 % (standard error not known)" in text
    assert "1 host that only waited: 60.0 % (standard error not known)" in text
    assert "Difference: +20.0 points, 95 % interval not known." in text
    assert RunResult(SimpleNamespace(), RunTally(wait_only=[60.0], trained=[80.0])).difference == (20.0, None)  # type: ignore[arg-type]
    text = said([70.0, 80.0] * 10, [60.0, 61.0])
    assert "(standard error 2.9)" in text
    assert "2 hosts that only waited: 60.5 % (standard error 0.5)" in text
    assert "95 % interval [+" in text


def test_a_comparison_on_a_handful_of_hosts_says_that_they_are_too_few() -> None:
    few = {"wait": paired_difference([60.0] * 4, [62.9] * 4)}
    assert verdict(few, 4, "the learned policy") == (
        "4 held-out hosts are too few to compare the learned policy with the controls (mean differences: wait -2.9); "
        "it takes 10 at least (--episodes)."
    )
    assert "1 held-out host is too few" in verdict({"wait": paired_difference([1.0], [2.0])}, 1, "it")
    assert f"{few['wait']}" == "-2.9 (too few hosts)"
    assert few["wait"].verdict == "too few hosts"
    assert few["wait"].as_dict() == {"mean": pytest.approx(-2.9), "ci95": None}
    assert f"{Difference(1.0, (0.5, 1.5))}" == "+1.0 [+0.5, +1.5]"


def test_the_chart_of_a_comparison_shows_no_interval_of_too_few_hosts() -> None:
    entry = {"difference": {"mean": -2.9, "ci95": None}, "verdict": "too few hosts"}
    chart = forest_chart("c", {"controls": {"wait": entry}})
    assert chart.data["rows"] == [{"control": "− wait", "way": "sampled", "verdict": "too few hosts", "mean": -2.9}]


def test_a_setting_that_was_tried_once_has_no_spread() -> None:
    trial = TrialResult("t", {}, 0, 1, "finished", 1, [5.0])
    entry = RankedSetting({}, [trial], True)
    assert entry.std is None
    assert tune_row(1, entry)[3] == "not known"
    row = {**entry.as_dict(1), "label": "1.", "text": ""}
    (mean,) = ranking_chart([row], "score").data["means"]
    assert not {"std", "low", "high"} & mean.keys()


def test_an_iteration_of_one_episode_has_no_spread() -> None:
    (point,) = learning_curve([{"iteration": 1, "kept_val_accuracy": 50.0}])
    assert point == {"iteration": 1, "episodes": 1, "mean": 50.0, "median": 50.0}


@pytest.mark.parametrize(("wait_only", "known"), [([60.0], False), ([60.0, 61.0], True)])
def test_the_tiles_of_a_page_say_what_is_not_known(wait_only: list[float], known: bool) -> None:
    episodes = [
        {"kept_val_accuracy": 80.0 + i, "final_stage": "FOSSILIZED", "stages": []} for i in range(10 * known + 1)
    ]
    tally = RunTally(wait_only=wait_only, trained=[row["kept_val_accuracy"] for row in episodes])
    plan: Any = SimpleNamespace(iterations=1)
    run: Any = SimpleNamespace(
        episodes=episodes,
        learns=True,
        summary=RunResult(plan, tally).as_dict(),
        iterations=[],
        max_epochs=25,
        config={},
    )
    notes = {tile["label"]: tile["note"] for tile in _tiles(run)}
    assert ("not known" not in notes["kept validation accuracy, the last fifth"]) is known
    assert ("not known" not in notes["hosts that only waited"]) is known
    assert ("not known" not in notes["difference, points"]) is known
