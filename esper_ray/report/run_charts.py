"""Charts of a run over its training: learning curve, learner, actions, gradients, rewards, comparison."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from esper_ray.orchestration.config import WAYS
from esper_ray.report.palette import SEQUENCE, action_vars, legend, var
from esper_ray.report.specs import (
    Chart,
    Row,
    Spec,
    dots,
    hover,
    line,
    over_iterations,
    quantitative,
    rule_at,
    text_tip,
    tip,
)

HEALTH = {
    "explained_variance": ("Explained variance", "share", ".2f"),
    "entropy_share": ("Entropy", "share of its maximum", ".2f"),
    "kl": ("KL divergence of an update", "nats", ".4f"),
    "clip_fraction": ("Steps that left the clip range", "share", ".2f"),
    "gradient_norm": ("Gradient norm before clipping", "L2 norm", ".3f"),
    "learning_rate": ("Learning rate", "per step", ".2e"),
}
"""Learner's figure → title, unit, format."""

_HEALTH_STEPS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
_RATIO_STEPS = (-2.0, -1.5, -1.0, -0.75, -0.5, -0.25, 0.0)
_COMPONENT_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
_COMPONENT_COLOURS = ("learned", "baseline", "second", "third", "cat-2", "embargo", "ink-2")


def learning_chart(
    curve: Sequence[Row], wait_only: Mapping[str, float] | None, evaluations: Sequence[Row], last: int
) -> Chart:
    """Returns the kept accuracy over the iterations, with its spread, the WAIT-only line and held-out evaluations."""
    x = over_iterations(last)
    y = quantitative("mean", None, scale={"zero": False, "nice": True}, axis={"grid": True})
    band: Spec = {"type": "area", "interpolate": "linear"}
    layers: list[Spec] = [
        {
            "data": {"name": "rows"},
            "mark": {**band, "fill": var(colour), "stroke": None},
            "encoding": {"x": x, "y": {**y, "field": low}, "y2": {"field": high}},
        }
        for low, high, colour in (("p10", "p90", "band-2"), ("low", "high", "band"))
    ]
    layers += [line(x, y, var("learned"), strokeWidth=2.5)]
    if len(curve) < 40:
        layers.append(dots(x, y, var("learned"), size=30))
    entries = [("mean of the episodes", var("learned"))]
    legends = legend(entries, "line") + legend(
        [("± 1 standard deviation", var("band")), ("10th to 90th percentile", var("band-2"))]
    )
    if wait_only:
        layers.append(rule_at(wait_only["mean"], var("baseline"), strokeDash=[6, 4]))
        legends += legend([(f"hosts that only waited, {wait_only['mean']:.1f} %", var("baseline"))], "dash")
    if evaluations:
        for way, colour, shape in (("sampled", "second", "circle"), ("median", "third", "diamond")):
            encoding = {**y, "field": way}
            layers += [dots(x, encoding, var(colour), "evaluations", shape=shape, size=70)]
        legends += legend(
            [("held-out hosts, sampled", var("second")), ("held-out hosts, deterministic", var("third"))], "dot"
        )
    layers.append(
        hover(
            "iteration",
            [
                tip("iteration", "iteration", "d"),
                tip("mean", "mean, %", ".1f"),
                tip("std", "standard deviation", ".1f"),
                tip("p10", "10th percentile, %", ".1f"),
                tip("median", "median, %", ".1f"),
                tip("p90", "90th percentile, %", ".1f"),
                tip("episodes", "episodes", "d"),
            ],
        )
    )
    spec: Spec = {"title": {"text": "Kept validation accuracy, percent"}, "layer": layers}
    data: dict[str, Sequence[Row]] = {"rows": curve}
    if evaluations:
        data["evaluations"] = evaluations
    return Chart("learning", spec, data, 330, "Kept validation accuracy in percent over the iterations", legends)


