"""Guards of the package as a whole."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from .conftest import ROOT

FILES = sorted((ROOT / "bundle").rglob("*.py"))


def imported(file):
    """Modules that a file imports, with the dots of relative imports."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, bundle; print(sorted({'torch', 'monai', 'numpy', 'skimage'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_go_down_and_stay_inside(file):
    modules = list(imported(file))
    roots = {module.split(".")[0] for module in modules if not module.startswith(".")}
    assert not roots & {"bundle", "scripts", "tests", "fire"}
    assert "ignite" not in roots or file.parent.name == "handlers"
    if file.parent.name in ("networks", "blocks", "nets", "encoders", "losses"):
        assert not [m for m in modules if m.startswith(".") and "transforms" in m or m.startswith("..data")]


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_no_assert_print_or_path_of_a_machine(file):
    text = file.read_text()
    tree = ast.parse(text)
    assert not [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Assert)]
    calls = [n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    assert "print" not in calls or file.name == "errors.py"
    assert not [word for word in ("/home/", "/Users/", "/mnt/", "/tmp/") if word in text]


def test_every_folder_of_the_package_is_a_package():
    folders = {file.parent for file in FILES}
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]


@pytest.mark.parametrize("first", ["bundle.transforms", "bundle.data"])
def test_parts_can_be_imported_in_any_order(first):
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", f"import {first}"], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr[-500:]
