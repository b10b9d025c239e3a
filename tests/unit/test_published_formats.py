"""Data sets in their published formats: read whole, or refused with the reason."""

import gzip
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from writers import (
    STORIES,
    cifar_batch,
    cifar_batches,
    cifar_images,
    image_table,
    write_cifar_archive,
    write_cifar_folder,
    write_cifar_parquet,
    write_gpt2_tokenizer,
    write_stories_parquet,
    write_stories_text,
)

from esper_ray.data import PreparedData, get_source, prepare
from esper_ray.data.published.cifar10 import _from_tables as cifar_from_tables
from esper_ray.data.published.tinystories import _from_tables as stories_from_tables
from esper_ray.errors import DatasetError
from esper_ray.tasks import get_task_spec, load_task_data, load_test_data, with_tokenizer


def sizes(prepared: PreparedData) -> dict[str, int]:
    return {name: len(prepared.split(name)[1]) for name in ("train", "validation", "test")}


def text_of(prepared: PreparedData, split: str) -> list[str]:
    return bytes(prepared.tokens(split).numpy()).decode().split("\0")[:-1]


# --- CIFAR-10 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_cifar_archive, write_cifar_folder])
def test_cifar10_is_read_from_its_python_version(tmp_path: Path, write: object) -> None:
    write(tmp_path, cifar_batches())  # type: ignore[operator]
    prepared = prepare(get_source("cifar10"), tmp_path)
    assert sizes(prepared) == {"train": 80, "validation": 20, "test": 20}
    images, labels = prepared.split("test")
    expected, expected_labels = cifar_images(20, seed=5)
    assert torch.equal(images, torch.from_numpy(expected))
    assert labels.tolist() == expected_labels
    together = torch.cat([prepared.split(name)[0] for name in ("train", "validation")]).flatten(1)
    originals = np.concatenate([cifar_images(20, seed)[0] for seed in range(5)]).reshape(100, -1)
    assert sorted(map(tuple, together.tolist())) == sorted(map(tuple, originals.tolist()))


def test_cifar10_is_read_from_the_hub_s_parquet_files(tmp_path: Path) -> None:
    write_cifar_parquet(tmp_path)
    prepared = prepare(get_source("cifar10"), tmp_path)
    assert sizes(prepared) == {"train": 80, "validation": 20, "test": 20}
    images, labels = prepared.split("test")
    expected, expected_labels = cifar_images(20, seed=1)
    assert torch.equal(images, torch.from_numpy(expected))
    assert labels.tolist() == expected_labels


def test_fashion_mnist_is_read_from_the_hub_s_parquet_files(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 1, 28, 28), dtype=np.uint8)
    for name, part in (("train", images[:20]), ("test", images[20:])):
        pq.write_table(image_table(part, [3] * len(part), "image"), tmp_path / f"{name}-00000-of-00001.parquet")
    prepared = prepare(get_source("fashion_mnist"), tmp_path)
    assert sizes(prepared) == {"train": 16, "validation": 4, "test": 10}
    assert torch.equal(prepared.split("test")[0], torch.from_numpy(images[20:]))


def test_a_damaged_cifar_archive_is_refused(tmp_path: Path) -> None:
    path = write_cifar_archive(tmp_path, cifar_batches())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match=r"cifar-10-python.tar.gz is truncated or altered.*fetch it again"):
        prepare(get_source("cifar10"), tmp_path)
    path.write_bytes(whole[:5000] + bytes(100) + whole[5100:])
    with pytest.raises(DatasetError, match=r"is (truncated or )?altered.*fetch it again"):
        prepare(get_source("cifar10"), tmp_path)


def altered(name: str, content: bytes) -> dict[str, bytes]:
    return {**cifar_batches(), name: content}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (cifar_batches()["data_batch_2"][:-2000], "data_batch_2 is truncated or altered"),
        (pickle.dumps({b"data": np.zeros((4, 100), np.uint8)}, 2), r"expected b'data' \(N, 3072\) uint8"),
        (pickle.dumps({b"data": np.zeros((4, 3072), np.uint8), b"labels": [1, 2]}, 2), "4 images and 2 labels"),
        (cifar_batch("data_batch_2", *(cifar_images(4, 0)[0], [0, 1, 2, 10])), "expected labels 0 to 9, got 0 to 10"),
        (
            cifar_batch("data_batch_2", np.zeros((10_000, 3, 32, 32), np.uint8), [0] * 10_000),
            "MD5 checksum is not d4bb",
        ),
        (pickle.dumps({b"data": subprocess.Popen}, 2), "which is no data"),
    ],
)
def test_an_altered_cifar_batch_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    write_cifar_folder(tmp_path, altered("data_batch_2", content))
    with pytest.raises(DatasetError, match=message) as caught:
        prepare(get_source("cifar10"), tmp_path)
    assert "\n" not in str(caught.value)


