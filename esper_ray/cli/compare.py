"""`esper-ray compare`: holds checkpoints against simple controls and says whether learning paid."""

from rich.table import Table

from esper_ray.cli.display import FittingTable, make_console, make_display
from esper_ray.cli.summary import losses
from esper_ray.orchestration.config import WAYS, CompareConfig
from esper_ray.orchestration.held_out import paired
from esper_ray.orchestration.held_out.compare import compare
from esper_ray.orchestration.held_out.comparison import Comparison, Played


def run_compare(config: CompareConfig) -> int:
    """Compares, prints tables and verdict, and returns the exit code."""
    with make_display() as display:
        result = compare(config, display)
    console = make_console()
    console.print()
    console.print(FittingTable(_policies(result)))
    for way in WAYS:
        console.print(FittingTable(_differences(result, way)))
    if result.plan.task.variety.enabled:
        for way in WAYS:
            console.print(FittingTable(_by_host(result, way)))
    if result.schedule is not None:
        found = result.schedule
        console.print(
            f"Best of {found.candidates} fixed schedules on {found.hosts} training hosts: {found.schedule} "
            f"({found.episodes} episodes to find it).",
            soft_wrap=True,
        )
    names = list(result.manifests)
    if len(names) > 1:
        for name in names:
            console.print(f"{name}: {result.verdict([name])}", soft_wrap=True)
    for way in WAYS:
        console.print(result.verdict(names, way), soft_wrap=True)
    for line in losses(result.losses):
        console.print(line, soft_wrap=True)
    console.print(f"Written to {result.file}; the same command plays nothing twice.", soft_wrap=True)
    return 0


def _policies(result: Comparison) -> Table:
    title = f"{len(result.seeds)} held-out hosts of {result.plan.task.name}: means"
    table = Table(
        "policy",
        "score of record",
        "kept test %",
        "kept val %",
        "params added",
        "kept a seed",
        "host epochs spent",
        title=title,
    )
    several = len(result.manifests) > 1
    for (name, way), played in result.learned.items():
        _add(table, f"learned, {way}" + f" (seed {result.manifests[name].seed})" * several, played)
    for control, played in result.controls.items():
        _add(table, control, played)
    for (name, way), played in result.static.items():
        _add(table, f"static-final of {way}" + f" (seed {result.manifests[name].seed})" * several, played)
    return table


def _add(table: Table, name: str, played: Played) -> None:
    means = paired.means(played.outcomes)
    table.add_row(
        name,
        f"{means['score']:.1f}",
        f"{means['kept_test_accuracy']:.1f}",
        f"{means['kept_val_accuracy']:.1f}",
        f"{means['added_parameters']:,.0f}",
        f"{means['fossilized_share']:.0%}",
        f"{played.host_epochs:,}",
    )


def _by_host(result: Comparison, way: str) -> Table:
    rows = result.by_host(list(result.manifests), way)
    against = f"− {rows[0]['against']}" if "against" in rows[0] else ""
    table = Table(
        "hosts",
        "count",
        "kept",
        "germinated after",
        "fossilized after",
        "score",
        against,
        title=f"what the learned policy, {way}, does on which hosts",
    )
    for row in rows:
        difference = row.get("difference")
        table.add_row(
            row["hosts"],
            str(row["count"]),
            ", ".join(f"{name} {share:.0%}" for name, share in row["kept"].items()),
            "–" if row["germinated_after"] is None else f"{row['germinated_after']:g}",
            "–" if row["fossilized_after"] is None else f"{row['fossilized_after']:g}",
            f"{row['score']:.1f}",
            f"{paired.Difference(**difference)}" if difference else "",
        )
    return table


def _differences(result: Comparison, way: str) -> Table:
    together = f", mean of {len(result.manifests)} training seeds" if len(result.manifests) > 1 else ""
    table = Table(
        "learned −",
        "score of record",
        "kept test accuracy",
        "verdict on the score",
        title=f"paired differences, {way}{together}: mean [95 % bootstrap interval], points",
    )
    names = list(result.manifests)
    for control in result.control_names:
        score = result.difference(control, way, names, paired.score)
        accuracy = result.difference(control, way, names, paired.test_accuracy)
        table.add_row(control, f"{score:.2f}", f"{accuracy:.2f}", score.verdict)
    return table
