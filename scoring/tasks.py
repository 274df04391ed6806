"""From predictions to scores: every benchmark's metrics, under the protocols of the field, each with a bootstrap interval.

    BENCHMARKS      name -> title, how it is scored                                     a new benchmark: one line here
    score           a benchmark's rows with predictions -> {metric: {"value", "ci95"}}
    chance          the same, of answers that did not listen

A metric is a function of rows and `Context`, which returns a Score: one row of statistics an item, and a function from their sum (or from any
resample of them) to the value. So one pass over the predictions gives the value, its interval, and what a paired test needs.
Where the field's tables mix several rules, all are computed; the first is the headline: ACC (majority), ACC (rows), ACC (unanimous).
"""

import re
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
from torchmetrics.text import ROUGEScore, SacreBLEUScore

from data import DataError
from scoring.captions import bleu as coco_bleu, bleu_counts, cider_d, rouge_l
from scoring.matching import accuracy, by_encoder, mean_ap, micro_f1, references, targets_of
from scoring.statistics import Score, paired, share


@dataclass
class Context:
    """What metrics need beside the rows."""

    labels: list = None  # classes, in the benchmark's order
    encoders: dict = field(
        default_factory=dict
    )  # text matching: name -> (list of str -> (n, D) unit rows); the first is the headline
    template: str = "sound of {}"  # text matching: what is encoded for a label
    scores: torch.Tensor = None  # (n, C) similarities in place of text matching: CLAP's zero-shot
    spice: object = None  # scoring.captions.Spice, or a string: why there is none
    verdicts: dict = field(
        default_factory=dict
    )  # (id, question) -> the judge's score of the answer


# --- words ------------------------------------------------------------------------------------------------------------


def words(text):
    return re.findall(r"\b\w+\b", text.lower())


def says(prediction, answer):
    """Right iff the words are the answer's, in order, case and punctuation aside. For yes and no the first word counts."""
    said, wanted = words(prediction), words(answer)
    return said[:1] == wanted if wanted in (["yes"], ["no"]) else said == wanted


# --- questions ----------------------------------------------------------------------------------------------------------


def yes_no(rows, context):
    return {"B-ACC": share([says(r["prediction"], references(r)[0]) for r in rows])}


def exact(rows, context):
    return {
        "EM": share([any(says(r["prediction"], a) for a in references(r)) for r in rows]),
        "ROUGE-L": rouge(rows),
    }


def clothoaqa(rows, context):
    """ClothoAQA's three rules, with three annotators' answers a question. majority: what two of them say, where two agree. rows: each answer
    by itself. unanimous: where all agree. B-ACC is the same on those whose answer is yes or no."""
    for r in rows:
        if len(references(r)) != 3:
            raise DataError(
                f"ClothoAQA: {r['id']!r} has {len(references(r))} answers, not its three annotators'"
            )
    binary = lambda answer: words(answer) in (["yes"], ["no"])
    votes = [Counter(a.lower() for a in references(r)).most_common(1)[0] for r in rows]
    right = [says(r["prediction"], answer) for r, (answer, _) in zip(rows, votes)]
    scores = {}
    for rule, least in (("majority", 2), ("rows", None), ("unanimous", 3)):
        for metric, fits in (("ACC", lambda a: True), ("B-ACC", binary)):
            if least:
                scores[f"{metric} ({rule})"] = share(
                    right, [n >= least and fits(a) for a, n in votes]
                )
            else:
                asked = [[a for a in references(r) if fits(a)] for r in rows]
                scores[f"{metric} ({rule})"] = share(
                    [
                        sum(says(r["prediction"], a) for a in answers)
                        for r, answers in zip(rows, asked)
                    ],
                    [len(answers) for answers in asked],
                )
    return scores


def chosen(row):
    """MMAU's rule: all words of the answer are in the prediction, and none of a wrong choice that the answer lacks."""
    said, answer = set(words(row["prediction"])), set(words(references(row)[0]))
    return answer <= said and not said & (set().union(*(words(c) for c in row["choices"])) - answer)


def multiple_choice(rows, context):
    right, kinds = [chosen(r) for r in rows], [r.get("category") for r in rows]
    return {"MC-ACC": share(right)} | {
        f"MC-ACC ({kind})": share(right, [k == kind for k in kinds])
        for kind in sorted({k for k in kinds if k})
    }


