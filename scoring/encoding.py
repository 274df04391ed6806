"""The first step of an evaluation: the CLAP vectors of a benchmark's clips, stored as they come."""

import hashlib
import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from clap import windows_of
from data import Damage, Source, read_source
from disk import DataError, read_json, read_tensors, reading, write_atomic, write_tensors
from distributed import Ranks, progress
from distributed.parts import Parts
from scoring.evaluation import Evaluation
from scoring.tasks import unfit

PART = 1024  # clips whose vectors are stored at once: at most these are lost by a kill


class Encoded(NamedTuple):
    """A benchmark's samples whose audio can be decoded."""

    rows: list[dict]  # samples without their audio
    audio: Tensor  # (n, D)
    text: Tensor | None  # (n, D), where all texts are known


def encode(evaluation: Evaluation, name: str) -> Encoded:
    """One benchmark's CLAP vectors. Clips that cannot be decoded are named, and left out."""
    if name not in evaluation.encoded:
        with evaluation.encoding:  # another thread may be at it
            if name not in evaluation.encoded:
                evaluation.encoded[name] = encoded(evaluation, name)
    return evaluation.encoded[name]


def encoded(evaluation: Evaluation, name: str) -> Encoded:
    path = stored_at(evaluation, name)
    found = stored_vectors(path)
    if found is None:
        encode_clips(evaluation, name, path)
        found = stored_vectors(path)
    if found is None:
        raise DataError(f"{path} was written, and cannot be read")
    known, rows = found
    kept, problems, source = [], [], evaluation.sources[name]
    for i, row in enumerate(rows):
        problem = unfit(name, row, evaluation.labels.get(name))
        problems += [problem] if problem else []
        if problem and evaluation.ranks.master:
            print(f"left out: {source.url}: {row['id']!r}: {problem}", file=sys.stderr)
        if not problem and row["clip"] in known:
            kept.append(i)
    if not kept:
        first = f"; at first: {problems[0]}" if problems else ""
        raise DataError(f"{source.url}: not one clip has audio that can be decoded{first}")
    audio = torch.stack([known[rows[i]["clip"]] for i in kept])
    text = known["text"][kept] if "text" in known else None
    return Encoded([rows[i] for i in kept], audio, text)


def stored_at(evaluation: Evaluation, name: str) -> Path:
    return evaluation.vector_folder / f"{name}.{evaluation.vector_keys[name]}.safetensors"


def stored_vectors(path: Path) -> tuple[dict[str, Tensor], list[dict]] | None:
    """({clip: (D,), "text": (n, D)}, n rows) as encode_clips writes them.

    None where they are to be made: there are none, or they are damaged, which is said.
    """
    if not path.exists():
        return None
    try:
        known, rows = read_tensors(path), read_json(path.with_suffix(".json"), list)
        problem = "" if fit_together(known, rows) else f"{path} does not fit its .json"
    except DataError as error:
        problem = str(error)
    if problem:
        print(f"{problem}; the audio is encoded again", file=sys.stderr)
        return None
    return known, rows


def fit_together(known: dict[str, Tensor], rows: list) -> bool:
    clips = [z for name, z in known.items() if name != "text"]
    if not all(isinstance(row, dict) and {"clip", "id"} <= row.keys() for row in rows):
        return False
    if len({z.shape for z in clips}) > 1 or not all(z.ndim == 1 for z in clips):
        return False
    if "text" in known and known["text"].shape[:1] != (len(rows),):
        return False
    return all(bool(z.isfinite().all()) for z in known.values())


def encoder_of(clap) -> dict:
    """How an encoder hears: seconds and sample rate of its windows, how short clips are filled."""
    padding = getattr(clap, "padding", "tile")
    return {"seconds": clap.seconds, "sample_rate": clap.sample_rate, "padding": padding}


def encoder_that_made(evaluation: Evaluation) -> dict:
    """What encoder_of said of the encoder of the stored vectors.

    {} where they were stored before it was asked, or where none are left.
    """
    for name in evaluation.names:
        path = stored_at(evaluation, name)
        if path.exists():
            with reading(str(path), "delete it: it is made again"), safe_open(path, "pt") as file:
                return json.loads((file.metadata() or {}).get("encoder", "{}"))
    return {}


class Stopped(Exception):
    """The evaluation ends: a thread should too."""


