"""Speed of a GPU in `gpu_check.py`: the card's own rates, and host epochs."""

import resource
import time
from collections.abc import Callable
from typing import Any

import torch
from gpu_inputs import Check, Row, long_runs
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from esper_ray.tasks import TaskSpec, create_model
from esper_ray.training.lockstep import run_batched


def rates(check: Check) -> list[Row]:
    """Measures the device's matrix products, operations per second, and its memory bandwidth, bytes per second."""
    size, repeats = (512, 3) if check.small else (8192, 20)
    rows = []
    for name, dtype, precision in (
        ("bfloat16", torch.bfloat16, "highest"),
        ("tf32", torch.float32, "high"),
        ("float32", torch.float32, "highest"),
    ):
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        a, b = (torch.randn(size, size, device=check.device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        seconds = _seconds(check, lambda a=a, b=b, out=out: torch.matmul(a, b, out=out), repeats)
        torch.set_float32_matmul_precision(before)
        rows.append({"case": f"{name} products", "operations_per_second": 2 * size**3 / seconds})
    source = torch.empty(2**24 if check.small else 2**31, dtype=torch.uint8, device=check.device)
    target = torch.empty_like(source)
    seconds = _seconds(check, lambda: target.copy_(source), repeats)
    return [*rows, {"case": "copies", "bytes_per_second": 2 * source.numel() / seconds}]


def _seconds(check: Check, work: Callable[[], Any], repeats: int) -> float:
    """Returns the mean seconds of a piece of work, after it has been done three times."""
    for _ in range(3):
        work()
    check.wait()
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    check.wait()
    return (time.perf_counter() - started) / repeats


def speed(check: Check, task: TaskSpec, hosts: int, seconds: float, mixed: bool = False) -> list[Row]:
    """Measures host epochs per second, training and validation, without seeds.

    Args:
        hosts: trained in lockstep; one is trained by itself.
        seconds: how long, at most, besides the first epochs.
        mixed: under bfloat16 autocast.
    """
    if check.on_gpu:
        torch.cuda.reset_peak_memory_stats(check.device)
    runs = long_runs(task, check.device, hosts)
    samples = runs[0]._data.train.samples

    def epoch() -> None:
        with torch.autocast(check.device.type, torch.bfloat16, enabled=mixed):
            for result in run_batched([run.epoch_steps() for run in runs]):
                if isinstance(result, Exception):
                    raise result

    epoch()
    check.wait()
    epochs, started = 0, time.perf_counter()
    while not epochs or time.perf_counter() - started < seconds:
        epoch()
        epochs += 1
    check.wait()
    rate = hosts * epochs / (time.perf_counter() - started)
    return [
        {
            "case": f"{task.name}, {samples} samples, {hosts} host{'s' * (hosts > 1)}{', bfloat16' * mixed}",
            "host_parameters": runs[0].host_parameters,
            "host_epochs_per_second": rate,
            "samples_per_second": rate * samples,
            "operations_per_second": rate * samples * _operations_per_sample(task),
            "peak_memory": _peak_memory(check),
        }
    ]


def _operations_per_sample(task: TaskSpec) -> float:
    """Returns the float operations of training a host with one sample."""
    model = create_model(task).to("meta")
    inputs = torch.empty(2, *task.input_shape, device="meta")
    with FlopCounterMode(display=False) as counter:
        nn.functional.cross_entropy(model(inputs), torch.zeros(2, dtype=torch.long, device="meta")).backward()
    return counter.get_total_flops() / 2


def _peak_memory(check: Check) -> int:
    """Returns bytes: on a GPU the most that tensors took, on a CPU the most that the process had so far."""
    if check.on_gpu:
        return torch.cuda.max_memory_allocated(check.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
