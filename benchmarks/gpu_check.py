"""Checks a GPU in less than eight minutes, without Ray and without a network; a table, and everything as JSON.

Usage: benchmarks/gpu_check.sh [--small] [--out FOLDER]

Each part has a share of the time: one that is not done by then is stopped and "not measured", and what fails is written
down as an error while the rest goes on. The exit code is 1 if a number is wrong. Without a GPU, or with --small, the
CPU is checked at small sizes, to see that the script itself works.

stages        an epoch in each stage of a seed, held against the CPU
incubation    the host's gradients with an incubating seed, held against those without one on the same device
lockstep      hosts in lockstep, held against the same ones by one
episode       an episode, held against itself played again and restored
synchronises  whether anything waits for the GPU between the first batch of an epoch and the last
rates         what the card gives: matrix products and memory bandwidth
speed         host epochs per second of one host and of several in lockstep, and their share of the card's products
"""

import argparse
import json
import logging
import os
import platform
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import gpu_correctness as correctness
import gpu_speed
import gymnasium
import numpy as np
import pydantic
import torch
from gpu_correctness import WrongNumbersError
from gpu_inputs import Check, image_task, shrink_images

import esper_ray
from esper_ray.episode.provenance import code_digest
from esper_ray.numerics import numeric_settings
from esper_ray.tasks import get_task_spec

HERE = Path(__file__).parent
NOT_MEASURED = "not measured"
_MORE_ON_A_CPU = 5
"""Times the share of a part: nobody waits there for a card, but the machine may have other things to do."""
_CODE = ("seeding.py", "numerics.py", "lifecycle", "models", "data", "training", "tasks", "episode", "policies")
_RIGHT_OR_WRONG = ("stages", "incubation", "lockstep", "episode")


class OutOfTimeError(BaseException):  # what trains hosts together catches every Exception of one
    """A part has used up its share."""


class _Notes(logging.Handler):
    """Keeps what is logged, such as that hosts cannot be trained together."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a text."""
        self.texts.append(record.getMessage())


