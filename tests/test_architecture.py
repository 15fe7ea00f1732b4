"""The map: every path in ARCHITECTURE.md exists, names in it are defined where it says, and no folder is missing."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
PATHS = sorted(set(re.findall(r"`((?:dtl|conf|experiments|hydra_plugins|tests)/[\w./]*)`", TEXT)))
NAMES = re.findall(r"`(dtl/[\w/]+\.py)` \(`(\w+)`\)", TEXT)
CHANGES = TEXT.partition("## Where does a change go?")[2]


@pytest.mark.parametrize("path", PATHS)
def test_each_path_exists(path):
    assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file()


@pytest.mark.parametrize(("path", "name"), NAMES)
def test_each_name_is_defined_in_its_file(path, name):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_every_folder_is_on_the_map():
    folders = {f"dtl/{folder.name}/" for folder in (ROOT / "dtl").iterdir() if (folder / "__init__.py").exists()}
    subfolders = {file.parent.name for file in (ROOT / "dtl/data").glob("*/__init__.py")}
    table = TEXT.partition("## One training step")[0]
    assert all(folder.removeprefix("dtl/") in table for folder in folders)
    assert all(f"{name}/" in table for name in subfolders)


def test_plausible_changes_have_their_place():
    rows = [line for line in CHANGES.splitlines() if line.startswith("| ") and "`dtl/" in line]
    assert len(rows) == 11 and len(NAMES) >= 9
    assert len(TEXT.splitlines()) <= 90  # one page
