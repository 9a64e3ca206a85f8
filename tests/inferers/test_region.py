"""The region of interest: where it lies on a support and a query, and what a second pass in it gains."""

from __future__ import annotations

import pytest
import torch

from bundle.data.support import SupportScan
from bundle.inferers import RegionOfInterest
from bundle.inferers.region import Box, enlarge, profiles, quartiles
from bundle.inferers.slice_registration import align_scans

from .test_few_shot import DEPTH, SIZE, CountingNetwork, given, noise, query_of, segment


def block(*spans, size=SIZE, depth=DEPTH):
    """A label map (H, W, D) of rectangles (value, top, bottom, left, right) in slices 2 to 7."""
    label = torch.zeros(size, size, depth, dtype=torch.int64)
    for value, top, bottom, left, right in spans:
        label[top:bottom, left:right, 2:8] = value
    return label


def test_a_supports_box_has_a_margin_and_stays_in_the_frame():
    region = RegionOfInterest(margin=0.5).on_support(block((1, 0, 10, 20, 30), (4, 10, 20, 40, 60)))
    assert region.box == Box(0, 30, 0, 64)
    assert sorted(region.profiles) == [1, 4]
    rows, columns = region.profiles[1]
    assert rows.sum() == pytest.approx(1)
    assert rows[:10].tolist() == pytest.approx([0.1] * 10)
    assert columns.nonzero()[:, 0].tolist() == list(range(20, 30))


@pytest.mark.parametrize(
    ("largest", "label"),
    [(0.6, block((1, 4, 60, 4, 60))), (0.3, block((1, 20, 50, 20, 50))), (0.6, block()), (0.0, block((1, 1, 5, 1, 5)))],
)
def test_what_is_large_or_empty_has_no_region(largest, label):
    assert RegionOfInterest(margin=0.1, largest=largest).on_support(label) is None


def test_quartiles_lie_between_the_entries():
    assert quartiles(torch.tensor([1.0, 1.0, 1.0, 1.0])).tolist() == [1.0, 2.0, 3.0]
    assert quartiles(torch.tensor([0.0, 2.0, 0.0])).tolist() == [1.25, 1.5, 1.75]
    assert quartiles(profiles(block((1, 10, 30, 0, 8)) > 0)[0]).tolist() == [15, 20, 25]


@pytest.mark.parametrize("step", [1, 2, 4])
@pytest.mark.parametrize(
    ("moved", "box"),
    [
        ((1, 16, 32, 16, 32), Box(12, 36, 12, 36)),  # as on the support
        ((1, 24, 40, 12, 28), Box(20, 44, 8, 32)),  # moved
        ((1, 16, 32, 14, 34), Box(12, 36, 9, 39)),  # wider by a quarter
        ((1, 16, 32, 4, 44), Box(12, 36, 9, 39)),  # wider than is believed
        ((1, 48, 64, 16, 32), Box(40, 64, 12, 36)),  # at the border: as large, within the frame
    ],
)
def test_a_querys_box_follows_what_was_found(step, moved, box):
    looking = RegionOfInterest(margin=0.25, step=step)
    region = looking.on_support(block((1, 16, 32, 16, 32)))
    found = looking.on_query(block(moved), region)
    assert all(abs(mine - other) <= step / 2 for mine, other in zip(found, box)), found


def test_small_components_and_labels_that_the_support_lacks_do_not_count():
    looking = RegionOfInterest(margin=0.25, step=1)
    region = looking.on_support(block((1, 16, 32, 16, 32)))
    assert looking.on_query(block((1, 16, 32, 16, 32), (1, 56, 60, 56, 60), (7, 40, 64, 0, 64)), region) == region.box
    assert looking.on_query(block((7, 40, 64, 0, 64)), region) is None


