import csv
import inspect
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

import santa as module
from disk import DataError
from santa import (
    BRIDGES,
    Santa,
    add_noise,
    bridge,
    gap,
    kmeans,
    noise_cosine,
    noise_variance,
)

CAPTIONS = Path(__file__).parents[2] / "shared/data/audiocaps/test.csv"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small tensors: threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(threads)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def units(n, d, seed=0):
    return F.normalize(torch.randn(n, d, generator=gen(seed)), dim=1)


def blobs(n, d, k, spread=0.3, seed=0):
    g = gen(seed)
    return torch.randn(k, d, generator=g)[
        torch.randint(k, (n,), generator=g)
    ] + spread * torch.randn(n, d, generator=g)


def inertia(x, centers, labels):
    return (x.double() - centers[labels].double()).square().sum().item()


def sk(x, k, **kw):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return KMeans(k, n_init=1, tol=0, algorithm="lloyd", **kw).fit(x.numpy())


def closest(x, centers):
    return torch.cdist(x.double(), centers.double()).argmin(1)


@pytest.fixture(scope="module")
def captions():
    if not CAPTIONS.exists():
        pytest.skip(f"real text vectors need AudioCaps' captions: no {CAPTIONS}")
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    with open(CAPTIONS, newline="") as f:
        texts = [row["caption"] for row in csv.DictReader(f)]
    vectors = TruncatedSVD(48, random_state=0).fit_transform(
        TfidfVectorizer(min_df=2).fit_transform(texts)
    )
    return torch.from_numpy(vectors).float()


# --- noise ---


def test_add_noise_is_on_the_sphere_with_the_asked_variance():
    z = units(300, 1024)
    noisy = add_noise(z, 0.015, gen(9))
    assert torch.allclose(noisy.norm(dim=1), torch.ones(300), atol=1e-6)
    # z and noise are orthogonal but for chance: cos = 1 / sqrt(1 + D variance) = 0.247
    assert abs((noisy * z).sum(1).mean().item() - 1 / math.sqrt(1 + 1024 * 0.015)) < 0.005
    by_hand = F.normalize(z + math.sqrt(0.015) * torch.randn(300, 1024, generator=gen(9)), dim=1)
    assert torch.allclose(noisy, by_hand, atol=1e-6)
    assert torch.allclose(
        add_noise(32 * z, 0.015, gen(9)), noisy, atol=1e-6
    )  # normalised before, too


def test_add_noise_zero_negative_dtype_and_shape():
    z = 5 * torch.randn(2, 3, 8, generator=gen())
    assert torch.equal(add_noise(z, 0), F.normalize(z, dim=-1))
    assert (
        add_noise(z.half(), 0.01).dtype == torch.float32
        and add_noise(z.double(), 0.01).dtype == torch.float64
    )
    assert add_noise(z, 0.01).shape == z.shape
    for bad in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="variance"):
            add_noise(z, bad)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cpu_generator_means_the_same_on_cuda():
    z = blobs(2000, 32, 20)
    assert torch.allclose(
        add_noise(z.cuda(), 0.01, gen()).cpu(), add_noise(z, 0.01, gen()), atol=1e-6
    )
    here, there = (Santa.build(x, k=20, generator=gen()) for x in (z, z.cuda()))
    assert (here.labels == there.labels.cpu()).float().mean() > 0.999
    q = units(64, 32, 1)
    assert torch.allclose(here(q), there(q), atol=1e-5) and there(q).device == q.device


# --- k-means ---


