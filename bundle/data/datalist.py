"""Lists of files in the data layout of the Medical Segmentation Decathlon."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")
SUFFIXES = (".nii.gz", ".nii")
MODALITY_WORDS = {"ct": {"ct", "cbct"}, "mr": {"mr", "mri", "t1", "t2", "flair", "t1w", "t2w", "t1ce", "t1gd"}}


def list_images(folder: str | os.PathLike) -> list[str]:
    """NIfTI files directly in ``folder``, sorted by name.

    Raises:
        FileNotFoundError: if the folder does not exist.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of images; check dataset_dir")
    return sorted(str(p) for p in Path(folder).iterdir() if p.name.endswith(SUFFIXES) and not p.name.startswith("."))


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
        ``[{"image": path, "label": path}, …]``, sorted by name; ``"label"`` only where the file exists. Empty if the
        data set is: what needs images says so when it starts, so that configs can be built without data.
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
