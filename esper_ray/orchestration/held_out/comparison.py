"""The result of a comparison: learned policies, controls, and the differences between them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esper_ray.orchestration.config import WAYS
from esper_ray.orchestration.held_out import paired
from esper_ray.orchestration.held_out.episode_store import Outcome
from esper_ray.orchestration.held_out.growth_by_host import growth_by_host
from esper_ray.orchestration.held_out.paired import Difference, paired_difference
from esper_ray.orchestration.held_out.schedule_search import FoundSchedule
from esper_ray.orchestration.run.checkpoint import CheckpointManifest
from esper_ray.orchestration.run.plan import RunPlan

Measure = Callable[[Sequence[Outcome]], list[float]]


@dataclass(frozen=True)
class Played:
    """One policy's outcomes on the held-out hosts, and the host epochs that it took to get the policy."""

    outcomes: list[Outcome]
    host_epochs: int = 0


@dataclass
class Comparison:
    """The result of a comparison.

    Attributes:
        manifests: of each checkpoint, by its folder.
        learned: (checkpoint, "sampled" or "median") → its episodes.
        controls: control → its episodes.
        static: (checkpoint, "sampled" or "median") → hosts that had what the policy kept from their first epoch on.
        schedule: what the search found, if it was asked for.
        file: where the numbers were written.
        losses: actors that were lost and replaced, by cause.
    """

    plan: RunPlan
    seeds: list[int]
    manifests: dict[str, CheckpointManifest]
    learned: dict[tuple[str, str], Played]
    controls: dict[str, Played]
    static: dict[tuple[str, str], Played]
    schedule: FoundSchedule | None
    file: Path
    seconds: float = 0.0
    losses: dict[str, int] = field(default_factory=dict)

    @property
    def control_names(self) -> list[str]:
        """The controls, in the order in which they are reported."""
        return [*self.controls, *(["static-final"] if self.static else [])]

    def difference(
        self, control: str, way: str, checkpoints: Sequence[str], measure: Callable[[Sequence[Outcome]], list[float]]
    ) -> Difference:
        """Returns learned − control, paired by host; over several checkpoints each host counts with their mean.

        Args:
            way: "sampled" or "median".
            measure: `paired.score` or `paired.test_accuracy`.
        """
        ours = paired.over_training_seeds([measure(self.learned[c, way].outcomes) for c in checkpoints])
        if control == "static-final":
            played = [self.static[c, way] for c in checkpoints]
            return paired_difference(ours, paired.over_training_seeds([measure(p.outcomes) for p in played]))
        return paired_difference(ours, measure(self.controls[control].outcomes))

    def differences(self, way: str, checkpoints: Sequence[str]) -> dict[str, Difference]:
        """Returns control → difference in the score of record."""
        return {name: self.difference(name, way, checkpoints, paired.score) for name in self.control_names}

    def verdict(self, checkpoints: Sequence[str], way: str = "sampled") -> str:
        """Returns the verdict on the checkpoints' scores of record as a sentence."""
        together = f", the mean of {len(checkpoints)} training seeds" if len(checkpoints) > 1 else ""
        who = f"the learned policy ({way}{together})"
        return paired.verdict(self.differences(way, checkpoints), len(self.seeds), who)

    def by_host(self, checkpoints: Sequence[str], way: str = "sampled") -> list[dict[str, Any]]:
        """Returns the growth per kind of host, where hosts differ; see `growth_by_host`."""
        if not self.plan.task.variety.enabled:
            return []
        against = next((name for name in ("schedule", "wait") if name in self.controls), None)
        learned = [self.learned[name, way].outcomes for name in checkpoints]
        return growth_by_host(learned, against, self.controls[against].outcomes if against else None)

    def as_dict(self) -> dict[str, Any]:
        """Returns the content of comparison.json: the checkpoints together and, if several, each by itself."""
        everyone = list(self.manifests)
        sections = {
            name: {
                "digest": manifest.digest,
                "seed": manifest.seed,
                "iteration": manifest.iteration,
                **self._section([name]),
            }
            for name, manifest in self.manifests.items()
        }
        return {
            "task": self.plan.task.name,
            "episodes": len(self.seeds),
            "actors_lost": self.losses,
            "rent": self.plan.task.reward.rent,
            "reward_mode": self.plan.task.reward.mode,
            **self._section(everyone),
            "policies": self._policies(),
            "schedule": self._schedule(),
            "checkpoints": sections,
            "run": self.plan.as_dict(),
            "seeds": self.seeds,
            "seconds": self.seconds,
        }

    def _section(self, checkpoints: list[str]) -> dict[str, Any]:
        controls: dict[str, Any] = {}
        for name in self.control_names:
            ways = {}
            for way in WAYS:
                score = self.difference(name, way, checkpoints, paired.score)
                accuracy = self.difference(name, way, checkpoints, paired.test_accuracy)
                ways[way] = {
                    "difference": score.as_dict(),
                    "verdict": score.verdict,
                    "kept_test_accuracy": {"difference": accuracy.as_dict(), "verdict": accuracy.verdict},
                }
            controls[name] = ways["sampled"] | {"median": ways["median"]}
            if name in self.controls:
                controls[name]["means"] = _row(self.controls[name])
        return {
            "verdict": self.verdict(checkpoints),
            "median_verdict": self.verdict(checkpoints, "median"),
            "controls": controls,
            "by_host": self.by_host(checkpoints),
            "median_by_host": self.by_host(checkpoints, "median"),
        }

    def _policies(self) -> list[dict[str, Any]]:
        rows = [
            {"policy": way, "checkpoint": name} | _row(played) for (name, way), played in sorted(self.learned.items())
        ]
        rows += [{"policy": control} | _row(played) for control, played in self.controls.items()]
        rows += [
            {"policy": f"static-final of {way}", "checkpoint": name} | _row(played)
            for (name, way), played in sorted(self.static.items())
        ]
        return rows

    def _schedule(self) -> dict[str, Any] | None:
        if self.schedule is None:
            return None
        found = self.schedule
        ranking = [{**vars(schedule), "score": score} for schedule, score in found.ranking]
        return {
            **ranking[0],
            "hosts": found.hosts,
            "candidates": found.candidates,
            "episodes": found.episodes,
            "ranking": ranking,
        }


def _row(played: Played) -> dict[str, Any]:
    return paired.means(played.outcomes) | {"host_epochs_spent": played.host_epochs}