@pytest.mark.parametrize("n, d, k", [(3000, 16, 40), (2000, 64, 7), (500, 5, 100)])
def test_lloyd_steps_are_exact(n, d, k):
    x = blobs(n, d, k // 2 + 1, spread=0.8)
    for iters in (1, 2, 5):
        centers, labels = kmeans(x, k, iters, init=x[:k])
        oracle = sk(x, k, init=x[:k].numpy(), max_iter=iters)
        assert np.abs(centers.numpy() - oracle.cluster_centers_).max() < 1e-5
        assert (labels.numpy() == oracle.labels_).all()
    assert labels.dtype == torch.int64 and centers.shape == (k, d)


@pytest.mark.slow
def test_inertia_matches_sklearn_on_blobs():
    x = blobs(4000, 32, 60, spread=0.6)
    for init, theirs in (("++", "k-means++"), ("random", "random")):
        ours = np.mean([inertia(x, *kmeans(x, 60, 100, gen(s), init)) for s in range(5)])
        oracle = np.mean(
            [sk(x, 60, init=theirs, max_iter=100, random_state=s).inertia_ for s in range(5)]
        )
        assert ours < oracle * (1.02 if init == "++" else 1.1), (init, ours / oracle)


@pytest.mark.slow
def test_inertia_matches_sklearn_on_captions(captions):
    ours = np.mean([inertia(captions, *kmeans(captions, 100, 50, gen(s))) for s in range(3)])
    oracle = np.mean(
        [
            sk(captions, 100, init="k-means++", max_iter=50, random_state=s).inertia_
            for s in range(3)
        ]
    )
    assert abs(ours / oracle - 1) < 0.02


def potential(x, centers):
    return torch.cdist(x, centers).square().amin(1).sum().item()


@pytest.mark.slow
def test_plusplus_alone_is_as_good_as_sklearns(captions):
    """Before any Lloyd step: drawing candidates in advance must not cost quality."""
    for x, k in ((captions, 200), (blobs(3000, 8, 150, spread=0.2), 150)):
        theirs = [kmeans_plusplus(x.numpy(), k, random_state=s)[0] for s in range(4)]
        oracle = np.mean([potential(x, torch.from_numpy(centers)) for centers in theirs])
        ours = np.mean([potential(x, kmeans(x, k, 0, gen(s))[0]) for s in range(4)])
        uniform = np.mean([potential(x, kmeans(x, k, 0, gen(s), "random")[0]) for s in range(4)])
        assert ours < 1.02 * oracle < 0.99 * uniform, (ours, oracle, uniform)


@pytest.mark.slow
def test_plusplus_draws_by_squared_distance():
    """On four points the chance of each pair of centers is known: the better of two candidates."""
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    d = (x - x.T).square().double()
    chance = torch.zeros(4, 4, dtype=torch.float64)
    for i in range(4):
        p = d[i] / d[i].sum()
        cost = torch.minimum(d[i], d).sum(1)
        for a in range(4):
            for b in range(4):
                chance[i, a if cost[a] <= cost[b] else b] += p[a] * p[b] / 4
    g, counts, n = gen(), torch.zeros(4, 4, dtype=torch.float64), 3000
    for _ in range(n):
        i, j = (module._plusplus(x, 2, g) - x.T).abs().argmin(1)
        counts[i, j] += 1
    assert (counts / n - chance).abs().max() < 4 * 0.5 / math.sqrt(
        n
    )  # four standard deviations at most


def test_stale_candidates_are_redrawn():
    """Far groups of identical rows: no candidate may come from a group that has a center."""
    x = (100 * torch.eye(64)).repeat_interleave(5, 0)
    for s in range(5):
        assert kmeans(x, 64, 0, gen(s))[0].unique(dim=0).shape == (64, 64)


def test_labels_are_of_the_returned_centers():
    x = blobs(3000, 12, 30, spread=1.0)
    for iters in (0, 1, 3, 200):
        centers, labels = kmeans(x, 40, iters, gen())
        assert torch.equal(labels, closest(x, centers)), iters


def test_convergence():
    x = blobs(1000, 8, 10)
    centers, labels = kmeans(x, 10, 500, gen())
    assert torch.equal(kmeans(x, 10, 1, init=centers)[1], labels)
    means = torch.stack([x[labels == j].mean(0) for j in range(10)])
    assert torch.allclose(centers, means, atol=1e-5)


def test_early_stop(monkeypatch):
    calls, assign = [], module._assign
    monkeypatch.setattr(module, "_assign", lambda *a: calls.append(1) or assign(*a))
    kmeans(blobs(500, 4, 5, spread=0.01), 5, 1000, gen())
    assert 2 <= len(calls) < 20


@pytest.mark.parametrize("init", ["++", "random"])
def test_determinism(init):
    x = blobs(1500, 8, 20, spread=1.0)
    a, b, c = (kmeans(x, 20, 3, gen(s), init) for s in (1, 1, 2))
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and not torch.equal(a[0], c[0])
    torch.manual_seed(0)
    kmeans(x, 20, 3, gen(1), init)
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))  # the global generator is left alone


@pytest.mark.parametrize("empties", [1, 3])
def test_empty_clusters_start_again_from_the_farthest_rows(empties):
    x = torch.cat(
        [blobs(200, 3, 2, spread=0.1), torch.tensor([[9.0, 9, 9], [-9, 9, 9], [9, -9, 9.0]])]
    )
    far_away = 1000 + torch.arange(empties)[:, None] + torch.zeros(empties, 3)
    init = torch.cat([x[:1], far_away])
    centers, labels = kmeans(x, 1 + empties, 1, init=init)
    distance = (x - x[0]).square().sum(1)
    moved = distance.topk(empties).indices
    kept = torch.ones(len(x), dtype=torch.bool)
    kept[moved] = False
    assert torch.allclose(centers[1:], x[moved], atol=1e-4) and torch.allclose(
        centers[0], x[kept].mean(0), atol=1e-4
    )
    centers, labels = kmeans(x, 1 + empties, 50, init=init)
    assert (labels.bincount(minlength=1 + empties) > 0).all()
    if empties == 1:  # several: sklearn pairs them otherwise
        oracle = sk(x, 2, init=init.numpy(), max_iter=50)
        assert (
            np.abs(centers.numpy() - oracle.cluster_centers_).max() < 1e-4
            and (labels.numpy() == oracle.labels_).all()
        )


def test_fewer_different_rows_than_clusters():
    x = torch.tensor([[0.0, 1], [5, 5], [-3, 2]]).repeat(4, 1)
    for init in ("++", "random"):
        centers, labels = kmeans(x, 6, 20, gen(), init)
        assert centers.isfinite().all() and inertia(x, centers, labels) < 1e-8


