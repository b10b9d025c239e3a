"""Small files in the exact format in which each data set is published."""

import gzip
import io
import json
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

CIFAR_BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
STORIES = [f"Once upon a time there was a number {n}. It met {n + 1} — and they were happy." for n in range(60)]


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    content = b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def cifar_images(count: int, seed: int) -> tuple[NDArray[np.uint8], list[int]]:
    """Images whose label shows: the label's channel and height of a bright bar."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, count)
    images = rng.integers(0, 64, (count, 3, 32, 32), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[label % 3, 3 * label : 3 * label + 3] = 255
    return images, labels.tolist()


def cifar_batch(name: str, images: NDArray[np.uint8], labels: list[int]) -> bytes:
    """One pickled batch, of protocol 2 with keys and strings as bytes, as Python 2 wrote it."""
    batch = {
        b"batch_label": name.encode(),
        b"labels": labels,
        b"data": images.reshape(len(images), -1),
        b"filenames": [f"{name}_{i}.png".encode() for i in range(len(images))],
    }
    return pickle.dumps(batch, protocol=2)


def cifar_batches(per_batch: int = 20) -> dict[str, bytes]:
    return {name: cifar_batch(name, *cifar_images(per_batch, seed)) for seed, name in enumerate(CIFAR_BATCHES)}


def write_cifar_archive(folder: Path, batches: dict[str, bytes]) -> Path:
    path = folder / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in {**batches, "batches.meta": pickle.dumps({}, 2), "readme.html": b"<html>"}.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_cifar_folder(folder: Path, batches: dict[str, bytes]) -> Path:
    inner = folder / "cifar-10-batches-py"
    inner.mkdir()
    for name, content in batches.items():
        (inner / name).write_bytes(content)
    return inner


def image_table(images: NDArray[np.uint8], labels: list[int], column: str) -> pa.Table:
    """Images as PNG in structs {bytes, path}, as Hugging Face `datasets` stores them."""
    encoded = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0).squeeze()).save(buffer, format="PNG")
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table({column: pa.array(encoded, kind), "label": pa.array(labels, pa.int64())})


def write_cifar_parquet(folder: Path) -> None:
    inner = folder / "plain_text"
    inner.mkdir()
    for name, count, seed in (("train", 100, 0), ("test", 20, 1)):
        pq.write_table(image_table(*cifar_images(count, seed), "img"), inner / f"{name}-00000-of-00001.parquet")


def write_stories_text(folder: Path) -> None:
    for name, stories in (("train", STORIES), ("valid", STORIES[:20])):
        text = "\n".join(f"{story}\n<|endoftext|>" for story in stories) + "\n"
        (folder / f"TinyStoriesV2-GPT4-{name}.txt").write_text(text, encoding="utf-8")


def write_stories_parquet(folder: Path) -> None:
    inner = folder / "data"
    inner.mkdir()
    shards = {"train-00000-of-00002": STORIES[:40], "train-00001-of-00002": STORIES[40:]}
    for name, stories in {**shards, "validation-00000-of-00001": STORIES[:20]}.items():
        pq.write_table(pa.table({"text": stories}), inner / f"{name}-0123456789abcdef.parquet")


def write_gpt2_tokenizer(path: Path) -> None:
    """A tokenizer.json of GPT-2's kind and size: its 256 bytes, filler instead of its merges, its end token."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fillers = [f"filler{n}" for n in range(50_256 - len(alphabet))]
    vocabulary = {token: number for number, token in enumerate([*alphabet, *fillers])}
    end = {
        **{"id": 50_256, "content": "<|endoftext|>", "special": True},
        **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
    }
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {
        **{"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False},
        **{"continuing_subword_prefix": "", "end_of_word_suffix": "", "vocab": vocabulary, "merges": []},
    }
    content = {
        **{"version": "1.0", "truncation": None, "padding": None, "added_tokens": [end], "normalizer": None},
        **{"pre_tokenizer": byte_level, "post_processor": byte_level, "decoder": byte_level, "model": model},
    }
    path.write_text(json.dumps(content))
