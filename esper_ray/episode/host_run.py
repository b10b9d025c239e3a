"""One training run of a fresh host, epoch by epoch, with decisions in between."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from esper_ray.episode.actions import ActionMask, ActionTable, Decision
from esper_ray.episode.governor import Failure, Governor
from esper_ray.episode.observation import EpisodeView
from esper_ray.episode.rewards import RewardState, attributed_accuracy, followed_loss
from esper_ray.episode.signals import EpochOutcome, SignalTracker
from esper_ray.errors import IllegalActionError
from esper_ray.lifecycle import SeedStage
from esper_ray.models import list_blueprints
from esper_ray.models.hosts import host_factory
from esper_ray.seeding import Stream, derive_seed, seeded
from esper_ray.tasks import TaskData, TaskSpec, create_model
from esper_ray.training import (
    EvaluationWork,
    GradientStats,
    Steps,
    TrainingWork,
    adopt_seed,
    build_optimizer,
    decay_factor,
    run_one,
    scale_learning_rates,
)

_PROBE_ALPHA = 0.1
_STATE = (
    *("model", "epoch", "outcome", "_gradients", "_host_optimizer", "_seed_optimizer", "_tracker", "_governor"),
    *("_progress_from", "_best_kept_accuracy", "_germinations", "_followed_loss", "_best_loss"),
)
"""The changing state of a run."""


@dataclass(frozen=True)
class EpochReport:
    """Result of one call of `HostRun.train_epoch`."""

    outcome: EpochOutcome
    gradients: GradientStats | None
    alpha: float
    failure: Failure | None


@dataclass(frozen=True)
class Beginning:
    """The epochs of a host up to its first real choice, or up to its last one if there is none.

    Attributes:
        state: host, optimizer, signals and governor after the last of them, see `HostRun.state`.
    """

    reports: tuple[EpochReport, ...]
    state: bytes


class HostRun:
    """Owns a host, its slot and its optimizers for one episode.

    A function of (task, data, episode seed, decisions): every random number comes from the episode seed, and the
    global generators are left as they were.

    Args:
        task: what is trained; of hosts that differ, the one that was drawn (`draw_host`).
        data: its loaders, on `device`.
        device: where the host lives.
        episode_seed: 0 to 2**63 − 1.
        actions: the actions, where hosts differ; unset: those of this host.
        beginning: the first epochs, as another run with the same task, seed and device had them; they are taken over
            instead of trained.
    """

    def __init__(
        self,
        task: TaskSpec,
        data: TaskData,
        device: str | torch.device,
        episode_seed: int,
        actions: ActionTable | None = None,
        beginning: Beginning | None = None,
    ) -> None:
        self.task = task
        self.episode_seed = episode_seed
        self._data = data
        self._device = torch.device(device)
        self._beginning = beginning
        with seeded(derive_seed(episode_seed, Stream.HOST), device):
            self.model = create_model(task, device)
        slot = self.model.seed_slot
        listed = list_blueprints(slot.topology, slot.width, device)
        self._seed_sizes = {blueprint.blueprint_id: blueprint.parameter_count for blueprint in listed}
        self.actions = actions or ActionTable.of(self.model, device, task.decisions.blueprints)
        self.host_parameters = sum(parameter.numel() for parameter in self.model.get_host_parameters())
        self.epoch = 0
        self.outcome: EpochOutcome | None = None
        self._gradients: GradientStats | None = None
        self._structure = host_factory(task.host.kind), task.host.model_dump_json(), task.input_shape, task.classes
        self._host_optimizer = build_optimizer(self.model.get_host_parameters(), task.host_optimizer)
        self._seed_optimizer: torch.optim.Optimizer | None = None
        self._tracker = SignalTracker(task.uniform_loss, task.decisions)
        self._governor = Governor(task.governor, task.uniform_loss)
        self._governor.take_snapshot(self.model, self._host_optimizer)
        self._progress_from = 0.0
        self._best_kept_accuracy = 0.0
        self._germinations = 0
        self._followed_loss = self._best_loss = task.uniform_loss

    # --- what the controller sees --------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """True once the epoch budget is spent."""
        return self.epoch >= self.task.max_epochs

    def legal_actions(self) -> ActionMask:
        """Returns the action mask: (number of actions,) int8. A blueprint that this host cannot take is not legal."""
        mask = self.actions.legal(self.model.seed_slot, self._tracker.signals, self.epoch, self.task.decisions)
        for action, blueprint_id in enumerate(self.actions.blueprint_ids, start=1):
            mask[action] &= blueprint_id in self._seed_sizes
        return mask

    @property
    def has_choice(self) -> bool:
        """True if anything but WAIT is legal now."""
        return int(np.count_nonzero(self.legal_actions())) > 1

    def view(self) -> EpisodeView:
        """Returns the values that the observation is computed from."""
        slot = self.model.seed_slot
        return EpisodeView(
            epoch=self.epoch,
            max_epochs=self.task.max_epochs,
            uniform_loss=self.task.uniform_loss,
            outcome=self.outcome,
            signals=self._tracker.signals,
            stage=slot.stage,
            state=slot.state,
            occupied=slot.seed is not None,
            gradients=self._gradients,
            embargo_epochs=self.task.lifecycle.embargo_epochs,
            host_parameters=self.host_parameters,
            slot_width=slot.width,
            train_share=self.task.data.train_share,
            seed_sizes=self._seed_sizes,
        )

    def reward_state(self, twin_accuracy: float = 0.0) -> RewardState:
        """Returns the reward's inputs now; `twin_accuracy` is the validation accuracy of a twin that only waited."""
        slot = self.model.seed_slot
        state = slot.state
        attributed, contribution = 0.0, None
        if slot.seed is not None and state is not None and self.outcome is not None:
            progress = self.outcome.val_accuracy - self._progress_from
            contribution = state.contribution
            attributed = attributed_accuracy(progress, contribution)
        return RewardState(
            stage=slot.stage,
            epochs_in_stage=state.epochs_in_stage if state else 0,
            attributed=attributed,
            contribution=contribution,
            seed_parameters=self.model.active_seed_params,
            accuracy=self.outcome.val_accuracy if self.outcome else 0.0,
            twin_accuracy=twin_accuracy,
            loss=self._followed_loss,
            best_loss=self._best_loss,
        )

    @property
    def kept_parameters(self) -> int:
        """Number of parameters added for good: the fossilized seed's."""
        return self.model.active_seed_params if self.model.seed_slot.stage == SeedStage.FOSSILIZED else 0

    @property
    def kept_blueprint(self) -> str | None:
        """Blueprint of the fossilized seed, or None."""
        state = self.model.seed_state
        return state.blueprint_id if state is not None and state.stage == SeedStage.FOSSILIZED else None

    @property
    def kept_accuracy(self) -> float:
        """Validation accuracy, percent, of the kept network: a seed that is not FOSSILIZED is removed first."""
        if self.outcome is None:
            return 0.0
        return self.outcome.val_accuracy if self.kept_blueprint else self.outcome.accuracy_without_seed

    @property
    def kept_loss(self) -> float:
        """Validation loss, nats, of the kept network."""
        if self.outcome is None:
            return self.task.uniform_loss
        return self.outcome.val_loss if self.kept_blueprint else self.outcome.loss_without_seed

    # --- decisions -----------------------------------------------------------------------------------------------

    def decide(self, action: int) -> None:
        """Applies a decision.

        Raises:
            IllegalActionError: the mask forbids it; the message names what it allows.
        """
        mask = self.legal_actions()
        if not 0 <= action < len(mask) or not mask[action]:
            name = self.actions.names[action] if 0 <= action < len(mask) else str(action)
            allowed = ", ".join(n for n, legal in zip(self.actions.names, mask, strict=True) if legal)
            raise IllegalActionError(f"{name} is not legal after epoch {self.epoch}: expected one of {allowed}")
        match self.actions.kind(action):
            case Decision.GERMINATE:
                self._germinate(self.actions.blueprint_ids[action - 1])
            case Decision.FOSSILIZE:
                self._fossilize()
            case Decision.CULL:
                self.model.cull_seed("decision")
                self._seed_optimizer = None
            case Decision.WAIT:
                pass

    def start_grown(self, blueprint_id: str) -> None:
        """Starts with a seed that is part of the host from the first epoch on, and trained with it.

        The optimizer is the one that a seed brings along when it is fossilized. Only before the first epoch.

        Raises:
            LifecycleError, ConfigurationError: as `SeedSlot.germinate`.
        """
        assert self.epoch == 0, "a grown host is grown from the start"
        self._germinations += 1
        with seeded(derive_seed(self.episode_seed, Stream.SEED_MODULE, self._germinations), self._device):
            self.model.seed_slot.place_fossil(blueprint_id, f"seed_{self._germinations}")
        adopt_seed(self._host_optimizer, build_optimizer(self.model.get_seed_parameters(), self.task.seed_optimizer))
        self._governor.take_snapshot(self.model, self._host_optimizer)

    def _germinate(self, blueprint_id: str) -> None:
        self._germinations += 1
        with seeded(derive_seed(self.episode_seed, Stream.SEED_MODULE, self._germinations), self._device):
            state = self.model.germinate_seed(blueprint_id, f"seed_{self._germinations}")
        self._progress_from = self._best_kept_accuracy
        state.last_accuracy = state.accuracy_at_stage_start = self.outcome.val_accuracy if self.outcome else 0.0

    def _fossilize(self) -> None:
        gate = self.model.seed_slot.advance_stage(SeedStage.FOSSILIZED)
        assert gate.passed, gate.message
        assert self._seed_optimizer is not None, "a seed that is PROBATIONARY has an optimizer"
        if not self.task.lifecycle.freeze_fossilized:
            adopt_seed(self._host_optimizer, self._seed_optimizer)
        self._seed_optimizer = None
        self._governor.adopt_fossil(self.model, self._host_optimizer)

    # --- one epoch -----------------------------------------------------------------------------------------------

    def train_epoch(self) -> EpochReport:
        """Trains one epoch and makes the slot's mechanical progress."""
        return run_one(self.epoch_steps())

    def epoch_steps(self) -> Steps[EpochReport]:
        """Coroutine version of `train_epoch`; yields work items to the scheduler."""
        assert not self.is_over, "the epoch budget is spent"
        if self._beginning is not None and self.is_in_beginning:
            return self._take_over_epoch(self._beginning)
        self.epoch += 1
        self._enter_epoch()
        slot = self.model.seed_slot
        alpha = slot.alpha
        train_loss, train_accuracy, gradients = yield from self._train()
        outcome = yield from self._validate(train_loss, train_accuracy)
        failure = self._governor.judge(outcome.train_loss, outcome.val_loss)
        if failure is not None:
            self._governor.roll_back(self.model, self._host_optimizer)
            self._seed_optimizer = None
            gradients = None
            last_train = self.outcome.train_loss if self.outcome else self.task.uniform_loss
            outcome = yield from self._validate(last_train, self.outcome.train_accuracy if self.outcome else 0.0)
            self._governor.resume_after_rollback(outcome.val_loss)
        self._measure_seed(outcome, gradients)
        slot.step_epoch()
        self._tracker.update(outcome)
        if self._governor.is_snapshot_due(self.epoch):
            self._governor.take_snapshot(self.model, self._host_optimizer)
        self._finish_epoch(outcome, gradients)
        return EpochReport(outcome, gradients, alpha, failure)

    def _finish_epoch(self, outcome: EpochOutcome, gradients: GradientStats | None) -> None:
        self.outcome, self._gradients = outcome, gradients
        self._followed_loss = followed_loss(self._followed_loss, outcome.val_loss, self.task.reward)
        self._best_loss = min(self._best_loss, self._followed_loss)
        self._best_kept_accuracy = max(self._best_kept_accuracy, self.kept_accuracy)

    def _take_over_epoch(self, beginning: Beginning) -> EpochReport:
        """Takes the next epoch of the beginning as if it had been trained; after its last one, the host as well."""
        assert self.model.seed_slot.is_empty, "in a beginning there is nothing to decide"
        report = beginning.reports[self.epoch]
        self.epoch += 1
        self._tracker.update(report.outcome)
        self._finish_epoch(report.outcome, report.gradients)
        if self.epoch == len(beginning.reports):
            followed = self._followed_loss, self._best_loss  # of this run's reward, which the beginning does not know
            self.restore(beginning.state)
            self._followed_loss, self._best_loss = followed
        return report

    # --- its state -----------------------------------------------------------------------------------------------

    @property
    def is_in_beginning(self) -> bool:
        """True until every epoch of the beginning has been taken over; until then the host is untrained."""
        return self._beginning is not None and self.epoch < len(self._beginning.reports)

    def state(self) -> bytes:
        """Returns everything that changes in the course of a run: host, seed, optimizers, signals, governor."""
        assert not self.is_in_beginning, "within a beginning that is taken over there is no host yet"
        buffer = io.BytesIO()
        torch.save({name: getattr(self, name) for name in _STATE}, buffer)
        return buffer.getvalue()

    def restore(self, state: bytes) -> None:
        """Loads a state, a pickle that `state` returned, of any epoch of a run with the same task, seed and device."""
        values: dict[str, Any] = torch.load(io.BytesIO(state), map_location=self._device_of, weights_only=False)
        for name in _STATE:
            setattr(self, name, values[name])

    def _device_of(self, storage: Any, location: str) -> Any:
        """Moves a storage to the device unless it was on the CPU.

        AdamW counts its steps there, and reading them from a GPU would wait.
        """
        return storage if location == "cpu" else storage.to(device=self._device)

    def _enter_epoch(self) -> None:
        """Moves a germinated seed into TRAINING, gives a live seed its optimizer, and sets the learning rate."""
        slot = self.model.seed_slot
        if slot.stage == SeedStage.GERMINATED:
            gate = slot.advance_stage(SeedStage.TRAINING)
            if not gate.passed:
                raise RuntimeError(f"G1 gate failed: {gate.message}")
        if slot.is_active and self._seed_optimizer is None:
            self._seed_optimizer = build_optimizer(self.model.get_seed_parameters(), self.task.seed_optimizer)
        factor = decay_factor(self.epoch, self.task.max_epochs, self.task.lr_decay_epochs)
        scale_learning_rates(self._host_optimizer, factor)

    def _train(self) -> Steps[tuple[float, float, GradientStats | None]]:
        """Trains; returns mean loss, accuracy (percent) and gradient statistics."""
        work = TrainingWork(
            structure=self._structure,
            model=self.model,
            loader=self._data.train,
            order_seed=derive_seed(self.episode_seed, Stream.SHUFFLE, self.epoch),
            generator_seed=derive_seed(self.episode_seed, Stream.EPOCH, self.epoch),
            host_optimizer=self._host_optimizer,
            seed_optimizer=self._seed_optimizer,
            device=self._device,
            task_type=self.task.task_type,
        )
        running_loss, correct, total, gradients = yield work
        return running_loss / len(work.loader), 100.0 * correct / total, gradients

    def _validate(self, train_loss: float, train_accuracy: float) -> Steps[EpochOutcome]:
        """Measures the host with its seed and without it in one pass; in TRAINING, the seed at the probe's alpha."""
        slot = self.model.seed_slot
        probes = slot.stage == SeedStage.TRAINING
        found = yield EvaluationWork(
            structure=self._structure,
            model=self.model,
            loader=self._data.validation,
            device=self._device,
            task_type=self.task.task_type,
            forced_alpha=_PROBE_ALPHA if probes else None,
        )
        without = found.loss_without_seed, found.accuracy_without_seed
        if probes:
            change = found.loss - found.loss_without_seed
            return EpochOutcome(train_loss, train_accuracy, *without, *without, probe_loss_change=change)
        contribution = found.accuracy - found.accuracy_without_seed if slot.alpha > 0 else None
        return EpochOutcome(train_loss, train_accuracy, found.loss, found.accuracy, *without, contribution)

    def _measure_seed(self, outcome: EpochOutcome, gradients: GradientStats | None) -> None:
        state = self.model.seed_state
        if state is None or self.model.seed_slot.seed is None:
            return
        state.last_accuracy = outcome.val_accuracy
        state.contribution = outcome.contribution
        if state.stage == SeedStage.TRAINING and self.model.seed_slot.isolation_violated():
            state.isolation_violations += 1
        if gradients is not None:
            state.gradient_health = float(gradients["gradient_health"])
            state.record_gradient_ratio(float(gradients["seed_gradient_ratio"]))
