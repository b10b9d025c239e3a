"""Cutting a split into batches without per-sample Python."""

from collections.abc import Iterator

import torch
from torch import Tensor


class BatchLoader:
    """Iterates over (inputs, targets) batches of one split; shuffled anew each epoch if asked to.

    On the CPU the stored values stay in the shared memory map; on another device they are copied there once. Either
    way a batch is one gather, one conversion and one normalisation.

    Args:
        inputs: (N, C, H, W) uint8.
        targets: (N,) int64.
        batch_size: samples per batch; the last batch holds the rest.
        device: where the batches are made.
        mean, std: per channel, in the units of `inputs`; batches are (inputs − mean)/std, float32.
        shuffle: draw a new order each epoch from the seed given to `start_epoch`.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        batch_size: int,
        device: str | torch.device,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        shuffle: bool = False,
    ) -> None:
        self._inputs = inputs.to(device)
        self._targets = targets.to(device)
        self._batch_size = batch_size
        self._offset = -torch.tensor(mean, device=device).view(1, -1, 1, 1)
        self._scale = 1.0 / torch.tensor(std, device=device).view(1, -1, 1, 1)
        self._shuffle = shuffle
        self._order_seed = 0

    def __len__(self) -> int:
        return -(-len(self._targets) // self._batch_size)

    @property
    def samples(self) -> int:
        """Number of samples in an epoch."""
        return len(self._targets)

    def start_epoch(self, order_seed: int) -> None:
        """Sets the seed of the order in which the next epoch visits the samples."""
        self._order_seed = order_seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not self._shuffle:
            for start in range(0, len(self._targets), self._batch_size):
                chosen = slice(start, start + self._batch_size)
                yield self._normalised(self._inputs[chosen]), self._targets[chosen]
            return
        generator = torch.Generator().manual_seed(self._order_seed)
        order = torch.randperm(len(self._targets), generator=generator).to(self._targets.device)
        for indices in order.split(self._batch_size):
            yield self._normalised(self._inputs[indices]), self._targets[indices]

    def _normalised(self, stored: Tensor) -> Tensor:
        return stored.float().add_(self._offset).mul_(self._scale)