def episode_dots(episodes: Sequence[Row]) -> Chart:
    """Returns the kept accuracy of every episode, for runs that do not learn."""
    x = quantitative("episode", "episode", axis={"tickMinStep": 1, "format": "d"}, scale={"zero": False, "padding": 12})
    y = quantitative("kept", None, scale={"zero": False, "padding": 8})
    spec: Spec = {
        "title": {"text": "Kept validation accuracy, percent"},
        "data": {"name": "rows"},
        "mark": {"type": "point", "filled": True, "size": 50, "color": var("learned"), "opacity": 0.85},
        "encoding": {
            "x": x,
            "y": y,
            "shape": {"field": "what", "type": "nominal", "legend": None,
                      "scale": {"domain": ["kept a seed", "kept none"], "range": ["circle", "cross"]}},
            "tooltip": [tip("episode", "episode", "d"), tip("kept", "kept accuracy, %", ".1f"),
                        text_tip("blueprint", "kept blueprint")],
        },
    }  # fmt: skip
    rows = [
        {
            **{"episode": row["episode"], "kept": row["kept_val_accuracy"]},
            **{"blueprint": row["kept_blueprint"] or "none"},
            "what": "kept a seed" if row["kept_blueprint"] else "kept none",
        }
        for row in episodes
    ]
    entries = legend([("kept a seed", var("learned"))], "dot") + legend([("kept none", var("learned"))], "cross")
    return Chart("learning", spec, {"rows": rows}, 280, "Kept validation accuracy of every episode, percent", entries)


def health_charts(iterations: Sequence[Row], last: int) -> list[Chart]:
    """Returns a small chart for each of the learner's figures that was reported; warnings are marked."""
    charts = []
    for name, (title, unit, form) in HEALTH.items():
        rows = [
            {"iteration": row["iteration"], "value": value, "warned": bool(row.get("warnings"))}
            for row in iterations
            if (value := (row.get("learner") or {}).get(name)) is not None
        ]
        if not rows:
            continue
        x = over_iterations(last)
        y = quantitative("value", None, scale={"zero": name != "explained_variance"}, axis={"tickCount": 4})
        if name == "learning_rate":
            y["axis"]["format"] = "~e"
        layers = [
            line(x, y, var("learned")),
            hover("iteration", [tip("iteration", "iteration", "d"), tip("value", unit, form)]),
        ]
        if len(rows) < 40:
            layers.insert(1, dots(x, y, var("learned")))
        if any(row["warned"] for row in rows):
            warned = dots(x, y, var("baseline"), shape="triangle-up", size=60)
            layers.insert(1, {**warned, "transform": [{"filter": "datum.warned"}]})
        spec: Spec = {"title": {"text": title, "subtitle": unit, "subtitleColor": var("ink-2")}, "layer": layers}
        charts.append(Chart(f"health-{name.replace('_', '-')}", spec, {"rows": rows}, 120, f"{title}, {unit}"))
    return charts


def action_chart(shares: Sequence[Row], actions: Sequence[str], last: int, size: int) -> Chart:
    """Returns the shares of the decisions other than WAIT, stacked, over the iterations."""
    colours = action_vars(actions)
    spec: Spec = {
        "title": {"text": "Share of the decisions other than WAIT, percent"},
        "data": {"name": "rows"},
        "transform": [
            {"calculate": "datum.first - 0.5", "as": "iteration"},
            {"calculate": "datum.last + 0.5", "as": "until"},
        ],
        "mark": {"type": "rect", "stroke": var("surface"), "strokeWidth": 0.4},
        "encoding": {
            "x": over_iterations(last),
            "x2": {"field": "until"},
            "y": quantitative("below", None, scale={"domain": [0, 100]}),
            "y2": {"field": "above"},
            "fill": {
                "field": "action",
                "type": "nominal",
                "legend": None,
                "scale": {"domain": list(colours), "range": list(colours.values())},
            },
            "tooltip": [
                text_tip("action", "decision"),
                *_group_tips(size),
                tip("share", "share, %", ".1f"),
                tip("per_episode", "per episode", ".2f"),
            ],
        },
    }
    shown = [row for row in shares if row["share"] > 0]
    return Chart(
        "actions", spec, {"rows": shown}, 280, "Shares of the decisions over training", legend(colours.items())
    )


