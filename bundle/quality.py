"""How far a label map can be trusted, as its meta data tell, which :class:`FewShotInferer` writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from .keys import MODALITY, MODALITY_REASON, NEXT_SLICE


def label_name(value: int, names: Mapping[int, str]) -> str:
    """Name of a label value."""
    return names.get(value, f"label {value}")


def format_ml(volume_ml: float) -> str:
    """A volume in milliliters: three digits at least, no exponent."""
    return f"{volume_ml:.0f}" if volume_ml >= 100 else f"{volume_ml:.3g}"


def describe_quality(
    prediction: MetaTensor, names: Mapping[int, str], warn_reverse_dice_below: float, warn_similarity_below: float
) -> dict[str, Any]:
    """What was measured, ready for JSON, with a warning where similarity or reverse Dice is low.

    Args:
        prediction: label map or scores with their meta data.
        names: names of the label values.
        warn_reverse_dice_below: reverse Dice below which a label is warned of.
        warn_similarity_below: ``support_similarity`` below which the support is taken for one of another anatomy.

    Returns:
        ``{"modality": "ct" or "mr", "modality_reason": text, "support_similarity": …, "rotated_degrees": …,
        "mirrored": "left-right", "atlas_fallback": [name, …], "reverse_dice": {name: …}, "next_slice": number,
        "warning": text}``, without what was not measured or is fine.
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
        weak = [
            f"{name} {number:.2f}" for name, number in found["reverse_dice"].items() if number < warn_reverse_dice_below
        ]
        if weak:
            what = "the support does not fit this scan" if len(weak) == len(numbers) else "look at these labels"
            warnings.append(f"{what}, reverse Dice below {warn_reverse_dice_below}: {', '.join(weak)}")
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
