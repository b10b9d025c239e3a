"""Weights & Biases and MLflow, through Ray's own integrations. Off unless asked for."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from ray.tune import Callback

from esper_ray.errors import ConfigurationError
from esper_ray.orchestration.config import Logger

_PROJECT = "esper-ray"


def require_logger(name: Logger) -> None:
    """Checks that what a logger needs is installed.

    Raises:
        ConfigurationError: it is not.
    """
    if importlib.util.find_spec(name) is None:
        raise ConfigurationError(f"--logger {name} needs the extra [{name}]: pip install -e '.[{name}]'")


def tune_loggers(names: Sequence[Logger], folder: Path) -> list[Callback]:
    """Returns Ray Tune's callbacks for a search: a run there for each trial."""
    callbacks: list[Callback] = []
    if "wandb" in names:
        from ray.air.integrations.wandb import WandbLoggerCallback

        callbacks.append(WandbLoggerCallback(project=_PROJECT, group=folder.name, log_config=True))
    if "mlflow" in names:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        callbacks.append(MLflowLoggerCallback(experiment_name=f"{_PROJECT}-{folder.name}"))
    return callbacks
