"""The report page of a search with Ray Tune."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from esper_ray.orchestration.run.metrics import lookup, standard_deviation
from esper_ray.orchestration.tuning.ranking import TrialResult, describe, rank
from esper_ray.report import search_charts
from esper_ray.report.page import Page, Section
from esper_ray.report.reading import RunData, SearchData
from esper_ray.report.run_page import duration, made_with, tile
from esper_ray.report.shell_command import shell_command
from esper_ray.shell import pasteable

Row = dict[str, Any]


def search_page(search: SearchData) -> Page:
    """Returns the page of a search, also of an unfinished one."""
    settings = ranked_settings(search)
    sections: list[Section] = []
    if any(setting["curve"] for setting in settings):
        sections = [_ranking(search, settings), _curves(search, settings), *_parameters(search, settings)]
    if settings or search.damaged:
        sections.append(_trials(search, settings))
    if search.best is not None:
        lead = "The best setting as a file for esper-ray train --config."
        sections.append(Section("best", "Best configuration", lead, facts={"text": search.best}))
    sections.append(
        made_with(search.experiment, shell_command(search.experiment.get("command") or {"name": "tune"}), "")
    )
    train = search.search.get("train") or {}
    keys = ", ".join(search.search.get("space") or {})
    return Page(
        title=search.folder.resolve().name,
        kind="Search",
        subtitle=f"Task {train.get('task', '–')}: searching {keys}",
        status=search.status,
        status_note=_status_note(search),
        tiles=_tiles(search, settings),
        sections=sections,
        idle_gap_seconds=search.idle_gap_seconds,
    )


def ranked_settings(search: SearchData) -> list[Row]:
    """Returns the settings, best first, each with its curve; while the search goes on, as the trials stand now."""
    entries = (search.ranking or {}).get("settings") or _ranking_rows(search)
    found = []
    for place, entry in enumerate(entries, start=1):
        text = describe(entry["setting"]) or "the file as it is"
        short = ", ".join(f"{key.rpartition('.')[2]} {_short(value)}" for key, value in entry["setting"].items())
        runs = {name: search.trials[name] for name in entry["trials"] if name in search.trials}
        found.append(
            {
                **entry,
                **{"rank": entry.get("rank", place), "text": text, "label": f"{place}. {short or 'the file as it is'}"},
                **{"runs": runs, "curve": _curve(runs, search.metric)},
            }
        )
    return found


def _ranking_rows(search: SearchData) -> list[Row]:
    """Ranks the trials as they stand, as the search itself will in the end."""
    by_itself = (search.search.get("scheduler") or {}).get("kind") == "pbt"
    trials = [
        TrialResult(
            name,
            dict(run.config.get("setting") or {}),
            int(run.command.get("seed", 0)),
            int(run.config.get("iterations") or 0),
            {"complete": "finished", "interrupted": "stopped"}.get(run.status, "running"),
            len(run.iterations),
            [value for row in run.iterations if (value := lookup(row, search.metric)) is not None],
        )
        for name, run in search.trials.items()
    ]
    ranking = rank(trials, search.mode, search.search.get("seeds") or (), by_itself)
    return [entry.as_dict(place) for place, entry in enumerate(ranking, start=1)]


def _curve(runs: Mapping[str, RunData], metric: str) -> list[Row]:
    by_iteration: dict[int, list[float]] = {}
    for run in runs.values():
        for row in run.iterations:
            if (value := lookup(row, metric)) is not None:
                by_iteration.setdefault(row["iteration"], []).append(value)
    curve = []
    for iteration, values in sorted(by_iteration.items()):
        row = {"iteration": iteration, "mean": fmean(values), "seeds": len(values)}
        if (deviation := standard_deviation(values)) is not None:
            row |= {"low": row["mean"] - deviation, "high": row["mean"] + deviation}
        curve.append({name: round(value, 4) for name, value in row.items()})
    return curve


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _status_note(search: SearchData) -> str:
    done = sum(run.summary is not None for run in search.trials.values())
    count = f"{done} of {len(search.trials)} trials that have begun are over"
    failed = (search.ranking or {}).get("failed") or 0
    if not search.trials and not search.damaged:
        return "The search has just begun: no trial has started yet, so there is nothing to show."
    notes = {
        "complete": f"It came to its end: {len(search.trials)} trials" + (f", {failed} failed." if failed else "."),
        "interrupted": f"It was interrupted: {count}. Go on with it with --resume.",
        "running": f"It was going on when this page was written: {count}. The ranking is how the trials stand now.",
        "standing still": f"Nothing has been written for a while: {count}; it was probably ended from outside.",
    }
    return notes[search.status]


def _tiles(search: SearchData, settings: list[Row]) -> list[Row]:
    if not settings:
        return []
    best = settings[0]
    known = best["std"] is not None
    deviation = f"standard deviation {best['std']:.2f}" if known else "one training seed: standard deviation not known"
    episodes = sum(run.iterations[-1].get("episodes", 0) for run in search.trials.values() if run.iterations)
    tiles = [
        tile(f"best {search.metric}", f"{best['mean']:.2f}", deviation, "accent"),
        tile("settings", str(len(settings)), f"{search.search.get('algorithm', 'random')} search"),
        tile("trials", str(len(search.trials)), f"{len(search.search.get('seeds') or [0])} training seeds"),
        tile("episodes", f"{episodes:,}", "all trials together"),
    ]
    if search.ranking and search.ranking.get("seconds"):
        scheduler = (search.search.get("scheduler") or {}).get("kind", "–")
        tiles.append(tile("wall time", duration(search.ranking["seconds"]), f"scheduler {scheduler}"))
    return tiles


def _ranking(search: SearchData, settings: list[Row]) -> Section:
    better = "larger" if search.mode == "max" else "smaller"
    lead = (
        f"Each setting by {search.metric}, mean of the last fifth of the iterations; {better} is better. A ring is one "
        "training seed: where the rings of two settings overlap, the search does not say which is better."
    )
    return Section("ranking", "Ranking", lead, [search_charts.ranking_chart(settings, search.metric)])


def _curves(search: SearchData, settings: list[Row]) -> Section:
    trials = [
        {"trial": name, "iteration": row["iteration"], "value": value}
        for name, run in search.trials.items()
        for row in run.iterations
        if (value := lookup(row, search.metric)) is not None
    ]
    last = max((row["iteration"] for row in trials), default=1)
    lead = (
        f"The {search_charts.BEST_SHOWN} best settings, mean over their training seeds with ± 1 standard deviation; "
        "every single trial is a thin grey line."
    )
    return Section(
        "curves", "Learning curves", lead, [search_charts.curves_chart(settings, trials, search.metric, last)]
    )


def _parameters(search: SearchData, settings: list[Row]) -> list[Section]:
    space: Row = search.search.get("space") or {}
    trials = [
        {"setting": setting["setting"], "value": value, "trial": f"setting {setting['rank']}, seed {seed}"}
        for setting in settings
        for seed, value in zip(setting["seeds"], setting["values"], strict=True)
    ]
    charts = [
        search_charts.parameter_chart(i, key, trials, search.metric, "loguniform" in (how or {}))
        for i, (key, how) in enumerate(space.items())
    ]
    lead = f"{search.metric} against each searched parameter; a ring is a trial."
    return [Section("parameters", "Parameters", lead, charts)] if charts else []


def _trials(search: SearchData, settings: list[Row]) -> Section:
    rows = []
    for setting in settings:
        trials = [
            {
                "name": name,
                "seed": run.command.get("seed"),
                "iterations": len(run.iterations),
                "of": run.config.get("iterations"),
                "command": pasteable("esper-ray", "report", search.folder / "trials" / name),
            }
            for name, run in setting["runs"].items()
        ]
        rows.append({**{key: setting[key] for key in ("rank", "text", "mean", "std", "complete")}, "trials": trials})
    lead = (
        "Every setting with its trials. Each trial is a run of its own, with a page of its own: the command writes it."
    )
    facts = {"rows": rows, "metric": search.metric, "damaged": search.damaged}
    return Section("trials", "Settings and trials", lead, facts=facts)
