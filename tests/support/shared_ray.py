"""One local Ray for all tests of a process that need actors; it starts when the first of them comes."""

from contextlib import ExitStack

from esper_ray.orchestration.fleet.cluster import local_ray

CPUS = 4
"""What it offers, whatever the machine has: a runner takes one."""
_running = ExitStack()


def start() -> None:
    """Starts it unless a Ray runs already."""
    _running.enter_context(local_ray(num_cpus=CPUS))


def stop() -> None:
    """Ends it if it runs."""
    _running.close()
