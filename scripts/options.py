"""List what can be set: each id of the configs, its meaning, its default and an example.

Usage: python -m scripts.options [inference|train|evaluate] [ID]
"""

from __future__ import annotations

import ast
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from bundle.commands import COMMAND, is_command, next_command
from bundle.ids import MEANINGS, SEP, suggest, switches, walk

from .command import command

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = {"inference": ("inference",), "train": ("train",), "evaluate": ("inference", "evaluate")}
WIDTH = 120


def options(config: str | None = None, id: str | None = None) -> str:
    """List the ids of a config, or tell all about one.

    Args:
        config: inference, train or evaluate; all three by default.
        id: one of its ids, also an inner one such as registration#reach.

    Raises:
        ValueError: for a name that is none of these, with the most similar one.
    """
    if config is not None and config not in CONFIGS:
        raise ValueError(f"config must be one of {', '.join(CONFIGS)}, got {config!r}{suggest(config, CONFIGS)}")
    if id is not None:
        return "\n".join(detail(config, str(id))) if config else everywhere(str(id))
    return "\n\n".join("\n".join(listing(name)) for name in ([config] if config else CONFIGS))


def read(config: str) -> dict[str, Any]:
    """The top-level ids of a config and its overlay, laid over each other as MONAI does it."""
    content: dict[str, Any] = {}
    for name in CONFIGS[config]:
        for key, value in read_file(name).items():
            old = content.get(key[1:])
            if not key.startswith("+"):
                content[key] = value
            else:
                content[key[1:]] = [*old, *value] if isinstance(old, list) else {**(old or {}), **value}
    return content


def read_file(name: str) -> dict[str, Any]:
    """The content of one config."""
    content: dict[str, Any] = json.loads((ROOT / "configs" / f"{name}.json").read_text(encoding="utf-8"))
    return content


def listing(config: str) -> Iterator[str]:
    """Every id: those that are set often, then the parts that a config is made of."""
    content = read(config)
    meanings = content.pop(MEANINGS)
    if config == "evaluate":
        own = read_file("evaluate")[f"+{MEANINGS}"]
        content = {key: value for key, value in content.items() if key in own}
    files = [f"configs/{name}.json" for name in CONFIGS[config]]
    file = files[0] if len(files) == 1 else f'"{files}"'
    verb = "segment" if config == "inference" else config
    program = f"{COMMAND} {verb} …" if is_command() else f"python -m monai.bundle run --config_file {file}"
    yield f"{config}: {program} --ID VALUE …"
    if config == "evaluate":
        yield "All ids of inference can be set as well."
    off = switches(read(config))
    examples = {key: example(key, value, meanings[key], off) for key, value in content.items()}
    for heading, chosen in (
        ("Settings", [key for key in content if examples[key]]),
        ("Parts, to be replaced in an overlay file", [key for key in content if not examples[key]]),
    ):
        yield f"\n{heading}"
        for key in chosen:
            yield from entry(key, meaning(meanings[key]), short(content[key]), examples[key])
    yield f"\nMore about one, and what is inside it: {next_command('options', config, 'ID')}"


def everywhere(name: str) -> str:
    """One id in the configs that have it, told once for those that say the same."""
    name = name.replace("::", SEP)
    having = [config for config in CONFIGS if name in values(read(config))]
    if not having:
        known = [path for config in CONFIGS for path in values(read(config))]
        raise ValueError(f"no config has an id {name!r}{suggest(name, known)}")
    told: dict[str, list[str]] = {}
    for config in having:
        told.setdefault("\n".join(detail(config, name)), []).append(config)
    return "\n\n".join(f"{', '.join(configs)}:\n{text}" for text, configs in told.items())


def values(content: Mapping[str, Any]) -> dict[str, Any]:
    """Every id of a config with its value."""
    return {path: value for path, value in walk(content) if path and not path.startswith("_")}


