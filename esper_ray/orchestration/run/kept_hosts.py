"""The best grown hosts of a run, on disk."""

import re
from collections.abc import Sequence
from math import inf
from pathlib import Path

from safetensors.torch import load_file, save
from torch import Tensor

from esper_ray.errors import RunFolderError, no_permission
from esper_ray.orchestration.fleet.tickets import FinishedEpisode
from esper_ray.orchestration.run.run_folder import NUMBER, PARTIAL, replace_file

_SUFFIX = ".safetensors"
_PREFIX = "episode_"
_NAME = re.compile(rf"{_PREFIX}(?P<number>{NUMBER}){re.escape(_SUFFIX)}")


class KeptHosts:
    """Keeps the weights of the episodes with the highest kept validation accuracy; the earlier one of equals.

    Args:
        folder: where they are written; made when the first one comes.
        count: how many are kept.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self._folder = folder
        self._count = count
        self._accuracies: dict[int, float] = {}

    @property
    def threshold(self) -> float:
        """Kept validation accuracy, percent, below which an episode would not be kept now."""
        if len(self._accuracies) < self._count:
            return -inf
        return min(self._accuracies.values(), default=inf)

    def resume_from(self, accuracies: Sequence[float]) -> None:
        """Loads the hosts in the folder that belong to these kept validation accuracies, and deletes the others."""
        for partial in self._folder.glob(f"{_PREFIX}*{PARTIAL}"):
            partial.unlink()
        found = kept_episodes(self._folder)
        known = {number: accuracies[number - 1] for number in found if number <= len(accuracies)}
        best = sorted(known, key=lambda number: (-known[number], number))[: self._count]
        self._accuracies = {number: known[number] for number in best}
        for number in found:
            if number not in self._accuracies:
                _path(self._folder, number).unlink()

    def offer(self, number: int, episode: FinishedEpisode) -> None:
        """Keeps the weights of the run's episode `number` if it is among the best; the one that it displaces goes.

        Raises:
            RunFolderError: they cannot be written, as on a full disk; the others are as they were.
        """
        if episode.weights is None or self._count == 0:
            return
        accuracies = {**self._accuracies, number: episode.record.kept_val_accuracy}
        displaced = None
        if len(accuracies) > self._count:
            displaced = min(accuracies, key=lambda kept: (accuracies[kept], -kept))
            del accuracies[displaced]
        if displaced == number:
            return
        replace_file(_path(self._folder, number), save(episode.weights))  # `save_file` would let nobody else read it
        self._accuracies = accuracies
        if displaced is not None:
            _path(self._folder, displaced).unlink(missing_ok=True)


def kept_episodes(folder: Path) -> list[int]:
    """Returns the numbers of the episodes whose hosts were kept; files of other names are ignored."""
    found = [_NAME.fullmatch(path.name) for path in folder.glob(f"{_PREFIX}*{_SUFFIX}")]
    return sorted(int(name["number"]) for name in found if name is not None)


def load_kept_host(folder: Path, episode: int) -> dict[str, Tensor]:
    """Returns the weights of an episode's host.

    Raises:
        RunFolderError: the file is damaged, or this user may not read it.
    """
    path = _path(folder, episode)
    try:
        return load_file(path)
    except Exception as error:  # the library raises its own type
        reason = no_permission(path) or f"{path} is damaged: {error}; export another episode"
        raise RunFolderError(reason) from error


def _path(folder: Path, episode: int) -> Path:
    return folder / f"{_PREFIX}{episode:06d}{_SUFFIX}"
