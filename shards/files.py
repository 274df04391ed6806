"""Reading other people's files as they really lie on disk, and building shards from them.

What is wrong in a file is an error that names the file, the line and the reason; what is certain is read: a byte-order mark, CRLF,
line feeds inside quotes, empty columns that a spreadsheet put to the right. A value that a spreadsheet has destroyed is never guessed.
"""

import argparse
import contextlib
import csv
import difflib
import errno
import functools
import hashlib
import json
import os
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

from tqdm import tqdm

from data import AUDIO, DataError, sha256
from shards.writer import ShardWriter

LONGEST = 1 << 26  # characters of one JSON record
BETWEEN = re.compile(r"[\s,]*")
YOUTUBE = re.compile(r"[\w-]{11}")
DAMAGED = {"#NAME?", "#VALUE!", "#REF!", "#N/A", "#NUM!", "#DIV/0!"}
csv.field_size_limit(1 << 24)


class Missing(DataError):
    """A dataset, or a file of it, that is not on disk."""


class Root:
    """The folder that holds the datasets, each in a folder of its own: `root["audiocaps"]` is that Folder. `notes`: what a reader did without."""

    def __init__(self, path):
        self.path, self.opened, self.notes = Path(path), {}, []
        if not self.path.is_dir():
            raise Missing(
                f"there is no folder {path}; it should hold one folder for each dataset (shards/README.md)"
            )

    def __getitem__(self, name):
        return Folder(self.path / name, self.opened)

    def fingerprint(self):
        """sha256 of all annotation files that were opened, and of the names that served as annotation."""
        return hashlib.sha256(
            json.dumps(
                sorted((v if isinstance(v, str) else sha256(k)) for k, v in self.opened.items())
            ).encode()
        ).hexdigest()


class Folder:
    """One dataset's folder. What is found in it is noted in `opened`."""

    def __init__(self, path, opened):
        self.path, self.opened = Path(path), opened

    def __str__(self):
        return str(self.path)

    def glob(self, pattern, expected):
        if not self.path.is_dir():
            raise Missing(
                f"there is no folder {self.path}; it should hold {expected} (shards/README.md says where to get it)"
            )
        next(
            self.path.iterdir(), None
        )  # a folder that may not be read says so; glob would find nothing
        for depth in ("", "*/", "*/*/"):
            if hits := sorted(self.path.glob(depth + pattern)):
                return hits
        return []

    def find(self, *names):
        """The file here, or up to two folders further down, that has one of these names, the first of them that is there.

        A name may have a folder in front ("evaluation/meta.txt"). Raises Missing when there is none, DataError when there are several.
        """
        for name in names:
            hits = self.glob(name, names[0])
            if len(hits) > 1:
                raise DataError(
                    f"{self.path} holds {name} {len(hits)} times ({', '.join(str(h.relative_to(self.path)) for h in hits)}); "
                    "leave the one that counts"
                )
            if hits:
                self.opened[hits[0]] = None
                return hits[0]
        inside = sorted(p.name for p in self.path.iterdir())[:8]
        raise Missing(
            f"{self.path} lacks {' or '.join(names)}; it holds {', '.join(inside) or 'nothing'} (shards/README.md says what is "
            "expected)"
        )

    def names(self, pattern, expected):
        """The files that match, up to two folders down, for datasets whose file names are their annotation. Raises Missing."""
        hits = self.glob(pattern, expected)
        if not hits:
            raise Missing(f"{self.path} holds no {expected}")
        self.opened[self.path / pattern] = hashlib.sha256(
            "".join(f"{h.name}/" for h in hits).encode()
        ).hexdigest()
        return hits


