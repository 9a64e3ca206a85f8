"""Small archives in exactly the structure in which their sites hand them out."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CHAOS_VALUES = (0, 63, 126, 189, 252)


def write_series(
    folder: Path,
    array: np.ndarray,
    origin=(-100.0, -80.0, 30.0),
    step=(0.0, 0.0, 7.7),
    pixel_spacing=(1.25, 1.25),
    directions=AXIAL,
    names=None,
    series="1.2.3",
    modality="MR",
    slope=None,
    intercept=None,
) -> list[Path]:
    """Write slices ``(rows, columns, slices)`` as DICOM files; the k-th lies at ``origin + k * step`` (LPS, mm)."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for k in range(array.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / (names[k] if names else f"IMG-0002-{k + 1:05d}.dcm")
        data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128, is_implicit_VR=False)
        data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        data.SeriesInstanceUID = series if isinstance(series, str) else series[k]
        data.Modality = modality
        data.ImageOrientationPatient = [float(v) for v in directions]
        data.ImagePositionPatient = [float(v) for v in np.add(origin, np.multiply(step, k))]
        data.PixelSpacing = [float(v) for v in pixel_spacing]
        data.SliceThickness = 5.0
        data.Rows, data.Columns = array.shape[:2]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
        if slope is not None:
            data.RescaleSlope, data.RescaleIntercept = slope, intercept
        data.PixelData = array[..., k].astype("<u2").tobytes()
        pydicom.dcmwrite(path, data)
        files.append(path)
    return files


def write_masks(folder: Path, label: np.ndarray, names: list[str]) -> None:
    """Write label values 0..4 ``(rows, columns, slices)`` as the PNG masks of CHAOS."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(names):
        Image.fromarray(np.take(CHAOS_VALUES, label[..., k]).astype(np.uint8)).save(folder / f"{name}.png")


def write_chaos(root: Path, case: int, image: np.ndarray, label: np.ndarray, order=None, **series) -> Path:
    """Write a case of CHAOS; ``order[k]`` is the number in the file names of the k-th slice."""
    folder = root / "Train_Sets" / "MR" / str(case) / "T2SPIR"
    numbers = order or range(1, image.shape[2] + 1)
    stems = [f"IMG-0002-{n:05d}" for n in numbers]
    write_series(folder / "DICOM_anon", image, names=[f"{s}.dcm" for s in stems], **series)
    write_masks(folder / "Ground", label, stems)
    return folder


def write_nifti(path: Path, array: np.ndarray, affine=None) -> Path:
    """Write an array as NIfTI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def scan(shape=(40, 36, 4), seed=0) -> tuple[np.ndarray, np.ndarray]:
    """A textured disk ``(rows, columns, slices)`` with four labeled blocks."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    disk = (rows - shape[0] / 2) ** 2 + (columns - shape[1] / 2) ** 2 < (min(shape[:2]) * 0.45) ** 2
    image = rng.integers(0, 20, shape) + disk[..., None] * rng.integers(200, 800, shape)
    label = np.zeros(shape, np.uint8)
    for value in range(1, 5):
        label[5 + 6 * value : 9 + 6 * value, 12:20, value % shape[2]] = value
    return image.astype(np.int16), label


def write_itk(path, array, affine=None, texts=None, layers=False):
    """Write by SimpleITK, whose axes point to left and posterior."""
    import SimpleITK

    path.parent.mkdir(parents=True, exist_ok=True)
    array = array.transpose(2, 1, 0, 3) if layers else array.T
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array), isVector=layers)
    lps = np.diag([-1.0, -1, 1, 1]) @ (np.eye(4) if affine is None else affine)
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    for key, text in (texts or {}).items():
        image.SetMetaData(key, text)
    SimpleITK.WriteImage(image, str(path))


def write_volume(path, array, affine=None):
    """Write in the format of the suffix."""
    affine = np.eye(4) if affine is None else affine
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".nrrd", ".nhdr", ".mha", ".mhd"):
        write_itk(path, array, affine)
    elif path.suffix in (".mgz", ".mgh"):
        nib.save(nib.MGHImage(array.astype(np.int32), affine), path)
    elif path.suffix == ".img":
        nib.save(nib.Nifti1Pair(array, affine), path)
    elif path.suffix == ".NII":
        path.write_bytes(nib.Nifti1Image(array, affine).to_bytes())
    else:
        nib.save(nib.Nifti1Image(array, affine), path)