SCRATCHES = (1, 7 * 20, 3333)


@pytest.mark.slow
def test_chunks_change_nothing(monkeypatch):
    x = blobs(1000, 16, 20, spread=1.0)
    centers, labels = kmeans(x, 20, 10, gen())
    gaps = gap(x, x.flip(0))
    for scratch in SCRATCHES:
        monkeypatch.setitem(module.SCRATCH, "cpu", scratch)
        parts = kmeans(x, 20, 10, gen())
        assert torch.equal(parts[1], labels), scratch
        assert torch.allclose(parts[0], centers, atol=1e-5), scratch
        assert gap(x, x.flip(0)) == pytest.approx(gaps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_chunks_change_no_bridge(monkeypatch, dtype):
    x, z = blobs(1000, 16, 20, spread=1.0).to(dtype), units(50, 16, 1).to(dtype)
    santa = Santa.build(x, k=20, generator=gen())
    # A dot product of unit vectors in D = 16 dimensions has an error of at most D eps / 2, so two
    # orders of summing differ by at most D eps. `projection` takes it times 100 into softmax, whose
    # weights then change by twice as much in total, and with them a sum of unit rows. It divides by
    # this sum's length, here over 1/2. Other bridges amplify less: below a millionth in float32.
    amplified = 2 * 100 * 16 * torch.finfo(dtype).eps / 0.5
    length = ((100 * z @ santa.clean.T).softmax(-1) @ santa.clean).norm(dim=1)
    assert length.min() > 0.5
    maps = {name: bridge(name, santa, z.mean(0), gen()) for name in set(BRIDGES) - {"official"}}
    whole = {name: across(z) for name, across in maps.items()}
    for scratch in SCRATCHES:
        monkeypatch.setitem(module.SCRATCH, "cpu", scratch)
        for name, across in maps.items():
            bound = amplified if name == "projection" else min(amplified, 1e-6)
            assert (across(z) - whole[name]).abs().max() <= bound, (scratch, name)


def test_a_common_offset_does_not_cost_digits():
    x = blobs(2000, 8, 10, spread=0.5)
    labels = kmeans(x, 10, 20, init=x[:10])[1]
    moved = (x + 3000).float()
    assert (kmeans(moved, 10, 20, init=moved[:10])[1] == labels).float().mean() > 0.99


def test_dtypes():
    x = blobs(400, 8, 5)
    assert kmeans(x.half(), 5, generator=gen())[0].dtype == torch.float32
    centers, labels = kmeans(x.double(), 5, generator=gen())
    assert centers.dtype == torch.float64 and torch.equal(labels, closest(x, centers))


def test_k_is_one_or_n():
    x = blobs(50, 4, 3)
    assert torch.allclose(kmeans(x, 1)[0][0], x.mean(0), atol=1e-5)
    for init in ("++", "random"):
        assert kmeans(x, 50, 0, gen(), init)[1].bincount().tolist() == [1] * 50


@pytest.mark.parametrize(
    "args, message",
    [
        ((torch.zeros(5, 2), 6), "k must be"),
        ((torch.zeros(5, 2), 0), "k must be"),
        ((torch.zeros(5), 1), "x must be"),
        ((torch.zeros(0, 2), 1), "x must be"),
        ((torch.zeros(5, 2).long(), 1), "x must be"),
        (
            (torch.tensor([[0.0], [1], [math.nan], [math.inf]]), 1),
            "x: row 2 is not finite .and 1 more",
        ),
        ((torch.zeros(5, 2), 2, 1, None, torch.zeros(3, 2)), "init must be .2, 2. floats"),
        ((torch.zeros(5, 2), 2, 1, None, torch.full((2, 2), math.nan)), "init: row 0"),
        ((torch.zeros(5, 2), 2, 1, None, "k-means||"), "init must be"),
    ],
)
def test_kmeans_errors(args, message):
    with pytest.raises(ValueError, match=message):
        kmeans(*args)


# --- Santa ---


def eq67(z, memory, centers, labels, L, tau, lam):
    """Equations 6 and 7, a row at a time, in float64."""
    memory, centers, labels, out = (
        memory.double().numpy(),
        centers.double().numpy(),
        labels.numpy(),
        [],
    )
    for a in z.double().numpy():
        a = a / np.linalg.norm(a)
        order = [k for k in np.argsort(((a - centers) ** 2).sum(1)) if (labels == k).any()]
        cluster = memory[labels == order[0]]
        m = cluster[np.argsort(((a - cluster) ** 2).sum(1))[:L]]
        w = np.exp(m @ a / tau)
        out.append((1 - lam) * a + lam * (w / w.sum()) @ m)
    return torch.from_numpy(np.array(out))


def near(a, b, atol=1e-6):
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=0, atol=atol)


@pytest.fixture(scope="module")
def built():
    return Santa.build(blobs(900, 24, 12), m=600, k=12, generator=gen())


