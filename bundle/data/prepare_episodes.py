"""Batches of episodes, made where the network runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..keys import DRAWN, IMAGE, LABEL, PSEUDO_LABEL, SLICE, SUPPORT_IMAGE, SUPPORT_LABEL
from ..transforms.episode import apply_drawn_views
from ..transforms.pseudo_label import drawn_label_maps
from .bank import SliceBank


class PrepareEpisodes:
    """Batch of samples of :class:`EpisodeDataset` to what the network and the loss take, on the engine's device.

    What the samples bring as parameters, pseudo-labels and views, is made here, of the whole batch at once.

    Args:
        num_ways: classes of an episode, as many as superpixels are drawn. One superpixel makes the paper's one-way
            episode, whose target also holds the support's mask, for the alignment term; several compete as ways on
            shared images, and the target is the query's label map alone.
        bank: the slices of lazily drawn samples.

    Raises:
        ValueError: for lazily drawn samples without a bank.
    """

    def __init__(self, num_ways: int = 1, bank: SliceBank | None = None) -> None:
        self.num_ways = num_ways
        self.bank = bank

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, tuple, dict[str, torch.Tensor]]:
        """Query images ``(B, C, H, W)``, target ``(B, 1 or 2, H, W)``, and the support by keyword.

        ``support_image`` is ``(B, 1, 1, C, H, W)``, ``support_label`` ``(B, num_ways, 1, H, W)``,
        boolean.
        """

        def send(item: Any) -> Any:
            if isinstance(item, Mapping):
                return {key: send(value) for key, value in item.items()}
            return item.to(device=device, non_blocking=non_blocking, **kwargs)

        batch = {key: send(value) for key, value in batchdata.items() if key != SLICE}
        if DRAWN in batch:
            if self.bank is None:
                raise ValueError("lazily drawn episodes need the bank of their slices; set bank, or lazy to false")
            images, maps = self.bank.take(batchdata[SLICE], batchdata[DRAWN]["level"], device)
            batch[IMAGE] = images
            batch[PSEUDO_LABEL] = drawn_label_maps(maps, batch[DRAWN]["chosen"], self.bank.num_identifiers)
        batch = apply_drawn_views(batch)
        label, support_label = batch[LABEL].float(), batch[SUPPORT_LABEL]
        ways = torch.arange(1, self.num_ways + 1, device=label.device).view(1, -1, 1, 1)
        masks = support_label.to(torch.uint8).contiguous() == ways  # (B, num_ways, H, W)
        target = torch.cat([label, masks.float()], dim=1) if self.num_ways == 1 else label
        support = {SUPPORT_IMAGE: batch[SUPPORT_IMAGE][:, None, None], SUPPORT_LABEL: masks[:, :, None]}
        return batch[IMAGE], target, (), support
