"""Cutting a split into batches without per-sample Python."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor
from typing_extensions import Self

_RESIDENT_BYTES = 512 * 2**20
"""Largest split that is kept on another device than the CPU; of a larger one each batch is copied there."""


class Augmentation(Protocol):
    """A random change of training samples."""

    def draw(self, samples: int, generator: torch.Generator) -> Tensor:
        """Returns the random draws for the samples of one epoch, (samples, …) on the CPU."""
        ...

    def apply(self, inputs: Tensor, drawn: Tensor) -> Tensor:
        """Returns the augmented batch (N, …), as it is stored, for its rows (N, …) of the random draws."""
        ...


class BatchLoader(ABC):
    """Iterates over (inputs, targets) batches of one split, in an order that follows from `start_epoch`'s seed.

    On the CPU the stored values stay in the shared memory map; on another device they are copied there once, or batch
    by batch where they are too large.

    Args:
        samples: samples of one epoch.
        batch_size: samples per batch; the last batch holds the rest.
    """

    def __init__(self, samples: int, batch_size: int) -> None:
        self._samples = samples
        self._batch_size = batch_size
        self._order_seed = 0

    def __len__(self) -> int:
        return -(-self._samples // self._batch_size)

    @property
    def samples(self) -> int:
        """Number of samples in an epoch."""
        return self._samples

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the input of one sample."""

    def start_epoch(self, order_seed: int) -> None:
        """Sets the seed of everything that is random in the next epoch: order, augmentation, places in a text."""
        self._order_seed = order_seed

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self._order_seed)

    @abstractmethod
    def part(self, share: float, label_noise: float, classes: int, seed: int) -> Self:
        """Returns a loader of a share of the samples, drawn from `seed`; this one stays as it is.

        Args:
            share: above 0, at most 1; at least one sample is taken.
            label_noise: share of these samples whose label is replaced by another one; of a text 0.
            classes: number of labels that there are.
            seed: what is drawn follows from it.
        """

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the batches of one epoch."""


class SampleLoader(BatchLoader):
    """Batches of labelled samples: one gather, one conversion and one standardisation each.

    Args:
        inputs: (N, channels, …) uint8, int64 or float32.
        targets: (N,) int64.
        batch_size: samples per batch.
        device: where the batches are made.
        mean, std: per channel, in the units of `inputs`; batches are (inputs − mean)/std, float32. Empty: batches hold
            the inputs as they are, integers as int64.
        shuffle: draw a new order each epoch.
        augmentation: changes the stored values of each batch, at random.
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
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__(len(targets), batch_size)
        self._device = torch.device(device)
        home = _device_for(inputs, device)
        self._inputs = inputs.to(home).movedim(1, -1).contiguous()  # (N, …, channels), as prepared data lies on disk
        self._targets = targets.to(home)
        places = self._inputs[0].numel() // inputs.shape[1]
        self._standardises = bool(mean)
        self._offset = -torch.tensor(mean, device=device).repeat(places)
        self._scale = (1.0 / torch.tensor(std, device=device)).repeat(places)
        self._shuffle = shuffle
        self._augmentation = augmentation
        self._rows: Tensor | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the input of one sample, (channels, …)."""
        *places, channels = self._inputs.shape[1:]
        return (channels, *places)

    def part(self, share: float, label_noise: float, classes: int, seed: int) -> Self:
        """Returns a loader of some samples, of which some have a wrong label."""
        assert self._rows is None, "a part is drawn from the whole"
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(self._targets), generator=generator)[: max(1, round(share * len(self._targets)))]
        home = self._targets.device
        wrong = rows[: round(label_noise * len(rows))]
        part = copy.copy(self)
        part._samples, part._rows, part._targets = len(rows), rows.to(home), self._targets.clone()
        shift = torch.randint(1, classes, (len(wrong),), generator=generator)
        part._targets[wrong.to(home)] = (self._targets[wrong.to(home)] + shift.to(home)) % classes
        return part

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for inputs, targets in self._batches([self]):
            yield inputs.squeeze(1).movedim(-1, 1), targets.squeeze(1)

    def iterate_batched(self, loaders: "Sequence[SampleLoader]") -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the batches of loaders of the same tensors as one, the first of which this is.

        Shape:
            inputs (N, K·channels, …), loader after loader; targets (N, K).
        """
        for inputs, targets in self._batches(loaders):
            yield inputs.movedim(1, -2).flatten(-2).movedim(-1, 1), targets

    def shares_data_with(self, other: BatchLoader) -> bool:
        """Returns whether another loader cuts the same tensors into batches of the same size."""
        return (
            isinstance(other, SampleLoader)
            and other._inputs is self._inputs
            and other._targets is self._targets
            and other._augmentation is self._augmentation
            and (other._samples, other._batch_size) == (self._samples, self._batch_size)
        )

    def _batches(self, loaders: "Sequence[SampleLoader]") -> Iterator[tuple[Tensor, Tensor]]:
        """Yields inputs (N, K, …, channels) and targets (N, K)."""
        if not self._shuffle and self._rows is None:  # the same for all of them
            for start in range(0, self._samples, self._batch_size):
                chosen = slice(start, start + self._batch_size)
                inputs, targets = self._prepared(self._inputs[chosen], self._targets[chosen])
                count = len(targets), len(loaders)
                yield inputs[:, None].expand(*count, *inputs.shape[1:]), targets[:, None].expand(count)
            return
        orders, draws = zip(*(loader._draw_epoch() for loader in loaders), strict=True)
        order = torch.stack(orders, dim=1)
        drawn = None if draws[0] is None else torch.stack(draws, dim=1)
        for start in range(0, self._samples, self._batch_size):
            chosen = slice(start, start + self._batch_size)
            rows = order[chosen].flatten()
            inputs, targets = self._prepared(
                self._inputs.index_select(0, rows),
                self._targets.index_select(0, rows),
                None if drawn is None else drawn[chosen].flatten(0, 1),
            )
            yield inputs.unflatten(0, (-1, len(loaders))), targets.unflatten(0, (-1, len(loaders)))

    def _draw_epoch(self) -> tuple[Tensor, Tensor | None]:
        """Returns the rows of an epoch in their order, and the random draws for the augmentation of each."""
        generator = self._generator()
        order = torch.randperm(self._samples, generator=generator) if self._shuffle else torch.arange(self._samples)
        order = _to_device(order, self._targets.device)
        drawn = None
        if self._augmentation is not None:
            drawn = _to_device(self._augmentation.draw(self._samples, generator), self._device)
        return order if self._rows is None else self._rows[order], drawn

    def _prepared(self, stored: Tensor, targets: Tensor, drawn: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns augmented and standardised inputs (N, …, channels), and targets, on the device."""
        inputs = _to_device(stored, self._device)
        if self._augmentation is not None and drawn is not None:
            inputs = self._augmentation.apply(inputs.movedim(-1, 1), drawn).movedim(1, -1)
        kind = torch.float32 if self._standardises or inputs.is_floating_point() else torch.int64
        values = inputs.to(kind, copy=True).contiguous()  # inputs may be the memory map itself
        if self._standardises:  # whole samples: a few channels make slow inner loops
            values.flatten(1).add_(self._offset).mul_(self._scale)
        return values, _to_device(targets, self._device)


class TokenLoader(BatchLoader):
    """Batches of sequences of a text: inputs (N, T), and as targets (N, T) the same one token later; int64.

    Args:
        tokens: (L,) uint8 or uint16 (or its bits as int16), L > T.
        sequence_length: T, tokens per sequence.
        batch_size: sequences per batch.
        device: where the batches are made.
        shuffle: cut the text anew each epoch, from a random offset on, and visit the sequences in random order;
            else always the same sequences in their order, side by side.
        limit: sequences of an epoch, at most: of all those, as many as this.
    """

    def __init__(
        self,
        tokens: Tensor,
        sequence_length: int,
        batch_size: int,
        device: str | torch.device,
        shuffle: bool = False,
        limit: int | None = None,
    ) -> None:
        whole = (len(tokens) - 1) // sequence_length
        moves = shuffle and whole > 1  # a sequence is given up so that the cuts can move by up to its length
        self._available = whole - 1 if moves else whole
        self._offsets = sequence_length if moves else 1
        super().__init__(min(self._available, limit or self._available), batch_size)
        self._device = torch.device(device)
        if tokens.dtype == torch.uint16:
            tokens = tokens.view(torch.int16)  # a GPU gathers no uint16
        self._tokens = tokens.to(_device_for(tokens, device))
        self._length = sequence_length
        self._within = torch.arange(sequence_length + 1, device=self._tokens.device)
        self._shuffle = shuffle
        self._limit = limit

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the input of one sample, (tokens,)."""
        return (self._length,)

    def part(self, share: float, label_noise: float, classes: int, seed: int) -> Self:
        """Returns a loader of one stretch of the text."""
        assert label_noise == 0, "a text has no labels"
        tokens = max(self._length + 1, round(share * len(self._tokens)))
        generator = torch.Generator().manual_seed(seed)
        start = int(torch.randint(len(self._tokens) - tokens + 1, (), generator=generator))
        limit = None if self._limit is None else max(1, round(share * self._limit))
        stretch = self._tokens[start : start + tokens]
        return type(self)(stretch, self._length, self._batch_size, self._device, self._shuffle, limit)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        starts = torch.arange(self._samples) * self._length
        if self._shuffle:
            generator = self._generator()
            offset = torch.randint(self._offsets, (), generator=generator)
            starts = torch.randperm(self._available, generator=generator)[: self._samples] * self._length + offset
        for chosen in _to_device(starts, self._tokens.device).split(self._batch_size):
            window = _to_device(self._tokens[chosen[:, None] + self._within], self._device).long()
            if self._tokens.dtype == torch.int16:
                window &= 0xFFFF
            yield window[:, :-1], window[:, 1:]


def iterate_batched(loaders: Sequence[BatchLoader]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the batches of several loaders as one: inputs (N, K·channels, …), loader after loader; targets (N, K)."""
    first, *others = loaders
    if isinstance(first, SampleLoader) and all(first.shares_data_with(other) for other in others):
        yield from first.iterate_batched(cast("Sequence[SampleLoader]", loaders))
        return
    for batches in zip(*loaders, strict=True):
        inputs, targets = zip(*batches, strict=True)
        yield torch.cat(inputs, dim=1), torch.stack(targets, dim=1)


class CropAndFlip:
    """Shifts each image by up to `padding` pixels, with zeros moving in, and mirrors every second one, at random.

    Source: the usual augmentation of CIFAR-10, as in He et al., "Deep Residual Learning for Image Recognition", 2016.

    Shape:
        inputs (N, C, H, W), any dtype; the result is the same. Drawn: (N, 3) int64: shift down, shift right, mirrored.
    """

    def __init__(self, padding: int = 4) -> None:
        self.padding = padding

    def draw(self, samples: int, generator: torch.Generator) -> Tensor:
        """Returns the shifts and mirrorings of one epoch."""
        shifts = torch.randint(2 * self.padding + 1, (samples, 2), generator=generator)
        return torch.cat([shifts, torch.randint(2, (samples, 1), generator=generator)], dim=1)

    def apply(self, inputs: Tensor, drawn: Tensor) -> Tensor:
        """Returns the shifted and mirrored images."""
        count, channels, height, width = inputs.shape
        top, left, mirrored = drawn.unbind(1)
        samples = torch.arange(count, device=inputs.device)
        padded = torch.nn.functional.pad(inputs.movedim(1, -1), [0, 0, *[self.padding] * 4]).contiguous()
        tall, wide = padded.shape[1:3]
        # Every stretch of `width` pixels that there is; they overlap. An image is cut out row by row.
        stretches = padded.as_strided((count * tall * wide - width + 1, width * channels), (channels, 1))
        first = (samples * tall + top) * wide + left
        rows = first[:, None] + wide * torch.arange(height, device=inputs.device)
        cut = stretches.index_select(0, rows.flatten()).view(count, height, width, channels)
        either = torch.cat([cut, cut.flip(2)])
        return either.index_select(0, samples + count * mirrored).movedim(-1, 1)


def _to_device(batch: Tensor, device: torch.device) -> Tensor:
    """Copies without waiting where the batch is not there; from pinned memory, or a GPU would have to wait."""
    if device.type == "cuda" and batch.device.type == "cpu":
        batch = batch.pin_memory()
    return batch.to(device, non_blocking=True)


def _device_for(stored: Tensor, device: str | torch.device) -> torch.device:
    """Returns the device that holds a split: the given one, or the CPU if the split is too large for that."""
    fits = stored.numel() * stored.element_size() <= _RESIDENT_BYTES
    return torch.device(device) if fits else torch.device("cpu")
