from __future__ import annotations

import numpy as np
import pytest
import torch

from bundle.data.support import SupportScan
from bundle.inferers import GuidedUpsampling
from bundle.inferers.scans import label_widths
from bundle.inferers.scores import ABSENT
from bundle.inferers.upsampling import guided_filter

from .build import make_inferer
from .test_few_shot import CountingNetwork, noise, query_of, squares

SIDE, CELL = 96, 8
UPSAMPLE = GuidedUpsampling(radius_px=24, share=1.0)


def disk(radius, center=SIDE / 2):
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    return (rows + 0.5 - center) ** 2 + (columns + 0.5 - center) ** 2 < radius**2


def cells(*masks):
    """Scores (1, 1 + n, H, W) of a sure prediction: +2 in a label's cells, -2 elsewhere, the background at 0."""
    shares = torch.nn.functional.avg_pool2d(torch.stack(masks).float()[None], CELL)
    scores = torch.cat([torch.zeros_like(shares[:, :1]), 4 * shares - 2], dim=1)
    return torch.nn.functional.interpolate(scores, size=(SIDE, SIDE), mode="bilinear", align_corners=False)


def test_widths_are_those_of_the_largest_circle_inside():
    square, empty = torch.zeros(SIDE, SIDE, dtype=torch.bool), torch.zeros(SIDE, SIDE, dtype=torch.bool)
    square[3:13, 0:40] = True  # touches the border
    ring = disk(30) & ~disk(24)
    widths = label_widths(torch.stack([square, ring, empty, disk(20)])[None])
    assert widths.shape == (1, 4)
    assert widths[0, 0] == 10
    assert widths[0, 1] == pytest.approx(6, abs=2.1)
    assert widths[0, 2] == 0
    assert widths[0, 3] == pytest.approx(40, abs=1.5)


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_wide_window_wipes_out_what_a_narrow_one_keeps(exclusive):
    scores, flat = cells(disk(8)), torch.zeros(1, 1, SIDE, SIDE)
    scores = scores if exclusive else scores[:, 1:]

    def found(radius):
        out = UPSAMPLE(scores, flat, exclusive, [radius])
        return out.argmax(dim=1)[0].bool() if exclusive else out[0, 0] > 0

    truth = disk(8)
    assert not found(24).any()
    assert (found(3) & truth).sum() > 0.7 * truth.sum()


def test_each_label_has_its_own_window_and_the_background_gives_way():
    large, small = disk(26, 32), disk(8, 80)
    flat = torch.zeros(1, 1, SIDE, SIDE)
    assert (UPSAMPLE(cells(large, small), flat, True, [24, 24]).argmax(dim=1) != 2).all()
    out = UPSAMPLE(cells(large, small), flat, True, [12, 3])
    winner = out.argmax(dim=1)[0]
    assert 2 * ((winner == 1) & large).sum() > 0.85 * ((winner == 1).sum() + large.sum())
    assert ((winner == 2) & small).sum() > 0.7 * small.sum()
    assert (winner[~(large | small)] == 0).float().mean() > 0.95


def test_an_absent_label_stays_absent_and_without_windows_nothing_is_filtered():
    scores = cells(disk(20), disk(20))
    scores[:, 2] = ABSENT
    out = UPSAMPLE(scores, torch.randn(1, 1, SIDE, SIDE), True, [4, 4])
    assert (out[:, 2] == ABSENT).all()
    assert (out.argmax(dim=1) == 1).any()
    assert torch.equal(UPSAMPLE(scores, torch.randn(1, 1, SIDE, SIDE), True, [0, 0]), scores)


def test_windows_follow_the_labels_of_all_supports():
    wide, thin = squares(), squares()  # label 1 is 24 x 24, label 3 16 x 16
    thin[8:32, 16:40] = 0
    thin[8:32, 16:24, 2:7] = 1  # 8 wide
    scans = [SupportScan(noise(seed), label, 7.0, name) for seed, label, name in ((0, wide, "a"), (1, thin, "b"))]
    network, upsampling = CountingNetwork(), GuidedUpsampling(radius_px=12, share=0.25)
    inferer = make_inferer(upsampling=upsampling)
    for used, expected in (([0], [6, 4]), ([1], [2, 4]), ([0, 1], [4, 4])):
        inferer.set_support([scans[index] for index in used])
        for num_chunks in (None, 3):
            encoded = inferer.support_encoder.encode_all(network, inferer.registration)
            widths = inferer._widths(encoded, [1, 3], num_chunks)
            assert [upsampling.radius(width) for width in widths] == expected
    assert inferer._widths(encoded, [7]) == [0]  # no scan shows it
    assert GuidedUpsampling(radius_px=3, share=0.25).radius(40.0) == 3
    assert inferer(query_of(noise(0)), network).shape == (1, 3, 64, 64, 10)


def test_the_guided_filter_is_a_linear_fit_in_every_window():
    """Against the windows one by one: a slice_map fitted to each, and the mean of the slice_maps that see a pixel."""
    torch.manual_seed(0)
    values, guide, radius, epsilon = torch.randn(2, 3, 7, 9), torch.randn(2, 1, 7, 9), 2, 0.1
    slice_maps = torch.zeros(2, 2, 3, 7, 9)
    for row, column in np.ndindex(7, 9):
        at = (..., slice(max(row - radius, 0), row + radius + 1), slice(max(column - radius, 0), column + radius + 1))
        x, y = guide[at].flatten(2), values[at].flatten(2)
        slope = ((x * y).mean(2) - x.mean(2) * y.mean(2)) / (x.var(2, unbiased=False) + epsilon)
        slice_maps[0, ..., row, column], slice_maps[1, ..., row, column] = slope, y.mean(2) - slope * x.mean(2)
    expected = torch.zeros_like(values)
    for row, column in np.ndindex(7, 9):
        at = (..., slice(max(row - radius, 0), row + radius + 1), slice(max(column - radius, 0), column + radius + 1))
        slope, offset = slice_maps[at].mean(dim=(-2, -1))
        expected[..., row, column] = slope * guide[..., row, column] + offset
    torch.testing.assert_close(guided_filter(values, guide, radius, epsilon), expected)


@pytest.mark.parametrize("arguments", [{"radius_px": -1}, {"share": -0.1}, {"epsilon": 0.0}, {"score_reach": 0.0}])
def test_upsampling_refuses_what_makes_no_window(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        GuidedUpsampling(**arguments)
