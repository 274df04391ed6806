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

from data import AUDIO, check
from disk import DataError, read_json, write_atomic

SHARD_BYTES = 128 << 20  # a shard with audio ends here: readers hold some shards in memory


def command_line() -> str:
    """The command that was typed, without the folder it was typed in."""
    module = sys.modules["__main__"].__spec__
    program = ["python", "-m", module.name] if module else [os.path.basename(sys.argv[0])]
    line = shlex.join([*program, *sys.argv[1:]])
    return line.encode(errors="backslashreplace").decode()  # names of files need not be UTF-8


class ShardWriter:
    """Writes samples to DIR/000000.tar, ... and at the end index.json. Same samples, same bytes.

        with ShardWriter(dir, licences={"audiocaps": "MIT"}) as writer:
            writer.write(sample, vector=z, audio=("flac", data))

    A shard gets its name only when it is complete, and index.json comes last: a folder that has one
    is complete. `key` identifies the samples' origin. With one, an interrupted writer leaves
    building.json beside its complete shards; the next writer of the same key, given the same
    samples, keeps those shards and resumes after them.
    Only what data.py reads again is written: write() takes numpy's numbers and ".WAV", and raises
    DataError, naming sample and field, on anything that would not come back. Raises DataError when
    DIR is complete already or was begun with another key, and at the end where nothing was written.
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
        for name, value in (("licences", licences), ("vectors", vectors), ("key", key)):
            if not is_json(value) or (name != "key" and not isinstance(value, dict | None)):
                raise DataError(f"{self.dir}: {name} is {value!r:.80}, no dict that JSON holds")
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
            begun = read_begun(self.begun)
            if key is None or begun["key"] != key:
                raise DataError(
                    f"{self.dir} was begun from other data or with other options; "
                    "delete it or choose another folder"
                )
        self.shards, self.tar = begun["shards"], None
        self.sources, self.tasks = Counter(begun["sources"]), Counter(begun["tasks"])
        self.there = sum(s["n"] for s in self.shards)  # samples to skip: they are written already
        self.dim = (vectors or {}).get("dim")  # of all vectors: of the first where none is said

    def write(self, sample: dict, vector=None, audio: tuple[str, bytes] | None = None):
        """sample: the schema's dict; vector: (D,), its CLAP vector; audio: (extension, bytes)."""
        sample = plain_sample(sample)
        content = sample_bytes(sample)
        if vector is not None:
            vector = self.vector_bytes(vector, sample)
        if audio is not None:
            audio = checked_audio(audio, sample)
        if self.there:  # only now: a sample that is refused is in no shard
            self.there -= 1
            return
        if self.tar is None:
            self.open_shard()
        name = f"{len(self.shards):06d}{self.n:08d}"
        pieces = tar_member(f"{name}.json", content)
        if vector is not None:
            pieces += tar_member(f"{name}.npy", vector)
        self.put(b"".join(pieces))
        if audio is not None:
            for piece in tar_member(f"{name}.{audio[0]}", audio[1]):  # not joined: audio is long
                self.put(piece)
        self.n += 1
        self.sources[sample["source"]] += 1
        self.tasks[sample["task"]] += 1
        if self.n == self.per_shard or self.tar.tell() >= SHARD_BYTES:
            self.close_shard()

    def vector_bytes(self, vector, sample: dict) -> bytes:
        """The npy of a finite vector. Raises DataError on any other, and on another dimension."""
        if hasattr(vector, "detach"):  # a tensor, on whatever device
            vector = vector.detach().float().cpu()
        try:
            with np.errstate(over="ignore"):
                row = np.asarray(vector, dtype=np.float16)
        except (TypeError, ValueError) as e:
            raise DataError(f"sample {sample['id']!r}: its vector holds no numbers ({e})") from e
        if row.ndim != 1 or not row.any() or not np.isfinite(row).all():
            raise DataError(
                f"sample {sample['id']!r}: its vector, of shape {row.shape}, "
                "is no finite row of float16 that has a direction"
            )
        self.dim = self.dim or row.size
        if row.size != self.dim:
            raise DataError(
                f"sample {sample['id']!r}: its vector has {row.size} numbers, "
                f"the others have {self.dim}"
            )
        return npy_bytes(row)

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
        self.tar.flush()
        os.fsync(self.tar.fileno())
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
        if not self.shards:
            raise DataError(f"{self.dir}: no sample was written, so there is nothing to index")
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


