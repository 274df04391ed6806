"""From tar shards to batches, in five steps:

1. `ShardWriter` packs samples into tar shards (WebDataset's convention) and says what it packed in index.json.
2. `Source` is one such directory or URL, known by its index.json alone: how many samples in which shard.
3. `Plan` decides what every micro-batch is made of. It is a pure function of (seed, position): it needs only the
   counts, so a run that resumes at position 90,000 gets there in a second, and one rank with one worker sees
   the same micro-batches as eight ranks with four workers each.
4. `read_shard` streams one shard through WebDataset (a path, `pipe:`, http(s), an object store). What is broken
   is named, counted and skipped.
5. `Template` turns samples into tokens, and `collate` into tensors; both run in the workers.

A sample is a dict: text (what the audio contains, or None), instruction, answer (a list where there are several
references), task, source, id; optionally choices and tag. Beside it in the tar may lie `npy` (its CLAP vector, float16,
unit length) and `flac|wav|ogg|mp3|au` (the audio as it came).

    python data.py embed SRC DST --clap microsoft/msclap     # put the CLAP vector of every text beside it, once
    python data.py index DIR                                 # make index.json for shards that came without one
"""
import argparse
import contextlib
import functools
import hashlib
import io
import itertools
import json
import os
import shlex
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from tqdm import tqdm
from webdataset.tariterators import tarfile_samples

FIELDS = ("text", "instruction", "answer", "task", "source", "id")
TASKS = ("cls", "cap", "music_cap", "aqa", "open", "mcq")
AUDIO = ("flac", "wav", "ogg", "mp3", "au")


class DataError(ValueError):
    """Shards that cannot be used as they are; the message names the file and what to do."""


def command_line() -> str:
    """The command that was typed, without the folder it was typed in."""
    return shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]])


# --- 1. writing -------------------------------------------------------------------------------------------------------

class ShardWriter:
    """Writes samples to DIR/000000.tar, ... and at the end index.json. Same samples, same bytes.

        with ShardWriter(dir, licences={"audiocaps": "MIT"}) as writer:
            writer.write(sample, vector=z, audio=("flac", data))

    A shard appears under its name only when it is complete, and index.json comes last: a directory that has one is whole.
    `key` says what the samples are made of. With one, an interrupted writer leaves building.json beside its complete shards, and the
    next writer of the same key, handed the same samples, keeps those shards and goes on after them.
    Raises DataError when DIR is already whole, or was begun with another key, and on a sample outside the schema.
    """

    def __init__(self, directory, per_shard=4096, licences=None, vectors=None, command=None, key=None):
        self.dir, self.per_shard = Path(directory), per_shard
        if (self.dir / "index.json").exists():
            raise DataError(f"{self.dir} already holds a finished set of shards; delete it or choose another folder")
        self.dir.mkdir(parents=True, exist_ok=True)
        self.info = {"licences": licences or {}, "vectors": vectors, "command": command or command_line()}
        self.key, self.shards, self.sources, self.tasks, self.tar = key, [], Counter(), Counter(), None
        self.begun = self.dir / "building.json"
        if self.begun.exists():
            begun = json.loads(self.begun.read_text())
            if key is None or begun["key"] != key:
                raise DataError(f"{self.dir} was begun from other data or with other options; delete it or choose another folder")
            self.shards, self.sources, self.tasks = begun["shards"], Counter(begun["sources"]), Counter(begun["tasks"])
        self.there = sum(s["n"] for s in self.shards)       # samples that an interrupted writer has already written

    def write(self, sample, vector=None, audio=None):
        """sample: the schema's dict; vector: (D,), its CLAP vector; audio: (extension, bytes)."""
        if self.there:
            self.there -= 1
            return
        check(sample)
        if self.tar is None:
            self.path, self.n = self.dir / f"{len(self.shards):06d}.tar", 0
            self.tar = open(f"{self.path}.part", "wb")
        name = f"{len(self.shards):06d}{self.n:08d}"
        members = [tar_member(f"{name}.json", encode_json(sample).encode())]
        if vector is not None:
            members.append(tar_member(f"{name}.npy", npy_bytes(vector)))
        if audio is not None:
            members.append(tar_member(f"{name}.{audio[0]}", audio[1]))
        self.tar.write(b"".join(members))
        self.n += 1
        self.sources[sample["source"]] += 1
        self.tasks[sample["task"]] += 1
        if self.n == self.per_shard:
            self.close_shard()

    def close_shard(self):
        if self.tar is not None:
            self.tar.write(bytes(1024))                     # the end of a tar file
            self.tar.close()
            os.replace(f"{self.path}.part", self.path)
            self.shards.append({"file": self.path.name, "n": self.n, "sha256": sha256(self.path)})
            self.tar = None
            if self.key is not None:
                write_atomic(self.begun, json.dumps({"key": self.key, "shards": self.shards, "sources": self.sources,
                                                     "tasks": self.tasks}).encode())

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            if self.there:
                raise DataError(f"{self.dir}: {self.there} samples fewer than when it was begun; delete it and build it again")
            self.close_shard()
            write_index(self.dir, self.shards, sources=dict(self.sources), tasks=dict(self.tasks), **self.info)
            self.begun.unlink(missing_ok=True)
        elif self.tar is not None:
            with contextlib.suppress(OSError):              # a full disk refuses what is still buffered
                self.tar.close()
            os.remove(f"{self.path}.part")


