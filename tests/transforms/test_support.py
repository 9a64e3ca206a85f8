from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from bundle.transforms import AnswerQualityd, SelectSupport, SelectSupportd
from bundle.transforms.support import renumber

from ..conftest import volume
from ..integration.studies import make_studies

INFO = [{"name": name, "idx": value} for value, name in enumerate(["liver", "rk", "lk", "spleen", "x", "y"], start=1)]


@pytest.fixture
def studies(tmp_path, phantom_dir, monkeypatch):
    monkeypatch.delenv("MONAI_LABEL_STUDIES", raising=False)
    return make_studies(tmp_path / "studies", phantom_dir, {"phantom_01": INFO, "phantom_02": INFO})


@pytest.fixture
def default(phantom_dir):
    return [{"image": "imagesTr/phantom_04.nii.gz", "label": "labelsTr/phantom_04.nii.gz"}]


def names(entries):
    return [entry["image"].rsplit("/", 1)[-1].split(".")[0] for entry in entries]


def test_the_request_comes_first(studies, default, phantom_dir):
    select = SelectSupport(default, phantom_dir)
    assert names(select(studies / "phantom_03.nii.gz", "phantom_02")[0]) == ["phantom_02"]
    assert names(select(studies / "phantom_03.nii.gz", ["phantom_02", "phantom_01"])[0]) == ["phantom_02", "phantom_01"]
    assert names(select(studies / "phantom_03.nii.gz", "phantom_02, phantom_01")[0]) == ["phantom_02", "phantom_01"]


def test_a_request_may_name_files_of_the_studies_folder(studies):
    request = [{"image": "phantom_01.nii.gz", "label": "labels/final/phantom_01.nii.gz"}]
    for form in (request, json.dumps(request), request[0]):
        entries, labels = SelectSupport()(studies / "phantom_03.nii.gz", form)
        assert entries[0]["label"] == str(studies / "labels" / "final" / "phantom_01.nii.gz")
        assert labels["label 1"] == 1


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ("phantom_04", "no finished label"),
        ([{"image": "phantom_01.nii.gz", "label": "../../secret.nii.gz"}], "outside of the studies folder"),
        ([{"image": "/etc/hostname", "label": "labels/final/phantom_01.nii.gz"}], "outside of the studies folder"),
        ([{"image": "phantom_01.nii.gz"}], "'image' and 'label'"),
    ],
)
def test_a_request_reads_nothing_else(studies, request_, message):
    with pytest.raises(ValueError, match=message):
        SelectSupport()(studies / "phantom_03.nii.gz", request_)


def test_all_finished_labels_but_the_querys_own(studies, default, phantom_dir):
    select = SelectSupport(default, phantom_dir)
    entries, labels = select(studies / "phantom_03.nii.gz")
    assert names(entries) == ["phantom_01", "phantom_02"]
    assert labels["liver"] == 1
    assert names(select(studies / "phantom_01.nii.gz")[0]) == ["phantom_02"]


def draw(studies, case, tag, slices, ts=5.0):
    """Leave a label of a case that shows some slices alone."""
    index = json.loads((studies / "datastore_v2.json").read_text())
    source = nib.load(studies.parent / "truth" / f"{case}.nii.gz")
    whole = np.asarray(source.dataobj).copy()
    whole[..., [z for z in range(whole.shape[2]) if z not in slices]] = 0
    (studies / "labels" / tag).mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(whole, source.affine), studies / "labels" / tag / f"{case}.nii.gz")
    index["objects"][case]["labels"][tag] = {"ext": ".nii.gz", "info": {"label_info": INFO, "ts": ts}}
    (studies / "datastore_v2.json").write_text(json.dumps(index))


def test_an_unfinished_label_of_the_very_scan_counts_first_with_its_labelled_slices(studies, phantom_dir, tmp_path):
    shutil.copytree(phantom_dir / "labelsTr", tmp_path / "truth")
    query = studies / "phantom_03.nii.gz"
    depth = nib.load(query).shape[2]
    draw(studies, "phantom_03", "unfinished", range(0, depth, 2))
    entries, labels = SelectSupport()(query)
    assert names(entries) == ["phantom_03", "phantom_01", "phantom_02"]
    assert [entry.get("slices") for entry in entries] == ["labelled", None, None]
    assert "labels/unfinished/" in entries[0]["label"]
    assert labels["liver"] == 1
    assert names(SelectSupport()(studies / "phantom_04.nii.gz")[0]) == ["phantom_01", "phantom_02"]
    assert names(SelectSupport()(query, "phantom_01")[0]) == ["phantom_01"]
    draw(studies, "phantom_03", "later", [1, 3], ts=9.0)
    assert "labels/later/" in SelectSupport()(query, "phantom_03")[0][0]["label"]
    draw(studies, "phantom_04", "original", range(depth))  # what the server made is nobody's label
    assert names(SelectSupport()(studies / "phantom_04.nii.gz")[0]) == ["phantom_01", "phantom_02"]


