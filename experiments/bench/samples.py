"""Samples and models to measure on: texts as long as real annotations, models of the true sizes.

Words are the tiny world's, and weights are random.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from clap import CLAP, CLAPConfig
from data import Plan, Visit, collate
from experiments.bench.clock import Machine
from mats import MATS, MATSConfig
from shards.tiny import models
from shards.tiny.questions import told
from shards.writer import ShardWriter


class Kind(NamedTuple):
    """A kind of samples: its share of the mixture, and its lengths in tokens."""

    share: float
    instruction: int
    answer: int  # mean
    deviation: int  # of the answers' lengths


# Lengths: GPT-2's tokenizer on AudioCaps, MusicCaps, MusicQA and ClothoAQA; cls: FSD50K's labels.
# Shares: the weights of the released mixture.
KINDS = {
    "cls": Kind(0.33, 7, 5, 3),
    "cap": Kind(0.20, 5, 10, 5),
    "music_cap": Kind(0.09, 5, 60, 20),
    "open": Kind(0.35, 9, 32, 23),
    "aqa": Kind(0.03, 7, 1, 0),
}


# --- samples ---


def captions(n: int) -> list[str]:
    return [triple["text"] for triple in told(7, n // 5 + 1, "val")][:n]


def make_tokenizer():
    """A tokenizer that knows every word of the captions."""
    return models.make_tokenizer([space + text for text in captions(500) for space in ("", " ")])


def mixture(n: int, seed: int = 0) -> Iterator[dict]:
    """n samples of KINDS."""
    rng, texts = np.random.default_rng(seed), captions(200)
    words = " ".join(captions(40)).split()
    tasks, shares = list(KINDS), [kind.share for kind in KINDS.values()]

    def say(length: int) -> str:
        start = int(rng.integers(len(words) - 151))
        return " ".join(words[start : start + length])

    for i in range(n):
        task = tasks[rng.choice(len(tasks), p=shares)]
        kind = KINDS[task]
        yield {
            "text": texts[rng.integers(len(texts))],
            "instruction": say(kind.instruction),
            "answer": say(int(np.clip(rng.normal(kind.answer, kind.deviation), 1, 150))),
            "task": task,
            "source": task,
            "id": str(i),
        }


def write_shards(directory, samples: Iterable[dict]) -> None:
    """Shards of the samples with random vectors."""
    with ShardWriter(directory, vectors={"dim": 1024, "side": "text"}) as writer:
        for sample in samples:
            writer.write(sample, vector=torch.randn(1024))


def batches_of(
    model: MATS, samples: list[dict], n: int, similar: bool = True, multiple: int = 8
) -> list[dict]:
    """The samples in batches of n with random z.

    similar: of similar length, as a plan cuts them; otherwise in their order.
    """
    tokens = model.template.encode(samples)
    rows = np.arange(len(samples)).reshape(-1, n)
    if similar:
        visit = Visit(number=0, source=0, shard=0, batches=len(rows))
        rows = Plan([None], [1], n).cut(visit, [len(ids) for ids, _ in tokens])
    pad = model.tokenizer.eos_token_id
    batches = [
        collate([samples[i] for i in row], [tokens[i] for i in row], pad, multiple) for row in rows
    ]
    return [batch | {"z": torch.randn(n, model.config.dim)} for batch in batches]


# --- models ---


SMALL = {"n_embd": 256, "n_layer": 4, "n_head": 4}  # a third of GPT-2's width and depth


def language_model(size: str, whole: bool, dtype: torch.dtype):
    if size != "llama":
        shape = SMALL if size == "small" else {}
        return GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0))
    if whole:  # in 16 bits from the start: 7 B weights of 32 bits do not fit
        return LlamaForCausalLM._from_config(LlamaConfig(vocab_size=32000), dtype=dtype)
    quarter = LlamaConfig(
        vocab_size=32000,
        hidden_size=1024,
        intermediate_size=2752,
        num_hidden_layers=8,
        num_attention_heads=8,
    )
    return LlamaForCausalLM(quarter)


def sized(size: str, machine: Machine, meta: bool = False) -> MATS:
    """MATS with random weights, in training mode.

    The frozen weights have the machine's dtype: bfloat16 in the paper's configs.

    gpt2: the true size. small: a third of its width and depth, mapper included. llama: 7 B on a
    GPU or as `meta`; on a CPU a fourth of its width and depth, with a mapper that does as small a
    share of the work as the true one.
    """
    torch.manual_seed(0)
    whole, device = machine.cuda or meta, "meta" if meta else machine.device
    mapper = {}
    if size == "small":
        mapper = {"width": 256, "layers": 3, "heads": 4}
    elif size == "llama" and not whole:
        mapper = {"width": 256, "layers": 2}
    with torch.device(device):
        llm = language_model(size, whole, getattr(torch, machine.dtype))
        model = MATS(MATSConfig(llm_dtype=machine.dtype, **mapper), llm, make_tokenizer())
    return model.to(device).train()


def micro_batch(size: str, machine: Machine) -> int:
    """Samples of a batch that the machine can hold."""
    if machine.cuda:
        return 12 if size == "llama" else 128
    return 32 if size == "small" else 16


def sized_clap(machine: Machine, **text) -> CLAP:
    """msclap's sizes, frozen; text: fields of GPT2Config that differ."""
    torch.manual_seed(0)
    shape = CLAPConfig(text={"vocab_size": 50257, **text})
    return CLAP(shape, make_tokenizer()).freeze().to(machine.device)


def fake(model: MATS) -> MATS:
    """The model with fake weights, which have shapes but no values. Under FakeTensorMode alone."""
    for module in model.modules():
        parameters = module.named_parameters(recurse=False)
        buffers = module.named_buffers(recurse=False)
        for name, old in [*parameters, *buffers]:
            new = torch.empty(old.shape, dtype=old.dtype)
            if isinstance(old, torch.nn.Parameter):
                new = torch.nn.Parameter(new, old.requires_grad)
            setattr(module, name, new)
    return model
