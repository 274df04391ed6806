"""From tar shards to batches, in five steps:

1. `shards.writer.ShardWriter` packs samples into tar shards (WebDataset's convention) and says what it packed in index.json.
2. `Source` is one such directory or URL, known by its index.json alone: how many samples in which shard.
3. `Plan` decides what every micro-batch is made of. It is a pure function of (seed, position): it needs only the
   counts, so a run that resumes at position 90,000 gets there in a second, and one rank with one worker sees
   the same micro-batches as eight ranks with four workers each.
4. `read_shard` streams one shard through WebDataset (a path, `pipe:`, http(s), an object store). What is broken
   is named, counted and skipped.
5. `mats.Template` turns samples into tokens, and `collate` into tensors; both run in the workers.

A sample is a dict: text (what the audio contains, or None), instruction, answer (a list where there are several
references), task, source, id; optionally choices and tag. Beside it in the tar may lie `npy` (its CLAP vector, float16,
unit length) and `flac|wav|ogg|mp3|au` (the audio as it came).

    python -m shards.embed SRC DST --clap microsoft/msclap     # put the CLAP vector of every text beside it, once
    python -m shards.index DIR                                 # make index.json for shards that came without one
"""

import functools
import hashlib
import io
import itertools
import json
import os
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from webdataset.tariterators import tarfile_samples

# --- the schema -------------------------------------------------------------------------------------------------------

FIELDS = ("text", "instruction", "answer", "task", "source", "id")
TASKS = ("cls", "cap", "music_cap", "aqa", "open", "mcq")
AUDIO = ("flac", "wav", "ogg", "mp3", "au")


class DataError(ValueError):
    """Shards that cannot be used as they are; the message names the file and what to do."""


def check(sample):
    """Raises DataError, naming the field, unless `sample` fits the schema."""
    missing = [f for f in FIELDS if f not in sample]
    if missing:
        raise DataError(f"sample {sample.get('id', '?')!r} lacks {', '.join(missing)}")
    answers = sample["answer"] if isinstance(sample["answer"], list) else [sample["answer"]]
    if not (sample["text"] is None or isinstance(sample["text"], str)) or not isinstance(
        sample["instruction"], str
    ):
        raise DataError(
            f"sample {sample['id']!r}: text and instruction must be strings (text may be null)"
        )
    if not answers or not all(isinstance(a, str) for a in answers):
        raise DataError(f"sample {sample['id']!r}: answer must be a string or a list of strings")
    if sample["task"] not in TASKS:
        raise DataError(
            f"sample {sample['id']!r}: task {sample['task']!r} is none of {', '.join(TASKS)}"
        )
    if sample["task"] == "mcq" and not sample.get("choices"):
        raise DataError(f"sample {sample['id']!r}: a multiple-choice sample needs its choices")