def test_an_incomplete_cifar_archive_is_refused(tmp_path: Path) -> None:
    batches = cifar_batches()
    del batches["data_batch_3"]
    write_cifar_archive(tmp_path, batches)
    with pytest.raises(DatasetError, match="it lacks data_batch_3"):
        prepare(get_source("cifar10"), tmp_path)


def test_damaged_parquet_is_refused(tmp_path: Path) -> None:
    write_cifar_parquet(tmp_path)
    path = next(tmp_path.rglob("train-*"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DatasetError, match="truncated or altered"):
        prepare(get_source("cifar10"), tmp_path)
    pq.write_table(image_table(np.zeros((4, 3, 28, 28), np.uint8), [0] * 4, "img"), path)
    with pytest.raises(DatasetError, match=r"image 0 is \('RGB', 28, 28\).*another data set"):
        prepare(get_source("cifar10"), tmp_path)
    pq.write_table(image_table(np.zeros((4, 3, 32, 32), np.uint8), [0] * 4, "image"), path)
    with pytest.raises(DatasetError, match="has no column img: it is another data set"):
        prepare(get_source("cifar10"), tmp_path)


def test_cifar10_trains_on_augmented_batches_of_the_right_shape(tmp_path: Path) -> None:
    write_cifar_archive(tmp_path, cifar_batches())
    data = load_task_data(get_task_spec("cifar10"), data_dir=tmp_path)
    data.train.start_epoch(1)
    inputs, targets = next(iter(data.train))
    assert (inputs.shape, inputs.dtype, targets.shape) == ((80, 3, 32, 32), torch.float32, (80,))
    assert torch.equal(next(iter(data.validation))[0], next(iter(data.validation))[0])


# --- texts --------------------------------------------------------------------------------------------------------


def test_pydoc_is_real_english_and_no_split_repeats_another() -> None:
    prepared = prepare(get_source("pydoc"))
    parts = {name: "\n\n".join(text_of(prepared, name)).split("\n\n") for name in ("train", "validation", "test")}
    lengths = {name: len(prepared.tokens(name)) for name in parts}
    assert sum(lengths.values()) > 300_000
    assert all(lengths[name] > 0.05 * sum(lengths.values()) for name in ("validation", "test"))
    assert "Floating point literals are described by" in " ".join("\n".join(parts["train"]).split())
    paragraphs = [set(filter(None, part)) for part in parts.values()]
    assert not paragraphs[0] & paragraphs[1]
    assert not (paragraphs[0] | paragraphs[1]) & paragraphs[2]


@pytest.mark.parametrize("write", [write_stories_text, write_stories_parquet])
def test_tinystories_is_read_in_both_published_formats(tmp_path: Path, write: object) -> None:
    write(tmp_path)  # type: ignore[operator]
    prepared = prepare(get_source("tinystories"), tmp_path)
    assert text_of(prepared, "train") == STORIES
    assert text_of(prepared, "validation") == STORIES[:20:2]
    assert text_of(prepared, "test") == STORIES[1:20:2]


def test_a_damaged_story_file_is_refused(tmp_path: Path) -> None:
    write_stories_text(tmp_path)
    path = tmp_path / "TinyStoriesV2-GPT4-train.txt"
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    with pytest.raises(DatasetError, match=r"expected <\|endoftext\|> after the last story"):
        prepare(get_source("tinystories"), tmp_path)
    path.write_bytes(whole[:100] + b"\xff\xfe" + whole[100:])
    with pytest.raises(DatasetError, match="is not UTF-8"):
        prepare(get_source("tinystories"), tmp_path)


def test_stories_become_gpt2_tokens_where_the_tokenizer_is_at_hand_and_bytes_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    write_stories_text(tmp_path)
    task = get_task_spec("tinystories", {"data.sequence_length": 16})
    as_bytes = with_tokenizer(task, tmp_path)
    assert (as_bytes.data.tokenizer, as_bytes.classes) == ("bytes", 256)

    write_gpt2_tokenizer(tmp_path / "tokenizer.json")
    as_tokens = with_tokenizer(task, tmp_path)
    assert (as_tokens.data.tokenizer, as_tokens.classes) == ("gpt2", 50_257)
    inputs, targets = next(iter(load_test_data(as_tokens, data_dir=tmp_path)))
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    prepared = prepare(get_source("tinystories"), tmp_path, tokenizer="gpt2")
    assert prepared.tokens("train").dtype == torch.uint16
    ends = (prepared.tokens("train").long() == 50_256).sum().item()
    assert ends == len(STORIES)


def test_gpt2_tokens_without_the_tokenizer_are_refused_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    write_stories_text(tmp_path)
    with pytest.raises(DatasetError, match=r"GPT-2's tokenizer not found.*data.tokenizer=bytes"):
        prepare(get_source("tinystories"), tmp_path, tokenizer="gpt2")
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(DatasetError, match=r"tokenizer.json is truncated or altered"):
        prepare(get_source("tinystories"), tmp_path, tokenizer="gpt2")


# --- the hub ------------------------------------------------------------------------------------------------------


def test_what_the_hub_s_library_returns_is_read_as_the_files_are(tmp_path: Path) -> None:
    """The same small parquet files, through Hugging Face `datasets` instead of pyarrow."""
    import datasets

    images, texts = tmp_path / "images", tmp_path / "texts"
    for folder, write in ((images, write_cifar_parquet), (texts, write_stories_parquet)):
        folder.mkdir()
        write(folder)

    def tables(names: dict[str, str], folder: Path) -> dict[str, object]:
        files = {name: str(folder / pattern) for name, pattern in names.items()}
        loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "hf"))
        return {name: split.with_format("arrow")[:] for name, split in loaded.items()}

    splits = cifar_from_tables(tables({"train": "train-*", "test": "test-*"}, images / "plain_text"))
    prepared = prepare(get_source("cifar10"), images)
    for name, (pixels, labels) in splits.items():
        assert torch.equal(prepared.split(name)[0], torch.from_numpy(pixels))
        assert torch.equal(prepared.split(name)[1], torch.from_numpy(labels))
    stories = stories_from_tables(tables({"train": "train-*", "validation": "validation-*"}, texts / "data"))
    assert list(stories["train"]) == STORIES


