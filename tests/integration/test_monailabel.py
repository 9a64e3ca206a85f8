"""MONAI Label end to end: a server with the bundle's folder on generated scans."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bundle.data import label_names
from bundle.data.phantom import write_phantom

from ..conftest import ROOT
from .client import NAME, Client

pytestmark = pytest.mark.slow
WEIGHTS = ROOT / "models" / "pretrained" / "efficientnet_lite0_imagenet.pt"


def read(path: Path) -> nib.Nifti1Image:
    return nib.load(path)


def mean_dice(path: Path, truth: Path) -> float:
    pred, true = (np.asarray(read(p).dataobj) for p in (path, truth))
    masks = [(pred == value, true == value) for value in np.unique(true) if value]
    return float(np.mean([2 * (p & t).sum() / (p.sum() + t.sum()) for p, t in masks]))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("phantom"), 5, shape=(96, 96, 16), spacing_mm=(3.4, 3.4, 10.5))


@pytest.fixture(scope="module")
def server(python, data, tmp_path_factory):
    """Client, studies folder and the served copy of the bundle."""
    root = tmp_path_factory.mktemp("server")
    studies, app = root / "studies", root / "app"
    shutil.copytree(data / "imagesTr", studies)
    shutil.copytree(python.parent.parent / "apps" / "monaibundle", app)
    subprocess.run(
        [str(python), "-m", "scripts.export", "monailabel", str(app), "--weights", str(WEIGHTS)], cwd=ROOT, check=True
    )
    bundle = app / "model" / NAME
    short = json.loads((bundle / "configs" / "train.json").read_text())
    short |= {"epoch_length": 8, "val_length": 4, "batch_size": 2}  # a request cannot set these
    (bundle / "configs" / "train.json").write_text(json.dumps(short))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(python), "-m", "monailabel.main", "start_server", "--app", str(app), "--studies", str(studies)]
    command += ["--conf", "models", NAME, "--conf", "zoo_source", "local", "--conf", "sam2", "false"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with open(root / "server.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=root)
    try:
        client = Client(port)
        client.wait(300, lambda: process.poll() is None)
        yield client, studies, bundle
    finally:
        process.terminate()
        process.wait(30)
        print((root / "server.log").read_text()[-4000:])


def test_annotate_one_scan_and_every_other_segments_itself(server, data, tmp_path):
    client, studies, bundle = server
    names = list(label_names(data).values())
    cases = [f"phantom_{n:02d}" for n in range(1, 6)]
    labels = {case: data / "labelsTr" / f"{case}.nii.gz" for case in cases}

    status, answer = client.infer("phantom_01")
    assert status == 400
    assert "Label one scan and finish it" in answer["detail"]

    client.finish("phantom_02", labels["phantom_02"], names)
    rest = ["phantom_01", "phantom_04", "phantom_05"]
    first = {}
    for case in rest:
        status, answer = client.infer(case, tmp_path / f"{case}.nii.gz")
        assert status == 200, answer
        assert answer["support"] == ["phantom_02.nii.gz"]
        assert answer["label_values"] == {name: value for value, name in enumerate(names, start=1)}
        assert -1 <= answer["support_fit"] <= 1
        result, image = read(tmp_path / f"{case}.nii.gz"), read(studies / f"{case}.nii.gz")
        assert result.get_data_dtype() == np.uint8
        assert result.shape == image.shape
        np.testing.assert_allclose(result.affine, image.affine, atol=1e-5)
        first[case] = mean_dice(tmp_path / f"{case}.nii.gz", labels[case])
    assert min(first.values()) > 0.3, first

    # three requests at once, then all scans in a batch with two workers: as one by one
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda case: client.infer(case, tmp_path / f"{case}_p.nii.gz"), rest))
    assert [status for status, _ in answers] == [200, 200, 200]
    status, _, content = client.call(
        "POST",
        f"/batch/infer/{NAME}",
        {"images": "all", "run_sync": "true"},
        body={"multi_gpu": False, "max_workers": 2, "device": "cpu"},
    )
    assert status == 200, content
    for case in rest:
        alone = np.asarray(read(tmp_path / f"{case}.nii.gz").dataobj)
        assert np.array_equal(alone, np.asarray(read(tmp_path / f"{case}_p.nii.gz").dataobj))
        assert np.array_equal(alone, np.asarray(read(studies / "labels" / "original" / f"{case}.nii.gz").dataobj))
    assert (studies / "labels" / "original" / "phantom_03.nii.gz").is_file()

    # the second annotator numbers the organs the other way round, and leaves the last one out
    swapped = nib.load(labels["phantom_03"])
    table = np.array([0, *range(len(names), 0, -1)], np.uint8)
    values = table[np.asarray(swapped.dataobj).astype(int)]
    values[values == 1] = 0  # the last name
    nib.save(nib.Nifti1Image(values, swapped.affine), tmp_path / "swapped.nii.gz")
    client.finish("phantom_03", tmp_path / "swapped.nii.gz", names[:-1], list(range(len(names), 1, -1)))
    second = {}
    for case in rest:
        status, answer = client.infer(case, tmp_path / f"{case}_2.nii.gz")
        assert status == 200, answer
        assert answer["support"] == ["phantom_02.nii.gz", "phantom_03.nii.gz"]
        second[case] = mean_dice(tmp_path / f"{case}_2.nii.gz", labels[case])
    assert np.mean(list(second.values())) > np.mean(list(first.values())) - 0.03, (first, second)
    status, answer = client.infer("phantom_01", tmp_path / "asked.nii.gz", {"support": ["phantom_02"]})
    assert answer["support"] == ["phantom_02.nii.gz"]
    assert np.array_equal(
        np.asarray(read(tmp_path / "asked.nii.gz").dataobj), np.asarray(read(tmp_path / "phantom_01.nii.gz").dataobj)
    )
    status, answer = client.infer("phantom_01", params={"support": [{"image": "../a.nii.gz", "label": "../b.nii.gz"}]})
    assert status == 400
    assert "outside of the studies folder" in answer["detail"]

    # train on all scans, labelled or not; the next request uses the new weights
    before = (bundle / "models" / "model.pt").read_bytes()
    status, _, content = client.call(
        "POST", f"/train/{NAME}", {"run_sync": "true"}, body={"max_epochs": 1, "device": "cpu"}
    )
    assert status == 200, content
    assert (bundle / "models" / "model.pt").read_bytes() != before
    status, answer = client.infer("phantom_01", tmp_path / "trained.nii.gz")
    assert status == 200, answer
    assert mean_dice(tmp_path / "trained.nii.gz", labels["phantom_01"]) > 0.3
    maps = [np.asarray(read(tmp_path / name).dataobj) for name in ("trained.nii.gz", "phantom_01_2.nii.gz")]
    assert not np.array_equal(*maps)
