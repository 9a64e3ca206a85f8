"""The volume of a DICOM series: its grid, and its voxels with the values that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .dicom_frames import functional_groups, pydicom
from .dicom_series import Series, only_series
from .formats import first_line
from .volume import Volume

GAP_TOLERANCE = 0.05  # share of the slice distance by which a gap may differ
PLACE_TOLERANCE_MM = 0.1  # by which a slice may lie beside the line through the others
TILT_DEGREES = 0.5  # from which slices that are sheared against each other are called so
PHYSICAL = ("CT", "PT")  # modalities whose numbers are measurements, whatever is shown white


def read_dicom(folder: Path) -> tuple[Volume, list[Path]]:
    """Read the one series in a folder, see :func:`read_series`.

    Returns:
        The volume, and the file of each slice.

    Raises:
        RuntimeError: without pydicom.
        ValueError: as :func:`only_series` and :func:`read_series` do.
    """
    series = only_series(folder)
    volume, _ = read_series(series)
    return volume, [frame.path for frame in series.frames]


def series_grid(series: Series) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine of the volume, from the headers alone.

    Rows run from bottom to top, as dcm2niix writes them: an axial series of a patient on the back comes out as LAS.

    Raises:
        ValueError: naming the slices, if one is missing or they do not lie in a row.
    """
    if series.problem:
        raise ValueError(f"{series.folder}: {series.problem}")
    first = series.frames[0]
    row, column = np.array(first.directions[:3]), np.array(first.directions[3:])
    rows, columns = first.shape
    affine = np.eye(4)
    affine[:3, 0] = row * first.spacing_mm[1]
    affine[:3, 1] = -column * first.spacing_mm[0]
    affine[:3, 2] = _step(series)
    affine[:3, 3] = np.array(first.position) + column * first.spacing_mm[0] * (rows - 1)
    affine[:2] *= -1  # DICOM's left and posterior to NIfTI's right and anterior
    return (columns, rows, len(series.frames)), affine


def _step(series: Series) -> np.ndarray:
    """Vector from a slice to the next, in mm."""
    frames, normal = series.frames, series.frames[0].normal
    if len(frames) == 1:
        return normal * frames[0].thickness_mm
    positions = np.array([frame.position for frame in frames])
    places = positions @ normal
    gaps = np.diff(places)
    typical = float(np.median(gaps))
    beside = "".join(f"; {note}" for note in series.notes)
    odd = [index for index, gap in enumerate(gaps) if abs(gap - typical) > GAP_TOLERANCE * typical]
    if odd:
        index = odd[0]
        what = "a slice is missing" if gaps[index] > typical else "the slices are not evenly spaced"
        more = f", and at {len(odd) - 1} more places" if len(odd) > 1 else ""
        pair = f"{frames[index].path.name} and {frames[index + 1].path.name}"
        raise ValueError(
            f"{series.folder}: {what}, {gaps[index]:.2f} mm between {pair}, from {places[index]:.1f} to "
            f"{places[index + 1]:.1f} mm{more}, {typical:.2f} mm between the others; complete the series{beside}"
        )
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    aside = np.abs(positions - (positions[0] + np.arange(len(positions))[:, None] * step)).max()
    if aside > max(PLACE_TOLERANCE_MM, GAP_TOLERANCE * typical):
        raise ValueError(
            f"{series.folder}: slices lie up to {aside:.2f} mm beside the line through the others; not a volume{beside}"
        )
    return step


def read_series(series: Series) -> tuple[Volume, list[str]]:
    """Read the voxels of a series, with rescaled values, in the order of the slices' places in the patient.

    Returns:
        The volume, and what is to be known about it, a line each.

    Raises:
        RuntimeError: if a decoder is missing, naming the package.
        ValueError: naming the folder or file: a broken file, or what :func:`series_grid` says.
    """
    _, affine = series_grid(series)
    notes = [f"{series.folder.name}: {note}" for note in series.notes]
    slices: list[np.ndarray] = []
    path: Path | None = None
    data: Any = None
    pixels, groups = np.empty(0), []
    inverted = False
    for frame in series.frames:
        if frame.path != path:
            path, (data, pixels) = frame.path, decode(frame.path)
            groups = functional_groups(data)
        array = pixels if frame.index is None else pixels[frame.index]
        if array.shape != frame.shape:
            raise ValueError(f"{path}: is no gray image, its shape is {array.shape}; leave it out of the folder")
        sources = [data] if frame.index is None else [data, *groups[frame.index]]
        slices.append(_rescaled(array, sources)[::-1].T)
        inverted = inverted or str(data.get("PhotometricInterpretation", "")) == "MONOCHROME1"
    array = np.stack(slices, axis=-1)
    if inverted and series.header.modality not in PHYSICAL:
        array = array.max() + array.min() - array
        notes.append(f"{series.folder.name}: shows low values white (MONOCHROME1) and is inverted")
    notes += [f"{series.folder.name}: {note}" for note in (_missing_at_ends(series), _tilt(series)) if note]
    return Volume(array, affine, series.header.modality), notes


