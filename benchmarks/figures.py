"""Figures of a benchmark: written as JSON beside its table, and held against those of an earlier run."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from esper_ray.orchestration.run.plan import origin

Row = Mapping[str, Any]
"""The figures of one case; "name" tells the case."""


def whole(text: str) -> int:
    """Returns a whole number of at least 0, as an argparse type."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number")
    return int(text)


def positive(text: str) -> int:
    """Returns a whole number of at least 1, as an argparse type."""
    if (count := whole(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 at least")
    return count


def figures_file(text: str) -> Path:
    """Returns a place for figures, as an argparse type: it is asked before anything is measured."""
    file = Path(text)
    if not file.parent.is_dir() or file.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: expected a file in a folder that is there")
    return file


def earlier_figures(text: str) -> dict[str, Row]:
    """Returns the rows of an earlier run's file by name, as an argparse type."""
    try:
        return {row["name"]: row for row in json.loads(Path(text).read_text())["rows"]}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise argparse.ArgumentTypeError(f"{text}: no figures of a benchmark ({error!r})") from error


def write_figures(file: Path, rows: Sequence[Row]) -> None:
    """Writes rows, and where and when they were measured."""
    file.write_text(json.dumps({"origin": origin(), "rows": rows}, indent=1) + "\n")


def with_ratio(text: str, row: Row, figure: str, before: Mapping[str, Row]) -> str:
    """Returns a cell's text, and behind it the figure's ratio to that of the earlier row of the same name, if any."""
    old = before.get(row["name"], {}).get(figure)
    return f"{text} (×{row[figure] / old:.2f})" if old else text
