"""The cases of an evaluator's iteration, and the files beside their label maps."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from ignite.engine import Engine
from monai.data import MetaTensor

from ..data.datalist import case_name


def is_first() -> bool:
    """Whether this is the first of several processes, or the only one."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def iteration_cases(engine: Engine) -> list[dict[str, Any]]:
    """What postprocessing made of each case, and what it left untouched in the batch; outputs are decollated."""
    return [{**batch, **output} for batch, output in zip(engine.state.batch, engine.state.output)]


def check_keys(case: Mapping[str, Any], keys: Sequence[str], owner: str) -> None:
    """Raise a KeyError in the name of ``owner`` if a case lacks one of the keys."""
    missing = [key for key in keys if key not in case]
    if missing:
        raise KeyError(f"{owner}: {missing} absent, there are {sorted(map(str, case))}")


def scan_name(prediction: MetaTensor) -> str:
    """Name of the case that a prediction belongs to: that of the scan's file."""
    return case_name(str(prediction.meta.get("filename_or_obj", "case")))


def case_file(output_dir: str | os.PathLike, prediction: MetaTensor, ending: str) -> Path:
    """A file beside a label map: ``output_dir/<case>/<case>_<ending>``."""
    case = scan_name(prediction)
    return Path(output_dir) / case / f"{case}_{ending}"
