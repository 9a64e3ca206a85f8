"""The configs from end to end on the phantom, with a small network."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ckpt_export, verify_net_in_out

from ..conftest import GEOMETRIES, ROOT, TINY_NETWORK, make_tiny, save_nifti

pytestmark = pytest.mark.filterwarnings("ignore")
NETWORK = json.dumps(TINY_NETWORK).replace("true", "True").replace("false", "False")


def bundle_command(*arguments, cwd=ROOT):
    """``python -m monai.bundle`` in a process of its own."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "MONAI_LABEL_STUDIES": ""}
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def check_prediction(path, query, values):
    """A prediction has the query's shape and affine, integer type and the support's values."""
    stored, image = nib.load(path), nib.load(query)
    assert stored.shape == image.shape
    np.testing.assert_allclose(stored.affine, image.affine, atol=1e-4)
    assert stored.get_data_dtype() == np.uint8
    assert set(np.unique(np.asarray(stored.dataobj))) <= {0, *values}


def test_inference_from_another_directory(tmp_path, phantom_dir, tiny_weights):
    done = bundle_command(
        "run", "--config_file", ROOT / "configs/inference.json", "--bundle_root", ROOT, "--dataset_dir", phantom_dir,
        "--output_dir", tmp_path / "out", "--ckpt_path", tiny_weights, "--network_def", NETWORK,
        "--image_size", "[64, 64]", "--support", "[{'image': 'imagesTr/phantom_02.nii.gz', 'label': "
        "'labelsTr/phantom_02.nii.gz'}]", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    # imagesTs is there, so its scans are the queries
    predictions = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.nii.gz"))
    assert predictions == ["phantom_05/phantom_05_seg.nii.gz"]
    check_prediction(tmp_path / "out" / predictions[0], phantom_dir / "imagesTs/phantom_05.nii.gz", {1, 2, 3, 4})
    assert not (tmp_path / "eval").exists()


def test_training_by_the_command_line_from_another_directory(tmp_path, phantom_dir):
    done = bundle_command(
        "run", "--config_file", ROOT / "configs/train.json", "--bundle_root", ROOT, "--dataset_dir", phantom_dir,
        "--output_dir", tmp_path / "out", "--ckpt_dir", tmp_path / "models", "--pretrained", "False",
        "--network_def", NETWORK, "--image_size", "[64, 64]", "--max_epochs", 1, "--epoch_length", 2,
        "--batch_size", 1, "--val_length", 2, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    state = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert set(state) == set(make_tiny().state_dict())


def test_evaluation_writes_table_and_summary(run_config):
    out = run_config("inference", "evaluate", protocol="official", folds=2, fold=0)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["protocol"] == "official"
    assert list(summary["per_label"]) == ["liver", "right kidney", "left kidney", "spleen"]
    with open(out / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["label"]) for row in rows] == [
        (case, label) for case in ("phantom_01", "phantom_02") for label in "1234"
    ]
    liver = [float(row["dice"]) for row in rows if row["label"] == "1"]
    assert summary["per_label"]["liver"] == pytest.approx(np.mean(liver), abs=0.006)
    assert summary["mean"] == pytest.approx(np.mean(list(summary["per_label"].values())), abs=0.006)


def test_volume_evaluation_measures_the_saved_label_maps(run_config, phantom_dir):
    out = run_config("inference", "evaluate", protocol="volume", folds=2, fold=0)
    with open(out / "metrics.csv", newline="") as file:
        rows = {(row["case"], int(row["label"])): row["dice"] for row in csv.DictReader(file)}
    for case in ("phantom_01", "phantom_02"):
        found = np.asarray(nib.load(out / case / f"{case}_seg.nii.gz").dataobj)
        truth = np.asarray(nib.load(phantom_dir / "labelsTr" / f"{case}.nii.gz").dataobj)
        for value in (1, 2, 3, 4):
            overlap = 2 * ((found == value) & (truth == value)).sum()
            dice = 100 * overlap / ((found == value).sum() + (truth == value).sum())
            assert float(rows[case, value]) == pytest.approx(dice, abs=1e-3)


def test_volume_protocol_never_sees_the_truth_of_a_query(run_config, phantom_dir, tmp_path):
    """Another truth changes the Dice and not one voxel of the prediction."""
    predictions = []
    for index, root in enumerate((phantom_dir, tmp_path / "other")):
        if index:
            for image in sorted((phantom_dir / "imagesTr").iterdir()):
                scan, label = nib.load(image), nib.load(phantom_dir / "labelsTr" / image.name)
                save_nifti(root / "imagesTr" / image.name, np.asarray(scan.dataobj), scan.affine)
                values = np.asarray(label.dataobj)
                flipped = values if image.name == "phantom_03.nii.gz" else values[::-1].copy()
                save_nifti(root / "labelsTr" / image.name, flipped, scan.affine)
            (root / "dataset.json").write_text((phantom_dir / "dataset.json").read_text())
        out = run_config(
            "inference", "evaluate", protocol="volume", folds=2, fold=0, dataset_dir=str(root),
            output_dir=str(tmp_path / f"out{index}"),
        )  # fmt: skip
        assert out
        predictions.append(
            [np.asarray(nib.load(p).dataobj) for p in sorted((tmp_path / f"out{index}").rglob("*_seg.nii.gz"))]
        )
    assert len(predictions[0]) == 2
    np.testing.assert_array_equal(predictions[0], predictions[1])


def test_predictions_lie_on_the_grids_of_their_queries(run_config, tmp_path):
    rng = np.random.default_rng(0)
    for name, (affine, shape) in GEOMETRIES.items():
        image = rng.normal(200, 10, shape)
        image[4:-4, 3:-3] += 150 if shape[1] > 10 else 0
        save_nifti(tmp_path / "data/imagesTr" / f"{name}.nii.gz", image.astype(np.int16), affine)
    affine, shape = GEOMETRIES["RAS"]
    label = np.zeros(shape, np.uint8)
    label[10:30, 10:28, 2:6] = 7
    save_nifti(tmp_path / "data/labelsTr/RAS.nii.gz", label, affine)
    run_config("inference", dataset_dir=str(tmp_path / "data"))
    for name in GEOMETRIES:
        if name != "RAS":
            file = tmp_path / "out" / name / f"{name}_seg.nii.gz"
            check_prediction(file, tmp_path / "data/imagesTr" / f"{name}.nii.gz", {7})
    assert not (tmp_path / "out/RAS").exists()  # the support is no query


def test_same_run_twice_gives_the_same_files(run_config, tmp_path):
    files = []
    for name in ("one", "two"):
        run_config("inference", output_dir=str(tmp_path / name))
        files.append([np.asarray(nib.load(p).dataobj) for p in sorted((tmp_path / name).rglob("*_seg.nii.gz"))])
    assert len(files[0]) == 1
    np.testing.assert_array_equal(files[0], files[1])


def test_training_learns_from_images_alone_and_leaves_flat_weights(run_config, tmp_path, phantom_dir):
    run_config("train")
    best = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    final = torch.load(tmp_path / "models" / "model_final.pt", weights_only=True)
    start = make_tiny().state_dict()
    assert set(best) == set(final) == set(start)
    assert any(not torch.equal(final[key], start[key]) for key in start)
    assert not list((tmp_path / "out").glob("training_state*"))  # the training is complete
    out = run_config("inference", ckpt_path=str(tmp_path / "models" / "model.pt"))
    assert len(list(out.rglob("*_seg.nii.gz"))) == 1


def test_network_of_the_metadata_and_its_export(tmp_path, tiny_weights, monkeypatch):
    monkeypatch.chdir(ROOT)
    configs = {"meta_file": str(ROOT / "configs/metadata.json"), "config_file": str(ROOT / "configs/inference.json")}
    verify_net_in_out("network_def", device="cpu", **configs)
    verify_net_in_out("network_def", device="cpu", **configs, network_def=TINY_NETWORK)
    exported = tmp_path / "model.ts"
    ckpt_export("network_def", str(exported), str(tiny_weights), **configs, network_def=TINY_NETWORK, use_trace=False)
    packed = torch.rand(2, 3, 64, 32)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(exported)(packed), make_tiny()(packed))


