"""A hub on the loopback address: repositories, commits, LFS, as huggingface_hub asks for them.

It keeps to the real one's protocol: status codes, X-Error-Code, ETag and X-Linked-*, a redirect to
another host for LFS. All that it was not written for is answered with 501 and kept in `unknown`.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

TOKENS = {"hf_ana": "ana", "hf_bob": "bob"}  # token: user
LFS = (".safetensors", ".model", ".gz", ".zip", ".wav")
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
DATASET = r"(?P<repo>datasets/[\w.-]+/[\w.-]+)"  # a key of `repos` as it stands
REV = r"(?P<rev>[^/]+)"


class Refused(Exception):
    """A reply that is no success: status, X-Error-Code, message."""


@dataclass
class Repo:
    private: bool
    gated: bool = False
    branches: dict = field(default_factory=lambda: {"main": "0" * 40})
    commits: dict = field(default_factory=lambda: {"0" * 40: {".gitattributes": b""}})

    def sha(self, rev: str) -> str:
        sha = self.branches.get(rev, rev)
        if sha not in self.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        return sha


@cache
def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@cache
def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def ranged(data: bytes, tag: str, asked) -> tuple[int, dict, bytes]:
    """(status, headers, body) for a request with these headers: all of it, or the rest."""
    headers, wanted = {"ETag": tag, "Accept-Ranges": "bytes"}, asked.get("Range")
    if wanted is None or asked.get("If-Range", tag) != tag:
        return 200, headers, data
    start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
    if start >= len(data):
        return 416, {**headers, "Content-Range": f"bytes */{len(data)}"}, b""
    place = f"bytes {start}-{len(data) - 1}/{len(data)}"
    return 206, {**headers, "Content-Range": place}, data[start:]


class Hub:
    """repos: {"user/name" or "datasets/user/name": Repo}; url: its HF_ENDPOINT.

    requests: (method, path) of all; ranges: (path, Range) of those for a part of a file.
    """

    def __init__(self):
        self.repos, self.objects, self.requests, self.unknown = {}, {}, [], []
        self.ranges = []
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                with outer.lock:
                    outer.serve(self)

            do_HEAD = do_POST = do_PUT = do_GET

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.cdn = f"http://localhost:{self.http.server_port}"  # another host, as the real one's
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def files(self, repo: str, rev: str = "main") -> dict[str, bytes]:
        found = self.repos[repo]
        return found.commits[found.sha(rev)]

    def serve(self, handler):
        path = unquote(urlsplit(handler.path).path)
        raw = handler.path.split("?")[0]
        self.requests.append((handler.command, path))
        body = self.read(handler)
        try:
            user = self.user(handler)
            for method, pattern, answer in ROUTES:
                match = re.fullmatch(pattern, raw)
                if match and method == handler.command:
                    named = {key: unquote(value) for key, value in match.groupdict().items()}
                    status, headers, data = answer(self, user=user, body=body, **named)
                    break
            else:
                self.unknown.append((handler.command, path))
                raise Refused(501, "Unknown", f"not written for {handler.command} {path}")
        except Exception as error:
            if not isinstance(error, Refused):
                self.unknown.append((handler.command, path, repr(error)))
                error = Refused(501, "Unknown", repr(error))
            status, code, message = error.args
            headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
            data = {"error": message}
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
        if "Range" in handler.headers and status == 200 and "ETag" in headers:
            self.ranges.append((path, handler.headers["Range"]))
            status, part, data = ranged(data, headers["ETag"], handler.headers)
            headers = headers | part
        handler.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(data)

    def read(self, handler) -> bytes:
        if handler.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(handler.rfile.readline(), 16):
                chunks.append(handler.rfile.read(size))
                handler.rfile.readline()
            handler.rfile.readline()
            return b"".join(chunks)
        return handler.rfile.read(int(handler.headers.get("Content-Length", 0)))

    def user(self, handler) -> str | None:
        scheme, _, token = handler.headers.get("Authorization", "").partition(" ")
        if scheme and token not in TOKENS:
            raise Refused(401, "", "Invalid credentials in Authorization header")
        return TOKENS.get(token)

    def seen(self, repo: str, user: str | None) -> Repo:
        """The repository, where this user may know of it: a private one is like none."""
        found = self.repos.get(repo)
        if found is None or (found.private and repo.split("/")[0] != user):
            raise Refused(404 if user else 401, "RepoNotFound", "Repository not found")
        return found

    def owned(self, repo: str, user: str | None) -> Repo:
        if user is None:
            raise Refused(401, "", "Invalid username or password.")
        found = self.seen(repo, user)
        if repo.split("/")[0] != user:
            raise Refused(403, "", "Forbidden: pass `create_pr=1` to create a Pull Request")
        return found

    # --- the routes ---

    def registry(self, user, body):
        raise Refused(404, "", "a list that clients can do without")

    def create(self, user, body):
        wanted = json.loads(body)
        owner = wanted["organization"] or user
        name = f"{owner}/{wanted['name']}"
        if user is None:
            raise Refused(401, "", "Invalid username or password.")
        if owner != user:
            raise Refused(403, "", "You don't have the rights to create a model there")
        is_new = name not in self.repos
        if is_new:
            self.repos[name] = Repo(wanted.get("visibility") == "private")
        return 200 if is_new else 409, {}, {"url": f"{self.url}/{name}", "name": name}

    def validate(self, user, body):
        content = json.loads(body)["content"]
        assert content.startswith("---\n"), "a card begins with its metadata"
        return 200, {}, {"errors": [], "warnings": []}

    def branch(self, user, body, repo, rev):
        found = self.owned(repo, user)
        if rev in found.branches:
            raise Refused(409, "", "Reference already exists")
        found.branches[rev] = found.branches["main"]
        return 200, {}, {}

    def info(self, user, body, repo, rev="main"):
        found = self.seen(repo, user)
        sha = found.sha(rev)
        siblings = [{"rfilename": path} for path in found.commits[sha]]
        return 200, {}, {"id": repo, "sha": sha, "private": found.private, "siblings": siblings}

    def tree(self, user, body, repo, rev, inside=""):
        found, entries = self.seen(repo, user), []
        files = found.commits[found.sha(rev)]
        if inside and not any(path.startswith(f"{inside}/") for path in files):
            raise Refused(404, "EntryNotFound", f"{inside} does not exist")
        for path, data in files.items():
            if inside and not path.startswith(f"{inside}/"):
                continue
            entry = {"type": "file", "path": path, "size": len(data), "oid": git_oid(data)}
            if path.endswith(LFS):
                entry["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 134}
            entries.append(entry)
        return 200, {}, entries

    def preupload(self, user, body, repo, rev):
        files = self.files(repo, rev) if self.owned(repo, user).sha(rev) else {}
        answers = []
        for wanted in json.loads(body)["files"]:
            path, there = wanted["path"], files.get(wanted["path"])
            mode = "lfs" if path.endswith(LFS) else "regular"
            oid = there and (sha256(there) if mode == "lfs" else git_oid(there))
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return 200, {}, {"files": answers}

    def batch(self, user, body, repo):
        self.owned(repo, user)
        wanted = json.loads(body)
        assert wanted["operation"] == "upload" and "basic" in wanted["transfers"]
        objects = []
        for each in wanted["objects"]:
            if each["oid"] not in self.objects:
                upload = {"href": f"{self.cdn}/lfs/{each['oid']}"}
                each["actions"] = {"upload": upload, "verify": {"href": f"{self.url}/lfs/verify"}}
            objects.append(each)
        return 200, {}, {"transfer": "basic", "objects": objects}

    def put(self, user, body, oid):
        if sha256(body) != oid:
            raise Refused(400, "", "the content is not that of the oid")
        self.objects[oid] = body
        return 200, {}, b""

    def verify(self, user, body):
        wanted = json.loads(body)
        if len(self.objects.get(wanted["oid"], b"")) != wanted["size"]:
            raise Refused(404, "", "the object is not there")
        return 200, {}, {}

    def commit(self, user, body, repo, rev):
        found = self.owned(repo, user)
        files = dict(found.commits[found.sha(rev)])
        header, *operations = map(json.loads, body.splitlines())
        assert header["key"] == "header" and header["value"]["summary"]
        for operation in operations:
            kind, value = operation["key"], operation["value"]
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            elif kind == "deletedFile":
                del files[value["path"]]
            else:
                raise Refused(400, "", f"unknown operation {kind}")
        sha = hashlib.sha1(body).hexdigest()
        found.commits[sha], found.branches[rev] = files, sha
        url = f"{self.url}/{repo}/commit/{sha}"
        return 200, {}, {"success": True, "commitOid": sha, "commitUrl": url}

    def resolve(self, user, body, repo, rev, path):
        found = self.seen(repo, user)
        if found.gated and user != repo.split("/")[0]:
            raise Refused(403 if user else 401, "GatedRepo", "Access to this model is restricted")
        sha = found.sha(rev)
        if path not in found.commits[sha]:
            raise Refused(404, "EntryNotFound", "Entry not found")
        data, commit = found.commits[sha][path], {"X-Repo-Commit": sha}
        if not path.endswith(LFS):
            return 200, {"ETag": f'"{git_oid(data)}"'} | commit, data
        linked = {"X-Linked-Etag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data))}
        return 302, {"Location": f"{self.cdn}/lfs/{sha256(data)}"} | linked | commit, b""

    def get(self, user, body, oid):
        assert user is None, "the token is not for the other host"
        commits = [files for repo in self.repos.values() for files in repo.commits.values()]
        kept = [data for files in commits for data in files.values() if sha256(data) == oid]
        return 200, {"ETag": f'"{oid}"'}, kept[0]


ROUTES = (
    ("GET", "/api/agent-harnesses", Hub.registry),
    ("POST", "/api/repos/create", Hub.create),
    ("POST", "/api/validate-yaml", Hub.validate),
    ("POST", f"/api/models/{REPO}/branch/{REV}", Hub.branch),
    ("GET", f"/api/models/{REPO}", Hub.info),
    ("GET", f"/api/models/{REPO}/revision/{REV}", Hub.info),
    ("GET", f"/api/models/{REPO}/tree/{REV}", Hub.tree),
    ("GET", f"/api/models/{REPO}/tree/{REV}/(?P<inside>.+)", Hub.tree),
    ("POST", f"/api/models/{REPO}/preupload/{REV}", Hub.preupload),
    ("POST", f"/api/models/{REPO}/commit/{REV}", Hub.commit),
    ("POST", f"/{REPO}.git/info/lfs/objects/batch", Hub.batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", Hub.put),
    ("GET", "/lfs/(?P<oid>[0-9a-f]{64})", Hub.get),
    ("POST", "/lfs/verify", Hub.verify),
    ("GET", f"/api/{DATASET}", Hub.info),
    ("GET", f"/api/{DATASET}/revision/{REV}", Hub.info),
    ("GET", f"/api/{DATASET}/tree/{REV}", Hub.tree),
    ("GET", f"/{DATASET}/resolve/{REV}/(?P<path>.+)", Hub.resolve),
    ("HEAD", f"/{DATASET}/resolve/{REV}/(?P<path>.+)", Hub.resolve),
    ("GET", f"/{REPO}/resolve/{REV}/(?P<path>.+)", Hub.resolve),
    ("HEAD", f"/{REPO}/resolve/{REV}/(?P<path>.+)", Hub.resolve),
)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub; nobody is logged in, and the cache is empty."""
    server = Hub()
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    yield server
    server.close()
    assert not server.unknown
