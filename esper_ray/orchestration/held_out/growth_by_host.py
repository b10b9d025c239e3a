"""The growth of a policy's hosts by kind of host."""

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean, median
from typing import Any

from esper_ray.orchestration.held_out.episode_store import Outcome
from esper_ray.orchestration.held_out.paired import paired_difference

_SHARE = "data.train_share"
_PARTS = 3


def growth_by_host(
    learned: Sequence[Sequence[Outcome]], against: str | None, control: Sequence[Outcome] | None
) -> list[dict[str, Any]]:
    """Returns a row for each kind of host, and for each third of the hosts by their share of the data.

    A row says how many hosts of the kind there are, what the policies kept there (blueprint → share of the episodes),
    the median epochs of germination and of fossilizing where a seed was kept, the mean score of record, and the paired
    difference from a control.

    Args:
        learned: for each checkpoint, its outcomes by host.
        against: name of the control.
        control: its outcomes by host.
    """
    hosts = [outcome.host for outcome in learned[0]]
    shares = sorted(host[_SHARE] for host in hosts)
    bounds = [shares[len(shares) * i // _PARTS] for i in range(1, _PARTS)]

    def kind(host: dict[str, Any]) -> str:
        drawn = [f"{name.removeprefix('host.')} {value}" for name, value in host.items() if name.startswith("host.")]
        return ", ".join(drawn)

    def third(host: dict[str, Any]) -> str:
        part = sum(host[_SHARE] >= bound for bound in bounds)
        low, high = ([shares[0], *bounds, shares[-1]][part : part + 2]) if shares else (0.0, 0.0)
        return f"{low:.0%} to {high:.0%} of the training data"

    rows = []
    for grouping in (kind, third):
        rows += [_row(name, chosen, learned, against, control) for name, chosen in _groups(hosts, grouping)]
    return rows


def _groups(hosts: Sequence[dict[str, Any]], name: Callable[[dict[str, Any]], str]) -> list[tuple[str, list[int]]]:
    groups: dict[str, list[int]] = {}
    for i, host in enumerate(hosts):
        groups.setdefault(name(host), []).append(i)
    return sorted(groups.items())


def _row(
    name: str,
    chosen: Sequence[int],
    learned: Sequence[Sequence[Outcome]],
    against: str | None,
    control: Sequence[Outcome] | None,
) -> dict[str, Any]:
    played = [outcomes[i] for outcomes in learned for i in chosen]
    kept = Counter(outcome.kept_blueprint or "nothing" for outcome in played)
    grown = [outcome for outcome in played if outcome.kept_blueprint is not None]
    row: dict[str, Any] = {
        "hosts": name,
        "count": len(chosen),
        "kept": {blueprint: count / len(played) for blueprint, count in kept.most_common()},
        "germinated_after": median(_last(o.decisions, "GERMINATE") for o in grown) if grown else None,
        "fossilized_after": median(_last(o.decisions, "FOSSILIZE") for o in grown) if grown else None,
        "score": fmean(outcome.test_score or 0.0 for outcome in played),
    }
    if control is not None:
        ours = [fmean(outcomes[i].test_score or 0.0 for outcomes in learned) for i in chosen]
        theirs = [control[i].test_score or 0.0 for i in chosen]
        row["against"], row["difference"] = against, paired_difference(ours, theirs).as_dict()
    return row


def _last(decisions: Sequence[str], kind: str) -> int:
    """Returns after how many epochs the last decision of a kind was taken."""
    return max(i for i, name in enumerate(decisions) if name.startswith(kind))
