"""A stand-in for the Hugging Face hub: the part of its HTTP interface that `datasets` and `huggingface_hub` use.

It serves repositories that a test writes as `{path: bytes}`, each commit under its own revision.
"""

import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit


class Hub:
    """Datasets by name; each holds its commits, the newest last. Counts what it is asked."""

    def __init__(self) -> None:
        self.datasets: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.gated: set[str] = set()
        self.silent: set[str] = set()  # paths that get half an answer, and then nothing
        self.broken: dict[str, int] = {}  # path -> how many answers break off in their middle
        self.slow_s = 0.0  # before each file with data
        self.asked: list[str] = []  # method and path of each request
        self.closing = threading.Event()
        self.connections: set[socket.socket] = set()

    def commit(self, dataset: str, files: dict[str, bytes]) -> str:
        """Add a commit; returns its sha."""
        text = "".join(f"{path} {hashlib.sha1(content).hexdigest()}" for path, content in files.items())
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.datasets.setdefault(dataset, []).append((sha, files))
        return sha

    def find(self, dataset: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = [commit for commit in self.datasets[dataset] if revision in ("main", commit[0])]
        return commits[-1] if commits else None


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None: ...

    def setup(self) -> None:
        super().setup()
        self.hub.connections.add(self.connection)

    def finish(self) -> None:
        self.hub.connections.discard(self.connection)
        super().finish()

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        address = urlsplit(self.path)
        path = unquote(address.path)
        self.hub.asked.append(f"{self.command} {path}")
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length).decode() if length else ""
        if path == "/":
            return self._json({})
        if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            return self._info(found[1], found[2] or "main")
        if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/([^/]+)/?(.*)", path):
            return self._tree(found[1], found[2], found[3], "recursive=true" in address.query.lower())
        if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/paths-info/([^/]+)", path):
            return self._paths_info(found[1], found[2], body)
        if found := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(found[1], found[2], found[3])
        return self._refuse(404, "EntryNotFound")

    def _commit(self, dataset: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if dataset not in self.hub.datasets:  # the hub says 401 of what is not there, as of what is private
            return self._refuse(401, "RepoNotFound")
        commit = self.hub.find(dataset, revision)
        return commit or self._refuse(404, "RevisionNotFound")

    def _info(self, dataset: str, revision: str) -> None:
        commit = self._commit(dataset, revision)
        if commit:
            siblings = [{"rfilename": path} for path in commit[1]]
            gated = "auto" if dataset in self.hub.gated else False
            said = {"id": dataset, "sha": commit[0], "private": False, "gated": gated, "disabled": False}
            self._json(said | {"tags": [], "downloads": 0, "likes": 0, "siblings": siblings})

    def _tree(self, dataset: str, revision: str, folder: str, recursive: bool) -> None:
        commit = self._commit(dataset, revision)
        if commit:
            entries = _entries(commit[1])
            wanted = [e for path, e in entries.items() if _lies_in(path, folder, recursive)]
            if folder and not wanted:
                return self._refuse(404, "EntryNotFound")
            self._json(wanted)

    def _paths_info(self, dataset: str, revision: str, body: str) -> None:
        commit = self._commit(dataset, revision)
        if commit:
            paths = json.loads(body)["paths"] if body.startswith("{") else []
            entries = _entries(commit[1])
            self._json([entries[path.strip("/")] for path in paths if path.strip("/") in entries])

    def _file(self, dataset: str, revision: str, path: str) -> None:
        if dataset in self.hub.gated:
            return self._refuse(403, "GatedRepo")
        commit = self._commit(dataset, revision)
        if not commit:
            return None
        if path not in commit[1]:
            return self._refuse(404, "EntryNotFound")
        content = commit[1][path]
        start, end = 0, len(content)
        if asked := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or ""):
            start = int(asked[1]) if asked[1] else len(content) - int(asked[2])
            end = min(int(asked[2]) + 1 if asked[1] and asked[2] else len(content), len(content))
        part = content[start:end]
        sent = part
        if self.command == "GET" and path.endswith((".parquet", ".jsonl")):
            self.hub.closing.wait(self.hub.slow_s)
            if path in self.hub.silent or self.hub.broken.get(path, 0) > 0:
                sent = part[: len(part) // 2]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit[0])
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(sent)
            if sent != part:
                self._stop_in_the_middle(path)
        return None

    def _stop_in_the_middle(self, path: str) -> None:
        self.wfile.flush()
        if path in self.hub.silent:
            self.hub.closing.wait(60)
        else:
            self.hub.broken[path] -= 1
        self.close_connection = True

    def _json(self, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _refuse(self, code: int, kind: str) -> None:
        self.send_response(code)
        self.send_header("X-Error-Code", kind)
        self.send_header("X-Error-Message", kind)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _entries(files: dict[str, bytes]) -> dict[str, dict[str, object]]:
    """Files and folders as the hub lists them, by path."""
    entries: dict[str, dict[str, object]] = {}
    for path, content in files.items():
        for folder in PurePosixPath(path).parents:
            if str(folder) != ".":
                entries[str(folder)] = {"type": "directory", "path": str(folder), "oid": "0" * 40, "size": 0}
        oid = hashlib.sha1(content).hexdigest()
        entries[path] = {"type": "file", "path": path, "oid": oid, "size": len(content)}
    return entries


def _lies_in(path: str, folder: str, recursive: bool) -> bool:
    parent = str(PurePosixPath(path).parent)
    parent = "" if parent == "." else parent
    return parent == folder or (recursive and (not folder or path.startswith(f"{folder}/")))


@contextmanager
def serving(hub: Hub, port: int = 0) -> Iterator[str]:
    """Serve the hub on this machine while the block runs; gives its address."""
    hub.closing.clear()
    server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        hub.closing.set()
        server.shutdown()
        server.socket.close()
        for connection in list(hub.connections):  # those that are kept alive would still be answered
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        thread.join()
