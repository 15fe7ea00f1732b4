"""One screen about this machine, and the verdict: is there anything that keeps a run from going well here?

The looks that wait for a network begin at once; the others come one after the other, as two threads that import
torch and its like at the same time get into each other's way. One that fails or hangs costs its own row alone.
"""

from pathlib import Path

import dtl
from dtl.base.display import Display
from dtl.base.network import hub_problem
from dtl.config import Settings
from dtl.diagnostics.findings import Finding, Later, fit_to_show, in_short, look, looked
from dtl.diagnostics.graphics import PROFILE, TorchFacts, judge, look_at_profile, torch_facts
from dtl.diagnostics.machine import look_at_disk, look_at_memory, look_at_processor, processor_features, usable_cores
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

IMPORT_SECONDS = 30.0  # for torch and plugins, from a disk that is slow the first time
QUICK_SECONDS = 5.0  # for a look that takes milliseconds, unless a disk is dead
NETWORK_SECONDS = 4.0  # the requests themselves have 3


def diagnose(settings: Settings, outputs: Path) -> None:
    """Look at everything, show it on one screen. Raises DTLError with every problem and its remedy, if there are."""
    display = Display()
    with display.console.status("Looking at this machine ..."):
        finding, facts = examine(settings, outputs)
    display.screen(f"DTL {dtl.__version__}", [(name, fit_to_show(value)) for name, value in finding.rows])
    for warning in finding.warnings:
        display.warn(fit_to_show(warning))
    if finding.problems:
        raise DTLError(fit_to_show(verdict(finding.problems)))
    display.say(f"All well: {first_run(facts)}")


def verdict(problems: list[str]) -> str:
    """What stands in the way, numbered."""
    count = "One thing stands" if len(problems) == 1 else f"{len(problems)} things stand"
    listed = [f"  {number}. " + "\n     ".join(text.splitlines()) for number, text in enumerate(problems, 1)]
    return "\n".join([f"{count} in the way of a run here:", *listed])


def first_run(facts: TorchFacts | None) -> str:
    """A command that ends within minutes on this machine."""
    on_card = facts is not None and (facts.cards or facts.mps)
    return f"python -m dtl.train {'model=qa' if on_card else 'model=small tokenizer=bpe'} data=qa"


def examine(settings: Settings, outputs: Path) -> tuple[Finding, TorchFacts | None]:
    """All findings in the order of the screen, and what torch said about itself (None: it does not work)."""
    hub, wandb = Later(hub_problem), Later(look_at_wandb)
    found = look("Python", look_at_python, QUICK_SECONDS)
    facts = _torch(found)
    found.add(look("processor", look_at_processor, QUICK_SECONDS))
    found.add(look("memory", look_at_memory, QUICK_SECONDS))
    found.add(look("disk", lambda: look_at_disk(outputs, _cache()), QUICK_SECONDS))
    found.add(look("packages", look_at_packages, QUICK_SECONDS))
    found.add(look("tokenizer", lambda: look_at_vocabulary(lambda: hub.result(NETWORK_SECONDS)), IMPORT_SECONDS))
    found.add(look("hub", lambda: judge_hub(hub.result(NETWORK_SECONDS)), IMPORT_SECONDS))
    found.add(looked("W&B", wandb, NETWORK_SECONDS))
    found.add(look("plugins", lambda: look_at_plugins(settings.plugins), IMPORT_SECONDS))
    found.add(look("last run", lambda: look_at_last_run(outputs), QUICK_SECONDS))
    return found, facts


def _torch(found: Finding) -> TorchFacts | None:
    """Add what torch, its cards and the default profile come to."""
    try:
        facts = Later(torch_facts).result(IMPORT_SECONDS)
    except Exception as error:
        found.rows.append(("torch", f"does not work: {in_short(error)}"))
        if installed_version("torch") is not None:  # one that is missing is named with the packages
            found.problems.append(
                f"torch does not work here ({in_short(error)}). Install it anew: "
                f"pip uninstall -y torch, then {install_command()}"
            )
        return None
    found.add(look("GPU", lambda: judge(facts, usable_cores(), processor_features()), QUICK_SECONDS))
    found.add(look(f"trainer={PROFILE}", look_at_profile, QUICK_SECONDS))
    return facts


def look_at_last_run(outputs: Path) -> Finding:
    """The last run's row. What reads run folders needs packages of its own, which may be what is missing."""
    from dtl.diagnostics import runs

    return runs.look_at_last_run(outputs)


def _cache() -> Path:
    """Where downloads of the hub go."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)
