"""Data sets: read as published, prepared once, cut into batches."""

import gzip
import os
import struct
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from fast_tasks import FASHION_MNIST
from sklearn.datasets import load_digits

from esper_ray.data import SampleLoader, get_source, prepare
from esper_ray.data.formats import read_idx
from esper_ray.errors import DatasetError
from esper_ray.tasks import get_task_spec, load_task_data, load_test_data


def write_idx(path: Path, array: np.ndarray) -> None:
    content = b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def small_fashion(tmp_path: Path) -> Path:
    """Four small files in the published format, one of them not gzipped."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 50), ("t10k", 20)):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", rng.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", rng.integers(0, 10, count, dtype=np.uint8))
    labels = tmp_path / "t10k-labels-idx1-ubyte.gz"
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(gzip.decompress(labels.read_bytes()))
    labels.unlink()
    return tmp_path


def test_digits_are_split_three_ways_without_overlap_or_loss() -> None:
    prepared = prepare(get_source("digits"))
    splits = {name: prepared.split(name) for name in ("train", "validation", "test")}
    assert {name: len(targets) for name, (_, targets) in splits.items()} == {
        "train": 1000,
        "validation": 400,
        "test": 397,
    }
    together = torch.cat([inputs.flatten(1) for inputs, _ in splits.values()])
    original = torch.from_numpy(load_digits().images.astype(np.uint8)).flatten(1)
    assert sorted(map(tuple, together.tolist())) == sorted(map(tuple, original.tolist()))


def test_the_split_is_part_of_the_task_and_never_changes() -> None:
    _, targets = prepare(get_source("digits")).split("train")
    assert targets[:12].tolist() == [9, 0, 4, 0, 1, 2, 1, 0, 3, 7, 0, 3]


def test_fashion_mnist_is_read_in_its_published_format(small_fashion: Path) -> None:
    prepared = prepare(get_source("fashion_mnist"), small_fashion)
    sizes = {name: len(prepared.split(name)[1]) for name in ("train", "validation", "test")}
    assert sizes == {"train": 40, "validation": 10, "test": 20}
    images = read_idx(small_fashion / "t10k-images-idx3-ubyte.gz")
    assert torch.equal(prepared.split("test")[0][:, 0], torch.from_numpy(images.copy()))


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist_loads() -> None:
    data = load_task_data(get_task_spec("fashion_mnist"))
    assert (data.train.samples, data.validation.samples) == (10_000, 2_000)
    assert load_test_data(get_task_spec("fashion_mnist")).samples == 10_000
    inputs, targets = next(iter(data.train))
    assert inputs.shape == (128, 1, 28, 28)
    assert set(targets.tolist()) <= set(range(10))


def test_a_missing_data_set_says_where_it_looked_and_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="dataset-fashion-mnist") as caught:
        prepare(get_source("fashion_mnist"), tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("train-images-idx3-ubyte.gz", lambda b: gzip.compress(gzip.decompress(b)[:-1]), "truncated or altered"),
        ("train-images-idx3-ubyte.gz", lambda b: b[: len(b) // 2], "is truncated or altered"),
        ("train-images-idx3-ubyte.gz", lambda b: gzip.compress(b"hello"), "not an IDX file"),
        ("train-labels-idx1-ubyte.gz", lambda b: gzip.compress(b"\x00\x00\x08\x01\x00\x00"), "truncated or altered"),
        ("train-labels-idx1-ubyte.gz", lambda b: gzip.compress(gzip.decompress(b)[:-1] + b"\x0b"), "labels 0 to 9"),
    ],
)
def test_a_truncated_or_altered_file_is_refused(small_fashion: Path, name: str, damage, message: str) -> None:
    path = small_fashion / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DatasetError, match=message):
        prepare(get_source("fashion_mnist"), small_fashion)


def test_files_that_do_not_belong_together_are_refused(small_fashion: Path) -> None:
    write_idx(small_fashion / "train-labels-idx1-ubyte.gz", np.zeros(49, dtype=np.uint8))
    with pytest.raises(DatasetError, match="does not fit its labels"):
        prepare(get_source("fashion_mnist"), small_fashion)


def _prepare_in_process(folder: str) -> str:
    return str(prepare(get_source("fashion_mnist"), Path(folder)).folder)


def test_several_processes_may_prepare_the_same_data_at_once(
    small_fashion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("ESPER_RAY_CACHE", str(cache))
    with ProcessPoolExecutor(4) as pool:
        folders = set(pool.map(_prepare_in_process, [str(small_fashion)] * 8))
    assert len(folders) == 1
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [Path(folders.pop()).name]


def test_a_cache_that_cannot_be_written_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPER_RAY_CACHE", "/dev/null/cache")
    with pytest.raises(DatasetError, match=r"/dev/null/cache cannot be written.*ESPER_RAY_CACHE") as caught:
        prepare(get_source("digits"))
    assert "\n" not in str(caught.value)


def test_new_files_are_not_mistaken_for_old_ones(small_fashion: Path) -> None:
    before = prepare(get_source("fashion_mnist"), small_fashion)
    write_idx(small_fashion / "t10k-images-idx3-ubyte.gz", np.full((20, 28, 28), 9, dtype=np.uint8))
    after = prepare(get_source("fashion_mnist"), small_fashion)
    assert after.folder != before.folder
    assert after.split("test")[0].unique().tolist() == [9]
    os.utime(small_fashion / "t10k-images-idx3-ubyte.gz", (0, 0))  # another file, though of the same size
    assert prepare(get_source("fashion_mnist"), small_fashion).folder not in (before.folder, after.folder)


def test_batches_are_normalised_and_cover_each_sample_once() -> None:
    data = load_task_data(get_task_spec("digits"))
    data.train.start_epoch(5)
    inputs, targets = (torch.cat(parts) for parts in zip(*data.train, strict=True))
    assert len(data.train) == 16
    assert inputs.mean().abs() < 1e-3
    assert inputs.std() == pytest.approx(1.0, abs=1e-3)
    stored = prepare(get_source("digits")).split("train")[1]
    assert targets.bincount().tolist() == stored.bincount().tolist()


def test_the_order_follows_from_the_seed_of_the_epoch() -> None:
    loader = SampleLoader(
        torch.zeros(40, 1, 2, 2, dtype=torch.uint8), torch.arange(40), 16, "cpu", (0.0,), (1.0,), True
    )

    def order(seed: int) -> list[int]:
        loader.start_epoch(seed)
        return [int(t) for _, targets in loader for t in targets]

    first, second = order(1), order(2)
    assert first != second
    assert order(1) == first
    assert sorted(first) == list(range(40))


def test_the_prepared_file_is_not_changed_by_training() -> None:
    prepared = prepare(get_source("digits"))
    inputs, _ = prepared.split("train")
    inputs[:] = 0
    assert prepared.split("train")[0].sum() > 0


def test_loaders_of_another_host_share_the_tensors_and_keep_their_own_order() -> None:
    task = get_task_spec("digits")
    data = load_task_data(task)
    other = data.of_another_host()
    for loader, order_seed in ((data.train, 1), (other.train, 2)):
        loader.start_epoch(order_seed)
    interleaved = list(zip(data.train, other.train, strict=True))
    alone = load_task_data(task).train
    for place, order_seed in enumerate((1, 2)):
        alone.start_epoch(order_seed)
        for batches, (inputs, targets) in zip(interleaved, alone, strict=True):
            assert torch.equal(batches[place][0], inputs)
            assert torch.equal(batches[place][1], targets)
    assert other.train._inputs.data_ptr() == data.train._inputs.data_ptr()  # type: ignore[attr-defined]


def test_a_text_that_is_too_short_for_one_sequence_is_refused() -> None:
    task = get_task_spec("pydoc", {"data.sequence_length": 40_000, "host.context": 40_000})
    with pytest.raises(DatasetError, match="too few for one sequence of 40000"):
        load_task_data(task)
