"""Santa and the other bridges over CLAP's modality gap: audio vectors in, vectors for a mapper out.

    texts ──► add_noise ──► memory (M, D) ──► kmeans ──► centers (K, D), labels (M,)   Santa.build
    audio z (B, D) ──► closest center ──► its L closest rows ──► their blend with z    Eq. 6-7

`bridge` gives any of BRIDGES as a function (B, D) -> (B, D), whose `explain` also tells the texts
that were retrieved; `noise_variance` and `gap` measure the gap itself. Nothing is learned, no
gradients flow. Random numbers are drawn on the generator's device and then moved: a CPU generator
gives the same numbers for tensors anywhere.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from disk import DataError, read_tensors, reading, seems, write_tensors

# numbers in a chunked step's largest temporary: a CPU's cache, or half a GB of a GPU
SCRATCH = {"cpu": 2**22, "cuda": 2**27}
SLACK = 32  # rows beyond L that Santa's float32 shortlist keeps for the exact ranking


def _floats(x):
    """x in float32, or float64 if it is that: half precision would round noise and distances."""
    return x if x.dtype == torch.float64 else x.float()


def _unit(x):
    return F.normalize(_floats(x), dim=-1)


def _draw(draw, like, *size, generator=None, **kw):
    device = like.device if generator is None else generator.device
    return draw(*size, generator=generator, device=device, **kw).to(like.device)


def _chunks(x, row):
    """Views of x, in order, of so many rows that temporaries of `row` numbers a row fit SCRATCH."""
    return x.split(max(1, SCRATCH.get(x.device.type, SCRATCH["cuda"]) // row))


def _check_rows(x, name, rows=None, width=None):
    """Raises ValueError unless x is a finite float matrix, of so many rows and columns if given."""
    fits = x.ndim == 2 and rows in (None, len(x)) and width in (None, x.shape[1])
    if not fits or not x.is_floating_point() or 0 in x.shape:
        need = f"({rows or 'N > 0'}, {width or 'D > 0'}) floats"
        raise ValueError(f"{name} must be {need}, not {tuple(x.shape)} of {x.dtype}")
    if x.sum().isfinite():  # cheaper than a look at every number
        return
    bad = (~x.isfinite().all(1)).nonzero()[:, 0].tolist()
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise ValueError(f"{name}: row {bad[0]} is not finite{more}")


def _check_texts(texts, rows):
    """Raises ValueError unless texts is None, or a list of a string or None for each row."""
    if texts is None:
        return
    if not isinstance(texts, list) or not all(isinstance(text, str | None) for text in texts):
        raise ValueError("texts must be a list of strings")
    if len(texts) != rows:
        raise ValueError(f"{len(texts)} texts for {rows} rows: each row needs its own")


@torch.no_grad()
def add_noise(z: Tensor, variance: float, generator=None) -> Tensor:
    """Unit vectors (..., D): z normalised, plus N(0, variance) in each dimension, normalised again.

    z (..., D) of any length; float32 comes out (float64 stays). variance 0 only normalises. The
    paper's 0.015 is 0.1225 squared: in 1024 dimensions the cosine with z becomes 0.25. Eq. 1's
    E_T(T) + eps. Raises ValueError for a variance that is negative or not finite.
    """
    if not 0 <= variance < math.inf:
        raise ValueError(f"variance must be a finite number >= 0, not {variance}")
    z = _unit(z)
    if variance == 0:
        return z
    noise = _draw(torch.randn, z, *z.shape, generator=generator).to(z.dtype)
    return _unit(z + math.sqrt(variance) * noise)


def noise_cosine(variance: float, dim: int) -> float:
    """The cosine that noise leaves between a unit vector (dim,) and its noisy copy, on average.

    The noise is nearly at right angles to the vector, and its length is sqrt(dim * variance):
    cos = 1 / sqrt(1 + dim * variance). So the same variance is a wider angle in more dimensions.
    """
    return 1 / math.sqrt(1 + dim * variance)


# --- k-means ---


def _squares(x):
    """(N, D) -> (N,): squared lengths, without a second x in memory."""
    return torch.cat([rows.square().sum(1) for rows in _chunks(x, x.shape[1])])


def _assign(x, centers, guess):
    """Each row's closest center (N,), and its squared distance less the row's own square (N,)."""
    square, labels, low = centers.square().sum(1), guess.clone(), x.new_empty(len(x))
    chunks = [_chunks(t, len(centers)) for t in (x, labels, low)]
    # one table for all chunks: fresh pages cost a tenth of the product
    table = x.new_empty(len(chunks[0][0]), len(centers))
    for rows, label, least in zip(*chunks):
        far = torch.addmm(square, rows, centers.T, alpha=-2, out=table[: len(rows)])  # (b, K)
        if x.is_cuda:
            torch.min(far, 1, out=(least, label))
            continue
        torch.amin(far, 1, out=least)
        # on CPUs argmin takes ten times as long as amin: only for rows whose guess was wrong
        wrong = (far.gather(1, label[:, None])[:, 0] > least).nonzero()[:, 0]
        label[wrong] = far.index_select(0, wrong).argmin(1)
    return labels, low


def _candidates(closest, size, generator):
    """Rows (R,) drawn by squared distance, and the distance that keeps each a candidate (R,)."""
    # summed on the CPU: on CUDA the last digit of a cumsum is left to chance
    total = closest.cpu().cumsum(0, dtype=torch.float64)
    at, luck = _draw(torch.rand, total, 2, size, generator=generator, dtype=torch.float64)
    rows = torch.searchsorted(total, at * total[-1], right=True).clamp_(max=len(total) - 1)
    rows = rows.to(closest.device)
    return rows, luck.to(closest) * closest[rows]


def _plusplus(x, k, generator):
    """Greedy k-means++: k rows of x (k, D), each the best of 2 + log k that squared distance draws.

    One choice after the other would compare 2 + log k rows with all others, k times over: slow, for
    want of arithmetic per byte. So a pool of candidates is drawn at once, measured in one matrix
    product, and serves many choices. It is out of date after the first. But distances only shrink:
    a candidate taken with probability (distance now) / (distance when drawn) follows exactly the
    distribution of now.
    """
    square, trials = _squares(x), 2 + int(math.log(k))
    # choices that a pool may serve: a table of 64 MB, or a sixteenth of x
    longest = max(1, max(2**24, x.numel() // 16) // (trials * len(x)))
    table, trial = x.new_empty(longest * trials, len(x)), x.new_empty(trials, len(x))

    def distances(rows):  # (R,) -> (R, N)
        out = torch.mm(-2 * x.index_select(0, rows), x.T, out=table[: len(rows)])
        return out.add_(square).add_(square[rows, None])

    chosen = _draw(torch.randint, x, len(x), (1,), generator=generator)  # (1,)
    closest = distances(chosen)[0].clamp(min=0)  # (N,)
    while len(chosen) < k:
        # the more centers there are, the less a new one changes, and the longer a pool stays fresh
        size = trials * max(1, min(len(chosen) // 4, longest))
        pool, bar = _candidates(closest, size, generator)  # (R,)
        far, used = distances(pool), 0
        while len(chosen) < k:
            taken = used + (bar[used:] <= closest[pool[used:]]).nonzero()[:trials, 0]  # (trials,)
            if len(taken) < trials:
                break
            torch.index_select(far, 0, taken, out=trial)
            best = torch.minimum(trial, closest, out=trial).sum(1).argmin()
            closest, chosen = trial[best].clamp(min=0), torch.cat([chosen, pool[taken[best], None]])
            used = taken[-1] + 1
    return x[chosen]


def _first_centers(x, mean, k, init, generator):
    if isinstance(init, Tensor):
        _check_rows(init, "init", k, x.shape[1])
        return init.to(x) - mean
    if init == "++":
        return _plusplus(x, k, generator)
    if init == "random":
        return x[_draw(torch.randperm, x, len(x), generator=generator)[:k]]
    raise ValueError(f'init must be "++", "random" or a tensor of centers, not {init!r}')


def _update(x, centers, labels, low):
    """The clusters' means (K, D). An empty cluster takes, in place, one of the farthest rows."""
    size = labels.bincount(minlength=len(centers))
    empty = (size == 0).nonzero()[:, 0]
    if len(empty):
        distance, rows = (low + _squares(x)).topk(len(empty))
        away = distance > 0  # a row on its center would start nothing new
        labels[rows[away]] = empty[away]
        size = labels.bincount(minlength=len(centers))
    # sums by cluster; index_add_ would do, but on CUDA it adds in any order
    sums = F.embedding_bag(labels.argsort(stable=True), x, size.cumsum(0) - size, mode="sum")
    return torch.where(size[:, None] > 0, sums / size[:, None].clamp(min=1), centers)


