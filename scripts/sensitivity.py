"""How much the Dice depends on each number of the inference: half of it and twice, on every kind of scan."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from bundle.atomic import replacing, write_json, write_text
from bundle.errors import explain
from bundle.ids import SEP, suggest

from .completion import dice, draw, read
from .on_demand import OnDemand
from .options import read_file

if TYPE_CHECKING:
    import numpy as np
else:
    np = OnDemand("numpy")
data = OnDemand("bundle.data")
memory = OnDemand("bundle.memory")
segmenter = OnDemand("bundle.segmenter")

FACTORS = (0.5, 2.0)
LABELLED = 3  # slices of a scan that is completed, in the middle third of what its labels reach
KEPT_MB = 512  # of freed memory, as in a run of the config
COMPLETING = ("completion", "extension", "shape_interpolation")  # act where a scan is labelled on some slices alone
# what no factor is tried on, and why
LEFT_OUT = {
    **dict.fromkeys(("confidence_temperature", "reverse_dice_discount", "expected_dice"), "changes no label"),
    **dict.fromkeys(("warn_expected_dice_below", "warn_similarity_below", "support_check"), "only warns"),
    **dict.fromkeys(("mirror_check", "memory_check"), "only warns"),
    **dict.fromkeys(("slice_batch_size", "num_workers", "keep_memory_mb", "dataloader"), "time and memory alone"),
    **dict.fromkeys(("num_supports", "similarity_temperature"), "acts with several supports"),
    **dict.fromkeys(("num_pseudo_supports", "pseudo_support_images", "pseudo_supports"), "off by default"),
    "atlas_fallback": "acts where the extent of a label is known",
    "alignment#scales": "factors around one, which are tried one after another",
    "in_plane_orientation#turns": "names of positions",
    "image_size": "the training's own frame",
    "network_def#encoder": "the network itself",
    "network_def#training_window": "acts in training",
    "network_def#foreground_threshold": "a share of nearly one, which has no double",
    "network_def#background_threshold": "the same",
    "intensity": "units of CT, and a percentile",
}


def sensitivity(
    dataset_dirs: Sequence[str],
    output_dir: str = "sensitivity",
    ids: Sequence[str] | None = None,
    factors: Sequence[float] = FACTORS,
    queries: int = 2,
    fold: int = 0,
    num_folds: int = 5,
    overrides: dict[str, Any] | None = None,
) -> str:
    """Multiply each number of the inference by factors, one at a time; print and write what that does to the Dice.

    Shipped weights, one labelled scan, the whole query: the protocol ``volume``. Numbers that act only where a scan is
    labelled on some of its slices are judged by a query that is completed from three slices in its middle. An earlier
    call's finished measurements are not repeated.

    Args:
        dataset_dirs: folders of the data sets, every image labelled.
        output_dir: folder of the tables.
        ids: numbers of ``configs/inference.json``, such as registration#reach; by default all that act on a label map.
        factors: what they are multiplied by; whole numbers stay whole.
        queries: how many scans of the fold are segmented, the first ones.
        fold: fold of each data set.
        num_folds: folds of each data set.
        overrides: further ids of the config, which stay as given here.
    """
    known = constants(read_file("inference"))
    chosen = list(known) if ids is None else list(ids)
    for name in chosen:
        if name not in known:
            raise ValueError(f"ids: {name}: no number that is tried here{suggest(name, known)}")
    output, rows = Path(output_dir), []
    memory.keep_freed_memory(KEPT_MB)
    for folder in dataset_dirs:
        split = data.evaluation_split(folder, "volume", fold, num_folds)
        scans = [read(entry) for entry in split["queries"][:queries]]
        runs = output / f"fold{fold}_{queries}" / Path(folder).name

        def measured(what: str, name: str, ids: Mapping[str, Any], *, runs=runs, split=split, scans=scans) -> Any:
            file = runs / what / f"{name.replace(SEP, '.')}.json"
            if not file.is_file():
                write_json(file, _measure(what, split["support"][0], scans, {**(overrides or {}), **ids}))
            return json.loads(file.read_text(encoding="utf-8"))

        defaults = {what: measured(what, "default", {})["dice"] for what in dict.fromkeys(map(kind, chosen))}
        for name, factor, value in changes(known, chosen, factors):
            what = kind(name)
            found = measured(what, f"{name}_{factor:g}", {name: value})
            row = {"id": name, "factor": f"{factor:g}", "value": value, "dataset": Path(folder).name, "measure": what}
            refused = found["dice"] is None
            row["dice"] = "" if refused else f"{found['dice']:.2f}"
            row["change"] = "" if refused else f"{found['dice'] - defaults[what]:+.2f}"
            rows.append(row)
            print(", ".join(map(str, row.values())), found.get("refused", ""), flush=True)
    with replacing(output / "sensitivity.csv") as temporary, open(temporary, "w", newline="") as table_file:
        writer = csv.DictWriter(table_file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    table = format_table(rows)
    write_text(output / "sensitivity.md", table + "\n")
    return table


def constants(content: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of an inference config that act on a label map, and lists of numbers, by their ids."""
    return {
        name: value
        for name, value in _numbers(content, "")
        if not any(name == left or name.startswith(left + SEP) for left in LEFT_OUT)
    }


