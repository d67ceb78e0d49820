"""A Hub in this process: datasets and models over HTTP, as huggingface_hub and datasets ask for it.

Faults can be ordered: a status instead of an answer, a pause, a connection cut in the middle.
"""

import contextlib
import hashlib
import json
import re
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LONG_AGO = "2024-01-01T00:00:00.000Z"


def sha1(*parts: str | bytes) -> str:
    digest = hashlib.sha1()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else part.encode())
    return digest.hexdigest()


@dataclass
class Repo:
    """One repository: commits of path -> bytes; branches name commits."""

    id: str
    kind: str  # "datasets" | "models"
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    licence: str = "mit"

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """A new commit with exactly these files on the branch; returns its hash."""
        sha = sha1(self.id, str(len(self.commits)), *sorted(files), *files.values())
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        return sha

    def at(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


@dataclass
class Fault:
    """What happens to the next `times` requests whose path matches."""

    pattern: str
    times: int
    status: int | None = None
    pause: float = 0.0  # seconds before the answer
    cut_after: int | None = None  # bytes of the body that are sent before the connection is closed
    headers: dict[str, str] = field(default_factory=dict)
    method: str | None = None


class Hub:
    """The server and what it holds; `url` is its HF_ENDPOINT."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []  # (method, path)
        self.sent: Counter[str] = Counter()  # bytes of files, by file path
        self.ranges: list[str] = []
        self.open: set[socket.socket] = set()  # connections, which clients keep for later
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Nobody answers any more, also not on connections that are open."""
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def add(self, id: str, files: dict[str, bytes], kind: str = "datasets", **how: Any) -> Repo:
        repo = self.repos[kind, id] = Repo(id, kind, **how)
        repo.commit(files)
        return repo

    def fail(self, pattern: str, times: int = 1, **how: Any) -> None:
        self.faults.append(Fault(pattern, times, **how))

    def fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                fits = fault.method in (None, method) and re.search(fault.pattern, path)
                if fault.times and fits:
                    fault.times -= 1
                    return fault
        return None

    def asked(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, path)) for _, path in self.requests)


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            hub.open.add(self.connection)

        def finish(self) -> None:
            hub.open.discard(self.connection)
            with contextlib.suppress(OSError):
                super().finish()

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_POST(self) -> None:
            self._posted = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            self._body = body
            path = unquote(urlsplit(self.path).path)
            with hub.lock:
                hub.requests.append((self.command, path))
            self._fault = hub.fault(self.command, path)
            if self._fault:
                time.sleep(self._fault.pause)
                if self._fault.status:
                    return self._send(self._fault.status, b"{}", self._fault.headers)
            return self._route(path)

        def _route(self, path: str) -> None:
            if found := re.fullmatch(r"/api/(datasets|models)/([^/]+/[^/]+)(?:/(.*))?", path):
                repo = self._repo(found[1], found[2])
                return repo and self._api(repo, found[3] or "")
            files = r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/(refs/[^/]+/[^/]+|[^/]+)/(.*)"
            if found := re.fullmatch(files, path):
                repo = self._repo(found[1] or "models", found[2])
                return repo and self._file(repo, found[3], found[4])
            return self._error(404, "EntryNotFound")

        def _repo(self, kind: str, id: str) -> Repo | None:
            repo = hub.repos.get((kind, id))
            token = self.headers.get("Authorization")
            if repo is None or (repo.private and not token):
                return self._error(401, "RepoNotFound")
            if token == "Bearer hf_expired":
                return self._error(401, "", "Invalid credentials in Authorization header")
            # of a gated one the page and the list of files are public, the files are not
            if repo.gated and "/resolve/" in self.path and token != "Bearer hf_accepted":
                return self._error(403 if token else 401, "GatedRepo", "it is gated")
            return repo

        def _api(self, repo: Repo, rest: str) -> None:
            what, _, tail = rest.partition("/")
            revision, _, folder = tail.partition("/")
            if revision == "refs":
                parts = tail.split("/")
                revision, folder = "/".join(parts[:3]), "/".join(parts[3:])
            if what == "refs":
                named = [
                    {"name": n, "ref": f"refs/heads/{n}", "targetCommit": sha}
                    for n, sha in repo.branches.items()
                ]
                return self._json({"branches": named, "tags": [], "converts": []})
            sha = repo.at(revision or "main")
            if sha is None:
                return self._error(404, "RevisionNotFound")
            tree = repo.commits[sha]
            if what in ("", "revision"):
                return self._json(
                    {
                        "_id": "0",
                        "id": repo.id,
                        "sha": sha,
                        "private": repo.private,
                        "gated": "auto" if repo.gated else False,
                        "cardData": {"license": repo.licence},
                        "siblings": [{"rfilename": name} for name in tree],
                        "lastModified": LONG_AGO,
                    }
                )
            if what == "tree":
                query = parse_qs(urlsplit(self.path).query)
                deep = query.get("recursive", ["false"])[0].lower() in ("true", "1")
                return self._tree(tree, folder, deep)
            if what == "paths-info":
                raw = self._posted.decode()
                asked = json.loads(raw)["paths"] if raw[:1] == "{" else parse_qs(raw)["paths"]
                every = {e["path"]: e for e in _entries(tree, "", True)}
                return self._json([every[p] for p in asked if p in every])
            return self._error(404, "EntryNotFound")

        def _tree(self, tree: dict[str, bytes], folder: str, deep: bool) -> None:
            entries = _entries(tree, folder, deep)
            if folder and not entries:
                return self._error(404, "EntryNotFound")
            return self._json(entries)

        def _file(self, repo: Repo, revision: str, name: str) -> None:
            sha = repo.at(revision)
            if sha is None:
                return self._error(404, "RevisionNotFound")
            if name not in repo.commits[sha]:
                return self._error(404, "EntryNotFound", extra={"X-Repo-Commit": sha})
            data = repo.commits[sha][name]
            headers = {
                "ETag": f'"{sha1(data)}"',
                "X-Repo-Commit": sha,
                "Accept-Ranges": "bytes",
                "Last-Modified": datetime(2024, 1, 1, tzinfo=UTC).strftime("%a, %d %b %Y GMT"),
            }
            status, part = 200, data
            if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                first, last = int(found[1]), int(found[2] or len(data) - 1)
                hub.ranges.append(self.headers["Range"])
                part = data[first : last + 1]
                end = first + len(part) - 1
                headers["Content-Range"] = f"bytes {first}-{end}/{len(data)}"
                status = 206
            if self._body:
                hub.sent[name] += len(part)
            return self._send(status, part, headers)

        def _error(
            self, status: int, code: str, message: str = "", extra: dict[str, str] | None = None
        ) -> None:
            headers = {"X-Error-Code": code, **(extra or {})}
            if message:
                headers["X-Error-Message"] = message
            self._send(status, json.dumps({"error": message or code}).encode(), headers)

        def _json(self, value: Any) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if not self._body:
                return
            cut = self._fault.cut_after if self._fault else None
            self.wfile.write(data if cut is None else data[:cut])
            if cut is not None and cut < len(data):
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True

    return Handler


def _entries(tree: dict[str, bytes], folder: str, deep: bool) -> list[dict[str, Any]]:
    prefix = f"{folder}/" if folder else ""
    found: dict[str, dict[str, Any]] = {}
    for name, data in tree.items():
        if not name.startswith(prefix):
            continue
        parts = name[len(prefix) :].split("/")
        for depth in range(1, len(parts)):
            path = prefix + "/".join(parts[:depth])
            if deep or depth == 1:
                entry = {"type": "directory", "path": path, "oid": sha1(path), "size": 0}
                found.setdefault(path, entry)
        if deep or len(parts) == 1:
            entry = {"type": "file", "path": name, "oid": sha1(data), "size": len(data)}
            found[name] = {**entry, "lastCommit": None}
    return list(found.values())