def test_a_finished_label_of_single_slices_is_completed_and_a_whole_one_only_when_it_is_asked_for(
    studies, phantom_dir, tmp_path
):
    shutil.copytree(phantom_dir / "labelsTr", tmp_path / "truth")
    query = studies / "phantom_01.nii.gz"
    assert names(SelectSupport()(query)[0]) == ["phantom_02"]
    entries, _ = SelectSupport()(query, ["phantom_01", "phantom_02"])
    assert [entry.get("slices") for entry in entries] == ["labelled", None]
    draw(studies, "phantom_01", "final", range(1, nib.load(query).shape[2], 3))
    entries, _ = SelectSupport()(query)
    assert [(name, entry.get("slices")) for name, entry in zip(names(entries), entries)] == [
        ("phantom_01", "labelled"),
        ("phantom_02", None),
    ]


def test_an_uploaded_scan_uses_the_servers_studies(studies, phantom_dir, monkeypatch):
    upload = phantom_dir / "imagesTs" / "phantom_05.nii.gz"
    with pytest.raises(ValueError, match="Label one scan and finish it"):
        SelectSupport()(upload)
    monkeypatch.setenv("MONAI_LABEL_STUDIES", str(studies))
    assert names(SelectSupport()(upload)[0]) == ["phantom_01", "phantom_02"]


def test_the_default_comes_last(studies, default, phantom_dir, tmp_path):
    elsewhere = phantom_dir / "imagesTr" / "phantom_03.nii.gz"
    assert names(SelectSupport(default, phantom_dir)(elsewhere)[0]) == ["phantom_04"]
    off = SelectSupport(default, phantom_dir, finished_labels=False)
    assert names(off(studies / "phantom_03.nii.gz")[0]) == ["phantom_04"]


def test_without_any_support_the_annotator_reads_what_to_do(studies):
    (studies / "datastore_v2.json").unlink()
    with pytest.raises(ValueError, match="Label one scan and finish it"):
        SelectSupport()(studies / "phantom_03.nii.gz")
    with pytest.raises(ValueError, match="lies in no studies folder"):
        SelectSupport()(studies / "phantom_03.nii.gz", "phantom_01")


def test_the_choice_goes_into_the_meta_data(studies):
    image = volume(np.zeros((4, 4, 2)), filename_or_obj=str(studies / "phantom_03.nii.gz"))
    out = SelectSupportd()({"image": image, "support": "phantom_02"})
    assert names(json.loads(out["image"].meta["support"])) == ["phantom_02"]
    assert "support" not in image.meta  # the input stays as it was
    assert "result" not in out  # only a request to MONAI Label gets one
    out = SelectSupportd()({"image": image, "image_path": str(studies / "phantom_01.nii.gz"), "result": {"a": 1}})
    assert out["result"]["support"] == ["phantom_02.nii.gz"]
    assert out["result"]["label_values"]["spleen"] == 4
    assert out["result"]["a"] == 1


def test_what_tells_how_far_to_trust_goes_into_the_answer_of_a_request(caplog):
    meta = {
        "support_similarity": np.array([0.6]),
        "reverse_dice": np.array([[0.8, 0.25]]),
        "label_values": np.array([[1, 4]]),
        "support_sides_mm": np.array([[[4.0, 4.0, 2.0], [4.0, 4.0, 2.0]]]),
    }
    item = {"pred": volume(np.full((4, 4, 2), 1), **meta), "image_path": "scans/x.nii.gz"}
    answer = AnswerQualityd(names={4: "spleen"})(item)["result"]
    assert answer["support_similarity"] == 0.6
    assert answer["reverse_dice"] == {"label 1": 0.8, "spleen": 0.25}
    assert answer["expected_dice"] == {"label 1": [88.7, 78.9, 94.3], "spleen": [6.1, 3.0, 11.9]}
    assert answer["warning"] == "look at these labels, expected Dice below 60: spleen 6 (3-12)"
    assert [record.message for record in caplog.records] == [f"x.nii.gz: {answer['warning']}"]
    answer = AnswerQualityd()({**item, "result": {"support": ["a"], "label_values": {"liver": 1, "milt": 4}}})["result"]
    assert answer["support"] == ["a"]
    assert answer["reverse_dice"] == {"liver": 0.8, "milt": 0.25}
    assert "warning" not in AnswerQualityd(warn_expected_dice_below=4)(item)["result"]
    assert not {"expected_dice", "warning"} & set(AnswerQualityd(expected_dice=None)(item)["result"])
    assert "result" not in AnswerQualityd()({"pred": item["pred"]})
    item["pred"] = volume(np.zeros((4, 4, 2)))
    assert "result" not in AnswerQualityd()(item)


