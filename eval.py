"""Score a trained MATS on every benchmark, over every bridge, beside chance, CLAP and the paper.

    python eval.py                                                  the tiny world, once trained
    python eval.py --ckpt out/mats_gpt2/model --shards data/bench   the paper's benchmarks
    python eval.py --ckpt user/name --shards data/bench             a model on the hub
    torchrun --nproc_per_node=2 eval.py ...                         the same scores on two GPUs
    python eval.py --score                                          score stored predictions again
    python eval.py --compare none santa                             paired tests: is santa better?

Four steps: encode the audio -> bridge -> generate -> score. Each leaves its result in `--out`:
vectors/, a file of predictions for each bridge and benchmark with all that is needed to score it,
results.json, report.md, report.html and results.png. A run that was stopped resumes. A benchmark
that cannot be scored is named, and the exit status is then 1; the others are scored. The column
`text` is the ceiling: MATS given the vector of the clip's true text instead of its audio.
"""

import argparse
import math
import os
import sys
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # or a busy CPU slows down tenfold

import torch
from torch import Tensor
from tqdm import tqdm

from disk import DataError, command, read_json, sha256, write_atomic
from distributed import Ranks, progress
from distributed.parts import Parts, json_lines, readable_lines, whole_lines
from hub import find_model, is_on_hub
from santa import BRIDGES, RELEASED_NORM, bridge, gap, noise_cosine, noise_variance
from scoring import judge, report
from scoring.encoding import encode
from scoring.evaluation import DECODING, Evaluation, digest
from scoring.matching import steps
from scoring.results import describe, trained_variance, write
from scoring.spice import Spice, SpiceMissing
from scoring.statistics import Score
from scoring.tasks import (
    BENCHMARKS,
    Context,
    captions,
    chance,
    compared,
    deaf,
    measure,
    people,
    summaries,
    unfit,
)

COLUMNS = ("text", "none", "nearest", "memory", "projection", "shift", "santa")  # of a plain run
NO_TEXT = "column text needs samples whose text is known, and these have only audio"


# 1. encode: scoring/encoding.py

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
    settle(evaluation)
    means = [encode(evaluation, name).audio.mean(0) for name in evaluation.names]
    return torch.stack(means).mean(0)


def settle(evaluation: Evaluation) -> None:
    """Encodes all benchmarks; those that cannot be encoded are left out (Evaluation.tolerating)."""
    for name in list(evaluation.names):
        with evaluation.tolerating(name):
            encode(evaluation, name)


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
    if column == "shift":
        settle(evaluation)  # its file is named after all benchmarks that have audio
    path, rows = evaluation.predictions(name, column), encode(evaluation, name).rows
    said = stored_answers(evaluation, rows, path) if path.exists() else {}
    evaluation.ranks.barrier()  # before one process mends a file that another reads
    if len(said) < len(rows):
        answer(evaluation, name, column, over, path, said)
        said = stored_answers(evaluation, rows, path)
    return [{**row, "prediction": said[i]} for i, row in enumerate(rows)]


def stored_answers(evaluation: Evaluation, rows: list[dict], path: Path) -> dict[int, str]:
    """{place in rows: prediction} of a file of predictions. Lines that are damaged are named."""
    lines, broken = readable_lines(path)
    lines = [line for line in lines if is_answer(line)]
    said = report.keyed(lines)
    found = {i: said[key]["prediction"] for i, key in enumerate(report.keyed(rows)) if key in said}
    if len(found) < len(rows):
        missing = f"{len(rows) - len(found):,} of {len(rows):,} answers cannot be read"
        where = f" (the first damaged line is {broken[0]})" if broken else ""
        if evaluation.stored_only:
            raise DataError(f"{path}: {missing}{where}; without --score they are made again")
        if evaluation.ranks.master:
            print(f"{path}: {missing}{where}; they are made again", file=sys.stderr)
    return found


def is_answer(line: dict) -> bool:
    """Whether a line has the fields by which answers are joined and scored."""
    texts = isinstance(line.get("instruction"), str) and isinstance(line.get("prediction"), str)
    return texts and isinstance(line.get("id"), str | int)


def save_answers(answers: dict[int, str], path: Path) -> None:
    write_atomic(path, json_lines({"i": i, "prediction": said} for i, said in answers.items()))


def load_answers(path: Path) -> dict[int, str]:
    found = {}
    for line in whole_lines(path):
        i, said = line.get("i"), line.get("prediction")
        if not isinstance(i, int) or not isinstance(said, str):
            raise DataError(f"{path} holds a line that is no answer")
        found[i] = said
    return found


