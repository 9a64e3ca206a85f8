"""What there is to prepare: the cases of each archive, found by the names its site gives them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .folder import find_folder_cases
from .formats import SCAN_SUFFIXES, natural_key
from .source import Case, Found


@dataclass(frozen=True)
class Archive:
    """How an archive is laid out.

    Attributes:
        find: finds its cases below a folder.
        hint: what the folder should hold, for the message that it does not.
    """

    find: Callable[[Path], Found]
    hint: str


def find_chaos(src: Path) -> Found:
    """The T2-SPIR scans of the CHAOS archive: ``…/MR/<case>/T2SPIR/{DICOM_anon,Ground}``."""
    folders = [p for p in src.rglob("T2SPIR") if p.is_dir() and (p / "DICOM_anon").is_dir()]
    folders = [p for p in folders if "Train_Sets" in p.parts] or folders
    cases = []
    for folder in sorted(folders, key=natural_key):
        name = folder.parent.name
        label = folder / "Ground"
        cases.append(
            Case(
                name=f"chaos_{int(name):02d}" if name.isdigit() else f"chaos_{name}",
                image=folder / "DICOM_anon",
                label=label if label.is_dir() else None,
                expected_label=label,
            )
        )
    return Found(cases)


def find_sabs(src: Path) -> Found:
    """The scans of the Synapse multi-atlas abdomen archive: ``…/img/img0001.nii.gz``, ``…/label/label0001.nii.gz``."""
    cases = []
    for image in sorted(src.rglob("img*.nii.gz"), key=natural_key):
        match = re.fullmatch(r"img(\d+)\.nii\.gz", image.name)
        if match and image.parent.name == "img":
            label = image.parent.parent / "label" / f"label{match[1]}.nii.gz"
            cases.append(Case(f"sabs_{int(match[1]):02d}", image, label if label.is_file() else None, label))
    return Found(cases)


def find_mscmr(src: Path) -> Found:
    """The bSSFP scans of the MS-CMRSeg archive: ``patientN_C0.nii.gz``, ``patientN_C0_manual.nii.gz`` anywhere."""
    labels = {p.name: p for p in sorted(src.rglob("patient*_C0_manual.nii.gz"))}
    cases = []
    for image in sorted(src.rglob("patient*_C0.nii.gz"), key=lambda p: natural_key(p.name)):
        wanted = image.name.replace("_C0", "_C0_manual")
        number = image.name.removeprefix("patient").removesuffix("_C0.nii.gz")
        name = f"mscmr_{int(number):02d}" if number.isdigit() else f"mscmr_{number}"
        cases.append(Case(name, image, labels.get(wanted), image.with_name(wanted)))
    return Found(cases)


ARCHIVES: Mapping[str, Archive] = {
    "chaos": Archive(find_chaos, "Train_Sets/MR/<case>/T2SPIR/{DICOM_anon,Ground}"),
    "sabs": Archive(find_sabs, "img/img0001.nii.gz and label/label0001.nii.gz"),
    "mscmr": Archive(find_mscmr, "patient1_C0.nii.gz and patient1_C0_manual.nii.gz"),
    "folder": Archive(find_folder_cases, f"scans ({', '.join(SCAN_SUFFIXES)}) or folders of DICOM files"),
}