def read_begun(path: Path) -> dict:
    """building.json. Raises DataError where it is damaged, or its shards are gone."""
    advice = f"delete the folder {path.parent} and build it again"
    try:
        begun = read_json(path)
    except DataError as e:
        raise DataError(f"{e}; {advice}") from e
    kinds = {"shards": list, "sources": dict, "tasks": dict}
    if "key" not in begun or not all(isinstance(begun.get(f), kinds[f]) for f in kinds):
        raise DataError(f"{path} is not of the writer's form; {advice}")
    for shard in begun["shards"]:
        if not isinstance(shard, dict) or not {"file", "n", "sha256"} <= shard.keys():
            raise DataError(f"{path} is not of the writer's form; {advice}")
        if not (path.parent / shard["file"]).exists():
            raise DataError(f"{path} names {shard['file']}, which is gone; {advice}")
    return begun


# --- one sample -----------------------------------------------------------------------------------


def plain_sample(sample: dict) -> dict:
    """The sample without numpy's types, as pandas hands them out. Raises DataError on no dict."""
    if not isinstance(sample, dict):
        raise DataError(f"a sample is a dict of the schema, not {str(sample)[:80]!r}")
    return {
        field: value if type(value) is str else plain_value(value)
        for field, value in sample.items()
    }


def plain_value(value):
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [plain_value(entry) for entry in value]
    return value


def sample_bytes(sample: dict) -> bytes:
    """The sample's JSON. Raises DataError, naming sample and field, where it cannot come back."""
    check(sample, escapes=False)
    try:
        return encode_json(sample).encode()
    except UnicodeEncodeError as e:
        check(sample)  # names the field
        raise DataError(f"sample {sample['id']!r}: {e}") from e
    except (TypeError, ValueError, RecursionError) as e:
        told = [field for field, value in sample.items() if not is_json(value)]
        raise DataError(
            f"sample {sample['id']!r}: {', '.join(told)} is nothing that JSON holds ({e})"
        ) from e


def is_json(value) -> bool:
    try:
        encode_json(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def checked_audio(audio: tuple[str, bytes], sample: dict) -> tuple[str, bytes]:
    """(extension, bytes) as the reader finds them. Raises DataError where it would not."""
    if not isinstance(audio, tuple | list) or len(audio) != 2:
        raise DataError(f"sample {sample['id']!r}: audio must be (extension, bytes of a file)")
    extension, data = audio
    extension = str(extension).lower().removeprefix(".")
    if extension not in AUDIO:
        raise DataError(
            f"sample {sample['id']!r}: audio in {audio[0]!r} is not read; "
            f"convert it to one of {', '.join(AUDIO)}"
        )
    if not isinstance(data, bytes | bytearray | memoryview) or not len(data):
        raise DataError(f"sample {sample['id']!r}: audio must be the bytes of a file")
    return extension, bytes(data)


encode_json = json.JSONEncoder(ensure_ascii=False, sort_keys=True, allow_nan=False).encode


# --- tar and index --------------------------------------------------------------------------------


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
    # text that is no Unicode stays as JSON escapes it
    encoded = json.dumps(index, indent=1, ensure_ascii=False).encode(errors="backslashreplace")
    write_atomic(Path(directory) / "index.json", encoded)


def npy_bytes(vector) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(vector, dtype=np.float16), allow_pickle=False)
    return buffer.getvalue()
