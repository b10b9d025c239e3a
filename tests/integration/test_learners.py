"""PPO and APPO, feed-forward and recurrent, on real actors; and the same without any actor."""

from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from fakes import SlowEnv
from learners import (
    TASK,
    assert_a_new_run_begins_with_its_policy_alone,
    assert_same_weights,
    build,
    differ,
    rows,
    weights,
    weights_of_the_actors,
)

from esper_ray.episode import MorphogenesisEnv
from esper_ray.episode.rollout import play_episode
from esper_ray.errors import ConfigurationError
from esper_ray.orchestration.config import TrainConfig
from esper_ray.orchestration.fleet.dispatch import SeriesTickets
from esper_ray.orchestration.fleet.env_runner import PlayedEpisode
from esper_ray.orchestration.fleet.tickets import Ticket, assign_number
from esper_ray.orchestration.learner.episode_appo import EpisodeAPPO
from esper_ray.policies import LearnedPolicy
from esper_ray.policies.network import load_policy

pytestmark = pytest.mark.usefixtures("session_ray")

Learner = Literal["ppo", "appo"]
Network = Literal["mlp", "lstm"]


@pytest.mark.parametrize(("learner", "policy"), [("ppo", "lstm"), ("appo", "mlp")])
def test_after_every_sync_an_actor_has_all_of_the_learner_s_weights(learner: Learner, policy: Network) -> None:
    """All tensors of a network that an actor has: of a recurrent one the critic's too, whose states it records."""
    algorithm = build(2, 4, policy=policy, learner=learner)
    try:
        published = [weights(algorithm)]
        for iteration in range(3):
            algorithm.train()
            learned = weights(algorithm)
            assert differ(learned, published[-1])
            published.append(learned)
            for state in weights_of_the_actors(algorithm):
                had = [not differ(state, then) for then in published]
                # APPO's actors play on while it learns: some begin with what it has learned, others began before.
                assert any(had) if learner == "appo" else had == [False] * iteration + [True, False]
                for left_out in learned.keys() - state.keys():
                    is_critic_s = left_out.startswith(("encoder.critic", "vf."))
                    assert "_old_" in left_out or (is_critic_s and policy == "mlp"), left_out
    finally:
        algorithm.stop()


@pytest.mark.parametrize("learner", ["ppo", "appo"])
def test_what_the_learner_makes_of_a_recurrent_rollout_is_what_the_actor_sampled_it_with(learner: Learner) -> None:
    """The ratio of probabilities is 1 before the first update: states, masks and time steps are aligned."""
    algorithm = build(1 if learner == "appo" else 0, 4, policy="lstm", learner=learner)
    before = weights(algorithm)
    try:
        played = algorithm._collect()
        module = algorithm.policy_network
        assert_same_weights(weights(algorithm), before)
        for episode in played:
            rollout = episode.rollout
            assert rollout is not None
            observations = {
                name: torch.from_numpy(column[:-1].copy())[None] for name, column in rollout.get_observations().items()
            }
            state = {
                part: {name: torch.as_tensor(value)[None] for name, value in inner.items()}
                for part, inner in module.get_initial_state().items()
            }
            with torch.no_grad():
                outputs = module.forward_train({"obs": observations, "state_in": state})
            logits = outputs["action_dist_inputs"][0]
            actions = torch.as_tensor(np.asarray(rollout.get_actions()))
            logp = torch.log_softmax(logits, dim=1).gather(1, actions[:, None].long())[:, 0]
            sampled = torch.as_tensor(np.asarray(rollout.get_extra_model_outputs("action_logp")))
            assert torch.allclose(logp, sampled, atol=1e-5)
    finally:
        algorithm.stop()


@pytest.mark.parametrize("policy", ["mlp", "lstm"])
def test_without_an_actor_a_run_is_the_one_of_a_single_actor(policy: Network) -> None:
    """The same episodes, rewards and weights, to the last bit."""
    found = []
    for runners in (1, 0):
        algorithm = build(runners, 3, policy=policy)
        try:
            played = []
            for _ in range(2):
                algorithm.train()
                played += rows(algorithm)
            found.append((played, weights(algorithm)))
        finally:
            algorithm.stop()
    (expected, expected_weights), (alone, weights_alone) = found
    assert alone == expected
    assert_same_weights(weights_alone, expected_weights)


def test_a_recurrent_policy_remembers() -> None:
    """Its decisions depend on what came before, in an evaluation as in an actor."""
    algorithm = build(0, 2, policy="lstm")
    try:
        module = algorithm.policy_network
    finally:
        algorithm.stop()
    observation = MorphogenesisEnv(TASK).reset(seed=1)[0]
    batch = {"obs": {name: torch.from_numpy(value)[None, None] for name, value in observation.items()}}
    state = {
        part: {name: torch.as_tensor(value)[None] for name, value in inner.items()}
        for part, inner in module.get_initial_state().items()
    }
    with torch.no_grad():
        first = module.forward_inference({**batch, "state_in": state})
        second = module.forward_inference({**batch, "state_in": first["state_out"]})
    legal = batch["obs"]["action_mask"][0, 0] == 1
    assert not torch.equal(first["action_dist_inputs"][0, 0][legal], second["action_dist_inputs"][0, 0][legal])


