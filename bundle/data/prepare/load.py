"""Read the scan and label of a case and check that they belong together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ...checks import check_geometry, check_volume
from ..grid import fits, paste, place_label
from .dicom_frames import is_dicom
from .dicom_labels import open_dicom_label
from .dicom_series import only_series
from .dicom_volume import read_series
from .formats import has_no_orientation, read_layers, read_volume
from .look import WHOLE_TOLERANCE
from .masks import read_png_masks
from .recipe import Recipe
from .source import Case, Options
from .volume import Volume

SAME_DICE = 0.8  # two masks that agree as much are two drawings of one structure


def load_case(case: Case, recipe: Recipe, options: Options) -> tuple[Volume, Volume | None, list[str]]:
    """Read and check a scan and its label.

    Returns:
        The scan, its label on the scan's grid, and what is to be known about them, a line each.

    Raises:
        RuntimeError, ValueError: naming the file and the remedy.
    """
    if case.label is None and recipe.need_label:
        raise ValueError(
            f"{case.expected_label or case.image}: the label is missing; add it, or keep such scans with "
            "--need_label False"
        )
    notes: list[str] = []
    slice_files: list[Path] = []
    if case.image.is_dir():
        series = case.series or only_series(case.image)
        image, notes = read_series(series)
        slice_files = [frame.path for frame in series.frames]
    else:
        image = read_volume(case.image, options.channel)
        if has_no_orientation(case.image):
            notes.append(f"{case.image.name}: Analyze files do not say which side is left; check it in a viewer")
    image = Volume(_plain_numbers(image.array), image.affine, image.modality)
    check_volume(image.array[None], str(case.image))
    check_geometry(image.affine, str(case.image))
    if case.label is None:
        return image, None, notes
    if case.parts:
        array = _join_parts(case, image, options, notes)
    elif case.label.is_dir():
        masks = read_png_masks(case.label, slice_files, image.array.shape, options.mask_order)
        array = masks.astype(np.int16)
    else:
        stored = read_volume(case.label)
        label = Volume(_whole_values(stored.array, case.label, notes), stored.affine)
        array = _on_grid(label, case.label, image, case, options)
        if label.array.size != array.size:
            notes.append(f"{case.label.name}: has the shape {label.array.shape} and is placed by its header")
    if case.label_map:
        mapped = np.zeros_like(array)
        for value, target in case.label_map:
            mapped[array == value] = target
        if ((array != 0) & (mapped == 0)).any():
            odd = np.unique(array[(array != 0) & (mapped == 0)]).tolist()
            raise ValueError(f"{case.label}: label values {odd[:5]} have no name in datastore_v2.json")
        array = mapped
    return image, Volume(recipe.map_labels(array, str(case.label)).astype(np.int16), image.affine), notes


def _plain_numbers(array: np.ndarray) -> np.ndarray:
    """Whole numbers as int32, whatever the file's type; other numbers as float32."""
    if np.issubdtype(array.dtype, np.complexfloating) or array.dtype.fields:
        raise ValueError(f"voxels of type {array.dtype} are no image; store one number a voxel")
    if np.issubdtype(array.dtype, np.integer) or array.dtype == bool:
        return array.astype(np.int32)
    finite = np.isfinite(array).all()
    whole = finite and abs(array).max() < 2**24 and bool((array == np.rint(array)).all())
    return array.astype(np.int32 if whole else np.float32)


def _whole_values(array: np.ndarray, path: Path, notes: list[str]) -> np.ndarray:
    """A label's values as 16-bit numbers; those within 0.01 of a whole number, as scaled labels have, are rounded."""
    whole = array if np.issubdtype(array.dtype, np.integer) else np.rint(array)
    beside = float(abs(array - whole).max()) if np.isfinite(array).all() else np.inf
    if beside > WHOLE_TOLERANCE or whole.min() < 0 or whole.max() > 32767:
        raise ValueError(f"{path}: label values must be whole numbers from 0, got {np.unique(array)[:5].tolist()}")
    if beside > 0:
        notes.append(f"{path.name}: label values are rounded to whole numbers, by at most {beside:.2g}")
    return whole.astype(np.int16)


def _on_grid(label: Volume, path: Path, image: Volume, case: Case, options: Options) -> np.ndarray:
    """The label's voxels in the image's order and place.

    Raises:
        ValueError: if it has another grid or lies elsewhere.
    """
    array = label.array
    if options.ignore_label_geometry and array.shape == image.array.shape:
        return array
    placement = place_label(array.shape, label.affine, image.array.shape, image.affine)
    if placement is not None and not fits(placement, image.affine):
        raise ValueError(
            f"{path}: lies up to {placement.distance_mm:.1f} mm beside {case.image.name}; repair its header, or take "
            "its voxels as they are with --ignore_label_geometry"
        )
    placed = None if placement is None else paste(array, placement, image.array.shape)
    if placement is None or placed is None:
        raise ValueError(
            f"{path}: shape {array.shape} does not fit {case.image.name} of shape {image.array.shape}; "
            "resample the label to its image"
        )
    return placed


def _open_layers(path: Path, image: Volume) -> Callable[[int], Volume]:
    """A function that gives the layers of a label, each as a volume."""
    if is_dicom(path):
        draw = open_dicom_label(path, image)
        return lambda layer: Volume(draw(layer), image.affine)
    volume = read_layers(path)
    return lambda layer: Volume(volume.array[..., layer] if volume.array.ndim == 4 else volume.array, volume.affine)


def _join_parts(case: Case, image: Volume, options: Options, notes: list[str]) -> np.ndarray:
    """One label map from the structures in several files, layers or values.

    Where structures overlap, the smaller one is kept, since it may be a part of the larger.

    Raises:
        ValueError: if two of them are the same structure.
    """
    inside: list[tuple[np.ndarray, int, str]] = []
    path, layers = None, None
    for part in case.parts:  # those of one file stand beside each other
        if part.path != path or layers is None:
            path, layers = part.path, _open_layers(part.path, image)
        layer = layers(part.layer)
        mask = (layer.array != 0 if part.value is None else layer.array == part.value).astype(np.int16)
        placed = _on_grid(Volume(mask, layer.affine), part.path, image, case, options)
        title = part.path.name if part.value is None else f"{part.path.name} value {part.value}"
        inside.append((np.flatnonzero(placed), part.target, title))
    inside.sort(key=lambda item: -len(item[0]))
    flat = np.zeros(image.array.size, np.int16)
    titles = {target: (title, len(places)) for places, target, title in inside}
    for places, target, title in inside:
        below, counts = np.unique(flat[places], return_counts=True)
        for other, count in zip(below.tolist(), counts.tolist()):
            if other == 0:
                continue
            other_title, size = titles[other]
            if 2 * count > SAME_DICE * (size + len(places)):
                raise ValueError(
                    f"{case.label}: {other_title} and {title} show the same structure; keep one of them, or choose "
                    "with --label"
                )
            notes.append(f"{case.name}: {other_title} and {title} overlap in {count} voxels, which go to {title}")
        flat[places] = target
    return flat.reshape(image.array.shape)
