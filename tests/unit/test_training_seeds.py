"""The table over training seeds: means, interquartile means and worst seeds of each way of acting."""

import importlib.util
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[2] / "benchmarks" / "training_seeds.py"
SCORES = [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 1000.0]


def difference(mean: float, ci95: list[float] | None) -> dict[str, Any]:
    return {"difference": {"mean": mean, "ci95": ci95}}


def test_the_table_has_mean_interquartile_mean_and_worst_seed_of_each_way_of_acting() -> None:
    spec = importlib.util.spec_from_file_location("training_seeds", FILE)
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    rows = [
        {"policy": way, "checkpoint": f"run{seed}", "score": score + shift, "fossilized_share": 1.0 - seed / 10}
        for way, shift in (("sampled", 0.0), ("median", 1.0))
        for seed, score in enumerate(SCORES)
    ]
    found = {
        "task": "digits",
        "episodes": 100,
        "checkpoints": {f"run{seed}": {"seed": seed} for seed in range(len(SCORES))},
        "policies": rows,
        "controls": {
            "wait": {"means": {"score": 5.0}, **difference(-2.0, [-3.0, -1.0]), "median": difference(1.5, None)}
        },
    }
    lines = benchmark._tables(found).splitlines()
    assert lines[0] == "8 training seeds, 100 held-out hosts of digits."
    each = ", ".join(f"{seed}: {score:.1f}" for seed, score in enumerate(SCORES))
    assert lines[4] == f"| sampled | 160.0 | 45.0 | 10.0 (seed 0) | 30% | {each} |"
    assert lines[5].startswith("| median | 161.0 | 46.0 | 11.0 (seed 0) | 30% |")
    assert lines[9] == "| wait | 5.0 | −2.0 [−3.0, −1.0] | +1.5 (too few hosts) |"
