"""Handlers of MONAI's engines."""

from .episode_pictures import EpisodePictures
from .evaluation_report import EvaluationReport
from .overlay import OverlaySaver
from .run_record import RunRecord
from .schedule import OneCycle
from .training_state import TrainingState

__all__ = ["EpisodePictures", "EvaluationReport", "OneCycle", "OverlaySaver", "RunRecord", "TrainingState"]
