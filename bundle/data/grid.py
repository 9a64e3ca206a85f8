"""How a label lies on the grid of its image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np

from ..checks import check_same_shape

CROP_TOLERANCE = 0.1  # of a voxel, by which a part of a grid may lie beside its voxels
SIZE_TOLERANCE = 0.01  # share by which two sizes of a voxel may differ and be the same


@dataclass(frozen=True)
class Placement:
    """Where a label goes on the grid of its image.

    Attributes:
        turn: orientation that brings its axes into the image's order, as nibabel writes it.
        shape: its shape after that.
        start: voxel of the image at which it begins.
        distance_mm: how far its outermost voxels then lie beside those of the image.
        sampling: ``(4, 4)``, from voxels of the image to voxels of the label, where these are others; else ``None``.
        note: what is worth telling; empty for nothing.
    """

    turn: np.ndarray
    shape: tuple[int, ...]
    start: tuple[int, int, int]
    distance_mm: float
    sampling: np.ndarray | None = None
    note: str = ""


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
    if placement.sampling is not None:
        return _sample(array, placement.sampling, image_shape)
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


def _sample(array: np.ndarray, sampling: np.ndarray, image_shape: Sequence[int]) -> np.ndarray | None:
    """The nearest voxel of a label for each voxel of its image; ``None`` if a labelled voxel lies outside of that."""
    to_image = np.linalg.inv(sampling)
    places = np.argwhere(array > 0) @ to_image[:3, :3].T + to_image[:3, 3]
    if ((places <= -1) | (places >= np.array(image_shape))).any():
        return None
    out = np.zeros(tuple(image_shape), array.dtype)
    rows, columns = np.meshgrid(*(np.arange(n) for n in image_shape[:2]), indexing="ij")
    for z in range(image_shape[2]):  # slice by slice, since coordinates take much memory
        voxels = np.stack([rows, columns, np.full_like(rows, z)], axis=-1).reshape(-1, 3)
        nearest = np.rint(voxels @ sampling[:3, :3].T + sampling[:3, 3]).astype(int)
        inside = ((nearest >= 0) & (nearest < array.shape)).all(axis=1)
        found = np.zeros(len(nearest), array.dtype)
        found[inside] = array[tuple(nearest[inside].T)]
        out[..., z] = found.reshape(rows.shape)
    return out


def has_no_place(shape: Sequence[int], affine: np.ndarray, image_affine: np.ndarray) -> bool:
    """Whether an affine is what tools write that know no geometry, so that it says nothing of where a label lies.

    Its axes are those of the body, its voxels of 1 mm or as large as the image's, and its origin is the first voxel or
    the center.
    """
    axes = affine[:3, :3]
    sizes, theirs = np.abs(np.diag(axes)), nib.affines.voxel_sizes(image_affine)
    center = axes @ (np.array(shape) - 1) / 2 + affine[:3, 3]
    return bool(
        np.abs(axes - np.diag(np.diag(axes))).max() < 1e-6
        and any(np.allclose(sizes, wanted, rtol=SIZE_TOLERANCE) for wanted in (1.0, theirs))
        and any((np.abs(origin) <= 1e-3 + np.finfo(np.float32).eps).all() for origin in (affine[:3, 3], center))
    )


def check_placement(
    shape: Sequence[int],
    affine: np.ndarray,
    image_shape: Sequence[int],
    image_affine: np.ndarray,
    name: str,
    image_name: str,
    other_affine: np.ndarray | None = None,
) -> Placement:
    """Place a label on its image by its header, or say why that cannot be done.

    Taken are, besides what :func:`place_label` places: a label that lies where the other form of the image's header
    says; one of the image's shape whose header was lost; and one with voxels of its own in the same space, from which
    the nearest are taken. One of another shape that begins at the image's first voxel is refused: a header that was
    left as it was looks so.

    Args:
        shape: of the label.
        affine: of the label.
        image_shape: of the image.
        image_affine: of the image.
        name: what messages call the label.
        image_name: what they call the image.
        other_affine: the other form of the image's header, if it has two.

    Raises:
        ValueError: naming both files, for another grid, or one that lies beside the image.
    """
    image_shape, image = tuple(image_shape), os.path.basename(image_name)
    placement = place_label(shape, affine, image_shape, image_affine)
    moved = placement is not None and (placement.shape == image_shape or any(placement.start))
    if placement is not None and moved and fits(placement, image_affine):
        return replace(placement, note=_note(placement, shape, image_shape, image_affine, image))
    if other_affine is not None:
        other = place_label(shape, affine, image_shape, other_affine)
        if other is not None and other.shape == image_shape and fits(other, other_affine):
            return replace(other, note=f"lies where the other form of the header of {image} says, and is taken so")
    lost = has_no_place(shape, affine, image_affine)
    if lost and tuple(shape) == image_shape:
        turn = nib.io_orientation(np.eye(4))
        note = f"has a header without a place, and is taken for the voxels of {image}, which has its shape"
        return Placement(turn, image_shape, (0, 0, 0), 0.0, note=note)
    if placement is None and not lost:
        turned, _ = grid_difference(shape, affine, image_shape, image_affine)
        if turned != image_shape:
            note = f"has voxels of its own, {_size(affine)}; the nearest are taken for those of {image}"
            sampling = np.linalg.inv(affine) @ image_affine
            return Placement(nib.io_orientation(np.eye(4)), turned, (0, 0, 0), 0.0, sampling, note)
    if placement is None or not moved:
        turned, _ = grid_difference(shape, affine, image_shape, image_affine)
        check_same_shape(turned, image_shape, name, image_name)
    away = f"up to {placement.distance_mm:.1f} mm " if placement is not None else ""
    raise ValueError(f"{name}: lies {away}beside its image {image}; repair its header")


def _note(
    placement: Placement, shape: Sequence[int], image_shape: Sequence[int], image_affine: np.ndarray, image: str
) -> str:
    """What is worth telling of a label on the voxels of its image."""
    if placement.shape != tuple(image_shape):
        return f"covers {' x '.join(map(str, shape))} voxels of {image}, and is placed by its header"
    if placement.distance_mm > nib.affines.voxel_sizes(image_affine).min() / 2:
        return f"lies {placement.distance_mm:.1f} mm beside {image}, and is taken for its voxels"
    return ""


def _size(affine: np.ndarray) -> str:
    return " x ".join(f"{size:.4g}" for size in nib.affines.voxel_sizes(affine)) + " mm"
