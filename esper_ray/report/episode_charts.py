"""Charts of single episodes: the stage timeline of the chosen one, and an overview of many.

The page fills in the chosen episode's rows, under the names "epochs", "segments" and "decisions".
"""

from collections.abc import Sequence
from typing import Any

from esper_ray.lifecycle import SeedStage
from esper_ray.report.palette import action_vars, legend, stage_var, var
from esper_ray.report.specs import (
    Chart,
    Row,
    Spec,
    dots,
    hover,
    line,
    over_epochs,
    quantitative,
    rule_at,
    text_tip,
    tip,
)

_STRIPS = 40
_SHOWN = [stage for stage in SeedStage if stage is not SeedStage.UNKNOWN]


def stage_legend(stages: Sequence[str]) -> list[dict[str, str]]:
    """Returns the legend of the stages that occur: letter, name, colour."""
    return legend([(f"{s.letter} {s.name}", stage_var(s.name)) for s in _SHOWN if s.name in stages])


def stage_encoding(channel_field: str = "stage") -> Spec:
    """Returns the encoding of a stage's name as its colour."""
    return {
        "field": channel_field,
        "type": "nominal",
        "legend": None,
        "scale": {"domain": [s.name for s in SeedStage], "range": [stage_var(s.name) for s in SeedStage]},
    }


def timeline_charts(epochs: int, actions: Sequence[str], stages: Sequence[str]) -> list[Chart]:
    """Returns the charts of the chosen episode, one below the other with the same x axis."""
    x = over_epochs(epochs, None)
    return [
        _stage_lane(epochs, actions, stages),
        _accuracy(x),
        _alpha(x),
        _contribution(x),
        _gradients(epochs),
    ]


def _stage_lane(epochs: int, actions: Sequence[str], stages: Sequence[str]) -> Chart:
    x = over_epochs(epochs, None)
    rows: Spec = {
        "field": "lane",
        "type": "nominal",
        "scale": {"domain": ["decision", "stage"], "padding": 0.15},
        "axis": {"title": None, "labelLimit": 60, "labelColor": var("ink-2"), "minExtent": 50},
    }
    colours = action_vars(actions)
    kinds = ["germinate", "fossilize", "cull", "roll back"]
    spec: Spec = {
        "layer": [
            {
                "data": {"name": "segments"},
                "mark": {"type": "bar", "height": 20, "cornerRadius": 2, "stroke": var("surface"), "strokeWidth": 1.5},
                "encoding": {
                    "x": {**x, "field": "from"},
                    "x2": {"field": "to"},
                    "y": rows,
                    "fill": stage_encoding(),
                    "tooltip": [text_tip("stage", "stage"), text_tip("epochs", "epochs")],
                },
            },
            {
                "data": {"name": "segments"},
                "mark": {"type": "text", "dy": -18, "color": var("ink"), "fontSize": 11, "fontWeight": 600},
                "encoding": {"x": {**x, "field": "middle"}, "y": rows, "text": {"field": "label"}},
            },
            {
                "data": {"name": "decisions"},
                "mark": {"type": "point", "filled": True, "size": 110, "opacity": 1, "stroke": var("ink"),
                         "strokeWidth": 1},
                "encoding": {
                    "x": x,
                    "y": rows,
                    "shape": {"field": "kind", "type": "nominal", "legend": None,
                              "scale": {"domain": kinds, "range": ["triangle-up", "diamond", "cross", "square"]}},
                    "fill": {"field": "decision", "type": "nominal", "legend": None,
                             "scale": {"domain": [*colours, "rollback"], "range": [*colours.values(), var("bad")]}},
                    "tooltip": [text_tip("decision", "decision"), tip("epoch", "before epoch", "d"),
                                text_tip("why", "reason")],
                },
            },
        ],
        "resolve": {"scale": {"fill": "independent"}},
    }  # fmt: skip
    entries = stage_legend(stages)
    entries += legend([("germinate", var("ink-2"))], "triangle") + legend(
        [("fossilize", stage_var("FOSSILIZED"))], "diamond"
    )
    entries += legend([("cull", stage_var("CULLED"))], "cross")
    return Chart(
        "episode-stages", spec, {"segments": [], "decisions": []}, 96, "Stage of the slot in every epoch", entries
    )


def _tips(*more: Spec) -> list[Spec]:
    return [tip("epoch", "epoch", "d"), text_tip("stage", "stage"), text_tip("decision", "decision"), *more]


def _accuracy(x: Spec) -> Chart:
    validation = quantitative("val", None, scale={"zero": True, "nice": True}, axis={"minExtent": 50})
    layers = [
        line(x, {**validation, "field": "train"}, var("ink-2"), "epochs", strokeDash=[4, 3], strokeWidth=1.5),
        line(x, validation, var("learned"), "epochs", strokeWidth=2.5),
        dots(x, validation, var("learned"), "epochs"),
        hover("epoch", _tips(tip("val", "validation, %", ".2f"), tip("train", "training, %", ".1f")), "epochs"),
    ]
    spec: Spec = {"title": {"text": "Accuracy, percent"}, "layer": layers}
    entries = legend([("validation", var("learned"))], "line") + legend([("training", var("ink-2"))], "dash")
    return Chart("episode-accuracy", spec, {"epochs": []}, 190, "Accuracy of the chosen episode, percent", entries)


