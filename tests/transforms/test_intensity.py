from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

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
    data = {"image": torch.tensor([-1000.0, 50, 60, 500]).view(1, 4, 1, 1), "label": torch.ones(1, 4, 1, 1)}
    out = ScanIntensityd("image", window_hu=[0, 100])(data)
    assert out["image"].flatten().tolist() == [0, 50, 60, 100]
    assert out["label"] is data["label"]
    assert data["image"].max() == 500


def test_window_upside_down_is_named():
    with pytest.raises(ValueError, match=r"window_hu must be \[lowest, highest\], got \[275, -125\]"):
        ScanIntensity(window_hu=(275, -125))


def heart(offset=0.0):
    """An MR of 24 x 24 x 24 voxels: dark air, tissue of many values."""
    values = torch.rand(1, 24, 24, 24, generator=torch.Generator().manual_seed(0)) * 1500
    values[:, :4] = values[:, :4] * 0.01
    return values + offset


def body(padding=-1024.0):
    """A CT of 12 x 12 x 12 voxels: air, soft tissue, a bone."""
    values = torch.randn(1, 12, 12, 12, generator=torch.Generator().manual_seed(0)) * 20 + 40
    values[:, :4] = -1000
    values[:, :1], values[:, 6, 6] = padding, 900
    return values


@pytest.mark.parametrize("padding", [-1024.0, -2000.0, -3024.0])
def test_ct_is_known_by_air_and_tissue(padding):
    image = MetaTensor(body(padding))
    out = ScanIntensity()(image)
    assert out.meta["modality"] == "ct"
    assert (out.min(), out.max()) == (-125, 275)


@pytest.mark.parametrize("odd", [-501.0, -600.0, -1000.0, -32768.0])
@pytest.mark.parametrize("count", [1, 2])
def test_odd_dark_voxels_make_no_ct_and_shift_nothing(odd, count, caplog):
    image = heart()
    plain = ScanIntensity()(image.clone())
    image[0, 0, 0, :count] = odd
    out = ScanIntensity()(MetaTensor(image, meta={"filename_or_obj": "heart.nii.gz"}))
    assert out.meta["modality"] == "mr"
    changed = (out.as_subclass(torch.Tensor) - plain).abs()
    assert changed.max() < 20
    assert "heart.nii.gz: has values down to" in caplog.text


@pytest.mark.parametrize("offset", [-1000.0, -1024.0, -500.0, 1000.0])
def test_mr_with_an_offset_is_the_same_scan(offset):
    found = ScanIntensity()(MetaTensor(heart(offset)))
    assert found.meta["modality"] == "mr"
    torch.testing.assert_close(found.as_subclass(torch.Tensor) - offset, ScanIntensity()(heart()), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("modality", "highest"), [("ct", 275.0), ("mr", 900.0), ("CT", 275.0)])
def test_what_is_said_counts_more_than_what_is_seen(modality, highest):
    out = ScanIntensity(modality=modality, upper_percentile=100)(MetaTensor(body()))
    assert out.max() == highest
    assert out.meta["modality"] == modality.lower()


def test_unknown_modality_is_named():
    with pytest.raises(ValueError, match="modality must be one of .* got 'pet'"):
        ScanIntensity(modality="pet")
