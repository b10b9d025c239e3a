"""A grown host as files that torch alone can load."""

from esper_ray.export.folder import export_model

__all__ = ["export_model"]
