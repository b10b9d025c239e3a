"""Real data sets, prepared once per machine, memory-mapped, cut into batches. Never a synthetic stand-in."""

from esper_ray.data.batches import BatchLoader
from esper_ray.data.cache import PreparedData, prepare
from esper_ray.data.sources import SOURCES, DataSource, get_source

__all__ = ["SOURCES", "BatchLoader", "DataSource", "PreparedData", "get_source", "prepare"]
