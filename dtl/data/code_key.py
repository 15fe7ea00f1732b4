"""A hash of code for cache keys: an entry that other code wrote is not reused.

Modules are followed along their import statements, inside functions too, without importing anything.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

# DTL's data modules that shape no cached byte: they choose what is read (the keys hold those settings by value), ask
# whether the hub answers, or store entries. Modules outside dtl.data shape none either.
SHAPE_NOTHING = frozenset(f"dtl.data.{name}" for name in ("cache", "code_key", "collect", "config"))
STANDARD_LIBRARY = Path(os.__file__).parent
INSTALLED = {"site-packages", "dist-packages"}  # folders of installed libraries, which count by their version

EMPTY = hashlib.sha256(ast.dump(ast.Module([], [])).encode()).hexdigest()  # of a module without statements


@cache
def code_of(*parts: Callable[..., Any]) -> str | None:
    """SHA-256 of the code behind classes and functions; None where its source is not available (a notebook, exec).

    The hash covers the source of their modules and of everything that these import: of DTL the modules that shape data,
    otherwise modules outside site-packages or in the same package. Libraries count by their installed version.
    Comments, docstrings, layout, and the names and places of modules do not count. A module imported by a name that is
    built at run time is not seen.

    The hash of a class is taken once; a class that is loaded again from an edited file has a new one.
    """
    waiting = [_home(part) for part in parts]
    modules: dict[Path, _Module] = {}
    try:
        while waiting:
            spec = waiting.pop()
            if spec is None:
                return None
            file = _file(spec)
            if file not in modules:
                modules[file] = _module(file, spec.parent or "", _stamp(file))
                waiting += modules[file].imports
    except OSError:
        return None
    # Each module is hashed with its imports: the same name from another module is other code.
    # Empty files do not count: DTL's __init__.py are empty, and a module may move to another package.
    linked = ([modules[file].code for file in (at, *map(_file, modules[at].imports))] for at in modules)
    hashes = {_sha256(*[code for code in codes if code != EMPTY]) for codes in linked}
    libraries = {f"{name} {_version(name)}" for module in modules.values() for name in module.libraries}
    return _sha256(f"{sys.version_info[:2]}", *sorted(hashes), *sorted(libraries))


@dataclass(frozen=True)
class _Module:
    code: str  # SHA-256 of its statements, without the names of the modules that count by their source
    names: frozenset[str]  # of the classes and functions in it
    imports: list[ModuleSpec]  # those modules, in the order of the statements
    libraries: frozenset[str]


def _home(part: Callable[..., Any]) -> ModuleSpec | None:
    """Return the module whose source defines a class or a function; None without such a file."""
    name, own = getattr(part, "__module__", None), getattr(part, "__qualname__", "").rpartition(".")[2]
    spec = _spec(name) if name else None
    if spec is None or not spec.has_location:
        return None
    file = _file(spec)
    try:
        return spec if own in _module(file, spec.parent or "", _stamp(file)).names else None
    except OSError:
        return None


def _file(spec: ModuleSpec) -> Path:
    return Path(str(spec.origin))


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _sha256(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode("utf-8", "surrogatepass")).hexdigest()


def _spec(name: str) -> ModuleSpec | None:
    """Return the spec of a loaded or importable module; None where there is none. Imports nothing, not even parents."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        file, spec = getattr(loaded, "__file__", None), getattr(loaded, "__spec__", None)
        return importlib.util.spec_from_file_location(name, file) if spec is None and file else spec
    parent = name.rpartition(".")[0]
    try:
        if not parent:
            return importlib.util.find_spec(name)
        parent_spec = _spec(parent)
        folders = parent_spec and parent_spec.submodule_search_locations
        return PathFinder.find_spec(name, list(folders)) if folders else None
    except (ImportError, ValueError):  # raised by finders for an impossible module
        return None


def _is_installed(spec: ModuleSpec | None) -> bool:
    places = [] if spec is None else [spec.origin] if spec.has_location else spec.submodule_search_locations or []
    return all(
        INSTALLED & {*Path(str(place)).parts} or Path(str(place)).is_relative_to(STANDARD_LIBRARY) for place in places
    )


