"""Random seeds: every stream of randomness is named, and derived from its parents alone.

Nothing depends on how many numbers somebody else drew before, so an epoch can be repeated on its own.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """What a derived seed is for. The values are part of the reproducibility contract: never renumber."""

    EPISODE = 1
    HOST = 2
    SEED_MODULE = 3
    EPOCH = 4
    SHUFFLE = 5
    DECISION = 6
    WAIT_ONLY = 7
    LEARNER = 8
    HELD_OUT = 9
    HOST_POOL = 10
    HOST_DRAW = 11
    DATA_DRAW = 12


def derive_seed(parent: int, stream: Stream, *indices: int) -> int:
    """Returns the seed, 0 to 2**63 − 1, of a stream under `parent`, which is such a seed as well."""
    state = np.random.SeedSequence([parent, int(stream), *indices]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def seed_global(seed: int) -> None:
    """Seeds the global generators of Python, numpy and torch, for code that draws from them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def seeded(seed: int, device: str | torch.device = "cpu") -> Iterator[None]:
    """Seeds torch's global generators inside the context and puts their states back afterwards."""
    device = torch.device(device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
