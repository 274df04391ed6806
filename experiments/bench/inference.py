"""Answers, captions, and k-means for Santa's memory."""

import io

import numpy as np
import soundfile
import torch
from sklearn.cluster import KMeans

import santa
from audio import load_audio
from experiments.bench.clock import Machine, clock, duration, rate
from experiments.bench.samples import mixture, sized, sized_clap


def generation(machine: Machine) -> dict:
    """Greedy answers of 20 tokens to 16 questions in one batch; against one by one."""
    model, n = sized("gpt2", machine).eval(), 16
    z = torch.randn(n, 1024, device=machine.device)
    questions = [sample["instruction"] for sample in mixture(n)]

    def answer(rows):
        model.generate(z[rows], questions[rows], max_new_tokens=20, min_new_tokens=20)

    def one_by_one():
        for i in range(n):
            answer(slice(i, i + 1))

    return rate(n, "answers/s", *clock(lambda: answer(slice(n)), one_by_one))


def evaluation(machine: Machine) -> dict:
    """Captions of AudioCaps' length for its 975 clips (on a CPU: 16) from files in memory:
    decoding, CLAP, Santa, 4 beams of 30 tokens by MATS-GPT2."""
    n = 975 if machine.cuda else 16
    model, clap = sized("gpt2", machine).eval(), sized_clap(machine)
    generator = torch.Generator().manual_seed(0)
    bridge = santa.Santa.build(torch.randn(5172, 1024), generator=generator).to(machine.device)
    file = sound_file()

    def encode(count):
        waves = [load_audio(file, clap.sample_rate, clap.seconds) for _ in range(count)]
        return clap.encode_audio(torch.stack(waves))

    def caption():
        z = torch.cat([encode(min(32, n - i)) for i in range(0, n, 32)])
        model.generate(
            bridge(z),
            ["Generate audio caption."] * n,
            batch_size=128,
            num_beams=4,
            max_new_tokens=30,
            min_new_tokens=30,
        )

    (seconds,) = clock(caption, repeats=3 if machine.cuda else 1)
    return rate(n, "clips/s", seconds) | {"seconds": round(seconds, 1)}


def sound_file() -> bytes:
    """10 s of noise at 44.1 kHz as flac."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).normal(size=10 * 44100) * 0.1
    soundfile.write(buffer, noise, 44100, format="FLAC")
    return buffer.getvalue()


# --- k-means ---


def kmeans(machine: Machine) -> dict:
    """k-means of Santa's memory: 5172 x 1024, K = 100; k-means++ and at most 10 Lloyd steps;
    against scikit-learn."""
    return against_others(machine, 5172, 1024, 100, repeats=3)


def kmeans_large(machine: Machine) -> dict:
    """The same of 100,000 x 256, K = 1000."""
    return against_others(machine, 100_000, 256, 1000, repeats=1)


def kmeans_huge(machine: Machine) -> dict:
    """k-means of all of AudioTIA's vectors on a GPU: 5.3 M x 1024, K = 1000, k-means++ and 10 Lloyd
    steps."""
    if not machine.cuda:
        return {"skipped": "5.3 M x 1024 want a GPU"}
    N, D, K = 5_300_000, 1024, 1000
    x = torch.randn(N, D, device=machine.device)
    x += 2 * torch.randn(K, D, device=machine.device)[torch.arange(N, device=machine.device) % K]
    machine.memory()  # resets its peak
    (seconds,) = clock(lambda: ten_steps(x, K), repeats=1)
    return duration(seconds) | {"peak memory, GB": round(machine.memory() / 1e9, 1)}


def ten_steps(x: torch.Tensor, K: int, init: str = "++"):
    return santa.kmeans(x, K, 10, torch.Generator().manual_seed(3), init=init)


def against_others(machine: Machine, N: int, D: int, K: int, repeats: int) -> dict:
    """k-means++ and 10 Lloyd steps against scikit-learn; 10 from random rows against faiss, where
    that is installed."""
    x = clusters(N, D, K)
    on_device, on_cpu = x.to(machine.device), x.numpy()
    sklearn = KMeans(K, n_init=1, max_iter=10, tol=0, random_state=3)
    times = clock(lambda: ten_steps(on_device, K), lambda: sklearn.fit(on_cpu), repeats=repeats)
    try:
        import faiss
    except ImportError:
        return duration(*times)

    def with_faiss():
        faiss.Kmeans(D, K, niter=10, seed=3, max_points_per_centroid=N).train(on_cpu)

    ours, theirs = clock(lambda: ten_steps(on_device, K, "random"), with_faiss, repeats=repeats)
    return duration(*times) | {
        "from random rows, s": {"ours": round(ours, 3), "faiss-cpu": round(theirs, 3)}
    }


def clusters(N: int, D: int, K: int) -> torch.Tensor:
    """(N, D): K clusters of equal size, off the origin."""

    def draw(seed, *shape):
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    return draw(0, N, D) + 2 * draw(1, K, D)[torch.arange(N) % K] + draw(2, D)
