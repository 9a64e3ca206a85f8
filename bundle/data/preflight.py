"""Checks before any long work: what would fail later fails here, in one line."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping, MutableSequence, Sequence
from pathlib import Path
from typing import Any

from ..atomic import replacing
from ..keys import IMAGE, LABEL
from ..transforms.spatial import count_slices
from .datalist import check_dataset, label_names, make_datalist, typed_path
from .fingerprint import Finding, check_entries, check_folder, check_label_file, check_names, read_fingerprint
from .support import VALUES, check_wanted, resolve_support, shown_values

LOG = logging.getLogger(__name__)


def check_run(
    queries: MutableSequence[Mapping[str, Any]],
    support: Sequence[Mapping[str, Any]],
    dataset_dir: str | os.PathLike | None = None,
    weights: str | os.PathLike | None = None,
    output_dir: str | os.PathLike | None = None,
    strict: bool | None = None,
    num_workers: int | None = None,
    pseudo_supports: MutableSequence[Mapping[str, Any]] | None = None,
    labels: Sequence[int] | None = None,
    num_supports: int | None = None,
    describe: Callable[[Mapping[str, Any]], None] | None = None,
    memory: Callable[[str, Sequence[int], int, int], None] | None = None,
) -> None:
    """Check everything that an inference needs without running it, and leave bad queries out; see :func:`leave_out`.

    A bad support always stops, and so does a run of which no query is left.

    Args:
        queries: ``[{"image": path}, …]``, changed in place; labels are checked where an entry has one.
        support: ``[{"image": path, "label": path}, …]``.
        dataset_dir: folder to which paths of the support may be relative; its names are checked too.
        weights: file with the network's weights.
        output_dir: folder of the results, which must be writable and have space for them.
        strict: stop at anything that is wrong. ``None`` stops at a bad query if the queries have labels: the figures
            of an evaluation must not miss a case.
        num_workers: threads, see :func:`check_entries`.
        pseudo_supports: ``[{"image": path}, …]`` that pass the support's labels on, changed in place as the queries
            are.
        labels: values to segment, each of which a support must show unless the queries have labels; ``None`` for all.
        num_supports: how many supports answer for a query, for the log; ``None`` for all.
        describe: says what each support shows, see :class:`SupportCheck`; ``None`` for nothing.
        memory: raises for a query that memory does not suffice for, see :class:`MemoryCheck`; ``None`` for nothing.

    Raises:
        ValueError, OSError: naming the file and the remedy.
    """
    if weights is not None and not os.path.isfile(weights):
        hint = "; its folder must not have # in its name" if os.path.isfile(typed_path(weights)) else ""
        raise FileNotFoundError(f"{weights}: no such weights{hint}; train first, or set ckpt_path to a model.pt")
    dataset_dir = typed_path(dataset_dir) if dataset_dir is not None else None
    if dataset_dir is not None and not (support and queries):
        check_dataset(dataset_dir)
    queries[:] = [{**query, IMAGE: typed_path(query[IMAGE])} for query in queries]
    names = label_names(dataset_dir) if dataset_dir is not None else {}
    known, findings = {}, []
    evaluates = any(query.get(LABEL) is not None for query in queries)
    entries = resolve_support(support, dataset_dir)
    shown = []
    for entry in entries:
        inside = dataset_dir is not None and Path(dataset_dir).resolve() in Path(entry[LABEL]).resolve().parents
        check_label_file(entry[LABEL], entry[IMAGE], allow_empty=len(entries) > 1)
        shown.append(shown_values(entry))
        if inside and VALUES not in entry:
            findings += check_names(entry[LABEL], names)
        if evaluates:  # else a scan may well be segmented by itself
            known[read_fingerprint(entry[IMAGE]).digest] = f"the support {entry[IMAGE]}"
    if entries and not any(shown):
        raise ValueError(f"{entries[0][LABEL]}: has no foreground, nor have the labels of the other supports")
    if not evaluates:
        check_wanted(labels, shown, names)
    answering = [e for e, values in zip(entries, shown) if values and (labels is None or set(labels) & set(values))]
    if len(entries) > 1:
        LOG.info(describe_choice(entries, answering, num_supports))
    if not queries:
        labelled = (
            dataset_dir is not None and not (Path(dataset_dir) / "imagesTs").is_dir() and make_datalist(dataset_dir)
        )
        if labelled:
            raise ValueError(
                f"{dataset_dir}: every scan is a support; put those to segment into imagesTs, or set datalist"
            )
        raise ValueError(f"{dataset_dir}: no query images; put them into imagesTs or imagesTr, or set datalist")
    findings += check_entries(queries, names=names, known=known, num_workers=num_workers, progress=True)
    if memory is not None:
        count = len(labels) if labels is not None else len({value for values in shown for value in values})
        findings += _memory_findings(queries, findings, memory, count)
    if strict is None:
        strict = evaluates and any(finding.index is not None for finding in findings)
    leave_out(queries, findings + _folder_findings(dataset_dir), strict)
    if pseudo_supports:
        leave_out(pseudo_supports, check_entries(pseudo_supports, num_workers=num_workers), strict)
    if describe is not None:
        for entry in answering:
            describe(entry)
    if output_dir is not None:
        voxels = (read_fingerprint(query[IMAGE]).shape for query in queries)
        check_output(output_dir, sum(x * y * z for x, y, z in voxels))  # one byte a voxel, before compression


def _memory_findings(
    queries: Sequence[Mapping[str, Any]],
    findings: Sequence[Finding],
    check: Callable[[str, Sequence[int], int, int], None],
    num_labels: int,
) -> list[Finding]:
    """Findings for the good queries that memory does not suffice for."""
    bad = {finding.index for finding in findings}
    found = []
    for index, query in enumerate(queries):
        if index not in bad:
            scan = read_fingerprint(query[IMAGE])
            try:
                check(os.fspath(query[IMAGE]), scan.shape, count_slices(scan.shape, scan.affine), num_labels)
            except ValueError as error:
                found.append(Finding(str(error), index))
    return found


def describe_choice(
    entries: Sequence[Mapping[str, Any]], answering: Sequence[Mapping[str, Any]], num_supports: int | None
) -> str:
    """One line about which of several labelled scans tell what to segment.

    Args:
        entries: all of them.
        answering: those that show a wanted label.
        num_supports: how many of these answer for a query; ``None`` for all.
    """
    names = [os.path.basename(entry[IMAGE]) for entry in answering]
    listed = ", ".join(names if len(names) <= 5 else [*names[:4], f"… {names[-1]}"])
    line = f"support: {len(names)} labelled scans, {listed}"
    if num_supports is not None and num_supports < len(names):
        line += f"; for each query and label, the {num_supports} most similar to it (num_supports)"
    if len(names) < len(entries):
        line += f"; {len(entries) - len(names)} more show no wanted label"
    return line


def check_training(
    images: Sequence[Mapping[str, Any]],
    dataset_dir: str | os.PathLike | None = None,
    folders: Sequence[str | os.PathLike] = (),
    with_labels: bool = False,
    strict: bool = False,
    num_workers: int | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> list[Mapping[str, Any]]:
    """Check the scans of a training and return those that are good; see :func:`leave_out`.

    Args:
        images: ``[{"image": path, "label": path}, …]``.
        dataset_dir: folder of the data set, whose names are checked too.
        folders: folders that must be writable.
        with_labels: whether the training reads labels.
        strict: stop at anything that is wrong.
        num_workers: threads, see :func:`check_entries`.
        cache_dir: folder that remembers which files were good, see :func:`check_entries`.

    Raises:
        ValueError, OSError: naming the file and the remedy.
    """
    for folder in folders:
        check_output(folder, 0)
    good = list(images)
    findings = check_entries(good, with_labels, num_workers=num_workers, progress=True, cache_dir=cache_dir)
    if good:  # without any, the training says what to do
        leave_out(good, findings + (_folder_findings(dataset_dir) if with_labels else []), strict)
    return good


def leave_out(
    entries: MutableSequence[Any],
    findings: Sequence[Finding],
    strict: bool = False,
    say: Callable[[str], None] = LOG.warning,
) -> None:
    """Say what was found, a line each, and take bad entries out of the list; what is raised is not said besides.

    Args:
        entries: the list that was checked, changed in place.
        findings: what is wrong.
        strict: stop at anything that is wrong.
        say: receives the lines; by default the log.

    Raises:
        ValueError: if ``strict`` and something is wrong, or no entry is left; with the first line.
    """
    bad = {finding.index for finding in findings if finding.index is not None}
    stop = (strict and len(findings) > 0) or len(bad) == len(entries)
    first = next((f for f in findings if f.index is not None), findings[0]) if stop else None
    for finding in findings:
        if finding is not first:
            say(("" if stop or finding.index is None else "left out: ") + finding.line)
    if first is not None:
        more = f" ({len(findings) - 1} more above)" if len(findings) > 1 else ""
        raise ValueError(first.line + more)
    entries[:] = [entry for index, entry in enumerate(entries) if index not in bad]


def check_output(folder: str | os.PathLike, needed_bytes: int) -> None:
    """Raise unless a folder can be written to and has space.

    Raises:
        OSError: naming the folder and the remedy.
    """
    if "::" in os.fspath(folder):
        typed = os.fspath(folder).replace("::", "#")
        raise OSError(f"{typed}: a config cannot hold # in the name of an output folder; choose another output folder")
    probe = Path(folder) / ".writable"
    try:
        with replacing(probe) as temporary:
            temporary.write_bytes(b"0")
        probe.unlink(missing_ok=True)
    except OSError as error:
        cause = error.__context__ or error
        reason = getattr(cause, "strerror", None) or str(cause)
        raise OSError(f"{folder}: cannot be written to ({reason}); choose another output folder") from None
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise OSError(
            f"{folder}: {free / 1e6:.0f} MB are free, up to {needed_bytes / 1e6:.0f} MB are needed; free some space or "
            "choose another output folder"
        )


def _folder_findings(dataset_dir: str | os.PathLike | None) -> list[Finding]:
    return [] if dataset_dir is None else check_folder(dataset_dir)
