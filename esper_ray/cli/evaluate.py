"""`esper-ray evaluate`: plays a checkpoint's policy on held-out hosts and prints the results."""

from collections import Counter

from esper_ray.cli.display import make_display
from esper_ray.cli.summary import compare_hint, drawn_host, losses, timeline
from esper_ray.orchestration.config import EvaluateConfig
from esper_ray.orchestration.held_out.evaluate import EvaluationResult, evaluate_checkpoint

_ACTING = {
    "sampled": "sampled",
    "median": "acting at the median of the policy's waiting time",
    "likeliest": "taking the likeliest actions",
}


def run_evaluate(config: EvaluateConfig) -> int:
    """Evaluates, prints the summary, and returns the exit code."""
    with make_display() as display:
        result = evaluate_checkpoint(config, display)
    print("\n".join(_summary(result, config)))
    return 0


def _summary(result: EvaluationResult, config: EvaluateConfig) -> list[str]:
    means, outcomes = result.means, result.outcomes
    kept = Counter(outcome.kept_blueprint or "nothing" for outcome in outcomes)
    lines = [
        "",
        f"{len(outcomes)} held-out hosts, {_ACTING[config.acting]}, after {result.manifest.iteration} iterations: "
        f"kept test accuracy {means['kept_test_accuracy']:.1f} %, "
        f"kept validation accuracy {means['kept_val_accuracy']:.1f} %.",
        f"Score of record: {means['score']:.1f}. Parameters added, on average: {means['added_parameters']:,.0f}. "
        f"Kept: {', '.join(f'{name} {count}' for name, count in kept.most_common())}.",
    ]
    if config.timelines:
        lines += [
            "Stages epoch by epoch (. empty, G germinated, T training, B blending, S shadowing, P probationary,",
            "F fossilized, C culled, e embargoed), kept test accuracy, what was kept:",
        ]
    for outcome in outcomes[: config.timelines]:
        lines.append(
            f"  {timeline(outcome.stages)}  {outcome.kept_test_accuracy:5.1f} %  {outcome.kept_blueprint or 'nothing'}"
            f"{drawn_host(outcome)}"
        )
    return [
        *lines,
        *losses(result.losses),
        f"Written to {result.file}",
        compare_hint(config.checkpoint, config.data_dir),
    ]
