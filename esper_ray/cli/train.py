"""`esper-ray train`: runs the main job and says what came of it."""

import warnings

from esper_ray.cli.display import make_display
from esper_ray.cli.summary import INTERRUPTED, export_hint, journeys, losses
from esper_ray.orchestration.config import TrainConfig
from esper_ray.orchestration.metrics import mean_with_error
from esper_ray.orchestration.train import RunResult, train


def run_train(config: TrainConfig) -> int:
    """Trains, prints the summary, and returns the exit code."""
    warnings.filterwarnings("ignore")
    with make_display() as display:
        result = train(config, display)
    print("\n".join(summary(result, config)))
    return INTERRUPTED if result.interrupted else 0


def summary(result: RunResult, config: TrainConfig) -> list[str]:
    """Returns the run in words and numbers, and the next command to type; a line each."""
    plan = result.plan
    lines = [
        "",
        f"{'Interrupted' if result.interrupted else 'Done'} after {result.iterations} of {plan.iterations} "
        f"iterations: {len(result.trained)} episodes, {result.host_epochs:,} host epochs, "
        f"{result.seconds / 60:.1f} minutes.",
    ]
    if result.trained:
        lines.append(_comparison(result))
        lines.append(journeys(result.stage_counts, result.fossilized))
    if config.host_pool is not None and result.forced_epochs:
        lines.append(
            f"Host pool: {result.taken_over_epochs:,} of the {result.forced_epochs:,} host epochs before a first real "
            f"choice were taken over instead of trained ({result.taken_over_epochs / result.forced_epochs:.1%})."
        )
    lines += losses(result.actors_lost)
    lines += [f"Run folder: {plan.out}", f"Checkpoint: {result.checkpoint}", f"Next: tensorboard --logdir {plan.out}"]
    lines.append(f"Next: esper-ray compare {result.checkpoint}")
    lines += export_hint(plan.out, config.keep_hosts, len(result.trained))
    return lines


def _comparison(result: RunResult) -> str:
    learned, learned_error = mean_with_error(result.last)
    line = (
        f"Kept validation accuracy of the last {len(result.last)} episodes: {learned:.1f} % "
        f"(standard error {learned_error:.1f})."
    )
    if result.difference is None:
        return line
    waiting, waiting_error = mean_with_error(result.wait_only)
    difference, error = result.difference
    return (
        f"{line} {len(result.wait_only)} hosts that only waited: {waiting:.1f} % ({waiting_error:.1f}). "
        f"Difference: {difference:+.1f} points, standard error {error:.1f}."
    )
