"""MONAI Label end to end: a server with the bundle's folder on generated scans."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bundle.data import label_names
from bundle.data.phantom import write_phantom
from scripts.next_sample import next_sample

from ..conftest import ROOT
from .client import NAME, make_app, serve
from .measure import mean_dice, renumber

pytestmark = pytest.mark.slow
WEIGHTS = ROOT / "models" / "pretrained" / "efficientnet_lite0_imagenet.pt"


def read(path: Path) -> nib.Nifti1Image:
    return nib.load(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("phantom"), 5, shape=(96, 96, 16), spacing_mm=(3.4, 3.4, 10.5))


@pytest.fixture(scope="module")
def server(python, data, tmp_path_factory):
    """Client, studies folder and the served copy of the bundle."""
    root = tmp_path_factory.mktemp("server")
    studies = shutil.copytree(data / "imagesTr", root / "studies")
    app = make_app(python, root / "app", WEIGHTS, {"epoch_length": 8, "val_length": 4, "batch_size": 2})
    try:
        with serve(python, app, studies, root / "server.log") as client:
            yield client, studies, app / "model" / NAME
    finally:
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
        assert -1 <= answer["support_similarity"] <= 1
        assert list(answer["reverse_dice"]) == names
        result, image = read(tmp_path / f"{case}.nii.gz"), read(studies / f"{case}.nii.gz")
        assert result.get_data_dtype() == np.uint8
        assert result.shape == image.shape
        np.testing.assert_allclose(result.affine, image.affine, atol=1e-5)
        first[case] = mean_dice(tmp_path / f"{case}.nii.gz", labels[case])
    assert min(first.values()) > 30, first

    # a scan of which three slices are labelled is completed, with the help of the finished one
    drawn = nib.load(labels["phantom_04"])
    some = np.asarray(drawn.dataobj).copy()
    shown = np.flatnonzero(some.any(axis=(0, 1)))
    kept = shown[[len(shown) // 4, len(shown) // 2, 3 * len(shown) // 4]]
    some[..., np.setdiff1d(np.arange(some.shape[2]), kept)] = 0
    nib.save(nib.Nifti1Image(some, drawn.affine), tmp_path / "some.nii.gz")
    client.finish("phantom_04", tmp_path / "some.nii.gz", names, tag="unfinished")
    status, answer = client.infer("phantom_04", tmp_path / "completed.nii.gz")
    assert status == 200, answer
    assert answer["support"] == ["phantom_04.nii.gz", "phantom_02.nii.gz"]
    assert answer["next_slice"] in set(range(some.shape[2])) - set(kept.tolist())
    completed = np.asarray(read(tmp_path / "completed.nii.gz").dataobj)
    whole = np.isin(completed[..., kept], [0, *np.unique(some[some > 0])])
    assert np.array_equal(np.where(whole, completed[..., kept], 0), some[..., kept])
    assert mean_dice(tmp_path / "completed.nii.gz", labels["phantom_04"]) > first["phantom_04"]
    shutil.rmtree(studies / "labels" / "unfinished")  # as if it had never been drawn

    # three requests at once, then all scans in a batch with two workers: as one by one
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda case: client.infer(case, tmp_path / f"{case}_p.nii.gz"), rest))
    assert [status for status, _ in answers] == [200, 200, 200]
    client.batch(workers=2)
    for case in rest:
        alone = np.asarray(read(tmp_path / f"{case}.nii.gz").dataobj)
        assert np.array_equal(alone, np.asarray(read(tmp_path / f"{case}_p.nii.gz").dataobj))
        assert np.array_equal(alone, np.asarray(read(studies / "labels" / "original" / f"{case}.nii.gz").dataobj))
    assert (studies / "labels" / "original" / "phantom_03.nii.gz").is_file()
    listed = [line.split("\t") for line in next_sample(str(studies)).splitlines()]
    assert {case for case, *_ in listed} == {*rest, "phantom_03"}
    assert [float(mean) for _, mean, _ in listed] == sorted(float(mean) for _, mean, _ in listed)

    # the second annotator numbers the organs the other way round, and leaves the last one out
    renumber(labels["phantom_03"], tmp_path / "swapped.nii.gz", [0, 4, 3, 2, 0])
    client.finish("phantom_03", tmp_path / "swapped.nii.gz", names[:-1], list(range(len(names), 1, -1)))
    second = {}
    for case in rest:
        status, answer = client.infer(case, tmp_path / f"{case}_2.nii.gz")
        assert status == 200, answer
        assert answer["support"] == ["phantom_02.nii.gz", "phantom_03.nii.gz"]
        second[case] = mean_dice(tmp_path / f"{case}_2.nii.gz", labels[case])
    assert np.mean(list(second.values())) > np.mean(list(first.values())) - 3, (first, second)
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
    client.train(epochs=1)
    assert (bundle / "models" / "model.pt").read_bytes() != before
    status, answer = client.infer("phantom_01", tmp_path / "trained.nii.gz")
    assert status == 200, answer
    assert mean_dice(tmp_path / "trained.nii.gz", labels["phantom_01"]) > 30
    maps = [np.asarray(read(tmp_path / name).dataobj) for name in ("trained.nii.gz", "phantom_01_2.nii.gz")]
    assert not np.array_equal(*maps)


def shown_by_position(answer: dict, path: Path) -> dict[str, int]:
    """What a client shows that names the values of a label map one after the other, as 3D Slicer does."""
    values = [int(value) for value in np.unique(np.asarray(read(path).dataobj)) if value > 0]
    return dict(zip(answer["label_names"], values, strict=True))


def test_names_and_values_agree_in_every_answer(python, data, tmp_path):
    """An app that offers two organs in an order of its own, and a support that shows four in another."""
    studies = shutil.copytree(data / "imagesTr", tmp_path / "studies")
    app = make_app(python, tmp_path / "app", WEIGHTS, labels="spleen,liver")
    names = list(label_names(data).values())
    places = {name: value for value, name in enumerate(names, start=1)}
    with serve(python, app, studies, tmp_path / "server.log") as client:
        client.finish("phantom_02", data / "labelsTr" / "phantom_02.nii.gz", names)
        everything = None
        for number, params in enumerate(
            [{}, {"labels": ["spleen"]}, {"labels": "spleen,liver"}, {"labels": [1]}, {"labels": "2,right kidney"}]
        ):
            path = tmp_path / f"{number}.nii.gz"
            status, answer = client.infer("phantom_04", path, params)
            assert status == 200, answer
            everything = everything or answer["label_values"]
            assert set(everything) == set(names)
            assert (everything["spleen"], everything["liver"]) == (1, 2)  # as the app offers them
            asked = params.get("labels", names)
            asked = {str(item) for item in (asked.split(",") if isinstance(asked, str) else asked)}
            wanted = {name: value for name, value in everything.items() if asked & {name, str(value)}}
            assert answer["label_values"] == wanted
            assert answer["label_names"].items() <= wanted.items()
            shown = shown_by_position(answer, path)
            assert shown == answer["label_names"]
            truth = np.asarray(read(data / "labelsTr" / "phantom_04.nii.gz").dataobj)
            found = np.asarray(read(path).dataobj)
            for name, value in shown.items():  # what is called spleen is the spleen
                overlaps = {organ: int(((found == value) & (truth == places[organ])).sum()) for organ in names}
                assert max(overlaps, key=overlaps.__getitem__) == name
        status, answer = client.infer("phantom_04", params={"labels": "aorta"})
        assert status == 400
        assert "no support shows them" in answer["detail"]