@pytest.mark.parametrize(("learner", "policy"), [("ppo", "mlp"), ("appo", "lstm")])
def test_a_policy_from_a_checkpoint_plays_an_actor_s_episodes_again(
    tmp_path: Path, learner: Learner, policy: Network
) -> None:
    algorithm = build(1, 2, policy=policy, learner=learner)
    try:
        algorithm.write_checkpoint(tmp_path)
        algorithm.train()
        expected = rows(algorithm)
    finally:
        algorithm.stop()
    env = MorphogenesisEnv(TASK)
    learned = LearnedPolicy(load_policy(tmp_path), env.action_table.names, env.observation_table.names)
    for row in expected:
        again = play_episode(env, learned, row["episode_seed"]).as_row()
        assert {name: value for name, value in again.items() if name != "seconds"} == {
            name: value for name, value in row.items() if name not in ("runner", "number")
        }


@pytest.mark.parametrize("policy", ["mlp", "lstm"])
def test_a_learner_that_takes_up_a_checkpoint_learns_on_as_if_it_had_never_stopped(
    tmp_path: Path, policy: Network
) -> None:
    """The same episodes, and after the update the same weights: so with the same moments, learning rate and entropy."""
    algorithm = build(0, 4, policy=policy)
    try:
        algorithm.train()
        algorithm.write_checkpoint(tmp_path)
        saved = weights(algorithm)
        algorithm.train()
        expected, learned = rows(algorithm), weights(algorithm)
    finally:
        algorithm.stop()
    resumed = build(0, 4, policy=policy)
    try:
        assert differ(weights(resumed), saved)
        resumed.load(tmp_path)
        assert resumed.iteration == 1
        assert_same_weights(weights(resumed), saved)
        resumed.train()
        assert rows(resumed) == expected
        assert_same_weights(weights(resumed), learned)
    finally:
        resumed.stop()


def test_a_new_run_begins_with_another_s_policy_and_nothing_else(tmp_path: Path) -> None:
    assert_a_new_run_begins_with_its_policy_alone(tmp_path, runners=0, learner="ppo")


def test_an_episode_may_be_longer_than_a_minibatch_of_a_recurrent_policy() -> None:
    algorithm = build(0, 3, policy="lstm", minibatch=TASK.max_epochs // 2)
    before = weights(algorithm)
    try:
        algorithm.train()
        after = weights(algorithm)
    finally:
        algorithm.stop()
    assert differ(after, before)


def test_appo_does_not_wait_for_a_slow_actor_and_counts_no_episode_twice() -> None:
    algorithm = build(2, 4, env=SlowEnv, learner="appo")
    tickets = []
    try:
        for _ in range(4):
            algorithm.train()
            assert len(algorithm.episodes) == 4
            tickets += [episode.ticket for episode in algorithm.episodes]
        consumed = algorithm.consumed
        seeds = algorithm.training_seeds(4)
    finally:
        algorithm.stop()
    assert len(set(tickets)) == len(tickets) == 16
    by_runner = Counter(ticket.runner for ticket in tickets)
    assert by_runner[2] > 2 * by_runner[1]
    assert consumed == (by_runner[1], by_runner[2])
    expected = {assign_number(runner, number, 3) for runner in (1, 2) for number in range(consumed[runner - 1])}
    assert set(tickets) == expected
    assert {ticket.episode_seed for ticket in tickets} <= seeds


def test_an_update_of_appo_moves_policy_and_target_and_keeps_them_finite() -> None:
    """Under the mask as well."""
    algorithm = build(1, 8, learner="appo")
    assert isinstance(algorithm, EpisodeAPPO)
    before = weights(algorithm)
    try:
        for _ in range(2):
            algorithm.train()
            figures = algorithm.learner_figures
            assert all(value is None or np.isfinite(value) for value in figures.values()), figures
        after = weights(algorithm)
    finally:
        algorithm.stop()
    assert all(np.isfinite(value).all() for value in after.values())
    moved = [name for name, value in after.items() if not np.array_equal(value, before[name])]
    assert any(name.startswith("pi.") for name in moved)
    assert any(name.startswith("_old_pi.") for name in moved)


@pytest.mark.parametrize("values", [{"runners": 0}, {"skip_forced_waits": True}])
def test_appo_refuses_what_it_cannot_do(values: dict[str, Any]) -> None:
    with pytest.raises((ConfigurationError, ValueError), match="learner appo"):
        TrainConfig(learner="appo", **values)


def test_an_actor_s_series_is_learned_from_in_its_order_though_an_episode_is_played_again() -> None:
    """So that what a checkpoint says was consumed is all that was, and nothing else."""
    series = SeriesTickets(lambda runner, number: Ticket(runner, number, number, number), 1, lambda *_: None)
    tickets = [series.take(1, ()) for _ in range(4)]
    for number, ended in ((0, [0]), (2, [0]), (3, [0]), (1, [0, 1, 2, 3])):
        ticket = tickets[number]
        assert ticket is not None
        series.end(PlayedEpisode(ticket))
        assert [episode.ticket.number for episode in series.finished] == ended
    series.count([series.finished[0], series.finished[1]])
    again = SeriesTickets(series._ticket, 1, series.start)
    again.resume_from(series.consumed)
    following = again.take(1, ())
    assert following is not None and following.number == 2
    again.end(PlayedEpisode(following))
    assert len(again.finished) == 1
