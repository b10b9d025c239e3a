"""What is trained: the named tasks, their settings, and how a task becomes a model and loaders."""

from esper_ray.tasks.build import TaskData, create_model, load_task_data, load_test_data
from esper_ray.tasks.registry import get_task_spec, register_task, task_names
from esper_ray.tasks.settings import DecisionSettings, GovernorSettings, HostSettings, RewardSettings
from esper_ray.tasks.spec import TaskSpec

__all__ = [
    "DecisionSettings",
    "GovernorSettings",
    "HostSettings",
    "RewardSettings",
    "TaskData",
    "TaskSpec",
    "create_model",
    "get_task_spec",
    "load_task_data",
    "load_test_data",
    "register_task",
    "task_names",
]
