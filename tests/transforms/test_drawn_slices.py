from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from bundle.transforms import KeepDrawnSlices, KeepDrawnSlicesd
from bundle.transforms.spatial import slice_axis

from ..conftest import save_nifti, volume


def scene(geometry):
    """A predicted label map, a label drawn on every third slice, and which slices these are."""
    affine, shape = geometry
    axis = slice_axis(affine)
    draw = np.random.default_rng(0)
    predicted, drawn = (draw.integers(0, 3, shape).astype(np.float32) for _ in range(2))
    slices = np.arange(shape[axis]) % 3 == 0
    np.moveaxis(drawn, axis, 0)[~slices] = 0
    return predicted, drawn, axis, slices


def test_drawn_slices_stay_and_others_are_what_was_predicted(geometry):
    predicted, drawn, axis, slices = scene(geometry)
    found = KeepDrawnSlices()(volume(predicted, geometry[0]), volume(drawn, geometry[0]))
    for index, own in enumerate(slices):
        expected = np.take(drawn if own else predicted, index, axis)
        np.testing.assert_array_equal(np.take(found[0].numpy(), index, axis), expected)


def test_labels_that_are_not_looked_for_count_as_not_drawn(geometry):
    predicted, drawn, *_ = scene(geometry)
    wanted = volume(predicted, geometry[0], label_values=torch.tensor([[2]]))
    found = KeepDrawnSlices()(wanted, volume(drawn, geometry[0]))
    expected = KeepDrawnSlices()(volume(predicted, geometry[0]), volume(np.where(drawn == 2, 2, 0), geometry[0]))
    assert torch.equal(found.as_subclass(torch.Tensor), expected.as_subclass(torch.Tensor))


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"expected a label of shape \(1, 4, 4, 4\), got \(1, 4, 4, 5\)"):
        KeepDrawnSlices()(volume(np.zeros((4, 4, 4))), torch.zeros(1, 4, 4, 5))


def test_of_files_those_count_whose_image_is_the_scan(tmp_path, geometry):
    predicted, drawn, *_ = scene(geometry)
    image, label = (save_nifti(tmp_path / f"{name}.nii.gz", drawn, geometry[0]) for name in ("image", "label"))
    own = {"image": str(image), "label": str(label), "slices": "labelled", "values": {1: 1, 2: 7}}

    def kept(support):
        meta = {"filename_or_obj": str(image), "label_values": torch.tensor([[1, 7]]), "support": support}
        item = {"pred": volume(predicted, geometry[0], **meta)}
        return KeepDrawnSlicesd("pred")(item)["pred"], item["pred"]

    found, before = kept(json.dumps([own]))
    expected = KeepDrawnSlices()(before, volume(np.where(drawn == 2, 7, drawn), geometry[0]))
    assert torch.equal(found, expected)
    assert not torch.equal(found, before)
    assert torch.equal(kept([json.dumps([own])])[0], found)  # as collating leaves it
    for other in ({**own, "slices": "all"}, {**own, "image": str(label)}):
        assert torch.equal(*kept(json.dumps([other])))


def test_what_another_scan_alone_shows_stays_beside_what_was_drawn(geometry):
    predicted, drawn, axis, slices = scene(geometry)
    drawn[drawn == 2] = 0  # labelled on another scan
    found = KeepDrawnSlices()(volume(predicted, geometry[0]), volume(drawn, geometry[0]))[0].numpy()
    found, drawn, predicted = (np.moveaxis(array, axis, 0)[slices] for array in (found, drawn, predicted))
    np.testing.assert_array_equal(found == 1, drawn == 1)
    np.testing.assert_array_equal(found == 2, (predicted == 2) & (drawn == 0))


def test_the_slice_that_is_the_least_sure_gets_its_number_in_the_file(geometry):
    affine, shape = geometry
    axis = slice_axis(affine)
    voxel = [(length - 1) / 2 for length in shape]
    voxel[axis] = number = min(3, shape[axis] - 1)
    position = torch.from_numpy(affine[:3, :3] @ voxel + affine[:3, 3])[None]
    label_map = volume(np.ones(shape, np.float32), affine, next_slice=position)
    assert KeepDrawnSlices()(label_map, torch.zeros(1, *shape)).meta["next_slice"] == number
    assert label_map.meta["next_slice"] is position
