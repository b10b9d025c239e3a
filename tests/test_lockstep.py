"""Hosts trained together as one network, against the same hosts one by one."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from learners import TASK
from torch import nn

from esper_ray import SeedStage, create_model, get_task_spec
from esper_ray.data import BatchLoader
from esper_ray.episode import EpisodeRecord, MorphogenesisEnv
from esper_ray.episode.host_run import HostRun
from esper_ray.episode.lockstep_envs import LockstepEnvs
from esper_ray.episode.rollout import play_episode, play_episodes
from esper_ray.models import MorphogeneticModel
from esper_ray.models.blueprints import registered_blueprints
from esper_ray.models.hosts import SlottedHost
from esper_ray.models.joined import can_be_joined
from esper_ray.policies import RandomPolicy
from esper_ray.seeding import seeded
from esper_ray.tasks import load_task_data
from esper_ray.training import EvaluationWork, TrainingWork, adopt_seed, build_optimizer, lockstep
from esper_ray.training.work import do

S = SeedStage
DIGITS = get_task_spec("digits", {"data.train_samples": 320, "data.validation_samples": 100})
ADAMW = get_task_spec(
    "digits",
    {
        **{"data.train_samples": 320, "host_optimizer.kind": "adamw", "seed_optimizer.kind": "adamw"},
        **{"host_optimizer.lr": 0.01, "seed_optimizer.lr": 0.01},
    },
)
STAGES = (S.TRAINING, S.BLENDING, S.SHADOWING, S.FOSSILIZED)
"""In which a seed's part in host and gradient differs."""
LARGEST_DIFFERENCE, FLOAT_ROUNDING = 1e-4, 1e-6


class Trainee:
    """A host with its optimizers."""

    def __init__(self, seed: int, blueprint: str | None, stage: SeedStage, task: Any = DIGITS) -> None:
        with seeded(seed):
            self.model = create_model(task)
            self.host_optimizer = build_optimizer(self.model.get_host_parameters(), task.host_optimizer)
            self.seed_optimizer = None
            if blueprint is None:
                return
            state = self.model.germinate_seed(blueprint, "seed")
        for target in (S.TRAINING, S.BLENDING, S.SHADOWING, S.PROBATIONARY, S.FOSSILIZED):
            if state.stage == stage:
                break
            state.epochs_in_stage, state.gradient_ratio, state.contribution = 9, 1.0, 1.0
            state.alpha = 1.0 if target == S.SHADOWING else 0.3 if target == S.BLENDING else state.alpha
            assert self.model.seed_slot.advance_stage(target).passed
        state.alpha = 0.1 + 0.05 * seed if stage == S.BLENDING else state.alpha
        self.seed_optimizer = build_optimizer(self.model.get_seed_parameters(), task.seed_optimizer)
        if stage == S.FOSSILIZED:
            adopt_seed(self.host_optimizer, self.seed_optimizer)
            self.seed_optimizer = None

    def training(self, loader: BatchLoader, epoch: int) -> TrainingWork:
        """The work of an epoch."""
        return TrainingWork(
            structure="digits",
            model=self.model,
            loader=loader,
            order_seed=epoch,
            generator_seed=7,
            host_optimizer=self.host_optimizer,
            seed_optimizer=self.seed_optimizer,
            device=torch.device("cpu"),
            task_type="classification",
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights, buffers, and what the optimizers know of each weight."""
        found = dict(self.model.state_dict())
        for name, optimizer in (("host", self.host_optimizer), ("seed", self.seed_optimizer)):
            for number, state in enumerate(optimizer.state.values() if optimizer else ()):
                found |= {f"{name} {number} {key}": torch.as_tensor(value) for key, value in state.items()}
        return {name: tensor.double() for name, tensor in found.items() if tensor.numel()}


@pytest.fixture(autouse=True)
def joins(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Nothing is remembered from other tests. Returns how many hosts each piece of joint work had."""
    monkeypatch.setattr(lockstep, "_JOINED", {})
    monkeypatch.setattr(lockstep, "_CAN_BE_JOINED", {})
    counts: list[int] = []

    def counted(through: Callable[..., Any], model: Any, works: Any) -> Any:
        counts.append(len(works))
        return through(model, works)

    for name in ("train_together", "evaluate_together"):
        monkeypatch.setattr(lockstep, name, partial(counted, getattr(lockstep, name)))
    return counts


def loaders(count: int, task: Any = DIGITS) -> list[BatchLoader]:
    """A loader for each host: in lockstep all of them are iterated at the same time."""
    return [load_task_data(task).train for _ in range(count)]


def assert_near(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], largest: float = LARGEST_DIFFERENCE
) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).norm() <= largest * value.norm() + FLOAT_ROUNDING, name


