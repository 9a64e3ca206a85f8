"""Episodes as the network gets them, turned to planes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..keys import SUPPORT_IMAGE, SUPPORT_LABEL
from .prototypes import frame_to_picture


def episode_planes(prepared: Sequence[Any], pred: Tensor | None = None, count: int = 3) -> list[dict[str, np.ndarray]]:
    """The first ``count`` episodes of a prepared batch, for :func:`episode_figure`.

    Args:
        prepared: what the engines' ``prepare_batch`` returns: images ``(B, C, H, W)``; targets ``(E, T, H, W)`` whose
            first channel is the query's label map; and last a mapping with ``support_image``
            ``(B, way or 1, shot, C, H, W)`` and ``support_label`` ``(E, way, shot, H, W)``. ``E`` is a multiple of
            ``B``: each image pair serves as many consecutive episodes.
        pred: logits ``(E, 1 + way or more, h, w)``, background first, at any size; ``None`` for none.
        count: how many; fewer if the batch holds fewer.
    """
    image, target, support = prepared[0], prepared[1], prepared[-1]
    if not isinstance(support, Mapping):
        raise TypeError(f"prepared must end with the support's tensors by name, got {type(support).__name__}")
    images, masks = support[SUPPORT_IMAGE], support[SUPPORT_LABEL]
    each, ways = len(masks) // len(image), masks.shape[1]
    values = torch.arange(1, ways + 1, device=masks.device)[:, None, None]
    episodes = []
    for index in range(min(count, len(masks))):
        pair = index // each
        planes = {
            "support": images[pair, 0, 0, 0],
            "support_mask": ((masks[index, :, 0] > 0.5) * values).amax(dim=0),
            "query": image[pair, 0],
            "query_mask": target[index, 0],
        }
        if pred is not None:
            scores = F.interpolate(pred[index : index + 1, : 1 + ways].float(), size=image.shape[-2:], mode="bilinear")
            planes["prediction"] = scores[0].argmax(dim=0)
        episodes.append({k: frame_to_picture(v.detach().float().cpu().numpy()) for k, v in planes.items()})
    return episodes
