"""The manifest of a checkpoint, and its validation against the present task, actions and version."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import ray
from pydantic import ConfigDict, Field

from esper_ray import __version__
from esper_ray.errors import CheckpointError
from esper_ray.orchestration.fleet.tickets import Ticket, assign, assign_number, held_out_seeds
from esper_ray.policies.manifest import PolicyManifest, read_manifest_as


class CheckpointManifest(PolicyManifest):
    """The manifest of a checkpoint: seeds and length of its training.

    Attributes:
        seed, runners, episodes_per_iteration, host_pool, consumed: what the training seeds follow from; `consumed` as
            of `LearnerState`.
        iteration: learner updates so far.
        host_epochs: trained for it so far, twins of the reward included; without wait-only hosts and evaluations.
    """

    model_config = ConfigDict(extra="forbid")

    seed: int = Field(ge=0)
    runners: int = Field(ge=1)
    episodes_per_iteration: int = Field(ge=1)
    host_pool: int | None = Field(ge=1)
    consumed: tuple[Annotated[int, Field(ge=0)], ...] = ()
    iteration: int = Field(ge=0)
    host_epochs: int = Field(ge=0)

    def training_seeds(self) -> list[int]:
        """Returns the host seeds that the policy was trained on, in order, each once."""
        tickets: Iterable[Ticket]
        if self.consumed:  # each actor's own series
            tickets = (
                assign_number(runner, number, self.seed, self.host_pool)
                for number in range(max(self.consumed))
                for runner, count in enumerate(self.consumed, start=1)
                if number < count
            )
        else:
            tickets = itertools.chain.from_iterable(itertools.islice(self._rounds(self.host_pool), self.iteration))
        return list(dict.fromkeys(ticket.episode_seed for ticket in tickets))

    def search_seeds(self, count: int) -> list[int]:
        """Returns `count` host seeds to search a control on: those of the training and its continuation.

        They are no fewer for a policy that trained on few hosts, so the control is as strong.
        """
        following = (
            ticket.episode_seed
            for tickets in self._rounds(None)
            for ticket in sorted(tickets, key=lambda ticket: (ticket.number, ticket.runner))
        )
        seeds = dict.fromkeys(self.training_seeds()[:count])
        while len(seeds) < count:
            seeds[next(following)] = None
        return list(seeds)

    def _rounds(self, host_pool: int | None) -> Iterator[list[Ticket]]:
        """Yields the tickets of iteration after iteration, without end."""
        for number in itertools.count():
            yield assign(self.episodes_per_iteration, self.runners, number, self.seed, host_pool)


def present_versions() -> dict[str, str]:
    """Returns the versions that decide whether a checkpoint can be read."""
    return {"esper_ray": __version__, "ray": ray.__version__}


def read_manifest(folder: Path) -> CheckpointManifest:
    """Returns the manifest of a checkpoint, after verifying the checksum of every file.

    Raises:
        CheckpointError: it is no checkpoint, was written by another version, or is damaged.
    """
    return read_manifest_as(CheckpointManifest, folder, present_versions())


def require_same_task(manifest: CheckpointManifest, task: str | None) -> None:
    """Refuses a checkpoint of another task than the one that was asked for.

    Raises:
        CheckpointError: it names both.
    """
    if task is not None and manifest.task.get("name") != task:
        raise CheckpointError(f"the checkpoint was trained on task {manifest.task.get('name')}, not on --task {task}")


def require_held_out(manifest: CheckpointManifest, seeds: Sequence[int]) -> None:
    """Asserts that no training episode of the checkpoint had one of these host seeds."""
    shared = set(seeds) & set(manifest.training_seeds())
    assert not shared, f"held-out seeds must not occur in training: {sorted(shared)[:3]}"


def held_out(manifest: CheckpointManifest, count: int) -> list[int]:
    """Returns `count` held-out host seeds, which the checkpoint's training did not have."""
    seeds = held_out_seeds(count)
    require_held_out(manifest, seeds)
    return seeds