@pytest.mark.parametrize(
    "hyper", [{}, {"L": 1}, {"L": 7, "tau": 0.02}, {"L": 10000, "tau": 1.0}, {"lam": 0.9}]
)
def test_santa_is_equations_6_and_7(built, hyper):
    z = units(200, 24, 5)
    m = built.but(**hyper)
    assert near(m(z), eq67(z, m.memory, m.centers, m.labels, m.L, m.tau, m.lam))


def test_closest_means_euclidean_for_rows_of_any_length():
    memory = units(300, 8) * (0.2 + 3 * torch.rand(300, 1, generator=gen(1)))
    centers, labels = kmeans(memory, 5, generator=gen())
    z = units(100, 8, 2)
    assert near(
        Santa(memory, centers, labels, L=6)(z), eq67(z, memory, centers, labels, 6, 0.1, 0.3)
    )


def test_small_and_empty_clusters():
    memory, z = units(40, 8), units(200, 8, 2)
    labels = torch.tensor([0] * 30 + [1] * 3 + [2] + [4] * 6)  # cluster 3 is empty
    centers = units(5, 8, 3)
    m = Santa(memory, centers, labels, L=5)
    assert set(closest(z, centers).tolist()) == {0, 1, 2, 3, 4}
    assert near(m(z), eq67(z, memory, centers, labels, 5, 0.1, 0.3))
    alone = closest(z, centers) == 2
    assert near(m(z)[alone], 0.7 * z[alone] + 0.3 * memory[33])


def test_every_row_its_own_cluster_and_a_memory_of_one():
    memory, z = units(30, 8), units(20, 8, 2)
    m = Santa(memory, memory, torch.arange(30))
    assert near(m(z), 0.7 * z + 0.3 * memory[(z @ memory.T).argmax(1)])
    one = Santa(memory[:1], memory[:1], torch.zeros(1, dtype=torch.long), L=32)
    assert near(one(z), 0.7 * z + 0.3 * memory[:1])


def test_a_row_does_not_depend_on_its_batch(built):
    z = units(64, 24, 5)
    together = built(z)
    assert near(torch.cat([built(row) for row in z.split(1)]), together, atol=1e-7)
    assert near(built(z.flip(0)).flip(0), together, atol=1e-7)
    assert built(z[:0]).shape == (0, 24)


def test_length_and_dtype_of_z_do_not_matter(built):
    z = units(64, 24, 5)
    assert near(built(32 * z), built(z)) and near(built(z.double()), built(z))
    assert near(built(z.half()), built(z.half().float())) and built(z.half()).dtype == torch.float32


def test_lam_zero_and_one(built):
    z = units(64, 24, 5)
    assert near(built.but(lam=0.0)(z), z)
    m = built.but(lam=1.0)
    text, (rows, valid, cluster) = m(z), m.retrieve(z)
    for i in range(64):  # a convex combination of the cluster's rows: recover the weights
        chosen = m.memory[rows[i, valid[i]]].double()
        w = torch.linalg.lstsq(chosen.T, text[i].double(), driver="gelsd").solution
        if len(chosen) <= 24:  # else the weights are not unique
            assert w.min() > 0 and abs(w.sum() - 1) < 1e-4
        assert (m.labels[rows[i, valid[i]]] == cluster[i]).all()
    assert (text.norm(dim=1) <= 1 + 1e-6).all()


def test_shortlist_survives_rough_products(built, monkeypatch):
    """What ranks is the true distance: the matrix product may be as coarse as TF32's."""
    z, exact = units(64, 24, 5), built.but(L=8)(units(64, 24, 5))
    product = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *a, **k: (product(*a, **k) * 512).round() / 512)
    assert torch.equal(built.but(L=8)(z), exact)


def test_nothing_is_learned(built):
    assert not list(built.parameters()) and not built(units(3, 24).requires_grad_()).requires_grad


def test_clusters_beyond_the_different_rows_end_the_search(monkeypatch):
    """Four places, all taken: a fifth cluster has nowhere to begin, and no label changes."""
    x, updates, update = (
        4 * torch.cat([torch.eye(2), -torch.eye(2)]).repeat(9, 1),
        [],
        module._update,
    )
    monkeypatch.setattr(module, "_update", lambda *a: updates.append(a) or update(*a))
    labels = kmeans(x, 6, 100, init=torch.cat([x[:4], x[:2] + 100]))[1]
    assert labels.tolist() == [0, 1, 2, 3] * 9 and len(updates) == 1


