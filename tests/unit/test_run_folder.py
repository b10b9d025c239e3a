"""Run folder, metrics, display: what a run writes and shows."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fast_tasks import make_fast_task
from rich.console import Console

from esper_ray.cli.display import LiveDisplay, PlainDisplay, plan_line
from esper_ray.episode import EpisodeRecord, MorphogenesisEnv
from esper_ray.episode.rollout import play_episode
from esper_ray.errors import RunFolderError
from esper_ray.orchestration.config import HeuristicConfig, TrainConfig
from esper_ray.orchestration.fleet.env_runner import WorkerInfo
from esper_ray.orchestration.fleet.placement import Placement
from esper_ray.orchestration.fleet.progress import HostProgress
from esper_ray.orchestration.run.metrics import episode_metrics, learner_metrics, mean_with_error
from esper_ray.orchestration.run.plan import RunPlan
from esper_ray.orchestration.run.preflight import Preflight
from esper_ray.orchestration.run.run_folder import RunFolder, iteration_of, read_metrics, require_usable
from esper_ray.orchestration.run.run_result import RunResult, RunTally
from esper_ray.policies import RandomPolicy, SchedulePolicy

ENV = MorphogenesisEnv(make_fast_task())
NAMES = ENV.action_table.names


class Board:
    """What the displays read."""

    def read(self) -> list[HostProgress]:
        return [HostProgress(1, 0, 7, 25, "BLENDING", 61.25, "WAIT", 3)]


@pytest.fixture
def records() -> list[EpisodeRecord]:
    scheduled = SchedulePolicy(ENV.action_table, "norm", germinate_at=3)
    return [play_episode(ENV, RandomPolicy(), 0), play_episode(ENV, scheduled, 1)]


@pytest.fixture
def plan(tmp_path: Path) -> RunPlan:
    workers = tuple(
        WorkerInfo(runner, "here", "node", "cpu", hosts=1, epoch_seconds=0.5, memory=10**6) for runner in (1, 2)
    )
    preflight = Preflight(workers, ENV.task.max_epochs, timeout_seconds=60.0)
    return RunPlan(TrainConfig(), ENV.task, Placement(2, 1, 0.0), preflight, 32, NAMES, tmp_path / "run")


def iteration_row(records: list[EpisodeRecord]) -> dict[str, object]:
    return {
        "iteration": 3,
        "episodes": 96,
        "episodes_per_second": 2.5,
        **episode_metrics(records, NAMES),
        "learner": {**learner_metrics({}), "entropy_share": 0.375, "kl": 0.0123, "explained_variance": None},
    }


def test_a_checkpoint_that_fails_leaves_nothing_and_one_that_succeeds_is_whole(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        (path / "half").touch()
        raise OSError("disk full")

    with RunFolder(tmp_path / "run", {}) as folder:
        with pytest.raises(RunFolderError, match="iteration 1 could not be written: disk full; there is none yet"):
            folder.save_checkpoint(1, fail)
        assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
        saved = folder.save_checkpoint(1, lambda path: (path / "whole").touch())
        assert [path.name for path in saved.iterdir()] == ["whole"]
        assert folder.save_checkpoint(1, fail) == saved
        with pytest.raises(RunFolderError, match="disk full; the last one is iteration_000001"):
            folder.save_checkpoint(2, fail)
        assert list((tmp_path / "run" / "checkpoints").iterdir()) == [saved]


def test_the_two_last_checkpoints_stay_and_those_of_every_so_many_iterations(tmp_path: Path) -> None:
    there = []
    with RunFolder(tmp_path / "run", {}) as folder:
        for iteration in range(8):
            folder.save_checkpoint(iteration, lambda path: (path / "whole").touch(), keep_every=3)
            there.append([iteration_of(path) for path in folder.checkpoints()])
    assert there[:4] == [[0], [0, 1], [0, 1, 2], [0, 2, 3]]
    assert there[-1] == [0, 3, 6, 7]


def test_a_run_that_goes_on_keeps_what_it_had_come_to_and_nothing_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with RunFolder(path, {}) as folder:
        for iteration in (1, 2, 3):
            folder.add_iteration({"iteration": iteration})
            folder.save_checkpoint(iteration, lambda path: (path / "whole").touch())
        folder.hosts.mkdir()
        folder.write_summary({"interrupted": True})
    (path / "checkpoints" / ".writing-half").mkdir()
    with (path / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"iteration": 1, "ret')
    with RunFolder(path, {}, keep_iterations=2) as folder:
        assert [iteration_of(checkpoint) for checkpoint in folder.checkpoints()] == [1, 2]
        folder.add_iteration({"iteration": 3, "again": True})
    assert read_metrics(path) == [{"iteration": 1}, {"iteration": 2}, {"iteration": 3, "again": True}]
    assert sorted(entry.name for entry in (path / "checkpoints").iterdir()) == ["iteration_000001", "iteration_000002"]
    assert folder.hosts.is_dir()
    assert not (path / "summary.json").exists()

    with RunFolder(path, {}, keep_iterations=1, keep_policies=False) as folder:
        assert folder.checkpoints() == []
        assert not folder.hosts.exists()
    assert read_metrics(path) == [{"iteration": 1}]
    with RunFolder(path, {}):
        assert read_metrics(path) == []


def test_a_folder_is_checked_without_being_made(tmp_path: Path) -> None:
    require_usable(tmp_path / "new" / "run", overwrite=False)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="not a folder"):
        require_usable(tmp_path / "file", overwrite=True)


def test_metrics_are_means_and_counts_over_the_episodes(records: list[EpisodeRecord]) -> None:
    metrics = episode_metrics(records, NAMES)
    assert metrics["kept_val_accuracy"] == pytest.approx(sum(r.kept_val_accuracy for r in records) / 2)
    assert sum(metrics["actions"].values()) == 24
    assert metrics["episodes_reaching"]["GERMINATED"] == 2
    assert metrics["episodes_reaching"]["DORMANT"] == 2
    assert sum(metrics["reward_components"].values()) == pytest.approx(metrics["return"])
    measured = [e.gradient_norm for r in records for e in r.epochs if e.gradient_norm is not None]
    assert metrics["gradients"]["gradient_norm"] == pytest.approx(sum(measured) / len(measured))


def test_the_result_of_a_run_is_that_of_the_last_fifth_of_its_episodes(plan: RunPlan) -> None:
    result = RunResult(plan, RunTally(wait_only=[50.0, 52.0], trained=[0.0] * 8 + [90.0, 94.0]))
    assert result.last == [90.0, 94.0]
    assert result.difference is not None
    assert result.difference[0] == pytest.approx(92.0 - 51.0)


def test_the_standard_error_is_that_of_the_mean() -> None:
    mean, error = mean_with_error([1.0, 2.0, 3.0, 4.0])
    assert (mean, error) == (2.5, pytest.approx(1.2909944 / 2))
    assert mean_with_error([7.0]) == (7.0, None)


def test_rows_are_strict_json_even_if_a_number_is_not(tmp_path: Path, records: list[EpisodeRecord]) -> None:
    row = iteration_row(records) | {"return": float("nan")}
    with RunFolder(tmp_path / "run", {}) as folder:
        folder.add_iteration(row)
    read = json.loads((tmp_path / "run" / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert read["return"] is None
    assert read["episodes"] == 96


def test_plain_lines_say_what_runs_and_how_it_goes(
    plan: RunPlan, records: list[EpisodeRecord], capsys: pytest.CaptureFixture[str]
) -> None:
    with PlainDisplay() as display:
        display.on_start(plan, Board())  # type: ignore[arg-type]
        display.on_scripted("wait-only", 32, 32)
        display.on_iteration(iteration_row(records))
    first, second, third = capsys.readouterr().out.splitlines()
    assert "16 iterations of 32 episodes of 12 epochs, 2 runners on cpu" in first
    assert second == "32 wait-only episodes played"
    assert third.startswith("iteration   3/16  episodes    96")
    assert "entropy 38%  kl 0.0123  explained variance" in third


def test_a_run_in_which_nothing_learns_says_what_plays(plan: RunPlan) -> None:
    line = plan_line(replace(plan, config=HeuristicConfig()))
    assert line.startswith("digits: heuristic, 32 episodes of 12 epochs, 2 runners on cpu")


def test_the_live_table_shows_hosts_and_learner(plan: RunPlan, records: list[EpisodeRecord]) -> None:
    display = LiveDisplay()

    def shown() -> str:
        console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
        console.print(display._render())
        return console.export_text()

    assert "starting Ray" in shown()
    display.on_start(plan, Board())  # type: ignore[arg-type]
    display.on_scripted("wait-only", 5, 32)
    assert "wait-only episodes: 5/32" in shown()
    display.on_iteration(iteration_row(records))
    table = shown()
    assert all(text in table for text in ("7/25", "BLENDING", "61.2 %", "WAIT", "iteration 3/16, 96 episodes"))
    assert all(text in table for text in ("38%", "0.0123"))
