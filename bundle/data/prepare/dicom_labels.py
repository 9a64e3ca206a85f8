"""Labels in DICOM: segmentations voxel by voxel, and structure sets of contours, on the grid of their scan."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from skimage.draw import polygon

from .dicom_frames import HAS_PYDICOM, NEEDS_PYDICOM, STRUCTURE_SET, functional_groups, pydicom, read_header
from .dicom_volume import decode
from .formats import Segment, first_line
from .volume import Volume

BESIDE = 0.25  # of a voxel, by which what is drawn may lie beside the voxels of the scan
TURN_TOLERANCE = 0.02  # by which the axes of a drawn slice may differ from those of the scan
PLANE_TOLERANCE = 0.5  # of a slice, by which a contour may leave its slice


def dicom_segments(path: Path) -> tuple[Segment, ...]:
    """The structures of a segmentation or structure set, each in a layer of its own.

    Raises:
        RuntimeError: without pydicom.
        ValueError: if the file is neither.
    """
    header = read_header(path)
    if header.kind != "label":
        raise ValueError(f"{path}: {header.reason or 'is a scan and no label'}")
    return tuple(Segment(name, number, number) for number, name in header.segments)


def open_dicom_label(path: Path, image: Volume) -> Callable[[int], np.ndarray]:
    """A function that gives one structure's voxels on the grid of a scan, with the structure's number as value.

    Args:
        path: a DICOM segmentation or structure set.
        image: the scan.

    Raises:
        RuntimeError: without pydicom or a decoder.
        ValueError: naming the file, if it cannot be read or does not lie on the scan.
    """
    if not HAS_PYDICOM:
        raise RuntimeError(f"{path}: reading {NEEDS_PYDICOM}")
    to_voxels = np.linalg.inv(image.affine) @ np.diag([-1.0, -1, 1, 1])  # DICOM's left and posterior
    if read_header(path).segments and _is_structure_set(path):
        contours = _contours(path)
        return lambda number: _fill(contours.get(number, []), number, path, image, to_voxels)
    frames = _segment_frames(path)
    return lambda number: _paste(frames.get(number, []), number, path, image, to_voxels)


def _is_structure_set(path: Path) -> bool:
    data = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=["SOPClassUID"])
    return str(data.get("SOPClassUID", "")) == STRUCTURE_SET


def _segment_frames(path: Path) -> dict[int, list[tuple[np.ndarray, np.ndarray]]]:
    """For each segment its masks ``(rows, columns)`` and their ``(4, 3)`` places of column, row and origin, in mm."""
    data, pixels = decode(path)
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    kind = str(data.get("SegmentationType", "BINARY"))
    least = float(data.get("MaximumFractionalValue") or 1) / 2 if kind == "FRACTIONAL" else 0
    found: dict[int, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
    for array, groups in zip(pixels, functional_groups(data)):
        said = {name: value for group in groups for name, value in _plain(group)}
        try:
            row, column = np.reshape(said["ImageOrientationPatient"], (2, 3)).astype(float)
            spacing = np.array(said["PixelSpacing"], dtype=float)
            place = np.zeros((4, 3))
            place[:3, 0], place[:3, 1] = row * spacing[1], column * spacing[0]
            place[:, 2] = [*(float(v) for v in said["ImagePositionPatient"]), 1]
        except KeyError as error:
            raise ValueError(f"{path}: a frame lacks {error.args[0]}; export it again") from None
        if kind == "LABELMAP":
            for number in np.unique(array[array > 0]).tolist():
                found[number].append((array == number, place))
        elif "ReferencedSegmentNumber" in said:
            found[int(said["ReferencedSegmentNumber"])].append((array > least, place))
        else:
            raise ValueError(f"{path}: a frame does not say which segment it shows; export it again")
    return found


def _plain(group: Any) -> list[tuple[str, Any]]:
    return [(element.keyword, element.value) for element in group if element.VR != "SQ"]


def _paste(
    frames: list[tuple[np.ndarray, np.ndarray]], number: int, path: Path, image: Volume, to_voxels: np.ndarray
) -> np.ndarray:
    """The masks of a segment on the grid of a scan, whose pixels must be its voxels."""
    out = np.zeros(image.array.shape, np.int16)
    for mask, place in frames:
        pixels = np.argwhere(mask)[:, ::-1]  # column, row
        if not len(pixels):
            continue
        axes = (to_voxels @ place)[:3]
        steps, start = axes[:, :2], axes[:, 2]
        if np.abs(steps - np.rint(steps)).max() > TURN_TOLERANCE or np.abs(np.rint(steps)).sum() != 2:
            raise ValueError(f"{path}: its pixels are not those of the scan; draw it on the scan, or resample it")
        exact = pixels @ steps.T + start
        voxels = np.rint(exact).astype(int)
        beside = np.abs(exact - voxels).max()
        if beside > BESIDE:
            raise ValueError(f"{path}: lies up to {beside:.2f} voxels beside those of the scan; is it of another one?")
        if (voxels < 0).any() or (voxels >= image.array.shape).any():
            raise ValueError(f"{path}: reaches outside of the scan; is it of another one?")
        out[tuple(voxels.T)] = number
    return out


def _contours(path: Path) -> dict[int, list[np.ndarray]]:
    """For each structure its closed contours ``(points, 3)``, in mm to the left, back and head."""
    found: dict[int, list[np.ndarray]] = defaultdict(list)
    try:
        data = pydicom.dcmread(path, force=True)
        for item in data.get("ROIContourSequence") or []:
            for contour in item.get("ContourSequence") or []:
                points = np.array(contour.get("ContourData") or [], dtype=float).reshape(-1, 3)
                closed = str(contour.get("ContourGeometricType", "CLOSED_PLANAR")).startswith("CLOSED")
                if closed and len(points) > 2:  # points and lines have no inside
                    found[int(item.ReferencedROINumber)].append(points)
    except Exception as error:  # pydicom raises whatever the broken byte leads to
        raise ValueError(f"{path}: cannot be read as DICOM ({first_line(error)}); replace the file") from None
    return found


def _fill(contours: list[np.ndarray], number: int, path: Path, image: Volume, to_voxels: np.ndarray) -> np.ndarray:
    """The voxels whose centers lie inside the contours of a structure; a contour within another one is a hole."""
    out = np.zeros(image.array.shape, bool)
    for points in contours:
        voxels = points @ to_voxels[:3, :3].T + to_voxels[:3, 3]
        axis = int(np.ptp(voxels, axis=0).argmin())
        if np.ptp(voxels[:, axis]) > PLANE_TOLERANCE:
            raise ValueError(f"{path}: its contours cross the slices of the scan; draw them on the scan itself")
        index = round(float(voxels[:, axis].mean()))
        first, second = (other for other in range(3) if other != axis)
        shape = (out.shape[first], out.shape[second])
        inside = polygon(voxels[:, first], voxels[:, second], shape)
        if not 0 <= index < out.shape[axis]:
            raise ValueError(f"{path}: reaches outside of the scan; is it of another one?")
        plane = np.moveaxis(out, axis, 0)[index]
        plane[inside] ^= True
    return out.astype(np.int16) * np.int16(number)
