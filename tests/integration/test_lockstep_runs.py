"""Runs whose actors train several hosts at the same time."""

from math import inf
from pathlib import Path
from typing import Any, Literal

import pytest
from finished_runs import SHORT_RUN
from learners import TASK, build, rows
from traced import EVERY, LOST_AT, Trace

from esper_ray.cli.main import run
from esper_ray.orchestration.fleet.actor_envs import ActorEnv
from esper_ray.orchestration.fleet.placement import Placement
from esper_ray.orchestration.fleet.tickets import assign
from esper_ray.training import lockstep

pytestmark = pytest.mark.usefixtures("session_ray")

HOSTS = 4
EPISODES = 6
"""So that an actor plays four at the same time, and then two."""


def decisions(found: list[dict[str, Any]]) -> list[tuple[list[str], list[str]]]:
    return [(row["per_epoch"]["decision"], row["stages"]) for row in found]


@pytest.mark.parametrize("policy", ["mlp", "lstm"])
def test_hosts_trained_together_are_an_episode_each_with_the_decisions_of_hosts_one_by_one(
    policy: Literal["mlp", "lstm"],
) -> None:
    found = []
    for runners, hosts in ((0, 1), (1 if policy == "mlp" else 0, HOSTS), (0, HOSTS)):
        algorithm = build(runners, EPISODES, hosts=hosts, policy=policy)
        try:
            algorithm.train()
            assert [episode.ticket for episode in algorithm.episodes] == assign(EPISODES, 1, 0, base_seed=3)
            found.append(rows(algorithm))
        finally:
            algorithm.stop()
    alone, together, again = found
    assert again == together, "to the last bit, in an actor as in this process"
    assert decisions(together) == decisions(alone)
    for row, expected in zip(together, alone, strict=True):
        assert row["per_epoch"]["val_loss"] == pytest.approx(expected["per_epoch"]["val_loss"], rel=0.01)


def test_what_an_actor_plays_together_is_trained_as_one_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Played in this process, where it can be counted."""
    counts, train_batched = [], lockstep.train_batched

    def counted(model: Any, works: Any) -> Any:
        counts.append(len(works))
        return train_batched(model, works)

    monkeypatch.setattr(lockstep, "train_batched", counted)
    algorithm = build(0, 2 * HOSTS, hosts=HOSTS)
    algorithm.train()
    assert len(algorithm.episodes) == 2 * HOSTS
    assert counts == [HOSTS] * (2 * TASK.max_epochs)
    algorithm.stop()


class OneFails(ActorEnv):
    """An environment whose second episode raises."""

    def step_steps(self, action: Any) -> Any:
        if self.ticket.number == 1 and self.run.epoch == 5:
            raise ValueError("the disk is on fire")
        return (yield from super().step_steps(action))


def test_an_episode_that_raises_ends_alone_and_the_others_are_returned() -> None:
    algorithm = build(0, HOSTS, env=OneFails, hosts=HOSTS)
    tickets = assign(HOSTS, 1, 0, base_seed=3)
    played = algorithm.env_runner.play(tickets, inf, algorithm._weights)
    assert [episode.ticket for episode in played] == tickets
    assert [episode.failure is None for episode in played] == [True, False, True, True]
    assert "the disk is on fire" in str(played[1].failure)
    assert {len(e.rollout) for e in played if e.rollout is not None} == {TASK.max_epochs}
    algorithm.stop()


def test_episodes_of_different_lengths_are_played_together() -> None:
    found, lengths = [], []
    for hosts in (1, HOSTS):
        algorithm = build(0, HOSTS, hosts=hosts, skip_forced_waits=True)
        tickets = assign(HOSTS, 1, 0, base_seed=3)
        played = [
            episode
            for begin in range(0, HOSTS, hosts)
            for episode in algorithm.env_runner.play(tickets[begin : begin + hosts], inf, algorithm._weights)
        ]
        assert [episode.failure for episode in played] == [None] * HOSTS
        lengths.append([len(episode.rollout) for episode in played])
        found.append(decisions([episode.record.as_row() for episode in played]))
        algorithm.stop()
    assert found[0] == found[1]
    assert lengths[0] == lengths[1]
    assert len(set(lengths[0])) > 1, "or the test says nothing"


@pytest.mark.faults
def test_the_hosts_of_a_killed_actor_go_on_each_at_the_last_epoch_that_was_written_down(tmp_path: Path) -> None:
    trace = Trace(tmp_path)
    undisturbed = trace.build(Placement(0, 1, 0.0), episodes=2)
    undisturbed.train()
    trace.take()
    algorithm = trace.build(Placement(1, 1, 0.0, 2), episodes=2, checkpoints=True, lost_at=LOST_AT)
    try:
        algorithm.train()
        trained = trace.take()
        written_down = (LOST_AT - 1) // EVERY * EVERY
        again = list(range(written_down + 1, TASK.max_epochs + 1))
        first, second = ([step.epoch for step in trained if step.number == number] for number in (0, 1))
        assert first == [*range(1, LOST_AT), *again]
        assert sorted(set(second)) == list(range(1, TASK.max_epochs + 1))
        assert len(second) <= len(first) + 1
        assert algorithm.losses == {"died": 1, "raised": 0, "hung": 0}
        assert decisions(rows(algorithm)) == decisions(rows(undisturbed))
        assert trace.in_progress() == []
    finally:
        algorithm.stop()
        undisturbed.stop()


def test_a_run_trains_several_hosts_per_runner_and_its_replay_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    arguments = ["train", "--iterations", "1", "--wait-only-episodes", "2", "--out", str(out), *SHORT_RUN]
    arguments += ["--host-pool", "4", "--skip-forced-waits"]
    assert run([*arguments, "--runners", "2", "--hosts-per-runner", "3"]) == 0
    assert "2 runners of 3 hosts on cpu" in capsys.readouterr().out
    run(["replay", str(out), "--episode", "3"])
    assert "its host was trained together with others" in capsys.readouterr().out


def test_more_hosts_than_there_are_episodes_for_are_refused_with_what_fits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", "--out", str(tmp_path / "run"), *SHORT_RUN, "--runners", "2", "--hosts-per-runner", "4"]) == 2
    assert "use --hosts-per-runner 3 at most" in capsys.readouterr().err
