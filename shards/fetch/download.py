"""One file over HTTP: resumed where it broke off, from a mirror where its first place is gone."""

import hashlib
import http.client
import json
import re
import sys
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from disk import DataError, recognised
from scoring.llm import seconds
from shards.fetch.catalog import File

CHUNK = 1 << 20  # bytes; Zenodo blocks clients that ask for many small pieces
TRIES = 5  # in a row that bring nothing new
PAUSE = 1.0  # seconds before the second try; doubled before each later one
TIMEOUT = 60  # seconds of silence
HEADERS = {"User-Agent": "MATS (shards.fetch)", "Accept-Encoding": "identity"}
SILENCE = "no connection"
PASSING = (408, 425, 429, 500, 502, 503, 504)  # statuses after which a later try may succeed


class Refused(Exception):
    """A place that does not have the file; no later try would help."""


class Broken(Exception):
    """A try that failed and may be repeated, after some seconds: (problem, seconds)."""


class Unreachable(DataError):
    """A file at whose addresses nobody answers."""


# --- one try ------------------------------------------------------------------------------


def ask(address: str, headers: dict):
    """The open reply. Raises Refused or Broken."""
    try:
        return urlopen(Request(address, headers=HEADERS | headers), timeout=TIMEOUT)
    except HTTPError as error:
        problem = in_one_line(f"{error.code} {error.reason}")
        if error.code in PASSING:
            raise Broken(problem, seconds(error.headers)) from error
        error.close()
        raise Refused(problem) from error
    except (OSError, http.client.HTTPException) as error:  # URLError, a timeout, ssl's
        said = in_one_line(str(getattr(error, "reason", error)))
        raise Broken(f"{SILENCE} ({said})", 0) from error
    except ValueError as error:
        raise Refused(f"no address ({error})") from error


def in_one_line(said: str) -> str:
    """At most 200 characters of an error's text: a place may send more, and lines of it."""
    return " ".join(said.split())[:200]


def fetch_json(address: str) -> dict:
    """The JSON object at an address. Raises Refused or Broken."""
    with ask(address, {}) as reply:
        try:
            value = json.load(reply)
        except (ValueError, OSError, http.client.HTTPException) as error:
            raise Broken(f"no JSON ({error})", 0) from error
    if not isinstance(value, dict):
        raise Refused("no JSON object")
    return value


class Partial:
    """A download that is not whole: PATH.part, and beside it where its bytes came from.

    `checked`: the whole file's checksum is known, so that bytes of any place may be joined.
    """

    def __init__(self, path: Path, checked: bool):
        self.path, self.checked = path.with_name(f"{path.name}.part"), checked
        self.origin = path.with_name(f"{path.name}.origin")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def headers(self, address: str) -> dict:
        """Those that ask for the rest; none where all has to come again."""
        origin = self.origin.read_text() if self.origin.exists() else ""
        known, _, validator = origin.partition("\n")
        if known != address:
            validator = ""
        if not self.size or not (validator or self.checked):
            return {}
        return {"Range": f"bytes={self.size}-"} | ({"If-Range": validator} if validator else {})

    def note(self, address: str, headers) -> None:
        """Keeps what tells this version of the file from a later one."""
        tag = headers.get("ETag") or ""
        validator = headers.get("Last-Modified") if tag.startswith("W/") or not tag else tag
        self.origin.write_text(f"{address}\n{validator or ''}")

    def clear(self) -> None:
        self.path.unlink(missing_ok=True)
        self.origin.unlink(missing_ok=True)


def receive(address: str, partial: Partial, bar: tqdm) -> None:
    """Brings the rest of the file. Raises Refused or Broken; OSError where it cannot be written."""
    before, headers = partial.size, partial.headers(address)
    try:
        reply = ask(address, headers)
    except Refused as refused:
        if not isinstance(refused.__cause__, HTTPError) or refused.__cause__.code != 416:
            raise
        if refused.__cause__.headers.get("Content-Range") == f"bytes */{before}":
            return  # there is no rest
        partial.clear()
        bar.update(-before)
        raise Broken("the file at this address has changed", 0) from refused
    with reply:
        start = before if reply.status == 206 else 0
        if reply.status == 206 and not continues(reply.headers, start):
            partial.clear()
            bar.update(-before)
            raise Broken("the reply is another part of the file than was asked for", 0)
        check_type(reply, start)
        if not start:
            partial.clear()  # before it is noted to come from here
        partial.note(address, reply.headers)
        bar.update(start - before)
        expected = length_of(reply.headers, start)
        if expected and bar.total is not None:
            bar.total = max(bar.total, bar.n - start + expected)
        write(reply, partial, start, bar)
    if expected is not None and partial.size < expected:
        raise Broken(f"the connection broke after {partial.size:,} of {expected:,} bytes", 0)


