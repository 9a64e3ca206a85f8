from __future__ import annotations

import pytest
import torch

from bundle.transforms import ScanIntensity, ScanIntensityd


def test_ct_is_windowed():
    image = torch.tensor([-1000.0, -125, -30, 275, 1500]).view(1, 5, 1, 1)
    assert ScanIntensity()(image).flatten().tolist() == [-125, -125, -30, 275, 275]


def test_mr_loses_its_brightest_voxels_alone():
    image = torch.arange(1000.0).view(1, 10, 10, 10)
    clipped = ScanIntensity(upper_percentile=99.5)(image)
    assert clipped.max() == 994
    assert (clipped != image).sum() == 5


def test_windowed_ct_is_not_taken_for_hounsfield_units_again():
    image = torch.tensor([-125.0, -100, 0, 275]).view(1, 4, 1, 1)
    assert ScanIntensity(upper_percentile=100)(image).flatten().tolist() == [-125, -100, 0, 275]


def test_dictionary_form_changes_its_keys_alone():
    data = {"image": torch.tensor([-1000.0, 500]).view(1, 2, 1, 1), "label": torch.ones(1, 2, 1, 1)}
    out = ScanIntensityd("image", window_hu=[0, 100])(data)
    assert out["image"].flatten().tolist() == [0, 100]
    assert out["label"] is data["label"]
    assert data["image"].max() == 500


def test_window_upside_down_is_named():
    with pytest.raises(ValueError, match=r"window_hu must be \[lowest, highest\], got \[275, -125\]"):
        ScanIntensity(window_hu=(275, -125))
