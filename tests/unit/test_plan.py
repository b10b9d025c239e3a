"""A plan in words."""

from pathlib import Path

from fast_tasks import make_fast_task

from esper_ray.cli.plan import described
from esper_ray.orchestration.config import TrainConfig
from esper_ray.orchestration.fleet.env_runner import WorkerInfo
from esper_ray.orchestration.fleet.placement import Placement
from esper_ray.orchestration.run.plan import RunPlan
from esper_ray.orchestration.run.preflight import Preflight


def test_a_plan_says_how_much_of_which_gpu_each_machine_gives() -> None:
    places = [("north", "a" * 56, "cuda:0"), ("north", "a" * 56, "cuda:1"), ("south", "b" * 56, "cuda:0")]
    workers = [
        WorkerInfo(i, *place, 1, 0.1, 1_000_000) for i, place in enumerate([places[0], *places, places[2]], start=1)
    ]
    plan = RunPlan(
        TrainConfig(),
        make_fast_task(),
        Placement(5, 1, 0.5),
        Preflight(tuple(workers), 12, 60.0),
        episodes=10,
        action_names=("WAIT",),
        out=Path("out"),
    )
    assert described(plan)[:4] == [
        "digits: 5 at a time, 1 CPU and 0.5 of a GPU each",
        "  2 on north, cuda:0: 2 CPU, 1 GPU",
        "  1 on north, cuda:1: 1 CPU, 0.5 GPU",
        "  2 on south, cuda:0: 2 CPU, 1 GPU",
    ]
