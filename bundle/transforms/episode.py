"""The episode: two random views of one slice, one as annotated support and one as query."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import NdarrayOrTensor
from monai.transforms import MapTransform, RandomizableTransform, Transform
from monai.transforms.transform import Randomizable
from monai.utils import convert_to_dst_type
from torch import Tensor

from ..keys import IMAGE, LABEL, PSEUDO_LABEL, SUPPORT_IMAGE, SUPPORT_LABEL


def view_grid(affine: Tensor, displacement: Tensor, size: Sequence[int]) -> Tensor:
    """Sampling grid of a batch of views: an affine map plus a smooth displacement.

    Args:
        affine: ``(B, 2, 3)`` from output to input in the normalized coordinates of ``grid_sample``.
        displacement: ``(B, 2, g, g)`` control points in the same units, spread bicubically over the image.
        size: ``(H, W)``.

    Returns:
        ``(B, H, W, 2)``.
    """
    height, width = size
    grid = F.affine_grid(affine, [affine.shape[0], 1, height, width], align_corners=False)
    smooth = F.interpolate(displacement, size=(height, width), mode="bicubic", align_corners=True)
    return grid + smooth.permute(0, 2, 3, 1)


def apply_gamma(images: Tensor, gamma: Tensor) -> Tensor:
    """Raise images ``(B, C, H, W)`` to the powers ``(B,)`` on their own range, which stays as it was."""
    low, high = images.amin(dim=(1, 2, 3), keepdim=True), images.amax(dim=(1, 2, 3), keepdim=True)
    span = (high - low).clamp(min=1e-5)
    return ((images - low) / span).clamp(min=0) ** gamma[:, None, None, None] * span + low


def apply_views(
    images: Tensor, masks: Tensor, affine: Tensor, displacement: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor]:
    """Warp a batch of slices and masks with one sampling grid each, and change the slices' contrast.

    Beyond its border an image repeats its edge and a mask is 0.

    Args:
        images: ``(B, C, H, W)``.
        masks: ``(B, K, H, W)``.
        affine: see :func:`view_grid`.
        displacement: see :func:`view_grid`.
        gamma: ``(B,)``, see :func:`apply_gamma`.

    Returns:
        Images and masks of the same shapes; masks are interpolated to the nearest pixel.
    """
    grid = view_grid(affine, displacement, images.shape[-2:])
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    masks = F.grid_sample(masks, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return apply_gamma(images, gamma), masks


class RandView(Randomizable, Transform):
    """A random view of a slice and its masks: affine, elastic and gamma, drawn uniformly from symmetric ranges.

    The defaults are the published ranges, with an elastic part that is large enough to matter (the official one
    moves pixels by 0.36 px rms).

    Args:
        rotation_deg: largest rotation in degrees.
        shift_px: largest shift along each axis in pixels.
        shear_deg: largest shear angle in degrees.
        zoom: smallest and largest zoom factor.
        elastic_px: standard deviation in pixels of the control points' displacement; 0 switches it off.
        elastic_points: control points along each axis.
        gamma: smallest and largest exponent of the intensities; ``(1, 1)`` switches it off.
        prob: chance that the view is drawn at all; otherwise the slice stays as it is.

    Raises:
        ValueError: for a range that is upside down or not positive.

    Reference: Ouyang et al., IEEE TMI 41(7), 2022, section III-B; Simard et al., ICDAR 2003, for the elastic part.
    """

    def __init__(
        self,
        rotation_deg: float = 5.0,
        shift_px: float = 5.0,
        shear_deg: float = 5.0,
        zoom: Sequence[float] = (0.9, 1.2),
        elastic_px: float = 2.0,
        elastic_points: int = 8,
        gamma: Sequence[float] = (0.5, 1.5),
        prob: float = 1.0,
    ) -> None:
        for name, span in (("zoom", zoom), ("gamma", gamma)):
            if len(span) != 2 or not 0 < span[0] <= span[1]:
                raise ValueError(f"{name} must be a positive range [smallest, largest], got {list(span)}")
        self.rotation_deg = rotation_deg
        self.shift_px = shift_px
        self.shear_deg = shear_deg
        self.zoom = tuple(zoom)
        self.elastic_px = elastic_px
        self.elastic_points = elastic_points
        self.gamma = tuple(gamma)
        self.prob = prob
        self.parameters: dict[str, np.ndarray] = {}

    def randomize(self, size: Sequence[int]) -> None:
        """Draw the parameters of a view of a slice of ``(H, W)`` pixels, as arrays for :func:`apply_views`."""
        points = (2, self.elastic_points, self.elastic_points)
        if self.R.rand() >= self.prob:
            identity = np.eye(2, 3, dtype=np.float32)
            self.parameters = {
                "affine": identity,
                "displacement": np.zeros(points, np.float32),
                "gamma": np.float32(1.0),
            }
            return
        half = np.array([size[1] / 2, size[0] / 2])  # pixels to normalized coordinates, (x, y)
        angle = math.radians(self.R.uniform(-self.rotation_deg, self.rotation_deg))
        shear = [math.tan(math.radians(self.R.uniform(-self.shear_deg, self.shear_deg))) for _ in range(2)]
        zoom = self.R.uniform(*self.zoom)
        shift = self.R.uniform(-self.shift_px, self.shift_px, 2)
        rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        linear = rotation @ np.array([[1.0, shear[0]], [shear[1], 1.0]]) / zoom
        affine = np.concatenate([linear * half[None] / half[:, None], (shift / half)[:, None]], axis=1)
        displacement = self.R.normal(size=points) * self.elastic_px / half[:, None, None]
        self.parameters = {
            "affine": affine.astype(np.float32),
            "displacement": displacement.astype(np.float32),
            "gamma": np.float32(self.R.uniform(*self.gamma)),
        }

    def __call__(self, image: NdarrayOrTensor, masks: NdarrayOrTensor) -> tuple[NdarrayOrTensor, NdarrayOrTensor]:
        """Draw a view of a slice ``(C, H, W)`` and of its masks ``(K, H, W)``: same shapes and types."""
        source, labels = torch.as_tensor(image), torch.as_tensor(masks)
        self.randomize(source.shape[-2:])
        parameters = [torch.as_tensor(self.parameters[name])[None] for name in ("affine", "displacement", "gamma")]
        view, view_masks = apply_views(source[None].float(), labels[None].float(), *parameters)
        return (
            convert_to_dst_type(view[0], image, dtype=torch.float32)[0],
            convert_to_dst_type(view_masks[0], masks)[0],
        )


class RandEpisoded(RandomizableTransform, MapTransform):
    """Make an episode of a slice and its pseudo-labels: dictionary transform on top of :class:`RandView`.

    Adds, for ``K`` pseudo-labels of one slice of ``C`` channels: ``image`` ``(C, H, W)``, the query's view;
    ``support_image`` ``(1, 1, C, H, W)``, the support's view; ``support_label`` ``(K, 1, 1, H, W)``, its masks, each
    an episode of one way and one shot; ``label`` ``(K, 2, H, W)``, the target of the loss: the query's mask, then the
    support's.

    Args:
        query_view: the query's view; ``None`` leaves the slice as it is.
        support_view: the support's view. The paper transforms the query alone, the official code both.
        image_key: key of the slice ``(C, H, W)``.
        pseudo_label_key: key of its masks ``(K, H, W)``.
    """

    def __init__(
        self,
        query_view: RandView | None,
        support_view: RandView | None,
        image_key: str = IMAGE,
        pseudo_label_key: str = PSEUDO_LABEL,
    ) -> None:
        MapTransform.__init__(self, [image_key, pseudo_label_key])
        RandomizableTransform.__init__(self, prob=1.0)
        self.query_view = query_view
        self.support_view = support_view

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandEpisoded:
        """Seed both views, each with a state of its own."""
        super().set_random_state(seed, state)
        for view in (self.query_view, self.support_view):
            if view is not None:
                view.set_random_state(seed=self.R.randint(2**31))
        return self

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Replace the slice by the query's view and add the support's."""
        out = dict(data)
        image, masks = (data[key] for key in self.keys)
        query, query_masks = self.query_view(image, masks) if self.query_view else (image, masks)
        support, support_masks = self.support_view(image, masks) if self.support_view else (image, masks)
        query_masks, support_masks = (torch.as_tensor(m).float() for m in (query_masks, support_masks))
        out[IMAGE] = torch.as_tensor(query).float()
        out[LABEL] = torch.stack([query_masks, support_masks], dim=1)
        out[SUPPORT_IMAGE] = torch.as_tensor(support).float()[None, None]
        out[SUPPORT_LABEL] = support_masks[:, None, None]
        return out
