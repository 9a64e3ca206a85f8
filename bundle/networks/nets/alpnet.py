"""The few-shot segmentation network: one encoder, adaptive local prototypes, cosine matching."""

from __future__ import annotations

import math
from typing import List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks.prototypes import (
    central_pixels,
    class_prototypes,
    grid_positions,
    local_prototypes,
    match_cells,
    match_prototypes,
    resize_mask,
    similarity,
)
from ..precision import in_single_precision

GATES = ("official", "matched", "off")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ALPNet(nn.Module):
    """Segments a query image by the prototypes of annotated support images.

    Axes: ``B`` episodes, ``way`` classes besides the background, ``shot`` annotated images a class, ``C`` image
    channels, ``H, W`` pixels (multiples of the encoder's stride), ``h, w`` the feature grid, ``D`` its channels.

    Background and foreground are scored by local prototypes, one for every pooling window that lies in the class
    for more than a threshold; each foreground class adds its class-level prototypes, which stand alone where no
    window qualifies. A background without a qualifying window falls back to its class-level prototype. Everything
    has a fixed shape and is differentiable with respect to the images; masks only select.

    Args:
        encoder: network ``(B, in_channels, H, W) -> (B, D, h, w)`` with the attributes ``in_channels`` and
            ``stride``. Images of one channel are repeated for an encoder of three.
        image_channels: ``C``, needed to take a packed episode apart.
        training_window: side of the pooling window in training mode, in cells (4 in the paper).
        testing_window: side of the pooling window in evaluation mode, in cells (2 in the paper).
        foreground_threshold: share of a window that must be foreground to give a prototype (0.95).
        background_threshold: the same for the background (0.95).
        temperature: factor of the cosine similarity (20).
        foreground_gate: when the local foreground prototypes of a class are used. ``"official"``: when a window of
            ``training_window`` cells reaches the threshold, in testing too, as in the authors' code; ``"matched"``:
            when a window of the current size does; ``"off"``: always, without a test.
        position_weight: factor of a squared-distance term between the places of query cell and prototype, in units
            of the image's side. 0, as in the paper, switches it off.
        depth_weight: the same for their depths in cm, where :meth:`match` is told them.
        align: in training mode, append the logits of the support images, segmented by the prototypes of the query
            and its predicted mask (prototype alignment), as further channels.
        precision: number format of the encoder in eager mode: ``"float32"``, ``"bfloat16"`` or ``"float16"``. The
            matching is always in single precision.
        upsample_training: bring the logits to the image's size in training mode too; otherwise they stay on the
            feature grid, where :class:`EpisodeLoss` compares them to each class's share of a cell.
        channels_last: encode images in the order of memory that convolutions with channels-last weights are fastest
            in; ``False`` leaves it to the weights and the images.

    Reference: Ouyang et al., IEEE TMI 41(7), 2022, https://doi.org/10.1109/TMI.2022.3150682.
    """

    def __init__(
        self,
        encoder: nn.Module,
        image_channels: int = 1,
        training_window: int = 4,
        testing_window: int = 2,
        foreground_threshold: float = 0.95,
        background_threshold: float = 0.95,
        temperature: float = 20.0,
        foreground_gate: str = "official",
        position_weight: float = 0.0,
        depth_weight: float = 0.0,
        align: bool = False,
        precision: str = "float32",
        upsample_training: bool = True,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        if foreground_gate not in GATES:
            raise ValueError(f"foreground_gate must be one of {GATES}, got {foreground_gate!r}")
        if training_window < 1 or testing_window < 1:
            raise ValueError(f"pooling windows must be at least 1 cell, got {training_window} and {testing_window}")
        if image_channels not in (1, encoder.in_channels):
            raise ValueError(f"image_channels must be 1 or the encoder's {encoder.in_channels}, got {image_channels}")
        self.encoder = encoder
        self.in_channels = int(encoder.in_channels)
        self.stride = int(encoder.stride)
        self.image_channels = image_channels
        self.training_window = training_window
        self.testing_window = testing_window
        self.foreground_threshold = foreground_threshold
        self.background_threshold = background_threshold
        self.temperature = temperature
        self.official_gate = foreground_gate == "official"
        self.no_gate = foreground_gate == "off"
        self.position_weight = position_weight
        self.depth_weight = depth_weight
        self.align = align
        self.upsample_training = upsample_training
        self.channels_last = channels_last
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {sorted(PRECISIONS)}, got {precision!r}")
        self.precision = precision

    def forward(
        self, image: Tensor, support_image: Optional[Tensor] = None, support_label: Optional[Tensor] = None
    ) -> Tensor:
        """Segment query images.

        Args:
            image: query ``(B, C, H, W)``; alone, a packed one-way episode ``(B, C + shot * C + shot, H, W)`` with
                the channels [query | support images | support masks].
            support_image: ``(B, way, shot, C, H, W)``, or ``(B, 1, shot, C, H, W)`` where all ways are annotated on
                the same images.
            support_label: ``(B, way, shot, H, W)`` with values in [0, 1], or boolean. With ``E * B`` rows instead of
                ``B``, each image pair serves ``E`` consecutive episodes and is encoded once.

        Returns:
            Logits ``(E * B, 1 + way, H, W)``, channel 0 the background. In training mode with ``align``, further
            ``2 * way * shot`` channels: background and foreground of each support image, way by way.

        Raises:
            ValueError: if the shapes do not fit each other or the encoder's stride.
        """
        if support_image is None or support_label is None:
            image, support_image, support_label = self.unpack(image)
        batch, height, width = image.shape[0], image.shape[-2], image.shape[-1]
        if height % self.stride != 0 or width % self.stride != 0:
            raise ValueError(f"image sides must be multiples of the stride {self.stride}, got {height} x {width}")
        if support_label.shape[0] % batch != 0 or support_image.shape[0] != batch:
            raise ValueError(f"support must match {batch} images, got {support_image.shape} and {support_label.shape}")
        episodes = support_label.shape[0] // batch
        features = self.encode(torch.cat([image, support_image.flatten(0, 2)]))
        query = features[:batch].repeat_interleave(episodes, dim=0)
        support = features[batch:].reshape(batch, -1, features.shape[1], features.shape[2], features.shape[3])
        support = support.repeat_interleave(episodes, dim=0)  # (E * B, M, D, h, w), M = image ways * shot
        masks = central_pixels(support_label, self.stride).to(features.dtype)
        foreground, background = self.split_masks(masks, support_image.shape[1])
        grid = [features.shape[2], features.shape[3]]
        foreground = resize_mask(foreground.flatten(1, 2), grid)
        scores = self.match(query, support, foreground, resize_mask(background, grid), None, None)
        if self.align and self.training:
            scores = torch.cat([scores, self.align_support(query, support, scores, support_label.shape[2])], dim=1)
        if self.training and not self.upsample_training:
            return scores
        return F.interpolate(scores, size=[height, width], mode="bilinear", align_corners=False)

    def unpack(self, packed: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Take a packed one-way episode ``(B, C + shot * (C + 1), H, W)`` apart."""
        channels = self.image_channels
        shots = (packed.shape[1] - channels) // (channels + 1)
        if shots < 1 or packed.shape[1] != channels + shots * (channels + 1):
            raise ValueError(
                f"a packed episode has C + shot * (C + 1) channels (C = {channels}), got {packed.shape[1]}; "
                "or pass support_image and support_label"
            )
        size = [packed.shape[0], 1, shots, channels, packed.shape[2], packed.shape[3]]
        image, support, label = torch.split(packed, [channels, shots * channels, shots], dim=1)
        return image, support.reshape(size), label[:, None]

    @torch.jit.export
    def encode(self, images: Tensor) -> Tensor:
        """Features of images: ``(B, C, H, W) -> (B, D, h, w)``."""
        if images.shape[1] == 1 and self.in_channels > 1:
            images = images.expand(-1, self.in_channels, -1, -1)
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        if torch.jit.is_scripting():
            return self.encoder(images)
        return self._encode_at_precision(images)

    @torch.jit.unused
    def _encode_at_precision(self, images: Tensor) -> Tensor:
        enabled = self.precision != "float32"
        with torch.autocast(images.device.type, PRECISIONS[self.precision], enabled=enabled):
            return self.encoder(images).float()

    def split_masks(self, support_label: Tensor, image_ways: int) -> Tuple[Tensor, Tensor]:
        """Masks of all classes on all support images: foreground ``(B, way, M, H, W)``, background ``(B, M, H, W)``.

        With images of its own, a way is annotated on these alone, and what is not this way is background there. On
        shared images the background is what no way covers.
        """
        batch, ways, shots, height, width = support_label.shape
        if image_ways == ways:
            own = torch.eye(ways, device=support_label.device, dtype=support_label.dtype)
            foreground = support_label[:, :, None] * own[None, :, :, None, None, None]
            return foreground.reshape(batch, ways, ways * shots, height, width), 1 - support_label.flatten(1, 2)
        if image_ways != 1:
            raise ValueError(f"support_image must have {ways} ways or 1, got {image_ways}")
        return support_label, 1 - support_label.sum(dim=1).clamp(max=1)

    @torch.jit.export
    def match(
        self,
        query: Tensor,
        support: Tensor,
        foreground: Tensor,
        background: Tensor,
        places: Optional[Tensor] = None,
        depths: Optional[Tensor] = None,
    ) -> Tensor:
        """Score the classes in each cell of the query's feature grid.

        Args:
            query: features ``(B, D, h, w)``.
            support: features of ``M`` support images ``(B, M, D, h, w)``.
            foreground: masks ``(B, way * M, h, w)`` (way-major) on the feature grid.
            background: masks ``(B, M, h, w)``; a cell that is in no mask, such as a part that nobody annotated,
                gives no prototype.
            places: where the query's cells lie on the support, ``(B, 3, h, w)``: row and column in units of the
                image's side, depth in cm. ``None`` for where they lie in the query, at no depth.
            depths: depths ``(B, M)`` of the support images in cm, where ``places`` are given.

        Returns:
            Scores ``(B, 1 + way, h, w)``, channel 0 the background.
        """
        if torch.jit.is_scripting():
            return self._match(query, support, foreground, background, places, depths)
        return self._match_in_single_precision(query, support, foreground, background, places, depths)

    @torch.jit.unused
    @in_single_precision
    def _match_in_single_precision(
        self,
        query: Tensor,
        support: Tensor,
        foreground: Tensor,
        background: Tensor,
        places: Optional[Tensor],
        depths: Optional[Tensor],
    ) -> Tensor:
        return self._match(query, support, foreground, background, places, depths)

    def _match(
        self,
        query: Tensor,
        support: Tensor,
        foreground: Tensor,
        background: Tensor,
        places: Optional[Tensor],
        depths: Optional[Tensor],
    ) -> Tensor:
        batch, images, depth, height, width = support.shape
        ways = foreground.shape[1] // images
        window = self.training_window if self.training else self.testing_window
        masks = torch.cat([background, foreground], dim=1).reshape(batch, 1 + ways, images, height, width)
        vectors, coverage = local_prototypes(support, masks, window)
        levels, centers = class_prototypes(support, masks)
        present = masks.flatten(3).sum(dim=3) > 0  # (B, 1 + way, M)
        share = present.to(levels.dtype) / present.sum(dim=2, keepdim=True).clamp(min=1)
        mean_levels = (levels * share[..., None]).sum(dim=2)  # (B, 1 + way, D)
        mean_centers = (centers * share[..., None]).sum(dim=2)

        local_background = coverage[:, :1] > self.background_threshold
        gate = self.gate(masks[:, 1:], coverage[:, 1:])[..., None]  # (B, way, 1)
        local_foreground = (coverage[:, 1:] > self.foreground_threshold) & gate
        none = torch.zeros_like(present[:, :1])  # the background has no class-level prototype an image
        own = torch.eye(1 + ways, device=query.device, dtype=torch.bool)[None]
        shot_level = torch.cat([none, present[:, 1:] & gate], dim=1)[:, None] & own[..., None]
        mean_level = ~torch.cat([local_background.any(dim=2, keepdim=True), gate], dim=1)
        valid = torch.cat(
            [torch.cat([local_background, local_foreground], dim=1), shot_level.flatten(2), own & mean_level], dim=2
        )  # (B, 1 + way, P)
        prototypes = torch.cat([vectors, levels.flatten(1, 2), mean_levels], dim=1)
        near = math.sqrt(self.position_weight)
        spots: Optional[Tensor] = None
        cells: Optional[Tensor] = None
        if self.position_weight != 0.0 or depths is not None:
            side = min(window, height, width)
            grid = grid_positions(height // side, width // side, levels)[None].expand(batch, -1, -1)
            spots = near * torch.cat([grid.repeat(1, images, 1), centers.flatten(1, 2), mean_centers], dim=1)
            cells = near * grid_positions(query.shape[2], query.shape[3], levels)[None]
            if places is not None:
                cells = near * places[:, :2].flatten(2).transpose(1, 2)
            if places is not None and depths is not None:
                level_depths = depths[:, None].expand(-1, 1 + ways, -1)
                mean_depths = (level_depths * share).sum(dim=2)
                far = [depths.repeat_interleave(grid.shape[1], dim=1), level_depths.flatten(1), mean_depths]
                deep = math.sqrt(self.depth_weight)
                spots = torch.cat([spots, deep * torch.cat(far, dim=1)[..., None]], dim=2)
                cells = torch.cat([cells, deep * places[:, 2].flatten(1)[..., None]], dim=2)
        if torch.is_grad_enabled() or torch.jit.is_tracing() or query.is_cuda:
            scores = match_prototypes(similarity(query, prototypes, self.temperature, spots, cells), valid)
        else:
            scores = match_cells(query, prototypes, valid, self.temperature, spots, cells)
        return scores.reshape(batch, 1 + ways, query.shape[2], query.shape[3])

    def gate(self, foreground: Tensor, coverage: Tensor) -> Tensor:
        """Whether each class's local prototypes are used: boolean ``(B, way)``."""
        if self.no_gate:
            return torch.ones(foreground.shape[:2], dtype=torch.bool, device=foreground.device)
        if not self.official_gate:
            return coverage.amax(dim=2) >= self.foreground_threshold
        side = min(self.training_window, foreground.shape[-2], foreground.shape[-1])
        pooled = F.avg_pool2d(foreground.flatten(0, 1), side).reshape(foreground.shape[0], foreground.shape[1], -1)
        return pooled.amax(dim=2) >= self.foreground_threshold

    def align_support(self, query: Tensor, support: Tensor, scores: Tensor, shots: int) -> Tensor:
        """Segment the support images back from the query and its predicted mask (prototype alignment, TMI eq. 8).

        Returns:
            Scores ``(B, 2 * way * shot, h, w)``: background and foreground of each support image, way by way.
        """
        ways = scores.shape[1] - 1
        predicted = F.one_hot(scores.argmax(dim=1), 1 + ways).permute(0, 3, 1, 2).to(scores.dtype)
        images = support if support.shape[1] == ways * shots else support.repeat(1, ways, 1, 1, 1)
        aligned: List[Tensor] = []
        for way in range(ways):
            background, foreground = predicted[:, :1], predicted[:, 1 + way : 2 + way]
            for shot in range(shots):
                target = images[:, way * shots + shot]
                aligned.append(self.match(target, query[:, None], foreground, background, None, None))
        return torch.cat(aligned, dim=1)
