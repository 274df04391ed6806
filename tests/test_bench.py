import json
import sys

import numpy as np
import pytest
import torch
from conftest import gpt2
from torch._subclasses.fake_tensor import FakeTensorMode

from experiments.bench import __main__ as bench
from mats import MATS, MATSConfig


def test_living_counts_storages_once_and_forgets_them():
    with FakeTensorMode(), bench.Living() as living:
        x = torch.empty(1000, 250)  # 1 MB
        y = x.view(250, 1000).T  # the same storage
        assert living.now == living.most == 1_000_000
        z = x + 1
        del z, y
        assert (living.now, living.most) == (1_000_000, 2_000_000)
        del x
        assert living.now == 0


def test_memory_of_a_linear_layer_and_its_optimizer_by_hand():
    """Weight, gradient, AdamW's two moments: 4 x 4 bytes a weight; the input and the output."""
    with FakeTensorMode(), bench.Living() as living:
        layer = torch.nn.Linear(512, 512, bias=False)
        optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
        layer(torch.empty(8, 512)).sum().backward()
        optimizer.step()
    assert living.now == pytest.approx(4 * 4 * 512 * 512, rel=0.01)


def test_a_larger_batch_takes_more_and_weights_are_not_counted_twice():
    few, many = (bench.memory_of("gpt2", n, 64, 40) for n in (8, 16))
    weights = (
        2 * 124e6 + 4 * 4 * 111e6
    )  # GPT-2 in bfloat16; mapper and LoRA with gradients and moments
    assert weights / 1e9 < few < weights / 1e9 + 1.2 and 0.4 < many - few < 0.8


def test_the_samples_have_the_lengths_that_they_claim():
    tokenizer, made = bench.make_tokenizer(), list(bench.mixture(3000))
    assert made == list(bench.mixture(3000))  # seeded
    for kind, (share, asked, mean, _) in bench.KINDS.items():
        rows = [s for s in made if s["task"] == kind]
        assert len(rows) / len(made) == pytest.approx(share, abs=0.03)
        for key, want in (("instruction", asked), ("answer", mean)):
            assert np.mean(
                [len(tokenizer(" " + s[key])["input_ids"]) for s in rows]
            ) == pytest.approx(want, rel=0.15, abs=1), (kind, key)


def test_the_batches_that_are_compared_hold_the_same_answers(tokenizer):
    model = MATS(
        MATSConfig(dim=16, width=32, prefix=4, tokens=4, layers=2, heads=2),
        gpt2(len(tokenizer)),
        tokenizer,
    )
    samples = list(bench.mixture(64))
    similar, others = (
        bench.batches_of(model, samples, 16),
        bench.batches_of(model, samples, 16, False, 1),
    )
    said = lambda batches: torch.cat([b["ids"].flatten()[b["answer"]] for b in batches]).bincount(
        minlength=400
    )
    assert torch.equal(said(similar), said(others))
    assert sum(b["ids"].numel() for b in similar) < sum(b["ids"].numel() for b in others)


def test_times_come_with_their_spread():
    times = iter([9.0, 1.0, 2.0, 4.0])
    now = [0.0]

    def wait():
        now[0] += next(times)

    original, bench.time.perf_counter = bench.time.perf_counter, lambda: now[0]
    try:
        (t,) = bench.clock(wait)
    finally:
        bench.time.perf_counter = original
    assert t == 2.0 and t.spread == (4 - 1) / 2 / 2  # the first does not count


def test_command_line(monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["bench.py", "kmeans_huge", "generation", "--json", "--device=cpu"]
    )
    monkeypatch.setitem(
        bench.PARTS,
        "generation",
        lambda machine: bench.rate(
            16, "answers/s", bench.timing([1.0, 2.0, 3.0]), bench.timing([8.0])
        ),
    )
    bench.main()
    said = json.loads(capsys.readouterr().out)
    assert said["generation"] == {
        "unit": "answers/s",
        "ours": 8.0,
        "spread": 0.5,
        "obvious": 2.0,
        "obvious spread": 0.0,
        "times": 4.0,
    }
    assert "GPU" in said["kmeans_huge"]["skipped"] and said["device"] == "cpu"
    monkeypatch.setattr(sys, "argv", ["bench.py", "kmean"])
    with pytest.raises(SystemExit, match="unknown part kmean"):
        bench.main()
