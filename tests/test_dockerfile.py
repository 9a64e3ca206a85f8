"""The Dockerfile: its syntax, and that its steps are those of the README."""

from __future__ import annotations

import json
import re

from .conftest import ROOT

INSTRUCTIONS = {"FROM", "WORKDIR", "COPY", "RUN", "ENTRYPOINT", "CMD"}


def instructions():
    """Instruction and argument of each line; continued lines as one."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text())
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line and not line.startswith("#")]


def test_dockerfile_is_well_formed():
    found = instructions()
    assert {name for name, _ in found} == INSTRUCTIONS
    assert found[0][0] == "FROM"
    for name, argument in found:
        if name in ("ENTRYPOINT", "CMD"):
            assert all(isinstance(word, str) for word in json.loads(argument))
        if name == "COPY":
            assert all((ROOT / source).exists() for source in argument.split()[:-1])
    for line in (ROOT / ".dockerignore").read_text().split():
        assert not line.startswith(("bundle", "configs", "models", "scripts", "pyproject", "README", "LICENSE"))


def test_its_steps_are_those_of_the_readme():
    readme, project = (ROOT / "README.md").read_text(), (ROOT / "pyproject.toml").read_text()
    found = dict(instructions())
    image, wanted = re.match(r"python:(3\.\d+)-slim", found["FROM"]), re.search(r"Python (3\.\d+) to (3\.\d+)", readme)
    numbers = [tuple(map(int, version.split("."))) for version in (wanted[1], image[1], wanted[2])]
    assert numbers == sorted(numbers)
    assert "pip install ." in readme
    extras = re.fullmatch(r'pip install --no-cache-dir "\.\[(.+)\]"', found["RUN"])[1].split(",")
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras)
    [command] = json.loads(found["ENTRYPOINT"])
    assert re.search(rf"^{command} = ", project, re.MULTILINE)
    example = re.search(r"docker run .* alpnet (segment .*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[1]
    assert f"alpnet {example}" in readme
