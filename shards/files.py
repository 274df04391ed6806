"""Other people's annotation files, read as they really lie on disk.

An error names the file, the line and the reason. Harmless oddities are read: a byte-order mark,
CRLF, line feeds inside quotes, empty columns to the right. A value that a spreadsheet has destroyed
is an error; it is never guessed. A record whose text is empty is left out and counted (`checked`).
"""

import csv
import difflib
import functools
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from data import has_words, is_hidden
from disk import DataError, sha256, visible_problem

LONGEST = 1 << 26  # characters of one JSON record
BETWEEN = re.compile(r"[\s,]*")
YOUTUBE = re.compile(r"[A-Za-z0-9_-]{11}")
DIGITS = re.compile(r"[0-9]+")  # str.isdigit also takes those of other scripts, and powers
DAMAGED = {"#NAME?", "#VALUE!", "#REF!", "#N/A", "#NUM!", "#DIV/0!"}
DECODER = json.JSONDecoder()
csv.field_size_limit(1 << 24)


class Missing(DataError):
    """A dataset, or a file of it, that is not on disk."""


# --- folders ------------------------------------------------------------------------------


class Root:
    """The folder of all datasets: `root["audiocaps"]` is the Folder of one of them.

    `opened`: {annotation file that was read: its hash, if known already}. `notes`: what a reader
    did without.
    """

    def __init__(self, path: str | Path):
        self.path, self.opened, self.notes = Path(path), {}, []
        if not self.path.is_dir():
            raise Missing(
                f"there is no folder {path}; it should hold a folder for each dataset "
                "(docs/data.md)"
            )

    def __getitem__(self, name: str) -> "Folder":
        return Folder(self, name)

    def fingerprint(self) -> str:
        """sha256 of all annotation files that were opened, and of names that served as labels."""
        hashes = sorted(known or sha256(path) for path, known in self.opened.items())
        return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


class Folder:
    """One dataset's folder. Files that are found in it are noted in the root's `opened`."""

    def __init__(self, root: Root, name: str):
        self.root, self.path, self.opened = root, root.path / name, root.opened

    def __str__(self):
        return str(self.path)

    @property
    def advice(self) -> str:
        """The command that fetches the dataset, or tells the way to it."""
        return f"python -m shards.fetch {self.path.name} --root {self.root.path}"

    def glob(self, pattern: str, expected: str) -> list[Path]:
        if not self.path.is_dir():
            raise Missing(
                f"there is no folder {self.path}; it should hold {expected}. "
                f"To get it: {self.advice}"
            )
        next(self.path.iterdir(), None)  # raises on an unreadable folder; glob finds nothing there
        for depth in ("", "*/", "*/*/"):
            found = sorted(self.path.glob(depth + pattern))
            hits = [path for path in found if path.is_file() and not is_hidden(str(path))]
            if hits:
                return hits
        return []

    def find(self, *names: str) -> Path:
        """The file with the first of these names that exists, here or up to two folders down.

        A name may have a folder in front ("evaluation/meta.txt"). Raises Missing when there is
        none, DataError when there are several.
        """
        for name in names:
            hits = self.glob(name, names[0])
            if len(hits) > 1:
                places = ", ".join(str(hit.relative_to(self.path)) for hit in hits)
                raise DataError(
                    f"{self.path} holds {name} {len(hits)} times ({places}); keep the right one"
                )
            if hits:
                self.opened[hits[0]] = None
                return hits[0]
        inside = ", ".join(sorted(path.name for path in self.path.iterdir())[:8])
        raise Missing(
            f"{self.path} lacks {' or '.join(names)}; it holds {inside or 'nothing'}. "
            f"To get it: {self.advice}"
        )

    def names(self, pattern: str, expected: str) -> list[Path]:
        """The matching files, up to two folders down, of a dataset whose file names are its labels.

        Raises Missing when there are none.
        """
        hits = self.glob(pattern, expected)
        if not hits:
            raise Missing(f"{self.path} holds no {expected}")
        names = "".join(f"{hit.name}/" for hit in hits).encode(errors="surrogateescape")
        self.opened[self.path / pattern] = hashlib.sha256(names).hexdigest()
        return hits


class Clips:
    """The clips that a reader yields. Iterating reads the files anew, and so does len().

    list(clips) asks for the length first, and so reads twice.
    """

    def __init__(self, read: Callable[[], Iterator]):
        self.read = read

    def __iter__(self) -> Iterator:
        return self.read()

    def __len__(self) -> int:
        return sum(1 for _ in self)