@contextmanager
def share(seconds: float) -> Iterator[None]:
    """Raises `OutOfTimeError` inside the context once the seconds are over."""

    def stop(*_: object) -> None:
        raise OutOfTimeError

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def plan(check: Check) -> list[tuple[str, float, Callable[[], list[dict[str, Any]]]]]:
    """Returns the parts: name, seconds at most, and what is done. 440 seconds in all, on a CPU more."""
    digits, images, wide = get_task_spec("digits"), image_task(check), image_task(check, wide=True)
    several = 2 if check.small else 32
    long = 0.0 if check.small else 8.0
    speed = partial(gpu_speed.speed, check)
    shares = [
        ("rates", 20, partial(gpu_speed.rates, check)),
        ("stages", 70, partial(correctness.stages, check)),
        ("incubation", 30, partial(correctness.incubation, check)),
        ("lockstep", 30, partial(correctness.lockstep, check)),
        ("episode", 40, partial(correctness.episode, check)),
        ("synchronises", 50, partial(correctness.synchronises, check)),
        ("speed of a host, digits", 25, partial(speed, digits, 1, long)),
        (f"speed of {several} hosts, digits", 25, partial(speed, digits, several, long)),
        ("speed of a host, images", 50, partial(speed, images, 1, long)),
        (f"speed of {several // 4 or 2} hosts, images", 40, partial(speed, images, several // 4 or 2, long)),
        ("speed of a wide host, images", 30, partial(speed, wide, 1, long)),
    ]
    if check.small:
        return [(name, _MORE_ON_A_CPU * seconds, work) for name, seconds, work in shares]
    mixed = partial(speed, wide, 1, long, mixed=True)
    return [*shares, ("speed of a wide host, images, bfloat16", 30, mixed)]


def measure(seconds: float, work: Callable[[], list[dict[str, Any]]]) -> dict[str, Any]:
    """Does a part; returns its rows, or why there are none or wrong ones, and the seconds that it took."""
    started = time.perf_counter()
    found: dict[str, Any] = {}
    notes = _Notes()
    logging.getLogger("esper_ray").addHandler(notes)
    try:
        with share(seconds):
            found["rows"] = work()
    except OutOfTimeError:
        found["error"] = NOT_MEASURED
    except WrongNumbersError as error:
        found |= {"rows": error.rows, "error": str(error)}
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    finally:
        logging.getLogger("esper_ray").removeHandler(notes)
    return {**found, "warnings": notes.texts, "seconds": time.perf_counter() - started}


def machine(check: Check) -> dict[str, Any]:
    """Returns what the numbers were measured on, and with."""
    found = {
        "device": torch.cuda.get_device_name(check.device) if check.on_gpu else f"CPU, {os.cpu_count()} cores",
        "small": check.small,
        "driver": _driver() if check.on_gpu else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if check.on_gpu else None,
        "python": platform.python_version(),
        "versions": {module.__name__: module.__version__ for module in (torch, np, pydantic, gymnasium, esper_ray)},
        "code": code_digest(*_CODE),
        "numerics": numeric_settings(),
    }
    if check.on_gpu:
        properties = torch.cuda.get_device_properties(check.device)
        found |= {"memory": properties.total_memory, "multiprocessors": properties.multi_processor_count}
    return found


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.split("\n")[0].strip()


def show(name: str, part: dict[str, Any], products: dict[str, float]) -> None:
    """Prints a part; `products`: operations per second of the card's, by their kind."""
    print(f"\n{name}  ({part['seconds']:.1f} s){'  ' + part['error'] if 'error' in part else ''}", flush=True)
    for row in part.get("rows", ()):
        cells = [f"{key.replace('_', ' ')} {_text(value)}" for key, value in row.items() if value is not None]
        kind = "bfloat16 products" if "bfloat16" in str(row.get("case")) else "tf32 products"  # of convolutions
        if "host_epochs_per_second" in row and kind in products:
            cells.append(f"of {kind} {row['operations_per_second'] / products[kind]:.2%}")
        print("  " + ", ".join(cells))
    for text in part["warnings"]:
        print(f"  warning: {text}")


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)


@contextmanager
def scratch_cache() -> Iterator[None]:
    """Has data prepared in a scratch folder, into which the digits come from `gpu_wheels.sh`, if it was run."""
    with tempfile.TemporaryDirectory(prefix="esper-") as folder:
        if (HERE / "gpu_wheels" / "cache").is_dir():
            shutil.copytree(HERE / "gpu_wheels" / "cache", folder, dirs_exist_ok=True)
        os.environ["ESPER_RAY_CACHE"] = folder
        yield


def main() -> int:
    """Checks, prints and writes; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small sizes on the CPU; so it is without a GPU")
    folder = Path(os.environ.get("OUT") or HERE / "results")
    parser.add_argument(
        "--out", type=Path, default=folder, metavar="FOLDER", help="of the JSON; default $OUT or results"
    )
    given = parser.parse_args()
    small = given.small or not torch.cuda.is_available()
    check = Check(torch.device("cpu" if small else "cuda:0"), small)
    found: dict[str, Any] = {"machine": machine(check), "parts": {}}
    name = "cpu-small" if small else re.sub(r"[^a-z0-9]+", "-", found["machine"]["device"].lower()).strip("-")
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / f"{name}.json"
    print(json.dumps(found["machine"], indent=1), flush=True)
    with scratch_cache():
        if small:
            torch.set_num_threads(1)
            shrink_images()
        for part, seconds, work in plan(check):
            found["parts"][part] = measure(seconds, work)
            measured = found["parts"]["rates"].get("rows", ())
            show(part, found["parts"][part], {row["case"]: row.get("operations_per_second") for row in measured})
            file.write_text(json.dumps(found, indent=1) + "\n")
    print(f"\nWritten to {file}")
    failed = [part for part in _RIGHT_OR_WRONG if found["parts"][part].get("error", NOT_MEASURED) != NOT_MEASURED]
    if failed:
        print(f"Wrong, or not to be had: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
