"""The bundle in three lines of Python: labelled scans in, then label maps of other scans out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import EnsureChannelFirstd, LoadImaged, SaveImaged
from torch import Tensor

from .checks import check_geometry, check_label_values
from .data.datalist import typed_path
from .data.fingerprint import read_fingerprint
from .data.reader import OTHER_AFFINE
from .data.support import SLICES, VALUES, SupportScan, keep_labels, load_support
from .keys import CONFIDENCE, IMAGE, LABEL, NEXT_SLICE, PRED
from .networks import load_weights
from .options import read_config
from .quality import Expectation
from .transforms import KeepDrawnSlices, MatchLabel

Scan: TypeAlias = str | os.PathLike | np.ndarray | Tensor


class Segmentation(NamedTuple):
    """A label map and how far it can be trusted.

    Attributes:
        label: label map of the scan's shape and type.
        confidence: percent, uint8, on the same grid and of the same type.
        support_similarity: how similar the scan is to the most similar support scan, in -1..1.
        reverse_dice: each label's value and how well the prediction gives the support's label back, in 0..1.
        expected_dice: each label's value and the Dice in percent that it is expected to have, with the range that holds
            about 70 % of such labels, see :class:`ExpectedDice`.
        next_slice: of a completed scan, the number of the least sure slice, which is worth being labelled next, from 0
            along the axis of the slices.
    """

    label: Any
    confidence: Any
    support_similarity: float
    reverse_dice: dict[int, float]
    expected_dice: dict[int, Expectation]
    next_slice: int | None = None


class FewShotSegmenter:
    """Segments scans by labelled ones, as the bundle's ``inference.json`` says, without a data set and without files.

    A scan is a NIfTI file, a numpy array, a tensor or a ``MetaTensor``, ``(X, Y, Z)`` or ``(1, X, Y, Z)``, of any
    orientation. The result has its shape, its orientation and its type: arrays give arrays, tensors give tensors on
    their device, ``MetaTensor`` gives ``MetaTensor``, and a file gives a ``MetaTensor`` of the file's shape and affine.

    Arrays and tensors without an affine are taken for axial: first axis to the right, second to the front, third to
    the head, voxels of 1 mm. Tell their ``affine`` or at least their ``spacing``, since the slices' distance counts.

    Args:
        parser: configs of the bundle, see :meth:`from_bundle`.

    Example::

        segmenter = FewShotSegmenter.from_bundle()
        segmenter.set_support("a.nii.gz", "a_label.nii.gz")
        label_map = segmenter.segment("b.nii.gz")  # MetaTensor (X, Y, Z), values of the support's label
    """

    def __init__(self, parser: ConfigParser) -> None:
        self.device = torch.device(parser.get_parsed_content("device"))
        network = parser.get_parsed_content("network")
        self.network = load_weights(network, typed_path(parser.get_parsed_content("ckpt_path"))).to(self.device).eval()
        self.inferer = parser.get_parsed_content("inferer")
        self.expected_dice = parser.get_parsed_content("expected_dice") or None
        steps = parser.get_parsed_content("support_preprocessing").flatten().transforms
        self._ready = bool(self.inferer.support_encoder.support)  # a support in the config counts as one
        self._readers = [step for step in steps if isinstance(step, (LoadImaged, EnsureChannelFirstd))]
        self._framers = [step for step in steps if step not in self._readers]
        self._finishers = {}
        for confidence in (False, True):
            parser["save_confidence"] = confidence
            steps = parser.get_parsed_content("postprocessing").flatten().transforms
            self._finishers[confidence] = [step for step in steps if not isinstance(step, SaveImaged)]

    @classmethod
    def from_bundle(
        cls,
        path: str | os.PathLike | None = None,
        config: str | Sequence[str] = "configs/inference.json",
        **overrides: Any,
    ) -> FewShotSegmenter:
        """Build a segmenter of a bundle.

        Args:
            path: the bundle's folder; by default the one that this code lies in.
            config: its inference config, or that and overlays such as ``configs/abdomen_ct.json``.
            **overrides: ids of the config, as on the command line: ``ckpt_path="model.pt"``, ``device="cpu"``,
                ``labels=["liver", 2]`` (names need ``label_names={1: "liver"}`` or a ``dataset_dir`` whose
                ``dataset.json`` has them), ``registration=False`` to switch a part off,
                ``**{"registration#reach": 2}``.

        Raises:
            FileNotFoundError: without the config or the weights.
            ValueError: for an id that the config does not have, a label of unknown name, or weights that do not fit the
                network.
        """
        path = Path(__file__).resolve().parent.parent if path is None else path
        files = [Path(path) / name for name in ([config] if isinstance(config, str) else config)]
        if not files[0].parent.is_dir():
            raise FileNotFoundError(f"{files[0]}: no such config; path must be the bundle's folder")
        return cls(read_config(files, {"bundle_root": str(path), **overrides}))

    def set_support(
        self,
        images: Scan | Sequence[Scan],
        labels: Scan | Sequence[Scan],
        *,
        affine: Any = None,
        spacing: Sequence[float] | None = None,
        values: Mapping[int, int] | Sequence[Mapping[int, int] | None] | None = None,
        slices: Any = None,
    ) -> None:
        """Take one or several labelled scans as the support of the next queries; they replace the earlier ones.

        Args:
            images: a scan or a list of scans.
            labels: their label maps of whole numbers; one without an affine has its image's.
            affine: of every image, see :meth:`segment`.
            spacing: the same.
            values: ``{value in the label: value in the result}``, one or one for each scan, ``None`` for all as they
                are. Only these structures count as annotated on the scan; what else it shows is unknown, no background.
            slices: which slices were annotated, one word or one for each scan, see :class:`SupportScan`.

        Raises:
            ValueError, TypeError, FileNotFoundError: in one line, for a label that does not fit its image, is empty or
                not of whole numbers, and for what :meth:`segment` says of its image.
        """
        scans, maps = _listed(images), _listed(labels)
        if len(scans) != len(maps) or not scans:
            raise ValueError(
                f"set_support needs a label for each image and one at least, got {len(maps)} of {len(scans)}"
            )
        single = not isinstance(images, (list, tuple))
        per_scan = {
            name: [given] if single else _each(given, len(scans), name)
            for name, given in ((VALUES, values), (SLICES, slices))
        }
        support = []
        for index, (image, label) in enumerate(zip(scans, maps)):
            options = {key: given[index] for key, given in per_scan.items()}
            support.append(self._support_scan(*self._labelled(image, label, index + 1, affine, spacing), options))
        self.inferer.set_support(keep_labels(support, self.inferer.support_encoder.labels))
        self._ready = True

    def set_pseudo_supports(
        self, images: Scan | Sequence[Scan], *, affine: Any = None, spacing: Sequence[float] | None = None
    ) -> None:
        """Take unlabelled scans as pseudo-supports, which pass the support's labels on; they replace the earlier ones.

        The segmenter must want them: ``from_bundle(path, num_pseudo_supports=3)`` or more.

        Args:
            images: a scan or a list of scans; an empty list for none.
            affine: of every image, see :meth:`segment`.
            spacing: the same.

        Raises:
            RuntimeError: if the segmenter does not want pseudo-supports.
            ValueError, TypeError, FileNotFoundError: for what :meth:`segment` says of its image.
        """
        frames = []
        for number, image in enumerate(_listed(images), 1):
            name = os.fspath(image) if isinstance(image, (str, os.PathLike)) else f"pseudo-support {number}"
            frames.append(_apply(self._framers, {IMAGE: self._read(image, name, affine, spacing)})[IMAGE])
        self.inferer.set_pseudo_supports(frames)

    def segment(
        self, image: Scan, *, affine: Any = None, spacing: Sequence[float] | None = None, confidence: bool = False
    ) -> Any:
        """Segment a scan.

        Args:
            image: the scan.
            affine: ``(4, 4)``, voxel indices to mm in right-anterior-superior coordinates; ``None`` for the scan's own.
            spacing: distances of voxels in mm, in place of an affine.
            confidence: whether to say how far the result can be trusted.

        Returns:
            The label map, uint8, int16 or int32, or a :class:`Segmentation`.

        Raises:
            RuntimeError: before :meth:`set_support`.
            ValueError: if the scan is not one 3D volume of finite, non-constant values or has no valid geometry.
            TypeError: if it is none of the types above.
            FileNotFoundError: if its file does not exist.
        """
        if not self._ready:
            raise RuntimeError("no support: call set_support(images, labels) before segment(image)")
        return self._segment(image, self._read(image, IMAGE, affine, spacing), confidence)

    def complete(
        self,
        image: Scan,
        label: Scan,
        *,
        affine: Any = None,
        spacing: Sequence[float] | None = None,
        confidence: bool = False,
    ) -> Any:
        """Segment a scan of which somebody labelled a few slices: these stay as they are, and the others follow.

        What was given to :meth:`set_support` before helps, and stays the support of the next queries.

        Args:
            image: the scan.
            label: its label map; slices that show no label are those to be labelled.
            affine: see :meth:`segment`.
            spacing: the same.
            confidence: the same.

        Returns:
            What :meth:`segment` gives.

        Raises:
            ValueError, TypeError, FileNotFoundError: see :meth:`set_support` and :meth:`segment`.
        """
        encoder = self.inferer.support_encoder
        others = encoder.given
        scan, marks = self._labelled(image, label, 1, affine, spacing)
        own = self._support_scan(scan, marks, {SLICES: "labelled"})
        try:
            encoder.set_support(keep_labels([own, *others], encoder.labels))
            return self._segment(image, scan, confidence, MatchLabel()(marks, scan))
        finally:
            encoder.set_support(others)

    @torch.no_grad()
    def _segment(self, image: Scan, volume: MetaTensor, confidence: bool, drawn: Tensor | None = None) -> Any:
        """The result of a scan that was read; slices that were drawn on it stay as they are."""
        item: Mapping[Any, Any] = _apply(self._framers, {IMAGE: volume})
        scores = self.inferer(item[IMAGE][None].to(self.device), self.network)[0]
        item = _apply(self._finishers[confidence], {**item, PRED: scores})
        if drawn is not None:
            item = {**item, PRED: KeepDrawnSlices()(item[PRED], drawn)}
        label = _like(item[PRED], image)
        if not confidence:
            return label
        similarity = float(torch.as_tensor(item[PRED].meta["support_similarity"]).flatten()[0])
        values, numbers = (torch.as_tensor(item[PRED].meta[key]).flatten() for key in ("label_values", "reverse_dice"))
        reverse_dice = {int(value): float(number) for value, number in zip(values, numbers)}
        expected_dice = {} if self.expected_dice is None else self.expected_dice.of(item[PRED])
        next_slice = item[PRED].meta.get(NEXT_SLICE)
        return Segmentation(label, _like(item[CONFIDENCE], image), similarity, reverse_dice, expected_dice, next_slice)

    def _support_scan(self, scan: MetaTensor, marks: MetaTensor, options: Mapping[str, Any]) -> SupportScan:
        """A labelled scan that was read, in the network's frame."""
        names = {key: str(item.meta["filename_or_obj"]) for key, item in ((IMAGE, scan), (LABEL, marks))}
        return load_support({**names, **options}, lambda _: _apply(self._framers, {IMAGE: scan, LABEL: marks}))

    def _labelled(
        self, image: Scan, label: Scan, number: int, affine: Any, spacing: Any
    ) -> tuple[MetaTensor, MetaTensor]:
        """Copies of a scan and of its label, which has the scan's affine unless it brings one."""
        names = {IMAGE: f"support image {number}", LABEL: f"support label {number}"}
        scan = self._read(image, names[IMAGE], affine, spacing)
        own = affine is None and spacing is None or isinstance(label, (str, os.PathLike))
        marks = self._read(label, names[LABEL], None if own else affine, None if own else spacing, scan.affine, True)
        return scan, marks

    def _read(
        self,
        scan: Scan,
        name: str,
        affine: Any = None,
        spacing: Sequence[float] | None = None,
        fallback: Any = None,
        is_label: bool = False,
    ) -> MetaTensor:
        """A copy of a scan ``(1, X, Y, Z)``, float32, with the meta data of a file that was just read."""
        if affine is not None and spacing is not None:
            raise ValueError(f"{name}: give affine or spacing, not both")
        values: Any = scan
        if isinstance(scan, (str, os.PathLike)):
            name = os.fspath(scan)
            read_fingerprint(name, is_label)  # says in one line what is wrong with the file
            key = LABEL if is_label else IMAGE
            values = _apply(self._readers, {key: name})[key]
        own = affine is None and spacing is None
        if spacing is not None:
            affine = np.diag([*np.broadcast_to(np.asarray(spacing, dtype=float), 3), 1.0])
        for other in (getattr(values, "affine", None), fallback, np.eye(4)):
            affine = other if affine is None else affine
        grid = torch.as_tensor(affine, dtype=torch.float64).cpu().numpy().copy()
        if grid.shape != (4, 4):
            raise ValueError(f"{name}: affine must be of shape (4, 4), got {grid.shape}")
        check_geometry(grid, name)
        array = _to_array(values, name)
        if is_label:
            check_label_values(array, name)
        known = {k: v for k, v in getattr(values, "meta", {}).items() if k == OTHER_AFFINE and own}
        meta = {**known, "filename_or_obj": name, "original_affine": grid, "spatial_shape": np.array(array.shape[1:])}
        return MetaTensor(torch.from_numpy(array), affine=torch.from_numpy(grid), meta=meta)


