"""NIfTI files with the geometry that their headers give, in mm."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import NibabelReader
from monai.utils import ensure_tuple

from ..checks import SPACING_MM

logger = logging.getLogger(__name__)
UNITS_MM = {"meter": 1e3, "mm": 1.0, "micron": 1e-3}
OTHER_AFFINE = "other_affine"  # key of the meta data: where a header's other form places the voxels
ATLAS_CODES = (3, 4, 5)  # codes of a form that places voxels in the space of an atlas
REGISTERED_TOLERANCE = 0.5  # by which spacings in a registered space may differ from the scanner's, as a share


def unit_in_mm(header: Any) -> float:
    """Length of a header's unit in mm; what is unknown counts as mm, as everywhere.

    So does a unit of which no scan can be: many tools keep the numbers in mm and write another unit.
    """
    unit = UNITS_MM.get(header.get_xyzt_units()[0], 1.0) if hasattr(header, "get_xyzt_units") else 1.0
    if unit != 1.0:
        spacing = nib.affines.voxel_sizes(header.get_best_affine())
        in_mm, in_unit = (((s >= SPACING_MM[0]) & (s <= SPACING_MM[1])).all() for s in (spacing, spacing * unit))
        return 1.0 if in_mm and not in_unit else unit
    return unit


def affine_in_mm(affine: np.ndarray, header: Any) -> np.ndarray:
    """An affine ``(4, 4)`` of a header's unit in mm."""
    scaled = np.array(affine, dtype=np.float64)
    scaled[:3] *= unit_in_mm(header)
    return scaled


def other_affine(header: Any) -> np.ndarray | None:
    """Where the qform of a header places the voxels if its sform counts, in mm; ``None`` without both.

    Tools differ in which of the two they follow, and write for a label the one alone that they followed.
    """
    if not hasattr(header, "get_qform") or not int(header["qform_code"]) or not int(header["sform_code"]):
        return None
    return affine_in_mm(header.get_qform(), header)


def spacing_tolerance(header: Any) -> float:
    """By which the spacing of a header may differ from that of its affine, as a share of it.

    A sheared affine, of a tilted gantry or a registration, and one to the space of an atlas need not keep it.
    """
    axes = header.get_best_affine()[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    sheared = np.abs(axes.T @ axes - np.diag(lengths**2)).max() > 1e-3 * max(lengths.max() ** 2, 1e-12)
    return REGISTERED_TOLERANCE if sheared or int(header["sform_code"]) in ATLAS_CODES else 0.1


class NiftiReader(NibabelReader):
    """MONAI's reader, with the geometry of the header as it is, in mm.

    MONAI's takes every header for one in mm, and follows the qform where the sform has another spacing: a sheared scan
    would lose its shear. Trailing axes of length 1 are left out.
    """

    def read(self, data: Sequence[str | os.PathLike] | str | os.PathLike, **kwargs: Any) -> Any:
        """Open one file or several."""
        self.filenames = ensure_tuple(data)
        images = [nib.load(name, **{**self.kwargs, **kwargs}) for name in self.filenames]
        for name, image in zip(self.filenames, images):
            unit = image.header.get_xyzt_units()[0] if hasattr(image.header, "get_xyzt_units") else "mm"
            if UNITS_MM.get(unit, 1.0) != unit_in_mm(image.header):
                logger.warning(f"{name}: the header is in {unit}, its spacing can only be in mm and is taken so")
        return images if len(images) > 1 else images[0]

    def _get_meta_dict(self, img: Any) -> dict:
        meta = super()._get_meta_dict(img)
        other = other_affine(img.header)
        return meta if other is None else {**meta, OTHER_AFFINE: other}

    def _get_affine(self, img: Any) -> np.ndarray:
        return affine_in_mm(super()._get_affine(img), img.header)

    def _get_array_data(self, img: Any, filename: str) -> Any:
        array = super()._get_array_data(img, filename)
        return array.reshape(array.shape[:3]) if array.ndim > 3 and set(array.shape[3:]) == {1} else array
