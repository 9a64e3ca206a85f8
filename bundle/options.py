"""The ids of the configs that a user may set: what no config knows is refused, in one line, before any work."""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from pydoc import locate
from typing import Any

from monai.bundle import ConfigParser, run
from monai.bundle.config_item import ComponentLocator, ConfigComponent
from monai.bundle.reference_resolver import ReferenceResolver
from monai.bundle.scripts import create_workflow, update_kwargs
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS, merge_kv
from monai.bundle.workflows import ConfigWorkflow
from monai.utils import optional_import

from .commands import next_command
from .ids import MEANINGS, SEP, optional_parts, strings, suggest, switches, walk

APPEND = "+"
ONLY_IN_FILES = "+ appends in a config file only; write an overlay, or set the whole id"
ALWAYS_KNOWN = ("imports", "initialize", "run", "finalize", MEANINGS)  # MONAI looks for them in every config
BASE = "bundle_root"  # an id that whole configs have, and overlays have not
WORDS = ("none", "null", "off", "no", "false", "on", "yes", "true")  # typed for a value, they stay words
RUN_ARGUMENTS = frozenset(
    name
    for function in (run, create_workflow, ConfigWorkflow.__init__)
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and name != "self"
)


def check_command_line(arguments: Sequence[str] | None = None) -> None:
    """Check what was typed behind ``python -m monai.bundle run``; other programs have their own checks.

    Called by the configs when a run starts.

    Args:
        arguments: the command line, the program first; by default that of this process.

    Raises:
        ValueError, FileNotFoundError: see :func:`check_options`; also for ``None``, which MONAI drops without a word.
    """
    program, *typed = sys.argv if arguments is None else arguments
    if not typed or typed[0] not in ("run", "run_workflow") or Path(program).parts[-3:-1] != ("monai", "bundle"):
        return
    fire, _ = optional_import("fire")  # which MONAI's own command line, that is running, reads its words with

    def collect(run_id: Any = None, init_id: Any = None, final_id: Any = None, **others: Any) -> dict[str, Any]:
        return {"run_id": run_id, "init_id": init_id, "final_id": final_id, **others}

    given = fire.Fire(collect, command=list(typed[1:]), serialize=lambda _: None)
    for key in given:
        if key.startswith(APPEND):
            raise ValueError(f"--{key}: {ONLY_IN_FILES}")
    nothing = [key for key, value in given.items() if key not in RUN_ARGUMENTS and value is None]
    merged = update_kwargs(given.pop("args_file", None), **given)
    overrides = {key: value for key, value in merged.items() if key not in RUN_ARGUMENTS}
    overrides |= dict.fromkeys(nothing, "$None")
    files = merged.get("config_file") or []
    check_options(files, overrides, tracking=merged.get("tracking"))
    for key in nothing:
        parser = ConfigParser()
        parser.read_config(files)
        can_be_off = _can_be_off(key.replace("::", SEP), parser.get())
        advice = f"type --{key} False to switch it off" if can_be_off else f"type --{key} '$None' for null"
        raise ValueError(f"--{key} None: MONAI ignores None here; {advice}")


def read_config(files: Sequence[str | os.PathLike], overrides: Mapping[str, Any]) -> ConfigParser:
    """Configs laid over each other and ids overridden, after a check.

    Raises:
        ValueError, FileNotFoundError: see :func:`check_options`.
    """
    check_options(files, overrides, prefix="")
    parser = ConfigParser()
    parser.read_config([str(file) for file in files])
    parser.update(dict(overrides))
    return parser


def as_arguments(overrides: Mapping[str, Any]) -> list[str]:
    """Ids and values as words of a command line; ``None`` as an expression, since MONAI drops the word."""
    return [part for key, value in overrides.items() for part in (f"--{key}", "$None" if value is None else str(value))]


def check_options(
    files: str | os.PathLike | Sequence[str | os.PathLike],
    overrides: Mapping[str, Any] | None = None,
    tracking: str | Mapping[str, Any] | None = None,
    prefix: str = "--",
) -> None:
    """Raise unless every id that an overlay or an override sets is one that the run has.

    An id counts as known if the configs have it or say what it means (``_meanings_``), if something refers to it
    (``@id``), or if it is an argument of the component that it is set in. An overlay may set ids of any whole config
    beside it, so that one file serves training and inference, and append to what is there (``+id``).

    Args:
        files: the first is the whole config, the others are laid over it in turn.
        overrides: ids and values that come last.
        tracking: settings of experiment tracking, which bring ids of their own.
        prefix: what a message writes before an id of the overrides.

    Raises:
        FileNotFoundError: if a config does not exist.
        ValueError: naming the id, where it is set, and the most similar one that there is.
    """
    paths = [Path(file) for file in ([files] if isinstance(files, (str, os.PathLike)) else files)]
    for path in paths:
        _check_file(path)
    if not paths:
        return
    contents = [ConfigParser.load_config_file(path) for path in paths]
    config = ConfigParser(deepcopy(contents[0]))
    config.config.setdefault(ConfigParser.meta_key, {})
    shared = {key for path in paths[:2] for key in _ids_of_whole_configs(path.parent)}
    settings = _Settings(config, shared)
    for path, content in zip(paths[1:], contents[1:]):
        for key, value in content.items():
            settings.add(key, value, f"{path.name}: ", is_file=True)
    for key, value in (overrides or {}).items():
        settings.add(key, value, prefix, is_file=False)
    settings.check(_tracking_ids(tracking))


