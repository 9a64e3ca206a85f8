from __future__ import annotations

import json
import logging
import math

import pytest
import torch
from monai.data import MetaTensor

from bundle.transforms import ScanIntensity, ScanIntensityd


def test_ct_is_windowed():
    image = torch.tensor([-1000.0, -150, -100, -30, 10, 20, 50, 60, 80, 1500]).view(1, 10, 1, 1)
    assert ScanIntensity()(image).flatten().tolist() == [-125, -125, -100, -30, 10, 20, 50, 60, 80, 275]


def test_mr_loses_its_brightest_voxels_alone():
    image = torch.arange(1000.0).view(1, 10, 10, 10)
    clipped = ScanIntensity(upper_percentile=99.5)(image)
    assert clipped.max() == 994
    assert (clipped != image).sum() == 5


def test_windowed_ct_stays_as_it_is():
    image = body().clamp(-125, 275)
    assert torch.equal(ScanIntensity()(image), image)


def test_dictionary_form_changes_its_keys_alone():
    data = {"image": torch.tensor([-1000.0, 50, 60, 500]).view(1, 4, 1, 1), "label": torch.ones(1, 4, 1, 1)}
    out = ScanIntensityd("image", window_hu=[0, 100], modality="ct")(data)
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
    return values.round() + offset


def body(padding=-1024.0):
    """A CT of 24 x 24 x 24 voxels: padding, air, fat, soft tissue, a bone."""
    values = torch.randn(1, 24, 24, 24, generator=torch.Generator().manual_seed(0)) * 20 + 40
    values[:, :8] = torch.randn(1, 8, 24, 24, generator=torch.Generator().manual_seed(1)) * 20 - 980
    values[:, 8:13] -= 140
    values[:, :2], values[:, 14:16, 14:16] = padding, 900
    return values.round()


def taken_for(values, **arguments):
    """What a scan is taken for, and its values afterwards."""
    out = ScanIntensity(**arguments)(MetaTensor(values.clone(), meta={"filename_or_obj": "scan.nii.gz"}))
    return out.meta["modality"], out.as_subclass(torch.Tensor)


CTS = {
    "padded at -1024": body(),
    "padded at -2000": body(-2000),
    "padded at -3024": body(-3024),
    "padded at -32768": body(-32768),
    "a crop of the body": body()[:, 9:],
    "windowed": body().clamp(-160, 240),
    "clipped": body().clamp(-1000, 1000),
    "resampled": body() + 0.25,
    "mostly air": torch.cat([body(), body()[:, :8], body()[:, :8]], dim=1),
}


@pytest.mark.parametrize("kind", CTS)
def test_ct_is_told_by_air_fat_and_soft_tissue(kind):
    modality, values = taken_for(CTS[kind])
    assert modality == "ct"
    assert values.min() == max(-125, CTS[kind].min())
    torch.testing.assert_close(values, CTS[kind].clamp(-125, 275))


@pytest.mark.parametrize("padding", [0.0, 24.0])
def test_ct_of_unsigned_numbers_is_brought_to_hounsfield_units(padding):
    modality, values = taken_for((body() + 1024).clamp(min=padding))
    assert modality == "ct"
    torch.testing.assert_close(values, body().clamp(-125, 275))


@pytest.mark.parametrize("modality", ["auto", "ct"])
@pytest.mark.parametrize(("odd", "count"), [(-5.0, 1), (-2000.0, 1), (-1024.0, 10)])
@pytest.mark.parametrize("padding", [-2000.0, -976.0, 0.0])
def test_few_voxels_below_0_do_not_hide_the_offset(odd, count, padding, modality):
    image = body(padding - 1024) + 1024
    image[0, 20, 0, :count] = odd
    found, values = taken_for(image, modality=modality)
    assert found == "ct"
    torch.testing.assert_close(values, (image - 1024).clamp(-125, 275))


@pytest.mark.parametrize("modality", ["auto", "ct"])
@pytest.mark.parametrize("offset", [1000.0, 1023.0, 1024.0])
@pytest.mark.parametrize("kind", ["padded at -1024", "padded at -2000", "mostly air"])
def test_the_offset_is_found_by_where_ct_starts(kind, offset, modality):
    found, values = taken_for(CTS[kind] + offset, modality=modality)
    assert found == "ct"
    assert (values - CTS[kind].clamp(-125, 275)).abs().max() <= 1


def test_a_ct_that_is_said_to_be_one_is_tested_for_the_offset_without_air_and_fat():
    organ = body()[:, 16:]
    assert taken_for(organ + 1024)[0] == "mr"
    torch.testing.assert_close(taken_for(organ + 1024, modality="ct")[1], organ.clamp(-125, 275))
    organ[:, :, 6:12] = 900  # windowed before, with many bones
    organ = organ.clamp(-125, 275)
    torch.testing.assert_close(taken_for(organ + 1024, modality="ct")[1], organ)


