"""The transformer host."""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from esper_ray.errors import ConfigurationError
from esper_ray.models.hosts import SlottedHost, host

_INITIAL_STD = 0.02
_EXPANSION = 4


@host("transformer")
class TransformerHost(SlottedHost):
    """Decoder in the style of GPT-2: learned positions, layer norm before each part, embedding tied to the output.

    A slot may sit after every layer, on the residual stream: `layer_0_post_block`, `layer_1_post_block`, …; by
    default after the middle one, so that later layers can use what a seed adds.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.

    Args:
        input_shape: (T,), tokens of one sequence.
        classes: size of the vocabulary V.
        layers: number of layers.
        heads: attention heads; they divide the width.
        width: model width.
        context: longest sequence, in tokens.
        dropout: share dropped after the embedding, in attention and after each part.

    Shape:
        input (N, T) int64, T at most `context`; output (N, T, V) logits.

    Raises:
        ConfigurationError: the samples are no texts or longer than the context, or the heads do not divide the width.
    """

    topology = "transformer"

    def __init__(
        self,
        input_shape: tuple[int, ...],
        classes: int,
        *,
        layers: Annotated[int, Field(ge=1)] = 6,
        heads: Annotated[int, Field(ge=1)] = 6,
        width: Annotated[int, Field(ge=1)] = 384,
        context: Annotated[int, Field(ge=1)] = 256,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    ) -> None:
        super().__init__()
        if len(input_shape) != 1:
            raise ConfigurationError(f"host 'transformer' reads texts (tokens,), got samples {input_shape}")
        _require_fits(input_shape[0], context)
        if width % heads:
            raise ConfigurationError(f"host.heads={heads} do not divide host.width={width}; change one of them")
        self.context = context
        self.injection_points = {f"layer_{i}_post_block": width for i in range(layers)}
        self.default_slot = f"layer_{(layers - 1) // 2}_post_block"
        self.tokens = nn.Embedding(classes, width)
        self.positions = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(_Layer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.apply(_initialise)
        for layer in self.layers:
            assert isinstance(layer, _Layer)
            for projection in (layer.attention_out, layer.contract):
                nn.init.normal_(projection.weight, std=_INITIAL_STD / (2 * layers) ** 0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        _require_fits(length, self.context)
        stream = self.dropout(self.tokens(tokens) + self.positions.weight[:length])
        for i, layer in enumerate(self.layers):
            stream = layer(stream)
            stream = self.at(f"layer_{i}_post_block", stream)
        return F.linear(self.norm(stream), self.tokens.weight)


class _Layer(nn.Module):
    """Causal self-attention, then a two-layer perceptron; both residual, both behind a layer norm."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, _EXPANSION * width)
        self.contract = nn.Linear(_EXPANSION * width, width)

    def forward(self, stream: Tensor) -> Tensor:
        stream = stream + self._drop(self.attention_out(self._attend(self.attention_norm(stream))))
        return stream + self._drop(self.contract(F.gelu(self.expand(self.mlp_norm(stream)))))

    def _attend(self, stream: Tensor) -> Tensor:
        joined = self.queries_keys_values(stream).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = joined.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, is_causal=True)
        return attended.transpose(1, 2).flatten(2)

    def _drop(self, change: Tensor) -> Tensor:
        return F.dropout(change, self.dropout, self.training)


def _require_fits(length: int, context: int) -> None:
    if length > context:
        raise ConfigurationError(
            f"a sequence of {length} tokens is longer than the host's context of {context}: lower "
            f"data.sequence_length to {context}, or raise host.context to {length}"
        )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=_INITIAL_STD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
