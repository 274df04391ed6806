"""Text matching: the classes that a prediction names, by the similarity of texts.

    prediction ──► texts ──► similarity (P, C) to every label's text ──► ACC, micro-F1 or mAP

Label texts follow a template, "sound of dog". Several encoders give several columns. CLAP's
zero-shot scores take the same rules: its similarities stand in for those of one text.

No CPU's rounding decides a ranking: similarities are whole steps (`steps`), and their sums exact.
Of equal similarities the label that comes first in labels.json is the nearest; average precision
takes them as one threshold.
"""

import re
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from disk import DataError
from scoring.statistics import Mean, Ratio, Score, WholeSet, quotient, steady


def references(row: dict) -> list[str]:
    """A row's answers, also where it has one."""
    return row["answer"] if isinstance(row["answer"], list) else [row["answer"]]


def classes_in(row: dict, labels: list[str]) -> Tensor:
    """(C,) 0 or 1: the labels that a row's `labels` name, else its answer, split at commas."""
    answer = references(row)[0]
    named = row.get("labels", [part.strip() for part in (answer, *answer.split(","))])
    named = {name.lower() for name in named}
    return torch.tensor([float(label.lower() in named) for label in labels])


def targets_of(rows: list[dict], labels: list[str]) -> Tensor:
    """(n, C) 0 or 1. Raises DataError, naming the row, where none of the labels fits."""
    targets = torch.stack([classes_in(row, labels) for row in rows])
    for row, fits in zip(rows, targets.any(1)):
        if not fits:
            raise DataError(
                f"the answer of {row['id']!r}, {references(row)[0]!r}, is not in labels.json"
            )
    return targets


def whole(prediction: str) -> list[str]:
    return [prediction]


def parts(prediction: str) -> list[str]:
    """A prediction split at ; and , without empty parts; never an empty list."""
    return [part.strip() for part in re.split("[;,]", prediction) if part.strip()] or [""]


def steps(similarity: Tensor) -> Tensor:
    """Similarities as whole numbers of steps of 1e-4, int64.

    Rounding still decides at the border of two steps. A float64 encoder's noise is 1e-11 of a step,
    so that this almost never happens; a float32 one's is 1/400 of a step.
    """
    return (similarity.double() * 10_000).round().long()


def similarities(texts: list[list[str]], context, encode) -> list[Tensor]:
    """n x (P, C): the similarity of each row's P texts to the C labels' texts, in steps."""
    labels = [context.template.format(label.lower()) for label in context.labels]
    # half a surrogate pair, which stored answers can hold, is no text for an encoder
    texts = [[text.encode(errors="replace").decode() for text in row] for row in texts]
    place = {text: i for i, text in enumerate(dict.fromkeys(chain(labels, *texts)))}
    vectors = encode(list(place)).double()
    similarity = steps(vectors @ vectors[[place[label] for label in labels]].T)
    return [similarity[[place[text] for text in row]] for row in texts]


def by_encoder(metric: str, split, rule, rows: list[dict], context) -> dict[str, Score]:
    """A metric for each encoder of the tasks.Context, the first under its plain name.

    split: a prediction -> the texts that are matched to the labels. rule: their similarities,
    n x (P, C) in steps, and the targets (n, C) -> Score.
    """
    targets = targets_of(rows, context.labels)
    if context.scores is not None:
        return {metric: rule(steps(context.scores).split(1), targets)}
    texts, scores = [split(row["prediction"]) for row in rows], {}
    for name, encode in context.encoders.items():
        title = f"{metric} ({name})" if scores else metric
        scores[title] = rule(similarities(texts, context, encode), targets)
    return scores


def accuracy(similar: list[Tensor], targets: Tensor) -> Mean:
    """Right iff the class most similar to the prediction is the clip's, or one of its several."""
    nearest = torch.cat(similar).argmax(1, keepdim=True)  # the first of equals
    return Mean(targets.gather(1, nearest)[:, 0])


def micro_f1(similar: list[Tensor], targets: Tensor) -> Ratio:
    """Micro-F1 of the clip's labels and of the class nearest to each part of the prediction."""
    named = torch.zeros_like(targets)
    for row, similarity in zip(named, similar):
        row[similarity.argmax(1)] = 1
    hits = (named * targets).sum(1)
    both = named.sum(1) + targets.sum(1)
    return Ratio(torch.stack([2 * hits, both], 1).double(), quotient)


def mean_ap(similar: list[Tensor], targets: Tensor) -> WholeSet:
    """Macro average precision of the similarities, summed over a prediction's parts."""
    scores = torch.stack([similarity.sum(0) for similarity in similar])
    return WholeSet(torch.cat([scores.double(), targets.double()], 1), average_precision)


def average_precision(rows: Tensor) -> Tensor:
    """The mean over classes of rows (m, 2C): scores beside targets.

    AP = sum_k (R_k - R_k-1) P_k over the thresholds k, of which equal scores share one. A bootstrap
    asks a hundred times a column: scikit-learn would take 20 times as long on the tiny world, and 3
    times on FSD50K.
    """
    scores, targets = rows.T.chunk(2)  # (C, m)
    seen = targets.any(1)  # a class that nobody has, has no average precision
    scores, order = scores[seen].sort(descending=True)
    hits = targets[seen].gather(1, order).cumsum(1)
    last = F.pad(scores.diff() != 0, (0, 1), value=True)  # of the rows with this score
    gained = F.pad((hits * last).cummax(1).values, (1, 0)).diff()
    precision = hits / torch.arange(1, hits.shape[1] + 1)
    return steady(((gained * precision).sum(1) / hits[:, -1]).mean())


# --- metrics and chance -------------------------------------------------------------------------


def one_class(rows, context):
    return by_encoder("ACC", whole, accuracy, rows, context)


def ranked_classes(rows, context):
    """FSD50K's rule."""
    return by_encoder("mAP", parts, mean_ap, rows, context)


def several_classes(rows, context):
    """DCASE2017's two rules; the second is LTU's."""
    return one_class(rows, context) | by_encoder("micro-F1", parts, micro_f1, rows, context)


def uniform_class(rows, context):
    return {"ACC": float(targets_of(rows, context.labels).double().mean())}


def share_of_positives(rows, context):
    targets = targets_of(rows, context.labels)
    return {"mAP": float(targets[:, targets.any(0)].double().mean())}
