"""An encoder of a few thousand weights, for tests and first tries."""

from __future__ import annotations

import torch
import torch.nn as nn
from monai.networks.blocks import Convolution

from .base import Encoder, check_count, check_output_stride


class TinyEncoder(Encoder):
    """Three 3x3 convolutions with batch normalization and ReLU, no published weights.

    Args:
        out_channels: channels of all three layers and of the features.
        stride: input pixels per feature cell: 1, 2, 4 or 8 (one halving per layer, the first layers first).
        in_channels: channels of the input.
        freeze_norm: keep batch normalization in evaluation mode while training.

    Raises:
        TypeError: if a channel count is no integer.
        ValueError: if `stride` is not on offer, or a channel count is below 1.

    Example::

        encoder = TinyEncoder(out_channels=16, stride=8)
        encoder(torch.rand(2, 3, 64, 96)).shape  # (2, 16, 8, 12)
    """

    def __init__(
        self, out_channels: int = 16, stride: int = 8, in_channels: int = 3, freeze_norm: bool = False
    ) -> None:
        check_count("out_channels", out_channels)
        check_count("in_channels", in_channels)
        check_output_stride(stride, (1, 2, 4, 8), name="stride")
        super().__init__(in_channels, out_channels, None, stride, freeze_norm)
        self.layers = nn.Sequential()
        for index in range(3):
            self.layers.append(
                Convolution(
                    2,
                    out_channels if index else in_channels,
                    out_channels,
                    strides=2 if stride >= 2 ** (index + 1) else 1,
                    bias=False,
                    adn_ordering="NA",
                    norm="batch",
                    act="relu",
                )
            )
        self.train()  # freeze_norm acts from the start

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Compute features.

        Args:
            image: (B, in_channels, H, W); `stride` divides H and W.

        Returns:
            Features, (B, out_channels, H / stride, W / stride).
        """
        return self.layers(image)
