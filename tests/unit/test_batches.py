"""Batches: augmentation, sequences of a text, and what every data set must be."""

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from writers import write_stories_text

from esper_ray.data import (
    SPLIT_NAMES,
    CropAndFlip,
    DataSource,
    SampleLoader,
    TokenLoader,
    data_source,
    get_source,
    prepare,
)
from esper_ray.data.batches import iterate_batched
from esper_ray.errors import ConfigurationError, DatasetError
from esper_ray.tasks import DataSettings, TaskSpec, load_task_data

RNG = np.random.default_rng(0)


def splits(**changed: Any) -> dict[str, Any]:
    """A sound data set of 20 samples of three features in two classes, but for what is changed."""
    sound = {name: (RNG.normal(size=(20, 3)), np.arange(20) % 2) for name in ("train", "validation", "test")}
    return {**sound, **changed}


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Registers a data source that returns what it is given."""
    monkeypatch.setenv("ESPER_RAY_CACHE", str(tmp_path))
    content: dict[str, Any] = {}

    @data_source("made_up", "for a test")
    def read(files: list[Path]) -> Any:
        return content["splits"]

    def prepare_it(made_up: Any, **classes: Any) -> Any:
        content["splits"] = made_up
        if not classes:
            return prepare(get_source("made_up"))
        task = TaskSpec(name="t", summary="", data=DataSettings(source="made_up"), **classes)
        return load_task_data(task)

    return prepare_it


@pytest.mark.parametrize(
    ("made_up", "message"),
    [
        (
            splits(train=(np.where(np.arange(60).reshape(20, 3) == 25, np.nan, 1.0), np.zeros(20, int))),
            "the train split of made_up has NaN or infinite values in 1 of 20 samples, first in sample 8: mend them",
        ),
        (splits(test=(np.full((5, 3), np.inf), np.zeros(5, int))), "the test split of made_up has NaN or infinite"),
        (splits(validation=(np.zeros((0, 3)), np.zeros(0, int))), "the validation split of made_up is empty"),
        (splits(train=(np.zeros((4, 3)), np.zeros(3, int))), "does not fit together"),
        (
            splits(train=(np.zeros((4, 3)), np.array([0, 1, -1, 0]))),
            "has labels from -1 to 1: expected whole numbers from 0",
        ),
        (
            splits(train=(np.zeros((4, 3)), np.array([0, 1, 0.5, 0]))),
            "labels of type float64: expected numbers, and whole numbers from 0",
        ),
        ({"train": splits()["train"]}, "made_up has no split validation, test"),
        (
            splits(train=(np.zeros((2, 3)), np.array(["cat", "dog"]))),
            "the train split of made_up has inputs of type float64",
        ),
        (splits(train=(np.array([["a"], ["b"]]), np.zeros(2, int))), "has inputs of type <U1 and labels of type int64"),
        (splits(train=np.zeros((2, 3))), "the train split of made_up must be a pair of inputs and labels"),
        (None, "the reader of made_up must return a dict of splits, got NoneType"),
    ],
)
def test_data_that_no_training_can_use_is_refused(source: Any, made_up: Any, message: str) -> None:
    with pytest.raises(DatasetError) as caught:
        source(made_up)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_data_that_does_not_fit_its_task_is_refused(source: Any) -> None:
    with pytest.raises(DatasetError, match=r"run up to 4, out of range for the 2 classes.*give the task 5 classes"):
        source(splits(test=(np.zeros((5, 3)), np.arange(5))), input_shape=(3,), classes=2)


def test_samples_of_another_shape_than_the_task_s_are_refused(source: Any) -> None:
    with pytest.raises(DatasetError, match=r"have shape \(3,\), task t says \(4,\): correct its input_shape"):
        source(splits(), input_shape=(4,), classes=2)


def test_a_text_that_is_no_list_of_documents_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPER_RAY_CACHE", str(tmp_path))
    text = DataSource("one_text", "", 1, lambda _: [], lambda _: dict.fromkeys(SPLIT_NAMES, "hello"), kind="text")
    with pytest.raises(
        DatasetError, match="the train split of one_text must be a list of documents, got a single text"
    ):
        prepare(text)


def test_the_same_folder_is_prepared_once_however_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPER_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_stories_text(tmp_path)
    named = [prepare(get_source("tinystories"), folder).folder for folder in (Path(), tmp_path)]
    assert named[0] == named[1]


def test_a_text_is_no_data_for_classes(source: Any) -> None:
    task = TaskSpec(name="t", summary="", input_shape=(3,), classes=2, data=DataSettings(source="pydoc"))
    with pytest.raises(ConfigurationError, match="a text needs task_type='lm'"):
        load_task_data(task)


def test_features_of_any_shape_are_normalised_per_channel_and_a_constant_one_becomes_zero(source: Any) -> None:
    inputs = RNG.normal(5.0, 3.0, size=(200, 3))
    inputs[:, 1] = 7.0
    made_up = splits(train=(inputs, np.arange(200) % 2))
    batch, _ = next(iter(source(made_up, input_shape=(3,), classes=2).train))
    whole = torch.cat([inputs for inputs, _ in source(made_up, input_shape=(3,), classes=2).train])
    assert batch.dtype == torch.float32
    assert torch.allclose(whole.mean(0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(whole.std(0, correction=0), torch.tensor([1.0, 0.0, 1.0]), atol=1e-5)


def test_stored_values_survive_being_read(source: Any) -> None:
    """Floats are normalised in a copy: the memory map keeps what it holds."""
    data = source(splits(), input_shape=(3,), classes=2)
    first, again = next(iter(data.validation))[0], next(iter(data.validation))[0]
    assert torch.equal(first, again)


def test_a_reader_without_a_file_is_known_by_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook: what was prepared for one reader is not taken for another's."""
    monkeypatch.setenv("ESPER_RAY_CACHE", str(tmp_path))
    found = []
    for shift in (0, 1):
        code = f"def read(files): return {{n: (np.ones((4, 2)) + {shift}, np.arange(4)) for n in NAMES}}"
        scope: dict[str, Any] = {"np": np, "NAMES": ("train", "validation", "test")}
        exec(compile(code, "<cell>", "exec"), scope)
        read = scope["read"]
        found.append(prepare(DataSource("cell", "", 1, lambda _: [], read)).split("train")[0][0, 0].item())
    assert found == [1.0, 2.0]


