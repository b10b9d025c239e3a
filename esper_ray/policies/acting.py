"""Rules by which a stochastic policy turns its probabilities into an action."""

from collections.abc import Sequence
from typing import Literal

from esper_ray.episode import ActionTable

Acting = Literal["sampled", "median", "likeliest"]
"""sampled: draw from the probabilities. median: see `median_action`. likeliest: the action of highest probability."""


def median_action(probabilities: Sequence[float], still_waiting: float) -> tuple[int, float]:
    """Acts deterministically, at the median of the policy's own waiting time.

    A policy that fossilizes with probability 0.1 in each epoch does so within seven epochs in more than half of its
    episodes, though WAIT is the likeliest action in each of them. So WAIT is taken while the policy, sampled, would
    still be waiting with a probability of at least one half, and then the likeliest other action.

    Args:
        probabilities: of the actions, 0 for illegal ones; WAIT has 1 where nothing else is legal.
        still_waiting: probability that the policy, sampled, has only waited since the last other action or the start of
            the episode: 1 at the start, then what the last call returned.

    Returns:
        the action, and `still_waiting` for the next step.
    """
    wait, *others = probabilities
    still_waiting *= wait
    if still_waiting >= 0.5:
        return ActionTable.WAIT, still_waiting
    return 1 + others.index(max(others)), 1.0
