"""The decision problem as a Gymnasium environment."""

import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from esper_ray.episode.actions import ActionTable, LegalActions
from esper_ray.episode.host_run import EpochReport, HostRun
from esper_ray.episode.observation import ObservationTable
from esper_ray.episode.record import EpisodeRecord, EpochRecord
from esper_ray.episode.rewards import REWARD_MODES, RewardInput, SlotMoment
from esper_ray.seeding import seeded
from esper_ray.tasks import TaskSpec, create_model, load_task_data, with_tokenizer

Observation = dict[str, NDArray[Any]]


class MorphogenesisEnv(gym.Env[Observation, np.int64]):
    """One episode is one training run of a fresh host; one step is a decision and then one epoch.

    The last epoch of the budget terminates the episode, because the budget is part of the observation.

    Observation: {"observations": (F,) float32, see `observation_table`; "action_mask": (A,) int8, 1 where legal}.
    Action: Discrete(A), see `action_table`. `info` of every step names the epoch, the stage and the validation
    accuracy (percent); the last one holds the finished `EpisodeRecord` under "episode".

    Args:
        task: what is trained.
        device: where the host lives.
        data_dir: folder of the data set, where the source needs one.
        truncate: end the episode by truncation instead, so that a learner bootstraps from the last value.

    Raises:
        DatasetError: the data set is missing.
        ConfigurationError: no seed could reach PROBATIONARY in an episode of this length.
    """

    def __init__(
        self,
        task: TaskSpec,
        device: str | torch.device = "cpu",
        data_dir: Path | None = None,
        truncate: bool = False,
    ) -> None:
        task = with_tokenizer(task, data_dir)
        task.require_reachable_probation()
        self.task = task
        self._device = device
        self._truncate = truncate
        self._data = load_task_data(task, device, data_dir)
        with seeded(0):
            self.action_table = ActionTable.of(create_model(task), device)
        self.observation_table = ObservationTable(self.action_table.blueprint_ids)
        mask = np.zeros(len(self.action_table), dtype=np.int8)
        self._legal = LegalActions(mask)
        self.action_space = self._legal
        self.observation_space = spaces.Dict(
            {"observations": self.observation_table.space, "action_mask": spaces.MultiBinary(len(mask))}
        )
        self._reward = REWARD_MODES[task.reward.mode]
        self._run: HostRun | None = None
        self._epochs: list[EpochRecord] = []
        self._started = 0.0

    @property
    def run(self) -> HostRun:
        """The host run in progress."""
        assert self._run is not None, "call reset() first"
        return self._run

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts a fresh host.

        Args:
            seed: the episode seed, 0 to 2**63 − 1; unset: drawn from the environment's own generator.
            options: not used.
        """
        super().reset(seed=seed)
        episode_seed = int(self.np_random.integers(2**63)) if seed is None else seed
        self._run = HostRun(self.task, self._data, self._device, episode_seed)
        self._epochs = []
        self._started = time.perf_counter()
        return self._observe(), {"episode_seed": episode_seed}

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Lets the decision take effect, then trains one epoch.

        Raises:
            IllegalActionError: the mask forbids the action.
        """
        run = self.run
        before, loss_before = run.slot_moment(), run.val_loss
        run.decide(int(action))
        stage = run.model.seed_slot.stage.name
        report = run.train_epoch()
        components = self._reward(self._reward_input(before, loss_before, int(action), report), self.task.reward)
        reward = sum(components.values())
        self._epochs.append(self._epoch_record(int(action), stage, report, reward, components))
        info: dict[str, Any] = {
            "epoch": run.epoch,
            "stage": run.model.seed_slot.stage.name,
            "val_accuracy": report.outcome.val_accuracy,
        }
        if run.is_over:
            info["episode"] = self._episode_record()
        return self._observe(), reward, run.is_over and not self._truncate, run.is_over and self._truncate, info

    def _observe(self) -> Observation:
        mask = self.run.legal_actions()
        self._legal.mask = mask
        return {"observations": self.observation_table.observe(self.run.view()), "action_mask": mask}

    def _reward_input(self, before: SlotMoment, loss_before: float, action: int, report: EpochReport) -> RewardInput:
        run = self.run
        return RewardInput(
            before=before,
            decision=run.actions.kind(action),
            after=run.slot_moment(),
            rolled_back=report.failure is not None,
            is_final=run.is_over,
            kept_accuracy=run.kept_accuracy,
            loss_before=loss_before,
            loss_after=run.val_loss,
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
            epochs=self._epochs,
        )
