"""Building blocks of the few-shot networks: pure functions on tensors."""

from .prototypes import class_prototypes, local_prototypes, match_prototypes, resize_mask

__all__ = ["class_prototypes", "local_prototypes", "match_prototypes", "resize_mask"]
