"""From tar shards to batches, in five steps:

1. `shards.writer.ShardWriter` packs samples into tar shards (WebDataset's convention).
   index.json says how many samples each shard holds.
2. `Source` is one folder or URL of such shards, known by its index.json alone.
3. `Plan` decides what every micro-batch is made of. It is a pure function of (seed, position) and
   needs only the counts. So a run that resumes at position 90,000 gets there in a second. One rank
   with one worker sees the same micro-batches as eight ranks with four workers each.
4. `read_shard` streams one shard through WebDataset (a path, `pipe:`, http(s), an object store).
   A broken sample is named, counted and skipped.
5. `language.prompt.Template` turns samples into tokens, and `collate` into tensors. Both run in
   the workers.

A sample is a dict: text (what the audio contains, or None), instruction, answer (a list where there
are several references), task, source, id; optionally choices and tag. Beside it in the tar may lie
`npy` (its CLAP vector, float16, unit length) and the audio as it came, named by its kind (AUDIO).

    python -m shards.embed SRC DST       put the CLAP vector of every text beside it, once
    python -m shards.embed index DIR     make index.json for shards that came without one
"""

import functools
import io
import itertools
import json
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from tokenize import TokenError
from typing import NamedTuple

import numpy as np
import torch
import webdataset as wds
from webdataset.tariterators import group_by_keys

from disk import DataError, read_json

# --- the schema ---------------------------------------------------------------------------------

FIELDS = ("text", "instruction", "answer", "task", "source", "id")
TASKS = ("cls", "cap", "music_cap", "aqa", "open", "mcq")
AUDIO = ("flac", "wav", "ogg", "mp3", "au", "opus", "aiff", "aif")  # what libsndfile decodes
WANTED = {  # of the fields
    "text": "a string with words, or null",
    "instruction": "a string",
    "answer": "a string with words, or a list of such",
    "task": f"one of {', '.join(TASKS)}",
    "source": "a string with words",
    "id": "a string or a whole number",
    "tag": "a string or null",
    "choices": "a list of strings",
}
RESERVED = ("vector", "key", "kind", "audio")  # what reading adds


def check(sample: dict, escapes=True) -> None:
    """Raises DataError, naming the sample and the field, unless `sample` fits the schema.

    escapes: whether its JSON has some; without, it cannot hold half a character, which takes long
    to find.
    """
    if not isinstance(sample, dict):
        raise DataError(f"a sample is a dict of {', '.join(FIELDS)}, not {sample!r:.60}")
    problem = problem_of(sample)
    if not problem and escapes and not is_unicode(sample):
        field = next(field for field in sample if not is_unicode(sample[field]))
        problem = f"does not fit: {field} holds half a character (a lone surrogate)"
    if problem:
        raise DataError(f"sample {sample.get('id', '?')!r:.60} {problem}")


def problem_of(sample: dict) -> str | None:
    """What does not fit the schema, after "sample X"."""
    missing = [field for field in FIELDS if field not in sample]
    if missing:
        return f"lacks {', '.join(missing)}"
    text, answer, choices = (sample.get(field) for field in ("text", "answer", "choices"))
    answers = answer if isinstance(answer, list) else [answer]
    is_choice = sample["task"] == "mcq"
    fits = {
        "text": text is None or has_words(text),
        "instruction": isinstance(sample["instruction"], str),
        # "" where a benchmark withholds it
        "answer": answers and all(has_words(a) or (is_choice and a == "") for a in answers),
        "task": sample["task"] in TASKS,
        "source": has_words(sample["source"]),
        "id": type(sample["id"]) in (str, int),
        "tag": isinstance(sample.get("tag"), str | None),
        "choices": choices is None or is_list(choices, str),
    }
    for field, fit in fits.items():
        if not fit:
            found = f"{sample.get(field)!r:.80}"
            return f"does not fit: {field} is {found} where it must be {WANTED[field]}"
    if is_choice and not choices:
        return "lacks its choices, which a multiple-choice sample needs"
    known = {"", *map(normal, choices or ())}  # "": withheld
    if is_choice and not known.issuperset(map(normal, answers)):
        return f"has an answer that is not among its choices: {answer!r:.80}"
    return None


