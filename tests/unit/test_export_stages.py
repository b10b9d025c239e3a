"""An export holds what is kept: nothing of a live seed, nothing about a culled one."""

import json
from pathlib import Path

import pytest
from fast_tasks import make_fast_task

from esper_ray.episode.host_run import HostRun
from esper_ray.errors import LifecycleError
from esper_ray.export import export_model
from esper_ray.lifecycle import SeedStage
from esper_ray.tasks import load_task_data, prepare_data

TASK = make_fast_task()


@pytest.fixture
def run() -> HostRun:
    """A host with a seed that has just germinated."""
    run = HostRun(TASK, load_task_data(TASK), "cpu", 5)
    run.model.germinate_seed("conv_light", "s")
    return run


@pytest.mark.parametrize("stage", ["GERMINATED", "TRAINING", "BLENDING", "SHADOWING", "PROBATIONARY"])
def test_a_live_seed_is_refused(stage: str, run: HostRun, tmp_path: Path) -> None:
    model = run.model
    assert model.seed_state is not None
    model.seed_state.enter(SeedStage[stage])
    with pytest.raises(LifecycleError, match=f"the seed conv_light is {stage}, and only a FOSSILIZED one is kept"):
        export_model(model, TASK, prepare_data(TASK), None, tmp_path / "export", {})
    assert list(tmp_path.iterdir()) == []
    assert model.seed_slot.stage.name == stage


@pytest.mark.parametrize("stage", ["CULLED", "DORMANT"])
def test_nothing_is_said_of_a_seed_that_was_culled(stage: str, run: HostRun, tmp_path: Path) -> None:
    run.model.cull_seed()
    for _ in range(TASK.lifecycle.embargo_epochs if stage == "DORMANT" else 0):
        run.model.seed_slot.step_epoch()
    assert run.model.seed_slot.stage.name == stage
    topology = export_model(run.model, TASK, prepare_data(TASK), None, tmp_path / "export", {})
    assert topology["seed"] is None is run.kept_blueprint
    assert json.loads((tmp_path / "export" / "topology.json").read_text())["seed"] is None
    assert "grew nothing at" in (tmp_path / "export" / "model.py").read_text()
