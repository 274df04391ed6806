"""The caption metrics that torchmetrics lacks: CIDEr-D, SPICE, SPIDEr, and coco-caption's BLEU and ROUGE-L item by item.

    captions ──► ptb_tokenize ──► n-grams ──► cider_d (n,), bleu_counts (n, 10) ──► bleu, rouge_l (n,)      functions
    update(preds, target) ──► utf-8 bytes ──► gather ──► all captions ──► CiderD, Spice, Spider              Metrics

The functions give a value per item, which is what a bootstrap draws from; a set's ROUGE-L and CIDEr-D are their means, its BLEU
comes from the summed counts. The Metrics keep the captions themselves, since CIDEr-D's document frequencies cover the whole set:
batches and ranks cannot be averaged. Scores lie in 0..1, CIDEr-D in 0..10 and SPIDEr in 0..5.5; multiply by 100 for tables.

torchmetrics' BLEUScore equals `bleu` in float32 where it gets PTB tokens joined by spaces and references sorted by length (of
two as close it takes the first, coco-caption the shorter), but has no counts per item. Its ROUGE-L takes the F1 of one reference,
coco-caption's F_1.2 the best precision and the best recall of any.
"""

import json

import numpy as np
import torch
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from scoring.ptb import _tokens


def _checked(preds, target):
    if isinstance(preds, str) or isinstance(target, str):
        raise ValueError(
            "give lists: predictions ['...', ...] and for each its references [['...', ...], ...], not a single str"
        )
    preds, target = list(preds), list(target)
    if len(preds) != len(target):
        raise ValueError(
            f"{len(preds)} predictions but {len(target)} lists of references: give one list for each prediction"
        )
    for i, (pred, refs) in enumerate(zip(preds, target)):
        if not isinstance(pred, str):
            raise ValueError(f"prediction {i} is {pred!r}, not a str: give '' where there is none")
        if not isinstance(refs, (list, tuple)):
            raise ValueError(
                f"item {i}: the references are {refs!r:.60}, not a list of str: put [] around a single one"
            )
        if not refs:
            raise ValueError(
                f"item {i}: the list of references is empty: leave the item out, or give at least one"
            )
        if wrong := [ref for ref in refs if not isinstance(ref, str)]:
            raise ValueError(f"item {i}: the reference {wrong[0]!r} is not a str: leave it out")
    return preds, target


# --- n-grams: BLEU and CIDEr-D ----------------------------------------------------------------------------------------------


