"""`esper-ray tasks`: lists the tasks, or every setting of one."""

from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from esper_ray.cli.display import FittingTable, make_console
from esper_ray.data import get_source
from esper_ray.episode.actions import ActionTable
from esper_ray.errors import ConfigurationError, DatasetError, EsperError
from esper_ray.models import barred_blueprints, list_blueprints
from esper_ray.orchestration.config import TaskChoice, TasksConfig
from esper_ray.plugins import load_plugins
from esper_ray.tasks import TaskSpec, create_model, get_task_spec, task_names, with_tokenizer
from esper_ray.tasks.registry import task_settings


def run_tasks(config: TasksConfig) -> int:
    """Prints the tasks, or one in full; returns the exit code.

    Raises:
        ConfigurationError: the task, its slot or a plugin is unknown.
    """
    console, name, slot, data_dir = make_console(), config.name, config.slot, config.data_dir
    load_plugins(config.plugin)
    if name is None:
        if slot is not None or data_dir is not None:
            raise ConfigurationError("--slot and --data-dir need the name of a task: esper-ray tasks NAME")
        for known in task_names():
            try:
                _print_summary(console, get_task_spec(known), None)
            except EsperError as error:  # one wrong task of a plugin does not hide the others
                console.print(Text.assemble((known, "bold"), f"  cannot be used: {error}"))
            console.print()
        console.print(
            "esper-ray tasks NAME shows every setting of one; change any with train --set KEY=VALUE", markup=False
        )
    else:
        task = get_task_spec(name, TaskChoice(slot=slot).task_overrides())
        _print_summary(console, task, data_dir)
        _print_settings(console, task)
    return 0


def _print_summary(console: Console, task: TaskSpec, data_dir: Path | None) -> None:
    task, device = with_tokenizer(task, data_dir), _device()
    model = create_model(task)
    slot, options = model.seed_slot, ", ".join(f"{name} {value}" for name, value in task.host.options.items())
    parameters = sum(parameter.numel() for parameter in model.get_host_parameters())
    points = ", ".join(f"{point} ({width})" for point, width in model.host.injection_points.items())  # type: ignore[operator, union-attr]
    seeds = ", ".join(
        f"{b.blueprint_id} {b.parameter_count:,}" for b in list_blueprints(slot.topology, slot.width, device)
    )
    console.print(Text.assemble((task.name, "bold"), f"  {task.summary}; {task.max_epochs} epochs an episode"))
    lines = {
        "host": f"{task.host.kind}: {parameters:,} parameters; {options}",
        "slot": f"{model.slot_id}; injection points (width): {points}",
        "blueprints": f"parameters at width {slot.width}: {seeds}",
        "data": _data(task, data_dir),
    }
    for barred, reason in barred_blueprints(slot.topology, slot.width, device).items():
        lines[barred] = f"not among the blueprints here: {reason}"
    table = Table.grid(padding=(0, 2))
    for title, text in lines.items():
        table.add_row(f"  {title}", Text(text))
    console.print(table)


def _print_settings(console: Console, task: TaskSpec) -> None:
    actions = ActionTable.of(create_model(task), _device(), task.decisions.blueprints)
    console.print(f"  actions: {', '.join(actions.names)}\n", markup=False)
    settings = Table("KEY", "value", title="settings, for train --set KEY=VALUE")
    for key, value in task_settings(task).items():
        settings.add_row(key, Text(str(value)))
    console.print(FittingTable(settings))


def _device() -> str:
    """Returns the device on which hosts would train by default on this machine."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _data(task: TaskSpec, data_dir: Path | None) -> str:
    source = get_source(task.data.source)
    try:
        source.find(data_dir)
    except DatasetError:
        remedy = f"train --task {task.name} says how to get it"
        return f"{source.name}, {source.description}: no files on this machine; {remedy}"
    return f"{source.name}, {source.description}: present"