def answer(
    evaluation: Evaluation,
    name: str,
    column: str,
    over: Callable | None,
    path: Path,
    known: dict[int, str],
) -> None:
    """Writes the file of predictions. known: {place: answer} of those that need not be made."""
    rows, ranks = encode(evaluation, name).rows, evaluation.ranks
    parts = Parts(path, ranks, save_answers, load_answers)
    missing = set(range(len(rows))) - parts.merged().keys() - known.keys()
    ranks.barrier()
    share = sorted(missing, key=lambda i: len(rows[i]["instruction"]))[ranks.rank :: ranks.size]
    z = cross(evaluation, name, column, over)
    bar = progress(f"{name}, {column}", len(share), "answers", ranks)
    for start in range(0, len(share), evaluation.batch):
        at = share[start : start + evaluation.batch]
        asked = [rows[i]["instruction"] for i in at]
        tags = [(rows[i].get("tag") or "") if evaluation.tags else "" for i in at]
        try:
            said = evaluation.model.generate(
                z[at], asked, tags, evaluation.batch, **evaluation.made.decoding
            )
        except ValueError as error:  # a question that does not fit the model, an unknown keyword
            raise DataError(f"{name}: {error}{named_row(evaluation, rows, at)}") from error
        except (TypeError, ArithmeticError) as error:
            if not evaluation.made.decoding:
                raise
            raise DataError(f"--decoding: transformers' generate refuses it: {error}") from error
        parts.add(dict(zip(at, said)))
        bar.update(len(at))
    bar.close()
    ranks.barrier()
    if ranks.master:
        said = parts.merged() | known
        lines = json_lines({**row, "prediction": said[i]} for i, row in enumerate(rows))
        write_atomic(path, lines)
        parts.remove()
    ranks.barrier()


def named_row(evaluation: Evaluation, rows: list[dict], at: list[int]) -> str:
    """Which of these rows has a question that is too long, if one has."""
    for i in at:
        try:
            evaluation.model.template.prompts([rows[i]["instruction"]], [rows[i].get("tag") or ""])
        except DataError:
            return f" (sample {rows[i]['id']!r})"
    return ""


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
    rows = encode(evaluation, name).rows
    said = stored_answers(evaluation, rows, evaluation.predictions(name, column))
    rows = [{**row, "prediction": said[i]} for i, row in enumerate(rows)]
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
    predictions, coming = {}, {}
    try:
        if evaluation.ranks.size == 1:
            coming = in_background(lambda name: encode(evaluation, name), evaluation.names)
        for name in list(evaluation.names):
            with evaluation.tolerating(name):
                if coming:
                    coming[name].result()
                found = encode(evaluation, name)
                for column in columns:
                    if column != "text" or found.text is not None:
                        predictions[column, name] = generate(evaluation, name, column)
    except BaseException:
        evaluation.stopping.set()
        raise
    predictions = {key: said for key, said in predictions.items() if key[1] in evaluation.names}
    if not predictions:
        raise DataError(f"nothing to score: {NO_TEXT}")
    return predictions


def in_background(function: Callable, items: list[str]) -> dict[str, Future]:
    """function(item) of each item, one after the other, in a thread."""
    coming = {item: Future() for item in items}

    def work():
        for item, future in coming.items():
            try:
                future.set_result(function(item))
            except BaseException as error:  # raised again by whoever wants the result
                future.set_exception(error)

    Thread(target=work).start()
    return coming


class Scored(NamedTuple):
    """One benchmark's scores."""

    chance: dict[str, float]
    human: dict  # as `summaries` gives them
    clap: dict
    columns: dict[str, dict[str, Score]]
    deaf: dict[str, int]  # column -> clips with the same answer to the same question


def score_benchmark(
    evaluation: Evaluation, name: str, columns: list[str], predictions: dict, spice
) -> Scored:
    rows = encode(evaluation, name).rows
    said = {
        column: predictions[column, name] for column in columns if (column, name) in predictions
    }
    human = {}
    if evaluation.human:
        human = summaries(people(name, rows, context(evaluation, name, spice)))
    return Scored(
        chance(name, rows, context(evaluation, name)),
        human,
        zero_shot(evaluation, name),
        {
            column: measure(name, part, context(evaluation, name, spice, column))
            for column, part in said.items()
        },
        {column: count for column, part in said.items() if (count := deaf(part))},
    )


