from __future__ import annotations

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
    meta = {"filename_or_obj": str(image), "label_values": torch.tensor([[1, 7]])}
    item = {"pred": volume(predicted, geometry[0], **meta)}
    own = {"image": "image.nii.gz", "label": "label.nii.gz", "slices": "labelled", "values": {1: 1, 2: 7}}
    found = KeepDrawnSlicesd("pred", [own], tmp_path)(item)["pred"]
    expected = KeepDrawnSlices()(item["pred"], volume(np.where(drawn == 2, 7, drawn), geometry[0]))
    assert torch.equal(found, expected)
    assert not torch.equal(found, item["pred"])
    for other in ({**own, "slices": "all"}, {**own, "image": "label.nii.gz"}):
        assert torch.equal(KeepDrawnSlicesd("pred", [other], tmp_path)(item)["pred"], item["pred"])