def test_build(built):
    x = blobs(900, 24, 12)
    assert built.memory.shape == built.clean.shape == (600, 24) and built.centers.shape == (12, 24)
    assert (
        torch.cdist(built.clean, F.normalize(x, dim=1)).amin(1) < 1e-3
    ).all()  # rows of x, each once
    assert len(torch.cdist(built.clean, F.normalize(x, dim=1)).argmin(1).unique()) == 600
    cos = (built.memory * built.clean).sum(1)
    assert abs(cos.mean() - 1 / math.sqrt(1 + 24 * 0.015)) < 0.01 and torch.equal(
        built.labels, closest(built.memory, built.centers)
    )
    again = Santa.build(x, m=600, k=12, generator=gen())
    assert all(torch.equal(a, b) for a, b in zip(built.buffers(), again.buffers()))
    assert len(Santa.build(x, m=5000, k=12).memory) == 900
    other = Santa.build(x, m=600, k=12, generator=gen(1))
    rows = [torch.cdist(s.clean, F.normalize(x, dim=1)).argmin(1) for s in (built, other)]
    assert max(len(set(r.tolist()) & set(range(600))) for r in rows) < 450  # 400 by chance
    assert Santa.build(x.half(), k=3, L=4, tau=0.2, lam=0.5).memory.dtype == torch.float32
    with pytest.raises(ValueError, match="100 clusters from 50 memory rows"):
        Santa.build(x, m=50)


def test_save_and_load(built, tmp_path):
    z = units(10, 24, 1)
    for m in (
        built.but(L=5, tau=0.3, lam=0.2, variance=0.02),
        Santa(built.memory, built.centers, built.labels),
        Santa(z, z, torch.arange(10), clean=z),
    ):
        m.save(tmp_path / "santa.safetensors")
        back = Santa.load(tmp_path / "santa.safetensors")
        assert back.state_dict().keys() == m.state_dict().keys()
        assert all(torch.equal(v, back.state_dict()[k]) for k, v in m.state_dict().items())
        assert (back.L, back.tau, back.lam, back.variance) == (m.L, m.tau, m.lam, m.variance)
        assert torch.equal(back(z), m(z))
    from safetensors.torch import save_file

    save_file({"memory": z}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not a Santa memory"):
        Santa.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"memory": torch.full((600, 24), math.nan)}, "memory: row 0"),
        ({"memory": torch.zeros(0, 24)}, "memory must be"),
        ({"centers": torch.zeros(12, 8)}, "centers must be .N > 0, 24."),
        ({"clean": torch.zeros(3, 24)}, "clean must be .600, 24."),
        ({"labels": torch.zeros(5, dtype=torch.long)}, "labels"),
        ({"labels": torch.full((600,), 12)}, "labels"),
        ({"labels": torch.full((600,), -1)}, "labels"),
        ({"L": 0}, "L >= 1"),
        ({"L": 1.5}, "L >= 1"),
        ({"tau": 0}, "tau > 0"),
        ({"lam": 1.2}, "lam <= 1"),
        ({"lam": math.nan}, "lam <= 1"),
    ],
)
def test_santa_errors(built, change, message):
    with pytest.raises(ValueError, match=message):
        built.but(**change)


def test_wrong_queries(built):
    for name in set(BRIDGES) - {"none", "santa-mb"}:
        for z in (torch.zeros(24), torch.zeros(2, 23)):
            with pytest.raises(ValueError, match="z must be .B, 24."):
                bridge(name, built, torch.zeros(24))(z)


# --- the other bridges ---


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_every_bridge_against_its_formula(built):
    z = 7 * units(40, 24, 5)
    a, S = F.normalize(z, dim=1).double().numpy(), built.clean.double().numpy()
    audio_mean = a.mean(0)
    projection = softmax(100 * a @ S.T) @ S
    noisy, cluster = built.memory, (built.centers, built.labels)
    one = (built.memory[:1], torch.zeros_like(built.labels))
    clean = kmeans(built.clean, 12, generator=gen(3))
    expected = {
        "none": a,
        "santa-mb": a,
        "nearest": S[((a[:, None] - S) ** 2).sum(-1).argmin(1)],
        "memory": softmax(a @ S.T / 0.1) @ S,
        "projection": projection / np.linalg.norm(projection, axis=1, keepdims=True),
        "shift": a - audio_mean + S.mean(0),
        "santa": eq67(z, noisy, *cluster, 32, 0.1, 0.3),
        "santa-kmeans": eq67(z, noisy, *one, 32, 0.1, 0.3),
        "santa-ae": eq67(z, noisy, *cluster, 32, 0.1, 1.0),
        "santa-gn": eq67(z, built.clean, *clean, 32, 0.1, 0.3),
    }
    assert set(expected) | {"official"} == set(BRIDGES)
    for name, value in expected.items():
        out = bridge(name, built, audio_mean=torch.from_numpy(audio_mean), generator=gen(3))(z)
        assert near(out, torch.as_tensor(value), atol=3e-6), name
        assert not out.requires_grad and out.dtype == torch.float32


def slow_official(z, clean, centers, labels, L, tau, lam):
    out = []
    for a in z.double():
        order = [
            k
            for k in (a - centers.double()).square().sum(1).argsort().tolist()
            if (labels == k).any()
        ]
        cluster = clean[labels == order[0]].double()
        m = list(cluster[(a - cluster).square().sum(1).argsort()[:L]])
        m = torch.stack(m + [cluster[0]] * (L - len(m)))
        w = (m @ a / tau).softmax(0)
        out.append((1 - lam) * a + lam * w @ m)
    return torch.stack(out)


