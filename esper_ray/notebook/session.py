"""A session: owns Ray for a notebook, and runs whatever the command line runs."""

import atexit
import tempfile
import time
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import yaml
from pydantic import BaseModel
from typing_extensions import Self

from esper_ray.errors import ConfigurationError
from esper_ray.notebook import frames
from esper_ray.notebook.display import make_session_display
from esper_ray.orchestration.config import CompareConfig, HeuristicConfig, TrainConfig, TuneConfig
from esper_ray.orchestration.config_files import load_config, parse_config, read_yaml, require_known_keys
from esper_ray.orchestration.fleet.cluster import local_ray
from esper_ray.orchestration.fleet.interrupts import deferred_interrupts, interrupts_raise
from esper_ray.orchestration.held_out.compare import compare
from esper_ray.orchestration.held_out.comparison import Comparison
from esper_ray.orchestration.run.heuristic import play_heuristic
from esper_ray.orchestration.run.run_result import RunResult
from esper_ray.orchestration.run.train import started_training
from esper_ray.orchestration.tuning.search import SearchResult, run_search
from esper_ray.plugins import load_plugins
from esper_ray.report import write_report

_Model = TypeVar("_Model", bound=BaseModel)

_NOT_IN_A_SESSION = {"resume", "address", "logger"}


