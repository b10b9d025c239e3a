"""The named tasks, their settings, and the construction of a task's model and loaders."""

from esper_ray.data import PreparedData
from esper_ray.tasks import shipped  # noqa: F401  registers them
from esper_ray.tasks.build import (
    TaskData,
    create_model,
    load_task_data,
    load_test_data,
    prepare_data,
    require_sound,
    with_tokenizer,
)
from esper_ray.tasks.registry import get_task_spec, register_task, task_names
from esper_ray.tasks.settings import (
    DataSettings,
    DecisionSettings,
    GovernorSettings,
    HeuristicSettings,
    HostSettings,
    RewardSettings,
    VarietySettings,
)
from esper_ray.tasks.spec import TaskSpec
from esper_ray.tasks.variety import draw_host, drawn_settings

__all__ = [
    "DataSettings",
    "DecisionSettings",
    "GovernorSettings",
    "HeuristicSettings",
    "HostSettings",
    "PreparedData",
    "RewardSettings",
    "TaskData",
    "TaskSpec",
    "VarietySettings",
    "create_model",
    "draw_host",
    "drawn_settings",
    "get_task_spec",
    "load_task_data",
    "load_test_data",
    "prepare_data",
    "register_task",
    "require_sound",
    "task_names",
    "with_tokenizer",
]
