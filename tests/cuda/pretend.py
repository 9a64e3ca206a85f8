"""A GPU that is not there: tensors that say they lie on CUDA, and are computed on the CPU.

What lies where is a property of memory: each storage that came into being on the device is remembered. An operation
with tensors of both places raises, as CUDA does; what it is for the GPU is counted, launches of kernels and moments in
which the program waits for the device.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

aten = torch.ops.aten
DEVICE = torch.device("cuda:0")
PACKAGE = f"{Path(__file__).resolve().parents[2] / 'bundle'}/"
MIXING = {  # operations that take tensors of both places
    aten.copy_.default,
    aten._to_copy.default,
    aten.index.Tensor,
    aten.index_put_.default,
    aten.index_put.default,
    aten._index_put_impl_.default,
    aten._foreach_copy_.default,
}
WAITING = {  # operations whose result decides what the program does, or how large it is
    aten._local_scalar_dense.default: "a number is read",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten.equal.default: "equal",
    aten._unique2.default: "unique",
    aten.unique_dim.default: "unique",
    aten.repeat_interleave.Tensor: "repeat_interleave by a tensor",
}
NO_KERNEL = {aten.detach.default, aten.alias.default, aten.empty.memory_format, aten.empty_like.default}


class DeviceMixError(RuntimeError):
    """Tensors of both places met in one operation."""


class PretendedCuda:
    """The device, to be entered like a file.

    Attributes:
        launches: kernels by the line of the package that started them.
        waits: (line, reason) of moments in which the device is waited for.
    """

    def __init__(self) -> None:
        self.launches: Counter[str] = Counter()
        self.waits: Counter[tuple[str, str]] = Counter()
        self.inside = 0  # depth of calls with a tensor of the device, whose inner tensors are made there
        self._storages: dict[int, StorageWeakRef] = {}
        self._modes = (_Functions(self), _Operations(self))

    def __enter__(self) -> PretendedCuda:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)

    def forget(self) -> None:
        """Count anew."""
        self.launches.clear()
        self.waits.clear()

    def has(self, item: Any) -> bool:
        """Whether something is a tensor on the device."""
        if not isinstance(item, torch.Tensor) or item.layout != torch.strided:
            return False
        return _storage(item)._cdata in self._storages

    def put(self, item: Any) -> Any:
        """Remember that a tensor lies on the device."""
        if isinstance(item, torch.Tensor):
            reference = StorageWeakRef(_storage(item))  # as long as it is kept, its number is nobody else's
            self._storages[reference.cdata] = reference
        return item

    def wait(self, reason: str) -> None:
        """Count a moment of waiting."""
        self.waits[_line(), reason] += 1


def _storage(item: torch.Tensor) -> torch.UntypedStorage:
    with torch._C.DisableTorchFunction():
        return item.untyped_storage()


def _tensors(item: Any) -> list[torch.Tensor]:
    """All tensors in nested arguments."""
    if isinstance(item, torch.Tensor):
        return [item]
    if isinstance(item, dict):
        item = item.values()
    elif not isinstance(item, (list, tuple)):
        return []
    return [tensor for part in item for tensor in _tensors(part)]


def _line() -> str:
    """The innermost line of the package that is running."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            return f"{frame.f_code.co_filename[len(PACKAGE) :]}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


class _Operations(TorchDispatchMode):
    """What reaches a device: kernels, with their tensors."""

    def __init__(self, cuda: PretendedCuda) -> None:
        super().__init__()
        self.cuda = cuda

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cuda, kwargs = self.cuda, kwargs or {}
        tensors = _tensors((args, kwargs))
        there = [item for item in tensors if cuda.has(item)]
        here = [item for item in tensors if item.dim() > 0 and not cuda.has(item)]
        if there and here and func not in MIXING:
            raise DeviceMixError(f"tensors on the CPU and on {DEVICE} in {func} at {_line()}")
        if func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default):
            self._index(func, args)
        elif there and func in WAITING:
            cuda.wait(WAITING[func])
        out = func(*args, **kwargs)
        on_device = bool(there) or (cuda.inside > 0 and not [item for item in tensors if item.dim() > 0])
        if func is aten.copy_.default:
            on_device = cuda.has(args[0])
            if on_device != cuda.has(args[1]) and args[1].dim() > 0:
                cuda.wait("copy between the places")
        if func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default):
            on_device = cuda.has(args[0])
        if on_device:
            if func not in NO_KERNEL and not getattr(func, "is_view", False) and func not in WAITING:
                cuda.launches[_line()] += 1
            if func is not aten._local_scalar_dense.default:
                tree_map(cuda.put, out)
        return out

    def _index(self, func: Any, args: Any) -> None:
        indices = [item for item in args[1] if item is not None]
        if not self.cuda.has(args[0]):
            if any(self.cuda.has(item) for item in indices):
                raise DeviceMixError(f"a tensor on the CPU is indexed by one on {DEVICE} at {_line()}")
        elif any(item.dtype in (torch.bool, torch.uint8) for item in indices):
            self.cuda.wait("index of booleans")
        elif any(not self.cuda.has(item) for item in indices if item.dim() > 0):
            self.cuda.wait("index from the CPU")


