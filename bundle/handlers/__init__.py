"""Handlers of MONAI's engines."""

from .evaluation_report import EvaluationReport
from .training_state import TrainingState

__all__ = ["EvaluationReport", "TrainingState"]
