"""The manifest of a checkpoint, and its validation against the present task, actions and version."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import ray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from esper_ray import __version__
from esper_ray.errors import CheckpointError
from esper_ray.orchestration.fleet.tickets import Ticket, assign, assign_number, held_out_seeds
from esper_ray.orchestration.learner.policy_network import POLICY_FILES
from esper_ray.tasks import TaskSpec

_FACTS = "esper_ray.json"
_OWN_DIGEST = "sha256"


class CheckpointManifest(BaseModel):
    """The manifest of a checkpoint: what it was trained on, and for how long.

    Attributes:
        versions: of this package and of Ray, which wrote it.
        task: every setting of the task.
        actions, observation: names, in order.
        seed, runners, episodes_per_iteration, host_pool, consumed: what the training seeds follow from; `consumed` as
            of `LearnerState`.
        iteration: learner updates so far.
        host_epochs: trained for it so far, twins of the reward included; without wait-only hosts and evaluations.
        plugins: modules that it needs.
        files: file → SHA-256.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    versions: dict[str, str]
    task: dict[str, Any]
    actions: tuple[str, ...]
    observation: tuple[str, ...]
    seed: int = Field(ge=0)
    runners: int = Field(ge=1)
    episodes_per_iteration: int = Field(ge=1)
    host_pool: int | None = Field(ge=1)
    consumed: tuple[Annotated[int, Field(ge=0)], ...] = ()
    iteration: int = Field(ge=0)
    host_epochs: int = Field(ge=0)
    plugins: tuple[str, ...]
    files: dict[str, str] = Field(default_factory=dict)

    @property
    def digest(self) -> str:
        """A short name of the policy: equal weights, equal name."""
        files = {name: digest for name, digest in self.files.items() if name in POLICY_FILES}
        return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:12]

    def task_spec(self) -> TaskSpec:
        """Returns the task.

        Raises:
            CheckpointError: this version of the package cannot read it.
        """
        try:
            return TaskSpec.model_validate(self.task)
        except (ValidationError, ValueError) as error:
            raise CheckpointError(f"the checkpoint's task cannot be read by this version: {error}") from error

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


def write_manifest(folder: Path, manifest: CheckpointManifest) -> None:
    """Adds the manifest, with a digest of every file, to a checkpoint that has just been written."""
    files = {str(path.relative_to(folder)): _digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    values = manifest.model_dump(mode="json") | {"files": files}
    (folder / _FACTS).write_text(json.dumps({**values, _OWN_DIGEST: _digest_of(values)}, indent=2) + "\n")


def read_manifest(folder: Path) -> CheckpointManifest:
    """Returns the manifest of a checkpoint, after verifying the checksum of every file.

    Raises:
        CheckpointError: it is no checkpoint, was written by another version, or is damaged.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no checkpoint: there is no such folder; name one of RUN/checkpoints")
    values = _read_values(folder)
    _require_present_versions(folder, values)
    if values.pop(_OWN_DIGEST, None) != _digest_of(values):
        raise CheckpointError.damaged(folder, f"{_FACTS} is not as it was written")
    try:
        manifest = CheckpointManifest.model_validate_json(json.dumps(values))
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError.damaged(folder, f"{_FACTS}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    for name, digest in manifest.files.items():
        try:
            unchanged = _digest(folder / name) == digest
        except OSError as error:
            raise CheckpointError.damaged(folder, f"{name} cannot be read: {error.strerror}") from None
        if not unchanged:
            raise CheckpointError.damaged(folder, f"{name} is not as it was written")
    return manifest


def _read_values(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / _FACTS).read_text())
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} is no checkpoint of this version of esper_ray: it has no {_FACTS}; name one of RUN/checkpoints"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError.damaged(folder, f"{_FACTS}: {error}") from None
    if not isinstance(values, dict) or not isinstance(values.get("versions"), dict):
        raise CheckpointError.damaged(folder, f"{_FACTS} names no versions")
    return values


def _require_present_versions(folder: Path, values: dict[str, Any]) -> None:
    for name, present in present_versions().items():
        written = values["versions"].get(name, "unknown")
        if written != present:
            raise CheckpointError(
                f"the checkpoint {folder} was written with {name} {written}, this is {present}: evaluate it with the "
                "version that wrote it, or train again"
            )


def require_same_task(manifest: CheckpointManifest, task: str | None) -> None:
    """Refuses a checkpoint of another task than the one that was asked for.

    Raises:
        CheckpointError: it names both.
    """
    if task is not None and manifest.task.get("name") != task:
        raise CheckpointError(f"the checkpoint was trained on task {manifest.task.get('name')}, not on --task {task}")


def require_same_spaces(manifest: CheckpointManifest, actions: Sequence[str], observation: Sequence[str]) -> None:
    """Refuses a checkpoint whose actions or observation are not the present ones.

    Raises:
        CheckpointError: it names what differs.
    """
    for kind, then, now in (("actions", manifest.actions, actions), ("observation", manifest.observation, observation)):
        if tuple(then) == tuple(now):
            continue
        gone, new = [n for n in then if n not in now], [n for n in now if n not in then]
        parts = [f"it has {', '.join(gone)}"] * bool(gone) + [f"here there is {', '.join(new)}"] * bool(new)
        raise CheckpointError(
            f"the checkpoint's {kind} differ from the present ones: {'; '.join(parts) or 'they have another order'}; "
            "load the plugins that it was trained with, and no others"
        )


def require_held_out(manifest: CheckpointManifest, seeds: Sequence[int]) -> None:
    """Asserts that no training episode of the checkpoint had one of these host seeds."""
    shared = set(seeds) & set(manifest.training_seeds())
    assert not shared, f"held-out seeds must not occur in training: {sorted(shared)[:3]}"


def held_out(manifest: CheckpointManifest, count: int) -> list[int]:
    """Returns `count` held-out host seeds, which the checkpoint's training did not have."""
    seeds = held_out_seeds(count)
    require_held_out(manifest, seeds)
    return seeds


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest_of(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
