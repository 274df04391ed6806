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
from torchmetrics.functional.classification import (
    binary_average_precision,
    multilabel_average_precision,
)
from torchmetrics.text import ROUGEScore, SacreBLEUScore

from data import DataError
from scoring.captions import bleu as coco_bleu, bleu_counts, cider_d, rouge_l

DRAWS, SLOW_DRAWS = 1000, 100  # bootstrap resamples; of metrics that are no function of a sum


@dataclass
class Score:
    """stats (n, k) float64, a row an item. Of their sum (k,), or of a resample's rows if not `additive`, `value` makes the score."""

    stats: torch.Tensor
    value: object = lambda s: s[..., 0] / s[..., 1]
    additive: bool = True

    def interval(self, seed=0):
        """(value, [lo, hi]): the 95 % bootstrap interval over items. value is None where nothing counts."""
        n, rng = len(self.stats), np.random.default_rng(seed)
        if self.additive:
            value = float(self.value(self.stats.sum(0)))
            draws = torch.cat(
                [
                    self.value(self.stats[rng.integers(n, size=(20, n))].sum(1))
                    for _ in range(DRAWS // 20)
                ]
            ).numpy()
        else:
            value = float(self.value(self.stats))
            draws = np.array(
                [float(self.value(self.stats[rng.integers(n, size=n)])) for _ in range(SLOW_DRAWS)]
            )
            draws += value - np.nanmean(
                draws
            )  # a resample repeats items, which average precision rewards: without that bias
        return (
            (None, None)
            if np.isnan(value)
            else (value, [float(q) for q in np.nanpercentile(draws, [2.5, 97.5])])
        )

    def items(self):
        """(n,) scores item by item, nan where an item does not count; None where the metric is no mean over items (mAP, BLEU, micro-F1)."""
        mean = (
            self.additive
            and self.stats.shape[1] == 2
            and bool(((self.stats[:, 1] == 0) | (self.stats[:, 1] == 1)).all())
        )
        return self.stats[:, 0] / self.stats[:, 1] if mean else None

    def of(self, stats):
        """The value of other statistics: rows (n, k)."""
        return float(self.value(stats.sum(0) if self.additive else stats))


def paired_means(a, b, draws=10_000, seed=0):
    """Is the mean of a above that of b? a, b (n,): scores of two sets of predictions, item by item on the same clips.

    Returns {"difference": mean(a - b), "ci95": its paired bootstrap interval, "p": two-sided, from random flips of the signs of a - b
    (under the null hypothesis either of the two could have been either)}; (1 + hits) / (1 + draws), so that p is never 0. Raises
    ValueError where there is nothing to pair.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ValueError(
            f"paired scores are two lists of one length, one score an item; here {a.shape} and {b.shape}"
        )
    if not np.isfinite(a - b).all():
        raise ValueError(
            f"{int((~np.isfinite(a - b)).sum())} of {len(a)} pairs have no score; leave them out on both sides"
        )
    difference, n, rng = a - b, len(a), np.random.default_rng(seed)
    # Items of the same difference are alike, so it is enough to draw how often each distinct value comes up (multinomial), or how many
    # of its items keep their sign (binomial). Right and wrong answers have 3 distinct values, however many clips there are.
    values, counts = np.unique(difference, return_counts=True)
    sizes, often = np.unique(np.abs(difference), return_counts=True)
    step = max(1, (1 << 21) // len(values))
    blocks = [min(step, draws - i) for i in range(0, draws, step)]
    # The flips first: they see only sizes, so that paired_means(b, a) draws the same and has the same p.
    flipped = np.concatenate(
        [(2 * rng.binomial(often, 0.5, (k, len(often))) - often) @ sizes for k in blocks]
    )
    means = np.concatenate([rng.multinomial(n, counts / n, k) @ values / n for k in blocks])
    observed = (
        abs(difference.sum()) - 1e-12 * np.abs(difference).sum()
    )  # sums in another order round differently
    return {
        "difference": float(difference.mean()),
        "ci95": np.quantile(means, [0.025, 0.975]).tolist(),
        "p": float((1 + (np.abs(flipped) >= observed).sum()) / (1 + draws)),
    }


def paired(a, b, seed=0):
    """Is Score a above Score b, of two predictions for the same items? As `paired_means` where both are means over items; else the same with
    the value of resampled, or swapped, statistics in place of the mean."""
    x, y = a.items(), b.items()
    if x is not None and y is not None:
        counts = ~(x.isnan() | y.isnan())
        return paired_means(x[counts].numpy(), y[counts].numpy(), seed=seed)
    n, rng = len(a.stats), np.random.default_rng(seed)
    draws = DRAWS if a.additive else SLOW_DRAWS
    difference, drawn, swapped = a.of(a.stats) - b.of(b.stats), [], []
    for _ in range(draws):
        i, swap = rng.integers(n, size=n), torch.from_numpy(rng.random((n, 1)) < 0.5)
        drawn.append(a.of(a.stats[i]) - b.of(b.stats[i]))
        swapped.append(
            a.of(torch.where(swap, b.stats, a.stats)) - b.of(torch.where(swap, a.stats, b.stats))
        )
    drawn = np.array(drawn) + difference - np.nanmean(drawn)
    return {
        "difference": difference,
        "ci95": [float(q) for q in np.nanpercentile(drawn, [2.5, 97.5])],
        "p": float((1 + (np.abs(swapped) >= abs(difference) - 1e-12).sum()) / (1 + draws)),
    }


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


def share(right, counts=None):
    """The share of right answers, of those that count; right may be a number of several answers to one question."""
    right = torch.tensor(right).double()
    counts = torch.ones_like(right) if counts is None else torch.tensor(counts).double()
    return Score(torch.stack([right * (counts > 0), counts], 1))


# --- words ------------------------------------------------------------------------------------------------------------


def words(text):
    return re.findall(r"\b\w+\b", text.lower())


def references(row):
    return row["answer"] if isinstance(row["answer"], list) else [row["answer"]]


def says(prediction, answer):
    """Right iff the words are the answer's, in order, case and punctuation aside. For yes and no the first word counts."""
    said, wanted = words(prediction), words(answer)
    return said[:1] == wanted if wanted in (["yes"], ["no"]) else said == wanted


# --- text matching ------------------------------------------------------------------------------------------------------


def classes_in(row, labels):
    """(C,) 0/1: the labels that the answer names; `labels` names them where a label may hold a comma."""
    named = (
        {a.lower() for a in row["labels"]}
        if "labels" in row
        else {a.strip().lower() for a in references(row)[0].split(",")}
        | {references(row)[0].strip().lower()}
    )
    return torch.tensor([float(label.lower() in named) for label in labels])


def targets_of(rows, labels):
    """(n, C) 0/1. Raises DataError, naming the row, where none of the labels fits."""
    targets = torch.stack([classes_in(r, labels) for r in rows])
    if not targets.any(1).all():
        row = rows[int((~targets.any(1)).nonzero()[0])]
        raise DataError(
            f"the answer of {row['id']!r}, {references(row)[0]!r}, is not in labels.json"
        )
    return targets


def parts(prediction):
    return [p.strip() for p in re.split("[;,]", prediction) if p.strip()] or [""]


def similarities(texts, context, encode):
    """text -> (C,), its similarity to every label's text."""
    texts = list(dict.fromkeys(texts))
    return dict(
        zip(
            texts,
            encode(texts)
            @ encode([context.template.format(label.lower()) for label in context.labels]).T,
        )
    )


def by_encoder(name, rule):
    """A metric for each text-matching encoder: the first under its plain name."""

    def metrics(rows, context):
        targets = targets_of(rows, context.labels)
        if context.scores is not None:
            return {name: rule(rows, context, targets, None)}
        return {
            name if i == 0 else f"{name} ({encoder})": rule(rows, context, targets, encode)
            for i, (encoder, encode) in enumerate(context.encoders.items())
        }

    return metrics


def accuracy(rows, context, targets, encode):
    """Right iff the class most similar to the prediction is the clip's, or one of them (DCASE2017's clips may have several)."""
    scores = context.scores
    if scores is None:
        similar = similarities([r["prediction"] for r in rows], context, encode)
        scores = torch.stack([similar[r["prediction"]] for r in rows])
    return share(targets.gather(1, scores.argmax(1, keepdim=True))[:, 0].tolist())


def micro_f1(rows, context, targets, encode):
    """Of the clip's labels and the classes most similar to what the prediction names, taken apart at ; and , (LTU's rule for DCASE2017)."""
    if context.scores is not None:
        chosen = torch.nn.functional.one_hot(context.scores.argmax(1), len(context.labels))
    else:
        similar = similarities([p for r in rows for p in parts(r["prediction"])], context, encode)
        chosen = torch.zeros_like(targets)
        for i, r in enumerate(rows):
            chosen[i, [int(similar[p].argmax()) for p in parts(r["prediction"])]] = 1
    hits = (chosen * targets).sum(1)
    return Score(torch.stack([2 * hits, chosen.sum(1) + targets.sum(1)], 1).double())


def mean_ap(rows, context, targets, encode):
    """Macro average precision. The prediction's parts at ; and , are matched one by one and their similarities summed (FSD50K's rule)."""
    scores = context.scores
    if scores is None:
        similar = similarities([p for r in rows for p in parts(r["prediction"])], context, encode)
        scores = torch.stack([sum(similar[p] for p in parts(r["prediction"])) for r in rows])
    scores = (scores - scores.min()) / (scores.max() - scores.min()).clamp(
        min=1e-9
    )  # outside [0, 1] torchmetrics would take logits
    C = targets.shape[1]

    def value(s):
        seen = s[:, C:].any(0)  # a class that nobody has, has no average precision
        scores, targets = s[:, :C][:, seen], s[:, C:][:, seen].long()
        if scores.shape[1] == 1:  # torchmetrics wants two labels or more
            return binary_average_precision(scores[:, 0], targets[:, 0])
        return multilabel_average_precision(scores, targets, scores.shape[1], average="macro")

    return Score(torch.cat([scores, targets], 1).double(), value, additive=False)


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
