"""Are the Hugging Face hub and W&B within reach? Imports only the standard library and says no key aloud."""

import configparser
import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit

from dtl.base import network as hub
from dtl.diagnostics.findings import Finding
from dtl.tracking.wandb_sink import choose_mode

WANDB = "https://api.wandb.ai"


def judge_hub(problem: str | None) -> Finding:
    """The row of the hub, from what `hub_problem` found."""
    if problem is None:
        return Finding([("hub", f"{hub.without_password(hub.hub_endpoint())} answers")])
    return Finding([("hub", f"{problem}; only data and vocabularies of the hub need it")])


def look_at_wandb() -> Finding:
    """Where the runs of tracker=wandb go, and whether their server answers within 3 seconds."""
    mode, reason = choose_mode("auto")
    if mode != "online":
        return Finding([("W&B", f"{mode}: not asked because {reason}")])
    address = wandb_address()
    return judge_wandb(urlsplit(address).hostname or address, hub.unreachable(address), has_wandb_key(address))


def judge_wandb(host: str, problem: str | None, has_key: bool) -> Finding:
    """The row of W&B: its server, why it cannot be reached (None: it can), whether there is a key."""
    server = f"{host} answers" if problem is None else f"{host} cannot be reached ({problem})"
    if not has_key:
        return Finding([("W&B", f"{server}; no key here, runs are kept offline (to send them: wandb login)")])
    return Finding([("W&B", f"{server}; a key is here, runs go {'online' if problem is None else 'offline'}")])


def wandb_address() -> str:
    """W&B's server, in the order in which wandb looks: WANDB_BASE_URL, wandb/settings here, settings at home."""
    if address := os.environ.get("WANDB_BASE_URL"):
        return address.rstrip("/")
    for file in (Path(os.environ.get("WANDB_DIR", ".")) / "wandb" / "settings", _settings_at_home()):
        settings = configparser.ConfigParser(interpolation=None)
        try:
            settings.read(file, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError):
            continue
        if address := settings.get("default", "base_url", fallback=""):
            return address.rstrip("/")
    return WANDB


def _settings_at_home() -> Path:
    folder = os.environ.get("WANDB_CONFIG_DIR")
    return (Path(folder) if folder else Path.home() / ".config" / "wandb") / "settings"


def has_wandb_key(address: str) -> bool:
    """Whether the environment or netrc has a key for this server; the key itself goes nowhere."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    named = os.environ.get("NETRC")
    for file in [Path(named).expanduser()] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            if netrc.netrc(file).authenticators(urlsplit(address).hostname or ""):
                return True
        except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
            continue
    return False