def score(
    evaluation: Evaluation, columns: list[str], predictions: dict, spice
) -> tuple[dict, dict]:
    """(results for the report, {(column, benchmark): {metric: Score}})."""
    found = {}
    for name in tqdm(list(evaluation.names), desc="score", leave=False):
        with evaluation.tolerating(name):
            found[name] = score_benchmark(evaluation, name, columns, predictions, spice)
    n = {name: len(encode(evaluation, name).rows) for name in found}
    results, measured = describe(evaluation, columns, n), {}
    results["gap"] = measured_gap(evaluation)
    for name, scored in found.items():
        results["chance"][name], results["clap"][name] = scored.chance, scored.clap
        if scored.human:
            results["human"][name] = scored.human
        if scored.deaf:
            results["deaf"][name] = scored.deaf
        for column, scores in scored.columns.items():
            measured[column, name] = scores
            results["columns"][column][name] = summaries(scores)
            results["headline"][name] = next(iter(scores))
    last = results["columns"][columns[-1]]
    for name in last:
        values = {metric: cell["value"] for metric, cell in last[name].items()}
        interval = last[name][results["headline"][name]]["ci95"]
        of = {"n": results["n"][name], "clips": results["clips"][name]}
        results["benchmarks"][name] = values | of | {"ci95": interval}
    return results, measured


# --- the command line ---------------------------------------------------------------------------


def find_spice(evaluation: Evaluation, required: bool = False, cache: str = ""):
    """A Spice where a benchmark wants one, or why there is none, which is said.

    cache: a folder, or "off"; empty: the user's. The master alone scores, so it never waits for
    other processes. Raises SpiceMissing where it is required.
    """
    if not required and not any(BENCHMARKS[name].metrics is captions for name in evaluation.names):
        return None
    try:
        return Spice(cache=cache != "off" and (cache or True), sync_on_compute=False)
    except SpiceMissing as missing:
        if required:
            raise
        if evaluation.ranks.master:
            print(f"without SPICE and SPIDEr: {missing}", file=sys.stderr)
        return str(missing)


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
    for name in list(names):
        with evaluation.tolerating(name):
            rows = [
                predictions_of(name, Path(x)) if stored else generate(evaluation, name, x)
                for x in (a, b)
            ]
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


def predictions_of(name: str, path: Path) -> list[dict]:
    """The rows of a file of predictions. Raises DataError where it is none."""
    rows = whole_lines(path)
    if not rows:
        raise DataError(f"{path} holds no predictions")
    for number, row in enumerate(rows, 1):
        problem = unfit(name, row)
        if problem or not isinstance(row.get("prediction"), str):
            raise DataError(f"{path}, line {number}: {problem or 'it has no prediction'}")
    return rows


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
    ckpt = "a model as train.py writes it, or one on the hub: user/name or user/name@revision"
    add("--ckpt", default="out/tiny/model", help=ckpt)
    clap = "instead of the CLAP that the model names; needed where that is module:factory"
    add("--clap", default="", help=clap)
    add("--shards", default="data/tiny/test", help="folder with a folder of shards per benchmark")
    add("--bench", default="all", help="comma-separated, or all that are found")
    add(
        "--columns",
        help="text and bridges (santa.BRIDGES), comma-separated, the last is the headline; "
        f"default: {','.join(COLUMNS)}",
    )
    add("--out", help="default: eval/ beside the model; of one on the hub, out/user--name/eval")
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
    people = "captions: also people against people, each reference against the clip's others"
    add("--human", action="store_true", help=people)
    cache = "folder for SPICE's parses, in place of the user's; off: parse all anew"
    add("--spice-cache", default="", metavar="FOLDER", help=cache)
    add("--require", choices=("spice",), help="stop where SPICE cannot run; default: leave it out")
    add("--batch", type=int, default=128)
    add("--score", action="store_true", help="only score the stored predictions again")
    compared = "paired tests between two columns, or two files of predictions"
    add("--compare", nargs=2, metavar=("A", "B"), help=compared)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def evaluation_of(args: argparse.Namespace, tolerant: bool = False) -> Evaluation:
    if args.batch < 1:
        raise DataError(f"--batch {args.batch}: expected 1 or more")
    # Processes exchange files and barriers alone. One may wait for days while another trains.
    ranks = Ranks.start(args.device, timedelta(days=7), backend="gloo")
    ckpt, on_hub = find_model(args.ckpt), is_on_hub(args.ckpt)
    beside = Path("out", args.ckpt.replace("/", "--")) if on_hub else ckpt.parent
    return Evaluation(
        ckpt=ckpt,
        shards=Path(args.shards),
        out=Path(args.out) if args.out else beside / "eval",
        ranks=ranks,
        bench=args.bench,
        crop=args.crop,
        tags=args.tags == "on",
        decoding=args.decoding,
        match=args.match,
        template=args.label_template,
        judge=args.judge,
        batch=args.batch,
        tolerant=tolerant,
        stored_only=args.score,
        encoder=args.clap,
        title=args.ckpt if on_hub else "",
        human=args.human,
    )


