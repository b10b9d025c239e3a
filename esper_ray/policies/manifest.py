"""Description of a checkpoint that lies beside its files: versions, task, spaces and a digest of each file."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from esper_ray import __version__
from esper_ray.errors import CheckpointError, differing_names, no_permission
from esper_ray.policies.network import POLICY_FILES
from esper_ray.tasks import TaskSpec

_FILE = "esper_ray.json"
_OWN_DIGEST = "sha256"


class PolicyManifest(BaseModel):
    """Description of a checkpoint that is needed to act with its policy.

    Attributes:
        versions: of the packages that wrote it.
        task: every setting of the task.
        actions, observation: names, in order.
        plugins: modules that the task needs.
        files: file → SHA-256.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    versions: dict[str, str]
    task: dict[str, Any]
    actions: tuple[str, ...]
    observation: tuple[str, ...]
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

    def require_spaces(self, actions: tuple[str, ...], observation: tuple[str, ...]) -> None:
        """Refuses other actions or another observation than those of the checkpoint.

        Raises:
            CheckpointError: it names the difference.
        """
        for kind, then, now in (("actions", self.actions, actions), ("observation", self.observation, observation)):
            if then != now:
                raise CheckpointError(
                    f"the checkpoint's {kind} differ from the present ones: {differing_names(then, now)}; "
                    "load the plugins that it was trained with, and no others"
                )


_Manifest = TypeVar("_Manifest", bound=PolicyManifest)


def write_manifest(folder: Path, manifest: PolicyManifest) -> None:
    """Adds the manifest, with a digest of every file, to a checkpoint that has just been written."""
    files = {str(path.relative_to(folder)): _digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    values = manifest.model_dump(mode="json") | {"files": files}
    (folder / _FILE).write_text(json.dumps({**values, _OWN_DIGEST: _digest_of(values)}, indent=2) + "\n")


def read_policy_manifest(folder: Path) -> PolicyManifest:
    """Returns the manifest of a checkpoint, after checking that every file is as it was written.

    Raises:
        CheckpointError: it is no checkpoint, was written by another version of this package, or is damaged.
    """
    return read_manifest_as(PolicyManifest, folder, {"esper_ray": __version__})


def read_manifest_as(kind: type[_Manifest], folder: Path, versions: Mapping[str, str]) -> _Manifest:
    """Reads the manifest of a checkpoint as an instance of `kind`, checked as by `read_policy_manifest`.

    Args:
        kind: the manifest's class.
        folder: the checkpoint.
        versions: package → version that must have written it.
    """
    if (refusal := no_permission(folder) or no_permission(folder / _FILE)) is not None:
        raise CheckpointError(refusal)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no checkpoint: there is no such folder; name one of RUN/checkpoints")
    values = _read_values(folder)
    if (refusal := no_permission(folder, within=True)) is not None:
        raise CheckpointError(refusal)
    _require_versions(folder, values, versions)
    if values.pop(_OWN_DIGEST, None) != _digest_of(values):
        raise CheckpointError.damaged(folder, f"{_FILE} is not as it was written")
    try:
        manifest = kind.model_validate_json(json.dumps(values))
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError.damaged(folder, f"{_FILE}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
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
        values = json.loads((folder / _FILE).read_text())
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} is no checkpoint of this version of esper_ray: it has no {_FILE}; name one of RUN/checkpoints"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError.damaged(folder, f"{_FILE}: {error}") from None
    if not isinstance(values, dict) or not isinstance(values.get("versions"), dict):
        raise CheckpointError.damaged(folder, f"{_FILE} names no versions")
    return values


def _require_versions(folder: Path, values: dict[str, Any], versions: Mapping[str, str]) -> None:
    for name, present in versions.items():
        written = values["versions"].get(name, "unknown")
        if written != present:
            raise CheckpointError(
                f"the checkpoint {folder} was written with {name} {written}, this is {present}: evaluate it with the "
                "version that wrote it, or train again"
            )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest_of(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
