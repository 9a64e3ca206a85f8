"""Read the scan and label of a case and check that they belong together."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from ...checks import check_geometry, check_volume
from ..fingerprint import grid_difference
from .read import read_dicom, read_nifti, read_png_masks
from .recipe import Recipe
from .source import Case, Options
from .volume import Volume


def load_case(case: Case, recipe: Recipe, options: Options) -> tuple[Volume, Volume | None]:
    """Read and check a scan and its label."""
    if case.label is None and recipe.need_label:
        raise ValueError(
            f"{case.expected_label}: the label is missing; add it, or keep such scans with --need_label False"
        )
    slice_files: list[Path] = []
    if case.image.is_dir():
        image, slice_files = read_dicom(case.image)
    else:
        image = read_nifti(case.image, options.channel)
    image = Volume(_plain_numbers(image.array), image.affine, image.modality)
    check_volume(image.array[None], str(case.image))
    check_geometry(image.affine, str(case.image))
    if case.label is None:
        return image, None
    if case.label.is_dir():
        masks = read_png_masks(case.label, slice_files, image.array.shape, options.mask_order)
        label = Volume(masks, image.affine)
    else:
        label = _on_grid(read_nifti(case.label), image, case, options.ignore_label_geometry)
    array = label.array
    if not np.isfinite(array).all() or (array < 0).any() or (array != np.rint(array)).any() or array.max() > 32767:
        raise ValueError(
            f"{case.label}: label values must be whole numbers from 0, got {np.unique(array)[:5].tolist()}"
        )
    array = array.astype(np.int16)
    if case.label_map:
        mapped = np.zeros_like(array)
        for value, target in case.label_map:
            mapped[array == value] = target
        if ((array != 0) & (mapped == 0)).any():
            odd = np.unique(array[(array != 0) & (mapped == 0)]).tolist()
            raise ValueError(f"{case.label}: label values {odd[:5]} have no name in datastore_v2.json")
        array = mapped
    return image, Volume(recipe.map_labels(array, str(case.label)).astype(np.int16), image.affine)


def _plain_numbers(array: np.ndarray) -> np.ndarray:
    """Whole numbers as int32, whatever the file's type; other numbers as float32."""
    if np.issubdtype(array.dtype, np.complexfloating) or array.dtype.fields:
        raise ValueError(f"voxels of type {array.dtype} are no image; store one number a voxel")
    if np.issubdtype(array.dtype, np.integer) or array.dtype == bool:
        return array.astype(np.int32)
    finite = np.isfinite(array).all()
    whole = finite and abs(array).max() < 2**24 and bool((array == np.rint(array)).all())
    return array.astype(np.int32 if whole else np.float32)


def _on_grid(label: Volume, image: Volume, case: Case, ignore_geometry: bool) -> Volume:
    """The label with its axes in the image's order.

    Raises:
        ValueError: if it has another shape or lies elsewhere.
    """
    distance = 0.0
    if ignore_geometry:
        if label.array.shape == image.array.shape:
            return Volume(label.array, image.affine)
    else:
        distance = grid_difference(label.array.shape, label.affine, image.array.shape, image.affine)[1]
        to_image = nib.io_orientation(np.linalg.inv(image.affine) @ label.affine)
        label = Volume(nib.orientations.apply_orientation(label.array, to_image), image.affine)
    if label.array.shape != image.array.shape:
        raise ValueError(
            f"{case.label}: shape {label.array.shape} does not fit {case.image.name} of shape {image.array.shape}; "
            "resample the label to its image"
        )
    if distance > max(image.spacing_mm) / 2:
        raise ValueError(
            f"{case.label}: lies up to {distance:.1f} mm beside {case.image.name}; repair its header, or take its "
            "voxels as they are with --ignore_label_geometry"
        )
    return label