def mr(kind):
    values = heart()
    if kind == "padded":
        values[:, :, :5] = -1024
    elif kind == "undershoot":
        values[:, :4, :1, :3] = -40
    elif kind == "scores":
        values = (values - values.mean()) / values.std()
    elif kind == "PET":
        values = (values / 1500) ** 8 * 20
    elif kind == "phase-sensitive":
        values = values - 700
    return values


@pytest.mark.parametrize("kind", ["plain", "padded", "undershoot", "scores", "PET", "phase-sensitive"])
def test_everything_else_is_treated_as_mr(kind):
    modality, values = taken_for(mr(kind))
    assert modality == "mr"
    assert values.min() == 0
    assert values.std() > 0.1 * (values.max() - values.min())


@pytest.mark.parametrize("odd", [-1.0, -501.0, -600.0, -1000.0, -32768.0])
@pytest.mark.parametrize("count", [1, 5])
def test_odd_dark_voxels_make_no_ct_and_shift_nothing(odd, count, caplog):
    image = heart()
    image[0, 0, 0, :5] = 0
    _, plain = taken_for(image)
    image[0, 0, 0, :count] = odd
    modality, values = taken_for(image)
    assert modality == "mr"
    assert torch.equal(values, plain)
    assert ("scan.nii.gz: has values down to" in caplog.text) == (odd <= -500)


@pytest.mark.parametrize("offset", [-1000.0, -1024.0, -500.0, -2048.0, -100.0])
def test_mr_with_an_offset_is_the_same_scan(offset):
    _, plain = taken_for(heart())
    modality, values = taken_for(heart(offset))
    assert modality == "mr"
    assert torch.equal(values, plain)
    image = heart(offset)  # and so it is with an odd voxel besides
    image[0, 0, 0, 0] = -20000
    assert (taken_for(image)[1] - plain).abs().max() < 20


@pytest.mark.parametrize(("modality", "highest"), [("ct", 275.0), ("mr", 900.0 + 1050), ("CT", 275.0)])
def test_what_is_said_counts_more_than_what_is_seen(modality, highest):
    found, values = taken_for(body(), modality=modality, upper_percentile=100)
    assert found == modality.lower()
    assert abs(values.max() - highest) < 50


def test_unknown_modality_is_named():
    with pytest.raises(ValueError, match="modality must be one of .* got 'pet'"):
        ScanIntensity(modality="pet")


@pytest.mark.parametrize(
    ("said", "values", "modality", "window"),
    [
        ("CT", body(), "ct", True),
        ("CT", (body().clamp(-125, 275) + 125) * 2.5, "ct", False),  # gray values of before
        ("CT", body()[:, 16:, :9] - 30, "ct", True),
        ("MRI", heart(-1000), "mr", False),
        ("T2w", body()[:, 16:], "mr", False),
        ("PET", heart(), "mr", False),
    ],
    ids=["CT", "gray values", "a crop without fat", "MR", "no matter what is seen", "unknown"],
)
def test_dataset_json_says_what_its_own_scans_are(tmp_path, caplog, said, values, modality, window):
    caplog.set_level(logging.INFO)
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": said}}))
    own = MetaTensor(values.clone(), meta={"filename_or_obj": str(tmp_path / "imagesTr" / "a.nii.gz")})
    out = ScanIntensityd("image", dataset_dir=tmp_path)({"image": own})["image"]
    assert out.meta["modality"] == modality
    assert ("dataset.json" in out.meta["modality_reason"]) == (said != "PET")
    assert f"a.nii.gz: taken for {modality.upper()}, {out.meta['modality_reason']}" in caplog.text
    assert bool(out.max() == values.clamp(-125, 275).max()) == window


def test_dataset_json_says_nothing_of_a_scan_from_elsewhere(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "MRI"}}))
    clip = ScanIntensityd("image", dataset_dir=tmp_path)
    for folder, modality in (("/atlas", "ct"), (str(tmp_path), "mr")):
        image = MetaTensor(body(), meta={"filename_or_obj": f"{folder}/imagesTr/a.nii.gz"})
        assert clip({"image": image})["image"].meta["modality"] == modality
    assert clip({"image": MetaTensor(body())})["image"].meta["modality"] == "ct"


@pytest.mark.parametrize("scale", [1.0, 100.0, 1000.0])
@pytest.mark.parametrize("outside", [None, 0.0, -5.0], ids=["whole scan", "body, else 0", "body, else -5"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_standardized_scan_is_no_ct(scale, outside, whole):
    for values in (heart(), heart().sqrt(), body(padding=-990.0) + 1000):
        inside = values > (0.2 * values.max() if outside is not None else -math.inf)
        standard = (values - values[inside].mean()) / values[inside].std(correction=0)
        standard = scale * (standard if outside is None else torch.where(inside, standard, torch.tensor(outside)))
        assert taken_for(standard.round() if whole and scale > 1 else standard)[0] == "mr"
