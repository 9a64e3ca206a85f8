"""Cases of any folder: nnU-Net, Medical Segmentation Decathlon, MONAI Label studies, or files as they lie."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..datalist import SUFFIXES, case_name
from .read import is_dicom, natural_key
from .source import Case, Found

LABEL_WORD = r"(?:labels?|segs?|segmentations?|masks?|gt|groundtruth|ground_truth|manual|annotations?)"
IMAGE_WORD = r"(?:images?|img|imgs|scans?|volumes?|vol)"
LABEL_STEM = re.compile(rf"^(?:{LABEL_WORD}[-_.]?(?=\d|$)|{LABEL_WORD}[-_.]|(.*)[-_.]{LABEL_WORD}$)", re.IGNORECASE)
IMAGE_STEM = re.compile(rf"^{IMAGE_WORD}(?:[-_.]|(?=\d)|$)|[-_.]{IMAGE_WORD}$", re.IGNORECASE)
LABEL_FOLDER = re.compile(rf"^(?:{LABEL_WORD}(?:T[rs]|_?final)?|final)$", re.IGNORECASE)
IMAGE_FOLDER = re.compile(rf"^(?:{IMAGE_WORD}(?:T[rs])?|dicoms?)$", re.IGNORECASE)


def find_folder_cases(src: Path, exclude: Path | None = None) -> Found:
    """Find the cases of any folder, by the layout that it has.

    Args:
        src: the folder.
        exclude: a folder below it that is none of its content, the result's.

    Raises:
        ValueError: if a ``dataset.json`` or ``datastore_v2.json`` in it is broken.
    """
    dataset = src / "dataset.json"
    if dataset.is_file() and (src / "imagesTr").is_dir():
        return _dataset_folder(src, _read_json(dataset))
    if (src / "labels" / "final").is_dir() or (src / "datastore_v2.json").is_file():
        return _studies_folder(src)
    found = _any_folder(src, exclude)
    if dataset.is_file():
        found.label_names = _label_names(_read_json(dataset))
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


def nifti_files(folder: Path) -> list[Path]:
    """NIfTI files directly in a folder, by number."""
    if not folder.is_dir():
        return []
    files = (p for p in folder.iterdir() if p.name.endswith(SUFFIXES) and not p.name.startswith(".") and p.is_file())
    return sorted(files, key=natural_key)


def _dataset_folder(src: Path, dataset: Mapping[str, Any]) -> Found:
    """A Decathlon or nnU-Net folder: ``imagesTr``, ``labelsTr``, maybe ``imagesTs``, ``dataset.json``."""
    images = nifti_files(src / "imagesTr")
    labels = {case_name(p): p for p in nifti_files(src / "labelsTr")}
    numbered = bool(images) and all(re.search(r"_\d{4}$", case_name(p)) for p in images)
    nnunet = "channel_names" in dataset or (numbered and not any(case_name(p) in labels for p in images))
    cases, notes = [], []
    for subset in ("Tr", "Ts"):
        extra = 0
        truth = labels if subset == "Tr" else {case_name(p): p for p in nifti_files(src / "labelsTs")}
        for image in nifti_files(src / f"images{subset}"):
            name = case_name(image)
            if nnunet:
                name, _, channel = name.rpartition("_")
                if channel != "0000":
                    extra += 1
                    continue
            cases.append(Case(name, image, truth.get(name), src / f"labels{subset}" / f"{name}.nii.gz", subset))
        if extra:
            notes.append(f"images{subset}: {extra} files of further channels are left aside, channel 0000 is taken")
    layout = "nnU-Net" if nnunet else "Medical Segmentation Decathlon"
    return Found(cases, _label_names(dataset), notes, layout)


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
    labels = {case_name(p): p for p in nifti_files(src / "labels" / "final")}
    cases = []
    for image in nifti_files(src):
        name = case_name(image)
        label = src / "labels" / "final" / image.name
        cases.append(Case(name, image, labels.get(name), label, label_map=maps.get(name, ())))
    names = {value: name for name, value in values.items()}
    if not names and (src / "dataset.json").is_file():
        names = _label_names(_read_json(src / "dataset.json"))
    return Found(cases, names, layout="MONAI Label studies")


def _own_names(maps: Mapping[str, tuple[tuple[int, int], ...]], values: Mapping[str, int]) -> dict[int, str]:
    names = {value: name for name, value in values.items()}
    return {source: names[target] for source, target in next(m for m in maps.values() if m)}


def _any_folder(src: Path, exclude: Path | None) -> Found:
    """NIfTI files and DICOM folders wherever they lie; labels by their names or by the names of their folders.

    A scan and its label agree in what remains of their paths without the words that stand for image and label:
    ``img/img01.nii.gz`` and ``label/label01.nii.gz``, ``a.nii.gz`` and ``a_seg.nii.gz``, ``p1/dicom/*`` and
    ``p1/mask.nii.gz``.
    """
    images: list[tuple[tuple[str, ...], tuple[str, ...], Path]] = []
    labels: dict[tuple[str, ...], Path] = {}
    notes, ignored = [], 0
    for folder in sorted([src, *(p for p in src.rglob("*") if p.is_dir())], key=natural_key):
        parts = folder.relative_to(src).parts
        if any(p.startswith(".") for p in parts) or (exclude is not None and exclude in (folder, *folder.parents)):
            continue
        in_labels = any(LABEL_FOLDER.match(p) for p in parts)
        place = tuple(p for p in parts if not LABEL_FOLDER.match(p) and not IMAGE_FOLDER.match(p))
        niftis = nifti_files(folder)
        others = [p for p in folder.iterdir() if p.is_file() and p not in niftis and not p.name.startswith(".")]
        if any(is_dicom(p) for p in others):
            if in_labels:
                notes.append(f"{folder.relative_to(src)}: DICOM among labels is left aside; convert it to NIfTI")
            else:
                images.append((place, place, folder))
        else:
            ignored += len(others)
        for path in niftis:
            stem = case_name(path)
            if in_labels or LABEL_STEM.search(stem):
                labels[_identity(place, _strip_label(stem))] = path
            else:
                images.append((_identity(place, IMAGE_STEM.sub("", stem)), place, path))
    cases = []
    taken: set[str] = set()
    for identity, place, path in images:
        wanted = [identity, tuple(re.sub(r"_0000$", "", part) for part in identity)]
        if sum(other == place for _, other, _ in images) == 1:
            wanted.append(place)  # the only scan of its folder: a label named for the folder, or just "label"
        label = next((labels.pop(key) for key in wanted if key in labels), None)
        name = "_".join(place if path.is_dir() or identity == place else (*place, case_name(path)))
        name = re.sub(r"[^\w.-]+", "_", name or case_name(path.resolve()))
        if name in taken:
            name = f"{name}_{len(taken)}"
        taken.add(name)
        cases.append(Case(name, path, label))
    notes += [f"{path.relative_to(src)}: a label without an image" for path in labels.values()]
    if ignored:
        notes.append(f"{ignored} other files are left aside")
    return Found(sorted(cases, key=lambda case: natural_key(case.name)), {}, notes, "plain folder")


def _strip_label(stem: str) -> str:
    match = LABEL_STEM.search(stem)
    rest = stem if match is None else (match[1] if match[1] is not None else stem[match.end() :])
    return IMAGE_STEM.sub("", rest)


def _identity(place: tuple[str, ...], key: str) -> tuple[str, ...]:
    """What a file and its label share: folders and stem, or folders alone when they tell the case already."""
    return place if not key or (place and key.lower() == place[-1].lower()) else (*place, key)
