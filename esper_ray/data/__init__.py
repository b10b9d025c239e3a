"""Real data sets, prepared once per machine, memory-mapped, cut into batches. Never a synthetic stand-in."""

from esper_ray.data import published  # noqa: F401  registers them
from esper_ray.data.batches import BatchLoader, SampleLoader, TokenLoader, crop_and_flip
from esper_ray.data.cache import PreparedData, prepare
from esper_ray.data.source import DataSource, HubCopy, data_source, get_source, shuffled_split
from esper_ray.data.tokenizers import VOCABULARIES, find_gpt2_tokenizer

__all__ = [
    "VOCABULARIES",
    "BatchLoader",
    "DataSource",
    "HubCopy",
    "PreparedData",
    "SampleLoader",
    "TokenLoader",
    "crop_and_flip",
    "data_source",
    "find_gpt2_tokenizer",
    "get_source",
    "prepare",
    "shuffled_split",
]
