"""The bundle from Python: MONAI's loader, its workflows, and its federated client."""

from __future__ import annotations

import json
import re
import shutil
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import create_workflow, load
from monai.fl.client.monai_algo import MonaiAlgo, MonaiAlgoStats
from monai.fl.utils.constants import ExtraItems, FlStatistics, ModelType, WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from torch.utils.tensorboard import SummaryWriter  # noqa: F401  # imported before the clients change the directory

from ..conftest import ROOT, TINY_NETWORK, make_tiny

NAME = "fewshot_alpnet_segmentation"


@pytest.fixture
def folder(tmp_path, tiny_weights, phantom_dir, monkeypatch):
    """The bundle's folder as users copy it, with the small network."""
    monkeypatch.delenv("MONAI_LABEL_STUDIES", raising=False)
    root = tmp_path / NAME
    shutil.copytree(ROOT / "bundle", root / "bundle", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", root / "configs")
    (root / "models").mkdir()
    shutil.copy(tiny_weights, root / "models" / "model.pt")
    for name in ("inference", "train"):
        path = root / "configs" / f"{name}.json"
        text = json.loads(path.read_text())
        text |= {"dataset_dir": str(phantom_dir), "device": "cpu", "image_size": [64, 64], "precision": "float32"}
        text["network_def"] = TINY_NETWORK | ({"align": True} if name == "train" else {})
        if name == "train":
            text |= {"pretrained": None, "max_epochs": 1, "epoch_length": 4, "batch_size": 2, "val_length": 2}
            text["superpixel"] |= {"parameters": [{"scale": 1, "sigma": 1, "min_size": 40}], "min_area_px": 16}
        path.write_text(json.dumps(text))
    return root


def test_load_gives_the_network_with_its_weights(folder):
    network = load(NAME, bundle_dir=str(folder.parent), source="github", workflow_type="inference")
    packed = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(packed), make_tiny()(packed))


def test_a_workflow_takes_other_data(folder, phantom_dir, tmp_path):
    workflow = create_workflow(
        config_file=str(folder / "configs" / "inference.json"),
        workflow_type="inference",
        bundle_root=str(folder),
        output_dir=str(tmp_path / "out"),
    )
    workflow.dataset_data = [{"image": str(phantom_dir / "imagesTs" / "phantom_05.nii.gz")}]
    workflow.initialize()
    assert len(workflow.dataset) == 1


def test_the_lines_of_the_documentation_run(folder, phantom_dir, monkeypatch):
    text = (ROOT / "docs" / "integration.md").read_text()
    first, second = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    image = phantom_dir / "imagesTs" / "phantom_05.nii.gz"
    names = {"dataset": str(phantom_dir), "query": str(image)}
    exec(first, names)
    assert names["logits"].shape == (1, 2, 256, 256)
    assert names["label_map"].shape[1:] == nib.load(image).shape
    (saved,) = (folder / "eval").rglob("*_seg.nii.gz")
    np.testing.assert_array_equal(np.asarray(nib.load(saved).dataobj), names["label_map"][0].numpy())
    exec(second, names)
    assert names["algo"].evaluator is not None


@pytest.mark.slow
def test_a_federated_client_trains_and_shares_without_labels(folder, phantom_dir, tmp_path, monkeypatch):
    shutil.copytree(phantom_dir / "imagesTr", tmp_path / "data" / "imagesTr")
    path = folder / "configs" / "train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dataset_dir": str(tmp_path / "data")}))
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    algo = MonaiAlgo(bundle_root=str(folder), local_epochs=1)  # evaluates with evaluate.json on train.json
    algo.initialize(extra={ExtraItems.CLIENT_NAME: "one", ExtraItems.APP_ROOT: str(folder)})
    weights = make_tiny(align=True, seed=1).state_dict()
    sent = ExchangeObject(
        weights={name: value.numpy() for name, value in weights.items()}, weight_type=WeightType.WEIGHTS
    )
    for _ in range(2):
        algo.train(data=sent, extra={})
    change = algo.get_weights(extra={})
    assert change.weight_type == WeightType.WEIGHT_DIFF
    assert set(change.weights) == set(weights)
    assert any(abs(value).max() > 0 for value in change.weights.values())
    best = algo.get_weights(extra={ExtraItems.MODEL_TYPE: ModelType.BEST_MODEL})
    assert set(best.weights) == set(weights)
    measured = algo.evaluate(data=sent, extra={})
    assert "val_mean_dice" in measured.metrics
    algo.finalize()


@pytest.mark.slow
def test_a_federated_client_describes_its_data(folder, phantom_dir, monkeypatch):
    pytest.importorskip("yaml", reason="MONAI writes the statistics with PyYAML, which is not installed")
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.chdir(folder)
    stats = MonaiAlgoStats(bundle_root=str(folder), config_train_filename="configs/train.json")
    stats.initialize(extra={ExtraItems.CLIENT_NAME: "one", ExtraItems.APP_ROOT: str(folder)})
    found = stats.get_data_stats(extra={FlStatistics.HIST_BINS: [10], FlStatistics.HIST_RANGE: [[0, 2000]]}).statistics
    assert found
