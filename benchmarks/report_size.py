"""Measures the report of a long run: seconds to write it, its size, and how long a browser takes to show it.

    python benchmarks/report_size.py --run RUN

The long run is made of the given one, by repeating its episodes and iterations under new numbers.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from esper_ray.orchestration.run.run_folder import read_episodes, read_metrics
from esper_ray.report import write_report

_OPENED = 5
_SHOWN = """() => Promise.all([esperReport.ready, ...[...document.querySelectorAll('[data-chart]')]
  .filter((element) => element.getBoundingClientRect().top < innerHeight)
  .map((element) => new Promise((done) => {
    const look = () => element.dataset.drawn ? requestAnimationFrame(() => done()) : setTimeout(look, 4);
    look();
  }))]).then(() => performance.now())"""


def main() -> None:
    """Writes the long run into a temporary folder and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run folder to repeat")
    parser.add_argument("--episodes", type=int, default=5000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "long"
        make_long_run(arguments.run, folder, arguments.episodes)
        started = time.perf_counter()
        page = write_report(folder)
        seconds = time.perf_counter() - started
        print(f"{arguments.episodes:,} episodes: {seconds:.1f} s to write, {page.stat().st_size / 1e6:.2f} MB")
        shown = [open_page(page) for _ in range(_OPENED)]
        print(f"opened {_OPENED} times: visible charts drawn after {statistics.median(shown):.0f} ms (median)")
        print(f"slowest {max(shown):.0f} ms")


def make_long_run(run: Path, folder: Path, episodes: int) -> None:
    """Writes a run of `episodes` episodes into a new folder, out of the rows of another run."""
    folder.mkdir()
    for name in ("config.json", "summary.json"):
        if (run / name).exists():
            shutil.copy(run / name, folder)
    if (run / "held_out").exists():
        shutil.copytree(run / "held_out", folder / "held_out")
    found = read_episodes(run)
    rows, iterations = [found[number] for number in sorted(found)], read_metrics(run)
    last = max(row["iteration"] for row in rows)
    repeated: list[dict[str, Any]] = []
    for i in range(episodes):
        row, around = rows[i % len(rows)], i // len(rows)
        repeated.append({**row, "episode": i + 1, "iteration": row["iteration"] + around * last})
    needed = repeated[-1]["iteration"]
    metrics = [
        {**iterations[i % len(iterations)], "iteration": i + 1, "episodes": min(episodes, (i + 1) * len(rows) // last)}
        for i in range(needed if iterations else 0)
    ]
    for name, content in (("episodes.jsonl", repeated), ("metrics.jsonl", metrics)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in content))


def open_page(page: Path) -> float:
    """Opens the page in a new browser and returns the milliseconds until what is visible has been drawn."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        tab.goto(page.absolute().as_uri())
        milliseconds = float(tab.evaluate(_SHOWN))
        browser.close()
    return milliseconds


if __name__ == "__main__":
    main()
