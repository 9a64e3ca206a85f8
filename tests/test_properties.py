"""What holds for any input, tried on random ones: nothing is ever NaN, and what carries no information changes nothing.

`TRIES=20 python -m pytest tests/test_properties.py` tries 20 times as many.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import NormalizeIntensity

from bundle.data.support import SupportScan
from bundle.inferers import GuidedUpsampling, SelfSupportRefinement
from bundle.losses import EpisodeLoss
from bundle.networks import ALPNet, TinyEncoder
from bundle.transforms import (
    BodyMask,
    LargeComponents,
    OrientSlices,
    RandEpisoded,
    RandPseudoLabeld,
    RandView,
    RestoreGeometry,
    ScanIntensity,
    SliceFrame,
    Superpixels,
)

from .conftest import GEOMETRIES, make_tiny, volume
from .inferers.build import make_inferer

TRIES = int(os.environ.get("TRIES", 1))


def tried(examples):
    """Try a property on so many random inputs; always the same ones, so that a failure repeats."""
    return settings(
        max_examples=examples * TRIES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def numbers(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def draw_mask(draw, *shape):
    """Masks as they occur: empty, full, one cell, a box, or any shares."""
    kind = draw(st.sampled_from(["empty", "full", "one cell", "box", "shares"]))
    mask = torch.zeros(shape)
    if kind == "full":
        mask[:] = 1
    elif kind == "one cell":
        mask[..., draw(st.integers(0, shape[-2] - 1)), draw(st.integers(0, shape[-1] - 1))] = 1
    elif kind == "box":
        top, left = draw(st.integers(0, shape[-2] - 1)), draw(st.integers(0, shape[-1] - 1))
        mask[..., top : top + draw(st.integers(1, shape[-2])), left : left + draw(st.integers(1, shape[-1]))] = 1
    elif kind == "shares":
        mask = torch.rand(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    return mask


@st.composite
def matches(draw):
    """A network, query and support features, foreground and background masks."""
    ways, shots = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    depth, height, width = draw(st.integers(1, 6)), draw(st.integers(1, 7)), draw(st.integers(1, 7))
    network = ALPNet(
        TinyEncoder(4, stride=4),
        training_window=draw(st.integers(1, 4)),
        testing_window=draw(st.integers(1, 4)),
        foreground_gate=draw(st.sampled_from(["official", "matched", "off"])),
        position_weight=draw(st.sampled_from([0.0, 10.0, 100.0])),
        temperature=draw(st.sampled_from([20.0, 200.0])),
    )
    network.train(draw(st.booleans()))
    scale = draw(st.sampled_from([0.0, 1e-6, 1.0, 1e4]))  # 0: a constant image, all of whose features may vanish
    seed = draw(st.integers(0, 999))
    query, support = scale * numbers(seed, 1, depth, height, width), numbers(seed + 1, 1, shots, depth, height, width)
    foreground = torch.cat([draw_mask(draw, 1, shots, height, width) for _ in range(ways)], dim=1)
    background = draw_mask(draw, 1, shots, height, width)
    return network, query, support, foreground, background, ways, shots


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-3)


@given(matches())
@tried(150)
def test_scores_are_numbers_within_the_similarities(example):
    network, query, support, foreground, background, ways, _ = example
    scores = network.match(query, support, foreground, background)
    assert scores.shape == (1, 1 + ways, *query.shape[-2:])
    assert torch.isfinite(scores).all()
    assert scores.max() <= network.temperature + 1e-2


@given(matches(), st.randoms())
@tried(150)
def test_order_of_shots_is_irrelevant(example, random):
    network, query, support, foreground, background, ways, shots = example
    order = random.sample(range(shots), shots)
    rows = [way * shots + index for way in range(ways) for index in order]
    changed = network.match(query, support[:, order], foreground[:, rows], background[:, order])
    close(changed, network.match(query, support, foreground, background))


@given(matches())
@tried(150)
def test_a_support_given_twice_counts_once(example):
    network, query, support, foreground, background, ways, shots = example
    twice = foreground.reshape(1, ways, shots, *foreground.shape[2:]).repeat(1, 1, 2, 1, 1).flatten(1, 2)
    changed = network.match(query, support.repeat(1, 2, 1, 1, 1), twice, background.repeat(1, 2, 1, 1))
    close(changed, network.match(query, support, foreground, background))


@given(matches(), st.integers(0, 99))
@tried(150)
def test_an_image_on_which_nothing_is_annotated_changes_nothing(example, seed):
    network, query, support, foreground, background, ways, shots = example
    # within the reach of match_prototypes, beyond which an unmarked cell that is more alike flattens the weights
    network.temperature, network.position_weight = 20.0, min(network.position_weight, 10.0)
    empty = torch.zeros_like(background[:, :1])
    parts = [torch.cat([part, empty], dim=1) for part in foreground.split(shots, dim=1)]
    more = torch.cat([support, 100 * numbers(seed, *support[:, :1].shape)], dim=1)
    changed = network.match(query, more, torch.cat(parts, dim=1), torch.cat([background, empty], dim=1))
    close(changed, network.match(query, support, foreground, background))


@given(matches(), st.integers(1, 3))
@tried(100)
def test_padding_of_the_support_changes_nothing(example, windows):
    """Without places, which padding moves: cells that are in no mask have no part, whatever they show."""
    network, query, support, foreground, background, *_ = example
    network.position_weight = 0.0
    height, width = support.shape[-2:]
    side = network.training_window if network.training else network.testing_window
    if side > min(height, width) or network.training_window > min(height, width) or width % side:
        return  # the pooling window itself depends on the size then, or would take in some of the padding
    pad = [0, windows * side * network.training_window]
    changed = network.match(
        query,
        torch.nn.functional.pad(support, pad, value=3.0),
        torch.nn.functional.pad(foreground, pad),
        torch.nn.functional.pad(background, pad),
    )
    if not network.official_gate or side == network.training_window:
        close(changed, network.match(query, support, foreground, background))
    assert torch.isfinite(changed).all()


@st.composite
def scans(draw):
    """A scan as scanners store it: any number format, geometry and content."""
    affine, shape = GEOMETRIES[draw(st.sampled_from(sorted(GEOMETRIES)))]
    seed = draw(st.integers(0, 999))
    kind = draw(st.sampled_from(["noise", "box", "one voxel", "constant slices"]))
    values = np.random.default_rng(seed).normal(100, 20, shape)
    if kind == "box":
        values[:] = 0
        values[tuple(slice(n // 4, max(n // 4 + 1, 3 * n // 4)) for n in shape)] = 500
    elif kind == "one voxel":
        values[:] = 7
        values[tuple(n // 2 for n in shape)] = 9
    elif kind == "constant slices":
        values[:] = np.arange(shape[2])
        values[0, 0, 0] = 99
    dtype = draw(st.sampled_from([np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64]))
    offset = draw(st.sampled_from([0, -1024 if np.issubdtype(dtype, np.signedinteger) else 0]))
    limits = np.iinfo(dtype) if np.issubdtype(dtype, np.integer) else np.finfo(np.float32)
    return volume(np.clip(values + offset, limits.min, limits.max).astype(dtype), affine)


@given(scans(), st.sampled_from([16, 32, 64]))
@tried(80)
def test_a_scan_in_the_frame_is_made_of_numbers_and_comes_back_onto_its_grid(scan, size):
    oriented = OrientSlices()(scan)
    clipped = ScanIntensity()(oriented)
    body = BodyMask()(clipped)
    framed = SliceFrame((size, size))(clipped, body)
    normal = NormalizeIntensity()(framed)
    for part in (clipped, framed, normal):
        assert part.dtype == torch.float32
        assert torch.isfinite(part).all()
    assert set(np.unique(body)) <= {0, 1}
    assert framed.shape[1:3] == (size, size)
    assert clipped.min() <= framed.min() + 1e-3
    assert framed.max() <= clipped.max() + 1e-3
    back = RestoreGeometry()(framed)
    assert tuple(back.shape[1:]) == tuple(int(v) for v in scan.meta["spatial_shape"])
    assert torch.isfinite(back).all()
    np.testing.assert_allclose(np.asarray(back.affine), scan.meta["original_affine"], atol=1e-4)


@given(st.integers(0, 99), st.integers(0, 6), st.integers(0, 6), st.integers(0, 3))
@tried(40)
def test_air_around_a_scan_changes_nothing_in_the_frame(seed, before, after, slices):
    body = np.full((24, 20, 5), -1000.0, np.float32)
    body[4:20, 3:17] = np.random.default_rng(seed).normal(50, 30, (16, 14, 5))
    padded = np.pad(body, ((before, after), (after, before), (slices, after)), constant_values=-1000)

    def framed(values):
        scan = ScanIntensity()(OrientSlices()(volume(values, np.diag([2.0, 2.0, 6.0, 1.0]))))
        return SliceFrame((32, 32))(scan, BodyMask(-124.0, opening=0)(scan))

    torch.testing.assert_close(torch.as_tensor(framed(padded)), torch.as_tensor(framed(body)))


@st.composite
def slices_with_superpixels(draw):
    height, width = draw(st.integers(8, 40)), draw(st.integers(8, 40))
    kind = draw(st.sampled_from(["noise", "constant", "halves"]))
    image = np.random.default_rng(draw(st.integers(0, 99))).normal(0, 1, (1, height, width)).astype(np.float32)
    if kind != "noise":
        image[:] = 0.5
    if kind == "halves":
        image[:, : height // 2] = -1
    return torch.from_numpy(image)


@given(slices_with_superpixels(), st.integers(1, 5), st.integers(0, 999))
@tried(80)
def test_episodes_of_any_slice_are_made_of_numbers(image, ways, seed):
    maps = Superpixels("felzenszwalb", [{"scale": 1, "sigma": 1, "min_size": 10}], min_piece=1)(image)
    assert maps.min() >= 0
    assert int(maps.max()) == len(np.unique(maps[maps > 0]))
    view = RandView(rotation_deg=15, shift_px=25, shear_deg=3, stretch=0.15, elastic_px=6, gamma=(0.6, 1.65), bias=0.3)
    label, episode = RandPseudoLabeld(num_draws=ways, min_area_px=1), RandEpisoded(view, view)
    for transform in (label, episode):
        transform.set_random_state(seed=seed)
    made = episode(label({"image": image, "superpixels": torch.as_tensor(maps)}))
    for key in ("image", "support_image"):
        assert torch.isfinite(made[key]).all()
    for key in ("label", "support_label"):
        assert set(np.unique(made[key])) <= set(range(ways + 1))


@given(matches(), st.integers(0, 99))
@tried(100)
def test_the_loss_of_any_episode_is_a_number_with_a_gradient(example, seed):
    network, query, support, foreground, background, ways, _ = example
    query.requires_grad_()
    scores = network.match(query, support, foreground, background)
    size = [4 * side for side in query.shape[-2:]]
    target = torch.randint(0, ways + 2, (1, 1, *size), generator=torch.Generator().manual_seed(seed)).float()
    for balance in (0.0, 0.5):
        loss = EpisodeLoss(background_weight=1.0, balance=balance)(scores, target)
        assert torch.isfinite(loss)
        (gradient,) = torch.autograd.grad(loss, query, retain_graph=True)
        assert torch.isfinite(gradient).all()


@given(st.integers(0, 99), st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([torch.uint8, torch.int16, torch.int32]))
@tried(60)
def test_components_only_ever_remove_voxels(seed, share, dtype):
    generator = torch.Generator().manual_seed(seed)
    label = (torch.randint(0, 4, (1, 8, 9, 5), generator=generator) * (numbers(seed, 1, 8, 9, 5) > 0)).to(dtype)
    kept = torch.as_tensor(LargeComponents(share)(label))
    assert kept.dtype == dtype
    assert ((kept == label) | (kept == 0)).all()
    assert set(kept.unique().tolist()) == set(label.unique().tolist())  # the largest piece of each label stays


@st.composite
def volumes(draw):
    """A query and two support scans with labels, in the network's frame."""
    seed = draw(st.integers(0, 999))
    scans = []
    for index in range(2):
        depth = draw(st.integers(1, 6))
        label = torch.zeros(16, 16, depth, dtype=torch.long)
        for value in range(1, draw(st.integers(1, 3)) + 1):
            box = [sorted(draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in (16, 16, depth)]
            label[tuple(slice(a, max(b, a + 1)) for a, b in box)] = value
        label[0, 0, 0] = 1  # never without any foreground
        scans.append(SupportScan(numbers(seed + index, 1, 16, 16, depth), label, 6.0, f"s{index}"))
    query = numbers(seed + 7, 1, 1, 16, 16, draw(st.integers(1, 6)))
    if draw(st.booleans()):
        query[..., : query.shape[-1] // 2] = query.min()  # constant slices
    options = {
        "num_slices": draw(st.integers(1, 3)),
        "smoothing_mm": draw(st.sampled_from([0.0, 8.0])),
        "refinement": draw(st.sampled_from([None, SelfSupportRefinement(rounds=2)])),
        "upsampling": draw(st.sampled_from([None, GuidedUpsampling(radius_px=3)])),
    }
    return query, scans, options


def segment(query, scans, network=None, labels=(1, 2, 3), **options):
    inferer = make_inferer(labels=labels, **options)
    inferer.set_support(scans)
    meta = {"filename_or_obj": "q.nii.gz"}
    with torch.no_grad():
        found = inferer(MetaTensor(query, affine=torch.eye(4)[None], meta=meta), network or make_tiny())
    return found.as_subclass(torch.Tensor)


@given(volumes())
@tried(40)
def test_any_support_gives_scores_that_are_numbers(example):
    query, scans, options = example
    scores = segment(query, scans, **options)
    assert scores.shape == (1, 4, *query.shape[2:])
    assert torch.isfinite(scores).all()


@given(volumes())
@tried(25)
def test_order_and_repetition_of_scans_and_size_of_batches_change_nothing(example):
    query, scans, options = example
    expected = segment(query, scans, **options)
    close(segment(query, scans[::-1], **options), expected)
    close(segment(query, scans * 2, **options), expected)
    close(segment(query, scans, **options, slice_batch_size=1), expected)


@pytest.mark.parametrize("gate", ["official", "matched", "off"])
@pytest.mark.parametrize("training", [True, False])
def test_degenerate_episodes_have_defined_results(gate, training):
    """No cell of background, a mask of one pixel, constant images: each has the class that is left, or a tie of 0."""
    network = ALPNet(TinyEncoder(4, stride=4), foreground_gate=gate, training_window=2, testing_window=1)
    network.train(training)
    features = numbers(0, 1, 1, 4, 4, 4)
    everything, nothing = torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    one = nothing.clone()
    one[..., 1, 2] = 1 / 16  # one pixel's share of a cell
    scores = network.match(features[:, 0], features, everything, nothing)
    assert (scores[:, 0] == 0).all()  # no background at all: it says nothing
    assert (scores[:, 1] != 0).any()
    scores = network.match(features[:, 0], features, nothing, everything)
    assert (scores[:, 1] == 0).all()  # no foreground at all
    scores = network.match(features[:, 0], features, one, everything - one)
    assert scores[0, 1].argmax() == 1 * 4 + 2  # the class-level prototype of that pixel finds its cell
    scores = network.match(nothing.expand(1, 4, 4, 4), features * 0, everything, everything)
    assert torch.equal(scores, torch.zeros_like(scores))  # constant images: nothing is like anything
