"""The convolutional host."""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from esper_ray.errors import ConfigurationError
from esper_ray.models.hosts import SlottedHost, host
from esper_ray.models.narrow_conv import conv3x3
from esper_ray.models.pooled_norm import norm_relu_pool


@host("cnn")
class CNNHost(SlottedHost):
    """Blocks of 3×3 convolution without bias, batch norm, ReLU and 2×2 max-pool; global average pool; linear head.

    Channels double from block to block. A slot may sit after every block, behind its pooling: there the features are
    a quarter of the size and a seed costs a quarter of the time.

    Args:
        input_shape: (channels, height, width) of an image; height and width at least 2**blocks.
        classes: number of classes.
        base_channels: channels c of the first block; the next have 2c, 4c, ….
        blocks: number of blocks; each halves height and width.

    Shape:
        input (N, channels, height, width) float; output (N, classes) logits.

    Raises:
        ConfigurationError: the samples are no images, or too small for the blocks.
    """

    topology = "cnn"

    def __init__(
        self,
        input_shape: tuple[int, ...],
        classes: int,
        *,
        base_channels: Annotated[int, Field(ge=1)] = 8,
        blocks: Annotated[int, Field(ge=1)] = 3,
    ) -> None:
        super().__init__()
        if len(input_shape) != 3:
            raise ConfigurationError(f"host 'cnn' reads images (channels, height, width), got samples {input_shape}")
        in_channels, height, width = input_shape
        if min(height, width) < 2**blocks:
            raise ConfigurationError(
                f"host.blocks={blocks} halves the image {blocks} times and needs at least {2**blocks}×{2**blocks}; "
                f"the image has {height}×{width}: use fewer blocks"
            )
        widths = [base_channels * 2**i for i in range(blocks)]
        self.injection_points = {f"block{i}_post": width for i, width in enumerate(widths, start=1)}
        self.default_slot = "block1_post" if blocks == 1 else "block2_post"
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size=3, padding=1, bias=False)
            for before, after in zip([in_channels, *widths[:-1]], widths, strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        features = images
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True), start=1):
            features = norm_relu_pool(conv3x3(features, conv), norm)
            features = self.at(f"block{i}_post", features)
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits
