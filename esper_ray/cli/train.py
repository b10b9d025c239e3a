"""`esper-ray train`: trains a policy and prints the results."""

from esper_ray.cli.display import make_display
from esper_ray.cli.summary import INTERRUPTED, compare_hint, export_hint, losses, next_command, stage_counts_line
from esper_ray.orchestration.config import TrainConfig
from esper_ray.orchestration.run.metrics import difference_interval, error_text, interval_text, mean_with_error
from esper_ray.orchestration.run.run_result import RunResult
from esper_ray.orchestration.run.train import train


def run_train(config: TrainConfig) -> int:
    """Trains, prints the summary, and returns the exit code."""
    with make_display() as display:
        result = train(config, display)
    print("\n".join(summary(result)))
    return INTERRUPTED if result.interrupted else 0


def summary(result: RunResult) -> list[str]:
    """Returns the run in words and numbers, and the next commands to type; a line each."""
    plan, tally = result.plan, result.tally
    config = plan.config  # of a resumed run the one that it was started with
    assert isinstance(config, TrainConfig)
    lines = [
        "",
        f"{'Interrupted' if result.interrupted else 'Done'} after {result.iterations} of {plan.iterations} "
        f"iterations: {len(tally.trained)} episodes, {tally.host_epochs:,} host epochs, "
        f"{result.seconds / 60:.1f} minutes.",
    ]
    if tally.trained:
        lines.append(_comparison(result))
        lines.append(stage_counts_line(tally.stage_counts, tally.fossilized))
    if config.host_pool is not None and tally.forced_epochs:
        lines.append(
            f"Host pool: {tally.taken_over_epochs:,} of the {tally.forced_epochs:,} host epochs before a first real "
            f"choice were taken over instead of trained ({tally.taken_over_epochs / tally.forced_epochs:.1%})."
        )
    lines += losses(tally.losses)
    lines += [f"Run folder: {plan.out}", f"Checkpoint: {result.checkpoint}"]
    lines.append(next_command("tensorboard", "--logdir", plan.out))
    if result.checkpoint is not None:
        lines.append(compare_hint(result.checkpoint, config.data_dir))
    lines += export_hint(plan.out, config.keep_hosts, len(tally.trained))
    return lines


def _comparison(result: RunResult) -> str:
    learned, learned_error = mean_with_error(result.last)
    episodes = "episode" if len(result.last) == 1 else f"{len(result.last)} episodes"
    line = f"Kept validation accuracy of the last {episodes}: {learned:.1f} % ({error_text(learned_error)})."
    if result.difference is None:
        return line
    waited = result.tally.wait_only
    waiting, waiting_error = mean_with_error(waited)
    return (
        f"{line} {len(waited)} host{'s' * (len(waited) != 1)} that only waited: {waiting:.1f} % "
        f"({error_text(waiting_error)}). Difference: {result.difference[0]:+.1f} points, "
        f"{interval_text(difference_interval(result.last, waited))}."
    )