def table(path, columns, header=True, delimiter=",", comment=None, spaced=False):
    """(line, {column: value}) of each record of a csv file.

    columns: those that a header must have, or, without a header, what the columns are. spaced: a space stands after each comma. Raises
    DataError, naming file and line, on another header, another number of columns, or what a spreadsheet has destroyed.
    """
    with open(path, encoding="utf-8-sig", newline="") as f:
        reader = csv.reader(f, delimiter=delimiter, skipinitialspace=spaced, strict=True)
        names = None if header else list(columns)
        try:
            for cells in reader:
                if not cells or (comment and cells[0].startswith(comment)):
                    continue
                if names is None:
                    names = cells
                    while names and not names[-1].strip():
                        names.pop()
                    for column in columns:
                        if column not in names:
                            close = difflib.get_close_matches(
                                column, [n for n in names if n not in columns], 1
                            )
                            raise DataError(
                                f"{path}, line {reader.line_num}: no column {column!r}{f' but {close[0]!r}' if close else ''} in "
                                f"the header {','.join(names)[:200]!r}; this is not the original file, get that"
                            )
                    continue
                if len(cells) > len(names):
                    while len(cells) > len(names) and not cells[-1].strip():
                        cells.pop()
                if len(cells) != len(names):
                    raise DataError(
                        f"{path}, line {reader.line_num}: {len(cells)} columns instead of {len(names)}, {cells[:4]}...: cut off, or "
                        "saved again by another program; get the original"
                    )
                if not DAMAGED.isdisjoint(cells):
                    raise DataError(
                        f"{path}, line {reader.line_num}: {', '.join(DAMAGED.intersection(cells))}: a spreadsheet has destroyed a value; "
                        "get the original file"
                    )
                yield reader.line_num, dict(zip(names, cells))
        except csv.Error as e:
            raise DataError(
                f"{path}, line {reader.line_num}: {e}; the file is damaged, get it again"
            ) from e
        except UnicodeDecodeError as e:
            raise DataError(
                f"{path}, after line {reader.line_num}: not UTF-8 ({e.reason}); the file is damaged or saved again, get the original"
            ) from e
        if names is None:
            raise DataError(f"{path} is empty; get it again")


def youtube(path, line, value):
    """value, if it can be the id of a video. Raises DataError otherwise: a spreadsheet turns some of them into formulas and numbers."""
    if not YOUTUBE.fullmatch(value):
        raise DataError(
            f"{path}, line {line}: {value!r} is no YouTube id (11 letters, digits, - or _); a spreadsheet may have changed "
            "it: get the original file"
        )
    return value


def load_json(path):
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except ValueError as e:
        raise DataError(
            f"{path}: {pointer(path) or f'no valid JSON ({e}): cut off? Get it again'}"
        ) from e


def pointer(path):
    with open(path, "rb") as f:
        if f.read(30).startswith(b"version https://git-lfs"):
            return "only a Git LFS pointer; fetch the file itself (git lfs pull)"


def stream_json(path, key=None, chunk=1 << 20):
    """The objects of a JSON array, or of the array under `key` of a JSON object, one by one: the memory of one chunk, whatever
    the file's size. Raises DataError, naming the file and the position, when it is cut off or is something else."""
    decoder, buffer, read = json.JSONDecoder(), "", 0
    with open(path, encoding="utf-8-sig") as f:
        opening = re.compile(r"\s*\[" if key is None else rf'"{key}"\s*:\s*\[')

        def more(what):
            nonlocal buffer
            new = f.read(chunk)
            if not new:
                raise DataError(
                    f"{path}: {pointer(path) or f'{what} at character {read + len(buffer)}: cut off? Get it again'}"
                )
            buffer += new

        try:
            more("empty")
            while not (start := opening.match(buffer) if key is None else opening.search(buffer)):
                if key is None or len(buffer) > 64 * chunk:
                    raise DataError(
                        f"{path}: {pointer(path) or 'not the JSON that was expected: ' + (f'no list {key!r}' if key else 'no list')}"
                    )
                more(f"no list {key!r}")
            at = start.end()
            while True:
                while True:
                    at = BETWEEN.match(buffer, at).end()
                    if at < len(buffer):
                        break
                    read, buffer, at = read + at, "", 0
                    more("no end of the list")
                if buffer[at] == "]":
                    return
                while True:
                    try:
                        item, end = decoder.raw_decode(buffer, at)
                        break
                    except ValueError as e:
                        if len(buffer) - at > LONGEST:
                            raise DataError(
                                f"{path}: no valid JSON at character {read + at}: {e}"
                            ) from e
                        more(f"a record without an end ({e})")
                if not isinstance(item, dict):
                    raise DataError(
                        f"{path}: an entry of the list, at character {read + at}, is no record: {str(item)[:80]}"
                    )
                yield item
                at = end
                if at > chunk:
                    read, buffer, at = read + at, buffer[at:], 0
        except UnicodeDecodeError as e:
            raise DataError(
                f"{path}: not UTF-8 ({e.reason}); the file is damaged, get it again"
            ) from e


