"""Which labelled scans tell the network what to segment in a query: asked for, finished beside it, or configured."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage, MapTransform, Transform
from monai.utils import optional_import

from ..data.datastore import FINAL, Datastore, label_value_names, label_values, studies_folder
from ..data.reader import NiftiReader
from ..data.support import VALUES, resolve_support, shows_single_slices
from ..keys import IMAGE, LABEL, PRED
from ..quality import ExpectedDice, describe_quality, label_name
from .spatial import slice_axis

logger = logging.getLogger(__name__)
HTTPException, has_http = optional_import("starlette.exceptions", name="HTTPException")

NO_SUPPORT = (
    "no support: nothing tells what to segment. Label one scan and finish it (3D Slicer: Submit Label; "
    "REST: PUT /datastore/label?image=ID&tag=final; DICOMweb: GET /datastore/?output=train fetches those there), then "
    'ask again; or name labelled scans in the request, "support": ["ID"]; on the command line give '
    "--support \"[{'image': …, 'label': …}]\""
)


class SelectSupport(Transform):
    """Support of a query: the request's, else the finished labels beside the query, else the configured one.

    Finished labels are those of a MONAI Label studies folder: the query's own folder, or ``studies_dir`` for a query
    that lies elsewhere. All of them are used. Names decide what belongs together, whatever values a client gave them; a
    structure that was not labelled on a scan is unknown there, not background. Names that an app lists have the listed
    values in every result; all others get values that the list does not use.

    The query's own label counts where some of its slices are labelled and the others are to be completed: a label with
    another tag than that of a finished one, a finished one that shows single slices alone, and one that is asked for.

    Args:
        default: ``[{"image": path, "label": path}, …]``, used when nothing else is there; may be empty.
        dataset_dir: folder to which paths of ``default`` may be relative.
        studies_dir: studies folder for queries from elsewhere; by default the server's, see :func:`studies_folder`.
        finished_labels: ``False`` ignores the studies folder unless a request names scans of it.
        numbers: ``{name: value}`` that an app lists; upper and lower case are the same.
        names: ``{value: name}`` of the labels of ``default``.

    Raises:
        ValueError: without any support, with what to do; for a request that names unknown or unfinished scans, files
            outside of the studies folder, or labels that no support shows.
    """

    def __init__(
        self,
        default: Sequence[Mapping[str, Any]] = (),
        dataset_dir: str | os.PathLike | None = None,
        studies_dir: str | os.PathLike | None = None,
        finished_labels: bool = True,
        numbers: Mapping[str, int] | None = None,
        names: Mapping[int, str] | None = None,
    ) -> None:
        self.default = list(default)
        self.dataset_dir = dataset_dir
        self.studies_dir = studies_dir
        self.finished_labels = finished_labels
        self.numbers = dict(numbers or {})
        self.names = {int(value): str(name) for value, name in (names or {}).items()}

    def __call__(
        self, image: str | os.PathLike, request: Any = None, labels: Any = None
    ) -> tuple[list[dict[str, Any]], dict[str, int]]:
        """Choose the support of an image file.

        Args:
            image: path of the query.
            request: identifier or list of identifiers of finished scans (or one string with commas), or a list of
                ``{"image": …, "label": …}`` with paths inside the studies folder.
            labels: names or values in the result, in a list or a string with commas; ``None`` for all.

        Returns:
            Support entries, see :func:`load_support`, and ``{name: value}`` of the labels in the result; no names for
            the default, unless the app lists some or ``labels`` asks for some.
        """
        entries, names = self._choose(image, request)
        if not names and not self.numbers and labels is None:
            return entries, names
        for entry in entries:
            entry.setdefault(VALUES, {str(value): value for value in label_values(entry[LABEL])})
        if not names:
            shown = sorted({value for entry in entries for value in entry[VALUES].values()})
            names = {self.names.get(value, f"label {value}"): value for value in shown}
        new = renumber(names, self.numbers)
        wanted = set(new.values()) if labels is None else _wanted_values(labels, new)
        value_of = {names[name]: new[name] for name in names if new[name] in wanted}
        for entry in entries:
            entry[VALUES] = {old: value_of[value] for old, value in entry[VALUES].items() if value in value_of}
        return [entry for entry in entries if entry[VALUES]], {name: v for name, v in new.items() if v in wanted}

    def _choose(self, image: str | os.PathLike, request: Any) -> tuple[list[dict[str, Any]], dict[str, int]]:
        """Support entries and the names of their values."""
        datastore = Datastore.find(image, self.studies_dir or studies_folder())
        own = None if datastore is None else datastore.identify(image)
        if request:
            return self._requested(request, datastore, own)
        if datastore is not None and self.finished_labels:
            finished = datastore.finished()
            others = [key for key in finished if key != own]
            tag = None if own is None else datastore.unfinished(own)
            if own is not None and tag is None and own in finished and _shows_single_slices(datastore.label(own)):
                tag = FINAL
            if own is not None and tag is not None:
                return datastore.entries([own, *others], {own: tag})
            if others:
                return datastore.entries(others)
        if not self.default:
            raise ValueError(NO_SUPPORT)
        return resolve_support(self.default, self.dataset_dir), {}

    def _requested(
        self, request: Any, datastore: Datastore | None, own: str | None
    ) -> tuple[list[dict[str, Any]], dict[str, int]]:
        if datastore is None:
            raise ValueError(f"support {request!r}: the query lies in no studies folder; use the config's support")
        if isinstance(request, str):
            request = json.loads(request) if request.lstrip().startswith(("[", "{")) else request.split(",")
        items: list[Any] = [request] if isinstance(request, Mapping) else list(request)
        if all(isinstance(item, str) for item in items):
            keys = [item.strip() for item in items]
            tags = {own: datastore.unfinished(own) or FINAL} if own is not None and own in keys else None
            return datastore.entries(keys, tags)
        entries: list[dict[str, Any]] = []
        for item in items:
            if not isinstance(item, Mapping) or not {IMAGE, LABEL} <= set(item):
                raise ValueError(f"support must be ids, or entries with the keys 'image' and 'label', got {item!r}")
            entry: dict[str, Any] = {key: datastore.inside(str(item[key])) for key in (IMAGE, LABEL)}
            if item.get(VALUES) is not None:
                entry[VALUES] = dict(item[VALUES])
            entries.append(entry)
        found = {value for entry in entries for value in entry.get(VALUES, {}).values()} or {
            value for entry in entries for value in label_values(entry[LABEL])
        }
        return entries, {name: value for value, name in label_value_names(sorted(found), []).items()}


def _shows_single_slices(path: str | os.PathLike) -> bool:
    """Whether a label file shows single slices alone, see :func:`shows_single_slices`."""
    label = LoadImage(reader=NiftiReader, image_only=True)(path)
    whole = label.as_subclass(torch.Tensor).round().movedim(slice_axis(label.affine), -1)
    return shows_single_slices(whole, label_values(path))


def renumber(names: Mapping[str, int], numbers: Mapping[str, int]) -> dict[str, int]:
    """Give names the values of a list, and those that it lacks their own value, or the lowest free if that is used.

    Args:
        names: ``{name: value}``.
        numbers: the list, ``{name: value}``; upper and lower case are the same.

    Returns:
        ``{name: value}`` in ascending order of the values.
    """
    listed = {name.strip().casefold(): int(value) for name, value in numbers.items()}
    reserved = set(listed.values())
    new = {name: listed.get(name.casefold(), value) for name, value in names.items()}
    displaced = [name for name in names if name.casefold() not in listed and names[name] in reserved]
    taken = reserved | {value for name, value in new.items() if name not in displaced}
    for name in displaced:
        new[name] = next(number for number in range(1, len(taken) + 2) if number not in taken)
        taken.add(new[name])
    return dict(sorted(new.items(), key=lambda pair: pair[1]))


def _wanted_values(labels: Any, names: Mapping[str, int]) -> set[int]:
    """Values of the labels that a request asks for by name or by value.

    Raises:
        ValueError: for one that no support shows.
    """
    if isinstance(labels, str):
        labels = json.loads(labels) if labels.lstrip().startswith("[") else labels.split(",")
    known = {name.casefold(): value for name, value in names.items()}
    known |= {str(value): value for value in names.values()}
    listed = [str(label).strip() for label in (labels if isinstance(labels, (list, tuple)) else [labels])]
    unknown = [label for label in listed if label.casefold() not in known]
    if unknown or not listed:
        raise ValueError(f"labels {unknown}: no support shows them; there are {dict(names)}")
    return {known[label.casefold()] for label in listed}


class Answer(dict[str, Any]):
    """What a MONAI Label request tells beside the label map, with the names and values of this very label map.

    MONAI Label sets ``label_names`` of each answer to the names that the app was started with, whatever the label map
    holds. Clients name what they find in it by these names, one after the other, and would take one organ for another.
    """

    def __setitem__(self, key: str, value: Any) -> None:
        """Set an entry; the names, once they are known, stay."""
        if key != "label_names" or key not in self:
            super().__setitem__(key, value)


class SelectSupportd(MapTransform):
    """Dictionary version of :class:`SelectSupport`, the last step of a query's preprocessing.

    The chosen entries go into the query's meta data as a JSON string under ``support``, where
    :class:`FewShotInferer` finds them: the one place that every consumer of a bundle passes on. In a MONAI Label
    request, ``result`` of the answer names the scans and the values of the labels.

    Args:
        keys: key of the query in the network's frame, with its file name in the meta data.
        request_key: where a request may name the support.
        labels_key: where a request may name the labels.
        default, dataset_dir, studies_dir, finished_labels, numbers, names: see :class:`SelectSupport`.
    """

    def __init__(
        self,
        keys: str | Sequence[str] = IMAGE,
        request_key: str = "support",
        labels_key: str = "labels",
        default: Sequence[Mapping[str, Any]] = (),
        dataset_dir: str | os.PathLike | None = None,
        studies_dir: str | os.PathLike | None = None,
        finished_labels: bool = True,
        numbers: Mapping[str, int] | None = None,
        names: Mapping[int, str] | None = None,
    ) -> None:
        super().__init__(keys)
        self.request_key = request_key
        self.labels_key = labels_key
        self.select = SelectSupport(default, dataset_dir, studies_dir, finished_labels, numbers, names)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the support into the meta data of each query."""
        out = dict(data)
        for key in self.key_iterator(out):
            image: MetaTensor = out[key].clone()
            path = str(out.get("image_path") or image.meta.get("filename_or_obj", ""))
            entries, names = self._select(path, out)
            image.meta["support"] = json.dumps(entries)
            out[key] = image
            scans = [os.path.basename(entry[IMAGE]) for entry in entries]
            if "image_path" in out:  # a request to MONAI Label, whose answer carries `result`
                logger.info("%s: support %s, labels %s", os.path.basename(path), scans, names or "all")
                out["result"] = {**out.get("result", {}), "support": scans, "label_values": names}
        return out

    def _select(self, path: str, data: Mapping[Hashable, Any]) -> tuple[list[dict[str, Any]], dict[str, int]]:
        try:
            asked = data.get(self.labels_key) if "image_path" in data else None
            return self.select(path, data.get(self.request_key), asked)
        except (ValueError, FileNotFoundError) as error:
            if "image_path" in data and has_http:  # else the annotator reads "Internal Server Error"
                raise HTTPException(status_code=400, detail=str(error)) from error
            raise


