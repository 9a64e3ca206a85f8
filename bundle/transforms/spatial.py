"""Geometry: from a scan as stored to the frame in which the network sees its slices, and back."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms import MapTransform, Orientation, SpatialResample, Transform
from monai.utils import ensure_tuple_rep
from nibabel import aff2axcodes


def slice_axcodes(affine: np.ndarray | torch.Tensor, anisotropy: float = 1.77) -> str:
    """Orientation codes with the slice axis last: ``"RAS"`` for axial scans.

    The slice axis is the one whose spacing exceeds the two others' by the factor ``anisotropy``; without such an
    axis it is the one that runs from feet to head. Short-axis cardiac scans keep their own slices that way. The default
    lies between the ratios of common spacings (1.2 to 0.8 mm, 0.9 to 0.5 mm), so that rounding decides nothing.
    """
    affine = np.asarray(affine)
    codes = "".join(aff2axcodes(affine))
    spacing = affine_to_spacing(affine, 3)
    coarse = int(np.argmax(spacing))
    others = np.delete(spacing, coarse)
    pairs = [next(pair for pair in ("RL", "AP", "SI") if code in pair) for code in codes]
    last = pairs[coarse] if spacing[coarse] > anisotropy * others.max() else "SI"
    return "".join([*(pair[0] for pair in ("RL", "AP", "SI") if pair != last), last[0]])


def slice_axis(affine: np.ndarray | torch.Tensor) -> int:
    """Which axis of a volume counts its slices, see :func:`slice_axcodes`."""
    codes = aff2axcodes(np.asarray(affine))
    last = slice_axcodes(affine)[-1]
    opposite = {"R": "L", "A": "P", "S": "I"}.get(last, last)
    return next(axis for axis, code in enumerate(codes) if code in (last, opposite))


def count_slices(shape: Sequence[int], affine: np.ndarray | torch.Tensor) -> int:
    """How many slices a volume of such a shape has."""
    return int(shape[slice_axis(affine)])


class OrientSlices(Transform):
    """Bring a volume to right-anterior-superior axes with its slice axis last.

    Args:
        anisotropy: see :func:`slice_axcodes`.
    """

    def __init__(self, anisotropy: float = 1.77) -> None:
        self.anisotropy = anisotropy

    def __call__(self, image: MetaTensor) -> MetaTensor:
        """Reorient ``(C, …)`` to ``(C, H, W, D)``; the affine follows."""
        if image.ndim != 4:
            raise ValueError(
                f"{image.meta.get('filename_or_obj', 'image')}: expected a 3D volume, got {image.ndim - 1} spatial "
                f"axes {tuple(image.shape[1:])}; convert 2D images to a one-slice volume and split 4D series into 3D "
                "files"
            )
        return Orientation(slice_axcodes(image.affine, self.anisotropy), labels=None)(image)


class OrientSlicesd(MapTransform):
    """Dictionary version of :class:`OrientSlices`.

    Args:
        keys: keys of the volumes.
        anisotropy: see :func:`slice_axcodes`.
        allow_missing_keys: skip keys that are absent.
    """

    def __init__(self, keys: KeysCollection, anisotropy: float = 1.77, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.orient = OrientSlices(anisotropy)

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        """Reorient each volume."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self.orient(out[key])
        return out


def body_box(mask: np.ndarray, occupancy: float = 0.02) -> tuple[slice, slice, slice]:
    """Box of a body mask ``(H, W, D)``: rows, columns and slices with more than a share of the fullest one's pixels.

    All of them if the mask is empty.
    """
    box = []
    for axis in range(3):
        profile = mask.sum(axis=tuple(a for a in range(3) if a != axis)).astype(float)
        inside = np.flatnonzero(profile > occupancy * profile.max())
        box.append(slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, mask.shape[axis]))
    return box[0], box[1], box[2]


