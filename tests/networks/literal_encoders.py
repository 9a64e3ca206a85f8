"""Slow, literal encoders on plain state dicts, and checkpoints in other projects' layouts."""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F

RESNET_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}

# the blocks of EfficientNet-Lite0 as listed for EfficientNet-B0: kernel, stride, expansion, in, out
LITE0_BLOCKS = (
    (3, 1, 1, 32, 16),
    (3, 2, 6, 16, 24),
    (3, 1, 6, 24, 24),
    (5, 2, 6, 24, 40),
    (5, 1, 6, 40, 40),
    (3, 2, 6, 40, 80),
    (3, 1, 6, 80, 80),
    (3, 1, 6, 80, 80),
    (5, 1, 6, 80, 112),
    (5, 1, 6, 112, 112),
    (5, 1, 6, 112, 112),
    (5, 2, 6, 112, 192),
    (5, 1, 6, 192, 192),
    (5, 1, 6, 192, 192),
    (5, 1, 6, 192, 192),
    (3, 1, 6, 192, 320),
)


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and every batch statistic a value, such that features neither vanish nor explode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.ndim == 1:
                tensor.normal_(0.0, 0.3, generator=generator)
                if name.endswith("weight"):
                    tensor.add_(1.0)
            elif tensor.ndim == 4:
                tensor.normal_(0.0, (2.0 / tensor[0].numel()) ** 0.5, generator=generator)
    return module


