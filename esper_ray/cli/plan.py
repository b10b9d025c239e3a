"""`esper-ray plan`: estimates the placement, time and memory of a training run."""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta

from esper_ray.orchestration.config import PlanConfig
from esper_ray.orchestration.fleet.env_runner import WorkerInfo
from esper_ray.orchestration.fleet.placement import Placement
from esper_ray.orchestration.run.plan import RunPlan, started_run
from esper_ray.orchestration.run.resume import locked_resumption, read_start


def run_plan(config: PlanConfig) -> int:
    """Builds the actors, times an epoch, prints the estimates, and returns the exit code. Nothing is written."""
    with ExitStack() as stack:
        resumption = stack.enter_context(locked_resumption(config)) if config.resume is not None else None
        start = read_start(config) if resumption is None else None
        settings = resumption.config if resumption is not None else config
        plan, _algorithm, _board = stack.enter_context(started_run(settings, resumed=resumption is not None))
        if start is not None:
            start.require_spaces(plan.action_names, plan.observation_names)
        lines = described(plan)
    if resumption is not None:
        lines.append(f"Of them {resumption.iteration or 0} iterations are over.")
    print("\n".join(lines))
    return 0


def described(plan: RunPlan) -> list[str]:
    """Returns the plan in words and numbers, a line each."""
    found, placement = plan.preflight, plan.placement
    share = f" and {placement.gpus_per_runner:.3g} of a GPU" if placement.gpus_per_runner else ""
    what = f"{placement.cpus_per_runner:g} CPU{share} each" if placement.runners else "in this process"
    lines = [f"{plan.task.name}: {placement.players} at a time, {what}"]
    lines += _places(found.workers, placement)
    slowest = max(worker.epoch_seconds for worker in found.workers)
    lines += [
        f"A host epoch took {slowest:.3g} s on the slowest; one with a seed takes longer.",
        f"An episode of {found.epochs} epochs: {_span(found.episode_seconds)}.",
        f"An iteration of {plan.episodes} episodes: {_span(found.seconds_for(plan.episodes))}.",
        f"The run of {plan.iterations} iterations, {plan.wait_only_episodes} wait-only and "
        f"{plan.evaluation_episodes} evaluation episodes: {_span(plan.seconds)}.",
        f"An actor that finishes no host epoch for {_span(found.timeout_seconds)} is replaced.",
        f"Memory: {found.memory / 1e6:,.0f} MB, {max(w.memory for w in found.workers) / 1e6:,.0f} MB the largest.",
    ]
    return lines


def _places(workers: Sequence[WorkerInfo], placement: Placement) -> list[str]:
    """Returns a line for each device of each machine. Ray's number of a machine tells apart those of one name."""
    ids_of: dict[str, set[str]] = {}
    for worker in workers:
        ids_of.setdefault(worker.node, set()).add(worker.node_id)
    lines = []
    for (node, node_id, device), count in Counter(
        (worker.node, worker.node_id, worker.device) for worker in workers
    ).items():
        name = node if len(ids_of[node]) == 1 else f"{node}, Ray node {node_id[:8]}"
        gpus = f", {count * placement.gpus_per_runner:.3g} GPU" if placement.gpus_per_runner else ""
        lines.append(f"  {count} on {name}, {device}: {count * placement.cpus_per_runner:g} CPU{gpus}")
    return lines


def _span(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
