"""Whole scans as users bring them: several supports, few labelled slices, cut, flipped, resampled, turned queries.

Nothing is told about the queries; their truth is used for the measurement alone.
"""

from __future__ import annotations

import csv
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from bundle.atomic import replacing, write_json, write_text
from bundle.keys import IMAGE

from .on_demand import OnDemand

if TYPE_CHECKING:
    import monai.data as monai_data
    import numpy as np
    import torch

    import bundle
else:
    np = OnDemand("numpy")
    torch = OnDemand("torch")
    bundle = OnDemand("bundle")
    monai_data = OnDemand("monai.data")
ROOT = Path(__file__).resolve().parent.parent
data = OnDemand("bundle.data")
metrics = OnDemand("bundle.metrics")
own = OnDemand("bundle.transforms")
show = OnDemand("bundle.visualize")
monai_utils = OnDemand("monai.data.utils")
transforms = OnDemand("monai.transforms")
Pair: TypeAlias = "tuple[monai_data.MetaTensor, monai_data.MetaTensor]"  # image and true label map, (1, X, Y, Z)
NUM_BINS = 15  # of the expected calibration error
MEASURES = (
    "false volume of absent organs (largest)",
    "calibration error, organs",
    "… body",
    "confidence and Dice, r",
    "seconds",
)


@dataclass(frozen=True)
class Condition:
    """One row of the table.

    Attributes:
        name: what the table calls it.
        supports: number of labelled scans.
        slices: labelled slices of each of them; 0 for all.
        pseudo_supports: number of unlabelled scans that pass the labels on.
        change: what happens to a query and its truth; ``None`` for nothing.
    """

    name: str
    supports: int = 1
    slices: int = 0
    pseudo_supports: int = 0
    change: Callable[[Pair], Pair] | None = None

    @property
    def slug(self) -> str:
        """The name as part of a file's name."""
        return self.name.replace(",", "").replace(" ", "_")


def crop(pair: Pair, upper: bool) -> Pair:
    """Keep one half of the slices: the upper one lies towards the head, or the end of the slice axis."""
    half = pair[0].shape[-1] // 2
    kept = slice(half, None) if upper else slice(0, half)
    step = torch.eye(4, dtype=torch.float64)
    step[2, 3] = half if upper else 0
    return _each(pair, lambda scan: _on_grid(scan.as_subclass(torch.Tensor)[..., kept], scan.affine @ step))


def flip(pair: Pair, header: bool) -> Pair:
    """Reverse the order of the slices; without the header's knowledge the patient stands on the head."""
    step = torch.eye(4, dtype=torch.float64)
    if header:
        step[2, 2], step[2, 3] = -1, pair[0].shape[-1] - 1
    return _each(pair, lambda scan: _on_grid(scan.as_subclass(torch.Tensor).flip(-1), scan.affine @ step))


def turn(pair: Pair) -> Pair:
    """Turn the slices by 90 degrees without the header's knowledge."""
    return _each(pair, lambda scan: _on_grid(scan.as_subclass(torch.Tensor).rot90(1, (1, 2)), scan.affine))


def resample(pair: Pair, in_plane: float = 0.8, through_plane: float = 1.5) -> Pair:
    """Multiply the spacing of voxels in the plane and across it."""
    spacing = monai_utils.affine_to_spacing(pair[0].affine, 3).tolist()
    wanted = [spacing[0] * in_plane, spacing[1] * in_plane, spacing[2] * through_plane]
    image, label = pair
    return transforms.Spacing(wanted, mode="bilinear")(image), transforms.Spacing(
        wanted, mode="nearest", padding_mode="zeros"
    )(label)


