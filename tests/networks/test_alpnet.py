from __future__ import annotations

import pytest
import torch
from torch import nn

from bundle.networks import TinyEncoder
from bundle.networks.blocks.prototypes import central_pixels, resize_mask
from bundle.networks.nets import ALPNet

from . import literal_alp


class PatchEncoder(nn.Module):
    """Random projection of 4x4 patches: cheap features that differ from place to place."""

    in_channels, out_channels, stride = 1, 6, 4

    def __init__(self, seed: int = 0):
        super().__init__()
        self.project = nn.Conv2d(1, 6, 4, 4, bias=False)
        with torch.no_grad():
            self.project.weight.copy_(torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(seed)))

    def forward(self, x):
        return self.project(x)


def blob(seed: int, shots: int, size: int, radius: float):
    """Images of noise with one bright disc each, and its masks: (shots, 1, S, S), (shots, S, S)."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(shots, 2, generator=generator) * size * 0.3 + size * 0.35
    axis = torch.arange(size) + 0.5
    distance = (axis[None, :, None] - centers[:, 0, None, None]) ** 2 + (
        axis[None, None] - centers[:, 1, None, None]
    ) ** 2
    masks = (distance.sqrt() < radius).float()
    images = torch.rand(shots, size, size, generator=generator) + 2 * masks
    return images[:, None], masks


CASES = [
    pytest.param(1, 20.0, id="1-shot, gate open"),
    pytest.param(1, 5.0, id="1-shot, class level only"),
    pytest.param(3, 20.0, id="3-shot, gate open"),
    pytest.param(3, 5.0, id="3-shot, class level only"),
    pytest.param(1, 200.0, id="no background cell"),
    pytest.param(1, 0.8, id="mask of a few pixels"),
]


@pytest.mark.parametrize(("shots", "radius"), CASES)
@pytest.mark.parametrize("training", [False, True], ids=["testing window", "training window and alignment"])
def test_batched_network_equals_the_literal_equations(shots, radius, training):
    encoder = PatchEncoder()
    network = ALPNet(encoder, align=True).train(training)
    episodes = [(blob(7 * i, 1, 64, 12.0)[0][0], *blob(7 * i + 1, shots, 64, radius)) for i in range(3)]
    with torch.no_grad():
        got = network(
            torch.stack([e[0] for e in episodes]),
            torch.stack([e[1] for e in episodes])[:, None],
            torch.stack([e[2] for e in episodes])[:, None],
        )
        for index, (query, supports, masks) in enumerate(episodes):
            expected = literal_alp.episode(encoder, query, supports, masks, 4 if training else 2, align=training)
            torch.testing.assert_close(got[index], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shots", [1, 2])
def test_packed_episode_equals_three_tensors(shots):
    network = ALPNet(PatchEncoder()).eval()
    query, _ = blob(0, 2, 32, 9)
    support, masks = blob(1, 2 * shots, 32, 9)
    support, masks = support.reshape(2, 1, shots, 1, 32, 32), masks.reshape(2, 1, shots, 32, 32)
    packed = torch.cat([query, support.flatten(1, 3), masks[:, 0]], dim=1)
    torch.testing.assert_close(network(packed), network(query, support, masks), atol=0, rtol=0)


def test_ways_with_own_images_equal_one_way_episodes_for_the_foreground():
    network = ALPNet(PatchEncoder()).eval()
    query, _ = blob(0, 1, 64, 9)
    support, masks = blob(1, 2, 64, 18)
    both = network(query, support[None, :, None], masks[None, :, None])
    for way in range(2):
        alone = network(query, support[None, way : way + 1, None], masks[None, way : way + 1, None])
        torch.testing.assert_close(both[:, 1 + way], alone[:, 1], atol=1e-5, rtol=0)


def test_ways_on_shared_images_leave_the_background_what_none_covers():
    network = ALPNet(PatchEncoder(), foreground_gate="off").eval()
    query, _ = blob(0, 1, 64, 9)
    support, masks = blob(1, 2, 64, 18)
    support = support[:1, None, None]  # (1, 1, 1, 1, 64, 64)
    shared = network(query, support, masks[None, :, None])
    union = network(query, support, masks.amax(dim=0)[None, None, None])
    torch.testing.assert_close(shared[:, 0], union[:, 0], atol=1e-5, rtol=0)


def test_many_masks_of_one_pair_equal_separate_episodes():
    network = ALPNet(PatchEncoder(), align=True).train()
    query, _ = blob(0, 2, 64, 9)
    support, _ = blob(1, 2, 64, 18)
    masks = torch.cat([blob(seed, 2, 64, 16)[1] for seed in (2, 3)]).reshape(2, 2, 64, 64)  # (pair, episode, H, W)
    together = network(query, support[:, None, None], masks.reshape(4, 1, 1, 64, 64))
    for pair in range(2):
        for episode in range(2):
            alone = network(
                query[pair : pair + 1], support[pair : pair + 1, None, None], masks[pair, episode][None, None, None]
            )
            torch.testing.assert_close(together[2 * pair + episode][None], alone, atol=1e-5, rtol=0)


def test_a_support_image_segments_itself():
    network = ALPNet(PatchEncoder(), testing_window=1, foreground_gate="off").eval()
    support, masks = blob(3, 1, 64, 20)
    predicted = network(support, support[:, None, None], masks[:, None, None]).argmax(dim=1)
    overlap = (2 * (predicted * masks).sum() / (predicted.sum() + masks.sum())).item()
    assert overlap > 0.9


def test_gates_differ_where_only_the_testing_window_fits():
    """A square that holds a window of 2x2 cells (8 pixels), but, astride the grid, none of 4x4 (16 pixels)."""
    support, query = blob(5, 1, 64, 13)[0], blob(6, 1, 64, 13)[0]
    masks = torch.zeros(1, 64, 64)
    masks[:, 12:28, 12:28] = 1
    arguments = (query, support[:, None, None], masks[:, None, None])
    official, matched, off = (
        ALPNet(PatchEncoder(), foreground_gate=gate).eval()(*arguments) for gate in ("official", "matched", "off")
    )
    torch.testing.assert_close(matched, off)
    assert (official - matched).abs().max() > 0.01
    torch.testing.assert_close(official[:, 0], matched[:, 0])  # the gate is the foreground's alone


def test_position_term_prefers_the_same_place():
    """Constant features: only the place can decide, and the position term moves the foreground to the mask."""
    support, masks = torch.ones(1, 1, 64, 64), torch.zeros(1, 64, 64)
    masks[:, :32, :32] = 1
    plain = ALPNet(PatchEncoder(), testing_window=1).eval()
    placed = ALPNet(PatchEncoder(), testing_window=1, position_weight=100.0).eval()
    arguments = (support, support[:, None, None], masks[:, None, None])
    flat, curved = plain(*arguments), placed(*arguments)
    torch.testing.assert_close(flat[:, 0], flat[:, 1])
    assert (curved.argmax(dim=1) == masks).float().mean() > 0.95


def test_shot_order_is_irrelevant():
    network = ALPNet(PatchEncoder(), position_weight=10.0).eval()
    query, _ = blob(0, 1, 64, 9)
    support, masks = blob(1, 3, 64, 15)
    order = [2, 0, 1]
    torch.testing.assert_close(
        network(query, support[None, None], masks[None, None]),
        network(query, support[order][None, None], masks[order][None, None]),
        atol=1e-4,
        rtol=0,
    )


def test_empty_support_mask_is_finite_with_gradient():
    network = ALPNet(PatchEncoder(), align=True).train()
    query, _ = blob(0, 1, 32, 9)
    support, _ = blob(1, 1, 32, 9)
    logits = network(query, support[:, None, None], torch.zeros(1, 1, 1, 32, 32))
    logits.sum().backward()
    assert torch.isfinite(logits).all()
    assert torch.isfinite(network.encoder.project.weight.grad).all()


@pytest.mark.parametrize("training", [False, True])
def test_script_and_trace_equal_eager(training):
    network = ALPNet(PatchEncoder(), align=True, position_weight=5.0).train(training)
    query, _ = blob(0, 2, 64, 9)
    support, masks = blob(1, 2, 64, 15)
    packed = torch.cat([query, support, masks[:, None]], dim=1)
    scripted = torch.jit.script(network)
    torch.testing.assert_close(scripted(packed), network(packed), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        scripted(query, support[:, None, None], masks[:, None, None]), network(packed), atol=1e-5, rtol=0
    )
    traced = torch.jit.trace(network, packed[:1])
    torch.testing.assert_close(traced(packed), network(packed), atol=1e-5, rtol=0)


@pytest.mark.parametrize("scripted", [False, True])
@pytest.mark.parametrize("located", [False, True])
def test_matching_without_gradients_gives_the_same_numbers(located, scripted):
    """A few cells at a time, the last pass not full; and a class without a mask."""
    network = ALPNet(PatchEncoder(), position_weight=100.0 * located, depth_weight=0.3, testing_window=1).eval()
    torch.manual_seed(0)
    query, support = torch.randn(2, 6, 12, 16), torch.randn(2, 3, 6, 12, 16)  # 192 cells
    foreground, background = torch.rand(2, 6, 12, 16).round(), torch.rand(2, 3, 12, 16).round()
    foreground[1, 3:] = 0
    places, depths = (torch.rand(2, 3, 12, 16), torch.rand(2, 3)) if located else (None, None)
    match = torch.jit.script(network).match if scripted else network.match
    with torch.enable_grad():
        expected = network.match(query, support, foreground, background, places, depths)
    with torch.no_grad():
        found = match(query, support, foreground, background, places, depths)
    assert torch.equal(found, expected)
    assert len(found.unique()) > 0.9 * found[:, :2].numel()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(1, 3, 30, 32),), "multiples of the stride 4, got 30 x 32"),
        ((torch.zeros(1, 4, 32, 32),), "packed episode has C"),
        ((torch.zeros(1, 1, 32, 32),), "packed episode has C"),
        ((torch.zeros(2, 1, 32, 32), torch.zeros(2, 1, 1, 1, 32, 32), torch.zeros(3, 1, 1, 32, 32)), "must match 2"),
        ((torch.zeros(1, 1, 32, 32), torch.zeros(1, 2, 1, 1, 32, 32), torch.zeros(1, 3, 1, 32, 32)), "3 ways or 1"),
    ],
)
def test_wrong_shapes_say_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        ALPNet(PatchEncoder())(*arguments)


def test_wrong_gate_is_named():
    with pytest.raises(ValueError, match="foreground_gate must be one of .* got 'open'"):
        ALPNet(PatchEncoder(), foreground_gate="open")


@pytest.mark.parametrize("stride", [1, 2, 4, 5, 8])
def test_central_pixels_are_all_that_the_feature_grid_sees_of_a_mask(stride):
    masks = torch.rand(2, 3, 1, 4 * stride, 6 * stride, generator=torch.Generator().manual_seed(0))
    central = central_pixels(masks, stride)
    if stride in (4, 8):
        assert central.shape == (2, 3, 1, 8, 12)
    expected = resize_mask(masks[:, :, 0], [4, 6])
    torch.testing.assert_close(resize_mask(central[:, :, 0], [4, 6]), expected)


@pytest.mark.parametrize("channels_last", [True, False])
def test_images_and_weights_lie_in_memory_as_wanted(channels_last):
    encoder = TinyEncoder(8, stride=4)
    network = ALPNet(encoder, channels_last=channels_last)
    network.to(memory_format=torch.channels_last if channels_last else torch.preserve_format)
    seen = []
    for module in encoder.modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size != (1, 1):
            module.register_forward_hook(lambda _, inputs, output: seen.append(output))
    network.encode(torch.rand(2, 1, 32, 32))
    assert seen
    assert all(x.is_contiguous(memory_format=torch.channels_last) == channels_last for x in seen)