def resnet_state_dict(depth: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Make random weights of a ResNet trunk, named and shaped by hand as torchvision names them."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {}

    def convolution(name: str, out_channels: int, in_channels: int, size: int) -> None:
        weight = torch.randn(out_channels, in_channels, size, size, generator=generator)
        state[f"{name}.weight"] = weight * (2.0 / (in_channels * size**2)) ** 0.5

    def norm(name: str, channels: int) -> None:
        state[f"{name}.weight"] = 0.5 + torch.rand(channels, generator=generator)
        state[f"{name}.bias"] = 0.1 * torch.randn(channels, generator=generator)
        state[f"{name}.running_mean"] = 0.1 * torch.randn(channels, generator=generator)
        state[f"{name}.running_var"] = 0.5 + torch.rand(channels, generator=generator)
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    convolution("conv1", 64, 3, 7)
    norm("bn1", 64)
    channels = 64
    for layer, blocks in enumerate(RESNET_BLOCKS[depth], start=1):
        planes = 64 * 2 ** (layer - 1)
        out_channels = planes if depth < 50 else 4 * planes
        for block in range(blocks):
            name = f"layer{layer}.{block}"
            shapes = (
                [(planes, channels, 3), (planes, planes, 3)]
                if depth < 50
                else [(planes, channels, 1), (planes, planes, 3), (out_channels, planes, 1)]
            )
            for index, shape in enumerate(shapes, start=1):
                convolution(f"{name}.conv{index}", *shape)
                norm(f"{name}.bn{index}", shape[0])
            if block == 0 and (layer > 1 or channels != out_channels):
                convolution(f"{name}.downsample.0", out_channels, channels, 1)
                norm(f"{name}.downsample.1", out_channels)
            channels = out_channels
    return state


def resnet_features(
    state: dict[str, torch.Tensor], image: torch.Tensor, dilate: tuple[bool, bool, bool]
) -> torch.Tensor:
    """Bottleneck ResNet, one formula after the other; `dilate` is `replace_stride_with_dilation`."""

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        names = ("running_mean", "running_var", "weight", "bias")
        mean, variance, weight, bias = (state[f"{name}.{key}"][:, None, None] for key in names)
        return (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias

    x = torch.relu(norm("bn1", F.conv2d(image, state["conv1.weight"], stride=2, padding=3)))
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    dilation = 1
    for layer in range(1, 5):
        stride = 1 if layer == 1 else 2
        previous = dilation
        if layer > 1 and dilate[layer - 2]:
            dilation, stride = dilation * stride, 1
        block = 0
        while f"layer{layer}.{block}.conv1.weight" in state:
            name = f"layer{layer}.{block}"
            step, spread = (stride, previous) if block == 0 else (1, dilation)
            y = torch.relu(norm(f"{name}.bn1", F.conv2d(x, state[f"{name}.conv1.weight"])))
            y = F.conv2d(y, state[f"{name}.conv2.weight"], stride=step, padding=spread, dilation=spread)
            y = torch.relu(norm(f"{name}.bn2", y))
            y = norm(f"{name}.bn3", F.conv2d(y, state[f"{name}.conv3.weight"]))
            if f"{name}.downsample.0.weight" in state:
                x = norm(f"{name}.downsample.1", F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=step))
            x = torch.relu(x + y)
            block += 1
    return x


def lite0_state_dict(seed: int = 0) -> dict[str, torch.Tensor]:
    """Make random weights of EfficientNet-Lite0 under the names of its PyTorch port."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {}

    def layer(convolution: str, norm: str, out_channels: int, in_channels: int, size: int) -> None:
        weight = torch.randn(out_channels, in_channels, size, size, generator=generator)
        state[f"{convolution}.weight"] = weight * (2.0 / (in_channels * size**2)) ** 0.5
        state[f"{norm}.weight"] = 0.5 + torch.rand(out_channels, generator=generator)
        state[f"{norm}.bias"] = 0.1 * torch.randn(out_channels, generator=generator)
        state[f"{norm}.running_mean"] = 0.1 * torch.randn(out_channels, generator=generator)
        state[f"{norm}.running_var"] = 0.5 + torch.rand(out_channels, generator=generator)
        state[f"{norm}.num_batches_tracked"] = torch.tensor(7)

    layer("_conv_stem", "_bn0", 32, 3, 3)
    for index, (kernel, _, expansion, in_channels, out_channels) in enumerate(LITE0_BLOCKS):
        name, hidden = f"_blocks.{index}", expansion * in_channels
        if expansion > 1:
            layer(f"{name}._expand_conv", f"{name}._bn0", hidden, in_channels, 1)
        layer(f"{name}._depthwise_conv", f"{name}._bn1", hidden, 1, kernel)
        layer(f"{name}._project_conv", f"{name}._bn2", out_channels, hidden, 1)
    layer("_conv_head", "_bn1", 1280, 320, 1)
    state["_fc.weight"], state["_fc.bias"] = torch.randn(10, 1280, generator=generator), torch.zeros(10)
    return state


def lite0_features(state: dict[str, torch.Tensor], image: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """EfficientNet-Lite0 with its own strides and TensorFlow's "SAME" padding, one formula after the other."""

    def same(x: torch.Tensor, weight: torch.Tensor, stride: int = 1, groups: int = 1) -> torch.Tensor:
        pads = []
        for size, kernel in ((x.shape[-1], weight.shape[-1]), (x.shape[-2], weight.shape[-2])):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), weight, stride=stride, groups=groups)

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        names = ("running_mean", "running_var", "weight", "bias")
        mean, variance, weight, bias = (state[f"{name}.{key}"][:, None, None] for key in names)
        return (x - mean) / torch.sqrt(variance + 1e-3) * weight + bias

    x = norm("_bn0", same(image, state["_conv_stem.weight"], 2)).clamp(0, 6)
    for index, (_, stride, expansion, in_channels, out_channels) in enumerate(LITE0_BLOCKS[:num_blocks]):
        name, y = f"_blocks.{index}", x
        if expansion > 1:
            y = norm(f"{name}._bn0", same(y, state[f"{name}._expand_conv.weight"])).clamp(0, 6)
        y = same(y, state[f"{name}._depthwise_conv.weight"], stride, groups=y.shape[1])
        y = norm(f"{name}._bn1", y).clamp(0, 6)
        y = norm(f"{name}._bn2", same(y, state[f"{name}._project_conv.weight"]))
        x = x + y if stride == 1 and in_channels == out_channels else y
    return x
