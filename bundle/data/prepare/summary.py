"""The summary of a preparation, for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...commands import is_command, next_command, run_command

LONGEST_CELL = 60  # characters of a cell of a table


def format_summary(summary: Mapping[str, Any], max_labels: int = 20, max_files: int = 5) -> str:
    """The cases and where they come from, the voxels of each label, what was left aside and why, what to do next.

    Args:
        summary: what :func:`prepare_dataset` returns.
        max_labels: how many labels to list.
        max_files: how many files to list that are left aside for one reason.
    """
    cases, skipped = summary["cases"], summary["skipped"]
    names = {v: n for v, n in summary.get("label_names", {}).items() if v != "0"}
    lines = []
    if cases:
        lines += _table(
            ("case", "image", "label"),
            [(c["case"], c["image"], _label_cell(c, any(other["voxels"] for other in cases))) for c in cases],
        )
        rows = [
            (
                case["case"],
                case["modality"],
                _times(case["shape"]),
                _times(case["spacing_mm"]),
                _times(case["source_shape"]),
                _times(case["source_spacing_mm"]),
                f"{case['range'][0]:g}..{case['range'][1]:g}",
                ",".join(case["voxels"]) or "none",
            )
            for case in cases
        ]
        lines += ["", *_table(("case", "", "shape", "spacing mm", "from", "spacing mm", "intensity", "labels"), rows)]
        voxels: Counter[str] = Counter()
        scans: Counter[str] = Counter()
        for case in cases:
            voxels.update(case["voxels"])
            scans.update(case["voxels"].keys())
        for value in sorted(scans, key=int)[:max_labels]:
            lines.append(f"{value} = {names.get(value, '(no name)')}: {voxels[value]} voxels in {scans[value]} scans")
        if len(scans) > max_labels:
            lines.append(f"... and {len(scans) - max_labels} more labels, in prepare_summary.json")
        lines.append("")
    reasons: dict[str, list[str]] = {}
    for item in summary["aside"]:
        reasons.setdefault(item["reason"], []).append(item["file"])
    for reason, files in reasons.items():
        more = f" and {len(files) - max_files} more, in prepare_summary.json" if len(files) > max_files else ""
        lines.append(f"left aside {', '.join(files[:max_files])}{more}: {reason}")
    lines += [f"note: {note}" for note in summary["notes"]]
    lines += [f"skipped {item['case']}: {item['reason']}" for item in skipped]
    lines.append(
        f"{summary['prepared']} prepared, {summary['already_there']} already there, {len(skipped)} skipped "
        f"in {summary['seconds']:.1f} s; {summary['layout']} -> {summary['dst']}"
    )
    if cases:
        lines += ["", *next_steps(cases, summary["dst"])]
    return "\n".join(lines)


def next_steps(cases: Sequence[Mapping[str, Any]], dst: str) -> list[str]:
    """What to type after a preparation: check the data set, then segment what has no label, or train.

    Args:
        cases: of the summary.
        dst: the folder of the result.
    """
    labelled = [case["case"] for case in cases if case["voxels"] and case["subset"] == "Tr"]
    held = [case["case"] for case in cases if case["subset"] == "Ts"]
    bare = held or [case["case"] for case in cases if not case["voxels"]]
    check = f"  {next_command('check', str(dst))}"
    if labelled and bare:
        what = f"{len(bare)} scan{'s' * (len(bare) > 1)}"
        run = run_command("segment", str(dst), output_dir=str(Path(dst) / "segmented"))
        return ["next: check the data, then segment " + what, check, f"  {run}"]
    results = {"output_dir": str(Path(dst) / "trained")} if is_command() else {}  # else the config has folders for them
    train = f"  {run_command('train', str(dst), **results)}"
    if labelled:
        return [
            "next: check the data, then train on it; every scan has a label, so add scans to segment and prepare again",
            check,
            train,
        ]
    return [
        "next: no scan has a label; training needs none, but to segment, label one scan, save the label beside its "
        f"image as {Path(cases[0]['image']).name.split('.')[0] or cases[0]['case']}_label.nii.gz and prepare again",
        check,
        train,
    ]


def _label_cell(case: Mapping[str, Any], any_labelled: bool) -> str:
    """What the label of a case is, or what the scan without one is for."""
    if case["label"] is None:
        return "none: to be segmented" if any_labelled else "none"
    return case["label"] if case["voxels"] else f"{case['label']}: empty, every voxel is 0"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with their columns below each other."""
    cells = [[cell if len(cell) <= LONGEST_CELL else f"{cell[: LONGEST_CELL - 3]}..." for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [head, *cells]) for i in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in [head, *cells]]


def _times(values: Any) -> str:
    return "x".join(f"{v:.4g}" for v in values)