class _Functions(TorchFunctionMode):
    """What Python asks of tensors: where they lie, and to move them."""

    def __init__(self, cuda: PretendedCuda) -> None:
        super().__init__()
        self.cuda = cuda

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cuda, kwargs = self.cuda, dict(kwargs or {})
        first = args[0] if args else None
        if func == torch.Tensor.device.__get__:
            return DEVICE if cuda.has(first) else func(*args)
        if func == torch.Tensor.is_cuda.__get__:
            return cuda.has(first)
        if func == torch.Tensor.is_cpu.__get__:
            return not cuda.has(first)
        if func is torch.Tensor.get_device:
            return 0 if cuda.has(first) else -1
        if func in (torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda):
            return self._move(func, first, args[1:], kwargs)
        if func is torch.Tensor.pin_memory or func is torch.Tensor.record_stream:
            return first
        if func in (torch.Tensor.numpy, torch.Tensor.__array__) and cuda.has(first):
            raise TypeError(f"can't convert {DEVICE} device type tensor to numpy; at {_line()}")
        if func is torch.Tensor.tolist and cuda.has(first):
            cuda.wait("tolist")
            with torch._C.DisableTorchFunction(), _paused():
                return first.as_subclass(torch.Tensor).detach().numpy().tolist()
        if func in (F.one_hot, torch._C._nn.one_hot) and cuda.has(first):
            return self._one_hot(first, *args[1:], **kwargs)  # the CPU looks at the values first, CUDA does not
        if func is torch.Tensor.new_tensor and cuda.has(first):
            cuda.wait("copy to the device")
            return cuda.put(func(*args, **kwargs))
        wanted = kwargs.get("device")
        if wanted is not None and torch.device(wanted).type == "cuda":
            kwargs["device"] = "cpu"
            out = func(*args, **kwargs)
            if func in (torch.tensor, torch.as_tensor):
                cuda.wait("copy to the device")
            return tree_map(cuda.put, out)
        tensors = _tensors((args, kwargs))
        made_there = any(map(cuda.has, tensors)) and not any(isinstance(item, MetaTensor) for item in tensors)
        if wanted is not None or not made_there:
            outer, cuda.inside = cuda.inside, 0
        else:
            outer, cuda.inside = cuda.inside, cuda.inside + 1
        try:
            return func(*args, **kwargs)
        finally:
            cuda.inside = outer

    def _move(self, func: Any, first: torch.Tensor, args: tuple, kwargs: dict[str, Any]) -> Any:
        """A tensor moved, its type changed, or both."""
        cuda = self.cuda
        targets = [*args, *kwargs.values()]
        place = None
        if func is not torch.Tensor.to:
            place = "cpu" if func is torch.Tensor.cpu else "cuda"
        for item in targets:
            if isinstance(item, torch.Tensor):
                place = "cuda" if cuda.has(item) else "cpu"
            elif isinstance(item, (str, torch.device)):
                place = torch.device(item).type

        def plain(item: Any) -> Any:
            return torch.device("cpu") if isinstance(item, (str, torch.device)) else item

        if func is torch.Tensor.to:
            out = func(first, *map(plain, args), **{key: plain(item) for key, item in kwargs.items()})
        else:
            out = first
        was_there = cuda.has(first)
        there = was_there if place is None else place == "cuda"
        if there != was_there:
            if not (kwargs.get("non_blocking") or (len(args) > 1 and args[-1] is True)):
                cuda.wait("copy to the device" if there else "copy to the CPU")
            with _paused():
                out = out.clone()
        return cuda.put(out) if there else out

    def _one_hot(self, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
        with self:
            out = torch.zeros(*labels.shape, num_classes, dtype=torch.int64, device=DEVICE)
            return out.scatter_(-1, labels[..., None], 1)


def _paused() -> Any:
    """Operations that no device sees."""
    return torch.utils._python_dispatch._disable_current_modes()


def event() -> Any:
    """A ``torch.cuda.Event`` whose answer is there at once."""
    return SimpleNamespace(record=lambda *_: None, synchronize=lambda: None, query=lambda: True)
