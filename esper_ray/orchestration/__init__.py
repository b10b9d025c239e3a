"""Parallel episodes: Ray actors that own hosts, a central learner, run folders. The only layer that imports ray.

Nothing of it is imported here, so that the command line can read `orchestration.config` without loading torch and Ray.
"""

import os
from pathlib import Path

try:
    Path.home()
except RuntimeError:  # no HOME and no passwd entry: container engines say "/" then, and Ray Tune's import needs one
    os.environ["HOME"] = "/"
