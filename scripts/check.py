"""Check a data set before any long work: ``python -m scripts.check DATASET_DIR [--strict]``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundle.keys import IMAGE, LABEL

from .command import command

if TYPE_CHECKING:  # what takes seconds to import is imported where it is used: --help answers at once
    from bundle.data.fingerprint import Finding


def check(dataset_dir: str, strict: bool = False, num_workers: int | None = None) -> None:
    """Read every scan and label of a data set once and print what is wrong, a line each, and what there is.

    Training, inference and evaluation make the same check before they start.

    Args:
        dataset_dir: folder with imagesTr, labelsTr, imagesTs and dataset.json.
        strict: end with an error if anything is wrong; otherwise only if no scan is usable.
        num_workers: scans at a time.
    """
    from bundle.data.datalist import label_names, make_datalist
    from bundle.data.fingerprint import FOLDERS, check_entries, check_folder
    from bundle.data.preflight import leave_out

    root = Path(str(dataset_dir))
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; give the folder of a data set")
    folders = [(images, labels) for images, labels in FOLDERS.items() if (root / images).is_dir()]
    scans = [scan for images, labels in folders or [("", "labels")] for scan in make_datalist(root, images, labels)]
    if not scans:
        raise ValueError(f"{root}: no scans; {_remedy(root)}")
    names = label_names(root)
    total = len(scans)
    findings = check_entries(scans, names=names, num_workers=num_workers, progress=True) + check_folder(root)
    findings += [] if folders else _labels_among(scans, root) + _unread(root)
    leave_out(scans, findings, strict, print)
    print(f"{root}: {total} scans, {len(scans)} usable, {len(findings)} findings")
    print("\n".join(summary(scans, names)))


def _remedy(root: Path) -> str:
    """What to do about a folder without scans in its layout."""
    from bundle.data.fingerprint import prepare_command
    from bundle.data.prepare import holds_scans

    remedy = "put NIfTI files into imagesTr"
    return f"{remedy}, or use `{prepare_command(root)}`" if holds_scans(root) else remedy


def _labels_among(scans: Sequence[dict[str, Any]], root: Path) -> list[Finding]:
    """Labels that lie beside the scans of a folder without a layout, where they would be taken for scans."""
    from bundle.data.fingerprint import Finding, prepare_command
    from bundle.data.prepare import is_label_name

    remedy = f"use `{prepare_command(root)}`"
    return [
        Finding(f"{scan[IMAGE]}: is a label by its name, but lies among the scans; {remedy}", index)
        for index, scan in enumerate(scans)
        if is_label_name(Path(scan[IMAGE]).name)
    ]


def _unread(root: Path) -> list[Finding]:
    """What lies beside the scans of a folder without a layout and is not read; its folder of labels is."""
    from bundle.data.fingerprint import Finding, unread_files

    labels = f"{root / 'labels'}: "
    return [Finding(line) for line in unread_files(root, root) if not line.startswith(labels)]


def summary(scans: Sequence[dict[str, Any]], names: dict[int, str]) -> list[str]:
    """Lines about what the scans have in common and where they differ."""
    from nibabel import aff2axcodes

    from bundle.data.fingerprint import read_fingerprint

    found = [read_fingerprint(scan[IMAGE]) for scan in scans]
    lines = [
        f"shape: {' x '.join(_range([f.shape[axis] for f in found]) for axis in range(3))}",
        f"spacing: {' x '.join(_range([f.spacing_mm[axis] for f in found]) for axis in range(3))} mm",
        f"orientation: {_counts([''.join(aff2axcodes(f.affine)) for f in found])}",
        f"voxels: {_counts([f.dtype for f in found])}, {_range([f.low for f in found] + [f.high for f in found])}",
    ]
    labels = [read_fingerprint(scan[LABEL], is_label=True).values or () for scan in scans if LABEL in scan]
    shown = Counter(value for values in labels for value in values)
    lines += [f"label {value} {names.get(value, '')}: in {shown[value]} of {len(labels)}" for value in sorted(shown)]
    return lines


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.4g}", f"{max(values):.4g}"
    return low if low == high else f"{low}..{high}"


def _counts(values: Sequence[str]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in Counter(values).most_common())


def main(arguments: Sequence[str] | None = None, name: str = "scripts.check") -> None:
    """Run the command line; bad input ends with one line and a non-zero status."""
    command(check, name, arguments)


if __name__ == "__main__":
    main()