def wait_chart(waits: Sequence[Row], last: int, size: int) -> Chart:
    """Returns the share of WAIT among all decisions over the iterations."""
    x = {**over_iterations(last), "field": "middle"}
    y = quantitative("share", None, scale={"zero": False}, axis={"tickCount": 4})
    layers = [
        line(x, y, var("ink-2")),
        dots(x, y, var("ink-2"), size=18),
        hover("middle", [*_group_tips(size), tip("share", "WAIT, %", ".1f")], half=size / 2),
    ]
    spec: Spec = {"title": {"text": "WAIT, percent of all decisions"}, "layer": layers}
    return Chart("waits", spec, {"rows": waits}, 90, "Share of WAIT among all decisions, percent")


def heat_chart(name: str, title: str, what: str, cells: Sequence[Row], last: int, epochs: int) -> Chart:
    """Returns a map of iteration × host epoch. `name` is "gradient-health" or "gradient-ratio"."""
    steps = _HEALTH_STEPS if name == "gradient-health" else _RATIO_STEPS
    colours = [var(f"seq-{i}") for i in range(len(SEQUENCE))]
    spec: Spec = {
        "title": {"text": title},
        "data": {"name": "rows"},
        "mark": {"type": "rect"},
        "encoding": {
            "x": {**over_iterations(last), "field": "from"},
            "x2": {"field": "to"},
            "y": quantitative(
                "low",
                "host epoch",
                scale={"domain": [0.5, epochs + 0.5], "nice": False},
                axis={"grid": False, "tickMinStep": 1, "format": "d"},
            ),
            "y2": {"field": "high"},
            "fill": {
                "field": "value",
                "type": "quantitative",
                "legend": None,
                "scale": {"type": "threshold", "domain": list(steps), "range": colours},
            },
            "tooltip": [
                tip("first", "from iteration", "d"),
                tip("last", "to iteration", "d"),
                tip("epoch", "host epoch", "d"),
                tip("value", what, ".2f"),
                tip("seeds", "live seeds", "d"),
            ],
        },
    }
    labels = [
        f"< {steps[0]:g}",
        *(f"{a:g} to {b:g}" for a, b in itertools.pairwise(steps)),
        f"≥ {steps[-1]:g}",
    ]
    entries = legend([(label.replace("-", "−"), colour) for label, colour in zip(labels, colours, strict=True)])
    return Chart(name, spec, {"rows": cells}, 260, title, entries)


def reward_chart(names: Sequence[str], rows: Sequence[Row], last: int, size: int) -> Chart:
    """Returns the components of the reward, mean per episode, over the iterations, and their sum."""
    colours = {name: var(_COMPONENT_COLOURS[i % len(_COMPONENT_COLOURS)]) for i, name in enumerate(names)}
    dashes = [_COMPONENT_DASHES[i % len(_COMPONENT_DASHES)] for i in range(len(names))]
    place = {"x": {**over_iterations(last), "field": "middle"}, "y": quantitative("value", None)}
    domain = [*names, "return"]
    colour = _by_name("component", domain, [*colours.values(), var("ink")])
    tips = [text_tip("component", "component"), *_group_tips(size), tip("value", "per episode", "+.3f")]
    layers: list[Spec] = [
        rule_at(0, var("line")),
        {
            "data": {"name": "rows"},
            "mark": {"type": "line", "strokeJoin": "round"},
            "encoding": {
                **place,
                "stroke": colour,
                "strokeDash": _by_name("component", domain, [*dashes, [1, 0]]),
                "strokeWidth": {"condition": {"test": "datum.component == 'return'", "value": 3}, "value": 2},
            },
        },
        {
            "data": {"name": "rows"},
            "mark": {"type": "point", "filled": True, "size": 26, "opacity": 1},
            "encoding": {**place, "fill": colour, "tooltip": tips},
        },
    ]
    spec: Spec = {"title": {"text": "Reward per episode"}, "layer": layers}
    entries = legend([*colours.items(), ("return: their sum", var("ink"))], "line")
    return Chart("rewards", spec, {"rows": rows}, 260, "Mean reward per episode by component", entries)


