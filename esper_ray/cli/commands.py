"""The commands of `esper-ray`. What one needs is imported when it is asked for: `--help` needs none of it."""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import BaseModel


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        settings: name of its model in `esper_ray.orchestration.config`.
        target: the function of `esper_ray.cli` that runs it; torch and Ray are imported only there.
        summary: what its help says first.
        only_prints: its output is all that comes of it.
    """

    settings: str
    target: str
    summary: str
    only_prints: bool = False

    def model(self) -> "type[BaseModel]":
        """Returns the model of its settings."""
        model: type[BaseModel] = getattr(import_module("esper_ray.orchestration.config"), self.settings)
        return model

    def run(self, config: "BaseModel") -> int:
        """Runs it and returns the exit code."""
        module, _, function = self.target.partition(":")
        exit_code: int = getattr(import_module(f"esper_ray.cli.{module}"), function)(config)
        return exit_code


COMMANDS = {
    "train": Command(
        "TrainConfig",
        "train:run_train",
        "Train a stage policy with PPO or APPO over parallel hosts.",
    ),
    "plan": Command(
        "PlanConfig",
        "plan:run_plan",
        "Say what a training run will need, with the flags of `train`: where actors sit, how long, how much memory.",
        only_prints=True,
    ),
    "tune": Command(
        "TuneConfig",
        "tune:run_tune",
        "Search settings with Ray Tune, each tried with several training seeds, and rank them.",
    ),
    "heuristic": Command(
        "HeuristicConfig",
        "heuristic:run_heuristic",
        "Play episodes with the heuristic policy: blueprints in turn, keep what helps.",
    ),
    "evaluate": Command(
        "EvaluateConfig",
        "evaluate:run_evaluate",
        "Play a checkpoint's policy on held-out hosts: validation and test accuracy, growth, stage timelines.",
    ),
    "compare": Command(
        "CompareConfig",
        "compare:run_compare",
        "Hold checkpoints against simple controls on the same held-out hosts, and say whether learning paid.",
    ),
    "report": Command(
        "ReportConfig",
        "report:run_report",
        "Write one HTML page about a run or a search, with charts; it needs no network.",
    ),
    "watch": Command(
        "WatchConfig",
        "report:run_watch",
        "Serve a run's report on this machine, kept up to date while the run goes on. Ctrl-C ends it.",
    ),
    "export": Command(
        "ExportConfig",
        "export:run_export",
        "Write a grown host of a run as plain weights with code that needs torch only.",
    ),
    "replay": Command(
        "ReplayConfig",
        "replay:run_replay",
        "Play a recorded episode again, without Ray, and say whether it comes out as recorded, epoch by epoch.",
    ),
    "tasks": Command(
        "TasksConfig",
        "tasks:run_tasks",
        "List the tasks with their hosts, blueprints and data, or every setting of one.",
        only_prints=True,
    ),
}
