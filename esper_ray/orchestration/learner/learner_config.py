"""The RLlib configuration of a run."""

from dataclasses import dataclass
from typing import Literal

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from esper_ray.orchestration.config import LearnerSettings
from esper_ray.orchestration.fleet.actor_envs import ActorEnvs, ActorSettings
from esper_ray.orchestration.fleet.env_runner import EpisodeRunner
from esper_ray.orchestration.fleet.placement import Placement
from esper_ray.orchestration.learner.algorithm import EpisodeAlgorithm
from esper_ray.orchestration.learner.episode_appo import EpisodeAPPO, EpisodeAPPOLearner
from esper_ray.orchestration.learner.episode_ppo import EpisodePPO
from esper_ray.orchestration.learner.policy_network import rllib_model_config
from esper_ray.orchestration.learner.rl_module import MaskedAPPOTorchRLModule, MaskedPPOTorchRLModule

RESTARTS = 1000
"""Restarts of an actor by Ray, at most; the dispatcher says how many are too many for one episode."""


@dataclass(frozen=True)
class Learning:
    """The settings of a training: learner, network, schedules, batch, seed.

    Attributes:
        settings: of the learner.
        learner: "ppo", or "appo", which does not wait for slow actors.
        policy: kind of its network.
        iterations: over which the schedules of learning rate and entropy run.
        episodes_per_iteration: over all actors.
        seed: base seed.
    """

    settings: LearnerSettings
    iterations: int
    episodes_per_iteration: int
    seed: int
    learner: Literal["ppo", "appo"] = "ppo"
    policy: Literal["mlp", "lstm"] = "mlp"


def build_config(actor: ActorSettings, learning: Learning, placement: Placement) -> AlgorithmConfig:
    """Returns the RLlib configuration of a run. The batch size follows from the episodes.

    Args:
        actor: what the actors are told.
        learning: the learner.
        placement: the actors' number and resources; with no actor the episodes are played in this process.
    """
    task, settings = actor.task, learning.settings
    # The environment discounts what it adds up, see `MorphogenesisEnv`.
    discount = 1.0 if actor.skip_forced_waits else task.reward.discount
    steps = task.max_epochs * learning.episodes_per_iteration
    total_steps = max(1, learning.iterations * steps)
    config: AlgorithmConfig = _appo(task.max_epochs) if learning.learner == "appo" else _ppo(settings)
    minibatch: int | None = min(settings.minibatch_size, steps)
    if learning.learner == "appo" or learning.policy == "lstm":  # whole episodes, with the step that RLlib adds to each
        whole = max(1, settings.minibatch_size // task.max_epochs) * (task.max_epochs + 1)
        minibatch = whole if whole < steps else None
    model_config = rllib_model_config(learning.policy, settings.hidden, settings.lstm_width, task.max_epochs)
    module_class = MaskedAPPOTorchRLModule if learning.learner == "appo" else MaskedPPOTorchRLModule
    return (
        config.environment(ActorEnvs, env_config=actor.as_env_config())
        .env_runners(
            env_runner_cls=EpisodeRunner,
            num_envs_per_env_runner=placement.hosts_per_runner,
            gym_env_vectorize_mode="vector_entry_point",
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
            lr=[[0, settings.lr_start], [total_steps, settings.lr_end]],
            entropy_coeff=[[0, settings.entropy_start], [total_steps, settings.entropy_end]],
            clip_param=settings.clip,
            vf_loss_coeff=settings.value_weight,
            grad_clip=settings.grad_clip,
            grad_clip_by="global_norm",
            num_epochs=settings.update_epochs,
            minibatch_size=minibatch,
            train_batch_size_per_learner=steps,
        )
        .rl_module(rl_module_spec=RLModuleSpec(module_class=module_class, model_config=model_config))
        .fault_tolerance(restart_failed_env_runners=True, max_num_env_runner_restarts=RESTARTS)
        .reporting(min_time_s_per_iteration=0)
        .debugging(seed=learning.seed, log_level="ERROR")
    )


def _ppo(settings: LearnerSettings) -> AlgorithmConfig:
    return PPOConfig(algo_class=EpisodePPO).training(
        lambda_=settings.gae_lambda, vf_clip_param=float("inf"), use_kl_loss=True, kl_coeff=0.0
    )


def _appo(max_epochs: int) -> AlgorithmConfig:
    """Fragments are whole episodes, which V-trace needs; the target network follows after each update."""
    return (
        APPOConfig(algo_class=EpisodeAPPO)
        .env_runners(rollout_fragment_length=max_epochs + 1)  # with the step that RLlib adds
        .training(
            learner_class=EpisodeAPPOLearner,
            use_kl_loss=False,
            target_network_update_freq=1,
            circular_buffer_num_batches=1,
            circular_buffer_iterations_per_batch=1,
        )
    )


def build_algorithm(actor: ActorSettings, learning: Learning, placement: Placement) -> EpisodeAlgorithm:
    """Builds actors and learner; arguments as of `build_config`.

    Raises:
        RayError: an actor could not be built.
    """
    return algorithm_class(learning.learner)(config=build_config(actor, learning, placement))


def algorithm_class(learner: Literal["ppo", "appo"]) -> type[EpisodeAlgorithm]:
    """Returns the class of a learner."""
    return EpisodeAPPO if learner == "appo" else EpisodePPO