@cache
def _version(library: str) -> str:
    """Return the installed version of a library by its import name; empty where it is not installed."""
    try:
        return importlib.metadata.version(library)  # most have the name they are imported by; a search takes longer
    except importlib.metadata.PackageNotFoundError:
        names = _distributions().get(library, ())
        return " ".join(sorted(f"{name} {importlib.metadata.version(name)}" for name in names))


@cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


@cache
def _module(file: Path, package: str, stamp: tuple[int, int]) -> _Module:
    """Parse a file of this `stamp`, once. Raises OSError."""
    source = file.read_bytes()
    try:
        with warnings.catch_warnings(action="ignore"):  # already shown when it was imported
            tree = ast.parse(source)
        return _Reader(file, package).read(tree)
    except (SyntaxError, ValueError, RecursionError):  # an extension module, say
        return _Module(hashlib.sha256(source).hexdigest(), frozenset(), [], frozenset())


class _Reader:
    """Reads the statements of one module."""

    def __init__(self, file: Path, package: str) -> None:
        self.file = file
        self.package = package
        self._top = (package or file.stem).partition(".")[0]
        self._names: set[str] = set()
        self._imports: list[ModuleSpec] = []
        self._libraries: set[str] = set()

    def read(self, tree: ast.Module) -> _Module:
        """Return the module's parts; removes from the tree what does not count."""
        if self.package and self.package != "__main__":
            self._add(*_packages(self.package))
        for node in _statements(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if self._is_own(alias.name.partition(".")[0]):
                        self._add(*_packages(alias.name))
                        alias.name = ""
            elif isinstance(node, ast.ImportFrom):
                module = self._absolute(node)
                if module is not None and self._is_own(module.partition(".")[0]):
                    named = [f"{module}.{alias.name}" for alias in node.names]
                    self._add(*_packages(module), *[name for name in named if _spec(name)])
                    node.module, node.level = None, 0
            elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                self._names.add(node.name)
        code = self._without_scripts(ast.dump(tree))
        for name in re.findall(
            r"'(?:import_module|__import__)', ctx=Load\(\)\), args=\[Constant\(value='([\w.]+)'", code
        ):
            if self._is_own(name.partition(".")[0]):
                self._add(*_packages(name))
        return _Module(_sha256(code), frozenset(self._names), self._imports, frozenset(self._libraries))

    def _absolute(self, node: ast.ImportFrom) -> str | None:
        """Return the module that a statement imports from; None where it leads out of its package."""
        module = "." * node.level + (node.module or "")
        try:
            return importlib.util.resolve_name(module, self.package)
        except ImportError:
            return None

    def _is_own(self, top: str) -> bool:
        """Return True when such modules count by their source, not by the version of a library."""
        if top in ("dtl", self._top) or not _is_installed(_spec(top)):
            return True
        if top not in sys.stdlib_module_names:
            self._libraries.add(top)
        return False

    def _add(self, *names: str) -> None:
        for name in names:
            shapes = not f"{name}.".startswith("dtl.") or (name.startswith("dtl.data.") and name not in SHAPE_NOTHING)
            spec = _spec(name) if shapes else None
            if spec is not None and spec.has_location:
                self._imports.append(spec)

    def _without_scripts(self, code: str) -> str:
        """Return the code without the names of scripts in its folder, which count as if they were imported."""
        for name in dict.fromkeys(re.findall(r"'([\w./-]+\.py)'", code)):
            file = self.file.parent / name
            if file.is_file() and (spec := importlib.util.spec_from_file_location(file.stem, file)):
                self._imports.append(spec)
                code = code.replace(f"'{name}'", "''")
        return code


def _packages(name: str) -> list[str]:
    """Return a module's name after those of its packages, which an import runs first."""
    parts = name.split(".")
    return [".".join(parts[: n + 1]) for n in range(len(parts))]


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield all statements, without those that do nothing (docstrings, `...`) or that only type checkers read."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and getattr(node.test, "id", getattr(node.test, "attr", "")) == "TYPE_CHECKING":
            node.body = []
        yield node
        for name in ("body", "orelse", "finalbody", "handlers", "cases"):
            statements = getattr(node, name, [])
            statements[:] = [
                each for each in statements if not (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))
            ]
            waiting += statements
