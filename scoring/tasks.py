"""The benchmarks: how each turns its rows with predictions into scores, by the field's protocols.

    BENCHMARKS                           name -> title and metrics; a new benchmark is one line
    measure(benchmark, rows, context)    {metric: Score}, the headline first
    summaries(measured)                  {metric: {"value", "ci95"}}, as in results.json
    compared(measured, others)           {metric: paired test}
    chance(benchmark, rows, context)     {metric: value} of answers that did not listen
    unfit(benchmark, row)                why a row cannot be used, before it is
    people(benchmark, rows, context)     {metric: Score} of people against people, for captions
    deaf(rows)                           how many clips got the same answer to the same question

A metric is a function of rows and `Context`. It returns a kind of Score (scoring/statistics.py),
so that one pass gives the value, its interval, and all that a paired test needs. Where the field's
tables mix several rules, all are computed, such as ACC (majority), ACC (rows), ACC (unanimous).
"""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torchmetrics.text import ROUGEScore, SacreBLEUScore

from data import check, is_list, normal
from disk import DataError
from scoring import captions as coco
from scoring.matching import (
    classes_in,
    one_class,
    ranked_classes,
    references,
    several_classes,
    share_of_positives,
    uniform_class,
)
from scoring.statistics import Mean, Missing, Ratio, Score, Value, paired, quotient, steady


@dataclass
class Context:
    """What metrics need beside the rows."""

    labels: list[str] | None = None  # classes, in the benchmark's order
    # Text matching: name -> (list of str -> (n, D) unit rows). The first is the headline.
    encoders: dict[str, Callable[[list[str]], Tensor]] = field(default_factory=dict)
    template: str = "sound of {}"  # text matching: what is encoded for a label
    scores: Tensor | None = None  # (n, C) similarities in place of text matching: CLAP's zero-shot
    spice: object = None  # scoring.spice.Spice, or a str: why there is none
    # (id, question) -> the judge's score of the answer
    verdicts: dict[tuple[str, str], float] = field(default_factory=dict)


# --- questions ----------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    return re.findall(r"\b\w+\b", text.lower())


def is_yes_no(answer: str) -> bool:
    return words(answer) in (["yes"], ["no"])


def says(prediction: str, answer: str) -> bool:
    """Whether the words are the answer's, in order. For yes and no the first word counts."""
    said, wanted = words(prediction), words(answer)
    return said[:1] == wanted if is_yes_no(answer) else said == wanted


def yes_no(rows, context):
    return {"B-ACC": Mean([says(row["prediction"], references(row)[0]) for row in rows])}


def exact(rows, context):
    right = [any(says(row["prediction"], answer) for answer in references(row)) for row in rows]
    return {"EM": Mean(right), "ROUGE-L": rouge(rows)}


def clothoaqa(rows, context):
    """ClothoAQA's three rules, with three annotators' answers a question.

    majority: the answer of two, where two agree. rows: each answer by itself. unanimous: where all
    agree. B-ACC is the same on those whose answer is yes or no.
    """
    for row in rows:
        if len(references(row)) != 3:
            raise DataError(
                f"ClothoAQA: {row['id']!r} has {len(references(row))} answers, "
                "not its three annotators'"
            )
    answers = [references(row) for row in rows]
    binary = [[answer for answer in given if is_yes_no(answer)] for given in answers]
    each = {"ACC (rows)": each_answer(rows, answers), "B-ACC (rows)": each_answer(rows, binary)}
    return agreed(rows, "majority", 2) | each | agreed(rows, "unanimous", 3)


def agreed(rows, rule: str, annotators: int) -> dict[str, Mean]:
    """Whether a prediction says the commonest answer, where so many annotators gave it."""
    votes = [Counter(map(str.lower, references(row))).most_common(1)[0] for row in rows]
    right = [says(row["prediction"], answer) for row, (answer, _) in zip(rows, votes)]
    agree = [count >= annotators for _, count in votes]
    binary = [count >= annotators and is_yes_no(answer) for answer, count in votes]
    return {f"ACC ({rule})": Mean(right, agree), f"B-ACC ({rule})": Mean(right, binary)}


def each_answer(rows, answers: list[list[str]]) -> Ratio:
    """How many of these answers, any number to a row, the predictions say."""
    statistics = []
    for row, given in zip(rows, answers):
        statistics.append([sum(says(row["prediction"], answer) for answer in given), len(given)])
    return Ratio(torch.tensor(statistics).double(), quotient)