@torch.no_grad()
def kmeans(x: Tensor, k: int, iters=100, generator=None, init="++") -> tuple[Tensor, Tensor]:
    """Lloyd's k-means: centers (k, D), labels (N,) int64, each row's closest returned center.

    x (N, D), on any device. At most `iters` updates of the centers, fewer once no label changes.
    `init` is "++" (greedy k-means++), "random" (k different rows) or the first centers (k, D). An
    empty cluster begins again at the row farthest from its own center (several: one row each).
    Takes a centred copy of x, SCRATCH and a few numbers a row; "++" another 64 MB, or a sixteenth
    of x, or about 4 + 2 log k numbers a row. The same generator state gives the same result on CUDA
    too: no step adds in an order left to chance. Raises ValueError for arguments that do not fit.
    """
    _check_rows(x, "x")
    if not 1 <= k <= len(x):
        raise ValueError(f"k must be within 1 and the number of rows ({len(x)}), not {k}")
    x = _floats(x)
    mean = x.mean(0)
    # |c|^2 - 2 x.c loses its digits where the rows' common mean is long beside their spread
    x = x - mean
    centers = _first_centers(x, mean, k, init, generator)

    labels = torch.zeros(len(x), dtype=torch.long, device=x.device)
    for i in range(iters):
        closest, low = _assign(x, centers, labels)
        if i > 0 and torch.equal(closest, labels):
            return centers + mean, labels  # the centers are these labels' means already
        labels = closest
        centers = _update(x, centers, labels, low)
    return centers + mean, _assign(x, centers, labels)[0]


