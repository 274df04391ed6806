"""Caption metrics that torchmetrics lacks: CIDEr-D, and coco-caption's BLEU and ROUGE-L by item.

    captions ──► ptb_tokenize ──► n-grams ──► cider_d (n,), bleu_counts (n, 10) ──► bleu
                             └──────────────► rouge_l (n,)                            functions
    update(preds, target) ──► utf-8 bytes ──► gather ──► all captions ──► CiderD      Metrics

The functions give a value per item, which a bootstrap draws from. A set's ROUGE-L and CIDEr-D are
their means, its BLEU comes from the summed counts. The Metrics keep the captions themselves, since
CIDEr-D's document frequencies cover the whole set: batches and ranks cannot be averaged. Scores lie
in 0..1, and CIDEr-D in 0..10; multiply by 100 for tables.

torchmetrics' BLEUScore equals `bleu` in float32 where it gets PTB tokens joined by spaces and
references sorted by length: of two as close it takes the first, coco-caption the shorter. It has no
counts per item. Its ROUGE-L takes the F1 of one reference, coco-caption's F_1.2 the best precision
and the best recall of any.
"""

import json
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from scoring.ptb import cached_tokens


def checked(preds: list[str], target: list[list[str]]) -> tuple[list, list]:
    """Both as lists. Raises ValueError, naming the item, where one does not fit."""
    if isinstance(preds, str) or isinstance(target, str):
        raise ValueError(
            "give lists: predictions ['...', ...] and for each its references [['...', ...], ...], "
            "not a single str"
        )
    preds, target = list(preds), list(target)
    if len(preds) != len(target):
        raise ValueError(
            f"{len(preds)} predictions but {len(target)} lists of references: "
            "give one list for each prediction"
        )
    for i, (pred, refs) in enumerate(zip(preds, target)):
        if not isinstance(pred, str):
            raise ValueError(f"prediction {i} is {pred!r}, not a str: give '' where there is none")
        problem = _problem(refs)
        if problem:
            raise ValueError(f"item {i}: {problem}")
    return preds, target


def _problem(refs) -> str | None:
    if not isinstance(refs, (list, tuple)):
        return f"the references are {refs!r:.60}, not a list of str: put [] around a single one"
    if not refs:
        return "the list of references is empty: leave the item out, or give at least one"
    for ref in refs:
        if not isinstance(ref, str):
            return f"the reference {ref!r} is not a str: leave it out"
    return None


# --- n-grams: BLEU and CIDEr-D ------------------------------------------------------------------


class Grams(NamedTuple):
    """The n-grams of one order in all captions, sorted; entry e says how often one has one."""

    caption: np.ndarray  # (E,)
    gram: np.ndarray  # (E,) in 0..total
    count: np.ndarray  # (E,)
    total: int  # n-grams that differ


class Captions(NamedTuple):
    """n predictions, then their R references; R = sizes.sum()."""

    sizes: np.ndarray  # (n,) references of each item
    item: np.ndarray  # (R,) each reference's item
    lengths: np.ndarray  # (n + R,) in tokens
    orders: list[Grams]  # of 1-grams to 4-grams


