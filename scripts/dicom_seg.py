"""Results as DICOM segmentations: ``python -m scripts.dicom_seg RESULT [SERIES [OUT]] [--dataset_dir DIR]``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .command import command


def dicom_seg(
    result: str,
    series: str | None = None,
    out: str | None = None,
    dataset_dir: str | None = None,
    label_names: dict[int, str] | None = None,
) -> None:
    """Write a label map as a DICOM segmentation, for the PACS, OHIF or 3D Slicer.

    Args:
        result: a label map, such as results/a/a_seg.nii.gz, or the output folder of a run.
        series: folder of the DICOM series that was segmented; not needed where dataset_dir was prepared from DICOM.
        out: the file to write; a.dcm beside a.nii.gz if not given.
        dataset_dir: the data set that scripts.prepare made, which knows the series and the names of the labels.
        label_names: names of label values, for example "{1: 'liver', 2: 'spleen'}", over those of dataset_dir.
    """
    # imported here, since it takes seconds and --help shall answer at once
    from bundle.data.datalist import label_names as read_names
    from bundle.data.dicom_seg import read_label_map, write_case_seg
    from bundle.data.label_table import names_beside
    from bundle.visualize import label_colors

    files = label_files(Path(str(result)))
    if series is None and dataset_dir is None:
        raise ValueError("give the folder of the DICOM series, or --dataset_dir, a data set prepared from DICOM")
    if out is not None and len(files) > 1:
        raise ValueError(f"{result}: holds {len(files)} results; out is for one, leave it out")
    given = {} if dataset_dir is None else read_names(str(dataset_dir))
    for file in files:
        names = {**names_beside(file), **given, **(label_names or {})}
        values = {*names, *read_label_map(file).array.ravel().tolist()}
        written = write_case_seg(file, dataset_dir, names, label_colors(values), series, out)
        if written is None:
            raise ValueError(f"{file}: {dataset_dir} was not prepared from DICOM; give the folder of the series")
        path, titles = written
        print(f"{path}: {', '.join(titles)}" if titles else f"{file}: nothing is labelled, no file is written")


def label_files(result: Path) -> list[Path]:
    """The label maps of a run's folder, or the one that is given.

    Raises:
        FileNotFoundError, ValueError: if there is none.
    """
    from bundle.visualize.report import find_runs

    if result.is_file():
        return [result]
    if not result.is_dir():
        raise FileNotFoundError(f"{result}: no such label map or folder of results")
    return [path for run in find_runs(result) for path in run.predictions.values()]


def main(arguments: Sequence[str] | None = None, name: str = "scripts.dicom_seg") -> None:
    """Run the command line; bad input ends with one line and a non-zero status."""
    command(dicom_seg, name, arguments)


if __name__ == "__main__":
    main()
