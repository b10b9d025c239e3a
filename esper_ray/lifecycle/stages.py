"""The stages of a seed and the transitions between them."""

from enum import IntEnum


class SeedStage(IntEnum):
    """Stage of a seed's lifecycle. The values are part of the record format."""

    UNKNOWN = 0
    DORMANT = 1
    GERMINATED = 2
    TRAINING = 3
    BLENDING = 4
    SHADOWING = 5
    PROBATIONARY = 6
    FOSSILIZED = 7
    CULLED = 8
    EMBARGOED = 9
    RESETTING = 10

    @property
    def letter(self) -> str:
        """One character for it, as timelines show it; a dot for an empty slot."""
        return _LETTERS[self]


_LETTERS = {
    SeedStage.UNKNOWN: "?",
    SeedStage.DORMANT: ".",
    SeedStage.GERMINATED: "G",
    SeedStage.TRAINING: "T",
    SeedStage.BLENDING: "B",
    SeedStage.SHADOWING: "S",
    SeedStage.PROBATIONARY: "P",
    SeedStage.FOSSILIZED: "F",
    SeedStage.CULLED: "C",
    SeedStage.EMBARGOED: "e",
    SeedStage.RESETTING: "r",
}

ACTIVE_STAGES = frozenset(
    {
        SeedStage.GERMINATED,
        SeedStage.TRAINING,
        SeedStage.BLENDING,
        SeedStage.SHADOWING,
        SeedStage.PROBATIONARY,
    }
)
"""Stages in which a live seed sits in the slot: it trains with an optimizer of its own and can be culled."""

_SUCCESSORS: dict[SeedStage, frozenset[SeedStage]] = {
    SeedStage.UNKNOWN: frozenset({SeedStage.DORMANT}),
    SeedStage.DORMANT: frozenset({SeedStage.GERMINATED}),
    SeedStage.GERMINATED: frozenset({SeedStage.TRAINING, SeedStage.CULLED}),
    SeedStage.TRAINING: frozenset({SeedStage.BLENDING, SeedStage.CULLED}),
    SeedStage.BLENDING: frozenset({SeedStage.SHADOWING, SeedStage.CULLED}),
    SeedStage.SHADOWING: frozenset({SeedStage.PROBATIONARY, SeedStage.CULLED}),
    SeedStage.PROBATIONARY: frozenset({SeedStage.FOSSILIZED, SeedStage.CULLED}),
    SeedStage.FOSSILIZED: frozenset(),
    SeedStage.CULLED: frozenset({SeedStage.EMBARGOED}),
    SeedStage.EMBARGOED: frozenset({SeedStage.RESETTING}),
    SeedStage.RESETTING: frozenset({SeedStage.DORMANT}),
}


def is_legal_transition(current: SeedStage, target: SeedStage) -> bool:
    """Returns whether a seed in stage `current` may ever move straight to `target`."""
    return target in _SUCCESSORS[current]