def kind(name: str) -> str:
    """What a number is judged by: ``volume``, or ``completion`` of a scan that is labelled on a few slices."""
    return "completion" if name.split(SEP)[0] in COMPLETING else "volume"


def changes(
    known: Mapping[str, Any], chosen: Iterable[str], factors: Sequence[float]
) -> Iterator[tuple[str, float, Any]]:
    """Id, factor and changed value; without those that rounding leaves as they are."""
    for name in chosen:
        for factor in factors:
            value = scaled(known[name], factor)
            if value != known[name]:
                yield name, factor, value


def scaled(value: Any, factor: float) -> Any:
    """A number or a list of numbers times a factor; a whole number is rounded down, but not to nothing."""
    if isinstance(value, list):
        return [scaled(item, factor) for item in value]
    return max(1, math.floor(value * factor)) if isinstance(value, int) else round(value * factor, 6)


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row for each number, with the change of the Dice on each data set for each factor."""
    names = list(dict.fromkeys(row["dataset"] for row in rows))
    found = {(row["id"], row["factor"], row["dataset"]): row["change"] for row in rows}
    factors = sorted({row["factor"] for row in rows}, key=float)
    lines = [f"| × {' / × '.join(factors)} | {' | '.join(names)} | worst |", "|---" * (len(names) + 2) + "|"]
    for name in dict.fromkeys(row["id"] for row in rows):
        cells = [[found.get((name, factor, folder), "") for factor in factors] for folder in names]
        lost = [float(change) for cell in cells for change in cell if change]
        shown = [" / ".join(f"{float(change):+.1f}" if change else "–" for change in cell) for cell in cells]
        lines.append(f"| `{name}` | {' | '.join(shown)} | {f'{min(lost):+.1f}' if lost else '–'} |")
    return "\n".join(lines)


def _measure(
    what: str, support: Mapping[str, str], scans: Sequence[tuple[Any, Any, Any, int]], changed: Mapping[str, Any]
) -> dict[str, Any]:
    """Mean Dice in percent; none, and the reason, if a part refuses its number."""
    try:
        made = segmenter.FewShotSegmenter.from_bundle(**changed)
    except Exception as error:  # MONAI wraps what a part raises
        return {"dice": None, "refused": explain(error)}
    scores = []
    if what == "completion":
        values, whole, affine, axis = scans[0]
        drawn, others = draw(whole, axis, LABELLED, middle=1 / 3)
        return {"dice": dice(made.complete(values, drawn, affine=affine), whole, axis, others)}
    made.set_support(support["image"], support["label"], slices="all")
    for values, whole, affine, axis in scans:
        found = made.segment(values, affine=affine)
        scores.append(dice(found, whole, axis, np.arange(whole.shape[axis])))
    return {"dice": fmean(scores)}


def _numbers(item: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Numbers, and lists of nothing else, with their ids."""
    if _is_number(item) or (isinstance(item, list) and item and all(map(_is_number, item))):
        yield path, item
    elif isinstance(item, (Mapping, list)):
        pairs = item.items() if isinstance(item, Mapping) else enumerate(item)
        for key, value in pairs:
            yield from _numbers(value, f"{path}{SEP}{key}" if path else str(key))


def _is_number(item: Any) -> bool:
    return isinstance(item, (int, float)) and not isinstance(item, bool)
