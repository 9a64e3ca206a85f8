"""Label maps as DICOM segmentations, on the slices of the series that was segmented."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.utils import optional_import

from .. import __version__
from ..atomic import replacing
from .datalist import case_name
from .grid import fits, paste, place_label
from .prepare.dicom_frames import pydicom
from .prepare.dicom_series import Series, dicom_files_below, find_series, series_of
from .prepare.dicom_volume import series_grid
from .prepare.volume import Volume, resample_label
from .reader import affine_in_mm

highdicom, HAS_HIGHDICOM = optional_import("highdicom")

NEEDS_HIGHDICOM = (
    'DICOM SEG needs highdicom: pip install highdicom, or the extra of this package, pip install ".[dicom]"'
)
CODES = Path(__file__).with_name("structure_codes.json")
SIDES = {"left": ("7771000", "Left"), "right": ("24028007", "Right")}
SIDE_WORDS = {"l": "left", "lt": "left", "left": "left", "r": "right", "rt": "right", "right": "right"}
ANATOMY, TISSUE = ("91723000", "Anatomical Structure"), ("85756007", "Tissue")
ABNORMAL, MASS = ("49755003", "Morphologically Abnormal Structure"), "Mass"
SERIES_OFFSET = 1000  # from the number of the series that was segmented to that of the segmentation
# what some archives leave out and others demand
WHOLE = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime"),
    *("AccessionNumber", "ReferringPhysicianName"),
)

Color = tuple[int, int, int]


def structure_code(name: str) -> tuple[tuple[str, str], tuple[str, str], tuple[str, str] | None]:
    """Category, kind and side of a structure in SNOMED CT, each as code and meaning.

    ``"kidney_left"`` is a kidney with the side left. A name that the table lacks is tissue, the most general kind.
    """
    table = {
        word: (entry["code"], meaning)
        for meaning, entry in json.loads(CODES.read_text(encoding="utf-8")).items()
        for word in entry["names"]
    }
    words = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    text = " ".join(re.findall(r"[a-z]+", words.lower()))
    sides = {SIDE_WORDS[word] for word in text.split() if word in SIDE_WORDS}
    rest = " ".join(word for word in text.split() if word not in SIDE_WORDS)
    side = sides.pop() if len(sides) == 1 else ""
    for wanted, said in ((text, ""), (f"{side} {rest}", ""), (rest, side)):
        for form in (wanted, wanted.removesuffix("s")):
            if form in table:
                category = ABNORMAL if table[form][1] == MASS else ANATOMY
                return category, table[form], SIDES.get(said)
    return TISSUE, TISSUE, SIDES.get(side)


def remembered_series(dataset_dir: str | os.PathLike, case: str) -> Series | None:
    """The series that a case of a prepared data set was made of; ``None`` if it was not made of DICOM.

    Raises:
        ValueError: if the files are no longer there.
    """
    file = Path(dataset_dir) / "dicom.json"
    if not file.is_file():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    known = content["cases"].get(case)
    if known is None:
        return None
    files = [Path(content["src"]) / name for name in known["files"]]
    gone = [path for path in files if not path.is_file()]
    if gone:
        raise ValueError(f"{gone[0]}: the DICOM file of {case} is gone; give the series' folder, or prepare again")
    return series_of(find_series(files), known["series"], known["mark"])


def fitting_series(folder: str | os.PathLike, label: Volume) -> Series:
    """The series below a folder on whose slices a label map lies.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if there is no series, or several fit.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give the folder of the DICOM series that was segmented")
    found = find_series(dicom_files_below(Path(folder))).series
    if not found:
        raise ValueError(f"{folder}: holds no DICOM series")
    fitting = [series for series in found if not series.problem and _placed(label, series) is not None]
    if len(fitting) == 1 or len(found) == 1:
        return (fitting or found)[0]
    titles = ", ".join(f"{series.folder.name} {series.title}".strip() for series in (fitting or found)[:5])
    what = f"the label map fits {len(fitting)} series" if fitting else "the label map fits none of its series"
    raise ValueError(f"{folder}: {what}, {titles}; give the folder of the one that was segmented")


def read_label_map(path: str | os.PathLike) -> Volume:
    """A label map with its affine in mm."""
    image = nib.load(path)
    return Volume(np.asarray(image.dataobj).astype(np.int32), affine_in_mm(image.affine, image.header))


def _placed(label: Volume, series: Series) -> np.ndarray | None:
    """The label map on the grid of a series; ``None`` if it has other voxels."""
    shape, affine = series_grid(series)
    placement = place_label(label.array.shape, label.affine, shape, affine)
    return paste(label.array, placement, shape) if placement is not None and fits(placement, affine) else None


