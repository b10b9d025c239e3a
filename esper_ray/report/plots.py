"""Pictures of a search for places that show no HTML."""

import json
from pathlib import Path

import vl_convert

from esper_ray.errors import RunFolderError
from esper_ray.orchestration.run.metrics import lookup
from esper_ray.report.palette import LIGHT, resolved
from esper_ray.report.reading import load_search
from esper_ray.report.search_charts import curves_chart, ranking_chart
from esper_ray.report.search_page import ranked_settings
from esper_ray.report.specs import Chart

_WIDTH = 760
_SCALE = 2.0


def write_plots(experiment: Path) -> list[Path]:
    """Writes ranking.png and learning_curves.png into the folder of a search, and returns them.

    Nothing is written while no trial has measured the metric.

    Raises:
        RunFolderError: there is no search, it is damaged, or its folder cannot be written.
    """
    search = load_search(experiment)
    settings = ranked_settings(search)
    if not any(setting["curve"] for setting in settings):
        return []
    trials = [
        {"trial": name, "iteration": row["iteration"], "value": value}
        for name, run in search.trials.items()
        for row in run.iterations
        if (value := lookup(row, search.metric)) is not None
    ]
    last = max(row["iteration"] for row in trials)
    charts = {
        "ranking.png": ranking_chart(settings, search.metric),
        "learning_curves.png": curves_chart(settings, trials, search.metric, last),
    }
    written = []
    for name, chart in charts.items():
        partial = experiment / f".{name}.writing"
        try:
            partial.write_bytes(_picture(chart))
            partial.rename(experiment / name)
        except OSError as error:
            raise RunFolderError(f"{experiment / name} cannot be written: {error.strerror}") from None
        written.append(experiment / name)
    return written


def _picture(chart: Chart) -> bytes:
    spec = chart.full(width=_WIDTH)
    spec["datasets"] = {name: list(rows) for name, rows in chart.data.items()}
    spec["padding"] = 16
    if chart.name == "curves":
        # On the page the legend is HTML; a picture needs its own.
        spec["layer"][2]["encoding"]["stroke"]["legend"] = {
            **{"title": None, "orient": "bottom", "columns": 2, "labelLimit": 360, "labelFontSize": 12},
            **{"labelColor": "var(--ink)", "symbolStrokeWidth": 3},
            **{"symbolType": "stroke", "symbolOpacity": 1, "symbolFillColor": "transparent", "symbolSize": 500},
        }
        spec["layer"][2]["encoding"]["strokeDash"]["legend"] = None
    text = json.dumps(spec)
    settled = json.loads(resolved(text))
    settled["background"] = settled["config"]["background"] = LIGHT["surface"]
    return bytes(vl_convert.vegalite_to_png(settled, scale=_SCALE))