def forest_chart(name: str, comparison: Mapping[str, Any]) -> Chart:
    """Returns the paired differences between the learned policy and each control, with their intervals."""
    x = quantitative("mean", "difference in the score of record, points", axis={"grid": True, "tickCount": 7})
    ways = list(WAYS)
    place: Spec = {
        "y": {
            "field": "control",
            "type": "nominal",
            "sort": None,
            "axis": {"title": None, "labelColor": var("ink"), "labelFontSize": 12},
            "scale": {"paddingInner": 0.3},
        },
        "yOffset": {"field": "way", "scale": {"domain": ways, "paddingInner": 0.4}},
        "tooltip": [
            text_tip("control", "learned"),
            text_tip("way", "actions"),
            tip("mean", "mean, points", "+.2f"),
            tip("low", "from", "+.2f"),
            tip("high", "to", "+.2f"),
            text_tip("verdict", "verdict"),
        ],
    }
    colour = _by_name("way", ways, [var("learned"), var("baseline")])
    zero: Spec = {
        "data": {"values": [{}]},
        "mark": {"type": "rule", "color": var("ink-2"), "strokeDash": [4, 3]},
        "encoding": {"x": {"datum": 0, "type": "quantitative"}},
    }
    intervals: Spec = {
        "mark": {"type": "rule", "strokeWidth": 2.5},
        "encoding": {**place, "x": {**x, "field": "low"}, "x2": {"field": "high"}, "stroke": colour},
    }
    means: Spec = {
        "mark": {"type": "point", "size": 90, "filled": True, "opacity": 1},
        "encoding": {**place, "x": x, "fill": colour, "shape": _by_name("way", ways, ["circle", "diamond"])},
    }
    entries = legend([("sampled actions", var("learned"))], "dot")
    entries += legend([("deterministic, at the median waiting time", var("baseline"))], "diamond")
    spec: Spec = {"data": {"name": "rows"}, "layer": [zero, intervals, means]}
    height = 20 + 52 * len(comparison["controls"])
    data = {"rows": _differences(comparison)}
    return Chart(name, spec, data, height, "Paired differences from the controls, points", entries)


def _differences(comparison: Mapping[str, Any]) -> list[Row]:
    """Returns a row for each control and way of acting."""
    rows = []
    for control, entry in comparison["controls"].items():
        for way, values in (("sampled", entry), ("median", entry.get("median"))):
            if values and values.get("difference"):
                place = {"control": f"− {control}", "way": way, "verdict": values.get("verdict", "")}
                interval = values["difference"]["ci95"]
                known = {"low": interval[0], "high": interval[1]} if interval else {}
                rows.append({**place, "mean": values["difference"]["mean"], **known})
    return rows


def _by_name(field: str, domain: Sequence[str], values: Sequence[Any]) -> Spec:
    """Returns the encoding of a name as a colour, a dash or a shape; the legend is the page's."""
    return {
        "field": field,
        "type": "nominal",
        "legend": None,
        "scale": {"domain": list(domain), "range": list(values)},
    }


def _group_tips(size: int) -> list[Spec]:
    if size == 1:
        return [tip("first", "iteration", "d")]
    return [tip("first", "from iteration", "d"), tip("last", "to iteration", "d")]
