"""Pictures of what the bundle does: ``python -m scripts.preview COMMAND --dataset_dir DIR``.

Each command writes one PNG and prints its path. The transforms are those that the configs declare. Any id of the
config can be given as an option, for example ``--superpixel#levels#felzenszwalb#1#min_size 100``.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .command import command
from .on_demand import OnDemand

if TYPE_CHECKING:
    import numpy as np
    import torch
else:
    np = OnDemand("numpy")
    torch = OnDemand("torch")
ROOT = Path(__file__).resolve().parent.parent
options = OnDemand("bundle.options")
show = OnDemand("bundle.visualize")
data = OnDemand("bundle.data")
support_scans = OnDemand("bundle.data.support")
slice_registration = OnDemand("bundle.inferers.slice_registration")
transforms = OnDemand("monai.transforms")
torch_data = OnDemand("torch.utils.data")


def superpixels(
    dataset_dir: str | None = None,
    case: str | None = None,
    image: str | None = None,
    output: str = "superpixels.png",
    slices: int = 8,
    config_file: str = "configs/train.json",
    overrides: dict | None = None,
    **settings: Any,
) -> Path:
    """Draw the superpixels of a scan over its slices.

    Args:
        dataset_dir: folder of the data set.
        case: name of the scan; the first of the data set if not given.
        image: a file instead of dataset_dir and case.
        output: the PNG to write.
        slices: how many slices to show.
        config_file: training config whose transforms count.
        overrides: ids and values of the config, as a dictionary.
        settings: any id of the config, such as --superpixel#levels#felzenszwalb#1#min_size 100.
    """
    parser = read_config(config_file, dataset_dir, overrides, {"cache_dir": None, **settings})
    path = choose_image(dataset_dir, case, image)
    scan = parser.get_parsed_content("train#preprocessing")({"image": path})
    planes = show.to_planes(plain(scan["image"]), scan["image"].affine)
    levels = plain(scan["superpixels"], 4)
    maps = np.stack([show.to_planes(level.numpy(), scan["image"].affine).values for level in levels])
    parameters = parser.get_parsed_content("superpixel#parameters")
    texts = [
        " ".join(f"{k} {v}" for k, v in one.items())
        for one in (parameters if isinstance(parameters, list) else [parameters])
    ]
    method = parser.get_parsed_content("superpixel#method")
    title = f"{data.case_name(path)}: {getattr(method, '__name__', method)} ({'; '.join(texts)})"
    return show.save_figure(show.superpixel_figure(planes, maps, title=title, count=slices), output)


def episodes(
    dataset_dir: str,
    case: str | None = None,
    output: str = "episodes.png",
    count: int = 4,
    seed: int = 0,
    config_file: str = "configs/train.json",
    overrides: dict | None = None,
    **settings: Any,
) -> Path:
    """Draw episodes as the training draws them: support view with its mask, query view with its mask.

    Args:
        dataset_dir: folder of the data set.
        case: name of the scan to draw from; the first of the data set if not given.
        output: the PNG to write.
        count: how many episodes.
        seed: seed of the draws.
        config_file: training config whose transforms count.
        overrides: ids and values of the config, as a dictionary.
        settings: any id of the config, such as --query_view#rotation_deg 20.
    """
    path = choose_image(dataset_dir, case, None)
    fixed = {"images": [{"image": path}], "val_images": [], "seed": seed, "cache_dir": None}
    fixed["train#dataset#progress"] = False
    parser = read_config(config_file, dataset_dir, overrides, {**fixed, **settings})
    dataset = parser.get_parsed_content("train#dataset")
    prepare = parser.get_parsed_content("train#trainer#prepare_batch")
    drawn = show.episode_planes(
        prepare(torch_data.default_collate([dataset[i] for i in range(count)]), "cpu"), count=count
    )
    scan = dataset.transform({"image": path})
    aspect = show.to_planes(plain(scan["image"]), scan["image"].affine).aspect
    title = f"{data.case_name(path)}: {count} episodes, seed {seed}"
    return show.save_figure(show.episode_figure(drawn, title, aspect=aspect), output)


def overlay(
    dataset_dir: str | None = None,
    case: str | None = None,
    run_dir: str | None = None,
    image: str | None = None,
    prediction: str | None = None,
    label: str | None = None,
    output: str = "overlay.png",
    slices: int = 8,
) -> Path:
    """Draw a prediction (filled) and the truth (outlined) over slices of a scan, with Dice; or one of both.

    Args:
        dataset_dir: folder of the data set; names of the labels, and images and labels of a case, are found there.
        case: name of the scan; the first that has a prediction, or the first of the data set, if not given.
        run_dir: folder with predictions <case>/<case>_seg.nii.gz.
        image: image file, instead of a case.
        prediction: label map, instead of that in run_dir.
        label: true label map, instead of that of the data set.
        output: the PNG to write.
        slices: how many slices to show.
    """
    if run_dir is not None and prediction is None:
        found = predictions(run_dir)
        case = case or next(iter(found))
        if case not in found:
            raise ValueError(f"{run_dir}: no prediction of case {case!r}; there are {sorted(found)}")
        prediction = found[case]
    if image is None:
        entry = choose_entry(dataset_dir, case)
        image, label = entry["image"], label or entry.get("label")
    scan = read_scan(image)
    filled, outlined = (None if path is None else read_planes(path, scan, image) for path in (prediction, label))
    if filled is None and outlined is None:
        raise ValueError("nothing to draw over the image; give --prediction, --label or --run_dir")
    planes = show.to_planes(plain(scan), scan.affine)
    names = data.label_names(dataset_dir) if dataset_dir else None
    figure = show.overlay_figure(planes, filled, outlined, names=names, title=data.case_name(image), count=slices)
    return show.save_figure(figure, output)


def triptych(
    support_image: str,
    support_label: str,
    image: str,
    prediction: str,
    label: str | None = None,
    dataset_dir: str | None = None,
    output: str = "triptych.png",
) -> Path:
    """Draw support, query and prediction side by side, each at the slice that shows most of the labels.

    Args:
        support_image: image of the support.
        support_label: its label map.
        image: the query's image.
        prediction: its predicted label map.
        label: its true label map, outlined if given.
        dataset_dir: folder whose dataset.json has the names of the labels.
        output: the PNG to write.
    """
    first, second = read_scan(support_image), read_scan(image)
    support, query = (show.to_planes(plain(scan), scan.affine) for scan in (first, second))
    labels, predicted = read_planes(support_label, first, support_image), read_planes(prediction, second, image)
    truth = None if label is None else read_planes(label, second, image)
    here, there = richest_slice(labels), richest_slice(predicted if truth is None else truth)
    figure = show.triptych_figure(
        support.values[here],
        labels[here],
        query.values[there],
        predicted[there],
        data.label_names(dataset_dir) if dataset_dir else None,
        None if truth is None else truth[there],
        (support.pixel_mm, query.pixel_mm),
        (query.left, query.top),
    )
    return show.save_figure(figure, output)


def prototypes(
    dataset_dir: str,
    case: str | None = None,
    label: int | str | None = None,
    slice: int | None = None,  # noqa: A002
    output: str = "prototypes.png",
    config_file: str = "configs/inference.json",
    overrides: dict | None = None,
    **settings: Any,
) -> Path:
    """Draw what the support contributes: its prototypes, and where in the query each of them won.

    Args:
        dataset_dir: folder of the data set.
        case: name of the query; the first that is no support if not given.
        label: label, by value or name; the first that the support shows if not given.
        slice: slice of the query, from 1; that whose support slices show most of the label if not given.
        output: the PNG to write.
        config_file: inference config whose network, weights, support and transforms count.
        overrides: ids and values of the config, as a dictionary.
        settings: any id of the config, such as --ckpt_path or --support "[{'image': …, 'label': …}]".
    """
    parser = read_config(config_file, dataset_dir, overrides, {"device": "cpu", **settings})
    entries = data.resolve_support(parser.get_parsed_content("support"), dataset_dir)[:1]
    support_case = data.case_name(entries[0]["image"])
    others = [entry for entry in data.make_datalist(dataset_dir) if data.case_name(entry["image"]) != support_case]
    if not others:
        raise ValueError(f"{dataset_dir}: no scan besides the support {support_case}")
    path = choose_entry(dataset_dir, case)["image"] if case else others[0]["image"]
    weights = parser.get_parsed_content("ckpt_path")
    if not os.path.isfile(weights):
        raise FileNotFoundError(f"{weights}: no such weights; train first, or set --ckpt_path")
    network = parser.get_parsed_content("network").eval()
    state = torch.load(weights, map_location="cpu", weights_only=True)
    network.load_state_dict(state.get("model", state))
    preprocessing = parser.get_parsed_content("preprocessing")
    support = data.load_support(entries[0], preprocessing)
    value = (data.label_values(label, data.label_names(dataset_dir)) or support.values)[0]
    if value not in support.values:
        raise ValueError(f"label must be one that the support {support_case} shows, {support.values}, got {value}")
    scan = preprocessing({"image": path})["image"]
    query, reference = plain(scan, 4).movedim(-1, 0), support.image.movedim(-1, 0)  # (D, C, H, W)
    masks = support.label.movedim(-1, 0)
    with torch.no_grad():
        features = [torch.cat([network.encode(part) for part in volume.split(8)]) for volume in (query, reference)]
    described, described_reference = (slice_registration.describe_slices(feature) for feature in features)
    (positions, _), *_ = slice_registration.align_scans(
        described,
        described_reference,
        support_scans.slice_spacing(scan),
        support.spacing_mm,
        **parser.get_parsed_content("alignment"),
    )
    chosen = slice_registration.nearest_slices(
        positions, torch.tensor(support.annotated_slices), parser.get_parsed_content("num_slices")
    )  # (Dq, K)
    shown = (masks == value).flatten(1).sum(1)[chosen.clamp(min=0)] * (chosen >= 0)
    z = int(shown.amin(dim=1).argmax() if shown.amin(dim=1).any() else shown.sum(dim=1).argmax())
    z = z if slice is None else slice - 1
    if not 0 <= z < len(query):
        raise ValueError(f"slice must be in 1..{len(query)}, got {slice}")
    index = chosen[z][chosen[z] >= 0].sort().values
    if len(index) == 0 or not bool((masks[index] == value).any()):
        raise ValueError(f"slice {z + 1}: label {value} is on none of its support slices; choose another slice")
    result = show.prototype_map(network, query[z], reference[index], masks[index] == value, masks[index] == 0)
    names = data.label_names(dataset_dir)
    name = names.get(value, f"label {value}")
    frame = show.to_planes(plain(scan), scan.affine)
    figure = show.prototype_figure(
        result,
        show.frame_to_picture(reference[index, 0].numpy()),
        show.frame_to_picture(query[z, 0].numpy()),
        name,
        (frame.pixel_mm, frame.pixel_mm),
        f"{name}: {data.case_name(path)} slice {z + 1} from {support_case} slices {[int(i) + 1 for i in index]}",
    )
    return show.save_figure(figure, output)


def curves(run: str, output: str = "curves.png") -> Path:
    """Draw the curves of a training.

    Args:
        run: folder with TensorBoard event files, or a csv file whose first column is the step.
        output: the PNG to write.
    """
    found = show.read_curves(run)
    if not found:
        raise ValueError(f"{run}: no TensorBoard scalars; give the output_dir of a training")
    return show.save_figure(show.curves_figure(found, Path(run).name), output)


def read_config(
    config_file: str | Sequence[str], dataset_dir: str | None, overrides: Mapping | None, settings: Mapping[str, Any]
) -> Any:
    """Read configs and override ids: first ``settings``, then ``overrides``.

    Raises:
        FileNotFoundError: if a config does not exist, neither as named nor in the bundle.
        ValueError: for an id that the config lacks.
    """
    if overrides is not None and not isinstance(overrides, Mapping):
        raise TypeError(f"overrides must be a dictionary, \"{{'seed': 1}}\", got {overrides!r}")
    files = [config_file] if isinstance(config_file, (str, os.PathLike)) else list(config_file)
    paths = [next((path for path in (Path(file), ROOT / file) if path.is_file()), Path(file)) for file in files]
    fixed = {"bundle_root": str(ROOT), **({} if dataset_dir is None else {"dataset_dir": str(dataset_dir)})}
    return options.read_config(paths, {**fixed, **settings, **(overrides or {})})


def choose_entry(dataset_dir: str | None, case: str | None) -> dict[str, str]:
    """An entry of a data set: the named case, or the first."""
    if dataset_dir is None:
        raise ValueError("no scan given; set --dataset_dir (and --case), or --image")
    if not os.path.isdir(dataset_dir):
        raise FileNotFoundError(f"{dataset_dir}: no such data set; check dataset_dir")
    entries = data.make_datalist(dataset_dir)
    if not entries:
        raise ValueError(f"{dataset_dir}: no images; a data set has imagesTr/*.nii.gz")
    return data.select_cases(entries, [str(case)])[0] if case is not None else entries[0]


def choose_image(dataset_dir: str | None, case: str | None, image: str | None) -> str:
    """The image of a case, or the given file."""
    path = choose_entry(dataset_dir, case)["image"] if image is None else str(image)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such image")
    return path


def predictions(run_dir: str | os.PathLike) -> dict[str, str]:
    """Case to predicted label map in a folder of results.

    Raises:
        FileNotFoundError: if there is none.
    """
    files = sorted(Path(run_dir).glob("*/[!.]*.nii.gz")) if Path(run_dir).is_dir() else []
    found = {file.parent.name: str(file) for file in files if _is_prediction(file)}
    if not found:
        raise FileNotFoundError(f"{run_dir}: no predictions <case>/<case>_seg.nii.gz")
    return found


def _is_prediction(file: Path) -> bool:
    case = file.parent.name
    maps = (f"{case}_confidence.", f"{case}_similarity.")
    return file.name.startswith(f"{case}_") and not file.name.startswith(maps)


def read_scan(path: str) -> Any:
    """An image file as a tensor ``(1, X, Y, Z)`` with its affine."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file")
    scan = transforms.LoadImage("bundle.data.NiftiReader", image_only=True, ensure_channel_first=True)(path)
    if scan.ndim != 4 or scan.shape[0] != 1:
        raise ValueError(f"{path}: expected one 3D volume, got shape {tuple(scan.shape)}")
    return scan


