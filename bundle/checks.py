"""Checks of what users hand in: each raises one line that names the argument, the rule and the value."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

SPACING_MM = (0.01, 100.0)  # distances of neighboring voxels that scans have
LABEL_TOLERANCE = 0.01  # by which a label value may miss a whole number


def check_volume(image: torch.Tensor | np.ndarray, name: str) -> None:
    """Raise unless ``image`` is a finite, non-constant volume ``(C, H, W, D)``.

    Raises:
        ValueError: for another number of axes, an empty axis, NaN or infinite values, or one constant value.
    """
    if image.ndim != 4:
        raise ValueError(
            f"{name}: expected one 3D volume, got {max(image.ndim - 1, 0)} spatial axes {tuple(image.shape[1:])}; "
            "convert 2D images to a one-slice volume and split 4D series into 3D files"
        )
    if 0 in image.shape:
        raise ValueError(f"{name}: the volume is empty, its shape is {tuple(image.shape[1:])}")
    tensor = torch.as_tensor(image)
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name}: contains NaN or infinite values; replace them in the file")
    if tensor.min() == tensor.max():
        raise ValueError(f"{name}: every voxel is {float(tensor.flatten()[0]):g}; the file holds no image")


def check_label(
    label: torch.Tensor | np.ndarray,
    shape: Sequence[int],
    name: str,
    image_name: str,
    values: Sequence[int] | None = None,
) -> list[int]:
    """Raise unless ``label`` is an integer label map on the grid of its image; return its values besides 0.

    Args:
        label: label map ``(1, H, W, D)``.
        shape: spatial shape of the image.
        name: what to call the label in the message, usually its file.
        image_name: what to call the image.
        values: values that must occur; ``None`` for whatever occurs.

    Raises:
        ValueError: if the shapes differ, a value is not a non-negative integer, nothing is labelled, or a wanted
            value is missing.
    """
    check_same_shape(tuple(label.shape[1:]), shape, name, image_name)
    present = check_label_values(label, name)
    if not present:
        raise ValueError(f"{name}: the support label has no foreground, every voxel is 0; label at least one structure")
    missing = [v for v in values or [] if v not in present]
    if missing:
        raise ValueError(f"{name}: label values {missing} are wanted, but only {present} occur")
    return present


def check_same_shape(label_shape: Sequence[int], image_shape: Sequence[int], name: str, image_name: str) -> None:
    """Raise ``ValueError`` unless a label has the shape of its image."""
    if tuple(label_shape) != tuple(image_shape):
        raise ValueError(
            f"{name}: label of shape {tuple(label_shape)} does not fit the image {image_name} of shape "
            f"{tuple(image_shape)}; resample the label to its image"
        )


def check_label_values(label: torch.Tensor | np.ndarray, name: str) -> list[int]:
    """Raise ``ValueError`` unless every voxel is a whole number from 0; return the values besides 0, ascending.

    Tools that scale or resample labels leave 0.99998 for 1: within ``LABEL_TOLERANCE`` of a whole number counts as it.
    """
    values = np.asarray(torch.as_tensor(label).cpu() if isinstance(label, torch.Tensor) else label)
    if np.isfinite(values).all() and values.min() >= -LABEL_TOLERANCE and values.max() < 2**16:
        whole = np.rint(values).astype(np.int64)
        if (np.abs(whole - values) <= LABEL_TOLERANCE).all():  # counting is much faster than sorting, as np.unique does
            return [int(v) for v in np.flatnonzero(np.bincount(whole.ravel())) if v > 0]
    found = [float(v) for v in np.unique(values)]
    odd = [v for v in found if not np.isfinite(v) or abs(v - round(v)) > LABEL_TOLERANCE or round(v) < 0]
    if odd:
        raise ValueError(
            f"{name}: label values must be whole numbers from 0, got {odd[:5]}; save a label map, no probabilities"
        )
    return sorted({round(v) for v in found} - {0})


def check_geometry(
    affine: np.ndarray,
    name: str,
    header_spacing_mm: Sequence[float] | None = None,
    range_mm: tuple[float, float] = SPACING_MM,
    tolerance: float = 0.1,
) -> None:
    """Raise unless an affine places voxels as a scanner does.

    Args:
        affine: ``(4, 4)``, voxel indices to mm.
        name: what to call the file in the message.
        header_spacing_mm: the spacing that the header states besides its affine, if there is one.
        range_mm: smallest and largest distance of neighboring voxels.
        tolerance: by which the header's spacing may differ from the affine's, as a share of it.

    Raises:
        ValueError: if the affine is not finite or not invertible, or a spacing is negative, out of range, or another
            than the header's.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9 * max(np.prod(spacing), 1e-9):
        raise ValueError(f"{name}: the header has no valid geometry; repair its affine")
    stated = spacing if header_spacing_mm is None else np.asarray(header_spacing_mm, dtype=float)
    for values in (stated, spacing):
        if not ((values >= range_mm[0]) & (values <= range_mm[1])).all():  # NaN fails too
            raise ValueError(
                f"{name}: spacing {_numbers(values)} mm is not in {range_mm[0]:g}..{range_mm[1]:g}; repair the header"
            )
    if not np.allclose(stated, spacing, rtol=tolerance):
        raise ValueError(
            f"{name}: the header gives two spacings, {_numbers(stated)} mm and by its affine {_numbers(spacing)} mm; "
            "repair it"
        )


def _numbers(values: np.ndarray) -> str:
    return " x ".join(f"{v:.4g}" for v in values)