def write_dicom_seg(
    label: Volume, series: Series, path: str | os.PathLike, names: Mapping[int, str], colors: Mapping[int, Color]
) -> list[str]:
    """Write a label map as a DICOM segmentation of a series.

    A label map of other voxels, as after a change of spacing, is brought to those of the series; ties go to the smaller
    value. Labels without a voxel have no segment.

    Args:
        label: the label map.
        series: the series that was segmented.
        path: the file.
        names: names of the label values; these are looked up in a table of SNOMED CT.
        colors: of the label values.

    Returns:
        Names of the segments; empty if nothing is labelled, and then no file is written.

    Raises:
        RuntimeError: without highdicom.
        ValueError: if the series is no volume.
    """
    if not HAS_HIGHDICOM:
        raise RuntimeError(f"{path}: {NEEDS_HIGHDICOM}")
    shape, affine = series_grid(series)
    array = _placed(label, series)
    if array is None:
        array = resample_label(label, affine, shape).array
    values = [int(value) for value in np.unique(array) if value > 0]
    if not values:
        return []
    numbers = np.searchsorted(values, array) + 1  # segments are counted from 1 without a gap
    numbers = np.where(array > 0, numbers, 0).astype(np.uint16 if len(values) > 255 else np.uint8)
    slices = np.ascontiguousarray(numbers.transpose(2, 1, 0)[:, ::-1])  # as the files store them
    sources = [_whole(pydicom.dcmread(file, stop_before_pixels=True, force=True), series) for file in series.files]
    first = series.frames[0]
    titles = [names.get(value, f"label {value}") for value in values]
    known = dict(
        pixel_measures=highdicom.PixelMeasuresSequence(
            first.spacing_mm, first.thickness_mm, float(np.linalg.norm(affine[:3, 2]))
        ),
        plane_orientation=highdicom.PlaneOrientationSequence("PATIENT", first.directions),
        plane_positions=[highdicom.PlanePositionSequence("PATIENT", frame.position) for frame in series.frames],
    )
    digest = [series.header.series, str(values), slices.tobytes().hex()[:64]]
    segmentation = highdicom.seg.Segmentation(
        sources,
        slices,
        "BINARY",
        [_describe(number, title, colors[value]) for number, (value, title) in enumerate(zip(values, titles), 1)],
        series_instance_uid=pydicom.uid.generate_uid(entropy_srcs=["series", *digest]),
        series_number=int(series.header.number or 0) + SERIES_OFFSET,
        sop_instance_uid=pydicom.uid.generate_uid(),
        instance_number=1,
        manufacturer="fewshot-alpnet-segmentation",
        manufacturer_model_name="SSL-ALPNet",
        software_versions=__version__,
        device_serial_number="1",
        content_label="SEGMENTATION",
        content_description="few-shot segmentation",
        series_description=f"Segmentation of {series.header.description or 'series'}"[:64],
        **known,
    )
    with replacing(path) as temporary:
        segmentation.save_as(temporary)
    return titles


def _describe(number: int, title: str, color: Color) -> Any:
    category, kind, side = (None if code is None else _concept(code) for code in structure_code(title))
    segment = highdicom.seg.SegmentDescription(
        number,
        title[:64],
        category,
        kind,
        "AUTOMATIC",
        highdicom.AlgorithmIdentificationSequence(
            "SSL-ALPNet", pydicom.sr.codedict.codes.DCM.ArtificialIntelligence, __version__
        ),
        display_color=highdicom.color.CIELabColor.from_rgb(*color),
    )
    if side is not None:
        segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [side]
    return segment


def _concept(code: tuple[str, str]) -> Any:
    return highdicom.sr.CodedConcept(code[0], "SCT", code[1])


def _whole(data: Any, series: Series) -> Any:
    """A source file with what anonymizers take out and a segmentation must repeat."""
    for name in WHOLE:
        if name not in data:
            setattr(data, name, "")
    uid = series.header.series or str(series.folder)
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        if not data.get(name):  # the same for all files of the series
            setattr(data, name, pydicom.uid.generate_uid(entropy_srcs=[name, uid]))
    return data


def write_case_seg(
    label_file: str | os.PathLike,
    dataset_dir: str | os.PathLike | None,
    names: Mapping[int, str],
    colors: Mapping[int, Color],
    series_dir: str | os.PathLike | None = None,
    path: str | os.PathLike | None = None,
) -> tuple[Path, list[str]] | None:
    """Write the DICOM segmentation of a result, beside it unless a path is given.

    Args:
        label_file: the label map.
        dataset_dir: the prepared data set, which knows the series; may be ``None`` with ``series_dir``.
        names: names of the label values.
        colors: of the label values.
        series_dir: folder of the series.
        path: the file to write.

    Returns:
        The file and the names of its segments, none if nothing is labelled; ``None`` if the scan was no DICOM.

    Raises:
        RuntimeError, ValueError, FileNotFoundError: in one line.
    """
    label_file = Path(label_file)
    label = read_label_map(label_file)
    if series_dir is not None:
        series: Series | None = fitting_series(series_dir, label)
    else:
        series = None if dataset_dir is None else remembered_series(dataset_dir, label_file.parent.name)
    if series is None:
        return None
    target = Path(path) if path is not None else label_file.with_name(f"{case_name(label_file)}.dcm")
    return target, write_dicom_seg(label, series, target, names, colors)