def columns_of(args: argparse.Namespace, evaluation: Evaluation) -> list[str]:
    if args.columns:
        columns = args.columns.replace(" ", "").split(",")
        check_columns(columns)
        bare = [column for column in columns if column not in ("text", "none", "santa-mb")]
        if bare and not (evaluation.ckpt / "santa.safetensors").exists():
            raise DataError(
                f"--columns {','.join(bare)}: {evaluation.ckpt} has no memory of texts; "
                "--columns text,none"
            )
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
    human = ["human"] if evaluation.human else []
    engine = isinstance(spice, Spice) and ["tokens", spice.settings.java.parses, spice.engine]
    return digest(columns, evaluation.keys, *scored, engine, *human)


def require_stored(evaluation: Evaluation, columns: list[str]) -> None:
    for name in list(evaluation.names):
        with evaluation.tolerating(name):
            for column in columns:
                if column != "text" and not evaluation.predictions(name, column).exists():
                    raise DataError(
                        f"--score: no stored predictions for {name} with {column} from this model "
                        "and these settings"
                    )


def evaluate(evaluation: Evaluation, columns: list[str], spice, args: argparse.Namespace) -> None:
    """The four steps, and the report; nothing where nothing has changed since the last one."""
    key = result_key(evaluation, columns, spice)
    if args.score:
        require_stored(evaluation, columns)
    elif table := unchanged(evaluation, key):
        evaluation.ranks.say(
            f"{table}\n\nnothing has changed since this was written to {evaluation.out}"
        )
        return
    predictions = predict(evaluation, columns)
    if not evaluation.ranks.master:
        return
    results, measured = score(evaluation, columns, predictions, spice)
    predictions = {at: said for at, said in predictions.items() if at in measured}
    columns_and_people = (*results["columns"].values(), results.get("human") or {})
    cells = [cell for column in columns_and_people for cell in column.values()]
    failed = [cell["SPICE"]["why"] for cell in cells if cell.get("SPICE", {}).get("why")]
    # else the same command tries again
    is_complete = not evaluation.failed and not (failed and isinstance(spice, Spice))
    complete = {"key": key} if is_complete else {}
    write(evaluation, complete | results, predictions, measured)
    print(report.summary(results))
    print(f"\nreport, plot and predictions: {evaluation.out} (open report.html)")
    if args.require and failed:
        sys.exit(f"eval.py: --require spice: {failed[0]}")


def unchanged(evaluation: Evaluation, key: str) -> str:
    """The stored results in words, where they are those of this key; else empty."""
    stored = evaluation.out / "results.json"
    made = (stored, *(evaluation.out / f"report.{kind}" for kind in ("md", "html")))
    if evaluation.failed or not all(path.exists() for path in made):
        return ""
    try:
        results = read_json(stored)
        return report.summary(results) if results.get("key") == key else ""
    except (DataError, KeyError, TypeError, AttributeError) as error:
        print(
            f"{stored} was not written by this version ({error}); it is made again", file=sys.stderr
        )
        return ""


def main(argv: list[str] | None = None) -> None:
    if any(word.startswith("--ablate") for word in (sys.argv[1:] if argv is None else argv)):
        sys.exit("eval.py: now: python -m experiments.ablate NAME ... (--ckpt, --shards as here)")
    args = arguments().parse_args(argv)
    evaluation = evaluation_of(args, tolerant=True)
    columns = columns_of(args, evaluation)
    spice = find_spice(evaluation, bool(args.require), args.spice_cache)
    if args.compare:
        compare(evaluation, *args.compare, spice)
    else:
        evaluate(evaluation, columns, spice, args)
    evaluation.ranks.close()
    if evaluation.failed:
        reasons = "; ".join(f"{name}: {why}" for name, why in evaluation.failed.items())
        raise DataError(f"not scored, unlike the others: {reasons}")


if __name__ == "__main__":
    with command("eval.py"):
        try:
            main()
        except SpiceMissing as error:
            raise DataError(error) from error
