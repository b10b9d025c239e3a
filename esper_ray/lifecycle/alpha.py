"""The schedule of alpha, the share of the seed in the slot's output while it is blended into the host."""

from math import tanh


def blending_alpha(step: int, total_steps: int, temperature: float = 1.0) -> float:
    """Returns the blending weight after `step` of `total_steps` steps.

    A sigmoid in the step number, written with tanh: ½(1 + tanh((step − total_steps/2) / (2·temperature))), but exactly
    0 at step ≤ 0 and exactly 1 from the last step on.

    Args:
        step: steps taken so far.
        total_steps: length of the ramp in steps, at least 1.
        temperature: width of the sigmoid in steps; the larger, the straighter the ramp.
    """
    if step <= 0:
        return 0.0
    if step >= total_steps:
        return 1.0
    return 0.5 * (1.0 + tanh((step - total_steps / 2) / (2.0 * temperature)))