def commonest_answer(rows):
    answers = Counter(answer.lower() for row in rows for answer in references(row))
    return [answers.most_common(1)[0][0]] * len(rows)


def chooses_right(row: dict) -> bool:
    """MMAU's rule: all words of the answer are in the prediction, and none of a wrong choice.

    Words that a wrong choice shares with the answer do not count against it.
    """
    said, answer = set(words(row["prediction"])), set(words(references(row)[0]))
    wrong = set().union(*map(words, row["choices"])) - answer
    return bool(said) and answer <= said and not said & wrong


def multiple_choice(rows, context):
    right, kinds = [chooses_right(row) for row in rows], [row.get("category") for row in rows]
    scores = {"MC-ACC": Mean(right)}
    for kind in sorted({kind for kind in kinds if kind}):
        scores[f"MC-ACC ({kind})"] = Mean(right, [k == kind for k in kinds])
    return scores


def uniform_choice(rows, context):
    return {"MC-ACC": float(np.mean([1 / len(row["choices"]) for row in rows]))}


def withheld(rows, context):
    return {"MC-ACC": Missing("the answers are withheld; hand in the submission file")}


def judged(rows, context):
    """AIR-Bench Chat: the judge's score, 1 to 10 (scoring/judge.py), of items that have one."""
    scores = [context.verdicts.get((row["id"], row["instruction"]), math.nan) for row in rows]
    if all(map(math.isnan, scores)):
        why = "no verdicts: python -m scoring.judge on the stored predictions, then eval.py --score"
        return {"GPT4": Missing(why)}
    return {"GPT4": Mean(scores)}


# --- captions -----------------------------------------------------------------------------------


def predictions_and_references(rows):
    return [row["prediction"] for row in rows], [references(row) for row in rows]


def captions(rows, context):
    """coco-caption's CIDEr-D (document frequencies of this whole set), BLEU4, ROUGE-L, and SPICE.

    SPIDEr is the mean of CIDEr-D and SPICE.
    """
    pairs = predictions_and_references(rows)
    cider = steady(coco.cider_d(*pairs))
    return {
        "CIDEr-D": Mean(cider),
        "BLEU4": Ratio(coco.bleu_counts(*pairs), lambda sums: steady(coco.bleu(sums)[..., 3])),
        "ROUGE-L": Mean(coco.rouge_l(*pairs)),
    } | spice_scores(rows, context.spice, cider)


def spice_scores(rows, spice, cider: Tensor) -> dict[str, Score]:
    """SPICE and SPIDEr, and which rows could not be parsed; or why there are none."""
    if spice is None or isinstance(spice, str):
        missing = Missing(spice or "SPICE is not at hand")
        return {"SPICE": missing, "SPIDEr": missing}
    pairs = predictions_and_references(rows)
    try:
        items = spice.per_item(*pairs)
        if items is not None:
            scores = {"SPICE": Mean(items), "SPIDEr": Mean((cider + items) / 2)}
        else:
            spice.update(*pairs)  # this Java prints the mean alone
            mean = float(spice.compute())
            spice.reset()
            scores = {"SPICE": Value(mean), "SPIDEr": Value((float(cider.mean()) + mean) / 2)}
    except RuntimeError as error:  # all other scores are worth having
        missing = Missing(str(error))
        return {"SPICE": missing, "SPIDEr": missing}
    for score in scores.values():
        score.unparsed = tuple(str(rows[i]["id"]) for i in getattr(spice, "unparsed", ()))
    return scores


def rouge(rows) -> Mean:
    """ROUGE-L F1 against the best reference (rouge_score's convention, as in LP-MusicCaps)."""
    metric = ROUGEScore(rouge_keys="rougeL", accumulate="best")
    metric.update(*predictions_and_references(rows))
    return Mean(torch.cat([torch.as_tensor(f1).view(1) for f1 in metric.rougeL_fmeasure]))


def bleu(rows) -> Ratio:
    """Corpus BLEU-4 with sacrebleu's 13a tokenizer (LP-MusicCaps' convention)."""
    statistics, metric = [], SacreBLEUScore(n_gram=4, tokenize="13a")
    for row in rows:
        metric.reset()
        metric.update([row["prediction"]], [references(row)])
        lengths = metric.preds_len.view(1), metric.target_len.view(1)
        statistics.append(torch.cat([metric.numerator, metric.denominator, *lengths]))
    return Ratio(torch.stack(statistics).double(), bleu_of)


