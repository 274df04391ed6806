"""From samples to a folder of shards, with or without audio: shared by all builders."""

import argparse
import contextlib
import errno
import hashlib
import io
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import soundfile as sf
from tqdm import tqdm

from data import AUDIO, is_hidden
from disk import DataError, command, read_json, visible_problem, why
from shards.files import Missing
from shards.writer import ShardWriter

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
UNREAD = ("m4a", "mp4", "aac", "wma", "webm", "mkv", "amr")  # libsndfile reads none of them
MAGIC = {
    b"RIFF": "wav",
    b"RF64": "wav",
    b"fLaC": "flac",
    b"OggS": "ogg",
    b"ID3": "mp3",
    b".snd": "au",
}


# --- audio files --------------------------------------------------------------------------


class Sounds:
    """The audio files under a folder, found by name. Walks the folder once.

    `find("fold1/x", "x")` is the path of the first of these names, without extension, that exists,
    or None. A name without a folder fits a file in any. `unread`: {name: its extension} of files
    in formats that the decoder does not know.
    """

    def __init__(self, folder: str | Path):
        self.folder, self.files, self.unread = str(folder), defaultdict(list), {}

        def refuse(error):  # os.walk would skip a folder that it may not read
            raise error

        for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
            folders.sort()
            for name in names:
                stem, dot, extension = name.rpartition(".")
                path = os.path.join(parent, name)
                if not dot or is_hidden(path):
                    continue
                if extension.lower() in AUDIO:
                    self.files[stem].append(path)
                elif extension.lower() in UNREAD:
                    self.unread[stem] = extension.lower()

    def find(self, *stems: str) -> str | None:
        for stem in stems:
            *folders, name = stem.split("/")
            hits = [path for path in self.files.get(name, ()) if lies_in(path, folders)]
            if len(hits) > 1:  # links may lead nowhere
                hits = [path for path in hits if os.path.exists(path)]
            if len(hits) > 1 and len(set(map(os.path.getsize, hits))) > 1:
                raise DataError(
                    f"{name} is there {len(hits)} times, and they differ: {', '.join(sorted(hits))}"
                )
            if hits:
                return min(hits)
        return None

    def advice(self) -> str:
        """A part of a sentence about the files that are there and are not taken, if any."""
        kinds = Counter(self.unread.values())
        if not kinds:
            return ""
        counts = ", ".join(f"{n:,} .{kind}" for kind, n in kinds.items())
        return f"; {counts} are there and are not taken: convert them with ffmpeg (to .flac)"

    def fingerprint(self) -> str:
        """sha256 of the files' names under the folder."""
        names = sorted(path[len(self.folder) :] for paths in self.files.values() for path in paths)
        return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()

    def __len__(self):
        return sum(map(len, self.files.values()))


def lies_in(path: str, folders: list[str]) -> bool:
    """Whether the last folders of the path are these."""
    parents = path.split(os.sep)[:-1]
    return parents[len(parents) - len(folders) :] == folders


def read_audio(path: str | Path) -> tuple[str, bytes]:
    """(extension, bytes): the extension says what the bytes are, since some .wav are mp3.

    Raises DataError on any other format.
    """
    content = Path(path).read_bytes()
    for magic, extension in MAGIC.items():
        if content.startswith(magic):
            return extension, content
    if content[:4] == b"FORM" and content[8:12] in (b"AIFF", b"AIFC"):
        return "aiff", content
    if len(content) > 1 and content[0] == 0xFF and content[1] & 0xE0 == 0xE0:
        return "mp3", content
    try:  # a rarer format under a known extension: the decoder decides
        sf.SoundFile(io.BytesIO(content)).close()
    except sf.LibsndfileError as e:
        unknown = f"is no audio that can be decoded, such as {', '.join(AUDIO)}"
        raise DataError(f"{path} {visible_problem(path) or unknown}") from e
    return os.path.splitext(path)[1][1:].lower(), content


