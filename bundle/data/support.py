"""The support: labelled scans that tell the network what to segment."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ..checks import check_label, check_volume
from ..keys import IMAGE, LABEL, MODALITY
from ..measurements import label_sides
from .datalist import case_name, list_images, make_datalist, spread, typed_path
from .fingerprint import read_fingerprint

VALUES = "values"  # key of a support entry: {value in the label file: value in the result}
SLICES = "slices"  # key of a support entry: which slices were annotated, one of the following
SLICE_RULES = ("auto", "all", "labelled")


@dataclass(frozen=True)
class SupportScan:
    """One labelled scan in the network's frame.

    Attributes:
        image: ``(C, H, W, D)`` float.
        label: ``(H, W, D)`` integer label map.
        spacing_mm: distance of neighboring slices.
        name: what messages call it.
        annotated: values of the structures that were annotated on this scan; what is not annotated is unknown here,
            not background. ``None`` for those that it shows: of several scans, one may lack what another shows.
        slices: ``"all"`` if every slice was annotated, ``"labelled"`` if only those with a label were, so that the
            others are unknown, ``"auto"`` to tell by the labels: where each of them comes and goes from slice to slice,
            somebody labelled single slices.
        modality: what the image was taken for, ``"ct"`` or ``"mr"``; ``None`` if nobody looked.
        pixel_mm: side of a pixel.
        sides_mm: of each value, see :func:`label_sides`; empty if unknown.

    Raises:
        ValueError: for another word.
    """

    image: torch.Tensor
    label: torch.Tensor
    spacing_mm: float
    name: str
    annotated: tuple[int, ...] | None = None
    slices: str = "auto"
    modality: str | None = None
    pixel_mm: float = 1.0
    sides_mm: Mapping[int, Sequence[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.slices not in SLICE_RULES:
            raise ValueError(f"{self.name}: slices of a support must be one of {SLICE_RULES}, got {self.slices!r}")

    @property
    def annotated_slices(self) -> list[int]:
        """Numbers of the slices that were annotated, ascending."""
        shown = self.label.gt(0).flatten(0, 1).any(dim=0)
        if self.slices == "all" or (self.slices == "auto" and not shows_single_slices(self.label, self.values)):
            return list(range(self.label.shape[-1]))
        return [int(index) for index in shown.nonzero()[:, 0]]

    @cached_property
    def values(self) -> list[int]:
        """Label values besides the background, ascending."""
        return [int(v) for v in torch.unique(self.label) if v > 0]

    def annotates(self, value: int) -> bool:
        """Whether the scan says where the structure of a value is and where it is not."""
        return value in (self.values if self.annotated is None else self.annotated)


def shows_single_slices(label: torch.Tensor, values: Sequence[int]) -> bool:
    """Whether each of the values in a label map ``(H, W, D)`` comes and goes from slice to slice, as drawn on some."""
    shown = [label.eq(value).flatten(0, 1).any(dim=0).nonzero()[:, 0] for value in values]
    return bool(shown) and not any(len(slices) > 1 and bool((slices.diff() == 1).all()) for slices in shown)


def _affine(image: torch.Tensor) -> np.ndarray:
    """Voxel indices to mm ``(4, 4)`` of a volume, or of the first of a batch; voxels of 1 mm without."""
    return np.asarray(getattr(image, "affine", np.eye(4)), dtype=float).reshape(-1, 4, 4)[0]


def slice_spacing(image: torch.Tensor) -> float:
    """Distance in mm of neighboring slices (last axis) of a volume with an affine; 1 without one."""
    rows, columns, slices = _affine(image)[:3, :3].T
    normal = np.cross(rows, columns)  # a tilted gantry shears the slices against each other
    return float(abs(slices @ normal) / np.linalg.norm(normal))


def pixel_size(image: torch.Tensor) -> float:
    """Side of a pixel of a volume's slices (the two axes before the last) in mm, as the root of its area; 1 without."""
    affine = _affine(image)
    return float(np.sqrt(np.linalg.norm(np.cross(affine[:3, 0], affine[:3, 1]))))


