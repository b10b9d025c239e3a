"""Settings of every command. Imports neither torch nor Ray, so that `--help` answers at once."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro
import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from typing_extensions import Self

from esper_ray.errors import ConfigurationError, unknown_name

if TYPE_CHECKING:
    from esper_ray.policies import Acting

Logger = Literal["wandb", "mlflow"]
CONTROLS = ("wait", "random", "heuristic", "schedule", "static-final")
WAYS: tuple[Literal["sampled", "median"], ...] = ("sampled", "median")
"""Ways in which a policy acts in comparisons and in evaluations during training; see `esper_ray.policies.acting`."""


class LearnerSettings(BaseModel):
    """The learner. Schedules run over the whole training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lr_start: float = Field(1e-3, gt=0)
    """Learning rate of the first iteration."""
    lr_end: float = Field(1e-4, gt=0)
    """Learning rate that the schedule falls to, linearly."""
    entropy_start: float = Field(0.03, ge=0)
    """Entropy coefficient of the first iteration."""
    entropy_end: float = Field(0.003, ge=0)
    """Entropy coefficient that the schedule falls to, linearly."""
    clip: float = Field(0.2, gt=0)
    """Clip range of the probability ratio."""
    gae_lambda: float = Field(0.95, ge=0, le=1)
    """λ of generalised advantage estimation, which appo does without."""
    value_weight: float = Field(0.5, ge=0)
    """Weight of the value loss."""
    grad_clip: float = Field(0.5, gt=0)
    """Largest global norm of a gradient."""
    update_epochs: int = Field(8, ge=1)
    """Passes over an iteration's steps."""
    minibatch_size: int = Field(128, ge=1)
    """Steps per minibatch; appo and lstm take as many whole episodes as fit, and one at least."""
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (64, 64)
    """Widths of the tanh layers; policy and value function have networks of their own."""
    lstm_width: int = Field(64, ge=1)
    """Width of the recurrent layer behind them, with `policy: lstm`."""


class TaskChoice(BaseModel):
    """The task, and the settings of it that differ."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str = "digits"
    """Name of the task; `esper-ray tasks` lists them."""
    plugin: tuple[str, ...] = ()
    """Modules to import first, here and in every actor: they register hosts, blueprints, data, tasks of your own."""
    max_epochs: int | None = Field(None, ge=1)
    """Host epochs of one episode. Unset: the task's."""
    slot: str | None = None
    """Injection point of the slot, such as block3_post. Unset: the task's."""
    reward: str | None = None
    """Reward mode: contribution, gain, loss, sparse or paired. Unset: the task's."""
    host_variety: bool = False
    """Let the hosts differ: each episode draws its own from the task's `variety` settings."""
    data_dir: Path | None = None
    """Folder of the data set, for tasks that need one."""
    hub: bool = False
    """Fetch the data set from the Hugging Face hub; needs the extra [hub]."""
    set: tuple[str, ...] = ()
    """Task settings to change, as KEY=VALUE; `esper-ray tasks NAME` lists the keys."""

    def task_overrides(self) -> dict[str, Any]:
        """Returns dotted task setting → value, from `set` and the flags that stand for one.

        Raises:
            ConfigurationError: an entry of `set` is not KEY=VALUE, or VALUE cannot be read.
        """
        overrides: dict[str, Any] = {}
        for entry in self.set:
            key, equals, value = entry.partition("=")
            if not equals:
                raise ConfigurationError(f"--set expects KEY=VALUE, got '{entry}'")
            try:
                overrides[key.strip()] = yaml.safe_load(value)
            except yaml.YAMLError:
                raise ConfigurationError(f"--set {key.strip()}: '{value}' is not a value; quote it") from None
        flags = {
            "max_epochs": self.max_epochs,
            "host.slot": self.slot,
            "reward.mode": self.reward,
            "variety.enabled": self.host_variety or None,
            "data.hub": self.hub or None,
        }
        return overrides | {key: value for key, value in flags.items() if value is not None}


