from __future__ import annotations

from types import SimpleNamespace

import pytest

from bundle.networks import acceleration, compile_arguments

PLAIN = {"compile": False, "compile_kwargs": None}


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
