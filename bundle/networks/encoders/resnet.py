"""ResNet with dilation instead of strides: the trunk of DeepLabV3, and of the published method."""

from __future__ import annotations

import torch
import torch.nn as nn
from monai.networks.nets import ResNet

from .base import Encoder, check_output_stride

# depth: (block, blocks in layer1..layer4, channels of layer4)
RESNET_LAYERS: dict[int, tuple[str, tuple[int, int, int, int], int]] = {
    18: ("basic", (2, 2, 2, 2), 512),
    34: ("basic", (3, 4, 6, 3), 512),
    50: ("bottleneck", (3, 4, 6, 3), 2048),
    101: ("bottleneck", (3, 4, 23, 3), 2048),
}


class ResNetEncoder(Encoder):
    """ResNet-18, -34, -50 or -101 at output stride 4, 8, 16 or 32, and a 1x1 convolution.

    The trunk is MONAI's :py:class:`monai.networks.nets.ResNet` in 2D. Its parameters carry torchvision's names
    (``backbone.conv1``, ``backbone.bn1``, ``backbone.layer1`` ...), so that published weights fit after
    ``scripts.convert_weights``. From the layer on that would exceed `output_stride`, strides become 1 and 3x3
    convolutions are dilated instead, as ``replace_stride_with_dilation`` of torchvision does: the convolution that
    lost its stride keeps the dilation reached before it, those after it double it. Hence every
    ``32 / output_stride``-th feature equals the feature of the plain, strided network. (torchvision has no dilated
    basic block; ResNet-18 and -34 follow the same rule.) The published encoder is ``depth=101, output_stride=8``.

    Args:
        depth: 18, 34, 50 or 101.
        output_stride: input pixels per feature cell: 4, 8, 16 or 32 (no dilation).
        embedding_channels: output channels; None for the trunk's own 512 (18, 34) or 2048 (50, 101).
        freeze_norm: keep batch normalization in evaluation mode while training.

    Raises:
        ValueError: if `depth`, `output_stride` or `embedding_channels` is not on offer.

    Example::

        encoder = ResNetEncoder(depth=18)
        encoder(torch.rand(2, 3, 64, 96)).shape  # (2, 256, 8, 12)
    """

    def __init__(
        self, depth: int = 101, output_stride: int = 8, embedding_channels: int | None = 256, freeze_norm: bool = False
    ) -> None:
        if depth not in RESNET_LAYERS:
            raise ValueError(f"depth must be one of {sorted(RESNET_LAYERS)}, got {depth}")
        check_output_stride(output_stride, (4, 8, 16, 32))
        block, layers, feature_channels = RESNET_LAYERS[depth]
        super().__init__(3, feature_channels, embedding_channels, output_stride, freeze_norm)
        self.backbone = _ResNetTrunk(block, layers, output_stride)
        self.train()  # freeze_norm acts from the start

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Compute features.

        Args:
            image: (B, 3, H, W), normalized as the weights expect; `output_stride` divides H and W.

        Returns:
            Features, (B, out_channels, H / output_stride, W / output_stride).
        """
        return self.localconv(self.backbone(image))


class _ResNetTrunk(ResNet):
    """MONAI's ResNet up to its last feature map, dilated beyond `output_stride`."""

    def __init__(self, block: str, layers: tuple[int, ...], output_stride: int) -> None:
        super().__init__(
            block=block,
            layers=list(layers),
            block_inplanes=[64, 128, 256, 512],
            spatial_dims=2,
            n_input_channels=3,
            conv1_t_size=7,
            conv1_t_stride=2,
            shortcut_type="B",
            bias_downsample=False,
            feed_forward=False,
        )
        del self.avgpool
        stride, dilation = 4, 1  # after conv1 and the max pooling
        for layer in (self.layer2, self.layer3, self.layer4):
            stride *= 2
            if stride > output_stride:
                _dilate(layer, dilation, 2 * dilation)
                dilation *= 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.act(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def _dilate(layer: nn.Module, dilation_before: int, dilation_after: int) -> None:
    """Take the stride out of a layer, in place, and dilate its 3x3 convolutions to make up for it."""
    dilation = dilation_before
    for module in layer.modules():
        if not isinstance(module, nn.Conv2d):
            continue
        strided, module.stride = module.stride != (1, 1), (1, 1)
        if module.kernel_size == (3, 3):
            module.dilation = module.padding = (dilation, dilation)
            if strided:
                dilation = dilation_after
