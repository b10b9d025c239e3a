"""The five seed modules for transformer hosts, in the order in which the heuristic policy tries them.

Features are (N, T, width). Each starts as the exact identity, because the last thing that it adds is multiplied by 0.
"""

import warnings
from collections.abc import Callable
from functools import cache
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esper_ray.models.blueprints import blueprint

_RANK = 8
_HEADS = 4
_EXPANSION = 4
_PROBE_LENGTH = 16


@blueprint("norm", topology="transformer")
class LayerNormSeed(nn.Module):
    """Layer-norm correction with a learned scale that starts at 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        corrected: Tensor = features + self.scale * self.norm(features)
        return corrected


@blueprint("lora", topology="transformer")
class LowRankSeed(nn.Module):
    """Down to rank 8 and up again, residual; the way up starts at 0.

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, _RANK, bias=False)
        self.up = nn.Linear(_RANK, width, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, features: Tensor) -> Tensor:
        adapted: Tensor = features + self.up(self.down(features))
        return adapted


@blueprint("attention", topology="transformer")
class AttentionSeed(nn.Module):
    """Self-attention behind a layer norm, residual; 4 heads, or fewer where they do not divide the width.

    Args:
        width: of the features.
        causal: no position sees a later one.
    """

    def __init__(self, width: int, causal: bool = True) -> None:
        super().__init__()
        self.causal = causal
        self.heads = gcd(_HEADS, width)
        self.norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.output = _zero_linear(width, width)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Maps (N, heads, T, width ÷ heads) each to the same shape."""
        return F.scaled_dot_product_attention(queries, keys, values, is_causal=self.causal)

    def forward(self, features: Tensor) -> Tensor:
        joined = self.queries_keys_values(self.norm(features))
        queries, keys, values = joined.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = self.attend(queries, keys, values).transpose(1, 2).flatten(2)
        grown: Tensor = features + self.output(attended)
        return grown


@blueprint("mlp", topology="transformer")
class MLPSeed(nn.Module):
    """Layer norm, expansion by 4, GELU, back again; residual. The way back starts at 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, _EXPANSION * width)
        self.contract = _zero_linear(_EXPANSION * width, width)

    def forward(self, features: Tensor) -> Tensor:
        grown: Tensor = features + self.contract(F.gelu(self.expand(self.norm(features))))
        return grown


def _flex_attention_obstacle(device: torch.device, width: int) -> str | None:
    """Trains one step of flex attention on `device`; returns torch's error in one line, or None."""
    heads = gcd(_HEADS, width)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = torch.zeros(1, heads, _PROBE_LENGTH, width // heads, device=device, requires_grad=True)
            _flex_attention(values, values, values, causal=True).sum().backward()
    except torch.OutOfMemoryError:
        raise  # that says nothing about the build
    except Exception as error:
        first_sentence = str(error).split(". ")[0].split("\n")[0]
        return f"torch {torch.__version__} on {device.type}: {first_sentence or type(error).__name__}"
    return None


@blueprint("flex_attention", topology="transformer", obstacle=_flex_attention_obstacle)
class FlexAttentionSeed(AttentionSeed):
    """The blueprint `attention` by torch's FlexAttention; only where the torch build trains it on the device."""

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """FlexAttention; with a block mask where it is causal."""
        return _flex_attention(queries, keys, values, self.causal)

    def exportable(self) -> AttentionSeed:
        """Returns the same function with the same weights, in operations that can be traced anywhere."""
        equal = AttentionSeed(self.norm.normalized_shape[0], self.causal)
        equal.load_state_dict(self.state_dict())
        return equal.train(self.training)


def _flex_attention(queries: Tensor, keys: Tensor, values: Tensor, causal: bool) -> Tensor:
    attend = _flex_kernel(queries.device.type)
    mask = _causal_mask(queries.shape[-2], queries.device) if causal else None
    attended: Tensor = attend(queries, keys, values, block_mask=mask)
    return attended


@cache
def _flex_kernel(device_type: str) -> Callable[..., Any]:
    """Returns FlexAttention; compiled on a GPU, where alone the fused kernel exists."""
    from torch.nn.attention import flex_attention as flex

    kernel: Callable[..., Any] = flex.flex_attention
    return torch.compile(kernel) if device_type == "cuda" else kernel


@cache
def _causal_mask(length: int, device: torch.device) -> Any:
    from torch.nn.attention import flex_attention as flex

    return flex.create_block_mask(_is_causal, None, None, length, length, device=device)


def _is_causal(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key


def _zero_linear(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
