"""How far a prediction can be trusted, beside its label map."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor

from ..atomic import write_json
from ..keys import LABEL_CONFIDENCE, PRED
from ..measurements import measure_labels, read_intensities
from ..quality import ExpectedDice, describe_quality, label_name
from .cases import case_file, check_keys, iteration_cases, scan_name

logger = logging.getLogger(__name__)


class CaseQuality:
    """Writes ``output_dir/<case>/<case>_quality.json``: how much of each label there is, and how sure it is.

    ``volume_ml``, ``extent_mm`` and ``mean_intensity`` are there for each label that was looked for, see
    :func:`measure_labels`; the last one if the scan's file is there. ``support_similarity``, in -1..1, and of each
    label ``reverse_dice``, in 0..1, and ``expected_dice``, in percent with its range, are there if the prediction's
    meta data have what they need, see :class:`FewShotInferer` and :class:`ExpectedDice`. Labels whose expected Dice
    is low are named in ``warning`` and in one line of the log. ``confidence`` holds the mean percent of each label
    over its predicted voxels, ``null`` for a label that was not found, if :class:`MeanConfidence` measured it. Each of
    several processes writes its own cases.

    Args:
        output_dir: folder of the predictions.
        names: names of the label values.
        pred_key: key of the label map ``(1, X, Y, Z)``.
        postfix: end of the file's name.
        expected_dice: estimates the Dice of each label; ``None`` for no estimate.
        warn_expected_dice_below: expected Dice in percent below which a label is warned of.
        warn_similarity_below: ``support_similarity`` below which the support is warned of.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        names: Mapping[int, str] | None = None,
        pred_key: str = PRED,
        postfix: str = "quality",
        expected_dice: ExpectedDice | None = ExpectedDice(),  # noqa: B008, has no state
        warn_expected_dice_below: float = 60.0,
        warn_similarity_below: float = 0.5,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.names = dict(names or {})
        self.pred_key = pred_key
        self.postfix = postfix
        self.expected_dice = expected_dice
        self.warn_expected_dice_below = warn_expected_dice_below
        self.warn_similarity_below = warn_similarity_below

    def attach(self, engine: Engine) -> None:
        """Listen to an evaluator whose outputs are decollated and postprocessed."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.save)

    def save(self, engine: Engine) -> None:
        """Write the files of an iteration."""
        for case in iteration_cases(engine):
            self.write(case)

    def write(self, case: Mapping[str, Any]) -> Path:
        """Write the file of one case and return it.

        Raises:
            KeyError: without the label map.
        """
        check_keys(case, [self.pred_key], "CaseQuality")
        prediction = case[self.pred_key]
        found = self.measure(prediction)
        if "warning" in found:
            logger.warning(f"{scan_name(prediction)}: {found['warning']}")
        path = case_file(self.output_dir, prediction, f"{self.postfix}.json")
        write_json(path, found)
        return path

    def measure(self, prediction: MetaTensor) -> dict[str, Any]:
        """Content of the file."""
        found = describe_quality(
            prediction, self.names, self.expected_dice, self.warn_expected_dice_below, self.warn_similarity_below
        )
        labels = prediction.as_subclass(torch.Tensor).cpu().numpy()[0]
        known = prediction.meta.get("label_values")
        values = np.unique(labels[labels > 0]) if known is None else np.asarray(known).ravel()
        inside = {label_name(value, self.names): labels == value for value in map(int, values)}
        image = read_intensities(str(prediction.meta.get("filename_or_obj", "")), labels.shape)
        found |= measure_labels(inside, np.asarray(prediction.affine), image)
        if LABEL_CONFIDENCE in prediction.meta:
            sure = torch.as_tensor(prediction.meta[LABEL_CONFIDENCE]).flatten().tolist()
            found["confidence"] = {name: None if isnan(mean) else round(mean, 2) for name, mean in zip(inside, sure)}
        return found
