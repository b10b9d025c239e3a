"""The decision problem as a Gymnasium environment."""

import operator
import pickle
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import nn

from esper_ray.data import BatchLoader
from esper_ray.episode.actions import ActionTable, LegalActions
from esper_ray.episode.host_cache import HostCache
from esper_ray.episode.host_run import Beginning, EpochReport, HostRun
from esper_ray.episode.observation import ObservationTable
from esper_ray.episode.record import EpisodeRecord, EpochRecord
from esper_ray.episode.rewards import RewardInput, RewardState, reward_components
from esper_ray.errors import ConfigurationError, IllegalActionError, unknown_name
from esper_ray.seeding import seeded
from esper_ray.tasks import (
    TaskData,
    TaskSpec,
    create_model,
    draw_host,
    drawn_settings,
    get_task_spec,
    load_task_data,
    load_test_data,
    prepare_data,
    with_tokenizer,
)
from esper_ray.training import Steps, evaluate, run_one

Observation = dict[str, NDArray[Any]]
StepResult = tuple[Observation, float, bool, bool, dict[str, Any]]
_TIMED_HOSTS = 8
_STATE = ("_epochs", "_forced_beginning", "_taken_over", "_twin_epochs", "_carried")
"""The changing state of an episode, besides that of the host run."""


