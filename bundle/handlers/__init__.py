"""Handlers of MONAI's engines."""

from .best_checkpoint import BestCheckpointSaver
from .case_quality import CaseQuality
from .episode_pictures import EpisodePictures
from .evaluation_report import EvaluationReport
from .overlay import OverlaySaver
from .run_record import RunRecord
from .schedule import OneCycle
from .training_state import TrainingState

__all__ = [
    "BestCheckpointSaver",
    "CaseQuality",
    "EpisodePictures",
    "EvaluationReport",
    "OneCycle",
    "OverlaySaver",
    "RunRecord",
    "TrainingState",
]
