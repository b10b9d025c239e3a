"""Compares training seeds: mean, interquartile mean and worst of several training runs.

    for SEED in 0 1 2 3 4 5 6 7 8 9; do esper-ray train --seed $SEED --out runs/seed$SEED; done
    python benchmarks/training_seeds.py runs/seed* --out runs/training_seeds

Runs of one setting, told apart by their training seeds. One that is not over is left out and named. All play the same
held-out hosts, and nothing is played twice, so the command can be ended, and repeated when more runs are over. The
tables go to standard output and, as Markdown, to OUT/table.md.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from scipy.stats import trim_mean

from esper_ray.cli.main import run
from esper_ray.orchestration.config import WAYS
from esper_ray.orchestration.held_out.paired import Difference
from esper_ray.orchestration.run.run_folder import checkpoints_of


def main() -> None:
    """Compares and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of `esper-ray train`")
    parser.add_argument("--out", type=Path, required=True, help="folder of the held-out episodes")
    parser.add_argument("--episodes", type=int, default=100, help="held-out hosts")
    parser.add_argument("--controls", default="wait,heuristic,schedule")
    parser.add_argument("--search-rounds", default="4,12,32", help="hosts of each round of the schedule search")
    given = parser.parse_args()
    over = [folder for folder in given.runs if _is_over(folder)]
    if not over:
        sys.exit("none of these runs is over")
    checkpoints = [checkpoints_of(folder)[-1] for folder in over]
    options = ["--controls", given.controls, "--episodes", given.episodes, "--search-rounds", given.search_rounds]
    code = run([str(value) for value in ("compare", *checkpoints, *options, "--out", given.out)])
    if code:
        sys.exit(code)
    written = "comparison.json" if len(over) == 1 else f"comparison-of-{len(over)}.json"
    tables = _tables(json.loads((given.out / written).read_text()))
    missing = [str(folder) for folder in given.runs if folder not in over]
    if missing:
        tables += f"\nNot over, and left out: {', '.join(missing)}\n"
    (given.out / "table.md").write_text(tables)
    print(tables)


def _is_over(folder: Path) -> bool:
    """Returns whether a training run went to its end."""
    try:
        return bool(json.loads((folder / "summary.json").read_text())["complete"])
    except (OSError, ValueError):
        return False


def _tables(found: dict[str, Any]) -> str:
    """Returns the scores of record over the training seeds, and the differences from the controls."""
    lines = [
        f"{len(found['checkpoints'])} training seeds, {found['episodes']} held-out hosts of {found['task']}.",
        "",
        "| acting | score, mean | interquartile mean | worst | kept a seed, least | each training seed |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for way in WAYS:
        rows = [row for row in found["policies"] if row["policy"] == way]
        scores = {found["checkpoints"][row["checkpoint"]]["seed"]: row["score"] for row in rows}
        worst = min(scores, key=lambda seed: scores[seed])
        cells = [
            way,
            f"{sum(scores.values()) / len(scores):.1f}",
            f"{trim_mean(list(scores.values()), 0.25):.1f}",
            f"{scores[worst]:.1f} (seed {worst})",
            f"{min(row['fossilized_share'] for row in rows):.0%}",
            ", ".join(f"{seed}: {score:.1f}" for seed, score in sorted(scores.items())),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"| learned − | control's score | {' | '.join(WAYS)} |", "| --- | --- | --- | --- |"]
    for name, entry in found["controls"].items():
        differences = [_difference(entry), _difference(entry["median"])]
        score = f"{entry['means']['score']:.1f}" if "means" in entry else "–"  # static-final has one for each policy
        lines.append(f"| {name} | {score} | {' | '.join(differences)} |")
    return "\n".join(lines) + "\n"


def _difference(of: dict[str, Any]) -> str:
    return f"{Difference(**of['difference'])}".replace("-", "−")


if __name__ == "__main__":
    main()
