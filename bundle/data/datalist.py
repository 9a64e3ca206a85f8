"""Lists of files in the data layout of the Medical Segmentation Decathlon."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..commands import next_command

Item = TypeVar("Item")
SUFFIXES = (".nii.gz", ".nii")
MODALITY_WORDS = {"ct": {"ct", "cbct"}, "mr": {"mr", "mri", "t1", "t2", "flair", "t1w", "t2w", "t1ce", "t1gd"}}


def list_images(folder: str | os.PathLike) -> list[str]:
    """NIfTI files directly in ``folder``, in natural order.

    Raises:
        FileNotFoundError: if the folder does not exist.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of images; check dataset_dir")
    files = [str(p) for p in Path(folder).iterdir() if p.name.endswith(SUFFIXES) and not p.name.startswith(".")]
    return sorted(files, key=natural_key)


def natural_key(path: str | os.PathLike) -> tuple[list[Any], str]:
    """Sorting key that counts: ``case_2`` before ``case_10``."""
    name = os.fspath(path)
    parts = re.split(r"([0-9]+)", name.lower())  # text at even places, numbers at odd ones
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def typed_path(path: str | os.PathLike) -> str:
    """A path as it was typed: MONAI's configs write ``::`` for each ``#`` in any text, also in the name of a folder.

    It is taken back only where nothing has the one name, and something the other.
    """
    path = os.fspath(path)
    typed = path.replace("::", "#")
    return typed if typed != path and not os.path.exists(path) and os.path.exists(typed) else path