def decode(path: Path) -> tuple[Any, np.ndarray]:
    """A file and its pixels.

    Raises:
        RuntimeError: if a decoder is missing, naming the package.
        ValueError: naming the file, if it is broken.
    """
    try:
        data = pydicom.dcmread(path, force=True)
        syntax = data.file_meta.get("TransferSyntaxUID") if hasattr(data, "file_meta") else None
        if syntax is None:
            data.file_meta = pydicom.dataset.FileMetaDataset()
            data.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        missing = missing_decoder(data.file_meta.TransferSyntaxUID)
        if not missing:
            return data, data.pixel_array
    except Exception as error:  # pydicom and its codecs raise whatever the broken byte leads to
        raise ValueError(f"{path}: cannot be read as DICOM ({first_line(error)}); replace the file") from None
    raise RuntimeError(f"{path}: {missing}")


def missing_decoder(syntax: Any) -> str:
    """How to get a decoder for a kind of compression; empty if there is one, or none is needed."""
    if not syntax.is_compressed or syntax.is_deflated:
        return ""
    try:
        if pydicom.pixels.get_decoder(syntax).is_available:
            return ""
    except NotImplementedError:
        return f"its pixels are compressed as {syntax.name}, for which there is no decoder; save it uncompressed"
    return (
        f"its pixels are compressed as {syntax.name}, and no decoder is installed: pip install python-gdcm, or the "
        'extra of this package, pip install ".[dicom]"'
    )


def _rescaled(array: np.ndarray, sources: Sequence[Any]) -> np.ndarray:
    """The values that the numbers of a slice stand for, as the last of the data sets that say it."""
    table = next((each for each in reversed(sources) if "ModalityLUTSequence" in each), None)
    if table is not None:
        return np.asarray(pydicom.pixels.apply_modality_lut(array, table))
    slope, shift = (
        float(next((each.get(name) for each in reversed(sources) if each.get(name) not in (None, "")), default))
        for name, default in (("RescaleSlope", 1), ("RescaleIntercept", 0))
    )
    slope = slope or 1.0
    if slope.is_integer() and shift.is_integer() and array.dtype.kind in "iu":
        return array.astype(np.int32) * int(slope) + int(shift)
    return array.astype(np.float32) * np.float32(slope) + np.float32(shift)


def _missing_at_ends(series: Series) -> str:
    """What the header's count of images says about slices that are not there."""
    wanted = series.header.images
    if not 0 < series.instances < wanted or series.mark or series.frames[0].index is not None:
        return ""
    numbers = {frame.number for frame in series.frames}
    gone = [number for number in range(1, wanted + 1) if number not in numbers]
    which = _ranges(gone) if numbers <= set(range(1, wanted + 1)) and len(numbers) == series.instances else ""
    first, last = (frame.place_mm for frame in (series.frames[0], series.frames[-1]))
    return (
        f"the header counts {wanted} images, {series.instances} are here{which and f', number {which} is missing'}; "
        f"the scan reaches from {first:.1f} to {last:.1f} mm"
    )


def _ranges(numbers: Sequence[int]) -> str:
    """``1, 5-7`` for 1, 5, 6, 7."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _tilt(series: Series) -> str:
    step, normal = _step(series), series.frames[0].normal
    degrees = float(np.degrees(np.arccos(min(1.0, abs(step @ normal) / np.linalg.norm(step)))))
    if degrees < TILT_DEGREES:
        return ""
    return f"the gantry is tilted by {degrees:.1f} degrees; the affine of the result says so, voxels stay as they are"
