"""Networks that can grow: hosts, blueprints, the slot, and the model that joins them. Knows nothing of decisions."""

from esper_ray.models.blueprints import Blueprint, blueprint, build_seed, list_blueprints
from esper_ray.models.cnn import CNNHost
from esper_ray.models.morphogenetic import MorphogeneticModel
from esper_ray.models.slot import SeedSlot

__all__ = ["Blueprint", "CNNHost", "MorphogeneticModel", "SeedSlot", "blueprint", "build_seed", "list_blueprints"]
