"""Parts that all charts are made of: Vega-Lite as plain dicts, with the theme's CSS variables as colours.

A chart's data lies beside its specification, under a name, so that specifications are equal from run to run and are
compiled once, here and not in the page.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import vl_convert

from esper_ray.report.palette import var

Spec = dict[str, Any]
Row = dict[str, Any]

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_AXIS_EXTENT = 38

CONFIG: Spec = {
    "background": None,
    "font": _FONT,
    "view": {"stroke": None},
    "axis": {
        **{"labelColor": var("ink-2"), "titleColor": var("ink-2"), "labelFontSize": 11, "titleFontSize": 12},
        **{"titleFontWeight": "normal", "gridColor": var("grid"), "domainColor": var("line"), "tickColor": var("line")},
        **{"labelPadding": 5, "titlePadding": 8, "labelOverlap": True, "labelSeparation": 6},
    },
    "axisY": {"domain": False, "ticks": False, "minExtent": _AXIS_EXTENT, "tickCount": 5},
    "axisX": {"grid": False, "tickSize": 4},
    "title": {
        **{"color": var("ink"), "fontSize": 12.5, "fontWeight": 600, "anchor": "start", "frame": "bounds"},
        **{"offset": 10, "align": "left"},
    },
    "text": {"font": _FONT, "fontSize": 11},
}


@dataclass
class Chart:
    """A chart of the page.

    Attributes:
        name: of the element that it is drawn into.
        spec: Vega-Lite, without data, size and configuration.
        data: name → rows; the page fills those that are missing.
        height: of the plot, pixels.
        about: what it shows, for those who cannot see it.
        legend: entries, see `palette.legend`.
    """

    name: str
    spec: Spec
    data: Mapping[str, Sequence[Row]]
    height: int
    about: str
    legend: Sequence[Mapping[str, str]] = field(default_factory=tuple)

    def full(self, width: int | str = "container") -> Spec:
        """Returns the whole Vega-Lite specification but for the data's rows."""
        return {
            "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
            "width": width,
            "height": self.height,
            "autosize": {"type": "fit-x", "contains": "padding"},
            "padding": {"left": 2, "right": 10, "top": 4, "bottom": 4},
            "config": CONFIG,
            "description": self.about,
            **self.spec,
        }

    @property
    def title(self) -> str:
        """Title of the chart, with its unit."""
        return str(self.spec.get("title", {}).get("text", ""))

    @property
    def unit(self) -> str:
        """The unit, where the title does not say it."""
        return str(self.spec.get("title", {}).get("subtitle", ""))

    def compiled(self) -> Spec:
        """Returns the chart as Vega, without its title: the page writes that as text, which can break its line."""
        spec = {name: value for name, value in self.full().items() if name != "title"}
        compiled: Spec = json.loads(_compile(json.dumps(spec)))
        return compiled


@lru_cache(maxsize=256)
def _compile(spec: str) -> str:
    return json.dumps(vl_convert.vegalite_to_vega(spec))


@lru_cache(maxsize=1)
def vega_bundle() -> str:
    """Returns the JavaScript bundle that defines `window.vegaEmbed`, including Vega."""
    code = vl_convert.javascript_bundle("window.vegaEmbed=vegaEmbed;").replace("</script", "<\\/script")
    return f"(function(){{{code}\n}})();"  # in a function: the bundle's own short names would be the window's otherwise


def quantitative(name: str, title: str | None = None, **more: Any) -> Spec:
    """Returns the encoding of a number; `axis`, `scale` and `format` go to their places."""
    axis = {"title": title, **more.pop("axis", {})}
    return {"field": name, "type": "quantitative", "axis": axis, **more}


def tip(name: str, title: str, form: str | None = None, kind: str = "quantitative") -> Spec:
    """Returns a line of a tooltip."""
    return {"field": name, "type": kind, "title": title, **({"format": form} if form else {})}


def text_tip(name: str, title: str) -> Spec:
    """Returns a line of a tooltip that holds text."""
    return tip(name, title, kind="nominal")


def over_iterations(last: int, title: str | None = "iteration") -> Spec:
    """Returns the x axis of the iterations 1 to `last`."""
    return quantitative(
        "iteration",
        title,
        scale={"domain": [0.5, max(last, 1) + 0.5], "nice": False},
        axis=_whole_numbers(last),
    )


def over_epochs(last: int, title: str | None = "host epoch") -> Spec:
    """Returns the x axis of the epochs 1 to `last`."""
    return quantitative(
        "epoch",
        title,
        scale={"domain": [0.5, last + 0.5], "nice": False},
        axis=_whole_numbers(last),
    )


def _whole_numbers(last: int) -> Spec:
    """Returns an axis from 1 to `last`; up to 2 Vega would have ticks at halves, with labels of whole numbers."""
    return {"tickMinStep": 1, "format": "d", **({"values": list(range(1, last + 1))} if last <= 2 else {})}


def line(x: Spec, y: Spec, colour: str, data: str = "rows", **mark: Any) -> Spec:
    """Returns a line with a dot on each value where there is only one."""
    return {
        "data": {"name": data},
        "mark": {"type": "line", "stroke": colour, "strokeWidth": 2, "strokeJoin": "round", **mark},
        "encoding": {"x": x, "y": y},
    }


def dots(x: Spec, y: Spec, colour: str, data: str = "rows", **mark: Any) -> Spec:
    """Returns dots."""
    return {
        "data": {"name": data},
        "mark": {"type": "point", "filled": True, "color": colour, "opacity": 1, "size": 22, **mark},
        "encoding": {"x": x, "y": y},
    }


def hover(field_name: str, tips: Sequence[Spec], data: str = "rows", half: float = 0.5) -> Spec:
    """Returns columns over the whole height that show a tooltip, and themselves, under the pointer."""
    axis = {"field": "_from", "type": "quantitative"}
    return {
        "data": {"name": data},
        "transform": [
            {"calculate": f"datum[{json.dumps(field_name)}] - {half}", "as": "_from"},
            {"calculate": f"datum[{json.dumps(field_name)}] + {half}", "as": "_to"},
        ],
        "params": [
            {
                "name": "under",
                "select": {"type": "point", "on": "pointerover", "clear": "pointerout", "fields": [field_name]},
            }
        ],
        "mark": {"type": "rect", "fill": var("ink"), "clip": True},
        "encoding": {
            "x": axis,
            "x2": {"field": "_to"},
            "opacity": {"condition": {"param": "under", "empty": False, "value": 0.1}, "value": 0},
            "tooltip": list(tips),
        },
    }


def rule_at(value: float, colour: str, **mark: Any) -> Spec:
    """Returns a horizontal line."""
    return {
        "data": {"values": [{}]},
        "mark": {"type": "rule", "color": colour, "strokeWidth": 1.5, **mark},
        "encoding": {"y": {"datum": value, "type": "quantitative"}},
    }
