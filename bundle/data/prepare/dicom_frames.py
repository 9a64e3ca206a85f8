"""What the headers of DICOM files say: which hold slices of a scan and where they lie, which a label, which neither."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from monai.utils import optional_import

from .formats import COMPANIONS, PICTURE_SUFFIXES, first_line, scan_suffix

pydicom, HAS_PYDICOM = optional_import("pydicom")

NEEDS_PYDICOM = (
    'DICOM needs pydicom: pip install pydicom highdicom, or the extra of this package, pip install ".[dicom]"'
)
SUFFIXES = (".dcm", ".dicom", ".dic", ".ima")  # of files that mean to be DICOM
TEXT_SUFFIXES = (".json", ".txt", ".md", ".csv", ".tsv", ".bval", ".bvec", ".zip", ".gz", ".pdf", ".xml", ".html")
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # segments, label maps
STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
DOSE = "1.2.840.10008.5.1.4.1.1.481.2"
GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
# attributes that tell apart what one series has of one place: kind of image, echo, diffusion weight, time, ...
MARKS = (
    ("type", "ImageType"),
    ("frame", "FrameType"),
    ("echo", "EchoTime"),
    ("effective", "EffectiveEchoTime"),
    ("b", "DiffusionBValue"),
    ("time", "TemporalPositionIdentifier"),
    ("index", "TemporalPositionIndex"),
    ("trigger", "TriggerTime"),
    ("phase", "NominalPercentageOfCardiacPhase"),
    ("acquisition", "AcquisitionNumber"),
    ("stack", "StackID"),
)
WANTED = (
    *("SOPClassUID", "SOPInstanceUID", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber"),
    *("SeriesDescription", "Modality", "FrameOfReferenceUID", "InstanceNumber", "ImagesInAcquisition", "Rows"),
    *("NumberOfSeriesRelatedInstances", "NumberOfSlices", "Columns", "SamplesPerPixel", "NumberOfFrames"),
    *("SliceThickness", "SpacingBetweenSlices", "SharedFunctionalGroupsSequence", "ReferencedSeriesSequence"),
    *("PerFrameFunctionalGroupsSequence", "ReferencedFrameOfReferenceSequence", "SegmentSequence"),
    *("StructureSetROISequence", *GEOMETRY, *(attribute for _, attribute in MARKS)),
)


@dataclass(frozen=True)
class Frame:
    """One slice.

    Attributes:
        path: its file.
        index: its number within the file, from 0; ``None`` if the file has no other.
        shape: rows and columns.
        position: of its first pixel, in mm to the left, back and head.
        directions: along a row and along a column.
        spacing_mm: between rows and between columns.
        thickness_mm: from a slice to the next, as the header says.
        number: of the image in its series; 0 if unknown.
        marks: what tells it from others at its place.
    """

    path: Path
    index: int | None
    shape: tuple[int, int]
    position: tuple[float, ...]
    directions: tuple[float, ...]
    spacing_mm: tuple[float, ...]
    thickness_mm: float = 1.0
    number: int = 0
    marks: Mapping[str, str] = field(default_factory=dict)

    @property
    def normal(self) -> np.ndarray:
        """Unit vector across the slice."""
        return np.cross(self.directions[:3], self.directions[3:])

    @property
    def place_mm(self) -> float:
        """Where it lies along that."""
        return float(np.array(self.position) @ self.normal)


@dataclass(frozen=True)
class Header:
    """What the header of a file says.

    Attributes:
        path: the file.
        kind: ``"image"``, ``"label"`` for a segmentation or a structure set, or ``""``.
        reason: why it is neither.
        frames: its slices.
        instance, patient, study, series, space: unique identifiers; ``""`` if unknown. ``space`` is the frame of
            reference, which scans share whose positions mean the same.
        number, description: of the series.
        modality: such as ``"CT"``.
        localizer: whether the header calls it so.
        images: how many images the header counts; 0 if it does not.
        references: series that a label was drawn on.
        segments: number and name of a label's structures.
    """

    path: Path
    kind: str = ""
    reason: str = ""
    frames: tuple[Frame, ...] = ()
    instance: str = ""
    patient: str = ""
    study: str = ""
    series: str = ""
    space: str = ""
    number: str = ""
    description: str = ""
    modality: str = ""
    localizer: bool = False
    images: int = 0
    references: frozenset[str] = frozenset()
    segments: tuple[tuple[int, str], ...] = ()


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its preamble, or means to be by its name."""
    suffix = path.suffix.lower()
    if path.name.upper() == "DICOMDIR":
        return False
    if suffix in SUFFIXES:
        return True
    if scan_suffix(path) or suffix in PICTURE_SUFFIXES + TEXT_SUFFIXES or suffix in COMPANIONS:
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files directly in a folder."""
    return [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".") and is_dicom(p)]


def read_header(path: Path) -> Header:
    """Read a header; a file that cannot be read says so in ``reason``.

    Raises:
        RuntimeError: without pydicom.
    """
    if not HAS_PYDICOM:
        raise RuntimeError(f"{path}: reading {NEEDS_PYDICOM}")
    try:
        data = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=list(WANTED))
        if not (data.get("SOPClassUID") or data.get("Rows")):
            raise ValueError("it has no DICOM header")
        return _header(path, data)
    except Exception as error:  # pydicom raises whatever the broken byte leads to
        return Header(path, reason=f"cannot be read as DICOM ({first_line(error)}); replace the file")


def _header(path: Path, data: Any) -> Header:
    kind, reason = "", ""
    frames: tuple[Frame, ...] = ()
    sop = str(data.get("SOPClassUID", ""))
    if sop in (*SEGMENTATIONS, STRUCTURE_SET):
        kind = "label"
    elif sop == DOSE or not data.get("Rows"):
        reason = f"{pydicom.uid.UID(sop).name if sop else 'DICOM without pixels'}: no scan"
    elif int(data.get("SamplesPerPixel", 1) or 1) != 1:
        reason = "a picture in color: no scan"
    else:
        frames, missing = _frames(path, data)
        if missing:
            several = f"its {data.NumberOfFrames} frames lack" if int(data.get("NumberOfFrames") or 1) > 1 else "lacks"
            reason = f"{several} {', '.join(missing)}, so that nothing says where it lies; leave it out of the folder"
        else:
            kind = "image"
    return Header(
        path,
        kind,
        reason,
        frames,
        instance=_text(data, "SOPInstanceUID"),
        patient=_text(data, "PatientID"),
        study=_text(data, "StudyInstanceUID"),
        series=_text(data, "SeriesInstanceUID"),
        space=_text(data, "FrameOfReferenceUID") or _structure_space(data),
        number=_text(data, "SeriesNumber"),
        description=_text(data, "SeriesDescription"),
        modality=_text(data, "Modality"),
        localizer="LOCALIZER" in [str(word).upper() for word in _listed(data.get("ImageType"))],
        images=_count(data),
        references=frozenset(_references(data)) if kind == "label" else frozenset(),
        segments=_segments(data) if kind == "label" else (),
    )


def _frames(path: Path, data: Any) -> tuple[tuple[Frame, ...], list[str]]:
    """The slices of a file, and the attributes without which nothing says where they lie."""
    per_frame = data.get("PerFrameFunctionalGroupsSequence") or []
    count = int(data.get("NumberOfFrames") or 1)
    sources = functional_groups(data) or [[data]]
    if count > 1 and not per_frame:
        return (), ["PerFrameFunctionalGroupsSequence"]
    frames = []
    for index, source in enumerate(sources):
        found = {name: _first(source, name) for name in GEOMETRY}
        missing = [name for name, value in found.items() if not value]
        if missing:
            return (), missing
        marks = {mark: _first(source, name, data) for mark, name in MARKS}
        thickness = _first(source, "SpacingBetweenSlices", data) or _first(source, "SliceThickness", data)
        position, directions, spacing = (tuple(float(v) for v in found[name]) for name in GEOMETRY)
        frames.append(
            Frame(
                path,
                index if per_frame else None,
                (int(data.Rows), int(data.Columns)),
                position,
                directions,
                spacing,
                abs(float(thickness or 1.0)),
                int(data.get("InstanceNumber") or 0) if not per_frame else index + 1,
                {mark: "/".join(map(str, _listed(value))) for mark, value in marks.items() if value not in (None, "")},
            )
        )
    return tuple(frames), []


def functional_groups(data: Any) -> list[list[Any]]:
    """For each frame of a multi-frame file the data sets that describe it, the shared ones first."""
    return [[*_shared(data), *_groups(each)] for each in data.get("PerFrameFunctionalGroupsSequence") or []]


def _shared(data: Any) -> list[Any]:
    return [each for item in data.get("SharedFunctionalGroupsSequence") or [] for each in _groups(item)]


def _groups(item: Any) -> list[Any]:
    """The macros of an item of functional groups, with what lies one level deeper, as diffusion does."""
    own = [each for element in item if element.VR == "SQ" for each in element.value]
    return own + [each for group in own for element in group if element.VR == "SQ" for each in element.value]


def _first(sources: list[Any], name: str, data: Any = None) -> Any:
    """The value of an attribute in the last data set that has it: what a frame says goes before what is shared."""
    found = (each.get(name) for each in reversed(sources) if name in each)
    return next((value for value in found if value is not None), None if data is None else data.get(name))


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return [value] if isinstance(value, str | int | float) else list(value)


def _text(data: Any, name: str) -> str:
    return str(data.get(name) or "").strip() if name != "SeriesNumber" else str(data.get(name) or "")


def _count(data: Any) -> int:
    for name in ("NumberOfSeriesRelatedInstances", "ImagesInAcquisition", "NumberOfSlices"):
        if str(data.get(name) or "").isdigit():
            return int(data.get(name))
    return 0


def _references(data: Any) -> list[str]:
    """Series that a segmentation or a structure set was drawn on."""
    series = [item.get("SeriesInstanceUID") for item in data.get("ReferencedSeriesSequence") or []]
    for frame in data.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            series += [item.get("SeriesInstanceUID") for item in study.get("RTReferencedSeriesSequence") or []]
    return [str(uid) for uid in series if uid]


def _structure_space(data: Any) -> str:
    spaces = [item.get("FrameOfReferenceUID") for item in data.get("ReferencedFrameOfReferenceSequence") or []]
    spaces += [item.get("ReferencedFrameOfReferenceUID") for item in data.get("StructureSetROISequence") or []]
    return next((str(uid) for uid in spaces if uid), "")


def _segments(data: Any) -> tuple[tuple[int, str], ...]:
    """Numbers and names of the structures."""
    found = [
        (int(item.SegmentNumber), str(item.get("SegmentLabel") or item.get("SegmentDescription") or "").strip())
        for item in data.get("SegmentSequence") or []
    ]
    found += [
        (int(item.ROINumber), str(item.get("ROIName") or "").strip())
        for item in data.get("StructureSetROISequence") or []
    ]
    return tuple((number, name or f"segment {number}") for number, name in found if number > 0)  # 0 is background