def read_planes(path: str, scan: Any, name: str) -> np.ndarray:
    """A label map as planes on the grid of its scan."""
    labels = read_scan(path)
    if labels.shape != scan.shape:
        raise ValueError(f"{path}: shape {tuple(labels.shape[1:])} does not fit {name} of {tuple(scan.shape[1:])}")
    return show.to_planes(plain(labels), scan.affine).values


def plain(volume: torch.Tensor, axes: int = 3) -> Any:
    """The first channel of a tensor as an array; with ``axes=4`` the whole, as a plain tensor."""
    tensor = torch.as_tensor(volume).as_subclass(torch.Tensor)
    return tensor if axes == 4 else tensor[0].numpy()


def richest_slice(labels: np.ndarray) -> int:
    """The slice that shows most labels; of several, the one with the largest product of their areas."""
    values = [v for v in np.unique(labels) if v > 0]
    areas = np.stack([(labels == v).sum(axis=(1, 2)) for v in values]) if values else np.zeros((1, len(labels)))
    score = (areas > 0).sum(axis=0) * 1e6 + np.log1p(areas).sum(axis=0)
    return int(score.argmax())


def main(arguments: Sequence[str] | None = None, name: str = "scripts.preview") -> None:
    """Run the command line; bad input ends with one line and a non-zero status."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    command({f.__name__: f for f in (superpixels, episodes, overlay, triptych, prototypes, curves)}, name, arguments)


if __name__ == "__main__":
    main()
