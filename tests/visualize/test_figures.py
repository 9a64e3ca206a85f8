from __future__ import annotations

import numpy as np
import pytest
import torch

from bundle.networks import ALPNet, TinyEncoder
from bundle.visualize import (
    PALETTE,
    curves_figure,
    episode_figure,
    episode_planes,
    figure_array,
    overlay_figure,
    prototype_figure,
    prototype_map,
    read_curves,
    save_figure,
    superpixel_figure,
    to_planes,
)
from bundle.visualize.colors import parse_color


def texts(figure):
    return [text.get_text() for ax in figure.axes for text in ax.texts]


@pytest.fixture
def scan():
    image = np.random.RandomState(0).rand(24, 20, 5) * 100
    label = np.zeros((24, 20, 5), int)
    label[14:22, 4:14, 1:4] = 1  # on the patient's right
    label[2:8, 4:14, 2:4] = 2
    return to_planes(image), to_planes(label).values


def test_overlay_shows_names_marker_scores_and_color(scan):
    image, label = scan
    prediction = np.where(label == 2, 0, label)
    figure = overlay_figure(image, prediction, label, {1: "liver", 2: "spleen"}, title="case")
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["liver", "spleen", "fill: prediction", "line: truth"]
    heading = " ".join(text.get_text() for text in figure.texts)
    assert "liver 100.0" in heading
    assert "spleen 0.0" in heading
    assert "patient's right (R) is on the left" in heading
    shown = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title() for ax in shown] == ["slice 2: Dice 100", "slice 3: Dice 50", "slice 4: Dice 50"]
    marker = next(text for text in shown[0].texts if text.get_text() == "R")
    assert marker.get_position()[0] < 0.1
    picture = np.asarray(shown[0].images[0].get_array())
    color = np.array(parse_color(PALETTE[0]))
    near = (np.abs(picture.astype(int) - color).sum(axis=2) < 5).any(axis=0)
    assert near[: len(near) // 2].any()  # the patient's right is on the left of the picture
    assert not near[len(near) // 2 :].any()


def test_overlay_needs_a_map_that_fits(scan):
    image, label = scan
    with pytest.raises(ValueError, match="got neither"):
        overlay_figure(image)
    with pytest.raises(ValueError, match="does not fit"):
        overlay_figure(image, label[:2])


def test_superpixels_are_counted_and_levels_have_rows(scan):
    image, label = scan
    one = superpixel_figure(image, label)
    assert [ax.get_title() for ax in one.axes if ax.images] == [
        f"slice {z}: {n} superpixels" for z, n in ((2, 1), (3, 2), (4, 2))
    ]
    two = superpixel_figure(image, np.stack([label, label > 0]))
    assert [ax.get_title() for ax in two.axes][3:] == [f"level 2, slice {z}: 1 superpixels" for z in (2, 3, 4)]
    with pytest.raises(ValueError, match="do not fit"):
        superpixel_figure(image, label[1:])


def test_figure_is_written_at_its_size(scan, tmp_path):
    image, label = scan
    figure = overlay_figure(image, label)
    path = save_figure(figure, tmp_path / "deep" / "a.png", dpi=50)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]
    width, height = figure.get_size_inches()
    assert figure_array(figure).shape == (int(height * 100), int(width * 100), 3)


def test_episodes_of_several_ways():
    image = torch.rand(1, 1, 16, 16)
    masks = torch.zeros(2, 2, 1, 16, 16)
    masks[:, 0, 0, 10:14, 2:6] = 1
    masks[:, 1, 0, 2:6, 2:6] = 1
    target = masks[:, 0, 0] + 2 * masks[:, 1, 0]
    support = {"support_image": image[:, None, None], "support_label": masks}
    logits = torch.stack([torch.zeros(2, 16, 16) + 0.5, masks[:, 0, 0], masks[:, 1, 0]], dim=1)
    planes = episode_planes((image, target[:, None], (), support), logits, count=5)
    assert len(planes) == 2
    expected = np.flip(target[0].numpy().T, (0, 1))
    for key in ("support_mask", "query_mask", "prediction"):
        assert (planes[0][key] == expected).all()
    titles = [ax.get_title() for ax in episode_figure(planes).axes]
    assert titles[0] == "support mask, 2 regions"
    assert titles[3].endswith("Dice 100")
    with pytest.raises(ValueError, match="at least one episode"):
        episode_figure([])


@pytest.mark.parametrize("position_weight", [0.0, 50.0])
def test_winning_prototypes_agree_with_the_network(position_weight):
    torch.manual_seed(0)
    network = ALPNet(TinyEncoder(), foreground_gate="matched", position_weight=position_weight).eval()
    support, query = torch.rand(2, 1, 64, 64), torch.rand(1, 64, 64)
    mask = torch.zeros(2, 64, 64)
    mask[:, 32:64, 0:32] = 1  # right and back: on the left at the bottom of the picture
    support[:, 0][mask > 0] += 3
    query[0][mask[0] > 0] += 3
    result = prototype_map(network, query, support, mask)
    assert result.mismatch < 1e-3
    assert result.foreground[0, -1, 0]
    assert result.background[0, 0, -1]
    assert not result.foreground[0, 0, -1]
    valid = np.where(result.winner_class > 0, 1, 0)
    flat = np.stack([result.background.ravel(), result.foreground.ravel()])
    local = result.winner >= 0
    assert local.any()
    assert flat[valid[local], result.winner[local]].all()  # every winner speaks for the class that won
    assert result.window_wins().sum() == local.sum()
    figure = prototype_figure(result, np.zeros((2, 64, 64)), np.zeros((64, 64)), "spot")
    assert "result: spot" in [ax.get_title() for ax in figure.axes]
    with pytest.raises(ValueError, match="empty on every"):
        prototype_map(network, query, support, mask * 0)


def test_curves_of_a_csv_file(tmp_path):
    file = tmp_path / "log.csv"
    file.write_text("step,train_loss,val_dice\n2,0.5,\n1,0.9,0.1\n3,0.2,0.4\n")
    curves = read_curves(file)
    assert curves["train_loss"][0].tolist() == [1, 2, 3]
    assert curves["train_loss"][1].tolist() == [0.9, 0.5, 0.2]
    assert curves["val_dice"][1].tolist() == [0.1, 0.4]
    titles = [ax.get_title() for ax in curves_figure(curves).axes]
    assert titles == ["train_loss (lowest 0.2 at 3)", "val_dice (highest 0.4 at 3)"]
    file.write_text("step,a\n1,x\n")
    with pytest.raises(ValueError, match="numbers"):
        read_curves(file)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_curves(tmp_path / "none")


def test_curves_of_event_files_keep_the_last_value_of_a_step(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    for value in (1.0, 2.0):
        with SummaryWriter(tmp_path) as writer:
            writer.add_scalar("loss", value, 7)
    steps, values = read_curves(tmp_path)["loss"]
    assert (steps.tolist(), values.tolist()) == ([7.0], [2.0])
