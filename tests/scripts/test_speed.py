from __future__ import annotations

import pytest
import torch

from bundle.data import SupportScan
from bundle.losses import EpisodeLoss
from bundle.networks import ALPNet
from scripts import literal
from scripts.speed import Row, peak_memory, speed

from ..inferers.build import make_inferer
from ..networks.test_alpnet import PatchEncoder, blob


@pytest.mark.parametrize(
    "settings",
    [{"foreground_gate": "official"}, {"foreground_gate": "matched", "position_weight": 10.0, "training_window": 2}],
    ids=["published", "default"],
)
@pytest.mark.parametrize("radius", [20.0, 5.0, 200.0], ids=["gate open", "class level only", "no background"])
def test_literal_loop_minimizes_the_same_loss(settings, radius):
    network = ALPNet(PatchEncoder(), align=True, upsample_training=True, **settings).train()
    (query,), (label,) = blob(1, 1, 64, 14.0)
    (support,), (mask,) = blob(2, 1, 64, radius)
    episode = {"image": query, "label": label[None], "support_image": support, "support_label": mask[None]}
    found = literal.episode_loss(network, episode, 0.05)
    target = torch.stack([label, mask])[None]
    expected = EpisodeLoss(0.05)(network(query[None], support[None, None, None], mask[None, None, None]), target)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    gradients = [torch.autograd.grad(loss, network.encoder.project.weight)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("position_weight", [0.0, 10.0])
def test_literal_inference_gives_the_same_label_map(position_weight):
    network = ALPNet(
        PatchEncoder(), testing_window=1, foreground_gate="matched", position_weight=position_weight
    ).eval()
    generator = torch.Generator().manual_seed(0)
    label = torch.zeros(32, 32, 6, dtype=torch.long)
    label[4:16, 4:16, 1:4] = 3
    label[18:30, 14:28, 2:5] = 8
    image = torch.rand(1, 32, 32, 6, generator=generator) + label
    support = SupportScan(image, label, 1.0, "support")
    query = torch.rand(1, 32, 32, 5, generator=generator) + label.roll(2, 0)[..., :5]
    inferer = make_inferer()
    inferer.set_support([support])
    scores = inferer(query[None], network)[0].as_subclass(torch.Tensor)
    expected = torch.tensor([0, 3, 8], dtype=torch.uint8)[scores.argmax(dim=0)]
    found = literal.segment_volume(network, query, support, [3, 8], 1.0)
    assert set(expected.unique().tolist()) == {0, 3, 8}
    assert torch.equal(found, expected)


def test_rows_say_how_many_times_faster():
    assert str(Row("training", 12.0, 4.0, "/s", "note")) == "| training | 12 /s | 4 /s | **3.0** | note |"
    assert str(Row("inference", 2.0, 9.0, "s")) == "| inference | 2 s | 9 s | **4.5** |  |"
    assert str(Row("start", 8.25, None, "s")) == "| start | 8.25 s |  |  |  |"


def test_peak_memory_sees_what_was_freed_again():
    device = torch.device("cpu")
    small = peak_memory(lambda: None, device)
    assert peak_memory(lambda: torch.ones(50_000_000).sum(), device) > small + 150


def test_unknown_parts_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"parts must be among .*, got \['speed'\]"):
        speed("data", str(tmp_path), parts=["speed"])


@pytest.mark.slow
def test_table_of_a_phantom(phantom_dir, tmp_path):
    network = {"_target_": "bundle.networks.TinyEncoder", "out_channels": 16, "stride": 4, "freeze_norm": True}
    small = {"image_size": [64, 64], "superpixel#parameters": [{"scale": 1, "sigma": 1, "min_size": 40}]}
    table = speed(
        str(phantom_dir),
        str(tmp_path),
        device="cpu",
        parts=["training", "superpixels"],
        steps=1,
        rounds=1,
        overrides={
            **small,
            "superpixel#min_area_px": 16,
            "network_def#encoder": network,
            "pretrained": False,
            "precision": "float32",
        },
    )
    assert (tmp_path / "speed.md").read_text() == table + "\n"
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| training")]
    assert len(rows) == 2
    assert float(rows[0][2].split()[0]) > 0
    difference = float(table.split("loss of the first episode differs by ")[1].split(" in float32")[0])
    assert difference < 1e-4