def _apply(steps: Sequence[Any], item: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Apply transforms one after another; unlike in ``Compose``, what they raise arrives as they raised it."""
    for step in steps:
        item = step(item)
    return item


def _to_array(values: Any, name: str) -> np.ndarray:
    """A copy of an array or tensor as ``(1, X, Y, Z)``, float32."""
    if isinstance(values, Tensor):
        values = values.detach().as_subclass(Tensor).cpu().float().numpy()
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf":
        found = f"an array of {values.dtype}" if isinstance(values, np.ndarray) else type(values).__name__
        raise TypeError(f"{name}: expected a path, or an array or tensor of real numbers, got {found}")
    if values.ndim not in (3, 4) or (values.ndim == 4 and len(values) != 1):
        raise ValueError(
            f"{name}: expected one volume (X, Y, Z) or (1, X, Y, Z), got shape {values.shape}; convert 2D images to a "
            "one-slice volume and split series into single volumes"
        )
    return np.array(values if values.ndim == 4 else values[None], dtype=np.float32, order="C")


def _like(result: MetaTensor, scan: Scan) -> Any:
    """A result ``(1, X, Y, Z)`` in the type and number of axes of the scan that was given."""
    flat = isinstance(scan, (str, os.PathLike)) or scan.ndim == 3
    values = result.as_subclass(Tensor)
    values = values[0] if flat else values
    if isinstance(scan, np.ndarray):
        return values.cpu().numpy()
    if isinstance(scan, Tensor):
        values = values.to(scan.device)
        if not isinstance(scan, MetaTensor):
            return values
    else:
        values = values.cpu()
    return MetaTensor(values, meta={**result.meta, "affine": result.affine.cpu()})


def _listed(scans: Any) -> list[Any]:
    """A list of scans of a list or of a single one."""
    return list(scans) if isinstance(scans, (list, tuple)) else [scans]


def _each(option: Any, count: int, name: str) -> list[Any]:
    """One option for each of ``count`` scans, of one for all or of a list."""
    options = list(option) if isinstance(option, (list, tuple)) else [option] * count
    if len(options) != count:
        raise ValueError(f"{name} must be one for all scans or one for each of {count}, got {len(options)}")
    return options
