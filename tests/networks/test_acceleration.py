from __future__ import annotations

import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from bundle.networks import acceleration, compile_arguments, set_deterministic, slices_at_once

from ..conftest import ROOT, TINY_NETWORK

PLAIN = {"compile": False, "compile_kwargs": None}


@pytest.mark.parametrize(("gigabytes", "slices"), [(1, 16), (8, 64), (80, 128)])
def test_a_gpu_takes_as_many_slices_as_its_memory_allows(gigabytes, slices, monkeypatch):
    memory = SimpleNamespace(total_memory=gigabytes * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    assert slices_at_once("cuda:0") == slices
    assert slices_at_once("cpu") == 16


@pytest.fixture
def compiler(monkeypatch):
    """Stands for torch.compile: records what it is asked for, and fails where told to."""
    made = SimpleNamespace(asked=[], error=None)

    def compile(function, **kwargs):
        made.asked.append(kwargs)
        if made.error is not None:
            raise made.error
        return lambda x: None

    monkeypatch.setattr(acceleration.torch, "compile", compile)
    return made


def test_nothing_is_tried_unless_wanted(compiler):
    assert compile_arguments(False, False, "cpu") == PLAIN
    assert compiler.asked == []


@pytest.mark.parametrize(
    ("compile", "graphs", "kwargs"),
    [(True, False, {}), (True, True, {"mode": "reduce-overhead"}), (False, True, {"backend": "cudagraphs"})],
    ids=["code", "code and graphs", "graphs"],
)
def test_both_on_a_device_that_has_them(compiler, monkeypatch, compile, graphs, kwargs):
    monkeypatch.setattr(acceleration.torch, "ones", lambda *_, **__: None)  # there may be no such device here
    assert compile_arguments(compile, graphs, "cuda") == {"compile": True, "compile_kwargs": kwargs}
    assert compiler.asked == [kwargs]


def test_cuda_graphs_need_cuda(compiler, caplog):
    assert compile_arguments(True, True, "cpu") == {"compile": True, "compile_kwargs": {}}
    assert caplog.messages == ["CUDA graphs: not used, they need a CUDA device, this is cpu"]


def test_a_failing_compiler_is_one_line_and_no_error(compiler, caplog):
    compiler.error = RuntimeError("no compiler\nand much more")
    assert compile_arguments(True, False, "cpu") == PLAIN
    assert caplog.messages == ["torch.compile: not used, no compiler"]


@pytest.mark.parametrize("deterministic", [True, False])
def test_deterministic_speaks_for_all_kernels_and_stops_at_none(deterministic):
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    try:
        set_deterministic(deterministic)
        assert (cudnn.deterministic, cudnn.benchmark) == (deterministic, not deterministic)
        assert torch.are_deterministic_algorithms_enabled() == deterministic
        assert torch.get_deterministic_debug_mode() == int(deterministic)  # 1: a warning
    finally:
        torch.use_deterministic_algorithms(False)
        cudnn.deterministic, cudnn.benchmark = before


@pytest.mark.slow
def test_without_a_compiler_for_the_processor_there_is_one_line(tmp_path):
    code = "from bundle.networks import compile_arguments as c; print(c(True, False, 'cpu'))"
    environment = {**os.environ, "CXX": "/no/such/compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(PLAIN)
    assert "torch.compile: not used, InvalidCxxCompiler: No working C++ compiler found" in done.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_training_takes_the_steps_of_a_plain_one(run_config, tmp_path, monkeypatch, caplog):
    generated = tmp_path / "generated"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(generated))
    assert compile_arguments(True, False, "cpu")["compile"]
    tried = set(generated.rglob("*.so"))
    network = {**TINY_NETWORK, "encoder": {**TINY_NETWORK["encoder"], "freeze_norm": True}, "precision": "float32"}
    weights = {}
    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        common = {"output_dir": str(folder), "ckpt_dir": str(folder), "cache_dir": str(tmp_path / "cache")}
        run_config("train", network_def=network, epoch_length=8, compile=compiled, **common)
        weights[compiled] = torch.load(folder / "model_final.pt", weights_only=True)
        assert (set(generated.rglob("*.so")) > tried) == compiled
    assert not any("not used" in line for line in caplog.messages)
    assert weights[True].keys() == weights[False].keys()
    for name, value in weights[False].items():
        torch.testing.assert_close(weights[True][name], value, rtol=1e-3, atol=1e-5, msg=name)
