"""What is measured of each label of a scan: volume, extent, intensity."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.ndimage import find_objects

EXTENTS = ("left_right", "front_back", "feet_head")
# names of the columns in measurements.csv, for what CaseQuality writes
EXPECTED = ("expected_dice", "expected_low", "expected_high")
COLUMNS = ("volume_ml", *(f"{axis}_mm" for axis in EXTENTS), *EXPECTED, "mean_intensity", "confidence", "reverse_dice")


def measure_labels(masks: Mapping[str, np.ndarray], affine: np.ndarray, image: np.ndarray | None) -> dict[str, Any]:
    """Measure structures.

    Args:
        masks: name to the voxels ``(X, Y, Z)`` of a structure.
        affine: ``(4, 4)``, voxel indices to mm.
        image: the scan ``(X, Y, Z)``, with the intensities of its file; ``None`` if unknown.

    Returns:
        ``volume_ml``, ``extent_mm`` and, with an image, ``mean_intensity``, each by name. The extent is the box along
        the scan's axes that holds the structure, from left to right, front to back and feet to head. A structure
        without a voxel has the volume 0 and ``None`` for the others.
    """
    axes = np.asarray(affine, dtype=np.float64)[:3, :3]
    voxel_ml = abs(float(np.linalg.det(axes))) / 1000
    spacing_mm = np.linalg.norm(axes, axis=0)
    to_body = np.argsort(nib.io_orientation(affine)[:, 0])  # the axis that runs from left to right first
    found: dict[str, Any] = {"volume_ml": {}, "extent_mm": {}}
    if image is not None:
        found["mean_intensity"] = {}
    for name, mask in masks.items():
        count = int(np.count_nonzero(mask))
        found["volume_ml"][name] = round(count * voxel_ml, 4)
        found["extent_mm"][name] = None
        if count:
            lines = [mask.any(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
            voxels = [int(np.ptp(np.flatnonzero(line))) + 1 for line in lines]
            found["extent_mm"][name] = [round(float(voxels[axis] * spacing_mm[axis]), 1) for axis in to_body]
        if image is not None:
            found["mean_intensity"][name] = round(float(image[mask].mean(dtype=np.float64)), 2) if count else None
    return found


def label_sides(labels: np.ndarray, affine: np.ndarray) -> dict[int, list[float]]:
    """Sides in mm of the box along the axes of a label map ``(X, Y, Z)`` that holds each label, the longest first.

    In this order they can be compared with those of another scan, whichever way either was stored or turned.

    Args:
        labels: whole numbers, 0 for none.
        affine: ``(4, 4)``, voxel indices to mm.
    """
    spacing_mm = np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0)
    labels = labels if np.issubdtype(labels.dtype, np.integer) else labels.astype(np.int32)
    boxes = enumerate(find_objects(labels), start=1)
    found = {value: [part.stop - part.start for part in box] * spacing_mm for value, box in boxes if box is not None}
    return {value: sorted(map(float, sides), reverse=True) for value, sides in found.items()}


def read_intensities(file: str | Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The intensities of a scan's file; ``None`` if it is not there or has another shape."""
    try:
        image = nib.load(file)
    except (OSError, nib.filebasedimages.ImageFileError):
        return None
    if image.shape[:3] != shape or any(length != 1 for length in image.shape[3:]):
        return None
    return np.asanyarray(image.dataobj).reshape(shape)


def table_row(found: Mapping[str, Any], name: str) -> list[Any]:
    """What is known of a label, in the order of ``COLUMNS``; ``None`` for what is not."""
    extent = found.get("extent_mm", {}).get(name) or (None, None, None)
    expected = found.get("expected_dice", {}).get(name) or (None, None, None)
    rest = [found.get(key, {}).get(name) for key in COLUMNS[1 + len(EXTENTS) + len(EXPECTED) :]]
    return [found.get("volume_ml", {}).get(name), *extent, *expected, *rest]
