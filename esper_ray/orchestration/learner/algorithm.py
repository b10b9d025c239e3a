"""The base of the learners: samples exactly the requested episodes, none dropped or counted twice."""

import tempfile
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import ray
import torch
from ray.actor import ActorHandle
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    LEARNER_UPDATE_TIMER,
    TIMERS,
)

from esper_ray.episode import Policy
from esper_ray.errors import EpisodeFailedError, PlacementError
from esper_ray.orchestration.fleet.dispatch import CAUSES, Dispatcher, PendingTickets
from esper_ray.orchestration.fleet.env_runner import EpisodeRunner, PlayedEpisode, Weights
from esper_ray.orchestration.fleet.interrupts import allowed_interrupts
from esper_ray.orchestration.fleet.progress import find_board
from esper_ray.orchestration.fleet.rllib_seeding import without_deterministic_mode
from esper_ray.orchestration.fleet.tickets import FinishedEpisode, Ticket
from esper_ray.orchestration.learner.health import UpdateWatch
from esper_ray.orchestration.learner.learner_state import (
    LearnerState,
    read_learner_state,
    require_fitting_optimizer,
    write_learner_state,
)
from esper_ray.orchestration.learner.policy_network import network_spec
from esper_ray.policies.network import (
    NetworkSpec,
    PolicyNetwork,
    load_weights,
    read_policy,
    write_policy,
)
from esper_ray.seeding import Stream, derive_seed, seeded_globally

_TARGET_PREFIX = "_old_"
"""Begins the names of those parts of APPO's network that only its learner needs."""