class SliceFrame(Transform):
    """Bring the slices of a volume into the network's frame: cut to a box, resized to one size.

    With the body's box, places in the frame are places in the body whatever the patient's size and the field of
    view, which the position term of the matching relies on; and no resolution is spent on air. Slices above and below
    the body are cut off too: they are alike in all scans, and would be taken for what two of them have in common.

    Args:
        size: rows and columns of the frame, multiples of the network's stride.
        occupancy: see :func:`body_box`.
        mode: interpolation, ``"bilinear"`` (antialiased) or ``"nearest"``.
    """

    def __init__(self, size: Sequence[int] = (256, 256), occupancy: float = 0.02, mode: str = "bilinear") -> None:
        self.size = tuple(size)
        self.occupancy = occupancy
        self.mode = mode

    def __call__(self, image: MetaTensor, body: NdarrayOrTensor | None = None, mode: str | None = None) -> MetaTensor:
        """Cut and resize ``(C, H, W, D)`` to ``(C, *size, D')``; the affine follows.

        Args:
            image: volume with its affine.
            body: mask ``(1, H, W, D)`` whose box is cut out; ``None`` keeps the whole volume.
            mode: overrides the interpolation.
        """
        box = tuple(slice(0, length) for length in image.shape[1:])
        if body is not None:
            box = body_box(np.asarray(torch.as_tensor(body).cpu())[0] > 0, self.occupancy)
        cut = image[(slice(None),) + box].as_subclass(torch.Tensor)
        shape = cut.shape[1:3]
        planes = cut.permute(0, 3, 1, 2).float()  # (C, D, h, w): slices are channels of a 2D interpolation
        if tuple(shape) != self.size:
            if (mode or self.mode) == "nearest":
                planes = F.interpolate(planes, size=self.size, mode="nearest-exact")
            else:
                planes = F.interpolate(planes, size=self.size, mode="bilinear", align_corners=False, antialias=True)
        scale = torch.tensor([shape[0] / self.size[0], shape[1] / self.size[1], 1.0], dtype=torch.float64)
        step = torch.diag(torch.cat([scale, torch.ones(1, dtype=torch.float64)]))
        step[:3, 3] = (scale - 1) / 2 + torch.tensor([side.start for side in box], dtype=torch.float64)
        out = MetaTensor(planes.permute(0, 2, 3, 1).contiguous(), meta=dict(image.meta))
        out.affine = image.affine.to(torch.float64) @ step
        return out


