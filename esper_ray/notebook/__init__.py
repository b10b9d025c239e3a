"""Runs and searches from a notebook: a session that owns Ray, one updating display, pandas frames."""

from esper_ray.notebook.session import Session

__all__ = ["Session"]
