"""From scores to files: results.json, report.md, report.html, results.png."""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from data import Source, read_source
from disk import DataError, reading, replacing, write_atomic
from distributed.parts import readable_lines
from santa import Explanation, Santa, bridge
from scoring import report
from scoring.encoding import encode, encoder_that_made
from scoring.evaluation import DECODING, Evaluation
from scoring.tasks import BENCHMARKS


def describe(evaluation: Evaluation, columns: list[str], n: dict[str, int]) -> dict:
    """The results without the scores; n: rows of each benchmark."""
    made = asdict(evaluation.made)
    made["decoding"] = next(
        (name for name, words in DECODING.items() if words == evaluation.made.decoding),
        json.dumps(evaluation.made.decoding),
    )
    return {
        "ckpt": evaluation.title or str(evaluation.ckpt),
        "made": made,
        "encoder": {"name": evaluation.clap_name, **encoder_that_made(evaluation)},
        "notes": notes(evaluation),
        "titles": {name: BENCHMARKS[name].title for name in evaluation.names},
        "n": n,
        "clips": {name: published(evaluation.sources[name]) for name in evaluation.names},
        "failed": dict(evaluation.failed),
        "deaf": {},
        "listening": listening(evaluation.ckpt.parent / "log.jsonl"),
        "gap": {},
        "headline": {},
        "chance": {},
        "human": {},
        "clap": {},
        "columns": {column: {} for column in columns},
        "benchmarks": {},
    }


def published(source: Source) -> int:
    """The size of the whole benchmark; of shards of one's own, their number of samples."""
    size = source.index.get("published")
    return size if isinstance(size, int) else len(source)


def notes(evaluation: Evaluation) -> list[str]:
    encoders = ["CLAP’s text tower" if name == "clap" else name for name in evaluation.encoders]
    lines = [
        f"ACC and mAP: text matching with {' and '.join(encoders)}, "
        f"label template {evaluation.template!r}.",
        "Chance: an answer that did not listen. Intervals: 95 % bootstrap over items; CIDEr-D's "
        "document frequencies are those of the whole set.",
    ]
    if any("mmau" in name for name in evaluation.names):
        lines.append(
            "MMAU's labels are those of the file that the shards were built from; "
            "v05.15.25 differs from the paper's."
        )
    if "clothoaqa" in evaluation.names:
        lines.append("ClothoAQA: the paper's sizes fit the majority rule.")
    if evaluation.human:
        lines.append(
            "Human: each reference against the clip's others, the mean over all rotations. "
            "It has one reference less than the columns."
        )
    if not evaluation.tags:
        lines.append("Without the released code's tags.")
    return lines


def listening(log: Path) -> dict:
    """{"step", "val_loss", "val_loss_other"}: a training run's last validation.

    val_loss_other is the loss with another sample's vector. {} where the log does not have both.
    """
    if not log.is_file():
        return {}
    names = ("step", "val_loss", "val_loss_other")
    for line in reversed(readable_lines(log)[0]):
        if all(isinstance(line.get(name), int | float) for name in names):
            return {name: line[name] for name in names}
    return {}


def trained_variance(ckpt: Path) -> float | None:
    """The variance of the noise in training: the memory's, else that of the run beside the model.

    None where neither is there, or where it cannot be read, which is said.
    """
    memory, state = ckpt / "santa.safetensors", ckpt.parent / "state.pt"
    path = memory if memory.exists() else state
    if not path.exists():
        return None
    try:
        with reading(str(path), "the report says nothing of the noise in training"):
            if path == memory:
                return Santa.hyper(path)["variance"]
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            return state["identity"]["variance"]
    except DataError as error:
        print(error, file=sys.stderr)
        return None


def write(evaluation: Evaluation, results: dict, predictions: dict, measured: dict) -> None:
    """results.json, report.md, report.html, results.png, and MMAU's file to hand in."""
    rows = {}
    for (column, name), said in predictions.items():
        scores = measured[column, name][results["headline"][name]].per_item
        rows[column, name] = said if scores is None else with_scores(said, scores, name)
        if name == "mmau":
            write_submission(evaluation.out / column / "mmau.submission.json", said)
    clips = {}

    def sound(name, row):
        """(extension, bytes) of the row's clip. One pass brings all clips that the page shows."""
        if name not in clips:
            last = [column for column, benchmark in rows if benchmark == name][-1]
            shown = report.choose(rows[last, name], report.SAMPLES, name)
            keys = {row["key"] for row in shown}
            found = read_source(evaluation.sources[name], audio=True)
            clips[name] = {s["key"]: (s["kind"], s["audio"]) for s in found if s["key"] in keys}
        return clips[name].get(row["key"])

    page = report.html(results, rows, sound, explain=explainer(evaluation, results))
    write_atomic(evaluation.out / "report.md", report.markdown(results).encode(errors="replace"))
    write_atomic(evaluation.out / "report.html", page.encode())
    with replacing(evaluation.out / "results.png") as part:
        report.plot(results, part)
    # last: it says that all is there
    write_json(evaluation.out / "results.json", results)


def explainer(evaluation: Evaluation, results: dict) -> Callable:
    """A function of a benchmark and one of its rows: how Santa moved the clip's vector.

    It gives None where there is no column santa, or where the memory keeps no texts, or cannot be
    read, which is said.
    """
    path, santa = evaluation.ckpt / "santa.safetensors", None
    if "santa" in results["columns"] and path.exists():
        try:
            santa = Santa.load(path)
        except DataError as error:
            print(f"{error}; the report shows no retrieved texts", file=sys.stderr)

    def explain(name: str, row: dict) -> Explanation | None:
        if santa is None or santa.texts is None:
            return None
        found = encode(evaluation, name)
        i = [known["clip"] for known in found.rows].index(row["clip"])
        return bridge("santa", santa).explain(found.audio[i : i + 1], top=3)[1][0]

    return explain


def write_json(path: Path, value) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False)
    write_atomic(path, text.encode("utf-8", "backslashreplace"))


def with_scores(rows: list[dict], scores: Tensor, name: str) -> list[dict]:
    """Each row with its own score, from 0 to 1, where it has one."""
    most = 10 if name.startswith("airbench") else 1  # a judge's
    scored = zip(rows, scores.tolist())
    return [row if math.isnan(s) else {**row, "score": s / most} for row, s in scored]


def write_submission(path: Path, rows: list[dict]) -> None:
    said = [
        {
            "id": row["id"],
            "question": row["instruction"],
            "choices": row["choices"],
            "task": row["category"],
            "model_prediction": row["prediction"],
        }
        for row in rows
    ]
    write_json(path, said)
