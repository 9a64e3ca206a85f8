"""The published recipe through ``monai.bundle run``: training, inference, evaluation of a converted checkpoint."""

from __future__ import annotations

import csv
import json
import re
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser, run

from bundle import inferers
from bundle.data import evaluation_split, query_chunks, support_slices
from bundle.losses import EpisodeLoss
from scripts import convert_weights

from ..conftest import ROOT, TINY_NETWORK
from ..networks import literal_alp
from ..networks.literal_encoders import resnet_features
from ..networks.test_weights import official_state_dict

pytestmark = pytest.mark.filterwarnings("ignore")
SIZE = [48, 48]  # of the phantom's slices: nothing is resampled
STAGES = (  # what the paper lacks
    "AtlasFallback",
    "CellRegistration",
    "GuidedUpsampling",
    "InPlaneOrientation",
    "MirrorCheck",
    "PseudoSupports",
    "RegionOfInterest",
    "SelfSupportRefinement",
    "ShapeInterpolation",
    "SliceCompletion",
    "TruncatedStructures",
)
HOUSE = {"FewShotInferer", "KnownExtents", "Quality", "ScanFusion", "SliceMatching", "SliceRegistration",
         "SupportEncoder"}  # fmt: skip


@pytest.fixture
def run_paper(monkeypatch, tmp_path, phantom_dir):
    """Run configs with ``configs/paper.json`` in this process; a stage of ours that is built is an error."""
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("MONAI_LABEL_STUDIES", raising=False)
    for name in STAGES:

        def refuse(self, *_, name=name, **__):
            raise AssertionError(f"{name} is active")

        monkeypatch.setattr(getattr(inferers, name), "__init__", refuse)

    def start(*names: str, **overrides):
        given = {"bundle_root": str(ROOT), "dataset_dir": str(phantom_dir), "device": "cpu", "image_size": SIZE}
        given["output_dir"] = str(tmp_path / names[-1])
        files = [str(ROOT / "configs" / f"{name}.json") for name in (*names, "paper")]
        run(config_file=files, logging_file=False, **{**given, **overrides})
        return tmp_path / names[-1]

    return start


def test_the_docs_name_what_there_is():
    text = (ROOT / "docs/paper.md").read_text()
    paths = re.findall(r"`((?:bundle|configs|tests)/[\w./]+\.(?:py|json))`", text)
    assert [path for path in paths if not (ROOT / path).is_file()] == []
    named = re.findall(r"`(bundle/[\w/]+\.py)` `(\w+)", text)
    assert len(named) >= 10
    assert [pair for pair in named if pair[1] not in (ROOT / pair[0]).read_text()] == []
    table = text.split("## Part by part")[1].split("## ")[0]
    ids = {
        name
        for row in table.splitlines()
        if row.startswith("| ")
        for name in re.findall(r"`([\w#]+)`", row.split("|")[4])
    }
    known = "".join((ROOT / "configs" / f"{name}.json").read_text() for name in ("train", "inference", "evaluate"))
    missing = {name for name in ids for part in name.split("#") if part and f'"{part}"' not in known}
    assert missing - {"loss#alignment_weight"} == set()  # an argument that train.json leaves at its default


def test_every_stage_of_the_inferer_is_among_those_that_are_refused():
    components = {name for name in inferers.__all__ if isinstance(getattr(inferers, name), type)}
    assert components - HOUSE == set(STAGES)


def test_a_stage_that_is_switched_on_is_noticed(run_paper, tiny_weights):
    encoder = {"network_def#encoder": TINY_NETWORK["encoder"], "ckpt_path": str(tiny_weights)}
    stage = {"_target_": "bundle.inferers.SelfSupportRefinement", "rounds": 1}
    with pytest.raises(Exception, match="SelfSupportRefinement") as caught:
        run_paper("inference", **encoder, refinement=stage)
    assert "SelfSupportRefinement is active" in str(caught.value.__cause__)


def test_it_trains_segments_and_evaluates(run_paper, tmp_path, phantom_dir):
    encoder = {"network_def#encoder": TINY_NETWORK["encoder"]}
    levels = [{"scale": 1, "sigma": 1, "min_size": 40}]
    tiny = {"superpixel#parameters": levels, "superpixel#min_area_px": 16, "val_length": 1, "pretrained": False}
    run_paper("train", "fold", **encoder, **tiny, folds=2, max_epochs=1, epoch_length=3, ckpt_dir=str(tmp_path))
    weights = str(tmp_path / "model_final.pt")
    out = run_paper("inference", **encoder, ckpt_path=weights)
    assert [path.name for path in out.rglob("*_seg.nii.gz")] == ["phantom_05_seg.nii.gz"]
    for protocol in ("official", "volume"):
        folder = str(tmp_path / protocol)
        given = {"protocol": protocol, "folds": 2, "output_dir": folder, "ckpt_path": weights}
        run_paper("inference", "evaluate", **encoder, **given)
        assert json.loads((tmp_path / protocol / "summary.json").read_text())["protocol"] == protocol


