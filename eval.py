"""Score a trained MATS on every benchmark, over every bridge, beside chance, CLAP and the paper.

    python eval.py                                                  the tiny world, once trained
    python eval.py --ckpt out/mats_gpt2/model --shards data/bench   the paper's benchmarks
    torchrun --nproc_per_node=2 eval.py ...                         the same scores on two GPUs
    python eval.py --score                                          score stored predictions again
    python eval.py --compare none santa                             paired tests: is santa better?

Four steps: encode the audio -> bridge -> generate -> score. Each leaves its result in `--out`:
vectors/, a file of predictions for each bridge and benchmark with all that is needed to score it,
results.json, report.md, report.html and results.png. A run that was stopped resumes. The column
`text` is the ceiling: MATS given the vector of the clip's true text instead of its audio.
"""

import argparse
import hashlib
import json
import math
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # or a busy CPU slows down tenfold

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from audio import load_audio
from data import Source, read_source
from disk import DataError, sha256, write_atomic
from distributed import Ranks
from distributed.parts import Parts, whole_lines
from santa import BRIDGES, RELEASED_NORM, bridge, gap, noise_cosine, noise_variance
from scoring import judge, report
from scoring.evaluation import DECODING, Evaluation, digest
from scoring.matching import steps
from scoring.results import describe, trained_variance, write
from scoring.spice import Spice, SpiceMissing
from scoring.tasks import BENCHMARKS, Context, captions, chance, compared, measure, summaries

COLUMNS = ("text", "none", "nearest", "memory", "projection", "shift", "santa")  # of a plain run
NO_TEXT = "column text needs samples whose text is known, and these have only audio"
PART = 1024  # clips whose vectors are stored at once: at most these are lost by a kill


# --- 1. encode ----------------------------------------------------------------------------------


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
    path = evaluation.vector_folder / f"{name}.{evaluation.vector_keys[name]}.safetensors"
    if not path.exists():
        encode_clips(evaluation, name, path)
    known, rows = load_file(path), json.loads(path.with_suffix(".json").read_text())
    kept = [i for i, row in enumerate(rows) if row["clip"] in known]
    if not kept:
        url = evaluation.sources[name].url
        raise DataError(f"{url}: not one clip has audio that can be decoded")
    audio = torch.stack([known[rows[i]["clip"]] for i in kept])
    text = known["text"][kept] if "text" in known else None
    return Encoded([rows[i] for i in kept], audio, text)


def encode_clips(evaluation: Evaluation, name: str, path: Path) -> None:
    """Writes {clip: vector, "text": (n, D)} to `path`, and the rows beside it as JSON.

    A clip of several questions or benchmarks is encoded once. Decoding runs in threads ahead of the
    encoder. Each process takes its share of the clips.
    """
    ranks, clap, source = evaluation.ranks, evaluation.clap, evaluation.sources[name]
    parts = Parts(path, ranks, save_file, load_file)
    known = {row["clip"]: z for e in evaluation.encoded.values() for row, z in zip(e.rows, e.audio)}
    done, rows, vectors = {*parts.merged(), *known}, [], {}
    ranks.barrier()
    bar = progress(f"encode {name}", len(source), "clips", ranks, done=len(done - known.keys()))
    with ThreadPoolExecutor(4) as pool:
        clips = clips_of(source, ranks, done, rows)
        decoded = ahead(pool, lambda clip: decode(clap, evaluation.crop, clip), clips)
        good = ((clip, waves) for clip, waves in decoded if waves is not None)
        while group := list(islice(good, 32)):
            vectors |= encode_group(clap, group)
            bar.update(len(group) * ranks.size)
            if len(vectors) >= PART:
                parts.add(vectors)
                vectors = {}
    if vectors:
        parts.add(vectors)
    bar.close()
    ranks.barrier()
    if ranks.master:
        clips, texts = {row["clip"] for row in rows}, [row["text"] for row in rows]
        vectors = {clip: known[clip] for clip in clips & known.keys()} | parts.merged()
        if None not in texts:
            vectors["text"] = clap.encode_text(texts).cpu().contiguous()
        write_atomic(path.with_suffix(".json"), json.dumps(rows, ensure_ascii=False).encode())
        save_file(vectors, f"{path}.tmp")
        os.replace(f"{path}.tmp", path)
        parts.remove()
    ranks.barrier()