def resolve_support(
    support: Sequence[Mapping[str, Any]], dataset_dir: str | os.PathLike | None
) -> list[dict[str, Any]]:
    """Complete and check a list of support scans without reading them.

    Args:
        support: ``[{"image": path, "label": path}, …]``; paths may be relative to ``dataset_dir``. ``"values"``
            and ``"slices"`` are kept, see :func:`load_support`.
        dataset_dir: folder of the data set, or ``None``.

    Raises:
        ValueError: if the list is empty or an entry lacks its image or label.
        TypeError: if it is no list, or a path is none.
        FileNotFoundError: if a file does not exist.
    """
    if not support:
        raise ValueError(
            "no support: label at least one scan and pass it, --support \"[{'image': 'imagesTr/a.nii.gz', "
            "'label': 'labelsTr/a.nii.gz'}]\""
        )
    _check_entries(support)
    resolved = []
    for entry in support:
        paths: dict[str, Any] = {key: entry[key] for key in (VALUES, SLICES) if entry.get(key) is not None}
        for key in (IMAGE, LABEL):
            if not isinstance(entry[key], (str, os.PathLike)):
                raise TypeError(f"a support's {key} must be a path, got {entry[key]!r}")
            path = typed_path(entry[key])
            inside = typed_path(os.path.join(os.fspath(dataset_dir), path)) if dataset_dir is not None else path
            paths[key] = path if os.path.exists(path) or not os.path.exists(inside) else inside
            if not os.path.isfile(paths[key]):
                raise FileNotFoundError(f"{path}: no such support {key}; give a path that exists or is in dataset_dir")
        resolved.append(paths)
    return resolved


def _check_entries(support: Sequence[Mapping[str, Any]]) -> None:
    """Raise unless a support is a list of entries with the two keys."""
    if isinstance(support, (str, Mapping)):
        raise TypeError(f"support must be a list of {{'image': path, 'label': path}}, got {support!r}")
    for entry in support:
        if not isinstance(entry, Mapping) or not {IMAGE, LABEL} <= set(entry):
            raise ValueError(f"a support entry needs the keys 'image' and 'label', got {entry!r}")


def default_support(dataset_dir: str | os.PathLike) -> list[dict[str, str]]:
    """The labelled scans of a data set as its support; empty if nothing is labelled."""
    return [dict(entry) for entry in make_datalist(dataset_dir) if LABEL in entry]


def shown_values(entry: Mapping[str, Any]) -> list[int]:
    """Values in the result that a support shows, ascending, by its label file and ``"values"``, if it has them.

    Raises:
        ValueError, FileNotFoundError: see :func:`read_fingerprint`.
    """
    found = read_fingerprint(entry[LABEL], is_label=True).values or ()
    if entry.get(VALUES) is not None:
        mapping = {int(k): int(v) for k, v in entry[VALUES].items()}
        found = tuple({mapping[value] for value in found if value in mapping})
    return sorted(int(value) for value in found)


def showing_entries(support: Sequence[Mapping[str, Any]], labels: Sequence[int] | None) -> list[dict[str, Any]]:
    """Those support scans that show a wanted label; a single scan is not looked at.

    Args:
        support: entries whose files exist, see :func:`resolve_support`.
        labels: wanted values; ``None`` for all that any of them shows.

    Raises:
        ValueError: if none of several shows any.
    """
    if len(support) == 1:
        return [dict(support[0])]
    shown = [shown_values(entry) for entry in support]
    found = [
        dict(entry) for entry, values in zip(support, shown) if values and (labels is None or set(labels) & set(values))
    ]
    if not found:
        check_wanted(labels, shown)
        raise ValueError(f"{support[0][LABEL]}: has no foreground, nor have the labels of the other supports")
    return found


def keep_labels(scans: Sequence[SupportScan], labels: Sequence[int] | None) -> list[SupportScan]:
    """Those support scans that show a wanted label, without their other labels.

    Raises:
        ValueError: for a wanted label that none of them shows.
    """
    if labels is None:
        return list(scans)
    check_wanted(labels, [scan.values for scan in scans])
    wanted = torch.tensor(list(labels))
    return [
        replace(scan, label=torch.where(torch.isin(scan.label, wanted), scan.label, torch.zeros_like(scan.label)))
        for scan in scans
        if set(labels) & set(scan.values)
    ]


