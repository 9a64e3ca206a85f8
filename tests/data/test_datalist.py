from __future__ import annotations

import json

import pytest

from bundle.data import (
    case_name,
    check_dataset,
    dataset_modality,
    held_out,
    label_names,
    label_values,
    list_images,
    make_datalist,
    select_cases,
    spread,
)


@pytest.fixture
def folder(tmp_path):
    """Three images, two labelled, and files that are no images."""
    for name in ("imagesTr/b.nii.gz", "imagesTr/a 1.nii", "imagesTr/ü.nii.gz", "labelsTr/b.nii.gz", "labelsTr/a 1.nii",
                 "imagesTr/notes.txt", "imagesTr/._b.nii.gz", "imagesTr/c.nii.gz.tmp"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_images_come_sorted_with_the_labels_there_are(folder):
    entries = make_datalist(folder)
    assert [case_name(entry["image"]) for entry in entries] == ["a 1", "b", "ü"]
    assert [entry.get("label", "").replace(str(folder), "") for entry in entries] == [
        "/labelsTr/a 1.nii",
        "/labelsTr/b.nii.gz",
        "",
    ]


def test_images_may_lie_in_the_folder_itself(folder):
    entries = make_datalist(folder / "imagesTr")
    assert [set(entry) for entry in entries] == [{"image"}] * 3


def test_no_folder_is_an_empty_list_but_an_error_when_asked_for_its_images(tmp_path):
    assert make_datalist(tmp_path / "absent") == []
    assert make_datalist(tmp_path) == []
    with pytest.raises(FileNotFoundError, match="absent: no such folder of images; check dataset_dir"):
        list_images(tmp_path / "absent")


@pytest.mark.parametrize(
    ("path", "name"), [("/d/a.nii.gz", "a"), ("a.b.nii", "a.b"), ("x.nii.gz.nii.gz", "x.nii.gz"), ("plain", "plain")]
)
def test_case_names(path, name):
    assert case_name(path) == name


@pytest.mark.parametrize(
    "labels",
    [{"0": "background", "1": "liver", "12": "left kidney"}, {"background": 0, "liver": 1, "left kidney": 12}],
    ids=["Decathlon", "nnU-Net"],
)
def test_label_names_of_both_layouts(tmp_path, labels):
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert label_names(tmp_path) == {1: "liver", 12: "left kidney"}


def test_label_names_without_a_file_or_without_labels(tmp_path):
    assert label_names(tmp_path) == {}
    (tmp_path / "dataset.json").write_text("{}")
    assert label_names(tmp_path) == {}


@pytest.mark.parametrize(
    "text", ['{"labels": ["liver"]}', '{"labels": {"liver": "one"}}', "{", "[]", '{"labels": {"region": [1, "x"]}}']
)
def test_label_names_that_are_no_map_are_an_error(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match=r"dataset.json: 'labels' must map values to names"):
        label_names(tmp_path)


def test_selection_is_by_name_and_in_order(folder):
    entries = make_datalist(folder)
    assert select_cases(entries, ["ü", "b"]) == [entries[2], entries[1]]
    with pytest.raises(KeyError, match=r"no such case: \['z'\]; there are \['a 1', 'b', 'ü'\]"):
        select_cases(entries, ["b", "z"])


@pytest.mark.parametrize(
    ("scans", "fraction", "count"),
    [(20, 0.1, 2), (20, 0.0, 0), (3, 0.1, 1), (1, 0.1, 1), (0, 0.1, 0), (20, 1.0, 20), (25, 0.3, 8)],
)
def test_number_of_held_out_scans(scans, fraction, count):
    datalist = [{"image": f"{i}"} for i in range(scans)]
    chosen = held_out(datalist, fraction)
    assert len(chosen) == count
    assert all(entry in datalist for entry in chosen)
    assert len({entry["image"] for entry in chosen}) == count


def test_held_out_scans_depend_on_the_seed_alone():
    datalist = [{"image": f"{i}"} for i in range(40)]
    assert held_out(datalist, 0.2, seed=1) == held_out(datalist, 0.2, seed=1)
    assert held_out(datalist, 0.2, seed=1) != held_out(datalist, 0.2, seed=2)
    assert len({held_out(datalist, 0.02, seed=s)[0]["image"] for s in range(30)}) > 8


def test_spread_takes_middles():
    assert spread(range(9), 3) == [1, 4, 7]
    assert spread([5, 6], 4) == [5, 6]
    assert spread("abcd", 2) == ["b", "d"]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ({"background": 0, "kidneys": [2, 3], "liver": 1}, {1: "liver", 2: "kidneys 2", 3: "kidneys 3"}),
        (
            {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3},
            {1: "whole", 2: "core", 3: "enhancing"},
        ),
    ],
    ids=["two organs of one name", "nested"],
)
def test_regions_of_nnunet_name_their_values(tmp_path, labels, names):
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert label_names(tmp_path) == names