def write_atomic(path, data: bytes):
    """All or nothing: a kill leaves the old file or the new one, never half of it."""
    part = f"{path}.part"
    try:
        with open(part, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except OSError:
        Path(part).unlink(missing_ok=True)
        raise


def sha256(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


# --- 2. sources -------------------------------------------------------------------------------------------------------


class Source:
    """One directory or URL of shards, by its index.json."""

    def __init__(self, url, name=None):
        self.url, self.name = str(url).rstrip("/"), name or str(url).rstrip("/").split("/")[-1]
        try:
            with wds.gopen(f"{self.url}/index.json", "rb") as f:
                self.index = json.load(f)
        except (OSError, ValueError) as e:
            raise DataError(
                f"{self.url}/index.json cannot be read ({e}); shards without one: python -m shards.index "
                f"{self.url}"
            ) from e
        self.shards = [s for s in self.index["shards"] if s["n"]]
        if not self.shards:
            raise DataError(f"{self.url} holds no samples")

    def path(self, i):
        return f"{self.url}/{self.shards[i]['file']}"

    def __len__(self):
        return sum(s["n"] for s in self.shards)


def find_sources(root, mixture=None, skip_missing=False, audio=False):
    """The sources under `root` with their weights: [Source], [weight].

    `mixture` names subfolders and their weights; without one every subfolder (or `root` itself) counts by its size. Raises DataError when
    a source of the mixture is not there, unless `skip_missing`, with the commands that build it (audio: for AudioAIA).
    """
    root = str(root).rstrip("/")
    if mixture:
        local = "://" not in root and not root.startswith("pipe:")
        absent = [
            name for name in mixture if local and not os.path.exists(f"{root}/{name}/index.json")
        ]
        if len(absent) == len(mixture) or (absent and not skip_missing):
            raw = root.removesuffix("-msclap")
            embed = (
                f", then python -m shards.embed {raw} {root}{' --side audio' if audio else ''}"
                if raw != root
                else ""
            )
            raise DataError(
                f"of the mixture's sources {root} lacks {', '.join(absent)}; build them: python -m shards.audiotia {' '.join(absent)} "
                f"--root YOUR_DATASETS --out {raw}{' --audio' if audio else ''}{embed}; or train without them: --skip_missing"
            )
        names = [name for name in mixture if name not in absent]
        return [Source(f"{root}/{name}", name) for name in names], [
            float(mixture[name]) for name in names
        ]
    if os.path.isdir(root) and not os.path.exists(f"{root}/index.json"):
        names = sorted(p.parent.name for p in Path(root).glob("*/index.json"))
        if not names:
            raise DataError(
                f"no shards under {root}: neither it nor a folder in it has an index.json"
            )
        sources = [Source(f"{root}/{name}", name) for name in names]
    else:
        sources = [Source(root)]
    return sources, [float(len(s)) for s in sources]


# --- 3. the plan ------------------------------------------------------------------------------------------------------


class Plan:
    """What micro-batch m is made of, for every m: a pure function of (seed, m), whatever the ranks and workers.

    A *visit* is one pass over one shard: shuffled, sorted into batches of like length, the batches shuffled again.
    Each source visits its shards in a new order every epoch; the source that is furthest behind its weight gets the
    next visit. `lanes` visits are under way at once and take turns, so neighbouring micro-batches come from different
    shards, and each reader needs only its own lanes' shards. Every micro-batch holds exactly `batch` samples of one source:
    the last of a visit is filled up with samples of the same shard.

    `together` micro-batches follow one another from one visit and are of like length: so many processes, side by side, need not wait for the
    one with the longest, but each of them reads the shards of all lanes.
    """

    def __init__(self, sources, weights, batch, seed=0, lanes=8, together=1):
        if len(weights) != len(sources) or min(weights) < 0 or sum(weights) <= 0:
            raise DataError(f"mixture weights must be non-negative and not all zero: {weights}")
        self.sources, self.batch, self.seed, self.lanes, self.together = (
            sources,
            batch,
            seed,
            lanes,
            together,
        )
        self.weights = np.array(weights) / sum(weights)

    def visits(self):
        """Endless (visit number, source, shard, number of micro-batches)."""
        given, turns = np.zeros(len(self.sources)), [0] * len(self.sources)
        total = 0
        for v in itertools.count():
            behind = np.where(self.weights > 0, self.weights * (total + 1) - given, -np.inf)
            s = int(behind.argmax())
            shards = self.sources[s].shards
            epoch, i = divmod(turns[s], len(shards))
            shard = int(np.random.default_rng([self.seed, 1, s, epoch]).permutation(len(shards))[i])
            turns[s] += 1
            n = -(-shards[shard]["n"] // (self.batch * self.together)) * self.together
            given[s] += n
            total += n
            yield v, s, shard, n

    def batches(self, start=0):
        """Endless (m, visit, k) from m = start on: micro-batch m is batch k of that visit."""
        visits, lanes = self.visits(), [None] * self.lanes
        for m in itertools.count():
            lane = m // self.together % self.lanes
            visit, k = lanes[lane] or (None, 0)
            if visit is None or k == visit[3]:
                visit, k = next(visits), 0
            lanes[lane] = visit, k + 1
            if m >= start:
                yield m, visit, k

    def cut(self, visit, lengths):
        """The visit's micro-batches: (n, batch) row numbers into its shard's readable samples of these lengths."""
        rng = np.random.default_rng([self.seed, 2, visit[0]])
        rows = np.resize(
            rng.permutation(len(lengths)), visit[3] * self.batch
        )  # fills up by going round again
        jitter = rng.uniform(1, 1.1, len(rows))  # so that batches differ between epochs
        rows = rows[np.argsort(np.asarray(lengths)[rows] * jitter, kind="stable")]
        runs = rng.permuted(rows.reshape(visit[3], self.batch), axis=1).reshape(
            -1, self.together, self.batch
        )
        return runs[rng.permutation(len(runs))].reshape(-1, self.batch)


# --- 4. reading -------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def npy_header(head: bytes):
    stream = io.BytesIO(head)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise DataError("the vector is not npy of version 1.0")
    return np.lib.format.read_array_header_1_0(stream)


def read_npy(data: bytes):
    """(D,) float32. numpy compiles every header anew, which takes longer than the rest; here equal headers are read once."""
    start = 10 + int.from_bytes(data[8:10], "little")
    shape, _, dtype = npy_header(data[:start])
    vector = np.frombuffer(data, dtype, offset=start).astype(np.float32)
    if shape != vector.shape or not np.isfinite(vector).all():
        raise DataError("the vector in npy is not a finite row")
    return vector


def read_shard(url, n=None, strict=False, broken=None, audio=False):
    """The readable samples of one shard, in order, as dicts of the schema, with `vector` (float32) where there is one
    and `key`, its name in the tar.

    audio: also bring the audio as `audio` (bytes), and its extension as `kind`. Broken members, and a shard that has not the `n` samples that
    its index promises, are named in the list `broken`; with `strict` they raise DataError.
    """

    def report(what):
        if strict:
            raise DataError(what)
        if broken is not None:
            broken.append(what)
        return True

    found = 0
    for parts in tarfile_samples(iter([{"url": url}]), handler=lambda e: report(f"{url}: {e}")):
        found += 1
        try:
            sample = json.loads(parts["json"])
            check(sample)
            if "npy" in parts:
                sample["vector"] = read_npy(parts["npy"])
        except (ValueError, KeyError, EOFError) as e:
            report(
                f"{url}, member {parts.get('__key__')}: {'no json' if isinstance(e, KeyError) else e}"
            )
            continue
        sample["key"] = parts["__key__"]
        if audio:
            sample["kind"], sample["audio"] = next(
                ((a, parts[a]) for a in AUDIO if a in parts), (None, None)
            )
        yield sample
    if n is not None and found != n:
        report(f"{url}: holds {found} samples where index.json says {n}")


def read_source(source, **kwargs):
    """All readable samples of a source, shard by shard; keywords as for read_shard."""
    for i, shard in enumerate(source.shards):
        yield from read_shard(source.path(i), shard["n"], **kwargs)


# --- 5. tokens and tensors --------------------------------------------------------------------------------------------


def collate(samples, tokens, pad, multiple=8):
    """samples and their tokens -> a batch.

    ids (B, T) int64, padded on the right to a multiple; answer (N,) int64: where in ids.view(-1) the answers' tokens and end tokens
    stand; z (B, D) where all samples have a vector; text: list of B.
    """
    T = -(-max(len(ids) for ids, _ in tokens) // multiple) * multiple
    table = np.full((len(samples), T), pad)
    for row, (ids, _) in zip(table, tokens):
        row[: len(ids)] = ids
    answer = [np.arange(i * T + n, i * T + len(ids)) for i, (ids, n) in enumerate(tokens)]
    batch = {
        "ids": torch.from_numpy(table),
        "answer": torch.from_numpy(np.concatenate(answer)),
        "text": [s["text"] for s in samples],
    }
    if all("vector" in s for s in samples):
        batch["z"] = torch.from_numpy(np.stack([s["vector"] for s in samples]))  # (B, D)
    return batch


class Batches(torch.utils.data.IterableDataset):
    """The plan's micro-batches for one rank, from position `start` on, endlessly; hand it to `loader`.

    A source whose index names `vectors` yields them as z. Otherwise batches bring what is to be encoded: their `text`, or,
    with `decode` = a function (audio bytes, seed) -> (T,) float32, `audio` (B, T). Broken parts that a batch
    came across are named in its list `broken`; with `strict` they raise DataError.
    """

    def __init__(self, plan, template, start=0, rank=0, ranks=1, strict=False, decode=None):
        self.plan, self.template, self.start, self.rank, self.ranks = (
            plan,
            template,
            start,
            rank,
            ranks,
        )
        self.strict, self.decode = strict, decode

    def mine(self, m):
        info = torch.utils.data.get_worker_info()
        turn, rank = divmod(m - self.start, self.ranks)
        return rank == self.rank and (info is None or turn % info.num_workers == info.id)

    def __iter__(self):
        held, broken = {}, []  # visits under way: number -> (samples, their tokens, cut)
        for m, visit, k in self.plan.batches(self.start):
            if self.mine(m):
                if visit[0] not in held:
                    held[visit[0]] = self.load(visit, broken)
                samples, tokens, cut = held[visit[0]]
                source, rows, waves = self.plan.sources[visit[1]], cut[k], None
                if self.decode and not source.index.get("vectors"):
                    rows, waves = self.waves(samples, rows, m, broken)
                batch = collate(
                    [samples[i] for i in rows],
                    [tokens[i] for i in rows],
                    self.template.tokenizer.eos_token_id,
                )
                if waves is not None:
                    batch["audio"] = waves
                yield {**batch, "m": m, "source": source.name, "broken": broken}
                broken = []
            if k == visit[3] - 1:
                held.pop(visit[0], None)

    def load(self, visit, broken):
        """The visit's samples, tokens and cut. A shard with nothing readable is replaced by the source's next."""
        source = self.plan.sources[visit[1]]
        need = "vector" if source.index.get("vectors") else "audio" if self.decode else "text"
        for i in range(len(source.shards)):
            shard = (visit[2] + i) % len(source.shards)
            samples = []
            for sample in read_shard(
                source.path(shard), source.shards[shard]["n"], self.strict, broken, need == "audio"
            ):
                if sample.get(need) is not None:
                    samples.append(sample)
                elif self.strict:
                    raise DataError(f"{source.path(shard)}: sample {sample['id']!r} has no {need}")
                else:
                    broken.append(f"{source.path(shard)}: sample {sample['id']!r} has no {need}")
            if samples:
                tokens = self.template.encode(samples)
                return samples, tokens, self.plan.cut(visit, [len(ids) for ids, _ in tokens])
        raise DataError(
            f"{source.url}: no usable sample in any shard; the last problem: {broken[-1]}"
        )

    def waves(self, samples, rows, m, broken):
        """(rows, (B, T)); a clip that cannot be decoded is named, and a good one of the same shard takes its place."""
        good, waves = [], []
        for i in [*rows, *range(len(samples))]:
            if len(waves) == len(rows):
                break
            try:
                waves.append(
                    self.decode(
                        samples[i]["audio"], (self.plan.seed * 1_000_003 + m) * 4096 + len(waves)
                    )
                )
                good.append(i)
            except ValueError as e:
                if self.strict:
                    raise
                broken.append(f"{samples[i]['source']} {samples[i]['id']}: {e}")
        if not good:
            raise DataError(
                f"not one clip of the shard of micro-batch {m} can be decoded; the last problem: {broken[-1]}"
            )
        fill = np.resize(np.arange(len(good)), len(rows))
        return [good[i] for i in fill], torch.stack([waves[i] for i in fill])


def loader(batches, workers=2, pin=False):
    """A DataLoader that keeps the plan's order whatever the number of workers."""
    return torch.utils.data.DataLoader(
        batches,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
    )


if __name__ == "__main__":
    raise SystemExit("now: python -m shards.embed SRC DST, and python -m shards.index DIR")