# --- building -----------------------------------------------------------------------------


class Tally:
    """Counts the clips that were left out, with the first few names for each reason."""

    def __init__(self):
        self.counts, self.names = Counter(), defaultdict(list)

    def drop(self, reason: str, name):
        self.counts[reason] += 1
        if len(self.names[reason]) < 3:
            self.names[reason].append(str(name).encode(errors="backslashreplace").decode())

    def drop_blank(self, clip: dict):
        """Counts the captions without a text of a clip that has others."""
        if not clip.get("drop"):
            for _ in range(clip.get("blank", 0)):
                self.drop("captions without a text", name_of(clip))

    def as_dict(self) -> dict:
        return {reason: {"n": n, "first": self.names[reason]} for reason, n in self.counts.items()}

    def __str__(self):
        parts = []
        for reason, n in self.counts.items():
            more = ["..."] if n > len(self.names[reason]) else []
            parts.append(f"{n:,} {reason} ({', '.join(self.names[reason] + more)})")
        return "; ".join(parts)


def build(
    out: str | Path,
    name: str,
    samples: Iterable[dict],
    tally: Tally,
    key: dict,
    licence: str,
    sounds: Sounds | None = None,
    limit: int | None = None,
    per_shard: int = 4096,
    **info,
) -> tuple[dict, bool]:
    """Writes the samples to the shards OUT/NAME; returns (its index.json, whether it is new).

    A sample is a dict of the schema; `sound` lists the names that its audio may have, `place` tells
    where it stands. A sample that cannot be written (text that is no Unicode) is counted in
    `tally` and left out; with `sounds` also one without audio. A complete set of the same key is
    kept as it is; an interrupted one is resumed. `info` goes to index.json.
    Raises DataError on a set of another key, Missing when no sample is left, OSError.
    """
    folder = Path(out) / name
    key = {**key, "limit": limit, "audio": None if sounds is None else sounds.fingerprint()}
    index = folder / "index.json"
    if index.exists():
        return check_key(read_json(index), key, folder), False
    try:
        with ShardWriter(folder, per_shard, {name: licence}, key=key) as writer:
            if not write_all(writer, name, samples, sounds, limit, tally):
                advice = "" if sounds is None else sounds.advice()
                raise Missing(f"no samples. Left out: {str(tally) or 'nothing'}{advice}")
            writer.info |= {"key": key, "left_out": tally.as_dict(), **info}
    except BaseException:
        with contextlib.suppress(OSError):
            folder.rmdir()  # only where it is empty: no shard is complete yet
        raise
    return read_json(index), True


def check_key(made: dict, key: dict, folder: Path) -> dict:
    """The finished set's index, `made`; raises DataError if it was built from something else."""
    before = made.get("key")
    if before != key:
        known = before if isinstance(before, dict) else {}
        changed = [field for field in key if known.get(field) != key[field]]
        raise DataError(
            f"{folder} was built with another {', '.join(changed) or 'builder'}; "
            "delete it, or choose another --out"
        )
    return made


def write_all(writer, name, samples, sounds, limit, tally) -> int:
    """Writes at most `limit` samples; returns how many."""
    n = 0
    with tqdm(desc=name, unit=" samples", unit_scale=True, mininterval=0.5) as bar:
        for sample in samples:
            if n == limit:
                break
            names, audio = sample.pop("sound", ()), None
            place = sample.pop("place", None)
            if sounds is not None:
                audio = audio_of(sample["id"], names, sounds, tally)
                if audio is None:
                    continue
            try:
                writer.write(sample, audio=audio)
            except DataError as e:
                tally.drop("that cannot be written", f"{e} ({place})" if place else e)
                continue
            n += 1
            bar.update()
    return n


def name_of(clip: dict) -> str:
    """The clip's name for people: its id, and where it stands."""
    return f"{clip['id']} ({clip['place']})" if clip.get("place") else str(clip["id"])


