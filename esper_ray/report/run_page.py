"""The report page of a run."""

import json
from datetime import datetime
from statistics import fmean
from typing import Any

from esper_ray.orchestration.config import WAYS
from esper_ray.orchestration.run.metrics import difference_interval, error_text, interval_text, mean_with_error
from esper_ray.orchestration.run.run_result import LAST_SHARE
from esper_ray.report import aggregate, run_charts
from esper_ray.report.embedded import pack
from esper_ray.report.episode_charts import strip_chart, strip_rows, timeline_charts
from esper_ray.report.page import Page, Section
from esper_ray.report.reading import RunData
from esper_ray.report.shell_command import in_lines, shell_command

Row = dict[str, Any]


def run_page(run: RunData) -> Page:
    """Returns the page of a run, also of an unfinished one."""
    sections: list[Section] = []
    packed = ""
    if run.episodes:
        packed, embedded = pack(run.episodes, run.actions)
        sections = [
            _learning(run),
            *_health(run),
            _episodes(run, embedded),
            _decisions(run),
            _blueprints(run),
            *_gradients(run),
            *_rewards(run),
        ]
    if run.comparisons:
        sections.append(_comparison(run))
    sections.append(made_with(run.config, shell_command(run.command), _how_to_repeat(run)))
    return Page(
        title=run.folder.resolve().name,
        kind="Training run" if run.learns else f"Run of the {run.command.get('name', '')} policy",
        subtitle=f"Task {run.task.get('name', '–')}: {run.task.get('summary', '')}",
        status=run.status,
        status_note=_status_note(run),
        tiles=_tiles(run),
        sections=sections,
        episodes=packed,
        idle_gap_seconds=run.idle_gap_seconds,
    )


def _status_note(run: RunData) -> str:
    played = len(run.episodes)
    if not played and run.summary is not None:
        return "The run was ended before its first episode, so there is nothing to show."
    if not played:
        return "The run has just begun: no episode has ended yet, so there is nothing to show."
    done, of = len(run.iterations), run.config.get("iterations") or 0
    progress = f"{done:,} of {of:,} iterations" if run.learns else f"{played:,} episodes"
    notes = {
        "complete": f"It came to its end: {progress}.",
        "interrupted": f"It was ended before its last iteration: {progress}.",
        "running": f"It was going on when this page was written: {progress}.",
        "standing still": f"Nothing has been written for {run.idle_seconds / 60:,.0f} minutes and there is no summary: "
        f"it was probably ended from outside. {progress}.",
    }
    return notes[run.status]


def _tiles(run: RunData) -> list[Row]:
    if not run.episodes:
        return []
    kept = [row["kept_val_accuracy"] for row in run.episodes if row["kept_val_accuracy"] is not None]
    last = run.episodes[-max(1, round(LAST_SHARE * len(run.episodes))) :] if run.learns else run.episodes
    which = "the last fifth" if run.learns else "all episodes"
    learned = [row["kept_val_accuracy"] for row in last if row["kept_val_accuracy"] is not None] or kept
    mean, error = mean_with_error(learned)
    summary = run.summary or {}
    wait_only = summary.get("wait_only") or ()
    seconds = summary.get("seconds") or (run.iterations[-1].get("seconds") if run.iterations else None)
    epochs = summary.get("host_epochs") or (run.iterations[-1].get("host_epochs") if run.iterations else None)
    if epochs is None:
        epochs = sum(len(row["stages"]) for row in run.episodes)
    tiles: list[Row] = [
        tile(f"kept validation accuracy, {which}", f"{mean:.1f} %", error_text(error), "accent"),
    ]
    waited, difference = summary.get("kept_val_accuracy_of_wait_only"), summary.get("difference")
    if waited:
        few = len(wait_only)
        hosts = f"{few} host{'s' * (few != 1)}, {error_text(waited[1] if few > 1 else None)}"
        tiles.append(tile("hosts that only waited", f"{waited[0]:.1f} %", hosts))
    if difference:
        interval = difference_interval(learned, wait_only) if wait_only else None
        sign = "" if interval is None else "good" if interval[0] > 0 else "bad" if interval[1] < 0 else ""
        value = f"{difference[0]:+.1f}".replace("-", "−")
        tiles.append(tile("difference, points", value, interval_text(interval).replace("-", "−"), sign))
    fossilized = fmean(row["final_stage"] == "FOSSILIZED" for row in last)
    tiles += [
        tile(f"kept a seed, {which}", f"{100 * fossilized:.0f} %", "ended FOSSILIZED"),
        tile("episodes", f"{len(run.episodes):,}", f"of {run.max_epochs} host epochs"),
        tile("host epochs trained", f"{epochs:,}", "all hosts together"),
    ]
    if seconds:
        runners = run.config.get("runners")
        tiles.append(tile("wall time", duration(seconds), f"{runners} runners, {run.config.get('device')}"))
    return tiles