def assert_equal_to_one_by_one(kinds: list[tuple[str | None, SeedStage]], task: Any = DIGITS) -> None:
    """Two epochs, so that the second begins with what the first left in the optimizers."""
    together = [Trainee(seed, *kind, task) for seed, kind in enumerate(kinds)]
    alone = [Trainee(seed, *kind, task) for seed, kind in enumerate(kinds)]
    for epoch in range(2):
        found = lockstep.do_together(
            [host.training(loader, epoch) for host, loader in zip(together, loaders(len(kinds), task), strict=True)]
        )
        expected = [
            do(host.training(loader, epoch)) for host, loader in zip(alone, loaders(len(kinds), task), strict=True)
        ]
        for host, twin, (loss, _, total, statistics), (loss_alone, _, total_alone, statistics_alone) in zip(
            together, alone, found, expected, strict=True
        ):
            # Rounding grows: a value that is the largest of four here may be the second there.
            assert_near(host.tensors(), twin.tensors(), largest=(LARGEST_DIFFERENCE, 0.01)[epoch])
            assert loss == pytest.approx(loss_alone, rel=LARGEST_DIFFERENCE)
            assert total == total_alone
            assert statistics == (pytest.approx(statistics_alone, rel=1e-3) if statistics_alone is not None else None)
            assert host.model.seed_slot.isolation_violated() == twin.model.seed_slot.isolation_violated() is False


@pytest.mark.parametrize("blueprint", registered_blueprints("cnn"))
@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_seeds_of_one_blueprint_learn_together_as_they_do_alone(
    blueprint: str, stage: SeedStage, joins: list[int]
) -> None:
    assert_equal_to_one_by_one([(blueprint, stage)] * 3)
    assert joins == [3, 3]


def test_hosts_without_a_seed_learn_together_as_they_do_alone(joins: list[int]) -> None:
    assert_equal_to_one_by_one([(None, S.DORMANT)] * 4)
    assert joins == [4, 4]


def test_hosts_in_different_stages_of_different_seeds_learn_together_as_they_do_alone(joins: list[int]) -> None:
    kinds = [(blueprint, stage) for blueprint in registered_blueprints("cnn") for stage in (S.TRAINING, S.BLENDING)]
    assert_equal_to_one_by_one([(None, S.DORMANT), *kinds, (None, S.DORMANT)])
    assert joins == [12, 12]


def test_hosts_of_adamw_learn_together_as_they_do_alone(joins: list[int]) -> None:
    assert_equal_to_one_by_one([(None, S.DORMANT), ("norm", S.BLENDING), ("norm", S.BLENDING)], ADAMW)
    assert joins == [3, 3]


@pytest.mark.parametrize("forced_alpha", [None, 0.1])
def test_validation_together_comes_to_what_it_does_alone(forced_alpha: float | None, joins: list[int]) -> None:
    hosts = [
        Trainee(seed, blueprint, S.BLENDING).model
        for seed, blueprint in enumerate(["conv_heavy", None, "conv_heavy", "attention"])
    ]
    validation = load_task_data(DIGITS).validation
    works = [
        EvaluationWork("digits", host, validation, torch.device("cpu"), "classification", forced_alpha)
        for host in hosts
        if forced_alpha is None or host.seed_slot.seed is not None
    ]
    found = lockstep.do_together(works)
    for evaluation, work in zip(found, works, strict=True):
        expected = do(work)
        assert evaluation.loss == pytest.approx(expected.loss, rel=LARGEST_DIFFERENCE)
        assert evaluation.loss_without_seed == pytest.approx(expected.loss_without_seed, rel=LARGEST_DIFFERENCE)
        assert evaluation.accuracy == expected.accuracy
        assert evaluation.accuracy_without_seed == expected.accuracy_without_seed
    assert joins == [len(works)]


def test_a_host_that_diverges_takes_no_other_with_it(joins: list[int]) -> None:
    together = [Trainee(seed, None, S.DORMANT) for seed in range(3)]
    twin = Trainee(0, None, S.DORMANT)
    with torch.no_grad():
        together[1].model.host.head.weight.fill_(float("nan"))
    found = lockstep.do_together([host.training(loader, 0) for host, loader in zip(together, loaders(3), strict=True)])
    expected = do(twin.training(loaders(1)[0], 0))
    assert not np.isfinite(found[1][0])
    assert found[0] == expected
    assert_near(together[0].tensors(), twin.tensors())
    assert joins == [3]


