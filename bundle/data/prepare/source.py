"""One scan of an archive, and what a look into an archive finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .dicom_series import Series


@dataclass(frozen=True)
class LabelPart:
    """One structure of a label that lies in several files, layers or values.

    Attributes:
        path: the file.
        target: its value in the result.
        value: its value in the file; ``None`` for whatever is not 0.
        layer: the volume that it lies in.
    """

    path: Path
    target: int
    value: int | None = None
    layer: int = 0


@dataclass(frozen=True)
class Case:
    """Where a scan and its label lie.

    Attributes:
        name: file name of the result, without suffix.
        image: file of a volume, or folder of a DICOM series.
        label: file of a label map, or folder of masks; ``None`` if there is none.
        expected_label: where the label was looked for, for the message that it is missing.
        subset: ``"Tr"`` or ``"Ts"``, which folders the result goes to.
        label_map: value in the file to value in the result; empty keeps values.
        parts: the structures of a label that is no single label map; empty for one that is.
        series: the DICOM series in the folder ``image``; ``None`` if it holds one alone, or no DICOM at all.
    """

    name: str
    image: Path
    label: Path | None = None
    expected_label: Path | None = None
    subset: str = "Tr"
    label_map: tuple[tuple[int, int], ...] = ()
    parts: tuple[LabelPart, ...] = ()
    series: Series | None = None


@dataclass
class Found:
    """The cases of an archive.

    Attributes:
        cases: what to prepare, sorted.
        label_names: names of label values, where the archive has them.
        notes: one line for each thing to know.
        layout: what kind of folder it is.
        aside: files that are not taken, relative to the folder, with the reason and what would have been expected.
    """

    cases: list[Case]
    label_names: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    layout: str = ""
    aside: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Options:
    """How to read the cases, besides the recipe.

    Attributes:
        channel: which volume of 4D files; ``None`` refuses them.
        mask_order: see :func:`read_png_masks`.
        ignore_label_geometry: take a label's voxels as they lie, whatever its header says.
        image: word in the names of the images that are taken; ``None`` takes all.
        label: word in the names of the labels that are taken; ``None`` takes all.
    """

    channel: int | None = None
    mask_order: str = "name"
    ignore_label_geometry: bool = False
    image: str | None = None
    label: str | None = None
