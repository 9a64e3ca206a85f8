"""What the configs run on a GPU: nothing mixes devices, and the numbers are the CPU's."""

from __future__ import annotations

import csv

import nibabel as nib
import numpy as np
import pytest
import torch

from bundle.data.protocol import PROTOCOLS
from bundle.errors import explain

from ..conftest import TINY_NETWORK, save_nifti
from ..handlers.test_loss_guard import train

PLAIN = {**TINY_NETWORK, "precision": "float32"}


def maps(folder):
    return {path.name: np.asarray(nib.load(path).dataobj) for path in sorted(folder.rglob("*_seg.nii.gz"))}


def agree(one, other):
    assert one.keys() == other.keys() != set()
    for name, values in one.items():
        assert (values == other[name]).mean() > 0.999, name


@pytest.mark.parametrize("pseudo_supports", [0, 1])
def test_inference(run_config, cuda, tmp_path, pseudo_supports):
    settings = {"network_def": PLAIN, "num_pseudo_supports": pseudo_supports, "save_confidence": True}
    found = maps(run_config("inference", device="cuda:0", **settings))
    agree(found, maps(run_config("inference", output_dir=str(tmp_path / "cpu"), **settings)))


def test_a_scan_is_completed(run_config, cuda, tmp_path, phantom_dir):
    file = nib.load(phantom_dir / "labelsTr" / "phantom_01.nii.gz")
    part = np.array(file.dataobj)
    part[..., 1::2] = 0
    drawn = save_nifti(tmp_path / "part.nii.gz", part, file.affine)
    own = {"image": str(phantom_dir / "imagesTr" / "phantom_01.nii.gz"), "label": str(drawn), "slices": "labelled"}
    settings = {"network_def": PLAIN, "support": [own], "datalist": [{"image": own["image"]}]}
    found = maps(run_config("inference", device="cuda:0", **settings))
    agree(found, maps(run_config("inference", output_dir=str(tmp_path / "cpu"), **settings)))


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_evaluation(run_config, cuda, tmp_path, protocol):
    tables = []
    for device in ("cuda:0", "cpu"):
        folder = tmp_path / device.partition(":")[0]
        settings = {"output_dir": str(folder), "network_def": PLAIN, "protocol": protocol, "folds": 2}
        settings |= {"datalist": "$@split['queries'][:1]", "overlays": False}
        run_config("inference", "evaluate", device=device, **settings)
        with open(folder / "metrics.csv", newline="") as file:
            tables.append([float(row["dice"] or -1) for row in csv.DictReader(file)])
    np.testing.assert_allclose(*tables, atol=0.5)
    agree(maps(tmp_path / "cuda"), maps(tmp_path / "cpu"))


@pytest.mark.parametrize("recipe", [["train"], ["train", "paper"]], ids=["default", "published"])
@pytest.mark.parametrize("lazy", [True, False], ids=["made on the device", "made on the CPU"])
def test_training(run_config, cuda, tmp_path, recipe, lazy):
    network = {**PLAIN, "align": recipe[-1] == "paper"}
    settings = {"network_def": network, "lazy_episodes": lazy, "cache_dir": str(tmp_path / "cache"), "num_ways": 3}
    if "paper" in recipe:
        settings |= {"num_ways": 1}
    weights = []
    for device in ("cuda:0", "cpu"):
        folder = tmp_path / device.partition(":")[0]
        places = {"output_dir": str(folder), "ckpt_dir": str(folder / "models")}
        run_config(*recipe, device=device, **places, **settings)
        weights.append(torch.load(folder / "models" / "model_final.pt", map_location="cpu", weights_only=True))
    for name, value in weights[1].items():
        torch.testing.assert_close(weights[0][name], value, rtol=1e-2, atol=1e-3, msg=f"{name}: {{}}".format)


def test_a_compiled_evaluation_is_refused_before_it_segments_without_the_meta_data(run_config):
    with pytest.raises(RuntimeError) as caught:
        run_config("inference", network_def=PLAIN, **{"evaluator#compile": True})
    assert explain(caught.value).startswith("evaluator#compile takes spacing, extents and support away from the scan")


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", [["train"], ["train", "paper"]], ids=["default", "published"])
def test_a_deterministic_training_gives_the_same_bits_again(run_config, tmp_path, recipe):
    network = {**PLAIN, "align": recipe[-1] == "paper"}
    weights = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        places = {"output_dir": str(folder), "ckpt_dir": str(folder / "models")}
        run_config(*recipe, device="cuda:0", network_def=network, cache_dir=str(tmp_path / "cache"), **places)
        weights.append(torch.load(folder / "models" / "model_final.pt", map_location="cpu", weights_only=True))
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [{"cuda_graphs": True}, {"compile": True}], ids=str)
def test_an_accelerated_training_takes_the_steps_of_a_plain_one(run_config, tmp_path, settings):
    weights = []
    for more in ({}, settings):
        folder = tmp_path / str(len(weights))
        places = {"output_dir": str(folder), "ckpt_dir": str(folder / "models"), "cache_dir": str(tmp_path / "cache")}
        run_config("train", device="cuda:0", network_def=PLAIN, **places, **more)
        weights.append(torch.load(folder / "models" / "model_final.pt", map_location="cpu", weights_only=True))
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-2, atol=1e-3, msg=f"{name}: {{}}".format)


@pytest.mark.gpu
def test_a_loss_that_is_no_number_reaches_no_weight_of_a_gpu(tmp_path):
    network, trainer = train(tmp_path / "bad.pt", [torch.tensor([[1.0, float("nan")]])], device="cuda:0")
    with pytest.raises(FloatingPointError):
        trainer.run()
    assert torch.equal(network.weight.cpu(), torch.full((1, 2), 0.5))
