"""RLlib's seeding without torch's deterministic mode, which nothing here wants."""

import torch
from ray.rllib.utils.debug import deterministic


def without_deterministic_mode() -> None:
    """Keeps RLlib from switching torch's deterministic mode on when it seeds this process.

    In that mode torch fills every new tensor, a third of a small epoch; to switch it on, or off, imports torch's whole
    compiler, 75 MB. Which switches of torch are set is decided by `esper_ray.numerics` alone.
    """
    deterministic.set_torch_seed = _seed_torch


def _seed_torch(seed: int) -> None:
    torch.manual_seed(seed)
