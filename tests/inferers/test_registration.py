from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from bundle.data.support import SupportScan
from bundle.inferers.cell_registration import CellRegistration, registered_similarities
from bundle.inferers.orientation import InPlaneOrientation
from bundle.inferers.scans import EncodedSupport, annotation_reach, label_bounds
from bundle.inferers.slice_registration import (
    _similarity_in_overlap,
    align_scans,
    describe_slices,
    invert_slice_map,
    nearest_slices,
)

from .test_few_shot import noise, squares


def bodies(mm):
    """A body's unit descriptors (D, 24) at heights in mm: smooth, and never the same twice."""
    phases = torch.arange(24.0) * 1.7
    lengths = torch.linspace(60, 300, 24)
    waves = torch.sin(torch.as_tensor(mm, dtype=torch.float32)[:, None] / lengths * 6.283 + phases)
    return torch.nn.functional.normalize(waves, dim=1)


@pytest.mark.parametrize("scale", [0.8, 1.0, 1.25])
@pytest.mark.parametrize(("query_spacing", "support_spacing"), [(7.0, 7.0), (5.0, 8.0), (9.0, 4.0)])
@pytest.mark.parametrize("start_mm", [0.0, 40.0, -40.0])
def test_known_shift_and_scale_are_found(scale, query_spacing, support_spacing, start_mm):
    query_z = torch.arange(int(220 / query_spacing)) * query_spacing
    support_z = torch.arange(int(260 / support_spacing)) * support_spacing
    # a point at height h of the support's body lies at h / scale in the query's
    [(coordinates, similarity)] = align_scans(
        bodies((query_z + start_mm / scale) * scale), bodies(support_z), query_spacing, support_spacing
    )
    expected = (query_z * scale + start_mm) / support_spacing
    assert (coordinates - expected).abs().max() <= 1.0
    assert similarity > 0.9


def test_overlap_has_to_be_large_enough():
    query = bodies(torch.arange(20) * 7.0)
    support = bodies(torch.arange(20) * 7.0 + 133)  # only the last slice of the query is on the support
    [(coordinates, _)] = align_scans(query, support, 7.0, 7.0, scales=(1.0,), min_overlap=0.5)
    assert ((coordinates > -0.5) & (coordinates < 19.5)).sum() >= 10
    [(free, similarity)] = align_scans(query, support, 7.0, 7.0, scales=(1.0,), min_overlap=0.0, overlap_penalty=0.0)
    torch.testing.assert_close(free, torch.arange(20.0) - 19)
    assert similarity == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(("query", "support"), [(1, 12), (12, 1), (1, 1)])
def test_single_slices_find_a_place(query, support):
    [(coordinates, _)] = align_scans(
        bodies(torch.arange(query) * 7.0 + 35), bodies(torch.arange(support) * 7.0), 7.0, 7.0
    )
    assert coordinates.shape == (query,)
    assert torch.isfinite(coordinates).all()
    if support == 12:
        assert coordinates.item() == pytest.approx(5, abs=0.5)


def test_a_description_has_the_mean_directions_of_coarse_cells():
    features = torch.rand(5, 3, 8, 12, generator=torch.Generator().manual_seed(0)) + 4
    descriptor = describe_slices(features, cells=2)
    assert descriptor.shape == (5, 12)
    unit = features / features.norm(dim=1, keepdim=True)
    cells = torch.stack([unit[:, :, r : r + 4, c : c + 6].mean(dim=(2, 3)) for r in (0, 4) for c in (0, 6)], dim=2)
    torch.testing.assert_close(descriptor, cells.flatten(1))


def test_nearest_slices_by_hand():
    coordinates = torch.tensor([-1.2, -0.9, 0.2, 1.6, 3.9, 4.0])
    expected = [[-1, -1], [0, 1], [0, 1], [2, 1], [3, 2], [-1, -1]]
    np.testing.assert_array_equal(nearest_slices(coordinates, torch.arange(4), 2), expected)


def test_more_slices_than_there_are_leave_gaps():
    np.testing.assert_array_equal(nearest_slices(torch.tensor([0.4]), torch.arange(2), 4), [[0, 1, -1, -1]])


