"""PPO over episodes: exactly the episodes that were asked for, none dropped for being slow, none counted twice."""

import logging
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics import (
    ALL_MODULES,
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_MODULE_STEPS_TRAINED_LIFETIME,
    SYNCH_WORKER_WEIGHTS_TIMER,
    TIMERS,
)

from esper_ray.episode import Policy
from esper_ray.errors import EpisodeFailedError, PlacementError
from esper_ray.orchestration.config import PPOSettings
from esper_ray.orchestration.env_runner import ActorEnv, ActorSettings, EpisodeRunner, PlayedEpisode
from esper_ray.orchestration.health import UpdateWatch
from esper_ray.orchestration.interrupts import allowed_interrupts
from esper_ray.orchestration.placement import Placement
from esper_ray.orchestration.rl_module import MaskedPPOTorchRLModule
from esper_ray.orchestration.tickets import FinishedEpisode, Ticket, assign
from esper_ray.seeding import Stream, derive_seed, seed_global

logger = logging.getLogger(__name__)

_MAX_LOSSES_PER_TICKET = 3
_RESTART_SECONDS = 120.0
"""Longest wait for a restarted actor: importing torch and Ray takes a while on a loaded machine."""
_SECONDS_BETWEEN_PROBES = 0.5


def build_config(
    actor: ActorSettings,
    ppo: PPOSettings,
    placement: Placement,
    *,
    iterations: int,
    episodes_per_iteration: int,
    seed: int,
) -> PPOConfig:
    """Returns the RLlib configuration of a run. The batch size follows from the episodes; fragments are whole episodes.

    Args:
        actor: what the actors are told.
        ppo: the learner.
        placement: the actors' number and resources.
        iterations: over which the schedules of learning rate and entropy run.
        episodes_per_iteration: over all actors.
        seed: base seed.
    """
    task = actor.task
    # The environment discounts what it adds up, see `MorphogenesisEnv`.
    discount = 1.0 if actor.skip_forced_waits else task.reward.discount
    steps = task.max_epochs * episodes_per_iteration
    total_steps = max(1, iterations * steps)
    return (
        PPOConfig(algo_class=EpisodePPO)
        .environment(
            ActorEnv,
            env_config=actor.as_env_config(),
        )
        .env_runners(
            env_runner_cls=EpisodeRunner,
            num_env_runners=placement.runners,
            num_cpus_per_env_runner=placement.cpus_per_runner,
            num_gpus_per_env_runner=placement.gpus_per_runner,
            sample_timeout_s=None,
            merge_env_runner_states=False,
            broadcast_env_runner_states=False,
        )
        .learners(num_learners=0)
        .training(
            gamma=discount,
            lr=[[0, ppo.lr_start], [total_steps, ppo.lr_end]],
            entropy_coeff=[[0, ppo.entropy_start], [total_steps, ppo.entropy_end]],
            lambda_=ppo.gae_lambda,
            clip_param=ppo.clip,
            vf_clip_param=float("inf"),
            vf_loss_coeff=ppo.value_weight,
            use_kl_loss=True,
            kl_coeff=0.0,
            grad_clip=ppo.grad_clip,
            grad_clip_by="global_norm",
            num_epochs=ppo.update_epochs,
            minibatch_size=min(ppo.minibatch_size, steps),
            train_batch_size_per_learner=steps,
        )
        .rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=MaskedPPOTorchRLModule,
                model_config=DefaultModelConfig(
                    fcnet_hiddens=list(ppo.hidden), fcnet_activation="tanh", vf_share_layers=False
                ),
            )
        )
        .fault_tolerance(
            restart_failed_env_runners=True,
            max_num_env_runner_restarts=_MAX_LOSSES_PER_TICKET * placement.runners,
            delay_between_env_runner_restarts_s=0.0,
            env_runner_health_probe_timeout_s=_RESTART_SECONDS,
        )
        .debugging(seed=seed, log_level="ERROR")
    )


