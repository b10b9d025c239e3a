"""Starting a local Ray for the length of a run, and leaving nothing of it behind."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import ray

_QUIET = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "PYTHONWARNINGS": "ignore",
}


@contextmanager
def local_ray(num_cpus: int | None = None, num_gpus: int | None = None) -> Iterator[None]:
    """Uses the Ray that this process is connected to, or else starts a local one and ends it afterwards.

    Args:
        num_cpus, num_gpus: what a new local Ray offers; None: what the machine has.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    for name in ("ray", "ray.rllib", "ray.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    session = tempfile.mkdtemp(prefix="esper-")
    try:
        with _without_stderr():
            ray.init(
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=session,
            )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(session, ignore_errors=True)


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Drops what Ray's C++ part writes to the process's standard error; its failures raise all the same."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
