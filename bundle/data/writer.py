"""The file of a prediction: on the grid of its query, there as a whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import NibabelWriter

from ..atomic import replacing
from ..checks import SPACING_MM
from .datalist import SUFFIXES
from .reader import affine_in_mm

# what a header says of where voxels lie
GEOMETRY = ("pixdim", "qform_code", "sform_code", "xyzt_units", "srow_x", "srow_y", "srow_z") + tuple(
    f"{kind}_{name}" for kind, names in (("quatern", "bcd"), ("qoffset", "xyz")) for name in names
)


class VolumeWriter(NibabelWriter):
    """Writes one-channel volumes as NIfTI: three axes even if the last has one slice, and each file in one step.

    MONAI's own writer drops trailing axes of length 1, which would change the shape of a one-slice scan. It also
    writes one affine for both forms of a header: where a query's two forms, their codes or its unit of length say more,
    viewers would show the result elsewhere. A result on the grid of a NIfTI file has that file's geometry, unchanged.
    """

    def set_data_array(self, data_array: Any, channel_dim: int | None = 0, *args: Any, **kwargs: Any) -> None:
        """Take a volume ``(1, H, W, D)``, or ``(H, W, D)`` with ``channel_dim=None``."""
        self.data_obj = self.convert_to_channel_last(data_array, channel_dim, squeeze_end_dims=False)[..., 0]

    def set_metadata(self, meta_dict: Mapping | None = None, resample: bool = True, **options: Any) -> None:
        """Take the meta data of a volume; the file that it belongs to gives the geometry."""
        super().set_metadata(meta_dict, resample, **options)
        self.source = str((meta_dict or {}).get("filename_or_obj", ""))

    def write(self, filename: str | os.PathLike, verbose: bool = False, **kwargs: Any) -> None:
        """Write the file in one step; nothing is logged, since the name on the way is not the file's."""
        with replacing(filename) as temporary:
            volume = self.create_backend_obj(self.data_obj, affine=self.affine, dtype=self.output_dtype, **kwargs)
            nib.save(self._on_source(volume), temporary)

    def _on_source(self, volume: nib.Nifti1Image) -> nib.Nifti1Image:
        """The volume with the geometry of its source, if that is a NIfTI file of this grid; else by its affine, in mm.

        MONAI's own way would turn a NIfTI-2 file, of more digits, into NIfTI-1.
        """
        source = nib.load(self.source) if self.source.endswith(SUFFIXES) and Path(self.source).is_file() else None
        if source is None or source.shape[:3] != volume.shape or not self._places(source):
            volume.set_sform(volume.affine, code=1)
            volume.set_qform(volume.affine, code=1)
            volume.header.set_xyzt_units("mm")
            return volume
        kind = nib.Nifti2Image if isinstance(source.header, nib.Nifti2Header) else nib.Nifti1Image
        header = kind.header_class()
        header.set_data_dtype(volume.get_data_dtype())
        header.set_data_shape(volume.shape)
        for name in GEOMETRY:
            header[name] = source.header[name]
        return kind(np.asanyarray(volume.dataobj), None, header)

    def _places(self, source: Any) -> bool:
        """Whether a file's voxels lie where those of the volume do."""
        expected = affine_in_mm(source.affine, source.header)
        return np.allclose(np.asarray(self.affine), expected, rtol=1e-4, atol=1e-3 * SPACING_MM[0])
