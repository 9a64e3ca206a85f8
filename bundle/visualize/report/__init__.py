"""One self-contained HTML page about a run."""

from .page import build_page
from .runs import Run, find_runs, read_run

__all__ = ["Run", "build_page", "find_runs", "read_run"]
