"""Compares the reward modes: trains each of them with several seeds and holds all policies against the same controls.

    python benchmarks/reward_modes.py --out runs/reward_modes

Every run lies in a folder of its own. What is there already is not trained or played again, so the command can be
ended and repeated. The table goes to standard output and, as Markdown, to OUT/table.md.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from esper_ray.cli.main import run
from esper_ray.orchestration.held_out.paired import Difference

MODES = ("gain", "paired", "sparse", "loss", "contribution")
CONTROLS = ("wait", "schedule")


def main() -> None:
    """Trains, compares and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=3, help="training seeds of each mode")
    parser.add_argument("--episodes", type=int, default=100, help="held-out hosts")
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--search-rounds", default="4,12,32", help="hosts of each round of the schedule search")
    parser.add_argument("train", nargs="*", help="further flags of `esper-ray train`, after --")
    given = parser.parse_args()
    found = {}
    for mode in given.modes:
        checkpoints = [_trained(given.out / f"{mode}_{seed}", mode, seed, given.train) for seed in range(given.seeds)]
        found[mode] = _compared(given.out, mode, checkpoints, given.episodes, given.search_rounds)
    table = _table(found)
    (given.out / "table.md").write_text(table)
    print(table)


def _trained(folder: Path, mode: str, seed: int, more: list[str]) -> Path:
    arguments = ["--reward", mode, "--seed", seed, *more]
    if not _is_done(folder, arguments):
        _esper_ray("train", *arguments, "--out", folder, "--overwrite")
        (folder / "arguments.json").write_text(json.dumps(arguments))
    (checkpoint,) = sorted((folder / "checkpoints").glob("iteration_*"))[-1:]
    return checkpoint


def _is_done(folder: Path, arguments: list[object]) -> bool:
    """Returns whether a run with exactly these arguments lies there and went to its end."""
    try:
        summary, given = (json.loads((folder / name).read_text()) for name in ("summary.json", "arguments.json"))
    except (OSError, ValueError):
        return False
    return bool(summary["complete"]) and given == arguments


def _compared(out: Path, mode: str, checkpoints: list[Path], episodes: int, rounds: str) -> dict[str, Any]:
    """Compares the checkpoints of a mode; the controls' episodes are played once for all modes."""
    folder = out / "held_out"
    options = ["--controls", ",".join(CONTROLS), "--episodes", episodes, "--search-rounds", rounds]
    _esper_ray("compare", *checkpoints, *options, "--out", folder)
    written = "comparison.json" if len(checkpoints) == 1 else f"comparison-of-{len(checkpoints)}.json"
    kept = out / f"comparison_{mode}.json"
    (folder / written).replace(kept)
    return dict(json.loads(kept.read_text()))


def _esper_ray(*arguments: object) -> None:
    code = run([str(argument) for argument in arguments])
    if code:
        sys.exit(code)


def _table(found: dict[str, dict[str, Any]]) -> str:
    """Returns a row per mode: means over the training seeds, and paired differences, median and sampled."""
    lines = [
        "| reward | host epochs a run | score, sampled (each training seed) | score, median | − wait, sampled "
        "| − schedule, sampled | − schedule, median | − schedule in kept test %, sampled |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for mode, result in found.items():
        rows = {way: [r for r in result["policies"] if r["policy"] == way] for way in ("sampled", "median")}
        spent = sum(row["host_epochs_spent"] for row in rows["sampled"]) / len(rows["sampled"])
        wait, schedule = (result["controls"][name] for name in CONTROLS)
        cells = [
            f"`{mode}`",
            f"{spent:,.0f}",
            *(_scores(rows[way]) for way in ("sampled", "median")),
            *(_difference(of) for of in (wait, schedule, schedule["median"], schedule["kept_test_accuracy"])),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _scores(rows: list[dict[str, Any]]) -> str:
    each = ", ".join(f"{row['score']:.1f}" for row in rows)
    return f"{sum(row['score'] for row in rows) / len(rows):.1f} ({each})"


def _difference(of: dict[str, Any]) -> str:
    return f"{Difference(**of['difference'])}".replace("-", "−")


if __name__ == "__main__":
    main()
