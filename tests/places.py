"""The official places on the loopback address, for shards.fetch, without a network.

    python tests/places.py --shared ../shared [--hub OWNER/NAME=FOLDER ...]

serves the real tables of ../shared until Ctrl-C, and prints the variables to set.

`Places` answers /HOST/PATH, as `mirror:` in a catalog asks, and keeps to the real ones' protocol:
Range, If-Range, ETag, redirects, Zenodo's API, pages with status 404. What it was not written for
gets 501 and is kept in `unknown`. `faults` are what goes wrong, request by request.
"""

import argparse
import csv
import fnmatch
import hashlib
import io
import json
import re
import signal
import subprocess
import tarfile
import tempfile
import threading
import zipfile
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import yaml
from hub_server import Hub, Repo, ranged

PAGE = b"<!DOCTYPE html>\n<html><title>no file</title></html>"
CATALOG = Path(__file__).parents[1] / "shards/fetch/catalog.yaml"
RECORD = re.compile(r"(?P<host>zenodo\.org)/records/(?P<record>\d+)/files/(?P<name>.+)")


@dataclass
class Reply:
    """What is sent; after `cut` bytes the connection breaks or, where it is `silent`, is still."""

    status: int
    headers: dict
    body: bytes
    cut: int | None = None
    silent: bool = False


class Request(NamedTuple):
    path: str  # host/path
    query: str
    headers: dict
    status: int


# --- what goes wrong --------------------------------------------------------------------------


def breaks(after: int, silent: bool = False):
    """The connection breaks after so many bytes; or nothing more comes, and it stays open."""

    def fault(reply: Reply, _) -> Reply:
        return replace(reply, cut=after, silent=silent)

    return fault


def status(code: int, **headers):
    def fault(*_) -> Reply:
        named = {name.replace("_", "-"): str(value) for name, value in headers.items()}
        return Reply(code, {"Content-Type": "text/html", **named}, PAGE)

    return fault


def page(*_) -> Reply:
    """A proxy's page, with success."""
    return Reply(200, {"Content-Type": "text/html; charset=utf-8"}, PAGE)


def damaged(reply: Reply, _) -> Reply:
    """As many bytes, and one of them another."""
    middle = len(reply.body) // 2
    wrong = bytes([reply.body[middle] ^ 1])
    return replace(reply, body=reply.body[:middle] + wrong + reply.body[middle + 1 :])


def whole(_, data: bytes) -> Reply:
    """All of the file, whatever part was asked for."""
    return Reply(200, {"ETag": '"other"'}, data)


def unmeasured(reply: Reply, _) -> Reply:
    """No Content-Length: the end of the connection is the end of the file."""
    return replace(reply, headers={**reply.headers, "Content-Length": None})


# --- the server -------------------------------------------------------------------------------


@dataclass
class Places:
    """files: {host/path: bytes}; moved: {host/path: host/path}; faults: {host/path: iterator}."""

    files: dict[str, bytes] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)  # Content-Type, by path
    faults: dict = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    unknown: list = field(default_factory=list)

    def __post_init__(self):
        outer, self.opened = self, threading.Event()  # set: silence ends

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                outer.serve(self)

            do_HEAD = do_POST = do_PUT = do_GET

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.other = f"http://localhost:{self.http.server_port}"  # another host
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.opened.set()
        self.http.shutdown()
        self.http.server_close()

    def put(self, address: str, data: bytes) -> str:
        """Publishes a file; returns the line of a catalog: address, bytes, checksum."""
        path = address.partition("://")[2].partition("?")[0]
        self.files[path] = data
        return f"{address} {len(data)} md5:{hashlib.md5(data).hexdigest()}"

    def move(self, address: str, target: str) -> None:
        self.moved[address.partition("://")[2].partition("?")[0]] = target.partition("://")[2]

    def asked(self, part: str = "") -> list[Request]:
        """The requests whose path holds this."""
        return [request for request in self.requests if part in request.path]

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        address = urlsplit(handler.path)
        path, asked = unquote(address.path)[1:], {k.title(): v for k, v in handler.headers.items()}
        reply = self.answer(handler.command, path, address.query, asked)
        fault = next(self.faults.get(path, iter(())), None)
        if fault:
            reply = fault(reply, self.files.get(path, b""))
        self.requests.append(Request(path, address.query, asked, reply.status))
        if reply.silent and not reply.cut:
            self.opened.wait()
        with suppress(OSError):  # the client hung up
            send(handler, reply)
            if reply.silent:
                self.opened.wait()
        handler.close_connection = True

    def answer(self, method: str, path: str, query: str, asked: dict) -> Reply:
        host = path.partition("/")[0]
        hosts = {known.partition("/")[0] for known in (*self.files, *self.moved)}
        if method != "GET" or host not in hosts or not re.fullmatch(r"|(dl|download)=1", query):
            self.unknown.append((method, path, query))
            return Reply(501, {}, b"not written for this")
        if path in self.moved:
            return Reply(302, {"Location": f"{self.other}/{self.moved[path]}"}, b"")
        if path.startswith("zenodo.org/api/"):
            return self.record(path.removeprefix("zenodo.org/api/records/"))
        if path not in self.files:
            return Reply(404, {"Content-Type": "text/html; charset=utf-8"}, PAGE)
        data = self.files[path]
        kind = self.types.get(path, "application/octet-stream")
        if host == "codeload.github.com":  # makes its archives when it is asked
            return Reply(200, {"Content-Type": kind, "Content-Length": None}, data)
        tag = f'"{hashlib.md5(data).hexdigest()}"'
        code, headers, body = ranged(data, tag, asked)
        return Reply(code, {"Content-Type": kind, **headers}, body)

    def record(self, number: str) -> Reply:
        """Zenodo's list of a record's files."""
        files = []
        for path, data in self.files.items():
            match = RECORD.fullmatch(path)
            if match and match["record"] == number:
                checksum = f"md5:{hashlib.md5(data).hexdigest()}"
                files.append({"key": match["name"], "size": len(data), "checksum": checksum})
        if not files:
            return Reply(404, {"Content-Type": "application/json"}, b'{"status": 404}')
        body = json.dumps({"id": int(number), "files": files}).encode()
        return Reply(200, {"Content-Type": "application/json"}, body)


