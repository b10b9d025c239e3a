"""RLlib is told what the settings say."""

import pytest
from fast_tasks import make_fast_task

from esper_ray.orchestration.config import LearnerSettings
from esper_ray.orchestration.fleet.actor_envs import ActorSettings
from esper_ray.orchestration.fleet.placement import Placement
from esper_ray.orchestration.learner.learner_config import Learning, build_config

SETTINGS = LearnerSettings(
    **{"lr_start": 0.004, "lr_end": 0.002, "entropy_start": 0.3, "entropy_end": 0.1, "clip": 0.15, "gae_lambda": 0.8},
    **{"value_weight": 0.7, "grad_clip": 0.6, "update_epochs": 3, "minibatch_size": 24},
)


@pytest.mark.parametrize("skips", [False, True])
def test_every_setting_of_the_learner_reaches_rllib(skips: bool) -> None:
    """Where the environment discounts, the learner does not."""
    task = make_fast_task(reward__discount=0.9)
    learning = Learning(SETTINGS, iterations=5, episodes_per_iteration=4, seed=11)
    config = build_config(ActorSettings(task, skip_forced_waits=skips), learning, Placement(2, 1, 0.0))
    steps = 4 * task.max_epochs
    assert config.train_batch_size_per_learner == steps
    assert config.gamma == (1.0 if skips else 0.9)
    assert config.lambda_ == 0.8
    assert config.lr == [[0, 0.004], [5 * steps, 0.002]]
    assert config.entropy_coeff == [[0, 0.3], [5 * steps, 0.1]]
    assert (config.clip_param, config.vf_loss_coeff, config.grad_clip, config.num_epochs) == (0.15, 0.7, 0.6, 3)
    assert (config.minibatch_size, config.seed, config.num_env_runners) == (24, 11, 2)
