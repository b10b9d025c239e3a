"""Settings of a process, besides code and data, that decide the last digits of its numbers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

UNSET = "unset"
"""Stands for the value of what is not set."""
_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_REPRODUCIBLE_CUBLAS = ":4096:8"
"""Workspaces with which cuBLAS gives the same numbers each time: see "Results reproducibility" in its manual."""
_FAMILIES = ("OMP_", "KMP_", "GOMP_", "MKL_", "ONEDNN_", "DNNL_", "CUBLAS", "CUDNN_", "NPY_")
_HARMLESS = (
    "_DUPLICATE_LIB_OK",
    "_INIT_AT_FORK",
    "_NUM_THREADS",
    "_VERBOSE",
    "_VERBOSE_OUTPUT_FILE",
    "_THREADING_LAYER",
    "_INTERFACE_LAYER",
)
"""Endings of those of the families that decide no numbers; the number of threads is always set, see `play_as_actor`."""
_OTHERS = (
    *("ATEN_CPU_CAPABILITY", "OPENBLAS_CORETYPE", "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_DISABLE_JIT"),
    *("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TORCH_BLAS_PREFER_CUBLASLT"),
    *("TORCH_CUDNN_V8_API_DISABLED", "DISABLE_ADDMM_CUDA_LT", "PYTORCH_TUNABLEOP_ENABLED"),
)
_PRECISIONS = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")


def play_as_actor(threads: int) -> None:
    """Applies an actor's numeric settings for the rest of the process, whatever the environment says.

    Args:
        threads: of torch.
    """
    torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    os.environ.setdefault(_CUBLAS, _REPRODUCIBLE_CUBLAS)


@contextmanager
def as_actor(threads: int) -> Iterator[None]:
    """Applies an actor's numeric settings inside the context, see `play_as_actor`."""
    cudnn = torch.backends.cudnn
    threads_before, cudnn_before = torch.get_num_threads(), (cudnn.deterministic, cudnn.benchmark)
    cublas_before = os.environ.get(_CUBLAS)
    play_as_actor(threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
        cudnn.deterministic, cudnn.benchmark = cudnn_before
        if cublas_before is None:
            os.environ.pop(_CUBLAS, None)


def numeric_settings() -> dict[str, str]:
    """Returns the environment variables of this process that decide numbers, those that are set, and torch's switches.

    The number of threads is not among them: it is always set, and recorded by itself.
    """
    variables = {
        name: value
        for name, value in sorted(os.environ.items())
        if name in _OTHERS or (name.startswith(_FAMILIES) and not name.endswith(_HARMLESS))
    }
    return {
        **variables,
        "torch.are_deterministic_algorithms_enabled": str(torch.are_deterministic_algorithms_enabled()),
        "torch.get_default_dtype": str(torch.get_default_dtype()),
        "torch.backends.cudnn.deterministic": str(torch.backends.cudnn.deterministic),
        "torch.backends.cudnn.benchmark": str(torch.backends.cudnn.benchmark),
        **_float32_precision(),
    }


def _float32_precision() -> dict[str, str]:
    """Returns how precise float32 products are; torch below 2.9 knows fewer switches. What is not set is "ieee"."""
    if not hasattr(torch.backends, "fp32_precision"):
        return {
            "torch.get_float32_matmul_precision": torch.get_float32_matmul_precision(),
            "torch.backends.cudnn.allow_tf32": str(torch.backends.cudnn.allow_tf32),
        }
    found = {}
    for name in _PRECISIONS:
        backend, operation = name.split(".")
        switch = getattr(getattr(torch.backends, backend), operation)
        found[f"torch.backends.{name}.fp32_precision"] = str(switch.fp32_precision).replace("none", "ieee")
    return found