def continues(headers, start: int) -> bool:
    return (headers.get("Content-Range") or "").startswith(f"bytes {start}-")


def length_of(headers, start: int) -> int | None:
    """Bytes of the whole file, where the reply tells."""
    length = headers.get("Content-Length", "")
    return start + int(length) if re.fullmatch("[0-9]{1,18}", length) else None


def check_type(reply, start: int) -> None:
    """Raises Refused where a page comes in the place of a file."""
    if reply.headers.get_content_type() == "text/html" and not start:
        raise Refused("answered with a web page: a proxy, a log-in, or a limit of downloads")


def write(reply, partial: Partial, start: int, bar: tqdm) -> None:
    """Appends the reply's bytes from `start` on. Raises Broken where the connection breaks."""
    with open(partial.path, "r+b" if start else "wb") as file:
        file.seek(start)
        while True:
            try:
                data = reply.read(CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise Broken(
                    f"the connection broke ({error or type(error).__name__})", 0
                ) from error
            if not data:
                return
            file.write(data)
            bar.update(len(data))


# --- until it is whole --------------------------------------------------------------------


def download_file(file: File, path: Path, bar: tqdm) -> None:
    """Brings `file` to `path`, from the first of its addresses that has it.

    What a broken connection or a kill left is resumed. `bar` counts bytes. Raises DataError where
    no address has it, with each one's reason, Unreachable where nobody answers at any; OSError
    where it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, problems, error = Partial(path, bool(file.checksum)), [], Unreachable
    bar.update(partial.size)
    for address in file.addresses:
        try:
            persist(address, partial, bar)
            check_content(partial)
        except Refused as refused:
            problems.append(f"{address}: {refused}")
            error = error if str(refused).startswith(SILENCE) else DataError
            continue
        partial.path.rename(path)
        partial.clear()
        return
    raise error("; ".join(problems))


def persist(address: str, partial: Partial, bar: tqdm) -> None:
    """Tries until the file is whole. Raises Refused after TRIES that brought nothing."""
    tries, most = 0, partial.size
    while True:
        try:
            return receive(address, partial, bar)
        except Broken as broken:
            problem, wanted = broken.args
            tries = 1 if partial.size > most else tries + 1
            most = max(most, partial.size)
            if tries >= TRIES:
                raise Refused(f"{problem}, {TRIES} times in a row") from broken
            wait = max(PAUSE * 2 ** (tries - 1), wanted)
            bar.set_postfix_str(f"{problem}; again in {wait:.0f} s")
            if bar.disable:  # no terminal
                print(f"{address}: {problem}; again in {wait:.0f} s", file=sys.stderr)
            time.sleep(wait)
            bar.set_postfix_str("")


def check_content(partial: Partial) -> None:
    """Raises Refused on a page or a pointer that came as a file."""
    with open(partial.path, "rb") as file:
        head = file.read(200)
    problem = recognised(head)
    if problem and not problem.startswith("is compressed"):
        partial.clear()
        raise Refused(f"it {problem}")


# --- checksums ----------------------------------------------------------------------------


def checksum_of(path: Path, kind: str) -> str:
    """md5:..., sha256:..., or git:..., the sha1 that Git gives the file."""
    with open(path, "rb") as file:
        if kind != "git":
            return f"{kind}:{hashlib.file_digest(file, kind).hexdigest()}"
        found = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        while data := file.read(CHUNK):
            found.update(data)
    return f"git:{found.hexdigest()}"


def kind_of(checksum: str) -> str:
    return checksum.partition(":")[0] or "sha256"
