"""Bring scans into the data layout: ``python -m scripts.prepare {chaos,sabs,mscmr,folder} --src DIR --dst DIR``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .command import command

Triple = tuple[float, float, float]


@dataclass
class Preparation:
    """What is to be prepared, once the whole command line is known to be right."""

    kind: str
    src: str
    dst: str
    recipe: dict[str, Any]
    num_workers: int | None
    strict: bool
    options: dict[str, Any] = field(default_factory=dict)
    label_names: dict[int, str] | None = None


def chaos(
    src: str,
    dst: str,
    spacing: Triple | None = None,
    size: int | None = None,
    clip_percent: float | None = None,
    mask_order: str = "name",
    need_label: bool = True,
    num_workers: int | None = None,
    strict: bool = False,
) -> Preparation:
    """Prepare the T2-SPIR scans of CHAOS: 1.25x1.25x7.7 mm, top 0.5% clipped, 256x256 about the center.

    Args:
        src: the unpacked archive, with Train_Sets/MR/<case>/T2SPIR/{DICOM_anon,Ground}.
        dst: folder to write imagesTr, labelsTr and dataset.json to.
        spacing: target spacing in mm, the slice axis last; False keeps the scans' own.
        size: rows and columns of the result; False keeps what there is.
        clip_percent: share in percent of the brightest voxels to clip.
        mask_order: name pairs a mask with the DICOM file of its name; ascending or descending number the slices
            along the patient.
        need_label: leave scans without a label out.
        num_workers: cases at a time.
        strict: end with an error if any case is skipped.
    """
    recipe = dict(spacing_mm=spacing, size=size, clip_percent=clip_percent, need_label=need_label)
    return Preparation("chaos", src, dst, recipe, num_workers, strict, {"mask_order": mask_order})


def sabs(
    src: str,
    dst: str,
    window: tuple[float, float] | None = None,
    trim_px: int | None = None,
    spacing_factor: Triple | None = None,
    size: int | None = None,
    need_label: bool = True,
    num_workers: int | None = None,
    strict: bool = False,
) -> Preparation:
    """Prepare Synapse multi-atlas abdomen: -125..275 HU, 32 pixels off each side, in-plane spacing x1.75, 256x256.

    Args:
        src: the unpacked archive, with img/img0001.nii.gz and label/label0001.nii.gz.
        dst: folder to write imagesTr, labelsTr and dataset.json to.
        window: lowest and highest HU; False leaves intensities as they are.
        trim_px: pixels to cut off each in-plane side.
        spacing_factor: target spacing as a multiple of the scan's own, the slice axis last; False does not resample.
        size: rows and columns of the result; False keeps what there is.
        need_label: leave scans without a label out.
        num_workers: cases at a time.
        strict: end with an error if any case is skipped.
    """
    changes = {"window": window, "trim_px": trim_px, "spacing_factor": spacing_factor, "size": size}
    recipe = dict(need_label=need_label, **changes)
    return Preparation("sabs", src, dst, recipe, num_workers, strict)


def mscmr(
    src: str,
    dst: str,
    spacing: Triple | None = None,
    size: int | None = None,
    clip_percent: float | None = None,
    need_label: bool = True,
    num_workers: int | None = None,
    strict: bool = False,
) -> Preparation:
    """Prepare the bSSFP scans of MS-CMRSeg: 1.25x1.25x8 mm, top 0.5% clipped, 256x256 about the center.

    Labels: 1 left ventricle (500 in the archive), 2 myocardium (200), 3 right ventricle (600).

    Args:
        src: the unpacked archive, with patientN_C0.nii.gz and patientN_C0_manual.nii.gz in any folders.
        dst: folder to write imagesTr, labelsTr and dataset.json to.
        spacing: target spacing in mm, the slice axis last; False keeps the scans' own.
        size: rows and columns of the result; False keeps what there is.
        clip_percent: share in percent of the brightest voxels to clip.
        need_label: leave scans without a label out.
        num_workers: cases at a time.
        strict: end with an error if any case is skipped.
    """
    recipe = dict(spacing_mm=spacing, size=size, clip_percent=clip_percent, need_label=need_label)
    return Preparation("mscmr", src, dst, recipe, num_workers, strict)


def folder(
    src: str,
    dst: str,
    spacing: Triple | None = None,
    size: int | None = None,
    window: tuple[float, float] | None = None,
    clip_percent: float | None = None,
    modality: str | None = None,
    label_names: dict[int, str] | None = None,
    image: str | None = None,
    label: str | None = None,
    channel: int | None = None,
    need_label: bool = False,
    ignore_label_geometry: bool = False,
    num_workers: int | None = None,
    strict: bool = False,
) -> Preparation:
    """Prepare any folder of scans or DICOM series; voxels stay as they are unless you ask for a change.

    Read are NIfTI, FreeSurfer's .mgz, Analyze, and with SimpleITK .nrrd, .mha and .mhd. Labels are found by their names
    (a.nii.gz and a_label.nii.gz or a_seg.nii.gz, img1 and label1), in a folder of their own (labels, masks, ...), or by
    their voxels; several masks of a scan, as TotalSegmentator writes them, become one label map. Folders of nnU-Net,
    the Medical Segmentation Decathlon, MONAI Label, BIDS, FreeSurfer and BraTS are understood. The end says which label
    went to which scan, what was left aside and why, and what to type next.

    Args:
        src: the folder.
        dst: folder to write imagesTr, labelsTr and dataset.json to.
        spacing: resample to this spacing in mm, the slice axis last, for example 1.25,1.25,5.
        size: crop or pad to this many rows and columns.
        window: clip to this range, for example --window=-125,275 for abdominal CT.
        clip_percent: share in percent of the brightest voxels to clip.
        modality: CT or MR, if the guess is wrong.
        label_names: names of label values, for example "{1: 'liver', 2: 'spleen'}".
        image: where a patient has several images, take those with this word in their names, for example t2.
        label: where a scan has several labels, take those with this word in their names, for example manual.
        channel: which volume of 4D files, counted from 0.
        need_label: leave scans without a label out.
        ignore_label_geometry: take a label's voxels as they lie, whatever its header says.
        num_workers: cases at a time.
        strict: end with an error if any case is skipped.
    """
    changes = {"spacing_mm": spacing, "size": size, "window": window, "clip_percent": clip_percent}
    recipe = dict(modality=modality, need_label=need_label, **changes)
    names = None if label_names is None else _names(label_names)
    options: dict[str, Any] = {"channel": channel, "ignore_label_geometry": ignore_label_geometry}
    options |= {key: None if word is None else str(word) for key, word in (("image", image), ("label", label))}
    return Preparation("folder", src, dst, recipe, num_workers, strict, options, names)


def _names(label_names: Any) -> dict[int, str]:
    if not isinstance(label_names, dict) or not all(isinstance(key, int) and key > 0 for key in label_names):
        raise ValueError(f"label_names must map values to names, \"{{1: 'liver'}}\", got {label_names!r}")
    return {key: str(name) for key, name in label_names.items()}


def _run(result: Preparation) -> None:
    """Prepare the data set and say what became of it."""
    # imported here, since it takes seconds and --help shall answer at once
    from bundle.data.prepare import Options, format_summary, make_recipe, prepare_dataset

    summary = prepare_dataset(
        result.kind,
        str(result.src),
        str(result.dst),
        make_recipe(result.kind, **result.recipe),
        Options(**result.options),
        result.label_names,
        result.num_workers,
    )
    print(format_summary(summary))
    skipped = len(summary["skipped"])
    if not summary["cases"]:
        raise ValueError(f"nothing was prepared, all {skipped} cases are bad")
    if result.strict and skipped:
        raise ValueError(f"{skipped} cases were skipped")


def main(arguments: Sequence[str] | None = None, name: str = "scripts.prepare") -> None:
    """Run the command line; bad input ends with one line and a non-zero status."""
    commands = {"chaos": chaos, "sabs": sabs, "mscmr": mscmr, "folder": folder}
    command(commands, name, arguments, finish=_run)


if __name__ == "__main__":
    main()
