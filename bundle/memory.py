"""Memory: whether it suffices, before the work, since a process that takes too much is killed; and its reuse."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch

FLOAT_BYTES = 4
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt, see its manual page
MOST_KEPT_MB = 2047  # mallopt takes a signed number of 32 bits


def keep_freed_memory(kept_mb: int) -> bool:
    """Let the C library keep memory that is freed for what is allocated next, for this process and its children.

    By itself it gives the memory of each large tensor on the CPU back to the system, which clears every page again when
    the next tensor needs it. Results do not change. On a GPU, PyTorch keeps memory by itself.

    Args:
        kept_mb: how much is kept at most, in MB; a tensor of more than half of that goes back at once. 0
            leaves the library as it is.

    Returns:
        Whether it was told: only glibc, the C library of most Linux systems, can be.

    Raises:
        ValueError: for a number that is negative or too large for glibc.
    """
    if not 0 <= kept_mb <= MOST_KEPT_MB:
        raise ValueError(
            f"the memory that is kept must be 0 to {MOST_KEPT_MB} MB, got {kept_mb}; change keep_memory_mb"
        )
    if not kept_mb:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    settings = {M_TRIM_THRESHOLD: kept_mb, M_MMAP_THRESHOLD: kept_mb // 2}
    return all([mallopt(name, megabytes << 20) == 1 for name, megabytes in settings.items()])


def available_bytes(device: torch.device | str = "cpu", root: str | os.PathLike = "/") -> int | None:
    """Memory that this process may still take, by its container's limit as well; ``None`` where nothing tells.

    Args:
        device: where the memory is wanted.
        root: where ``/proc`` and ``/sys`` are mounted.
    """
    device = torch.device(device)
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    found = [free for free in (_system_bytes(Path(root)), *_container_bytes(Path(root))) if free is not None]
    return min(found, default=None)


def _system_bytes(root: Path) -> int | None:
    """Memory that the machine has free."""
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on every system
        return None


def _container_bytes(root: Path) -> list[int]:
    """What is left of the limits of this process's control group and of those above it, in both versions."""
    found = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            folder, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            folder = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            group = folder.joinpath(*parts[:depth])
            limit, used = _read(group / names[0]).strip(), _read(group / names[1]).strip()
            if not limit.isdigit() or not used.isdigit():
                continue  # "max", or no such group here
            stat = dict(line.split() for line in _read(group / "memory.stat").splitlines())
            found.append(max(0, int(limit) - int(used) + int(stat.get(names[2], 0))))
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


class MemoryCheck:
    """Raises before a query is segmented if its scores would take more memory than there is.

    One number a voxel and label is kept in the network's frame, the background counted as a label; on the query's own
    grid it is made part by part, unless a config wants masks of all labels there.

    Args:
        image_size: rows and columns of the frame.
        device: where the scores are.
        confidence: whether a map of the confidence is made of them.
        share: how much of the free memory may be used.
        frame_copies: how often the scores are there at once in the frame.
        grid_copies: how often on the query's grid.
        confidence_copies: how often more for the confidence.
    """

    def __init__(
        self,
        image_size: Sequence[int],
        device: torch.device | str = "cpu",
        confidence: bool = False,
        share: float = 0.9,
        frame_copies: float = 1.25,
        grid_copies: float = 0.0,
        confidence_copies: float = 0.0,
    ) -> None:
        self.image_size = tuple(image_size)
        self._device = device
        self.confidence = confidence
        self.share = share
        self.frame_copies = frame_copies
        self.grid_copies = grid_copies
        self.confidence_copies = confidence_copies

    def label_bytes(self, shape: Sequence[int], num_slices: int) -> float:
        """Bytes that each label takes for a query of so many voxels and slices."""
        frame = math.prod(self.image_size) * num_slices
        on_grid = self.grid_copies + self.confidence_copies * self.confidence
        return FLOAT_BYTES * max(self.frame_copies * frame, frame + on_grid * math.prod(shape))

    def __call__(self, name: str, shape: Sequence[int], num_slices: int, num_labels: int) -> None:
        """Check one query.

        Args:
            name: what the message calls it.
            shape: its voxels.
            num_slices: how many slices it has.
            num_labels: how many labels are looked for.

        Raises:
            ValueError: with how much is needed and free, and the option that helps.
        """
        free = available_bytes(self._device)
        each = self.label_bytes(shape, num_slices)
        if free is None or (1 + num_labels) * each <= self.share * free:
            return
        fitting = int(self.share * free / each) - 1
        if fitting >= 1:
            remedy = f"segment at most {fitting} label{'s' * (fitting > 1)} at a time, with the option labels"
            remedy += ", or set save_confidence to False" if self.confidence else ""
        else:
            remedy = "cut the scan to what you need, resample it to larger voxels, or free some memory"
        voxels = " x ".join(str(int(n)) for n in shape)
        raise ValueError(
            f"{name}: {num_labels} label{'s' * (num_labels > 1)} on {voxels} voxels need about "
            f"{(1 + num_labels) * each / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free; {remedy}"
        )
