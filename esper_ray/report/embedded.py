"""Episodes as a page carries them: columns, a letter per epoch, few digits, compressed, thinned if too many."""

import base64
import gzip
import json
from collections.abc import Sequence
from typing import Any

from esper_ray.lifecycle import SeedStage

Row = dict[str, Any]

MOST_EPISODES = 8_000
MOST_BYTES = 2_000_000
_LETTERS = {stage.name: stage.letter for stage in SeedStage}
_PER_EPOCH = {
    "val_accuracy": 2,
    "train_accuracy": 1,
    "alpha": 3,
    "contribution": 2,
    "gradient_norm": None,
    "host_gradient_norm": None,
    "reward": None,
}
"""Column → decimals; None: three significant digits."""


def pack(episodes: Sequence[Row], actions: Sequence[str]) -> tuple[str, int]:
    """Returns (base64 of gzipped JSON, how many episodes it holds)."""
    keep = MOST_EPISODES
    while True:
        chosen = thinned(episodes, keep)
        content = json.dumps(_columns(chosen, actions), separators=(",", ":"), ensure_ascii=True)
        packed = base64.b64encode(gzip.compress(content.encode(), compresslevel=6, mtime=0)).decode()
        if len(packed) <= MOST_BYTES or len(chosen) <= 2:
            return packed, len(chosen)
        keep = max(2, int(0.95 * len(chosen) * MOST_BYTES / len(packed)))


def thinned(episodes: Sequence[Row], most: int) -> list[Row]:
    """Returns `most` episodes, evenly over the run, the first, the last, the best and the worst among them."""
    if len(episodes) <= most:
        return list(episodes)
    ranked = sorted(range(len(episodes)), key=lambda i: episodes[i]["kept_val_accuracy"] or 0.0)
    chosen = {ranked[0], ranked[-1]}
    even = max(1, most - len(chosen))
    chosen |= {round(i * (len(episodes) - 1) / max(1, even - 1)) for i in range(even)}
    return [episodes[i] for i in sorted(chosen)]


def _columns(episodes: Sequence[Row], actions: Sequence[str]) -> Row:
    codes = {name: chr(ord("A") + i) for i, name in enumerate(actions)}
    hosts: list[Row] = []
    host_numbers: dict[str, int] = {}
    host_of = []
    for row in episodes:
        host = {name: _digits(value, None) for name, value in (row.get("host") or {}).items()}
        key = json.dumps(host, sort_keys=True)
        if key not in host_numbers:
            host_numbers[key] = len(hosts)
            hosts.append(host)
        host_of.append(host_numbers[key])
    per_epoch = {
        name: [[_digits(value, digits) for value in row["per_epoch"].get(name, ())] for row in episodes]
        for name, digits in _PER_EPOCH.items()
    }
    rollbacks = {
        str(i): {
            str(epoch + 1): reason for epoch, reason in enumerate(row["per_epoch"].get("rolled_back", ())) if reason
        }
        for i, row in enumerate(episodes)
        if row.get("rollbacks")
    }
    return {
        "stageNames": {letter: name for name, letter in _LETTERS.items()},
        "actionNames": {letter: name for name, letter in codes.items()},
        "episode": [row["episode"] for row in episodes],
        "iteration": [row["iteration"] for row in episodes],
        "seed": [str(row.get("episode_seed")) for row in episodes],
        "kept": [_digits(row["kept_val_accuracy"], 2) for row in episodes],
        "final": [_digits(row.get("final_val_accuracy"), 2) for row in episodes],
        "return": [_digits(row.get("return"), None) for row in episodes],
        "blueprint": [row["kept_blueprint"] for row in episodes],
        "added": [row.get("added_parameters") for row in episodes],
        "hostParameters": [row.get("host_parameters") for row in episodes],
        "hosts": hosts,
        "host": host_of,
        "stages": [
            "".join(_LETTERS.get(stage, SeedStage.UNKNOWN.letter) for stage in row["stages"]) for row in episodes
        ],
        "decisions": [
            "".join(codes.get(name, "?") for name in row["per_epoch"].get("decision", ())) for row in episodes
        ],
        "rollbacks": rollbacks,
        "perEpoch": per_epoch,
    }


def _digits(value: Any, decimals: int | None) -> Any:
    if not isinstance(value, float):
        return value
    short = float(f"{value:.3g}") if decimals is None else round(value, decimals)
    return int(short) if short == int(short) else short
