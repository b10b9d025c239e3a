"""Hosts that differ: what is drawn, what a host sees of the data, what a policy sees of the host."""

from dataclasses import replace
from math import log2
from typing import Any

import numpy as np
import pytest
import torch

from esper_ray.data import SampleLoader, TokenLoader
from esper_ray.episode import MorphogenesisEnv, ObservationTable, run_ppo_episode
from esper_ray.episode.actions import ActionTable
from esper_ray.episode.host_run import HostRun
from esper_ray.errors import ConfigurationError
from esper_ray.models import build_seed
from esper_ray.policies import RandomPolicy
from esper_ray.tasks import (
    TaskData,
    TaskSpec,
    VarietySettings,
    create_model,
    draw_host,
    drawn_settings,
    get_task_spec,
    load_task_data,
    require_sound,
)
from esper_ray.tasks.variety import every_host

SEEDS = range(150)
ROWS = 40


def varied(**overrides: Any) -> TaskSpec:
    small = {"data.train_samples": 64, "data.validation_samples": 50, "max_epochs": 12, "variety.enabled": True}
    return get_task_spec("digits", small | {key.replace("__", "."): value for key, value in overrides.items()})


def varied_text() -> TaskSpec:
    host = {"host.heads": 2, "host.context": 16, "variety.options.layers": [1, 2], "variety.options.width": [16, 32]}
    data = {"data.train_samples": 32, "data.validation_samples": 32, "data.sequence_length": 16, "data.batch_size": 16}
    return get_task_spec("pydoc", {**host, **data, "max_epochs": 12, "variety.enabled": True})


# --- what is drawn ------------------------------------------------------------------------------------------------


def test_a_host_follows_from_task_and_seed_alone() -> None:
    task = varied()
    first = [draw_host(task, seed) for seed in range(5)]
    torch.manual_seed(7)
    np.random.seed(7)
    assert [draw_host(varied(), seed) for seed in range(5)] == first
    assert len({str(drawn_settings(drawn)) for drawn in first}) == 5


def test_without_variety_every_host_is_the_task_s(fast_task: TaskSpec) -> None:
    assert draw_host(fast_task, 3) is fast_task
    assert list(every_host(fast_task)) == [fast_task]


def test_draws_reach_every_value_and_slot_and_stay_within_the_ranges() -> None:
    ranges = {"variety.lr_factor": (0.7, 3.0), "variety.train_share": (0.6, 1.0), "variety.label_noise": (0.0, 0.1)}
    options = {"variety.options.blocks": (1, 2), "variety.options.base_channels": (2, 8, 16)}
    task = varied(**ranges, **options, data__train_share=0.5, data__label_noise=0.1)
    drawn = [draw_host(task, seed) for seed in SEEDS]
    depths = {(d.host.options["blocks"], d.host.slot) for d in drawn}
    assert depths == {(1, "block1_post"), (2, "block1_post"), (2, "block2_post")}
    assert {d.host.options["base_channels"] for d in drawn} == {2, 8, 16}
    reached = {"lr": (0.014, 0.06), "train_share": (0.3, 0.5), "label_noise": (0.1, 0.2)}
    for name, (low, high) in reached.items():
        values = [d.host_optimizer.lr if name == "lr" else getattr(d.data, name) for d in drawn]
        tenth = (high - low) / 10
        assert low <= min(values) < low + tenth < high - tenth < max(values) <= high
    assert not any(d.variety.enabled for d in drawn)
    changed = {setting for d in drawn for setting, value in d if value != getattr(task, setting)}
    assert changed == {"host", "host_optimizer", "data", "variety"}


def test_learning_rates_are_drawn_on_a_logarithmic_scale() -> None:
    drawn = [draw_host(varied(**{"variety.lr_factor": (0.01, 100.0)}), seed).host_optimizer.lr for seed in SEEDS]
    usual = varied().host_optimizer.lr
    assert 0.4 < sum(lr < usual for lr in drawn) / len(drawn) < 0.6