def test_the_training_is_the_published_one():
    parser = ConfigParser()
    parser.read_config([str(ROOT / "configs" / f"{name}.json") for name in ("train", "paper")])
    parser.update({"network_def#encoder": TINY_NETWORK["encoder"], "device": "cpu"})
    network, loss = parser.get_parsed_content("network"), parser.get_parsed_content("loss")
    optimizer, schedule = parser.get_parsed_content("optimizer"), parser.get_parsed_content("lr_scheduler")
    assert isinstance(loss, EpisodeLoss)
    assert vars(EpisodeLoss(0.05, 0.0, 1.0, 0.0)).items() <= vars(loss).items()
    assert {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}.items() <= optimizer.defaults.items()
    assert (type(optimizer).__name__, schedule.step_size, schedule.gamma) == ("SGD", 1000, 0.95)
    assert sum(p.numel() for p in network.parameters()) == sum(
        p.numel() for group in optimizer.param_groups for p in group["params"]
    )
    assert network.align
    assert network.upsample_training
    for name in ("query_view", "support_view"):
        view = parser.get_parsed_content(name)
        assert (view.rotation_deg, view.shift_px, view.shear_deg, view.zoom) == (5.0, 5.0, 5.0, (0.9, 1.2))
        assert view.gamma == (0.5, 1.5)
        assert (view.stretch, view.bias, view.contrast) == (0.0, 0.0, 0.0)


def literal_dice(source, phantom_dir):
    """Dice in percent of each case and label by loops over slices and cells, as the official code goes about it."""
    parser = ConfigParser()
    parser.read_config([str(ROOT / "configs" / f"{name}.json") for name in ("inference", "evaluate", "paper")])
    parser.update({"dataset_dir": str(phantom_dir), "image_size": SIZE})
    prepare = parser.get_parsed_content("support_preprocessing")
    split = evaluation_split(phantom_dir, "official", 0, 2)
    trunk = {key[len("encoder.backbone.") :]: value for key, value in source.items() if ".backbone." in key}

    encoded = {}

    def encode(image):
        key = image.numpy().tobytes()
        if key not in encoded:
            features = resnet_features(trunk, image[None].expand(-1, 3, -1, -1), (False, True, True))
            encoded[key] = F.conv2d(features, source["encoder.localconv.weight"])[0]
        return encoded[key]

    def encoder(images):
        return torch.stack([encode(image) for image in images])

    def load(entry):
        scan = prepare(entry)
        return (torch.as_tensor(np.asarray(scan[key])) for key in ("image", "label"))

    (support, support_label), dice = load(split["support"][0]), {}
    for entry in split["queries"]:
        query, label = load(entry)
        for value in (1, 2, 3, 4):
            shown = (support_label[0] == value).flatten(0, 1).any(0).nonzero().flatten().tolist()
            chosen = support_slices(shown)
            chunks = query_chunks((label[0] == value).flatten(0, 1).any(0).numpy())
            hits = found = true = 0
            for z in np.flatnonzero(chunks >= 0):
                s = chosen[chunks[z]]
                mask = (support_label[..., s] == value).float()
                with torch.no_grad():
                    logits = literal_alp.episode(encoder, query[..., z], support[None, ..., s], mask, 2)
                pred, truth = logits[1] > logits[0], label[0, ..., z] == value
                hits, found, true = hits + (pred & truth).sum(), found + pred.sum(), true + truth.sum()
            dice[entry["image"].split("/")[-1].split(".")[0], str(value)] = float(200 * hits / (found + true))
    return dice


def test_a_converted_official_checkpoint_gives_the_dice_of_a_literal_loop(run_paper, tmp_path, phantom_dir):
    source = official_state_dict(50)
    torch.save(source, tmp_path / "official.pth")
    weights = str(tmp_path / "model.pt")
    convert_weights._write(convert_weights.official(str(tmp_path / "official.pth"), weights))
    encoder = {"network_def#encoder#depth": 50, "network_def#encoder#embedding_channels": 16}
    given = {"protocol": "official", "folds": 2, "fold": 0, "ckpt_path": weights}
    out = run_paper("inference", "evaluate", **encoder, **given)
    with open(out / "metrics.csv", newline="") as file:
        rows = {(row["case"], row["label"]): float(row["dice"]) for row in csv.DictReader(file)}
    expected = literal_dice(source, phantom_dir)
    assert rows.keys() == expected.keys()
    assert rows == {key: pytest.approx(value, abs=0.2) for key, value in expected.items()}  # a pixel or two of a tie
    assert any(value > 0 for value in expected.values())
    assert nib.load(next(out.rglob("*_seg.nii.gz"))).shape == (48, 48, 12)
