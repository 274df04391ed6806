"""Small stand-ins that all tests share: a tokenizer, tiny language models, shards of samples."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
import torch
from servers import random_llms, server  # noqa: F401, fixtures
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from shards.writer import ShardWriter

torch.set_num_threads(2)
SHARED = Path(__file__).parent.parent.parent / "shared"
ANIMALS = ["dog", "cat", "cow", "frog", "crow", "duck", "sheep", "horse"]
PLACES = [
    "near a river",
    "in the distance",
    "while it rains",
    "over and over again",
    "once",
    "behind a door",
]


@pytest.fixture(scope="session")
def shared():
    """The folder with real annotation files and audio, which is not part of the project."""
    if not (SHARED / "data").exists():
        pytest.skip(f"real data: no folder {SHARED.name}/data beside the project")
    return SHARED


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level BPE tokenizer like GPT-2's, trained on a few sentences."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer, tok.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    lines = [f"A {a} calls {p}. Generate audio caption." for a in ANIMALS for p in PLACES]
    tok.train_from_iterator(
        lines,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<|endoftext|>"],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )


def gpt2(vocab=400, seed=0):
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=vocab, n_embd=32, n_layer=2, n_head=2, n_positions=128)
    )


def llama(vocab=400, seed=0):
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
        )
    )


def make_samples(n, source="farm", seed=0):
    rng = np.random.default_rng(seed)
    for i in range(n):
        text = f"A {ANIMALS[rng.integers(8)]} calls {PLACES[rng.integers(6)]}"
        yield {
            "text": text,
            "instruction": "Generate audio caption.",
            "answer": text,
            "task": "cap",
            "source": source,
            "id": f"-{source}.{i}",
        }


def write_samples(directory, samples, per_shard=20, dim=16, vectors=True):
    made = {"from": "", "clap": "test", "side": "text", "dim": dim} if vectors else None
    with ShardWriter(directory, per_shard=per_shard, vectors=made) as writer:
        for s in samples:
            z = np.random.default_rng(abs(hash_text(s["text"]))).normal(size=dim)
            writer.write(s, vector=z / np.linalg.norm(z) if vectors else None)
    return directory


def hash_text(text):
    return int.from_bytes(text.encode()[:64].ljust(64, b"\0"), "little") % (1 << 60)
