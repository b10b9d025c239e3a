"""The settings of a search, the YAML files of `esper-ray tune`. Imports neither torch nor Ray."""

import itertools
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from esper_ray.errors import ConfigurationError, unknown_name
from esper_ray.orchestration.config import WAYS, LearnerSettings, TrainConfig
from esper_ray.orchestration.config_files import parse_config, read_yaml, require_known_keys
from esper_ray.shell import pasteable

TASK_PREFIX = "set."
"""A searched key that begins with this names a setting of the task, as `train --set` does."""
_NOT_SEARCHED = {
    *("config", "out", "overwrite", "runners", "seed", "plugin", "device", "data_dir", "hub", "set", "ppo", "logger"),
    *("iterations", "episodes_per_iteration", "wait_only_episodes", "evaluate_every", "evaluation_episodes"),
    *("checkpoint_every", "keep_hosts", "task", "host_checkpoint_every", "episode_timeout"),
    *("resume", "from_checkpoint", "address"),
}
_FLAG_OF = {
    "max_epochs": "max_epochs",
    "host.slot": "slot",
    "reward.mode": "reward",
    "variety.enabled": "host_variety",
    "data.hub": "hub",
}
"""Setting of a task → the setting of `train` that stands for it and would win."""
_NETWORK = {"ppo.hidden", "ppo.lstm_width"}
_MOST_EXAMPLES = 200
"""Combinations of values that are checked before a search."""
_GIVEN_PER_TRIAL = ("config", "out", "overwrite", "seed", "logger", "resume", "from_checkpoint", "address")
_SECONDS_AND_COUNTS = ("iteration", "episodes", "host_epochs", "seconds")
_EPISODE_MEANS = ("return", "kept_val_accuracy", "kept_val_loss", "final_val_accuracy", "added_parameters", "score")
_LEARNER = ("explained_variance", "entropy_share", "kl", "clip_fraction", "value_loss")
_HELD_OUT = tuple(
    f"evaluation.{way}.{name}"
    for way in WAYS
    for name in ("kept_val_accuracy", "score", "added_parameters", "fossilized_share")
)
METRICS = (*_EPISODE_MEANS, "fossilized_share", "episode_seconds", "rollbacks", *_HELD_OUT)
"""Numbers that can rank settings: means over the episodes of an iteration, of metrics.jsonl."""
STOP_KEYS = (*_SECONDS_AND_COUNTS, *METRICS, *(f"learner.{name}" for name in _LEARNER))
"""Numbers that can end a trial."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Grid(_Strict):
    """Every value is tried, with every combination of the other grids."""

    grid: tuple[Any, ...] = Field(min_length=1)

    @property
    def examples(self) -> tuple[Any, ...]:
        """Every value."""
        return self.grid


class Choice(_Strict):
    """One value is drawn for each sample, all equally likely."""

    choice: tuple[Any, ...] = Field(min_length=1)

    @property
    def examples(self) -> tuple[Any, ...]:
        """Every value."""
        return self.choice


class Range(_Strict):
    """A value between two others is drawn for each sample."""

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value."""
        (bounds,) = [getattr(self, name) for name in type(self).model_fields]
        return float(bounds[0]), float(bounds[1])

    @property
    def examples(self) -> tuple[Any, ...]:
        """Both ends."""
        return self.bounds

    @model_validator(mode="after")
    def _rises(self) -> "Range":
        low, high = self.bounds
        if not low < high or (isinstance(self, LogUniform) and low <= 0):
            above = ", above 0" if isinstance(self, LogUniform) else ""
            raise ValueError(f"a range is [lowest, highest]{above}, got [{low:g}, {high:g}]")
        return self


class Uniform(Range):
    """A number is drawn for each sample, uniformly from [lowest, highest]."""

    uniform: tuple[float, float]


class LogUniform(Range):
    """A number is drawn for each sample, its logarithm uniformly from [lowest, highest]."""

    loguniform: tuple[float, float]


class RandInt(Range):
    """A whole number is drawn for each sample, from lowest to highest, both included."""

    randint: tuple[int, int]

    @property
    def examples(self) -> tuple[Any, ...]:
        """Both ends."""
        return self.randint


Values = Grid | Choice | Uniform | LogUniform | RandInt


class NoScheduler(_Strict):
    """Every trial runs to its end."""

    kind: Literal["none"] = "none"


class ASHA(_Strict):
    """Asynchronous successive halving: only the best of the trials that reach a rung continue."""

    kind: Literal["asha"]
    grace_iterations: int = Field(2, ge=1)
    """First rung: no trial ends before this iteration."""
    reduction: float = Field(2.0, gt=1)
    """One in so many goes on from a rung; each rung is as many times as far as the one before."""