def test_annotated_slices_answer_for_half_of_the_gap_beyond_them():
    coordinates = torch.tensor([0.4, 0.6, 4.9, 5.2, 13.4, 13.6])
    expected = [[-1], [3], [3], [3], [11], [-1]]
    np.testing.assert_array_equal(nearest_slices(coordinates, torch.tensor([3, 8, 11]), 1)[:4], expected[:4])
    np.testing.assert_array_equal(nearest_slices(coordinates, torch.tensor([3, 8, 11]), 1)[4:], expected[4:])
    further = nearest_slices(
        torch.tensor([-4.0, -3.9, 13.9, 14.0]), torch.tensor([3, 8]), 1, torch.tensor([[-4.0, 14]])
    )
    np.testing.assert_array_equal(further, [[-1], [3], [8], [-1]])


def test_labels_go_on_beyond_the_outermost_labelled_slices_by_their_diameter_there():
    label = torch.zeros(30, 20, 20, dtype=torch.long)
    label[10, :10, :10], label[16, :5, :5], label[20, 10:, 10:] = 1, 1, 2  # the last slice does not show the first
    slices = torch.tensor([10, 16, 20])
    bounds = label_bounds(label, slices, [1, 2], 0.5)
    wide = math.sqrt(100 / math.pi)  # half of the diameter of a circle of 100 pixels
    np.testing.assert_allclose(bounds, [[10 - wide, 20], [16, 20 + wide]], rtol=1e-6)
    np.testing.assert_allclose(label_bounds(label, slices, [1, 2], 0.0), [[7, 20], [16, 23]])  # half the largest gap
    assert annotation_reach(torch.tensor([4])) == 1


def test_a_label_is_not_found_beyond_its_bounds():
    label = torch.zeros_like(squares())
    label[..., 4:7] = squares()[..., 4:7]
    scan = SupportScan(noise(0), label, 7.0, "own", slices="labelled")
    features = torch.rand(label.shape[-1], 3, 4, 4)
    found = EncodedSupport.from_scan(scan, features, features.flatten(1), 4, extension=0.1)
    positions = torch.arange(-2, 14).float()
    reached = found.reaches([*found.values, 99], positions)
    low, high = found.bounds.unbind(dim=1)
    assert low.tolist() == [3, 4]
    for row in range(len(found.values)):
        assert torch.equal(reached[:, row], (positions > low[row]) & (positions < high[row]))
    assert not reached[:, -1].any()
    unknown = found.unknown([*found.values, 99], positions)  # 3 goes on beyond the last labelled slice, 1 on both sides
    assert torch.equal(unknown[:, 0], ~reached[:, 0])
    assert torch.equal(unknown[:, 1], positions >= high[1])
    assert not unknown[:, -1].any()
    whole = EncodedSupport.from_scan(replace(scan, label=squares(), slices="all"), features, features.flatten(1), 4)
    assert whole.reaches(found.values, positions).all()
    assert not whole.unknown(found.values, positions).any()


def test_a_scan_upside_down_is_found_and_an_upright_one_stays():
    support = bodies(torch.arange(20) * 7.0)
    [(upright, fit)] = align_scans(support, support, 7.0, 7.0)
    [(reverse, reverse_fit)] = align_scans(support.flip(0), support, 7.0, 7.0)
    torch.testing.assert_close(upright, torch.arange(20.0))
    torch.testing.assert_close(reverse, torch.arange(19.0, -1, -1))
    assert fit == pytest.approx(reverse_fit) == pytest.approx(1.0, abs=1e-5)
    [(never, _)] = align_scans(support.flip(0), support, 7.0, 7.0, flip_margin=3.0)
    assert (never.diff() > 0).all()


def waves(depth, shift=(0.0, 0.0, 0.0), cells=32):
    """Features (depth, 48, cells, cells) that vary smoothly over a body that is shifted by cells and slices."""
    z, y, x = torch.meshgrid(
        torch.arange(depth) + shift[0], torch.arange(cells) + shift[1], torch.arange(cells) + shift[2], indexing="ij"
    )
    angles = torch.rand(24, 3, generator=torch.Generator().manual_seed(0)) * 0.5 - 0.25
    phases = (angles @ torch.stack([z, y, x]).flatten(1).float()).reshape(24, depth, cells, cells)
    return torch.cat([phases.sin(), phases.cos()]).movedim(1, 0)