class _Settings:
    """Lays settings over a config, one by one, and remembers what has to be checked when all are there."""

    def __init__(self, parser: ConfigParser, shared: set[str]) -> None:
        self.parser = parser
        self.base = deepcopy(parser.get())
        self.shared = shared  # ids that an overlay may have for another config's sake
        self.new: list[tuple[str, str, list[str]]] = []  # ids to which something must refer, where set, those beside
        self.touched: list[tuple[str, str]] = []

    def add(self, key: str, value: Any, where: str, is_file: bool) -> None:
        """Set one id."""
        name = key.replace("::", SEP)
        appends = name.startswith(APPEND)
        if appends and not is_file:
            raise ValueError(f"{where}{name}: {ONLY_IN_FILES}")
        name = name[len(APPEND) :] if appends else name
        old = self._check_path(name, where, is_file)
        if not is_file:
            _check_word(f"{where}{name}", value, old)
            if value is False and not _can_be_off(name, self.base if name in self.base else self.parser.get()):
                raise ValueError(f"{where}{name} False: this is no switch; leave it out, or give another value")
            is_part = not isinstance(value, (str, int, float, list, tuple)) or str(value).startswith(("$", "@", "%"))
            if value is not False and not is_part and name in optional_parts(self.parser.get()):
                raise ValueError(f"{where}{name} {value}: give False to switch it off, or a part with a _target_")
            if value is False and ConfigComponent.is_instantiable(old) and name not in switches(self.parser.get()):
                raise ValueError(f"{where}{name}: this part cannot be switched off; give another _target_ instead")
        if not appends and _is_plain(old) and _is_plain(value) and old and not (is_file and name in self.shared):
            for part in sorted(set(map(str, value)) - set(map(str, old))):
                self.new.append((f"{name}{SEP}{part}", where, list(map(str, old))))
        self.touched.append((name, where))
        merge_kv(self.parser, f"{APPEND}{name}" if appends else name, deepcopy(value))

    def check(self, known: set[str]) -> None:
        """Raise for ids that nothing refers to and arguments that a component does not take."""
        config = self.parser.get()
        known = known | set(config.get(MEANINGS, {}))
        for name, where, beside in self.new:
            if name not in known and not _is_referred_to(name, config):
                raise ValueError(f"{where}{name}: {self._unknown(name, beside)}")
        for name, where in self.touched:
            parent = name.rpartition(SEP)[0]
            if parent and ConfigComponent.is_instantiable(self.parser.get(parent)):
                _check_component(parent, self.parser[parent], where)
            for inner, item in _components(self.parser.get(name), name):
                _check_component(inner, item, where)

    def _check_path(self, name: str, where: str, is_file: bool) -> Any:
        """The value that an id has so far, or ``None``; raises where an id leads nowhere."""
        parts = name.split(SEP)
        item = self.parser.get()
        for depth, part in enumerate(parts):
            path, last = SEP.join(parts[:depth]), depth == len(parts) - 1
            if isinstance(item, list):
                if not part.isdigit() or int(part) >= len(item):
                    raise ValueError(f"{where}{name}: {path} is a list of {len(item)}, numbered from 0")
                item = item[int(part)]
            elif not isinstance(item, Mapping):
                hint = f"; set {item[1:].replace('::', SEP)} instead" if str(item).startswith("@") else ""
                raise ValueError(f"{where}{name}: {path} has no parts, it is {item!r}{hint}")
            elif part in item:
                item = item[part]
            elif not last:
                raise ValueError(f"{where}{name}: {self._unknown(SEP.join(parts[: depth + 1]), list(item))}")
            else:
                if depth == 0 and (name in ALWAYS_KNOWN or (is_file and name in self.shared)):
                    return None
                if not ConfigComponent.is_instantiable(item):  # else its class decides, when all is set
                    self.new.append((name, where, list(map(str, item))))
                return None
        return item

    def _unknown(self, name: str, beside: Sequence[str]) -> str:
        """Why an id is refused, given the ids beside it."""
        parent, _, last = name.rpartition(SEP)
        names = [str(key) for key in beside if str(key) != last and not str(key).startswith("_")]
        if parent:
            hint = suggest(last, names).replace("did you mean ", f"did you mean {parent}{SEP}")
            return f"the configs have no such id{hint or f'; {parent} has ' + ', '.join(names[:20])}"
        inner = [
            path for path, _ in walk(self.parser.get()) if path.endswith(f"{SEP}{name}") and not path.startswith("_")
        ]
        hint = f"; did you mean {min(inner, key=len)}?" if inner else ""
        hint = suggest(last, [*names, *RUN_ARGUMENTS]) or hint
        return f"the configs have no such id{hint or '; ' + next_command('options') + ' lists them'}"


