"""How well a scan is completed from a few of its labelled slices: by the images, by the shapes, and by both."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from bundle.atomic import write_text

from .on_demand import OnDemand

if TYPE_CHECKING:
    import nibabel as nib
    import numpy as np
else:
    nib, np = OnDemand("nibabel"), OnDemand("numpy")
data = OnDemand("bundle.data")
inferers = OnDemand("bundle.inferers")
segmenter = OnDemand("bundle.segmenter")
spatial = OnDemand("bundle.transforms.spatial")
EVERY_SECOND = "every second"
SLICES = (EVERY_SECOND, 5)
GROWTH = (1, 2, 3, 5, 8)
WAYS = ("images", "shapes", "both")
SUPPORTS = ("own slices alone", "the other scan alone", "both")


def completion(
    dataset_dir: str,
    output_dir: str = "completion",
    slices: Sequence[int | str] | None = None,
    scans: Sequence[int] = (3, 11),
    growth: bool = False,
    middle: float = 1.0,
    other: int | None = None,
    overrides: dict[str, Any] | None = None,
) -> str:
    """Label some slices of a scan and measure the Dice over the others; print and write the table.

    By default the outermost slices that show a label are among the labelled ones, and the slices between them count.
    With ``growth``, slices are added one after another, in the middle of equal parts of what the labels reach or where
    the completed scan is the least sure, or nearest to that where nothing is to be drawn. Then the whole scan counts,
    labelled slices included: what an annotator gets. With ``other``, another scan that is wholly labelled helps.

    Args:
        dataset_dir: folder of the data set, every image labelled.
        output_dir: folder of the table.
        slices: how many slices are labelled, evenly spread over what the labels reach, or "every second"; by default
            that and 5, with ``growth`` 1, 2, 3, 5 and 8.
        scans: numbers of the scans, in the data set's order.
        growth: measure how the Dice grows with the number of slices.
        middle: share of what the labels reach, in its middle, over which the labelled slices are spread. Below 1, all
            other slices of the scan count: how far labels are continued.
        other: number of a scan that is wholly labelled; measured are three own slices, in the middle of equal parts of
            what the labels reach, that scan, and both, over all slices that were not labelled.
        overrides: further ids of ``configs/inference.json``.
    """
    entries = data.make_datalist(dataset_dir)
    made = segmenter.FewShotSegmenter.from_bundle(**(overrides or {}))
    if growth:
        counts = sorted(map(int, slices or GROWTH))
        return _write(_growth_rows(made, [entries[number] for number in scans], counts), Path(output_dir, "growth.md"))
    if other is not None:
        lines = _other_rows(made, [entries[number] for number in scans], entries[other])
        return _write(lines, Path(output_dir, "other.md"))
    stage = made.inferer.shape_interpolation or inferers.ShapeInterpolation()
    stages = {"images": None, "shapes": inferers.ShapeInterpolation(stage.slope, 0.0, stage.reach), "both": stage}
    lines = ["| labelled | scan | " + " | ".join(WAYS) + " |", "|---" * (2 + len(WAYS)) + "|"]
    for how in slices or SLICES:
        rows = []
        for number in scans:
            values, whole, affine, axis = read(entries[number])
            drawn, others = draw(whole, axis, how, middle)
            found = {}
            for way, own in stages.items():
                made.inferer.shape_interpolation = own
                found[way] = dice(made.complete(values, drawn, affine=affine), whole, axis, others)
            rows.append([found[way] for way in WAYS])
            name = os.path.basename(entries[number]["image"]).partition(".")[0]
            lines.append(f"| {how} | {name} | " + " | ".join(f"{found[way]:.1f}" for way in WAYS) + " |")
            print(lines[-1], flush=True)
        lines.append(f"| {how} | mean | " + " | ".join(f"**{fmean(column):.1f}**" for column in zip(*rows)) + " |")
    return _write(lines, Path(output_dir, "completion.md"))


def _growth_rows(made: Any, entries: Sequence[dict[str, Any]], counts: Sequence[int]) -> list[str]:
    """The table of how the Dice grows with the number of labelled slices, see :func:`completion`."""
    lines = ["| slices chosen | scan | " + " | ".join(map(str, counts)) + " |", "|---" * (2 + len(counts)) + "|"]
    rows: dict[str, list[list[float]]] = {"evenly": [], "least sure": []}
    for entry in entries:
        values, whole, affine, axis = read(entry)
        shown = slices_that_show(whole, axis)
        name = os.path.basename(entry["image"]).partition(".")[0]
        for how, found in rows.items():
            kept: list[int] = []
            row: dict[int, float] = {}
            result = None
            for count in range(1, max(counts) + 1):
                if how == "evenly":
                    kept = spread(shown, count)
                else:
                    asked = shown[len(shown) // 2] if result is None else result.next_slice
                    left = np.setdiff1d(shown, kept)  # where nothing is to be drawn, an annotator goes on to the next
                    kept += [int(left[np.abs(left - asked).argmin()])] if len(left) else []
                if how == "evenly" and count not in counts:
                    continue
                drawn = on_slices(whole, axis, kept)
                result = made.complete(values, drawn, affine=affine, confidence=True)
                if count in counts:
                    row[count] = dice(result.label, whole, axis, np.arange(whole.shape[axis]))
            found.append([row[count] for count in counts])
            lines.append(f"| {how} | {name} | " + " | ".join(f"{number:.1f}" for number in found[-1]) + " |")
            print(lines[-1], flush=True)
    for how, found in rows.items():
        lines.append(f"| {how} | mean | " + " | ".join(f"**{fmean(column):.1f}**" for column in zip(*found)) + " |")
    return lines


def _other_rows(made: Any, entries: Sequence[dict[str, Any]], other: dict[str, Any]) -> list[str]:
    """The table of what another labelled scan brings to three labelled slices, see :func:`completion`."""
    loaded = [read(entry) for entry in entries]
    kept = [spread(slices_that_show(whole, axis), 3) for _, whole, _, axis in loaded]
    marked = [
        (on_slices(whole, axis, own), np.setdiff1d(np.arange(whole.shape[axis]), own))
        for own, (_, whole, _, axis) in zip(kept, loaded)
    ]
    found: list[list[np.ndarray]] = [
        [made.complete(values, drawn, affine=affine)]  # first of all, since a support that is set once helps
        for (values, _, affine, _), (drawn, _) in zip(loaded, marked)
    ]
    made.set_support(other["image"], other["label"], slices="all")
    lines = ["| scan | " + " | ".join(SUPPORTS) + " |", "|---" * (1 + len(SUPPORTS)) + "|"]
    for entry, (values, whole, affine, axis), (drawn, rest), results in zip(entries, loaded, marked, found):
        results += [made.segment(values, affine=affine), made.complete(values, drawn, affine=affine)]
        name = os.path.basename(entry["image"]).partition(".")[0]
        lines.append(f"| {name} | " + " | ".join(f"{dice(each, whole, axis, rest):.1f}" for each in results) + " |")
        print(lines[-1], flush=True)
    return lines


def _write(lines: Sequence[str], path: Path) -> str:
    """Write a table, and return it."""
    table = "\n".join(lines)
    write_text(path, table + "\n")
    return table


def read(entry: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Image, label map and affine of a labelled scan, and the axis of its slices."""
    image, label = (nib.load(entry[key]) for key in ("image", "label"))
    values, whole = np.asarray(image.dataobj, np.float32), np.rint(np.asarray(label.dataobj)).astype(np.int32)
    return values, whole, image.affine, spatial.slice_axis(image.affine)


