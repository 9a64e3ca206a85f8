from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from bundle.transforms import RestoreGeometry, SimilarityMap, SimilarityMapd, SliceFrame

from ..conftest import affine_of, volume


def prediction(cells, shape=(8, 8), **meta):
    """Scores of a plane of ``shape`` with similarity in the meta data, on the grid of the file."""
    cells = torch.as_tensor(cells, dtype=torch.float32)
    meta = {"original_affine": np.eye(4), "spatial_shape": [*shape, cells.shape[-1]], **meta}
    return MetaTensor(torch.zeros(3, *shape, cells.shape[-1]), affine=torch.eye(4), meta={"similarity": cells, **meta})


def test_cells_are_interpolated_in_the_plane_only():
    cells = torch.tensor([[0.2, 0.6], [0.2, 0.6]])[..., None] * torch.tensor([1.0, 0.5, 0.0])
    out = SimilarityMap()(prediction(cells))
    assert out.shape == (1, 8, 8, 3)
    row = torch.tensor([0.2, 0.2, 0.25, 0.35, 0.45, 0.55, 0.6, 0.6])  # centers of two cells lie at 1.5 and 5.5
    for z, factor in enumerate((1.0, 0.5, 0.0)):
        torch.testing.assert_close(out.as_subclass(torch.Tensor)[0, ..., z], (factor * row).expand(8, 8))
    assert "similarity" not in out.meta


def test_batch_of_one_that_was_not_taken_apart():
    cells = torch.rand(2, 2, 3)
    torch.testing.assert_close(SimilarityMap()(prediction(cells[None])), SimilarityMap()(prediction(cells)))


def test_is_on_the_grid_of_the_file_and_similar_around_the_frame():
    affine = affine_of(np.diag([-1.0, -1.0, 1.0]), (2.0, 2.0, 6.0))
    scan, body = volume(np.zeros((40, 36, 4)), affine), np.zeros((1, 40, 36, 4))
    body[:, 8:24, 4:36] = 1
    frame = SliceFrame((32, 32))(scan, body)
    cells = torch.full((4, 4, 4), 0.3)
    cells[..., 2] = 0.7
    meta = {**frame.meta, "similarity": cells}
    scores = MetaTensor(torch.zeros(2, 32, 32, 4), affine=frame.affine, meta=meta)
    out = SimilarityMapd()({"pred": scores})
    found = out["similarity"]
    assert found.dtype == torch.uint8
    assert found.shape == scan.shape
    torch.testing.assert_close(found.affine, scan.affine)
    percent = found.as_subclass(torch.Tensor)[0]
    assert percent[10:22, 6:34].flatten(0, 1).unique(dim=0).tolist() == [[30, 30, 70, 30]]
    assert (percent[:7] == 100).all()
    assert (percent[26:] == 100).all()
    assert out["pred"] is scores
    assert RestoreGeometry()(scores).shape == (2, 40, 36, 4)


def test_refuses_what_it_cannot_measure():
    pred = prediction(torch.rand(2, 2, 3))
    restored = prediction(torch.rand(2, 2, 3))
    restored.meta["similarity"] = torch.rand(2, 2, 5)
    with pytest.raises(ValueError, match="run it before RestoreGeometry"):
        SimilarityMap()(restored)
    del pred.meta["similarity"]
    with pytest.raises(KeyError, match="set keep_similarity"):
        SimilarityMap()(pred)
    assert SimilarityMapd(allow_missing_keys=True)({"other": 1}) == {"other": 1}
