"""Label maps that lie as one PNG mask for each slice of a DICOM series."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from monai.utils import optional_import

from .formats import first_line, natural_key

pil_image, _ = optional_import("PIL.Image")


def read_png_masks(folder: Path, slice_files: list[Path], shape: tuple[int, int, int], order: str) -> np.ndarray:
    """Read the PNG masks of a DICOM series onto the grid of :func:`~.dicom_volume.read_series`.

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
    except Exception as error:  # PIL raises whatever the broken byte leads to
        raise ValueError(f"{path}: cannot be read as PNG ({first_line(error)}); replace the file") from None
    if array.shape != shape:
        raise ValueError(f"{path}: mask of {array.shape} pixels does not fit its slice of {shape}; replace the file")
    return array
