"""A Hub on localhost: the part of the Hub's HTTP API that uploads and downloads of models use, kept in memory.

with Hub({"hf_token": User("user")}) as hub:
    subprocess.run(..., env={"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_token", "HF_HUB_DISABLE_XET": "1"})
    hub.files("user/digits")                               # {"config.json": b"...", ...} of branch `main`
    hub.fail("PUT", r"/upload/", 503, times=2)             # the next two uploads of a large file fail

It is strict where the Hub is: tokens and their rights, private repositories, unknown revisions, the sha256 and size of
large files, commits that name large files which nobody uploaded.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".bin", ".pt", ".pth", ".pkl", ".png")  # as the Hub's default .gitattributes has them


@dataclass
class User:
    """Who a token belongs to, and whether it may write."""

    name: str
    may_write: bool = True


@dataclass
class Repository:
    """Commits are whole trees: path -> content."""

    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[tuple[str, str]] = field(default_factory=list)  # (branch, summary)

    def commit(self, branch: str, message: str, tree: dict[str, bytes]) -> str:
        digest = hashlib.sha1(f"{branch} {message} {len(self.commits)}".encode())
        for path, content in sorted(tree.items()):
            digest.update(path.encode() + content)
        oid = digest.hexdigest()
        self.commits[oid], self.branches[branch] = tree, oid
        self.messages.append((branch, message))
        return oid

    def resolve(self, revision: str) -> str:
        found = self.branches.get(revision, revision)
        if found not in self.commits:
            raise Refused(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
        return found


class Refused(Exception):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        commit: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.status, self.message, self.code, self.commit, self.headers = status, message, code, commit, headers or {}
        super().__init__(message)


@dataclass
class Failure:
    """An answer that was ordered by a test.

    Status 0: the connection is cut in the midst of the upload; -1: it is done, and cut before the answer.
    """

    method: str
    pattern: str
    status: int
    message: str
    times: int
    headers: dict[str, str] = field(default_factory=dict)


class Hub:
    """The server; a context manager that runs it on a free port."""

    def __init__(self, users: dict[str, User]) -> None:
        self.users = users
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}  # sha256 -> content
        self.requests: list[tuple[str, str]] = []
        self.announced: set[str] = set()  # paths whose first bytes were sent, to ask how they are to be uploaded
        self.failures: list[Failure] = []
        self.lock = threading.Lock()

    def __enter__(self) -> Hub:
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fail(
        self, method: str, pattern: str, status: int, message: str = "", times: int = 1000, **headers: str
    ) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.failures.append(Failure(method, pattern, status, message, times, named))

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        repository = self.repositories[repo_id]
        return repository.commits[repository.resolve(revision)]


Route = Callable[..., None]
_ROUTES: list[tuple[str, re.Pattern[str], Route]] = []
_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


def route(method: str, pattern: str) -> Callable[[Route], Route]:
    def add(function: Route) -> Route:
        _ROUTES.append((method, re.compile(pattern), function))
        return function

    return add


class _Handler(BaseHTTPRequestHandler):
    """Reads a request, finds its route, and turns `Refused` into what the Hub says."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:  # no noise in the tests' output
        pass

    def _handle(self) -> None:
        split = urlsplit(self.path)
        path = re.sub(r"^/api/spaces/([^/]+/[^/]+)", r"/api/models/\1.space", split.path)  # kept beside the models
        self.query = parse_qs(split.query)
        self.hub.requests.append((self.command, unquote(path)))
        length = int(self.headers.get("Content-Length") or 0)
        failure = self._ordered_failure(path)
        if failure is not None and failure.status == 0:
            self.rfile.read(length // 2)
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.body = self.rfile.read(length)
        try:
            self.loses_answer = failure is not None and failure.status == -1
            if failure is not None and not self.loses_answer:
                raise Refused(failure.status, failure.message, headers=failure.headers)
            for method, pattern, function in _ROUTES:
                match = pattern.fullmatch(path)
                if match and method == ("GET" if self.command == "HEAD" else self.command):
                    function(self, **{name: unquote(value or "") for name, value in match.groupdict().items()})
                    return
            raise Refused(404, f"no route for {self.command} {path}")
        except Refused as refused:
            headers = {"X-Error-Message": refused.message, **refused.headers}
            headers |= {"X-Error-Code": refused.code} if refused.code else {}
            headers |= {"X-Repo-Commit": refused.commit} if refused.commit else {}
            self.send(json.dumps({"error": refused.message}).encode(), refused.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _ordered_failure(self, path: str) -> Failure | None:
        with self.hub.lock:
            for failure in self.hub.failures:
                if failure.times > 0 and failure.method == self.command and re.search(failure.pattern, path):
                    failure.times -= 1
                    return failure
        return None

    loses_answer = False

    def send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        if self.loses_answer:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def answer(self, value: Any, status: int = 200) -> None:
        self.send(json.dumps(value).encode(), status)

    # ---- who may do what ----

    def user(self) -> User | None:
        header = self.headers.get("Authorization")
        if header is None:
            return None
        user = self.hub.users.get(header.removeprefix("Bearer "))
        if user is None:
            raise Refused(401, "Invalid credentials in Authorization header")
        return user

    def readable(self, repo_id: str) -> Repository:
        user, repository = self.user(), self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and (user is None or user.name != repo_id.partition("/")[0])):
            raise Refused(404 if user else 401, "Repository not found", code="RepoNotFound")
        return repository

    def writable(self, repo_id: str) -> Repository:
        repository = self.readable(repo_id)
        self.may_write(repo_id.partition("/")[0])
        return repository

    def may_write(self, namespace: str) -> None:
        user = self.user()
        if user is None:
            raise Refused(401, "Invalid username or password.")
        if user.name != namespace or not user.may_write:
            raise Refused(403, f'You don\'t have the rights to write in the namespace "{namespace}"')


# ---- the API ----------------------------------------------------------------------------------------------------


@route("GET", "/api/whoami-v2")
def whoami(request: _Handler) -> None:
    user = request.user()
    if user is None:
        raise Refused(401, "Invalid username or password.")
    request.answer({"type": "user", "name": user.name, "orgs": []})


@route("POST", "/api/validate-yaml")
def validate_yaml(request: _Handler) -> None:
    content = json.loads(request.body)["content"]
    good = content.startswith("---\n") and "\n---\n" in content
    request.answer({"errors": [] if good else [{"message": "no metadata"}], "warnings": []}, 200 if good else 400)


@route("POST", "/api/repos/create")
def create(request: _Handler) -> None:
    wanted = json.loads(request.body)
    user = request.user()
    namespace = wanted.get("organization") or (user.name if user else "")
    request.may_write(namespace)
    repo_id = f"{namespace}/{wanted['name']}" + (".space" if wanted.get("type") == "space" else "")
    exists = repo_id in request.hub.repositories
    if not exists:
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        repository = request.hub.repositories[repo_id] = Repository(private)
        repository.commit("main", "initial commit", {".gitattributes": b""})
    answer = {"url": f"{request.hub.url}/{repo_id}", "name": repo_id, "id": repo_id}
    request.answer(
        {**answer, "error": "You already created this model repo"} if exists else answer, 409 if exists else 200
    )


@route("POST", f"/api/models/{_REPO}/preupload/(?P<revision>[^/]+)")
def preupload(request: _Handler, repo: str, revision: str) -> None:
    repository = request.writable(repo)
    tree = repository.commits[repository.resolve(revision)]
    request.hub.announced |= {file["path"] for file in json.loads(request.body)["files"]}
    files = [
        {
            "path": file["path"],
            "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
            "shouldIgnore": False,
            **({"oid": _oid(file["path"], tree[file["path"]])} if file["path"] in tree else {}),
        }
        for file in json.loads(request.body)["files"]
    ]
    request.answer({"files": files})


@route("POST", rf"/{_REPO}\.git/info/lfs/objects/batch")
def lfs_batch(request: _Handler, repo: str) -> None:
    request.writable(repo)
    objects = []
    for wanted in json.loads(request.body)["objects"]:
        answer: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in request.hub.large_files:
            href = f"{request.hub.url}/upload/{wanted['oid']}/{wanted['size']}"
            verify = {"href": f"{request.hub.url}/{repo}.git/info/lfs/verify", "header": {}}
            answer["actions"] = {"upload": {"href": href, "header": {}}, "verify": verify}
        objects.append(answer)
    request.answer({"transfer": "basic", "objects": objects})


@route("PUT", r"/upload/(?P<oid>\w{64})/(?P<size>\d+)")
def lfs_upload(request: _Handler, oid: str, size: str) -> None:
    if hashlib.sha256(request.body).hexdigest() != oid or len(request.body) != int(size):
        raise Refused(422, "The content does not have the sha256 and size that were announced")
    request.hub.large_files[oid] = request.body
    request.send(b"")


@route("POST", rf"/{_REPO}\.git/info/lfs/verify")
def lfs_verify(request: _Handler, repo: str) -> None:
    request.writable(repo)
    wanted = json.loads(request.body)
    if len(request.hub.large_files.get(wanted["oid"], b"")) != wanted["size"]:
        raise Refused(404, "Object not found")
    request.answer({})


@route("POST", f"/api/models/{_REPO}/commit/(?P<revision>[^/]+)")
def commit(request: _Handler, repo: str, revision: str) -> None:
    repository = request.writable(repo)
    tree = dict(repository.commits[repository.resolve(revision)])
    summary = ""
    for line in request.body.splitlines():
        operation = json.loads(line)
        value = operation["value"]
        if operation["key"] == "header":
            summary = value["summary"]
        elif operation["key"] == "file":
            tree[value["path"]] = base64.b64decode(value["content"])
        elif operation["key"] == "lfsFile":
            if value["oid"] not in request.hub.large_files:
                raise Refused(422, f"{value['path']}: nobody uploaded {value['oid']}")
            tree[value["path"]] = request.hub.large_files[value["oid"]]
        elif operation["key"] == "deletedFile":
            del tree[value["path"]]
    oid = repository.commit(revision, summary, tree)
    url = f"{request.hub.url}/{repo}/commit/{oid}"
    request.answer({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})


@route("POST", f"/api/models/{_REPO}/branch/(?P<branch>[^/]+)")
def branch(request: _Handler, repo: str, branch: str) -> None:
    repository = request.writable(repo)
    if branch in repository.branches:
        raise Refused(409, f"Reference already exists: {branch}")
    repository.branches[branch] = repository.resolve(json.loads(request.body or b"{}").get("startingPoint", "main"))
    request.answer({})


@route("GET", f"/api/models/{_REPO}/refs")
def refs(request: _Handler, repo: str) -> None:
    branches = request.readable(repo).branches
    found = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid} for name, oid in branches.items()]
    request.answer({"branches": found, "tags": [], "converts": []})


