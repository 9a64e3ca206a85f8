"""A look at the voxels of a file: is it a scan or a label map?"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..grid import fits, place_label
from .dicom_frames import is_dicom
from .dicom_labels import dicom_segments
from .dicom_series import Series
from .dicom_volume import series_grid
from .formats import Segment, read_layers, read_segments
from .names import is_label_name

WHOLE_TOLERANCE = 0.01  # by which a label value may differ from a whole number: scaled labels are saved so
MOST_VALUES = 1024  # of a label map; FreeSurfer's have some two hundred
FEW_VALUES = 4  # as few are labels even where their voxels are scattered
SCARCE_VALUES = 32  # with as few, a file whose voxels are scattered may be either
EQUAL_SHARE = (0.5, 0.8)  # of equal neighbors, see _equal_share: scans have less, labels more, between may be either


@dataclass(frozen=True)
class Look:
    """What a file holds.

    Attributes:
        kind: ``"label"``, ``"image"``, ``"either"`` if the voxels may be both, or ``""`` if they tell nothing.
        shape: of its volume; empty if it cannot be read.
        affine: voxel indices to RAS millimeters.
        values: values of a label map besides 0.
        segments: what the file itself calls them.
        count: how many different values there are, as far as they were counted.
    """

    kind: str = ""
    shape: tuple[int, ...] = ()
    affine: np.ndarray | None = None
    values: tuple[int, ...] = ()
    segments: tuple[Segment, ...] = ()
    count: int = 0

    def same_grid(self, image: Look) -> bool | None:
        """Whether it lies on the grid of an image or a part of it; ``None`` if either is unknown."""
        if self.affine is None or image.affine is None:
            return None
        return fits(place_label(self.shape, self.affine, image.shape, image.affine), image.affine)


def look_at(path: Path, series: Series | None = None) -> Look:
    """Tell what a file or a DICOM series holds; nothing, if it cannot be read, which its case will say."""
    try:
        if series is not None:
            return Look("image", *series_grid(series))
        if path.is_dir():
            return Look()
        if is_dicom(path):
            found = dicom_segments(path)
            return Look("label", values=tuple(sorted(each.value for each in found)), segments=found)
        segments = read_segments(path)
        volume = read_layers(path)
    except (RuntimeError, ValueError):
        return Look()
    kind, values, count = judge(volume.array)
    return Look("label" if segments else kind, volume.array.shape[:3], volume.affine, values, segments, count)


def is_label_map(path: str | os.PathLike) -> bool:
    """Whether a file is a label map, by its name or its voxels."""
    return is_label_name(os.path.basename(path)) or look_at(Path(path)).kind == "label"


def judge(array: np.ndarray) -> tuple[str, tuple[int, ...], int]:
    """Tell a scan from a label map by its voxels.

    A label map has few values, all whole, and most neighbors within a structure are equal.

    Returns:
        The kind, see :class:`Look`, the values besides 0 of a label map, and how many values were counted.
    """
    if array.dtype.fields or array.dtype.kind not in "iufb" or array.size == 0:
        return "", (), 0
    some = np.unique(array[::4, ::4, ::4])
    if array.dtype.kind == "f":
        if not np.isfinite(some).all():
            return "", (), 0
        if (np.abs(some - np.rint(some)) > WHOLE_TOLERANCE).any():
            return ("image" if len(some) > FEW_VALUES else ""), (), len(some)
    if len(some) > MOST_VALUES or some.min() < -WHOLE_TOLERANCE:
        return "image", (), len(some)
    if array.dtype.kind == "f":
        whole = np.rint(array)
        if not np.isfinite(array).all() or (np.abs(array - whole) > WHOLE_TOLERANCE).any():
            return ("image" if len(some) > FEW_VALUES else ""), (), len(some)
        array = whole
    found = np.unique(array)
    count = len(found)
    if count == 1:
        return "", tuple(int(v) for v in found if v > 0), 1
    if count > MOST_VALUES or found[0] < 0 or found[-1] >= 2**15:
        return "image", (), count
    values = tuple(int(v) for v in found if v > 0)
    share = _equal_share(array) if count > FEW_VALUES else 1.0
    if share >= EQUAL_SHARE[1]:
        return "label", values, count
    return ("either", values, count) if share >= EQUAL_SHARE[0] or count <= SCARCE_VALUES else ("image", (), count)


def _equal_share(array: np.ndarray) -> float:
    """Share of neighboring voxels that are equal, but for 0 and the most frequent value, as is the air of a CT."""
    found, counts = np.unique(array[::2, ::2, ::2], return_counts=True)
    inside = (array != 0) & (array != found[counts.argmax()])
    equal = pairs = 0
    for axis in range(min(array.ndim, 3)):
        lines, within = np.moveaxis(array, axis, 0), np.moveaxis(inside, axis, 0)
        both = within[:-1] & within[1:]
        pairs += int(both.sum())
        equal += int(((lines[:-1] == lines[1:]) & both).sum())
    return equal / pairs if pairs else 0.0
