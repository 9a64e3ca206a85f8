"""The command line of convert_weights: what it writes, prints and refuses."""

from __future__ import annotations

import sys

import pytest
import torch

from bundle.networks import EfficientNetLiteEncoder, ResNetEncoder
from scripts import convert_weights

from ..networks.literal_encoders import lite0_state_dict, resnet_state_dict


@pytest.fixture
def run(monkeypatch, capsys):
    """Call the command line in this process; give back exit status, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)  # set back afterwards
        monkeypatch.setattr(sys, "argv", ["convert_weights", *map(str, arguments)])
        status = 0
        try:
            convert_weights.main()
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        except Exception as error:  # as Python ends a program: by the hook
            status = 1
            sys.excepthook(type(error), error, error.__traceback__)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def load_encoder(encoder, path):
    """Load a written file into an encoder, strictly."""
    state = torch.load(path, weights_only=True)
    assert all(key.startswith("encoder.") for key in state)
    encoder.load_state_dict({key.removeprefix("encoder."): value for key, value in state.items()})
    return encoder


def test_official(run, tmp_path):
    source = {f"encoder.backbone.{key}": value for key, value in resnet_state_dict(18).items()}
    source |= {"encoder.localconv.weight": torch.rand(16, 512, 1, 1), "encoder.asppconv.weight": torch.rand(2, 2, 1, 1)}
    torch.save(source, tmp_path / "source.pth")
    status, out, _ = run("official", tmp_path / "source.pth", tmp_path / "models" / "model.pt")
    assert status == 0
    encoder = load_encoder(ResNetEncoder(18, 8, 16), tmp_path / "models" / "model.pt")
    assert torch.equal(encoder.localconv.weight, source["encoder.localconv.weight"])
    expected = '{"_target_": "bundle.networks.ResNetEncoder", "depth": 18, "embedding_channels": 16}'
    assert out.count("\n") == 1
    assert expected in out
    assert "random" not in out


def test_adnet(run, tmp_path):
    source = {f"encoder.backbone.{key}": value for key, value in resnet_state_dict(18).items()}
    source |= {"encoder.localconv.weight": torch.rand(16, 512, 1, 1), "t": torch.tensor([-10.0])}
    torch.save(source, tmp_path / "source.pth")
    status, out, _ = run("adnet", tmp_path / "source.pth", tmp_path / "model.pt")
    assert status == 0
    load_encoder(ResNetEncoder(18, 8, 16), tmp_path / "model.pt")
    assert out.count("\n") == 1
    assert '"embedding_channels": 16}; the threshold t is left out' in out


def test_torchvision_says_that_the_projection_is_random(run, tmp_path):
    torch.save({**resnet_state_dict(18), "fc.weight": torch.rand(3, 512)}, tmp_path / "source.pth")
    status, out, _ = run("torchvision", tmp_path / "source.pth", tmp_path / "model.pt", "--embedding_channels", 8)
    assert status == 0
    load_encoder(ResNetEncoder(18, 8, 8), tmp_path / "model.pt")
    assert "encoder.localconv is random (orthogonal, seed 0)" in out


def test_efficientnet_lite_options(run, tmp_path):
    torch.save(lite0_state_dict(), tmp_path / "source.pth")
    command = ("efficientnet_lite", tmp_path / "source.pth", tmp_path / "model.pt")
    status, out, _ = run(*command, "--num_blocks", 5, "--embedding_channels", "None")
    assert status == 0
    load_encoder(EfficientNetLiteEncoder("lite0", 5, 8, None), tmp_path / "model.pt")
    assert '"variant": "lite0", "num_blocks": 5, "embedding_channels": null' in out


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("official", (), "not a checkpoint of the kind official: it looks like efficientnet_lite"),
        ("efficientnet_lite", ("--num_blocks", "99"), "num_blocks must be at most 16 for lite0, got 99"),
        ("efficientnet_lite", ("--num_blocks", "many"), "num_blocks must be an integer, got 'many'"),
    ],
)
def test_bad_input_ends_with_one_line_and_writes_nothing(run, tmp_path, command, options, message):
    torch.save(lite0_state_dict(), tmp_path / "source.pth")
    status, out, err = run(command, tmp_path / "source.pth", tmp_path / "model.pt", *options)
    assert (status, out) == (1, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert not (tmp_path / "model.pt").exists()


def test_missing_source_is_named(run, tmp_path):
    status, _, err = run("official", tmp_path / "absent.pth", tmp_path / "model.pt")
    assert status == 1
    assert "no checkpoint at" in err
    assert "absent.pth" in err


def test_misspelt_option_writes_nothing(run, tmp_path):
    torch.save(lite0_state_dict(), tmp_path / "source.pth")
    status, _, err = run("efficientnet_lite", tmp_path / "source.pth", tmp_path / "model.pt", "--blocks", 5)
    assert status != 0
    assert "--blocks" in err
    assert not (tmp_path / "model.pt").exists()