class RunChoice(TaskChoice):
    """Settings that all commands that start actors and write a run folder share."""

    runners: int | None = Field(None, ge=0)
    """Actors. Unset: one per CPU, at most one per episode of an iteration. 0: none, everything is played in this
    process, as one actor would."""
    hosts_per_runner: int = Field(1, ge=1)
    """Hosts that each actor trains at the same time, as one network where they agree in structure, settings and number
    of samples: far faster where hosts are small. Their numbers are those of hosts trained one by one within float
    rounding only."""
    seed: int = Field(0, ge=0)
    """Base seed; the run follows from it, the configuration and the number of actors."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device on which hosts train. auto: on GPUs if the cluster has any that torch can use."""
    out: Path | None = None
    """Run folder. Unset: a new one in runs/, named after task and time."""
    overwrite: bool = False
    """Replace a run that the folder already holds."""
    keep_hosts: int = Field(3, ge=0)
    """Best grown hosts whose weights are kept, for `esper-ray export`."""


class TrainConfig(RunChoice):
    """Settings of `esper-ray train`."""

    command: ClassVar[str] = "train"

    config: Path | None = None
    """YAML file of these settings, or the name of a shipped one: digits, fashion_mnist, pydoc, varied. Flags override
    it."""
    iterations: int = Field(16, ge=1)
    """Learner updates, each on the episodes of one iteration."""
    episodes_per_iteration: int | None = Field(None, ge=1)
    """Episodes played for each learner update, over all actors. Unset: the task's."""
    wait_only_episodes: int | None = Field(None, ge=0)
    """Episodes that never grow a seed, played first for comparison. Unset: as many as an iteration has."""
    host_pool: int | None = Field(None, ge=1)
    """Draw the host seeds from this many; what comes before a host's first real choice is then trained once per host.
    Unset: every episode has a host seed of its own."""
    skip_forced_waits: bool = False
    """Leave the epochs in which nothing but WAIT is legal out of what the learner sees."""
    evaluate_every: int = Field(0, ge=0)
    """Iterations between evaluations on held-out host seeds, sampled and at the median waiting time. 0: none."""
    evaluation_episodes: int = Field(16, ge=1)
    """Held-out host seeds of such an evaluation."""
    checkpoint_every: int = Field(10, ge=1)
    """Iterations between checkpoints that are kept. There is one after each iteration; the last two always stay."""
    host_checkpoint_every: int = Field(0, ge=0)
    """Host epochs after which an actor writes its episode down, so that one that replaces it goes on from there. 0: it
    begins the episode again."""
    episode_timeout: float | None = Field(None, gt=0)
    """Seconds without a finished host epoch after which an actor is replaced. Unset: ten times what an episode takes,
    as measured at the start, and at least a minute."""
    resume: Path | None = None
    """Run folder of a run that ended before its time: go on with it, with the settings that it has."""
    from_checkpoint: Path | None = None
    """Checkpoint folder: begin with its policy; optimizer, schedules and counters are new."""
    address: str | None = None
    """Ray cluster to join, as HOST:PORT, or auto for the one that this machine belongs to. Unset: a local one."""
    logger: tuple[Logger, ...] = ()
    """Also log to wandb or mlflow; needs the extra of that name."""
    learner: Literal["ppo", "appo"] = "ppo"
    """ppo waits for all episodes of an iteration; appo learns from those that end first: slow hosts hold nobody up."""
    policy: Literal["mlp", "lstm"] = "mlp"
    """Network of the policy. lstm remembers the decisions and measurements of the episode so far."""
    ppo: LearnerSettings = LearnerSettings()

    @model_validator(mode="after")
    def _fits_together(self) -> "TrainConfig":
        if self.learner == "appo" and self.runners == 0:
            raise ConfigurationError("learner appo learns while actors play: it needs 1 runner at least")
        if self.learner == "appo" and self.skip_forced_waits:
            raise ConfigurationError("learner appo needs episodes of equal length: leave out skip_forced_waits")
        return self