def tilt(pair: Pair, degrees_x: float = 15.0, degrees_z: float = 10.0) -> Pair:
    """Turn the patient in the scanner: another affine, the same voxels."""
    turn = torch.eye(4, dtype=torch.float64)
    for degrees, (a, b) in ((degrees_x, (1, 2)), (degrees_z, (0, 1))):
        angle, one = np.deg2rad(degrees), torch.eye(4, dtype=torch.float64)
        one[a, a] = one[b, b] = np.cos(angle)
        one[a, b], one[b, a] = -np.sin(angle), np.sin(angle)
        turn = turn @ one
    return _each(pair, lambda scan: _on_grid(scan.as_subclass(torch.Tensor), turn @ scan.affine))


def orient(pair: Pair, codes: str | None = None) -> Pair:
    """Store the axes in another order and direction; ``None`` for the slice axis last, upwards."""
    turn = own.OrientSlices() if codes is None else transforms.Orientation(codes, labels=None)
    return _each(pair, turn)


CONDITIONS = {
    condition.name: condition
    for condition in (
        Condition("1 support"),
        Condition("upper half", change=lambda pair: crop(orient(pair), True)),
        Condition("lower half", change=lambda pair: crop(orient(pair), False)),
        Condition("slices reversed, header wrong", change=lambda pair: flip(orient(pair), False)),
        Condition("turned 90 degrees, header wrong", change=lambda pair: turn(orient(pair))),
        Condition("slices reversed", change=lambda pair: flip(orient(pair), True)),
        Condition("resampled", change=lambda pair: resample(orient(pair))),
        Condition("RAS", change=lambda pair: orient(pair, "RAS")),
        Condition("LPS", change=lambda pair: orient(pair, "LPS")),
        Condition("oblique", change=tilt),
        Condition("3 supports", supports=3),
        Condition("5 supports", supports=5),
        Condition("1 support, 3 pseudo-supports", pseudo_supports=3),
        Condition("1 support, 3 slices", slices=3),
        Condition("3 supports, 3 slices", supports=3, slices=3),
        Condition("5 supports, 3 slices", supports=5, slices=3),
    )
}


def volumes(
    dataset_dir: str,
    runs: str,
    output_dir: str,
    folds: Sequence[int] = (0, 1, 2, 3, 4),
    seeds: Sequence[int] = (0,),
    cases: Sequence[str] | None = None,
    conditions: Sequence[str] = tuple(CONDITIONS),
    num_folds: int = 5,
    config: Sequence[str] = (),
    overrides: dict[str, Any] | None = None,
) -> str:
    """Measure whole scans with the networks of an accuracy benchmark; print and write the table.

    An earlier call's finished cases are not repeated; take another folder after the method has changed.

    Args:
        dataset_dir: folder of the data set, every image labelled.
        runs: output_dir of `scripts.benchmark accuracy`, setting 1; its networks never saw their fold's other scans.
        output_dir: folder of the table, the results of each case, and a picture of each condition's worst case.
        folds: folds to measure.
        seeds: seeds of the trainings.
        cases: names of the queries, such as chaos_01; by default all.
        conditions: rows of the table. PseudoSupports are scans of the fold's training part, without their labels.
        num_folds: folds of the data set.
        config: overlays on configs/inference.json, such as configs/abdomen_ct.json.
        overrides: further ids of the config, {"num_slices": 3}.
    """
    unknown = [name for name in conditions if name not in CONDITIONS]
    if unknown:
        raise ValueError(f"conditions must be among {list(CONDITIONS)}, got {unknown}")
    names = data.label_names(dataset_dir)
    if not names:
        raise ValueError(f"{dataset_dir}: dataset.json must name the labels")
    output, results = Path(output_dir), []
    for fold in folds:
        for seed in seeds:
            weights = Path(runs) / "setting1" / f"fold{fold}_seed{seed}" / "models" / "model_final.pt"
            files = ["configs/inference.json", *config]
            ids = {
                "ckpt_path": str(weights),
                "num_pseudo_supports": max(c.pseudo_supports for c in CONDITIONS.values()),
            }
            segmenter = bundle.FewShotSegmenter.from_bundle(
                ROOT, files, **{**ids, "pseudo_support_images": [], **(overrides or {})}
            )
            split = data.evaluation_split(dataset_dir, "volume", fold, num_folds)
            queries = [q for q in split["queries"] if cases is None or data.case_name(q["image"]) in cases]
            run = {"fold": fold, "seed": seed}
            chosen = [condition for name, condition in CONDITIONS.items() if name in conditions]
            results += measure_fold(segmenter, split, queries, chosen, names, output, run)
    if not results:
        raise ValueError(f"no such queries in folds {list(folds)}: {cases}")
    table = format_table(results, list(names.values()))
    write_text(output / "volumes.md", table + "\n")
    _write_rows(output / "volumes.csv", results, list(names.values()))
    _write_summary(output / "summary.csv", results, list(names.values()))
    return table


