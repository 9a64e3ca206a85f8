"""The slices of a training where its network runs."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from .episodes import EpisodeDataset

GB = 1e9


class SliceBank:
    """Slices and superpixel maps of a data set of episodes on a device, from which batches are taken there.

    They stay on the device as they are if they fit, else with images in half precision if that fits; else they stay
    in the computer's memory, and each batch is sent from page-locked memory while the device still computes. On a
    processor they are used where they lie.

    Args:
        dataset: where they come from.
        limit_gb: gigabytes they may take on a device; ``None`` for half of what is free there, 0 for none.
    """

    def __init__(self, dataset: EpisodeDataset, limit_gb: float | None = None) -> None:
        self.dataset = dataset
        self.limit_gb = limit_gb
        self._device: torch.device | None = None
        self._images = self._superpixels = torch.zeros(0)
        self._count = 0

    @property
    def resident(self) -> bool:
        """Whether the slices lie on the device that they were placed on."""
        return self._images.device == self._device

    @property
    def num_bytes(self) -> int:
        """Bytes that the slices take on the device."""
        return self._images.nbytes + self._superpixels.nbytes if self.resident else 0

    @property
    def num_identifiers(self) -> int:
        """One more than the largest identifier of a superpixel."""
        return self._count

    def place(self, device: str | torch.device | None) -> None:
        """Bring the slices to a device, once."""
        wanted = torch.empty(0, device=device).device
        if wanted == self._device:
            return
        self._device = wanted
        self._images, self._superpixels = self.dataset.slices()
        self._count = int(self._superpixels.max()) + 1
        if wanted.type == "cpu":
            return
        limit = self._limit(wanted)
        needed = {t: self._images.numel() * t.itemsize + self._superpixels.nbytes for t in (torch.float32, torch.half)}
        fitting = [t for t, size in needed.items() if size <= limit]
        logging.getLogger(__name__).info(
            "%d slices take %.2f GB of %s, %.2f GB in half precision; at most %.2f GB are used: %s",
            len(self._images),
            needed[torch.float32] / GB,
            wanted,
            needed[torch.half] / GB,
            limit / GB,
            f"kept there, {fitting[0]}" if fitting else "streamed",
        )
        if fitting:
            self._images = self._images.to(wanted, fitting[0])
            self._superpixels = self._superpixels.to(wanted)

    def take(self, index: Tensor, level: Tensor, device: str | torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Slices ``(B, 1, H, W)``, single precision, and one map each ``(B, 1, H, W)`` on the device.

        Args:
            index: which slices ``(B,)``, in the computer's memory.
            level: which level of their maps ``(B,)``, as well.
            device: where to; it is the same in all calls.
        """
        self.place(device)
        if self.resident:
            index, level = (self._send(item) for item in (index, level))
            return self._images[index].float(), self._superpixels[index, level][:, None]
        return self._send(self._images[index]), self._send(self._superpixels[index, level][:, None])

    def _send(self, item: Tensor) -> Tensor:
        if self._device is None or self._device.type != "cuda":
            return item.to(self._device)
        return item.pin_memory().to(self._device, non_blocking=True)

    def _limit(self, device: torch.device) -> float:
        if self.limit_gb is not None:
            return self.limit_gb * GB
        free: Any = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")
        return free / 2
