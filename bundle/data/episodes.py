"""Episodes for training: scans become slices with superpixels, and each index becomes an episode."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from monai.utils import optional_import
from torch.utils.data import Dataset, DistributedSampler

from ..checks import check_volume
from ..errors import root_cause
from ..keys import IMAGE, LABEL, SUPERPIXELS, SUPPORT_IMAGE, SUPPORT_LABEL
from ..transforms.episode import apply_drawn_views
from ..transforms.pseudo_label import candidates
from .datalist import held_out, list_images

tqdm, has_tqdm = optional_import("tqdm.auto", name="tqdm")


class EpisodeDataset(Dataset):
    """Random episodes from the slices of unlabelled scans.

    The scans are read and cut into superpixels when the first episode is asked for, not before: building the object
    costs nothing and needs no file. An episode depends on ``seed`` and its index alone, so that the same indices give
    the same episodes whatever the number of workers, of processes, or of interruptions.

    Args:
        data: ``[{"image": path, "label": path}, …]``. Labels are read only for ``exclude_labels``.
        transform: deterministic transform of such an entry to ``image`` ``(1, H, W, D)`` and ``superpixels``
            ``(L, H, W, D)``; ``H`` and ``W`` are the same for all scans.
        episode: random transform of one slice ``{"image": (1, H, W), "superpixels": (L, H, W)}`` to an episode.
        epoch_length: episodes an epoch.
        seed: seed of all draws.
        min_area_px: slices without a superpixel of this area are left out.
        exclude_labels: slices that show ANY of these label values are left out (setting 2 of the paper).
        image_dir: folder whose images are used besides ``data``, such as the studies folder of a MONAI Label server,
            which passes on labelled images only.
        image_fraction: share of that folder's images to use, drawn at random but at least one.
        num_workers: threads that read scans.
        progress: show a progress bar while scans are read.

    Raises:
        ValueError: when the first episode is asked for, if there is no image or no usable slice.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable,
        episode: Callable,
        epoch_length: int,
        seed: int = 0,
        min_area_px: int = 64,
        exclude_labels: Sequence[int] = (),
        image_dir: str | os.PathLike | None = None,
        image_fraction: float = 1.0,
        num_workers: int = 1,
        progress: bool = False,
    ) -> None:
        self.data = list(data)
        self.transform = transform
        self.episode: Any = episode
        self.epoch_length = epoch_length
        self.seed = seed
        self.min_area_px = min_area_px
        self.exclude_labels = tuple(exclude_labels)
        self.image_dir = image_dir
        self.image_fraction = image_fraction
        self.num_workers = num_workers
        self.progress = progress
        self._images: torch.Tensor | None = None
        self._superpixels: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.epoch_length

    @property
    def num_slices(self) -> int:
        """Number of usable slices of all scans."""
        return len(self.slices()[0])

    def entries(self) -> list[Mapping[str, Any]]:
        """The scans: ``data`` and what ``image_dir`` holds besides."""
        known = {os.path.realpath(str(entry[IMAGE])) for entry in self.data}
        folder = self.image_dir if self.image_dir and os.path.isdir(self.image_dir) else None
        more = list_images(folder) if folder else []
        new = [{IMAGE: path} for path in more if os.path.realpath(path) not in known]
        return [*self.data, *held_out(new, self.image_fraction, self.seed)]

    def slices(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Read everything once: usable slices ``(S, 1, H, W)`` and their superpixel maps ``(S, L, H, W)``, int16."""
        if self._images is None or self._superpixels is None:
            entries = self.entries()
            if not entries:
                raise ValueError(
                    "no training images; point dataset_dir to a folder with imagesTr/*.nii.gz, or set images"
                )
            with ThreadPoolExecutor(max(self.num_workers, 1)) as pool:
                scans = pool.map(self._read, entries)
                if self.progress and has_tqdm:
                    scans = tqdm(scans, total=len(entries), desc="superpixels", unit="scan")
                parts = list(scans)
            sizes = {tuple(images.shape[1:]) for images, _ in parts}
            if len(sizes) > 1:
                raise ValueError(f"slices must be of one size after preprocessing, got {sorted(sizes)}")
            images, superpixels = (torch.cat(part) for part in zip(*parts))
            if len(images) == 0:
                raise ValueError(
                    f"no usable slice in {len(entries)} scans: none has a superpixel of {self.min_area_px} pixels"
                    + (f" outside the labels {list(self.exclude_labels)}" if self.exclude_labels else "")
                    + "; look at them with `python -m scripts.preview superpixels`"
                )
            self._images, self._superpixels = images, superpixels
        return self._images, self._superpixels

    def _read(self, entry: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        wanted = {k: v for k, v in entry.items() if k == IMAGE or (k == LABEL and self.exclude_labels)}
        if self.exclude_labels and LABEL not in wanted:
            raise ValueError(f"{entry[IMAGE]}: exclude_labels needs a label of every training image, this one has none")
        try:
            scan = self.transform(dict(wanted))
        except Exception as error:
            cause = root_cause(error)
            if isinstance(cause, (EOFError, OSError, zlib.error)):  # a broken file: its name is not in the message
                raise ValueError(f"{entry[IMAGE]}: cannot be read ({cause}); replace the file") from None
            raise
        check_volume(scan[IMAGE], str(entry[IMAGE]))
        maps = np.asarray(torch.as_tensor(scan[SUPERPIXELS]))
        usable = [
            any(len(candidates(level, self.min_area_px)) for level in maps[..., z]) for z in range(maps.shape[-1])
        ]
        if self.exclude_labels:
            excluded = np.isin(np.asarray(torch.as_tensor(scan[LABEL])), self.exclude_labels)
            shown = np.asarray(excluded.any(axis=(0, 1, 2)))
            usable = [u and not s for u, s in zip(usable, shown)]
        keep = np.flatnonzero(usable)
        image = torch.as_tensor(scan[IMAGE]).as_subclass(torch.Tensor)
        image = image.movedim(-1, 0)[keep].float().contiguous()
        return image, torch.from_numpy(np.moveaxis(maps, -1, 0)[keep].astype(np.int16))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        images, superpixels = self.slices()
        draw = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([self.seed, index])))
        chosen = draw.randint(len(images))
        self.episode.set_random_state(seed=draw.randint(2**31))
        made = dict(self.episode({IMAGE: images[chosen], SUPERPIXELS: superpixels[chosen]}))
        made.pop(SUPERPIXELS)
        return made


class EpisodeSampler(DistributedSampler):
    """Counts episodes through the epochs: epoch ``e`` (from 1) of ``n`` episodes has the indices ``(e - 1) n …``.

    The engines call ``set_epoch`` at the start of each epoch, so a resumed run goes on with the episodes that follow,
    and every process of a distributed run takes its share of the same list.

    Args:
        dataset: the episodes.
        num_replicas: number of processes.
        rank: this process.
    """

    def __init__(self, dataset: EpisodeDataset, num_replicas: int = 1, rank: int = 0) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=False, drop_last=True)
        self.epoch = 1

    def __iter__(self) -> Iterator[int]:
        length = len(self.dataset)
        first = (max(self.epoch, 1) - 1) * length
        return iter(range(first + self.rank, first + self.num_samples * self.num_replicas, self.num_replicas))


class PrepareEpisodes:
    """Batch of samples of :class:`RandEpisoded` to what the network and the loss take, on the engine's device.

    Views that the samples bring as parameters are applied here, to the whole batch at once.

    Args:
        num_ways: classes of an episode, as many as superpixels are drawn. One superpixel makes the paper's one-way
            episode, whose target also holds the support's mask, for the alignment term; several compete as ways on
            shared images, and the target is the query's label map alone.
    """

    def __init__(self, num_ways: int = 1) -> None:
        self.num_ways = num_ways

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, tuple, dict[str, torch.Tensor]]:
        """Query images ``(B, C, H, W)``, target ``(B, 1 or 2, H, W)``, and the support by keyword.

        ``support_image`` is ``(B, 1, 1, C, H, W)``, ``support_label`` ``(B, num_ways, 1, H, W)``.
        """

        def send(item: Any) -> Any:
            if isinstance(item, Mapping):
                return {key: send(value) for key, value in item.items()}
            return item.to(device=device, non_blocking=non_blocking, **kwargs)

        batch = apply_drawn_views({key: send(value) for key, value in batchdata.items()})
        label, support_label = batch[LABEL].float(), batch[SUPPORT_LABEL]
        ways = torch.arange(1, self.num_ways + 1, device=label.device).view(1, -1, 1, 1)
        masks = support_label.to(torch.uint8).contiguous() == ways  # (B, num_ways, H, W)
        target = torch.cat([label, masks.float()], dim=1) if self.num_ways == 1 else label
        support = {SUPPORT_IMAGE: batch[SUPPORT_IMAGE][:, None, None], SUPPORT_LABEL: masks[:, :, None]}
        return batch[IMAGE], target, (), support