def slices_that_show(label: np.ndarray, axis: int) -> np.ndarray:
    """Numbers of the slices that show a label, ascending."""
    return np.flatnonzero((np.moveaxis(label, axis, 0) > 0).reshape(label.shape[axis], -1).any(axis=1))


def spread(slices: np.ndarray, count: int) -> list[int]:
    """So many of some slices: the middles of equal parts."""
    return [int(part[len(part) // 2]) for part in np.array_split(slices, min(count, len(slices)))]


def on_slices(label: np.ndarray, axis: int, slices: Sequence[int] | np.ndarray) -> np.ndarray:
    """A label map on some slices alone."""
    drawn = np.zeros_like(label)
    np.moveaxis(drawn, axis, 0)[slices] = np.moveaxis(label, axis, 0)[slices]
    return drawn


def draw(label: np.ndarray, axis: int, how: int | str, middle: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A label map on some slices alone, and the numbers of the slices that count.

    These are the others between the first and the last that show it; or of all, if labelled ones lie in the middle.
    """
    shown = slices_that_show(label, axis)
    first, last = float(shown[0]), float(shown[-1])
    if how == EVERY_SECOND:
        kept = shown[::2]
    elif int(how) == 1:
        kept = np.array([round((first + last) / 2)])
    else:
        left = (last - first) * (1 - middle) / 2
        kept = np.unique(np.round(np.linspace(first + left, last - left, int(how))).astype(int))
    counting = np.arange(shown[0], shown[-1] + 1) if middle >= 1 else np.arange(label.shape[axis])
    return on_slices(label, axis, kept), np.setdiff1d(counting, kept)


def dice(found: np.ndarray, truth: np.ndarray, axis: int, slices: np.ndarray) -> float:
    """Mean Dice in percent, over some slices, of the labels that these show."""
    found, truth = (np.moveaxis(array, axis, 0)[slices] for array in (found, truth))
    values = np.unique(truth[truth > 0])
    return fmean(200 * ((found == v) & (truth == v)).sum() / ((found == v).sum() + (truth == v).sum()) for v in values)