def judged(rows, context):
    """AIR-Bench Chat: the judge's mean score, 1 to 10 (scoring/judge.py). Items without a verdict do not count."""
    scores = [context.verdicts.get((r["id"], r["instruction"])) for r in rows]
    if not any(s is not None for s in scores):
        return {
            "GPT4": "no verdicts: python -m scoring.judge on the stored predictions, then eval.py --score"
        }
    return {"GPT4": share([s or 0.0 for s in scores], [float(s is not None) for s in scores])}


# --- captions -----------------------------------------------------------------------------------------------------------


def told(rows):
    return [r["prediction"] for r in rows], [references(r) for r in rows]


def captions(rows, context):
    """coco-caption's CIDEr-D (document frequencies of this whole set), BLEU4 and ROUGE-L; SPICE, and its mean with CIDEr-D, SPIDEr."""
    cider = cider_d(*told(rows))
    each = lambda s: Score(torch.stack([s.double(), torch.ones(len(s), dtype=torch.float64)], 1))
    scores = {
        "CIDEr-D": each(cider),
        "BLEU4": Score(bleu_counts(*told(rows)), lambda s: coco_bleu(s)[..., 3]),
        "ROUGE-L": each(rouge_l(*told(rows))),
    }
    spice = context.spice or "SPICE is not at hand"
    if isinstance(spice, str):
        return scores | {"SPICE": spice, "SPIDEr": spice}
    try:
        items = spice.per_item(*told(rows))
        if items is None:  # this Java prints the mean alone
            spice.update(*told(rows))
            mean = float(spice.compute())
            spice.reset()
            return scores | {"SPICE": mean, "SPIDEr": (float(cider.mean()) + mean) / 2}
    except RuntimeError as e:  # all other scores are worth having
        return scores | {"SPICE": str(e), "SPIDEr": str(e)}
    return scores | {"SPICE": each(items), "SPIDEr": each((cider + items) / 2)}


def rouge(rows):
    """ROUGE-L F1 against the best reference (rouge_score's convention, as LP-MusicCaps reports it)."""
    metric = ROUGEScore(rouge_keys="rougeL", accumulate="best")
    metric.update(*told(rows))
    scores = torch.stack([torch.as_tensor(f) for f in metric.rougeL_fmeasure]).double().flatten()
    return Score(torch.stack([scores, torch.ones_like(scores)], 1))


def bleu(rows):
    """Corpus BLEU-4 with sacrebleu's 13a tokenizer (LP-MusicCaps' convention)."""
    stats = []
    for r in rows:
        metric = SacreBLEUScore(n_gram=4, tokenize="13a")
        metric.update([r["prediction"]], [references(r)])
        stats.append(
            torch.cat(
                [
                    metric.numerator,
                    metric.denominator,
                    metric.preds_len.view(1),
                    metric.target_len.view(1),
                ]
            )
        )

    def value(s):
        """BLEU of summed counts (..., 10): matches and n-grams of four orders, lengths of predictions and references."""
        brevity = (1 - s[..., 9] / s[..., 8].clamp(min=1e-9)).clamp(max=0).exp()
        return torch.where(
            s[..., :4].min(-1).values > 0,
            brevity * (s[..., :4] / s[..., 4:8]).log().mean(-1).exp(),
            0.0,
        )

    return Score(torch.stack(stats).double(), value)


def plain_captions(rows, context):
    return {"ROUGE-L": rouge(rows), "BLEU4": bleu(rows)}


def music_captions(rows, context):
    return {"BLEU4": bleu(rows), "ROUGE-L": rouge(rows)}


# --- the table ------------------------------------------------------------------------------------------------------------


@dataclass
class Benchmark:
    title: str
    metrics: object  # (rows, context) -> {name: Score, or a value without interval, or a str: why there is none}; the first is the headline

    @property
    def classes(self):
        """Whether predictions are matched to classes, which labels.json lists."""
        return self.metrics in (ACC, MAP, several_labels)


ACC, MAP = by_encoder("ACC", accuracy), by_encoder("mAP", mean_ap)
F1 = by_encoder("micro-F1", micro_f1)


def several_labels(rows, context):
    """DCASE2017's two rules."""
    return ACC(rows, context) | F1(rows, context)


