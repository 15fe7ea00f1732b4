"""Checks of packages, GPT-2's vocabulary and plugins; torch has its own, in graphics.py."""

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
    """Return the row of Python and the platform."""
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return Finding([("Python", f"{platform.python_version()} on {system}")])


# --- packages -----------------------------------------------------------------------------------------------------


def needs(package: Path = PACKAGE) -> tuple[str, list[str]]:
    """Return DTL's range of Python versions and its requirements: of the checkout, else of the installed wheel.

    The metadata of an editable install are not updated by a `git pull`, so the checkout's pyproject.toml comes first.
    """
    file = package.parent / "pyproject.toml"
    if file.is_file():
        project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
        if project.get("name") == "dtl":
            return project.get("requires-python", ""), project.get("dependencies", [])
    described = importlib.metadata.distribution("dtl").metadata
    return "".join(described.get_all("Requires-Python") or []), described.get_all("Requires-Dist") or []


def install_command(extra: str = "", package: Path = PACKAGE) -> str:
    """Return the command that installs DTL with its requirements: from the checkout when there is one."""
    is_checkout = (package.parent / "pyproject.toml").is_file()
    return f'pip install -e ".{extra}"' if is_checkout else f'pip install "dtl{extra}"'


def judge_packages(
    pythons: str, requirements: Iterable[str], version_of: Callable[[str], str | None], python: str
) -> Finding:
    """Return the row of the main packages; packages that are missing or outside DTL's range are problems."""
    finding = Finding()
    if python not in SpecifierSet(pythons):
        finding.problems.append(f"Python {python}: DTL needs {pythons}. Make a new environment with one of these.")
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = version_of(requirement.name)
        if version is None:
            finding.problems.append(f"{requirement.name} is not installed. Fix it with: {install_command()}")
        elif not requirement.specifier.contains(version, prereleases=True):
            finding.problems.append(
                f"{requirement.name} {version}: DTL needs {requirement.specifier}. Fix it with: {install_command()}"
            )
    shown = [f"{name} {version_of(name) or 'missing'}" for name in MAIN_PACKAGES.split() if name != "torch"]
    finding.rows.append(("packages", ", ".join(shown)))
    return finding


def look_at_packages() -> Finding:
    """Run `judge_packages` on this environment."""
    return judge_packages(*needs(), installed_version, platform.python_version())


def installed_version(name: str) -> str | None:
    """Return the version of an installed package, None when it is missing. Imports nothing."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


# --- the vocabulary of tokenizer=gpt2 -----------------------------------------------------------------------------


def look_at_vocabulary(hub_problem: Callable[[], str | None]) -> Finding:
    """Check that tokenizer=gpt2 works without a network, else that the hub answers (`hub_problem` returns None)."""
    from dtl.data.tokenizers import gpt2  # imports tokenizers, which may be missing

    remedy = f"Fix it with: {install_command('[offline]')}   or use tokenizer=bpe, which needs none."
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
        return Finding([("tokenizer", f"GPT-2's vocabulary is stored in {where}: no network needed")])
    problem = hub_problem()
    if problem is None:
        row = f"GPT-2's vocabulary is downloaded at first use; for offline use: {install_command('[offline]')}"
        return Finding([("tokenizer", row)])
    return Finding(
        [("tokenizer", "GPT-2's vocabulary is missing and cannot be downloaded")],
        problems=[f"GPT-2's vocabulary, which tokenizer=gpt2 needs, is missing, and {problem}. {remedy}"],
    )


# --- plugins ------------------------------------------------------------------------------------------------------


def look_at_plugins(modules: list[str]) -> Finding:
    """Import the plugins of installed packages and those of plugins=[...], one by one."""
    fine, problems = [], []
    for entry_point in importlib.metadata.entry_points(group="dtl.plugins"):
        try:
            entry_point.load()
        except (Exception, SystemExit) as error:
            problems.append(
                f"The plugin {entry_point.name} ({entry_point.value}), which an installed package offers, cannot be "
                f"imported ({in_short(error)}). Fix or uninstall that package: every run imports it."
            )
        else:
            fine.append(entry_point.name)
    for module in modules if not problems else []:  # load_plugins would raise the same problem for each module
        try:
            load_plugins([module])
        except DTLError as error:
            problems.append(str(error))
        except SystemExit as error:
            problems.append(f"plugins=[{module}]: fails while it is imported ({in_short(error)}). Fix that module.")
        else:
            fine.append(module)
    words = [f"imported: {', '.join(fine)}"] if fine else []
    words += [f"{len(problems)} cannot be imported"] if problems else []
    return Finding([("plugins", "; ".join(words) or "none")], problems=problems)