def audio_of(sample_id, names, sounds, tally) -> tuple[str, bytes] | None:
    """(extension, bytes) of the first of these names that exists; None, counted, without one."""
    path = sounds.find(*names)
    if path is None:
        kinds = {sounds.unread.get(name.rpartition("/")[2]) for name in names} - {None}
        kind = f" but an .{min(kinds)}: convert it with ffmpeg" if kinds else ""
        tally.drop(f"without their audio file{kind}", names[0] if names else sample_id)
        return None
    try:
        return read_audio(path)
    except DataError as e:
        tally.drop("with an unreadable audio file", e)
    except OSError as e:
        tally.drop("with an unreadable audio file", why(e, path))
    return None


# --- the command line ---------------------------------------------------------------------


def builder_parser(doc: str, table: dict, more: dict | None = None) -> argparse.ArgumentParser:
    """The options that both builders have. table: name -> something that can be built.

    more: the same, for what is no part of `all`.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    known = f"all, or any of: {', '.join(table)}"
    known += f"; and, no part of all: {', '.join(more)}" if more else ""
    option("names", nargs="*", metavar="NAME", help=known)
    option("--root", required=True, help="the folder that holds the datasets' folders")
    option("--out", help="where the shards go, each set in a folder of its own")
    option("--limit", type=int, help="at most so many samples of each")
    option("--list", action="store_true", help="print every set, and what is under --root")
    option("--check", action="store_true", help="compare counts with the published ones")
    return parser


def run(parser, argv, table: dict, overview: Callable, builder: Callable, more: dict | None = None):
    """Runs a builder's command line.

    overview(names, args, asked) prints the counts and returns the differences, one line each; it
    counts a missing dataset as one where it was asked for by name. builder(args) returns a function
    that builds one name and returns its number of samples. Given `all`, datasets that are not on
    disk are listed at the end. `more` are names that are no part of `all`. Exits 1 on a difference
    (--check), an error, or no sample at all.
    """
    args = parser.parse_args(argv)
    if args.limit is not None and args.limit < 1:
        parser.error("--limit must be at least 1")
    asked = args.names not in ([], ["all"])
    names, known = args.names if asked else list(table), {**table, **(more or {})}
    with command(parser.prog):
        for name in names:
            if name not in known:
                raise DataError(f"there is no {name!r}; there are: {', '.join(known)}")
        if args.list or args.check:
            wrong = overview(names, args, asked)
            if args.check and wrong:
                raise DataError("\n".join(["the counts differ:", *wrong]))
            sys.exit(0)
        if not args.names or not args.out:
            raise DataError(
                "give the NAMEs to build, or all, and --out for the shards (or --list, --check)"
            )
        total = build_all(names, builder(args), asked)
        print(f"{total:,} samples in {args.out}")
        if not total:
            sys.exit(1)


def build_all(names: list[str], build_one: Callable, asked: bool) -> int:
    """Builds all names; returns the number of samples. Lists the missing ones unless `asked`.

    One that fails does not stop the others. Raises DataError that lists the failures.
    """
    total, missing = [], []

    def work(name):
        try:
            total.append(build_one(name))
        except Missing as e:
            if asked:
                raise
            missing.append(f"missing: {name}: {e}")

    try:
        for_each(names, work)
    finally:
        for line in missing:
            print(line)
    return sum(total)


def for_each(names: Iterable[str], work: Callable[[str], object]):
    """work(name) for all names, also after one fails. A disk that is full or read-only ends it.

    Raises DataError that lists the failures, one line each.
    """
    failed = []
    for name in names:
        try:
            work(name)
        except DataError as e:
            failed.append(f"{name}: {e}")
        except OSError as e:
            if e.errno is None:
                raise
            failed.append(f"{name}: {why(e)}")
            if e.errno in FULL:
                break
    if failed:
        raise DataError("\n".join(failed))