class Session:
    """Starts Ray, and ends it with everything that runs on it. Use it as a context manager, or `open` and `close` it.

    What runs in a session shows one output that updates itself. Ctrl-C or the notebook's stop button ends what runs,
    never the session.

    Args:
        num_cpus: CPUs that Ray may use; None: all of the machine.
        num_gpus: GPUs that Ray may use; None: all of the machine.
        plugins: modules that register hosts, blueprints, data or tasks of your own.
        folder: where runs and searches are written that are not told otherwise.

    Example:
        >>> from esper_ray import Session
        >>> with Session() as session:  # doctest: +SKIP
        ...     training = session.train(task="digits", iterations=8).run()
        ...     training.iterations["kept_val_accuracy"].plot()
    """

    def __init__(
        self,
        num_cpus: int | None = None,
        num_gpus: int | None = None,
        plugins: tuple[str, ...] = (),
        folder: Path | str = "runs",
    ) -> None:
        self._ray = {"num_cpus": num_cpus, "num_gpus": num_gpus}
        self._plugins = tuple(plugins)
        self.folder = Path(folder)
        self._stack = ExitStack()
        self._is_open = False

    def open(self) -> Self:
        """Starts Ray, or uses the one that this process is connected to."""
        if not self._is_open:
            load_plugins(self._plugins)
            warnings.filterwarnings("ignore", module="ray")
            self._stack.enter_context(local_ray(plugins=self._plugins, **self._ray))
            self._is_open = True
            atexit.register(self.close)
        return self

    def close(self) -> None:
        """Ends every training, with a checkpoint, and Ray."""
        atexit.unregister(self.close)
        self._is_open = False
        self._stack.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    def train(self, **settings: Any) -> "Training":
        """Starts the actors of a training run; `Training.run` trains.

        Args:
            settings: of `esper-ray train`, with underscores; `ppo` is a dict, `set` a list of "KEY=VALUE", `config` a
                file whose settings the others override.

        Raises:
            EsperError: a setting is unknown or not valid, or as `esper-ray train` says; nothing is written.
        """
        for name in _NOT_IN_A_SESSION & settings.keys():
            raise ConfigurationError(f"train: {name} is for the command line: esper-ray train --{name}")
        if "config" in settings:
            file = Path(settings["config"])
            base = load_config(file).model_dump(exclude_unset=True)
            ppo = {**base.get("ppo", {}), **settings.get("ppo", {})}
            settings = {**base, **settings, "config": file, "ppo": ppo}
        training = Training(_checked("train", _without_out(self._given(settings), "train", self.folder), TrainConfig))
        self._stack.callback(training.close)
        return training

    def heuristic(self, **settings: Any) -> pd.DataFrame:
        """Plays episodes with the heuristic policy and returns a row per episode; settings of `esper-ray heuristic`."""
        config = _checked("heuristic", _without_out(self._given(settings), "heuristic", self.folder), HeuristicConfig)
        with make_session_display() as display:
            result = play_heuristic(config, display)
        return frames.episodes_frame(result.plan.out)

    def compare(self, *checkpoints: Path | str, **settings: Any) -> "ComparedPolicies":
        """Holds checkpoints against simple controls on held-out hosts; settings of `esper-ray compare`.

        Interrupted, the same call goes on where it was.
        """
        given = {**self._given(settings), "checkpoints": tuple(Path(path) for path in checkpoints)}
        self._require_open()
        with make_session_display() as display:
            return ComparedPolicies(compare(_checked("compare", given, CompareConfig), display))

    def tune(self, search: Path | str | Mapping[str, Any], **flags: Any) -> "Search":
        """Searches settings and ranks them. Interrupted, the same call with `resume=True` goes on.

        Args:
            search: a file of tune_configs/, or what it would hold.
            flags: of `esper-ray tune`, with underscores; `name` names the search, which is written to `tune-NAME`.
        """
        self._require_open()
        content = dict(search) if isinstance(search, Mapping) else read_yaml(str(search), Path(search))
        name = str(flags.pop("name", "search" if isinstance(search, Mapping) else Path(search).stem))
        if self._plugins:
            train = content.get("train") or {}
            content["train"] = {**train, "plugin": [*self._plugins, *train.get("plugin", ())]}
        out = Path(flags.pop("out", self.folder / f"tune-{name}"))
        with tempfile.TemporaryDirectory(prefix="esper-") as scratch, make_session_display() as display:
            file = Path(scratch) / f"{name}.yaml"
            file.write_text(yaml.safe_dump(content))
            return Search(run_search(_checked("tune", {**flags, "out": out, "file": file}, TuneConfig), display))

    def _given(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        self._require_open()
        return {"plugin": self._plugins, **settings}

    def _require_open(self) -> None:
        if not self._is_open:
            raise ConfigurationError("the session is closed: use it as `with Session() as session`, or open() it")


class Training:
    """A training run whose actors stay up between calls of `run`, so that one can look, and go on.

    Attributes:
        folder: its run folder.
        interrupted: the last call of `run` was.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._stack = ExitStack()
        self._display = make_session_display()
        self._seconds = 0.0
        self._result: RunResult | None = None
        self.interrupted = False
        with self._display, self._stack:
            self._run, self._board = self._stack.enter_context(started_training(config, self._display))
            self._stack = self._stack.pop_all()  # from here on `close` ends them
        self._plan = self._run.result.plan
        self.folder = self._plan.out

    def run(self, iterations: int | None = None) -> Self:
        """Trains for so many iterations, or to the end, and returns itself. Interrupted, it returns early.

        An interrupted iteration is played again by the next call, so a run that was stopped and went on comes to the
        same as one that was not. After its last iteration the training is closed.

        Raises:
            ConfigurationError: the training was closed, or `iterations` is below 1.
            EpisodeFailedError: an episode raised, or its actor was lost too often.
        """
        if iterations is not None and iterations < 1:
            raise ConfigurationError(f"run: iterations expects at least 1, got {iterations}")
        if self.is_over:
            return self
        if self._result is not None:
            raise ConfigurationError(f"the training is closed; what there is of it is in {self.folder}")
        started, last = time.monotonic(), self._run.iteration + (iterations or self._plan.iterations)
        self.interrupted = False
        with self._display:
            self._display.on_start(self._plan, self._board)
            try:
                with interrupts_raise():
                    self._run.play_wait_only()
                    waited = self._run.result.tally.wait_only
                    self._display.wait_only = sum(waited) / len(waited) if waited else None
                    while not self._run.is_over and self._run.iteration < last:
                        self._run.iterate()
            except KeyboardInterrupt:
                self.interrupted = True
        self._seconds += time.monotonic() - started
        if self.is_over:
            self.close()
        return self

    @property
    def is_over(self) -> bool:
        """True once the last iteration is over."""
        return self._run.is_over

    @property
    def checkpoint(self) -> Path:
        """A checkpoint of the present policy, for `Session.compare` and `esper-ray evaluate`."""
        if self._result is not None:
            assert self._result.checkpoint is not None
            return self._result.checkpoint
        return self._run.save()

    @property
    def iterations(self) -> pd.DataFrame:
        """A row per iteration: means over its episodes, learner health."""
        return frames.iterations_frame(self.folder)

    @property
    def episodes(self) -> pd.DataFrame:
        """A row per episode: outcome, decisions, reward components."""
        return frames.episodes_frame(self.folder)

    def epochs(self, episode: int) -> pd.DataFrame:
        """Returns a row per epoch of an episode: decision, stage, accuracies, alpha, gradients, reward."""
        return frames.epochs_frame(self.folder, episode)

    def report(self) -> Path:
        """Writes the run's page and returns it."""
        return write_report(self.folder)

    def close(self) -> RunResult:
        """Ends the actors, writes checkpoint and summary, and returns the result of the run. May be called again.

        An interrupt waits until they are written.
        """
        if self._result is None:
            with deferred_interrupts():
                self._run.result.interrupted = not self._run.is_over
                self._board.close()
                with self._stack:
                    self._result = self._run.finish(self._seconds)
        return self._result


class ComparedPolicies:
    """Result of a comparison."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison

    @property
    def policies(self) -> pd.DataFrame:
        """A row per policy: means over the held-out hosts."""
        return frames.policies_frame(self.comparison)

    @property
    def differences(self) -> pd.DataFrame:
        """Learned − control in points, with 95 % bootstrap intervals."""
        return frames.differences_frame(self.comparison)

    @property
    def verdict(self) -> str:
        """Verdict on the scores of record as a sentence; of the sampled policy."""
        return self.comparison.verdict(list(self.comparison.manifests))


class Search:
    """Result of a search."""

    def __init__(self, result: SearchResult) -> None:
        self.result = result

    @property
    def folder(self) -> Path:
        """The search's folder."""
        return self.result.plan.folder

    @property
    def ranking(self) -> pd.DataFrame:
        """A row per setting, best first: mean and standard deviation over the training seeds."""
        return frames.ranking_frame(self.result.ranking)

    @property
    def trials(self) -> pd.DataFrame:
        """A row per trial."""
        return frames.trials_frame(self.result.trials)

    @property
    def best(self) -> Path | None:
        """File of the best setting, for `esper-ray train --config`; None if nothing was measured."""
        return self.result.best

    def report(self) -> Path:
        """Writes the search's page and returns it."""
        return write_report(self.folder)


def _without_out(settings: Mapping[str, Any], command: str, folder: Path) -> dict[str, Any]:
    """Returns the settings with a new run folder, unless they name one."""
    name = f"{settings.get('task', 'digits')}-{command}-{datetime.now():%Y%m%d-%H%M%S-%f}"
    return {"out": folder / name, **settings}


def _checked(command: str, settings: dict[str, Any], model: type[_Model]) -> _Model:
    require_known_keys(command, settings, model)
    return parse_config(command, settings, model)
