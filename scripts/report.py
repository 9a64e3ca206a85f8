"""One self-contained HTML page about a run: ``python -m scripts.report RUN_DIR [--dataset_dir DIR]``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from bundle.atomic import write_text

from .command import command
from .on_demand import OnDemand

record = OnDemand("bundle.handlers.run_record")
pages = OnDemand("bundle.visualize.report")
terminal = OnDemand("bundle.terminal")


def report(
    run_dir: str,
    dataset_dir: str | None = None,
    output: str | None = None,
    title: str | None = None,
    max_pictures: int = 400,
) -> None:
    """Write one HTML page about a run, or about several, that opens from disk and needs no network.

    Args:
        run_dir: output folder of an evaluation, an inference or a training, or a folder of several of them.
        dataset_dir: folder of the scans and their labels; by default the one that the run recorded.
        output: the page to write; report.html in run_dir if not given.
        title: heading of the page.
        max_pictures: slices in the page at most, shared by its cases, at least 6 each.
    """
    if dataset_dir is not None and not os.path.isdir(str(dataset_dir)):
        raise FileNotFoundError(f"{dataset_dir}: no such data set; check dataset_dir")
    runs = pages.find_runs(str(run_dir))
    bar = lambda cases: terminal.progress(cases, len(cases), "pictures", "case")  # noqa: E731
    page = pages.build_page(runs, dataset_dir, title, record.command_line(), record.versions(), max_pictures, bar)
    target = Path(output) if output else Path(str(run_dir)) / "report.html"
    write_text(target, page)
    print(target)


def main(arguments: Sequence[str] | None = None, name: str = "scripts.report") -> None:
    """Run the command line; bad input ends with one line and a non-zero status."""
    warnings.filterwarnings("ignore")
    command(report, name, arguments)


if __name__ == "__main__":
    main()