def _can_be_off(name: str, config: Any) -> bool:
    """Whether ``False`` means anything for an id of a whole config: not for a number, a list or a path.

    What a component takes for an argument, its class decides.
    """
    value = config.get(name) if isinstance(config, Mapping) else None
    is_other = isinstance(value, (int, float, list)) or (isinstance(value, str) and "bundle_root" in value)
    return SEP in name or isinstance(value, bool) or name in switches(config) or not is_other


def _check_file(path: Path) -> None:
    """Raise unless a file is a config that can be read."""
    if not path.is_file():
        folder = path.parent if path.is_absolute() or path.parent.is_dir() else Path("configs")
        there = [file.stem for file in folder.glob("*.json")]
        hint = suggest(path.stem, there).replace("mean ", f"mean {folder}{os.sep}").replace("?", ".json?")
        raise FileNotFoundError(f"{path}: no such config{hint}")
    if not re.fullmatch(ConfigParser.suffix_match, path.name, re.IGNORECASE):
        raise ValueError(f"{path}: a config is a .json or .yaml file")
    if path.suffix.lower() == ".json":
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: not valid JSON: {error}") from None
        if not isinstance(content, dict):
            raise ValueError(f"{path}: a config must be a dictionary of ids, got {type(content).__name__}")


def _check_word(shown: str, value: Any, old: Any) -> None:
    """Raise for what was typed to switch something off or on, and would stay a word, which counts as on."""
    is_text = isinstance(old, str) and not old.startswith(("$", "@"))
    if isinstance(value, str) and value.lower() in WORDS and not is_text:
        right = value.lower() in ("on", "yes", "true")
        raise ValueError(f"{shown} {value}: this is taken for a word; type {shown} {right}")


def _check_component(name: str, item: Mapping[str, Any], where: str) -> None:
    """Raise unless a component's class or function exists and takes its arguments."""
    target = item["_target_"]
    function = _locate(target) if isinstance(target, str) and not target.startswith(("$", "@", "%")) else target
    if function is None:
        module, _, last = target.rpartition(".")
        beside = dir(locate(module)) if module else []
        raise ValueError(f"{where}{name}{SEP}_target_: no such class or function: {target}{suggest(last, beside)}")
    try:
        parameters = inspect.signature(function).parameters
    except (ValueError, TypeError):  # written in C, or an expression
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for key in item:
        if key not in parameters and key not in ConfigComponent.non_arg_keys:
            raise ValueError(
                f"{where}{name}{SEP}{key}: {target} has no such argument{suggest(key, parameters)}"
                f" ({', '.join(parameters) or 'it takes none'})"
            )


_LOCATOR = ComponentLocator()


def _locate(target: str) -> Callable | None:
    """The class or function of a name, as MONAI finds it."""
    module = _LOCATOR.get_component_module_name(target) if "." not in target else None
    if module:
        target = f"{module if isinstance(module, str) else module[0]}.{target}"
    try:
        found = locate(target)
    except Exception as error:  # of the module that is imported
        raise ValueError(f"{target}: its module cannot be imported: {error}") from None
    return found if callable(found) else None


def _is_plain(item: Any) -> bool:
    return isinstance(item, Mapping) and not ConfigComponent.is_instantiable(item)


def _components(item: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    return ((inner, value) for inner, value in walk(item, path) if ConfigComponent.is_instantiable(value))


def _is_referred_to(name: str, config: Any) -> bool:
    """Whether something outside of an id refers to it or to a part of it."""
    for path, value in strings(config):
        if path == name or path.startswith(f"{name}{SEP}"):
            continue
        references = {ref.replace("::", SEP) for ref in ReferenceResolver.match_refs_pattern(value)}
        if value.startswith("%"):
            references.add(value[1:].replace("::", SEP))
        if any(ref == name or ref.startswith(f"{name}{SEP}") for ref in references):
            return True
    return False


def _ids_of_whole_configs(folder: Path) -> set[str]:
    """Top-level ids of the whole configs of a folder."""
    found: set[str] = set()
    for path in folder.glob("*.json"):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError):  # a file that no run names may be anything
            continue
        if isinstance(content, dict) and BASE in content:
            found |= set(content)
    return found


def _tracking_ids(tracking: str | Mapping[str, Any] | None) -> set[str]:
    if tracking is None:
        return set()
    if isinstance(tracking, str) and tracking in DEFAULT_EXP_MGMT_SETTINGS:
        settings = DEFAULT_EXP_MGMT_SETTINGS[tracking]
    else:
        settings = ConfigParser.load_config_files(tracking)
    return set(settings["configs"])