class EpisodeAlgorithm(Algorithm):
    """An RLlib algorithm with a sampling step of its own.

    An actor plays a few tickets at a time, with the weights that come with them; its driver waits for as long as that
    takes. An actor that is lost is replaced, and its ticket is played again with the same weights. With no actors the
    tickets of one are played in this process.

    Attributes:
        episodes: of the last iteration.
        learner_figures: of the last update, see `UpdateWatch.report`.
        keep_from: kept validation accuracy, percent, from which on an episode's weights come with it; at first no
            episode's do.
        dispatcher: hands out the tickets; None without actors.
    """

    def _setup_logdir(self) -> None:
        """Makes no folder in the user's home, as RLlib would for files that nobody writes."""
        if self._storage:
            super()._setup_logdir()
        else:
            self._logdir = tempfile.gettempdir()

    def setup(self, config: AlgorithmConfig) -> None:
        """Builds actors and learner."""
        without_deterministic_mode()
        super().setup(config)
        self.episodes: list[FinishedEpisode] = []
        self.learner_figures: dict[str, float | None] = {}
        self.keep_from = inf
        self._weights_version = 0
        actors = self.env_runner_group._worker_manager.actors()
        board = find_board(config.env_config["board"])
        self.dispatcher = Dispatcher(actors, self.hosts_per_runner, board=board) if actors else None
        self._publish_weights()

    def cleanup(self) -> None:
        """Ends actors and learner at once. RLlib would ask each actor first, and wait for one that hangs."""
        if self.env_runner_group is not None:
            self.env_runner_group._worker_manager.clear()
        super().cleanup()

    # --- what it is made of --------------------------------------------------------------------------------------

    @property
    def policy_network(self) -> RLModule:
        """The policy network, as the learner has it."""
        return self.learner_group._learner.module[DEFAULT_MODULE_ID].unwrapped()

    @property
    def episodes_per_iteration(self) -> int:
        """Episodes per learner update."""
        return int(self.config.train_batch_size_per_learner // self.config.env_config["task"]["max_epochs"])

    @property
    def runners(self) -> int:
        """Number of actors, or 1 if this process plays their part."""
        return max(1, int(self.config.num_env_runners))

    @property
    def hosts_per_runner(self) -> int:
        """Episodes that an actor plays at the same time, at most."""
        return int(self.config.num_envs_per_env_runner)

    @property
    def losses(self) -> dict[str, int]:
        """Actors that were lost and replaced so far, by cause."""
        return dict.fromkeys(CAUSES, 0) | (self.dispatcher.losses if self.dispatcher is not None else {})

    def ask_all(self, method: str, timeout_seconds: float | None = None) -> list[Any]:
        """Calls a method of every actor, or of this process's EnvRunner, at the same time; returns the answers.

        Raises:
            RayError: an actor died, its method raised, or one takes longer than the timeout.
        """
        if self.dispatcher is None:
            return [getattr(self.env_runner, method)()]
        actors = self.env_runner_group._worker_manager.actors().values()
        return list(ray.get([getattr(actor, method).remote() for actor in actors], timeout=timeout_seconds))

    def action_names(self) -> tuple[str, ...]:
        """Returns the names of the actions, as the actors on their devices have them.

        Raises:
            PlacementError: they differ, because not every machine can train every blueprint.
        """
        found: list[tuple[str, ...]] = self.ask_all("action_names")
        for names in found:
            if names != found[0]:
                odd = ", ".join(sorted(set(names) ^ set(found[0])))
                raise PlacementError(
                    f"the actors' machines differ in the actions that they can take: {odd}; use equal ones"
                )
        return found[0]

    # --- playing -------------------------------------------------------------------------------------------------

    def training_step(self) -> None:
        """Collects the iteration's episodes from the actors and updates the policy."""
        with self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)):
            played = self._collect()
            metrics = [episode.metrics for episode in played if episode.metrics is not None]
            self.metrics.aggregate(metrics, key=ENV_RUNNER_RESULTS)
        self.episodes = [_finished(episode) for episode in played]
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            self._update([episode.rollout for episode in played if episode.rollout is not None])
        self._publish_weights()

    @abstractmethod
    def _collect(self) -> list[PlayedEpisode]:
        """Returns the episodes of this iteration."""

    @abstractmethod
    def training_seeds(self, iterations: int) -> set[int]:
        """Returns every host seed that the first `iterations` iterations can have."""

    def play_scripted(
        self,
        tickets: Sequence[Ticket],
        policy: Policy,
        on_episode: Callable[[FinishedEpisode], None] | None = None,
        measure_test: bool = False,
    ) -> list[FinishedEpisode]:
        """Plays the tickets with a policy that does not learn, on the same actors; sorted by ticket.

        With `on_episode`, which sees each as it ends, they come back without their weights. `measure_test` is for final
        reports: it measures the test accuracy of what is kept.
        """
        policy_ref = policy if self.dispatcher is None else ray.put(policy)

        def start(actor: ActorHandle, tickets: Sequence[Ticket]) -> Any:
            return call(actor, "play_scripted", tickets, policy_ref, self.keep_from, measure_test)

        found = []
        for episode in self._play(tickets, start):
            finished = _finished(episode)
            if on_episode is not None:
                on_episode(finished)
                finished = replace(finished, weights=None)  # whoever watches has taken them
            found.append(finished)
        return sorted(found, key=lambda episode: episode.ticket)

    def _play(
        self, tickets: Sequence[Ticket], start: Callable[[ActorHandle, Sequence[Ticket]], Any]
    ) -> Iterator[PlayedEpisode]:
        """Yields the episodes as they end. Unfinished ones are abandoned when the caller is interrupted."""
        if self.dispatcher is None:
            for begin in range(0, len(tickets), self.hosts_per_runner):
                with allowed_interrupts():
                    played = start(self.env_runner, tickets[begin : begin + self.hosts_per_runner])
                for episode in played:
                    if episode.failure is not None:
                        ticket = episode.ticket
                        raise EpisodeFailedError(
                            f"episode {ticket.number} (seed {ticket.episode_seed}) raised: {episode.failure}"
                        )
                yield from played
            return
        queue = PendingTickets(tickets, start)
        try:
            for _ in tickets:
                yield self.dispatcher.next_episode(queue)
        finally:
            self.dispatcher.abandon(queue)

    def _start_training(self, actor: ActorHandle, tickets: Sequence[Ticket]) -> Any:
        """Starts tickets on an actor with the present weights."""
        return call(actor, "play", tickets, self.keep_from, self._weights)

    def _publish_weights(self) -> None:
        """Takes the learner's weights for the episodes that start from now on."""
        state = self.learner_group.get_state(
            components=f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}", inference_only=True
        )[COMPONENT_LEARNER]
        self._weights_version += 1
        weights = Weights(self._weights_version, {COMPONENT_RL_MODULE: state[COMPONENT_RL_MODULE]})
        self._weights = weights if self.dispatcher is None else ray.put(weights)

    # --- learning ------------------------------------------------------------------------------------------------

    def _update(self, rollouts: Sequence[SingleAgentEpisode]) -> None:
        """Updates the policy. The order of the minibatches depends on seed and iteration only."""
        config = self.config
        with seeded_globally(derive_seed(config.seed, Stream.LEARNER, self.iteration)):
            watch = UpdateWatch(self.policy_network, rollouts, config.gamma, self._trace_decay, config.clip_param)
            self._learn(rollouts)
            self.learner_figures = watch.report()

    @property
    @abstractmethod
    def _trace_decay(self) -> float:
        """λ of the value targets."""

    @abstractmethod
    def _learn(self, rollouts: Sequence[SingleAgentEpisode]) -> None:
        """Updates the policy with an iteration's episodes."""

    @property
    def _steps_after(self) -> int:
        """Host epochs that the iterations up to the present one come to; schedules follow them.

        RLlib's own tally is off once an actor was replaced.
        """
        return int((self.iteration + 1) * self.config.train_batch_size_per_learner)

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def write_checkpoint(self, folder: Path) -> None:
        """Writes policy, optimizer and counters into a folder, as plain numbers."""
        policy, targets = self._split_weights()
        write_policy(folder, self._network_spec(), policy)
        write_learner_state(folder, LearnerState(self.iteration, self._optimizer.state_dict(), targets, self.consumed))

    def acting_network(self) -> PolicyNetwork:
        """Returns a copy of the present policy network, for inference on the CPU."""
        network = PolicyNetwork(self._network_spec())
        network.load_state_dict(self._split_weights()[0])
        return network

    def _network_spec(self) -> NetworkSpec:
        return network_spec(self.policy_network, self.config.env_config["task"]["max_epochs"])

    def _split_weights(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Returns the weights of the policy network, and those of its target network."""
        weights = self.policy_network.state_dict()
        targets = {name: tensor for name, tensor in weights.items() if name.startswith(_TARGET_PREFIX)}
        return {name: tensor for name, tensor in weights.items() if name not in targets}, targets

    def load(self, folder: Path) -> None:
        """Goes on from a checkpoint, with this configuration's schedules. An update of the same episodes then comes out
        as it would have.

        Raises:
            CheckpointError: it is damaged, or of another network.
        """
        state = read_learner_state(folder)
        _spec, policy = read_policy(folder)
        require_fitting_optimizer(state, self._optimizer, folder)
        load_weights(self.policy_network, policy | state.target, folder)
        self._optimizer.load_state_dict(state.optimizer)
        self._iteration = state.iteration
        self._load_consumed(state.consumed)
        self._follow_schedules()
        self._publish_weights()

    def warm_start(self, folder: Path) -> None:
        """Begins with the policy of a checkpoint; optimizer, schedules and counters are new.

        Raises:
            CheckpointError: it is damaged, or of another network.
        """
        _spec, policy = read_policy(folder)
        module = self.policy_network
        _own, targets = self._split_weights()
        load_weights(module, policy | targets, folder)
        if targets:
            module.make_target_networks()
        self._publish_weights()

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer
        (optimizer,) = self.learner_group._learner._named_optimizers.values()
        return optimizer

    def _follow_schedules(self) -> None:
        """Sets learning rate and entropy coefficient by their schedules at the present iteration.

        RLlib would only do so with the next update, and after it.
        """
        steps = self.iteration * self.config.train_batch_size_per_learner
        learner = self.learner_group._learner
        for optimizer, schedule in learner._optimizer_lr_schedules.items():
            learner._set_optimizer_lr(optimizer, lr=schedule.update(timestep=steps))
        learner.entropy_coeff_schedulers_per_module[DEFAULT_MODULE_ID].update(timestep=steps)

    @property
    def consumed(self) -> tuple[int, ...]:
        """Number of episodes learned from, per actor's series; empty where it follows from `iteration`."""
        return ()

    def _load_consumed(self, consumed: tuple[int, ...]) -> None:
        """Continues each actor's series of episodes after those that were learned from."""


def call(actor: ActorHandle | EpisodeRunner, method: str, *arguments: Any) -> Any:
    """Calls a method of an actor, or of the EnvRunner in this process."""
    bound = getattr(actor, method)
    return bound(*arguments) if isinstance(actor, EpisodeRunner) else bound.remote(*arguments)


def _finished(episode: PlayedEpisode) -> FinishedEpisode:
    assert episode.record is not None, "a failure has been raised before"
    return FinishedEpisode(episode.ticket, episode.record, episode.weights)