def progress(what: str, total: int, unit: str, ranks: Ranks, done: int = 0) -> tqdm:
    hidden = not ranks.master
    return tqdm(total=total, initial=done, desc=what, unit=f" {unit}", leave=False, disable=hidden)


class Clip(NamedTuple):
    digest: str  # of its bytes: its name among the vectors
    where: str  # shards and id, for messages
    data: bytes


def clips_of(source: Source, ranks: Ranks, done: set, rows: list) -> Iterator[Clip]:
    """This process's share of the clips that are not done; fills `rows` with all samples."""
    seen = set(done)
    for row in read_source(source, audio=True):
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


def decode(clap, crop: str, clip: Clip) -> tuple[str, Tensor | None]:
    """(digest, (windows, T)); None where the audio cannot be decoded, which is named."""
    generator = torch.Generator().manual_seed(int(clip.digest[:8], 16))
    try:
        waves = load_audio(clip.data, clap.sample_rate, clap.seconds, crop, generator)
        return clip.digest, waves.view(-1, waves.shape[-1])
    except ValueError as error:
        print(f"left out: {clip.where}: {error}", file=sys.stderr)
        return clip.digest, None


def encode_group(clap, group: list[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """{clip: (D,)}, the unit mean over each clip's windows."""
    z = clap.encode_audio(torch.cat([waves for _, waves in group])).cpu()
    windows = z.split([len(waves) for _, waves in group])
    return {clip: F.normalize(w.mean(0), dim=0) for (clip, _), w in zip(group, windows)}


def ahead(pool: ThreadPoolExecutor, function: Callable, items: Iterable, n: int = 64) -> Iterator:
    """map(function, items) in the pool's threads, in order, at most n items ahead.

    The pool's own map would hold all items at once.
    """
    items = iter(items)
    waiting = deque(pool.submit(function, item) for item in islice(items, n))
    while waiting:
        yield waiting.popleft().result()
        waiting.extend(pool.submit(function, item) for item in islice(items, 1))


# --- 2. bridge ----------------------------------------------------------------------------------


def cross(evaluation: Evaluation, name: str, column: str, over: Callable | None = None) -> Tensor:
    """(n, D): one benchmark's audio vectors over the bridge `column`, or the true texts' vectors.

    over: the bridge, where it is not the one that `column` names.
    """
    _, audio, text = encode(evaluation, name)
    if column == "text":
        if text is None:
            raise DataError(f"{name}: {NO_TEXT}")
        return text
    if over is None:
        santa = evaluation.model.santa
        mean = audio_mean(evaluation) if column == "shift" else None
        try:
            over = bridge(column, santa, mean, torch.Generator().manual_seed(0))
        except ValueError as error:
            hint = "" if santa else " (this model has no memory: --columns none)"
            raise DataError(f"column {column!r}: {error}{hint}") from error
    return over(audio * RELEASED_NORM if column == "official" else audio)


def audio_mean(evaluation: Evaluation) -> Tensor:
    """(D,): the mean of the benchmarks' mean audio vectors, each benchmark counted once.

    `shift` takes it for the mean of all audio. The mean of one benchmark's clips would carry away
    their content with the gap: that all of them are instruments, say. So would the mean of all
    clips where one benchmark has most of them.
    """
    means = [encode(evaluation, name).audio.mean(0) for name in evaluation.names]
    return torch.stack(means).mean(0)


def pairs(evaluation: Evaluation, n: int) -> tuple[Tensor, Tensor]:
    """At most n true texts (n, D) and the audio of the same clips (n, D), row by row.

    Every benchmark with texts gives the same number, as far as it has them. A clip that occurs
    again, with another question, is not drawn again. Without any texts both are empty (0, D).
    """
    generator, drawn, seen = torch.Generator().manual_seed(0), [], set()
    for name in evaluation.names:
        rows, audio, text = encode(evaluation, name)
        if text is None:
            continue
        order = torch.randperm(len(rows), generator=generator).tolist()
        first = {rows[i]["clip"]: i for i in reversed(order) if rows[i]["clip"] not in seen}
        drawn += [(turn, text[i], audio[i]) for turn, i in enumerate(first.values())]
        seen |= first.keys()
    drawn = sorted(drawn, key=lambda pair: pair[0])[:n]  # each benchmark's first, then second ...
    if not drawn:
        return audio[:0], audio[:0]
    texts, sounds = zip(*[(text, sound) for _, text, sound in drawn])
    return torch.stack(texts), torch.stack(sounds)


# --- 3. generate --------------------------------------------------------------------------------


def generate(
    evaluation: Evaluation, name: str, column: str, over: Callable | None = None
) -> list[dict]:
    """One benchmark's rows with the model's `prediction`, stored or made now."""
    path = evaluation.predictions(name, column)
    if not path.exists():
        answer(evaluation, name, column, over, path)
    return whole_lines(path)


def save_answers(answers: dict[int, str], path: Path) -> None:
    lines = [json.dumps({"i": i, "prediction": a}, ensure_ascii=False) for i, a in answers.items()]
    path.write_bytes("".join(line + "\n" for line in lines).encode())


def load_answers(path: Path) -> dict[int, str]:
    return {line["i"]: line["prediction"] for line in whole_lines(path)}


def answer(
    evaluation: Evaluation, name: str, column: str, over: Callable | None, path: Path
) -> None:
    rows, ranks = encode(evaluation, name).rows, evaluation.ranks
    parts = Parts(path, ranks, save_answers, load_answers)
    missing = set(range(len(rows))) - parts.merged().keys()
    ranks.barrier()
    share = sorted(missing, key=lambda i: len(rows[i]["instruction"]))[ranks.rank :: ranks.size]
    z = cross(evaluation, name, column, over)
    bar = progress(f"{name}, {column}", len(share), "answers", ranks)
    for start in range(0, len(share), evaluation.batch):
        at = share[start : start + evaluation.batch]
        asked = [rows[i]["instruction"] for i in at]
        tags = [(rows[i].get("tag") or "") if evaluation.tags else "" for i in at]
        said = evaluation.model.generate(
            z[at], asked, tags, evaluation.batch, **evaluation.made.decoding
        )
        parts.add(dict(zip(at, said)))
        bar.update(len(at))
    bar.close()
    ranks.barrier()
    if ranks.master:
        said = parts.merged()
        lines = [
            json.dumps({**row, "prediction": said[i]}, ensure_ascii=False)
            for i, row in enumerate(rows)
        ]
        write_atomic(path, "".join(line + "\n" for line in lines).encode())
        parts.remove()
    ranks.barrier()


# --- 4. score -----------------------------------------------------------------------------------


def context(evaluation: Evaluation, name: str, spice=None, column: str | None = None) -> Context:
    """What scoring needs beside the rows; of a column, the judge's verdicts too."""
    verdicts = {}
    if column and name.startswith("airbench"):
        verdicts = read_verdicts(evaluation, name, column)
    return Context(
        evaluation.labels[name],
        evaluation.encoders,
        evaluation.template,
        spice=spice,
        verdicts=verdicts,
    )


def read_verdicts(evaluation: Evaluation, name: str, column: str) -> dict:
    """{(id, question): the judge's score} of one column's answers, as far as there are any."""
    path = judge.verdicts_path(evaluation.predictions(name, column))
    if not path.exists():
        return {}
    rows = generate(evaluation, name, column)
    scores, unparsable = judge.verdicts(path, rows, evaluation.judge)
    if unparsable:
        print(f"{name}, {column}: {unparsable} verdicts cannot be read", file=sys.stderr)
    scored = [(row["id"], row["instruction"], float(score)) for row, score in zip(rows, scores)]
    return {(id, question): score for id, question, score in scored if not math.isnan(score)}


def zero_shot(evaluation: Evaluation, name: str) -> dict:
    """CLAP's own scores, without MATS; {} where the benchmark has neither classes nor choices."""
    rows, audio, _ = encode(evaluation, name)

    def similarity(audio, labels):
        texts = [evaluation.template.format(label.lower()) for label in labels]
        return audio.double() @ evaluation.clap_text(texts).double().T

    known = Context()
    if evaluation.labels[name]:
        known = Context(evaluation.labels[name], scores=similarity(audio, evaluation.labels[name]))
    elif name != "mmau" and all("choices" in row for row in rows):
        choices = list(dict.fromkeys(choice for row in rows for choice in row["choices"]))
        similar = dict(zip(choices, steps(similarity(audio, choices)).T.tolist()))
        rows = [
            {**row, "prediction": max(row["choices"], key=lambda choice: similar[choice][i])}
            for i, row in enumerate(rows)
        ]
    else:
        return {}
    return summaries(measure(name, rows, known))


def measured_gap(evaluation: Evaluation, most: int = 1000) -> dict:
    """How far the true texts are from the audio, and the noise that should reach as far.

    {"pairs", all of santa.gap, "noise": {"trained" and "rule": {"variance", "cosine"}}}. `rule` is
    the 30-pair rule; `trained` is missing where the model does not say its noise. {} where fewer
    clips than the five folds have a known text.
    """
    text, audio = pairs(evaluation, most)
    if len(text) < 5:
        return {}
    rule = noise_variance(text, audio, generator=torch.Generator().manual_seed(0))
    variances = {"trained": trained_variance(evaluation.ckpt), "rule": rule}
    noise = {
        name: {"variance": variance, "cosine": noise_cosine(variance, text.shape[1])}
        for name, variance in variances.items()
        if variance is not None
    }
    return {"pairs": len(text), **gap(text, audio), "noise": noise}


def predict(evaluation: Evaluation, columns: list[str]) -> dict[tuple[str, str], list[dict]]:
    """{(column, benchmark): rows with predictions}, by the first three steps.

    One benchmark's audio is encoded while another's answers are generated. Several processes keep
    step instead.
    """
    predictions, coming, pool = {}, {}, ThreadPoolExecutor(1)
    try:
        if evaluation.ranks.size == 1:
            coming = {name: pool.submit(encode, evaluation, name) for name in evaluation.names}
        for name in evaluation.names:
            encoded = coming[name].result() if coming else encode(evaluation, name)
            for column in columns:
                if column != "text" or encoded.text is not None:
                    predictions[column, name] = generate(evaluation, name, column)
    finally:
        pool.shutdown(cancel_futures=True)
    if not predictions:
        raise DataError(f"nothing to score: {NO_TEXT}")
    return predictions


def score(
    evaluation: Evaluation, columns: list[str], predictions: dict, spice
) -> tuple[dict, dict]:
    """(results for the report, {(column, benchmark): {metric: Score}})."""
    rows = {name: encode(evaluation, name).rows for name in evaluation.names}
    results = describe(evaluation, columns, {name: len(part) for name, part in rows.items()})
    results["gap"] = measured_gap(evaluation)
    measured = {}
    for name in tqdm(evaluation.names, desc="score", leave=False):
        results["chance"][name] = chance(name, rows[name], context(evaluation, name))
        results["clap"][name] = zero_shot(evaluation, name)
        for column in columns:
            if (column, name) in predictions:
                said = predictions[column, name]
                found = measure(name, said, context(evaluation, name, spice, column))
                measured[column, name] = found
                results["columns"][column][name] = summaries(found)
                results["headline"][name] = next(iter(found))
    last = results["columns"][columns[-1]]
    for name in last:
        values = {metric: cell["value"] for metric, cell in last[name].items()}
        interval = last[name][results["headline"][name]]["ci95"]
        results["benchmarks"][name] = values | {"n": results["n"][name], "ci95": interval}
    return results, measured


# --- the command line ---------------------------------------------------------------------------


def find_spice(evaluation: Evaluation, required: bool):
    """A Spice where a benchmark wants one, or why there is none.

    Raises SpiceMissing where it is required.
    """
    if not required and not any(BENCHMARKS[name].metrics is captions for name in evaluation.names):
        return None
    try:
        return Spice()
    except SpiceMissing as missing:
        if required:
            raise
        first, *pieces = str(missing).splitlines()
        return f"{first}: {'; '.join(piece.strip() for piece in pieces)}"


def compare(evaluation: Evaluation, a: str, b: str, spice) -> None:
    """Prints, for every benchmark and metric, whether `b` is better than `a`.

    a, b: columns, or two files of predictions.
    """
    names, stored = evaluation.names, Path(a).is_file() and Path(b).is_file()
    if stored:
        names = [Path(a).name.split(".")[0]]
        if names[0] not in evaluation.names:
            known = ", ".join(evaluation.names)
            raise DataError(
                f"{a}: {names[0]!r} is none of the benchmarks {known}, "
                "and the file's name should begin with one"
            )
    else:
        check_columns([a, b])
    header = f"| benchmark | metric | n | {Path(b).name} - {Path(a).name} | 95 % | p |"
    lines = [header, "|---|---|--:|--:|--:|--:|"]
    for name in names:
        rows = [whole_lines(Path(x)) if stored else generate(evaluation, name, x) for x in (a, b)]
        try:
            paired = report.compare(*rows)
        except ValueError as error:
            raise DataError(f"{name}: {error}") from error
        measured = [
            measure(name, list(side), context(evaluation, name, spice, None if stored else x))
            for side, x in zip(zip(*paired), (a, b))
        ]
        for metric, test in compared(*measured).items():
            lines.append(f"| {BENCHMARKS[name].title} | {metric} | {in_cells(test)} |")
    evaluation.ranks.say("\n".join(lines))


def in_cells(test: dict | str) -> str:
    if isinstance(test, str):
        return f"– | no test: {test} | |"
    low, high = test["ci95"]
    interval = f"[{low:+.4f}, {high:+.4f}]"
    return f"{test['n']:,} | {test['difference']:+.4f} | {interval} | {test['p']:.3g}"


def check_columns(columns: list[str]) -> None:
    unknown = [column for column in columns if column not in ("text", *BRIDGES)]
    if unknown:
        raise DataError(
            f"no {', '.join(unknown)} (columns, or files that exist); "
            f"there are: text, {', '.join(BRIDGES)}"
        )


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--ckpt", default="out/tiny/model", help="a model as train.py writes it")
    add("--shards", default="data/tiny/test", help="folder with a folder of shards per benchmark")
    add("--bench", default="all", help="comma-separated, or all that are found")
    add(
        "--columns",
        help="text and bridges (santa.BRIDGES), comma-separated, the last is the headline; "
        f"default: {','.join(COLUMNS)}",
    )
    add("--out", help="default: eval/ beside the checkpoint")
    crops = ("center", "random", "windows")
    add("--crop", default="center", choices=crops, help="of clips longer than CLAP's window")
    tags = "the released code's dataset tags, where the template has {tag}"
    add("--tags", default="on", choices=("on", "off"), help=tags)
    decoding = f"{', '.join(DECODING)}, or keywords of generate: '{{\"num_beams\": 8}}'"
    add("--decoding", default="greedy", help=decoding)
    match = "text-matching encoders, comma-separated: clap, a model of transformers, "
    add("--match", default="clap", help=match + "https://ENDPOINT#MODEL")
    add("--label-template", default="sound of {}", help="text matching: the text of a label")
    add("--judge", metavar="NAME", help="whose verdicts on AIR-Bench Chat count (scoring/judge.py)")
    add("--require", choices=("spice",), help="stop where SPICE cannot run; default: leave it out")
    add("--batch", type=int, default=128)
    add("--score", action="store_true", help="only score the stored predictions again")
    compared = "paired tests between two columns, or two files of predictions"
    add("--compare", nargs=2, metavar=("A", "B"), help=compared)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def evaluation_of(args: argparse.Namespace) -> Evaluation:
    # Processes exchange files and barriers alone. One may wait for days while another trains.
    ranks = Ranks.start(args.device, timedelta(days=7), backend="gloo")
    ckpt = Path(args.ckpt)
    return Evaluation(
        ckpt=ckpt,
        shards=Path(args.shards),
        out=Path(args.out) if args.out else ckpt.parent / "eval",
        ranks=ranks,
        bench=args.bench,
        crop=args.crop,
        tags=args.tags == "on",
        decoding=args.decoding,
        match=args.match,
        template=args.label_template,
        judge=args.judge,
        batch=args.batch,
    )


def columns_of(args: argparse.Namespace, evaluation: Evaluation) -> list[str]:
    if args.columns:
        columns = args.columns.split(",")
        check_columns(columns)
        return columns
    # MATS-Audio needs no bridge, and has no memory
    has_memory = (evaluation.ckpt / "santa.safetensors").exists()
    return list(COLUMNS) if has_memory else ["none"]


def result_key(evaluation: Evaluation, columns: list[str], spice) -> str:
    """A digest of all that the results are made of."""
    paths = [
        judge.verdicts_path(evaluation.predictions(b, c)) for c in columns for b in evaluation.names
    ]
    verdicts = [sha256(path) for path in paths if path.exists()]
    scored = (
        list(evaluation.match.split(",")),
        evaluation.template,
        list(evaluation.labels.items()),
        evaluation.judge,
        verdicts,
    )
    return digest(columns, evaluation.keys, *scored, isinstance(spice, Spice))


def require_stored(evaluation: Evaluation, columns: list[str]) -> None:
    for name in evaluation.names:
        for column in columns:
            if column != "text" and not evaluation.predictions(name, column).exists():
                raise DataError(
                    f"--score: no stored predictions for {name} with {column} from this model and "
                    "these settings"
                )


def evaluate(evaluation: Evaluation, columns: list[str], spice, args: argparse.Namespace) -> None:
    """The four steps, and the report; nothing where nothing has changed since the last one."""
    key, stored = result_key(evaluation, columns, spice), evaluation.out / "results.json"
    if args.score:
        require_stored(evaluation, columns)
    elif stored.exists() and json.loads(stored.read_text()).get("key") == key:
        table = (evaluation.out / "report.md").read_text().split("\n\n")[1]
        evaluation.ranks.say(
            f"{table}\n\nnothing has changed since this was written to {evaluation.out}"
        )
        return
    predictions = predict(evaluation, columns)
    if not evaluation.ranks.master:
        return
    results, measured = score(evaluation, columns, predictions, spice)
    write(evaluation, {"key": key} | results, predictions, measured)
    print(report.markdown(results).split("\n\n")[1])
    print(f"\nreport, plot and predictions: {evaluation.out} (open report.html)")
    cells = [cell for column in results["columns"].values() for cell in column.values()]
    failed = [cell["SPICE"]["why"] for cell in cells if cell.get("SPICE", {}).get("why")]
    if args.require and failed:
        sys.exit(f"eval.py: --require spice: {failed[0]}")


def main(argv: list[str] | None = None) -> None:
    if any(word.startswith("--ablate") for word in (sys.argv[1:] if argv is None else argv)):
        sys.exit("eval.py: now: python -m experiments.ablate NAME ... (--ckpt, --shards as here)")
    args = arguments().parse_args(argv)
    evaluation = evaluation_of(args)
    columns, spice = columns_of(args, evaluation), find_spice(evaluation, bool(args.require))
    if args.compare:
        compare(evaluation, *args.compare, spice)
    else:
        evaluate(evaluation, columns, spice, args)
    evaluation.ranks.close()


if __name__ == "__main__":
    try:
        main()
    except (DataError, SpiceMissing) as error:
        sys.exit(f"eval.py: {error}")
