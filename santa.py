"""Santa and the other bridges over CLAP's modality gap: audio vectors in, vectors that a mapper trained on text can trust.

    texts ──► add_noise ──► memory (M, D) ──► kmeans ──► centers (K, D), labels (M,)            Santa.build, once
    audio z (B, D) ──► closest center ──► its L closest rows ──► (1 - lam) z + lam (w rows)     Santa.forward (Eq. 6-7)

`bridge(name, santa)` gives any of BRIDGES as a function (B, D) -> (B, D); `noise_variance` and `gap` measure the gap itself.
Tensors only, nothing learned, no gradients: a CLAP, a mapper and a language model are other files' business. Randomness is
drawn on the generator's device and then moved, so a CPU generator gives the same numbers whatever device the tensors are on.
"""

import json
import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

SCRATCH = {
    "cpu": 2**22,
    "cuda": 2**27,
}  # numbers in a chunked step's largest temporary: a CPU's cache, or half a GB of a GPU
SLACK = 32  # rows beyond L that Santa's float32 shortlist keeps for the exact ranking


def _floats(x):
    """float32, or float64 where it is that already: half precision would round the noise and the distances."""
    return x if x.dtype == torch.float64 else x.float()


def _unit(x):
    return F.normalize(_floats(x), dim=-1)


def _draw(draw, like, *size, generator=None, **kw):
    device = like.device if generator is None else generator.device
    return draw(*size, generator=generator, device=device, **kw).to(like.device)


