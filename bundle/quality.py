"""How far a label map can be trusted, as its meta data tell, which :class:`FewShotInferer` writes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor

from .keys import MODALITY, MODALITY_REASON, NEXT_SLICE
from .measurements import label_sides


def label_name(value: int, names: Mapping[int, str]) -> str:
    """Name of a label value."""
    return names.get(value, f"label {value}")


def format_ml(volume_ml: float) -> str:
    """A volume in milliliters: three digits at least, no exponent."""
    return f"{volume_ml:.0f}" if volume_ml >= 100 else f"{volume_ml:.3g}"


class Expectation(NamedTuple):
    """Dice in percent that a label is expected to have, and the range that holds about 70 % of such labels."""

    dice: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.dice:.0f} ({self.low:.0f}-{self.high:.0f})"


@dataclass(frozen=True)
class ExpectedDice:
    """Dice that a label can be expected to have, from what is known without its truth.

    ``100 / (1 + exp(-(bias + reverse_dice * r - size * s)))``, where ``r`` is the label's reverse Dice and ``s`` how
    much its size differs from the support's: the mean of ``|ln(side / the support's side)|`` over the three sides of
    the box that holds it, the longest of one beside the longest of the other. ``scripts.benchmark expected_dice`` fits
    the numbers to scans with their truth.

    Args:
        bias: see above.
        reverse_dice: weight of ``r``.
        size: weight of ``s``.
        largest: ``s`` is at most this; also that of a label that was not found.
        spread: half of the range that :class:`Expectation` tells, as a difference in the exponent.

    Raises:
        ValueError: for a negative weight, bound or spread.
    """

    bias: float = -0.99
    reverse_dice: float = 3.81
    size: float = 1.8
    largest: float = 1.5
    spread: float = 0.74

    def __post_init__(self) -> None:
        if min(self.reverse_dice, self.size, self.largest, self.spread) < 0:
            raise ValueError(f"reverse_dice, size, largest and spread must be at least 0, got {self}")

    def __call__(
        self, reverse_dice: float, sides_mm: Sequence[float] | None, support_sides_mm: Sequence[float]
    ) -> Expectation | None:
        """What is expected of one label.

        Args:
            reverse_dice: in 0..1.
            sides_mm: of the label, see :func:`label_sides`; ``None`` for one that was not found.
            support_sides_mm: of the support's; NaN if unknown.

        Returns:
            ``None`` if the support's sides are unknown.
        """
        if any(math.isnan(side) for side in support_sides_mm):
            return None
        exponent = self.exponent(reverse_dice, self.difference(sides_mm, support_sides_mm))
        steps = (exponent, exponent - self.spread, exponent + self.spread)
        return Expectation(*(round(100 / (1 + math.exp(-step)), 1) for step in steps))

    def exponent(self, reverse_dice: float, difference: float) -> float:
        """The logarithm of the odds of the Dice that is expected, see the class."""
        return self.bias + self.reverse_dice * reverse_dice - self.size * difference

    def difference(self, sides_mm: Sequence[float] | None, support_sides_mm: Sequence[float]) -> float:
        """How much a label's size differs from the support's, see the class."""
        if sides_mm is None:
            return self.largest
        ratios = [abs(math.log(own / other)) for own, other in zip(sides_mm, support_sides_mm)]
        return min(sum(ratios) / len(ratios), self.largest)

    def of(self, prediction: MetaTensor) -> dict[int, Expectation]:
        """What is expected of each label of a label map ``(1, X, Y, Z)``, whose meta data tell enough of it."""
        keys = ("label_values", "reverse_dice", "support_sides_mm")
        if any(prediction.meta.get(key) is None for key in keys):
            return {}
        values, numbers, supports = (torch.as_tensor(prediction.meta[key]) for key in keys)
        sides = label_sides(prediction.as_subclass(torch.Tensor)[0].cpu().numpy(), np.asarray(prediction.affine))
        known = zip(values.flatten().tolist(), numbers.flatten().tolist(), supports.reshape(-1, 3).tolist())
        found = {value: self(number, sides.get(value), theirs) for value, number, theirs in known}
        return {value: each for value, each in found.items() if each is not None}


def describe_quality(
    prediction: MetaTensor,
    names: Mapping[int, str],
    expected_dice: ExpectedDice | None,
    warn_expected_dice_below: float,
    warn_similarity_below: float,
) -> dict[str, Any]:
    """What was measured, ready for JSON, with a warning where similarity or expected Dice is low.

    Args:
        prediction: label map ``(1, X, Y, Z)`` with its meta data.
        names: names of the label values.
        expected_dice: estimates the Dice of each label; ``None`` for no estimate.
        warn_expected_dice_below: expected Dice in percent below which a label is warned of.
        warn_similarity_below: ``support_similarity`` below which the support is taken for one of another anatomy.

    Returns:
        ``{"modality": "ct" or "mr", "modality_reason": text, "support_similarity": …, "rotated_degrees": …,
        "mirrored": "left-right", "atlas_fallback": [name, …], "reverse_dice": {name: …},
        "expected_dice": {name: [expected, low, high]}, "next_slice": number, "warning": text}``, without what was not
        measured or is fine.
    """
    found: dict[str, Any] = {}
    warnings = []
    if prediction.meta.get("support_similarity") is not None:
        found["support_similarity"] = round(
            float(torch.as_tensor(prediction.meta["support_similarity"]).flatten()[0]), 4
        )
        if found["support_similarity"] < warn_similarity_below:
            warnings.append(
                f"the support looks unlike this scan, similarity {found['support_similarity']:.2f} below "
                f"{warn_similarity_below}"
            )
    modality, theirs = _first(prediction.meta.get(MODALITY)), _listed(prediction.meta.get("support_modality"))
    if modality:
        found[MODALITY] = modality
        reason = _first(prediction.meta.get(MODALITY_REASON))
        if reason:
            found[MODALITY_REASON] = reason
        others = sorted({other for other in theirs if other and other != modality})
        if others:
            warnings.append(
                f"taken for {modality.upper()}, but the support for {' and '.join(other.upper() for other in others)}; "
                "if one is wrong, say --modality ct or mr"
            )
    turn = int(torch.as_tensor(prediction.meta.get("support_rotation", 0)).flatten()[0])
    if turn:
        found["rotated_degrees"] = 90 * turn
        warnings.append(f"this scan lies turned by {90 * turn} degrees in the plane, compared with the support")
    mirrored = _first(prediction.meta.get("mirrored"))
    if mirrored:
        found["mirrored"] = mirrored
        line = f"this scan looks mirrored ({mirrored}) against the support: its header is wrong, or the person is so"
        done = "it was turned back" if "unmirrored" in prediction.meta else "--unmirror True turns it back"
        warnings.append(f"{line}; {done}")
    values = np.asarray(prediction.meta.get("label_values", ())).ravel().tolist()
    if prediction.meta.get("atlas_fallback") is not None:
        shares = torch.as_tensor(prediction.meta["atlas_fallback"]).flatten().tolist()
        placed = [label_name(value, names) for value, share in zip(values, shares) if share > 0]
        if placed:
            found["atlas_fallback"] = placed
            warnings.append(f"unlike the support's, found by where they must lie: {', '.join(placed)}")
    if prediction.meta.get("reverse_dice") is not None:
        numbers = torch.as_tensor(prediction.meta["reverse_dice"]).flatten().tolist()
        found["reverse_dice"] = {label_name(value, names): round(number, 4) for value, number in zip(values, numbers)}
    expected = {} if expected_dice is None else expected_dice.of(prediction)
    if expected:
        found["expected_dice"] = {label_name(value, names): list(each) for value, each in expected.items()}
        weak = [
            f"{label_name(value, names)} {each}"
            for value, each in expected.items()
            if each.dice < warn_expected_dice_below
        ]
        if weak:
            what = "the support does not fit this scan" if len(weak) == len(expected) else "look at these labels"
            warnings.append(f"{what}, expected Dice below {warn_expected_dice_below:g}: {', '.join(weak)}")
    if isinstance(prediction.meta.get(NEXT_SLICE), int):
        found[NEXT_SLICE] = prediction.meta[NEXT_SLICE]
    if warnings:
        found["warning"] = "; ".join(warnings)
    return found


def _listed(value: Any) -> list[str]:
    """Words of a list that collating may have wrapped in others."""
    if isinstance(value, str):
        return [value]
    return [word for item in value or () for word in _listed(item)]


def _first(value: Any) -> str | None:
    """A word, or the one in the list that collating made of it."""
    return next(iter(_listed(value)), None)