def test_options_that_belong_together_are_drawn_together_and_single_ones_win() -> None:
    hosts = [{"blocks": 1, "base_channels": 8}, {"blocks": 2, "base_channels": 2}, {"blocks": 2}]
    task = varied(variety__hosts=hosts)

    def drawn(task: TaskSpec) -> set[tuple[int, int]]:
        settings = [drawn_settings(draw_host(task, seed)) for seed in range(40)]
        return {(of_host["host.blocks"], of_host["host.base_channels"]) for of_host in settings}

    assert drawn(task) == {(1, 8), (2, 2), (2, task.host.options["base_channels"])}
    found = [(t.host.options["blocks"], t.host.slot) for t in every_host(task)]
    assert found == [(1, "block1_post"), *[(2, "block1_post"), (2, "block2_post")] * 2]
    wider = varied(variety__hosts=hosts, **{"variety.options.base_channels": [4, 16]})
    assert drawn(wider) == {(blocks, channels) for blocks in (1, 2) for channels in (4, 16)}
    with pytest.raises(ConfigurationError, match=r"host\.blocks is drawn for each host, from variety\.hosts: change"):
        varied(variety__hosts=hosts, host__blocks=1)


def test_the_slot_is_left_alone_on_request() -> None:
    assert {draw_host(varied(variety__any_slot=False), seed).host.slot for seed in range(20)} == {None}


# --- what it sees of the data -------------------------------------------------------------------------------------


def samples() -> SampleLoader:
    """Samples whose only feature is their number, in ten classes."""
    numbers = torch.arange(ROWS)
    return SampleLoader(numbers[:, None].float(), numbers % 10, 7, "cpu", (0.0,), (1.0,), shuffle=True)


def epoch(loader: SampleLoader, seed: int = 0) -> tuple[list[int], list[int]]:
    loader.start_epoch(seed)
    inputs, targets = (torch.cat(batches) for batches in zip(*loader, strict=True))
    return inputs.flatten().long().tolist(), targets.tolist()


