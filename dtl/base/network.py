"""Checks that the Hugging Face hub can be reached, within seconds and before anything heavy is imported.

The download libraries retry for minutes when a network drops packets; one small request with a deadline finds that
out first. Imports only the standard library.
"""

import http.client
import os
import re
import urllib.error
import urllib.parse
import urllib.request

from dtl.base.deadline import within
from dtl.errors import DataError

DEADLINE_S = 3.0  # for the whole request: proxy, DNS, connection, TLS, first line of the response
_OFFLINE_SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


def hub_endpoint() -> str:
    """The address of the hub: `HF_ENDPOINT`, or https://huggingface.co."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def require_hub(what: str, alternatives: str) -> None:
    """Raise DataError within 5 seconds when the hub does not answer, or is switched off by the environment.

    `what` is the thing to download ("GPT-2's vocabulary"), `alternatives` tells how to do without the hub.
    Respects `HF_ENDPOINT`, `HF_HUB_OFFLINE` and its relatives, and the proxy settings of the environment.
    """
    problem = hub_problem()
    if problem is not None:
        raise DataError(f"{what}: {problem}.\n{alternatives}")


def hub_problem() -> str | None:
    """The reason why the hub is not available now, without a final full stop; None when it answers."""
    for switch in _OFFLINE_SWITCHES:
        if os.environ.get(switch, "").upper() in ("1", "ON", "YES", "TRUE"):
            return f"the Hugging Face hub is not used because {switch}={os.environ[switch]}"
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
    """The reason why nothing answers at `address` within `DEADLINE_S`, through the usual proxies; None when it does."""
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
    """Send the request; the reason why it failed, None for an answer within the deadline."""
    try:
        return within(DEADLINE_S, lambda: _ask(endpoint, proxy))
    except TimeoutError:
        return f"no answer within {DEADLINE_S:.0f} seconds"


def _ask(endpoint: urllib.parse.SplitResult, proxy: urllib.parse.SplitResult | None) -> str | None:
    """Send one request, without a timeout of its own for DNS. Raises nothing."""
    try:
        if proxy is not None and proxy.scheme != "http":
            _connect(proxy)
            return None
        return _request(endpoint.geturl(), {endpoint.scheme: proxy.geturl()} if proxy else {})
    except (ValueError, http.client.InvalidURL):
        return "malformed address"  # the error's text may quote a password
    except Exception as error:
        return str(getattr(error, "reason", None) or error) or type(error).__name__


def _request(url: str, proxies: dict[str, str]) -> str | None:
    """One HEAD request. Any answer but a server error counts: some mirrors reject requests for their front page."""
    import ssl

    # No certificate check: the download reports a missing certificate store; nothing is sent or read here.
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
    """Follows no redirect: a redirect is an answer."""

    def redirect_request(self, req, fp, code, msg, headers, newurl) -> None:
        return None


def _connect(proxy: urllib.parse.SplitResult) -> None:
    """Open a connection to a SOCKS or TLS proxy, which urllib does not support, to see that something listens there."""
    import socket

    default_port = 1080 if proxy.scheme.startswith("socks") else 443
    socket.create_connection((proxy.hostname or "", proxy.port or default_port), timeout=DEADLINE_S).close()
