"""NIfTI files with the geometry that their headers give, in mm."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import NibabelReader
from monai.utils import ensure_tuple

UNITS_MM = {"meter": 1e3, "mm": 1.0, "micron": 1e-3}


def unit_in_mm(header: Any) -> float:
    """Length of a header's unit in mm; what is unknown counts as mm, as everywhere."""
    units = header.get_xyzt_units()[0] if hasattr(header, "get_xyzt_units") else "mm"
    return UNITS_MM.get(units, 1.0)


def affine_in_mm(affine: np.ndarray, header: Any) -> np.ndarray:
    """An affine ``(4, 4)`` of a header's unit in mm."""
    scaled = np.array(affine, dtype=np.float64)
    scaled[:3] *= unit_in_mm(header)
    return scaled


class NiftiReader(NibabelReader):
    """MONAI's reader, with the geometry of the header as it is, in mm.

    MONAI's takes every header for one in mm, and follows the qform where the sform has another spacing: a sheared scan
    would lose its shear.
    """

    def read(self, data: Sequence[str | os.PathLike] | str | os.PathLike, **kwargs: Any) -> Any:
        """Open one file or several."""
        self.filenames = ensure_tuple(data)
        images = [nib.load(name, **{**self.kwargs, **kwargs}) for name in self.filenames]
        return images if len(images) > 1 else images[0]

    def _get_affine(self, img: Any) -> np.ndarray:
        return affine_in_mm(super()._get_affine(img), img.header)
