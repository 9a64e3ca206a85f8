"""Pictures of every case that is segmented."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.transforms import LoadImage

from ..data.reader import NiftiReader
from ..keys import PRED
from ..visualize import overlay_figure, save_figure, to_planes
from .cases import case_file, check_keys, iteration_cases, scan_name


class OverlaySaver:
    """Saves ``output_dir/<case>/<case>_overlay.png`` for each case: slices with the prediction, and the truth if known.

    The image is read from its file again, since what the network saw is cut and normalized. Pictures are drawn in a
    thread while the next case is segmented, one case at a time. A case whose picture cannot be made is reported in the
    log and does not stop the run.

    Args:
        output_dir: folder of the predictions.
        names: names of the label values.
        pred_key: key of the label map ``(1, X, Y, Z)`` on the grid of the image's file.
        truth_key: key of the true label map on the same grid; ``None`` for none.
        count: slices in the picture.
        postfix: end of the file's name.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        names: Mapping[int, str] | None = None,
        pred_key: str = PRED,
        truth_key: str | None = None,
        count: int = 8,
        postfix: str = "overlay",
    ) -> None:
        self.output_dir = Path(output_dir)
        self.names = dict(names or {})
        self.pred_key = pred_key
        self.truth_key = truth_key
        self.count = count
        self.postfix = postfix
        self._pool: ThreadPoolExecutor | None = None
        self._drawn: Future | None = None

    def attach(self, engine: Engine) -> None:
        """Listen to an evaluator whose outputs are decollated and postprocessed."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.save)
        engine.add_event_handler(Events.COMPLETED, lambda _: self.finish())

    def save(self, engine: Engine) -> None:
        """Start the pictures of an iteration."""
        self.finish()
        cases = iteration_cases(engine)
        for case in cases:
            self.check(case)
        self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="overlays")
        self._drawn = self._pool.submit(self._draw_all, cases)

    def finish(self) -> None:
        """Wait for the pictures that were started."""
        if self._drawn is not None:
            self._drawn.result()
            self._drawn = None

    def _draw_all(self, cases: Sequence[Mapping[str, Any]]) -> None:
        for case in cases:
            try:
                self.draw(case)
            except (OSError, ValueError, RuntimeError) as error:
                logging.getLogger(__name__).warning("no overlay of a case: %s", error)

    def check(self, case: Mapping[str, Any]) -> None:
        """Raise a KeyError if the keys of prediction or truth are absent."""
        check_keys(case, [key for key in (self.pred_key, self.truth_key) if key is not None], "OverlaySaver")

    def draw(self, case: Mapping[str, Any]) -> Path:
        """Save the picture of one case and return its file.

        Raises:
            KeyError: if a key is absent.
            ValueError: if prediction, truth and image are not on one grid.
        """
        self.check(case)
        prediction = case[self.pred_key]
        source = str(prediction.meta.get("filename_or_obj", ""))
        image = LoadImage(NiftiReader, image_only=True, ensure_channel_first=True)(source)
        affine = np.asarray(image.affine)
        planes = to_planes(_plain(image), affine)
        filled, outlined = (
            None if key is None else to_planes(_plain(case[key]), affine).values
            for key in (self.pred_key, self.truth_key)
        )
        title = scan_name(prediction)
        figure = overlay_figure(planes, filled, outlined, names=self.names, title=title, count=self.count)
        return save_figure(figure, case_file(self.output_dir, prediction, f"{self.postfix}.png"), dpi=120)


def _plain(volume: torch.Tensor) -> np.ndarray:
    """The first channel of a tensor as an array."""
    return volume.as_subclass(torch.Tensor)[0].cpu().numpy()