def send(handler: BaseHTTPRequestHandler, reply: Reply) -> None:
    handler.send_response(reply.status, HTTPStatus(reply.status).phrase)
    headers = {"Content-Length": str(len(reply.body)), "Connection": "close"} | reply.headers
    for name, value in headers.items():
        if value is not None:
            handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(reply.body if reply.cut is None else reply.body[: reply.cut])
    handler.wfile.flush()


# --- archives ---------------------------------------------------------------------------------


def zipped(members: dict[str, bytes]) -> bytes:
    """A zip of {path: content}."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for path, data in members.items():
            archive.writestr(path, data)
    return made.getvalue()


def tarred(members: dict[str, bytes], mode: str = "w:gz") -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode) as archive:
        for path, data in members.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return made.getvalue()


def seven_zipped(members: dict[str, bytes]) -> bytes:
    import py7zr

    made = io.BytesIO()
    with py7zr.SevenZipFile(made, "w") as archive:
        for path, data in members.items():
            archive.writestr(data, path)
    return made.getvalue()


def split_zipped(members: dict[str, bytes], name: str, *options: str) -> dict[str, bytes]:
    """{name.z01: ..., name.zip: ...} by Info-ZIP, in volumes of 64 kB.

    Option -fz makes it what any archive above 4 GB is.
    """
    with tempfile.TemporaryDirectory() as folder:
        for path, data in members.items():
            target = Path(folder, "in", path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        command = ["zip", "-q", "-r", "-0", "-s", "64k", *options, f"../{name}.zip", "."]
        subprocess.run(command, cwd=Path(folder, "in"), check=True)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).glob(f"{name}.z*"))}


# --- the real tables --------------------------------------------------------------------------

TABLES = {  # folder of ../shared/data: the place of its files
    "audiocaps": "github:cdjkim/audiocaps/master/dataset",
    "clotho": "zenodo:4783391",
    "clothoaqa": "zenodo:6473207",
    "song_describer": "zenodo:10072001",
    "esc50": "github:karolpiczak/ESC-50/master/meta",
    "vggsound": "github:hche11/VGGSound/master/data",
    "audioset": "https://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv",
    "cremad": "github:CheyneyComputerScience/CREMA-D/master",
    "dcase2017t4": "github:ankitshah009/Task-4-Large-scale-weakly-supervised-sound-event-detection-"
    "for-smart-cars/master",
}
HUB = {"musiccaps": "google/MusicCaps", "wavcaps": "cvssp/WavCaps"}
ARCHIVE = "codeload.github.com/karolpiczak/ESC-50/zip/refs/heads/master"


def official(short: str) -> str:
    """The whole address of a catalog's line that is not on the hub."""
    kind, _, rest = short.partition(":")
    if kind == "zenodo":
        record, _, name = rest.partition("/")
        return f"https://zenodo.org/records/{record}/files/{name}"
    return f"https://raw.githubusercontent.com/{rest}" if kind == "github" else short


def real_places(shared: Path, places: Places, hub: Hub) -> dict:
    """Serves the real tables, and ESC-50's archive with ESC-10's clips, at their places.

    Returns the catalog to write to the file that MATS_CATALOG names.
    """
    data = Path(shared) / "data"
    for folder, place in TABLES.items():
        for path in data.joinpath(folder).iterdir():
            inner = "groundtruth_release/" if "weak_label_evaluation" in path.name else ""
            places.put(f"{official(f'{place}/{inner}{path.name}')}", path.read_bytes())
    places.put(official("github:hche11/VGGSound/master/data/vggsound.csv"), vggsound(data))
    tables = [data / f"fsd50k/{name}.csv" for name in ("dev", "eval", "vocabulary")]
    members = {f"FSD50K.ground_truth/{path.name}": path.read_bytes() for path in tables}
    places.put(official("zenodo:4060432/FSD50K.ground_truth.zip"), zipped(members))
    places.files[ARCHIVE] = esc50_archive(data)
    places.moved["github.com/karolpiczak/ESC-50/archive/refs/heads/master.zip"] = ARCHIVE
    places.moved["github.com/karoldvl/ESC-50/archive/master.zip"] = ARCHIVE
    table = (data / "musiccaps/musiccaps-public.csv").read_bytes()
    publish(hub, "google/MusicCaps", {"musiccaps-public.csv": table})
    captions = data / "wavcaps/sb_final.json"
    files = {"json_files/SoundBible/sb_final.json": captions.read_bytes()}
    for path in data.joinpath("wavcaps").glob("blacklist*"):
        files[f"json_files/blacklist/{path.name}"] = path.read_bytes()
    publish(hub, "cvssp/WavCaps", files)
    return own_catalog(places, hub)