def test_locator_finds_a_shift_that_the_alignment_of_slices_missed():
    registration = CellRegistration([0.1] * 8, [12.0] * 8, temperature=20.0, position_weight=5.0, depth_weight=0.03)
    coordinates = registration(waves(12, shift=(2.0, 3.0, 0.0)), waves(12), torch.arange(12.0), 10.0, 10.0)
    assert coordinates.shape == (12, 3, 32, 32)
    start = CellRegistration([], [])(waves(12), waves(12), torch.arange(12.0), 10.0, 10.0)
    moved = (coordinates - start)[3:8, :, 10:22, 10:22].mean(dim=(0, 2, 3))
    assert moved[0] * 32 == pytest.approx(3, abs=1.0)  # rows of the grid
    assert moved[1] * 32 == pytest.approx(0, abs=0.5)
    assert moved[2] == pytest.approx(2, abs=0.6)  # slices of 1 cm


def test_locator_leaves_a_scan_on_itself_where_it_is():
    coordinates = CellRegistration()(waves(9), waves(9), torch.arange(9.0), 7.0, 7.0)
    start = CellRegistration([], [])(waves(9), waves(9), torch.arange(9.0), 7.0, 7.0)
    centers = (torch.arange(32) + 0.5) / 32
    torch.testing.assert_close(start[0, 0, :, 5], centers)
    torch.testing.assert_close(start[:, 2, 0, 0], torch.arange(9.0) * 0.7)
    assert (coordinates - start)[2:7, :2, 8:24, 8:24].abs().max() < 0.02


def test_locator_without_reach_keeps_the_slices():
    positions = torch.tensor([2.0, 2.0, 5.0])
    coordinates = CellRegistration()(waves(3), waves(9), positions, 7.0, 8.0, reach=0)
    torch.testing.assert_close(coordinates[:, 2], (positions * 0.8)[:, None, None].expand(3, 32, 32))


def test_locator_takes_sensible_numbers_only():
    with pytest.raises(ValueError, match="reach"):
        CellRegistration(reach=-1)
    with pytest.raises(ValueError, match="one number a round"):
        CellRegistration(smoothing=[0.1])


def test_locator_follows_what_moves_alone_once_it_smooths_less():
    def bent(coarse):
        """A scan whose right half lies two rows lower than on the support."""
        moved, still = waves(5, shift=(0.0, 2.0, 0.0)), waves(5)
        return torch.cat([still[..., :16], moved[..., 16:]], dim=-1) if coarse else still

    positions = torch.arange(5.0)
    start = CellRegistration([], [])(bent(True), bent(False), positions, 7.0, 7.0)
    found = {}
    for name, rounds in {"coarse": [0.3] * 4, "fine": [0.3, 0.1, 0.05, 0.03]}.items():
        coordinates = CellRegistration(rounds, [12.0] * 4)(bent(True), bent(False), positions, 7.0, 7.0)
        rows = 32 * (coordinates - start)[:, 0, 8:24].mean(dim=(0, 1))
        found[name] = float(rows[22:28].mean() - rows[4:10].mean())
    assert found["fine"] == pytest.approx(2, abs=0.5)
    assert found["coarse"] < found["fine"] - 0.5


def test_of_lines_as_similar_the_one_that_overlaps_more_counts():
    same = torch.ones(12, 5)  # every slice is like every other
    [(coordinates, fit)] = align_scans(same, torch.ones(12, 5), 7.0, 7.0, scales=(1.0,))
    assert ((coordinates > -0.5) & (coordinates < 11.5)).all()
    assert fit == pytest.approx(0.0, abs=1e-5)  # nothing tells, and the penalty is not in it


