"""Keep the best weights over a training that is interrupted and resumed."""

from __future__ import annotations

from ignite.engine import Engine
from monai.handlers import CheckpointSaver


class BestCheckpointSaver(CheckpointSaver):
    """MONAI's saver, whose best weights are those of the evaluator's best epoch, also after a resume.

    The saver of MONAI compares with what it saved itself since the process started, so the first epoch of a resumed
    training would replace better weights. This one asks the evaluator, whose best metric :class:`TrainingState`
    restores.
    """

    def metrics_completed(self, engine: Engine) -> None:
        """Save if the epoch that was just validated is the best so far."""
        if engine.state.best_metric_epoch == engine.state.epoch:
            super().metrics_completed(engine)
