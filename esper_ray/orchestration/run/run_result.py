"""The result of a training run so far."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter

from esper_ray.episode import EpisodeRecord
from esper_ray.errors import CheckpointError
from esper_ray.orchestration.run.metrics import mean_with_error
from esper_ray.orchestration.run.plan import RunPlan

_TALLY = "tally.json"
LAST_SHARE = 0.2
"""Share of a run, counted from its end, that its result is measured on."""


@dataclass
class RunTally:
    """Totals of the iterations so far. Accuracies are kept validation accuracies in percent.

    Attributes:
        wait_only: of the hosts that never grew a seed.
        trained: of every training episode, in the order of the iterations.
        stage_counts: episodes that were in each stage at some time.
        host_epochs: trained for the learner, twins of the reward included.
        forced_epochs: host epochs before the first real choice of an episode; `taken_over_epochs` of them were not
            trained, because the host pool had them.
        seconds: wall time of the iterations.
        losses: actors that were lost and replaced, by cause, see `dispatch.CAUSES`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    wait_only: list[float] = field(default_factory=list)
    trained: list[float] = field(default_factory=list)
    stage_counts: dict[str, int] = field(default_factory=dict)
    fossilized: int = 0
    host_epochs: int = 0
    forced_epochs: int = 0
    taken_over_epochs: int = 0
    seconds: float = 0.0
    losses: dict[str, int] = field(default_factory=dict)

    def add(self, records: Sequence[EpisodeRecord], reaching: Mapping[str, int]) -> None:
        """Adds an iteration's episodes; `reaching` says how many were in each stage."""
        self.trained += [record.kept_val_accuracy for record in records]
        self.fossilized += sum(record.final_stage == "FOSSILIZED" for record in records)
        self.host_epochs += sum(record.trained_epochs for record in records)
        self.forced_epochs += sum(record.forced_beginning for record in records)
        self.taken_over_epochs += sum(record.taken_over for record in records)
        for stage, count in reaching.items():
            self.stage_counts[stage] = self.stage_counts.get(stage, 0) + count

    def as_dict(self) -> dict[str, Any]:
        """Returns it as plain values, of which `RunTally(**values)` makes an equal one."""
        return asdict(self)


_STORED = TypeAdapter(RunTally)


def write_tally(folder: Path, tally: RunTally) -> None:
    """Writes it into a checkpoint, to the last digit."""
    (folder / _TALLY).write_text(json.dumps(tally.as_dict()) + "\n")


def read_tally(folder: Path) -> RunTally:
    """Reads the totals of a run at a checkpoint.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        return _STORED.validate_json((folder / _TALLY).read_text())
    except (OSError, ValueError) as error:  # pydantic's is one
        raise CheckpointError.damaged(folder, f"{_TALLY}: {error}") from None


@dataclass
class RunResult:
    """The result of a run.

    Attributes:
        tally: what its iterations add up to.
        iterations: that are over.
        seconds: wall time, start and end of the actors included.
        interrupted: the run was ended before its last iteration.
    """

    plan: RunPlan
    tally: RunTally = field(default_factory=RunTally)
    checkpoint: Path | None = None
    iterations: int = 0
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def last(self) -> list[float]:
        """Kept validation accuracies, percent, of the last fifth of the training episodes."""
        trained = self.tally.trained
        return trained[-max(1, round(LAST_SHARE * len(trained))) :] if trained else []

    @property
    def difference(self) -> tuple[float, float | None] | None:
        """Mean of the last fifth − mean of the wait-only hosts, points, and its standard error; None without both.

        The error is None, not known, where either are fewer than two.
        """
        if not self.tally.trained or not self.tally.wait_only:
            return None
        learned, learned_error = mean_with_error(self.last)
        waiting, waiting_error = mean_with_error(self.tally.wait_only)
        if learned_error is None or waiting_error is None:
            return learned - waiting, None
        return learned - waiting, (learned_error**2 + waiting_error**2) ** 0.5

    def as_dict(self) -> dict[str, Any]:
        """Returns the content of summary.json."""
        tally = self.tally
        return {
            "iterations": self.iterations,
            "episodes": len(tally.trained),
            "kept_val_accuracy_of_last_fifth": mean_with_error(self.last) if tally.trained else None,
            "kept_val_accuracy_of_wait_only": mean_with_error(tally.wait_only) if tally.wait_only else None,
            "difference": self.difference,
            "wait_only": tally.wait_only,
            "episodes_reaching": tally.stage_counts,
            "fossilized": tally.fossilized,
            "host_epochs": tally.host_epochs,
            "host_epochs_before_first_choice": tally.forced_epochs,
            "host_epochs_taken_over": tally.taken_over_epochs,
            "actors_lost": tally.losses,
            "seconds": self.seconds,
            "interrupted": self.interrupted,
            "complete": self.iterations == self.plan.iterations,
        }
