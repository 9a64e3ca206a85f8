"""Pictures of a run in MLflow."""

from __future__ import annotations

import glob
import os
from typing import Any

from monai.handlers import MLFlowHandler


class MLFlowPictures(MLFlowHandler):
    """MONAI's handler for MLflow, which at the end logs the pictures that the run has drawn too.

    Args:
        pictures: pattern of their files, such as ``eval/episodes/*.png``. What lay there before the run is left out.
        **kwargs: see :class:`monai.handlers.MLFlowHandler`.
    """

    def __init__(self, pictures: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pictures = pictures

    def complete(self) -> None:
        """Log the pictures into the run's folder ``pictures``, then what MONAI logs."""
        if self.cur_run is not None:
            for path in sorted(glob.glob(self.pictures)):
                if os.path.getmtime(path) * 1000 >= self.cur_run.info.start_time:
                    self.client.log_artifact(self.cur_run.info.run_id, path, "pictures")
        super().complete()