def measure_fold(
    segmenter: bundle.FewShotSegmenter,
    split: Mapping[str, Sequence[Mapping[str, str]]],
    queries: Sequence[Mapping[str, str]],
    conditions: Iterable[Condition],
    names: Mapping[int, str],
    output: Path,
    run: Mapping[str, int],
) -> list[dict[str, Any]]:
    """Results of one network, those of earlier calls included; each support is encoded once.

    Args:
        segmenter: with the fold's network.
        split: scans of the fold, see :func:`evaluation_split`; further supports come from its training scans.
        queries: scans to segment.
        conditions: rows of the table.
        names: names of the label values.
        output: folder of the results.
        run: fold and seed.
    """
    extra = data.spread(split["train"], 4)
    folder = output / "cases" / f"fold{run['fold']}_seed{run['seed']}"
    loaded: dict[str, Pair] = {}
    results = []
    for (count, slices, pseudo_supports), group in groupby(
        conditions, lambda c: (c.supports, c.slices, c.pseudo_supports)
    ):
        ready = False
        for condition in group:
            for query in queries:
                case = data.case_name(query["image"])
                file = folder / condition.slug / f"{case}.json"
                if not file.is_file():
                    if not ready:
                        set_support(segmenter, [*split["support"], *extra][:count], slices)
                        segmenter.set_pseudo_supports(
                            [entry[IMAGE] for entry in data.choose_pseudo_supports(split["train"], pseudo_supports)]
                        )
                        ready = True
                    if case not in loaded:
                        loaded[case] = load_pair(query)
                    started = time.perf_counter()
                    pair = loaded[case] if condition.change is None else condition.change(loaded[case])
                    found = segmenter.segment(pair[0], confidence=True)
                    seconds = round(time.perf_counter() - started, 1)
                    whole = loaded[case][1]
                    result = {**run, "condition": condition.name, "case": case, "seconds": seconds}
                    result |= measure(found, pair, names, whole if "half" in condition.name else None)
                    _draw_if_worst(output, condition, result, found.label, pair, names)
                    write_json(file, result)
                    print(run, condition.name, case, result["dice"], f"{seconds} s", flush=True)
                results.append(json.loads(file.read_text()))
    return results


def load_pair(entry: Mapping[str, str]) -> Pair:
    """Image and label map of a scan, on the voxels of the image as it is stored."""
    load = transforms.LoadImage("bundle.data.NiftiReader", ensure_channel_first=True)
    image = load(entry["image"])
    return image, own.MatchLabel()(load(entry["label"]), image)


def set_support(segmenter: bundle.FewShotSegmenter, entries: Sequence[Mapping[str, str]], slices: int) -> None:
    """Set labelled scans as the support, with labels on so many slices alone; 0 for all."""
    images = [entry["image"] for entry in entries]
    if slices == 0:
        segmenter.set_support(images, [entry["label"] for entry in entries], slices="all")
    else:
        segmenter.set_support(images, [keep_slices(load_pair(e)[1], slices) for e in entries], slices="labelled")


def keep_slices(label: monai_data.MetaTensor, count: int) -> monai_data.MetaTensor:
    """A label map of which so many slices are labelled, evenly spread over the extent of all labels."""
    oriented = own.OrientSlices()(label)
    values = oriented.as_subclass(torch.Tensor)
    shown = values[0].flatten(0, 1).any(dim=0).nonzero()[:, 0].tolist()
    kept = torch.zeros_like(values)
    chosen = data.support_slices(shown, count)
    kept[..., chosen] = values[..., chosen]
    return _on_grid(kept, oriented.affine)


