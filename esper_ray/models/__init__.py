"""Networks that can grow: hosts, blueprints, the slot, and the model that joins them. Knows nothing of decisions."""

from esper_ray.models import cnn_seeds, transformer_seeds  # noqa: F401  registers them
from esper_ray.models.blueprints import (
    Blueprint,
    barred_blueprints,
    blueprint,
    build_seed,
    list_blueprints,
    registered_blueprints,
)
from esper_ray.models.cnn import CNNHost
from esper_ray.models.hosts import SlottedHost, build_host, host, host_kinds, host_options
from esper_ray.models.morphogenetic import MorphogeneticModel
from esper_ray.models.slot import SeedSlot
from esper_ray.models.transformer import TransformerHost

__all__ = [
    "Blueprint",
    "CNNHost",
    "MorphogeneticModel",
    "SeedSlot",
    "SlottedHost",
    "TransformerHost",
    "barred_blueprints",
    "blueprint",
    "build_host",
    "build_seed",
    "host",
    "host_kinds",
    "host_options",
    "list_blueprints",
    "registered_blueprints",
]