class Moved(NamedTuple):
    """What a bridge made of audio vectors (B, D), and of which rows of the memory."""

    z: Tensor  # (B, D)
    rows: Tensor | None = None  # (B, R), -1 where fewer than R were retrieved; None: nothing was
    weights: Tensor | None = None  # (B, R), each row's share in the text that was blended
    cluster: Tensor | None = None  # (B,)


class Santa(nn.Module):
    """Strongly-related noisy text with audio: section 3.4, Eq. 6-7.

    memory (M, D): noisy text vectors; centers (K, D) and labels (M,) from `kmeans`; L rows
    retrieved, temperature tau, share of the text lam. `clean` (M, D) are the same texts without
    noise, `variance` that noise: other bridges need them, Santa's forward does not. All tensors are
    buffers, so .to(device) moves them. Row i of the memory stays text i: `texts` are the M texts,
    each None where only its vector is known; they show what was retrieved, and compute nothing.
    """

    def __init__(
        self,
        memory,
        centers,
        labels,
        L=32,
        tau=0.1,
        lam=0.3,
        clean=None,
        variance=0.015,
        texts: list[str | None] | None = None,
    ):
        super().__init__()
        _check_rows(memory, "memory")
        _check_rows(centers, "centers", width=memory.shape[1])
        if clean is not None:
            _check_rows(clean, "clean", *memory.shape)
        if labels.shape != memory.shape[:1] or labels.min() < 0 or labels.max() >= len(centers):
            raise ValueError(f"labels must be ({len(memory)},) integers below {len(centers)}")
        if int(L) != L or L < 1 or not tau > 0 or not 0 <= lam <= 1:
            raise ValueError(f"need a whole L >= 1, tau > 0, 0 <= lam <= 1, not {L}, {tau}, {lam}")
        _check_texts(texts, len(memory))
        self.L, self.tau, self.lam, self.variance = int(L), tau, lam, variance
        self.texts = texts
        # numbers that a query takes
        self.scratch = max(len(memory), (self.L + SLACK) * memory.shape[1])
        self.register_buffer("memory", _floats(memory))
        self.register_buffer("centers", centers.to(self.memory))
        self.register_buffer("clean", None if clean is None else clean.to(self.memory))
        self.register_buffer("labels", labels.to(memory.device, torch.long))

    @classmethod
    @torch.no_grad()
    def build(
        cls,
        text_vectors,
        m=5172,
        k=100,
        variance=0.015,
        generator=None,
        texts: list[str | None] | None = None,
        **hyper,
    ) -> "Santa":
        """A Santa on m random rows of text_vectors (N, D), all where N <= m: noise, then k-means.

        `variance` 0 gives the clean memory of Table 4's w/o GN; `hyper` are L, tau and lam. `texts`
        are the N texts themselves. Raises ValueError if there are fewer rows than k clusters, or
        another number of texts.
        """
        _check_rows(text_vectors, "text_vectors")
        _check_texts(texts, len(text_vectors))
        order = _draw(torch.randperm, text_vectors, len(text_vectors), generator=generator)[:m]
        clean = _unit(text_vectors[order])
        if k > len(clean):
            found = f"{len(clean)} memory rows (m = {m}, {len(text_vectors)} texts)"
            raise ValueError(
                f"{k} clusters from {found}: lower k (the paper has 50 rows a cluster)"
            )
        memory = add_noise(clean, variance, generator)
        centers, labels = kmeans(memory, k, generator=generator)
        hyper |= {"clean": clean, "variance": variance}
        kept = None if texts is None else [texts[i] for i in order.tolist()]
        return cls(memory, centers, labels, texts=kept, **hyper)

    def but(self, **changes) -> "Santa":
        """This Santa with some other arguments, as in santa.but(tau=0.05). Tensors are shared."""
        names = ("memory", "centers", "labels", "L", "tau", "lam", "clean", "variance", "texts")
        return Santa(**{name: getattr(self, name) for name in names} | changes)

    @torch.no_grad()
    def retrieve(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of the memory (B, min(L, M)), closest first; valid (same); cluster (B,), Eq. 6.

        z (B, D) is taken as it is. In a cluster of fewer rows, the last ones are not valid.
        """
        # without a matrix product, whose rounding would depend on the batch
        far = torch.cdist(z, self.centers, compute_mode="donot_use_mm_for_euclid_dist")  # (B, K)
        empty = self.labels.bincount(minlength=len(self.centers)) == 0  # no rows to retrieve
        cluster = far.masked_fill(empty, math.inf).argmin(1)
        # One matrix product over the whole memory is cheaper than gathering clusters of all sizes.
        # Its rounding depends on the batch: it makes a shortlist, which true distances then rank.
        rough = torch.addmm(self.memory.square().sum(1), z, self.memory.T, alpha=-2)  # (B, M)
        rough = rough.masked_fill(self.labels != cluster[:, None], math.inf)
        size = min(self.L + SLACK, len(self.memory))
        rows = rough.topk(size, largest=False).indices  # (B, L + SLACK)
        far = (self.memory[rows] - z[:, None]).square().sum(-1)
        far = far.masked_fill(self.labels[rows] != cluster[:, None], math.inf)
        far, best = far.topk(min(self.L, len(self.memory)), largest=False)  # (B, L)
        return rows.gather(1, best), far < math.inf, cluster

    def blend(self, a: Tensor, rows: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Eq. 7: a (B, D), rows (B, L, D), valid (B, L) -> (B, D), and the rows' weights (B, L)."""
        scores = (rows * a[:, None]).sum(-1).masked_fill(~valid, -math.inf)  # (B, L)
        weights = (scores / self.tau).softmax(-1)
        return (1 - self.lam) * a + self.lam * (weights[..., None] * rows).sum(1), weights

    def move(self, a: Tensor) -> Moved:
        """Eq. 6-7 of unit vectors a (B, D)."""
        rows, valid, cluster = self.retrieve(a)
        z, weights = self.blend(a, self.memory[rows], valid)
        return Moved(z, rows.masked_fill(~valid, -1), weights, cluster)

    @torch.no_grad()
    def forward(self, z: Tensor) -> Tensor:
        """(1 - lam) a + lam (softmax(a.m_i / tau) m_i), Eq. 6-7, for audio z (B, D) of any length.

        a = z/|z|; the m_i are the L rows closest to a in the cluster of the closest center, or all
        if it has fewer. Not normalised: neither is Eq. 7, and the mapper normalises its input.
        Computed where the memory is, returned where z is; no row depends on the rest of the batch.
        """
        return Bridge(self.move, self, self.scratch)(z)

    def save(self, path):
        """Writes buffers, texts and hyper-parameters to one safetensors file."""
        hyper = {name: getattr(self, name) for name in ("L", "tau", "lam", "variance")}
        state = self.state_dict()  # copied, because safetensors refuses tensors that share memory
        copies = {name: state[name].clone(memory_format=torch.contiguous_format) for name in state}
        if self.texts is not None:  # as bytes, because metadata ends at 100 MB
            copies["texts"] = torch.frombuffer(
                bytearray(json.dumps(self.texts), "ascii"), dtype=torch.uint8
            )
        write_tensors(copies, path, metadata={"santa": json.dumps(hyper)})

    @staticmethod
    def hyper(path) -> dict:
        """{"L", "tau", "lam", "variance"} of a file that `save` wrote, without its tensors.

        Raises DataError where it is damaged, or another kind of file.
        """
        advice = "Santa.build(...).save(path) writes a memory"
        with reading(f"{path} {seems(path)}", advice), safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        if "santa" not in metadata:
            raise DataError(f"{path} is not a Santa memory; {advice}")
        with reading(f"{path}", advice):
            return json.loads(metadata["santa"])

    @classmethod
    def load(cls, path, device: str | torch.device = "cpu") -> "Santa":
        """A Santa as `save` wrote it. Raises DataError where it is damaged, or another file."""
        hyper, tensors = cls.hyper(path), read_tensors(path, device)
        with reading(
            str(path), "damaged, or of another version; train.py and Santa.save write one"
        ):
            texts = tensors.pop("texts", None)  # older files have none
            if texts is not None:
                texts = json.loads(bytes(texts.cpu().numpy()))
            for name, tensor in tensors.items():
                if not tensor.isfinite().all():
                    raise ValueError(f"{name} holds NaN or infinity")
            return cls(**tensors, **hyper, texts=texts)


# --- the other bridges ---

BRIDGES = {  # a is the unit audio vector, S the memory's texts, without noise unless stated
    "none": "a: noise while training and nothing at inference (NoAudioCaptioning)",
    "nearest": "the text of S closest to a",
    "memory": "softmax(a S^T / tau) S (DRCap)",
    "projection": "softmax(100 a S^T) S, normalised (DeCap, WSAC)",
    "shift": "a - mean of all audio + mean of S (C3); needs audio_mean",
    "santa": "Eq. 6-7",
    "santa-kmeans": "Santa without k-means: the L closest rows of the whole memory (Table 4)",
    "santa-mb": "Santa without its memory bank, which is `none` under Table 4's name",
    "santa-ae": "Santa without the audio vector: lam = 1 (Table 4)",
    "santa-gn": "Santa on the memory without noise (Table 4, which also trains without it)",
    "official": "Santa as released: raw audio, clean clusters, fresh noise on the retrieved rows",
}

SANTAS = {  # Santa with other settings; without k-means, one cluster holds all
    "santa": lambda santa: santa,
    "santa-ae": lambda santa: santa.but(lam=1.0),
    "santa-kmeans": lambda santa: santa.but(centers=santa.memory[:1], labels=0 * santa.labels),
}


def _nearest(a, S):
    rows = (a @ S.T).argmax(1)  # (B,)
    return Moved(S[rows], rows[:, None], a.new_ones(len(a), 1))


def _weighted(scores, S):
    """The rows of S (M, D), weighted with softmax(scores), of scores (B, M)."""
    weights = scores.softmax(-1)
    return Moved(weights @ S, torch.arange(len(S), device=S.device).expand_as(weights), weights)


def _normal(moved):
    return moved._replace(z=_unit(moved.z))


EQUATIONS = {  # of a (B, D), S (M, D), Santa's tau and the audio's mean (D,): Moved
    "nearest": lambda a, S, tau, mean: _nearest(a, S),
    "memory": lambda a, S, tau, mean: _weighted(a @ S.T / tau, S),
    "projection": lambda a, S, tau, mean: _normal(_weighted(100 * a @ S.T, S)),
    "shift": lambda a, S, tau, mean: Moved(a + (S.mean(0) - mean.to(S))),
}

RELEASED_NORM = 32.0  # of msclap's audio vectors, which the released code does not normalise


class Cluster(NamedTuple):
    number: int  # from 0, as in Santa.labels
    size: int  # rows of the memory in it
    of: int  # clusters (K)


class Retrieved(NamedTuple):
    row: int  # of the memory
    weight: float
    text: str | None  # None where the memory keeps only its vector


class Explanation(NamedTuple):
    """What a bridge did to one vector."""

    cosine: float  # between the vector and the bridge's output
    degrees: float  # the same as an angle
    cluster: Cluster | None  # None: a bridge without clusters, or with one for all
    retrieved: list[Retrieved]  # the heaviest first; empty: the bridge retrieves nothing
    more: int  # rows that were retrieved beside these


@dataclass(frozen=True)
class Bridge:
    """One of BRIDGES: a function of audio vectors (B, D), any length -> (B, D).

    Computed where the memory is, returned where z is.
    """

    move: Callable[[Tensor], Moved]  # of some rows
    santa: Santa | None = None  # whose memory `move` reads
    scratch: int = 0  # numbers that a row takes in `move`
    prepare: Callable[[Tensor], Tensor] = _unit  # of z, before `move`

    def _chunks(self, z):
        """z prepared, in chunks, with the memory's precision and device."""
        z = self.prepare(z)
        if self.santa is None:
            return [z]
        memory = self.santa.memory
        if z.ndim != 2 or z.shape[1] != memory.shape[1]:
            raise ValueError(f"z must be (B, {memory.shape[1]}), not {tuple(z.shape)}")
        return _chunks(z.to(memory), self.scratch)

    @torch.no_grad()
    def __call__(self, z: Tensor) -> Tensor:
        return torch.cat([self.move(a).z for a in self._chunks(z)]).to(z.device)

    @torch.no_grad()
    def explain(self, z: Tensor, top: int = 5) -> tuple[Tensor, list[Explanation]]:
        """What a call gives, and how each row came about: its `top` heaviest rows of the memory.

        The weights are those of this very call, and add up to 1 over all retrieved rows. Those of
        `memory` and `projection` are all of the memory's. `official` blends noisy copies of them,
        of some rows several.
        """
        outputs, explanations = [], []
        for a in self._chunks(z):
            moved = self.move(a)
            outputs.append(moved.z)
            explanations += self._explanations(a, moved, top)
        return torch.cat(outputs).to(z.device), explanations

    def _explanations(self, a, moved, top):
        """Of each row of a (b, D) its Explanation."""
        before, after = _unit(a.double()), _unit(moved.z.double())  # (b, D)
        apart = 2 * torch.atan2((before - after).norm(dim=1), (before + after).norm(dim=1))  # (b,)
        found = zip(
            apart.tolist(), self._clusters(moved, len(a)), self._retrieved(moved, len(a), top)
        )
        return [
            Explanation(math.cos(angle), math.degrees(angle), cluster, *rows)
            for angle, cluster, rows in found
        ]

    def _clusters(self, moved, b):
        if moved.cluster is None or len(self.santa.centers) == 1:
            return [None] * b
        sizes = self.santa.labels.bincount(minlength=len(self.santa.centers)).tolist()
        return [Cluster(k, sizes[k], len(sizes)) for k in moved.cluster.tolist()]

    def _retrieved(self, moved, b, top):
        """Of each of b rows: ([Retrieved] of the heaviest, how many more were retrieved)."""
        if moved.rows is None:
            return [([], 0)] * b
        texts = self.santa.texts or [None] * len(self.santa.memory)
        weights = moved.weights.masked_fill(moved.rows < 0, -1)  # below those that underflow to 0
        weights, best = weights.topk(min(top, weights.shape[1]))  # (b, top)
        rows, counts = moved.rows.gather(1, best), (moved.rows >= 0).sum(1)
        found = []
        for row, weight, count in zip(rows.tolist(), weights.tolist(), counts.tolist()):
            shown = [Retrieved(i, w, texts[i]) for i, w in zip(row, weight) if i >= 0]
            found.append((shown, count - len(shown)))
        return found


def bridge(name: str, santa: Santa | None = None, audio_mean=None, generator=None) -> Bridge:
    """The bridge of that name in BRIDGES: a function of audio vectors (B, D), any length -> (B, D).

    All but `official` see unit vectors. All but `none` and `santa-mb` need `santa` for its memory;
    those that read texts without noise, as their authors do, need its `clean`. `shift` needs
    audio_mean (D,), of unit audio vectors. DRCap's temperature is Santa's tau. `santa-gn` and
    `official` cluster with the generator when they are made; `official` draws noise at each call.
    Raises ValueError for an unknown name, or if one of these is missing.
    """
    if name not in BRIDGES:
        raise ValueError(f"no bridge {name!r}; there are {', '.join(BRIDGES)}")
    if name in ("none", "santa-mb"):
        return Bridge(Moved)
    if santa is None:
        raise ValueError(f"{name} needs a memory: Santa.build(text_vectors) or Santa.load(path)")
    if name in SANTAS:
        santa = SANTAS[name](santa)
        return Bridge(santa.move, santa, santa.scratch)
    if santa.clean is None:
        raise ValueError(f"{name} needs texts without noise: Santa.build or Santa(clean=...)")
    S = _unit(santa.clean)
    if name == "santa-gn":
        centers, labels = kmeans(S, len(santa.centers), generator=generator)
        santa = santa.but(memory=S, centers=centers, labels=labels)
        return Bridge(santa.move, santa, santa.scratch)
    if name == "official":
        return _official(santa, S, generator)
    if name == "shift" and (audio_mean is None or audio_mean.shape != S.shape[1:]):
        raise ValueError(f"shift needs audio_mean ({S.shape[1]},): the mean of unit audio vectors")
    equation = partial(EQUATIONS[name], S=S, tau=santa.tau, mean=audio_mean)
    return Bridge(equation, santa, len(S))


def _official(santa, S, generator):
    """Santa as the released code computes it, on the memory's clean texts S.

    The clusters come from 10 Lloyd iterations, begun at random rows. Distance, dot product and
    blend take the audio vector as it comes. msclap's have length 32 or so, which outweighs the
    texts; on unit vectors it is another method. Each call draws new noise on the retrieved rows. A
    cluster smaller than L is filled up with copies of its first row, each with its own noise. The
    released code crashes on an empty cluster; this takes the closest one with rows.
    """
    centers, labels = kmeans(S, len(santa.centers), 10, generator, "random")
    santa = santa.but(memory=S, centers=centers, labels=labels)

    def move(z):
        rows, valid, cluster = santa.retrieve(z)
        missing = (0, santa.L - rows.shape[1])
        rows, valid = F.pad(rows, missing), F.pad(valid, missing)  # (B, L)
        first = (santa.labels == cluster[:, None]).byte().argmax(1, keepdim=True)  # (B, 1)
        rows = torch.where(valid, rows, first)
        noisy = add_noise(santa.memory[rows], santa.variance, generator)
        blended, weights = santa.blend(z, noisy, torch.ones_like(valid))
        return Moved(blended, rows, weights, cluster)

    return Bridge(move, santa, santa.scratch, prepare=lambda z: z)


# --- measures of the gap ---


def _pairs(text, audio):
    _check_rows(text, "text")
    _check_rows(audio, "audio", *text.shape)
    return _unit(text.double()), _unit(audio.to(text.device, torch.float64))


@torch.no_grad()
def noise_variance(text: Tensor, audio: Tensor, n: int = 30, generator=None) -> float:
    """The variance of training noise that reaches across the gap (section 3.2).

    text (N, D), audio (N, D): row i of both describes one clip. Each of n random pairs (at most N)
    has a largest absolute difference between its two unit vectors. Their mean is a standard
    deviation, its square the variance (Deshmukh et al. 2024). Raises ValueError if shapes differ.
    """
    text, audio = _pairs(text, audio)
    pick = _draw(torch.randperm, text, len(text), generator=generator)[:n]
    return (text[pick] - audio[pick]).abs().amax(1).mean().item() ** 2


def _recall(queries, items, ks):
    """For each k, the share of queries whose own item is among the k most similar; ties share."""
    hits, start = dict.fromkeys(ks, 0.0), 0
    for q in _chunks(queries, len(items)):
        similar = (1e9 * q @ items.T).round()  # (b, N), equal for equal items on every CPU
        own = similar.diagonal(start)[:, None]
        above, level = (similar > own).sum(1), (similar == own).sum(1)
        for k in ks:
            hits[k] += ((k - above) / level).clamp(0, 1).sum().item()
        start += len(q)
    return [hits[k] / len(queries) for k in ks]


@torch.no_grad()
def gap(text: Tensor, audio: Tensor, folds: int = 5) -> dict[str, float]:
    """How far apart the modalities are, which the discrepancy of Theorem 3.1 depends on.

    text (N, D), audio (N, D), perhaps across a bridge: rows i describe one clip. On unit vectors:
        centroid_distance       between the two means, 0 to 2
        paired_cosine           mean over pairs
        audio_to_text_R@1, @10  share of audio whose own text is among the 1 or 10 closest of all N
        text_to_audio_R@1, @10  the same from text to audio
        classifier_error        of cross-validated logistic regression that tells them apart (a pair
                                is in one fold): 0 where it can, 0.5 where it cannot
        a_distance              proxy A-distance max(0, 2 (1 - 2 classifier_error)), 0 to 2
    Raises ValueError if their shapes differ or there are fewer pairs than folds.
    """
    # imported here, so that everything else runs without loading scikit-learn
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict

    text, audio = _pairs(text, audio)
    if len(text) < folds:
        raise ValueError(f"{len(text)} pairs cannot be split into {folds} folds")
    row, both = torch.arange(2 * len(text)), torch.cat([text, audio]).cpu().numpy()
    is_audio, pair = (row >= len(text)).numpy(), (row % len(text)).numpy()
    classifier, split = LogisticRegression(max_iter=1000), GroupKFold(folds)
    guess = cross_val_predict(classifier, both, is_audio, groups=pair, cv=split)
    error = (guess != is_audio).mean().item()
    from_audio, from_text = _recall(audio, text, (1, 10)), _recall(text, audio, (1, 10))
    return {
        "centroid_distance": (text.mean(0) - audio.mean(0)).norm().item(),
        "paired_cosine": (text * audio).sum(1).mean().item(),
        "audio_to_text_R@1": from_audio[0],
        "audio_to_text_R@10": from_audio[1],
        "text_to_audio_R@1": from_text[0],
        "text_to_audio_R@10": from_text[1],
        "classifier_error": error,
        "a_distance": max(0.0, 2 * (1 - 2 * error)),
    }
