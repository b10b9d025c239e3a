"""RLlib's seeding without torch's deterministic mode, which nothing here wants."""

import torch
from ray.rllib.utils.debug import deterministic


def without_deterministic_mode() -> None:
    """Keeps RLlib from switching torch's deterministic mode on when it seeds this process.

    In that mode torch fills every new tensor, a third of a small epoch; to switch it on, or off, imports torch's whole
    compiler, 75 MB. RLlib does so with builds of torch that know no GPU; with others it seeds as it always did.
    """
    if torch.version.cuda is None:
        deterministic.set_torch_seed = _seed_torch


def _seed_torch(seed: int) -> None:
    torch.manual_seed(seed)