def as_published(reader):
    """For readers of records: what a record lacks, or holds in another form, is a DataError that says after how many good ones."""

    @functools.wraps(reader)
    def guarded(folder, *args, **kwargs):
        n = 0
        try:
            for n, clip in enumerate(reader(folder, *args, **kwargs), 1):
                yield clip
        except (KeyError, TypeError, AttributeError, ValueError) as e:
            if isinstance(e, DataError):
                raise
            raise DataError(
                f"{folder}: the record after the first {n:,} is not as published ({type(e).__name__}: {e}); get the file again"
            ) from e

    return guarded


def clean(text):
    """One line: runs of white space, line feeds among them, become one space."""
    return " ".join(text.split())


def plain(text):
    """For comparing texts: case, punctuation and white space aside."""
    return " ".join(re.findall(r"\w+", text.lower()))


class Sounds:
    """The audio files under a folder, found by name. One walk of the folder.

    `find("fold1/x", "x")` is the first of these names, without extension, that exists; a name without a folder fits a file in any.
    """

    def __init__(self, folder):
        self.folder, self.files = str(folder), defaultdict(list)

        def refuse(error):  # os.walk would pass over what it may not read
            raise error

        for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
            folders.sort()
            for name in names:
                stem, dot, extension = name.rpartition(".")
                if dot and extension.lower() in AUDIO:
                    self.files[stem].append(os.path.join(root, name))

    def find(self, *stems):
        for stem in stems:
            *folder, name = stem.split("/")
            hits = [
                p
                for p in self.files.get(name, ())
                if p.rpartition(os.sep)[0].split(os.sep)[-len(folder) :] == folder or not folder
            ]
            if len(hits) > 1 and len({os.path.getsize(p) for p in hits}) > 1:
                raise DataError(
                    f"{name} is there {len(hits)} times, and not the same: {', '.join(sorted(hits))}"
                )
            if hits:
                return min(hits)

    def fingerprint(self):
        """sha256 of the files' names under the folder."""
        names = sorted(p[len(self.folder) :] for paths in self.files.values() for p in paths)
        return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()

    def __len__(self):
        return sum(map(len, self.files.values()))


def read_audio(path):
    """(extension, bytes): the bytes as they are, the extension by what they are (some .wav are mp3). Raises DataError on neither."""
    data = Path(path).read_bytes()
    kinds = {
        b"RIFF": "wav",
        b"RF64": "wav",
        b"fLaC": "flac",
        b"OggS": "ogg",
        b"ID3": "mp3",
        b".snd": "au",
    }
    for magic, kind in kinds.items():
        if data.startswith(magic):
            return kind, data
    if len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0:
        return "mp3", data
    raise DataError(
        f"{path}: {'an empty file' if not data else 'neither wav, flac, ogg, mp3 nor au'}"
    )


class Tally:
    """Counts what was left out, with the first few names for each reason."""

    def __init__(self):
        self.counts, self.names = Counter(), defaultdict(list)

    def drop(self, reason, name):
        self.counts[reason] += 1
        if len(self.names[reason]) < 3:
            self.names[reason].append(str(name))

    def as_dict(self):
        return {reason: {"n": n, "first": self.names[reason]} for reason, n in self.counts.items()}

    def __str__(self):
        names = {
            reason: ", ".join(first) + (", ..." if self.counts[reason] > len(first) else "")
            for reason, first in self.names.items()
        }
        return "; ".join(f"{n:,} {reason} ({names[reason]})" for reason, n in self.counts.items())


