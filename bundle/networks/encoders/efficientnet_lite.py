"""EfficientNet-Lite, cut short and dilated: small weights with an open license."""

from __future__ import annotations

import math
from typing import List, NamedTuple, Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from monai.networks.blocks import Convolution

from .base import Encoder, check_count, check_output_stride
from .depthwise import DepthwiseConv2d

_STEM_CHANNELS = 32  # the Lite family scales neither the stem nor the repeats of the first and the last stage
_NORM = ("batch", {"eps": 1e-3, "momentum": 0.01})
_ACT = ("relu6", {"inplace": True})

LITE_SCALING: dict[str, tuple[float, float]] = {  # variant: (width, depth)
    "lite0": (1.0, 1.0),
    "lite1": (1.0, 1.1),
    "lite2": (1.1, 1.2),
    "lite3": (1.2, 1.4),
    "lite4": (1.4, 1.8),
}

# kernel size, stride, expansion, output channels, repeats: EfficientNet-B0 without squeeze-and-excitation
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


class LiteBlock(NamedTuple):
    """Shape of one inverted bottleneck, before any stride is replaced."""

    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    expansion: int


def lite_blocks(variant: str) -> list[LiteBlock]:
    """List the blocks of a whole EfficientNet-Lite in order.

    Args:
        variant: "lite0" to "lite4".

    Returns:
        One entry per block: 16 for lite0, 21 for lite1 and lite2, 24 for lite3, 30 for lite4.

    Raises:
        ValueError: if `variant` is unknown.
    """
    if variant not in LITE_SCALING:
        raise ValueError(f"variant must be one of {sorted(LITE_SCALING)}, got {variant!r}")
    width, depth = LITE_SCALING[variant]
    blocks, in_channels = [], _STEM_CHANNELS
    for stage, (kernel_size, stride, expansion, channels, repeats) in enumerate(_STAGES):
        out_channels = _round_channels(channels * width)
        if 0 < stage < len(_STAGES) - 1:
            repeats = math.ceil(repeats * depth)
        for repeat in range(repeats):
            blocks.append(LiteBlock(in_channels, out_channels, kernel_size, 1 if repeat else stride, expansion))
            in_channels = out_channels
    return blocks


