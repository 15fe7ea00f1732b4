"""The screen of dtl.diagnose, and its verdict: the problems that prevent a run on this machine.

The checks that wait for a network start at once; the others run one after another, because two threads that import
torch and its like at the same time block each other. A check that fails or hangs affects only its own row.
"""

from pathlib import Path

import dtl
from dtl.base.display import Display
from dtl.base.network import hub_problem
from dtl.base.system import processor_features, thread_warning, usable_cores
from dtl.config import Settings
from dtl.diagnostics.findings import Finding, Later, fit_to_show, in_short, look, looked
from dtl.diagnostics.graphics import PROFILE, TorchFacts, judge, look_at_profile, torch_facts
from dtl.diagnostics.machine import look_at_disk, look_at_memory, look_at_processor
from dtl.diagnostics.network import judge_hub, look_at_wandb
from dtl.diagnostics.software import (
    install_command,
    installed_version,
    look_at_packages,
    look_at_plugins,
    look_at_python,
    look_at_vocabulary,
)
from dtl.errors import DTLError

IMPORT_SECONDS = 30.0  # for torch and plugins, from a cold disk
QUICK_SECONDS = 5.0  # for a check that takes milliseconds, unless a disk hangs
NETWORK_SECONDS = 4.0  # the requests themselves time out after 3


def diagnose(settings: Settings, outputs: Path) -> None:
    """Run all checks and show them on one screen. Raises DTLError with every problem and its remedy, if any."""
    display = Display()
    with display.console.status("Checking this machine ..."):
        finding, facts = examine(settings, outputs)
    display.screen(f"DTL {dtl.__version__}", [(name, fit_to_show(value)) for name, value in finding.rows])
    for warning in finding.warnings:
        display.warn(fit_to_show(warning))
    if finding.problems:
        raise DTLError(fit_to_show(verdict(finding.problems)))
    display.print(f"No problems found. Next: {first_run(facts)}")


def verdict(problems: list[str]) -> str:
    """Return the problems as a numbered list."""
    count = "One problem prevents" if len(problems) == 1 else f"{len(problems)} problems prevent"
    listed = [f"  {number}. " + "\n     ".join(text.splitlines()) for number, text in enumerate(problems, 1)]
    return "\n".join([f"{count} a good run here:", *listed])


def first_run(facts: TorchFacts | None) -> str:
    """Return a training command that ends within minutes on this machine."""
    on_card = facts is not None and (facts.cards or facts.mps)
    return f"python -m dtl.train {'model=qa data=qa' if on_card else 'experiment=demo'}"


def examine(settings: Settings, outputs: Path) -> tuple[Finding, TorchFacts | None]:
    """Return all findings in the order of the screen, and the facts of torch (None: torch does not work)."""
    hub, wandb = Later(hub_problem), Later(look_at_wandb)
    finding = look("Python", look_at_python, QUICK_SECONDS)
    facts = _torch(finding)
    finding.add(look("processor", look_at_processor, QUICK_SECONDS))
    finding.add(look("memory", look_at_memory, QUICK_SECONDS))
    finding.add(look("disk", lambda: look_at_disk(outputs, _cache()), QUICK_SECONDS))
    finding.add(look("packages", look_at_packages, QUICK_SECONDS))
    finding.add(look("tokenizer", lambda: look_at_vocabulary(lambda: hub.result(NETWORK_SECONDS)), IMPORT_SECONDS))
    finding.add(look("hub", lambda: judge_hub(hub.result(NETWORK_SECONDS)), IMPORT_SECONDS))
    finding.add(looked("W&B", wandb, NETWORK_SECONDS))
    finding.add(look("plugins", lambda: look_at_plugins(settings.plugins), IMPORT_SECONDS))
    finding.add(look("last run", lambda: look_at_last_run(outputs), QUICK_SECONDS))
    return finding, facts


def _torch(finding: Finding) -> TorchFacts | None:
    """Add the findings of torch, its GPUs and the default profile; return the facts of torch."""
    try:
        facts = Later(torch_facts).result(IMPORT_SECONDS)
    except Exception as error:
        finding.rows.append(("torch", f"does not work: {in_short(error)}"))
        if installed_version("torch") is not None:  # one that is missing is named with the packages
            finding.problems.append(
                f"torch does not work here ({in_short(error)}). Reinstall it: "
                f"pip uninstall -y torch, then {install_command()}"
            )
        return None
    finding.add(look("GPU", lambda: judge(facts, usable_cores(), processor_features()), QUICK_SECONDS))
    if busy := thread_warning(facts.threads):
        finding.warnings.append(busy)
    finding.add(look(f"trainer={PROFILE}", look_at_profile, QUICK_SECONDS))
    return facts


def look_at_last_run(outputs: Path) -> Finding:
    """Return the last run's row. Imported here: its packages, such as filelock, may be the ones that are missing."""
    from dtl.diagnostics import resume

    return resume.look_at_last_run(outputs)


def _cache() -> Path:
    """Return the folder of the hub's downloads."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)