def tile(label: str, value: str, note: str = "", tone: str = "") -> Row:
    """Returns a tile: `tone` is "", "accent", "good" or "bad"."""
    return {"label": label, "value": value, "note": note, "tone": tone}


def duration(seconds: float) -> str:
    """Returns seconds in the unit that fits.

    >>> duration(90), duration(5400), duration(9000)
    ('1.5 min', '90 min', '2.5 h')
    """
    return (
        f"{seconds / 60:.1f} min"
        if seconds < 600
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )


def _last_iteration(run: RunData) -> int:
    return max(int(row["iteration"]) for row in run.episodes)


def _learning(run: RunData) -> Section:
    lead = (
        "What the grown hosts are worth: validation accuracy of what each episode kept (a seed that was not fossilized "
        "is dropped first). "
    )
    if not run.learns:
        chart = run_charts.episode_dots(run.episodes)
        return Section("learning", "Kept accuracy", lead + "Each mark is an episode.", [chart])
    lead += "The line is the mean of an iteration's episodes, the bands say how far they lie apart."
    waited = (run.summary or {}).get("kept_val_accuracy_of_wait_only")
    wait_only = {"mean": waited[0], "error": waited[1]} if waited else None
    if wait_only is None:
        lead += " The mean of the hosts that only waited appears when the run has ended."
    evaluations = [
        {"iteration": row["iteration"], **{way: found[way]["kept_val_accuracy"] for way in WAYS if way in found}}
        for row in run.iterations
        if (found := row.get("evaluation"))
    ]
    curve = aggregate.learning_curve(run.episodes)
    chart = run_charts.learning_chart(curve, wait_only, evaluations, _last_iteration(run))
    return Section("learning", "Learning curve", lead, [chart])


def _health(run: RunData) -> list[Section]:
    charts = run_charts.health_charts(run.iterations, _last_iteration(run))
    if not charts:
        return []
    warnings = [
        {"iteration": row["iteration"], "text": text} for row in run.iterations for text in row.get("warnings") or ()
    ]
    lead = (
        "Whether the learner is still learning. Explained variance, of the returns by the value "
        "function, should rise towards 1, entropy fall slowly, and the "
        "KL divergence stay small; a triangle marks an iteration with a warning."
    )
    return [Section("health", "Learner health", lead, charts, {"warnings": warnings})]


def _episodes(run: RunData, embedded: int) -> Section:
    stages = sorted({stage for row in run.episodes for stage in row["stages"]})
    charts = timeline_charts(run.max_epochs, run.actions, stages)
    rows = strip_rows(run.episodes)
    charts.append(strip_chart(rows, run.max_epochs, stages, run.learns))
    lead = (
        "One episode, epoch by epoch: the decision before each epoch, the stage of the seed slot, and what became of "
        "the host. Choose one by number, by a preset, with the arrow keys, or from the overview below."
    )
    facts = {
        **{"embedded": embedded, "all": len(run.episodes), "shown": 1 + max(row["row"] for row in rows)},
        "rollbacks": aggregate.rollbacks(run.episodes),
    }
    return Section("episodes", "Episodes", lead, charts, facts)


def _decisions(run: RunData) -> Section:
    bins, last = aggregate.Bins.of(run.episodes, 70), _last_iteration(run)
    shares, waits = aggregate.action_shares(run.episodes, run.actions, bins)
    lead = (
        "What the policy decides when it does not wait. A column is a group of iterations; WAIT, by far the most "
        "frequent decision, has a line of its own below."
    )
    charts = [
        run_charts.action_chart(shares, run.actions, last, bins.size),
        run_charts.wait_chart(waits, last, bins.size),
    ]
    return Section("decisions", "Decisions over training" if run.learns else "Decisions", lead, charts)


