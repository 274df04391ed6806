"""From samples to tar shards (WebDataset's convention), and index.json, which describes them.

data.py describes the schema of a sample.
"""

import contextlib
import hashlib
import io
import json
import os
import shlex
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np

from data import check
from disk import DataError, write_atomic

SHARD_BYTES = 128 << 20  # a shard with audio ends here: readers hold some shards in memory


def command_line() -> str:
    """The command that was typed, without the folder it was typed in."""
    module = sys.modules["__main__"].__spec__
    program = ["python", "-m", module.name] if module else [os.path.basename(sys.argv[0])]
    return shlex.join([*program, *sys.argv[1:]])


class ShardWriter:
    """Writes samples to DIR/000000.tar, ... and at the end index.json. Same samples, same bytes.

        with ShardWriter(dir, licences={"audiocaps": "MIT"}) as writer:
            writer.write(sample, vector=z, audio=("flac", data))

    A shard gets its name only when it is complete, and index.json comes last: a folder that has one
    is complete. `key` identifies the samples' origin. With one, an interrupted writer leaves
    building.json beside its complete shards; the next writer of the same key, given the same
    samples, keeps those shards and resumes after them.
    Raises DataError when DIR is complete already, or was begun with another key, and on a sample
    outside the schema.
    """

    def __init__(
        self,
        directory: str | Path,
        per_shard: int = 4096,
        licences: dict[str, str] | None = None,
        vectors: dict | None = None,
        command: str | None = None,
        key=None,
    ):
        self.dir, self.per_shard, self.key = Path(directory), per_shard, key
        if (self.dir / "index.json").exists():
            raise DataError(
                f"{self.dir} already holds a finished set of shards; "
                "delete it or choose another folder"
            )
        self.dir.mkdir(parents=True, exist_ok=True)
        self.info = {
            "licences": licences or {},
            "vectors": vectors,
            "command": command or command_line(),
        }
        self.begun = self.dir / "building.json"
        begun = {"key": key, "shards": [], "sources": {}, "tasks": {}}
        if self.begun.exists():
            begun = json.loads(self.begun.read_text())
            if key is None or begun["key"] != key:
                raise DataError(
                    f"{self.dir} was begun from other data or with other options; "
                    "delete it or choose another folder"
                )
        self.shards, self.tar = begun["shards"], None
        self.sources, self.tasks = Counter(begun["sources"]), Counter(begun["tasks"])
        self.there = sum(s["n"] for s in self.shards)  # samples to skip: they are written already

    def write(self, sample: dict, vector=None, audio: tuple[str, bytes] | None = None):
        """sample: the schema's dict; vector: (D,), its CLAP vector; audio: (extension, bytes)."""
        if self.there:
            self.there -= 1
            return
        check(sample)
        if self.tar is None:
            self.open_shard()
        name = f"{len(self.shards):06d}{self.n:08d}"
        try:
            pieces = tar_member(f"{name}.json", encode_json(sample).encode())
        except UnicodeEncodeError as e:
            raise DataError(f"sample {sample['id']!r} holds invalid text ({e})") from e
        if vector is not None:
            pieces += tar_member(f"{name}.npy", npy_bytes(vector))
        self.put(b"".join(pieces))
        if audio is not None:
            for piece in tar_member(f"{name}.{audio[0]}", audio[1]):  # not joined: audio is long
                self.put(piece)
        self.n += 1
        self.sources[sample["source"]] += 1
        self.tasks[sample["task"]] += 1
        if self.n == self.per_shard or self.tar.tell() >= SHARD_BYTES:
            self.close_shard()

    def open_shard(self):
        self.path, self.n = self.dir / f"{len(self.shards):06d}.tar", 0
        self.part, self.hash = Path(f"{self.path}.part"), hashlib.sha256()
        self.tar = self.part.open("wb")

    def put(self, data: bytes):
        self.tar.write(data)
        self.hash.update(data)

    def close_shard(self):
        if self.tar is None:
            return
        self.put(bytes(1024))  # the end of a tar file
        self.tar.close()
        os.replace(self.part, self.path)
        self.shards.append({"file": self.path.name, "n": self.n, "sha256": self.hash.hexdigest()})
        self.tar = None
        if self.key is not None:
            fields = ("key", "shards", "sources", "tasks")
            begun = {field: getattr(self, field) for field in fields}
            write_atomic(self.begun, json.dumps(begun).encode())

    def finish(self):
        if self.there:
            raise DataError(
                f"{self.dir}: {self.there} samples fewer than when it was begun; "
                "delete it and build it again"
            )
        self.close_shard()
        counts = {"sources": dict(self.sources), "tasks": dict(self.tasks)}
        write_index(self.dir, self.shards, **counts, **self.info)
        self.begun.unlink(missing_ok=True)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self.finish()
        finally:
            if self.tar is not None:
                with contextlib.suppress(OSError):  # a full disk refuses the buffered rest
                    self.tar.close()
                self.part.unlink(missing_ok=True)


encode_json = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode
TAR_HEADER = tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT)


def tar_member(name: str, data: bytes) -> list[bytes]:
    """The bytes, in three pieces, that tarfile would write for this file, at a tenth of its time.

    For at most 99 letters of name and 8 GiB of data.
    """
    head = bytearray(TAR_HEADER)
    head[: len(name)] = name.encode()
    head[124:135] = b"%011o" % len(data)
    head[148:156] = b" " * 8  # the checksum counts its own field as spaces
    head[148:155] = b"%06o\0" % sum(head)
    return [bytes(head), data, bytes(-len(data) % 512)]


def write_index(directory: str | Path, shards: list[dict], **info):
    """Writes index.json. shards: dicts of file, n and sha256; the set's hash covers them all."""
    digest = hashlib.sha256("".join(s["sha256"] for s in shards).encode()).hexdigest()
    index = {"n": sum(s["n"] for s in shards), "hash": digest, **info, "shards": shards}
    encoded = json.dumps(index, indent=1, ensure_ascii=False).encode()
    write_atomic(Path(directory) / "index.json", encoded)


def npy_bytes(vector) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(vector, dtype=np.float16), allow_pickle=False)
    return buffer.getvalue()
