"""Text matching: which classes a prediction names."""

import re

import torch
from torchmetrics.functional.classification import (
    binary_average_precision,
    multilabel_average_precision,
)

from data import DataError
from scoring.statistics import Score, share


def references(row):
    return row["answer"] if isinstance(row["answer"], list) else [row["answer"]]


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
