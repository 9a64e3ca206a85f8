"""The ingredients that lie between the published recipe and the default one, in the order in which they are added."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

# ids of configs/paper.json that stay as they are by default in every row: what is compared is the rest
SHARED = ("network_def#encoder", "pretrained", "precision", "max_epochs", "epoch_length", "batch_size")

# what an ingredient adds, and the ids of configs/paper.json that are left out for it
INGREDIENTS: dict[str, tuple[str, ...]] = {
    "gate of the testing window": ("network_def#foreground_gate",),
    "windows of 2 cells in training, 1 in testing": ("network_def#training_window", "network_def#testing_window"),
    "AdamW, one cycle": ("learning_rate", "optimizer", "lr_scheduler"),
    "frame of the body, superpixels of three sizes, stronger views": (
        "crop_to_body",
        "superpixel",
        "query_view",
        "support_view",
    ),
    "position term": ("network_def#position_weight", "network_def#depth_weight"),
    "n-way episodes, balanced loss": ("num_ways", "loss", "network_def#align", "network_def#upsample_training"),
    "smoothing along z": ("smoothing_mm", "smoothing_share"),
    "registration of the cells, seven slices answer": ("registration", "num_slices"),
    "label completion": ("completion", "shape_interpolation", "extension"),
    "refinement": ("refinement",),
    "guided upsampling": ("upsampling",),
    "region of interest": ("region_of_interest",),
    "checks of the answer: the default": (
        "in_plane_orientation",
        "mirror_check",
        "atlas_fallback",
        "num_pseudo_supports",
        "pseudo_supports",
        "min_reverse_dice",
        "reverse_dice_discount",
        "truncated_structures",
        "min_component_share",
    ),
}

UNTRAINED = "class prototypes, ImageNet weights"
# no window lies in a class for more than all of it: neither class has local prototypes
CLASS_PROTOTYPES = {"network_def#foreground_threshold": 2.0, "network_def#background_threshold": 2.0}
TESTING_ONLY = ("network_def#foreground_gate", "network_def#testing_window")  # in training the gate's window is its own


@dataclass(frozen=True)
class Step:
    """A row of the table.

    Attributes:
        name: what it adds to the row before.
        trained: whether its network is trained; otherwise it has the weights that trainings start from.
        ids: where it differs from the default configs.
    """

    name: str
    trained: bool
    ids: dict[str, Any] = field(default_factory=dict)

    def training(self, known: Collection[str]) -> dict[str, Any]:
        """Those ids that act on a training, whose config has the ids `known`."""
        return {key: self.ids[key] for key in self.ids if key.split("#")[0] in known and key not in TESTING_ONLY}


def make_steps(paper: Mapping[str, Any]) -> list[Step]:
    """From class prototypes without any training over the published recipe to the default one.

    Args:
        paper: content of ``configs/paper.json``.

    Returns:
        The rows: the last one overrides nothing.

    Raises:
        ValueError: naming the ids of the published recipe that no ingredient and no row accounts for, or that it lacks.
    """
    known = {*SHARED, *(key for ids in INGREDIENTS.values() for key in ids)}
    if known != set(paper):
        raise ValueError(f"configs/paper.json and the steps differ in {sorted(known ^ set(paper))}")
    left = {key: paper[key] for ids in INGREDIENTS.values() for key in ids}
    steps = [
        Step(UNTRAINED, False, {**left, **CLASS_PROTOTYPES}),
        Step("local prototypes (ALP)", False, dict(left)),
        Step("self-supervision: the paper's recipe", True, dict(left)),
    ]
    for name, ids in INGREDIENTS.items():
        left = {key: value for key, value in left.items() if key not in ids}
        steps.append(Step(name, True, dict(left)))
    return steps


def digest(content: Any) -> str:
    """A short name of settings, equal for equal ones."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
