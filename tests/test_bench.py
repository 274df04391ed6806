import json
import sys
import time

import numpy as np
import pytest
import torch
from conftest import gpt2
from peft.tuners.lora import LoraLayer
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlamaConfig, LlamaForCausalLM

from experiments.bench.__main__ import PARTS, main
from experiments.bench.clock import clock, duration, rate, timing
from experiments.bench.counting import Living, Packed, memory_of, pack, working_share
from experiments.bench.samples import KINDS, batches_of, make_tokenizer, mixture
from experiments.bench.training import loss_everywhere
from mats import MATS, MATSConfig


@pytest.fixture
def model(tokenizer):
    shape = MATSConfig(dim=16, width=32, prefix=4, tokens=4, layers=2, heads=2, max_answer=20)
    return MATS(shape, gpt2(len(tokenizer)), tokenizer)


def test_living_counts_storages_once_and_forgets_them():
    with FakeTensorMode(), Living() as living:
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
    with FakeTensorMode(), Living() as living:
        layer = torch.nn.Linear(512, 512, bias=False)
        optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
        layer(torch.empty(8, 512)).sum().backward()
        optimizer.step()
    assert living.now == pytest.approx(4 * 4 * 512 * 512, rel=0.01)


@pytest.mark.slow
def test_a_larger_batch_takes_more_and_weights_are_not_counted_twice():
    few, many = (memory_of("gpt2", n, 64, 40) for n in (8, 16))
    # GPT-2 in bfloat16; mapper and LoRA with gradients and moments
    weights = (2 * 124e6 + 4 * 4 * 111e6) / 1e9
    assert weights < few < weights + 1.2 and 0.4 < many - few < 0.8


def test_4_bits_take_as_many_bytes_as_bitsandbytes_makes_of_them():
    bnb = pytest.importorskip("bitsandbytes", reason="4 bits: pip install -r requirements-4bit.txt")
    for rows, width in ((512, 256), (192, 64)):
        layer = torch.nn.Linear(width, rows, bias=False, dtype=torch.bfloat16)
        weight, state = bnb.functional.quantize_4bit(
            layer.weight.data, quant_type="nf4", compress_statistics=True
        )
        held = [weight, state.absmax, state.offset, state.state2.absmax]
        held += [state.code, state.state2.code]
        assert sum(t.nbytes for t in held) == sum(t.nbytes for t in Packed(layer).buffers())


@pytest.mark.slow
def test_a_step_in_4_bits_holds_what_bitsandbytes_holds(tokenizer, tmp_path):
    """What a forward pass keeps for the backward, and the most of the backward."""
    pytest.importorskip("bitsandbytes", reason="4 bits: pip install -r requirements-4bit.txt")
    sizes = {"hidden_size": 128, "intermediate_size": 256, "max_position_embeddings": 128}
    heads = {"num_attention_heads": 4, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), **heads, **sizes)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    shape = dict(
        dim=16, width=32, prefix=4, tokens=4, layers=2, heads=2, llm=str(tmp_path), max_answer=20
    )
    kept, most = [], []
    for llm_dtype in ("nf4", "bfloat16"):
        model = MATS(MATSConfig(**shape, llm_dtype=llm_dtype), tokenizer=tokenizer).train()
        if llm_dtype == "bfloat16":
            model = pack(model)
        for module in model.modules():
            if isinstance(module, LoraLayer):  # peft's of 4 bits asks for CUDA's autocast alone
                module.cast_input_dtype_enabled = False
        z, ids, answer = torch.randn(8, 16), torch.ones(8, 40).long(), torch.arange(20, 40)
        with Living() as living:
            for p in [*model.parameters(), *model.buffers()]:
                living.add(p.untyped_storage())
            weights = living.now
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(z, ids, answer)
            kept.append(living.now - weights)
            living.most = 0
            loss.backward()
            most.append(living.most - weights)
    assert kept[1] == pytest.approx(kept[0], rel=0.01), kept
    assert most[1] == pytest.approx(most[0], rel=0.02), most


