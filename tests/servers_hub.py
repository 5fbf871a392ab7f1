"""A server on this machine with the endpoints of the Hugging Face hub that its client needs for datasets.

It keeps repositories in memory, checks tokens, stores large files by their SHA-256 as Git LFS does, answers a request
for one with a redirect, and fails on request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Literal
from urllib.parse import parse_qs, unquote, urlsplit

Fault = Literal["", "cut", "lost", "401", "402", "403", "409", "413", "500", "503"]
WRITE, READ = "hf_write", "hf_read"
"""Tokens of the user `someone`."""
_LARGE = (".tar", ".npy", ".parquet", ".png")
_PAGE = 4  # entries of a listing


class Repository:
    """A dataset: its branches, each a mapping from a path to (content, whether it is stored with LFS)."""

    def __init__(self, private: bool) -> None:
        self.private = private
        self.branches: dict[str, dict[str, tuple[bytes, bool]]] = {"main": {".gitattributes": (b"*.tar lfs\n", False)}}
        self.commits: list[list[str]] = []
        """Paths of each commit; a path that was removed begins with "-"."""

    def sha(self, branch: str) -> str:
        files = self.branches[branch]
        return hashlib.sha1(repr([(path, _sha256(files[path][0])) for path in sorted(files)]).encode()).hexdigest()


class HubServer(ThreadingHTTPServer):
    """`faults(method, path, n)` says what befalls the n-th request, from 0, of this method and path.

    "cut": the connection ends when half of the body has come; "lost": when the request was done, without an answer.
    `requests` holds all of them in order. `part_bytes`: larger files go up in parts of this size.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        """What was uploaded with LFS, by its SHA-256, in a repository or not."""
        self.parts: dict[tuple[str, int], bytes] = {}
        self.part_bytes: int | None = None
        self.full = False
        """Whether it takes no more large files."""
        self.requests: list[tuple[str, str]] = []
        self.received: list[str] = []
        """SHA-256 of each file that arrived whole."""
        self.faults: Callable[[str, str, int], Fault] = lambda method, path, n: ""
        self.changing = threading.Lock()

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore a client that closed its connection."""

    def files(self, name: str, branch: str = "main") -> dict[str, bytes]:
        """Return the files of a dataset that its owner put there."""
        found = self.repositories[name].branches[branch]
        return {path: content for path, (content, _) in found.items() if path != ".gitattributes"}


class _Answer(Exception):
    """An answer other than 200 with JSON."""

    def __init__(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers or {}
        self.body = body


def _refusal(status: int, message: str, code: str = "") -> _Answer:
    headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
    return _Answer(status, headers, json.dumps({"error": message}).encode())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HubServer
    routes: ClassVar[list[tuple[str, str, str]]] = [
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("GET", r"/api/datasets/(?P<name>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?", "about"),
        ("POST", r"/api/datasets/(?P<name>[^/]+/[^/]+)/branch/(?P<revision>[^/]+)", "branch"),
        ("POST", r"/api/datasets/(?P<name>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", r"/api/datasets/(?P<name>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", r"/api/datasets/(?P<name>[^/]+/[^/]+)/paths-info/(?P<revision>[^/]+)", "paths_info"),
        ("GET", r"/api/datasets/(?P<name>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(?:/(?P<path>[^/]+))?", "tree"),
        ("POST", r"/datasets/(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/upload/(?P<oid>\w+)", "upload"),
        ("PUT", r"/part/(?P<oid>\w+)/(?P<number>\d+)", "part"),
        ("POST", r"/complete/(?P<oid>\w+)", "complete"),
        ("POST", r"/verify/(?P<oid>\w+)", "verify"),
        ("GET", r"/datasets/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
        ("GET", r"/stored/(?P<oid>\w+)", "stored"),
    ]

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding") == "chunked":
            length = -1
        method = "GET" if self.command == "HEAD" else self.command
        with self.server.changing:
            count = self.server.requests.count((method, url.path))
            self.server.requests.append((method, url.path))
            fault = self.server.faults(method, url.path, count)
        if fault == "cut":
            if length > 0:
                self.rfile.read(length // 2)
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.sent = self.rfile.read(length) if length >= 0 else self._chunks()
        try:
            if fault.isdigit():
                raise _refusal(int(fault), f"refused with {fault}")
            for wanted, pattern, name in self.routes:
                if wanted == method and (match := re.fullmatch(pattern, url.path)):
                    with self.server.changing:
                        answer = getattr(self, f"_{name}")(
                            **{k: unquote(v or "") for k, v in match.groupdict().items()}
                        )
                    raise _Answer(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())
            raise _refusal(404, f"no such endpoint: {url.path}")
        except _Answer as answer:
            if fault == "lost":
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            self.send_response(answer.status)
            for key, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)

    do_POST = do_PUT = do_HEAD = do_GET

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _token(self) -> str:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ("", WRITE, READ):
            raise _refusal(401, "Invalid credentials in Authorization header")
        return token

    def _repository(self, name: str, revision: str = "main", write: bool = False) -> Repository:
        token = self._token()
        found = self.server.repositories.get(name)
        if found is None or (found.private and not token):
            raise _refusal(404 if token else 401, "Repository not found", "RepoNotFound")
        if write and token != WRITE:
            raise _refusal(403, "You have read access but not the required permissions")
        if revision not in (*found.branches, *(found.sha(branch) for branch in found.branches)):
            raise _refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def _branch_of(self, name: str, revision: str) -> str:
        found = self._repository(name, revision or "main")
        return next(branch for branch in found.branches if (revision or "main") in (branch, found.sha(branch)))

    def _files(self, name: str, revision: str) -> dict[str, tuple[bytes, bool]]:
        return self.server.repositories[name].branches[self._branch_of(name, revision)]

    def _create(self) -> dict[str, Any]:
        body = json.loads(self.sent)
        if self._token() != WRITE:
            raise _refusal(403 if self._token() else 401, "You don't have the rights to create a dataset")
        if body["organization"] != "someone":
            raise _refusal(403, f"You don't have the rights to create a dataset under {body['organization']}")
        name = f"{body['organization']}/{body['name']}"
        if name in self.server.repositories:
            body = {"error": "You already created this dataset repo", "url": f"{self.server.url}/datasets/{name}"}
            raise _Answer(409, {}, json.dumps(body).encode())
        self.server.repositories[name] = Repository(body.get("visibility") == "private")
        return {"url": f"{self.server.url}/datasets/{name}", "name": name}

    def _validate(self) -> dict[str, Any]:
        return {"errors": [], "warnings": []}

    def _about(self, name: str, revision: str) -> dict[str, Any]:
        branch = self._branch_of(name, revision)
        found = self.server.repositories[name]
        files = found.branches[branch]
        sha = found.sha(branch)
        siblings = [{"rfilename": path} for path in sorted(files)]
        about = {"id": name, "sha": sha, "private": found.private, "siblings": siblings, "tags": [], "downloads": 0}
        return about | {"disabled": False, "gated": False, "likes": 0}

    def _branch(self, name: str, revision: str) -> dict[str, Any]:
        found = self._repository(name, write=True)
        if revision in found.branches:
            raise _refusal(409, "Reference already exists")
        found.branches[revision] = dict(found.branches["main"])
        return {}

    def _preupload(self, name: str, revision: str) -> dict[str, Any]:
        self._repository(name, revision, write=True)
        files = self._files(name, revision)
        answers = []
        for file in json.loads(self.sent)["files"]:
            path = file["path"]
            large = path.endswith(_LARGE)
            answers.append({"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False})
            if path in files:
                answers[-1]["oid"] = _oid(*files[path])
        return {"files": answers}

    def _batch(self, name: str) -> dict[str, Any]:
        self._repository(name, write=True)
        answers = []
        for wanted in json.loads(self.sent)["objects"]:
            oid = wanted["oid"]
            answers.append({"oid": oid, "size": wanted["size"]})
            if oid in self.server.objects:
                continue
            if self.server.full:
                answers[-1]["error"] = {"code": 507, "message": "Private storage limit reached"}
                continue
            href, header = f"{self.server.url}/upload/{oid}", {}
            if (part := self.server.part_bytes) and wanted["size"] > part:
                href = f"{self.server.url}/complete/{oid}"
                numbers = range(1, -(-wanted["size"] // part) + 1)
                header = {"chunk_size": str(part)} | {str(n): f"{self.server.url}/part/{oid}/{n}" for n in numbers}
            verify = {"href": f"{self.server.url}/verify/{oid}"}
            answers[-1]["actions"] = {"upload": {"href": href, "header": header}, "verify": verify}
        return {"objects": answers, "transfer": "basic"}

    def _upload(self, oid: str, data: bytes | None = None) -> dict[str, Any]:
        data = self.sent if data is None else data
        if _sha256(data) != oid:
            raise _refusal(422, "SHA-256 of the body differs")
        self.server.objects[oid] = data
        self.server.received.append(oid)
        return {}

    def _part(self, oid: str, number: str) -> dict[str, Any]:
        self.server.parts[oid, int(number)] = self.sent
        raise _Answer(200, {"ETag": hashlib.md5(self.sent).hexdigest()})

    def _complete(self, oid: str) -> dict[str, Any]:
        numbers = [part["partNumber"] for part in json.loads(self.sent)["parts"]]
        return self._upload(oid, b"".join(self.server.parts[oid, number] for number in numbers))

    def _verify(self, oid: str) -> dict[str, Any]:
        if len(self.server.objects.get(oid, b"")) != json.loads(self.sent)["size"]:
            raise _refusal(404, "not uploaded")
        return {}

    def _commit(self, name: str, revision: str) -> dict[str, Any]:
        found = self._repository(name, revision, write=True)
        files = found.branches[revision]
        changed = []
        for line in self.sent.splitlines():
            operation = json.loads(line)
            kind, value = operation["key"], operation["value"]
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"]), False
                self.server.received.append(_sha256(files[value["path"]][0]))
            elif kind == "lfsFile":
                if value["oid"] not in self.server.objects:
                    raise _refusal(400, f"LFS pointer to a missing object: {value['oid']}")
                files[value["path"]] = self.server.objects[value["oid"]], True
            elif kind == "deletedFile":
                del files[value["path"]]
            changed += [("-" if kind == "deletedFile" else "") + value["path"]] if kind != "header" else []
        found.commits.append(changed)
        oid = found.sha(revision)
        return {"commitUrl": f"{self.server.url}/datasets/{name}/commit/{oid}", "commitOid": oid, "success": True}

    def _paths_info(self, name: str, revision: str) -> list[dict[str, Any]]:
        files = self._files(name, revision)
        paths = parse_qs(self.sent.decode())["paths"]
        return [entry for entry in _entries(files) if entry["path"] in paths]

    def _tree(self, name: str, revision: str, path: str) -> list[dict[str, Any]]:
        files = self._files(name, revision)
        prefix = f"{path}/" if path else ""
        deep = self.query.get("recursive") == ["true"]
        entries = [e for e in _entries(files) if e["path"].startswith(prefix)]
        entries = [e for e in entries if deep or "/" not in e["path"][len(prefix) :]]
        if path and not entries:
            raise _refusal(404, f"{path} does not exist on {revision}", "EntryNotFound")
        begin = int(self.query.get("cursor", ["0"])[0])
        page = entries[begin : begin + _PAGE]
        headers = {"Content-Type": "application/json"}
        if begin + _PAGE < len(entries):
            query = f"recursive={str(deep).lower()}&cursor={begin + _PAGE}"
            headers["Link"] = f'<{self.server.url}{urlsplit(self.path).path}?{query}>; rel="next"'
        raise _Answer(200, headers, json.dumps(page).encode())

    def _resolve(self, name: str, revision: str, path: str) -> None:
        files = self._files(name, revision)
        if path not in files:
            raise _refusal(404, "Entry not found", "EntryNotFound")
        content, large = files[path]
        commit = self.server.repositories[name].sha(self._branch_of(name, revision))
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_oid(content, large)}"'}
        if large:
            oid = _sha256(content)
            headers |= {"X-Linked-ETag": f'"{oid}"', "X-Linked-Size": str(len(content))}
            raise _Answer(302, headers | {"Location": f"{self.server.url}/stored/{oid}?signature=secret"})
        self._send(content, headers)

    def _stored(self, oid: str) -> None:
        self._send(self.server.objects[oid], {})

    def _send(self, content: bytes, headers: dict[str, str]) -> None:
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            begin = int(match[1])
            end = min(int(match[2] or len(content)), len(content) - 1)
            ranged = {"Content-Range": f"bytes {begin}-{end}/{len(content)}"}
            raise _Answer(206, headers | ranged, content[begin : end + 1])
        raise _Answer(200, headers, content)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@cache
def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _oid(content: bytes, large: bool) -> str:
    """Return what the hub calls a file by: its SHA-256 with LFS, else git's SHA-1."""
    if large:
        return _sha256(content)
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entries(files: dict[str, tuple[bytes, bool]]) -> list[dict[str, Any]]:
    """Return files and folders as the hub lists them."""
    folders = {"/".join(path.split("/")[:n]) for path in files for n in range(1, path.count("/") + 1)}
    entries: list[dict[str, Any]] = [
        {"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders
    ]
    for path, (content, large) in files.items():
        pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\n" % _sha256(content).encode()
        entry = {"type": "file", "path": path, "size": len(content), "oid": _oid(pointer if large else content, False)}
        if large:
            entry["lfs"] = {"oid": _oid(content, True), "size": len(content), "pointerSize": len(pointer)}
        entries.append(entry)
    return sorted(entries, key=lambda entry: entry["path"])