def encode_clips(evaluation: Evaluation, name: str, path: Path) -> None:
    """Writes {clip: vector, "text": (n, D)} to `path`, and the rows beside it as JSON.

    A clip of several questions or benchmarks is encoded once. Decoding runs in threads ahead of the
    encoder. Each process takes its share of the clips. Raises DataError where a shard is damaged.
    """
    ranks, clap, source = evaluation.ranks, evaluation.clap, evaluation.sources[name]
    parts = Parts(path, ranks, write_tensors, read_tensors)
    known = {row["clip"]: z for e in evaluation.encoded.values() for row, z in zip(e.rows, e.audio)}
    done, rows, vectors = {*parts.merged(), *known}, [], {}
    ranks.barrier()
    bar = progress(f"encode {name}", len(source), "clips", ranks, done=len(done - known.keys()))
    pool = ThreadPoolExecutor(4)
    try:
        clips = clips_of(source, ranks, done, rows)
        decoded = ahead(pool, lambda clip: decode(evaluation, clip), clips)
        good = ((clip, waves) for clip, waves in decoded if waves is not None)
        while group := list(islice(good, 32)):
            vectors |= encode_group(clap, group)
            bar.update(len(group) * ranks.size)
            if len(vectors) >= PART:
                parts.add(vectors)
                vectors = {}
            if evaluation.stopping.is_set():
                raise Stopped
    finally:  # Ctrl-C too: nothing waits for clips that are still to be decoded
        pool.shutdown(wait=False, cancel_futures=True)
        if vectors:
            parts.add(vectors)
        bar.close()
    ranks.barrier()
    if ranks.master:
        clips, texts = {row["clip"] for row in rows}, [row["text"] for row in rows]
        vectors = {clip: known[clip] for clip in clips & known.keys()} | parts.merged()
        if texts and None not in texts:
            vectors["text"] = clap.encode_text(texts).cpu().contiguous()
        write_atomic(path.with_suffix(".json"), json.dumps(rows).encode())
        write_tensors(vectors, path, {"encoder": json.dumps(encoder_of(clap))})
        parts.remove()
    ranks.barrier()


class Clip(NamedTuple):
    digest: str  # of its bytes: its name among the vectors
    where: str  # shards and id, for messages
    data: bytes


def clips_of(source: Source, ranks: Ranks, done: set, rows: list) -> Iterator[Clip]:
    """This process's share of the clips that are not done; fills `rows` with all samples.

    Broken samples are named, and left out. Raises DataError where a shard is damaged: what is made
    of half of it would be taken for the whole later.
    """
    seen, broken = set(done), []
    for row in read_source(source, audio=True, broken=broken):
        where, data = f"{source.url}: {row['id']!r}", row.pop("audio")
        row.pop("kind")
        row.pop("vector", None)
        if data is None:
            if ranks.master:
                print(f"left out: {where} has no audio", file=sys.stderr)
            continue
        clip = Clip(hashlib.sha256(data).hexdigest(), where, data)
        rows.append({**row, "clip": clip.digest})
        mine = int(clip.digest[:8], 16) % ranks.size == ranks.rank
        if mine and clip.digest not in seen:
            seen.add(clip.digest)
            yield clip
    damaged = [problem for problem in broken if isinstance(problem, Damage)]
    if damaged:
        raise DataError(f"a shard is damaged: {damaged[0]}; get it again")
    if ranks.master:
        for problem in broken:
            print(f"left out: {problem}", file=sys.stderr)


def decode(evaluation: Evaluation, clip: Clip) -> tuple[Clip, Tensor | None]:
    """(clip, (windows, T)); None where the audio cannot be decoded, which is named."""
    if evaluation.stopping.is_set():
        raise Stopped
    clap, generator = evaluation.clap, torch.Generator().manual_seed(int(clip.digest[:8], 16))
    try:
        return clip, windows_of(clap, clip.data, evaluation.crop, generator)
    except ValueError as error:
        print(f"left out: {clip.where}: {error}", file=sys.stderr)
        return clip, None


def encode_group(clap, group: list[tuple[Clip, Tensor]]) -> dict[str, Tensor]:
    """{digest: (D,)}, the unit mean over each clip's windows.

    A clip that the encoder refuses is named, and left out.
    """
    try:
        z = clap.encode_audio(torch.cat([waves for _, waves in group])).cpu()
    except ValueError as error:
        if len(group) > 1:
            halves = group[: len(group) // 2], group[len(group) // 2 :]
            return encode_group(clap, halves[0]) | encode_group(clap, halves[1])
        print(f"left out: {group[0][0].where}: {error}", file=sys.stderr)
        return {}
    windows = z.split([len(waves) for _, waves in group])
    return {clip.digest: F.normalize(w.mean(0), dim=0) for (clip, _), w in zip(group, windows)}


def ahead(pool: ThreadPoolExecutor, function: Callable, items: Iterable, n: int = 64) -> Iterator:
    """map(function, items) in the pool's threads, in order, at most n items ahead.

    The pool's own map would hold all items at once.
    """
    items = iter(items)
    waiting = deque(pool.submit(function, item) for item in islice(items, n))
    while waiting:
        yield waiting.popleft().result()
        waiting.extend(pool.submit(function, item) for item in islice(items, 1))
