"""Hosts trained together as one network, against the same hosts one by one."""

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
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
from esper_ray.models.hosts import host as register_host
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

    for name in ("train_batched", "evaluate_batched"):
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
        found = lockstep.do_batched(
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
    found = lockstep.do_batched(works)
    for evaluation, work in zip(found, works, strict=True):
        expected = do(work)
        assert evaluation.loss == pytest.approx(expected.loss, rel=LARGEST_DIFFERENCE)
        assert evaluation.loss_without_seed == pytest.approx(expected.loss_without_seed, rel=LARGEST_DIFFERENCE)
        assert evaluation.accuracy == expected.accuracy
        assert evaluation.accuracy_without_seed == expected.accuracy_without_seed
    assert joins == [len(works)]


@pytest.mark.parametrize("task", [DIGITS, ADAMW], ids=["sgd", "adamw"])
def test_a_host_that_diverges_takes_no_other_with_it(task: Any, joins: list[int]) -> None:
    """In its second epoch, so that optimizers have a state by then."""
    together = [Trainee(seed, None, S.DORMANT, task) for seed in range(3)]
    twins = [Trainee(seed, None, S.DORMANT, task) for seed in range(3)]
    for epoch in range(2):
        for hosts in (together, twins):
            if epoch == 1:
                with torch.no_grad():
                    hosts[1].model.host.head.weight.fill_(float("nan"))
        found = lockstep.do_batched(
            [host.training(loader, epoch) for host, loader in zip(together, loaders(3, task), strict=True)]
        )
        expected = [do(host.training(loader, epoch)) for host, loader in zip(twins, loaders(3, task), strict=True)]
    assert not np.isfinite(found[1][0])
    for place in (0, 2):
        assert found[place][0] == pytest.approx(expected[place][0], rel=LARGEST_DIFFERENCE)
        assert_near(together[place].tensors(), twins[place].tensors(), largest=0.01)
    assert joins == [3, 3]


def test_work_that_raises_is_one_host_s_alone(joins: list[int]) -> None:
    hosts = [Trainee(seed, None, S.DORMANT) for seed in range(3)]
    works = [host.training(loader, 0) for host, loader in zip(hosts, loaders(3), strict=True)]
    hosts[1].model.host.head = nn.Linear(3, 10)
    first, failed, last = lockstep.do_batched(works)
    assert isinstance(failed, RuntimeError)
    for place, found in ((0, first), (2, last)):
        twin = Trainee(place, None, S.DORMANT)
        assert found[0] == pytest.approx(do(twin.training(loaders(1)[0], 0))[0], rel=LARGEST_DIFFERENCE)
        assert_near(hosts[place].tensors(), twin.tensors())
    assert joins == [2]


class Plain(SlottedHost):
    """A host that can be joined."""

    topology = "cnn"

    def __init__(self) -> None:
        super().__init__()
        self.injection_points = {"middle": 4}
        self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.behind(self.at("middle", torch.relu(self.conv(images))))
        logits: torch.Tensor = self.head(features.mean(dim=(2, 3)))
        return logits

    def behind(self, features: torch.Tensor) -> torch.Tensor:
        """What it does behind the slot."""
        return features


class Mixing(Plain):
    """A host that looks joinable and is not: it subtracts the mean over its channels."""

    def behind(self, features: torch.Tensor) -> torch.Tensor:
        """Mixes."""
        return features - features.mean(dim=1, keepdim=True)


class Dropping(Plain):
    """A host that seldom drops anything."""

    def behind(self, features: torch.Tensor) -> torch.Tensor:
        """Draws."""
        return nn.functional.dropout(features, 1e-6, self.training)


class Normalising(Plain):
    """A host with a buffer for each channel."""

    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(1, 4, 1, 1))

    def behind(self, features: torch.Tensor) -> torch.Tensor:
        """Subtracts."""
        return features - self.mean


