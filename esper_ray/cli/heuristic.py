"""`esper-ray heuristic`: plays episodes of the heuristic policy and prints the results."""

from esper_ray.cli.display import make_display
from esper_ray.cli.summary import INTERRUPTED, export_hint, losses, stage_counts_line
from esper_ray.orchestration.config import HeuristicConfig
from esper_ray.orchestration.run.heuristic import HeuristicResult, play_heuristic
from esper_ray.orchestration.run.metrics import error_text


def run_heuristic(config: HeuristicConfig) -> int:
    """Plays, prints the summary, and returns the exit code."""
    with make_display() as display:
        result = play_heuristic(config, display)
    print("\n".join(_summary(result, config)))
    return INTERRUPTED if result.interrupted else 0


def _summary(result: HeuristicResult, config: HeuristicConfig) -> list[str]:
    plan = result.plan
    lines = [
        "",
        f"{'Interrupted' if result.interrupted else 'Done'} after {len(result.records)} of {plan.episodes} episodes of "
        f"the heuristic policy, {result.seconds / 60:.1f} minutes.",
    ]
    if result.records:
        accuracy, error = result.kept_val_accuracy
        lines.append(
            f"Kept validation accuracy: {accuracy:.1f} % ({error_text(error)}), loss "
            f"{result.means['kept_val_loss']:.3f} nats. Parameters added, on average: "
            f"{result.means['added_parameters']:,.0f}."
        )
        taken = ", ".join(f"{name} {count}" for name, count in result.means["actions"].items() if count)
        fossilized = sum(record.kept_blueprint is not None for record in result.records)
        lines += [f"Decisions: {taken}.", stage_counts_line(result.means["episodes_reaching"], fossilized)]
    lines += [*losses(result.losses), f"Run folder: {plan.out}"]
    return lines + export_hint(plan.out, config.keep_hosts, len(result.records))
