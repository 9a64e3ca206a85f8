"""Losses of the self-supervised training."""

from .boundary import boundary_term
from .episode import EpisodeLoss

__all__ = ["EpisodeLoss", "boundary_term"]