def build(out, name, samples, tally, key, licence, sounds=None, limit=None, per_shard=4096, **info):
    """Writes `samples`, dicts of the schema that may hold `sound`: names under which their audio may lie, to the shards OUT/NAME.

    With `sounds` (Sounds) a sample without its audio is counted and left out. Returns index.json's content, and whether it is new. A set
    that is complete and of the same key is kept as it is; what an interrupted call left is gone on with.
    """
    folder, key = (
        Path(out) / name,
        {**key, "limit": limit, "audio": sounds and sounds.fingerprint()},
    )
    index = folder / "index.json"
    if index.exists():
        made = load_json(index)
        if made.get("key") != key:
            changed = [k for k in key if made.get("key", {}).get(k) != key[k]]
            raise DataError(
                f"{folder} was built with another {', '.join(changed) or 'builder'}; delete it, or choose another --out"
            )
        return made, False
    try:
        with (
            ShardWriter(folder, per_shard, {name: licence}, key=key) as writer,
            tqdm(desc=name, unit=" samples", unit_scale=True, mininterval=0.5) as bar,
        ):
            n = 0
            for sample in samples:
                if n == limit:
                    break
                names, audio = sample.pop("sound", ()), None
                if sounds is not None:
                    path = sounds.find(*names)
                    if path is None:
                        tally.drop("without their audio file", names[0] if names else sample["id"])
                        continue
                    try:
                        audio = read_audio(path)
                    except DataError as e:
                        tally.drop("with an unreadable audio file", e)
                        continue
                writer.write(sample, audio=audio)
                n += 1
                bar.update()
            writer.info |= {"key": key, "left_out": tally.as_dict(), **info}
            if not n:
                raise Missing(f"no samples. Left out: {str(tally) or 'nothing'}")
    except BaseException as e:
        with contextlib.suppress(OSError):
            folder.rmdir()  # where nothing is complete yet, nothing is left
        if isinstance(e, OSError) and e.errno == errno.ENOSPC:
            raise DataError(
                f"{folder}: the disk is full. Its complete shards are kept; the same command goes on after them"
            ) from e
        raise
    return load_json(index), True


def command(argv, doc, table, options, overview, maker):
    """The command line of the builders: NAME... --root --out --limit --list --check, and what `options(parser)` adds.

    table: name -> what can be built. overview(names, args) prints what is there and returns what differs from the published counts.
    maker(args) -> a function that builds one name and returns its number of samples. Given `all`, what is not on disk is listed at the end.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"all, or any of: {', '.join(table)}"
    )
    parser.add_argument("--root", required=True, help="the folder that holds the datasets' folders")
    parser.add_argument("--out", help="where the shards go, each set in a folder of its own")
    parser.add_argument("--limit", type=int, help="at most so many samples of each")
    parser.add_argument(
        "--list", action="store_true", help="print what there is, and what of it is under --root"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare the counts with the published ones; exit 1 on a difference",
    )
    options(parser)
    args = parser.parse_args(argv)
    if args.limit is not None and args.limit < 1:
        parser.error("--limit must be at least 1")
    everything = not args.names or args.names == ["all"]
    names = list(table) if everything else args.names
    for name in names:
        if name not in table:
            sys.exit(f"{parser.prog}: there is no {name!r}; there are: {', '.join(table)}")
    try:
        if args.list or args.check:
            wrong = overview(names, args)
            sys.exit(
                "\n".join([f"{parser.prog}: the counts differ:", *wrong])
                if args.check and wrong
                else 0
            )
        if not args.names or not args.out:
            sys.exit(
                f"{parser.prog}: name what to build, or all, and the folder --out for the shards (or --list, --check)"
            )
        make, total, absent = maker(args), 0, []
        for name in names:
            try:
                total += make(name)
            except Missing as e:
                if not everything:
                    raise
                absent.append(f"missing: {name}: {e}")
        print(*absent, f"{total:,} samples in {args.out}", sep="\n")
        if not total:
            sys.exit(1)
    except (DataError, OSError) as e:
        sys.exit(f"{parser.prog}: {e}")