class EfficientNetLiteEncoder(Encoder):
    """The first blocks of an EfficientNet-Lite, dilated, and a 1x1 convolution.

    EfficientNet-Lite [1]_ is EfficientNet [2]_ without squeeze-and-excitation and with ReLU6. Convolutions are padded
    like TensorFlow's "SAME": a strided one more after than before, a dilated one evenly. A block that would exceed
    `output_stride` has stride 1, and the depthwise convolutions after it are dilated instead. Feature ``n`` of the
    plain, strided network then equals feature ``n * k + k - 1`` of the dilated one, k being the ratio of the strides.

    Published weights expect RGB in [0, 1], minus (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225).

    Args:
        variant: "lite0" to "lite4".
        num_blocks: how many inverted bottlenecks to keep; 11 of lite0's 16 end with the last ones at stride 16,
            112 channels wide. None keeps all. The 1280-channel head is never part of the encoder.
        output_stride: input pixels per feature cell: 4, 8, 16 or 32.
        embedding_channels: output channels; None for the last block's own.
        freeze_norm: keep batch normalization in evaluation mode while training.
        taps: numbers (from 1) of the blocks whose outputs make the features, such as ``[5, 11]``, each with a 1x1
            convolution of its own that starts as the identity, each of unit norm in every cell, one below the other.
            The cosine similarity of such features is the mean of the taps' cosines. Takes the place of the closing
            convolution: ``embedding_channels`` must be None. None uses the last block alone.
        frozen_blocks: the stem and so many first blocks do not learn.
        freeze_depthwise: depthwise filters do not learn; a step on CPU then takes a fraction of the time.

    Raises:
        TypeError: if a count is no integer.
        ValueError: if an argument is not on offer, or if so few blocks never reach `output_stride`.

    References:
        .. [1] R. Liu, "Higher accuracy on vision models with EfficientNet-Lite", TensorFlow blog, 2020.
        .. [2] M. Tan, Q. V. Le, "EfficientNet: rethinking model scaling for convolutional neural networks", ICML 2019,
           arXiv:1905.11946.

    Example::

        encoder = EfficientNetLiteEncoder("lite0", num_blocks=11)
        encoder(torch.rand(2, 3, 64, 96)).shape  # (2, 256, 8, 12)
    """

    def __init__(
        self,
        variant: str = "lite0",
        num_blocks: int | None = 11,
        output_stride: int = 8,
        embedding_channels: int | None = 256,
        freeze_norm: bool = False,
        taps: Sequence[int] | None = None,
        frozen_blocks: int = 0,
        freeze_depthwise: bool = False,
    ) -> None:
        plan = lite_blocks(variant)
        if num_blocks is not None:
            check_count("num_blocks", num_blocks)
            if num_blocks > len(plan):
                raise ValueError(f"num_blocks must be at most {len(plan)} for {variant}, got {num_blocks}")
        plan = plan[:num_blocks]
        check_output_stride(output_stride, (4, 8, 16, 32))
        reached = 2 * math.prod(block.stride for block in plan)  # 2: the stem
        if reached < output_stride:
            raise ValueError(
                f"output_stride must be at most {reached} for {len(plan)} blocks of {variant}, got {output_stride}"
            )
        if taps is not None and (embedding_channels is not None or not 0 < min(taps) <= max(taps) <= len(plan)):
            raise ValueError(
                f"taps must be block numbers in 1..{len(plan)} with embedding_channels=None, got {list(taps)} with "
                f"embedding_channels={embedding_channels}"
            )
        super().__init__(3, plan[-1].out_channels, embedding_channels, output_stride, freeze_norm)
        self.taps: List[int] = sorted(taps or [0])  # 0 is no block; TorchScript takes no empty list

        self.stem = nn.Sequential(*_same_convolution(3, _STEM_CHANNELS, kernel_size=3, stride=2))
        self.blocks = nn.Sequential()
        stride, dilation = 2, 1
        for block in plan:
            if block.stride > 1 and stride * block.stride > output_stride:
                self.blocks.append(InvertedBottleneck(block._replace(stride=1), dilation))
                dilation *= block.stride
            else:
                self.blocks.append(InvertedBottleneck(block, dilation))
                stride *= block.stride
        self.heads = nn.ModuleList()
        for tap in sorted(taps or []):
            channels = plan[tap - 1].out_channels
            head = nn.Conv2d(channels, channels, kernel_size=1, bias=False)
            nn.init.dirac_(head.weight)
            self.heads.append(head)
        if taps is not None:
            self.out_channels = sum(plan[tap - 1].out_channels for tap in taps)
        if frozen_blocks > 0:
            self.stem.requires_grad_(False)
            self.blocks[:frozen_blocks].requires_grad_(False)
        if freeze_depthwise:
            for module in self.modules():
                if isinstance(module, DepthwiseConv2d):
                    module.requires_grad_(False)
        self.train()  # freeze_norm acts from the start

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Compute features.

        Args:
            image: (B, 3, H, W), normalized as the weights expect; `output_stride` divides H and W.

        Returns:
            Features, (B, out_channels, H / output_stride, W / output_stride).
        """
        x = self.stem(image)
        if len(self.heads) == 0:
            return self.localconv(self.blocks(x))
        levels: List[torch.Tensor] = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number + 1 in self.taps:
                levels.append(x)
        features: List[torch.Tensor] = []
        for index, head in enumerate(self.heads):
            level = levels[index]
            if level.shape[2] != x.shape[2] or level.shape[3] != x.shape[3]:
                level = F.adaptive_avg_pool2d(level, [x.shape[2], x.shape[3]])
            level = head(level).float()
            features.append(level / torch.linalg.vector_norm(level, 2.0, [1], True).clamp(min=1e-4))
        return torch.cat(features, dim=1)


class InvertedBottleneck(nn.Module):
    """Expand by 1x1, filter each channel, project by 1x1; add the input where shapes agree (MBConv).

    MONAI's ``MBConvBlock`` has swish and squeeze-and-excitation built in and pads for one fixed image size, hence
    this one.

    Args:
        block: channels, kernel size, stride and expansion.
        dilation: dilation of the depthwise convolution; must be 1 if the block has a stride.
    """

    def __init__(self, block: LiteBlock, dilation: int = 1) -> None:
        super().__init__()
        hidden = block.in_channels * block.expansion
        self.expand: nn.Module = nn.Identity()
        if block.expansion != 1:
            self.expand = Convolution(
                2, block.in_channels, hidden, kernel_size=1, bias=False, adn_ordering="NA", norm=_NORM, act=_ACT
            )
        self.pad, self.depthwise = _same_convolution(
            hidden, hidden, block.kernel_size, block.stride, dilation, groups=hidden
        )
        self.project = Convolution(
            2, hidden, block.out_channels, kernel_size=1, bias=False, adn_ordering="N", norm=_NORM, act=None
        )
        self.residual = block.stride == 1 and block.in_channels == block.out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block.

        Args:
            x: (B, in_channels, H, W); the block's stride divides H and W.

        Returns:
            (B, out_channels, H / stride, W / stride).
        """
        y = self.project(self.depthwise(self.pad(self.expand(x))))
        return x + y if self.residual else y


def _same_convolution(
    in_channels: int, out_channels: int, kernel_size: int, stride: int, dilation: int = 1, groups: int = 1
) -> tuple[nn.Module, nn.Module]:
    """Padding and convolution, norm, activation, as "SAME" does it for sizes that the stride divides."""
    total = dilation * (kernel_size - 1) + 1 - stride
    before, after = total // 2, total - total // 2
    pad = nn.Identity() if before == after else nn.ZeroPad2d((before, after, before, after))
    convolution = Convolution(
        2,
        in_channels,
        out_channels,
        strides=stride,
        kernel_size=kernel_size,
        dilation=dilation,
        groups=groups,
        padding=before if before == after else 0,
        bias=False,
        adn_ordering="NA",
        norm=_NORM,
        act=_ACT,
    )
    if groups == in_channels == out_channels:
        plain = convolution.conv
        convolution.conv = DepthwiseConv2d(
            in_channels, out_channels, kernel_size, stride, plain.padding, dilation, groups, bias=False
        )
    return pad, convolution


def _round_channels(channels: float, divisor: int = 8) -> int:
    """Nearest multiple of `divisor` (halves up), at least `divisor`, and at least 90% of `channels`."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor
