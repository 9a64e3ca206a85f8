"""Cases of any folder: nnU-Net, Medical Segmentation Decathlon, MONAI Label studies, or files as they lie."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .dicom_frames import dicom_files, is_dicom
from .formats import file_stem, is_companion, natural_key, scan_files, scan_suffix, why_not_read
from .look import Look, look_at
from .names import case_title, read_name
from .plain import Item, dicom_items, find_plain_cases
from .source import Case, Found, Options
from .structures import Labelled, number_structures


def find_folder_cases(
    src: Path, exclude: Path | None = None, options: Options | None = None, progress: bool = False
) -> Found:
    """Find the cases of any folder, by the layout that it has.

    Args:
        src: the folder.
        exclude: a folder below it that is none of its content, the result's.
        options: which images and labels to take.
        progress: whether to show a progress bar.

    Raises:
        ValueError: if a ``dataset.json`` or ``datastore_v2.json`` in it is broken.
    """
    options = options or Options()
    dataset = src / "dataset.json"
    content = _read_json(dataset) if dataset.is_file() else {}
    if (src / "imagesTr").is_dir() or (src / "imagesTs").is_dir():
        return _dataset_folder(src, content, options)
    if (src / "labels" / "final").is_dir() or (src / "datastore_v2.json").is_file():
        return _studies_folder(src)
    found = find_plain_cases(src, exclude, options, progress)
    found.label_names = found.label_names or _label_names(content)
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); repair or remove it") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object; repair or remove it")
    return content


def _label_names(dataset: Mapping[str, Any]) -> dict[int, str]:
    """Names of label values from the Decathlon's ``{"1": "liver"}`` or nnU-Net's ``{"liver": 1}``."""
    names = {}
    for key, value in dict(dataset.get("labels") or {}).items():
        pair = (key, value) if str(key).isdigit() else (value, key)
        if str(pair[0]).isdigit() and int(pair[0]) != 0:  # regions of nnU-Net are lists of values: no own value
            names[int(pair[0])] = str(pair[1])
    return dict(sorted(names.items()))


def _scans_in(folder: Path, aside: list[tuple[str, str]]) -> dict[str, Item]:
    """The scans or labels of a folder, files and DICOM series, by the names of their cases."""
    if not folder.is_dir():
        return {}
    scans: dict[str, Item] = {}
    for path in scan_files(folder):
        if file_stem(path) in scans:
            other = scans[file_stem(path)].path.name
            aside.append((f"{folder.name}/{path.name}", f"has the name of {other}; rename one of them"))
        else:
            scans[file_stem(path)] = Item(path, path.relative_to(folder), read_name(path.relative_to(folder)))
    files = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".") and p not in scan_files(folder)]
    for path in sorted(files, key=natural_key):
        if not is_dicom(path) and not is_companion(path):
            aside.append((f"{folder.name}/{path.name}", why_not_read(path)))
    below = [folder, *sorted((p for p in folder.rglob("*") if p.is_dir()), key=natural_key)]
    away: list[tuple[str, str]] = []
    for item in dicom_items(folder, [path for place in below for path in dicom_files(place)], away):
        relative = item.relative if item.header is None else item.relative.with_suffix("")
        scans[case_title(relative) or folder.name] = item
    aside += [(f"{folder.name}/{file}", reason) for file, reason in away]
    return scans


def _dataset_folder(src: Path, dataset: Mapping[str, Any], options: Options) -> Found:
    """A Decathlon or nnU-Net folder: ``imagesTr``, ``labelsTr``, maybe ``imagesTs``, ``dataset.json``."""
    aside: list[tuple[str, str]] = []
    notes: list[str] = []
    images = {subset: _scans_in(src / f"images{subset}", aside) for subset in ("Tr", "Ts")}
    labels = {subset: _scans_in(src / f"labels{subset}", aside) for subset in ("Tr", "Ts")}
    both = {**images["Tr"], **images["Ts"]}
    numbered = bool(both) and all(re.search(r"_\d{4}$", name) for name in both)
    nnunet = "channel_names" in dataset or (numbered and not any(name in labels["Tr"] for name in images["Tr"]))
    if options.label is not None or (options.image is not None and not nnunet):
        raise ValueError(f"{src}: holds one image and label a case by its layout; leave --image and --label out")
    wanted = str(options.image or 0).zfill(4)
    every = [label for group in labels.values() for label in group.values()]
    with_segments = any(label.header is not None or scan_suffix(label.path) == ".seg.nrrd" for label in every)
    labelled = []
    for subset in ("Tr", "Ts"):
        extra = 0
        truth = labels[subset]
        for name, image in images[subset].items():
            if nnunet:
                name, _, channel = name.rpartition("_")
                if channel != wanted:
                    extra += 1
                    continue
            label = truth.pop(name, None)
            expected = src / f"labels{subset}" / f"{name}.nii.gz"
            labelled.append(
                Labelled(
                    Case(name, image.path, None, expected, subset, series=image.series),
                    [] if label is None else [(label.path, "", look_at(label.path) if with_segments else Look())],
                )
            )
        if extra:
            notes.append(
                f"images{subset}: {extra} files of further channels are left aside, channel {wanted} is taken; "
                "--image 0001 takes another"
            )
        for item in truth.values():
            stem = file_stem(item.path)
            reason = f"a label without an image; expected {stem}{'_0000' * nnunet}.nii.gz in images{subset}"
            aside.append((f"labels{subset}/{item.path.name}", reason))
    others = (path for path in src.iterdir() if path.is_dir() and re.fullmatch(r"(?i)images.+", path.name))
    reason = "not read, only imagesTr and imagesTs are; prepare it as a folder of its own"
    aside += [(f"{path.name}/", reason) for path in sorted(others) if path.name not in ("imagesTr", "imagesTs")]
    aside += [(path.name, "lies outside of imagesTr and imagesTs; move it there") for path in scan_files(src)]
    layout = "nnU-Net" if nnunet else "Medical Segmentation Decathlon"
    cases, names = number_structures([item for item in labelled if item.labels], notes, _label_names(dataset))
    done = {(case.subset, case.name): case for case in cases}
    return Found([done.get((i.case.subset, i.case.name), i.case) for i in labelled], names, notes, layout, aside)


def _studies_folder(src: Path) -> Found:
    """A MONAI Label studies folder: images in it, finished labels in ``labels/final``.

    The number of a structure differs from label to label there, so names decide where ``datastore_v2.json`` has them.
    """
    file = src / "datastore_v2.json"
    objects = _read_json(file).get("objects", {}) if file.is_file() else {}
    values: dict[str, int] = {}
    maps: dict[str, tuple[tuple[int, int], ...]] = {}
    for name in sorted(objects, key=natural_key):
        info = objects[name].get("labels", {}).get("final", {}).get("info", {}).get("label_info") or []
        pairs = []
        for item in info:
            label_name, value = str(item.get("name", "")).strip().lower(), item.get("idx")
            if label_name and label_name != "background" and isinstance(value, int) and value > 0:
                pairs.append((value, values.setdefault(label_name, len(values) + 1)))
        maps[name] = tuple(pairs)
    if len({m for m in maps.values() if m}) == 1:  # all labels agree: their own values stay
        values = {k: v for v, k in _own_names(maps, values).items()}
        maps = {}
    labels = {file_stem(p): p for p in scan_files(src / "labels" / "final")}
    cases = []
    for image in scan_files(src):
        name = file_stem(image)
        label = src / "labels" / "final" / image.name
        cases.append(Case(name, image, labels.get(name), label, label_map=maps.get(name, ())))
    names = {value: name for name, value in values.items()}
    if not names and (src / "dataset.json").is_file():
        names = _label_names(_read_json(src / "dataset.json"))
    return Found(cases, names, layout="MONAI Label studies")


def _own_names(maps: Mapping[str, tuple[tuple[int, int], ...]], values: Mapping[str, int]) -> dict[int, str]:
    names = {value: name for name, value in values.items()}
    return {source: names[target] for source, target in next(m for m in maps.values() if m)}
