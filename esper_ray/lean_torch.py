"""Keeping out of a process what of torch nobody there uses."""

import inspect

import torch
from torch.optim import SGD, Adam, AdamW, Optimizer


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
