"""A scan in memory with its place in the world, and the steps of a recipe on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms import SpatialResample
from nibabel import aff2axcodes

from ...transforms.body import BodyMask
from ...transforms.spatial import body_box, slice_axcodes
from .recipe import Recipe

AIR_HU = -500.0  # CT shows air below this, MR has no such values
BODY_HU = -300.0  # between air and fat
BOX_SLICES = 24  # slices that the body's box is guessed from


@dataclass(frozen=True)
class Volume:
    """A 3D array with its affine.

    Attributes:
        array: ``(X, Y, Z)``, in the order of the file's axes.
        affine: ``(4, 4)`` from voxel indices to RAS millimeters.
        modality: what the file itself says, ``""`` if it does not.
    """

    array: np.ndarray
    affine: np.ndarray
    modality: str = ""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of neighboring voxels along each axis."""
        return tuple(float(v) for v in affine_to_spacing(self.affine, 3))  # type: ignore[return-value]

    @property
    def slice_axis(self) -> int:
        """The axis that runs through the slices: the coarse one, else the one from feet to head."""
        pairs = [next(pair for pair in ("RL", "AP", "SI") if c in pair) for c in aff2axcodes(self.affine)]
        return pairs.index(next(pair for pair in ("RL", "AP", "SI") if slice_axcodes(self.affine)[2] in pair))

    @property
    def plane_axes(self) -> tuple[int, int]:
        """The two axes within a slice."""
        first, second = (axis for axis in range(3) if axis != self.slice_axis)
        return first, second


def guess_modality(volume: Volume) -> str:
    """``"CT"`` if the file says so or there is air in HU, else ``"MR"``."""
    if volume.modality:
        return volume.modality
    return "CT" if float(np.percentile(volume.array[::2, ::2, ::2], 0.5)) < AIR_HU else "MR"