@route("GET", f"/api/models/{_REPO}(/revision/(?P<revision>[^/]+))?")
def info(request: _Handler, repo: str, revision: str) -> None:
    repository = request.readable(repo)
    oid = repository.resolve(revision or "main")
    siblings = [{"rfilename": path} for path in sorted(repository.commits[oid])]
    request.answer({"id": repo, "modelId": repo, "sha": oid, "private": repository.private, "siblings": siblings})


@route("GET", f"/api/models/{_REPO}/tree/(?P<revision>[^/]+)(/(?P<folder>.*))?")
def tree(request: _Handler, repo: str, revision: str, folder: str) -> None:
    repository = request.readable(repo)
    oid = repository.resolve(revision)
    start = f"{folder}/" if folder else ""
    below = {path: content for path, content in repository.commits[oid].items() if path.startswith(start)}
    if folder and not below:
        raise Refused(404, f'"{folder}" does not exist on "{revision}"', code="EntryNotFound", commit=oid)
    entries: dict[str, dict[str, Any]] = {}
    for path, content in sorted(below.items()):
        first, _, rest = path.removeprefix(start).partition("/")
        if rest:
            entries[start + first] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": start + first}
        if not rest or request.query.get("recursive") == ["true"]:
            entries[path] = {"type": "file", "oid": _git_oid(content), "size": len(content), "path": path}
            if path.endswith(LARGE):
                sha = hashlib.sha256(content).hexdigest()
                entries[path]["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 134}
    request.answer(list(entries.values()))


@route("GET", f"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve(request: _Handler, repo: str, revision: str, path: str) -> None:
    repository = request.readable(repo)
    oid = repository.resolve(revision)
    content = repository.commits[oid].get(path)
    if content is None:
        raise Refused(404, "Entry not found", code="EntryNotFound", commit=oid)
    headers = {"X-Repo-Commit": oid, "ETag": f'"{_oid(path, content)}"', "Content-Type": "application/octet-stream"}
    if path.endswith(LARGE):  # the Hub sends large files from elsewhere
        sha = hashlib.sha256(content).hexdigest()
        headers |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{sha}"'}
        elsewhere = request.hub.url.replace("127.0.0.1", "localhost")
        request.send(b"", 302, {**headers, "Location": f"{elsewhere}/large/{sha}"})
    else:
        request.send(content, 200, headers)


@route("GET", r"/large/(?P<oid>\w{64})")
def large(request: _Handler, oid: str) -> None:
    if request.headers.get("Authorization"):
        raise Refused(400, "Only one auth mechanism allowed")  # as S3 says: the token is for the Hub only
    request.send(request.hub.large_files[oid], 200, {"ETag": f'"{oid}"', "Content-Type": "application/octet-stream"})


def _oid(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if path.endswith(LARGE) else _git_oid(content)


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
