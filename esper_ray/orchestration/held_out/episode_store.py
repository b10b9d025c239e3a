"""Episodes of evaluations on disk, found again by policy and host seed, so that nothing is played twice."""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from typing_extensions import Self

from esper_ray.episode import Policy
from esper_ray.episode.record import json_safe
from esper_ray.errors import RunFolderError
from esper_ray.orchestration.fleet.tickets import FinishedEpisode, spread
from esper_ray.orchestration.learner.algorithm import EpisodeAlgorithm
from esper_ray.orchestration.run.append_file import AppendFile
from esper_ray.orchestration.run.run_folder import replace_file, require_writable, write_json

_EPISODES = "episodes.jsonl"
_SETTINGS = "settings.json"
_NAMED = 8
"""Differences that a refusal names, at most."""


@dataclass(frozen=True)
class Outcome:
    """The result of an episode. Accuracies in percent, scores in points; None for the test split if unmeasured.

    Attributes:
        added_parameters: of the fossilized seed, else 0.
        host: what distinguishes the host, where hosts differ.
        stages: the slot's stage in every epoch.
        decisions: the action taken before every epoch.
    """

    kept_val_accuracy: float
    val_score: float
    kept_test_accuracy: float | None
    test_score: float | None
    added_parameters: int
    kept_blueprint: str | None
    host_parameters: int
    host: dict[str, Any]
    stages: list[str]
    decisions: list[str]


class EpisodeStore:
    """A folder of episodes, all of one task. Use it as a context manager.

    Args:
        folder: made if there is none; claimed by this process where others may write there.
        settings: what all its episodes have in common; a folder of other settings is refused.

    Raises:
        RunFolderError: the folder cannot be written, is damaged, or holds something else.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        self._outcomes: dict[tuple[str, int], Outcome] = {}
        require_store(folder)
        with ExitStack() as opened:
            try:
                self._require_same(json.loads(json.dumps(settings)))
                self._read()
                self._file = opened.enter_context(closing(AppendFile(folder / _EPISODES)))
            except OSError as error:
                raise RunFolderError(
                    f"--out {folder} cannot be written: {error.strerror}; name another folder"
                ) from error
            self._opened = opened.pop_all()

    def _require_same(self, settings: dict[str, Any]) -> None:
        path = self.folder / _SETTINGS
        if not path.exists():
            write_json(path, settings, exact=True)
            return
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise RunFolderError(f"{path} is damaged: {error}; name another folder with --out") from None
        if not isinstance(found, dict):
            raise RunFolderError(f"{path} is damaged: it holds no settings; name another folder with --out")
        differing = sorted(key for key in {*found, *settings} if found.get(key) != settings.get(key))
        if differing:
            more = f" and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
            raise RunFolderError(
                f"--out {self.folder} holds episodes of another {', '.join(differing[:_NAMED])}{more}; "
                "name another folder"
            )

    def _read(self) -> None:
        path = self.folder / _EPISODES
        if not path.exists():
            return
        lines = path.read_text().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        if len(whole) < len(lines):  # the last one was cut off when the command was killed
            replace_file(path, "".join(whole))
        names = [field.name for field in fields(Outcome)]
        try:
            for row in map(json.loads, whole):
                self._outcomes[row["policy"], row["episode_seed"]] = Outcome(**{name: row[name] for name in names})
        except (ValueError, KeyError, TypeError) as error:
            raise RunFolderError(f"{path} is damaged: {error}; name another folder with --out") from None

    def of(self, policy: str, seeds: Sequence[int]) -> list[Outcome]:
        """Returns the outcomes of a policy on these host seeds, which it has played."""
        return [self._outcomes[policy, seed] for seed in seeds]

    def has(self, policy: str, seed: int) -> bool:
        """Returns whether the policy has played this host seed."""
        return (policy, seed) in self._outcomes

    def add(self, policy: str, episode: FinishedEpisode) -> None:
        """Writes an episode down.

        Raises:
            RunFolderError: it cannot be written, as on a full disk.
        """
        record = episode.record
        measured = record.kept_test_accuracy is not None
        outcome = Outcome(
            record.kept_val_accuracy,
            record.val_score,
            record.kept_test_accuracy,
            record.test_score if measured else None,
            record.added_parameters,
            record.kept_blueprint,
            record.host_parameters,
            record.host,
            record.stages,
            [epoch.decision for epoch in record.epochs],
        )
        row = {"policy": policy} | record.as_row() | asdict(outcome)
        try:
            self._file.append(json.dumps(json_safe(row)).encode() + b"\n")
        except OSError as error:
            raise RunFolderError(
                f"{self._file.path} cannot be written: {error.strerror}; mend that: the same command then goes on"
            ) from error
        self._outcomes[policy, episode.ticket.episode_seed] = Outcome(**json_safe(asdict(outcome)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()


def require_store(folder: Path) -> None:
    """Checks, without writing anything, that episodes can be put into `folder`.

    Raises:
        RunFolderError: it is a file, holds other things, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"--out {folder} is not a folder; name another one")
    if folder.is_dir() and not (folder / _SETTINGS).exists() and {path.name for path in folder.iterdir()}:
        raise RunFolderError(f"--out {folder} holds other files; name a new or empty folder")
    require_writable(folder)


def play_missing(
    store: EpisodeStore,
    algorithm: EpisodeAlgorithm,
    name: str,
    policy: Policy,
    seeds: Sequence[int],
    *,
    grown: Sequence[str | None] | None = None,
    measure_test: bool = True,
    on_episode: Callable[[int, int], None] = lambda done, total: None,
) -> list[Outcome]:
    """Plays the episodes of a policy that the store lacks, on all actors; returns all outcomes in order of the seeds.

    Args:
        name: under which the policy's episodes are stored.
        grown: for each seed, the blueprint that its host has from the start.
        measure_test: measure the test accuracy of what is kept.
        on_episode: is told how many are there, and of how many.
    """
    starts = dict(zip(seeds, grown or [None] * len(seeds), strict=True))
    missing = [seed for seed in seeds if not store.has(name, seed)]
    done = len(seeds) - len(missing)

    def seen(episode: FinishedEpisode) -> None:
        nonlocal done
        store.add(name, episode)
        done += 1
        on_episode(done, len(seeds))

    if missing:
        tickets = spread(missing, algorithm.config.num_env_runners, [starts[seed] for seed in missing])
        algorithm.play_scripted(tickets, policy, seen, measure_test)
    return store.of(name, seeds)
