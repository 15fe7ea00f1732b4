"""Is the Hugging Face hub within reach? Asked before anything heavy is imported, answered in seconds.

The libraries that download retry for minutes when a network swallows packets; one small request with a
deadline says first whether there is any point. Imports only the standard library.
"""

import http.client
import os
import re
import urllib.error
import urllib.parse
import urllib.request

from dtl.base.deadline import within
from dtl.errors import DataError

DEADLINE_S = 3.0  # for the whole question: proxy, name look-up, connection, TLS, first line of the answer
_OFFLINE_SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


def hub_endpoint() -> str:
    """The hub's address: `HF_ENDPOINT`, or https://huggingface.co."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def require_hub(what: str, ways_on: str) -> None:
    """Raise DataError within 5 seconds when the hub does not answer, or is not to be asked.

    `what` is the thing that is wanted ("GPT-2's vocabulary"), `ways_on` says how to do without the hub.
    Respects `HF_ENDPOINT`, `HF_HUB_OFFLINE` and its relatives, and the proxy settings of the environment.
    """
    problem = hub_problem()
    if problem is not None:
        raise DataError(f"{what}: {problem}.\n{ways_on}")


def hub_problem() -> str | None:
    """Why nothing can be had from the hub now, in words without a final stop; None when it answers."""
    for switch in _OFFLINE_SWITCHES:
        if os.environ.get(switch, "").upper() in ("1", "ON", "YES", "TRUE"):
            return f"the Hugging Face hub is not asked because {switch}={os.environ[switch]}"
    endpoint = _split(hub_endpoint())
    if endpoint is None:
        return f"HF_ENDPOINT={without_password(hub_endpoint())} is no address such as https://huggingface.co"
    proxy = _proxy_for(endpoint)
    reason = _within_deadline(endpoint, proxy)
    if reason is None:
        return None
    # Only host names are shown: the addresses of proxies and mirrors may hold passwords.
    through = f" through the proxy {proxy.hostname}" if proxy else ""
    return f"the Hugging Face hub ({endpoint.hostname}) cannot be reached{through}: {reason}"


def unreachable(address: str) -> str | None:
    """Why nothing answers at `address` within `DEADLINE_S`; None when something does. Proxies as everywhere."""
    parts = _split(address)
    return "no address such as https://..." if parts is None else _within_deadline(parts, _proxy_for(parts))


def without_password(text: str) -> str:
    """The text without the `user:password@` of any address in it."""
    return re.sub(r"//[^/\s]*@", "//", text)


def _split(address: str) -> urllib.parse.SplitResult | None:
    try:
        parts = urllib.parse.urlsplit(address)
        return parts if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 else None
    except ValueError:  # an unclosed bracket, a port that is no number
        return None


def _proxy_for(endpoint: urllib.parse.SplitResult) -> urllib.parse.SplitResult | None:
    proxies = urllib.request.getproxies()
    address = proxies.get(endpoint.scheme) or proxies.get("all")
    if not address or urllib.request.proxy_bypass(endpoint.netloc.rpartition("@")[2]):
        return None
    return urllib.parse.urlsplit(address if "://" in address else f"http://{address}")


def _within_deadline(endpoint: urllib.parse.SplitResult, proxy: urllib.parse.SplitResult | None) -> str | None:
    """Ask, and wait for the answer no longer than the deadline."""
    try:
        return within(DEADLINE_S, lambda: _ask(endpoint, proxy))
    except TimeoutError:
        return f"no answer within {DEADLINE_S:.0f} seconds"


def _ask(endpoint: urllib.parse.SplitResult, proxy: urllib.parse.SplitResult | None) -> str | None:
    """One question, without an end where a name look-up has none. Raises nothing."""
    try:
        if proxy is not None and proxy.scheme != "http":
            _connect(proxy)
            return None
        return _request(endpoint.geturl(), {endpoint.scheme: proxy.geturl()} if proxy else {})
    except (ValueError, http.client.InvalidURL):
        return "malformed address"  # the error's own words may quote a password
    except Exception as error:
        return str(getattr(error, "reason", None) or error) or type(error).__name__


def _request(url: str, proxies: dict[str, str]) -> str | None:
    """One HEAD request. Any answer but a server's failure will do: mirrors refuse their first page at times."""
    import ssl

    # A missing certificate store is for the download to report; nothing is sent or read here.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler(proxies), urllib.request.HTTPSHandler(context=context), _StayHere()
    )
    try:
        with opener.open(urllib.request.Request(url, method="HEAD"), timeout=DEADLINE_S):
            return None
    except urllib.error.HTTPError as answer:
        with answer:
            failed = answer.code >= 500 or answer.code == 407
            return f"it answered {answer.code} {answer.reason}" if failed else None


class _StayHere(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer; where it leads does not matter."""

    def redirect_request(self, req, fp, code, msg, headers, newurl) -> None:
        return None


def _connect(proxy: urllib.parse.SplitResult) -> None:
    """SOCKS and TLS proxies, which urllib does not speak: see that something listens there."""
    import socket

    default_port = 1080 if proxy.scheme.startswith("socks") else 443
    socket.create_connection((proxy.hostname or "", proxy.port or default_port), timeout=DEADLINE_S).close()