def check_wanted(
    labels: Sequence[int] | None, shown: Sequence[Sequence[int]], names: Mapping[int, str] | None = None
) -> None:
    """Raise unless each wanted label is shown by a support.

    Args:
        labels: wanted values; ``None`` for all that any support shows.
        shown: values of each support.
        names: what the values are called in the message.

    Raises:
        ValueError: naming the labels, and those that the supports show.
    """
    every = sorted({value for values in shown for value in values})
    missing = [value for value in labels or () if value not in every]
    if missing:
        known = names or {}
        theirs, wanted = (
            ", ".join(f"{value} ({known[value]})" if value in known else str(value) for value in values)
            for values in (every, missing)
        )
        raise ValueError(f"labels: no support shows {wanted}; supports show {theirs or 'none'}")


def query_list(dataset_dir: str | os.PathLike, support: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, str]]:
    """The images to segment: those of ``imagesTs`` if it is there, else those of ``imagesTr``, less the support's.

    A scan is its file: one with the name of a support in another folder is another scan.
    """
    _check_entries(support)
    dataset_dir = typed_path(dataset_dir)
    folder = os.path.join(dataset_dir, "imagesTs")
    images = list_images(folder) if os.path.isdir(folder) else [e[IMAGE] for e in make_datalist(dataset_dir)]
    given = [typed_path(entry[IMAGE]) for entry in support]
    known = {os.path.realpath(path) for one in given for path in (one, typed_path(os.path.join(dataset_dir, one)))}
    return [{IMAGE: image} for image in images if os.path.realpath(image) not in known]


def choose_pseudo_supports(entries: Sequence[Mapping[str, Any]], count: int, spare: int = 0) -> list[dict[str, str]]:
    """Evenly spread scans, without their labels, that may pass the support's labels on, see :class:`PseudoSupports`.

    Args:
        entries: ``[{"image": path}, …]``.
        count: how many; 0 for none.
        spare: so many more, since a query is no pseudo-support to itself.
    """
    return [{IMAGE: entry[IMAGE]} for entry in spread(entries, count + spare)] if count > 0 else []


def load_support(
    entry: Mapping[str, Any], preprocessing: Callable[[dict], Mapping[str, Any]], labels: Sequence[int] | None = None
) -> SupportScan:
    """Read and check one labelled scan.

    Args:
        entry: ``{"image": path, "label": path}``. With ``"values"``, ``{value in the file: value in the result}``,
            labels of several scans share one numbering, and only these structures count as annotated on this scan.
            With ``"slices"``, which slices were, see :class:`SupportScan`.
        preprocessing: deterministic transform of both keys into the network's frame.
        labels: values to keep, others become background; ``None`` for all.

    Raises:
        ValueError: naming the file, if image and label do not fit, the label is empty or not of whole numbers, or
            the image is not a finite 3D volume.
    """
    scan = preprocessing({IMAGE: entry[IMAGE], LABEL: entry[LABEL]})
    image, label = scan[IMAGE], scan[LABEL]
    check_volume(image, entry[IMAGE])
    found = check_label(label, image.shape[1:], entry[LABEL], entry[IMAGE])
    kept = torch.as_tensor(label).as_subclass(torch.Tensor)[0].round().long()
    annotated = None
    if entry.get(VALUES) is not None:
        mapping = {int(k): int(v) for k, v in entry[VALUES].items()}
        renumbered = torch.zeros_like(kept)
        for old, new in mapping.items():
            renumbered[kept == old] = new
        kept, annotated = renumbered, tuple(sorted(set(mapping.values())))
        found = [int(v) for v in torch.unique(kept) if v > 0]
        if not found:
            raise ValueError(f"{entry[LABEL]}: none of the annotated values {sorted(mapping)} occurs")
    if labels is not None:
        wanted = [v for v in labels if v in found]
        if not wanted:
            raise ValueError(f"{entry[LABEL]}: none of the wanted label values {list(labels)} occurs, only {found}")
        kept = torch.where(torch.isin(kept, torch.tensor(wanted)), kept, torch.zeros_like(kept))
    return SupportScan(
        torch.as_tensor(image).as_subclass(torch.Tensor).float(),
        kept,
        slice_spacing(image),
        case_name(entry[IMAGE]),
        annotated,
        entry.get(SLICES) or "auto",
        getattr(image, "meta", {}).get(MODALITY),
        pixel_size(image),
        label_sides(kept.numpy(), _affine(image)),
    )
