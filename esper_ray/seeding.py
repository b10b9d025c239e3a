"""Random seeds: every stream of randomness is named, and derived from its parents alone.

Nothing depends on how many numbers somebody else drew before, so an epoch can be repeated on its own.
"""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """Purpose of a derived seed. The values are part of the reproducibility contract: never renumber."""

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


_GENERATORS = threading.RLock()
"""Held by the thread that draws from the global generators, or two hosts would draw from each other's."""


@contextmanager
def seeded_globally(seed: int) -> Iterator[None]:
    """Seeds the global generators of Python, numpy and torch, for code that draws from them. One thread at a time."""
    with _GENERATORS:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        yield


@contextmanager
def forked_generators(device: str | torch.device = "cpu") -> Iterator[None]:
    """Puts the states of torch's global generators, the CPU's and the device's, back afterwards. One thread at a time.

    Torch's initialisation and dropout know no other generators, and a process has one for all of its threads. So a
    second thread waits here until the first one is done.
    """
    device = torch.device(device)
    with _GENERATORS, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@contextmanager
def seeded(seed: int, device: str | torch.device = "cpu") -> Iterator[None]:
    """Seeds torch's global generators inside the context and puts their states back afterwards. One thread at a time.

    Args:
        seed: 0 to 2**63 − 1.
        device: whose generator is seeded besides the CPU's.
    """
    with forked_generators(device):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU, and put none of them back
        if torch.device(device).type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
