"""Builders that several tests share: small scans, a small data set, a small network and a run of a config."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import run
from monai.data import MetaTensor

from bundle.data.phantom import write_phantom
from bundle.networks import ALPNet, TinyEncoder

ROOT = Path(__file__).resolve().parents[1]
TINY_NETWORK = {
    "_target_": "bundle.networks.ALPNet",
    "encoder": {"_target_": "bundle.networks.TinyEncoder", "out_channels": 16, "stride": 4},
    "foreground_gate": "matched",
    "position_weight": 100.0,
}


def pytest_configure(config):
    """Keep tests off a GPU, since they compare runs bit for bit, unless they are asked for: ``pytest -m gpu``."""
    if not re.search(r"(?<!not )\bgpu\b", config.option.markexpr):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items):
    """Skip what needs a GPU where none is to be seen."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs CUDA, and `pytest -m gpu` to be let at it"))


def rotation(degrees: float, axis: int) -> np.ndarray:
    """Rotation matrix (3, 3) about one axis."""
    a, b = [i for i in range(3) if i != axis]
    matrix = np.eye(3)
    angle = np.deg2rad(degrees)
    matrix[a, a] = matrix[b, b] = np.cos(angle)
    matrix[a, b], matrix[b, a] = -np.sin(angle), np.sin(angle)
    return matrix


def affine_of(directions: np.ndarray, spacing_mm: tuple[float, float, float], origin=(-31.0, 17.0, 5.0)) -> np.ndarray:
    """Affine (4, 4) of columns of unit directions times spacings."""
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(directions) * np.asarray(spacing_mm)
    affine[:3, 3] = origin
    return affine


OBLIQUE = rotation(20, 0) @ rotation(11, 2) @ np.diag([-1.0, -1.0, 1.0])
SPL = np.array([[0.0, 0.0, -1.0], [0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])  # columns: superior, posterior, left
GEOMETRIES = {
    "RAS": (affine_of(np.eye(3), (2.0, 2.0, 6.0)), (40, 36, 8)),
    "LPS": (affine_of(np.diag([-1.0, -1.0, 1.0]), (1.2, 1.2, 5.0)), (36, 40, 9)),
    "permuted SPL": (affine_of(SPL, (5.0, 1.5, 1.5)), (9, 40, 36)),
    "oblique": (affine_of(OBLIQUE, (2.0, 2.0, 6.0)), (40, 40, 8)),
    "not square": (affine_of(np.eye(3), (1.0, 2.0, 6.0)), (72, 24, 8)),
    "one slice": (affine_of(np.eye(3), (2.0, 2.0, 6.0)), (40, 36, 1)),
    "short axis": (affine_of(rotation(40, 0) @ rotation(50, 1), (1.5, 1.5, 8.0)), (40, 36, 7)),
    "coronal slices": (affine_of(np.eye(3), (2.0, 8.0, 2.0)), (40, 7, 36)),
    "isotropic sagittal": (affine_of(np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]), (3.0, 3.0, 3.0)), (36, 12, 40)),
}


@pytest.fixture(params=list(GEOMETRIES))
def geometry(request):
    """Affine and shape of a scan as scanners store it."""
    return GEOMETRIES[request.param]


def world_grid(affine, shape) -> np.ndarray:
    """World coordinates of all voxels, (*shape, 3)."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    return index @ np.asarray(affine)[:3, :3].T + np.asarray(affine)[:3, 3]


def volume(values: np.ndarray, affine: np.ndarray | None = None, **meta) -> MetaTensor:
    """Channel-first volume (1, ...) with an affine, as after LoadImage and EnsureChannelFirst."""
    affine = np.eye(4) if affine is None else affine
    meta = {"original_affine": affine.copy(), "spatial_shape": np.asarray(values.shape), **meta}
    meta.setdefault("original_channel_dim", float("nan"))
    return MetaTensor(torch.as_tensor(values)[None].float(), affine=torch.as_tensor(affine), meta=meta)


def save_nifti(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Write an array as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


@pytest.fixture(scope="session")
def phantom_dir(tmp_path_factory) -> Path:
    """Data set of four labelled scans and one to segment."""
    root = tmp_path_factory.mktemp("phantom")
    return write_phantom(root, 4, shape=(48, 48, 12), spacing_mm=(7.0, 7.0, 14.0), num_test=1)


def make_tiny(align: bool = False, seed: int = 0) -> ALPNet:
    """The network of TINY_NETWORK."""
    torch.manual_seed(seed)
    return ALPNet(TinyEncoder(16, stride=4), foreground_gate="matched", position_weight=100.0, align=align).eval()


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory) -> Path:
    """Weights of the small network, as a training leaves them."""
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(make_tiny().state_dict(), path)
    return path


def not_installed(what: str) -> None:
    """End a test that needs a program: skipped, but failed where .ci/run has installed all of them."""
    (pytest.fail if os.environ.get("BROWSER_REQUIRED") else pytest.skip)(f"not installed: {what}")


@pytest.fixture(autouse=True)
def memory_is_given_back(monkeypatch):
    """All tests share one process: a run in one of them must not change how its C library treats memory."""
    monkeypatch.setattr("bundle.memory.keep_freed_memory", lambda kept_mb: False)


@pytest.fixture
def run_config(monkeypatch, tmp_path, phantom_dir, tiny_weights):
    """Run configs in this process as ``python -m monai.bundle run`` does, with a small network on the phantom."""
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)  # set back afterwards
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("MONAI_LABEL_STUDIES", raising=False)

    def start(*names: str, **overrides):
        settings = {
            "bundle_root": str(ROOT),
            "dataset_dir": str(phantom_dir),
            "output_dir": str(tmp_path / "out"),
            "device": "cpu",
            "image_size": [64, 64],
            "network_def": TINY_NETWORK,
        }
        if "train" in names:
            settings |= {
                "ckpt_dir": str(tmp_path / "models"),
                "pretrained": False,
                "max_epochs": 1,
                "epoch_length": 4,
                "batch_size": 2,
                "val_length": 2,
                "superpixel#parameters": [{"scale": 1, "sigma": 1, "min_size": 40}],
                "superpixel#min_area_px": 16,
                "network_def": {**TINY_NETWORK, "align": True},
            }
        else:
            settings["ckpt_path"] = str(tiny_weights)
        files = [str(ROOT / "configs" / f"{name}.json") for name in names]
        run(config_file=files, logging_file=False, **{**settings, **overrides})
        return tmp_path / "out"

    yield start
    torch.use_deterministic_algorithms(False)
