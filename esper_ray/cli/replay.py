"""`esper-ray replay`: plays a recorded episode again and says whether it came out as recorded."""

from esper_ray.orchestration.config import ReplayConfig
from esper_ray.orchestration.run.replay_run import Replay, replay_run


def run_replay(config: ReplayConfig) -> int:
    """Replays, prints the first difference if any, and returns the exit code: 1 if anything differs."""
    replay = replay_run(config)
    print("\n".join(_differing(replay) if replay.differences else _reproduced(replay)))
    return 1 if replay.differences else 0


def _reproduced(replay: Replay) -> list[str]:
    return [
        f"Episode {replay.episode} of {replay.run}: all {replay.epochs} epochs as recorded, to the last digit "
        f"(kept validation accuracy {_percent(replay.kept_val_accuracy)}).",
        *(f"That holds although {change}." for change in replay.changes),
    ]


def _differing(replay: Replay) -> list[str]:
    first = replay.differences[0]
    where = "every epoch is as recorded, but not" if first.epoch is None else f"first in epoch {first.epoch},"
    lines = [f"Episode {replay.episode} of {replay.run} comes out differently, {where} {first}."]
    differing = f"{replay.differing_epochs} of {replay.epochs} epochs differ"
    if replay.kept_val_accuracy is None:
        lines.append(f"{differing}; it cannot go on, because the decision of epoch {replay.played + 1} is not legal.")
    else:
        kept = f"{_percent(replay.recorded_accuracy)} as recorded, {_percent(replay.kept_val_accuracy)} now"
        lines.append(f"{differing}. Kept validation accuracy: {kept}.")
    if replay.changes:
        return [*lines, f"Possible causes: {'; '.join(replay.changes)}."]
    return [*lines, "Versions, CPU and settings are as recorded; look for an altered row, other data or changed code."]


def _percent(accuracy: float | None) -> str:
    return "unknown" if accuracy is None else f"{accuracy:.1f} %"