def _blueprints(run: RunData) -> Section:
    rows = aggregate.blueprint_scores(run.episodes, run.actions)
    lead = (
        "What became of the seeds of each blueprint, over all episodes. The contribution is what removing a seed would "
        "have cost, not what it added: hosts come to depend on their seeds, so read it as a sign, not as a value."
    )
    removed = any(row["removed"] for row in rows)
    return Section("blueprints", "Blueprints", lead, facts={"rows": rows, "removed": removed})


def _gradients(run: RunData) -> list[Section]:
    bins, last = aggregate.Bins.of(run.episodes), _last_iteration(run)
    health = aggregate.gradient_map(run.episodes, bins, "gradient_health")
    if not health:
        return []
    ratio = aggregate.gradient_map(run.episodes, bins, "seed_gradient_ratio", log=True)
    charts = [
        run_charts.heat_chart(
            "gradient-health", "Gradient health of live seeds, 0 to 1", "mean health", health, last, run.max_epochs
        )
    ]
    if ratio:
        title = "Seed-to-host gradient ratio, log₁₀"
        charts.append(run_charts.heat_chart("gradient-ratio", title, "mean log₁₀", ratio, last, run.max_epochs))
    lead = (
        "Whether gradients reach the seeds. Health is 1 when no gradient vanishes or explodes; the ratio compares the "
        "seed's gradient with the host's, each divided by the root of its size (0: equal, −1: a tenth). "
        "Blank cells had no live seed."
    )
    return [Section("gradients", "Gradients", lead, charts)]


def _rewards(run: RunData) -> list[Section]:
    bins = aggregate.Bins.of(run.episodes, 100)
    names, rows = aggregate.reward_components(run.episodes, bins)
    if not names:
        return []
    mode = (run.task.get("reward") or {}).get("mode", "–")
    lead = f"What the reward (mode {mode}) was made of: mean per episode of each component, and their sum."
    return [
        Section("rewards", "Rewards", lead, [run_charts.reward_chart(names, rows, _last_iteration(run), bins.size)])
    ]


def _comparison(run: RunData) -> Section:
    charts, found = [], []
    for i, (name, comparison) in enumerate(sorted(run.comparisons.items())):
        chart = run_charts.forest_chart(f"comparison-{i}", comparison)
        charts.append(chart)
        found.append({"file": name, "chart": chart, **comparison})
    lead = (
        "The learned policy against simple controls on held-out hosts that no training used, paired by host, with 95 % "
        "intervals. Right of the dashed line the learned policy scores higher; an interval across it shows no "
        "difference. The score is the kept test accuracy less a rent for added parameters."
    )
    return Section("comparison", "Comparison with the controls", lead, charts, {"comparisons": found})


def _how_to_repeat(run: RunData) -> str:
    if run.command.get("runners") is None and run.config.get("runners"):
        return (
            f"It ran with {run.config['runners']} runners on {run.config.get('device')}; a run follows from its "
            f"configuration, its seed and the number of runners, so on another machine add "
            f"--runners {run.config['runners']}."
        )
    return ""


def made_with(config: Row, command: str, note: str) -> Section:
    """Returns the section with the command, the versions and the whole configuration."""
    versions = {"esper_ray": config.get("esper_ray"), "python": config.get("python"), **(config.get("versions") or {})}
    facts = {
        "command": in_lines(command),
        "note": note,
        "versions": {name: str(version) for name, version in versions.items() if version},
        "commit": config.get("git_commit"),
        "started": _readable(config.get("started")),
        "config": json.dumps(config, indent=2),
    }
    lead = "The command that does the same again, and what it ran with."
    return Section("made-with", "Command and versions", lead, facts=facts)


def _readable(started: Any) -> str | None:
    try:
        return f"{datetime.fromisoformat(str(started)):%d %B %Y, %H:%M %Z}".strip()
    except ValueError:
        return str(started) if started else None