def test_a_hub_that_cannot_be_reached_is_one_line_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "from esper_ray.data import get_source, prepare\n"
        "from esper_ray.errors import DatasetError\n"
        "try: prepare(get_source('cifar10'), hub=True)\n"
        "except DatasetError as error: print(error)"
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.count("\n") == 1
    assert "cifar10 cannot be fetched from the hub (uoft-cs/cifar10)" in answer.stdout
    assert "or pass a folder with --data-dir" in answer.stdout


def test_the_hub_s_library_is_not_loaded_unless_asked_for(tmp_path: Path) -> None:
    write_cifar_archive(tmp_path, cifar_batches())
    code = (
        "import sys; from pathlib import Path; from esper_ray.tasks import get_task_spec, load_task_data\n"
        "load_task_data(get_task_spec('cifar10'), data_dir=Path(sys.argv[1]))\n"
        "load_task_data(get_task_spec('pydoc'))\n"
        "print({'datasets', 'tokenizers', 'huggingface_hub'} & set(sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert answer.stdout == "set()\n"


def test_hub_and_folder_exclude_each_other_and_not_every_source_has_a_hub(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="exclude each other"):
        prepare(get_source("cifar10"), tmp_path, hub=True)
    with pytest.raises(DatasetError, match="the hub has no copy of digits"):
        prepare(get_source("digits"), hub=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar10", "looked in {folder} for cifar-10-python.tar.gz, cifar-10-batches-py with all six batches"),
        ("tinystories", "looked in {folder} for TinyStoriesV2-GPT4-train.txt"),
    ],
)
def test_a_missing_data_set_says_where_it_looked_and_what_to_do(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        prepare(get_source(name), tmp_path)
    assert message.format(folder=tmp_path) in str(caught.value)
    assert "--data-dir" in str(caught.value)
    assert "--hub" in str(caught.value)
    with pytest.raises(DatasetError, match="--data-dir"):
        prepare(get_source(name))


def test_gzip_of_an_idx_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    from esper_ray.data.formats import read_idx

    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(b"\x00\x00\x08\x01\x00\x00\x00\x04abcd")[:-6])
    with pytest.raises(DatasetError, match="is truncated or altered"):
        read_idx(path)


def test_missing_or_mixed_shards_are_refused(tmp_path: Path) -> None:
    write_stories_parquet(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "data", copy)
    with pytest.raises(DatasetError, match="holds parquet files in several folders"):
        prepare(get_source("tinystories"), tmp_path)
    assert text_of(prepare(get_source("tinystories"), copy), "train") == STORIES
    next(copy.glob("train-00001*")).unlink()
    with pytest.raises(DatasetError, match="does not hold every shard of split train: found train-00000-of-00002"):
        prepare(get_source("tinystories"), copy)


def test_rows_without_a_story_are_refused(tmp_path: Path) -> None:
    write_stories_parquet(tmp_path)
    pq.write_table(pa.table({"text": ["a", None]}), next(tmp_path.rglob("validation-*")))
    with pytest.raises(DatasetError, match="validation split of tinystories has rows without a story"):
        prepare(get_source("tinystories"), tmp_path)


def test_a_file_that_is_no_story_file_is_refused_at_once(tmp_path: Path) -> None:
    write_stories_text(tmp_path)
    (tmp_path / "TinyStoriesV2-GPT4-train.txt").write_bytes(b"x" * (9 << 20))
    with pytest.raises(DatasetError, match=r"is no file of TinyStories: no <\|endoftext\|> in"):
        prepare(get_source("tinystories"), tmp_path)