def reader_of(folder_name: str) -> Callable:
    """Decorates a reader of one dataset: a generator of clips that takes the dataset's Folder.

    The decorated reader takes that or the Root, returns Clips, each of them `checked`, and has the
    folder's name as `folder`. A record that lacks a field, or holds another type, becomes a
    DataError that says where.
    """

    def decorate(read):
        @functools.wraps(read)
        def reader(place: Root | Folder, *arguments) -> Clips:
            folder = place if isinstance(place, Folder) else place[folder_name]
            return Clips(lambda: read_all(folder, arguments))

        def read_all(folder, arguments) -> Iterator[dict]:
            count = 0
            try:
                for clip in read(folder, *arguments):
                    yield checked(clip)
                    count += 1
            except DataError:
                raise
            except (KeyError, TypeError, AttributeError, ValueError) as e:
                raise DataError(
                    f"{folder}: the record after the first {count:,} is not as published "
                    f"({type(e).__name__}: {e}); get the file again"
                ) from e

        reader.folder = folder_name
        return reader

    return decorate


def checked(clip: dict) -> dict:
    """The clip without empty captions and labels; `drop` says so where a text that it needs lacks.

    `blank` counts the captions that are gone where others stay. Multiple choice may come without
    its answer: MMAU withholds those of its test.
    """
    problem = None
    if "captions" in clip:
        texts = captions_of(clip)
        clip["blank"] = len(clip["captions"]) - len(texts)
        clip["captions"] = texts
    if "labels" in clip:
        clip["labels"] = [label for label in clip["labels"] if has_words(label)]
        if not clip["labels"]:
            problem = "without a label"
    for field in ("caption", "captions", "question", "answer"):
        withheld = field == "answer" and "choices" in clip
        if field in clip and not withheld and not all_text(clip[field]):
            problem = "without a text"
    if problem and not clip.get("drop"):
        clip["drop"] = problem
    return clip


def captions_of(clip: dict) -> list[str]:
    """The clip's captions, as far as they hold a text."""
    captions = clip["captions"] if "captions" in clip else [clip.get("caption", "")]
    return [caption for caption in captions if has_words(caption)]


# --- records ------------------------------------------------------------------------------


class Record(dict):
    """One record of a file, by column. Its errors name the file and its place: "line 3"."""

    def __init__(self, values, path: Path, unit: str, number: int):
        super().__init__(values)
        self.path, self.unit, self.number = path, unit, number

    @property
    def place(self) -> str:
        return f"{self.path}, {self.unit} {self.number}"

    def clip(self, **fields) -> dict:
        """A clip of this record; `place` tells which it is when the clip is left out."""
        return fields | {"place": f"{self.path.name}, {self.unit} {self.number}"}

    def error(self, problem: str) -> DataError:
        return DataError(f"{self.place}: {problem}")

    def one_of(self, column: str, allowed) -> str:
        """The column's value; raises DataError unless it is one of those allowed."""
        if self[column] not in allowed:
            known = ", ".join(filter(None, allowed))
            raise self.error(f"{column} is {self[column]!r}, which is none of {known}")
        return self[column]

    def digits(self, column: str, title: str = "whole number") -> str:
        """The column's digits; raises DataError on anything else, such as 6.4E+04."""
        value = self.name(column)
        if not DIGITS.fullmatch(value):
            raise self.error(
                f"{value!r} is no {title}; a spreadsheet may have changed it: get the original file"
            )
        return value

    def name(self, column: str) -> str:
        """The column's text or whole number as a name. Raises DataError on anything else."""
        value = self.get(column)
        if isinstance(value, bool) or not isinstance(value, str | int) or not has_words(str(value)):
            raise self.error(f"{column} is {value!r}, which names nothing; get the original file")
        return str(value)

    def youtube(self, value: str) -> str:
        """value, if it can be a video's id: a spreadsheet makes formulas and numbers of some."""
        if not YOUTUBE.fullmatch(value):
            raise self.error(
                f"{value!r} is no YouTube id (11 letters, digits, - or _); "
                "a spreadsheet may have changed it: get the original file"
            )
        return value

    def require(self, columns, kind: type = object):
        """Raises DataError unless all these columns are there and hold this kind of value."""
        missing = [name for name in columns if name not in self or not isinstance(self[name], kind)]
        if missing:
            raise self.error(f"no {', '.join(missing)}")


def csv_records(
    path: Path, columns, header=True, delimiter=",", comment=None, spaced=False
) -> Iterator[Record]:
    """The records of a csv file.

    columns: required in the header, or, without a header, the names of the columns. spaced: a space
    stands after each comma. Raises DataError on another header, another number of columns, or a
    value that a spreadsheet has destroyed.
    """
    check_head(path)
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, skipinitialspace=spaced, strict=True)
        names = None if header else list(columns)
        try:
            for cells in reader:
                if not cells or (comment and cells[0].startswith(comment)):
                    continue
                row = Record(zip(names or (), cells), path, "line", reader.line_num)
                if names is None:
                    names = check_header(cells, columns, row)
                    continue
                check_cells(cells, len(names), row)
                yield row
        except csv.Error as e:
            raise DataError(
                f"{path}, line {reader.line_num}: {e}; the file is damaged, get it again"
            ) from e
        except UnicodeDecodeError as e:
            raise DataError(
                f"{path}, after line {reader.line_num}: not UTF-8 ({e.reason}); "
                "the file is damaged or saved again, get the original"
            ) from e
        if names is None:
            raise DataError(f"{path} is empty; get it again")


