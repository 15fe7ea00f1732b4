"""The shape of the code, held by its syntax trees: what may import what, what help must not pay for, how long."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import dtl

PACKAGE = Path(dtl.__file__).parent
PYPROJECT = PACKAGE.parent / "pyproject.toml"
FILES = {
    file.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"): file
    for file in sorted(PACKAGE.rglob("*.py"))
}
MODULES = [name for name, file in FILES.items() if file.stem != "__init__"]

# From the bottom to the top. A module may import its own group and every layer below, but no other group of its
# own layer: data and model never meet, and generation knows no training.
LAYERS: list[dict[str, str]] = [
    {
        "foundation": "errors paths registry durable runtime stop_signals records.json_lines records.redaction"
        " terminal.safe_text sweeps.config sweeps.search_config sweeps.records sweeps.trial data.config model.config"
        " training.config generation.config diagnostics.config"
    },
    {"data": "data.*", "model": "model.*"},
    {
        "training": "training.*",
        "generation": "generation.*",
        "checkpoint": "checkpoint checkpoints.*",
        "tracking": "tracking records.provenance records.wandb_sink",
    },
    {"run state": "records.run_state"},
    {"config": "config"},
    {"settings": "terminal.config evaluation.config benchmarks.config housekeeping.config reports.config"},
    {"evaluation": "evaluation.*"},
    {"run": "assemble session run display screens terminal.evaluation_report"},
    {"door": "commandline.*"},
    {"sweeps": "sweeps.*"},
    {
        "terminal": "terminal.*",
        "diagnostics": "diagnostics.*",
        "housekeeping": "housekeeping.*",
        "reports": "reports.*",
        "notebook": "notebook.*",
    },
    {"benchmarks": "benchmarks.*"},
    {"commands": "train sweep chat generate evaluate diagnose prepare bench report runs"},
]
OF_EXTRAS = {"reports.*": "report", "sweeps.*": "sweep"}  # what may import more than the core depends on
FOR_TYPES_ALONE = {"registry"}  # names the parts that it leads to, and their types for type checkers
MOST_LINES_IN_A_FILE = 280
MOST_LINES_IN_A_FUNCTION = 65


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def place(module: str) -> tuple[int, str]:
    """Layer and group of a module; the first that names it."""
    for number, groups in enumerate(LAYERS):
        for group, patterns in groups.items():
            if any(fnmatchcase(module, pattern) for pattern in patterns.split()):
                return number, group
    raise AssertionError(f"dtl.{module} has no layer: give it one in tests/test_layers.py")


def statements(module: str) -> Iterator[ast.AST]:
    for node in tree(module).body:
        if module not in FOR_TYPES_ALONE or ast.unparse(getattr(node, "test", ast.Pass())) != "TYPE_CHECKING":
            yield from ast.walk(node)


def imported(module: str) -> Iterator[str]:
    """Full names of what a module imports, inside functions and, but for the registries, for type checking too."""
    for node in statements(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"dtl.{module}: relative imports hide where a name comes from"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole.removeprefix("dtl.") in FILES else str(node.module)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards(module):
    layer, group = place(module)
    for name in imported(module):
        other = name.removeprefix("dtl.")
        if name == "dtl" or not name.startswith("dtl.") or other == module:
            continue
        assert other in MODULES, f"dtl.{module} imports {name}, which is no module"
        below, beside = place(other)
        assert below < layer or (below, beside) == (layer, group), f"dtl.{module} must not import {name}"


def test_nobody_imports_a_command():
    commands = {f"dtl.{name}" for name in MODULES if place(name)[1] == "commands"}
    assert commands
    assert not {(name, target) for name in MODULES for target in imported(name) if target in commands - {f"dtl.{name}"}}


def test_packages_re_export_nothing():
    for name, file in FILES.items():
        if file.stem == "__init__":
            names = [type(node).__name__ for node in tree(name).body if not isinstance(node, ast.Expr)]
            assert names in ([], ["Assign"]), f"{file}: only a docstring and __version__ belong here"


def test_no_torch_before_training_starts():
    """Help and refusals answer in under a second; torch alone takes two, transformers five. A sweep runs for a night
    beside its trials: the memory is theirs."""
    groups = ("foundation", "config", "settings", "door", "sweeps", "commands")
    light = [name for name in MODULES if place(name)[1] in groups]
    program = f"""
import sys
sys.argv[1:] = ["--help"]
import {", ".join(f"dtl.{name}" for name in light if name != "runtime")}
dtl.train.main()
heavy = "torch transformers tokenizers datasets pyarrow wandb huggingface_hub".split()
print(*sorted({{name for name in heavy if name in sys.modules}}), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "optimizer.lr" in done.stdout
    assert done.stderr.split() == []


def test_third_party_imports_are_declared_and_declarations_used():
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    extras = {pattern: _distributions(project["optional-dependencies"][extra]) for pattern, extra in OF_EXTRAS.items()}
    declared = _distributions(project["dependencies"])
    used: set[str] = set()
    of_extras: set[str] = set()
    for module in MODULES:
        allowed = declared.union(*(needs for pattern, needs in extras.items() if fnmatchcase(module, pattern)))
        imports = third_party(module)
        assert imports - allowed == set(), f"dtl.{module}"
        used |= imports & declared
        of_extras |= imports - declared
    assert declared - used == {"transformers"}  # what loads DTL's checkpoints elsewhere
    assert extras["reports.*"] - of_extras == set()


def third_party(module: str) -> set[str]:
    """The distributions that a module imports."""
    tops = {name.partition(".")[0] for name in imported(module)} - {"dtl"} - sys.stdlib_module_names
    return {_owners()[top][0].lower().replace("_", "-") for top in tops}


@cache
def _owners() -> Mapping[str, list[str]]:
    return packages_distributions()


def _distributions(requirements: list[str]) -> set[str]:
    return {_distribution(requirement) for requirement in requirements}


def _distribution(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement)[0].lower()


def test_nothing_is_pickled():
    """A checkpoint or cache in somebody else's folder must not be able to run code."""
    forbidden = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    for module in MODULES:
        assert not forbidden & {name.partition(".")[0] for name in imported(module)}, module
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
                assert node.attr not in ("load", "save"), f"dtl.{module}:{node.lineno}"


def test_shapes_of_the_model_change_by_einops():
    changing = {"view", "reshape", "transpose", "permute", "unsqueeze", "squeeze", "flatten", "swapaxes", "movedim"}
    for module in (name for name in MODULES if name.startswith("model.")):
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert node.func.attr not in changing, f"dtl.{module}:{node.lineno}: .{node.func.attr}()"


@pytest.mark.parametrize("module", MODULES)
def test_files_and_functions_stay_short(module):
    n_lines = len(FILES[module].read_text(encoding="utf-8").splitlines())
    assert n_lines <= MOST_LINES_IN_A_FILE
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MOST_LINES_IN_A_FUNCTION, f"{node.name}: {length} lines"
