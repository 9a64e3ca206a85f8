"""Checks of what users hand in: each raises one line that names the argument, the rule and the value."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


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
    if tuple(label.shape[1:]) != tuple(shape):
        raise ValueError(
            f"{name}: label of shape {tuple(label.shape[1:])} does not fit the image {image_name} of shape "
            f"{tuple(shape)}; resample the label to its image"
        )
    found = [float(v) for v in torch.unique(torch.as_tensor(label))]
    odd = [v for v in found if not v.is_integer() or v < 0]
    if odd:
        raise ValueError(f"{name}: label values must be whole numbers from 0, got {odd[:5]}")
    present = [int(v) for v in found if v > 0]
    if not present:
        raise ValueError(f"{name}: the support label has no foreground, every voxel is 0; label at least one structure")
    missing = [v for v in values or [] if v not in present]
    if missing:
        raise ValueError(f"{name}: label values {missing} are wanted, but only {present} occur")
    return present