def bleu_of(sums: Tensor) -> Tensor:
    """BLEU-4 (...) of matches and n-grams of four orders, and two lengths (..., 10)."""
    matches, grams, (length, reference) = sums[..., :4], sums[..., 4:8], sums[..., 8:].unbind(-1)
    brevity = (1 - reference / length.clamp(min=1e-9)).clamp(max=0).exp()
    precision = (matches / grams).log().mean(-1).exp()
    return steady(torch.where(matches.min(-1).values > 0, brevity * precision, 0.0))


def plain_captions(rows, context):
    return {"ROUGE-L": rouge(rows), "BLEU4": bleu(rows)}


def music_captions(rows, context):
    return {"BLEU4": bleu(rows), "ROUGE-L": rouge(rows)}


def people(benchmark: str, rows: list[dict], context: Context) -> dict[str, Score]:
    """{metric: Score} of people against people: each reference of a clip against its others.

    The mean over all rotations, by their clips; CIDEr-D's document frequencies are those of each
    rotation. {} where the benchmark is not of captions, or no clip has two references.
    """
    turns = rotations(rows) if BENCHMARKS[benchmark].metrics is captions else []
    measured = [captions(turn, context) for turn in turns]
    sizes = [len(turn) for turn in turns]
    if not turns:
        return {}
    return {
        metric: averaged([found[metric] for found in measured], sizes) for metric in measured[0]
    }


def rotations(rows: list[dict]) -> list[list[dict]]:
    """Rotation k: the rows with reference k as prediction, and the others as references."""
    turns = []
    for k in range(max((len(references(row)) for row in rows), default=0)):
        turn = []
        for row in rows:
            known = references(row)
            if k < len(known) and len(known) > 1:
                turn.append(row | {"prediction": known[k], "answer": known[:k] + known[k + 1 :]})
        turns += [turn] if turn else []
    return turns


def averaged(scores: list[Score], sizes: list[int]) -> Score:
    """The mean of scores of so many rows each; or why one is missing."""
    for score in scores:
        if score.value is None:
            return Missing(score.why)
    found = Value(float(np.average([score.value for score in scores], weights=sizes)))
    found.unparsed = tuple(dict.fromkeys(id for score in scores for id in score.unparsed))
    return found


def another_reference(rows):
    return [references(row)[0] for row in rows[1:] + rows[:1]]


# --- the table ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Benchmark:
    title: str
    metrics: Callable  # (rows, context) -> {metric: Score}, the headline first

    @property
    def classes(self) -> bool:
        """Whether predictions are matched to classes, which labels.json lists."""
        return self.metrics in (one_class, several_classes, ranked_classes)


# To add a benchmark: a folder of shards by this name, with labels.json where there are classes,
# and a line here.
BENCHMARKS = {
    # the synthetic world's
    "sound": Benchmark("sound classification", one_class),
    "music": Benchmark("instrument classification", one_class),
    "events": Benchmark("sound events, multi-label", ranked_classes),
    "caption": Benchmark("sound captions", plain_captions),
    "music_caption": Benchmark("music captions", plain_captions),
    "yesno": Benchmark("yes/no questions", yes_no),
    "open": Benchmark("open questions", exact),
    "mcq": Benchmark("multiple choice", multiple_choice),
    # shards/benchmarks.py's: Table S7, and four more
    "esc50": Benchmark("ESC-50", one_class),
    "fsd50k": Benchmark("FSD50K", ranked_classes),
    "dcase2017": Benchmark("DCASE2017 task 4", several_classes),
    "tut2017": Benchmark("TUT 2017", one_class),
    "vggsound": Benchmark("VGGSound", one_class),
    "urbansound8k": Benchmark("UrbanSound8K", one_class),
    "vocalsound": Benchmark("VocalSound", one_class),
    "cremad": Benchmark("CREMA-D", one_class),
    "ravdess": Benchmark("RAVDESS", one_class),
    "sesa": Benchmark("SESA", one_class),
    "gtzan": Benchmark("GTZAN", one_class),
    "gtzan_filtered": Benchmark("GTZAN, fault-filtered", one_class),
    "beijing_opera": Benchmark("Beijing Opera", one_class),
    "audiocaps": Benchmark("AudioCaps", captions),
    "clotho": Benchmark("Clotho v2", captions),
    "musiccaps": Benchmark("MusicCaps", music_captions),
    "clothoaqa": Benchmark("ClothoAQA", clothoaqa),
    "airbench_sound": Benchmark("AIR-Bench Chat, sound", judged),
    "airbench_music": Benchmark("AIR-Bench Chat, music", judged),
    "mmau_mini": Benchmark("MMAU test-mini", multiple_choice),
    "mmau": Benchmark("MMAU test", withheld),
}