def test_ranks_wait_for_the_longest_of_each_update():
    assert working_share(np.array([[3, 3], [5, 5]])) == 1
    assert working_share(np.array([[4, 2], [1, 5]])) == 3 / 4.5


@pytest.mark.slow
def test_the_samples_have_the_lengths_that_they_claim():
    tokenizer, samples = make_tokenizer(), list(mixture(3000))
    assert samples == list(mixture(3000))  # seeded
    for name, kind in KINDS.items():
        rows = [sample for sample in samples if sample["task"] == name]
        assert len(rows) / len(samples) == pytest.approx(kind.share, abs=0.03)
        for key, expected in (("instruction", kind.instruction), ("answer", kind.answer)):
            lengths = [len(tokenizer(" " + row[key])["input_ids"]) for row in rows]
            assert np.mean(lengths) == pytest.approx(expected, rel=0.15, abs=1), (name, key)


def test_the_batches_that_are_compared_hold_the_same_answers(model):
    def answers(batches):
        tokens = [batch["ids"].flatten()[batch["answer"]] for batch in batches]
        return torch.cat(tokens).bincount(minlength=400)

    def positions(batches):
        return sum(batch["ids"].numel() for batch in batches)

    samples = list(mixture(64))
    similar, others = batches_of(model, samples, 16), batches_of(model, samples, 16, False, 1)
    assert torch.equal(answers(similar), answers(others))
    assert positions(similar) < positions(others)


def test_the_losses_that_are_compared_are_the_same(model):
    samples = [sample for sample in mixture(64) if sample["task"] == "cls"][:8]
    (batch,) = batches_of(model.eval(), samples, 8)
    tensors = batch["z"], batch["ids"], batch["answer"]
    torch.testing.assert_close(loss_everywhere(model, *tensors), model(*tensors))


def test_times_come_with_their_spread(monkeypatch):
    times, clock_time = iter([9.0, 1.0, 2.0, 4.0]), [0.0]

    def wait():
        clock_time[0] += next(times)

    monkeypatch.setattr(time, "perf_counter", lambda: clock_time[0])
    (seconds,) = clock(wait)
    assert seconds == 2.0 and seconds.spread == (4 - 1) / 2 / 2  # the first does not count


def test_command_line(monkeypatch, capsys):
    def generation(machine):
        return rate(16, "answers/s", timing([1.0, 2.0, 3.0]), timing([8.0]))

    monkeypatch.setitem(PARTS, "generation", generation)
    parts = ["kmeans_huge", "generation"]
    monkeypatch.setattr(sys, "argv", ["bench", *parts, "--json", "--device=cpu"])
    main()
    out, progress = capsys.readouterr()
    said = json.loads(out)
    assert said["generation"] == {
        "unit": "answers/s",
        "ours": 8.0,
        "spread": 0.5,
        "obvious": 2.0,
        "obvious spread": 0.0,
        "times": 4.0,
    }
    assert "GPU" in said["kmeans_huge"]["skipped"] and said["device"] == "cpu"
    assert "generation (2 of 2)" in progress
    monkeypatch.setattr(sys, "argv", ["bench", "kmean"])
    with pytest.raises(SystemExit, match="unknown part kmean"):
        main()


def test_printed_lines(monkeypatch, capsys):
    def kmeans(machine):
        "K-means."
        return duration(timing([1.0, 2.0, 3.0]), timing([8.0])) | {"from random rows, s": 3}

    monkeypatch.setitem(PARTS, "kmeans", kmeans)
    monkeypatch.setattr(sys, "argv", ["bench", "kmeans", "step_llama", "--device=cpu"])
    main()
    assert capsys.readouterr().out.splitlines() == [
        "kmeans: K-means.",
        "    ours 2 s ± 50%, obvious 8 s ± 0%: 4.00x",
        "    from random rows, s: 3",
        "step_llama: The same of MATS-LLaMA-7B.",
        "    skipped: 7 billion weights want a GPU",
    ]
