"""The console command ``alpnet``: segment, train, evaluate and more, over the configs and scripts of the bundle.

``pip install .`` puts it on the path; ``python -m scripts.alpnet`` is the same in the bundle's folder. What needs
PyTorch is imported when it is used, so that help comes at once.
"""

from __future__ import annotations

import argparse
import ast
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # installed, the bundle's folder lies inside a package
    sys.path.insert(0, str(ROOT))

SCRIPTS = {
    "check": "read every scan and label of a data set once and say what is wrong",
    "report": "one HTML page with the pictures and tables of a run",
    "prepare": "bring DICOM or NIfTI files of any layout into a data set",
    "dicom_seg": "write results as DICOM segmentations of the series that were segmented",
    "options": "list what can be set, with its meaning, its default and an example",
    "preview": "pictures of superpixels, training episodes, a segmentation, prototypes or the learning curve",
    "convert_weights": "published weights of other programs in the format of this one",
}
EPILOG = """Every id of the configs is an option as well: --num_slices 5, --registration#reach 2, or --set num_slices=5.
alpnet options lists them.
An error is one line; with ALPNET_TRACEBACK=1 in the environment it comes with its traceback."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        """End with the status of wrong usage; a question is its own remedy."""
        self.exit(2, f"error: {message}\n" if message.endswith("?") else f"error: {message}; see {self.prog} --help\n")


def make_parser() -> argparse.ArgumentParser:
    """The options of the commands over configs; scripts have their own."""
    parser = Parser(prog="alpnet", description="Few-shot segmentation: label one scan, segment all others.")
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    segment = _add(commands, "segment", "segment scans by one or several labelled scans")
    segment.add_argument("scans", nargs="+", metavar="SCAN", help="NIfTI files, or folders of them, or a data set")
    segment.add_argument(
        "--support", nargs=2, action="append", default=[], metavar=("IMAGE", "LABEL"), help="a labelled scan; repeat "
        "it for several. Without it, the labelled scans of the data set",
    )  # fmt: skip
    segment.add_argument("--labels", help="names or values to segment, such as liver,spleen or 1,4; by default all")

    complete = _add(commands, "complete", "label the rest of a scan of which a few slices are labelled")
    complete.add_argument("scan", metavar="SCAN", help="NIfTI file")
    complete.add_argument("label", metavar="LABEL", help="its label map; slices without any label are completed")
    complete.add_argument(
        "--support", nargs=2, action="append", default=[], metavar=("IMAGE", "LABEL"), help="another labelled scan, "
        "which helps; repeat it for several",
    )  # fmt: skip

    train = _add(commands, "train", "train a network on images, without any label")
    train.add_argument("scans", nargs="+", metavar="SCAN", help="a data set, or NIfTI files, or folders of them")
    train.add_argument("--epochs", type=int, metavar="N", help="epochs (max_epochs)")

    evaluate = _add(commands, "evaluate", "measure the Dice on a labelled data set")
    evaluate.add_argument("dataset", metavar="DATASET", help="folder with imagesTr, labelsTr and dataset.json")
    evaluate.add_argument("--protocol", help="volume: what a user gets; official: the published one; see the benchmark")
    evaluate.add_argument("--fold", type=int, metavar="K", help="fold, counted from 0")
    for each in (segment, complete, evaluate):
        each.add_argument(
            "--weights", metavar="NAME", help="weights instead of the default ones: a file, or one of the bundle's, "
            "such as model_permissive (ckpt_path)",
        )  # fmt: skip
    for name, text in SCRIPTS.items():
        commands.add_parser(name, help=text, add_help=False)
    return parser


def _add(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    """A command over the configs, with the options that all of them have."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=f"{text}.", epilog=EPILOG)
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="folder of the results")
    parser.add_argument("--device", help="cpu or cuda:0; by default a GPU if there is one")
    parser.add_argument(
        "--config", action="append", default=[], metavar="NAME", help="config to lay over: a file, or one of the "
        "bundle's such as abdomen_ct; repeat it for several",
    )  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="ID=VALUE", help="set any id of the configs")
    return parser


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Parsers of the commands by their names."""
    found = next(each for each in parser._actions if isinstance(each, argparse._SubParsersAction)).choices
    return dict(found)


def options_of(parser: argparse.ArgumentParser, command: str) -> list[str]:
    """Options that a command has; those of the whole parser if there is no such command."""
    chosen = commands_of(parser).get(command, parser)
    return [option for each in chosen._actions for option in each.option_strings]


def ids_of(command: str, arguments: Sequence[str]) -> set[str] | None:
    """Ids that a command line may set, without their parts; ``None`` if a config cannot be read here, as one in YAML.

    They are what the configs have, say the meaning of or refer to, and what the command line itself refers to.

    Raises:
        FileNotFoundError: for a config that does not exist.
    """
    from bundle.ids import MEANINGS, strings, walk

    parser = Parser(prog=f"alpnet {command}", add_help=False)
    parser.add_argument("--config", action="append", default=[])
    files = config_files(command, parser.parse_known_args(arguments)[0].config)
    try:
        contents = [json.loads(Path(file).read_text(encoding="utf-8")) for file in files]
    except (OSError, ValueError):  # what is wrong with it is said when the run reads it
        return None
    paths = [path for content in contents for path, _ in walk(content)]
    ids = {re.split("#|::", path.lstrip("+").removeprefix(f"{MEANINGS}#"))[0] for path in paths}
    texts = [*arguments, *(text for content in contents for _, text in strings(content))]
    return ids | {name for text in texts for name in re.findall(r"[@%](\w+)", text)} | {"finalize"}


def collect_ids(arguments: Sequence[str], known: Sequence[str], ids: Collection[str] | None = None) -> list[str]:
    """Write ``--id value`` and ``--id=value`` of options that are not known as ``--set=id=value``.

    Args:
        arguments: the command line.
        known: options that the command has.
        ids: what else can be set; by default that is not checked here.

    Raises:
        ValueError: for an id without a value, and for a name that is neither known nor an id, but similar to one.
    """
    from bundle.ids import suggest

    names = [option[2:] for option in known if option.startswith("--")]
    out: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if word == "--":
            return [*out, word, *rest]
        if not name.startswith("--") or name in known:
            out.append(word)
            continue
        first = re.split("#|::", name[2:])[0]
        hint = suggest(first, [*names, *ids]) if ids is not None and first not in ids else ""
        if hint:
            raise ValueError(f"{name}: no such option{hint.replace('mean ', 'mean --')}")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ValueError(f"{name}: no value; give {name} VALUE")
            value = rest.pop(0)
        out.append(f"--set={name[2:]}={value}")
    return out


def to_value(text: str) -> Any:
    """A word of the command line as Python reads it: number, list, ``True``, ``None``; anything else is text."""
    try:
        return ast.literal_eval({"true": "True", "false": "False", "null": "None"}.get(text, text))
    except (ValueError, SyntaxError):
        return text


def overrides_of(options: argparse.Namespace) -> dict[str, Any]:
    """Ids of the configs that the options mean.

    Raises:
        ValueError, FileNotFoundError: in one line.
    """
    made: dict[str, Any] = {"bundle_root": str(ROOT), "output_dir": options.output}
    if options.device is not None:
        made["device"] = options.device
    given = {}
    for item in options.set:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise ValueError(f"--set {item}: write --set ID=VALUE")
        given[name.replace("::", "#")] = to_value(value)
    commands = {"segment": _segment, "complete": _complete, "train": _train, "evaluate": _evaluate}
    made |= commands[options.command](options)
    if getattr(options, "weights", None) is not None:
        own = ROOT / "models" / f"{options.weights}.pt"
        made["ckpt_path"] = str(own) if own.is_file() and not os.path.exists(options.weights) else options.weights
    return made | given


def _segment(options: argparse.Namespace) -> dict[str, Any]:
    made: dict[str, Any] = {}
    support = [{"image": image, "label": label} for image, label in options.support]
    if support:
        made["support"] = support
        own = {os.path.realpath(file) for entry in support for file in entry.values()}
        made["datalist"] = [{"image": scan} for scan in _list_scans(options.scans, own)]
        made["dataset_dir"] = _folder_of_names(support[0]["label"])
    elif len(options.scans) == 1 and Path(options.scans[0], "imagesTr").is_dir():
        made["dataset_dir"] = options.scans[0]
    else:
        _list_scans(options.scans)  # what does not exist is said first
        raise ValueError(
            "no support: give a labelled scan, --support IMAGE LABEL, or a data set with labelled scans, "
            "which alpnet prepare makes of a folder"
        )
    if options.labels is not None:
        value = to_value(options.labels)
        listed = value if isinstance(value, (list, tuple)) else str(options.labels).split(",")
        made["labels"] = [to_value(item.strip()) if isinstance(item, str) else item for item in listed]
    return made


def _complete(options: argparse.Namespace) -> dict[str, Any]:
    own = {"image": options.scan, "label": options.label, "slices": "labelled"}
    others = [{"image": image, "label": label} for image, label in options.support]
    names = _folder_of_names(options.label)
    return {"support": [own, *others], "datalist": [{"image": options.scan}], "dataset_dir": names}


def _train(options: argparse.Namespace) -> dict[str, Any]:
    made: dict[str, Any] = {"ckpt_dir": os.path.join(options.output, "models")}
    if len(options.scans) == 1 and Path(options.scans[0]).is_dir():
        made["dataset_dir"] = options.scans[0]
    else:
        scans = _list_scans(options.scans)
        made |= {"images": [{"image": scan} for scan in scans], "dataset_dir": os.path.dirname(scans[0]) or "."}
    if options.epochs is not None:
        made["max_epochs"] = options.epochs
    return made


def _evaluate(options: argparse.Namespace) -> dict[str, Any]:
    if not Path(options.dataset).is_dir():
        raise FileNotFoundError(f"{options.dataset}: no such data set; give a folder with imagesTr and labelsTr")
    given = {"protocol": options.protocol, "fold": options.fold}
    return {"dataset_dir": options.dataset, **{key: value for key, value in given.items() if value is not None}}


def _list_scans(paths: Sequence[str], support: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
    """Files as they are; of folders their scans, those of a data set in ``imagesTs`` or ``imagesTr``.

    Args:
        paths: files and folders.
        support: real paths of labelled scans and their labels, which are left out of folders.
    """
    from bundle.data.datalist import list_images
    from bundle.data.fingerprint import unread_files
    from bundle.data.prepare import is_label_map

    scans: list[str] = []
    for path in paths:
        folder = next((Path(path, name) for name in ("imagesTs", "imagesTr") if Path(path, name).is_dir()), Path(path))
        if folder.is_dir():
            found = [image for image in list_images(folder) if os.path.realpath(image) not in support]
            labels = {image for image in found if folder == Path(path) and is_label_map(image)}
            if labels:
                names = ", ".join(os.path.basename(label) for label in sorted(labels))
                print(f"left aside as label maps: {names}; give the file itself to segment it")
            for line in unread_files(folder, path):
                print(line)
            found = [image for image in found if image not in labels]
            if not found:
                raise ValueError(f"{folder}: no scans to segment; give NIfTI files, or use alpnet prepare for others")
            scans += found
        elif not folder.is_file():
            raise FileNotFoundError(f"{path}: no such scan or folder")
        else:
            scans.append(path)
    return list(dict.fromkeys(scans))


def _folder_of_names(label: str) -> str:
    """Where the names of a label's values are: the next folder above it with a ``dataset.json``."""
    folders = list(Path(os.path.abspath(label)).parents)[:2]
    return str(next((folder for folder in folders if (folder / "dataset.json").is_file()), folders[0]))


