"""Modules that are imported when they are first used, so that ``--help`` answers at once."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class OnDemand:
    """Stands for a module whose import takes seconds.

    Args:
        name: the module's full name.

    Example::

        torch = OnDemand("torch")
        torch.zeros(3)  # imports it
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        """An attribute of the module."""
        return getattr(import_module(self._name), attribute)
