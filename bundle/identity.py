"""What tells whether a computation would give the same again: its settings, its files, the code and the versions."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Mapping
from enum import Enum
from functools import lru_cache, partial
from importlib import metadata
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from monai.transforms import Transform

ROOT = Path(__file__).resolve().parent


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # built into the environment without a record
            continue
    return found


@lru_cache(maxsize=1)
def code_digest() -> str:
    """Changes with the code of this package."""
    digest = hashlib.sha1()
    for path in sorted(ROOT.rglob("*.py")):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()


@lru_cache(maxsize=1024)
def module_digest(name: str) -> str:
    """Changes with the code of a module that was imported; empty if it has no file."""
    file = getattr(sys.modules.get(name), "__file__", None)
    return file_digest(file) if file else ""


def file_state(path: str | os.PathLike) -> list[Any]:
    """What changes when a file does: its name, size in bytes and time of change in ns."""
    status = os.stat(path)
    return [os.path.basename(path), status.st_size, status.st_mtime_ns]


def file_digest(path: str | os.PathLike) -> str:
    """Digest of the bytes of a file, which a process reads again only when size or time of change are others."""
    _, size, changed = file_state(path)
    return _file_digest(os.fspath(path), size, changed)


@lru_cache(maxsize=4096)
def _file_digest(path: str, _size: int, _changed: int) -> str:
    return hashlib.sha1(Path(path).read_bytes()).hexdigest()


def describe(item: Any, above: tuple[int, ...] = ()) -> Any:
    """Plain nested values that change with what an object does, all the way down.

    These are its class, the code of that class's module, and its public attributes. Transforms inside of a transform
    count as public. Weights are left out, and so is what has no attributes, such as locks and random generators.
    """
    if item is None or isinstance(item, (bool, int, float, str)):
        return item
    if id(item) in above:
        return "above"
    above = (*above, id(item))
    if isinstance(item, Mapping):
        return {str(key): describe(value, above) for key, value in item.items()}
    if isinstance(item, (list, tuple)):
        return [describe(value, above) for value in item]
    if isinstance(item, (set, frozenset)):
        return sorted(str(value) for value in item)
    if isinstance(item, (np.ndarray, np.generic)):
        return [str(item.dtype), np.asarray(item).tolist()]
    if isinstance(item, torch.Tensor):
        return [str(item.dtype), item.tolist()]
    if isinstance(item, MethodType):
        return [item.__func__.__qualname__, describe(item.__self__, above)]
    if isinstance(item, FunctionType):
        code = item.__code__
        values = [value for value in code.co_consts if value is None or isinstance(value, (bool, int, float, str))]
        return [item.__qualname__, module_digest(item.__module__), code.co_code.hex(), list(code.co_names), values]
    if isinstance(item, partial):
        return [describe(item.func, above), describe(item.args, above), describe(item.keywords, above)]
    if isinstance(item, type):
        return [str(item), module_digest(item.__module__)]
    if isinstance(item, (Enum, os.PathLike, torch.dtype, torch.device, np.dtype)):
        return str(item)
    name = f"{type(item).__module__}.{type(item).__qualname__}"
    if isinstance(item, torch.jit.ScriptModule):
        return name  # all of it is in the file of its weights
    inside = getattr(item, "__dict__", {}).items()
    public = {key: value for key, value in inside if not key.startswith("_") or isinstance(value, Transform)}
    for changing in ("training", "filenames"):  # with use: of networks, of MONAI's readers
        public.pop(changing, None)
    if isinstance(item, torch.nn.Module):
        public |= dict(item.named_children())
    described = {key: describe(value, above) for key, value in sorted(public.items())}
    return [name, module_digest(type(item).__module__), described]