def config_files(command: str, overlays: Sequence[str]) -> list[str]:
    """Files of a command's configs, in order.

    Raises:
        FileNotFoundError: for an overlay that does not exist.
    """
    names = {"train": ["train"], "evaluate": ["inference", "evaluate"]}.get(command, ["inference"])
    files = [str(ROOT / "configs" / f"{name}.json") for name in names]
    for overlay in overlays:
        own = ROOT / "configs" / f"{overlay.removesuffix('.json')}.json"
        if not Path(overlay).is_file() and not own.is_file():
            there = ", ".join(sorted(path.stem for path in own.parent.glob("*.json")))
            raise FileNotFoundError(f"{overlay}: no such config; give a file or one of {there}")
        files.append(overlay if Path(overlay).is_file() else str(own))
    return files


def run(kind: str, files: Sequence[str], overrides: Mapping[str, Any]) -> None:
    """Run configs as ``python -m monai.bundle run`` does, without what MONAI says about itself."""
    from monai.bundle import ConfigWorkflow

    logging.getLogger("monai.bundle.workflows").setLevel(logging.WARNING)
    bundle = str(ROOT / "configs")
    workflow = ConfigWorkflow(
        config_file=list(files),
        meta_file=os.path.join(bundle, "metadata.json"),
        logging_file=os.path.join(bundle, "logging.conf"),
        workflow_type="train" if kind == "train" else "inference",
        **overrides,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def parse(typed: Sequence[str]) -> argparse.Namespace:
    """Read a command line; a mistake ends the program with one line, and with the most similar name if there is one."""
    from bundle.ids import suggest

    parser = make_parser()
    if not typed:
        return parser.parse_args([])
    command, commands = typed[0], commands_of(parser)
    if command not in commands and not command.startswith("-") and suggest(command, commands):
        parser.error(f"argument COMMAND: invalid choice: {command!r}{suggest(command, commands)}")
    try:
        asks = {"-h", "--help"} & set(typed)
        ids = None if asks else ids_of(command, typed) if command in commands else set()
        words = collect_ids(typed, options_of(parser, command), ids)
    except ValueError as error:
        commands.get(command, parser).error(str(error))
    return parser.parse_args(words)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    from bundle.errors import explain_errors

    explain_errors()
    typed = list(sys.argv[1:] if arguments is None else arguments)
    if typed and typed[0] in SCRIPTS:
        from importlib import import_module

        import_module(f"scripts.{typed[0]}").main(typed[1:], name=f"alpnet {typed[0]}")
        return
    options = parse(typed)
    if options.version:
        from bundle import __version__

        print(f"alpnet {__version__}")
    elif options.command is None:
        make_parser().print_help()
    else:
        warnings.filterwarnings("ignore")  # of packages, about themselves; what concerns a user is logged
        files, overrides = config_files(options.command, options.config), overrides_of(options)
        from bundle.options import check_options

        check_options(files, overrides)
        run(options.command, files, overrides)


if __name__ == "__main__":
    main()
