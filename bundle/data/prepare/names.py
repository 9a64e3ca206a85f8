"""What the names of files and folders say: which is a scan, which is a label, and what a pair has in common."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .formats import file_stem, is_segmentation

LABEL_WORDS = frozenset(
    "label labels lbl labelmap labelmaps seg segs segmentation segmentations segmented dseg mask masks msk gt "
    "groundtruth truth manual annotation annotations annot contour contours delineation delineations roi rois aseg "
    "aparc wmparc".split()
)
IMAGE_WORDS = frozenset("image images imaging img imgs scan scans volume volumes vol dicom dicoms dcm".split())
SUBSET_WORDS = frozenset("tr ts va final".split())  # labelsTr, labels/final
RATER_WORDS = frozenset(
    "rater reader observer expert annotator consensus staple corrected edited final old new".split()
)
COMPUTED_WORDS = frozenset("prob probs probseg probability probabilities softmax logits heatmap uncertainty".split())
BIDS_LABEL = re.compile(r"_label-([A-Za-z0-9]+)(?=_|$)")
BIDS_DETAILS = re.compile(r"_(?:desc|label|space|res|den|atlas|seg|hemi)-[A-Za-z0-9]+(?=_|$)")


@dataclass(frozen=True)
class Name:
    """A path below the source, read as words.

    Attributes:
        place: words of its folders, without those that stand for image or label.
        stem: words of its file name, without those and without what repeats the folders.
        says: ``"label"``, ``"hint"`` where a word for label stands somewhere within, ``"image"``, or ``""``.
        words: all words of its file name.
        structure: what it shows, where BIDS says so by ``label-``.
    """

    place: tuple[str, ...]
    stem: tuple[str, ...]
    says: str
    words: tuple[str, ...]
    structure: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """What a scan and its label have in common."""
        return self.place + self.stem


def split_words(text: str) -> tuple[str, ...]:
    """Words in lower case: ``"labelsTr"`` -> ``labels tr``, ``"img01"`` -> ``img 01``, ``"a_Seg"`` -> ``a seg``."""
    text = re.sub(r"ground[-_. ]?truth", "groundtruth", text, flags=re.IGNORECASE)
    text = re.sub(r"label[-_. ]?map", "labelmap", text, flags=re.IGNORECASE)
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", text)
    words: list[str] = []
    for word in re.split(r"[-_.+()\[\] ]+", text.lower()):
        match = re.fullmatch(r"([a-z]+)(\d+)", word)
        if match and match[1] in LABEL_WORDS | IMAGE_WORDS:
            words += match.groups()
        elif word:
            words.append(word)
    return tuple(words)


def read_name(relative: Path) -> Name:
    """Read a path below the source: of a file, or of a folder of DICOM files, which is called for its patient or so."""
    parts = list(relative.parts[:-1])
    if parts and parts[0].lower() == "derivatives":  # BIDS: derivatives/<pipeline>/sub-01/...
        parts = parts[2:]
        pipeline = relative.parts[1:-1][:1]
    else:
        pipeline = ()
    in_labels, hinted = any(_is_label_folder(part) for part in pipeline), False
    place: list[str] = []
    among_images = False
    for part in parts:
        words = split_words(part)
        if _is_label_folder(part):
            in_labels = True
        elif words and words[0] in IMAGE_WORDS and set(words) <= IMAGE_WORDS | SUBSET_WORDS:
            among_images = True
        else:
            hinted = hinted or bool({*words[:1], *words[-1:]} & LABEL_WORDS)
            place += [word for word in words if word not in LABEL_WORDS]
    text = file_stem(relative)
    words, structure = split_words(text), ""
    if text.lower().startswith("sub-"):
        structure = "".join(BIDS_LABEL.findall(text)[:1])
        text = BIDS_DETAILS.sub("", text)
    stem = tuple(word for word in split_words(text) if word not in LABEL_WORDS | IMAGE_WORDS)
    for size in range(min(len(place), len(stem)), 0, -1):
        if tuple(place[-size:]) == stem[:size]:
            stem = stem[size:]
            break
    if in_labels or is_segmentation(relative) or {*words[:1], *words[-1:]} & LABEL_WORDS:
        says = "label"
    elif hinted or set(words) & LABEL_WORDS:
        says = "hint"
    else:
        says = "image" if among_images or set(words) & IMAGE_WORDS else ""
    return Name(tuple(place), stem, says, words, structure)


def is_label_name(name: str) -> bool:
    """Whether a file is a label by its name alone."""
    return read_name(Path(name)).says == "label"


def _is_label_folder(name: str) -> bool:
    words = split_words(name)
    return name.lower() == "final" or (
        bool(words) and words[0] in LABEL_WORDS and set(words) <= LABEL_WORDS | SUBSET_WORDS
    )


def contains(words: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether the wanted words stand in a row among the words."""
    return any(tuple(words[i : i + len(wanted)]) == tuple(wanted) for i in range(len(words) - len(wanted) + 1))


def structure_name(label: Name, image: Name) -> str:
    """What a label's name says besides that of its image: the structure, as in ``a_liver_mask`` beside ``a``."""
    rest = [*label.key, *([label.structure] if label.structure else [])]
    for word in image.key:
        if word in rest:
            rest.remove(word)
    return "_".join(rest)


def is_structure(name: str) -> bool:
    """Whether a rest of a name may call a structure: no number, no word for who drew it."""
    words = [re.sub(r"\d+$", "", word) for word in name.split("_")]
    return any(len(word) > 1 for word in words) and not any(word in RATER_WORDS for word in words)


def case_title(relative: Path) -> str:
    """A name for the case of an image: its folders and its file name, each said once."""
    place = [part for part in relative.parts[:-1] if not set(split_words(part)) <= IMAGE_WORDS | SUBSET_WORDS]
    text = file_stem(relative)
    if place and set(split_words(text)) <= IMAGE_WORDS:
        text = ""
    if any(re.match(rf"{re.escape(part)}(?![A-Za-z0-9])", text, re.IGNORECASE) for part in place):
        place = []
    return re.sub(r"[^\w.-]+", "_", "_".join([*place, text] if text else place))