def test_a_scan_is_cut_to_the_box_and_enlarged():
    scan = SupportScan(noise(0), block((3, 16, 32, 16, 32)), 5.0, "a", pixel_mm=2.0)
    cut = RegionOfInterest().cut(scan, Box(8, 40, 8, 40))
    assert cut.label.shape == scan.label.shape
    assert cut.image.shape == scan.image.shape
    assert torch.equal(cut.label > 0, block((1, 16, 48, 16, 48)) > 0)
    assert cut.values == [3]
    assert (cut.pixel_mm, cut.spacing_mm) == (1.0, 5.0)
    assert cut.image.mean() == pytest.approx(0, abs=1e-5)
    assert cut.image.std() == pytest.approx(1, abs=1e-4)
    flat = enlarge(torch.ones(2, 1, SIZE, SIZE), Box(0, 8, 0, 8))
    assert not flat.any()  # no division by nothing


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_what_is_found_in_the_box_counts_for_better_labels_and_nothing_changes_outside(turn, batch_size):
    height, width = 24, 32
    scores = torch.randn(4, 3, height, width, generator=torch.Generator().manual_seed(1))
    turned = scores.rot90(turn, (2, 3))
    box = Box(4, 16, 6, 20)
    finer = torch.tensor([-3.0, 3.0, 1.0])[:, None, None].expand(4, 3, *turned.shape[-2:])
    pasted = scores.clone()
    RegionOfInterest(margin=0.3).paste(
        pasted, box, turn, lambda part: finer[part], torch.tensor([True, False]), batch_size
    )
    before, after = turned.argmax(dim=1), pasted.rot90(turn, (2, 3)).argmax(dim=1)
    outside = torch.ones(turned.shape[-2:], dtype=torch.bool)
    outside[box.top : box.bottom, box.left : box.right] = False
    assert torch.equal(before[:, outside], after[:, outside])
    inner = after[:, box.top + 3 : box.bottom - 3, box.left + 3 : box.right - 3]
    strong = (turned[:, 2] - turned[:, :2].amax(dim=1))[:, 7:13, 9:17] > 2
    assert (inner[~strong] == 1).all()
    assert (before[:, 7:13, 9:17] != 1).any()


def thin():
    """An organ of whole cells, and a strip beside it in which no cell has its middle."""
    return block((1, 16, 32, 16, 32), (2, 37, 40, 16, 32))


def test_a_strip_thinner_than_a_cell_is_found_by_looking_closer(monkeypatch):
    monkeypatch.setattr(RegionOfInterest, "on_query", lambda _, labels, region: region.box)  # noise has no other scale
    scan = SupportScan(noise(0), thin(), 7.0, "a", slices="all")
    dice = []
    for looking in (None, RegionOfInterest()):
        found, scores = segment(given(scan, region_of_interest=looking), CountingNetwork(), query_of(noise(0)))
        both = ((found == 2) & (thin() == 2)).sum()
        dice.append(float(2 * both / ((found == 2).sum() + (thin() == 2).sum())))
        assert (found == 1).float().sum() == pytest.approx(float((thin() == 1).sum()), rel=0.25)
        assert torch.as_tensor(scores.meta["reverse_dice"]).shape == (1, 2)
    assert dice[0] == 0
    assert dice[1] > 0.3


def test_a_support_is_encoded_once_more_and_a_large_one_is_not():
    for label, passes in ((thin(), 2), (block((1, 2, 62, 2, 62)), 1)):
        network = CountingNetwork()
        inferer = given(SupportScan(noise(0), label, 7.0, "a", slices="all"), region_of_interest=RegionOfInterest())
        for queries in (1, 2):
            segment(inferer, network, query_of(noise(0)))
            assert network.encoded == (1 + queries) * passes * DEPTH


def test_an_answer_that_gives_the_supports_labels_back_worse_is_left(monkeypatch):
    scan = SupportScan(noise(0), thin(), 7.0, "a", slices="all")
    plain, _ = segment(given(scan), CountingNetwork(), query_of(noise(0)))
    inferer = given(scan, region_of_interest=RegionOfInterest())
    rated = iter([torch.tensor([0.9, 0.9]), torch.tensor([0.8, 0.8])])
    monkeypatch.setattr(inferer.quality, "reverse_dice", lambda *_: next(rated))
    found, scores = segment(inferer, CountingNetwork(), query_of(noise(0)))
    assert torch.equal(found, plain)
    assert scores.meta["reverse_dice"].tolist() == [pytest.approx([0.9, 0.9])]


@pytest.mark.parametrize(
    "wrong", [{"margin": -0.1}, {"largest": 1.2}, {"component_share": -1}, {"largest_scale": 0.9}, {"step": 0}]
)
def test_numbers_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RegionOfInterest(**wrong)


@pytest.mark.parametrize(("within", "ways"), [(0.2, 1), (3.0, 2)])
def test_maps_of_the_other_way_are_added_only_where_they_are_nearly_as_similar(within, ways):
    slices = torch.randn(12, 40, generator=torch.Generator().manual_seed(0)).cumsum(dim=0)
    maps = align_scans(slices, slices, 5.0, 5.0, candidates=6, flip_within=within)
    assert len({bool(positions[-1] < positions[0]) for positions, _ in maps}) == ways
