"""From tar shards to batches, in five steps:

1. `shards.writer.ShardWriter` packs samples into tar shards (WebDataset's convention).
   index.json says how many samples each shard holds.
2. `Source` is one folder or URL of such shards, known by its index.json alone.
3. `Plan` decides what every micro-batch is made of. It is a pure function of (seed, position) and
   needs only the counts. So a run that resumes at position 90,000 gets there in a second. One rank
   with one worker sees the same micro-batches as eight ranks with four workers each.
4. `read_shard` streams one shard through WebDataset (a path, `pipe:`, http(s), an object store).
   A broken sample is named, counted and skipped.
5. `mats.Template` turns samples into tokens, and `collate` into tensors. Both run in the workers.

A sample is a dict: text (what the audio contains, or None), instruction, answer (a list where there
are several references), task, source, id; optionally choices and tag. Beside it in the tar may lie
`npy` (its CLAP vector, float16, unit length) and `flac|wav|ogg|mp3|au` (the audio as it came).

    python -m shards.embed SRC DST     put the CLAP vector of every text beside it, once
    python -m shards.index DIR         make index.json for shards that came without one
"""

import functools
import io
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import webdataset as wds
from webdataset.tariterators import tarfile_samples

from disk import DataError

# --- the schema ---------------------------------------------------------------------------------

FIELDS = ("text", "instruction", "answer", "task", "source", "id")
TASKS = ("cls", "cap", "music_cap", "aqa", "open", "mcq")
AUDIO = ("flac", "wav", "ogg", "mp3", "au", "opus", "aiff", "aif")


def check(sample: dict) -> None:
    """Raises DataError, naming the sample and the field, unless `sample` fits the schema."""

    def refuse(problem):
        raise DataError(f"sample {sample.get('id', '?')!r}{problem}")

    missing = [field for field in FIELDS if field not in sample]
    if missing:
        refuse(f" lacks {', '.join(missing)}")
    text, instruction, answer = sample["text"], sample["instruction"], sample["answer"]
    if not isinstance(text, str | None) or not isinstance(instruction, str):
        refuse(": text and instruction must be strings (text may be null)")
    answers = answer if isinstance(answer, list) else [answer]
    if not answers or not all(isinstance(a, str) for a in answers):
        refuse(": answer must be a string or a list of strings")
    if sample["task"] not in TASKS:
        refuse(f": task {sample['task']!r} is none of {', '.join(TASKS)}")
    if sample["task"] == "mcq" and not sample.get("choices"):
        refuse(": a multiple-choice sample needs its choices")


# --- 2. sources ---------------------------------------------------------------------------------


class Source:
    """One folder or URL of shards, by its index.json. len() is its number of samples.

    Raises DataError where index.json cannot be read or there are no samples.
    """

    def __init__(self, url, name: str | None = None):
        self.url = str(url).rstrip("/")
        self.name = name or self.url.split("/")[-1]
        try:
            with wds.gopen(f"{self.url}/index.json", "rb") as f:
                self.index = json.load(f)
        except (OSError, ValueError) as e:
            raise DataError(
                f"{self.url}/index.json cannot be read ({e}); "
                f"shards without one: python -m shards.index {self.url}"
            ) from e
        self.shards = [shard for shard in self.index["shards"] if shard["n"]]
        if not self.shards:
            raise DataError(f"{self.url} holds no samples")

    @property
    def vectors(self) -> dict | None:
        """How the CLAP vectors in its shards were made (dim, side, clap); None: there are none."""
        return self.index.get("vectors")

    def path(self, i: int) -> str:
        return f"{self.url}/{self.shards[i]['file']}"

    def __len__(self):
        return sum(shard["n"] for shard in self.shards)


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
    """(D,) float32. Raises DataError where the array is not one finite row.

    numpy compiles every header anew, which takes longer than the rest. Here equal headers are
    read once.
    """
    start = 10 + int.from_bytes(data[8:10], "little")
    shape, _, dtype = npy_header(data[:start])
    vector = np.frombuffer(data, dtype, offset=start).astype(np.float32)
    if shape != vector.shape or not np.isfinite(vector).all():
        raise DataError("the vector in npy is not a finite row")
    return vector


def read_sample(parts: dict, audio: bool) -> dict:
    """A sample from the members of one key. Raises DataError where it does not fit the schema."""
    if "json" not in parts:
        raise DataError("no json")
    sample = json.loads(parts["json"])
    check(sample)
    if "npy" in parts:
        sample["vector"] = read_npy(parts["npy"])
    sample["key"] = parts["__key__"]
    if audio:
        kind = next((kind for kind in AUDIO if kind in parts), None)
        sample |= {"kind": kind, "audio": parts.get(kind)}
    return sample


def read_shard(
    url: str, n: int | None = None, strict=False, broken: list | None = None, audio=False
) -> Iterator[dict]:
    """The readable samples of one shard, in order, as dicts of the schema.

    Each also has `key`, its name in the tar, and `vector` (D,) float32 where there is one; with
    `audio`, the sound as `audio` (bytes) and its extension as `kind`. Broken samples are named in
    the list `broken`, and so is a shard that does not hold the `n` samples of its index. With
    `strict` they raise DataError.
    """

    def report(problem):
        if strict:
            raise DataError(problem)
        if broken is not None:
            broken.append(problem)
        return True

    found = 0
    for parts in tarfile_samples(iter([{"url": url}]), handler=lambda e: report(f"{url}: {e}")):
        found += 1
        try:
            yield read_sample(parts, audio)
        except (ValueError, EOFError) as e:
            report(f"{url}, member {parts.get('__key__')}: {e}")
    if n is not None and found != n:
        report(f"{url}: holds {found} samples where index.json says {n}")


def read_source(source: Source, **kwargs) -> Iterator[dict]:
    """All readable samples of a source, shard by shard; keywords as for read_shard."""
    for i, shard in enumerate(source.shards):
        yield from read_shard(source.path(i), shard["n"], **kwargs)


# --- 5. tensors ---------------------------------------------------------------------------------


def collate(samples: list[dict], tokens: list, pad: int, multiple: int = 8) -> dict:
    """A batch, from samples and their tokens (mats.Template.encode).

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
        under_way, broken = {}, []  # visit number -> Held
        for m, visit, k in self.plan.batches(self.start):
            if self.mine(m):
                if visit.number not in under_way:
                    under_way[visit.number] = self.load(visit, broken)
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
                tokens = self.template.encode(samples)
                cut = self.plan.cut(visit, [len(ids) for ids, _ in tokens])
                return Held(samples, tokens, cut)
        raise DataError(f"{source.url}: no usable sample in any shard; at last: {broken[-1]}")

    def usable(self, source: Source, shard: int, broken: list) -> list[dict]:
        """The shard's samples that have a vector, or audio or a text to make it from."""
        need = "audio" if self.decode else "text"
        if source.vectors:
            need = "vector"
        samples, path, n = [], source.path(shard), source.shards[shard]["n"]
        for sample in read_shard(path, n, self.strict, broken, audio=need == "audio"):
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
    raise SystemExit("now: python -m shards.embed SRC DST, and python -m shards.index DIR")
