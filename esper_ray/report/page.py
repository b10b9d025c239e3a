"""Puts a page together: sections, charts and episodes into one HTML file that needs no network."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from esper_ray.report.palette import css_variables
from esper_ray.report.specs import Chart, Row, vega_bundle


@dataclass
class Section:
    """A section of the page.

    Attributes:
        name: of its anchor, and of the macro of the template that lays it out.
        lead: what it shows and how to read it, in a sentence or two.
        charts: in the order in which the macro places them.
        facts: what else the macro shows.
    """

    name: str
    title: str
    lead: str
    charts: Sequence[Chart] = ()
    facts: Row = field(default_factory=dict)


@dataclass
class Page:
    """A page.

    Attributes:
        status: one of `RunData.status`.
        tiles: label, value and a note for each number at the top.
        episodes: what `embedded.pack` made, or "".
        idle_gap_seconds: how long nothing may be written before it seems to stand still.
    """

    title: str
    kind: str
    subtitle: str
    status: str
    status_note: str
    tiles: Sequence[Row]
    sections: Sequence[Section]
    episodes: str = ""
    idle_gap_seconds: float = 300.0

    def html(self, live: bool = False) -> str:
        """Returns the page.

        Args:
            live: it asks the server that it came from whether there is news.
        """
        charts = {
            chart.name: {"spec": chart.compiled(), "data": chart.data}
            for section in self.sections
            for chart in section.charts
        }
        template = _environment().get_template("page.html.jinja")
        return template.render(
            page=self,
            live=live,
            css=Markup(_asset("page.css")),
            javascript=Markup(_asset("page.js")),
            vega=Markup(vega_bundle()),
            light=Markup(css_variables(dark=False)),
            dark=Markup(css_variables(dark=True)),
            charts=Markup(script_json(charts)),
            packed=Markup(self.episodes),
        )


def script_json(value: Any) -> str:
    """Returns JSON that cannot end the script element that it stands in.

    >>> script_json("</script>")
    '"\\\\u003c/script>"'
    """
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c").replace("\u2028", "\\u2028")


def _asset(name: str) -> str:
    return files("esper_ray.report").joinpath(name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters.update(number=_number, points=_points, share=_share)
    return environment


def _number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _points(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "−")


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