@pytest.mark.parametrize(
    ("description", "modality"),
    [
        ({"modality": {"0": "CT"}}, "ct"),
        ({"modality": {"0": "MR T2-SPIR"}}, "mr"),
        ({"channel_names": {"0": "T1", "1": "T2"}}, "mr"),
        ({"modality": {"0": "CT and MR"}}, "auto"),
        ({"channel_names": {"0": "noNorm"}}, "auto"),
        ({}, "auto"),
    ],
    ids=str,
)
def test_modality_is_what_the_data_set_says(tmp_path, description, modality):
    assert dataset_modality(tmp_path) == "auto"
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    assert dataset_modality(tmp_path) == modality


def test_numbers_in_names_count_as_numbers(tmp_path):
    names = [
        "s10.nii.gz",
        "s2.nii.gz",
        "s02.nii.gz",
        "a.nii.gz",
        "B.nii",
        "s1_t10.nii.gz",
        "s1_t9.nii.gz",
        "s1.nii.gz",
        "7.nii.gz",
    ]
    for name in names:
        (tmp_path / name).touch()
    expected = ["7", "a", "B", "s1", "s1_t9", "s1_t10", "s02", "s2", "s10"]
    assert [case_name(path) for path in list_images(tmp_path)] == expected
    assert [case_name(entry["image"]) for entry in make_datalist(tmp_path)] == expected


NAMES = {1: "liver", 2: "right kidney", 4: "Spleen"}


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        (None, None), (False, None), ([], None), ("liver", [1]), (["spleen", "liver"], [4, 1]), (("liver", 2), [1, 2]),
        (3, [3]), ("3", [3]), ([2.0], [2]), ("RIGHT KIDNEY", [2]), ([" liver "], [1]), ({1}, [1]),
    ],
)  # fmt: skip
def test_labels_by_value_and_by_name(labels, values):
    assert label_values(labels, NAMES) == values


@pytest.mark.parametrize("label", [0, -1, 1.5, True, "0"])
def test_what_is_no_label_is_refused(label):
    with pytest.raises(ValueError, match="a label must be a name or a whole number above 0"):
        label_values([label], NAMES)


def test_an_unknown_name_is_refused_with_the_names():
    with pytest.raises(ValueError, match=r"no label is called 'lung'; there are liver \(1\), .*, Spleen \(4\)"):
        label_values(["liver", "lung"], NAMES)
    with pytest.raises(ValueError, match="no label is called 'liver'; dataset.json.* give values"):
        label_values("liver", {})


def test_each_wrong_data_set_has_its_own_line(tmp_path):
    (tmp_path / "file.nii.gz").touch()
    for name in ("empty", "other", "bare/imagesTr", "good/imagesTs", "loose"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("other/notes.txt", "good/imagesTs/a.nii", "loose/a.nii.gz"):
        (tmp_path / name).touch()
    for name, message in (
        ("missing", "missing: no such folder; set dataset_dir"),
        ("file.nii.gz", "file.nii.gz: dataset_dir must be a folder, not a file"),
        ("empty", "empty: the folder is empty; put images into"),
        ("other", "other: no folder imagesTr and no NIfTI files"),
        ("bare", "bare/imagesTr: no images; put NIfTI files"),
        ("good/imagesTs", "good/imagesTs: this is a part of a data set; give the folder above it, .*good$"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            check_dataset(tmp_path / name)
    check_dataset(tmp_path / "good")
    check_dataset(tmp_path / "loose")
