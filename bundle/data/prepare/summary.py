"""The summary of a preparation, for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any


def format_summary(summary: Mapping[str, Any], max_labels: int = 20) -> str:
    """A table of the cases, the voxels of each label, what was skipped and why.

    Args:
        summary: what :func:`prepare_dataset` returns.
        max_labels: how many labels to list.
    """
    cases, skipped = summary["cases"], summary["skipped"]
    names = {v: n for v, n in summary.get("label_names", {}).items() if v != "0"}
    lines = []
    if cases:
        rows = [("case", "", "shape", "spacing mm", "from", "spacing mm", "intensity", "labels")]
        for case in cases:
            rows.append(
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
            )
        rows = [(*row[:-1], row[-1] if len(row[-1]) <= 30 else f"{row[-1][:27]}...") for row in rows]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        voxels: Counter[str] = Counter()
        scans: Counter[str] = Counter()
        for case in cases:
            voxels.update(case["voxels"])
            scans.update(case["voxels"].keys())
        for value in sorted(scans, key=int)[:max_labels]:
            lines.append(f"{value} = {names.get(value, '(no name)')}: {voxels[value]} voxels in {scans[value]} scans")
        if len(scans) > max_labels:
            lines.append(f"... and {len(scans) - max_labels} more labels, in prepare_summary.json")
    lines += [f"note: {note}" for note in summary["notes"]]
    lines += [f"skipped {item['case']}: {item['reason']}" for item in skipped]
    lines.append(
        f"{summary['prepared']} prepared, {summary['already_there']} already there, {len(skipped)} skipped "
        f"in {summary['seconds']:.1f} s; {summary['layout']} -> {summary['dst']}"
    )
    return "\n".join(lines)


def _times(values: Any) -> str:
    return "x".join(f"{v:.4g}" for v in values)