class MorphogenesisEnv(gym.Env[Observation, np.int64]):
    """One episode is one training run of a fresh host; one step is a decision and then one epoch.

    With `skip_forced_waits` a step trains on through the epochs in which nothing but WAIT is legal, up to the next real
    choice or the end; a reset stops before the last epoch at the latest. The rewards of a step add up, those of the
    epochs before the first choice in the first step. With a discount γ below 1 the reward of epoch t (from 0) then
    counts γ**t, so that the plain sum of an episode's rewards is its discounted return: learn from it with γ = 1.

    The last epoch of the budget terminates the episode, because the budget is part of the observation.

    Observation: {"observations": (F,) float32, see `observation_table`; "action_mask": (A,) int8, 1 where legal}.
    Action: Discrete(A), see `action_table`. `info` of every step names the epoch, the stage and the validation
    accuracy (percent); the last one holds the finished `EpisodeRecord` under "record".

    Args:
        task: what is trained, or the name of a registered task.
        device: where the host lives.
        data_dir: folder of the data set, where the source needs one.
        truncate: end the episode by truncation instead, so that a learner bootstraps from the last value.
        skip_forced_waits: leave out of the trajectory what offers no choice; may be changed before a reset.
        share_beginnings: train the epochs before a host's first real choice once per host seed and machine, and take
            them over from then on. Every number stays the same; it pays where host seeds come again.
        data: the task's data on the device, of which nothing is copied; unset: it is loaded.

    Raises:
        DatasetError: the data set is missing.
        ConfigurationError: task or device is unknown, torch finds no such device, or no seed could reach PROBATIONARY
            in an episode of this length.
    """

    def __init__(
        self,
        task: TaskSpec | str,
        device: str | torch.device = "cpu",
        data_dir: Path | None = None,
        truncate: bool = False,
        skip_forced_waits: bool = False,
        share_beginnings: bool = False,
        data: TaskData | None = None,
    ) -> None:
        task = with_tokenizer(get_task_spec(task) if isinstance(task, str) else task, data_dir)
        task.require_reachable_probation()
        device = _usable(device)
        self.task = task
        self.skip_forced_waits = skip_forced_waits
        self._device = device
        self._data_dir = data_dir
        self._truncate = truncate
        self._data = load_task_data(task, device, data_dir) if data is None else data.of_another_host()
        self._test: BatchLoader | None = None
        folder = prepare_data(task, data_dir).folder
        self._beginnings = HostCache("beginnings", task, folder, self._device) if share_beginnings else None
        self._twins = HostCache("twins", task, folder, self._device) if task.reward.mode == "paired" else None
        self._twin_accuracies: Sequence[float] = ()
        with seeded(0):
            self.action_table = ActionTable.of(create_model(task), device, task.decisions.blueprints)
        self.observation_table = ObservationTable(self.action_table.blueprint_ids, task.variety.enabled)
        mask = np.zeros(len(self.action_table), dtype=np.int8)
        self._legal = LegalActions(mask)
        self.action_space = self._legal
        self.observation_space = spaces.Dict(
            {"observations": self.observation_table.space, "action_mask": spaces.MultiBinary(len(mask))}
        )
        self._run: HostRun | None = None
        self._epochs: list[EpochRecord] = []
        self._forced_beginning = self._taken_over = self._twin_epochs = 0
        self._carried = 0.0
        self._started = 0.0

    @property
    def run(self) -> HostRun:
        """The host run in progress.

        Raises:
            ResetNeeded: there was no reset yet.
        """
        if self._run is None:
            raise gym.error.ResetNeeded("there is no episode yet: call reset()")
        return self._run

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts a fresh host.

        Args:
            seed: the episode seed, 0 to 2**63 − 1; unset: drawn from the environment's own generator.
            options: {"grown": blueprint id} starts with that seed as a part of the host from the first epoch on.

        Raises:
            ConfigurationError: an option or the blueprint is unknown.
        """
        return run_one(self.reset_steps(seed=seed, options=options))

    def reset_steps(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> Steps[tuple[Observation, dict[str, Any]]]:
        """Coroutine version of `reset`; yields work items to the scheduler."""
        super().reset(seed=seed)
        episode_seed = int(self.np_random.integers(2**63)) if seed is None else seed
        self._started = time.perf_counter()
        for name in set(options or {}) - {"grown"}:
            raise ConfigurationError(unknown_name("option of reset", name, ["grown"]))
        grown = (options or {}).get("grown")
        beginning, self._taken_over, self._twin_epochs = None, 0, 0
        if self._beginnings is not None and grown is None:
            beginning, known = self._beginnings.get(episode_seed, lambda: self._train_beginning(episode_seed))
            self._taken_over = len(beginning.reports) if known else 0
        if self._twins is not None:
            self._twin_accuracies, known = self._twins.get(
                episode_seed, lambda: self._train_twin(episode_seed, beginning)
            )
            self._twin_epochs = 0 if known else self.task.max_epochs - (len(beginning.reports) if beginning else 0)
        self._run = self._new_run(episode_seed, beginning)
        if grown is not None:
            self._run.start_grown(grown)
        self._epochs = []
        self._forced_beginning = 0
        self._carried = 0.0
        while self.skip_forced_waits and not self._run.has_choice and self._run.epoch < self.task.max_epochs - 1:
            self._carried += yield from self._advance(ActionTable.WAIT)
        return self._observe(), {"episode_seed": episode_seed}

    @property
    def epochs(self) -> tuple[EpochRecord, ...]:
        """Measurements of each epoch of the episode so far."""
        return tuple(self._epochs)

    @property
    def data(self) -> TaskData:
        """The task's data on the device."""
        return self._data

    @property
    def device(self) -> torch.device:
        """Device of the host."""
        return self._device

    def timed_run(self) -> HostRun:
        """Returns a run by which an epoch can be timed; where hosts differ, of a large one."""
        seeds = range(_TIMED_HOSTS if self.task.variety.enabled else 1)
        return max((self._new_run(seed) for seed in seeds), key=lambda run: run.host_parameters)

    def _new_run(self, episode_seed: int, beginning: Beginning | None = None) -> HostRun:
        task = draw_host(self.task, episode_seed)
        data = self._data.of_host(task, episode_seed)
        return HostRun(task, data, self._device, episode_seed, self.action_table, beginning)

    def _train_beginning(self, episode_seed: int) -> Beginning:
        """Trains a host up to its first real choice."""
        run, reports = self._new_run(episode_seed), []
        while not run.is_over and not run.has_choice:
            reports.append(run.train_epoch())
            self._on_epoch()
        return Beginning(tuple(reports), run.state())

    def _train_twin(self, episode_seed: int, beginning: Beginning | None) -> tuple[float, ...]:
        """Trains a host that only waits; returns its validation accuracy after each epoch, percent."""
        run = self._new_run(episode_seed, beginning)
        accuracies = []
        while not run.is_over:
            accuracies.append(run.train_epoch().outcome.val_accuracy)
            self._on_epoch()
        return tuple(accuracies)

    def step(self, action: np.int64 | int) -> StepResult:
        """Applies the decision, then trains one epoch, or with `skip_forced_waits` all up to the next choice.

        Raises:
            IllegalActionError: the mask forbids the action, or it is no integer.
            ResetNeeded: the episode is over, or there was no reset yet.
        """
        return run_one(self.step_steps(action))

    def step_steps(self, action: np.int64 | int) -> Steps[StepResult]:
        """Coroutine version of `step`; yields work items to the scheduler."""
        run = self.run
        if run.is_over:
            raise gym.error.ResetNeeded("the episode is over: call reset()")
        reward = (yield from self._advance(self._as_index(action))) + self._carried
        self._carried = 0.0
        while self.skip_forced_waits and not run.is_over and not run.has_choice:
            reward += yield from self._advance(ActionTable.WAIT)
        info: dict[str, Any] = {
            "epoch": run.epoch,
            "stage": run.model.seed_slot.stage.name,
            "val_accuracy": self._epochs[-1].val_accuracy,
        }
        if run.is_over:
            info["record"] = self._episode_record()
        return self._observe(), reward, run.is_over and not self._truncate, run.is_over and self._truncate, info

    def _as_index(self, action: object) -> int:
        try:
            return operator.index(action)  # type: ignore[arg-type]
        except TypeError:
            last = len(self.action_table) - 1
            raise IllegalActionError(f"an action is an integer from 0 to {last}, got {action!r}") from None

    def _advance(self, action: int) -> Steps[float]:
        """Applies a decision, trains one epoch, records it and returns its contribution to the step's reward."""
        run, discounted_epochs = self.run, self.run.epoch if self.skip_forced_waits else 0
        if self._forced_beginning == run.epoch and not run.has_choice:
            self._forced_beginning += 1
        before = run.reward_state(self._twin_accuracy())
        run.decide(action)
        stage = run.model.seed_slot.stage.name
        report = yield from run.epoch_steps()
        self._on_epoch()
        components = reward_components(self._reward_input(before, action, report), self.task.reward)
        reward = sum(components.values())
        self._epochs.append(self._epoch_record(action, stage, report, reward, components))
        return reward * self.task.reward.discount**discounted_epochs

    def _on_epoch(self) -> None:
        """Hook that is called after every epoch, of the host or of its twin."""

    def state(self) -> bytes | None:
        """Returns the episode in progress; None in a beginning that is taken over, where there is no host yet."""
        if self.run.is_in_beginning:
            return None
        values = {name: getattr(self, name) for name in _STATE}
        return pickle.dumps((self.run.state(), values))

    def restore(self, state: bytes) -> None:
        """Goes on with an episode, after a reset with its seed and options. `state` is a pickle: only one's own."""
        run_state, values = pickle.loads(state)
        self.run.restore(run_state)
        for name, value in values.items():
            setattr(self, name, value)

    def measure_test(self) -> float:
        """Returns the test accuracy of the finished episode's kept network, percent. For a final report only.

        Raises:
            DatasetError: the data set is missing.
        """
        run = self.run
        assert run.is_over, "the test split is for finished episodes"
        if self._test is None:
            self._test = load_test_data(self.task, self._device, self._data_dir)
        found = evaluate(run.model, self._test, nn.CrossEntropyLoss(), self._device, self.task.task_type)
        return found.accuracy if run.kept_blueprint else found.accuracy_without_seed

    def _twin_accuracy(self) -> float:
        """Returns the twin's validation accuracy after as many epochs as the host has had, percent; else 0."""
        return self._twin_accuracies[self.run.epoch - 1] if self._twin_accuracies and self.run.epoch else 0.0

    def _observe(self) -> Observation:
        mask = self.run.legal_actions()
        self._legal.mask = mask.copy()
        return {"observations": self.observation_table.observe(self.run.view()), "action_mask": mask}

    def _reward_input(self, before: RewardState, action: int, report: EpochReport) -> RewardInput:
        run = self.run
        return RewardInput(
            before=before,
            decision=run.actions.kind(action),
            after=run.reward_state(self._twin_accuracy()),
            rolled_back=report.failure is not None,
            is_final=run.is_over,
            kept_accuracy=run.kept_accuracy,
            kept_loss=run.kept_loss,
            uniform_loss=self.task.uniform_loss,
            added_parameters=run.kept_parameters,
            host_parameters=run.host_parameters,
        )

    def _epoch_record(
        self, action: int, stage: str, report: EpochReport, reward: float, components: dict[str, float]
    ) -> EpochRecord:
        outcome, gradients = report.outcome, report.gradients or {}
        return EpochRecord(
            epoch=self.run.epoch,
            decision=self.action_table.names[action],
            stage=stage,
            stage_at_end=self.run.model.seed_slot.stage.name,
            alpha=report.alpha,
            train_loss=outcome.train_loss,
            train_accuracy=outcome.train_accuracy,
            val_loss=outcome.val_loss,
            val_accuracy=outcome.val_accuracy,
            contribution=outcome.contribution,
            probe_loss_change=outcome.probe_loss_change,
            gradient_norm=gradients.get("gradient_norm"),
            gradient_health=gradients.get("gradient_health"),
            host_gradient_norm=gradients.get("host_gradient_norm"),
            seed_gradient_ratio=gradients.get("seed_gradient_ratio"),
            rolled_back=report.failure.value if report.failure else None,
            reward=reward,
            reward_components=components,
        )

    def _episode_record(self) -> EpisodeRecord:
        run = self.run
        assert run.outcome is not None
        return EpisodeRecord(
            task=self.task.name,
            episode_seed=run.episode_seed,
            final_val_accuracy=run.outcome.val_accuracy,
            final_val_loss=run.outcome.val_loss,
            kept_val_accuracy=run.kept_accuracy,
            kept_val_loss=run.kept_loss,
            kept_blueprint=run.kept_blueprint,
            final_stage=run.model.seed_slot.stage.name,
            host_parameters=run.host_parameters,
            added_parameters=run.kept_parameters,
            seconds=time.perf_counter() - self._started,
            forced_beginning=self._forced_beginning,
            taken_over=self._taken_over,
            twin_epochs=self._twin_epochs,
            rent=self.task.reward.rent,
            host=drawn_settings(run.task) if self.task.variety.enabled else {},
            epochs=self._epochs,
        )


def _usable(device: str | torch.device) -> torch.device:
    """Returns the device, if torch knows it and finds it here."""
    try:
        found: torch.device | None = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise ConfigurationError(f"unknown device '{device}': expected cpu or cuda")
    gpus = torch.cuda.device_count()
    if found.type == "cuda" and (found.index or 0) >= gpus:
        raise ConfigurationError(f"device '{device}': torch finds {gpus or 'no'} GPU{'s' * (gpus > 1)} here; use cpu")
    return found
