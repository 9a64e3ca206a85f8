"""Episodes for training: scans become slices with superpixels, and each index becomes an episode."""

from __future__ import annotations

import logging
import os
import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from monai.transforms.transform import Randomizable
from torch.utils.data import Dataset, DistributedSampler

from ..checks import check_volume
from ..commands import next_command
from ..errors import root_cause
from ..keys import CANDIDATES, DRAWN, IMAGE, LABEL, SLICE, SUPERPIXELS
from ..terminal import progress
from ..transforms.pseudo_label import candidates
from .cache import ArrayCache
from .datalist import check_dataset, held_out, list_images


class EpisodeDataset(Dataset):
    """Random episodes from the slices of unlabelled scans.

    The scans are read and cut into superpixels when the first episode is asked for, not before: building the object
    costs nothing and needs no file. An episode depends on ``seed`` and its index alone, so that the same indices give
    the same episodes whatever the number of workers, of processes, or of interruptions. Processes of one training that
    share ``cache_dir`` share the work: each begins with its part of the scans, and finds those of the others there.

    Args:
        data: ``[{"image": path, "label": path}, …]``. Labels are read only for ``exclude_labels``.
        transform: deterministic transform of such an entry to ``image`` ``(1, H, W, D)`` and ``superpixels``
            ``(L, H, W, D)``; ``H`` and ``W`` are the same for all scans.
        episode: random transform of one slice ``{"image": (1, H, W), "superpixels": (L, H, W)}`` to an episode. If it
            draws lazily, a sample holds the number of the slice and what was drawn, and no image.
        epoch_length: episodes an epoch.
        seed: seed of all draws.
        min_area_px: slices without a superpixel of this area are left out.
        exclude_labels: slices that show ANY of these label values are left out (setting 2 of the paper).
        image_dir: folder whose images are used besides ``data``, such as the studies folder of a MONAI Label server,
            which passes on labelled images only.
        image_fraction: share of that folder's images to use, drawn at random but at least one.
        dataset_dir: folder in which the images were looked for, to say what is wrong with it if there are none.
        cache_dir: folder that keeps the prepared scans for the next run, see :class:`ArrayCache`; ``None`` for none.
        num_workers: threads that read scans.
        progress: show how many scans are read.

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
        dataset_dir: str | os.PathLike | None = None,
        cache_dir: str | os.PathLike | None = None,
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
        self.dataset_dir = dataset_dir
        self.cache_dir = cache_dir
        self.num_workers = num_workers
        self.progress = progress
        self._draw = np.random.RandomState(0)
        self._images: torch.Tensor | None = None
        self._superpixels: torch.Tensor | None = None
        self._candidates: list[list[np.ndarray]] = []

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
                if self.dataset_dir is not None:
                    check_dataset(self.dataset_dir)
                raise ValueError(
                    "no training images; point dataset_dir to a folder with imagesTr/*.nii.gz, or set images"
                )
            cache = ArrayCache(self.cache_dir, [type(self), self.transform])
            rank, processes = _process()
            order = own_first(len(entries), rank, processes)
            if processes == 1 and cache.folder:  # trainings beside this one begin elsewhere, and share what is done
                random.Random(os.getpid()).shuffle(order)
            with ThreadPoolExecutor(max(self.num_workers, 1)) as pool:
                read = {index: pool.submit(self._read, cache, entries[index]) for index in order}
                scans = (read[index].result() for index in range(len(entries)))
                try:
                    parts = list(progress(scans, len(entries), "superpixels") if self.progress and rank == 0 else scans)
                except Exception:
                    pool.shutdown(cancel_futures=True)  # no work for nothing
                    raise
            sizes = {tuple(images.shape[1:]) for images, _, _ in parts}
            if len(sizes) > 1:
                raise ValueError(f"slices must be of one size after preprocessing, got {sorted(sizes)}")
            images, superpixels = (torch.cat([part[i] for part in parts]) for i in range(2))
            if len(images) == 0:
                raise ValueError(
                    f"no usable slice in {len(entries)} scans: none has a superpixel of {self.min_area_px} pixels"
                    + (f" outside the labels {list(self.exclude_labels)}" if self.exclude_labels else "")
                    + f"; look at them with `{next_command('preview', 'superpixels')}`"
                )
            self._candidates = [ids for part in parts for ids in part[2]]
            self._images, self._superpixels = images, superpixels
        return self._images, self._superpixels

    def _read(
        self, cache: ArrayCache, entry: Mapping[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, list[list[np.ndarray]]]:
        """Usable slices of a scan, their maps, and the eligible superpixels of each map."""
        wanted = {k: v for k, v in entry.items() if k == IMAGE or (k == LABEL and self.exclude_labels)}
        if self.exclude_labels and LABEL not in wanted:
            raise ValueError(f"{entry[IMAGE]}: exclude_labels needs a label of every training image, this one has none")
        try:
            scan = cache.get(wanted, partial(self._prepare, wanted))
        except Exception as error:
            cause = root_cause(error)
            if isinstance(cause, (EOFError, OSError, zlib.error)):  # a broken file: its name is not in the message
                raise ValueError(f"{entry[IMAGE]}: cannot be read ({cause}); replace the file") from None
            raise
        eligible = [[candidates(level, self.min_area_px) for level in levels] for levels in scan[SUPERPIXELS]]
        usable = np.array([any(len(ids) for ids in levels) for levels in eligible], dtype=bool)
        if self.exclude_labels:
            usable &= ~np.isin(scan[LABEL], self.exclude_labels).any(axis=(1, 2, 3))
        images, maps = (torch.from_numpy(scan[key][usable]) for key in (IMAGE, SUPERPIXELS))
        return images, maps, [eligible[z] for z in np.flatnonzero(usable)]

    def _prepare(self, entry: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Arrays ``(D, C, H, W)`` of a scan: image, superpixels, and the label if the entry has one."""
        scan = self.transform(dict(entry))
        check_volume(scan[IMAGE], str(entry[IMAGE]))
        types = {IMAGE: np.float32, SUPERPIXELS: np.int16, **({LABEL: None} if LABEL in entry else {})}
        arrays = {key: np.moveaxis(np.asarray(torch.as_tensor(scan[key])), -1, 0) for key in types}
        return {key: np.ascontiguousarray(arrays[key], kind) for key, kind in types.items()}

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        images, superpixels = self.slices()
        draw = self._draw
        draw.seed([self.seed, index])  # a new state for each episode and transform takes longer than the episode
        chosen = draw.randint(len(images))
        for part in getattr(self.episode, "transforms", [self.episode]):
            if isinstance(part, Randomizable):
                part.set_random_state(state=draw)
        known = {SUPERPIXELS: superpixels[chosen], CANDIDATES: self._candidates[chosen]}
        made = dict(self.episode({IMAGE: images[chosen], **known}))
        if DRAWN in made:  # parameters alone: a bank has the slice
            made.pop(IMAGE)
            made[SLICE] = torch.tensor(chosen)
        return {key: value for key, value in made.items() if key not in known}


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


def own_first(count: int, rank: int, processes: int) -> list[int]:
    """Order in which one of several processes does what all of them need: its own part first, then the others'."""
    return [index for step in range(processes) for index in range((rank + step) % processes, count, processes)]


def share_of_batch(batch_size: int, num_processes: int) -> int:
    """Episodes a step of one process, so that all together take ``batch_size``, or the next multiple of their number.

    Args:
        batch_size: episodes a step of all processes.
        num_processes: how many they are.
    """
    share = -(-batch_size // num_processes)
    if share * num_processes != batch_size and _process()[0] == 0:
        logging.getLogger(__name__).warning(
            "batch_size is %d instead of %d: each of %d processes takes %d", share * num_processes, batch_size,
            num_processes, share,
        )  # fmt: skip
    return share


def _process() -> tuple[int, int]:
    """Which of how many processes this is."""
    together = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
