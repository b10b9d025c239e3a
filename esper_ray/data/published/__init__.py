"""The data sets that come with the package: where each lies, and how its published format is read."""

from esper_ray.data.published import cifar10, digits, fashion_mnist, pydoc, tinystories

__all__ = ["cifar10", "digits", "fashion_mnist", "pydoc", "tinystories"]