encode_json = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode
TAR_HEADER = tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT)


def tar_member(name: str, data: bytes) -> bytes:
    """The bytes that tarfile would write for this file (at most 99 letters of name, 8 GiB of data), at a tenth of its time."""
    head = bytearray(TAR_HEADER)
    head[:len(name)] = name.encode()
    head[124:135] = b"%011o" % len(data)
    head[148:156] = b" " * 8                                # the checksum counts its own field as spaces
    head[148:155] = b"%06o\0" % sum(head)
    return b"".join((head, data, bytes(-len(data) % 512)))


def write_index(directory, shards, **info):
    """index.json: `shards` is a list of {"file", "n", "sha256"}; the set's hash covers them all."""
    digest = hashlib.sha256("".join(s["sha256"] for s in shards).encode()).hexdigest()
    index = {"n": sum(s["n"] for s in shards), "hash": digest, **info, "shards": shards}
    write_atomic(Path(directory) / "index.json", json.dumps(index, indent=1, ensure_ascii=False).encode())


def write_atomic(path, data: bytes):
    """All or nothing: a kill leaves the old file or the new one, never half of it."""
    part = f"{path}.part"
    with open(part, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    os.replace(part, path)


def sha256(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def npy_bytes(vector):
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(vector, dtype=np.float16), allow_pickle=False)
    return buffer.getvalue()


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


def check(sample):
    """Raises DataError, naming the field, unless `sample` fits the schema."""
    missing = [f for f in FIELDS if f not in sample]
    if missing:
        raise DataError(f"sample {sample.get('id', '?')!r} lacks {', '.join(missing)}")
    answers = sample["answer"] if isinstance(sample["answer"], list) else [sample["answer"]]
    if not (sample["text"] is None or isinstance(sample["text"], str)) or not isinstance(sample["instruction"], str):
        raise DataError(f"sample {sample['id']!r}: text and instruction must be strings (text may be null)")
    if not answers or not all(isinstance(a, str) for a in answers):
        raise DataError(f"sample {sample['id']!r}: answer must be a string or a list of strings")
    if sample["task"] not in TASKS:
        raise DataError(f"sample {sample['id']!r}: task {sample['task']!r} is none of {', '.join(TASKS)}")
    if sample["task"] == "mcq" and not sample.get("choices"):
        raise DataError(f"sample {sample['id']!r}: a multiple-choice sample needs its choices")


# --- 2. sources -------------------------------------------------------------------------------------------------------

class Source:
    """One directory or URL of shards, by its index.json."""

    def __init__(self, url, name=None):
        self.url, self.name = str(url).rstrip("/"), name or str(url).rstrip("/").split("/")[-1]
        try:
            with wds.gopen(f"{self.url}/index.json", "rb") as f:
                self.index = json.load(f)
        except (OSError, ValueError) as e:
            raise DataError(f"{self.url}/index.json cannot be read ({e}); shards without one: python data.py index "
                            f"{self.url}") from e
        self.shards = [s for s in self.index["shards"] if s["n"]]
        if not self.shards:
            raise DataError(f"{self.url} holds no samples")

    def path(self, i):
        return f"{self.url}/{self.shards[i]['file']}"

    def __len__(self):
        return sum(s["n"] for s in self.shards)


def find_sources(root, mixture=None, skip_missing=False):
    """The sources under `root` with their weights: [Source], [weight].

    `mixture` names subfolders and their weights; without one every subfolder (or `root` itself) counts by its size. Raises DataError when
    a source of the mixture is not there, unless `skip_missing`.
    """
    root = str(root).rstrip("/")
    if mixture:
        local = "://" not in root and not root.startswith("pipe:")
        absent = [name for name in mixture if local and not os.path.exists(f"{root}/{name}/index.json")]
        if len(absent) == len(mixture) or (absent and not skip_missing):
            raise DataError(f"of the mixture's sources {root} lacks {', '.join(absent)}; build them: python shards/audiotia.py {' '.join(absent)} "
                            f"--root YOUR_DATASETS --out {root} (then, where you train on vectors, python data.py embed), or train without "
                            "them: --skip_missing")
        names = [name for name in mixture if name not in absent]
        return [Source(f"{root}/{name}", name) for name in names], [float(mixture[name]) for name in names]
    if os.path.isdir(root) and not os.path.exists(f"{root}/index.json"):
        names = sorted(p.parent.name for p in Path(root).glob("*/index.json"))
        if not names:
            raise DataError(f"no shards under {root}: neither it nor a folder in it has an index.json")
        sources = [Source(f"{root}/{name}", name) for name in names]
    else:
        sources = [Source(root)]
    return sources, [float(len(s)) for s in sources]


# --- 3. the plan ------------------------------------------------------------------------------------------------------

class Plan:
    """What micro-batch m is made of, for every m: a pure function of (seed, m), whatever the ranks and workers.

    A *visit* is one pass over one shard: shuffled, sorted into batches of similar length, the batches shuffled again.
    Each source visits its shards in a new order every epoch; the source that is furthest behind its weight gets the
    next visit. `lanes` visits are under way at once and take turns, so neighbouring micro-batches come from different
    shards, and each reader needs only its own lanes' shards. Every micro-batch holds exactly `batch` samples of one source:
    the last of a visit is filled up with samples of the same shard.
    """

    def __init__(self, sources, weights, batch, seed=0, lanes=8):
        if len(weights) != len(sources) or min(weights) < 0 or sum(weights) <= 0:
            raise DataError(f"mixture weights must be non-negative and not all zero: {weights}")
        self.sources, self.batch, self.seed, self.lanes = sources, batch, seed, lanes
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
            n = -(-shards[shard]["n"] // self.batch)
            given[s] += n
            total += n
            yield v, s, shard, n

    def batches(self, start=0):
        """Endless (m, visit, k) from m = start on: micro-batch m is batch k of that visit."""
        visits, lanes = self.visits(), [None] * self.lanes
        for m in itertools.count():
            visit, k = lanes[m % self.lanes] or (None, 0)
            if visit is None or k == visit[3]:
                visit, k = next(visits), 0
            lanes[m % self.lanes] = visit, k + 1
            if m >= start:
                yield m, visit, k

    def cut(self, visit, lengths):
        """The visit's micro-batches: (n, batch) row numbers into its shard's readable samples of these lengths."""
        rng = np.random.default_rng([self.seed, 2, visit[0]])
        rows = np.resize(rng.permutation(len(lengths)), visit[3] * self.batch)    # fills up by going round again
        jitter = rng.uniform(1, 1.1, len(rows))                                   # so that batches differ between epochs
        rows = rows[np.argsort(np.asarray(lengths)[rows] * jitter, kind="stable")]
        return rng.permuted(rows.reshape(visit[3], self.batch), axis=1)[rng.permutation(visit[3])]


# --- 4. reading -------------------------------------------------------------------------------------------------------

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
            report(f"{url}, member {parts.get('__key__')}: {'no json' if isinstance(e, KeyError) else e}")
            continue
        sample["key"] = parts["__key__"]
        if audio:
            sample["kind"], sample["audio"] = next(((a, parts[a]) for a in AUDIO if a in parts), (None, None))
        yield sample
    if n is not None and found != n:
        report(f"{url}: holds {found} samples where index.json says {n}")


def read_source(source, **kwargs):
    """All readable samples of a source, shard by shard; keywords as for read_shard."""
    for i, shard in enumerate(source.shards):
        yield from read_shard(source.path(i), shard["n"], **kwargs)


# --- 5. tokens and tensors --------------------------------------------------------------------------------------------

class Template:
    """Tokens around the prefix. `{audio}` in the template is where the prefix goes, `{instruction}` the instruction,
    `{tag}` the sample's tag (facts of the released code: one per dataset), empty where it has none.

        "{audio}{instruction}"                                                          GPT-2, as in Eq. 1
        "USER: <Speech>{audio}</Speech> {tag} {instruction}\\nASSISTANT:"               Vicuna, as released

    The answer follows after a space, is cut at `max_answer` tokens, and ends with the end-of-text token.
    """

    def __init__(self, template, tokenizer, max_answer=150, max_prompt=512):
        if template.count("{audio}") != 1 or "{instruction}" not in template:
            raise ValueError(f"template {template!r} needs {{audio}} once, and {{instruction}} after it")
        self.before, self.after = template.split("{audio}")
        if "{instruction}" in self.before:
            raise ValueError(f"template {template!r}: what comes before {{audio}} is the same for all samples, "
                             "so {instruction} must come after it")
        self.tokenizer, self.max_answer, self.max_prompt = tokenizer, max_answer, max_prompt
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end-of-text token, and an answer could never end")
        start = [tokenizer.bos_token_id] if tokenizer.bos_token_id not in (None, tokenizer.eos_token_id) else []
        self.head = start + self.ids([self.before])[0]          # what precedes the prefix, with <s> where there is one
        # SentencePiece puts the space in by itself; byte-level BPE wants it said.
        self.space = "" if tokenizer.tokenize("a")[0].startswith("\u2581") else " "

    def ids(self, texts):
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    def prompts(self, instructions, tags=None):
        """Token ids after the prefix, one list per instruction."""
        tags = tags or [""] * len(instructions)
        texts = [self.after.replace("{tag} ", f"{t} " if t else "").replace("{tag}", t).replace("{instruction}", i)
                 for i, t in zip(instructions, tags)]
        return [ids[:self.max_prompt] for ids in self.ids(texts)]

    def encode(self, samples):
        """Per sample (ids, number of them that are prompt): head + prompt + answer + end; the prefix goes after `head`."""
        prompts = self.prompts([s["instruction"] for s in samples], [s.get("tag") or "" for s in samples])
        answers = [s["answer"][0] if isinstance(s["answer"], list) else s["answer"] for s in samples]
        answers = self.ids([self.space + a.strip() for a in answers])
        return [(self.head + p + a[:self.max_answer] + [self.tokenizer.eos_token_id], len(self.head) + len(p))
                for p, a in zip(prompts, answers)]


def collate(samples, tokens, pad, multiple=8):
    """samples and their tokens -> a batch.

    ids (B, T) int64, padded on the right to a multiple; answer (B, T) bool, True on answer tokens and the end token;
    z (B, D) where all samples have a vector; text: list of B.
    """
    T = -(-max(len(ids) for ids, _ in tokens) // multiple) * multiple
    batch = {"ids": torch.full((len(samples), T), pad), "answer": torch.zeros(len(samples), T, dtype=torch.bool),
             "text": [s["text"] for s in samples]}
    for row, (ids, n) in enumerate(tokens):
        batch["ids"][row, :len(ids)] = torch.tensor(ids)
        batch["answer"][row, n:len(ids)] = True
    if all("vector" in s for s in samples):
        batch["z"] = torch.from_numpy(np.stack([s["vector"] for s in samples]))    # (B, D)
    return batch


class Batches(torch.utils.data.IterableDataset):
    """The plan's micro-batches for one rank, from position `start` on, endlessly; hand it to `loader`.

    A source whose index names `vectors` yields them as z. Otherwise batches bring what is to be encoded: their `text`, or,
    with `decode` = a function (audio bytes, seed) -> (T,) float32, `audio` (B, T). Broken parts that a batch
    came across are named in its list `broken`; with `strict` they raise DataError.
    """

    def __init__(self, plan, template, start=0, rank=0, ranks=1, strict=False, decode=None):
        self.plan, self.template, self.start, self.rank, self.ranks = plan, template, start, rank, ranks
        self.strict, self.decode = strict, decode

    def mine(self, m):
        info = torch.utils.data.get_worker_info()
        turn, rank = divmod(m - self.start, self.ranks)
        return rank == self.rank and (info is None or turn % info.num_workers == info.id)

    def __iter__(self):
        held, broken = {}, []                       # visits under way: number -> (samples, their tokens, cut)
        for m, visit, k in self.plan.batches(self.start):
            if self.mine(m):
                if visit[0] not in held:
                    held[visit[0]] = self.load(visit, broken)
                samples, tokens, cut = held[visit[0]]
                source, rows, waves = self.plan.sources[visit[1]], cut[k], None
                if self.decode and not source.index.get("vectors"):
                    rows, waves = self.waves(samples, rows, m, broken)
                batch = collate([samples[i] for i in rows], [tokens[i] for i in rows], self.template.tokenizer.eos_token_id)
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
            for sample in read_shard(source.path(shard), source.shards[shard]["n"], self.strict, broken, need == "audio"):
                if sample.get(need) is not None:
                    samples.append(sample)
                elif self.strict:
                    raise DataError(f"{source.path(shard)}: sample {sample['id']!r} has no {need}")
                else:
                    broken.append(f"{source.path(shard)}: sample {sample['id']!r} has no {need}")
            if samples:
                tokens = self.template.encode(samples)
                return samples, tokens, self.plan.cut(visit, [len(ids) for ids, _ in tokens])
        raise DataError(f"{source.url}: no usable sample in any shard; the last problem: {broken[-1]}")

    def waves(self, samples, rows, m, broken):
        """(rows, (B, T)); a clip that cannot be decoded is named, and a good one of the same shard takes its place."""
        good, waves = [], []
        for i in [*rows, *range(len(samples))]:
            if len(waves) == len(rows):
                break
            try:
                waves.append(self.decode(samples[i]["audio"], (self.plan.seed * 1_000_003 + m) * 4096 + len(waves)))
                good.append(i)
            except ValueError as e:
                if self.strict:
                    raise
                broken.append(f"{samples[i]['source']} {samples[i]['id']}: {e}")
        if not good:
            raise DataError(f"not one clip of the shard of micro-batch {m} can be decoded; the last problem: {broken[-1]}")
        fill = np.resize(np.arange(len(good)), len(rows))
        return [good[i] for i in fill], torch.stack([waves[i] for i in fill])


def loader(batches, workers=2, pin=False):
    """A DataLoader that keeps the plan's order whatever the number of workers."""
    return torch.utils.data.DataLoader(batches, batch_size=None, num_workers=workers, pin_memory=pin,
                                       prefetch_factor=4 if workers else None)


# --- the command line -------------------------------------------------------------------------------------------------

def embed(src, dst, clap, name, side="text", progress=True):
    """Copies the shards of one source, with the CLAP vector of each sample's text (or audio) beside it as npy.

    Every distinct text is encoded once. Shards that an earlier, interrupted call finished are kept. Returns the list of
    what was broken and left out. Raises DataError when dst was begun from other shards or with another encoder.
    """
    from clap import encode_file
    source, dst, broken, known = Source(src), Path(dst), [], {}
    made = {"from": source.index["hash"], "clap": name, "side": side, "dim": clap.dim}
    if (dst / "index.json").exists():
        if Source(dst).index["vectors"] == made:
            return broken
        raise DataError(f"{dst} holds shards made from others or with another encoder; choose another folder")
    dst.mkdir(parents=True, exist_ok=True)
    if (dst / "embed.json").exists() and json.loads((dst / "embed.json").read_text()) != made:
        raise DataError(f"{dst} was begun from other shards or with another encoder; delete it or choose another folder")
    write_atomic(dst / "embed.json", json.dumps(made).encode())

    shards, bar = [], tqdm(total=len(source), unit=" samples", unit_scale=True, desc=source.name, disable=not progress)
    for i, shard in enumerate(source.shards):
        path = dst / shard["file"]
        if not path.exists():
            samples, vectors = [], []
            for s in read_shard(source.path(i), shard["n"], broken=broken, audio=True):
                if s.get("text" if side == "text" else "audio") is None:
                    broken.append(f"{source.path(i)}: sample {s['id']!r} has no {side}")
                else:
                    samples.append(s)
            if side == "text":
                new = list(dict.fromkeys(s["text"] for s in samples if s["text"] not in known))
                known.update(zip(new, clap.encode_text(new).cpu().numpy().astype(np.float16)))
                vectors = [known[s["text"]] for s in samples]
            else:
                good = []
                for s in samples:
                    try:
                        vectors.append(encode_file(clap, s["audio"]).cpu().numpy())
                        good.append(s)
                    except ValueError as e:
                        broken.append(f"{source.path(i)}: sample {s['id']!r}: {e}")
                samples = good
            copy_shard(source.path(i), path, {s["key"]: v for s, v in zip(samples, vectors)})
        shards.append({"file": path.name, "n": sum(1 for _ in read_shard(str(path))), "sha256": sha256(path)})
        bar.update(shard["n"])
    bar.close()
    info = {k: v for k, v in source.index.items() if k not in ("n", "hash", "shards", "vectors", "command")}
    write_index(dst, shards, **info, vectors=made, command=command_line())
    os.remove(dst / "embed.json")
    return broken


def copy_shard(src, dst, vectors):
    """The members of `src` whose key is in `vectors`, each with its vector as npy; src may be any URL."""
    with wds.TarWriter(f"{dst}.part", encoder=False, mtime=0) as tar:
        for parts in tarfile_samples(iter([{"url": str(src)}]), handler=lambda e: True):
            if parts["__key__"] in vectors:
                members = {k: v for k, v in parts.items() if not k.startswith("__") or k == "__key__"}
                tar.write({**members, "npy": npy_bytes(vectors[parts["__key__"]])})
    os.replace(f"{dst}.part", dst)


def index(directory):
    """Writes index.json for a folder of tar shards that has none; names what cannot be read."""
    paths, shards, broken, sources, tasks = sorted(Path(directory).glob("*.tar")), [], [], Counter(), Counter()
    if not paths or (Path(directory) / "index.json").exists():
        raise DataError(f"{directory}: {'has an index.json already' if paths else 'no *.tar in it'}")
    for path in tqdm(paths, unit=" shards"):
        samples = [(s["source"], s["task"]) for s in read_shard(str(path), broken=broken)]
        sources.update(s for s, _ in samples)
        tasks.update(t for _, t in samples)
        shards.append({"file": path.name, "n": len(samples), "sha256": sha256(path)})
    write_index(directory, shards, sources=dict(sources), tasks=dict(tasks), licences={}, vectors=None, command=command_line())
    return broken


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    e = commands.add_parser("embed", help="put CLAP vectors beside the samples of shards")
    e.add_argument("src", help="a folder of shards, or a folder of such folders")
    e.add_argument("dst")
    e.add_argument("--clap", default="microsoft/msclap", help="name, folder or module:factory (clap.load_clap)")
    e.add_argument("--side", choices=("text", "audio"), default="text", help="encode the texts, or the audio (MATS-Audio)")
    e.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    i = commands.add_parser("index", help="make index.json for a folder of tar shards")
    i.add_argument("dir")
    args = parser.parse_args()
    try:
        if args.command == "index":
            broken = index(args.dir)
        else:
            from clap import load_clap
            clap, broken = load_clap(args.clap), []
            if isinstance(clap, torch.nn.Module):
                clap.to(args.device)
            for source in find_sources(args.src)[0]:
                single = source.url == args.src.rstrip("/")
                broken += embed(source.url, args.dst if single else f"{args.dst}/{source.name}", clap, args.clap, args.side)
    except DataError as e:
        sys.exit(f"data.py: {e}")
    for what in broken[:20]:
        print("left out:", what, file=sys.stderr)
    if broken:
        print(f"{len(broken)} broken parts were left out", file=sys.stderr)


if __name__ == "__main__":
    main()
