"""Few-shot segmentation of 3D scans with self-supervised prototype networks."""

__version__ = "0.1.0"
