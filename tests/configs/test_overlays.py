"""Task overlays: small, usable with both configs, and right about the body."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser
from monai.transforms import Compose

CONFIGS = Path(__file__).parents[2] / "configs"
OVERLAYS = ("abdomen_mr", "abdomen_ct", "cardiac_mr")


def parse(base: str, overlay: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{base}.json"), str(CONFIGS / f"{overlay}.json")])
    return parser


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_changes_only_what_training_knows(overlay):
    base = json.loads((CONFIGS / "train.json").read_text())
    assert set(json.loads((CONFIGS / f"{overlay}.json").read_text())) <= set(base)


@pytest.mark.parametrize("base", ["train", "inference"])
@pytest.mark.parametrize("lowest", [-1024, -125], ids=["HU", "windowed"])
def test_ct_body_with_fat_and_without_table(tmp_path, base, lowest):
    rng = np.random.default_rng(0)
    scan = np.full((64, 64, 3), -1000.0)
    scan[8:56, 8:50] = -100  # fat
    scan[16:48, 16:42] = 60  # organs
    scan[4:60, 58:61] = 200  # table
    scan = np.clip(scan + rng.normal(0, 5, scan.shape), lowest, None).astype(np.int16)
    nib.save(nib.Nifti1Image(scan, np.diag([2.0, 2.0, 5.0, 1.0])), tmp_path / "ct.nii.gz")
    parser = parse(base, "abdomen_ct")
    parser["image_size"] = [48, 42]
    parser["cache_dir"] = None
    steps = Compose(parser.get_parsed_content("steps" if base == "inference" else "train#preprocessing#transforms"))
    out = steps({"image": str(tmp_path / "ct.nii.gz")})
    image = np.asarray(out["image"])
    assert image.shape == (1, 48, 42, 3)  # the frame is the body's box: nothing was cut off, no table came in
    levels = [np.median(part) for part in (image[0, 2:6, 2:40, 1], image[0, 10:38, 10:30, 1])]
    assert levels[0] < levels[1]
    assert abs(np.median(image[0, 2:6, 2:40, 1]) - image[0, 2:6, 2:40, 1]).max() < 0.5  # fat is even, no holes


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("base", ["train", "inference"])
def test_overlay_is_read_with(base, overlay):
    parser = parse(base, overlay)
    expected = json.loads((CONFIGS / f"{overlay}.json").read_text())
    for key, value in expected.items():
        assert parser[key] == value
    parser.get_parsed_content("intensity")