def test_slices_are_compared_less_what_the_overlap_shares():
    torch.manual_seed(0)
    query, support = torch.rand(6, 20) + 3, torch.rand(9, 20) + 3
    maps = {0: slice(0, 6), 5: slice(0, 4), -3: slice(3, 6)}  # offsets and the query's slices that overlap
    for offset, overlap in maps.items():
        nearest = (torch.arange(6) + offset).clamp(0, 8)[None]
        inside = torch.zeros(1, 6, dtype=torch.bool)
        inside[0, overlap] = True
        (found,) = _similarity_in_overlap(query, support, nearest, inside)
        usual = support.mean(dim=0, keepdim=True)  # one slice more
        own = query - torch.cat([query[overlap], usual]).mean(dim=0)
        other = support - torch.cat([support[nearest[0]][overlap], usual]).mean(dim=0)
        expected = torch.nn.functional.cosine_similarity(own, other[nearest[0]], dim=1)
        torch.testing.assert_close(found.float(), expected, atol=1e-5, rtol=0)


def test_half_a_body_is_found_on_a_whole_one():
    """Slices of the half have much in common that the whole has not."""
    whole = bodies(torch.arange(40) * 7.0)
    whole[:20, :8] += 1.0
    [(coordinates, _)] = align_scans(whole[:20], whole, 7.0, 7.0)
    torch.testing.assert_close(coordinates, torch.arange(20.0))


def test_of_scales_that_fit_alike_the_one_nearer_to_one_counts():
    same = torch.ones(12, 5)
    for scales in ((0.8, 1.0, 1.25), (1.25, 1.0, 0.8)):
        [(coordinates, _)] = align_scans(same, torch.ones(30, 5), 7.0, 7.0, scales=scales)
        assert (coordinates.diff() == 1).all()


def test_candidates_differ_and_the_best_comes_first():
    support = bodies(torch.arange(30) * 7.0)
    slice_maps = align_scans(support[10:18], support, 7.0, 7.0, scales=(1.0,), min_overlap=1.0, candidates=4, apart=3.0)
    assert len(slice_maps) == 4
    torch.testing.assert_close(slice_maps[0][0], torch.arange(10.0, 18.0))
    similarities = [fit for _, fit in slice_maps]
    assert similarities[0] == max(similarities) == pytest.approx(1.0, abs=1e-5)
    for index, (slice_map, _) in enumerate(slice_maps):
        assert all((slice_map - other).abs().mean() >= 3.0 for other, _ in slice_maps[:index])


def test_one_candidate_at_least_goes_the_other_way():
    support = bodies(torch.arange(30) * 7.0)
    for query, ways in ((support, [True, True, False]), (support.flip(0), [False, False, True])):
        slice_maps = align_scans(query, support, 7.0, 7.0, min_overlap=0.9, candidates=2, flip_within=3.0)
        assert [bool((slice_map.diff() > 0).all()) for slice_map, _ in slice_maps] == ways


def test_no_more_candidates_than_there_are():
    one = bodies(torch.zeros(1))
    assert len(align_scans(one, one, 7.0, 7.0, candidates=5)) == 1


def test_located_similarity_by_hand():
    support = waves(6)
    grid = (torch.arange(32) + 0.5) / 32
    rows, columns = torch.meshgrid(grid, grid, indexing="ij")
    depths = torch.arange(6.0)[:, None, None].expand(6, 32, 32) * 0.7
    coordinates = torch.stack([rows.expand(6, 32, 32), columns.expand(6, 32, 32), depths], dim=1)
    assert registered_similarities(support, support, coordinates[None], 7.0)[0] == pytest.approx(1.0, abs=1e-4)
    assert registered_similarities(-support, support, coordinates[None], 7.0)[0] == pytest.approx(-1.0, abs=1e-4)
    up = coordinates + torch.tensor([0.0, 0.0, 0.7])[:, None, None]  # the last slice lies beyond the support
    cosine = torch.nn.functional.cosine_similarity(support[:5], support[1:], dim=1).mean()
    assert registered_similarities(support, support, up[None], 7.0)[0] == pytest.approx(float(cosine), abs=1e-4)
    assert registered_similarities(support, support, coordinates[None] + 99, 7.0)[0] == -1.0


@pytest.mark.parametrize(("slope", "start"), [(1.0, 0.0), (0.5, 3.0), (-1.25, 9.0)])
def test_inverted_line_leads_back(slope, start):
    on_support = start + slope * torch.arange(8.0)
    back = invert_slice_map(on_support, 12, abs(slope))
    torch.testing.assert_close(back, (torch.arange(12.0) - start) / slope)


