"""Two processes do what one does: torchrun with gloo on one machine."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest
import torch

from ..conftest import ROOT, TINY_NETWORK

ENVIRONMENT = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
ENVIRONMENT.pop("MONAI_LABEL_STUDIES", None)


def command_of(processes: int, *configs: str, python=sys.executable, **overrides) -> list[str]:
    """``monai.bundle run`` in one process, or in several under torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nnodes=1", f"--nproc_per_node={processes}"]
    files = [f"configs/{name}.json" for name in configs]
    command = [str(python), *(launcher if processes > 1 else []), "-m", "monai.bundle", "run"]
    command += ["--config_file", str(files), "--device", "cpu"] if processes == 1 else ["--config_file", str(files)]
    for key, value in {"image_size": [64, 64], "precision": "float32", **overrides}.items():
        command += [f"--{key}", str(value)]
    return command


def run(*arguments, **overrides) -> None:
    """Run a command to its end."""
    command = command_of(*arguments, **overrides)
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def maps(folder) -> dict[str, np.ndarray]:
    return {p.name: np.asarray(nib.load(p).dataobj) for p in sorted(folder.rglob("*_seg.nii.gz"))}


@pytest.mark.slow
def test_evaluation_in_two_processes_measures_what_one_measures(tmp_path, phantom_dir, tiny_weights):
    split = {
        "support": [{"image": "imagesTr/phantom_02.nii.gz", "label": "labelsTr/phantom_02.nii.gz"}],
        "datalist": [
            {key: str(phantom_dir / f"{key}sTr" / f"phantom_0{n}.nii.gz") for key in ("image", "label")}
            for n in (1, 3, 4)  # an odd number: one process has more to do
        ],
    }
    common = {**split, "dataset_dir": phantom_dir, "network_def": TINY_NETWORK, "ckpt_path": tiny_weights}
    common |= {"protocol": "volume", "overlays": False}
    run(1, "inference", "evaluate", output_dir=tmp_path / "one", **common)
    run(2, "inference", "evaluate", "multi_gpu_inference", output_dir=tmp_path / "two", **common)
    one, two = maps(tmp_path / "one"), maps(tmp_path / "two")
    assert len(one) == 3
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[name], two[name]) for name in one)
    rows = [list(csv.DictReader((tmp_path / name / "metrics.csv").open())) for name in ("one", "two")]
    assert rows[0] == rows[1]
    means = [json.loads((tmp_path / name / "summary.json").read_text())["mean"] for name in ("one", "two")]
    assert means[0] == means[1]


@pytest.mark.slow
@pytest.mark.parametrize("align", [False, True], ids=["three ways", "one way and alignment"])
def test_training_in_two_processes_follows_one(tmp_path, phantom_dir, align):
    network = {**TINY_NETWORK, "encoder": {**TINY_NETWORK["encoder"], "freeze_norm": True}, "align": align}
    common = {"dataset_dir": phantom_dir, "network_def": network, "pretrained": False}
    common |= {"max_epochs": 1, "epoch_length": 24, "batch_size": 4, "val_length": 4, "num_ways": 1 if align else 3}
    common |= {
        "superpixel#parameters": [{"scale": 1, "sigma": 1, "min_size": 40}],
        "superpixel#min_area_px": 16,
        "cache_dir": tmp_path / "cache",
    }
    weights = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        names = ["train", "multi_gpu_train"][:processes]
        run(processes, *names, output_dir=folder, ckpt_dir=folder / "models", **common)
        weights[processes] = torch.load(folder / "models" / "model_final.pt", weights_only=True)
        assert (folder / "models" / "model.pt").is_file()
        assert not (folder / "training_state.pt").exists()
    assert weights[1].keys() == weights[2].keys()  # no prefix of the wrapper
    for name, value in weights[1].items():
        torch.testing.assert_close(weights[2][name], value, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.slow
def test_two_killed_processes_go_on_as_if_nobody_had_killed_them(tmp_path, phantom_dir):
    common = {"dataset_dir": phantom_dir, "network_def": TINY_NETWORK, "pretrained": False, "num_ways": 3}
    common |= {"max_epochs": 6, "epoch_length": 16, "batch_size": 4, "val_length": 4, "cache_dir": tmp_path / "cache"}
    common |= {"superpixel#parameters": [{"scale": 1, "sigma": 1, "min_size": 40}], "superpixel#min_area_px": 16}
    names, folders = ("train", "multi_gpu_train"), [tmp_path / name for name in ("whole", "parts")]
    settings = [{**common, "output_dir": folder, "ckpt_dir": folder / "models"} for folder in folders]
    run(2, *names, **settings[0])
    state = folders[1] / "training_state.pt"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    killed = [  # without torchrun, whose processes outlive it when it is killed
        subprocess.Popen(
            command_of(1, *names, **settings[1]),
            cwd=ROOT, env={**ENVIRONMENT, **place, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.DEVNULL,
        )
        for rank in "01"
    ]  # fmt: skip
    while killed[0].poll() is None and not state.is_file():
        time.sleep(0.05)
    for process in killed:
        process.kill()
        process.wait()
    assert torch.load(state, weights_only=True)["epoch"] < 6
    run(2, *names, **settings[1])
    for name in ("model.pt", "model_final.pt"):
        whole, parts = (torch.load(folder / "models" / name, weights_only=True) for folder in folders)
        assert all(torch.equal(value, parts[key]) for key, value in whole.items())
    assert not state.exists()
