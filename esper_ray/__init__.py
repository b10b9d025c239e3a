"""Ray-based parallel episode orchestrator for networks that grow while they train.

The names below are imported on first use, so that `import esper_ray` and `esper-ray --help` need neither torch nor Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esper_ray.data import data_source
    from esper_ray.episode import MorphogenesisEnv, run_ppo_episode
    from esper_ray.lifecycle import SeedStage
    from esper_ray.models import blueprint, host
    from esper_ray.notebook import Session
    from esper_ray.tasks import TaskSpec, create_model, get_task_spec, register_task

__version__ = "0.1.0"
__all__ = [
    "MorphogenesisEnv",
    "SeedStage",
    "Session",
    "TaskSpec",
    "blueprint",
    "create_model",
    "data_source",
    "get_task_spec",
    "host",
    "register_task",
    "run_ppo_episode",
]

_HOME = {
    "MorphogenesisEnv": "esper_ray.episode",
    "run_ppo_episode": "esper_ray.episode",
    "SeedStage": "esper_ray.lifecycle",
    "blueprint": "esper_ray.models",
    "host": "esper_ray.models",
    "data_source": "esper_ray.data",
    "Session": "esper_ray.notebook",
    "TaskSpec": "esper_ray.tasks",
    "create_model": "esper_ray.tasks",
    "get_task_spec": "esper_ray.tasks",
    "register_task": "esper_ray.tasks",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'esper_ray' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)