class PlanConfig(TrainConfig):
    """Settings of `esper-ray plan`."""


class HeuristicConfig(RunChoice):
    """Settings of `esper-ray heuristic`."""

    command: ClassVar[str] = "heuristic"
    iterations: ClassVar[int] = 0
    wait_only_episodes: ClassVar[int] = 0
    host_pool: ClassVar[int | None] = None
    skip_forced_waits: ClassVar[bool] = False
    learner: ClassVar[Literal["ppo", "appo"]] = "ppo"
    policy: ClassVar[Literal["mlp", "lstm"]] = "mlp"
    ppo: ClassVar[LearnerSettings] = LearnerSettings()

    episodes: int = Field(32, ge=1)
    """Episodes to play, over all actors."""


class _HeldOutRun(BaseModel):
    """Settings of `evaluate` and `compare`: episodes on held-out host seeds with the task of a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    iterations: ClassVar[int] = 0
    wait_only_episodes: ClassVar[int] = 0
    host_pool: ClassVar[int | None] = None
    skip_forced_waits: ClassVar[bool] = False
    seed: ClassVar[int] = 0
    learner: ClassVar[Literal["ppo", "appo"]] = "ppo"
    policy: ClassVar[Literal["mlp", "lstm"]] = "mlp"
    ppo: ClassVar[LearnerSettings] = LearnerSettings()

    task: str | None = None
    """Task that the checkpoint must be of. Unset: whatever it was trained on."""
    episodes: int = Field(100, ge=1)
    """Held-out host seeds: always the same ones, and none that training used."""
    runners: int | None = Field(None, ge=1)
    """Actors, one host each. Unset: one per CPU, at most one per episode."""
    hosts_per_runner: ClassVar[int] = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device on which hosts train. auto: on GPUs if the cluster has any that torch can use."""
    data_dir: Path | None = None
    """Folder of the data set, for tasks that need one."""
    plugin: tuple[str, ...] = ()
    """Modules to import besides the checkpoint's own plugins."""
    out: Path | None = None
    """Folder for the episodes; what it holds already is not played again. Unset: in the checkpoint's run folder."""


class EvaluateConfig(_HeldOutRun):
    """Settings of `esper-ray evaluate`."""

    command: ClassVar[str] = "evaluate"

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Checkpoint folder, RUN/checkpoints/iteration_N."""
    greedy: bool = False
    """Act deterministically, at the median of the policy's own waiting time, instead of sampling."""
    likeliest: bool = False
    """Take the likeliest action in each epoch, even if the policy then waits for ever."""
    timelines: int = Field(5, ge=0)
    """Episodes whose stages are shown epoch by epoch."""

    @property
    def acting(self) -> "Acting":
        """Rule by which the policy's probabilities become an action, see `Acting`."""
        return "median" if self.greedy else "likeliest" if self.likeliest else "sampled"

    @model_validator(mode="after")
    def _one_way_to_act(self) -> Self:
        if self.greedy and self.likeliest:
            raise ConfigurationError("evaluate: --greedy and --likeliest exclude each other; name one of them")
        return self


