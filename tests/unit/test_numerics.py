"""What decides the last digits of numbers, besides code and data: set, or recorded and named."""

from pathlib import Path

import pytest
import torch
from fast_tasks import make_fast_task

from esper_ray.numerics import UNSET, as_actor, numeric_settings, play_as_actor
from esper_ray.orchestration.config import LearnerSettings
from esper_ray.orchestration.fleet.actor_envs import ActorSettings
from esper_ray.orchestration.fleet.env_runner import EpisodeRunner, WorkerInfo
from esper_ray.orchestration.fleet.placement import Placement
from esper_ray.orchestration.learner.learner_config import Learning, build_config
from esper_ray.orchestration.run.plan import origin
from esper_ray.orchestration.run.preflight import Preflight
from esper_ray.orchestration.run.recorded_run import RecordedRun
from esper_ray.orchestration.run.replay_run import _changes_since


def switches() -> tuple[int, dict[str, str]]:
    return torch.get_num_threads(), numeric_settings()


def test_what_an_actor_has_holds_inside_the_context_only() -> None:
    with as_actor(2):
        before = switches()
        with as_actor(1):
            threads, settings = switches()
            assert threads == 1
            assert settings["torch.backends.cudnn.deterministic"] == "True"
            assert "CUBLAS_WORKSPACE_CONFIG" in settings
        assert switches() == before


@pytest.mark.parametrize("cpus", [1, 0.9, 2])
def test_an_actor_has_a_thread_for_each_cpu_whatever_the_process_had(cpus: float) -> None:
    placement = Placement(0, cpus, 0.0)
    learning = Learning(LearnerSettings(), iterations=1, episodes_per_iteration=1, seed=0)
    with as_actor(3):
        EpisodeRunner(config=build_config(ActorSettings(make_fast_task()), learning, placement), worker_index=1)
        assert torch.get_num_threads() == placement.threads_per_runner == max(1, int(cpus))


def test_variables_that_decide_numbers_are_recorded_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    deciding = ("ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "NVIDIA_TF32_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG", "NPY_DISABLE_X")
    deciding += ("OMP_DYNAMIC", "OMP_THREAD_LIMIT", "KMP_DETERMINISTIC_REDUCTION")
    for name in deciding:
        monkeypatch.setenv(name, "1")
    without = numeric_settings()
    assert {name: "1" for name in deciding}.items() <= without.items()
    for name in ("OMP_NUM_THREADS", "KMP_INIT_AT_FORK", "MKL_NUM_THREADS", "ONEDNN_VERBOSE", "TORCH_LOGS"):
        monkeypatch.setenv(name, "2")
    assert numeric_settings() == without


def test_switches_of_torch_are_recorded() -> None:
    before = numeric_settings()
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        torch.set_default_dtype(torch.float64)
        after = numeric_settings()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision(precision)
    changed = {name for name in after if after[name] != before[name]}
    assert "torch.get_default_dtype" in changed
    assert any("precision" in name for name in changed)
    assert numeric_settings() == before


def test_what_unequal_actors_have_is_recorded_of_all() -> None:
    workers = (
        WorkerInfo(1, "a", "a", "cpu", 1, 0.1, 1, {"X": "1", "Y": "2"}),
        WorkerInfo(2, "b", "b", "cpu", 1, 0.1, 1, {"Y": "2"}),
    )
    assert Preflight(workers, 12, 60.0).numerics == {"X": f"1 or {UNSET}", "Y": "2"}


def test_a_replay_names_what_was_set_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    with as_actor(1):
        config = {**origin(), "numerics": numeric_settings(), "threads_per_runner": 1}
    run = RecordedRun(Path("run"), config, make_fast_task(), {}, None)
    assert _changes_since(run) == []
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    config["numerics"]["MKL_CBWR"] = "COMPATIBLE"
    assert _changes_since(run) == ["ONEDNN_MAX_CPU_ISA unset, now AVX2", "MKL_CBWR COMPATIBLE, now unset"]
    del config["numerics"]
    assert _changes_since(run) == [], "an older version recorded none"


def test_playing_as_an_actor_keeps_the_workspaces_that_the_user_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with as_actor(1):
        play_as_actor(1)
        assert numeric_settings()["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert numeric_settings()["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