def _chunks(x, row):
    """Views of x of so many rows that temporaries of `row` numbers a row stay within SCRATCH; results do not depend on it."""
    return x.split(max(1, SCRATCH.get(x.device.type, SCRATCH["cuda"]) // row))


def _over(f, z, memory, row):
    """f over z (B, D) in such chunks, in the memory's precision and place, and back to where z is."""
    if z.ndim != 2 or z.shape[1] != memory.shape[1]:
        raise ValueError(f"z must be (B, {memory.shape[1]}), not {tuple(z.shape)}")
    return torch.cat([f(a) for a in _chunks(z.to(memory), row)]).to(z.device)


def _check_rows(x, what):
    if x.ndim != 2 or not x.is_floating_point() or 0 in x.shape:
        raise ValueError(
            f"{what} must be a non-empty (rows, D) float tensor, not {tuple(x.shape)} of {x.dtype}"
        )
    bad = (
        [] if x.sum().isfinite() else (~x.isfinite().all(1)).nonzero()
    )  # the sum is the cheaper question
    if len(bad):
        raise ValueError(
            f"{what}: row {bad[0].item()} is not finite"
            + f" (and {len(bad) - 1} more)" * (len(bad) > 1)
        )


@torch.no_grad()
def add_noise(z, variance, generator=None):
    """Eq. 1's E_T(T) + eps on the unit sphere: normalise, add N(0, variance) to each dimension, normalise.

    z (..., D) of any length and device -> unit vectors (..., D), float32 (float64 stays). `variance` is the square of the
    noise's standard deviation per dimension (paper: 0.015, i.e. 0.1225: in 1024-d the result's cosine with z is 0.25); 0
    only normalises. Raises ValueError where it is negative or not finite.
    """
    if not 0 <= variance < math.inf:
        raise ValueError(f"variance must be a finite number >= 0, not {variance}")
    z = _unit(z)
    if variance == 0:
        return z
    return _unit(
        z + math.sqrt(variance) * _draw(torch.randn, z, *z.shape, generator=generator).to(z.dtype)
    )


# --- k-means --------------------------------------------------------------------------------------------------------------


def _squares(x):
    """(N, D) -> (N,): squared lengths, without a second x in memory."""
    return torch.cat([rows.square().sum(1) for rows in _chunks(x, x.shape[1])])


def _assign(x, centers, labels):
    """Each row's closest center (N,), where `labels` was a guess, and its squared distance less the row's own square (N,)."""
    square, labels, low = centers.square().sum(1), labels.clone(), x.new_empty(len(x))
    chunks = [_chunks(t, len(centers)) for t in (x, labels, low)]
    table = x.new_empty(
        len(chunks[0][0]), len(centers)
    )  # one for all: fresh pages cost a tenth of the product
    for rows, label, least in zip(*chunks):
        far = torch.addmm(square, rows, centers.T, alpha=-2, out=table[: len(rows)])  # (b, K)
        if x.is_cuda:
            torch.min(far, 1, out=(least, label))
            continue
        torch.amin(far, 1, out=least)
        # on CPUs argmin takes ten times as long as amin: only for the rows whose guess is not the closest
        wrong = (far.gather(1, label[:, None])[:, 0] > least).nonzero()[:, 0]
        label[wrong] = far.index_select(0, wrong).argmin(1)
    return labels, low


def _plusplus(x, k, generator):
    """Greedy k-means++: k rows of x (k, D), each the best of 2 + log k candidates drawn by squared distance.

    Candidates that follow one another would be 2 + log k rows against all others, K times over: slow for want of arithmetic
    per byte. Drawn instead many at a time and measured in one matrix product, they are out of date after the first choice;
    but distances only shrink, so taking a candidate with probability (distance now) / (distance when drawn) leaves exactly
    the distribution of now.
    """
    square, trials = _squares(x), 2 + int(math.log(k))
    longest = max(
        1, max(2**24, x.numel() // 16) // (trials * len(x))
    )  # choices that a pool may serve: a table of 64 MB or x's sixteenth
    table, trial = x.new_empty(longest * trials, len(x)), x.new_empty(trials, len(x))

    def distances(rows):  # (R,) -> (R, N)
        out = torch.mm(-2 * x.index_select(0, rows), x.T, out=table[: len(rows)])
        return out.add_(square).add_(square[rows, None])

    chosen = _draw(torch.randint, x, len(x), (1,), generator=generator)  # (1,)
    closest = distances(chosen)[0].clamp(min=0)  # (N,)
    while len(chosen) < k:
        # the more centers there are, the less a new one changes, and the longer a pool stays fresh
        size = trials * max(1, min(len(chosen) // 4, longest))
        total = closest.cpu().cumsum(
            0, dtype=torch.float64
        )  # on CUDA the last digit of a cumsum is left to chance
        at, luck = _draw(torch.rand, total, 2, size, generator=generator, dtype=torch.float64)
        pool = (
            torch.searchsorted(total, at * total[-1], right=True)
            .clamp_(max=len(x) - 1)
            .to(x.device)
        )  # (R,)
        bar, used = luck.to(x) * closest[pool], 0
        distances(pool)
        while len(chosen) < k:
            taken = used + (bar[used:] <= closest[pool[used:]]).nonzero()[:trials, 0]  # (trials,)
            if len(taken) < trials:
                break
            torch.index_select(table, 0, taken, out=trial)
            best = torch.minimum(trial, closest, out=trial).sum(1).argmin()
            closest, chosen = trial[best].clamp(min=0), torch.cat([chosen, pool[taken[best], None]])
            used = taken[-1] + 1
    return x[chosen]


@torch.no_grad()
def kmeans(x, k, iters=100, generator=None, init="++"):
    """Lloyd's k-means, on x's device. x (N, D) -> centers (k, D), labels (N,) int64: each row's closest returned center.

    `iters` updates of the centers at most, fewer once no label changes. `init` is "++" (greedy k-means++), "random" (k
    different rows) or the first centers (k, D). A cluster left empty is begun again from the row farthest from its own
    center, which leaves its cluster for it (several: the farthest rows, one each). Takes a centred copy of x, SCRATCH and a
    few numbers a row; init "++" 64 MB, or a sixteenth of x, or about 4 + 2 log k numbers a row. The same generator state gives
    the same result, on CUDA too: no step adds in an order left to chance.

    Raises ValueError for k < 1, k > N, a row that is not finite (naming it), shapes that do not fit, an unknown init.
    """
    _check_rows(x, "x")
    if not 1 <= k <= len(x):
        raise ValueError(f"k must be within 1 and the number of rows ({len(x)}), not {k}")
    x = _floats(x)
    mean = x.mean(0)
    x = (
        x - mean
    )  # |c|^2 - 2 x.c loses its digits where the rows' common mean is long beside their spread
    if isinstance(init, torch.Tensor):
        _check_rows(init, "init")
        if init.shape != (k, x.shape[1]):
            raise ValueError(
                f"init must hold {k} centers of {x.shape[1]} dimensions, not {tuple(init.shape)}"
            )
        centers = init.to(x) - mean
    elif init == "++":
        centers = _plusplus(x, k, generator)
    elif init == "random":
        centers = x[_draw(torch.randperm, x, len(x), generator=generator)[:k]]
    else:
        raise ValueError(f'init must be "++", "random" or a tensor of centers, not {init!r}')

    labels = torch.zeros(len(x), dtype=torch.long, device=x.device)
    for i in range(iters):
        closest, low = _assign(x, centers, labels)
        if i > 0 and torch.equal(closest, labels):
            break  # the centers are these labels' means already
        labels, size = closest, closest.bincount(minlength=k)
        empty = (size == 0).nonzero()[:, 0]
        if len(empty):
            distance, far = (low + _squares(x)).topk(len(empty))
            labels[far[distance > 0]] = empty[
                distance > 0
            ]  # a row on its center would start nothing new
            size = labels.bincount(minlength=k)
        # sums by cluster; index_add_ would do, but on CUDA it adds in any order
        sums = F.embedding_bag(labels.argsort(stable=True), x, size.cumsum(0) - size, mode="sum")
        centers = torch.where(size[:, None] > 0, sums / size[:, None].clamp(min=1), centers)
    else:
        labels = _assign(x, centers, labels)[0]
    return centers + mean, labels


# --- Santa ----------------------------------------------------------------------------------------------------------------


class Santa(nn.Module):
    """Strongly-related noisy text with audio: section 3.4, Eq. 6-7.

    memory (M, D): noisy text vectors; centers (K, D) and labels (M,) from `kmeans`; L rows retrieved, temperature tau, share
    of the text lam. `clean` (M, D) are the same texts without noise and `variance` that noise: what the bridges other than
    Santa need, never its forward. All are buffers, so .to(device) moves them. The rows keep their order: row i of the memory
    is text i for whoever wants to see what was retrieved.
    """

    def __init__(self, memory, centers, labels, L=32, tau=0.1, lam=0.3, clean=None, variance=0.015):
        super().__init__()
        rows = {"memory": memory, "centers": centers} | ({} if clean is None else {"clean": clean})
        for name, x in rows.items():
            _check_rows(x, name)
            if x.shape[1] != memory.shape[1] or (name == "clean" and len(x) != len(memory)):
                raise ValueError(
                    f"{name} {tuple(x.shape)} does not fit a memory of {tuple(memory.shape)}"
                )
        if labels.shape != memory.shape[:1] or labels.min() < 0 or labels.max() >= len(centers):
            raise ValueError(
                f"labels must be ({len(memory)},) numbers of centers, 0 to {len(centers) - 1}"
            )
        if int(L) != L or L < 1 or not tau > 0 or not 0 <= lam <= 1:
            raise ValueError(
                f"need a whole L >= 1, tau > 0 and 0 <= lam <= 1, not {L}, {tau}, {lam}"
            )
        self.L, self.tau, self.lam, self.variance = int(L), tau, lam, variance
        self.scratch = max(
            len(memory), (self.L + SLACK) * memory.shape[1]
        )  # numbers that a query takes
        for name in ("memory", "centers", "clean"):
            self.register_buffer(name, rows[name].to(_floats(memory)) if name in rows else None)
        self.register_buffer("labels", labels.to(memory.device, torch.long))

    @classmethod
    @torch.no_grad()
    def build(cls, text_vectors, m=5172, k=100, variance=0.015, generator=None, **hyper):
        """A memory of m random rows of text_vectors (N, D) (all of them where N <= m), with noise, clustered with it.

        `variance` 0 gives the clean memory of Table 4's w/o GN; `hyper` are L, tau and lam. Raises ValueError where there
        are fewer rows than k clusters.
        """
        _check_rows(text_vectors, "text_vectors")
        clean = _unit(
            text_vectors[
                _draw(torch.randperm, text_vectors, len(text_vectors), generator=generator)[:m]
            ]
        )
        if k > len(clean):
            raise ValueError(
                f"{k} clusters from {len(clean)} memory rows (m = {m}, {len(text_vectors)} texts): "
                f"lower k to {len(clean)} or less (the paper has some 50 rows a cluster), or give more texts"
            )
        memory = add_noise(clean, variance, generator)
        return cls(
            memory, *kmeans(memory, k, generator=generator), clean=clean, variance=variance, **hyper
        )

    def but(self, **changes):
        """The same Santa but for some of the constructor's arguments: santa.but(tau=0.05). Tensors are shared."""
        names = ("memory", "centers", "labels", "L", "tau", "lam", "clean", "variance")
        return Santa(**{name: getattr(self, name) for name in names} | changes)

    @torch.no_grad()
    def retrieve(self, z):
        """z (B, D), taken as it is -> rows of the memory (B, min(L, M)), closest first; which of them count (same, bool): not
        the last ones where the cluster is smaller; and the closest cluster (B,)."""
        far = torch.cdist(
            z, self.centers, compute_mode="donot_use_mm_for_euclid_dist"
        )  # (B, K), Eq. 6
        full = self.labels.bincount(minlength=len(self.centers)) > 0
        closest = far.masked_fill(~full, math.inf).argmin(
            1
        )  # a center without rows has nothing to give
        # One matrix product over the whole memory is cheaper than gathering clusters of all sizes. Its rounding depends on
        # the batch, so it only makes a shortlist, and what ranks are the true distances, the same in any batch.
        rough = torch.addmm(self.memory.square().sum(1), z, self.memory.T, alpha=-2)  # (B, M)
        rough = rough.masked_fill(self.labels != closest[:, None], math.inf)
        rows = rough.topk(
            min(self.L + SLACK, len(self.memory)), largest=False
        ).indices  # (B, L + SLACK)
        far = (self.memory[rows] - z[:, None]).square().sum(-1)
        far = far.masked_fill(self.labels[rows] != closest[:, None], math.inf)
        far, best = far.topk(min(self.L, len(self.memory)), largest=False)  # (B, L)
        return rows.gather(1, best), far < math.inf, closest

    def blend(self, a, rows, valid):
        """a (B, D), rows (B, L, D), valid (B, L) -> (B, D): Eq. 7."""
        scores = (rows * a[:, None]).sum(-1).masked_fill(~valid, -math.inf)  # (B, L)
        return (1 - self.lam) * a + self.lam * (
            (scores / self.tau).softmax(-1)[..., None] * rows
        ).sum(1)

    @torch.no_grad()
    def forward(self, z):
        """Eq. 6-7. z (B, D), audio vectors of any length -> (B, D): (1 - lam) a + lam (softmax(a.m_i / tau) m_i), a = z/|z|.

        The L rows m_i are those closest to a in the cluster whose center is closest; fewer where the cluster is smaller. Not
        normalised again: Eq. 7 does not, and the mapper normalises its input anyway. Computed where the memory lives,
        returned where z lives; a row's result does not depend on the rest of the batch.
        """

        def across(a):
            rows, valid, _ = self.retrieve(a)
            return self.blend(a, self.memory[rows], valid)

        return _over(across, _unit(z), self.memory, self.scratch)

    def save(self, path):
        """Writes buffers and hyper-parameters to one safetensors file."""
        hyper = {name: getattr(self, name) for name in ("L", "tau", "lam", "variance")}
        buffers = {
            k: v.clone(memory_format=torch.contiguous_format) for k, v in self.state_dict().items()
        }  # none shared
        save_file(buffers, path, metadata={"santa": json.dumps(hyper)})

    @classmethod
    def load(cls, path, device="cpu"):
        """A Santa as `save` wrote it. Raises ValueError where the file is another kind of safetensors."""
        with safe_open(path, "pt", device=str(device)) as f:
            if "santa" not in (f.metadata() or {}):
                raise ValueError(
                    f"{path} is not a Santa memory: write one with Santa.build(...).save(path)"
                )
            return cls(
                **{k: f.get_tensor(k) for k in f.keys()}, **json.loads(f.metadata()["santa"])
            )


# --- the other bridges ----------------------------------------------------------------------------------------------------

BRIDGES = {  # a is the unit audio vector, S the memory's texts, without noise where not said otherwise
    "none": "a: noise while training and nothing at inference (NoAudioCaptioning)",
    "nearest": "the text of S closest to a",
    "memory": "softmax(a S^T / tau) S (DRCap)",
    "projection": "softmax(100 a S^T) S, normalised (DeCap, WSAC)",
    "shift": "a - mean of the audio + mean of S (C3); needs audio_mean",
    "santa": "Eq. 6-7",
    "santa-kmeans": "Santa without k-means: the L closest rows of the whole memory (Table 4)",
    "santa-mb": "Santa without its memory bank, which is `none` under Table 4's name",
    "santa-ae": "Santa without the audio vector: lam = 1 (Table 4)",
    "santa-gn": "Santa on the memory without noise (Table 4, whose row also leaves it out while training)",
    "official": "Santa as released: raw audio, clusters of clean texts, fresh noise on what is retrieved",
}


RELEASED_NORM = 32.0  # of msclap's audio vectors, which the released code does not normalise: what `official` should be handed


def bridge(name, santa=None, audio_mean=None, generator=None):
    """The bridge of that name in BRIDGES, a function of audio vectors (B, D), of any length -> (B, D).

    All but `official` see unit vectors, and all but `none` and `santa-mb` need `santa` for its memory; those that read the
    texts without noise, as their authors do, need its `clean`. audio_mean (D,): mean of unit audio vectors, for `shift`.
    DRCap's temperature is Santa's tau. The generator is for `santa-gn` and `official`, which cluster when they are made, and
    for official's noise.

    `official` is what the released code does: clusters from 10 Lloyd iterations on clean texts, begun at random rows;
    distance, dot product and blend with the audio vector as it comes (msclap's have length 32 or so: hand it those, and the
    result is nearly that vector; on unit vectors it is another method); noise drawn anew on the retrieved rows at each call;
    a cluster smaller than L filled up with copies of its first row, each with noise of its own. Where it would crash, on an
    empty cluster, this takes the closest cluster that is not.

    Raises ValueError for an unknown name, and where santa, its clean texts or audio_mean is missing.
    """
    if name not in BRIDGES:
        raise ValueError(f"no bridge {name!r}; there are {', '.join(BRIDGES)}")
    if name in ("none", "santa-mb"):
        return torch.no_grad()(_unit)
    if santa is None:
        raise ValueError(
            f"bridge {name!r} needs a memory: Santa.build(text_vectors) or Santa.load(path)"
        )
    if name == "santa":
        return santa
    if name == "santa-ae":
        return santa.but(lam=1.0)
    if name == "santa-kmeans":  # one cluster holds all
        return santa.but(
            centers=santa.memory.mean(0, keepdim=True), labels=torch.zeros_like(santa.labels)
        )
    if santa.clean is None:
        raise ValueError(
            f"bridge {name!r} needs the memory's texts without noise: Santa.build keeps them, Santa(clean=...)"
        )
    S, k = _unit(santa.clean), len(santa.centers)
    if name == "santa-gn":
        return santa.but(
            memory=S, **dict(zip(("centers", "labels"), kmeans(S, k, generator=generator)))
        )
    if name == "official":
        centers, labels = kmeans(S, k, 10, generator, "random")
        return _official(santa.but(memory=S, centers=centers, labels=labels), generator)
    if name == "shift":
        if audio_mean is None or audio_mean.shape != S.shape[1:]:
            raise ValueError(
                f"bridge 'shift' needs audio_mean ({S.shape[1]},): the mean of unit audio vectors"
            )
        offset = S.mean(0) - audio_mean.to(S)
    to_text = {
        "nearest": lambda a: S[(a @ S.T).argmax(1)],
        "memory": lambda a: (a @ S.T / santa.tau).softmax(-1) @ S,
        "projection": lambda a: _unit((100 * a @ S.T).softmax(-1) @ S),
        "shift": lambda a: a + offset,
    }[name]

    return torch.no_grad()(lambda z: _over(to_text, _unit(z), S, len(S)))


def _official(santa, generator):
    count = torch.arange(len(santa.labels), device=santa.labels.device)
    first = torch.zeros(len(santa.centers), dtype=torch.long, device=count.device)
    first = first.scatter_reduce(
        0, santa.labels, count, "amin", include_self=False
    )  # (K,) each cluster's first row

    def across(a):
        rows, valid, closest = santa.retrieve(a)
        lacking = (0, santa.L - rows.shape[1])
        rows, valid = F.pad(rows, lacking), F.pad(valid, lacking)  # (B, L)
        rows = torch.where(valid, rows, first[closest][:, None])
        return santa.blend(
            a, add_noise(santa.memory[rows], santa.variance, generator), torch.ones_like(valid)
        )

    return torch.no_grad()(lambda z: _over(across, z, santa.memory, santa.scratch))


# --- measures of the gap --------------------------------------------------------------------------------------------------


def _pairs(text, audio):
    _check_rows(text, "text"), _check_rows(audio, "audio")
    if text.shape != audio.shape:
        raise ValueError(
            f"row i of text and of audio are a pair, so {tuple(text.shape)} and {tuple(audio.shape)} must match"
        )
    return _unit(text), _unit(audio).to(text.device)


@torch.no_grad()
def noise_variance(text, audio, n=30, generator=None):
    """The variance of training noise that reaches over the gap (section 3.2, after Deshmukh et al. 2024), a float.

    text (N, D), audio (N, D): row i of both describes one clip. Of n random pairs (all where N < n) the mean of the largest
    absolute difference between the two unit vectors is a standard deviation; its square is the variance. The paper's 0.015
    is 0.1225 squared. Raises ValueError where the two do not match.
    """
    text, audio = _pairs(text, audio)
    pick = _draw(torch.randperm, text, len(text), generator=generator)[:n]
    return (text[pick] - audio[pick]).abs().amax(1).mean().item() ** 2


def _recall(queries, items, ks):
    """For each k, the share of queries (N, D) whose own row of items (N, D) is among the k most similar.

    Ties count as drawn at random.
    """
    hits, start = [0.0] * len(ks), 0
    for q in _chunks(queries, len(items)):
        similar = q @ items.T  # (b, N)
        own = similar.diagonal(start)[:, None]
        above, level, start = (similar > own).sum(1), (similar == own).sum(1), start + len(q)
        hits = [h + ((k - above) / level).clamp(0, 1).sum().item() for h, k in zip(hits, ks)]
    return [h / len(queries) for h in hits]


@torch.no_grad()
def gap(text, audio, folds=5):
    """How far apart the modalities are: what the discrepancy of Theorem 3.1 depends on, measured. -> a dict of floats.

    text (N, D), audio (N, D): row i of both describes one clip; audio may be what a bridge made of it. On unit vectors:
        centroid_distance       between the two means, 0 to 2
        paired_cosine           mean over pairs
        audio_to_text_R@1, @10  share of audio whose own text is among the 1 or 10 closest of all N; and text_to_audio_R@
        classifier_error        of logistic regression that tells the modalities apart, cross-validated, both halves of a
                                pair in the same fold: 0 where they are apart, 0.5 where they cannot be told apart
        a_distance              proxy A-distance 2 (1 - 2 classifier_error), 2 to 0 (an error over 0.5 counts as 0.5)
    Raises ValueError where text and audio do not match or there are fewer pairs than folds.
    """
    from sklearn.linear_model import (
        LogisticRegression,
    )  # here, for all else runs without loading scikit-learn
    from sklearn.model_selection import GroupKFold, cross_val_predict

    text, audio = _pairs(text, audio)
    n = len(text)
    if n < folds:
        raise ValueError(f"{n} pairs cannot be split into {folds} folds")
    both, side, pair = (
        torch.cat([text, audio]).cpu().numpy(),
        torch.arange(2 * n) >= n,
        torch.arange(2 * n) % n,
    )
    guess = cross_val_predict(
        LogisticRegression(max_iter=1000),
        both,
        side.numpy(),
        groups=pair.numpy(),
        cv=GroupKFold(folds),
    )
    error = (guess != side.numpy()).mean().item()
    recalls = {
        f"{name}_R@{k}": share
        for name, *sides in (("audio_to_text", audio, text), ("text_to_audio", text, audio))
        for k, share in zip((1, 10), _recall(*sides, (1, 10)))
    }
    return {
        "centroid_distance": (text.mean(0) - audio.mean(0)).norm().item(),
        "paired_cosine": (text * audio).sum(1).mean().item(),
        **recalls,
        "classifier_error": error,
        "a_distance": max(0.0, 2 * (1 - 2 * error)),
    }
