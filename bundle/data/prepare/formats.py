"""File formats of volumes: their suffixes, and one reader for all of them."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.utils import optional_import
from nibabel.spatialimages import SpatialImage

from ..datalist import natural_key
from ..fingerprint import PICTURE_SUFFIXES
from .volume import Volume

sitk, HAS_SITK = optional_import("SimpleITK")

NIBABEL_SUFFIXES = (".nii.gz", ".nii", ".mgz", ".mgh", ".img.gz", ".img")
ITK_SUFFIXES = (".seg.nrrd", ".nrrd", ".nhdr", ".mha", ".mhd")
SCAN_SUFFIXES = NIBABEL_SUFFIXES + ITK_SUFFIXES
COMPANIONS = {
    ".hdr": (".img",),
    ".hdr.gz": (".img.gz",),
    ".raw": (".mhd", ".nhdr"),
    ".zraw": (".mhd",),
    ".mat": (".img",),
}


@dataclass(frozen=True)
class Segment:
    """One structure of a label file that says what its values mean.

    Attributes:
        name: what the file calls it.
        value: its value.
        layer: the volume that it lies in; structures that overlap lie in several.
    """

    name: str
    value: int
    layer: int = 0


def scan_suffix(path: Path) -> str:
    """The suffix of a volume in lower case, ``""`` if a file is none by its name."""
    return next((suffix for suffix in SCAN_SUFFIXES if path.name.lower().endswith(suffix)), "")


def file_stem(path: Path) -> str:
    """The name of a file, or of a folder of DICOM files, without the suffix of a volume."""
    return path.name[: len(path.name) - len(scan_suffix(path))]


def is_segmentation(path: Path) -> bool:
    """Whether the suffix itself says label: 3D Slicer's ``.seg.nrrd``."""
    return scan_suffix(path) == ".seg.nrrd"


def scan_files(folder: Path) -> list[Path]:
    """Volumes directly in a folder, by number."""
    if not folder.is_dir():
        return []
    files = (p for p in folder.iterdir() if scan_suffix(p) and not p.name.startswith(".") and p.is_file())
    return sorted(files, key=natural_key)


def is_companion(path: Path) -> bool:
    """Whether a file belongs to a volume beside it, as ``a.hdr`` does to ``a.img``."""
    for suffix, others in COMPANIONS.items():
        if path.name.lower().endswith(suffix):
            stem = path.name[: -len(suffix)]
            return any(path.with_name(stem + other).is_file() for other in others)
    return False


def why_not_read(path: Path) -> str:
    """Why a file is left aside, and what to do if it is a scan."""
    suffix = path.suffix.lower()
    if suffix in PICTURE_SUFFIXES:
        return "a 2D picture without geometry; save the volume as NIfTI, for example from 3D Slicer"
    if suffix in (".npy", ".npz"):
        return "an array without geometry; save it with nibabel: nib.save(nib.Nifti1Image(array, affine), 'a.nii.gz')"
    return f"no scan by its name; a scan is a folder of DICOM files or ends in {', '.join(SCAN_SUFFIXES)}"


def read_volume(path: Path, channel: int | None = None) -> Volume:
    """Read a 3D volume.

    Args:
        path: the file.
        channel: which volume of a 4D file; ``None`` refuses 4D files.

    Raises:
        RuntimeError: if a package is missing, naming it.
        ValueError: naming the file, if it is broken or not 3D.
    """
    volume = read_layers(path)
    array = volume.array
    if array.ndim == 4 and channel is not None:
        if not 0 <= channel < array.shape[-1]:
            raise ValueError(f"{path}: channel {channel} is wanted, but there are {array.shape[-1]}, counted from 0")
        array = array[..., channel]
    if array.ndim != 3:
        remedy = "choose a volume with --channel" if array.ndim == 4 else "convert it to a 3D volume"
        raise ValueError(f"{path}: expected one 3D volume, got shape {array.shape}; {remedy}")
    return Volume(array, volume.affine)


def read_layers(path: Path) -> Volume:
    """Read a file as it is; several volumes lie along a fourth axis.

    Raises:
        RuntimeError, ValueError: see :func:`read_volume`.
    """
    if scan_suffix(path) in ITK_SUFFIXES:
        return _read_itk(path)
    try:
        image = _load(path)
        array = np.asanyarray(image.dataobj)
    except Exception as error:  # nibabel raises whatever the broken byte leads to; all of it means the same
        raise ValueError(f"{path}: cannot be read ({first_line(error)}); replace the file") from None
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return Volume(array, np.asarray(image.affine, dtype=np.float64))


def _load(path: Path) -> SpatialImage:
    """Load by nibabel, also where the suffix is in capitals."""
    if path.name == path.name.lower() or not path.name.lower().endswith((".nii", ".nii.gz")):
        return nib.load(path)
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    return nib.Nifti1Image.from_bytes(data)


def has_no_orientation(path: Path) -> bool:
    """Whether the format does not say which side is left: Analyze 7.5."""
    if scan_suffix(path) not in (".img", ".img.gz"):
        return False
    return not isinstance(nib.load(path), nib.Nifti1Pair)


def _itk_reader(path: Path) -> Any:
    if not HAS_SITK:
        raise RuntimeError(f"{path}: reading {scan_suffix(path)} needs SimpleITK: pip install SimpleITK")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    return reader


def _read_itk(path: Path) -> Volume:
    reader = _itk_reader(path)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise ValueError(f"{path}: cannot be read ({first_line(error, -1)}); replace the file") from None
    size = image.GetDimension()
    if size < 3:
        raise ValueError(f"{path}: expected one 3D volume, got {size} axes; convert it to a 3D volume")
    array = sitk.GetArrayFromImage(image)  # (..., z, y, x), of several values a voxel with their axis last
    array = array.transpose(2, 1, 0, 3) if image.GetNumberOfComponentsPerPixel() > 1 and size == 3 else array.T
    direction = np.array(image.GetDirection()).reshape(size, size)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = direction * np.array(image.GetSpacing())[:3]
    affine[:3, 3] = image.GetOrigin()[:3]
    return Volume(array, np.diag([-1.0, -1, 1, 1]) @ affine)  # ITK's left and posterior to right and anterior


def read_segments(path: Path) -> tuple[Segment, ...]:
    """What a file of 3D Slicer says about its values; empty for other files.

    Raises:
        RuntimeError, ValueError: see :func:`read_volume`.
    """
    if scan_suffix(path) not in (".seg.nrrd", ".nrrd"):
        return ()
    reader = _itk_reader(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError(f"{path}: cannot be read ({first_line(error, -1)}); replace the file") from None
    keys = set(reader.GetMetaDataKeys())
    segments = []
    for index in range(len(keys)):
        if f"Segment{index}_Name" not in keys:
            break
        name, value, layer = (
            reader.GetMetaData(f"Segment{index}_{what}") if f"Segment{index}_{what}" in keys else default
            for what, default in (("Name", ""), ("LabelValue", "1"), ("Layer", "0"))
        )
        segments.append(Segment(name.strip(), int(value), int(layer)))
    return tuple(segments)


def first_line(error: Exception, index: int = 0) -> str:
    """One line of an error's text: the first, or with -1 the last, as ITK's errors need."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[index].strip() if lines else type(error).__name__
