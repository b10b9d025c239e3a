"""Real data sets, prepared once per machine, memory-mapped, cut into batches. Never a synthetic stand-in."""

from esper_ray.data import published  # noqa: F401  registers them
from esper_ray.data.batches import BatchLoader, CropAndFlip, SampleLoader, TokenLoader
from esper_ray.data.cache import PreparedData, prepare
from esper_ray.data.source import SPLIT_NAMES, DataSource, HubCopy, data_source, get_source, shuffled_split
from esper_ray.data.tokenizers import VOCABULARIES, find_gpt2_tokenizer

__all__ = [
    "SPLIT_NAMES",
    "VOCABULARIES",
    "BatchLoader",
    "CropAndFlip",
    "DataSource",
    "HubCopy",
    "PreparedData",
    "SampleLoader",
    "TokenLoader",
    "data_source",
    "find_gpt2_tokenizer",
    "get_source",
    "prepare",
    "shuffled_split",
]
