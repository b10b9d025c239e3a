"""Numbers over all episodes of a run: spread per iteration, shares of actions, blueprints, gradients, rewards."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from esper_ray.lifecycle import ACTIVE_STAGES

Row = dict[str, Any]

_LIVE = {stage.name for stage in ACTIVE_STAGES}
_COLUMNS = 40
_ROWS = 50
_GERMINATE = "GERMINATE_"


def learning_curve(episodes: Sequence[Row]) -> list[Row]:
    """Returns for each iteration the mean, the standard deviation's band and the percentiles of the kept accuracy.

    The spread of a single episode is not known, and so left out.
    """
    groups: dict[int, list[float]] = defaultdict(list)
    for row in episodes:
        if row["kept_val_accuracy"] is not None:
            groups[row["iteration"]].append(row["kept_val_accuracy"])
    curve = []
    for iteration, values in sorted(groups.items()):
        mean, median = float(np.mean(values)), float(np.median(values))
        row = {"iteration": iteration, "episodes": len(values), "mean": _round(mean), "median": _round(median)}
        if len(values) > 1:
            deviation = float(np.std(values, ddof=1))
            low, high = (float(value) for value in np.percentile(values, (10, 90)))
            row |= {
                "std": _round(deviation),
                **{"low": _round(max(0.0, mean - deviation)), "high": _round(min(100.0, mean + deviation))},
                **{"p10": _round(low), "p90": _round(high)},
            }
        curve.append(row)
    return curve


@dataclass(frozen=True)
class Bins:
    """Iterations in equal groups, so that a long run has no more columns than a screen can show.

    Attributes:
        size: iterations of a group.
    """

    size: int

    @staticmethod
    def of(episodes: Sequence[Row], most: int = _COLUMNS) -> "Bins":
        """Returns groups for the iterations of these episodes, `most` at most."""
        last = max((row["iteration"] for row in episodes), default=1)
        return Bins(-(-last // most))

    def first(self, iteration: int) -> int:
        """Returns the first iteration of the group that this one is in."""
        return (iteration - 1) // self.size * self.size + 1


def action_shares(episodes: Sequence[Row], actions: Sequence[str], bins: Bins) -> tuple[list[Row], list[Row]]:
    """Returns (share of each action but WAIT among those decisions, share of WAIT among all decisions), percent."""
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    played: Counter[int] = Counter()
    for row in episodes:
        first = bins.first(row["iteration"])
        counts[first].update(row["per_epoch"].get("decision", ()))
        played[first] += 1
    shares, waits = [], []
    for first, counter in sorted(counts.items()):
        total, others = counter.total(), counter.total() - counter["WAIT"]
        place = {"first": first, "middle": first + (bins.size - 1) / 2, "last": first + bins.size - 1}
        if total:
            waits.append({**place, "share": _round(100 * counter["WAIT"] / total, 2)})
        below = 0.0
        for order, name in enumerate(actions):
            if name == "WAIT" or not others:
                continue
            share = 100 * counter[name] / others
            shares.append(
                {
                    **place,
                    **{"action": name, "order": order, "share": _round(share, 3), "below": _round(below, 3)},
                    **{"above": _round(below + share, 3), "count": counter[name]},
                    "per_episode": _round(counter[name] / played[first], 3),
                }
            )
            below += share
    return shares, waits


@dataclass
class BlueprintScore:
    """Counts of the outcomes of a blueprint's seeds.

    Attributes:
        dropped: alive at the end of the episode, so not kept.
        removed: taken out by the governor's rollback.
        contributions: points, of the epochs in which alpha was above 0.
        kept_accuracies: percent, of the episodes that kept one.
        parameters: of the fossilized ones.
    """

    name: str
    germinated: int = 0
    fossilized: int = 0
    culled: int = 0
    dropped: int = 0
    removed: int = 0
    contributions: list[float] = field(default_factory=list)
    kept_accuracies: list[float] = field(default_factory=list)
    parameters: list[int] = field(default_factory=list)

    def as_row(self) -> Row:
        """Returns a row of the table."""
        sizes = sorted(set(self.parameters))
        return {
            "name": self.name,
            **{"germinated": self.germinated, "fossilized": self.fossilized, "culled": self.culled},
            **{"dropped": self.dropped, "removed": self.removed},
            "kept_share": self.fossilized / self.germinated if self.germinated else None,
            "contribution": fmean(self.contributions) if self.contributions else None,
            "accuracy": fmean(self.kept_accuracies) if self.kept_accuracies else None,
            "parameters": (sizes[0], sizes[-1]) if sizes else None,
        }


def blueprint_scores(episodes: Sequence[Row], actions: Sequence[str]) -> list[Row]:
    """Returns a row for each blueprint that can be germinated, in the order of the actions."""
    names = [action.removeprefix(_GERMINATE).lower() for action in actions if action.startswith(_GERMINATE)]
    scores = {name: BlueprintScore(name) for name in names}
    for row in episodes:
        _tally_seeds(row, scores)
    return [score.as_row() for score in scores.values()]


def _tally_seeds(row: Row, scores: dict[str, BlueprintScore]) -> None:
    """Follows the seeds of one episode from germination to their end."""
    epochs, current = row["per_epoch"], None
    contributions = epochs.get("contribution", [])
    reasons = epochs.get("rolled_back", [])
    for i, decision in enumerate(epochs.get("decision", ())):
        if decision.startswith(_GERMINATE):
            name = decision.removeprefix(_GERMINATE).lower()
            current = scores.setdefault(name, BlueprintScore(name))
            current.germinated += 1
        elif decision == "CULL" and current is not None:
            current.culled += 1
            current = None
        elif decision == "FOSSILIZE" and current is not None:
            current.fossilized += 1
            if row["kept_val_accuracy"] is not None:
                current.kept_accuracies.append(row["kept_val_accuracy"])
            current.parameters.append(row["added_parameters"])
        if current is not None and i < len(contributions) and contributions[i] is not None:
            current.contributions.append(contributions[i])
        if i < len(reasons) and reasons[i] and current is not None and row["stages"][i] in _LIVE:
            current.removed += 1
            current = None
    if current is not None and row["final_stage"] in _LIVE:
        current.dropped += 1


def rollbacks(episodes: Sequence[Row]) -> Row:
    """Returns how many epochs were rolled back, in how many episodes, and how many for each cause, largest first."""
    causes = [[cause for cause in row["per_epoch"].get("rolled_back", ()) if cause] for row in episodes]
    counts = Counter(cause for of_episode in causes for cause in of_episode)
    return {"epochs": counts.total(), "episodes": sum(map(bool, causes)), "causes": dict(counts.most_common())}


def gradient_map(episodes: Sequence[Row], bins: Bins, name: str, log: bool = False) -> list[Row]:
    """Returns the mean of a gradient statistic for each group of iterations and each epoch with a live seed.

    Args:
        log: of the base-10 logarithm instead; zeros are left out.
    """
    longest = max((len(row["stages"]) for row in episodes), default=1)
    step = -(-longest // _ROWS)
    cells: dict[tuple[int, int], list[float]] = defaultdict(list)
    for row in episodes:
        first = bins.first(row["iteration"])
        for i, value in enumerate(row["per_epoch"].get(name, ())):
            if value is not None and (value > 0 or not log):
                cells[first, i // step * step + 1].append(value)
    return [
        {
            **{"from": first - 0.5, "to": first + bins.size - 0.5, "first": first, "last": first + bins.size - 1},
            **{"low": epoch - 0.5, "high": epoch + step - 0.5, "epoch": epoch, "seeds": len(values)},
            "value": _round(float(np.mean(np.log10(values) if log else values)), 4),
        }
        for (first, epoch), values in sorted(cells.items())
    ]


def reward_components(episodes: Sequence[Row], bins: Bins) -> tuple[list[str], list[Row]]:
    """Returns the components' names and, for each group of iterations, their means per episode and the return's."""
    sums: dict[int, Counter[str]] = defaultdict(Counter)
    played: Counter[int] = Counter()
    names: dict[str, None] = {}
    for row in episodes:
        first = bins.first(row["iteration"])
        components: Mapping[str, float | None] = row.get("reward_components") or {}
        names.update(dict.fromkeys(components))
        played[first] += 1
        for name, value in (*components.items(), ("return", row.get("return"))):
            sums[first][name] += value or 0.0  # type: ignore[assignment]
    rows = [
        {
            **{"middle": first + (bins.size - 1) / 2, "first": first, "last": first + bins.size - 1},
            **{"component": name, "value": _round(total[name] / played[first], 5)},
        }
        for first, total in sorted(sums.items())
        for name in (*names, "return")
    ]
    return list(names), rows


def _round(value: float, digits: int = 2) -> float:
    return round(value, digits)