def detail(config: str, name: str) -> Iterator[str]:
    """One id: its meaning, and the arguments of the class behind it with their own."""
    content = read(config)
    name = name.replace("::", SEP)
    known = values(content)
    if name not in known:
        raise ValueError(f"{config} has no id {name!r}{suggest(name, known)}")
    value, parent = known[name], known.get(name.rpartition(SEP)[0])
    told = content[MEANINGS].get(name) or arguments(parent).get(name.rpartition(SEP)[2], "")
    yield from entry(name, meaning(told), short(value), example(name, value, told, switches(content)))
    if isinstance(value, Mapping):
        inside = arguments(value)
        for key in [key for key in value if not str(key).startswith("_")] + [key for key in inside if key not in value]:
            yield ""
            path = f"{name}{SEP}{key}"
            default = short(value[key]) if key in value else "of the class"
            told = content[MEANINGS].get(path, inside.get(key, ""))
            yield from entry(path, meaning(told), default, example(path, value.get(key), told, set()))


def entry(name: str, told: str, default: str, shown: str) -> Iterator[str]:
    """The lines of one id."""
    yield name
    for text in (told, f"default {default}" + (f"; for example {shown}" if shown else "")):
        yield from textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)


def meaning(told: Any) -> str:
    """The text of a meaning that may come with an example."""
    return str(told[0] if isinstance(told, list) else told)


def example(name: str, value: Any, told: Any, off: set[str]) -> str:
    """How an id is set on the command line; empty for a part that is no single value."""
    if isinstance(told, list):
        return f"--{name} {quoted(told[1])}"
    inner = [key for key, part in value.items() if is_value(part)] if isinstance(value, Mapping) else []
    inner.sort(key=lambda key: isinstance(value[key], list))  # the short ones first
    shown = [f"--{name}{SEP}{inner[0]} {quoted(value[inner[0]])}"] if inner else []
    if name in off:
        return " or ".join([f"--{name} False", *shown])
    if is_value(value) and value is not None:
        return f"--{name} {quoted(value)}"
    return shown[0] if shown else ""


def is_value(item: Any) -> bool:
    """Whether something is a plain value: no component, no expression, no reference."""
    if isinstance(item, list):
        return all(is_value(part) for part in item)
    return isinstance(item, (bool, int, float)) or (
        isinstance(item, str) and not item.startswith(("$", "@", "bundle."))
    )


def quoted(value: Any) -> str:
    """A value as it is typed in a shell."""
    text = str(value)
    return text if re.fullmatch(r"[\w./:-]+", text) else f'"{text}"'


def short(value: Any) -> str:
    """A default in few words."""
    if isinstance(value, Mapping) and "_target_" in value:
        return str(value["_target_"])
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 80 else text[:77] + "…"


def arguments(item: Any) -> dict[str, str]:
    """What the arguments of a component mean, by the docstring of its class or function in this package."""
    target = item.get("_target_", "") if isinstance(item, Mapping) else ""
    text = docstrings().get(target.rpartition(".")[2], "") if str(target).startswith("bundle.") else ""
    block = re.search(r"^Args:\n((?: +.*\n?|\n)*)", text, re.MULTILINE)
    found: dict[str, str] = {}
    for names, told in re.findall(
        r"^    (\w[\w, ]*): ((?:.*\n?)(?:^ {5,}.*\n?)*)", block[1] if block else "", re.MULTILINE
    ):
        found |= {name.strip(): re.sub(r":\w+:|`", "", " ".join(told.split())) for name in names.split(",")}
    return found


@lru_cache(maxsize=1)
def docstrings() -> dict[str, str]:
    """Docstrings of the public classes and functions of the package, read and not imported."""
    found = {}
    for path in sorted((ROOT / "bundle").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
                found[node.name] = ast.get_docstring(node) or ""
    return found


def main(arguments: Sequence[str] | None = None, name: str = "scripts.options") -> None:
    """Run the command line; bad input ends with one line and a non-zero status."""
    command(options, name, arguments)


if __name__ == "__main__":
    main()