class PBT(_Strict):
    """Population-based training: the worst take over weights and, changed a little, settings of the best."""

    kind: Literal["pbt"]
    interval: int = Field(4, ge=1)
    """Iterations between changes."""
    quantile: float = Field(0.25, gt=0, le=0.5)
    """Share of the trials that take over, and share that they take over from."""
    resample: float = Field(0.25, ge=0, le=1)
    """Probability that a setting is drawn anew instead of multiplied by 0.8 or 1.2."""


Scheduler = Annotated[NoScheduler | ASHA | PBT, Field(discriminator="kind")]


class SearchFile(_Strict):
    """A search: common settings, the search space, and how trials are chosen, stopped and ranked."""

    train: TrainConfig = TrainConfig()
    """Settings of `esper-ray train` that all trials share."""
    space: dict[str, Values] = Field(min_length=1)
    """Settings that differ: one of `train`, such as ppo.lr_start, or `set.` and one of the task."""
    samples: int = Field(1, ge=1)
    """Draws of what is not a grid; each is tried with every combination of the grids."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0, 1), min_length=1)
    """Training seeds: each setting is tried with every one."""
    metric: str = "score"
    """Number that ranks settings; its mean over the last fifth of a trial's iterations counts."""
    mode: Literal["max", "min"] = "max"
    """Direction in which the metric is better."""
    stop: dict[str, float] = Field(default_factory=dict)
    """Metric → value at which a trial ends early: at or above it."""
    scheduler: Scheduler = NoScheduler()
    """Rule by which trials end early."""
    algorithm: Literal["random", "optuna"] = "random"
    """Source of the samples. optuna: drawn after what was found so far; needs the extra [search], and no grids."""
    search_seed: int = Field(0, ge=0)
    """Seed of the draws."""

    @model_validator(mode="after")
    def _consistent(self) -> "SearchFile":
        for key, values in self.space.items():
            if isinstance(values, Grid) and any(values.grid.count(value) > 1 for value in values.grid):
                raise ValueError(f"space.{key}: the values of a grid must differ; use seeds to try a setting again")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must differ, got {list(self.seeds)}")
        grids = [key for key, values in self.space.items() if isinstance(values, Grid)]
        if self.algorithm == "optuna" and grids:
            raise ValueError(f"algorithm optuna draws its values; {grids[0]} has a grid: use choice")
        if self.algorithm == "optuna" and self.scheduler.kind == "pbt":
            raise ValueError("algorithm optuna and scheduler pbt both choose settings; use one of them")
        if len(grids) == len(self.space) and self.samples > 1:
            raise ValueError("samples above 1 would try the same settings again: everything is a grid; use seeds")
        if self.scheduler.kind == "asha" and self.scheduler.grace_iterations >= self.train.iterations:
            raise ValueError(
                f"scheduler.grace_iterations {self.scheduler.grace_iterations} leaves asha nothing to end: it must be "
                f"below the {self.train.iterations} iterations of a trial"
            )
        if self.scheduler.kind == "pbt" and self.scheduler.interval >= self.train.iterations:
            raise ValueError(
                f"scheduler.interval {self.scheduler.interval} must be below the {self.train.iterations} iterations of "
                "a trial"
            )
        return self

    @model_validator(mode="after")
    def _can_change_in_mid_run(self) -> "SearchFile":
        if self.scheduler.kind != "pbt":
            return self
        drawn = [key for key, values in self.space.items() if not isinstance(values, Grid)]
        may_change = ("ppo.", f"{TASK_PREFIX}reward.")
        fixed = [key for key in drawn if key in _NETWORK or not key.startswith(may_change)]
        if fixed:
            raise ValueError(
                f"scheduler pbt changes what it draws in mid-run, which {fixed[0]} does not allow: use grid"
            )
        if not drawn:
            raise ValueError("scheduler pbt changes what is drawn, and everything is a grid: use uniform, choice, …")
        return self

    @model_validator(mode="after")
    def _metrics_exist(self) -> "SearchFile":
        if self.metric not in METRICS:
            raise ValueError(f"metric: {unknown_name('metric', self.metric, METRICS)}")
        for key in self.stop:
            if key not in STOP_KEYS:
                raise ValueError(f"stop: {unknown_name('metric', key, STOP_KEYS)}")
        for key in (self.metric, *self.stop):
            if not key.startswith("evaluation."):
                continue
            needed = key != self.metric or self.scheduler.kind != "none"
            every = self.train.evaluate_every
            if every != 1 and (needed or every == 0 or self.train.iterations % every):
                expected = "1" if needed else "1, or a divisor of train.iterations"
                raise ValueError(f"{key} is measured every train.evaluate_every iterations; it must be {expected}")
        return self

    @property
    def settings_count(self) -> int:
        """Number of settings that are tried."""
        count = self.samples
        for values in self.space.values():
            count *= len(values.grid) if isinstance(values, Grid) else 1
        return count

    @property
    def trial_count(self) -> int:
        """Number of trials: settings × seeds."""
        return self.settings_count * len(self.seeds)

    def trial_config(self, setting: Mapping[str, Any], seed: int) -> TrainConfig:
        """Returns the `train` configuration of a setting, dotted key → value, and a seed.

        Raises:
            ConfigurationError: a value is not valid.
        """
        values = self.train.model_dump(mode="json", exclude=set(_GIVEN_PER_TRIAL))
        for key, value in setting.items():
            if key.startswith(TASK_PREFIX):
                text = (
                    yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")
                )
                values["set"] = [*values["set"], f"{key.removeprefix(TASK_PREFIX)}={text}"]
            elif key.startswith("ppo."):
                values["ppo"][key.removeprefix("ppo.")] = value
            else:
                values[key] = value
        return parse_config("space", {**values, "seed": seed}, TrainConfig)

    def example_settings(self) -> Iterator[dict[str, Any]]:
        """Yields settings that a search may try: all combinations of grids, choices and ends of ranges.

        Where there are too many, each value comes up at least once, with the first of the others.
        """
        examples = {key: values.examples for key, values in self.space.items()}
        if prod(len(values) for values in examples.values()) <= _MOST_EXAMPLES:
            for values in itertools.product(*examples.values()):
                yield dict(zip(examples, values, strict=True))
            return
        first = {key: values[0] for key, values in examples.items()}
        yield first
        for key, values in examples.items():
            for value in values[1:]:
                yield {**first, key: value}


