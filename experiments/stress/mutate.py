"""Random damage: to bytes, to values of JSON, to rows of a table, to members of a tar.

Every function takes a random.Random and returns (what it made, what it did in words, spans): the
spans are the ranges of the original's bytes whose meaning may have changed.
"""

import gzip
import io
import json
import random
import tarfile
from pathlib import Path

import numpy as np

FOREIGN = {  # files that lie in a file's place in practice
    "emptied": b"",
    "a web page": b"<!DOCTYPE html><html><body>quota exceeded</body></html>" * 20,
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    "zeros": bytes(5000),
    "[[[[": b"[" * 100_000,
    "null": b"null",
    "UTF-16": "\ufeff{}\n".encode("utf-16"),
}
WRONG = (  # values of another type or size
    None,
    True,
    -1,
    0,
    3.5,
    1e308,
    float("nan"),
    float("inf"),
    10**30,
    "",
    "word",
    "1",
    "\ud800",
    "a\0b",
    "../../x",
    "long " * 20_000,
    [],
    {},
    ["word"],
    [None],
    {"word": 1},
    [[[]]],
)


def in_bytes(data: bytes, rng: random.Random) -> tuple[bytes, str, list]:
    end, a = len(data), rng.randrange(max(1, len(data)))
    b = min(end, a + int(2 ** rng.uniform(0, 12)))
    junk = rng.randbytes(b - a)
    c = rng.randrange(max(1, end))
    d = min(end, c + b - a)
    how = rng.choice(
        ("flip", "flip", "flip", "cut", "cut", "zero", "junk", "insert", "delete", "double", "swap")
        + ("append", "foreign", "gzip")
    )
    if how == "flip":
        places, made = (
            sorted({rng.randrange(max(1, end)) for _ in range(rng.choice((1, 1, 8)))}),
            [],
        )
        made = bytearray(data)
        for place in places[: len(data)]:
            made[place] ^= 1 << rng.randrange(8)
        return bytes(made), f"{len(places)} bits flipped", [(p, p + 1) for p in places]
    if how == "foreign":
        name = rng.choice(tuple(FOREIGN))
        return FOREIGN[name], name, [(0, end)]
    if how == "swap":
        (a, b), (c, d) = sorted([(a, b), (c, d)])
        b = min(b, c)
        made = data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]
        return made, "blocks swapped", [(a, d)]
    made, words, span = {
        "cut": (data[:a], "cut", (a, end)),
        "zero": (data[:a] + bytes(b - a) + data[b:], "a block zeroed", (a, b)),
        "junk": (data[:a] + junk + data[b:], "a block random", (a, b)),
        "insert": (data[:a] + junk + data[a:], "a block inserted", (a, a + 1)),
        "delete": (data[:a] + data[b:], "a block deleted", (a, b)),
        "double": (data[:b] + data[a:], "a block doubled", (a, b)),
        "append": (data + junk, "a block appended", (end - 1, end)),
        "gzip": (gzip.compress(data, mtime=0), "compressed", (0, end)),
    }[how]
    return made, words, [span]


def in_value(value, rng: random.Random) -> tuple[object, str]:
    """A JSON value with one part replaced, dropped, doubled or renamed."""
    value = json.loads(json.dumps(value))
    places = list(walk(value))
    if not places or rng.random() < 0.05:
        wrong = rng.choice(WRONG)
        return wrong, f"all -> {short(wrong)}"
    holder, key, path = rng.choice(places)
    how = rng.choice(("wrong", "wrong", "wrong", "wrong", "drop", "double", "rename"))
    if how == "drop":
        del holder[key]
        return value, f"{path} dropped"
    if how == "double" and isinstance(holder, list):
        holder.insert(key, holder[key])
        return value, f"{path} doubled"
    if how == "rename" and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
        return value, f"{path} renamed"
    wrong = rng.choice(WRONG)
    holder[key] = wrong
    return value, f"{path} -> {short(wrong)}"


