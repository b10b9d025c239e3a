"""Tables where there is little room."""

import io

import pytest
from rich.console import Console
from rich.table import Table

from esper_ray.cli.display import FittingTable

HEADINGS = ("runner", "host", "epoch", "stage", "val accuracy", "last decision", "episodes")


@pytest.mark.parametrize("width", [20, 40, 60, 66, 67, 80, 100, 160])
def test_no_heading_and_no_cell_is_cut_at_any_width(width: int) -> None:
    table = Table(*HEADINGS, title="hosts")
    table.add_row("1", "2", "3/25", "PROBATIONARY", "34.5 %", "GERMINATE_CONV_HEAVY", "12")
    table.caption = "nothing to warn of"
    written = io.StringIO()
    Console(file=written, width=width).print(FittingTable(table))
    text = written.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert all(word in text for heading in HEADINGS for word in heading.split())
    assert all(word in text for word in ("hosts", "warn", "3/25", "34.5"))