ORGANS = {"liver": 1, "rk": 2, "lk": 3, "spleen": 4}


@pytest.mark.parametrize(
    ("names", "numbers", "expected"),
    [
        (ORGANS, {}, ORGANS),
        (ORGANS, {"liver": 1, "spleen": 2}, {"liver": 1, "spleen": 2, "lk": 3, "rk": 4}),
        ({"spleen": 1}, {"liver": 1, "spleen": 2}, {"spleen": 2}),
        ({"rk": 1, "lk": 2}, {"liver": 1, "spleen": 2}, {"rk": 3, "lk": 4}),  # what is listed is nobody else's
        ({"Liver": 7, "x": 1}, {" liver ": 2}, {"x": 1, "Liver": 2}),
        ({"a": 300}, {"b": 1}, {"a": 300}),
    ],
    ids=["no list", "a part is listed", "one of the list", "none of the list", "upper case", "large value"],
)
def test_names_have_the_values_that_the_app_lists(names, numbers, expected):
    assert renumber(names, numbers) == expected
    assert list(renumber(names, numbers).values()) == sorted(expected.values())


@pytest.mark.parametrize("labels", [None, ["spleen"], "spleen", "Spleen, liver", '["liver", 2]', [1, "2"], 2, "2"])
@pytest.mark.parametrize("numbers", [{}, {"liver": 1, "spleen": 2}, {"spleen": 1}], ids=["no list", "two", "one"])
def test_a_request_asks_for_labels_by_name_or_by_value(studies, labels, numbers):
    entries, found = SelectSupport(numbers=numbers)(studies / "phantom_03.nii.gz", labels=labels)
    everything = SelectSupport(numbers=numbers)(studies / "phantom_03.nii.gz")[1]
    assert set(everything) == {"liver", "rk", "lk", "spleen"}
    assert found.items() <= everything.items()
    assert numbers.items() <= everything.items()
    if labels is not None:
        asked = json.loads(labels) if str(labels).startswith('["') else labels
        asked = asked.split(",") if isinstance(asked, str) else asked if isinstance(asked, list) else [asked]
        asked = {str(item).strip().lower() for item in asked}
        assert set(found) == {name for name, value in everything.items() if {name, str(value)} & asked}
    original = {str(value): name for name, value in ORGANS.items()}
    for entry in entries:  # each value of the file goes to the value of its own name
        assert {original[old]: new for old, new in entry["values"].items()} == found


def test_labels_that_nobody_labelled_are_refused_in_one_line(studies):
    with pytest.raises(ValueError, match=r"labels \['aorta', '9'\]: no support shows them; there are {'liver': 1"):
        SelectSupport()(studies / "phantom_03.nii.gz", labels="aorta, liver, 9")


def test_the_configured_support_is_numbered_as_the_app_lists(default, phantom_dir):
    image = phantom_dir / "imagesTr" / "phantom_03.nii.gz"
    names = {1: "liver", 2: "rk", 3: "lk", 4: "spleen"}
    entries, found = SelectSupport(default, phantom_dir, numbers={"spleen": 1}, names=names)(image)
    assert entries[0]["values"]["4"] == found["spleen"] == 1
    assert len(set(found.values())) == 4
    entries, found = SelectSupport(default, phantom_dir, names=names)(image, labels="spleen")
    assert entries[0]["values"] == {"4": 4}
    assert found == {"spleen": 4}
    assert "values" not in SelectSupport(default, phantom_dir, names=names)(image)[0][0]  # as it always was


@pytest.mark.parametrize("shown", [(1, 4), (4,), ()], ids=["both", "one is absent", "nothing"])
def test_names_of_an_answer_are_those_of_its_label_map_for_clients_that_count(shown):
    label_map = np.zeros((4, 4, 2))
    label_map.flat[: len(shown)] = shown
    item = {"pred": volume(label_map, label_values=np.array([[4, 1]])), "image_path": "x.nii.gz"}
    for known in ({}, {"label_values": {"liver": 1, "spleen": 4}}):
        answer = AnswerQualityd(names={1: "liver", 4: "spleen"})({**item, "result": known})["result"]
        answer["label_names"] = {"liver": 1, "spleen": 2}  # as MONAI Label does with the names that it was started with
        answer["latencies"] = {}
        assert answer["label_values"] == {"liver": 1, "spleen": 4}
        assert list(answer["label_names"].values()) == list(shown)
        assert answer["label_names"].items() <= answer["label_values"].items()
        assert json.loads(json.dumps(answer))["label_names"] == answer["label_names"]
        assert "latencies" in answer
