"""The shape of the code, held by its syntax trees: what may import what, what help must not pay for, how long."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
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

# From the bottom to the top: folders, each of one layer. A module may import its own folder and every layer below, but
# no other folder of its own layer: data and model never meet, and generation knows no training. Of a folder only its
# config.py (settings, without torch) belongs to the lowest layer.
LAYERS: list[str] = [
    "errors registry base */config.py",
    "data | model",
    "training | generation | checkpoints | tracking",
    "run_dir",
    "config",
    "evaluation",
    "runner",
    "commandline",
    "sweeps",
    "terminal | diagnostics | housekeeping | reports | notebook | foresight",
    "benchmarks",
    "api",
    "__main__ | train | sweep | chat | generate | evaluate | diagnose | plan | prepare | bench | report | runs",
]
OF_EXTRAS = {"reports.*": "report", "sweeps.*": "sweep"}  # what may import more than the core depends on
MAX_FILES = 208  # without the __init__.py
MAX_SMALL_FILES = 10  # of fewer than 40 lines, for one importer alone
MAX_LINES_IN_A_FILE = 450
MAX_LINES_IN_TRANSFORMER = 600  # norm, mlp, positions, attention, block and model, read in one sitting
MAX_LINES_IN_A_FUNCTION = 65


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def place(module: str) -> tuple[int, str]:
    """Layer and group of a module: of its folder, or of its own name where it lies in none."""
    folder, _, rest = module.partition(".")
    name = "*/config.py" if rest == "config" else folder
    for number, groups in enumerate(LAYERS):
        for group in groups.split(" | "):
            if name in group.split():
                return number, group
    raise AssertionError(f"dtl.{module} has no layer: give its folder one in tests/test_layers.py")


def imported(module: str) -> Iterator[str]:
    """Full names of what a module imports, inside functions and for type checking too."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"dtl.{module}: relative imports hide where a name comes from"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full.removeprefix("dtl.") in FILES else str(node.module)


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
    commands = {f"dtl.{name}" for name in MODULES if place(name)[0] == len(LAYERS) - 1}
    assert commands
    assert not {(name, target) for name in MODULES for target in imported(name) if target in commands - {f"dtl.{name}"}}


def test_nobody_imports_the_face():
    """DTL in Python is for users; `dtl/__init__.py` names what is in it, and imports it when it is used."""
    assert not [(name, target) for name in MODULES for target in imported(name) if target.startswith("dtl.api.")
                and not name.startswith("api.")]  # fmt: skip


def test_packages_re_export_nothing():
    """Only `dtl` itself has names, and their imports run when a name is used."""
    for name, file in FILES.items():
        if file.stem == "__init__" and file.parent != PACKAGE:
            names = [type(node).__name__ for node in tree(name).body if not isinstance(node, ast.Expr)]
            assert names in ([], ["Assign"]), f"{file}: only a docstring and __version__ belong here"


def test_the_names_of_dtl_are_the_same_for_users_and_type_checkers():
    (block,) = (node for node in tree("__init__").body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    checked = {alias.asname or alias.name: f"{node.module}:{alias.name}" for node in imports for alias in node.names}
    assert checked == dtl._PLACES
    assert {*checked, "__version__"} == set(dtl.__all__) <= set(dir(dtl))
    assert not {f"dtl.{name}" for name in checked} & {f"dtl.{name}" for name in MODULES}
    for name in checked:
        assert getattr(dtl, name).__doc__
    with pytest.raises(AttributeError, match="module 'dtl' has no attribute 'fitt'"):
        getattr(dtl, "fitt")  # noqa: B009


def test_no_torch_before_training_starts():
    """Help and refusals answer in under a second; torch alone takes two, transformers five. A sweep runs for a night
    beside its trials: the memory is theirs."""
    groups = (LAYERS[0], "config", "commandline", "sweeps", *LAYERS[-1].split(" | "))
    light = [name for name in MODULES if place(name)[1] in groups]
    program = f"""
import sys
sys.argv[1:] = ["--help=all"]
import {", ".join(f"dtl.{name}" for name in light if name != "base.runtime")}
dtl.train.main()
heavy = "torch transformers tokenizers datasets pyarrow wandb huggingface_hub".split()
print(*sorted({{name for name in heavy if name in sys.modules}}), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "optimizer.lr" in done.stdout
    assert done.stderr.split() == []


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("words", ["train experiment=demo tracker=local", "prepare data=qa tokenizer=bpe"])
def test_the_first_line_is_shown_before_torch_is_imported(words, elsewhere):
    """It comes within a second; torch takes two more, four on a cold disk."""
    program = f"""
import sys
import dtl.{words.split()[0]} as command
sys.argv[1:] = {words.split()[1:]}
sys.modules["torch"] = None  # an import of it fails
command.main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and "torch: not installed" in done.stderr
    assert "pening the data" in done.stdout + done.stderr


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


def n_lines(module: str) -> int:
    return len(FILES[module].read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("module", MODULES)
def test_files_and_functions_stay_short(module):
    assert n_lines(module) <= (MAX_LINES_IN_TRANSFORMER if module == "model.transformer" else MAX_LINES_IN_A_FILE)
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_LINES_IN_A_FUNCTION, f"{node.name}: {length} lines"


def own_imports(module: str) -> set[str]:
    """The other modules of DTL that a module imports."""
    return {name.removeprefix("dtl.") for name in imported(module)} & set(MODULES) - {module}


def test_no_test_asserts_how_long_something_took():
    """On a busy machine it takes longer. What must not wait for something is tested with something that never comes."""
    elapsed = re.compile(r"assert .*(monotonic|perf_counter|time)\(\) - |deadline=(?!None)", re.IGNORECASE)
    files = [file for file in Path(__file__).parent.rglob("*.py") if file != Path(__file__)]
    lines = [(file.name, line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    assert [(name, line) for name, line in lines if elapsed.search(line)] == []


def test_files_are_few_and_worth_opening():
    assert len(MODULES) <= MAX_FILES
    importers = Counter(name for module in MODULES for name in own_imports(module))
    small = [module for module in MODULES if n_lines(module) < 40 and importers[module] == 1]
    assert len(small) <= MAX_SMALL_FILES, small


def test_no_circle_of_imports_between_files_or_folders():
    files = {module: own_imports(module) for module in MODULES}
    assert circle(files) is None
    folders: dict[str, set[str]] = {}
    for module, names in files.items():
        folders.setdefault(folder_of(module), set()).update(folder_of(name) for name in names)
    assert circle({folder: names - {folder} for folder, names in folders.items()}) is None


def folder_of(module: str) -> str:
    """The folder of a module; settings (config.py) stand apart from theirs, as in LAYERS."""
    folder, _, name = module.rpartition(".")
    return module if name == "config" or not folder else folder


def circle(graph: Mapping[str, set[str]]) -> list[str] | None:
    """Names that lead back to the first of them; None where nothing does."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str] | None:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return None
        found = next(filter(None, (visit(other, [*path, name]) for other in sorted(graph.get(name, ())))), None)
        done.add(name)
        return found

    return next(filter(None, map(lambda name: visit(name, []), sorted(graph))), None)


def test_a_circle_is_seen():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None
