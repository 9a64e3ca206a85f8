"""Encoders: shapes, dilation that keeps the strided network's features, padding, export, frozen normalization."""

from __future__ import annotations

import pytest
import torch
import torch.nn as nn

from bundle.networks import EfficientNetLiteEncoder, Encoder, ResNetEncoder, TinyEncoder
from bundle.networks.encoders.efficientnet_lite import lite_blocks

from .literal_encoders import LITE0_BLOCKS, randomize, resnet_features

BUILDERS = {
    "resnet18_s8": lambda **kw: ResNetEncoder(18, 8, 24, **kw),
    "resnet34_s4": lambda **kw: ResNetEncoder(34, 4, 24, **kw),
    "resnet50_s8": lambda **kw: ResNetEncoder(50, 8, None, **kw),
    "lite0_s8": lambda **kw: EfficientNetLiteEncoder("lite0", 11, 8, 24, **kw),
    "lite0_s4": lambda **kw: EfficientNetLiteEncoder("lite0", 11, 4, None, **kw),
    "lite2_s8": lambda **kw: EfficientNetLiteEncoder("lite2", 13, 8, 24, **kw),
    "tiny_s8": lambda **kw: TinyEncoder(**kw),
    "tiny_s2": lambda **kw: TinyEncoder(6, 2, in_channels=1, **kw),
}


@pytest.fixture(params=BUILDERS.values(), ids=BUILDERS.keys())
def encoder(request) -> Encoder:
    """Every encoder once, random weights, evaluation mode."""
    torch.manual_seed(0)
    return randomize(request.param()).eval()


