"""Losses of the self-supervised training."""

from .episode import EpisodeLoss

__all__ = ["EpisodeLoss"]