def normal(text: str) -> str:
    """For comparing an answer with choices: without case and surplus white space."""
    return " ".join(text.lower().split())


def has_words(text) -> bool:
    """Whether it is a string with something in it; "nan" and "<NA>" are pandas' for nothing."""
    return isinstance(text, str) and text.strip().lower() not in ("", "nan", "<na>")


def is_list(value, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def is_unicode(value) -> bool:
    """Whether all strings in a JSON value can be written as UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    except (TypeError, ValueError, RecursionError):  # no JSON value, which is another matter
        return True
    return True


# --- 2. sources ---------------------------------------------------------------------------------


class Source:
    """One folder or URL of shards, by its index.json. len() is its number of samples.

    Raises DataError where index.json cannot be read or there are no samples.
    """

    def __init__(self, url, name: str | None = None):
        self.url = str(url).rstrip("/")
        self.name = name or self.url.split("/")[-1]
        self.index = read_index(f"{self.url}/index.json")
        self.shards = [shard for shard in self.index["shards"] if shard["n"]]
        if not self.shards:
            raise DataError(f"{self.url} holds no samples")

    @property
    def vectors(self) -> dict | None:
        """How the CLAP vectors in its shards were made (dim, side, clap); None: there are none."""
        return self.index.get("vectors")

    @property
    def dim(self) -> int | None:
        """Of its vectors."""
        return self.vectors and self.vectors["dim"]

    def path(self, i: int) -> str:
        return f"{self.url}/{self.shards[i]['file']}"

    def __len__(self):
        return sum(shard["n"] for shard in self.shards)


def read_index(url: str) -> dict:
    """An index.json. Raises DataError where there is none, or it is another program's."""
    advice = "python -m shards.embed index DIR writes one for the tar files in a folder"
    try:
        if os.path.exists(url):
            index = read_json(url)
        else:
            with open_url(url) as file:
                index = json.load(file)
    except DataError as e:
        raise DataError(f"{e}; move it away: {advice}") from e
    except (OSError, ValueError, RecursionError) as e:
        folder = os.path.dirname(url)
        if "://" not in url and not url.startswith("pipe:") and not os.path.isdir(folder):
            raise DataError(f"there is no folder {folder}") from e
        raise DataError(f"{url} cannot be read ({e}); {advice}") from e
    shards, vectors = index.get("shards"), index.get("vectors")
    fits = (
        is_list(shards, dict)
        and all(isinstance(s.get("file"), str) and is_count(s.get("n")) for s in shards)
        and isinstance(index.get("hash"), str)
        and (vectors is None or is_made(vectors))
    )
    if not fits:
        raise DataError(f"{url} is another program's, or damaged: move it away; {advice}")
    return index


def is_made(vectors) -> bool:
    """Whether it can be what index.json says of a set's vectors."""
    return (
        isinstance(vectors, dict)
        and type(vectors.get("dim")) is int
        and vectors.get("side") in ("text", "audio")
        and isinstance(vectors.get("clap", ""), str)
    )


def is_count(n) -> bool:
    """Whether it can be a shard's number of samples."""
    return type(n) is int and 0 <= n < 1e8


def open_url(url: str):
    """A binary stream of a path, whatever characters it has, or of any URL that WebDataset knows.

    WebDataset takes what stands before a colon for a protocol.
    """
    return open(url, "rb") if os.path.exists(url) else wds.gopen(url, "rb")


def find_sources(
    root, mixture: dict | None = None, skip_missing=False, audio=False
) -> tuple[list[Source], list[float]]:
    """The sources under `root`, and their weights.

    `mixture` names subfolders and their weights. Without one every subfolder counts by its size, or
    `root` itself where it holds shards. Raises DataError where a source of the mixture is missing,
    unless `skip_missing`, with the commands that build it (audio: for AudioAIA).
    """
    root = str(root).rstrip("/")
    if mixture:
        local = "://" not in root and not root.startswith("pipe:")
        absent = [n for n in mixture if local and not os.path.exists(f"{root}/{n}/index.json")]
        if len(absent) == len(mixture) or (absent and not skip_missing):
            raise DataError(how_to_build(root, absent, audio))
        weights = {name: float(w) for name, w in mixture.items() if name not in absent}
        return [Source(f"{root}/{name}", name) for name in weights], list(weights.values())
    sources = [Source(root)] if not os.path.isdir(root) else folders_of(root)
    return sources, [float(len(source)) for source in sources]


def folders_of(root: str) -> list[Source]:
    """The folder itself where it holds shards, else every folder in it that does."""
    if os.path.exists(f"{root}/index.json"):
        return [Source(root)]
    names = sorted(path.parent.name for path in Path(root).glob("*/index.json"))
    if not names:
        raise DataError(f"no shards under {root}: neither it nor a folder in it has an index.json")
    return [Source(f"{root}/{name}", name) for name in names]


def how_to_build(root: str, absent: list[str], audio: bool) -> str:
    raw, names = root.removesuffix("-msclap"), ", ".join(absent)
    build = f"python -m shards.audiotia {' '.join(absent)} --root YOUR_DATASETS --out {raw}"
    build += " --audio" if audio else ""
    if raw != root:
        build += f", then python -m shards.embed {raw} {root}{' --side audio' if audio else ''}"
    return (
        f"of the mixture's sources {root} lacks {names}; build them: {build}; "
        "or train without them: --skip_missing"
    )


# --- 3. the plan --------------------------------------------------------------------------------


class Visit(NamedTuple):
    """One pass over one shard."""

    number: int  # of the visit, from 0
    source: int  # index into the plan's sources
    shard: int  # index into that source's shards
    batches: int  # micro-batches that the shard makes


class Plan:
    """Which samples make micro-batch m: a pure function of (seed, m), for any ranks and workers.

    A *visit* is one pass over one shard: shuffled, sorted into batches of similar length, the
    batches shuffled again. Each source visits its shards in a new order every epoch. The source
    that is furthest behind its weight gets the next visit. `lanes` visits are under way at once and
    take turns: neighbouring micro-batches come from different shards, and a reader needs only its
    own lanes' shards. Every micro-batch holds exactly `batch` samples of one source; the last of a
    visit is filled up with samples of the same shard.

    `together` consecutive micro-batches come from one visit and are of similar length. Set to the
    number of processes, none waits for a longer batch, but each reads the shards of all lanes.
    """

    def __init__(
        self, sources: list[Source], weights: list, batch: int, seed=0, lanes=8, together=1
    ):
        if len(weights) != len(sources) or min(weights) < 0 or sum(weights) <= 0:
            raise DataError(f"mixture weights must be non-negative and not all zero: {weights}")
        self.sources, self.weights = sources, np.array(weights) / sum(weights)
        self.batch, self.seed, self.lanes, self.together = batch, seed, lanes, together

    def visits(self) -> Iterator[Visit]:
        """All visits, endlessly."""
        given, turns = np.zeros(len(self.sources)), [0] * len(self.sources)  # batches, visits
        total = 0
        for number in itertools.count():
            behind = np.where(self.weights > 0, self.weights * (total + 1) - given, -np.inf)
            source = int(behind.argmax())
            shards = self.sources[source].shards
            epoch, i = divmod(turns[source], len(shards))
            order = np.random.default_rng([self.seed, 1, source, epoch]).permutation(len(shards))
            shard = int(order[i])
            batches = round_up(shards[shard]["n"], self.batch * self.together) // self.batch
            turns[source] += 1
            given[source] += batches
            total += batches
            yield Visit(number, source, shard, batches)

    def batches(self, start: int = 0) -> Iterator[tuple[int, Visit, int]]:
        """Endless (m, visit, k) from m = start on: micro-batch m is batch k of that visit."""
        visits = self.visits()
        under_way = [(Visit(-1, 0, 0, 0), 0)] * self.lanes  # of each lane: its visit, the next k
        for m in itertools.count():
            lane = m // self.together % self.lanes
            visit, k = under_way[lane]
            if k == visit.batches:
                visit, k = next(visits), 0
            under_way[lane] = visit, k + 1
            if m >= start:
                yield m, visit, k

    def cut(self, visit: Visit, lengths) -> np.ndarray:
        """(visit.batches, batch): the rows of each micro-batch among the shard's readable samples.

        lengths: tokens of each readable sample.
        """
        rng = np.random.default_rng([self.seed, 2, visit.number])
        # resize fills up by going round again
        rows = np.resize(rng.permutation(len(lengths)), visit.batches * self.batch)
        jitter = rng.uniform(1, 1.1, len(rows))  # so that batches differ between epochs
        rows = rows[np.argsort(np.asarray(lengths)[rows] * jitter, kind="stable")]
        batches = rng.permuted(rows.reshape(visit.batches, self.batch), axis=1)
        runs = batches.reshape(-1, self.together, self.batch)
        return runs[rng.permutation(len(runs))].reshape(-1, self.batch)


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


# --- 4. reading ---------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def npy_header(head: bytes):
    stream = io.BytesIO(head)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise DataError("the vector is not npy of version 1.0")
    return np.lib.format.read_array_header_1_0(stream)


def read_npy(data: bytes) -> np.ndarray:
    """(D,) float32. Raises DataError where the array is not one finite row that has a direction.

    numpy compiles every header anew, which takes longer than the rest. Here equal headers are
    read once.
    """
    start = 10 + int.from_bytes(data[8:10], "little")
    shape, _, dtype = npy_header(data[:start])
    vector = np.frombuffer(data, dtype, offset=start).astype(np.float32)
    if shape != vector.shape or not np.isfinite(vector).all() or not vector.any():
        raise DataError("the vector in npy is not a finite row that has a direction")
    return vector


# what numpy, json and zlib raise on bytes that are not theirs
DAMAGED = (ValueError, TypeError, SyntaxError, EOFError, RecursionError, OverflowError, TokenError)


def read_sample(parts: dict, audio: bool, dim: int | None = None) -> dict:
    """A sample from the members of one key. Raises DataError where it does not fit the schema.

    dim: the dimension that its vector must have.
    """
    if "json" not in parts:
        raise DataError("no json")
    sample = json.loads(parts["json"])
    check(sample, escapes=b"\\u" in parts["json"])
    sample = {field: value for field, value in sample.items() if field not in RESERVED}
    if "npy" in parts:
        sample["vector"] = read_npy(parts["npy"])
        if dim not in (None, len(sample["vector"])):
            raise DataError(f"a vector of {len(sample['vector'])} numbers; index.json says {dim}")
    sample["key"] = parts["__key__"]
    if audio:
        kind = next((kind for kind in AUDIO if kind in parts), None)
        sample |= {"kind": kind, "audio": parts.get(kind)}
    return sample


class Damage(str):
    """What is wrong with a whole shard: samples may be missing that nobody can name."""


def read_tar(url: str, report: Callable[[str], object]) -> Iterator[dict]:
    """Of each key in a tar its members, {"__key__", extension: bytes}; also of a compressed tar.

    What cannot be read goes to report, and so does what follows after the archive's end: a
    second archive, joined by `cat`, or all behind a damaged header, where tarfile stops silently.
    """

    def members():
        try:
            with open_url(url) as stream, tarfile.open(fileobj=stream, mode="r|*") as tar:
                for member in tar:
                    if member.isreg() and not is_hidden(member.name):
                        data = tar.extractfile(member).read()
                        yield {"fname": member.name, "data": data, "__url__": url}
                    tar.members = []  # or it would keep them all
                while rest := tar.fileobj.read(1 << 16):
                    if rest.strip(b"\0"):
                        more = "goes on after the end of its archive, and the rest is left out"
                        report(
                            Damage(f"{url}: {more}: a damaged header, or two tars joined by cat?")
                        )
                        return
        except DataError:
            raise
        except (tarfile.TarError, OSError, zlib.error, lzma.LZMAError, *DAMAGED) as e:
            report(Damage(f"{url}: {e}"))

    return group_by_keys(members(), handler=lambda e: report(Damage(f"{url}: {e.args[0]}")))


def is_hidden(name: str) -> bool:
    """Whether it is a companion that macOS or another program has put beside the files."""
    *folders, file = name.split("/")
    return file.startswith(".") or "__MACOSX" in folders


def read_shard(
    url: str,
    n: int | None = None,
    strict=False,
    broken: list | None = None,
    audio=False,
    dim: int | None = None,
) -> Iterator[dict]:
    """The readable samples of one shard, in order, as dicts of the schema.

    Each also has `key`, its name in the tar, and `vector` (D,) float32 where there is one; with
    `audio`, the sound as `audio` (bytes) and its extension as `kind`. Broken samples are named in
    the list `broken`, and so is a shard that does not hold the `n` samples of its index, or vectors
    of another dimension than `dim`. With `strict` they raise DataError.
    """

    def report(problem):
        if strict:
            raise DataError(problem)
        if broken is not None:
            broken.append(problem)
        return True

    found = usable = 0
    for parts in read_tar(url, report):
        found += 1
        try:
            sample = read_sample(parts, audio, dim)
            usable += 1
            yield sample
        except DAMAGED as e:
            report(f"{url}, member {parts['__key__']}: {e}")
    if n not in (None, found, usable):  # an index made afterwards counts what is usable
        report(Damage(f"{url}: holds {found} samples where index.json says {n}"))


def read_source(source: Source, **kwargs) -> Iterator[dict]:
    """All readable samples of a source, shard by shard; keywords as for read_shard."""
    for i, shard in enumerate(source.shards):
        yield from read_shard(source.path(i), shard["n"], dim=source.dim, **kwargs)


# --- 5. tensors ---------------------------------------------------------------------------------


def collate(samples: list[dict], tokens: list, pad: int, multiple: int = 8) -> dict:
    """A batch, from samples and their tokens (language.prompt.Template.encode).

    ids (B, T) int64, padded on the right to a multiple; answer (N,) int64, the indices into
    ids.view(-1) of the answers' tokens and end tokens; z (B, D) where all samples have a vector;
    text: list of B.
    """
    T = round_up(max(len(ids) for ids, _ in tokens), multiple)
    table = np.full((len(samples), T), pad)
    for row, (ids, _) in zip(table, tokens):
        row[: len(ids)] = ids
    answer = [np.arange(i * T + prompt, i * T + len(ids)) for i, (ids, prompt) in enumerate(tokens)]
    batch = {
        "ids": torch.from_numpy(table),
        "answer": torch.from_numpy(np.concatenate(answer)),
        "text": [sample["text"] for sample in samples],
    }
    if all("vector" in sample for sample in samples):
        batch["z"] = torch.from_numpy(np.stack([sample["vector"] for sample in samples]))
    return batch


class Held(NamedTuple):
    """A visit under way."""

    samples: list[dict]
    tokens: list
    cut: np.ndarray  # (batches, batch) rows of samples


class Batches(torch.utils.data.IterableDataset):
    """The plan's micro-batches for one rank, from position `start` on, endlessly; for `loader`.

    A source whose index names `vectors` yields them as z. Otherwise batches bring what is to be
    encoded: their `text`, or, with `decode`, a function (audio bytes, seed) -> (T,) float32, their
    `audio` (B, T). Each batch lists in `broken` the broken samples met on the way to it. With
    `strict` they raise DataError.
    """

    def __init__(self, plan: Plan, template, start=0, rank=0, ranks=1, strict=False, decode=None):
        self.plan, self.template, self.start = plan, template, start
        self.rank, self.ranks, self.strict, self.decode = rank, ranks, strict, decode

    def mine(self, m: int) -> bool:
        """Whether this rank's reading process makes micro-batch m."""
        info = torch.utils.data.get_worker_info()
        turn, rank = divmod(m - self.start, self.ranks)
        return rank == self.rank and (info is None or turn % info.num_workers == info.id)

    def __iter__(self):
        under_way, broken, first = {}, [], None  # visit number -> Held; the first that begins here
        for m, visit, k in self.plan.batches(self.start):
            if k == 0 and first is None:
                first = visit.number
            if self.mine(m):
                if visit.number not in under_way:
                    # of a visit that began before a run was resumed, all was named then
                    named = broken if first is not None and visit.number >= first else []
                    under_way[visit.number] = self.load(visit, named)
                yield self.batch(m, visit, k, under_way[visit.number], broken)
                broken = []
            if k == visit.batches - 1:
                under_way.pop(visit.number, None)

    def batch(self, m: int, visit: Visit, k: int, held: Held, broken: list) -> dict:
        source, rows, waves = self.plan.sources[visit.source], held.cut[k], None
        if self.decode and not source.vectors:
            rows, waves = self.waves(held.samples, rows, m, broken)
        samples, tokens = ([column[i] for i in rows] for column in (held.samples, held.tokens))
        batch = collate(samples, tokens, self.template.tokenizer.eos_token_id)
        if waves is not None:
            batch["audio"] = waves
        return {**batch, "m": m, "source": source.name, "broken": broken}

    def load(self, visit: Visit, broken: list) -> Held:
        """The visit's samples. The source's next shard replaces one with nothing readable."""
        source = self.plan.sources[visit.source]
        for i in range(len(source.shards)):
            samples = self.usable(source, (visit.shard + i) % len(source.shards), broken)
            if samples:
                cut_short = []
                tokens = self.template.encode(samples, cut_short)
                if self.strict and cut_short:
                    raise DataError(cut_short[0])
                broken += cut_short
                cut = self.plan.cut(visit, [len(ids) for ids, _ in tokens])
                return Held(samples, tokens, cut)
        raise DataError(f"{source.url}: no usable sample in any shard; at last: {broken[-1]}")

    def usable(self, source: Source, shard: int, broken: list) -> list[dict]:
        """The shard's samples that have a vector, or audio or a text to make it from."""
        need = "audio" if self.decode else "text"
        if source.vectors:
            need = "vector"
        samples, path, n = [], source.path(shard), source.shards[shard]["n"]
        wanted = dict(audio=need == "audio", dim=source.dim)
        for sample in read_shard(path, n, self.strict, broken, **wanted):
            if sample.get(need) is not None:
                samples.append(sample)
                continue
            broken.append(f"{path}: sample {sample['id']!r} has no {need}")
            if self.strict:
                raise DataError(broken[-1])
        return samples

    def waves(self, samples: list[dict], rows, m: int, broken: list):
        """(rows, (B, T)). A good clip of the same shard replaces one that cannot be decoded."""
        good, waves = [], []
        for i in [*rows, *range(len(samples))]:
            if len(waves) == len(rows):
                break
            seed = (self.plan.seed * 1_000_003 + m) * 4096 + len(waves)
            try:
                waves.append(self.decode(samples[i]["audio"], seed))
                good.append(i)
            except ValueError as e:
                if self.strict:
                    raise
                broken.append(f"{samples[i]['source']} {samples[i]['id']}: {e}")
        if not good:
            where = f"the shard of micro-batch {m}"
            raise DataError(f"not one clip of {where} can be decoded; at last: {broken[-1]}")
        fill = np.resize(np.arange(len(good)), len(rows))
        return [good[i] for i in fill], torch.stack([waves[i] for i in fill])


def loader(batches: Batches, workers: int = 2, pin: bool = False):
    """A DataLoader that keeps the plan's order for any number of workers."""
    ahead = 4 if workers else None
    return torch.utils.data.DataLoader(
        batches, batch_size=None, num_workers=workers, pin_memory=pin, prefetch_factor=ahead
    )


if __name__ == "__main__":
    raise SystemExit("now: python -m shards.embed SRC DST, or python -m shards.embed index DIR")
