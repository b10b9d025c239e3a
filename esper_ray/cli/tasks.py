"""`esper-ray tasks`: what can be trained, and every setting of a task."""

from rich.console import Console
from rich.table import Table

from esper_ray.data import get_source
from esper_ray.episode.actions import ActionTable
from esper_ray.errors import DatasetError
from esper_ray.models import list_blueprints
from esper_ray.tasks import TaskSpec, create_model, get_task_spec, task_names
from esper_ray.tasks.registry import task_settings


def show_tasks(name: str | None) -> int:
    """Prints the tasks, or one in full; returns the exit code.

    Raises:
        ConfigurationError: the task is unknown.
    """
    console = Console()
    if name is None:
        _print_overview(console)
    else:
        _print_task(console, get_task_spec(name))
    return 0


def _print_overview(console: Console) -> None:
    table = Table("task", "what it is", "host", "epochs", "data")
    for name in task_names():
        task = get_task_spec(name)
        table.add_row(name, task.summary, _host(task), str(task.max_epochs), _data(task))
    console.print(table)
    console.print(
        "esper-ray tasks NAME shows every setting of one; change any with train --set KEY=VALUE", markup=False
    )


def _print_task(console: Console, task: TaskSpec) -> None:
    model = create_model(task)
    slot = model.seed_slot
    console.print(f"{task.name}: {task.summary}", markup=False)
    console.print(
        f"host: {_host(task)}; injection points {model.host.injection_points}, slot {model.slot_id}", markup=False
    )
    console.print(f"data: {task.data.source} ({_data(task)})", markup=False)
    console.print(f"actions: {', '.join(ActionTable.of(model).names)}", markup=False)
    seeds = Table("blueprint", "parameters", title=f"seeds at width {slot.width}")
    for blueprint in list_blueprints(slot.topology, slot.width):
        seeds.add_row(blueprint.blueprint_id, f"{blueprint.parameter_count:,}")
    console.print(seeds)
    settings = Table("KEY", "value", title="settings, for train --set KEY=VALUE")
    for key, value in task_settings(task).items():
        settings.add_row(key, str(value))
    console.print(settings)


def _host(task: TaskSpec) -> str:
    parameters = sum(parameter.numel() for parameter in create_model(task).get_host_parameters())
    return f"{task.host.kind}, {task.host.blocks} × {task.host.base_channels} channels, {parameters:,} parameters"


def _data(task: TaskSpec) -> str:
    try:
        source = get_source(task.data.source)
    except DatasetError:
        return "cannot be read by this version"
    try:
        source.find(None)
    except DatasetError:
        return f"{source.description}: not on this machine"
    return f"{source.description}: present"
