"""Example pictures of a training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ignite.engine import Engine, Events

from ..keys import PRED
from ..visualize import episode_figure, episode_planes, figure_array, save_figure

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class EpisodePictures:
    """Draws the last batch of every ``interval``-th epoch for TensorBoard: support, query, true mask, prediction.

    Fits a trainer with ``decollate=False`` whose ``prepare_batch`` is deterministic. After every epoch it brings what
    the other handlers wrote to the disk too, which MONAI's handler of scalars does not do for a trainer.

    Args:
        summary_writer: TensorBoard writer that handlers share.
        interval: epochs between pictures, 0 for none.
        count: episodes in a picture.
        tag: name of the picture in TensorBoard.
        output_dir: folder that gets the pictures as files ``<tag>_<epoch>.png`` too; ``None`` for none.
    """

    def __init__(
        self,
        summary_writer: SummaryWriter,
        interval: int = 1,
        count: int = 3,
        tag: str = "train_episodes",
        output_dir: str | os.PathLike | None = None,
    ) -> None:
        if interval < 0 or count < 1:
            raise ValueError(f"interval must be at least 0 and count at least 1, got {interval} and {count}")
        self.writer = summary_writer
        self.interval = interval
        self.count = count
        self.tag = tag
        self.output_dir = None if output_dir is None else Path(output_dir)

    def attach(self, engine: Engine) -> None:
        """Listen to a trainer."""
        if self.interval > 0:
            engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self.write)
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda _: self.writer.flush())

    def write(self, engine: Engine) -> None:
        """Draw the batch that the engine holds, on the first process alone."""
        if getattr(engine.state, "rank", 0) != 0:
            return
        prepared = engine.prepare_batch(engine.state.batch, engine.state.device)
        output = engine.state.output[0] if isinstance(engine.state.output, list) else engine.state.output
        episodes = episode_planes(prepared, output[PRED], self.count)
        figure = episode_figure(episodes, f"{self.tag}, epoch {engine.state.epoch}")
        self.writer.add_image(self.tag, figure_array(figure), engine.state.epoch, dataformats="HWC")
        if self.output_dir is not None:
            save_figure(figure, self.output_dir / f"{self.tag}_{engine.state.epoch:04d}.png")