@pytest.mark.parametrize(("share", "noise"), [(0.3, 0.25), (1.0, 0.2), (0.5, 0.0), (0.001, 0.9), (1.0, 0.99)])
def test_a_part_has_its_share_of_the_samples_and_exactly_its_share_of_wrong_labels(share: float, noise: float) -> None:
    whole = samples()
    before = epoch(whole)
    part = whole.part(share, noise, classes=10, seed=3)
    rows, labels = epoch(part)
    assert len(set(rows)) == len(rows) == part.samples == max(1, round(share * ROWS))
    assert len(part) == -(-part.samples // 7)
    assert sum(label != row % 10 for row, label in zip(rows, labels, strict=True)) == round(noise * len(rows))
    assert set(labels) <= set(range(10))
    assert epoch(whole) == before


def test_a_wrong_label_is_any_of_the_other_classes_even_of_those_that_no_sample_has() -> None:
    seen: dict[int, set[int]] = {true: set() for true in range(10)}
    for seed in range(40):
        rows, labels = epoch(samples().part(1.0, 0.9, classes=12, seed=seed))
        for row, label in zip(rows, labels, strict=True):
            seen[row % 10].add(label)
    assert seen == {true: set(range(12)) for true in range(10)}


def test_a_part_of_a_part_is_refused() -> None:
    with pytest.raises(AssertionError, match="drawn from the whole"):
        samples().part(0.5, 0.0, 10, 1).part(0.5, 0.0, 10, 1)


def test_a_part_follows_from_its_seed_and_keeps_its_labels_from_epoch_to_epoch() -> None:
    def contents(seed: int, order: int = 0) -> list[tuple[int, int]]:
        return sorted(zip(*epoch(samples().part(0.5, 0.3, 10, seed), order), strict=True))

    assert contents(1) == contents(1) == contents(1, order=9)
    assert contents(1) != contents(2)


def test_validation_is_the_same_for_every_host() -> None:
    task = varied()
    data, drawn = load_task_data(task), draw_host(task, 1)
    of_host = data.of_host(drawn, 1)
    assert of_host.train.samples == round(drawn.data.train_share * 64) < data.train.samples == 64
    assert of_host.validation is data.validation
    assert data.of_host(task, 1) is data


def test_a_part_of_a_text_is_one_stretch_of_it() -> None:
    text = TokenLoader(torch.arange(250, dtype=torch.uint8), 10, 4, "cpu", shuffle=True, limit=20)
    stretches = set()
    for seed in range(10):
        part, seen = text.part(0.4, 0.0, 256, seed), set()
        assert part.samples == 8
        for order in range(30):
            part.start_epoch(order)
            seen |= {int(token) for inputs, _ in part for token in inputs.flatten()}
        assert 80 < len(seen) == max(seen) - min(seen) + 1 <= 100
        stretches.add(min(seen))
    assert len(stretches) > 5
    assert (text.samples, text.part(0.001, 0.0, 256, 0).samples) == (20, 1)


@pytest.mark.parametrize("task", [varied(), varied_text()], ids=["samples", "text"])
def test_an_episode_of_a_drawn_host_replays_bit_for_bit(task: TaskSpec) -> None:
    first, again = (
        [replace(run_ppo_episode(RandomPolicy(), task, seed).record, seconds=0.0) for seed in range(3)]
        for _ in range(2)
    )
    assert first == again
    assert [record.host for record in first] == [drawn_settings(draw_host(task, seed)) for seed in range(3)]
    assert len({record.host_parameters for record in first}) > 1


# --- what a policy sees of it -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "fashion_mnist", "cifar10", "pydoc"])
def test_the_observation_says_what_may_be_known_of_every_host(name: str) -> None:
    task = get_task_spec(name, {"variety.enabled": True})
    actions = ActionTable.of(create_model(task))
    table, plain = (ObservationTable(actions.blueprint_ids, differ) for differ in (True, False))
    added = ("host_parameters", "slot_width", "train_share", *(f"growth_by_{b}" for b in actions.blueprint_ids))
    assert table.names == (*plain.names, *added)
    assert not [n for n in added if "noise" in n or "lr" in n or "rate" in n]
    for drawn in every_host(task):
        data = drawn.data.model_copy(update={"train_share": 0.375})
        run = HostRun(drawn.model_copy(update={"data": data}), TaskData(None, None), "cpu", 0, actions)
        host, slot = sum(p.numel() for p in run.model.get_host_parameters()), run.model.seed_slot
        seeds = [build_seed(blueprint, slot.topology, slot.width) for blueprint in actions.blueprint_ids]
        growth = [log2(1 + sum(p.numel() for p in seed.parameters()) / host) / 4 for seed in seeds]
        expected = [log2(host) / 16, log2(slot.width) / 8, 0.375, *growth]
        bounds = table.features[-len(added) :]
        assert all(f.low <= value <= f.high for f, value in zip(bounds, expected, strict=True))
        assert table.observe(run.view())[-len(added) :] == pytest.approx(expected, rel=1e-6)
        assert set(ActionTable.of(run.model).names) == set(actions.names)


def test_an_action_means_the_same_on_every_host() -> None:
    env = MorphogenesisEnv(varied())
    names, widths = env.action_table.names, set()
    for seed in range(6):
        env.reset(seed=seed)
        for action in [0, 0, 0, names.index("GERMINATE_ATTENTION")]:
            observation, *_ = env.step(action)
        seed_state = env.run.model.seed_state
        assert seed_state is not None and seed_state.blueprint_id == "attention"
        assert observation["observations"][env.observation_table.index["blueprint_attention"]] == 1.0
        assert env.run.actions.names == names
        widths.add(env.run.model.seed_slot.width)
    assert len(widths) > 1


# --- what cannot be meant -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "setting", "value", "message"),
    [
        ("fashion_mnist", "variety.option.blocks", [1], "did you mean 'variety.options.blocks'"),
        ("digits", "variety.hosts", 2, "variety.hosts=2"),
        ("digits", "variety.hosts", [2], "variety.hosts.0=2 of TaskSpec: Input should be a valid dictionary"),
        ("digits", "variety.hosts", [{"bloks": 1}], "unknown option of host 'cnn' 'bloks': did you mean 'blocks'"),
        ("digits", "variety.hosts", [{"blocks": 0}], "host.blocks=0"),
        ("digits", "variety.options", {"blocks": [1]}, "unknown task setting 'variety.options'"),
        ("digits", "variety.options.blocks.first", [1], "variety.options.blocks.first"),
        ("digits", "variety.options.bloks.first", [1], "variety.options.bloks.first"),
        ("digits", "variety.options.blocks", [], "variety.options.blocks names no value to draw from"),
        ("digits", "variety.options.blocks", 2, "variety.options.blocks=2"),
        ("digits", "variety.lr_factor", [2.0, 0.5], r"variety.lr_factor must be \(lowest, highest\).*got \(2.0, 0.5\)"),
        ("digits", "variety.train_share", [0.5, 1.5], "variety.train_share must be .* within 1e-06 to 1"),
        ("digits", "variety.label_noise", [-0.1, 0.1], "variety.label_noise must be .* within 0 to 0.999"),
        ("digits", "data.label_noise", 0.9, "come to 1 or more"),
        ("pydoc", "variety.label_noise", [0.0, 0.1], "label noise is for labelled samples; a text has none"),
    ],
)
def test_a_variety_that_cannot_be_meant_is_refused_in_one_line(
    task: str, setting: str, value: object, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        get_task_spec(task, {"variety.enabled": True, setting: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bloks": (1,)}, "unknown option of host 'cnn' 'bloks': did you mean 'blocks'"),
        ({"heads": (1,)}, "unknown option of host 'cnn' 'heads': expected one of base_channels, blocks"),
        ({"blocks": (1, 0)}, "host.blocks=0"),
        ({"blocks": (1, 4)}, "host.blocks=4 halves the image 4 times"),
    ],
)
def test_every_host_that_could_be_drawn_is_tried_out(options: dict[str, Any], message: str) -> None:
    built = get_task_spec("digits").model_copy(update={"variety": VarietySettings(enabled=True, options=options)})
    for task in (built,):
        for attempt in (
            require_sound,
            lambda task: list(every_host(task)),
            lambda task: [draw_host(task, seed) for seed in range(20)],
        ):
            with pytest.raises(ConfigurationError, match=message) as caught:
                attempt(task)
            assert "\n" not in str(caught.value)


def test_any_option_of_the_host_can_be_varied_and_another_host_starts_with_none() -> None:
    varied_too = get_task_spec("pydoc", {"variety.enabled": True, "variety.options.heads": [1, 2]})
    assert set(varied_too.variety.options) == {*get_task_spec("pydoc").variety.options, "heads"}
    assert {draw_host(varied_too, seed).host.options["heads"] for seed in range(20)} == {1, 2}
    assert get_task_spec("digits").variety.hosts
    other = {"host.kind": "transformer", "host.context": 64}
    assert get_task_spec("digits", other).variety.drawn_options == ()
    chosen = get_task_spec("digits", {**other, "variety.options.width": [32, 64]})
    assert chosen.variety.options == {"width": (32, 64)}


@pytest.mark.parametrize("name", ["digits", "fashion_mnist", "pydoc"])
def test_the_hosts_of_the_shipped_tasks_are_sound(name: str) -> None:
    require_sound(get_task_spec(name, {"variety.enabled": True}))
