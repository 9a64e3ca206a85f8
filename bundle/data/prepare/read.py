"""Readers: DICOM series and PNG masks, each with one clear line when a file is bad."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from monai.utils import optional_import

from .formats import first_line, natural_key
from .volume import Volume

pydicom, HAS_PYDICOM = optional_import("pydicom")
pil_image, _ = optional_import("PIL.Image")

GAP_TOLERANCE = 0.05  # share of the slice distance by which a gap may differ
PLACE_TOLERANCE_MM = 0.1  # by which a slice may lie beside the line through the others


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its preamble, or means to be by its name."""
    if path.name.upper() == "DICOMDIR":
        return False
    if path.suffix.lower() in (".dcm", ".ima"):
        return True
    if path.suffix and not path.suffix[1:].isdigit():
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files directly in a folder, by number."""
    files = (p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    return sorted((p for p in files if is_dicom(p)), key=natural_key)


def read_dicom(folder: Path) -> tuple[Volume, list[Path]]:
    """Read the one series in a folder, in the order of the slices' places in the patient.

    Rows run from bottom to top, as dcm2niix writes them: an axial series of a patient on the back comes out as LAS.

    Returns:
        The volume, with rescaled values, and the file of each slice.

    Raises:
        RuntimeError: without pydicom.
        ValueError: naming the folder or file: no DICOM, a broken file, more than one series, a missing slice,
            slices that do not fit each other.
    """
    files = dicom_files(folder)
    if not files:
        raise ValueError(f"{folder}: no DICOM files")
    if not HAS_PYDICOM:
        raise RuntimeError('reading DICOM needs pydicom: pip install "pydicom>=2.4"')
    slices = [_read_slice(path) for path in files]
    _check_one_series(folder, slices)
    first = slices[0]
    for item in slices[1:]:
        for what in ("shape", "pixel_spacing", "directions"):
            if not np.allclose(item[what], first[what], atol=1e-3):
                raise ValueError(
                    f"{item['path']}: {what.replace('_', ' ')} {np.round(item[what], 3).tolist()} differs from "
                    f"{np.round(first[what], 3).tolist()} of {first['path'].name}; keep one series in each folder"
                )
    row, column = first["directions"][:3], first["directions"][3:]
    normal = np.cross(row, column)
    slices.sort(key=lambda item: float(item["position"] @ normal))
    step = _slice_step(folder, slices, normal)

    affine = np.eye(4)
    affine[:3, 0] = row * first["pixel_spacing"][1]
    affine[:3, 1] = -column * first["pixel_spacing"][0]
    affine[:3, 2] = step
    affine[:3, 3] = slices[0]["position"] + column * first["pixel_spacing"][0] * (first["shape"][0] - 1)
    affine[:2] *= -1  # DICOM's left and posterior to NIfTI's right and anterior
    array = np.stack([item["array"][::-1].T for item in slices], axis=-1)
    return Volume(array, affine, first["modality"]), [item["path"] for item in slices]


def _read_slice(path: Path) -> dict[str, Any]:
    try:
        data = pydicom.dcmread(path)
        frames = int(getattr(data, "NumberOfFrames", 1) or 1)
        array = data.pixel_array if frames == 1 else None
    except Exception as error:  # pydicom and its codecs raise whatever the broken byte leads to
        raise ValueError(f"{path}: cannot be read as DICOM ({first_line(error)}); replace the file") from None
    if array is None:
        raise ValueError(f"{path}: {frames} frames in one file are not read; convert it to NIfTI, with dcm2niix")
    missing = [k for k in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing") if not data.get(k)]
    if missing or array.ndim != 2:
        what = f"lacks {', '.join(missing)}" if missing else f"is no gray image, its shape is {array.shape}"
        raise ValueError(f"{path}: {what}; leave it out of the folder")
    slope, shift = float(data.get("RescaleSlope", 1) or 1), float(data.get("RescaleIntercept", 0) or 0)
    if slope.is_integer() and shift.is_integer():
        array = array.astype(np.int32) * int(slope) + int(shift)
    else:
        array = array.astype(np.float32) * np.float32(slope) + np.float32(shift)
    return {
        "path": path,
        "array": array,
        "shape": np.array(array.shape),
        "position": np.array(data.ImagePositionPatient, dtype=np.float64),
        "directions": np.array(data.ImageOrientationPatient, dtype=np.float64),
        "pixel_spacing": np.array(data.PixelSpacing, dtype=np.float64),
        "thickness": float(data.get("SpacingBetweenSlices") or data.get("SliceThickness") or 1.0),
        "series": str(data.get("SeriesInstanceUID", "")),
        "modality": str(data.get("Modality", "")),
    }


def _check_one_series(folder: Path, slices: list[dict[str, Any]]) -> None:
    """Raise for several series. As many UIDs as files are the trace of an anonymizer, not series."""
    series = Counter(item["series"] for item in slices)
    if 1 < len(series) and (len(series) < len(slices) or len(slices) == 2):
        sizes = " and ".join(str(n) for n in series.values())
        raise ValueError(
            f"{folder}: {len(series)} series in one folder, of {sizes} slices; move each into a folder of its own"
        )


def _slice_step(folder: Path, slices: list[dict[str, Any]], normal: np.ndarray) -> np.ndarray:
    """Vector from a slice to the next, in mm."""
    if len(slices) == 1:
        return normal * slices[0]["thickness"]
    places = np.array([item["position"] for item in slices])
    gaps = np.diff(places @ normal)
    typical = float(np.median(gaps))
    for index, gap in enumerate(gaps):
        pair = f"{slices[index]['path'].name} and {slices[index + 1]['path'].name}"
        if gap <= GAP_TOLERANCE * abs(typical) or gap < 1e-3:
            raise ValueError(
                f"{folder}: {pair} lie at the same place; there are two series or phases in one folder, keep one"
            )
        if abs(gap - typical) > GAP_TOLERANCE * typical:
            what = "a slice is missing" if gap > typical else "the slices are not evenly spaced"
            raise ValueError(
                f"{folder}: {what}, {gap:.2f} mm between {pair}, {typical:.2f} mm between the others; complete the "
                "series"
            )
    step = (places[-1] - places[0]) / (len(places) - 1)
    aside = np.abs(places - (places[0] + np.arange(len(places))[:, None] * step)).max()
    if aside > max(PLACE_TOLERANCE_MM, GAP_TOLERANCE * typical):
        raise ValueError(f"{folder}: slices lie up to {aside:.2f} mm beside the line through the others; not a volume")
    return step


def read_png_masks(folder: Path, slice_files: list[Path], shape: tuple[int, int, int], order: str) -> np.ndarray:
    """Read the PNG masks of a DICOM series onto the grid of :func:`read_dicom`.

    Args:
        folder: the masks' folder, one file for each slice.
        slice_files: DICOM file of each slice.
        shape: of the volume.
        order: ``"name"`` pairs a mask with the DICOM file of its name; where names differ, the files of both folders
            in the order of their numbers. ``"ascending"`` and ``"descending"`` number the slices along the patient.

    Raises:
        ValueError: naming the file: masks that are missing, broken or do not fit.
    """
    orders = ("name", "ascending", "descending")
    if order not in orders:
        raise ValueError(f"mask_order must be one of {orders}, got {order!r}")
    masks = sorted((p for p in folder.glob("*.png") if not p.name.startswith(".")), key=natural_key)
    if len(masks) != len(slice_files):
        raise ValueError(
            f"{folder}: {len(masks)} PNG masks for {len(slice_files)} DICOM slices; a slice or a mask is missing"
        )
    if order == "name":
        by_name = {p.stem: p for p in masks}
        if set(by_name) == {p.stem for p in slice_files}:
            masks = [by_name[p.stem] for p in slice_files]
        else:
            rank = {path: index for index, path in enumerate(sorted(slice_files, key=natural_key))}
            masks = [masks[rank[path]] for path in slice_files]
    elif order == "descending":
        masks = masks[::-1]
    label = np.empty(shape, np.uint8)
    for index, path in enumerate(masks):
        label[..., index] = _read_png(path, (shape[1], shape[0]))[::-1].T
    return label


def _read_png(path: Path, shape: tuple[int, int]) -> np.ndarray:
    try:
        with pil_image.open(path) as image:
            array = np.asarray(image if image.mode in ("L", "1") else image.convert("L"))
    except Exception as error:  # as above
        raise ValueError(f"{path}: cannot be read as PNG ({first_line(error)}); replace the file") from None
    if array.shape != shape:
        raise ValueError(f"{path}: mask of {array.shape} pixels does not fit its slice of {shape}; replace the file")
    return array