class EpisodePPO(PPO):
    """RLlib's PPO with a sampling step of its own.

    Each iteration is a set of tickets, shared out evenly over the actors. An actor plays one ticket at a time; its
    driver waits for as long as that takes. If the actor is lost, it is restarted with the present weights and plays
    the same ticket again, so every iteration holds exactly its episodes.

    Attributes:
        episodes: of the last iteration, by ticket.
        learner_figures: of the last update, see `UpdateWatch.report`.
        keep_from: kept validation accuracy, percent, from which on an episode's weights come with it; at first no
            episode's do.
        actors_lost: actors that were lost and replaced so far.
    """

    def _setup_logdir(self) -> None:
        """Makes no folder in the user's home, as RLlib would for files that nobody writes."""
        if self._storage:
            super()._setup_logdir()
        else:
            self._logdir = tempfile.gettempdir()

    def setup(self, config: AlgorithmConfig) -> None:
        """Builds actors and learner."""
        deterministic = torch.are_deterministic_algorithms_enabled()
        super().setup(config)
        torch.use_deterministic_algorithms(deterministic)  # seeding switches it on, for the whole process
        self.episodes: list[FinishedEpisode] = []
        self.learner_figures: dict[str, float | None] = {}
        self.keep_from = inf
        self.actors_lost = 0
        self._force_weights()

    @property
    def episodes_per_iteration(self) -> int:
        """Episodes per learner update."""
        return int(self.config.train_batch_size_per_learner // self.config.env_config["task"]["max_epochs"])

    def training_step(self) -> None:
        """Plays the iteration's episodes, updates the policy and sends the weights to the actors."""
        tickets = self._tickets(self.iteration)
        with self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)):
            played = self._play(tickets, lambda actor, ticket: actor.play.remote(ticket, self.keep_from))
            self.metrics.aggregate([episode.metrics for episode in played], key=ENV_RUNNER_RESULTS)
        self.episodes = [_finished(episode) for episode in played]
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            self._update([episode.rollout for episode in played if episode.rollout is not None])
        with self.metrics.log_time((TIMERS, SYNCH_WORKER_WEIGHTS_TIMER)):
            self.env_runner_group.sync_weights(from_worker_or_learner_group=self.learner_group, inference_only=True)

    def training_seeds(self, iterations: int) -> set[int]:
        """Returns the host seeds of the first `iterations` iterations."""
        rounds = (self._tickets(number) for number in range(iterations))
        return {ticket.episode_seed for tickets in rounds for ticket in tickets}

    def _tickets(self, iteration: int) -> list[Ticket]:
        config = self.config
        pool = config.env_config["host_pool"]
        return assign(self.episodes_per_iteration, config.num_env_runners, iteration, config.seed, pool)

    def action_names(self) -> tuple[str, ...]:
        """Returns the names of the actions, as the actors on their devices have them.

        Raises:
            PlacementError: they differ, because not every machine can train every blueprint.
        """
        found: list[tuple[str, ...]] = self.env_runner_group.foreach_env_runner("action_names", local_env_runner=False)
        for names in found:
            if names != found[0]:
                odd = ", ".join(sorted(set(names) ^ set(found[0])))
                raise PlacementError(
                    f"the actors' machines differ in the actions that they can take: {odd}; use equal ones"
                )
        return found[0]

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
        policy_ref = ray.put(policy)

        def seen(episode: PlayedEpisode) -> None:
            if on_episode is not None:
                on_episode(_finished(episode))

        played = self._play(
            tickets,
            lambda actor, ticket: actor.play_scripted.remote(ticket, policy_ref, self.keep_from, measure_test),
            seen,
        )
        return [_finished(episode) for episode in played]

    @property
    def policy_network(self) -> RLModule:
        """The policy network, as the learner has it."""
        return self.learner_group._learner.module[DEFAULT_MODULE_ID].unwrapped()

    def _update(self, rollouts: Sequence[SingleAgentEpisode]) -> None:
        """Updates the policy. The order of the minibatches follows from seed and iteration, whatever went before."""
        seed_global(derive_seed(self.config.seed, Stream.LEARNER, self.iteration))
        # The schedules follow the episodes that count. RLlib's own tally is off once an actor was replaced.
        lifetime_steps = (self.iteration + 1) * self.config.train_batch_size_per_learner
        config = self.config
        watch = UpdateWatch(self.policy_network, rollouts, config.gamma, config.lambda_, config.clip_param)
        trained_steps = self.metrics.peek((LEARNER_RESULTS, ALL_MODULES, NUM_MODULE_STEPS_TRAINED_LIFETIME), default=0)
        results = self.learner_group.update(
            episodes=list(rollouts),
            timesteps={
                NUM_ENV_STEPS_SAMPLED_LIFETIME: lifetime_steps,
                NUM_MODULE_STEPS_TRAINED_LIFETIME: trained_steps,
            },
            num_epochs=self.config.num_epochs,
            minibatch_size=self.config.minibatch_size,
            shuffle_batch_per_epoch=self.config.shuffle_batch_per_epoch,
        )
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
        self.learner_figures = watch.report()

    def _play(
        self,
        tickets: Iterable[Ticket],
        start: Callable[[ActorHandle, Ticket], ray.ObjectRef],
        on_episode: Callable[[PlayedEpisode], None] | None = None,
    ) -> list[PlayedEpisode]:
        """Has every ticket played by the actor that owes it, one at a time; returns the episodes sorted by ticket.

        Raises:
            EpisodeFailedError: an episode raised, or its actor was lost three times over it.
        """
        owed: dict[int, deque[Ticket]] = {}
        for ticket in tickets:
            owed.setdefault(ticket.runner, deque()).append(ticket)
        playing: dict[ray.ObjectRef, Ticket] = {}
        losses: dict[Ticket, int] = {}
        played: list[PlayedEpisode] = []
        while playing or any(owed.values()):
            with allowed_interrupts():
                self._start_idle(owed, playing, start)
                (done, *_), _ = ray.wait(list(playing), num_returns=1)
            ticket = playing.pop(done)
            try:
                episode: PlayedEpisode = ray.get(done)
            except RayError as error:
                losses[ticket] = losses.get(ticket, 0) + 1
                self._lose_actor(ticket, error, losses[ticket])
                owed[ticket.runner].appendleft(ticket)
                continue
            if episode.failure is not None:
                raise EpisodeFailedError(
                    f"episode {ticket.number} of runner {ticket.runner} (seed {ticket.episode_seed}) raised:\n"
                    f"{episode.failure}"
                )
            if on_episode is not None:
                on_episode(episode)
                episode = replace(episode, weights=None)  # whoever watches has taken them
            played.append(episode)
        return sorted(played, key=lambda episode: episode.ticket)

    def _start_idle(
        self,
        owed: dict[int, deque[Ticket]],
        playing: dict[ray.ObjectRef, Ticket],
        start: Callable[[ActorHandle, Ticket], ray.ObjectRef],
    ) -> None:
        """Gives each idle actor its next ticket."""
        manager = self.env_runner_group._worker_manager
        busy = {ticket.runner for ticket in playing.values()}
        for runner, queue in owed.items():
            if queue and runner not in busy:
                if not manager.is_actor_healthy(runner):
                    self._bring_back(runner)
                ticket = queue.popleft()
                playing[start(manager.actors()[runner], ticket)] = ticket

    def _lose_actor(self, ticket: Ticket, error: RayError, losses: int) -> None:
        """Takes a lost actor out of service and counts the loss.

        Raises:
            EpisodeFailedError: it was lost too often over this ticket.
        """
        self.actors_lost += 1
        logger.warning("runner %d was lost during episode %d: %s", ticket.runner, ticket.number, type(error).__name__)
        if losses >= _MAX_LOSSES_PER_TICKET:
            raise EpisodeFailedError(
                f"runner {ticket.runner} was lost {losses} times over episode {ticket.number} "
                f"(seed {ticket.episode_seed}): {error}"
            )
        self.env_runner_group._worker_manager.set_actor_state(ticket.runner, healthy=False)

    def _bring_back(self, runner: int) -> None:
        """Waits until Ray has restarted a lost actor, and gives it the present weights.

        Raises:
            EpisodeFailedError: it does not come back.
        """
        manager = self.env_runner_group._worker_manager
        give_up = time.monotonic() + _RESTART_SECONDS
        while not manager.is_actor_healthy(runner):
            if time.monotonic() > give_up:
                raise EpisodeFailedError(f"runner {runner} was lost and did not come back in {_RESTART_SECONDS:.0f} s")
            time.sleep(_SECONDS_BETWEEN_PROBES)
            self.restore_env_runners(self.env_runner_group)
        self._force_weights([runner])

    def take_up(self, checkpoint: Path) -> None:
        """Goes on from a checkpoint of `save_to_path`, with this configuration's schedules.

        RLlib leaves the learning rate at what the checkpoint says, and the entropy coefficient at its first value,
        until an update has passed.
        """
        self.restore_from_path(str(checkpoint.absolute()))
        steps = self.iteration * self.config.train_batch_size_per_learner
        learner = self.learner_group._learner
        for optimizer, schedule in learner._optimizer_lr_schedules.items():
            learner._set_optimizer_lr(optimizer, lr=schedule.update(timestep=steps))
        # The schedules are made when they are first asked for: there may be none yet to iterate over.
        learner.entropy_coeff_schedulers_per_module[DEFAULT_MODULE_ID].update(timestep=steps)
        self._force_weights()

    def _force_weights(self, runners: list[int] | None = None) -> None:
        """Gives the actors (all, unless `runners` names some) the learner's weights, whatever they say they have.

        RLlib leaves each actor with initial weights of its own until the first update when it does not broadcast
        states; it restores a lost actor from the driver's EnvRunner, for which the same holds; and an actor ignores
        weights whose sequence number is not above that of its last ones.
        """
        learner = self.learner_group.get_state(
            components=f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}", inference_only=True
        )[COMPONENT_LEARNER]
        unnumbered = {COMPONENT_RL_MODULE: learner[COMPONENT_RL_MODULE]}
        self.env_runner_group.foreach_env_runner(
            "set_state", kwargs={"state": unnumbered}, local_env_runner=False, remote_worker_ids=runners
        )


def _finished(episode: PlayedEpisode) -> FinishedEpisode:
    assert episode.record is not None, "a failure has been raised before"
    return FinishedEpisode(episode.ticket, episode.record, episode.weights)