def walk(value, path=""):
    """(holder, key, path) of all parts of a JSON value; a long list's first few and its last."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = [(i, part) for i, part in enumerate(value) if i < 3 or i == len(value) - 1]
    else:
        return
    for key, part in items:
        yield value, key, f"{path}.{key}"
        yield from walk(part, f"{path}.{key}")


def short(value) -> str:
    words = json.dumps(value)
    return words if len(words) < 30 else f"{words[:20]}..."


def to_json(value) -> bytes:
    """Also of half a surrogate, which UTF-8 has no bytes for."""
    return json.dumps(value).encode()


# --- tables -------------------------------------------------------------------------------------

CELLS = ("", " ", "#NAME?", "6.4E+04", "a\nb", 'a"b', "a,b", "\0", "\ufeff", "x" * 200_000, "nan")


def in_table(data: bytes, rng: random.Random) -> tuple[bytes, str, list]:
    """Lines of text, as csv, JSON lines or one record a line."""
    lines = data.decode().splitlines(keepends=True)
    ends, total = [], 0
    for line in lines:
        total += len(line.encode())
        ends.append(total)
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    span = (ends[i] - 1, ends[i])
    spans, everything = [span, (ends[j] - 1, ends[j])], [(0, total)]
    how = rng.choice(
        ("cell", "cell", "cell", "drop", "double", "swap", "column", "semicolons", "encoding")
        + ("endings", "quote")
    )
    if how == "cell":
        cells, cell = lines[i].rstrip("\r\n").split(","), rng.choice(CELLS)
        k = rng.randrange(len(cells))
        cells[k] = cell
        lines[i] = ",".join(cells) + "\n"
        return (
            encode(lines),
            f"line {i + 1}, a cell -> {short(cell)}",
            spans[:1] * (i > 0) or everything,
        )
    if how in ("drop", "double"):
        lines[i : i + 1] = [lines[i]] * (2 * (how == "double"))
        return encode(lines), f"line {i + 1} {how}", spans[:1] if i else everything
    if how == "swap":
        lines[i], lines[j] = lines[j], lines[i]
        return encode(lines), f"lines {i + 1} and {j + 1} swapped", everything
    if how == "column":
        k = rng.randrange(lines[0].count(",") + 1)
        rows = [line.rstrip("\r\n").split(",") for line in lines]
        kept = [",".join(row[:k] + row[k + 1 :]) + "\n" for row in rows]
        return encode(kept), f"column {k + 1} dropped", everything
    if how == "semicolons":
        return data.replace(b",", b";"), "semicolons", everything
    if how == "encoding":
        name = rng.choice(("utf-16", "latin-1", "utf-8-sig"))
        lines[i] = f"é{lines[i]}"
        return "".join(lines).encode(name), f"saved as {name}", everything
    if how == "endings":
        return data.replace(b"\n", rng.choice((b"\r", b"\n\n", b"\r\r\n"))), "line ends", everything
    place = rng.randrange(len(data))
    made = data[:place] + b'"' + data[place:]
    return made, "a quote inserted", [(place, place + 1)]


def encode(lines: list[str]) -> bytes:
    return "".join(lines).encode()


# --- shards -------------------------------------------------------------------------------------


def members(data: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]


def pack(entries: list[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            if name.endswith("/"):
                info.type, content = tarfile.DIRTYPE, b""
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def vector_files(rng: random.Random) -> tuple[bytes, str]:
    """What may lie where a vector belongs."""
    name, array = rng.choice(
        (
            ("a matrix", np.zeros((2, 16), np.float16)),
            ("another size", np.ones(7, np.float16)),
            ("a number", np.float16(1)),
            ("nothing", np.zeros(0, np.float16)),
            ("NaN", np.full(16, np.nan, np.float16)),
            ("zeros", np.zeros(16, np.float16)),
            ("integers", np.arange(16)),
            ("words", np.array(["a"] * 16)),
            ("objects", np.array([None] * 16)),
            ("complex", np.ones(16, complex)),
            ("times", np.zeros(16, "datetime64[s]")),
            ("records", np.zeros(16, [("a", "f4")])),
            ("big-endian", np.ones(16, ">f2")),
            ("1e308", np.full(16, 1e308)),
        )
    )
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue(), name


def in_members(data: bytes, rng: random.Random) -> tuple[bytes, str, int]:
    """A tar with damaged members; the last of the three is the number of samples concerned."""
    entries = members(data)
    i, j = rng.randrange(len(entries)), rng.randrange(len(entries))
    name, content = entries[i]
    how = rng.choice(
        ("field", "field", "field", "field", "vector", "vector", "swap", "drop", "double")
        + ("rename", "order", "bytes", "bytes", "folder", "more")
    )
    if how == "field":
        i = rng.choice([k for k, (name, _) in enumerate(entries) if name.endswith(".json")])
        value, words = in_value(json.loads(entries[i][1]), rng)
        entries[i] = entries[i][0], to_json(value)
        return pack(entries), f"field {words}", 1
    if how == "vector":
        made, words = vector_files(rng)
        entries[i] = f"{Path(name).stem}.npy", made
        return pack(entries), f"{name} -> npy of {words}", 2
    if how == "swap":
        entries[i], entries[j] = (name, entries[j][1]), (entries[j][0], content)
        return pack(entries), f"contents of {name} and {entries[j][0]} swapped", 2
    if how == "rename":
        stem, end = name.split(".")
        new = rng.choice(
            (f"{stem}.txt", f"x{name}", stem, f"{stem}.{end.upper()}", f"a/{name}", "é")
        )
        entries[i] = new, content
        return pack(entries), f"{name} renamed {new}", 2
    if how == "order":
        rng.shuffle(entries)
        return pack(entries), "members shuffled", len(entries)
    if how == "bytes":
        content, words, _ = in_bytes(content, rng)
        entries[i] = name, content
        return pack(entries), f"{name}: {words}", 1
    if how == "drop":
        del entries[i]
    elif how == "double":
        entries.insert(j, entries[i])
    elif how == "folder":
        entries.insert(i, ("folder/", b""))
    else:
        entries.insert(i, (f"{'more' * 20}.json", b"{}"))
    return pack(entries), f"{how} {name}", 2


def at_offset(data: bytes, spans: list) -> int:
    """How many samples of a tar lie in these spans."""
    keys = set()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            stop = member.offset_data + -(-member.size // 512) * 512
            if any(a < stop and b > member.offset for a, b in spans):
                keys.add(member.name.split(".")[0])
    return len(keys)


def lines_in(data: bytes, spans: list) -> int:
    """How many lines of a text lie in these spans, each with its neighbour."""
    return sum(data.count(b"\n", a, b) + 2 for a, b in spans)


# --- places -------------------------------------------------------------------------------------


def in_place(path: Path, rng: random.Random) -> str | None:
    """Now and then: the file is gone, a folder, a link to nowhere. None: it is as it was."""
    if rng.random() > 0.04:
        return None
    path.unlink()
    how = rng.choice(("gone", "a folder", "a link to nowhere"))
    if how == "a folder":
        path.mkdir()
    elif how == "a link to nowhere":
        path.symlink_to("nowhere")
    return how
