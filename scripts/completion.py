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
WAYS = ("images", "shapes", "both")


def completion(
    dataset_dir: str,
    output_dir: str = "completion",
    slices: Sequence[int | str] = (EVERY_SECOND, 5),
    scans: Sequence[int] = (3, 11),
    overrides: dict[str, Any] | None = None,
) -> str:
    """Label some slices of a scan and measure the Dice over the others; print and write the table.

    Args:
        dataset_dir: folder of the data set, every image labelled.
        output_dir: folder of the table.
        slices: how many slices are labelled, evenly spread over what the labels reach, or "every second".
        scans: numbers of the scans, in the data set's order.
        overrides: further ids of ``configs/inference.json``.
    """
    entries = data.make_datalist(dataset_dir)
    made = segmenter.FewShotSegmenter.from_bundle(**(overrides or {}))
    stage = made.inferer.shape_interpolation or inferers.ShapeInterpolation()
    stages = {"images": None, "shapes": inferers.ShapeInterpolation(stage.slope, 0.0, stage.reach), "both": stage}
    lines = ["| labelled | scan | " + " | ".join(WAYS) + " |", "|---" * (2 + len(WAYS)) + "|"]
    for how in slices:
        rows = []
        for number in scans:
            image, label = (nib.load(entries[number][key]) for key in ("image", "label"))
            values, whole = np.asarray(image.dataobj, np.float32), np.rint(np.asarray(label.dataobj)).astype(np.int32)
            axis = spatial.slice_axis(image.affine)
            drawn, others = draw(whole, axis, how)
            found = {}
            for way, own in stages.items():
                made.inferer.shape_interpolation = own
                found[way] = dice(made.complete(values, drawn, affine=image.affine), whole, axis, others)
            rows.append([found[way] for way in WAYS])
            name = os.path.basename(entries[number]["image"]).partition(".")[0]
            lines.append(f"| {how} | {name} | " + " | ".join(f"{found[way]:.1f}" for way in WAYS) + " |")
            print(lines[-1], flush=True)
        lines.append(f"| {how} | mean | " + " | ".join(f"**{fmean(column):.1f}**" for column in zip(*rows)) + " |")
    table = "\n".join(lines)
    write_text(Path(output_dir) / "completion.md", table + "\n")
    return table


def draw(label: np.ndarray, axis: int, how: int | str) -> tuple[np.ndarray, np.ndarray]:
    """A label map on some slices alone, and the numbers of the others between the first and the last that show it."""
    shown = np.flatnonzero((np.moveaxis(label, axis, 0) > 0).reshape(label.shape[axis], -1).any(axis=1))
    if how == EVERY_SECOND:
        kept = shown[::2]
    else:
        kept = np.unique(np.round(np.linspace(shown[0], shown[-1], int(how))).astype(int))
    drawn = np.zeros_like(label)
    np.moveaxis(drawn, axis, 0)[kept] = np.moveaxis(label, axis, 0)[kept]
    return drawn, np.setdiff1d(np.arange(shown[0], shown[-1] + 1), kept)


def dice(found: np.ndarray, truth: np.ndarray, axis: int, slices: np.ndarray) -> float:
    """Mean Dice in percent, over some slices, of the labels that these show."""
    found, truth = (np.moveaxis(array, axis, 0)[slices] for array in (found, truth))
    values = np.unique(truth[truth > 0])
    return fmean(200 * ((found == v) & (truth == v)).sum() / ((found == v).sum() + (truth == v).sum()) for v in values)