def labelled(folder, *numbers):
    return [
        {kind: f"{folder}/{part}/phantom_0{n}.nii.gz" for kind, part in (("image", "imagesTr"), ("label", "labelsTr"))}
        for n in numbers
    ]


@pytest.fixture
def partly_labelled(tmp_path, phantom_dir):
    """Two labelled scans and two without a label, in a folder whose name configs cannot hold."""
    root = tmp_path / "set #1 of 'ä' @home $x"
    shutil.copytree(phantom_dir, root)
    shutil.rmtree(root / "imagesTs")
    for number in (1, 4):
        (root / f"labelsTr/phantom_0{number}.nii.gz").unlink()
    return root


def test_all_labelled_scans_are_the_support_and_keep_their_labels(run_config, partly_labelled, caplog):
    with caplog.at_level("INFO"):
        out = run_config("inference", dataset_dir=str(partly_labelled), num_supports=1)
    assert sorted(path.parent.name for path in out.glob("*/*_seg.nii.gz")) == ["phantom_01", "phantom_04"]
    lines = [record.getMessage() for record in caplog.records]
    assert (
        "support: 2 labelled scans, phantom_02.nii.gz, phantom_03.nii.gz; for each query and label, the 1 most similar "
        "to it (num_supports)"
    ) in lines
    described = [line for line in lines if line.startswith("support phantom_")]
    assert len(described) == 2
    assert all(" mL, " in line for line in described)
    caplog.clear()
    with caplog.at_level("INFO"):
        run_config("inference", dataset_dir=str(partly_labelled), num_supports=1)
    assert not [record for record in caplog.records if record.getMessage() == "segmented"]


def test_supports_that_show_no_wanted_label_are_left_aside(run_config, partly_labelled):
    support = labelled(partly_labelled, 2, 3)
    for entry, value in zip(support, (1, 2)):
        file = nib.load(entry["label"])
        label = np.asarray(file.dataobj)
        save_nifti(Path(entry["label"]), np.where(label == value, label, 0).astype(np.uint8), file.affine)
    out = run_config("inference", dataset_dir=str(partly_labelled), labels=[1])
    both = {int(v) for p in out.glob("*/*_seg.nii.gz") for v in np.unique(np.asarray(nib.load(p).dataobj))}
    assert both <= {0, 1}
    alone = run_config("inference", dataset_dir=str(partly_labelled), support=support[:1], output_dir=str(out) + "1")
    for path in out.glob("*/*_seg.nii.gz"):
        np.testing.assert_array_equal(nib.load(path).dataobj, nib.load(alone / path.relative_to(out)).dataobj)