@pytest.mark.parametrize("length", [1.0, 3.0])
@pytest.mark.parametrize("L", [4, 80, 700])
def test_official_without_its_noise(built, L, length):
    z = length * units(60, 24, 5)
    m = built.but(L=L, variance=0.0)
    centers, labels = kmeans(built.clean, 12, 10, gen(3), "random")
    assert L == 4 or (labels.bincount() < L).any()
    assert near(
        bridge("official", m, generator=gen(3))(z),
        slow_official(z, built.clean, centers, labels, L, 0.1, 0.3),
        1e-5,
    )


def test_officials_noise_is_fresh_and_on_each_copy(built, monkeypatch):
    z, seen, real = units(6, 24, 5), [], module.add_noise
    monkeypatch.setattr(module, "add_noise", lambda *a: seen.append((real(*a), *a)) or seen[-1][0])
    f = bridge("official", built.but(L=200), generator=gen(3))
    first, second = f(z), f(z)
    assert not torch.equal(first, second)
    noisy, rows, variance, g = seen[0]
    assert rows.shape == (6, 200, 24) and variance == 0.015 and isinstance(g, torch.Generator)
    assert torch.equal(rows[0, -1], rows[0, -2]) and not torch.equal(noisy[0, -1], noisy[0, -2])
    again = bridge("official", built.but(L=200), generator=gen(3))
    assert torch.equal(again(z), first) and torch.equal(again(z), second)
    long = F.normalize(f(32 * z), dim=1)  # why the released Santa does next to nothing
    assert ((long * z).sum(1) > 0.9995).all()


def test_official_survives_an_empty_cluster(built, monkeypatch):
    centers = torch.cat([built.centers[:11], units(1, 24, 5)])
    labels = closest(built.clean, built.centers[:11])
    monkeypatch.setattr(module, "kmeans", lambda *a: (centers, labels))
    z = units(1, 24, 5)
    assert closest(z, centers).item() == 11
    out = bridge("official", built.but(variance=0.0))(z)
    assert near(out, slow_official(z, built.clean, centers, labels, 32, 0.1, 0.3), 1e-5)


# --- what was retrieved ---


def test_a_text_stays_with_its_vector(tmp_path):
    x, path = blobs(90, 24, 4), tmp_path / "santa.safetensors"
    texts = [f"text {i} \ud83d" for i in range(88)] + ["", None]
    santa = Santa.build(x, m=60, k=4, generator=gen(), texts=texts)
    same = [x[texts.index(text)] for text in santa.texts]
    assert len(set(santa.texts)) == 60 and near(santa.clean, F.normalize(torch.stack(same), dim=1))
    santa.but(lam=0.5).save(path)
    assert Santa.load(path).texts == santa.texts and "texts" not in Santa.hyper(path)
    without = Santa.build(x, m=60, k=4, generator=gen())  # what is drawn does not depend on texts
    assert all(torch.equal(a, b) for a, b in zip(santa.buffers(), without.buffers()))
    without.save(path)
    assert Santa.load(path).texts is None


def test_texts_that_do_not_fit_are_refused(built, tmp_path):
    path, x = tmp_path / "santa.safetensors", blobs(90, 24, 4)
    for texts, message in (
        (["a"] * 599, "599 texts for 600 rows"),
        (["a"] * 599 + [5], "texts must be a list of strings"),
        ("a" * 600, "texts must be a list of strings"),
    ):
        with pytest.raises(ValueError, match=message):
            built.but(texts=texts)
        whole = built.but()
        whole.texts = texts
        whole.save(path)
        with pytest.raises(DataError, match=f"santa.safetensors: {message}"):
            Santa.load(path)
    with pytest.raises(ValueError, match="3 texts for 90 rows"):
        Santa.build(x, m=3, k=1, texts=["a"] * 3)


def shares(explanation, size):
    """(size,): the weights by row, as numpy has them."""
    out = np.zeros(size)
    for one in explanation.retrieved:
        out[one.row] += one.weight
    return out


@pytest.mark.parametrize("name", sorted(set(BRIDGES) - {"none", "santa-mb", "shift"}))
def test_explained_weights_give_the_bridges_output(built, name):
    santa = built.but(texts=[f"text {i}" for i in range(600)], variance=0.0, L=70)
    z, over = 3 * units(20, 24, 5), bridge(name, santa, generator=gen(3))
    out, explanations = over.explain(z, top=1000)
    assert torch.equal(out, over(z))
    a = z.double() if name == "official" else F.normalize(z.double(), dim=1)
    lam = {"nearest": 1, "memory": 1, "projection": 1, "santa-ae": 1}.get(name, 0.3)
    noisy = name in ("santa", "santa-kmeans", "santa-ae")
    S = (santa.memory if noisy else santa.clean).double().numpy()
    for one, a_i, out_i in zip(explanations, a.numpy(), out.double().numpy()):
        weights = shares(one, 600)
        blend = (1 - lam) * a_i + lam * weights @ S
        if name == "projection":
            blend /= np.linalg.norm(blend)
        assert abs(weights.sum() - 1) < 1e-5 and np.abs(blend - out_i).max() < 1e-5
        cosine = a_i @ out_i / np.linalg.norm(a_i) / np.linalg.norm(out_i)
        assert abs(one.cosine - cosine) < 1e-5
        assert abs(math.cos(math.radians(one.degrees)) - cosine) < 1e-5
        order = [r.weight for r in one.retrieved]
        assert order == sorted(order, reverse=True) and one.more == 0
        assert all(r.text == f"text {r.row}" for r in one.retrieved)
    few = bridge(name, santa, generator=gen(3)).explain(z, top=2)[1]
    for one, all_of_it in zip(few, explanations):
        assert one.retrieved == all_of_it.retrieved[:2]
        assert one.more == len(all_of_it.retrieved) - len(one.retrieved)