class Bypassing(Plain):
    """A host that adds what was before the slot to what is behind it."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.conv(images))
        logits: torch.Tensor = self.head((self.at("middle", features) + features).mean(dim=(2, 3)))
        return logits


def grown(host: type[Plain]) -> MorphogeneticModel:
    """A model of such a host, with a seed."""
    model = MorphogeneticModel(host(), "middle", DIGITS.lifecycle)
    model.germinate_seed("conv_light", "seed")
    return model


@pytest.mark.parametrize("host", [Plain, Mixing, Dropping, Normalising, Bypassing], ids=lambda host: host.__name__)
def test_a_host_that_cannot_be_a_part_of_a_network_is_found_out(host: type[Plain]) -> None:
    assert can_be_joined(grown(host), (1, 8, 8)) is (host is Plain)


def test_a_host_that_was_defined_anew_is_another_one() -> None:
    """As where the cell of a notebook is run again: the same name, other code."""
    for sign in (1.0, -1.0):

        @register_host("anew")
        def anew(input_shape: tuple[int, ...], classes: int, *, width: int = 4, sign: float = sign) -> nn.Module:
            class Signed(Plain):
                def behind(self, features: torch.Tensor) -> torch.Tensor:
                    return self_sign * features

            self_sign = sign
            return Signed()

        task = get_task_spec("digits", {"host.kind": "anew", "data.train_samples": 64, "max_epochs": 12})
        envs = lockstep_envs(2, task)
        together = play_episodes(envs, [RandomPolicy(), RandomPolicy()], [0, 1])
        alone = play_episode(MorphogenesisEnv(task, "cpu"), RandomPolicy(), 0)
        found = without_time(together[0])["per_epoch"]["train_loss"]
        assert found == pytest.approx(without_time(alone)["per_epoch"]["train_loss"], rel=0.01)


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


class BreakingRun(HostRun):
    """A host that breaks in its sixth epoch if its seed is 1, and whose weights are lost if it is 2."""

    def _enter_epoch(self) -> None:
        super()._enter_epoch()
        if self.epoch == 5 and self.episode_seed == 1:
            raise ValueError("the disk is on fire")
        if self.epoch == 5 and self.episode_seed == 2:
            torch.nn.init.constant_(self.model.host.head.weight, float("nan"))


class BreakingEnv(MorphogenesisEnv):
    """An environment of such hosts."""

    def _new_run(self, episode_seed: int, beginning: Any = None) -> HostRun:
        data = self._data.of_host(self.task, episode_seed)
        return BreakingRun(self.task, data, self._device, episode_seed, self.action_table, beginning)


def test_an_episode_that_raises_or_rolls_back_leaves_the_others_alone(joins: list[int]) -> None:
    envs = lockstep_envs(4, env=BreakingEnv)
    first, failed, rolled_back, last = play_episodes(envs, [RandomPolicy() for _ in range(4)], [0, 1, 2, 3])
    assert isinstance(failed, ValueError)
    assert without_time(rolled_back)["rollbacks"] == 1
    for seed, record in ((0, first), (2, rolled_back), (3, last)):
        alone = without_time(play_episode(BreakingEnv(TASK, "cpu"), RandomPolicy(), seed))
        assert without_time(record)["stages"] == alone["stages"]
        assert without_time(record)["per_epoch"]["rolled_back"] == alone["per_epoch"]["rolled_back"]
    assert max(joins) == 4


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
    with pytest.raises(gym.error.ResetNeeded):
        envs.step(actions)


def test_a_single_environment_begins_the_next_episode_by_itself() -> None:
    """As RLlib expects it, where it plays more episodes than there are environments."""
    envs = lockstep_envs(1)
    first, _ = envs.reset(seed=[0])
    for _ in range(TASK.max_epochs):
        *_, terminated, truncated, _ = envs.step(np.zeros(1, dtype=np.int64))
    assert (terminated | truncated).all()
    following, rewards, terminated, truncated, _ = envs.step(np.zeros(1, dtype=np.int64))
    assert not (terminated | truncated).any() and rewards[0] == 0.0
    assert np.array_equal(following["action_mask"], first["action_mask"])
