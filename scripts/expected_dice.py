"""Fit the estimate of a label's Dice to evaluations of several data sets, each judged by a fit to the others."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bundle.atomic import replacing, write_text

from .on_demand import OnDemand

metrics = OnDemand("monai.metrics")
nib = OnDemand("nibabel")
measurements = OnDemand("bundle.measurements")
quality = OnDemand("bundle.quality")
show = OnDemand("bundle.visualize")
stats = OnDemand("scipy.stats")
torch = OnDemand("torch")

COVERED = 0.7  # share of the labels that lie in the range which is told
ENDS = 0.02  # a Dice nearer to 0 or 1 counts as this, since its logarithm has no bound


@dataclass(frozen=True)
class Measured:
    """One label of a scan with its truth.

    Attributes:
        data_set: name of the data set's folder.
        case: name of the scan.
        label: name of the label.
        dice: in percent.
        reverse_dice: in 0..1.
        difference: of the label's size from the support's, see :class:`bundle.quality.ExpectedDice`.
    """

    data_set: str
    case: str
    label: str
    dice: float
    reverse_dice: float
    difference: float


def expected_dice(runs: Sequence[str], output_dir: str, low: float = 60.0) -> str:
    """Fit ``expected_dice`` of configs/inference.json, and judge it on each data set by a fit to the others.

    Args:
        runs: folders of evaluations under the protocol ``volume``, of at least two data sets; folders below are found.
        output_dir: folder of the table, ``expected_dice.csv`` with each label, and the picture.
        low: Dice in percent below which a label counts as failed.

    Returns:
        The table, and the numbers for the config.

    Raises:
        ValueError: if no evaluation is found, or all are of one data set.
    """
    folders = sorted({path.parent for run in runs for path in Path(run).rglob("metrics.csv")})
    found = [label for folder in folders for label in read_labels(folder)]
    names = list(dict.fromkeys(label.data_set for label in found))
    if len(names) < 2:
        raise ValueError(
            f"{', '.join(map(str, runs))}: evaluations of {names or 'no data set'}; two are needed at least"
        )
    judged, residuals = np.zeros(len(found)), np.zeros(len(found))
    for name in names:
        others = fit([label for label in found if label.data_set != name])
        for index, label in enumerate(found):
            if label.data_set == name:
                judged[index] = others.exponent(label.reverse_dice, label.difference)
                residuals[index] = _logit(label.dice) - judged[index]
    spread = float(np.quantile(np.abs(residuals), COVERED))
    final = replace(fit(found), spread=spread)
    expected = 100 / (1 + np.exp(-judged))
    lines = [
        "| left out | labels | Spearman | AUROC, Dice below "
        f"{low:g} | mean absolute error | in the range | expected, measured |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in ["all", *names]:
        chosen = [name in ("all", label.data_set) for label in found]
        lines.append(_row(name, found, expected, residuals, spread, low, np.array(chosen)))
    numbers = {key: round(getattr(final, key), 2) for key in ("bias", "reverse_dice", "size", "largest", "spread")}
    lines += ["", f"`--expected_dice` of all: {json.dumps(numbers)}"]
    output = Path(output_dir)
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "expected_dice.md", "\n".join(lines) + "\n")
    with replacing(output / "expected_dice.csv") as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["dataset", "case", "label", "dice", "reverse_dice", "difference", "expected"])
        for label, value in zip(found, expected):
            values = (label.dice, label.reverse_dice, label.difference, value)
            writer.writerow([label.data_set, label.case, label.label, *(f"{each:.3f}" for each in values)])
    groups = {name: [(e, m.dice) for e, m in zip(expected, found) if m.data_set == name] for name in names}
    show.save_figure(show.scatter_figure(groups, "expected Dice %", "measured Dice %"), output / "expected_dice.png")
    return "\n".join(lines)


def read_labels(folder: Path) -> list[Measured]:
    """Each label of an evaluation whose Dice and reverse Dice are known; nothing under another protocol.

    Args:
        folder: with ``metrics.csv``, ``run.json`` and a folder for each case.
    """
    settings = json.loads((folder / "run.json").read_text(encoding="utf-8"))["settings"]
    data_set = Path(settings["dataset_dir"])
    expect = quality.ExpectedDice()
    supports = [_sides(Path(entry["label"])) for entry in settings["support"]]
    found: list[Measured] = []
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["protocol"] == "volume" and row["dice"]]
    predicted: dict[str, tuple[dict[str, Any], dict[int, list[float]]]] = {}
    for row in rows:
        case, name, value = row["case"], row["name"], int(row["label"])
        if case not in predicted:
            known = json.loads((folder / case / f"{case}_quality.json").read_text(encoding="utf-8"))
            predicted[case] = known, _sides(folder / case / f"{case}_seg.nii.gz")
        known, sides = predicted[case]
        theirs = [support[value] for support in supports if value in support]
        if name in known.get("reverse_dice", {}) and theirs:
            mean = np.exp(np.log(theirs).mean(axis=0)).tolist()
            difference = expect.difference(sides.get(value), mean)
            found.append(
                Measured(data_set.name, case, name, float(row["dice"]), known["reverse_dice"][name], difference)
            )
    return found


def fit(labels: Sequence[Measured]) -> Any:
    """Numbers of :class:`bundle.quality.ExpectedDice` by least squares of the exponents; data sets weigh alike."""
    counts = {label.data_set: sum(other.data_set == label.data_set for other in labels) for label in labels}
    weights = np.array([1 / counts[label.data_set] for label in labels]) ** 0.5
    columns = np.array([[1.0, label.reverse_dice, -label.difference] for label in labels])
    wanted = np.array([_logit(label.dice) for label in labels])
    bias, reverse_dice, size = np.linalg.lstsq(weights[:, None] * columns, weights * wanted, rcond=None)[0]
    return quality.ExpectedDice(float(bias), max(0.0, float(reverse_dice)), max(0.0, float(size)))


def _row(
    name: str,
    found: Sequence[Measured],
    expected: np.ndarray,
    residuals: np.ndarray,
    spread: float,
    low: float,
    chosen: np.ndarray,
) -> str:
    measured = np.array([label.dice for label in found])[chosen]
    told, failed = expected[chosen], measured < low
    rank = stats.spearmanr(told, measured).statistic
    auroc = "–"
    if failed.any() and not failed.all():
        auroc = f"{metrics.compute_roc_auc(torch.tensor(-told), torch.tensor(failed).int()):.2f}"
    covered = np.mean(np.abs(residuals[chosen]) <= spread)
    error = np.abs(told - measured).mean()
    means = f"{told.mean():.1f}, {measured.mean():.1f}"
    return f"| {name} | {chosen.sum()} | {rank:.2f} | {auroc} | {error:.1f} | {100 * covered:.0f}% | {means} |"


def _logit(dice: float) -> float:
    share = min(max(dice / 100, ENDS), 1 - ENDS)
    return math.log(share / (1 - share))


def _sides(path: Path) -> dict[int, list[float]]:
    image = nib.load(path)
    return measurements.label_sides(np.rint(np.asanyarray(image.dataobj)).astype(np.int32), image.affine)