# To add a benchmark: a folder of shards by this name (with labels.json where text is matched to classes), and a line here.
BENCHMARKS = {
    # the synthetic world's
    "sound": Benchmark("sound classification", ACC),
    "music": Benchmark("instrument classification", ACC),
    "events": Benchmark("sound events, multi-label", MAP),
    "caption": Benchmark("sound captions", plain_captions),
    "music_caption": Benchmark("music captions", plain_captions),
    "yesno": Benchmark("yes/no questions", yes_no),
    "open": Benchmark("open questions", exact),
    "mcq": Benchmark("multiple choice", multiple_choice),
    # shards/benchmarks.py's: Table S7, and four more
    "esc50": Benchmark("ESC-50", ACC),
    "fsd50k": Benchmark("FSD50K", MAP),
    "dcase2017": Benchmark("DCASE2017 task 4", several_labels),
    "tut2017": Benchmark("TUT 2017", ACC),
    "vggsound": Benchmark("VGGSound", ACC),
    "urbansound8k": Benchmark("UrbanSound8K", ACC),
    "vocalsound": Benchmark("VocalSound", ACC),
    "cremad": Benchmark("CREMA-D", ACC),
    "ravdess": Benchmark("RAVDESS", ACC),
    "sesa": Benchmark("SESA", ACC),
    "gtzan": Benchmark("GTZAN", ACC),
    "gtzan_filtered": Benchmark("GTZAN, fault-filtered", ACC),
    "beijing_opera": Benchmark("Beijing Opera", ACC),
    "audiocaps": Benchmark("AudioCaps", captions),
    "clotho": Benchmark("Clotho v2", captions),
    "musiccaps": Benchmark("MusicCaps", music_captions),
    "clothoaqa": Benchmark("ClothoAQA", clothoaqa),
    "airbench_sound": Benchmark("AIR-Bench Chat, sound", judged),
    "airbench_music": Benchmark("AIR-Bench Chat, music", judged),
    "mmau_mini": Benchmark("MMAU test-mini", multiple_choice),
    "mmau": Benchmark(
        "MMAU test",
        lambda rows, context: {"MC-ACC": "the answers are withheld; hand in the submission file"},
    ),
}


def score(benchmark, rows, context):
    """{metric: {"value": float or None, "ci95": [lo, hi] or None, "why": where there is no value}}, the headline first."""
    try:
        found = BENCHMARKS[benchmark].metrics(rows, context)
    except DataError as e:
        raise DataError(f"{benchmark}: {e}") from e
    result = {}
    for name, s in found.items():
        if isinstance(s, str):
            result[name] = {"value": None, "ci95": None, "why": s}
        elif isinstance(s, float):
            result[name] = {"value": s, "ci95": None}
        else:
            value, ci95 = s.interval()
            result[name] = {"value": value, "ci95": ci95} | (
                {"why": "nothing here counts for it"} if value is None else {}
            )
    return result


def compared(benchmark, a, b, a_context, b_context=None):
    """{metric: paired test of b's score above a's, with "n", or why there is none} of two predictions for the same items."""
    metrics, tests = BENCHMARKS[benchmark].metrics, {}
    theirs = metrics(b, b_context or a_context)
    for name, x in metrics(a, a_context).items():
        y = theirs[name]
        if isinstance(x, Score) and isinstance(y, Score):
            tests[name] = paired(y, x) | {
                "n": len(x.stats) if x.items() is None else int((~x.items().isnan()).sum())
            }
        else:
            tests[name] = next((s for s in (x, y) if isinstance(s, str)), "no score item by item")
    return tests


def items(benchmark, rows, context):
    """{metric: (n,) scores item by item}, of the metrics that are means over items."""
    found = BENCHMARKS[benchmark].metrics(rows, context)
    return {
        name: s.items()
        for name, s in found.items()
        if isinstance(s, Score) and s.items() is not None
    }


def chance(benchmark, rows, context):
    """{metric: value} of answers that did not listen: a uniform guess among classes or choices, the share of positives for mAP, the most
    frequent answer to questions, another clip's first reference for captions."""
    b, say = (
        BENCHMARKS[benchmark].metrics,
        lambda texts: [{**r, "prediction": t} for r, t in zip(rows, texts)],
    )
    if context.labels:
        targets = targets_of(rows, context.labels)
        if b is MAP:
            return {"mAP": float(targets[:, targets.any(0)].mean())}
        return {"ACC": float(targets.mean())}
    if b is multiple_choice:
        return {"MC-ACC": float(np.mean([1 / len(r["choices"]) for r in rows]))}
    if b in (yes_no, clothoaqa):
        commonest = Counter(a.lower() for r in rows for a in references(r)).most_common(1)[0][0]
        return {
            k: v["value"]
            for k, v in score(benchmark, say([commonest] * len(rows)), context).items()
            if v["value"] is not None
        }
    if b in (exact, captions, plain_captions, music_captions):
        others = [references(r)[0] for r in rows[1:] + rows[:1]]
        return {
            k: v["value"]
            for k, v in score(benchmark, say(others), context).items()
            if v["value"] is not None
        }
    return {}
