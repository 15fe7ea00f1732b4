"""Reachability of the Hugging Face hub and W&B. Never prints a key."""

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
    """Return the row of the hub, from the problem that `hub_problem` reports (None: it answers)."""
    if problem is None:
        return Finding([("hub", f"{hub.without_password(hub.hub_endpoint())} answers")])
    return Finding([("hub", f"{problem}; only data and vocabularies of the hub need it")])


def look_at_wandb() -> Finding:
    """Check the server of tracker=wandb, with a timeout of 3 seconds, and whether there is a key for it."""
    mode, reason = choose_mode("auto")
    if mode != "online":
        return Finding([("W&B", f"{mode}: not checked because {reason}")])
    address = wandb_address()
    return judge_wandb(urlsplit(address).hostname or address, hub.unreachable(address), has_wandb_key(address))


def judge_wandb(host: str, problem: str | None, has_key: bool) -> Finding:
    """Return the row of W&B from its server, the problem in reaching it (None: it answers), and `has_key`."""
    server = f"{host} answers" if problem is None else f"{host} cannot be reached ({problem})"
    if not has_key:
        return Finding([("W&B", f"{server}; no API key, runs stay offline (to upload them: wandb login)")])
    return Finding([("W&B", f"{server}; an API key exists, runs go {'online' if problem is None else 'offline'}")])


def wandb_address() -> str:
    """Return W&B's server, in wandb's own order: WANDB_BASE_URL, wandb/settings here, settings at home."""
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
    """Return True when the environment or netrc has a key for this server."""
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
