"""The episode: two random views of one slice, one as annotated support and one as query."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

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
    return grid + spread_control_points(displacement, size).permute(0, 2, 3, 1)


def spread_control_points(points: Tensor, size: Sequence[int]) -> Tensor:
    """Bicubic interpolation of a few points over an image: ``(B, C, g, g) -> (B, C, H, W)``, corner to corner.

    It is one matrix along each axis, which is many times faster than to interpolate pixel by pixel.
    """

    def matrix(count: int, length: int) -> Tensor:  # (length, count): what each point contributes to each pixel
        eye = torch.eye(count, device=points.device, dtype=points.dtype)[None, None]
        return F.interpolate(eye, size=(length, count), mode="bicubic", align_corners=True)[0, 0]

    return matrix(points.shape[-2], size[0]) @ points @ matrix(points.shape[-1], size[1]).T


def apply_gamma(images: Tensor, gamma: Tensor) -> Tensor:
    """Raise images ``(B, C, H, W)`` to the powers ``(B,)`` on their own range, which stays as it was."""
    low, high = images.amin(dim=(1, 2, 3), keepdim=True), images.amax(dim=(1, 2, 3), keepdim=True)
    span = (high - low).clamp(min=1e-5)
    return ((images - low) / span).clamp(min=0) ** gamma[:, None, None, None] * span + low


def apply_bias(images: Tensor, bias: Tensor) -> Tensor:
    """Multiply images ``(B, C, H, W)``, counted from their darkest value, by a smooth field, as coils do.

    Args:
        images: images.
        bias: logarithm of the field at control points ``(B, 1, g, g)``, spread bicubically.
    """
    low = images.amin(dim=(1, 2, 3), keepdim=True)
    field = spread_control_points(bias, images.shape[-2:]).exp()
    return (images - low) * field + low


def apply_views(
    images: Tensor,
    masks: Tensor,
    affine: Tensor,
    displacement: Tensor,
    gamma: Tensor,
    bias: Tensor | None = None,
    contrast: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Warp a batch of slices and masks with one sampling grid each, and change the slices' contrast.

    Beyond its border an image repeats its edge and a mask is 0.

    Args:
        images: ``(B, C, H, W)``.
        masks: masks or label maps ``(B, K, H, W)``.
        affine: see :func:`view_grid`.
        displacement: see :func:`view_grid`.
        gamma: ``(B,)``, see :func:`apply_gamma`.
        bias: ``(B, 1, g, g)``, see :func:`apply_bias`.
        contrast: ``(B, 2)``, factor of the deviation from the slice's mean, and what is added.

    Returns:
        Images and masks of the same shapes; masks are interpolated to the nearest pixel.
    """
    grid = view_grid(affine, displacement, images.shape[-2:])
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    masks = F.grid_sample(masks, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    images = apply_gamma(images, gamma)
    if bias is not None:
        images = apply_bias(images, bias)
    if contrast is not None:
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        images = (images - mean) * contrast[:, 0, None, None, None] + mean + contrast[:, 1, None, None, None]
    return images, masks


class RandView(Randomizable, Transform):
    """A random view of a slice and its masks: affine, elastic and intensity, drawn uniformly from symmetric ranges.

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
        stretch: largest factor, as its logarithm, by which each axis is scaled besides the zoom.
        bias: standard deviation of the logarithm of a smooth field of sensitivity; 0 switches it off.
        bias_points: control points of that field along each axis.
        contrast: largest change of contrast, as its logarithm, and of brightness, in units of the image.
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
        stretch: float = 0.0,
        bias: float = 0.0,
        bias_points: int = 4,
        contrast: float = 0.0,
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
        self.stretch = stretch
        self.bias = bias
        self.bias_points = bias_points
        self.contrast = contrast
        self.prob = prob
        self.parameters: dict[str, np.ndarray] = {}

    def randomize(self, size: Sequence[int]) -> None:
        """Draw the parameters of a view of a slice of ``(H, W)`` pixels, as arrays for :func:`apply_views`."""
        points = (2, self.elastic_points, self.elastic_points)
        field = (1, self.bias_points, self.bias_points)
        if self.R.rand() >= self.prob:
            self.parameters = {
                "affine": np.eye(2, 3, dtype=np.float32),
                "displacement": np.zeros(points, np.float32),
                "gamma": np.float32(1.0),
                "bias": np.zeros(field, np.float32),
                "contrast": np.array([1.0, 0.0], np.float32),
            }
            return
        half = np.array([size[1] / 2, size[0] / 2])  # pixels to normalized coordinates, (x, y)
        angle = math.radians(self.R.uniform(-self.rotation_deg, self.rotation_deg))
        shear = [math.tan(math.radians(self.R.uniform(-self.shear_deg, self.shear_deg))) for _ in range(2)]
        zoom = self.R.uniform(*self.zoom)
        shift = self.R.uniform(-self.shift_px, self.shift_px, 2)
        rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        stretch = np.exp(self.R.uniform(-self.stretch, self.stretch, 2))
        linear = rotation @ np.array([[1.0, shear[0]], [shear[1], 1.0]]) / zoom / stretch
        affine = np.concatenate([linear * half[None] / half[:, None], (shift / half)[:, None]], axis=1)
        displacement = self.R.normal(size=points) * self.elastic_px / half[:, None, None]
        self.parameters = {
            "affine": affine.astype(np.float32),
            "displacement": displacement.astype(np.float32),
            "gamma": np.float32(self.R.uniform(*self.gamma)),
            "bias": (self.R.normal(size=field) * self.bias).astype(np.float32),
            "contrast": np.array(
                [
                    math.exp(self.R.uniform(-self.contrast, self.contrast)),
                    self.R.uniform(-self.contrast, self.contrast),
                ],
                np.float32,
            ),
        }

    def __call__(self, image: NdarrayOrTensor, masks: NdarrayOrTensor) -> tuple[NdarrayOrTensor, NdarrayOrTensor]:
        """Draw a view of a slice ``(C, H, W)`` and of its masks ``(K, H, W)``: same shapes and types."""
        source, labels = torch.as_tensor(image), torch.as_tensor(masks)
        self.randomize(source.shape[-2:])
        parameters = {name: torch.as_tensor(value)[None] for name, value in self.parameters.items()}
        view, view_masks = apply_views(source[None].float(), labels[None].float(), **parameters)
        return (
            convert_to_dst_type(view[0], image, dtype=torch.float32)[0],
            convert_to_dst_type(view_masks[0], masks)[0],
        )


QUERY_VIEW, SUPPORT_VIEW = "query_view", "support_view"


class RandEpisoded(RandomizableTransform, MapTransform):
    """Make an episode of a slice and its pseudo-label: dictionary transform on top of :class:`RandView`.

    Adds ``image`` ``(C, H, W)`` and ``label`` ``(1, H, W)``, the query's view of slice and label map, and
    ``support_image`` and ``support_label``, the support's.

    Args:
        query_view: the query's view; ``None`` leaves the slice as it is.
        support_view: the support's view. The paper transforms the query alone, the official code both.
        lazy: draw the parameters of the views alone, as entries ``query_view`` and ``support_view``, and leave the
            slice as it is: :func:`apply_drawn_views` then makes the same views of a whole batch at once, on its
            device.
        image_key: key of the slice ``(C, H, W)``.
        pseudo_label_key: key of its label map ``(1, H, W)``.
    """

    def __init__(
        self,
        query_view: RandView | None,
        support_view: RandView | None,
        lazy: bool = False,
        image_key: str = IMAGE,
        pseudo_label_key: str = PSEUDO_LABEL,
    ) -> None:
        MapTransform.__init__(self, [image_key, pseudo_label_key])
        RandomizableTransform.__init__(self, prob=1.0)
        self.views = {QUERY_VIEW: query_view, SUPPORT_VIEW: support_view}
        self.lazy = lazy

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandEpisoded:
        """Seed both views, which draw from one state in turns."""
        super().set_random_state(seed, state)
        for view in self.views.values():
            if view is not None:
                view.set_random_state(state=self.R)
        return self

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, Any]:
        """Replace the slice by the query's view and add the support's; or add the parameters of both."""
        out: dict[Hashable, Any] = dict(data)
        if self.lazy:
            for name, view in self.views.items():
                if view is not None:
                    view.randomize(out[self.keys[0]].shape[-2:])
                    out[name] = {key: torch.as_tensor(value) for key, value in view.parameters.items()}
            return out
        image, masks = (data[key] for key in self.keys)
        for (image_key, label_key), view in zip(_VIEW_KEYS.values(), self.views.values()):
            seen, seen_masks = view(image, masks) if view is not None else (image, masks)
            out[image_key], out[label_key] = torch.as_tensor(seen).float(), torch.as_tensor(seen_masks)
        out.pop(self.keys[1])
        return out


_VIEW_KEYS = {QUERY_VIEW: (IMAGE, LABEL), SUPPORT_VIEW: (SUPPORT_IMAGE, SUPPORT_LABEL)}


def apply_drawn_views(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Make the views of a batch of lazily drawn episodes; a batch of made ones stays as it is.

    Args:
        batch: collated samples of :class:`RandEpisoded` with the default keys, ``image`` ``(B, C, H, W)``.

    Returns:
        ``image``, ``label``, ``support_image``, ``support_label``, each with ``B`` rows.
    """
    if PSEUDO_LABEL not in batch:
        return dict(batch)
    out = {}
    for name, (image_key, label_key) in _VIEW_KEYS.items():
        image, label = batch[IMAGE].float(), batch[PSEUDO_LABEL].float()
        if name in batch:
            image, label = apply_views(image, label, **batch[name])
        out[image_key], out[label_key] = image, label
    return out