def images(encoder: Encoder, height: int, width: int, batch: int = 2) -> torch.Tensor:
    """Random images that suit an encoder."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, encoder.in_channels, height, width, generator=generator)


@pytest.mark.parametrize("size", [(32, 48), (40, 24), (8, 16)], ids=str)
def test_feature_shape_follows_the_stated_stride(encoder, size):
    with torch.no_grad():
        features = encoder(images(encoder, *size))
    assert features.shape == (2, encoder.out_channels, size[0] // encoder.stride, size[1] // encoder.stride)


def test_script_and_trace_equal_eager_at_another_size(encoder):
    traced = torch.jit.trace(encoder, images(encoder, 32, 32))
    scripted = torch.jit.script(encoder)
    image = images(encoder, 40, 24, batch=1)
    with torch.no_grad():
        expected = encoder(image)
        torch.testing.assert_close(traced(image), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(scripted(image), expected, rtol=1e-5, atol=1e-5)


def test_every_weight_gets_a_gradient(encoder):
    encoder.train()
    encoder(images(encoder, 32, 32)).square().sum().backward()
    without = [name for name, weight in encoder.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert without == []


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS.keys())
@pytest.mark.parametrize("freeze_norm", [False, True])
def test_freeze_norm_keeps_batch_statistics(build, freeze_norm):
    encoder = build(freeze_norm=freeze_norm)
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    for prepare in (lambda: None, encoder.eval, encoder.train):  # as built, and after a validation run
        prepare()
    before = [norm.running_mean.clone() for norm in norms]
    encoder(images(encoder, 32, 32))
    moved = [not torch.equal(norm.running_mean, old) for norm, old in zip(norms, before, strict=True)]
    assert encoder.training
    assert all(moved) if not freeze_norm else not any(moved)


def test_freeze_norm_holds_as_built_and_inside_another_module():
    encoder = TinyEncoder(freeze_norm=True)
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 3
    assert not any(norm.training for norm in norms)
    nn.Sequential(encoder).train()
    assert encoder.training
    assert not any(norm.training for norm in norms)


@pytest.mark.parametrize(
    ("output_stride", "dilate"),
    [(32, (False, False, False)), (16, (False, False, True)), (8, (False, True, True)), (4, (True, True, True))],
)
def test_resnet50_equals_the_literal_dilated_trunk(output_stride, dilate):
    encoder = randomize(ResNetEncoder(50, output_stride, None)).eval()
    state = {key.removeprefix("backbone."): value for key, value in encoder.state_dict().items()}
    image = images(encoder, 64, 96, batch=1)
    with torch.no_grad():
        expected = resnet_features(state, image, dilate)
        torch.testing.assert_close(encoder(image), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize(("depth", "output_stride"), [(18, 4), (18, 8), (18, 16), (50, 8)])
def test_dilated_resnet_repeats_the_strided_features(depth, output_stride):
    strided = randomize(ResNetEncoder(depth, 32, 8)).eval()
    dilated = ResNetEncoder(depth, output_stride, 8).eval()
    dilated.load_state_dict(strided.state_dict())
    image, step = images(strided, 64, 96), 32 // output_stride
    with torch.no_grad():
        expected = strided(image)
        found = dilated(image)[:, :, ::step, ::step]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize(("variant", "output_stride"), [("lite0", 4), ("lite0", 8), ("lite0", 16), ("lite2", 8)])
def test_dilated_lite_repeats_the_strided_features(variant, output_stride):
    strided = randomize(EfficientNetLiteEncoder(variant, None, 32, 8)).eval()
    dilated = EfficientNetLiteEncoder(variant, None, output_stride, 8).eval()
    dilated.load_state_dict(strided.state_dict())
    image, step = images(strided, 64, 96), 32 // output_stride
    with torch.no_grad():
        expected = strided(image)
        found = dilated(image)[:, :, step - 1 :: step, step - 1 :: step]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_resnet_keys_are_those_of_a_trunk_and_one_convolution():
    state = ResNetEncoder(18).state_dict()
    tops = {".".join(key.split(".")[:2]) for key in state}
    layers = {f"backbone.layer{number}" for number in range(1, 5)}
    assert tops == {"backbone.conv1", "backbone.bn1", "localconv.weight"} | layers
    assert state["localconv.weight"].shape == (256, 512, 1, 1)
    assert state["backbone.layer2.0.downsample.0.weight"].shape == (128, 64, 1, 1)
    assert "backbone.layer2.0.downsample.0.bias" not in state


def test_lite0_blocks_are_those_of_the_table():
    listed = [(b.kernel_size, b.stride, b.expansion, b.in_channels, b.out_channels) for b in lite_blocks("lite0")]
    assert listed == list(LITE0_BLOCKS)


@pytest.mark.parametrize(
    ("variant", "num_blocks", "widths"),
    [
        ("lite1", 21, [16, 24, 40, 80, 112, 192, 320]),
        ("lite2", 21, [16, 24, 48, 88, 120, 208, 352]),
        ("lite3", 24, [24, 32, 48, 96, 136, 232, 384]),
        ("lite4", 30, [24, 32, 56, 112, 160, 272, 448]),
    ],
)
def test_lite_variants_scale_depth_and_width(variant, num_blocks, widths):
    blocks = lite_blocks(variant)
    assert len(blocks) == num_blocks
    assert list(dict.fromkeys(block.out_channels for block in blocks)) == widths


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ResNetEncoder(152), r"depth must be one of \[18, 34, 50, 101\], got 152"),
        (lambda: ResNetEncoder(18, 6), r"output_stride must be one of \[4, 8, 16, 32\], got 6"),
        (lambda: ResNetEncoder(18, 8, 0), "embedding_channels must be at least 1, got 0"),
        (lambda: EfficientNetLiteEncoder("b0"), "variant must be one of .*lite0.*, got 'b0'"),
        (lambda: EfficientNetLiteEncoder("lite0", 17), "num_blocks must be at most 16 for lite0, got 17"),
        (lambda: EfficientNetLiteEncoder("lite0", 0), "num_blocks must be at least 1, got 0"),
        (lambda: EfficientNetLiteEncoder("lite0", 11, 2), "output_stride must be one of"),
        (
            lambda: EfficientNetLiteEncoder("lite0", 3, 8),
            "output_stride must be at most 4 for 3 blocks of lite0, got 8",
        ),
        (lambda: TinyEncoder(0), "out_channels must be at least 1, got 0"),
        (lambda: TinyEncoder(in_channels=0), "in_channels must be at least 1, got 0"),
        (lambda: TinyEncoder(stride=16), r"stride must be one of \[1, 2, 4, 8\], got 16"),
    ],
)
def test_arguments_out_of_range_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("value", ["11", 2.0, True], ids=repr)
def test_counts_must_be_integers(value):
    with pytest.raises(TypeError, match="num_blocks must be an integer, got"):
        EfficientNetLiteEncoder("lite0", value)


def test_taps_are_the_blocks_outputs_of_unit_norm():
    encoder = EfficientNetLiteEncoder("lite0", num_blocks=6, embedding_channels=None, taps=[3, 6]).eval()
    image = torch.rand(1, 3, 64, 96)
    x, expected = encoder.stem(image), []
    for number, block in enumerate(encoder.blocks, start=1):
        x = block(x)
        if number in (3, 6):
            level = x if x.shape[-1] == 12 else torch.nn.functional.avg_pool2d(x, x.shape[-1] // 12)
            expected.append(level / level.norm(dim=1, keepdim=True))
    assert encoder.out_channels == 24 + 80
    torch.testing.assert_close(encoder(image), torch.cat(expected, dim=1), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.jit.script(encoder)(image), encoder(image), atol=1e-6, rtol=0)


def test_frozen_depthwise_gradient_is_the_general_one():
    torch.manual_seed(0)
    image = torch.rand(2, 3, 64, 64)
    gradients = []
    for frozen in (False, True):
        torch.manual_seed(1)
        encoder = EfficientNetLiteEncoder(
            "lite0", num_blocks=7, embedding_channels=8, freeze_norm=True, freeze_depthwise=frozen
        ).double()
        encoder(image.double()).square().sum().backward()
        assert (encoder.blocks[6].depthwise.conv.weight.grad is None) == frozen
        gradients.append(encoder.blocks[0].project.conv.weight.grad)
    torch.testing.assert_close(*gradients)


def test_frozen_blocks_do_not_learn():
    encoder = EfficientNetLiteEncoder("lite0", num_blocks=6, embedding_channels=None, taps=[6], frozen_blocks=4)
    encoder(torch.rand(1, 3, 32, 32)).sum().backward()
    learns = {name for name, p in encoder.named_parameters() if p.grad is not None}
    assert not any(name.startswith(("stem", "blocks.0", "blocks.3")) for name in learns)
    assert any(name.startswith("blocks.4") for name in learns)
    assert "heads.0.weight" in learns


def test_taps_beyond_the_blocks_are_refused():
    with pytest.raises(ValueError, match="taps must be block numbers in 1..6"):
        EfficientNetLiteEncoder("lite0", num_blocks=6, embedding_channels=None, taps=[7])