def _ngrams(preds, target, orders=4):
    """Numbers of references (n,), their items (R,), captions' lengths (n + R,), predictions first, and for each order sorted
    (E,) arrays caption, n-gram and count with the number of n-grams."""
    preds, target = _checked(preds, target)
    captions = [_tokens(text) for text in preds] + [
        _tokens(text) for refs in target for text in refs
    ]
    words = {}
    ids = np.array(
        [words.setdefault(word, len(words)) for caption in captions for word in caption], np.int64
    )
    sizes, lengths = (
        np.array([len(refs) for refs in target], int),
        np.array([len(caption) for caption in captions], int),
    )
    owner, gram, found = np.repeat(np.arange(len(captions)), lengths), ids, []
    for k in range(orders):
        if (
            k
        ):  # an n-gram is an (n-1)-gram and a word; numbered anew, so that the product stays small
            gram = np.unique(gram[:-1] * len(words) + ids[k:], return_inverse=True)[1].reshape(-1)
        inside, total = owner[: len(gram)] == owner[k:], gram.max(initial=0) + 1
        key, count = np.unique(
            owner[: len(gram)][inside] * total + gram[inside], return_counts=True
        )
        found.append((key // total, key % total, count, total))
    return sizes, np.repeat(np.arange(len(sizes)), sizes), lengths, found


def _lookup(keys, values, wanted):
    """The values at `wanted` (E,) of a table with sorted keys, 0 where there is none."""
    if not len(keys):
        return np.zeros(len(wanted))
    at = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


def cider_d(preds, target):
    """CIDEr-D of each item (n,), float64 in 0..10, with document frequencies from this whole set's references.

    preds: n str; target: n lists of str. Vedantam et al. 2015, section 7: tf-idf vectors of 1- to 4-grams, the prediction's
    clipped to the reference's, cosine, a Gaussian penalty (sigma 6) of the difference in length, mean over references and
    orders, times 10. As in coco-caption, length is the number of bigrams. One item alone scores 0 (log(1 / 1) weighs all).
    Raises ValueError where the lengths differ, an item has no reference, or something is not a str.
    """
    sizes, item, lengths, orders = _ngrams(preds, target)
    n, cosines = len(sizes), np.zeros(len(item))
    for caption, gram, count, total in orders:
        ref = caption >= n
        home = item[caption[ref] - n]  # (E of references,) items
        documents = np.bincount(np.unique(home * total + gram[ref]) % total, minlength=total)
        weight = count * (np.log(max(n, 1)) - np.log(documents.clip(min=1)))[gram]
        norm = np.sqrt(np.bincount(caption, weight**2, minlength=len(lengths)))
        pred = _lookup(caption[~ref] * total + gram[~ref], weight[~ref], home * total + gram[ref])
        dot = np.bincount(
            caption[ref] - n, np.minimum(pred, weight[ref]) * weight[ref], minlength=len(item)
        )
        norms = norm[item] * norm[n:]
        cosines += np.divide(dot, norms, out=np.zeros(len(item)), where=norms > 0)
    bigrams = (lengths - 1).clip(min=0)
    cosines *= np.exp(-((bigrams[item] - bigrams[n:]) ** 2) / (2 * 6**2)) / len(orders)
    return torch.from_numpy(10 * np.bincount(item, cosines, minlength=n) / sizes)


def bleu_counts(preds, target):
    """What BLEU is made of, (n, 10) float64: each item's matches of orders 1-4, n-grams of orders 1-4, length, reference length.

    A match is clipped to the most that one reference has; the reference length is the closest one's, the shorter of two. Rows
    add up: `bleu(counts.sum(0))` is the set's BLEU-1..4, `bleu(counts)` each item's, `bleu(weights @ counts)` a bootstrap's.
    Raises as `cider_d`.
    """
    sizes, item, lengths, orders = _ngrams(preds, target)
    n, counts = len(sizes), []
    for caption, gram, count, total in orders:
        ref = caption >= n
        key = item[caption[ref] - n] * total + gram[ref]
        rank = np.lexsort((-count[ref], key))
        keys, first = np.unique(key[rank], return_index=True)  # the most of each (item, n-gram)
        most = _lookup(keys, count[ref][rank][first], caption[~ref] * total + gram[~ref])
        counts.append(np.bincount(caption[~ref], np.minimum(count[~ref], most), minlength=n))
    long = lengths[:n]
    rank = np.lexsort((lengths[n:], abs(lengths[n:] - long[item]), item))
    closest = lengths[n:][rank][np.cumsum(sizes) - sizes] if n else long
    return torch.from_numpy(
        np.stack([*counts, *((long - k).clip(min=0) for k in range(4)), long, closest], 1).astype(
            float
        )
    )


def bleu(counts):
    """BLEU-1..4 (..., 4), float64 in 0..1, of counts (..., 10) as `bleu_counts` gives them, added up over items for a set's.

    Papineni et al. 2002, with coco-caption's two small numbers in place of smoothing, so that no match gives about 0.
    """
    matches, grams, (length, reference) = (
        counts[..., :4],
        counts[..., 4:8],
        counts[..., 8:].unbind(-1),
    )
    precision = ((matches + 1e-15) / (grams + 1e-9)).log().cumsum(-1) / torch.arange(
        1, 5, device=counts.device
    )
    ratio = (length + 1e-15) / (reference + 1e-9)
    return (precision + (1 - 1 / ratio).clamp(max=0)[..., None]).exp()


def rouge_l(preds, target):
    """ROUGE-L of each item (n,), float64 in 0..1, by coco-caption's convention.

    Lin 2004: F of the longest common subsequence with beta = 1.2, from the best precision and the best recall over the item's
    references. 0 where the prediction has no token. Raises as `cider_d`.
    """
    scores = []
    for pred, refs in zip(*_checked(preds, target)):
        words, place, p, r = _tokens(pred), {}, 0.0, 0.0
        for i, word in enumerate(words):
            place[word] = place.get(word, 0) | 1 << i
        for ref in map(_tokens, refs):
            row = full = (
                1 << len(words)
            ) - 1  # a 0 where the subsequence grows: a row of the usual table as one integer
            for word in ref:
                hit = row & place.get(word, 0)
                row = (row + hit | row - hit) & full
            common = len(words) - row.bit_count()
            p, r = max(p, common / max(len(words), 1)), max(r, common / max(len(ref), 1))
        scores.append((1 + 1.2**2) * p * r / (r + 1.2**2 * p) if p and r else 0.0)
    return torch.tensor(scores, dtype=torch.float64)


# --- Metrics ----------------------------------------------------------------------------------------------------------------


class _Captions(Metric):
    """Keeps all captions as utf-8 bytes, a line of JSON for each item: tensors are what torchmetrics gathers over ranks."""

    is_differentiable, higher_is_better, full_state_update = False, True, False

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.add_state("lines", [], dist_reduce_fx="cat")

    def update(self, preds, target):
        """Adds items: preds, a sequence of str, and target, for each of them a non-empty list of str. Raises ValueError else."""
        lines = "".join(json.dumps(pair) + "\n" for pair in zip(*_checked(preds, target)))
        self.lines.append(
            torch.from_numpy(np.frombuffer(lines.encode(), np.uint8).copy()).to(self.device)
        )

    def sync(self, *args, **kwargs):
        if (
            isinstance(self.lines, list) and not self.lines
        ):  # torchmetrics would send an empty float32, and gloo abort
            self.lines.append(torch.zeros(0, dtype=torch.uint8, device=self.device))
        super().sync(*args, **kwargs)

    def captions(self):
        """(preds, target) of all items so far, of all ranks' while the metric is synced."""
        lines = (
            bytes(dim_zero_cat(self.lines).byte().cpu().numpy()).decode() if len(self.lines) else ""
        )
        if not lines:
            raise ValueError(f"{type(self).__name__} has no captions to score: call update first")
        return tuple(zip(*map(json.loads, lines.splitlines())))


class CiderD(_Captions):
    """CIDEr-D of all captions given, float64 in 0..10: the mean of `cider_d`, which says more."""

    def compute(self):
        return cider_d(*self.captions()).mean()