class CompareConfig(_HeldOutRun):
    """Settings of `esper-ray compare`."""

    command: ClassVar[str] = "compare"

    checkpoints: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Checkpoint folders of one setting; several, from training with other seeds, are reported each and together."""

    @field_validator("checkpoints")
    @classmethod
    def _at_least_one(cls, given: tuple[Path, ...]) -> tuple[Path, ...]:
        if not given:
            raise ConfigurationError("compare expects at least one checkpoint folder, RUN/checkpoints/iteration_N")
        return given

    controls: tuple[str, ...] = CONTROLS
    """Controls to play."""
    search_rounds: tuple[int, ...] = (8, 24, 64)
    """Search for the best fixed schedule: training hosts of each round; the best quarter goes on to the next."""

    @field_validator("controls", "search_rounds", mode="before")
    @classmethod
    def _split_at_commas(cls, given: Any) -> Any:
        return [part.strip() for part in given.split(",") if part.strip()] if isinstance(given, str) else given

    def control_names(self) -> tuple[str, ...]:
        """Returns the controls, in the order in which they are played.

        Raises:
            ConfigurationError: one is unknown.
        """
        for name in self.controls:
            if name not in CONTROLS:
                raise ConfigurationError(f"--controls: {unknown_name('control', name, CONTROLS)}")
        if not self.controls:
            raise ConfigurationError(f"--controls names none: expected some of {', '.join(CONTROLS)}")
        return tuple(name for name in CONTROLS if name in self.controls)

    def search_host_counts(self) -> tuple[int, ...]:
        """Returns how many hosts each round of the search uses.

        Raises:
            ConfigurationError: they do not rise.
        """
        counts = self.search_rounds
        if not counts or counts[0] < 1 or any(a >= b for a, b in itertools.pairwise(counts)):
            given = ", ".join(map(str, counts)) or "none"
            raise ConfigurationError(f"--search-rounds expects rising whole numbers, got {given}")
        return counts


class ExportConfig(BaseModel):
    """Settings of `esper-ray export`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder."""
    episode: int | None = Field(None, ge=1)
    """Episode to export, by its number in episodes.jsonl; grown again if its weights were not kept. Unset: the best."""
    best: bool = False
    """Export the host with the highest kept validation accuracy of those that were kept, as without --episode."""
    out: Path | None = None
    """Folder to write. Unset: exports/episode_NUMBER in the run folder."""
    data_dir: Path | None = None
    """Folder of the data set. Unset: the run's."""
    plugin: tuple[str, ...] = ()
    """Modules to import besides the run's own plugins."""


class ReplayConfig(BaseModel):
    """Settings of `esper-ray replay`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder."""
    episode: int = Field(ge=1)
    """Episode to replay, by its number in episodes.jsonl."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device on which its host trains. auto: that of the run; on another one the last digits may differ."""
    data_dir: Path | None = None
    """Folder of the data set. Unset: the run's."""
    plugin: tuple[str, ...] = ()
    """Modules to import besides the run's own plugins."""


class TuneConfig(BaseModel):
    """Settings of `esper-ray tune`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: Annotated[Path, tyro.conf.Positional]
    """YAML file that says what to search, or the name of a shipped one: host_search, optuna, ppo_asha, ppo_pbt, quick,
    reward_ab."""
    resume: bool = False
    """Go on with the search that the folder holds; trials that have finished are not played again."""
    max_concurrent: int | None = Field(None, ge=1)
    """Trials at a time. Unset: as many as fit."""
    out: Path | None = None
    """Folder of the search. Unset: runs/tune-NAME, NAME being the file's."""
    overwrite: bool = False
    """Replace a search that the folder already holds."""
    address: str | None = None
    """Ray cluster to join, as HOST:PORT or auto; its machines must all see the search's folder. Unset: a local one."""
    logger: tuple[Logger, ...] = ()
    """Also log to wandb or mlflow; needs the extra of that name."""


class ReportConfig(BaseModel):
    """Settings of `esper-ray report`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run or of a search."""
    out: Path | None = None
    """File to write. Unset: report.html in that folder."""
    open: bool = False
    """Show it in the browser."""


class WatchConfig(BaseModel):
    """Settings of `esper-ray watch`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run or of a search."""
    port: int = Field(0, ge=0, le=65535)
    """Port on 127.0.0.1. 0: a free one."""
    open: bool = False
    """Show it in the browser."""


class TasksConfig(BaseModel):
    """Settings of `esper-ray tasks`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str | None, tyro.conf.Positional] = None
    """Task to show in full."""
    plugin: tuple[str, ...] = ()
    """Modules to import first, which register tasks of your own."""
    slot: str | None = None
    """Injection point whose blueprints to show, with a task's name."""
    data_dir: Path | None = None
    """Folder in which to look for the data set, with a task's name."""
