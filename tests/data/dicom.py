"""Small DICOM studies, written file by file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    BasicTextSRStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    RTStructureSetStorage,
    generate_uid,
)

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
STUDY = {
    "PatientID": "P1",
    "PatientName": "Doe^Jane",
    "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.1",
    "FrameOfReferenceUID": "1.2.826.0.1.3680043.8.498.2",
}


def edit(files, **tags):
    """Set attributes of files; a list gives one value for each."""
    files = [files] if isinstance(files, Path) else files
    for k, path in enumerate(files):
        data = pydicom.dcmread(path)
        for name, value in tags.items():
            value = value[k] if isinstance(value, list) and len(value) == len(files) else value
            if value is None:
                delattr(data, name)
            else:
                setattr(data, name, value)
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        data.save_as(path)


def new_file(path, sop_class, **tags):
    """A file without pixels, not yet saved."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    for name, value in tags.items():
        setattr(data, name, value)
    return data


def write_report(path, **tags):
    """A structured report."""
    new_file(path, BasicTextSRStorage, Modality="SR", SeriesInstanceUID=generate_uid(), **tags).save_as(path)


def item(**tags):
    """A data set within a sequence."""
    data = Dataset()
    for name, value in tags.items():
        setattr(data, name, value)
    return data


def write_enhanced(path, array, origin=(-100.0, -80.0, 30.0), step=7.7, spacing=(1.25, 1.25), order=None, **tags):
    """Write slices ``(rows, columns, slices)`` as frames of one file, in ``order``, with the rescale of each slice."""
    data = new_file(path, EnhancedMRImageStorage, Modality="MR", SeriesInstanceUID=generate_uid(), **tags)
    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=list(AXIAL))],
        PixelMeasuresSequence=[item(PixelSpacing=list(spacing), SliceThickness=step, SpacingBetweenSlices=step)],
    )
    frames = []
    order = list(order or range(array.shape[2]))
    for k in order:
        place = [float(v) for v in np.add(origin, (0, 0, step * k))]
        frames.append(
            item(
                PlanePositionSequence=[item(ImagePositionPatient=place)],
                PixelValueTransformationSequence=[item(RescaleSlope=1 + k, RescaleIntercept=-k, RescaleType="US")],
                FrameContentSequence=[item(TemporalPositionIndex=1)],
            )
        )
    data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence = [shared], frames
    data.NumberOfFrames = len(order)
    data.Rows, data.Columns = array.shape[:2]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.PixelData = np.stack([array[..., k] for k in order]).astype("<u2").tobytes()
    data.save_as(path)
    return path


def write_structures(path, label, names, source=None, origin=(-100.0, -80.0, 30.0), step=7.7, spacing=1.25, **tags):
    """Write label values of axial slices ``(rows, columns, slices)`` as contours along the edges of their pixels."""
    from skimage.measure import find_contours

    data = new_file(path, RTStructureSetStorage, Modality="RTSTRUCT", SeriesInstanceUID=generate_uid(), **tags)
    data.StructureSetROISequence, data.ROIContourSequence = [], []
    if source is not None:
        series = item(SeriesInstanceUID=source)
        study = item(RTReferencedSeriesSequence=[series])
        data.ReferencedFrameOfReferenceSequence = [item(RTReferencedStudySequence=[study])]
    for value, name in names.items():
        contours = []
        for k in range(label.shape[2]):
            for line in find_contours(np.pad(label[..., k] == value, 1), 0.5):
                points = np.c_[line[:-1, ::-1] - 1, np.full(len(line) - 1, k)] * (spacing, spacing, step) + origin
                contours.append(
                    item(
                        ContourGeometricType="CLOSED_PLANAR",
                        NumberOfContourPoints=len(points),
                        ContourData=[f"{v:.4f}" for v in points.ravel()],
                    )
                )
        data.StructureSetROISequence.append(item(ROINumber=value, ROIName=name))
        data.ROIContourSequence.append(item(ReferencedROINumber=value, ContourSequence=contours))
    data.save_as(path)
    return path
