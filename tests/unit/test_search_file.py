"""Search files: what is valid, what is refused before anything starts, what a trial is told."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ray import tune

from esper_ray.cli.main import run
from esper_ray.orchestration.config_files import load_config
from esper_ray.orchestration.run.run_folder import METRICS_FILE
from esper_ray.orchestration.tuning.ranking import TrialResult, rank
from esper_ray.orchestration.tuning.search_file import METRICS, STOP_KEYS, SearchFile, load_search
from esper_ray.orchestration.tuning.search_folder import write_best
from esper_ray.orchestration.tuning.searchers import SeedRepeater, scheduler

SMALL: dict[str, Any] = {
    "train": {"task": "digits", "iterations": 4, "episodes_per_iteration": 4},
    "space": {"ppo.lr_start": {"grid": [0.001, 0.003]}},
    "seeds": [0, 1],
}


def written(folder: Path, **changes: Any) -> Path:
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump({**SMALL, **changes}))
    return file


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"scedule": 1}, "unknown key 'scedule': did you mean 'scheduler'?"),
    "unknown key of train": (
        {"train": {"iteration": 4}},
        "unknown key 'train.iteration': did you mean 'train.iterations'?",
    ),
    "unknown key of the learner": ({"train": {"ppo": {"lr": 1}}}, "unknown key 'train.ppo.lr'"),
    "a seed in train": ({"train": {"seed": 1}}, "train.seed is not for a search; leave it out, see seeds"),
    "a policy to begin with": (
        {"train": {"from_checkpoint": "x"}},
        "train.from_checkpoint is not for a search; leave it out",
    ),
    "a searched timeout": (
        {"space": {"episode_timeout": {"grid": [1, 2]}}},
        "space.episode_timeout cannot be searched",
    ),
    "a folder in train": ({"train": {"out": "x"}}, "train.out is not for a search"),
    "unknown searched key": (
        {"space": {"ppo.lr_strat": {"grid": [1]}}},
        "unknown key 'space.ppo.lr_strat': did you mean 'space.ppo.lr_start'?",
    ),
    "a searched seed": ({"space": {"seed": {"grid": [1, 2]}}}, "space.seed cannot be searched"),
    "no way of giving values": ({"space": {"reward": ["gain", "loss"]}}, "space.reward expects one of grid, choice"),
    "unknown way of giving values": (
        {"space": {"ppo.clip": {"unifrom": [0.1, 0.2]}}},
        "space.ppo.clip: unknown way of giving values 'unifrom': did you mean 'uniform'?",
    ),
    "a range that falls": (
        {"space": {"ppo.clip": {"uniform": [0.3, 0.1]}}},
        "a range is [lowest, highest], got [0.3, 0.1]",
    ),
    "a logarithm of 0": ({"space": {"ppo.clip": {"loguniform": [0, 1]}}}, "a range is [lowest, highest], above 0"),
    "a value out of range": (
        {"space": {"ppo.lr_start": {"grid": [0.001, -1]}}},
        "ppo.lr_start: Input should be greater than 0",
    ),
    "nothing to search": ({"space": {}}, "space: Dictionary should have at least 1 item"),
    "unknown reward": ({"space": {"reward": {"grid": ["gian"]}}}, "reward.mode"),
    "unknown task setting": ({"space": {"set.reward.rnet": {"grid": [1]}}}, "reward.rnet"),
    "unknown blueprint": (
        {"space": {"set.decisions.blueprints": {"grid": [["conv_havy"]]}}},
        "decisions.blueprints: unknown blueprint 'conv_havy': did you mean 'conv_heavy'?",
    ),
    "unknown slot": ({"space": {"slot": {"grid": ["block9_post"]}}}, "block9_post"),
    "unknown task": ({"train": {"task": "digit"}}, "unknown task 'digit': did you mean 'digits'?"),
    "unknown metric": ({"metric": "scoer"}, "metric: unknown metric 'scoer': did you mean 'score'?"),
    "unknown stop key": ({"stop": {"iterations": 3}}, "stop: unknown metric 'iterations': did you mean 'iteration'?"),
    "unknown mode": ({"mode": "maximum"}, "mode: Input should be 'max' or 'min'"),
    "a metric that is not measured": (
        {"metric": "evaluation.median.score"},
        "it must be 1, or a divisor of train.iterations",
    ),
    "a key that a flag stands for": ({"space": {"set.reward.mode": {"grid": ["gain"]}}}, "use space.reward"),
    "searched iterations": ({"space": {"iterations": {"grid": [1, 2]}}}, "space.iterations cannot be searched"),
    "a network without width": ({"space": {"ppo.hidden": {"grid": [[0]]}}}, "ppo.hidden.0: Input should be greater"),
    "a grid with equal values": ({"space": {"ppo.clip": {"grid": [0.1, 0.1]}}}, "the values of a grid must differ"),
    "a combination that does not fit": (
        {"space": {"slot": {"grid": ["block1_post", "block2_post"]}, "set.host.blocks": {"grid": [2, 1]}}},
        "block2_post",
    ),
    "equal seeds": ({"seeds": [1, 1]}, "seeds must differ, got [1, 1]"),
    "a negative seed": ({"seeds": [-1]}, "seeds.0: Input should be greater than or equal to 0"),
    "no seeds": ({"seeds": []}, "seeds: Tuple should have at least 1 item"),
    "samples of grids": ({"samples": 3}, "samples above 1 would try the same settings again"),
    "unknown scheduler": ({"scheduler": {"kind": "hyperband"}}, "scheduler"),
    "a late rung": ({"scheduler": {"kind": "asha", "grace_iterations": 4}}, "leaves asha nothing to end"),
    "a late change": (
        {"scheduler": {"kind": "pbt", "interval": 4}, "space": {"ppo.clip": {"uniform": [0.1, 0.2]}}},
        "scheduler.interval 4 must be below the 4 iterations",
    ),
    "a network that changes in mid-run": (
        {"scheduler": {"kind": "pbt", "interval": 2}, "space": {"ppo.hidden": {"choice": [[8], [16]]}}},
        "scheduler pbt changes what it draws in mid-run, which ppo.hidden does not allow",
    ),
    "a memory that changes in mid-run": (
        {"scheduler": {"kind": "pbt", "interval": 2}, "space": {"ppo.lstm_width": {"randint": [8, 64]}}},
        "scheduler pbt changes what it draws in mid-run, which ppo.lstm_width does not allow",
    ),
    "nothing to change": ({"scheduler": {"kind": "pbt", "interval": 2}}, "everything is a grid"),
    "a grid for optuna": ({"algorithm": "optuna"}, "ppo.lr_start has a grid: use choice"),
    "an episode too short": ({"train": {"max_epochs": 5}}, "no seed can reach PROBATIONARY in time"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_file_is_said_in_one_line_before_anything_starts(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, message = WRONG[case]
    changes = {**changes, "train": {**SMALL["train"], **changes.get("train", {})}}
    assert run(["tune", str(written(tmp_path, **changes)), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_missing_or_no_search_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.yaml").write_text("just words")
    (tmp_path / "broken.yaml").write_text("a: [1")
    (tmp_path / "train.yaml").write_text("task: digits\n")
    for name, message in {
        "none.yaml": "cannot be read: No such file or directory",
        "text.yaml": "expected settings as KEY: VALUE, got str",
        "broken.yaml": "is not YAML",
        "train.yaml": "has no space to search: it is a file for esper-ray train --config",
    }.items():
        assert run(["tune", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert run(["train", "--config", str(written(tmp_path))]) == 2
    assert "describes a search: esper-ray tune" in capsys.readouterr().err
    assert run(["tune", str(written(tmp_path)), "--max-concurrent", "0"]) == 2
    assert run(["tune", str(written(tmp_path)), "--resume", "--out", str(tmp_path / "nothing")]) == 2
    assert "holds no search" in capsys.readouterr().err


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    assert run(["tune", str(written(tmp_path)), "--out", str(out), "--overwrite"]) == 2
    assert "holds other files" in capsys.readouterr().err
    assert (out / "thesis.tex").exists()
    assert run(["tune", str(written(tmp_path)), "--out", str(out / "thesis.tex")]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_a_trial_is_told_what_train_would_be_told(tmp_path: Path) -> None:
    space = {
        "ppo.lr_start": {"loguniform": [1e-4, 1e-2]},
        "reward": {"grid": ["gain", "loss"]},
        "set.decisions.blueprints": {"choice": [["norm", "conv_heavy"]]},
    }
    search = load_search(written(tmp_path, space=space, samples=3, train={**SMALL["train"], "set": ["reward.rent=2"]}))
    assert search.settings_count == 6
    assert search.trial_count == 12
    setting = {"ppo.lr_start": 0.005, "reward": "loss", "set.decisions.blueprints": ["norm", "conv_heavy"]}
    config = search.trial_config(setting, seed=7)
    assert (config.seed, config.ppo.lr_start, config.reward, config.iterations) == (7, 0.005, "loss", 4)
    overrides = config.task_overrides()
    assert overrides["reward.rent"] == 2
    assert overrides["decisions.blueprints"] == ["norm", "conv_heavy"]


def test_every_metric_is_a_figure_that_a_run_writes_down(tmp_path: Path) -> None:
    """Of a run with an evaluation, so that those figures are there, too."""
    out = tmp_path / "run"
    small = ["data.train_samples=64", "data.validation_samples=50", "host.base_channels=2"]
    arguments = ["train", "--iterations", "1", "--episodes-per-iteration", "2", "--wait-only-episodes", "0"]
    arguments += ["--max-epochs", "12", "--evaluate-every", "1", "--evaluation-episodes", "2", "--runners", "2"]
    assert run([*arguments, "--out", str(out), "--set", *small]) == 0
    row = yaml.safe_load((out / METRICS_FILE).read_text().splitlines()[0])
    for key in {*METRICS, *STOP_KEYS}:
        value: Any = row
        for part in key.split("."):
            assert part in value, key
            value = value[part]


def trial(value: float, setting: int, seed: int, status: str = "finished", iterations: int = 10) -> TrialResult:
    history = [0.0] * (iterations - 2) + [value - 1, value + 1]
    return TrialResult(f"{setting}_{seed}", {"x": setting}, seed, 10, status, iterations, history)


def test_settings_rank_by_their_mean_over_the_seeds_and_those_that_ended_early_come_last() -> None:
    trials = [trial(70, 1, 0), trial(80, 1, 1), trial(76, 2, 0), trial(76, 2, 1)]
    trials += [trial(99, 3, 0), trial(99, 3, 1, "stopped", 4)]
    ranking = rank(trials, "max", (0, 1))
    assert [entry.setting["x"] for entry in ranking] == [2, 1, 3]
    assert [entry.complete for entry in ranking] == [True, True, False]
    assert ranking[1].mean == 75
    assert ranking[1].std == pytest.approx(7.0711, abs=1e-4)
    assert [entry.setting["x"] for entry in rank(trials, "min", (0, 1))] == [1, 2, 3]
    half = [trial(99, 4, 0), TrialResult("4_1", {"x": 4}, 1, 10, "failed")]
    assert [entry.setting["x"] for entry in rank([*trials, *half], "max", (0, 1))][-2:] == [4, 3]


def test_a_setting_that_was_drawn_twice_is_whole_and_pbt_s_trials_rank_each_by_itself() -> None:
    twice = [trial(70 + i, 1, seed) for i, seed in enumerate((0, 1, 0, 1))]
    (entry,) = rank(twice, "max", (0, 1))
    assert entry.complete
    assert entry.as_dict(1)["seeds"] == [0, 0, 1, 1]
    assert entry.as_dict(1)["values"] == [70, 72, 71, 73]
    members = [trial(70, 1, 0), trial(80, 1, 1)]
    ranking = rank(members, "max", (0, 1), each_by_itself=True)
    assert [(entry.mean, entry.complete) for entry in ranking] == [(80, True), (70, True)]


def test_asha_holds_a_trial_against_those_of_its_own_seed_only() -> None:
    """A bad setting on an easy seed scores higher than a good one on a hard seed, and is ended all the same."""
    search = SearchFile.model_validate({**SMALL, "scheduler": {"kind": "asha", "grace_iterations": 1}})
    chosen = scheduler(search)
    good_hard, bad_hard, good_easy, bad_easy = (
        SimpleNamespace(trial_id=name, config={"seed": seed}) for name, seed in zip("abcd", (0, 0, 1, 1), strict=True)
    )
    for one in (good_hard, bad_hard, good_easy, bad_easy):
        chosen.on_trial_add(None, one)

    def decision(one: SimpleNamespace, score: float) -> str:
        return str(chosen.on_trial_result(None, one, {"training_iteration": 1, "score": score}))

    assert decision(good_easy, 90) == "CONTINUE"
    assert decision(good_hard, 30) == "CONTINUE", "far below the other seed, but the best of its own"
    assert decision(bad_hard, 20) == "STOP"
    assert decision(bad_easy, 80) == "STOP", "far above the other seed, but the worst of its own"


def test_pbt_stays_within_the_space_and_keeps_each_trial_s_seed() -> None:
    space = {"ppo.gae_lambda": {"uniform": [0.9, 1.0]}, "ppo.clip": {"choice": [0.1, 0.2]}}
    search = SearchFile.model_validate({**SMALL, "space": space, "scheduler": {"kind": "pbt", "interval": 2}})
    chosen = scheduler(search)
    worst = SimpleNamespace(config={"ppo.gae_lambda": 0.9, "ppo.clip": 0.1, "seed": 1})
    best = SimpleNamespace(config={"ppo.gae_lambda": 0.99, "ppo.clip": 0.2, "seed": 0})
    for _ in range(50):
        config, _ = chosen._get_new_config(worst, best)
        assert 0.9 <= config["ppo.gae_lambda"] <= 1.0
        assert config["ppo.clip"] in (0.1, 0.2)
        assert config["seed"] == 1


def test_a_searcher_that_was_saved_knows_which_trials_belong_together(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from ray.tune.search.optuna import OptunaSearch

    def fresh() -> SeedRepeater:
        space = {"ppo.clip": tune.uniform(0.1, 0.3)}
        return SeedRepeater(OptunaSearch(space=space, metric="score", mode="max", seed=0), (5, 6))

    first = fresh()
    before = first.suggest("a")
    first.save(str(tmp_path / "state"))
    second = fresh()
    second.restore(str(tmp_path / "state"))
    after = second.suggest("b")
    assert before is not None
    assert after is not None
    assert (before["seed"], after["seed"]) == (5, 6)
    assert before["ppo.clip"] == after["ppo.clip"]
    for trial_id, score in (("a", 1.0), ("b", 3.0)):
        second.on_trial_complete(trial_id, {"score": score})
    assert [study.value for study in second.searcher._ot_study.trials] == [2.0]
    assert second.suggest("c")["ppo.clip"] != before["ppo.clip"]  # type: ignore[index]


def test_the_best_setting_becomes_a_file_for_train(tmp_path: Path) -> None:
    search = SearchFile.model_validate({**SMALL, "train": {**SMALL["train"], "data_dir": "."}})
    trials = [TrialResult("a", {"ppo.lr_start": 0.003}, seed, 4, "finished", 4, [80.0]) for seed in (0, 1)]
    best = rank(trials, "max", (0, 1))[0]
    config = load_config(write_best(tmp_path, search, best, runners=1))
    assert (config.ppo.lr_start, config.seed, config.runners, config.iterations) == (0.003, 0, 1, 4)
    assert config.episodes_per_iteration == 4
    assert config.data_dir == Path.cwd()
