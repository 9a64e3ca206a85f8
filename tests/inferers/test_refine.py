from __future__ import annotations

import pytest
import torch

from bundle.data.support import SupportScan
from bundle.inferers import FewShotInferer
from bundle.inferers.encoded import label_widths
from bundle.inferers.refine import ABSENT, Remnants, leave_out, upsample_scores

from .test_few_shot import CountingNetwork, noise, query_of, squares

SIDE, CELL = 96, 8


def disk(radius, center=SIDE / 2):
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    return (rows + 0.5 - center) ** 2 + (columns + 0.5 - center) ** 2 < radius**2


def cells(*masks):
    """Scores (1, 1 + n, h, w) of a sure prediction: +2 in a label's cells, -2 elsewhere, the background at 0."""
    shares = torch.nn.functional.avg_pool2d(torch.stack(masks).float()[None], CELL)
    return torch.cat([torch.zeros_like(shares[:, :1]), 4 * shares - 2], dim=1)


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


@pytest.mark.parametrize("compete", [True, False])
def test_a_wide_window_wipes_out_what_a_narrow_one_keeps(compete):
    scores, flat = cells(disk(8)), torch.zeros(1, 1, SIDE, SIDE)
    scores = scores if compete else scores[:, 1:]

    def found(radius):
        out = upsample_scores(scores, flat, compete, [radius])
        return out.argmax(dim=1)[0].bool() if compete else out[0, 0] > 0

    truth = disk(8)
    assert not found(24).any()
    assert (found(3) & truth).sum() > 0.7 * truth.sum()


def test_each_label_has_its_own_window_and_the_background_gives_way():
    large, small = disk(26, 32), disk(8, 80)
    flat = torch.zeros(1, 1, SIDE, SIDE)
    assert (upsample_scores(cells(large, small), flat, True, [24, 24]).argmax(dim=1) != 2).all()
    out = upsample_scores(cells(large, small), flat, True, [12, 3])
    winner = out.argmax(dim=1)[0]
    assert 2 * ((winner == 1) & large).sum() > 0.85 * ((winner == 1).sum() + large.sum())
    assert ((winner == 2) & small).sum() > 0.7 * small.sum()
    assert (winner[~(large | small)] == 0).float().mean() > 0.95


def test_an_absent_label_stays_absent_and_without_windows_nothing_is_filtered():
    scores = cells(disk(20), disk(20))
    scores[:, 2] = ABSENT
    out = upsample_scores(scores, torch.randn(1, 1, SIDE, SIDE), True, [4, 4])
    assert (out[:, 2] == ABSENT).all()
    assert (out.argmax(dim=1) == 1).any()
    plain = torch.nn.functional.interpolate(scores, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsample_scores(scores, torch.randn(1, 1, SIDE, SIDE), True, [0, 0]), plain)


def test_windows_follow_the_labels_of_all_supports():
    wide, thin = squares(), squares()  # label 1 is 24 x 24, label 3 16 x 16
    thin[8:32, 16:40] = 0
    thin[8:32, 16:24, 2:7] = 1  # 8 wide
    scans = [SupportScan(noise(seed), label, 7.0, name) for seed, label, name in ((0, wide, "a"), (1, thin, "b"))]
    network = CountingNetwork()
    inferer = FewShotInferer(guided_radius_px=12, guided_share=0.25)
    for used, expected in (([0], [6, 4]), ([1], [2, 4]), ([0, 1], [4, 4])):
        inferer.set_support([scans[index] for index in used])
        assert inferer._guided_radii(inferer.encode_support(network), [1, 3], None) == expected
        assert inferer._guided_radii(inferer.encode_support(network), [1, 3], 3) == expected
    inferer.guided_radius_px = 3
    assert inferer._guided_radii(inferer.encode_support(network), [1, 3, 7], None) == [3, 3, 0]
    assert inferer(query_of(noise(0)), network).shape == (1, 3, 64, 64, 10)


def scores_of(winner, margin):
    """Scores (D, 3, 8, 8) by which the classes of a label map (D, 8, 8) win by so much."""
    return margin * torch.nn.functional.one_hot(winner, 3).movedim(-1, 1).float()


@pytest.mark.parametrize("end", [0, -1])
def test_a_remnant_is_small_unsure_and_at_an_end(end):
    winner = torch.zeros(5, 8, 8, dtype=torch.int64)
    winner[end, :4, :4] = 2  # a quarter of a slice
    winner[2, 4:, 4:] = 1  # not at an end
    scores = scores_of(winner, 0.5)
    assert Remnants(0.2, 0.8).find(scores, [2.0, 2.0]).tolist() == [False, True]
    assert not Remnants(0.1, 0.8).find(scores, [2.0, 2.0]).any()  # not small
    assert not Remnants(0.2, 0.8).find(scores, [2.0, 1.0]).any()  # small structures are as large as this
    assert not Remnants(0.2, 0.4).find(scores, [2.0, 2.0]).any()  # sure enough


def test_what_is_left_out_becomes_background_and_no_other_label():
    winner = torch.zeros(3, 8, 8, dtype=torch.int64)
    winner[:, :4], winner[:, 4:, 4:] = 1, 2
    scores = scores_of(winner, 1.0)
    scores[:, 2] -= 0.5  # the second best of the first label's places is the background or the second label
    left = leave_out(scores, torch.tensor([False, True]))
    assert torch.equal(left.argmax(dim=1), torch.where(winner == 1, 0, winner))
    assert torch.equal(leave_out(scores, torch.tensor([True, True])), scores)


def test_the_volume_of_a_label_is_what_a_stack_of_slices_can_show():
    inferer = FewShotInferer(num_slices=1)
    label = squares()
    label[..., 6][label[..., 6] == 1] = 0
    label[8:16, 16:24, 6] = 1  # one slice of organ 1 is smaller
    inferer.set_support([SupportScan(noise(0), label, 7.0, "a")])
    (scan,) = inferer.encode_support(CountingNetwork())
    large, small = 24 * 24 / 64**2, 8 * 8 / 64**2
    for length_mm, slices in ((1.0, large), (7.0, large), (28.0, 4 * large), (700.0, 4 * large + small)):
        assert scan.volume(1, length_mm) == pytest.approx(7 * slices)
    assert scan.volume(5, 70.0) == 0
