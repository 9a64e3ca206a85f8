"""Cases of a folder without a layout of its own: scans and labels are told by their names and by their voxels."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from ..label_table import SUFFIXES as TABLE_SUFFIXES
from .dicom_frames import HAS_PYDICOM, Header, dicom_files, is_dicom
from .dicom_series import Series, find_series
from .formats import file_stem, is_companion, natural_key, scan_files, scan_suffix, why_not_read
from .look import Look, look_at
from .names import COMPUTED_WORDS, Name, case_title, contains, is_structure, read_name, split_words, structure_name
from .source import Case, Found, Options
from .structures import Labelled, number_structures

FREESURFER_IMAGES = ("t1", "orig", "nu", "norm", "brain")  # of one scan, the most useful first
FREESURFER_LABELS = ("aseg", "aparc+aseg")
MEDIUM_FOLDER = re.compile(r"(?i)(pa|pat|st|stu|study|se|ser|series)?[\d.]+")  # tells nothing of what is in it


@dataclass(frozen=True)
class Item:
    """A file that may be a scan or a label, or a DICOM series.

    Attributes:
        path: where it is; the folder of a series.
        relative: the same below the source; with the title of a series that has others beside it.
        name: what its name says.
        look: what its voxels say.
        series: the series.
        header: of a DICOM label.
    """

    path: Path
    relative: Path
    name: Name
    look: Look = Look()
    series: Series | None = None
    header: Header | None = None

    @property
    def aliases(self) -> list[tuple[str, ...]]:
        """What else a series may be called for: its patient, study or series."""
        if self.series is None:
            return []
        header = self.series.header
        names = [header.series, header.study, f"{header.patient} {header.number}" * bool(header.number), header.patient]
        return [words for words in (split_words(_word(name)) for name in names) if words]


@dataclass(frozen=True)
class Pair:
    """A label that belongs to an image.

    Attributes:
        label: the label.
        structure: what its name says besides the image's; ``""`` if it says no more.
        shared: whether it belongs to several images.
    """

    label: Item
    structure: str
    shared: bool


def find_plain_cases(src: Path, exclude: Path | None, options: Options, progress: bool = False) -> Found:
    """Find scans and labels wherever they lie.

    A scan and its label agree in the words of their paths without those that stand for image and label:
    ``img/img01.nii.gz`` and ``label/label01.nii.gz``, ``a.nii.gz`` and ``a_seg.nii.gz``, ``p1/DICOM/*`` and
    ``p1/mask.nii.gz``. A label may also be one of several structures of a scan, or belong to several scans of a
    patient. Whatever has the voxels of a label is never taken for a scan.

    Raises:
        ValueError: if no name has the word that the options ask for.
    """
    aside: list[tuple[str, str]] = []
    items, cases = inventory(src, exclude, options, aside, progress)
    items = _look_at_all(items, progress)
    images, labels = _sort_out(items, aside)
    images = _chosen(images, options.image, "--image", "image", aside)
    labels = _chosen(labels, options.label, "--label", "label", aside)
    pairs, notes = _pair(images, labels, aside)
    labelled = []
    for image, title in zip(images, _titles(src, images, [case.name for case in cases])):
        expected = image.path.with_name(_expected(image))
        case = Case(title, image.path, expected_label=expected, series=image.series)
        labelled.append(Labelled(case, _choose_labels(image, pairs[image.relative], aside)))
    labelled += [
        Labelled(replace(case, label=None), [(case.label, "", look_at(case.label))])
        for case in cases
        if case.label is not None
    ]
    cases = [case for case in cases if case.label is None]
    cases += [item.case for item in labelled if not item.labels]
    numbered, names = number_structures([item for item in labelled if item.labels], notes)
    return Found(sorted(cases + numbered, key=lambda c: natural_key(c.name)), names, notes, "plain folder", aside)


def _titles(src: Path, images: Sequence[Item], taken: Sequence[str]) -> list[str]:
    """A name for each case, unlike all others also where letter case does not count."""
    titles = [_medium_title(src, i) or case_title(i.relative) or case_title(Path(src.resolve().name)) for i in images]
    often = Counter(title.lower() for title in [*titles, *taken])
    whole = [re.sub(r"[^\w.-]+", "_", "_".join([*i.relative.parts[:-1], file_stem(i.relative)])) for i in images]
    titles = [title if often[title.lower()] == 1 else long or title for title, long in zip(titles, whole)]
    counts = Counter(name.lower() for name in taken)
    for index, title in enumerate(titles):
        counts[title.lower()] += 1
        if counts[title.lower()] > 1:
            titles[index] = f"{title}_{counts[title.lower()]}"
    return titles


def _medium_title(src: Path, item: Item) -> str:
    """Patient, number and description of a series whose folders are numbered as on a medium, ``PA000/ST000/SE001``."""
    folders = item.path.relative_to(src).parts
    if item.series is None or not folders or not all(map(MEDIUM_FOLDER.fullmatch, folders)):
        return ""
    return "_".join(word for word in (_word(item.series.header.patient), item.series.title) if word)


def holds_scans(src: Path) -> bool:
    """Whether there is anything below a folder that is no label by its name."""
    items, cases = inventory(src, None, Options(), [])
    return bool(cases) or any(item.name.says != "label" for item in items)


def inventory(
    src: Path, exclude: Path | None, options: Options, aside: list[tuple[str, str]], progress: bool = False
) -> tuple[list[Item], list[Case]]:
    """Everything in a folder that may be a scan or a label, besides the cases of FreeSurfer's folders."""
    items: list[Item] = []
    cases: list[Case] = []
    dicom: list[Path] = []
    for folder in sorted([src, *(p for p in src.rglob("*") if p.is_dir())], key=natural_key):
        parts = folder.relative_to(src).parts
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
        if hidden or (exclude is not None and exclude in (folder, *folder.parents)):
            continue
        scans = scan_files(folder)
        subject = _freesurfer(src, folder, scans, options, aside)
        if subject is not None:
            cases.append(subject)
            continue
        rest = [p for p in folder.iterdir() if p.is_file() and p not in scans and not p.name.startswith(".")]
        dicom += dicom_files(folder)
        rest = [p for p in rest if not (is_dicom(p) or _is_text(p))]
        aside += [(str(p.relative_to(src)), why_not_read(p)) for p in sorted(rest, key=natural_key)]
        items += [Item(p, p.relative_to(src), read_name(p.relative_to(src))) for p in scans]
    return items + dicom_items(src, dicom, aside, progress), cases


def dicom_items(src: Path, files: Sequence[Path], aside: list[tuple[str, str]], progress: bool = False) -> list[Item]:
    """The series and labels in DICOM files; without pydicom their folders, which are named when they are read."""
    if not HAS_PYDICOM:
        folders = sorted({path.parent for path in files}, key=natural_key)
        return [Item(folder, folder.relative_to(src), read_name(folder.relative_to(src))) for folder in folders]
    found = find_series(files, progress and bool(files))
    aside += [(str(path.relative_to(src)), reason) for path, reason in found.aside]
    items: list[Item] = []
    fellows: dict[Path, list[Series]] = defaultdict(list)
    for series in found.series:
        fellows[series.folder].append(series)
    for folder, inside in fellows.items():
        relative = folder.relative_to(src)
        if len(inside) == 1:
            items.append(Item(folder, relative, read_name(relative), series=inside[0]))
            continue
        patients = len({series.header.patient for series in inside}) > 1 or not relative.parts
        titles = [
            "_".join(word for word in (_word(series.header.patient) * patients, series.title) if word)
            for series in inside
        ]
        for number, (series, title) in enumerate(zip(inside, titles), 1):
            title = title if title and titles.count(title) == 1 else f"{title or 'series'}_{number}"
            items.append(Item(folder, relative / title, read_name(relative / title), series=series))
    for header in found.labels:
        relative = header.path.relative_to(src)
        name = replace(read_name(relative.with_suffix("")), says="label")
        items.append(Item(header.path, relative, name, header=header))
    return items


def _word(text: str) -> str:
    """A text as a part of a file name."""
    return re.sub(r"[^\w-]+", "_", text).strip("_")


def _is_text(path: Path) -> bool:
    """Whether a file is part of a volume or a list beside the scans, of which nobody expects a scan."""
    if path.name.upper() == "DICOMDIR":
        return True
    suffixes = (".json", ".txt", ".md", ".csv", ".tsv", ".bval", ".bvec", *TABLE_SUFFIXES)
    return is_companion(path) or path.suffix.lower() in suffixes


def _freesurfer(
    src: Path, folder: Path, scans: Sequence[Path], options: Options, aside: list[tuple[str, str]]
) -> Case | None:
    """The case of a folder of FreeSurfer, which holds one scan in many states and several label maps."""
    by_stem = {file_stem(path).lower(): path for path in scans if scan_suffix(path) in (".mgz", ".nii.gz", ".nii")}
    image = _preferred(by_stem, FREESURFER_IMAGES, options.image)
    label = _preferred(by_stem, FREESURFER_LABELS, options.label)
    states = sum(stem in by_stem for stem in FREESURFER_IMAGES)
    if image is None or states + 2 * (label is not None) < 3 or (options.label and label is None):
        return None
    parts = [part for part in folder.resolve().parts if part.lower() != "mri"]
    inside = [part for part in folder.relative_to(src).parts if part.lower() != "mri"]
    for path in scans:
        if path not in (image, label):
            chosen = " with ".join(taken.name for taken in (image, label) if taken is not None)
            reason = f"FreeSurfer: {chosen} is taken; choose another with --image or --label"
            aside.append((str(path.relative_to(src)), reason))
    return Case("_".join(inside) or parts[-1], image, label)


def _preferred(by_stem: dict[str, Path], order: Sequence[str], wanted: str | None) -> Path | None:
    return next((by_stem[stem] for stem in ([wanted.lower()] if wanted else order) if stem in by_stem), None)


def _look_at_all(items: Sequence[Item], progress: bool) -> list[Item]:
    """Look at every file, several at a time."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        looks = pool.map(lambda item: look_at(item.path, item.series), items)
        looks = tqdm(looks, "look", len(items), unit="file", disable=not progress, file=sys.stderr)
        return [replace(item, look=look) for item, look in zip(items, looks)]


def _sort_out(items: Sequence[Item], aside: list[tuple[str, str]]) -> tuple[list[Item], list[Item]]:
    """Images and labels; what the name and the voxels contradict is left aside."""
    images, labels = [], []
    for item in items:
        kind, says, text = item.look.kind, item.name.says, str(item.relative)
        if item.path.is_dir():
            if says == "label":
                aside.append((text, "DICOM among labels is not read; save the label as NIfTI"))
            else:
                images.append(item)
        elif item.header is not None:
            labels.append(item)
        elif COMPUTED_WORDS & set(item.name.words) and kind != "label":
            aside.append((text, "named as computed from a scan; rename it if it is a scan, or save a label map"))
        elif says == "label" and kind == "image":
            reason = f"named as a label, but it has the voxels of a scan ({item.look.count} or more values)"
            aside.append((text, f"{reason}; rename it if it is a scan, or save a label map"))
        elif says == "image" and kind == "label":
            reason = f"named as a scan, but it has the voxels of a label map (values {_values(item)})"
            aside.append((text, f"{reason}; if it is one, rename it to {_expected(None)}"))
        elif kind == "either" and says in ("", "hint"):
            reason = f"may be a scan or a label, it has {item.look.count} values"
            aside.append((text, f"{reason}; rename it to {_expected(None)}, or put it into a folder images"))
        elif kind == "label" or says == "label":
            labels.append(item)
        else:
            images.append(item)
    raw = [item for item in images if not _is_derived(item)]
    if raw:
        reason = "lies in derivatives, where BIDS keeps results; the scans outside of it are taken"
        aside += [(str(item.relative), reason) for item in images if _is_derived(item)]
    return raw or images, labels


def _is_derived(item: Item) -> bool:
    return item.relative.parts[:1] == ("derivatives",)


def _values(item: Item) -> str:
    values = item.look.values
    return ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")


def _expected(image: Item | None) -> str:
    return f"{'IMAGE' if image is None else file_stem(image.relative)}_label.nii.gz"


def _chosen(items: list[Item], word: str | None, option: str, what: str, aside: list[tuple[str, str]]) -> list[Item]:
    """The items with a word in their names; the others are left aside."""
    if word is None or not items:
        return items
    wanted = split_words(str(word))
    chosen = [item for item in items if item.name.words == wanted]
    chosen = chosen or [item for item in items if contains(item.name.words, wanted)]
    if not chosen:
        there = sorted({item.relative.name for item in items}, key=natural_key)
        raise ValueError(f"{option} {word}: no {what} has this word in its name; there are {', '.join(there[:8])}")
    aside += [(str(item.relative), f"not chosen by {option} {word}") for item in items if item not in chosen]
    return chosen


def _pair(
    images: Sequence[Item], labels: Sequence[Item], aside: list[tuple[str, str]]
) -> tuple[dict[Path, list[Pair]], list[str]]:
    """The labels of each image, by its relative path; labels of none are left aside."""
    pairs: dict[Path, list[Pair]] = defaultdict(list)
    notes: list[str] = []
    recurring = (_recurring(images), _recurring(labels))
    for label in labels:
        found = _images_of(label, images, labels, *recurring)
        for image in found:
            structure = structure_name(label.name, image.name)
            if label.header is not None:  # whose file names mean nothing
                structure = "_".join(sorted(segment.name for segment in label.look.segments))
            pairs[image.relative].append(Pair(label, structure, len(found) > 1))
        if len(found) > 1:
            shown = ", ".join(image.relative.name for image in found)
            notes.append(
                f"{label.relative} is the label of {len(found)} images, {shown}: each becomes a case; take one with "
                f"--image, for example --image {(found[0].name.stem or found[0].name.words or ('a',))[-1]}"
            )
        elif not found:
            aside.append((str(label.relative), _why_unpaired(label, images)))
    return pairs, notes


def _recurring(items: Sequence[Item]) -> set[tuple[str, ...]]:
    """Stems that occur in several places: such places are the folders of patients."""
    places: dict[tuple[str, ...], set[tuple[str, ...]]] = defaultdict(set)
    for item in items:
        places[item.name.stem].add(item.name.place)
    return {stem for stem, where in places.items() if len(where) > 1}


def _images_of(
    label: Item,
    images: Sequence[Item],
    labels: Sequence[Item],
    recurring_images: set[tuple[str, ...]],
    recurring_labels: set[tuple[str, ...]],
) -> list[Item]:
    """The images of a label, by the closest relation of names that there is.

    A label that is called so belongs to the image of its name whatever its grid, so that a wrong grid is said; in all
    other cases the grid must be the image's.
    """
    drawn_on = _drawn_on(label, images)
    if drawn_on:
        return drawn_on
    key, named = label.name.key, label.name.says == "label"
    lying = {image.relative: label.look.same_grid(image.look) for image in images}
    near = [image for image in images if lying[image.relative] is not False]  # DICOM may be unknown
    exact = [image for image in images if image.name.key == key]
    if exact:
        fitting = [image for image in exact if image in near]
        return fitting or (exact if named else [])
    alias = [image for image in near if {key, label.name.stem} & set(image.aliases)]
    if alias:
        return alias
    alike = [
        image
        for image in near
        if label.name.stem and image.name.stem == label.name.stem and _one_within(label.name.place, image.name.place)
    ]
    if len(alike) == 1:
        return alike
    longer = [image for image in near if image.name.key and key[: len(image.name.key)] == image.name.key]
    longer = [image for image in longer if any(word.strip("0123456789") for word in key[len(image.name.key) :])]
    if longer:
        size = max(len(image.name.key) for image in longer)
        return [image for image in longer if len(image.name.key) == size]
    beside = [image for image in images if image.name.place == label.name.place]
    if named and (not label.name.stem or label.header is not None) and len(beside) == 1:
        return beside
    shared = [image for image in near if key and image.name.key[: len(key)] == key]
    shared = [image for image in shared if _is_detail(image.name.key[len(key) :])]
    if shared:
        return shared
    if len(beside) == 1 and beside[0] in near:
        fellows = [other for other in labels if other.name.place == label.name.place and _is_mask(other)]
        if len(fellows) > 1 or beside[0].name.stem in recurring_images or label.name.stem in recurring_labels:
            return beside
        if not named and len(images) == 1:
            return beside
    return []


def _drawn_on(label: Item, images: Sequence[Item]) -> list[Item]:
    """The series that a DICOM label says it was drawn on, or else those in the same space or of the same study."""
    if label.header is None:
        return []
    own = label.header
    known = [(image, image.series.header) for image in images if image.series is not None]
    for same in (
        lambda header: header.series in own.references,
        lambda header: not own.references and bool(own.space) and header.space == own.space,
        lambda header: not own.references and bool(own.study) and header.study == own.study,
    ):
        found = [image for image, header in known if same(header)]
        if found:
            return found
    return []


def _is_detail(words: Sequence[str]) -> bool:
    """Whether the rest of an image's name may be a modality or a channel; a number is rather another patient."""
    return any(word.strip("0123456789") for word in words) or (len(words) == 1 and len(words[0]) == 4)


def _one_within(first: Sequence[str], second: Sequence[str]) -> bool:
    return set(first) <= set(second) or set(second) <= set(first)


def _why_unpaired(label: Item, images: Sequence[Item]) -> str:
    near = [image for image in images if label.look.same_grid(image.look)]
    if label.header is not None and label.header.references:
        return f"a label of series {', '.join(sorted(label.header.references))}, which is not here; add that series"
    if label.name.says == "label":
        reason = "a label without an image"
        if not near:
            name = "_".join(label.name.stem) or "image"
            return f"{reason}; its image would be called {name}.nii.gz and lie on the same voxels"
    else:
        reason = f"has the voxels of a label map (values {_values(label)}), but no image has its name"
    return f"{reason}; rename it to {_expected(near[0] if len(near) == 1 else None)} after its image"


def _is_mask(item: Item) -> bool:
    """Whether a label shows one structure, or none, or says itself what it shows."""
    return bool(item.look.segments) or (item.look.kind in ("label", "") and len(item.look.values) <= 1)


def _choose_labels(image: Item, pairs: Sequence[Pair], aside: list[tuple[str, str]]) -> list[tuple[Path, str, Look]]:
    """The label map of an image, or its masks, one for each structure; what is left aside is said.

    Returns:
        ``[(path, structure, look), …]``.
    """
    own = [pair for pair in pairs if not pair.shared] or list(pairs)
    whole = [pair for pair in own if not pair.structure] or own
    if len(whole) > 1 and all(_is_mask(pair.label) and is_structure(pair.structure) for pair in whole):
        if len({pair.structure for pair in whole}) == len(whole):
            return [(pair.label.path, pair.structure, pair.label.look) for pair in whole]
    left = [pair for pair in pairs if len(whole) > 1 or pair is not whole[0]]
    for pair in left:
        which = "several labels" if len(whole) > 1 else f"a further label, {whole[0].label.relative.name} is taken,"
        aside.append(
            (str(pair.label.relative), f"{which} for {image.relative}; choose with --label, a word of its name")
        )
    return [(whole[0].label.path, whole[0].structure, whole[0].label.look)] if len(whole) == 1 else []