# Answers that did not listen: (rows, context) -> {metric: value} of a uniform guess, or
# rows -> predictions, which are scored like others.
UNIFORM = {
    one_class: uniform_class,
    several_classes: uniform_class,
    ranked_classes: share_of_positives,
    multiple_choice: uniform_choice,
}
GUESSES = {
    yes_no: commonest_answer,
    clothoaqa: commonest_answer,
    exact: another_reference,
    captions: another_reference,
    plain_captions: another_reference,
    music_captions: another_reference,
}


def unfit(benchmark: str, row: dict, labels: list[str] | None = None) -> str:
    """Why a row cannot be asked or scored; empty where it can. labels: of its classes."""
    try:
        check(row)
    except DataError as error:
        return str(error)
    metrics = BENCHMARKS[benchmark].metrics
    if not isinstance(row.get("category"), str | None):
        return f"its category is {row['category']!r}, no text"
    if "labels" in row and not (row["labels"] and is_list(row["labels"], str)):
        return f"its labels are {row['labels']!r}, no list of texts"
    if metrics in (multiple_choice, withheld) and not row.get("choices"):
        return "it has no choices"
    if metrics is withheld:
        return ""
    if not references(row)[0]:
        return "its answer is empty"
    if labels and BENCHMARKS[benchmark].classes and not classes_in(row, labels).any():
        return f"its answer, {references(row)[0]!r:.80}, is none of the classes in labels.json"
    if metrics is multiple_choice and normal(references(row)[0]) not in map(normal, row["choices"]):
        return f"its answer, {row['answer']!r}, is none of its choices"
    return ""


FEW = 10  # clips whose equal answers are still no sign of anything


def deaf(rows: list[dict]) -> int:
    """How many clips got the same answer to the same question; 0: the model listens.

    Counted are questions that are asked of FEW clips or more whose true answers differ. One of them
    with two different answers is enough to listen.
    """
    asked = defaultdict(list)
    for row in rows:
        asked[row["instruction"]].append(row)
    if all(len(clips_of(same)) < FEW for same in asked.values()):
        asked = {"": rows}  # each clip has a question of its own: one answer to all is telling
    counted = set()
    for same in asked.values():
        clips, truths = clips_of(same), {json.dumps(references(row)) for row in same}
        if len(clips) >= FEW and len(truths) > 1:
            if len({row["prediction"] for row in same}) > 1:
                return 0
            counted |= clips
    return len(counted)


def clips_of(rows: list[dict]) -> set:
    return {row.get("clip", row["id"]) for row in rows}


def measure(benchmark: str, rows: list[dict], context: Context) -> dict[str, Score]:
    """{metric: Score} of rows with predictions, the headline first.

    Raises DataError where a row does not fit the benchmark.
    """
    try:
        return BENCHMARKS[benchmark].metrics(rows, context)
    except DataError as error:
        raise DataError(f"{benchmark}: {error}") from error


def summaries(measured: dict[str, Score]) -> dict[str, dict]:
    """{metric: {"value": float or None, "ci95": [low, high] or None}}, "why" beside a None."""
    return {metric: score.summary() for metric, score in measured.items()}


def compared(a: dict[str, Score], b: dict[str, Score]) -> dict[str, dict | str]:
    """Is b above a, measured on the same items? {metric: a paired test with "n", or why none}."""
    tests = {metric: paired(b[metric], score) for metric, score in a.items()}
    return {
        metric: test if isinstance(test, str) else test | {"n": a[metric].n}
        for metric, test in tests.items()
    }


def chance(benchmark: str, rows: list[dict], context: Context) -> dict[str, float]:
    """{metric: value} of answers that did not listen; {} where none make sense.

    That is a uniform guess among classes or choices, the share of positives for mAP, the commonest
    answer to questions, and another clip's first reference for captions.
    """
    metrics = BENCHMARKS[benchmark].metrics
    if metrics in UNIFORM:
        return UNIFORM[metrics](rows, context)
    scores = guessed(benchmark, rows, context)
    return {metric: score.value for metric, score in scores.items() if score.value is not None}


def guessed(benchmark: str, rows: list[dict], context: Context) -> dict[str, Score]:
    """{metric: Score} of guesses that did not listen; {} where chance is a number, or unknown."""
    metrics = BENCHMARKS[benchmark].metrics
    if metrics not in GUESSES:
        return {}
    said = [row | {"prediction": guess} for row, guess in zip(rows, GUESSES[metrics](rows))]
    return measure(benchmark, said, context)
