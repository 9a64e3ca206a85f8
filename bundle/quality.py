"""How far a label map can be trusted, as its meta data tell, which :class:`FewShotInferer` writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor


def label_name(value: int, names: Mapping[int, str]) -> str:
    """Name of a label value."""
    return names.get(value, f"label {value}")


def describe_quality(
    prediction: MetaTensor, names: Mapping[int, str], warn_below: float, warn_fit_below: float
) -> dict[str, Any]:
    """What was measured, ready for JSON, and a warning where the support fits or labels agree badly.

    Args:
        prediction: label map or scores with their meta data.
        names: names of the label values.
        warn_below: agreement below which a label is warned of.
        warn_fit_below: ``support_fit`` below which the support is taken for one of another anatomy.

    Returns:
        ``{"support_fit": …, "turned_degrees": …, "found_by_place": [name, …], "agreement": {name: …}, "warning":
        text}``, without what was not measured or is fine.
    """
    found: dict[str, Any] = {}
    warnings = []
    if prediction.meta.get("support_fit") is not None:
        found["support_fit"] = round(float(torch.as_tensor(prediction.meta["support_fit"]).flatten()[0]), 4)
        if found["support_fit"] < warn_fit_below:
            warnings.append(
                f"the support looks unlike this scan, fit {found['support_fit']:.2f} below {warn_fit_below}"
            )
    turn = int(torch.as_tensor(prediction.meta.get("support_turn", 0)).flatten()[0])
    if turn:
        found["turned_degrees"] = 90 * turn
        warnings.append(f"this scan lies turned by {90 * turn} degrees in the plane, compared with the support")
    values = np.asarray(prediction.meta.get("label_values", ())).ravel().tolist()
    if prediction.meta.get("by_place") is not None:
        shares = torch.as_tensor(prediction.meta["by_place"]).flatten().tolist()
        placed = [label_name(value, names) for value, share in zip(values, shares) if share > 0]
        if placed:
            found["found_by_place"] = placed
            warnings.append(f"unlike the support's, found by where they must lie: {', '.join(placed)}")
    if prediction.meta.get("agreement") is not None:
        numbers = torch.as_tensor(prediction.meta["agreement"]).flatten().tolist()
        found["agreement"] = {label_name(value, names): round(number, 4) for value, number in zip(values, numbers)}
        weak = [f"{name} {number:.2f}" for name, number in found["agreement"].items() if number < warn_below]
        if weak:
            what = "the support does not fit this scan" if len(weak) == len(numbers) else "look at these labels"
            warnings.append(f"{what}, agreement below {warn_below}: {', '.join(weak)}")
    if warnings:
        found["warning"] = "; ".join(warnings)
    return found