def measure(
    found: Any, pair: Pair, names: Mapping[int, str], whole: monai_data.MetaTensor | None = None
) -> dict[str, Any]:
    """Dice in percent, false volume, confidence and calibration of one result.

    Args:
        found: label map and confidence on the grid of ``pair``.
        pair: image and true label map.
        names: names of the label values.
        whole: true label map before a part of the scan was cut away, of the same spacing. For organs that only this
            shows, the predicted volume counts as false, in percent of their volume in here.
    """
    image, truth, label, confidence = (
        _plain(own.OrientSlices()(scan)) for scan in (*pair, found.label, found.confidence.to(torch.float32))
    )
    values = torch.tensor(list(names)).view(-1, 1, 1, 1)
    dice = metrics.scan_dice(label[None] == values, truth[None] == values)
    result: dict[str, Any] = {
        "dice": {n: None if d.isnan() else round(100 * float(d), 2) for n, d in zip(names.values(), dice)},
        "support_similarity": round(found.support_similarity, 4),
        "confidence": {},
        "false_volume": {},
    }
    for value, name in names.items():
        inside = confidence[label == value]
        result["confidence"][name] = round(float(inside.mean()), 2) if inside.numel() else None
        if whole is not None and result["dice"][name] is None and (_plain(whole) == value).any():
            share = float((label == value).sum() / (_plain(whole) == value).sum())
            result["false_volume"][name] = round(100 * share, 3)
    body = _plain(own.BodyMask()(image[None])).bool()
    correct = label == truth
    regions = {"organs": label > 0, "body": body}
    result["calibration"] = {name: count_bins(confidence[at] / 100, correct[at]) for name, at in regions.items()}
    return result


def count_bins(confidence: torch.Tensor, correct: torch.Tensor) -> dict[str, list[float]]:
    """Number of voxels, sum of confidence and number of correct voxels in each bin of confidence."""
    index = (confidence * NUM_BINS).long().clamp(max=NUM_BINS - 1).flatten()
    sums = {"count": torch.ones_like(confidence), "confidence": confidence, "correct": correct}
    return {
        name: torch.bincount(index, weights.flatten().double(), minlength=NUM_BINS).tolist()
        for name, weights in sums.items()
    }


def calibration_error(bins: Iterable[Mapping[str, Sequence[float]]]) -> float:
    """Expected calibration error, in 0..1, of the voxels of several results; NaN without any."""
    total = {name: np.zeros(NUM_BINS) for name in ("count", "confidence", "correct")}
    for one in bins:
        for name in total:
            total[name] += one[name]
    count = total["count"].sum()
    return float(np.abs(total["confidence"] - total["correct"]).sum() / count) if count else float("nan")