def case_name(path: str | os.PathLike) -> str:
    """Name of a case: its file name without the suffix of NIfTI."""
    name = Path(path).name
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return name[: -len(suffix)]
    return name


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most ``count`` of the items, evenly spread, in order: the middles of ``count`` equal parts."""
    if len(items) <= count:
        return list(items)
    return [items[int((k + 0.5) * len(items) / count)] for k in range(count)]


def make_datalist(dataset_dir: str | os.PathLike, folder: str = "imagesTr", labels: str = "labelsTr") -> list[dict]:
    """Every image of a data set, with its label where there is one.

    Args:
        dataset_dir: folder of the data set; images may also lie directly in it, as in a MONAI Label studies folder.
        folder: subfolder of the images.
        labels: subfolder of the labels, which have the file names of their images.

    Returns:
        ``[{"image": path, "label": path}, …]``, in natural order of the names; ``"label"`` only where the file exists.
        Empty if the data set is: what needs images says so when it starts, so that configs can be built without data,
        see :func:`check_dataset`.
    """
    root = Path(typed_path(dataset_dir))
    images = root / folder if (root / folder).is_dir() else root
    if not images.is_dir():
        return []
    entries = []
    for image in list_images(images):
        label = root / labels / Path(image).name
        entries.append({"image": image, "label": str(label)} if label.is_file() else {"image": image})
    return entries


def label_names(dataset_dir: str | os.PathLike) -> dict[int, str]:
    """Names of the label values besides the background, from ``dataset.json``; empty without that file.

    Both the Decathlon's ``{"1": "liver"}`` and nnU-Net's ``{"liver": 1}`` are read. Of nnU-Net's regions,
    ``{"kidneys": [2, 3]}``, the smallest that holds a value names it, with its value where several share a name.
    """
    file = Path(typed_path(dataset_dir)) / "dataset.json"
    if not file.is_file():
        return {}
    try:
        labels = json.loads(file.read_text()).get("labels", {})
        named: dict[int, list[tuple[int, str]]] = {}
        for key, item in labels.items():
            name, values = (item, key) if str(key).isdigit() else (key, item)
            values = values if isinstance(values, list) else [values]
            for value in map(int, values):
                named.setdefault(value, []).append((len(values), str(name)))
        found = {value: min(names, key=lambda one: one[0])[1] for value, names in named.items() if value != 0}
        shared = {name for name in found.values() if list(found.values()).count(name) > 1}
        return {value: f"{name} {value}" if name in shared else name for value, name in found.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f'{file}: \'labels\' must map values to names, {{"1": "liver"}} ({error})') from None


def dataset_modality(dataset_dir: str | os.PathLike) -> str:
    """What ``dataset.json`` says of all images: ``"ct"``, ``"mr"``, or ``"auto"`` where it says nothing or several.

    Read are the Decathlon's ``modality`` and nnU-Net's ``channel_names``.
    """
    file = Path(typed_path(dataset_dir)) / "dataset.json"
    try:
        description = json.loads(file.read_text()) if file.is_file() else {}
    except ValueError:
        return "auto"  # what is wrong with the file is said where its labels are read
    said = description.get("modality") or description.get("channel_names") or {}
    texts = [said] if isinstance(said, str) else list(said.values()) if isinstance(said, dict) else list(said)
    words = {word for text in texts for word in re.split(r"[^a-z0-9]+", str(text).lower())}
    kinds = [kind for kind, known in MODALITY_WORDS.items() if words & known]
    return kinds[0] if len(kinds) == 1 else "auto"


def check_dataset(dataset_dir: str | os.PathLike) -> None:
    """Raise unless a folder is a data set with images.

    Raises:
        FileNotFoundError, NotADirectoryError, ValueError: naming the folder and the remedy, for each mistake another.
    """
    root = Path(dataset_dir)
    if root.is_file():
        raise NotADirectoryError(f"{root}: dataset_dir must be a folder, not a file; give the one above imagesTr")
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; set dataset_dir to your data set")
    if root.resolve().name in ("imagesTr", "imagesTs", "labelsTr", "labelsTs"):
        raise ValueError(f"{root}: this is a part of a data set; give the folder above it, {root.resolve().parent}")
    folders = [name for name in ("imagesTr", "imagesTs") if (root / name).is_dir()]
    if any(list_images(root / name) for name in folders) or list_images(root):
        return
    if folders:
        raise ValueError(f"{root / folders[0]}: no images; put NIfTI files (.nii.gz or .nii) there")
    if not any(path for path in root.iterdir() if not path.name.startswith(".")):
        raise ValueError(f"{root}: the folder is empty; put images into {root / 'imagesTr'}")
    raise ValueError(
        f"{root}: no folder imagesTr and no NIfTI files; a data set has imagesTr/*.nii.gz. "
        f"{next_command('prepare', 'folder')} makes one of other files"
    )


def label_values(labels: Any, names: Mapping[int, str] | None = None) -> list[int] | None:
    """Values of wanted labels, which may be given by value or by name, one or several.

    Args:
        labels: such as ``[1, 2]``, ``["liver", 2]`` or ``"liver"``; ``None``, ``False`` or empty for no choice.
        names: what values are called, see :func:`label_names`; upper and lower case are the same.

    Returns:
        Values without repetition, in the order given, or ``None`` for no choice.

    Raises:
        ValueError: for a name that is none of these, for 0, which is the background, and what is no whole number.
    """
    if labels is None or labels is False:
        return None
    known = {str(name).casefold(): int(value) for value, name in (names or {}).items()}
    values: list[int] = []
    for label in [labels] if isinstance(labels, (str, int, float)) else list(labels):
        if isinstance(label, str) and label.strip().casefold() in known:
            value = known[label.strip().casefold()]
        elif isinstance(label, str) and not label.strip().isdigit():
            raise ValueError(f"no label is called {label!r}; {_named(names)}")
        else:
            value = -1 if isinstance(label, bool) or float(label) % 1 else int(label)
        if value < 1:
            raise ValueError(f"a label must be a name or a whole number above 0, the background, got {label!r}")
        if value not in values:
            values.append(value)
    return values or None


def _named(names: Mapping[int, str] | None) -> str:
    """Which label names there are, in words."""
    if not names:
        return "dataset.json, which would name the values, is not in dataset_dir or names none: give values"
    return "there are " + ", ".join(f"{name} ({value})" for value, name in sorted(names.items()))


def select_cases(datalist: Sequence[dict], names: Sequence[str]) -> list[dict]:
    """Entries of the given case names, in this order.

    Raises:
        KeyError: for a name that is not in the list.
    """
    by_name = {case_name(entry["image"]): entry for entry in datalist}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise KeyError(f"no such case: {missing}; there are {sorted(by_name)}")
    return [by_name[name] for name in names]


def held_out(datalist: Sequence[dict], fraction: float = 0.1, seed: int = 0) -> list[dict]:
    """A random part of the scans for validation: at least one, and all if there is only one.

    Args:
        datalist: scans.
        fraction: share to hold out, in [0, 1]; 0 holds none out.
        seed: seed of the choice.
    """
    count = min(len(datalist), max(1, round(fraction * len(datalist)))) if fraction > 0 else 0
    chosen = sorted(np.random.RandomState(seed).permutation(len(datalist))[:count])
    return [datalist[index] for index in chosen]
