"""Settings of torch and of the C library in a process that trains, and the memory of the process."""

import ctypes
import inspect
import resource
import sys

import psutil
import torch
from torch.optim import SGD, Adam, AdamW, Optimizer

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Constants of glibc's malloc.h."""


def without_compiler() -> None:
    """Lets optimizers be built and step without torch's compiler, for the rest of the process.

    Torch hides its optimizers from `torch.compile`, and imports the whole compiler to do so when the first one is built
    or steps: 75 MB and seconds in each process, although nothing here compiles an optimizer. They compute what they
    did; whoever wants `torch.compile` to run over one, or `differentiable=True`, must not call this.
    """
    for method in vars(Optimizer).values():
        hidden = getattr(method, "__wrapped__", None)
        if hidden is not None:
            hidden.__dynamo_disable = hidden  # where `torch._compile._disable_dynamo` remembers what it has made
    for kind in (SGD, Adam, AdamW):
        if "step" in vars(kind):
            kind.step = torch.no_grad()(inspect.unwrap(kind.step))  # type: ignore[method-assign]


def retain_freed_memory() -> None:
    """Keeps freed memory in this process, for the tensors of the next batch. Where the C library is not glibc: nothing.

    Otherwise glibc hands tensors of megabytes back with every batch, and the kernel fills the next ones with zeros: on
    images of 32×32 some 2,000 page faults a batch, a sixth of an epoch.
    """
    c_library = ctypes.CDLL(None)
    if hasattr(c_library, "mallopt"):
        c_library.mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the largest that it takes
        c_library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def process_memory() -> int:
    """Returns the memory of this process, bytes; of shared memory its part, where the system reports that.

    Where /proc is missing or may not be read, as in some containers: the peak so far.
    """
    try:
        memory = psutil.Process().memory_full_info()
        return int(getattr(memory, "pss", memory.rss))
    except (psutil.Error, OSError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
