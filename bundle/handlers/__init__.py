"""Handlers of MONAI's engines."""

from .case_quality import CaseQuality
from .case_table import CaseTable
from .device_memory import DeviceMemory
from .episode_pictures import EpisodePictures
from .evaluation_report import EvaluationReport
from .finished import FinishedCases
from .list_output import ListOutput
from .loss_guard import LossGuard
from .overlay import OverlaySaver
from .progress import Progress
from .run_record import RunRecord
from .schedule import OneCycle
from .tracking import MLFlowPictures
from .training_log import TrainingLog
from .training_state import TrainingState
from .viewer_files import ViewerFiles
from .weights_saver import WeightsSaver

__all__ = [
    "CaseQuality",
    "CaseTable",
    "DeviceMemory",
    "EpisodePictures",
    "EvaluationReport",
    "FinishedCases",
    "ListOutput",
    "LossGuard",
    "MLFlowPictures",
    "OneCycle",
    "OverlaySaver",
    "Progress",
    "RunRecord",
    "TrainingLog",
    "TrainingState",
    "ViewerFiles",
    "WeightsSaver",
]
