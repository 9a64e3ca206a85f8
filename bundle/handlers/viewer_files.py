"""What viewers want beside the label maps: tables of names and colors, and DICOM segmentations."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor

from ..data.dicom_seg import write_case_seg
from ..data.label_table import write_label_tables
from ..keys import PRED
from ..visualize import label_colors
from .cases import case_file, check_keys, is_first, iteration_cases, scan_name

logger = logging.getLogger(__name__)


class ViewerFiles:
    """Writes ``labels_itksnap.txt``, ``labels.ctbl`` and, for scans of DICOM, ``<case>/<case>_seg.dcm``.

    Where ``dataset_dir`` was prepared from DICOM, its ``dicom.json`` says which series a scan is; the segmentation lies
    on the slices of that series. One that cannot be written is reported in the log and does not stop the run.

    Args:
        output_dir: folder of the predictions.
        names: names of the label values; without any there are no tables.
        dataset_dir: the data set of the scans.
        dicom_seg: whether to write DICOM segmentations.
        pred_key: key of the label map.
        postfix: end of the label maps' names.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        names: Mapping[int, str] | None = None,
        dataset_dir: str | os.PathLike | None = None,
        dicom_seg: bool = True,
        pred_key: str = PRED,
        postfix: str = "seg",
    ) -> None:
        self.output_dir = Path(output_dir)
        self.names = dict(names or {})
        self.dataset_dir = None if dataset_dir is None else Path(dataset_dir)
        self.dicom_seg = dicom_seg
        self.pred_key = pred_key
        self.postfix = postfix

    def attach(self, engine: Engine) -> None:
        """Listen to an evaluator whose outputs are decollated, postprocessed and saved."""
        engine.add_event_handler(Events.STARTED, lambda _: self.write_tables())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.save)

    def write_tables(self) -> Sequence[Path]:
        """Write the tables; the first of several processes does so."""
        if not self.names or not is_first():
            return []
        return write_label_tables(self.output_dir / "labels", self.names, label_colors(self.names))

    def save(self, engine: Engine) -> None:
        """Write the segmentations of an iteration."""
        for case in iteration_cases(engine):
            check_keys(case, [self.pred_key], "ViewerFiles")
            if self.dicom_seg and self._is_of_data_set(case[self.pred_key]):
                self.write(case[self.pred_key])

    def _is_of_data_set(self, prediction: MetaTensor) -> bool:
        """Whether a scan lies in the data set, whose ``dicom.json`` knows scans by their names."""
        if self.dataset_dir is None or not (self.dataset_dir / "dicom.json").is_file():
            return False
        file = Path(str(prediction.meta.get("filename_or_obj", "")))
        return file.resolve().parent.parent == self.dataset_dir.resolve()

    def write(self, prediction: MetaTensor) -> Path | None:
        """Write the segmentation of one case; ``None`` if the scan was no DICOM or it could not be written."""
        label_file = case_file(self.output_dir, prediction, f"{self.postfix}.nii.gz")
        values = {*self.names, *map(int, prediction.as_subclass(torch.Tensor).unique().tolist())}
        logging.getLogger("highdicom").setLevel(logging.WARNING)  # it tells of every attribute that it copies
        try:
            written = write_case_seg(label_file, self.dataset_dir, self.names, label_colors(values))
        except Exception as error:  # highdicom raises whatever an odd header leads to; the label map is there
            text = " ".join(str(error).split())
            logger.warning(f"{scan_name(prediction)}: no DICOM segmentation ({type(error).__name__}: {text})")
            return None
        return written[0] if written and written[1] else None
