"""scikit-learn's bundled handwritten digits."""

from pathlib import Path

import numpy as np

from esper_ray.data.source import Splits, data_source, shuffled_split


@data_source("digits", "1,797 handwritten digits, 8×8, bundled with scikit-learn")
def read_digits(files: list[Path]) -> Splits:
    """Returns 1,000, 400 and 397 images (N, 1, 8, 8) uint8, values 0 to 16."""
    from sklearn.datasets import load_digits

    bundle = load_digits()
    images = bundle.images.astype(np.uint8)[:, None]
    sizes = {"train": 1000, "validation": 400, "test": 397}
    return shuffled_split(images, bundle.target.astype(np.int64), sizes)
