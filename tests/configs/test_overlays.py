"""Task overlays: small, usable with both configs, and right about the body."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser
from monai.transforms import Compose

from bundle.data import case_name, evaluation_split
from bundle.data.prepare.recipe import RECIPES

CONFIGS = Path(__file__).parents[2] / "configs"
OVERLAYS = ("abdomen_mr", "abdomen_ct", "cardiac_mr")
# overlay of a data set: what it shares its intensities with, scans, starts of the folds, labels, groups of setting 2
PROTOCOLS = {
    "sabs": ("abdomen_ct", 30, [0, 6, 12, 18, 24], {1: "spleen", 2: "right kidney", 3: "left kidney", 6: "liver"},
             [["right kidney", "left kidney"], ["spleen", "liver"]]),
    "mscmr": ("cardiac_mr", 35, [0, 7, 14, 21, 28], {1: "left ventricle", 2: "myocardium", 3: "right ventricle"}, None),
}  # fmt: skip


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


@pytest.mark.parametrize("name", PROTOCOLS)
def test_overlay_of_a_data_set_has_the_folds_labels_and_groups_of_its_protocol(name, tmp_path):
    kin, count, starts, labels, groups = PROTOCOLS[name]
    content, shared = (json.loads((CONFIGS / f"{key}.json").read_text()) for key in (name, kin))
    assert shared.items() <= content.items()
    assert content["folds"] == len(starts)
    names = RECIPES[name].label_names  # what scripts.prepare writes into dataset.json
    assert {value: names[value] for value in content["labels"]} == labels
    named = [[names[value] for value in group] for group in content.get("groups", [])]
    assert (named or None) == groups
    assert str(RECIPES[name].modality).lower() == content["modality"]
    for number in range(1, count + 1):
        for folder in ("imagesTr", "labelsTr"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{name}_{number:02d}.nii.gz").touch()
    cases = [f"{name}_{number:02d}" for number in range(1, count + 1)]
    ends = [*starts[1:], count]
    for fold, (start, end) in enumerate(zip(starts, ends)):
        split = {
            part: [case_name(entry["image"]) for entry in entries]
            for part, entries in evaluation_split(tmp_path, "official", fold, content["folds"]).items()
        }
        assert split["queries"] == cases[start:end]
        assert split["support"] == [cases[end % count]]
        assert split["train"] == [case for case in cases if case not in (*split["queries"], *split["support"])]
