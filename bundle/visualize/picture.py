"""Pictures of slices as arrays: display orientation, window, colored labels, contours.

A *plane* is a slice in picture orientation, ``(H, W)`` with row 0 at the top, in the radiological convention: the
patient's right is on the left of an axial or coronal picture, the front is at the top of an axial one and on the left
of a sagittal one. Everything here is a pure function of arrays.

Reference: Okabe and Ito, Color Universal Design, 2008, https://jfly.uni-koeln.de/color/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from monai.utils import optional_import
from numpy.typing import ArrayLike

from ..transforms.spatial import slice_axcodes
from .colors import Color, label_colors

ndimage, _ = optional_import("scipy.ndimage")

SOFT_TISSUE_HU = (-160.0, 240.0)


@dataclass(frozen=True)
class Planes:
    """Slices of a volume in picture orientation.

    Attributes:
        values: ``(D, H, W)``, each a plane.
        left: letter of the patient's side on the left of the pictures: ``"R"`` for axial and coronal slices.
        top: letter of the patient's side at the top: ``"A"`` for axial slices, ``"S"`` for the others.
        pixel_mm: height and width of a pixel.
        slice_mm: distance of neighboring slices.
    """

    values: np.ndarray
    left: str
    top: str
    pixel_mm: tuple[float, float]
    slice_mm: float

    @property
    def aspect(self) -> float:
        """Width of a picture divided by its height, in mm."""
        height, width = self.values.shape[1:]
        return width * self.pixel_mm[1] / (height * self.pixel_mm[0])


def to_planes(volume: ArrayLike, affine: ArrayLike | None = None) -> Planes:
    """Bring a volume into picture orientation, whatever the orientation of its file.

    Args:
        volume: ``(X, Y, Z)``, or with a leading channel of 1.
        affine: ``(4, 4)`` from voxels to millimeters in right-anterior-superior coordinates; ``None`` for a volume
            in the network's frame (right-anterior axes, slices last), 1 mm.

    Raises:
        ValueError: if the volume has not three axes.
    """
    values = np.asarray(volume)
    if values.ndim == 4 and values.shape[0] == 1:
        values = values[0]
    if values.ndim != 3:
        raise ValueError(f"volume must have three axes (X, Y, Z), got shape {np.shape(volume)}")
    affine = np.eye(4) if affine is None else np.asarray(affine, dtype=float).reshape(-1, 4, 4)[0]
    codes = slice_axcodes(affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(codes))
    turned = nib.orientations.apply_orientation(values, turn)
    spacing = nib.affines.voxel_sizes(affine @ nib.orientations.inv_ornt_aff(turn, values.shape))
    # The first axis runs to the left of the picture, the second to its top.
    planes = np.ascontiguousarray(turned[::-1, ::-1].transpose(2, 1, 0))
    return Planes(planes, codes[0], codes[1], (float(spacing[1]), float(spacing[0])), float(spacing[2]))


def display_range(image: ArrayLike) -> tuple[float, float]:
    """Darkest and brightest value to show: a soft-tissue window for CT in HU, otherwise the 0.5 and 99 percentile.

    Values below -500 in at least a hundredth of the voxels are taken for air in HU.
    """
    values = np.asarray(image, dtype=np.float32)
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 1.0
    if np.percentile(values, 1) <= -500:
        return SOFT_TISSUE_HU
    low, high = (float(v) for v in np.percentile(values, [0.5, 99]))
    if high <= low:
        low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low, low + 1.0)


def to_grey(image: ArrayLike, limits: Sequence[float] | None = None) -> np.ndarray:
    """Grey values in 0..1 of an image of any shape, clipped to ``limits``; ``None`` for :func:`display_range`."""
    low, high = display_range(image) if limits is None else limits
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), nan=low, posinf=high, neginf=low)
    return np.clip((values - low) / (high - low), 0.0, 1.0)


def picture_size(shape: Sequence[int], pixel_mm: Sequence[float] = (1.0, 1.0), side: int | None = None) -> list[int]:
    """Rows and columns with square pixels for a plane of ``shape``; ``side`` is the longer one, by default as it is."""
    height, width = shape[0] * pixel_mm[0], shape[1] * pixel_mm[1]
    scale = (side or max(shape)) / max(height, width)
    return [max(1, round(height * scale)), max(1, round(width * scale))]


def resize_grey(grey: ArrayLike, size: Sequence[int]) -> np.ndarray:
    """A grey plane ``(H, W)`` of 0..1 at another size, bilinear, antialiased."""
    plane = torch.as_tensor(np.ascontiguousarray(grey, dtype=np.float32))[None, None]
    if tuple(plane.shape[-2:]) == tuple(size):
        return plane[0, 0].numpy()
    out = F.interpolate(plane, size=list(size), mode="bilinear", align_corners=False, antialias=True)
    return out[0, 0].clamp(0, 1).numpy()


def resize_labels(labels: ArrayLike, size: Sequence[int]) -> np.ndarray:
    """A label plane ``(H, W)`` at another size: each label is enlarged smoothly and the largest share wins."""
    plane = np.ascontiguousarray(labels).astype(np.int64)
    if tuple(plane.shape) == tuple(size):
        return plane
    values = np.unique(np.append(plane, 0))
    shares = torch.from_numpy(np.stack([plane == value for value in values]).astype(np.float32))[None]
    shares = F.interpolate(shares, size=list(size), mode="bilinear", align_corners=False, antialias=True)
    return values[shares[0].argmax(dim=0).numpy()]


def outline(labels: ArrayLike, thickness: int = 1) -> np.ndarray:
    """The rim of each label, inside of it: the labels ``(H, W)`` where a pixel is within ``thickness`` of its border.

    The border of the picture is no border of a label.
    """
    plane = np.asarray(labels)
    size = 2 * thickness + 1
    rim = ndimage.minimum_filter(plane, size, mode="nearest") != ndimage.maximum_filter(plane, size, mode="nearest")
    return np.where(rim, plane, 0)


def borders(labels: ArrayLike) -> np.ndarray:
    """Lines one pixel wide between labels, and between labels and 0: boolean ``(H, W)``."""
    plane = np.asarray(labels)
    out = np.zeros(plane.shape, bool)
    out[:-1] |= plane[:-1] != plane[1:]
    out[:, :-1] |= plane[:, :-1] != plane[:, 1:]
    return out


def color_labels(labels: ArrayLike, colors: Mapping[int, Color]) -> np.ndarray:
    """Colors ``(H, W, 3)`` uint8 of a label plane; black where a value has no color."""
    plane = np.asarray(labels)
    out = np.zeros((*plane.shape, 3), np.uint8)
    for value, color in colors.items():
        out[plane == value] = color
    return out


def render_slice(
    grey: ArrayLike,
    fill: ArrayLike | None = None,
    contour: ArrayLike | None = None,
    colors: Mapping[int, Color] | None = None,
    size: Sequence[int] | None = None,
    opacity: float = 0.4,
    thickness: int = 1,
) -> np.ndarray:
    """A slice with filled and outlined labels, as ``(H, W, 3)`` uint8.

    Args:
        grey: plane ``(h, w)`` of 0..1, see :func:`to_grey`.
        fill: label plane that is filled, usually the prediction.
        contour: label plane that is outlined, usually the truth; each line has a thin dark edge, so that it shows
            on a fill of the same color.
        colors: color of each label; ``None`` for :func:`label_colors`.
        size: rows and columns of the picture; ``None`` for the plane's own.
        opacity: of the filling, in 0..1.
        thickness: of the lines, in pixels of the picture.

    Raises:
        ValueError: if a label plane has another shape than ``grey``.
    """
    for name, labels in (("fill", fill), ("contour", contour)):
        if labels is not None and np.shape(labels) != np.shape(grey):
            raise ValueError(f"{name} of shape {np.shape(labels)} does not fit the slice of shape {np.shape(grey)}")
    if colors is None:
        known = [np.unique(labels) for labels in (fill, contour) if labels is not None]
        colors = label_colors(np.concatenate(known).tolist() if known else [])
    size = list(np.shape(grey)) if size is None else list(size)
    out = np.repeat(resize_grey(grey, size)[..., None], 3, axis=2) * 255
    if fill is not None:
        labels = resize_labels(fill, size)
        inside = labels > 0
        out[inside] = (1 - opacity) * out[inside] + opacity * color_labels(labels, colors)[inside]
    if contour is not None:
        labels = resize_labels(contour, size)
        line = outline(labels, thickness)
        edge = (ndimage.maximum_filter(line, 3) > 0) & (line == 0)
        out[edge] *= 0.35
        out[line > 0] = color_labels(line, colors)[line > 0]
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def plane_dice(prediction: ArrayLike, truth: ArrayLike, value: int) -> float:
    """Dice of one label in arrays of the same shape, in 0..1; NaN where neither shows it."""
    one, two = np.asarray(prediction) == value, np.asarray(truth) == value
    total = int(one.sum()) + int(two.sum())
    return float("nan") if total == 0 else 2.0 * int((one & two).sum()) / total


def labelled_slices(*labels: np.ndarray | None) -> list[int]:
    """Slices of ``(D, H, W)`` that show a label in any of the given maps."""
    shown = [np.asarray(volume).astype(bool).any(axis=(1, 2)) for volume in labels if volume is not None]
    return np.flatnonzero(np.any(shown, axis=0)).tolist() if shown else []
