"""The interface that every encoder of this package keeps."""

from __future__ import annotations

import torch.nn as nn
from torch.nn.modules.batchnorm import _BatchNorm


class Encoder(nn.Module):
    """Image to feature map: the part of a few-shot network that carries the weights.

    A subclass turns ``(B, in_channels, H, W)`` into ``(B, out_channels, H / stride, W / stride)``. ``stride`` has to
    divide `H` and `W`; the network that calls the encoder checks that, so that tracing and exporting see no branch.

    Args:
        in_channels: channels of the input (3 for encoders with published weights: repeat a gray image three times).
        feature_channels: channels of the trunk's last layer.
        embedding_channels: channels after the closing 1x1 convolution without bias, submodule ``localconv``; None
            leaves the trunk's features as they are.
        stride: input pixels per feature cell, along H and W.
        freeze_norm: keep batch normalization in evaluation mode when the network trains: the stored mean and variance
            are used and not updated, while weight and bias still learn. The published training leaves this off.

    Attributes:
        in_channels: channels of the input.
        out_channels: channels of the features, `embedding_channels` unless that is None.
        stride: input pixels per feature cell.

    Raises:
        TypeError: if `embedding_channels` is neither None nor an integer.
        ValueError: if `embedding_channels` is below 1.
    """

    def __init__(
        self, in_channels: int, feature_channels: int, embedding_channels: int | None, stride: int, freeze_norm: bool
    ) -> None:
        super().__init__()
        if embedding_channels is not None:
            check_count("embedding_channels", embedding_channels)
        self.in_channels = in_channels
        self.out_channels = feature_channels if embedding_channels is None else embedding_channels
        self.stride = stride
        self.freeze_norm = freeze_norm
        self.localconv: nn.Module = nn.Identity()
        if embedding_channels is not None:
            self.localconv = nn.Conv2d(feature_channels, embedding_channels, kernel_size=1, bias=False)

    def train(self, mode: bool = True) -> Encoder:
        """Set training mode, except for batch normalization if `freeze_norm` was asked for.

        Args:
            mode: True for training, False for evaluation.

        Returns:
            The encoder itself.
        """
        super().train(mode)
        if self.freeze_norm:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


def check_output_stride(output_stride: int, allowed: tuple[int, ...], name: str = "output_stride") -> None:
    """Refuse an output stride that an encoder does not offer.

    Args:
        output_stride: the value asked for.
        allowed: the values on offer.
        name: what the encoder calls the argument.

    Raises:
        ValueError: if `output_stride` is not among `allowed`.
    """
    if output_stride not in allowed:
        raise ValueError(f"{name} must be one of {list(allowed)}, got {output_stride}")


def check_count(name: str, count: int) -> None:
    """Refuse anything but a positive integer.

    Args:
        name: the argument's name.
        count: its value.

    Raises:
        TypeError: if `count` is no integer.
        ValueError: if `count` is below 1.
    """
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"{name} must be an integer, got {count!r}")
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}")