class SliceFramed(MapTransform):
    """Dictionary version of :class:`SliceFrame`.

    Args:
        keys: keys of the volumes, all on one grid.
        body_key: key of the body mask; ``None`` keeps the whole volume.
        size, occupancy: see :class:`SliceFrame`.
        mode: interpolation for all keys, or one for each.
        allow_missing_keys: skip keys that are absent.
    """

    def __init__(
        self,
        keys: KeysCollection,
        body_key: str | None = "body",
        size: Sequence[int] = (256, 256),
        occupancy: float = 0.02,
        mode: Sequence[str] | str = "bilinear",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.body_key = body_key
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        self.frame = SliceFrame(size, occupancy)

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        """Bring each volume into the frame."""
        out = dict(data)
        body = data[self.body_key] if self.body_key else None
        for key, mode in self.key_iterator(out, self.mode):
            out[key] = self.frame(out[key], body, mode)
        return out


def inside_of(frame: Sequence[int], to_frame: torch.Tensor, shape: Sequence[int]) -> list[slice]:
    """Part of each axis of a grid of that shape on which voxels have their centers in a frame.

    Args:
        frame: shape of the frame ``(H, W, D)``.
        to_frame: brings voxels of the grid to those of the frame ``(4, 4)``, along its axes in any order.
        shape: shape of the grid.
    """
    inside = []
    for axis, length in enumerate(shape):
        own = int(to_frame[:3, axis].abs().argmax())
        # how far the other axes lead along the frame's one: nowhere, unless the grid is turned against the frame
        others = [to_frame[own, other] * (shape[other] - 1) for other in range(3) if other != axis]
        low, high = (sum(float(end) for end in others if (end < 0) == down) for down in (True, False))
        places = to_frame[own, axis] * torch.arange(length, dtype=torch.float64) + to_frame[own, 3]
        shown = ((places + high >= -0.5) & (places + low <= frame[own] - 0.5)).nonzero()[:, 0]
        inside.append(slice(int(shown[0]), int(shown[-1]) + 1) if len(shown) else slice(0, 0))
    return inside


def clear_outside(volume: torch.Tensor, inside: Sequence[slice]) -> None:
    """Set a volume ``(C, H, W, D)`` to 0, in place, outside the given part of each axis.

    Interpolation weighs by rounded distances, so that a slice beyond the last one would get a millionth of it.
    """
    for axis, part in enumerate(inside, 1):
        volume.narrow(axis, 0, part.start).zero_()
        volume.narrow(axis, part.stop, volume.shape[axis] - part.stop).zero_()


class RestoreGeometry(Transform):
    """Bring a prediction from the network's frame back to the grid of the file that it belongs to.

    Args:
        mode: interpolation, ``"bilinear"`` for scores, ``"nearest"`` for label maps.
    """

    def __init__(self, mode: str = "bilinear") -> None:
        self.resample = SpatialResample(mode=mode, padding_mode="zeros", align_corners=False, dtype=torch.float32)

    def __call__(self, image: MetaTensor) -> MetaTensor:
        """Resample ``(C, H, W, D)`` to ``original_affine`` and ``spatial_shape`` of its meta data; 0 outside."""
        affine, shape = self._grid(image)
        out = self.resample(image, dst_affine=affine, spatial_size=shape)
        out.affine = affine
        to_frame = torch.linalg.inv(image.affine.to(torch.float64)) @ affine
        clear_outside(out.as_subclass(torch.Tensor), inside_of(image.shape[1:], to_frame, shape))
        return out

    def blocks(self, image: MetaTensor, voxels: int = 2**25) -> Iterator[tuple[tuple[slice, ...], torch.Tensor]]:
        """Resample a volume part by part, for what needs one part at a time and memory for no more.

        Args:
            image: see :meth:`__call__`.
            voxels: how large a part may be, counting channels.

        Yields:
            Slices of the axes ``(C, H, W, D)`` of the whole result, and the result there ``(C, …)``.
        """
        affine, shape = self._grid(image)
        to_frame = torch.linalg.inv(image.affine.to(torch.float64)) @ affine
        inside = inside_of(image.shape[1:], to_frame, shape)
        axis = int(to_frame[2, :3].abs().argmax())  # of the result, along the slices of the frame
        others = max(1, int(np.prod(shape)) // max(1, shape[axis]))
        step = max(1, voxels // (len(image) * others))
        plain = image.as_subclass(torch.Tensor)
        for first in range(0, shape[axis], step):
            size = [*shape]
            size[axis] = min(step, shape[axis] - first)
            move = torch.eye(4, dtype=torch.float64)
            move[axis, 3] = first
            corners = torch.cartesian_prod(*(torch.tensor([0.0, n - 1.0], dtype=torch.float64) for n in size))
            depths = ((to_frame @ move)[2, :3] * corners).sum(dim=1) + (to_frame @ move)[2, 3]
            last = plain.shape[-1] - 1
            low, high = (min(max(int(depth), 0), last) for depth in (depths.min() - 2, depths.max() + 3))
            shift = torch.eye(4, dtype=torch.float64)
            shift[2, 3] = low
            part = MetaTensor(plain[..., low : high + 1], affine=image.affine.to(torch.float64) @ shift)
            found = self.resample(part, dst_affine=affine @ move, spatial_size=size).as_subclass(torch.Tensor)
            here = list(inside)
            here[axis] = slice(*(min(max(end - first, 0), size[axis]) for end in (here[axis].start, here[axis].stop)))
            clear_outside(found, here)
            where = [slice(None)] * 4
            where[1 + axis] = slice(first, first + size[axis])
            yield tuple(where), found

    def assemble(
        self, image: MetaTensor, dtype: torch.dtype, convert: Callable[..., torch.Tensor], *others: torch.Tensor
    ) -> MetaTensor:
        """What is made of a resampled volume ``(1, H, W, D)``, part by part, see :meth:`blocks`.

        Args:
            image: see :meth:`__call__`.
            dtype: of the result.
            convert: makes ``(1, …)`` of a part ``(C, …)`` and of the same part of the others.
            others: volumes on the grid of the file.
        """
        affine, shape = self._grid(image)
        out = torch.empty([1, *shape], dtype=dtype, device=image.device)
        for where, part in self.blocks(image):
            out[where] = convert(part, *(other[where] for other in others))
        return MetaTensor(out, affine=affine, meta=dict(image.meta))

    def _grid(self, image: MetaTensor) -> tuple[torch.Tensor, list[int]]:
        """Affine and shape of the file that a prediction belongs to."""
        missing = [key for key in ("original_affine", "spatial_shape") if key not in image.meta]
        if missing:
            raise KeyError(f"RestoreGeometry: the meta data lack {missing}; the volume must come from LoadImage")
        shape = [int(n) for n in np.asarray(image.meta["spatial_shape"]).ravel()]
        return torch.as_tensor(image.meta["original_affine"], dtype=torch.float64), shape


class RestoreGeometryd(MapTransform):
    """Dictionary version of :class:`RestoreGeometry`.

    Args:
        keys: keys of the predictions.
        mode: see :class:`RestoreGeometry`.
        allow_missing_keys: skip keys that are absent.
    """

    def __init__(self, keys: KeysCollection = "pred", mode: str = "bilinear", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.restore = RestoreGeometry(mode)

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        """Restore each prediction."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self.restore(out[key])
        return out
