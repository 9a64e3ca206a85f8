"""Confidence in runs of the configs."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import SaveImaged

from ..conftest import ROOT

pytestmark = pytest.mark.filterwarnings("ignore")


def test_inference_writes_confidence_only_when_asked(run_config, tmp_path, phantom_dir):
    out = {flag: run_config("inference", save_confidence=flag, output_dir=str(tmp_path / str(flag))) for flag in (0, 1)}
    for folder in (tmp_path / "0", tmp_path / "1"):
        assert json.loads((folder / "phantom_05/phantom_05_quality.json").read_text())["support_similarity"] <= 1
    assert out
    assert [p.name for p in (tmp_path / "0").rglob("*.nii.gz")] == ["phantom_05_seg.nii.gz"]
    maps = [nib.load(tmp_path / flag / "phantom_05/phantom_05_seg.nii.gz") for flag in "01"]
    np.testing.assert_array_equal(*(np.asarray(m.dataobj) for m in maps))
    stored = nib.load(tmp_path / "1" / "phantom_05/phantom_05_confidence.nii.gz")
    scan = nib.load(phantom_dir / "imagesTs/phantom_05.nii.gz")
    assert stored.shape == scan.shape
    np.testing.assert_allclose(stored.affine, scan.affine, atol=1e-4)
    assert stored.get_data_dtype() == np.uint8
    percent = np.asarray(stored.dataobj)
    assert percent.max() <= 100
    assert len(np.unique(percent)) > 10


@pytest.mark.parametrize("protocol", ["volume", "official"])
def test_evaluation_writes_confidence_of_the_saved_label_maps(run_config, protocol):
    out = run_config("inference", "evaluate", protocol=protocol, folds=2, fold=0)
    for case in ("phantom_01", "phantom_02"):
        percent = np.asarray(nib.load(out / case / f"{case}_confidence.nii.gz").dataobj)
        labels = np.asarray(nib.load(out / case / f"{case}_seg.nii.gz").dataobj)
        found = json.loads((out / case / f"{case}_quality.json").read_text())
        assert ("support_similarity" in found) == (protocol == "volume")
        for value, name in enumerate(("liver", "right kidney", "left kidney", "spleen"), 1):
            if (labels == value).any():
                assert found["confidence"][name] == pytest.approx(percent[labels == value].mean(), abs=0.006)
            else:
                assert found["confidence"][name] is None
    assert (out / "metrics.csv").read_text().splitlines()[0] == "case,label,name,dice,protocol"


@pytest.mark.parametrize("flag", [False, True])
def test_without_saving_as_in_a_server_the_prediction_is_the_same(flag):
    """MONAI Label takes SaveImaged out and reads `pred`."""
    parser = ConfigParser()
    parser.read_config(ROOT / "configs/inference.json")
    parser["save_confidence"] = flag
    steps = [t for t in parser.get_parsed_content("postprocessing").transforms if not isinstance(t, SaveImaged)]
    meta = {"label_values": torch.tensor([[3]]), "original_affine": torch.eye(4), "spatial_shape": [4, 4, 2]}
    scores = torch.zeros(2, 4, 4, 2)
    scores[1, 1:3, 1:3] = 2.0
    data = {"image_path": "scan.nii.gz", "pred": MetaTensor(scores, meta=meta, affine=torch.eye(4))}
    for step in steps:
        data = step(data)
    expected = torch.zeros(1, 4, 4, 2, dtype=torch.uint8)
    expected[:, 1:3, 1:3] = 3
    assert torch.equal(data["pred"].as_subclass(torch.Tensor), expected)
    assert set(data) == {"image_path", "pred", "result", *(["confidence"] if flag else [])}
    assert list(data["result"]["label_names"].values()) == [3]
    if flag:
        assert data["confidence"][0, 1, 1, 0] == round(100 / (1 + np.exp(-2 / parser["confidence_temperature"])))