def vggsound(data: Path) -> bytes:
    """vggsound.csv in the official form: the real test clips, and others by stat.csv's counts."""
    table, test = io.StringIO(), Counter()
    rows = csv.writer(table, lineterminator="\n")
    for name, label in csv.reader((data / "vggsound/test.csv").open(newline="")):
        rows.writerow([name[:11], int(name[12:18]), label, "test"])
        test[label] += 1
    number = 0
    for label, clips, _ in csv.reader((data / "vggsound/stat.csv").open(newline="")):
        for _ in range(int(clips) - test[label]):
            rows.writerow([f"{number:011d}", number % 300, label, "train"])
            number += 1
    return table.getvalue().encode()


def esc50_archive(data: Path) -> bytes:
    """The repository's zip, with the clips that are there, under their names in ESC-50."""
    members = {"ESC-50-master/meta/esc50.csv": (data / "esc50/esc50.csv").read_bytes()}
    with open(data / "esc10/manifest.csv", newline="") as file:
        for row in csv.DictReader(file):
            clip = (data / "esc10" / row["ogg_path"]).read_bytes()
            members[f"ESC-50-master/audio/{row['esc50_filename']}"] = clip
    return zipped(members)


def publish(hub: Hub, name: str, files: dict[str, bytes], kind: str = "datasets/") -> None:
    repo = Repo(private=False)
    repo.commits["1" * 40] = files
    repo.branches["main"] = "1" * 40
    hub.repos[kind + name] = repo


def own_catalog(places: Places, hub: Hub) -> dict:
    """The catalog of what is served and differs from the published: sizes, checksums, counts."""
    ours, found = yaml.safe_load(CATALOG.read_text()), {"mirror": places.url}
    for name, values in ours.items():
        changed = {
            part: "\n".join(map(places_line(places, hub), values[part].strip().splitlines()))
            for part in ("text", "test", "train")
            if part in values
        }
        if any(changed[part] != values[part].strip() for part in changed):
            found[name] = values | changed
    return found


def places_line(places: Places, hub: Hub):
    """A function: the line of a catalog -> the same line for what is served."""

    def line_of(line: str) -> str:
        address, *rest = line.split()
        path = official(address).partition("://")[2]
        data = places.files.get(places.moved.get(path, path))
        if address.startswith("hf:"):
            owner, name, path = address.removeprefix("hf:").split("/", 2)
            repo = hub.repos.get(f"datasets/{owner}/{name}")
            data = repo and repo.commits[repo.branches["main"]].get(path)
        if data is None or len(rest) < 2:
            return line
        size, checksum = rest[:2]
        kind = checksum.partition(":")[0]
        own = checksum if kind == "-" else f"{kind}:{digest(kind, data)}"
        held = [rest[2], str(count(data, rest[2]))] if rest[2:] else []
        return " ".join([address, size if size == "-" else str(len(data)), own, *held])

    return line_of


def digest(kind: str, data: bytes) -> str:
    if kind == "git":
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return hashlib.new(kind, data).hexdigest()


def count(data: bytes, pattern: str) -> int:
    """The members of a zip that fit a pattern."""
    names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    return len(fnmatch.filter(names, f"*{pattern}"))


# --- the command ------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--hub", nargs="*", default=[], metavar="OWNER/NAME=FOLDER")
    args = parser.parse_args()
    for each in (signal.SIGINT, signal.SIGTERM):  # which a shell's background jobs ignore
        signal.signal(each, signal.default_int_handler)
    places, hub = Places(), Hub()
    values = real_places(args.shared, places, hub)
    for each in args.hub:
        name, _, folder = each.partition("=")
        files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
        content = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
        publish(hub, name, content, kind="")
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder, "catalog.yaml")
        own.write_text(yaml.safe_dump(values, width=10_000))
        print(f"export MATS_CATALOG={own} HF_ENDPOINT={hub.url} HF_HUB_DISABLE_XET=1")
        print("unset HF_HUB_OFFLINE; export NO_PROXY=127.0.0.1,localhost", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
        asked = defaultdict(int)
        for request in places.requests:
            asked[request.path, request.status] += 1
        for (path, code), times in asked.items():
            print(f"{times} x {code} {path}")
        print("not written for:", *places.unknown, *hub.unknown, sep="\n")


if __name__ == "__main__":
    main()
