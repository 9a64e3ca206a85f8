"""The network as TorchScript, as ONNX, and for the model zoo."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from monai.bundle import ckpt_export, download_large_files, onnx_export, verify_net_in_out

from bundle.networks import OnnxEncoder
from scripts.export import copy_bundle, rename_package, zoo

from ..conftest import ROOT, TINY_NETWORK, make_tiny
from .test_processes import ENVIRONMENT, maps

DYNAMIC = {
    "input_names": ["image"],
    "output_names": ["pred"],
    "dynamic_axes": {"image": {0: "b", 2: "h", 3: "w"}, "pred": {0: "b", 2: "h", 3: "w"}},
}


def network_config(tmp_path):
    """A config file with the small network, as exporters want it."""
    text = json.loads((ROOT / "configs" / "inference.json").read_text())
    text |= {"network_def": TINY_NETWORK, "precision": "float32", "device": "cpu"}
    path = tmp_path / "inference.json"
    path.write_text(json.dumps(text))
    return str(path)


def arguments(tmp_path, tiny_weights):
    return {
        "net_id": "network_def",
        "ckpt_file": str(tiny_weights),
        "meta_file": str(ROOT / "configs" / "metadata.json"),
        "config_file": network_config(tmp_path),
        "bundle_root": str(ROOT),
    }


def episode(batch, height, width):
    packed = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))
    packed[:, 2] = 0
    packed[:, 2, : height // 2, : width // 2] = 1
    return packed


@pytest.mark.parametrize("trace", [False, True], ids=["script", "trace"])
def test_torchscript_gives_the_same_scores_at_any_size(tmp_path, tiny_weights, trace):
    options = {"use_trace": True, "input_shape": [1, 3, 64, 64]} if trace else {}
    ckpt_export(filepath=str(tmp_path / "model.ts"), **arguments(tmp_path, tiny_weights), **options)
    module = torch.jit.load(str(tmp_path / "model.ts")).eval()
    for shape in ((1, 64, 64), (3, 32, 80)):
        with torch.no_grad():
            torch.testing.assert_close(module(episode(*shape)), make_tiny()(episode(*shape)), rtol=0, atol=1e-4)


def test_torchscript_segments_scans_through_the_overlay(run_config, tmp_path, tiny_weights, phantom_dir):
    ckpt_export(filepath=str(tmp_path / "model.ts"), **arguments(tmp_path, tiny_weights))
    eager = maps(run_config("inference", precision="float32", overlays=False))
    run_config(
        "inference",
        "inference_ts",
        ckpt_path=str(tmp_path / "model.ts"),
        network_def="$torch.jit.load(@ckpt_path, map_location=@device)",
        output_dir=str(tmp_path / "ts"),
        overlays=False,
    )
    scripted = maps(tmp_path / "ts")
    assert eager.keys() == scripted.keys()
    assert all(np.array_equal(eager[name], scripted[name]) for name in eager)


@pytest.mark.slow
def test_onnx_gives_the_same_scores_at_any_size(tmp_path, tiny_weights):
    pytest.importorskip("onnxscript", reason="onnx, onnxscript and onnxruntime are not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    path = tmp_path / "model.onnx"
    onnx_export(
        filepath=str(path), input_shape=[2, 3, 64, 64], converter_kwargs=DYNAMIC, **arguments(tmp_path, tiny_weights)
    )
    session = runtime.InferenceSession(str(path))
    for shape in ((1, 64, 64), (3, 32, 80)):
        found = torch.from_numpy(session.run(None, {"image": episode(*shape).numpy()})[0])
        with torch.no_grad():
            torch.testing.assert_close(found, make_tiny()(episode(*shape)), rtol=0, atol=1e-3)


@pytest.mark.slow
def test_onnx_segments_scans_through_the_overlay(run_config, tmp_path, tiny_weights):
    pytest.importorskip("onnxscript", reason="onnx, onnxscript and onnxruntime are not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    with pytest.raises(FileNotFoundError, match="none.onnx: no such ONNX file; export the encoder first"):
        OnnxEncoder("none.onnx", in_channels=3, stride=8)
    given = arguments(tmp_path, tiny_weights) | {"net_id": "encoder_only"}
    given["config_file"] = [given["config_file"], str(ROOT / "configs" / "inference_onnx.json")]
    onnx_export(filepath=str(tmp_path / "encoder.onnx"), input_shape=[2, 3, 64, 64], converter_kwargs=DYNAMIC, **given)
    eager = maps(run_config("inference", precision="float32", overlays=False))
    run_config(
        "inference",
        "inference_onnx",
        ckpt_path=str(tmp_path / "encoder.onnx"),
        output_dir=str(tmp_path / "onnx"),
        overlays=False,
    )
    found = maps(tmp_path / "onnx")
    assert eager.keys() == found.keys()
    assert all(np.mean(eager[name] == found[name]) > 0.9999 for name in eager)


def test_tensorrts_overlay_runs_as_plain_pytorch_without_tensorrt(run_config, tmp_path):
    if importlib.util.find_spec("tensorrt"):
        pytest.skip("TensorRT is installed: here it would compile")
    eager = maps(run_config("inference", precision="float32", overlays=False))
    out = str(tmp_path / "trt")
    found = maps(run_config("inference", "inference_trt", precision="float32", overlays=False, output_dir=out))
    assert eager.keys() == found.keys()
    assert all(np.array_equal(eager[name], found[name]) for name in eager)


def test_the_network_keeps_what_the_metadata_say(tmp_path, tiny_weights):
    given = arguments(tmp_path, tiny_weights)
    given.pop("ckpt_file")
    verify_net_in_out(device="cpu", **given)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"_target_": "bundle.data.x"', '"_target_": "scripts.data.x"'),
        ('"$monai.bundle.load.y"', '"$monai.bundle.load.y"'),
        ('"@bundle_root"', '"@bundle_root"'),
        ('"$bundle.networks.ALPNet(1)"', '"$scripts.networks.ALPNet(1)"'),
        ("`bundle.networks.ALPNet`, as monai.bundle.run", "`scripts.networks.ALPNet`, as monai.bundle.run"),
    ],
)
def test_names_of_the_package_are_replaced_and_no_others(text, expected):
    assert rename_package(text) == expected


def test_the_zoos_folder_runs(tmp_path, tiny_weights, phantom_dir):
    source = copy_bundle(tmp_path / "source", str(tiny_weights))
    (source / "LICENSE").write_text("Apache License, Version 2.0")
    (source / "docs").mkdir(exist_ok=True)
    (source / "docs" / "README.md").write_text("# Few-shot segmentation")
    (source / "scripts").mkdir()
    for name in ("__init__.py", "command.py", "export.py"):
        (source / "scripts" / name).write_text((ROOT / "scripts" / name).read_text())
    zoo = tmp_path / "zoo"
    command = [sys.executable, "-m", "scripts.export", "zoo", str(zoo)]
    subprocess.run(command, cwd=source, env=ENVIRONMENT, check=True, capture_output=True)
    assert not (zoo / "bundle").exists()
    assert (zoo / "scripts" / "networks").is_dir()
    assert not (zoo / "scripts" / "export.py").exists()
    target = {**TINY_NETWORK, "_target_": "scripts.networks.ALPNet"}
    target["encoder"] = {**TINY_NETWORK["encoder"], "_target_": "scripts.networks.TinyEncoder"}
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(zoo / "configs" / "inference.json")]
    for key, value in {
        "bundle_root": zoo,
        "dataset_dir": phantom_dir,
        "output_dir": tmp_path / "out",
        "image_size": [64, 64],
        "network_def": target,
        "overlays": False,
    }.items():
        command += [f"--{key}", str(value)]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(maps(tmp_path / "out")) == 1
    again = subprocess.run(
        [sys.executable, "-m", "scripts.export", "zoo", str(zoo)], cwd=source, env=ENVIRONMENT, capture_output=True
    )
    assert again.returncode == 1
    assert b"is there already" in again.stderr


def test_what_is_too_large_for_the_zoo_is_listed_for_download(tmp_path):
    weights = tmp_path / "models" / "model.pt"
    weights.parent.mkdir()
    weights.write_bytes(bytes(26_000_000))
    with pytest.raises(ValueError, match=r"model.pt: 26.0 MB, the zoo takes 25 MB a file; upload it and give --url"):
        zoo(str(tmp_path / "refused"), str(weights))
    folder = tmp_path / "fewshot_alpnet_segmentation"
    zoo(str(folder), str(weights), url=tmp_path.as_uri() + "/")
    assert not (folder / "models" / "model.pt").exists()
    pytest.importorskip("yaml", reason="MONAI reads large_files.yml with PyYAML, which is not installed")
    download_large_files(bundle_path=str(folder))
    assert (folder / "models" / "model.pt").read_bytes() == weights.read_bytes()