def drop_empty(cells: list[str], count: int) -> list[str]:
    """The cells without the empty ones to the right, of which the first `count` stay."""
    while len(cells) > count and not cells[-1].strip():
        cells.pop()
    return cells


def check_header(cells: list[str], columns, row: Record) -> list[str]:
    names = drop_empty(cells, 0)
    for column in columns:
        if column not in names:
            others = [name for name in names if name not in columns]
            close = [f" but {name!r}" for name in difflib.get_close_matches(column, others, 1)]
            raise row.error(
                f"no column {column!r}{''.join(close)} in the header {','.join(names)[:200]!r}; "
                "this is not the original file, get that"
            )
    return names


def check_cells(cells: list[str], count: int, row: Record):
    if len(drop_empty(cells, count)) != count:
        raise row.error(
            f"{len(cells)} columns instead of {count}, {cells[:4]}...: "
            "cut off, or saved again by another program; get the original"
        )
    if not DAMAGED.isdisjoint(cells):
        damaged = ", ".join(DAMAGED.intersection(cells))
        raise row.error(f"{damaged}: a spreadsheet has destroyed a value; get the original file")


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of every line that is not blank. Only a line feed ends a line.

    str.splitlines would also cut at U+2028 and U+0085, which captions hold. Raises DataError.
    """
    check_head(path)
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as e:
                raise DataError(
                    f"{path}, line {number}: not UTF-8 ({e.reason}); damaged? Get it again"
                ) from e
            if text.strip():
                yield number, text


def json_lines(path: Path, parse: Callable, expected: str, advice: str) -> Iterator:
    """parse(number, value) of every line of JSON. Raises DataError where it is not `expected`."""
    for number, line in text_lines(path):
        try:
            yield parse(number, json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise DataError(f"{path}, line {number}: not {expected} ({e}); {advice}") from e


def check_head(path: Path):
    """Raises DataError on a file that is empty, a web page, compressed or a Git LFS pointer."""
    if problem := visible_problem(path):
        raise DataError(f"{path} {problem}")


def json_error(path: Path, problem: str) -> DataError:
    check_head(path)
    return DataError(f"{path}: {problem}")


def stream_json(path: Path, key: str | None = None, chunk: int = 1 << 20) -> Iterator[Record]:
    """The objects of a JSON array, or of the array under `key` of a JSON object, one by one.

    Takes the memory of one chunk (characters), whatever the file's size. Raises DataError, naming
    the file and the number of good records, when it is cut off or is something else.
    """
    opening = re.compile(rf'"{key}"\s*:\s*\[' if key else r"\A\s*\[")
    text, number, problem = "", 0, f"no list {key!r}" if key else "no list"
    check_head(path)
    with open(path, encoding="utf-8-sig") as file:
        while len(text) < LONGEST and (new := read(file, chunk)):
            text += new
            if opening:  # not in the list yet
                start = opening.search(text)
                if not start and not key and text.strip():
                    raise json_error(path, "not the JSON that was expected: no list")
                if not start:
                    continue
                text, opening, problem = text[start.end() :], None, "no end of the list"
            at = BETWEEN.match(text).end()
            while at < len(text) and text[at] != "]":
                try:
                    entry, end = DECODER.raw_decode(text, at)
                except RecursionError as e:
                    raise json_error(path, f"record {number} is nested too deeply") from e
                except ValueError as e:  # it may go on in the next chunk
                    problem = f"a record without an end ({e})"
                    break
                if not isinstance(entry, dict):
                    raise DataError(f"{path}: entry {number} is no record: {str(entry)[:80]}")
                yield Record(entry, path, "record", number)
                number, problem = number + 1, "no end of the list"
                at = BETWEEN.match(text, end).end()
            if text[at : at + 1] == "]":
                return
            text = text[at:]
    raise json_error(path, f"{problem}, after {number:,} records: cut off? Get it again")


def read(file, chunk: int) -> str:
    try:
        return file.read(chunk)
    except UnicodeDecodeError as e:
        raise json_error(file.name, f"not UTF-8 ({e.reason}); damaged? Get it again") from e


# --- text ---------------------------------------------------------------------------------


def clean(text: str | float | None) -> str:
    """One line: runs of white space, line feeds among them, become one space.

    JSON's null and NaN stand for a missing text and become "".
    """
    if text is None or (isinstance(text, float) and math.isnan(text)):
        return ""
    return " ".join(text.split())


def all_text(value: str | list[str]) -> bool:
    """Whether a text, or all of a list and at least one, hold something."""
    return (
        has_words(value) if isinstance(value, str) else bool(value) and all(map(has_words, value))
    )


def plain(text: str) -> str:
    """For comparing texts: without case, punctuation and white space."""
    return " ".join(re.findall(r"\w+", text.lower()))


def readable(label: str) -> str:
    return clean(label.replace("_", " "))
