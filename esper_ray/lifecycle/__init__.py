"""The lifecycle of a seed: stages, transitions, gates. Knows nothing of tensors."""

from esper_ray.lifecycle.alpha import blending_alpha
from esper_ray.lifecycle.gates import GateResult, check_gate, refused
from esper_ray.lifecycle.settings import LifecycleSettings
from esper_ray.lifecycle.stages import ACTIVE_STAGES, SeedStage, is_legal_transition
from esper_ray.lifecycle.state import SeedState

__all__ = [
    "ACTIVE_STAGES",
    "GateResult",
    "LifecycleSettings",
    "SeedStage",
    "SeedState",
    "blending_alpha",
    "check_gate",
    "is_legal_transition",
    "refused",
]