def load_search(path: Path) -> SearchFile:
    """Reads a search file, or a shipped one by its name.

    Raises:
        ConfigurationError: the file cannot be read, a key is unknown (the nearest is named), or a value is not valid.
    """
    where = str(path)
    values = read_yaml(where, path)
    if "space" not in values and "train" not in values and "task" in values:
        instead = pasteable("esper-ray", "train", "--config", path)
        raise ConfigurationError(f"{where} has no space to search: it is a file for {instead}")
    require_known_keys(where, values, SearchFile)
    _require_left_out(where, values.get("train"))
    _require_searchable(where, values.get("space"))
    search = parse_config(where, values, SearchFile)
    for setting in search.example_settings():
        try:
            search.trial_config(setting, search.seeds[0])
        except ConfigurationError as error:
            raise ConfigurationError(f"{where}: {error}") from None
    return search


def _require_left_out(where: str, train: Any) -> None:
    for key in _GIVEN_PER_TRIAL:
        if isinstance(train, dict) and key in train:
            instead = "seeds" if key == "seed" else "the flags of esper-ray tune"
            raise ConfigurationError(f"{where}: train.{key} is not for a search; leave it out, see {instead}")


def _require_searchable(where: str, space: Any) -> None:
    if not isinstance(space, dict):
        return
    known = [name for name in TrainConfig.model_fields if name not in _NOT_SEARCHED]
    known += [f"ppo.{name}" for name in LearnerSettings.model_fields]
    for key in space:
        if (flag := _FLAG_OF.get(str(key).removeprefix(TASK_PREFIX))) and str(key).startswith(TASK_PREFIX):
            raise ConfigurationError(f"{where}: space.{key} has a name of its own: use space.{flag}")
        if key in _NOT_SEARCHED:
            raise ConfigurationError(f"{where}: space.{key} cannot be searched; give it under train, or see seeds")
        if key not in known and not str(key).startswith(TASK_PREFIX):
            near = unknown_name("key", f"space.{key}", [f"space.{name}" for name in known])
            raise ConfigurationError(f"{where}: {near} (a setting of the task is set.KEY)")
        _require_values(where, key, space[key])


def _require_values(where: str, key: str, given: Any) -> None:
    """Refuses an unknown kind of search values, naming the nearest."""
    ways: dict[str, type[BaseModel]] = {
        name: kind for kind in (Grid, Choice, Uniform, LogUniform, RandInt) for name in kind.model_fields
    }
    if not isinstance(given, dict) or len(given) != 1:
        raise ConfigurationError(f"{where}: space.{key} expects one of {', '.join(ways)}, such as {{grid: [1, 2]}}")
    (way,) = given
    if way not in ways:
        raise ConfigurationError(f"{where}: space.{key}: {unknown_name('way of giving values', str(way), ways)}")
    parse_config(f"{where}: space.{key}", given, ways[way])