def guess_body_box(volume: Volume, modality: str) -> list[list[int]]:
    """In-plane box of the body: first and one past the last index along each axis, the whole slice axis."""
    axis = volume.slice_axis
    slices = np.moveaxis(volume.array, axis, -1)
    some = slices[..., :: max(1, slices.shape[-1] // BOX_SLICES)].astype(np.float32)
    mask = BodyMask(BODY_HU if modality == "CT" and some.min() < BODY_HU else None)(some[None])[0]
    box = [[0, n] for n in volume.array.shape]
    for plane_axis, part in zip(volume.plane_axes, body_box(np.asarray(mask))[:2]):
        box[plane_axis] = [part.start, part.stop]
    return box


def clip_intensities(array: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Clip to the window, then cut off the brightest share; whole numbers stay whole numbers."""
    if recipe.window is not None:
        low, high = (_as_kind(array, bound) for bound in recipe.window)
        array = np.clip(array, low, high)
    if recipe.clip_percent > 0:
        array = np.minimum(array, _as_kind(array, np.percentile(array, 100.0 - recipe.clip_percent)))
    return array


def _as_kind(array: np.ndarray, value: float) -> float | int:
    return round(float(value)) if np.issubdtype(array.dtype, np.integer) else float(value)


def trim(volume: Volume, recipe: Recipe) -> Volume:
    """Cut voxels off at the in-plane sides; the affine follows.

    Raises:
        ValueError: if nothing would be left.
    """
    if recipe.trim_px == 0:
        return volume
    start, stop = np.zeros(3, int), np.array(volume.array.shape)
    for axis in volume.plane_axes:
        start[axis], stop[axis] = recipe.trim_px, stop[axis] - recipe.trim_px
    if (stop <= start).any():
        raise ValueError(f"cannot cut {recipe.trim_px} voxels off each side of shape {volume.array.shape}")
    return _window(volume, start, stop - start, 0)


def frame(volume: Volume, recipe: Recipe, fill: float) -> Volume:
    """Crop or pad the slices about their center to the recipe's size; the affine follows."""
    if recipe.size is None:
        return volume
    start, shape = np.zeros(3, int), np.array(volume.array.shape)
    for axis, size in zip(volume.plane_axes, recipe.size):
        start[axis], shape[axis] = shape[axis] // 2 - size // 2, size
    return _window(volume, start, shape, fill)


def _window(volume: Volume, start: np.ndarray, shape: np.ndarray, fill: float) -> Volume:
    """The box of ``shape`` from ``start``, which may reach outside."""
    out = np.full(tuple(shape), fill, volume.array.dtype)
    inside = [slice(max(s, 0), min(s + n, m)) for s, n, m in zip(start, shape, volume.array.shape)]
    place = [slice(part.start - s, part.stop - s) for s, part in zip(start, inside)]
    out[tuple(place)] = volume.array[tuple(inside)]
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ start
    return Volume(out, affine, volume.modality)


def target_grid(volume: Volume, recipe: Recipe) -> tuple[np.ndarray, tuple[int, int, int]] | None:
    """Affine and shape after resampling: same first voxel, no voxel whose center lies outside the scan.

    Returns:
        ``None`` if the recipe does not resample.
    """
    old = np.array(volume.spacing_mm)
    order = [*volume.plane_axes, volume.slice_axis]
    new = old.copy()
    if recipe.spacing_mm is not None:
        new[order] = recipe.spacing_mm
    elif recipe.spacing_factor is not None:
        new[order] = old[order] * recipe.spacing_factor
    new = np.where(np.isclose(new, old, rtol=1e-4), old, new)  # a header's rounding is no reason to interpolate
    if (new == old).all():
        return None
    affine = volume.affine.copy()
    affine[:3, :3] *= new / old
    last = (np.array(volume.array.shape) - 0.5) * old / new  # where the last voxel ends
    height, width, depth = (int(n) for n in np.where(new == old, volume.array.shape, np.floor(last + 1e-6) + 1))
    return affine, (height, width, depth)


def resample_image(volume: Volume, affine: np.ndarray, shape: tuple[int, int, int]) -> Volume:
    """Linear interpolation on another grid; beyond the outermost voxel centers their values go on."""
    values = _interpolate(volume.array.astype(np.float32), volume.affine, affine, shape)
    if np.issubdtype(volume.array.dtype, np.integer):
        values = np.rint(values).astype(volume.array.dtype)
    return Volume(values, affine, volume.modality)


def resample_label(volume: Volume, affine: np.ndarray, shape: tuple[int, int, int]) -> Volume:
    """Interpolate each class linearly, then let the largest win; a tie goes to the smaller value."""
    best = np.zeros(shape, np.float32)
    winner = np.zeros(shape, volume.array.dtype)
    for value in np.unique(volume.array):
        share = _interpolate((volume.array == value).astype(np.float32), volume.affine, affine, shape)
        ahead = share > best + 1e-4  # float32 coordinates: equal shares differ in the fifth digit
        winner[ahead], best[ahead] = value, share[ahead]
    return Volume(winner, affine)


def _interpolate(
    array: np.ndarray, affine: np.ndarray, new_affine: np.ndarray, shape: tuple[int, int, int]
) -> np.ndarray:
    resample = SpatialResample(mode="bilinear", padding_mode="border", align_corners=False, dtype=torch.float32)
    image = MetaTensor(torch.from_numpy(array)[None], affine=torch.from_numpy(affine))
    return np.asarray(resample(image, dst_affine=torch.from_numpy(new_affine), spatial_size=shape)[0])


def apply_recipe(image: Volume, label: Volume | None, recipe: Recipe) -> tuple[Volume, Volume | None]:
    """Run the steps of a recipe on an image and, where they move voxels, on its label.

    Args:
        image: the scan.
        label: label map on the image's grid, already with the values of the result.
        recipe: the steps.
    """
    image = trim(Volume(clip_intensities(image.array, recipe), image.affine, image.modality), recipe)
    label = None if label is None else trim(label, recipe)
    grid = target_grid(image, recipe)
    if grid is not None:
        image = resample_image(image, *grid)
        label = None if label is None else resample_label(label, *grid)
    framed = frame(image, recipe, image.array.min())
    return framed, None if label is None else frame(label, recipe, 0)