class Mixing(SlottedHost):
    """A host that looks joinable and is not: it subtracts the mean over its channels."""

    topology = "cnn"

    def __init__(self, mixes: bool) -> None:
        super().__init__()
        self.injection_points = {"middle": 4}
        self.conv, self.head, self.mixes = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 10), mixes

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.at("middle", torch.relu(self.conv(images)))
        if self.mixes:
            features = features - features.mean(dim=1, keepdim=True)
        logits: torch.Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


@pytest.mark.parametrize("mixes", [False, True])
def test_a_host_that_mixes_its_channels_is_found_out(mixes: bool) -> None:
    model = MorphogeneticModel(Mixing(mixes), "middle", DIGITS.lifecycle)
    assert can_be_joined(model, (1, 8, 8)) is not mixes


class Dropping(Mixing):
    """A host that draws while it trains."""

    def __init__(self) -> None:
        super().__init__(mixes=False)
        self.drop = nn.Dropout(0.5)


def test_a_host_that_draws_from_the_generator_is_trained_alone() -> None:
    assert not can_be_joined(MorphogeneticModel(Dropping(), "middle", DIGITS.lifecycle), (1, 8, 8))


def lockstep_envs(
    count: int, task: Any = TASK, env: Callable[..., MorphogenesisEnv] = MorphogenesisEnv
) -> LockstepEnvs:
    return LockstepEnvs([env(task, "cpu") for _ in range(count)])


def without_time(record: EpisodeRecord | Exception) -> dict[str, Any]:
    assert isinstance(record, EpisodeRecord)
    return {key: value for key, value in record.as_row().items() if key != "seconds"}


def test_episodes_played_together_take_the_decisions_that_they_take_alone(joins: list[int]) -> None:
    seeds = list(range(8))
    task = get_task_spec("digits", {"max_epochs": 40, "data.train_samples": 320})
    records = play_episodes(lockstep_envs(8, task), [RandomPolicy() for _ in seeds], seeds)
    assert max(joins) == 8
    env = MorphogenesisEnv(task, "cpu")
    grown = 0
    for seed, record in zip(seeds, records, strict=True):
        row, alone = without_time(record), without_time(play_episode(env, RandomPolicy(), seed))
        assert row["stages"] == alone["stages"]
        assert row["per_epoch"]["decision"] == alone["per_epoch"]["decision"]
        assert row["per_epoch"]["val_loss"] == pytest.approx(alone["per_epoch"]["val_loss"], rel=0.02)
        grown += "BLENDING" in row["stages"]
    assert grown >= 4


class FailingRun(HostRun):
    """A host that breaks in its sixth epoch."""

    def _enter_epoch(self) -> None:
        super()._enter_epoch()
        if self.epoch == 5 and self.episode_seed == 1:
            raise ValueError("the disk is on fire")


class FailingEnv(MorphogenesisEnv):
    """An environment of such hosts."""

    def _new_run(self, episode_seed: int, beginning: Any = None) -> HostRun:
        data = self._data.of_host(self.task, episode_seed)
        return FailingRun(self.task, data, self._device, episode_seed, self.action_table, beginning)


def test_an_episode_that_raises_ends_alone() -> None:
    envs = lockstep_envs(3, env=FailingEnv)
    first, failed, last = play_episodes(envs, [RandomPolicy() for _ in range(3)], [0, 1, 2])
    assert isinstance(failed, ValueError)
    assert {len(without_time(record)["stages"]) for record in (first, last)} == {TASK.max_epochs}


def test_environments_whose_episode_is_over_stand_still() -> None:
    envs = lockstep_envs(3)
    envs.playing = 2
    observations, infos = envs.reset(seed=[0, 1, None])
    assert infos["_place"].tolist() == [True, True, False]
    assert all(len(rows) == 3 for rows in observations.values())
    assert envs.observation_space.contains(observations)
    actions = np.zeros(3, dtype=np.int64)
    over = np.zeros(3, dtype=bool)
    for _ in range(TASK.max_epochs):
        observations, rewards, terminated, truncated, infos = envs.step(actions)
        over = terminated | truncated
        assert rewards[2] == 0.0
    assert over.tolist() == [True, True, False]
    assert envs.step(actions)[4] == {}
