"""Turning documents into tokens: bytes, or the tokens of GPT-2."""

from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from esper_ray.errors import DatasetError
from esper_ray.optional import needs, optional

VOCABULARIES = {"bytes": 256, "gpt2": 50_257}
"""Tokenizer → number of tokens."""

_GPT2_FILE = "tokenizer.json"
_GPT2_REPOSITORY = "openai-community/gpt2"
_GPT2_END = "<|endoftext|>"
_DOCUMENTS_AT_ONCE = 4096


class Tokenizer(Protocol):
    """Turns documents into tokens."""

    @property
    def files(self) -> list[Path]:
        """The files that the tokens follow from."""
        ...

    def encode(self, documents: Iterable[str]) -> NDArray[Any]:
        """Returns the tokens of all documents, each followed by an end token: (N,) uint8 or uint16."""
        ...


class ByteTokenizer:
    """UTF-8 bytes; byte 0, which no text holds, ends a document."""

    @property
    def files(self) -> list[Path]:
        """Needs none."""
        return []

    def encode(self, documents: Iterable[str]) -> NDArray[np.uint8]:
        """Returns (N,) uint8."""
        joined = bytearray()
        for document in documents:
            joined += document.encode() + b"\0"
        return np.frombuffer(joined, np.uint8)


class GPT2Tokenizer:
    """GPT-2's byte-level tokens.

    Args:
        path: the published `tokenizer.json`.

    Raises:
        DatasetError: the library is not installed, or the file is not GPT-2's.
    """

    def __init__(self, path: Path) -> None:
        found = optional("tokenizers", "Tokenizer")
        if found is None:
            install = "datasets tokenizers (the extra [hub])"
            raise DatasetError(f"the tokenizer gpt2 {needs('tokenizers', install)}")
        self._path = path
        try:
            self._tokenizer = found[0].from_file(str(path))
        except Exception as error:  # the library raises Exception itself
            raise DatasetError.altered(path, error) from error
        size, end = self._tokenizer.get_vocab_size(), self._tokenizer.token_to_id(_GPT2_END)
        if size != VOCABULARIES["gpt2"] or end is None:
            raise DatasetError(
                f"{path} is not GPT-2's tokenizer: expected {VOCABULARIES['gpt2']} tokens with {_GPT2_END}, got {size}"
            )
        self._end = end

    @property
    def files(self) -> list[Path]:
        """The published file."""
        return [self._path]

    def encode(self, documents: Iterable[str]) -> NDArray[np.uint16]:
        """Returns (N,) uint16."""
        joined = array("H")
        for batch in _batches(documents):
            for encoding in self._tokenizer.encode_batch(batch):
                joined.extend(encoding.ids)
                joined.append(self._end)
        return np.frombuffer(joined, np.uint16)


def find_gpt2_tokenizer(data_dir: Path | None, hub: bool) -> Path | None:
    """Returns GPT-2's `tokenizer.json`: in the data folder, in the hub's cache or, if `hub`, fetched; else None.

    Without the library `tokenizers` there is none to be found.

    Raises:
        DatasetError: the hub was asked and could not be reached.
    """
    if optional("tokenizers", "Tokenizer") is None:
        return None
    if data_dir is not None and (data_dir / _GPT2_FILE).is_file():
        return data_dir / _GPT2_FILE
    found = optional("huggingface_hub", "try_to_load_from_cache", "hf_hub_download")
    if found is None:
        return None
    look_up, download = found
    cached = look_up(_GPT2_REPOSITORY, _GPT2_FILE)
    if isinstance(cached, str):
        return Path(cached)
    if not hub:
        return None
    try:
        return Path(download(_GPT2_REPOSITORY, _GPT2_FILE))
    except Exception as error:  # network, hub and cache each raise their own
        reason = " ".join(str(error).split())
        raise DatasetError(
            f"GPT-2's tokenizer cannot be fetched from the hub ({_GPT2_REPOSITORY}): {type(error).__name__}: {reason}; "
            "see to the network, or --set data.tokenizer=bytes"
        ) from error


def make_tokenizer(name: str, data_dir: Path | None, hub: bool) -> Tokenizer:
    """Returns the tokenizer "bytes" or "gpt2".

    Raises:
        DatasetError: GPT-2's is not on this machine.
    """
    if name == "bytes":
        return ByteTokenizer()
    path = find_gpt2_tokenizer(data_dir, hub)
    if path is None:
        where = f"in {data_dir} and " if data_dir else ""
        raise DatasetError(
            f"GPT-2's tokenizer not found: looked for {_GPT2_FILE} {where}in the hub's cache; install "
            f"tokenizers, put the {_GPT2_FILE} of {_GPT2_REPOSITORY} in the data folder or use --hub, or "
            "--set data.tokenizer=bytes"
        )
    return GPT2Tokenizer(path)


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(documents)
    while batch := list(islice(iterator, _DOCUMENTS_AT_ONCE)):
        yield batch