class AnswerQualityd(MapTransform):
    """Adds to the ``result`` of a MONAI Label request what the label map holds and how far it can be trusted.

    ``label_values`` has the name and value of each label that was looked for, ``label_names`` those that were found, in
    ascending order, for clients that name segments by their position. The rest is what :class:`CaseQuality` writes on
    the command line: ``support_similarity``, ``reverse_dice`` of each label, by which the next samples are ranked,
    ``expected_dice``, and a ``warning`` if it is low, which is logged too; see :func:`describe_quality`.

    Args:
        keys: key of the label map, with the meta data that :class:`FewShotInferer` writes.
        expected_dice: estimates the Dice of each label; ``None`` for no estimate.
        warn_expected_dice_below: expected Dice in percent below which a label is warned of.
        warn_similarity_below: ``support_similarity`` below which the support is warned of.
        names: names of the label values, for a support whose own names are not known.
        allow_missing_keys: skip keys that are absent.
    """

    def __init__(
        self,
        keys: str | Sequence[str] = PRED,
        expected_dice: ExpectedDice | None = ExpectedDice(),  # noqa: B008, has no state
        warn_expected_dice_below: float = 60.0,
        warn_similarity_below: float = 0.5,
        names: Mapping[int, str] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.expected_dice = expected_dice
        self.warn_expected_dice_below = warn_expected_dice_below
        self.warn_similarity_below = warn_similarity_below
        self.names = dict(names or {})

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add it in a request to MONAI Label; otherwise leave everything as it is."""
        out = dict(data)
        for key in self.key_iterator(out):
            if "image_path" in out:
                result = Answer(out.get("result", {}))
                names = {value: name for name, value in result.get("label_values", {}).items()} or self.names
                if "label_values" in out[key].meta:
                    values = sorted(int(value) for value in np.asarray(out[key].meta["label_values"]).ravel())
                    shown = set(torch.as_tensor(out[key]).as_subclass(torch.Tensor).unique().tolist())
                    result["label_values"] = {label_name(value, names): value for value in values}
                    result["label_names"] = {label_name(value, names): value for value in values if value in shown}
                found = describe_quality(
                    out[key], names, self.expected_dice, self.warn_expected_dice_below, self.warn_similarity_below
                )
                if "warning" in found:
                    logger.warning(f"{os.path.basename(str(out['image_path']))}: {found['warning']}")
                result.update(found)
                if result:
                    out["result"] = result
        return out
