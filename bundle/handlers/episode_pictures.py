"""Example pictures of a training in TensorBoard."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils import optional_import

from ..keys import IMAGE, LABEL, PRED, SUPPORT_IMAGE, SUPPORT_LABEL
from ..visualize import episode_figure, figure_array, frame_to_picture

SummaryWriter, _ = optional_import("torch.utils.tensorboard", name="SummaryWriter")


class EpisodePictures:
    """Writes the last batch of every ``interval``-th epoch to TensorBoard: support, query, true mask, prediction.

    Fits a trainer or an evaluator that prepares batches by :func:`prepare_episodes`: a trainer with
    ``decollate=False`` shows what the network is trained on.

    Args:
        log_dir: folder of the event files.
        interval: epochs between pictures.
        count: episodes in a picture.
        tag: name of the picture in TensorBoard.
    """

    def __init__(
        self, log_dir: str | os.PathLike, interval: int = 1, count: int = 3, tag: str = "train_episodes"
    ) -> None:
        if interval < 1 or count < 1:
            raise ValueError(f"interval and count must be at least 1, got {interval} and {count}")
        self.log_dir = os.fspath(log_dir)
        self.interval = interval
        self.count = count
        self.tag = tag
        self._writer: Any = None

    def attach(self, engine: Engine) -> None:
        """Listen to a trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self.write)
        engine.add_event_handler(Events.COMPLETED, self.close)

    def write(self, engine: Engine) -> None:
        """Draw the batch that the engine holds, on the first process alone."""
        if getattr(engine.state, "rank", 0) != 0:
            return
        output = engine.state.output
        figure = episode_figure(
            draw_episodes(engine.state.batch, output[PRED], self.count), f"{self.tag}, epoch {engine.state.epoch}"
        )
        if self._writer is None:
            self._writer = SummaryWriter(log_dir=self.log_dir)
        self._writer.add_image(self.tag, figure_array(figure), engine.state.epoch, dataformats="HWC")
        self._writer.flush()

    def close(self, engine: Engine) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def draw_episodes(batch: dict[str, torch.Tensor], pred: torch.Tensor, count: int) -> list[dict[str, np.ndarray]]:
    """The first ``count`` episodes of a batch as planes for :func:`episode_figure`.

    Args:
        batch: collated episodes, see :class:`RandEpisoded`: ``B`` image pairs with ``K`` masks each.
        pred: logits ``(B * K, channels, H, W)`` whose first two channels are background and foreground.
        count: how many; fewer if the batch holds fewer.
    """
    masks = batch[LABEL].shape[1]
    episodes = []
    for index in range(min(count, len(pred))):
        pair, mask = divmod(index, masks)
        planes = {
            "support": batch[SUPPORT_IMAGE][pair, 0, 0, 0],
            "support_mask": batch[SUPPORT_LABEL][pair, mask, 0, 0],
            "query": batch[IMAGE][pair, 0],
            "query_mask": batch[LABEL][pair, mask, 0],
            "prediction": pred[index, :2].float().argmax(dim=0),
        }
        episodes.append({k: frame_to_picture(v.detach().float().cpu().numpy()) for k, v in planes.items()})
    return episodes