def test_explained_clusters_are_the_closest(built):
    z = units(40, 24, 5)
    sizes, number = built.labels.bincount(minlength=12), closest(z, built.centers)
    for k, one in zip(number.tolist(), bridge("santa", built).explain(z)[1]):
        assert one.cluster == (k, sizes[k], 12)
        inside = (built.labels == k).nonzero()[:, 0].tolist()
        assert {r.row for r in one.retrieved} <= set(inside)
        assert len(one.retrieved) + one.more == min(32, len(inside))
        assert all(r.text is None for r in one.retrieved)
    for name in ("santa-kmeans", "nearest", "memory", "none"):
        assert all(e.cluster is None for e in bridge(name, built).explain(z)[1]), name


def test_rows_that_a_small_cluster_lacks_are_not_shown():
    memory, z = units(40, 8), units(200, 8, 2)
    labels = torch.tensor([0] * 30 + [1] * 3 + [2] + [4] * 6)
    santa = Santa(memory, units(5, 8, 3), labels, L=20, tau=1e-5)  # most weights underflow to 0
    for top in (2, 5):
        found = bridge("santa", santa).explain(z, top)[1]
        counts = {(one.cluster.number, len(one.retrieved), one.more) for one in found}
        sizes = {0: 20, 1: 3, 2: 1, 4: 6}
        assert counts == {(k, min(n, top), n - min(n, top)) for k, n in sizes.items()}


def test_bridges_that_retrieve_nothing_say_so(built):
    z = 2 * units(5, 24, 5)
    mean = F.normalize(z, dim=1).mean(0)
    for name in ("none", "santa-mb", "shift"):
        out, found = bridge(name, built, mean).explain(z)
        assert torch.equal(out, bridge(name, built, mean)(z))
        assert all(one.retrieved == [] and one.more == 0 for one in found)
        cosine = F.cosine_similarity(z.double(), out.double())
        assert near(torch.tensor([one.cosine for one in found]), cosine)
        assert name == "shift" or max(one.degrees for one in found) < 1e-3


def test_officials_explanation_is_of_its_own_call(built):
    z = 32 * units(6, 24, 5)
    first, again = (bridge("official", built, generator=gen(3)) for _ in range(2))
    out, found = first.explain(z)
    assert torch.equal(out, again(z)) and not torch.equal(first(z), out)
    assert all(one.degrees < 3 for one in found)  # the long audio vector outweighs the texts


def test_bridge_errors(built):
    z = units(2, 24)
    assert near(bridge("none")(5 * z), z)
    with pytest.raises(ValueError, match="no bridge 'clap'; there are none, nearest"):
        bridge("clap", built)
    with pytest.raises(ValueError, match="needs a memory: Santa.build"):
        bridge("santa")
    for mean in (None, torch.zeros(5)):
        with pytest.raises(ValueError, match="audio_mean .24,."):
            bridge("shift", built, audio_mean=mean)
    bare = built.but(clean=None)
    for name in ("nearest", "memory", "projection", "shift", "santa-gn", "official"):
        with pytest.raises(ValueError, match="without noise"):
            bridge(name, bare, torch.zeros(24))
    for name in ("santa", "santa-kmeans", "santa-ae"):
        bridge(name, bare)(z)


# --- measures ---


def test_noise_variance_by_hand():
    text = torch.tensor([[1.0, 0], [0, 2.0], [3, 4]])
    audio = torch.tensor([[5.0, 0], [1.0, 0], [0.8, 0.6]])
    # largest differences of the unit pairs: 0, 1, |0.6 - 0.8| = 0.2; their mean is the deviation
    assert noise_variance(text, audio) == pytest.approx((1.2 / 3) ** 2)
    text, audio = units(500, 64), units(500, 64, 1)
    each = (text - audio).abs().amax(1)
    pick = torch.randperm(500, generator=gen(2))[:30]
    assert noise_variance(text, audio, generator=gen(2)) == pytest.approx(
        each[pick].mean().item() ** 2
    )
    assert noise_variance(text, audio, n=10**6) == pytest.approx(each.mean().item() ** 2)


def test_noise_variance_recovers_the_papers():
    """Gaussian differences of std s in D dimensions reach about s sqrt(2 ln D)."""
    text = units(400, 1024)
    assert noise_variance(text, text) == 0
    audio = text + 0.03 * torch.randn(400, 1024, generator=gen(1))
    assert 0.05 < math.sqrt(noise_variance(text, audio, 400)) < 0.15


