"""One scan of an archive, and what a look into an archive finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """Where a scan and its label lie.

    Attributes:
        name: file name of the result, without suffix.
        image: NIfTI file, or folder of a DICOM series.
        label: NIfTI file, or folder of PNG masks; ``None`` if there is none.
        expected_label: where the label was looked for, for the message that it is missing.
        subset: ``"Tr"`` or ``"Ts"``, which folders the result goes to.
        label_map: value in the file to value in the result; empty keeps values.
    """

    name: str
    image: Path
    label: Path | None = None
    expected_label: Path | None = None
    subset: str = "Tr"
    label_map: tuple[tuple[int, int], ...] = ()


@dataclass
class Found:
    """The cases of an archive.

    Attributes:
        cases: what to prepare, sorted.
        label_names: names of label values, where the archive has them.
        notes: one line for each thing that was left aside.
        layout: what kind of folder it is.
    """

    cases: list[Case]
    label_names: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    layout: str = ""


@dataclass(frozen=True)
class Options:
    """How to read the cases, besides the recipe.

    Attributes:
        channel: which volume of 4D files; ``None`` refuses them.
        mask_order: see :func:`read_png_masks`.
        ignore_label_geometry: take a label's voxels as they lie, whatever its header says.
    """

    channel: int | None = None
    mask_order: str = "name"
    ignore_label_geometry: bool = False