def format_table(results: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Markdown: Dice of each condition, mean and sd over folds and seeds, then what else was measured."""
    dice = [f"| whole scans | {' | '.join(names)} | mean |", "|---" * (len(names) + 2) + "|"]
    rest = [f"| whole scans | {' | '.join(MEASURES)} |", "|---" * (len(MEASURES) + 1) + "|"]
    for condition, (columns, cells) in _summary(results, names).items():
        dice.append(f"| {condition} | {' | '.join(_spread(column) for column in columns)} |")
        rest.append(f"| {condition} | {' | '.join(cells)} |")
    return "\n".join(["Protocol `volume`, Dice in percent, mean ± sd over folds and seeds.", "", *dice, "", *rest])


def _summary(
    results: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, tuple[list[list[float | None]], list[str]]]:
    """Of each condition the Dice of each label and their mean, one a fold and seed, and the other measures as text."""
    found = {}
    for condition in (name for name in CONDITIONS if any(result["condition"] == name for result in results)):
        rows = [result for result in results if result["condition"] == condition]
        runs: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
        for row in rows:
            runs.setdefault((row["fold"], row["seed"]), []).append(row)
        scores = [[_mean(row["dice"][name] for row in run) for name in names] for run in runs.values()]
        columns = [*map(list, zip(*scores)), [_mean(score) for score in scores]]
        false = [share for row in rows for share in row["false_volume"].values()]
        pairs = [(row["confidence"][n], row["dice"][n]) for row in rows for n in names]
        known = np.array([pair for pair in pairs if None not in pair], dtype=float).reshape(-1, 2)
        varies = len(known) > 2 and (known.std(axis=0) > 0).all()
        cells = [
            f"{statistics.fmean(false):.2f} ({max(false):.2f})" if false else "",
            *(f"{calibration_error(row['calibration'][at] for row in rows):.3f}" for at in ("organs", "body")),
            f"{np.corrcoef(known.T)[0, 1]:.2f}" if varies else "",
            f"{statistics.fmean(row['seconds'] for row in rows):.1f}",
        ]
        found[condition] = columns, cells
    return found


def _write_summary(path: Path, results: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """The table's figures: a line for each condition and label, and for their mean with all else."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["condition", "label", "dice", "sd", *MEASURES])
        for condition, (columns, cells) in _summary(results, names).items():
            for label, column in zip([*names, "mean"], columns):
                mean, _, sd = _spread(column).partition(" ± ")
                writer.writerow([condition, label, mean, sd, *(cells if label == "mean" else [""] * len(cells))])


def _mean(scores: Iterable[float | None]) -> float | None:
    """Mean of the scores that are known."""
    known = [score for score in scores if score is not None]
    return statistics.fmean(known) if known else None


def _spread(scores: Iterable[float | None]) -> str:
    known = [score for score in scores if score is not None]
    if not known:
        return ""
    return f"{statistics.fmean(known):.2f} ± {statistics.stdev(known) if len(known) > 1 else 0:.2f}"


def _draw_if_worst(
    output: Path,
    condition: Condition,
    result: Mapping[str, Any],
    label: monai_data.MetaTensor,
    pair: Pair,
    names: Mapping[int, str],
) -> None:
    """Draw a case whose mean Dice is the lowest of its condition so far."""
    score = _mean(result["dice"].values())
    files = (output / "cases").glob(f"*/{condition.slug}/*.json")
    others = [_mean(json.loads(file.read_text())["dice"].values()) for file in files]
    if score is None or any(other is not None and other <= score for other in others):
        return
    affine = np.asarray(pair[0].affine)
    planes = show.to_planes(_plain(pair[0]).numpy(), affine)
    filled, outlined = (show.to_planes(_plain(scan).numpy(), affine).values for scan in (label, pair[1]))
    title = f"{condition.name}: {result['case']}, fold {result['fold']}"
    figure = show.overlay_figure(planes, filled, outlined, names=names, title=title)
    show.save_figure(figure, output / f"worst_{condition.slug}.png", dpi=120)


def _write_rows(path: Path, results: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """One line for each result."""
    with replacing(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["condition", "fold", "seed", "case", *names, "support_similarity", "seconds"])
        for row in results:
            scores = ["" if row["dice"][name] is None else row["dice"][name] for name in names]
            head = [row[key] for key in ("condition", "fold", "seed", "case")]
            writer.writerow([*head, *scores, row["support_similarity"], row["seconds"]])


def _each(pair: Pair, change: Callable[[monai_data.MetaTensor], monai_data.MetaTensor]) -> Pair:
    image, label = pair
    return change(image), change(label)


def _on_grid(values: torch.Tensor, affine: torch.Tensor) -> monai_data.MetaTensor:
    return monai_data.MetaTensor(values.contiguous(), affine=affine)


def _plain(scan: Any) -> torch.Tensor:
    """The volume ``(X, Y, Z)`` of a scan ``(1, X, Y, Z)``."""
    return scan.as_subclass(torch.Tensor)[0]
