"""How a label lies on the grid of its image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from ..checks import check_same_shape

CROP_TOLERANCE = 0.1  # of a voxel, by which a part of a grid may lie beside its voxels


@dataclass(frozen=True)
class Placement:
    """Where a label goes on the grid of its image.

    Attributes:
        turn: orientation that brings its axes into the image's order, as nibabel writes it.
        shape: its shape after that.
        start: voxel of the image at which it begins.
        distance_mm: how far its outermost voxels then lie beside those of the image.
    """

    turn: np.ndarray
    shape: tuple[int, ...]
    start: tuple[int, int, int]
    distance_mm: float


def grid_difference(
    shape: Sequence[int], affine: np.ndarray, other_shape: Sequence[int], other_affine: np.ndarray
) -> tuple[tuple[int, ...], float]:
    """How a grid lies to another, whatever the order and direction of its axes.

    Returns:
        Its shape with its axes in the other's order, and how far a corner lies from the other's, in mm; 0 where the
        shapes differ.
    """
    turn = nib.io_orientation(np.linalg.inv(other_affine) @ affine)  # to each other: oblique scans have no clear codes
    turned = tuple(int(shape[axis]) for axis in np.argsort(turn[:, 0]))
    if turned != tuple(other_shape):
        return turned, 0.0
    away = affine @ nib.orientations.inv_ornt_aff(turn, tuple(shape)) - other_affine
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in turned])).reshape(3, -1)
    return turned, float(np.linalg.norm(away[:3, :3] @ corners + away[:3, 3:], axis=0).max())


def place_label(
    shape: Sequence[int], affine: np.ndarray, image_shape: Sequence[int], image_affine: np.ndarray
) -> Placement | None:
    """Place a label by its header: one of the image's shape as a whole, another one where its voxels are the image's.

    3D Slicer saves a segmentation cropped to its extent.

    Returns:
        ``None`` if it has another grid.
    """
    turn = nib.io_orientation(np.linalg.inv(image_affine) @ affine)
    if np.isnan(turn).any():
        return None
    turned, distance_mm = grid_difference(shape, affine, image_shape, image_affine)
    if turned == tuple(image_shape):
        return Placement(turn, turned, (0, 0, 0), distance_mm)
    turned_affine = affine @ nib.orientations.inv_ornt_aff(turn, tuple(shape))
    to_image = np.linalg.inv(image_affine) @ turned_affine
    start = np.rint(to_image[:3, 3])
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in turned])).reshape(3, -1)
    away = to_image[:3, :3] @ corners + to_image[:3, 3:] - (corners + start[:, None])
    if np.abs(away).max() > CROP_TOLERANCE:
        return None
    inside = (start < image_shape).all() and (start + turned > 0).all()
    first, second, third = (int(v) for v in start)
    distance_mm = float(np.linalg.norm(image_affine[:3, :3] @ away, axis=0).max())
    return Placement(turn, turned, (first, second, third), distance_mm) if inside else None


def fits(placement: Placement | None, image_affine: np.ndarray) -> bool:
    """Whether a label lies on its image: at most half a voxel beside."""
    return placement is not None and placement.distance_mm <= nib.affines.voxel_sizes(image_affine).max() / 2


def paste(array: np.ndarray, placement: Placement, image_shape: Sequence[int]) -> np.ndarray | None:
    """The voxels of a label on the grid of its image, 0 where it does not reach.

    Returns:
        ``None`` if a labelled voxel lies outside of the image.
    """
    array = nib.orientations.apply_orientation(array, placement.turn)
    if array.shape == tuple(image_shape):
        return array
    start = np.array(placement.start)
    inside = tuple(slice(max(0, -s), min(n, m - s)) for s, n, m in zip(start, array.shape, image_shape))
    part = array[inside]
    if np.count_nonzero(part) < np.count_nonzero(array):
        return None
    out = np.zeros(tuple(image_shape), array.dtype)
    out[tuple(slice(max(0, s), max(0, s) + n) for s, n in zip(start, part.shape))] = part
    return out


def check_placement(
    shape: Sequence[int],
    affine: np.ndarray,
    image_shape: Sequence[int],
    image_affine: np.ndarray,
    name: str,
    image_name: str,
) -> Placement:
    """Place a label, see :func:`place_label`.

    One of another shape that begins at the image's first voxel is refused: a header that was left as it was looks so.

    Raises:
        ValueError: naming both files, for another grid, or one that lies beside the image.
    """
    placement = place_label(shape, affine, image_shape, image_affine)
    if placement is None or (placement.shape != tuple(image_shape) and not any(placement.start)):
        turned, _ = grid_difference(shape, affine, image_shape, image_affine)
        check_same_shape(turned, image_shape, name, image_name)
    if placement is None or not fits(placement, image_affine):
        away = f"up to {placement.distance_mm:.1f} mm " if placement is not None else ""
        raise ValueError(f"{name}: lies {away}beside its image {os.path.basename(image_name)}; repair its header")
    return placement