# --- augmentation -------------------------------------------------------------------------------------------------


def test_every_augmented_image_is_a_shift_or_a_mirrored_shift_of_its_original() -> None:
    images = torch.from_numpy(RNG.integers(1, 256, (32, 3, 12, 10), dtype=np.uint8))
    augmentation = CropAndFlip()
    augmented = augmentation.apply(images, augmentation.draw(32, torch.Generator().manual_seed(0)))
    assert (augmented.shape, augmented.dtype) == (images.shape, images.dtype)
    seen = set()
    for image, result in zip(images, augmented, strict=True):
        padded = torch.nn.functional.pad(image, [4] * 4)
        shifts = [
            (top, left, mirrored)
            for top in range(9)
            for left in range(9)
            for mirrored in (False, True)
            if torch.equal(result, window(padded, top, left, mirrored))
        ]
        assert len(shifts) == 1
        seen.update(shifts)
    assert len({top for top, _, _ in seen}) > 5
    assert len({left for _, left, _ in seen}) > 5
    assert len({mirrored for _, _, mirrored in seen}) == 2


def window(padded: torch.Tensor, top: int, left: int, mirrored: bool) -> torch.Tensor:
    cut = padded[:, top : top + 12, left : left + 10]
    return cut.flip(2) if mirrored else cut


