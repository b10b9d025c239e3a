"""Weights & Biases and MLflow, through Ray's own integrations. Off unless asked for."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ray.tune import Callback

from esper_ray.errors import ConfigurationError
from esper_ray.optional import needs, optional
from esper_ray.orchestration.config import Logger
from esper_ray.orchestration.fleet.progress import BoardReader
from esper_ray.orchestration.run.plan import RunObserver, RunPlan
from esper_ray.orchestration.run.run_folder import flat

_PROJECT = "esper-ray"
_USED: dict[str, tuple[str, ...]] = {"wandb": ("login", "init"), "mlflow": ("log_metrics", "set_experiment")}
_WITHOUT_LOGIN = ("offline", "disabled", "dryrun")

_Log = Callable[[Mapping[str, float], int], None]


def require_loggers(names: Sequence[Logger]) -> None:
    """Checks that the loggers' packages are installed and that logging in needs no prompt.

    Raises:
        ConfigurationError: it is not.
    """
    for name in names:
        library = optional(name, *_USED[name])
        if library is None:
            needed = "mlflow-skinny sqlalchemy alembic" if name == "mlflow" else name
            raise ConfigurationError(f"--logger {name} {needs(name, f'{needed} (the extra [{name}])')}")
        online = name == "wandb" and os.environ.get("WANDB_MODE") not in _WITHOUT_LOGIN
        if online and not library[0](prompt=False, verify=False):
            raise ConfigurationError(
                "--logger wandb needs a login: wandb login, or WANDB_MODE=offline to keep the run on this machine"
            )


def tune_loggers(names: Sequence[Logger], folder: Path) -> list[Callback]:
    """Returns Ray Tune's callbacks for a search: a run there for each trial."""
    callbacks: list[Callback] = []
    if "wandb" in names:
        from ray.air.integrations.wandb import WandbLoggerCallback

        callbacks.append(WandbLoggerCallback(project=_PROJECT, group=folder.name, log_config=True))
    if "mlflow" in names:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        callbacks.append(MLflowLoggerCallback(experiment_name=f"{_PROJECT} {folder.name}"))
    return callbacks


@contextmanager
def logged(observer: RunObserver, names: Sequence[Logger], plan: RunPlan) -> Iterator[RunObserver]:
    """Yields an observer that also logs every iteration's numbers to these loggers."""
    if not names:
        yield observer
        return
    with ExitStack() as stack:
        logs = [stack.enter_context(_STARTED[name](plan)) for name in names]
        yield _LoggingObserver(observer, logs)


class _LoggingObserver:
    """Passes everything on to another observer, and every iteration's numbers to the loggers."""

    def __init__(self, observer: RunObserver, logs: Sequence[_Log]) -> None:
        self._observer = observer
        self._logs = logs

    def on_start(self, run: RunPlan, board: BoardReader) -> None:
        self._observer.on_start(run, board)

    def on_scripted(self, policy: str, done: int, total: int) -> None:
        self._observer.on_scripted(policy, done, total)

    def on_iteration(self, row: Mapping[str, Any]) -> None:
        self._observer.on_iteration(row)
        for log in self._logs:
            log(dict(flat(row)), row["iteration"])


@contextmanager
def _wandb_run(plan: RunPlan) -> Iterator[_Log]:
    from ray.air.integrations.wandb import setup_wandb

    run = setup_wandb(
        plan.as_dict(), project=_PROJECT, trial_name=plan.out.name, dir=str(plan.out), rank_zero_only=False
    )
    try:
        yield lambda values, step: run.log(dict(values), step=step)
    finally:
        run.finish()


@contextmanager
def _mlflow_run(plan: RunPlan) -> Iterator[_Log]:
    from ray.air.integrations.mlflow import setup_mlflow

    mlflow = setup_mlflow(
        dict(plan.as_dict()["command"]),
        experiment_name=_PROJECT,
        run_name=plan.out.name,
        create_experiment_if_not_exists=True,
        rank_zero_only=False,
    )
    try:
        yield lambda values, step: mlflow.log_metrics(dict(values), step=step)
    finally:
        mlflow.end_run()


_STARTED = {"wandb": _wandb_run, "mlflow": _mlflow_run}
