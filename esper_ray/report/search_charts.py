"""Charts of a search: ranking, learning curves of the settings, the metric against each searched parameter."""

from collections.abc import Sequence
from math import log10
from typing import Any

from esper_ray.report.palette import legend, var
from esper_ray.report.specs import Chart, Row, Spec, over_iterations, quantitative, text_tip, tip

BEST_SHOWN = 8
COLOURS = ("cat-1", "stage-culled", "stage-fossilized", "cat-4", "cat-2", "cat-0", "ink-2", "cat-3")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
_RANKED = 40


def ranking_chart(settings: Sequence[Row], metric: str) -> Chart:
    """Returns each setting's mean, spread and the value of every training seed, best first."""
    shown = list(settings)[:_RANKED]
    dots = [
        {"label": s["label"], "seed": seed, "value": value, "setting": s["text"]}
        for s in shown
        for seed, value in zip(s["seeds"], s["values"], strict=True)
        if value is not None
    ]
    means = [
        {
            **{"label": s["label"], "value": s["mean"], "setting": s["text"]},
            **(
                {} if s["std"] is None else {"low": s["mean"] - s["std"], "high": s["mean"] + s["std"], "std": s["std"]}
            ),
        }
        for s in shown
    ]
    y: Spec = {
        "field": "label",
        "type": "nominal",
        "sort": [s["label"] for s in shown],
        "axis": {"title": None, "labelColor": var("ink"), "labelExpr": "split(datum.label, '. ')[0]", "grid": True},
    }
    x = quantitative("value", metric, scale={"zero": False, "padding": 14}, axis={"grid": True})
    tips = [
        text_tip("setting", "setting"),
        tip("value", f"mean {metric}", ".3f"),
        tip("std", "standard deviation", ".3f"),
    ]
    spec: Spec = {
        "layer": [
            {
                "data": {"name": "means"},
                "mark": {"type": "text", "align": "left", "dy": -17, "color": var("ink"), "fontSize": 12,
                         "limit": {"expr": "width"}},
                "encoding": {"y": y, "x": {"value": 4}, "text": {"field": "setting"}},
            },
            {
                "data": {"name": "means"},
                "mark": {"type": "rule", "strokeWidth": 7, "stroke": var("band"), "strokeCap": "round"},
                "encoding": {"y": y, "x": {**x, "field": "low"}, "x2": {"field": "high"}, "tooltip": tips},
            },
            {
                "data": {"name": "dots"},
                "mark": {"type": "point", "filled": False, "size": 60, "stroke": var("learned"), "strokeWidth": 1.7},
                "encoding": {
                    **{"y": y, "x": x},
                    "tooltip": [text_tip("setting", "setting"), text_tip("seed", "training seed"),
                                tip("value", metric, ".3f")],
                },
            },
            {
                "data": {"name": "means"},
                "mark": {"type": "tick", "thickness": 3, "size": 16, "color": var("ink")},
                "encoding": {"y": y, "x": x, "tooltip": tips},
            },
        ]
    }  # fmt: skip
    entries = legend([("one training seed", var("learned"))], "ring")
    entries += legend([("mean", var("ink"))], "tick") + legend([("± 1 standard deviation", var("band"))])
    return Chart("ranking", spec, {"means": means, "dots": dots}, 10 + 46 * len(shown), f"{metric} by setting", entries)


def curves_chart(settings: Sequence[Row], trials: Sequence[Row], metric: str, last: int) -> Chart:
    """Returns the metric over the iterations: mean and band of the best settings, every trial faintly behind.

    Args:
        settings: with `label` and `curve`, rows of iteration, mean, low, high.
        trials: rows of trial, iteration, value.
    """
    best = list(settings)[:BEST_SHOWN]
    rows = [{**row, "label": s["label"], "setting": s["text"]} for s in best for row in s["curve"]]
    labels = [s["label"] for s in best]
    colours = [var(name) for name in COLOURS[: len(best)]]
    x = over_iterations(last)
    y = quantitative("mean", None, scale={"zero": False})
    colour: Spec = {"field": "label", "type": "nominal", "legend": None, "scale": {"domain": labels, "range": colours}}
    spec: Spec = {
        "title": {"text": metric},
        "layer": [
            {
                "data": {"name": "trials"},
                "mark": {"type": "line", "stroke": var("line"), "strokeWidth": 1},
                "encoding": {"x": x, "y": {**y, "field": "value"}, "detail": {"field": "trial", "type": "nominal"}},
            },
            {
                "data": {"name": "rows"},
                "mark": {"type": "area", "opacity": 0.14},
                "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "fill": colour},
            },
            {
                "data": {"name": "rows"},
                "mark": {"type": "line", "strokeWidth": 2.2},
                "encoding": {
                    **{"x": x, "y": y, "stroke": colour},
                    "strokeDash": {
                        "field": "label",
                        "type": "nominal",
                        "legend": None,
                        "scale": {"domain": labels, "range": list(DASHES[: len(best)])},
                    },
                },
            },
            {
                "data": {"name": "rows"},
                "mark": {"type": "point", "filled": True, "size": 28, "opacity": 1},
                "encoding": {
                    **{"x": x, "y": y, "fill": colour},
                    "tooltip": [text_tip("setting", "setting"), tip("iteration", "iteration", "d"),
                                tip("mean", metric, ".3f"), tip("seeds", "training seeds", "d")],
                },
            },
        ],
    }  # fmt: skip
    entries = legend(zip(labels, colours, strict=True), "line")
    return Chart("curves", spec, {"rows": rows, "trials": trials}, 320, f"{metric} over the iterations", entries)


def parameter_chart(number: int, key: str, trials: Sequence[Row], metric: str, logarithmic: bool) -> Chart:
    """Returns the metric of every trial against one searched parameter.

    Args:
        trials: rows of `setting`, `value`, `trial`.
        logarithmic: the parameter was searched on a logarithmic scale.
    """
    values = [row["setting"].get(key) for row in trials]
    rows = [
        {"x": _plain(value), "value": row["value"], "trial": row["trial"]}
        for row, value in zip(trials, values, strict=True)
        if row["value"] is not None and value is not None
    ]
    distinct = {row["x"] for row in rows}
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in distinct)
    if numeric and len(distinct) > 2:
        spread = logarithmic or (min(distinct) > 0 and log10(max(distinct) / min(distinct)) > 0.9)
        scale: Spec = {"type": "log", "nice": False} if spread else {"zero": False}
        x: Spec = quantitative("x", key, scale={**scale, "padding": 14}, axis={"format": "~g", "tickCount": 5})
    else:
        ordered = sorted(distinct) if numeric else sorted(distinct, key=str)
        rows = [{**row, "x": str(row["x"])} for row in rows]
        axis = {"title": key, "labelAngle": -35, "labelOverlap": False, "labelLimit": 110}
        x = {"field": "x", "type": "ordinal", "sort": [str(value) for value in ordered], "axis": axis}
    spec: Spec = {
        "title": {"text": metric},
        "data": {"name": "rows"},
        "mark": {"type": "point", "size": 70, "stroke": var("learned"), "strokeWidth": 1.8},
        "encoding": {
            "x": x,
            "y": quantitative("value", None, scale={"zero": False, "padding": 10}, axis={"tickCount": 5}),
            "tooltip": [text_tip("trial", "trial"), {"field": "x", "title": key, "type": "nominal"},
                        tip("value", metric, ".3f")],
        },
    }  # fmt: skip
    return Chart(f"parameter-{number}", spec, {"rows": rows}, 190, f"{metric} against {key}")


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str) and not isinstance(value, bool) else str(value)