def test_augmentation_follows_from_the_seed_of_the_epoch_and_leaves_the_stored_images_alone() -> None:
    images = torch.from_numpy(RNG.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8))
    before = images.clone()
    statistics = ((0.0,), (1.0,))
    loader = SampleLoader(images, torch.arange(40), 16, "cpu", *statistics, True, CropAndFlip())
    plain = SampleLoader(images, torch.arange(40), 16, "cpu", *statistics, True)

    def epoch(loader: SampleLoader, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        loader.start_epoch(seed)
        inputs, targets = zip(*loader, strict=True)
        return torch.cat(inputs), torch.cat(targets)

    assert torch.equal(epoch(loader, 1)[0], epoch(loader, 1)[0])
    assert not torch.equal(epoch(loader, 1)[0], epoch(loader, 2)[0])
    assert torch.equal(epoch(loader, 1)[1], epoch(plain, 1)[1])
    assert not torch.equal(epoch(loader, 1)[0], epoch(plain, 1)[0])
    assert torch.equal(images, before)


# --- texts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_target_of_each_token_is_the_next_one(dtype: type) -> None:
    tokens = torch.from_numpy(np.arange(101).astype(dtype))
    loader = TokenLoader(tokens, 10, 4, "cpu")
    assert (loader.samples, len(loader)) == (10, 3)
    batches = list(loader)
    assert [inputs.shape for inputs, _ in batches] == [(4, 10), (4, 10), (2, 10)]
    assert torch.equal(torch.cat([inputs for inputs, _ in batches]).flatten(), torch.arange(100))
    assert all(torch.equal(targets, inputs + 1) for inputs, targets in batches)


def test_a_shuffled_text_is_cut_anew_each_epoch_into_sequences_that_do_not_overlap() -> None:
    loader = TokenLoader(torch.arange(101, dtype=torch.uint8), 10, 4, "cpu", shuffle=True)
    offsets = set()
    for seed in range(30):
        loader.start_epoch(seed)
        inputs, targets = (torch.cat(part) for part in zip(*loader, strict=True))
        assert torch.equal(targets, inputs + 1)
        starts = sorted(inputs[:, 0].tolist())
        assert all(b - a == 10 for a, b in itertools.pairwise(starts))
        assert len(starts) == loader.samples == 9
        offsets.add(starts[0])
    assert len(offsets) > 5


def test_a_limit_draws_sequences_from_all_over_the_text() -> None:
    loader = TokenLoader(torch.arange(250, dtype=torch.uint8), 10, 4, "cpu", shuffle=True, limit=5)
    starts = set()
    for seed in range(40):
        loader.start_epoch(seed)
        starts |= {int(inputs[0, 0]) // 10 for inputs, _ in loader}
        assert sum(len(inputs) for inputs, _ in loader) == 5
    assert len(starts) > 15
    assert TokenLoader(torch.arange(250, dtype=torch.uint8), 10, 4, "cpu", limit=3).samples == 3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("augmentation", [None, CropAndFlip()], ids=["as they are", "augmented"])
@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_side_by_side_are_those_of_each_loader(
    channels: int, augmentation: CropAndFlip | None, noise: float, shuffle: bool
) -> None:
    """Also where some of them see a part of the samples, and in the last, smaller batch."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 256, (50, channels, 8, 8), dtype=torch.uint8, generator=generator)
    targets = torch.arange(50) % 10
    statistics = (100.0,) * channels, (50.0,) * channels
    whole = SampleLoader(inputs, targets, 16, "cpu", *statistics, shuffle=shuffle, augmentation=augmentation)
    loaders = [whole.part(0.9, noise, 10, seed) if noise else copy.copy(whole) for seed in range(3)]
    for seed, loader in enumerate(loaders):
        loader.start_epoch(seed)
    together = list(iterate_batched(loaders))
    assert [len(found) for _, found in together] == ([16, 16, 13] if noise else [16, 16, 16, 2])
    for place, loader in enumerate(loaders):
        for (joined_inputs, joined_targets), (own_inputs, own_targets) in zip(together, loader, strict=True):
            assert torch.equal(joined_inputs.chunk(3, dim=1)[place], own_inputs)
            assert torch.equal(joined_targets[:, place], own_targets)


def test_cropping_does_not_depend_on_how_the_images_lie_in_memory() -> None:
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    for padding in (0, 2):
        crop = CropAndFlip(padding)
        drawn = crop.draw(6, torch.Generator().manual_seed(0))
        expected = crop.apply(images.contiguous(memory_format=torch.channels_last), drawn)
        assert torch.equal(crop.apply(images, drawn), expected)
