"""Similarity to the support in runs of the configs."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

pytestmark = pytest.mark.filterwarnings("ignore")


def test_inference_writes_similarity_only_when_asked(run_config, tmp_path, phantom_dir):
    for flag in (False, True):
        run_config("inference", save_similarity=flag, output_dir=str(tmp_path / str(flag)))
    assert [p.name for p in (tmp_path / "False").rglob("*.nii.gz")] == ["phantom_05_seg.nii.gz"]
    maps = [nib.load(tmp_path / flag / "phantom_05/phantom_05_seg.nii.gz") for flag in ("False", "True")]
    np.testing.assert_array_equal(*(np.asarray(m.dataobj) for m in maps))
    stored = nib.load(tmp_path / "True" / "phantom_05/phantom_05_similarity.nii.gz")
    scan = nib.load(phantom_dir / "imagesTs/phantom_05.nii.gz")
    assert stored.shape == scan.shape
    np.testing.assert_allclose(stored.affine, scan.affine, atol=1e-4)
    assert stored.get_data_dtype() == np.uint8


@pytest.mark.parametrize("protocol", ["volume", "official"])
def test_evaluation_writes_similarity_of_every_case(run_config, protocol):
    out = run_config("inference", "evaluate", protocol=protocol, folds=2, fold=0)
    for case in ("phantom_01", "phantom_02"):
        percent = np.asarray(nib.load(out / case / f"{case}_similarity.nii.gz").dataobj)
        labels = np.asarray(nib.load(out / case / f"{case}_seg.nii.gz").dataobj)
        assert percent.max() <= 100
        assert len(np.unique(percent)) > 3
        assert percent[labels > 0].min() > 0  # where a label was found, a support slice answered


def test_a_query_that_is_its_support_is_similar_throughout(run_config, phantom_dir, tmp_path):
    files = {kind: str(phantom_dir / f"{kind}sTr/phantom_01.nii.gz") for kind in ("image", "label")}
    run_config("inference", save_similarity=True, support=[files], datalist=[{"image": files["image"]}])
    percent = np.asarray(nib.load(tmp_path / "out/phantom_01/phantom_01_similarity.nii.gz").dataobj)
    assert (percent == 100).all()