def _counted(preds, target, orders: int = 4) -> Captions:
    preds, target = checked(preds, target)
    texts = preds + [text for refs in target for text in refs]
    captions = [cached_tokens(text) for text in texts]
    vocabulary = {}
    words = [vocabulary.setdefault(word, len(vocabulary)) for text in captions for word in text]
    words = np.array(words, np.int64)
    lengths = np.array([len(caption) for caption in captions], int)
    sizes = np.array([len(refs) for refs in target], int)
    owner, gram, found = np.repeat(np.arange(len(captions)), lengths), words, []
    for n in range(orders):
        if n > 0:
            # an n-gram is an (n-1)-gram and a word; numbered anew so that the product stays small
            pairs = gram[:-1] * len(vocabulary) + words[n:]
            gram = np.unique(pairs, return_inverse=True)[1].reshape(-1)
        first = owner[: len(gram)]
        inside, total = first == owner[n:], gram.max(initial=0) + 1
        key, count = np.unique(first[inside] * total + gram[inside], return_counts=True)
        found.append(Grams(key // total, key % total, count, total))
    return Captions(sizes, np.repeat(np.arange(len(sizes)), sizes), lengths, found)


def _lookup(keys, values, wanted):
    """The values at `wanted` (E,) of a table with sorted keys, 0 where there is none."""
    if not len(keys):
        return np.zeros(len(wanted))
    at = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


def cider_d(preds: list[str], target: list[list[str]]) -> Tensor:
    """CIDEr-D of each item (n,), float64 in 0..10, with document frequencies from this whole set.

    preds: n str; target: n lists of str. Vedantam et al. 2015, section 7: tf-idf vectors of 1- to
    4-grams, the prediction's clipped to the reference's, cosine, a Gaussian penalty (sigma 6) of
    the difference in length, mean over references and orders, times 10. As in coco-caption, length
    is the number of bigrams. One item alone scores 0 (log(1 / 1) weighs all). Raises ValueError
    where the lengths differ, an item has no reference, or something is not a str.
    """
    sizes, item, lengths, orders = _counted(preds, target)
    n, cosines = len(sizes), np.zeros(len(item))
    for caption, gram, count, total in orders:
        ref = caption >= n
        home = item[caption[ref] - n]  # the item of each entry of a reference
        documents = np.bincount(np.unique(home * total + gram[ref]) % total, minlength=total)
        weight = count * (np.log(max(n, 1)) - np.log(documents.clip(min=1)))[gram]
        norm = np.sqrt(np.bincount(caption, weight**2, minlength=len(lengths)))
        pred = _lookup(caption[~ref] * total + gram[~ref], weight[~ref], home * total + gram[ref])
        clipped = np.minimum(pred, weight[ref]) * weight[ref]
        dot = np.bincount(caption[ref] - n, clipped, minlength=len(item))
        norms = norm[item] * norm[n:]
        cosines += np.divide(dot, norms, out=np.zeros(len(item)), where=norms > 0)
    bigrams = (lengths - 1).clip(min=0)
    cosines *= np.exp(-((bigrams[item] - bigrams[n:]) ** 2) / (2 * 6**2)) / len(orders)
    return torch.from_numpy(10 * np.bincount(item, cosines, minlength=n) / sizes)


def bleu_counts(preds: list[str], target: list[list[str]]) -> Tensor:
    """The counts that BLEU is made of, (n, 10) float64.

    Each item's matches of orders 1-4, n-grams of orders 1-4, length, and reference length. A match
    is clipped to the most that one reference has; the reference length is the closest one's, the
    shorter of two. Rows add up: `bleu(counts.sum(0))` is the set's BLEU-1..4, `bleu(counts)` each
    item's, `bleu(weights @ counts)` a bootstrap's. Raises as `cider_d`.
    """
    sizes, item, lengths, orders = _counted(preds, target)
    n, columns = len(sizes), []
    for caption, gram, count, total in orders:
        ref = caption >= n
        key = item[caption[ref] - n] * total + gram[ref]
        rank = np.lexsort((-count[ref], key))
        keys, first = np.unique(key[rank], return_index=True)  # the most of each (item, n-gram)
        most = _lookup(keys, count[ref][rank][first], caption[~ref] * total + gram[~ref])
        matches = np.minimum(count[~ref], most)
        columns.append(np.bincount(caption[~ref], matches, minlength=n))
    length, reference = lengths[:n], lengths[n:]
    rank = np.lexsort((reference, abs(reference - length[item]), item))
    closest = reference[rank][np.cumsum(sizes) - sizes] if n else length
    columns += [(length - k).clip(min=0) for k in range(4)]
    return torch.from_numpy(np.stack([*columns, length, closest], 1).astype(float))


def bleu(counts: Tensor) -> Tensor:
    """BLEU-1..4 (..., 4), float64 in 0..1, of counts (..., 10) as `bleu_counts` gives them.

    Counts are added up over items for a set's. Papineni et al. 2002, with coco-caption's two small
    numbers in place of smoothing, so that no match gives about 0.
    """
    matches, grams = counts[..., :4], counts[..., 4:8]
    length, reference = counts[..., 8:].unbind(-1)
    orders = torch.arange(1, 5, device=counts.device)
    precision = ((matches + 1e-15) / (grams + 1e-9)).log().cumsum(-1) / orders
    ratio = (length + 1e-15) / (reference + 1e-9)
    return (precision + (1 - 1 / ratio).clamp(max=0)[..., None]).exp()


# --- ROUGE-L ------------------------------------------------------------------------------------


def rouge_l(preds: list[str], target: list[list[str]]) -> Tensor:
    """ROUGE-L of each item (n,), float64 in 0..1, by coco-caption's convention.

    Lin 2004: F of the longest common subsequence with beta = 1.2, from the best precision and the
    best recall over the item's references. 0 for a prediction without a token. Raises as `cider_d`.
    """
    scores = []
    for pred, refs in zip(*checked(preds, target)):
        words, precision, recall = cached_tokens(pred), 0.0, 0.0
        for ref in map(cached_tokens, refs):
            common = _common(words, ref)
            precision = max(precision, common / max(len(words), 1))
            recall = max(recall, common / max(len(ref), 1))
        score = 0.0
        if precision and recall:
            score = (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)
        scores.append(score)
    return torch.tensor(scores, dtype=torch.float64)


def _common(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """The length of the longest common subsequence.

    A row of the usual table is one integer, with a 0 bit where the subsequence grows.
    """
    place = {}
    for i, word in enumerate(a):
        place[word] = place.get(word, 0) | 1 << i
    row = full = (1 << len(a)) - 1
    for word in b:
        hit = row & place.get(word, 0)
        row = (row + hit | row - hit) & full
    return len(a) - row.bit_count()


# --- Metrics ------------------------------------------------------------------------------------


class CaptionMetric(Metric):
    """Keeps all captions as utf-8 bytes, a line of JSON for each item.

    torchmetrics gathers tensors over ranks, and nothing else.
    """

    is_differentiable, higher_is_better, full_state_update = False, True, False

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.add_state("lines", [], dist_reduce_fx="cat")

    def update(self, preds: list[str], target: list[list[str]]) -> None:
        """Adds items: for each prediction a list of references. Raises ValueError as `checked`."""
        lines = "".join(json.dumps(pair) + "\n" for pair in zip(*checked(preds, target)))
        line = torch.from_numpy(np.frombuffer(lines.encode(), np.uint8).copy())
        self.lines.append(line.to(self.device))

    def sync(self, *args, **kwargs):
        if isinstance(self.lines, list) and not self.lines:
            # torchmetrics would send an empty float32, and gloo abort
            self.lines.append(torch.zeros(0, dtype=torch.uint8, device=self.device))
        super().sync(*args, **kwargs)

    def captions(self) -> tuple:
        """(preds, target) of all items so far, of all ranks' while the metric is synced."""
        lines = ""
        if len(self.lines):
            lines = bytes(dim_zero_cat(self.lines).byte().cpu().numpy()).decode()
        if not lines:
            raise ValueError(f"{type(self).__name__} has no captions to score: call update first")
        return tuple(zip(*map(json.loads, lines.splitlines())))


class CiderD(CaptionMetric):
    """CIDEr-D of all captions given, float64 in 0..10: the mean of `cider_d`, which says more."""

    def compute(self) -> Tensor:
        return cider_d(*self.captions()).mean()
