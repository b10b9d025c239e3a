"""Closing lines of the commands that play episodes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from esper_ray.lifecycle import SeedStage
from esper_ray.orchestration.held_out.episode_store import Outcome
from esper_ray.shell import pasteable

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

_JOURNEY = [stage for stage in SeedStage if SeedStage.GERMINATED <= stage <= SeedStage.CULLED]


def stage_counts_line(stage_counts: Mapping[str, int], fossilized: int) -> str:
    """Returns a sentence on how many episodes reached each stage, and how many ended FOSSILIZED."""
    reached = ", ".join(f"{stage.name} {stage_counts.get(stage.name, 0)}" for stage in _JOURNEY)
    return f"Episodes in which a seed was in each stage: {reached}. Ended fossilized: {fossilized}."


def timeline(stages: Sequence[str]) -> str:
    """Returns a letter for the slot's stage in each epoch."""
    return "".join(SeedStage[stage].letter for stage in stages)


def drawn_host(outcome: Outcome) -> str:
    """Returns a short description of a host's drawn settings, where hosts differ; else an empty text."""
    if not outcome.host:
        return ""
    drawn = (
        f"{key.rpartition('.')[2]} {value:.3g}" if isinstance(value, float) else f"{key.rpartition('.')[2]} {value}"
        for key, value in outcome.host.items()
    )
    return f"  on {outcome.host_parameters} parameters: {', '.join(drawn)}"


def losses(by_cause: Mapping[str, int]) -> list[str]:
    """Returns a line about lost actors; none if no actor was lost."""
    told = {"died": "died", "raised": "raised an error", "hung": "took too long"}
    parts = [f"{count} {told[cause]}" for cause, count in by_cause.items() if count]
    return [f"Actors lost and replaced: {', '.join(parts)}; their episodes were played again."] if parts else []


def export_hint(out: Path, keep_hosts: int, episodes: int) -> list[str]:
    """Returns the command that exports the best host, if one was kept."""
    return [next_command("esper-ray", "export", out, "--best")] if keep_hosts and episodes else []


def compare_hint(checkpoint: Path, data_dir: Path | None) -> str:
    """Returns the command that compares a checkpoint's policy with simple ones, on the data that was given here."""
    data = () if data_dir is None else ("--data-dir", data_dir)
    return next_command("esper-ray", "compare", checkpoint, *data)


def next_command(*words: str | Path) -> str:
    """Returns the line that names a command to type next."""
    return f"Next: {pasteable(*words)}"