def _alpha(x: Spec) -> Chart:
    y = quantitative("alpha", None, scale={"domain": [0, 1]}, axis={"tickCount": 2, "minExtent": 50})
    layers: list[Spec] = [
        {
            "data": {"name": "epochs"},
            "mark": {"type": "area", "interpolate": "step", "fill": var("band"), "line": False},
            "encoding": {"x": x, "y": y},
        },
        line(x, y, var("learned"), "epochs", interpolate="step"),
        hover("epoch", _tips(tip("alpha", "alpha", ".3f")), "epochs"),
    ]
    spec: Spec = {"title": {"text": "Alpha: share of the seed in the output"}, "layer": layers}
    return Chart("episode-alpha", spec, {"epochs": []}, 60, "Alpha of the chosen episode")


def _contribution(x: Spec) -> Chart:
    y = quantitative("contribution", None, axis={"tickCount": 4, "minExtent": 50})
    bars: Spec = {
        "data": {"name": "epochs"},
        "transform": [
            {"filter": "isValid(datum.contribution)"},
            {"calculate": "datum.epoch - 0.36", "as": "left"},
            {"calculate": "datum.epoch + 0.36", "as": "right"},
        ],
        "mark": {"type": "rect"},
        "encoding": {
            "x": {**x, "field": "left"},
            "x2": {"field": "right"},
            "y": y,
            "y2": {"datum": 0},
            "fill": {
                "condition": {"test": "datum.contribution < 0", "value": var("baseline")},
                "value": var("learned"),
            },
        },
    }
    layers = [
        rule_at(0, var("line")),
        bars,
        hover("epoch", _tips(tip("contribution", "contribution, points", "+.2f")), "epochs"),
    ]
    spec: Spec = {"title": {"text": "Contribution: accuracy lost without the seed, points"}, "layer": layers}
    return Chart("episode-contribution", spec, {"epochs": []}, 90, "Contribution of the seed, points")


def _gradients(epochs: int) -> Chart:
    x = over_epochs(epochs)
    y = quantitative(
        "seedGradient",
        None,
        scale={"type": "log"},
        axis={"values": [10.0**power for power in range(-6, 7)], "minExtent": 50, "format": "~g"},
    )
    layers: list[Spec] = []
    for name, colour, shape in (("seedGradient", "second", "circle"), ("hostGradient", "ink-2", "square")):
        drawn = {**y, "field": name}
        only = [{"filter": f"isValid(datum.{name}) && datum.{name} > 0"}]
        layers += [
            {**line(x, drawn, var(colour), "epochs", strokeWidth=1.5), "transform": only},
            {**dots(x, drawn, var(colour), "epochs", shape=shape, size=30), "transform": only},
        ]
    tips = _tips(
        tip("seedGradient", "seed", ".3g"), tip("hostGradient", "host", ".3g"), tip("reward", "reward", "+.3f")
    )
    layers.append(hover("epoch", tips, "epochs"))
    spec: Spec = {"title": {"text": "Gradient norms while there is a seed, logarithmic"}, "layer": layers}
    entries = legend([("seed", var("second"))], "dot") + legend([("host", var("ink-2"))], "box")
    return Chart("episode-gradients", spec, {"epochs": []}, 110, "Gradient norms of seed and host", entries)


def strip_rows(episodes: Sequence[Row]) -> list[Row]:
    """Returns the stage segments of up to 40 episodes, evenly over the run."""
    count = min(_STRIPS, len(episodes))
    chosen = [episodes[round(i * (len(episodes) - 1) / max(1, count - 1))] for i in range(count)]
    rows = []
    for place, row in enumerate(chosen):
        for start, end, stage in segments(row["stages"]):
            rows.append(
                {
                    **{"from": start + 0.5, "to": end + 0.5, "stage": stage, "row": place, "row2": place + 0.86},
                    **{"episode": row["episode"], "iteration": row["iteration"], "kept": row["kept_val_accuracy"]},
                    "blueprint": row["kept_blueprint"] or "none",
                }
            )
    return rows


def segments(stages: Sequence[str]) -> list[tuple[int, int, str]]:
    """Returns the runs of equal stages as (epochs before it, epochs to its end, stage).

    >>> segments(["DORMANT", "DORMANT", "TRAINING"])
    [(0, 2, 'DORMANT'), (2, 3, 'TRAINING')]
    """
    found: list[tuple[int, int, str]] = []
    for i, stage in enumerate(stages):
        if found and found[-1][2] == stage:
            found[-1] = (found[-1][0], i + 1, stage)
        else:
            found.append((i, i + 1, stage))
    return found


def strip_chart(rows: Sequence[Row], epochs: int, stages: Sequence[str], learns: bool) -> Chart:
    """Returns the overview: an episode a line, from the start of the run at the top to its end."""
    lines = 1 + max((row["row"] for row in rows), default=0)
    names: dict[int, Any] = {row["row"]: row["iteration" if learns else "episode"] for row in rows}
    expression = "[" + ",".join(str(names[i]) for i in sorted(names)) + "][datum.value]"
    spec: Spec = {
        "data": {"name": "rows"},
        "mark": {"type": "rect", "cursor": "pointer"},
        "encoding": {
            "x": {**over_epochs(epochs), "field": "from"},
            "x2": {"field": "to"},
            "y": quantitative(
                "row",
                "iteration" if learns else "episode",
                scale={"domain": [0, lines], "reverse": True, "nice": False},
                axis={"grid": False, "values": list(range(0, lines, 5)), "labelExpr": expression},
            ),
            "y2": {"field": "row2"},
            "fill": stage_encoding(),
            "tooltip": [
                tip("episode", "episode", "d"),
                tip("iteration", "iteration", "d"),
                text_tip("stage", "stage"),
                tip("kept", "kept accuracy, %", ".1f"),
                text_tip("blueprint", "kept blueprint"),
            ],
        },
    }
    return Chart(
        "strip", spec, {"rows": rows}, 12 * lines + 10, "Stages of episodes over training", stage_legend(stages)
    )