def test_gap_of_identical_modalities():
    # were the twins of a pair in different folds, one would give the other away: error 1
    x = units(301, 128)
    g = gap(x, 3 * x)
    assert g["centroid_distance"] < 1e-6 and g["paired_cosine"] == pytest.approx(1)
    assert g["a_distance"] < 0.05 and abs(g["classifier_error"] - 0.5) < 0.02
    assert all(g[k] == 1 for k in g if "R@" in k) and all(isinstance(v, float) for v in g.values())


def test_gap_of_shifted_modalities():
    x, offset = units(300, 32), F.normalize(torch.ones(32), dim=0)
    text, audio = F.normalize(x + offset, dim=1), F.normalize(x - offset, dim=1)
    g = gap(text, audio)
    assert g["a_distance"] > 1.95 and g["classifier_error"] < 0.0125
    assert (
        g["centroid_distance"] == pytest.approx((text.mean(0) - audio.mean(0)).norm().item())
        and g["centroid_distance"] > 1
    )
    assert g["paired_cosine"] == pytest.approx((text * audio).sum(1).mean().item(), abs=1e-6)
    closed = gap(text, audio - audio.mean(0) + text.mean(0))  # what `shift` is for
    assert closed["a_distance"] < 0.6 and closed["centroid_distance"] < 0.2


def test_gap_between_the_two_and_pairs_stay_in_their_fold():
    x = units(2000, 16)
    audio = x + 0.2 * units(1, 16, 1) + 0.2 * torch.randn(2000, 16, generator=gen(2)) / 4
    g = gap(x, audio)
    both, side = torch.cat([x, F.normalize(audio, dim=1)]).numpy(), np.arange(4000) >= 2000
    fitted = 1 - LogisticRegression(max_iter=1000).fit(both, side).score(both, side)
    assert abs(g["classifier_error"] - fitted) < 0.03 and 0.1 < g["classifier_error"] < 0.45
    assert g["a_distance"] == pytest.approx(2 - 4 * g["classifier_error"])


def test_a_distance_is_never_negative():
    g = gap(
        units(60, 64), units(60, 64, 5)
    )  # nothing to learn: the classifier is worse than a coin
    assert g["classifier_error"] > 0.5 and g["a_distance"] == 0


def test_recall_against_numpy_and_by_hand():
    text, audio = units(300, 16), F.normalize(1.5 * units(300, 16, 1) + units(300, 16), dim=1)
    g = gap(text, audio)
    similar = text.double().numpy() @ audio.double().numpy().T
    for k in (1, 10):
        for name, s in (("text_to_audio", similar), ("audio_to_text", similar.T)):
            hit = [(s[i] > s[i, i]).sum() < k for i in range(300)]
            assert 0 < g[f"{name}_R@{k}"] < 1 and g[f"{name}_R@{k}"] == pytest.approx(np.mean(hit))
    one, other = torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([[0.0, 1], [0, 1]])
    # text -> audio: both audio rows are alike, so each text is right half of the time
    assert module._recall(one, other, (1, 2)) == pytest.approx([0.5, 1]) and module._recall(
        other, one, (1,)
    ) == [0.5]
    assert module._recall(one, one.flip(0), (1, 2)) == [0, 1]


def test_measures_refuse_what_does_not_match():
    x = units(10, 4)
    for measure in (noise_variance, gap):
        with pytest.raises(ValueError, match="audio must be .10, 4."):
            measure(x, x[:9])
        with pytest.raises(ValueError, match="audio: row 3 is not finite"):
            measure(x, x.index_fill(0, torch.tensor([3]), math.nan))
    with pytest.raises(ValueError, match="10 pairs cannot be split into 20"):
        gap(x, x, folds=20)


def test_public_functions_say_what_they_do():
    for f in (
        add_noise,
        kmeans,
        Santa,
        Santa.build,
        Santa.forward,
        Santa.save,
        Santa.load,
        bridge,
        noise_variance,
        gap,
    ):
        assert len(inspect.getdoc(f)) > 40, f


@pytest.mark.parametrize(("variance", "dim"), [(0.015, 1024), (0.002, 128), (0.0, 16)])
def test_the_cosine_that_noise_leaves(variance, dim):
    z = F.normalize(torch.randn(2000, dim, generator=torch.Generator().manual_seed(0)), dim=1)
    noisy = add_noise(z, variance, torch.Generator().manual_seed(1))
    assert (z * noisy).sum(1).mean().item() == pytest.approx(noise_cosine(variance, dim), abs=5e-3)


def test_settings_are_read_without_the_tensors(tmp_path):
    built = Santa.build(torch.randn(20, 8), m=20, k=2, variance=0.002, L=5)
    built.save(tmp_path / "santa.safetensors")
    found = Santa.hyper(tmp_path / "santa.safetensors")
    assert found == {"L": 5, "tau": 0.1, "lam": 0.3, "variance": 0.002}
