"""Checks that every data set must pass, whoever reads it: whole, finite, labelled, not empty."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esper_ray.data.source import SPLIT_NAMES, Split
from esper_ray.errors import DatasetError


def require_sound_samples(name: str, splits: Mapping[str, Split]) -> dict[str, Split]:
    """Returns the splits with inputs as uint8, int64 (all other integers) or float32, and labels as int64.

    Raises:
        DatasetError: a split is missing or empty, inputs and labels do not fit, a value is not finite, a label is not
            a whole number from 0, or the splits' inputs are of different types; the message names the split and the
            sample.
    """
    require_splits(name, splits)
    for split in SPLIT_NAMES:
        if not isinstance(splits[split], tuple) or len(splits[split]) != 2:
            raise DatasetError(f"the {split} split of {name} must be a pair of inputs and labels")
    sound = {split: _sound_split(f"the {split} split of {name}", *splits[split]) for split in SPLIT_NAMES}
    types = {split: str(inputs.dtype) for split, (inputs, _) in sound.items()}
    if len(set(types.values())) > 1:
        raise DatasetError(f"the splits of {name} have inputs of different types, {types}: give them all the same one")
    return sound


def require_sound_tokens(name: str, splits: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Returns the splits of a text.

    Raises:
        DatasetError: a split is missing or empty.
    """
    require_splits(name, splits)
    for split in SPLIT_NAMES:
        _require_content(f"the {split} split of {name}", splits[split])
    return dict(splits)


def require_splits(name: str, splits: Any) -> None:
    """Checks that a reader returned a dict with every split.

    Raises:
        DatasetError: it did not.
    """
    if not isinstance(splits, Mapping):
        raise DatasetError(f"the reader of {name} must return a dict of splits, got {type(splits).__name__}")
    missing = [split for split in SPLIT_NAMES if split not in splits]
    if missing:
        raise DatasetError(f"{name} has no split {', '.join(missing)}: its reader must return {', '.join(SPLIT_NAMES)}")


def _require_content(where: str, values: NDArray[Any]) -> None:
    if len(values) == 0:
        raise DatasetError(f"{where} is empty: give it samples, or share out the data otherwise")


def _sound_split(where: str, inputs: NDArray[Any], labels: NDArray[Any]) -> Split:
    inputs, labels = np.asarray(inputs), np.asarray(labels)
    _require_content(where, inputs)
    if inputs.ndim < 2 or labels.shape != (len(inputs),):
        raise DatasetError(
            f"{where} does not fit together: expected inputs (N, …) and labels (N,), "
            f"got {inputs.shape} and {labels.shape}"
        )
    if inputs.dtype.kind not in "buif" or labels.dtype.kind not in "iu":
        raise DatasetError(
            f"{where} has inputs of type {inputs.dtype} and labels of type {labels.dtype}: "
            "expected numbers, and whole numbers from 0"
        )
    if inputs.dtype.kind in "iu" and inputs.dtype != np.uint8:
        if int(inputs.max()) > np.iinfo(np.int64).max:
            raise DatasetError(f"{where} has inputs up to {inputs.max()}: expected whole numbers below 2**63")
        inputs = inputs.astype(np.int64)
    elif inputs.dtype != np.uint8:
        inputs = inputs.astype(np.float32)
        bad = np.flatnonzero(~np.isfinite(inputs).reshape(len(inputs), -1).all(axis=1))
        if len(bad):
            raise DatasetError(
                f"{where} has NaN or infinite values in {len(bad)} of {len(inputs)} samples, first in sample {bad[0]}: "
                "mend them, or leave these samples out"
            )
    if labels.min() < 0:
        raise DatasetError(f"{where} has labels from {labels.min()} to {labels.max()}: expected whole numbers from 0")
    return inputs, labels.astype(np.int64)
