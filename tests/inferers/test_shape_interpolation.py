from __future__ import annotations

import pytest
import torch

from bundle.data.support import SupportScan
from bundle.inferers import ShapeInterpolation
from bundle.inferers.shape_interpolation import least_sure_slice, signed_distances

from .build import make_inferer
from .test_few_shot import CountingNetwork, noise, query_of, squares

SIZE = 64


def disks(radii, centers=None):
    """Disks (D, H, W) of a label 1, 0 where the radius is 0."""
    grid = torch.arange(SIZE) - SIZE / 2
    centers = [(0.0, 0.0)] * len(radii) if centers is None else centers
    return torch.stack(
        [
            ((grid[:, None] - row) ** 2 + (grid[None] - column) ** 2 < radius**2).int()
            for radius, (row, column) in zip(radii, centers)
        ]
    )


def dice(found, truth):
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))


def test_distances_to_contours():
    masks = torch.zeros(2, 9, 9, dtype=torch.bool)
    masks[0, 2:7, 2:7] = True
    found = signed_distances(masks)
    assert found[0, 4].tolist() == [-1.5, -0.5, 0.5, 1.5, 2.5, 1.5, 0.5, -0.5, -1.5]
    assert (found[1] == -2.5).all()  # as far away as the other is wide


def test_shapes_between_slices_grow_with_the_way_and_end_halfway_to_an_empty_slice():
    truth = disks([0, 8, 10, 12, 14, 16, 0, 0, 0, 0])
    kept = torch.tensor([1, 5, 9])
    shapes = ShapeInterpolation().shapes(truth, kept, [1, 7], 3.0, 1.0)
    for index in (2, 3, 4):
        assert dice(shapes[index, 0] > 0, truth[index] == 1) > 0.97, index
    assert (shapes[6, 0] > 0).any()
    assert not (shapes[8, 0] > 0).any()
    assert shapes[0].isnan().all()  # no labelled slice on both sides
    assert shapes[:, 1].isnan().all()  # nowhere labelled
    near, far = shapes[2, 0].abs().mean(), shapes[3, 0].abs().mean()
    assert near > far  # the shape is surer next to a labelled slice


def test_distances_count_in_millimetres():
    truth = disks([12, 12, 12, 12, 12])
    kept, interpolation = torch.tensor([0, 4]), ShapeInterpolation()
    expected = interpolation.shapes(truth, kept, [1], 3.0, 1.0)
    torch.testing.assert_close(interpolation.shapes(truth, kept, [1], 6.0, 2.0), expected)
    assert interpolation.shapes(truth, kept, [1], 6.0, 1.0).abs().mean() < expected.abs().mean()


def test_the_shape_counts_less_far_from_a_labelled_slice_and_more_in_a_tall_label():
    labels = torch.zeros(17, 4, 4, dtype=torch.int32)
    labels[:, :2], labels[8, 2:] = 1, 2
    kept, interpolation = torch.tensor([0, 4, 8, 16]), ShapeInterpolation()
    tall, short = interpolation.shares(labels, kept, [1, 2], 3.0).unbind(dim=1)
    assert tall[kept].tolist() == [1, 1, 1, 1]
    assert tall[1] == pytest.approx(48 / (48 + 4 * 3))
    assert tall[12] == pytest.approx(48 / (48 + 4 * 12))
    assert short[9] == pytest.approx(18 / (18 + 4 * 3))  # from halfway to slice 4 to halfway to slice 16
    assert interpolation.shares(labels, kept, [1, 2], 1.0).equal(torch.stack([tall, short], dim=1))  # whatever the unit


def segment(slices, **options):
    label = torch.zeros_like(squares())
    label[..., slices] = squares()[..., slices]
    inferer = make_inferer(num_slices=1, **options)
    inferer.set_support([SupportScan(noise(0), label, 7.0, "own", slices="labelled")])
    scores = inferer(query_of(noise(0)), CountingNetwork())
    values = [0, *scores.meta["label_values"].flatten().tolist()]
    return torch.tensor(values)[scores[0].as_subclass(torch.Tensor).argmax(dim=0)], label


def test_a_scan_with_some_labelled_slices_keeps_them_and_gets_the_others():
    slices = [2, 4, 6, 8]  # of noise, so that the images say nothing in between
    found, label = segment(slices, shape_interpolation=ShapeInterpolation())
    assert torch.equal(found[..., slices], label[..., slices])
    wrong = [(map_ != squares()).float().mean(dim=(0, 1)) for map_ in (found, segment(slices)[0])]
    assert wrong[0][3] < wrong[1][3] / 2  # both neighbours show the same
    assert wrong[0][[3, 5, 7]].mean() < wrong[1][[3, 5, 7]].mean() - 0.08


def test_the_least_sure_slice_is_the_one_with_the_most_doubt():
    scores = torch.zeros(5, 3, 8, 8)
    scores[:, 1] = 8.0
    scores[3, :, :4] = torch.tensor([0.0, 0.1, 0.0])[:, None, None]
    scores[1, :, :2] = 0.0
    labelled = torch.tensor([0, 4])
    assert [least_sure_slice(scores, labelled, size) for size in (1, 2, 5)] == [3, 3, 3]
    assert least_sure_slice(scores, torch.tensor([0, 3, 4]), 5) == 1
    scores[3, 0] = 9.0  # nothing is found there
    assert least_sure_slice(scores, labelled, 5) == 1


def test_a_completed_scan_tells_where_its_least_sure_slice_lies():
    label = torch.zeros_like(squares())
    label[..., [2, 4, 8]] = squares()[..., [2, 4, 8]]
    inferer = make_inferer(num_slices=1, shape_interpolation=ShapeInterpolation())
    inferer.set_support([SupportScan(noise(0), label, 7.0, "own", slices="labelled")])
    scores = inferer(query_of(noise(0)), CountingNetwork())
    affine = torch.as_tensor(query_of(noise(0)).affine).reshape(-1, 4, 4)[0].double()
    voxel = torch.linalg.solve(affine, torch.cat([scores.meta["next_slice"][0].double(), torch.ones(1).double()]))
    assert round(float(voxel[2])) == least_sure_slice(
        scores[0].as_subclass(torch.Tensor).movedim(-1, 0), torch.tensor([2, 4, 8]), 4
    )
    assert round(float(voxel[2])) not in (2, 4, 8)
    inferer.set_support([SupportScan(noise(1), label, 7.0, "other", slices="labelled")])
    assert "next_slice" not in inferer(query_of(noise(0)), CountingNetwork()).meta


def test_another_scan_is_segmented_as_without():
    label = torch.zeros_like(squares())
    label[..., [2, 4, 6, 8]] = squares()[..., [2, 4, 6, 8]]
    found = []
    for stage in (None, ShapeInterpolation()):
        inferer = make_inferer(num_slices=1, shape_interpolation=stage)
        inferer.set_support([SupportScan(noise(0), label, 7.0, "other", slices="labelled")])
        found.append(inferer(query_of(noise(0) + 0.1 * noise(1)), CountingNetwork()))
    assert torch.equal(*(scores.as_subclass(torch.Tensor) for scores in found))


@pytest.mark.parametrize("wrong", [{"decline": -1}, {"slope": 0}, {"reach": 0}])
def test_impossible_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        ShapeInterpolation(**wrong)
