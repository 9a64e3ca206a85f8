"""Few-shot segmentation networks."""

from .alpnet import ALPNet

__all__ = ["ALPNet"]