def test_single_slice_is_inverted_by_the_distances_and_a_flat_line_by_half_of_them():
    torch.testing.assert_close(invert_slice_map(torch.tensor([4.0]), 6, 2.0), (torch.arange(6.0) - 4) / 2)
    torch.testing.assert_close(invert_slice_map(torch.full((3,), 4.0), 6, 2.0), torch.arange(6.0) - 4 + 1)


@pytest.mark.parametrize(
    ("upright", "similarities", "chosen", "asked"),
    [
        (0.55, {0: 0.5, 1: 0.7, 2: 0.68}, 1, []),  # one similarities clearly better than the query as it is
        (0.55, {0: 0.5, 1: 0.55}, 0, []),  # in discount, and it similarities well enough
        (0.45, {0: 0.4, 1: 0.45, 2: 0.41, 3: 0.2}, 2, [0, 1, 2]),  # in discount: told apart by the reverse_dice as well
        (0.45, {0: 0.5, 1: 0.1}, 0, [0]),
    ],
)
def test_a_turn_is_believed_if_it_fits_clearly_better_or_agrees(upright, similarities, chosen, asked):
    agreements, seen = {0: 0.2, 1: 0.3, 2: 0.6, 3: 1.0}, []

    def reverse_dice(turn):
        seen.append(turn)
        return agreements[turn]

    assert InPlaneOrientation().choose(upright, similarities, reverse_dice) == chosen
    assert seen == asked


@pytest.mark.parametrize("arguments", [{"turns": [0, 1]}, {"turns": [4]}, {"turns": [2, 5]}])
def test_other_turns_than_quarter_turns_are_refused(arguments):
    with pytest.raises(ValueError, match="turns must be among 1, 2 and 3"):
        InPlaneOrientation(**arguments)


def literal_places(query, support, rounds, temperature, spacing_mm, reach=3):
    """Each cell at the softmax-weighted mean place of the cells around, worked out in double precision."""
    side = query.shape[-1]
    centers = (torch.arange(side).double() + 0.5) / side
    plane = torch.stack(torch.meshgrid(centers, centers, indexing="ij")).flatten(1)
    mine, theirs = (torch.nn.functional.normalize(x.double(), dim=1).flatten(2) for x in (query, support))
    cm = spacing_mm / 10

    def at(index):
        return torch.cat([plane, torch.full((1, side**2), index * cm, dtype=torch.float64)])

    found = []
    for index, cells in enumerate(mine):
        here = at(index)
        for _ in range(rounds):
            middle = round(float(here[2].mean()) / cm)
            around = [k for k in range(middle - reach, middle + reach + 1) if 0 <= k < len(theirs)]
            places = torch.cat([at(k) for k in around], dim=1)
            similar = torch.cat([cells.T @ theirs[k] for k in around], dim=1)
            apart = (here[:, :, None] - places[:, None]).square() * torch.tensor([100.0, 100.0, 0.3])[:, None, None]
            here = places @ torch.softmax(temperature * similar - apart.sum(dim=0), dim=1).T
        found.append(here.reshape(3, side, side))
    return torch.stack(found)


@pytest.mark.parametrize("temperature", [10.0, 40.0, 100.0, 400.0])
@pytest.mark.parametrize("guesses", [1, 2])
def test_cells_go_to_the_weighted_mean_of_what_is_alike_at_any_temperature(temperature, guesses):
    generator = torch.Generator().manual_seed(0)
    query, support = (torch.randn(6, 32, 6, 6, generator=generator) for _ in range(2))
    support[1:] += 3 * query[:-1].roll(1, dims=2)  # the same body, a slice up and a cell down
    registration = CellRegistration([0.0] * 2, [0.0] * 2, temperature=temperature, pooling=1)
    positions = torch.arange(6.0)
    found = registration(query, support, positions.repeat(guesses, 1) if guesses > 1 else positions, 7.0, 7.0)
    expected = literal_places(query, support, 2, temperature, 7.0)
    torch.testing.assert_close(found.double(), expected.expand_as(found), rtol=0, atol=2e-4)
