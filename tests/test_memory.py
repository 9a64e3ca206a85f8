from __future__ import annotations

import platform
import re
import subprocess
import sys

import pytest

from bundle.memory import MemoryCheck, available_bytes, keep_freed_memory
from bundle.options import read_config

from .conftest import ROOT

GB = 10**9


def write(root, **files):
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def system(root, free, group):
    """A machine with so many bytes free and a process in a control group."""
    write(root, proc__meminfo=f"MemTotal: 99 kB\nMemAvailable:   {free // 1024} kB\n")
    write(root, proc__self__cgroup=group)
    return root


def test_the_smallest_of_what_machine_and_containers_leave_counts(tmp_path):
    root = system(tmp_path, 64 * GB, "0::/slice/job\n")
    assert available_bytes(root=root) == 64 * GB // 1024 * 1024
    groups = root / "sys/fs/cgroup"
    limits = {"": ("max", GB), "slice": (str(8 * GB), 5 * GB), "slice/job": (str(16 * GB), 1 * GB)}
    for path, (limit, used) in limits.items():
        folder = groups / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 3\ninactive_file {GB}\n")
    assert available_bytes(root=root) == 4 * GB  # the slice's 8 - 5, and files that it would drop


def test_the_first_version_of_control_groups_counts_too(tmp_path):
    root = system(tmp_path, 64 * GB, "5:cpu:/x\n4:memory:/job\n")
    folder = root / "sys/fs/cgroup/memory"  # a container sees its own group as the root
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text(str(6 * GB))
    (folder / "memory.usage_in_bytes").write_text(str(2 * GB))
    assert available_bytes(root=root) == 4 * GB


def test_memory_of_this_machine_is_known():
    assert available_bytes() > 0


CHECK = {"image_size": (256, 256), "frame_copies": 2.0, "grid_copies": 1.25, "confidence_copies": 3.0}


@pytest.mark.parametrize(
    ("free", "labels", "confidence", "message"),
    [
        (16 * GB, 104, False, None),
        (
            4 * GB,
            104,
            False,
            "q: 104 labels on 512 x 512 x 64 voxels need about 10.6 GB of memory, 4.0 GB are free; segment at most 34 "
            "labels at a time, with the option labels",
        ),
        (16 * GB, 104, True, "with the option labels, or set save_confidence to False"),
        (0.1 * GB, 1, False, "1 label on 512 x 512 x 64 voxels need about 0.2 GB of memory, 0.1 GB are free; cut the"),
        (None, 104, False, None),
    ],
    ids=["enough", "too many labels", "confidence", "one is too much", "nothing known"],
)
def test_a_query_that_memory_does_not_suffice_for_is_refused(monkeypatch, free, labels, confidence, message):
    monkeypatch.setattr("bundle.memory.available_bytes", lambda _: free)
    check = MemoryCheck(confidence=confidence, **CHECK)
    if message is None:
        check("q", (512, 512, 64), 64, labels)
        return
    with pytest.raises(ValueError, match=re.escape(message)):
        check("q", (512, 512, 64), 64, labels)


def test_what_the_message_proposes_suffices(monkeypatch):
    monkeypatch.setattr("bundle.memory.available_bytes", lambda _: 4 * GB)
    check = MemoryCheck(**CHECK)
    check("q", (512, 512, 64), 64, 34)
    with pytest.raises(ValueError, match="at most 34 labels"):
        check("q", (512, 512, 64), 64, 35)


FAULTS = """
import resource, sys
import torch
from bundle.memory import keep_freed_memory
assert keep_freed_memory({kept_mb}) is {told}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.empty({megabytes} << 18, dtype=torch.float32).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def pages_cleared(kept_mb, megabytes):
    """Pages that the system clears while 20 tensors are made and freed, in a process of its own."""
    program = FAULTS.format(kept_mb=kept_mb, told=kept_mb > 0, megabytes=megabytes)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_memory_of_freed_tensors_is_kept_for_the_next_ones():
    pages = 20 * (64 << 20) // (1 << 21)  # at least, where pages are as large as 2 MB
    assert pages_cleared(0, 64) >= pages
    assert pages_cleared(256, 64) < pages / 10
    assert pages_cleared(64, 64) >= pages  # more than half of what may be kept goes back


@pytest.mark.parametrize("kept_mb", [-1, 2048])
def test_memory_that_cannot_be_kept_is_refused_by_its_id(kept_mb):
    with pytest.raises(ValueError, match=f"0 to 2047 MB, got {kept_mb}; change keep_memory_mb"):
        keep_freed_memory(kept_mb)


@pytest.mark.parametrize("config", ["inference", "train", "inference multi_gpu_inference", "train multi_gpu_train"])
def test_each_run_keeps_what_its_config_says(config, monkeypatch):
    told: list[int] = []
    monkeypatch.setattr("bundle.memory.keep_freed_memory", lambda kept_mb: told.append(kept_mb))
    parser = read_config([ROOT / "configs" / f"{name}.json" for name in config.split()], {"keep_memory_mb": 77})
    assert "$@keep_memory" in parser["initialize"]
    parser.get_parsed_content("keep_memory")
    assert told == [77]


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert keep_freed_memory(256) is False
