"""Small stand-ins that all tests share: a tokenizer, tiny language models, shards of samples."""

import io
import json
import os
import signal
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
import soundfile as sf
import torch
from hub_server import hub  # noqa: F401, a fixture
from servers import nobody, random_llms, server  # noqa: F401, fixtures
from stand_in import java  # noqa: F401, a fixture
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import eval as evaluation
from clap import CLAP, CLAPConfig
from mats import MATS, MATSConfig
from santa import Santa
from shards.writer import ShardWriter

# a shell's background jobs, and all that they start, ignore Ctrl-C, which tests send
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
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
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    lines = [f"A {a} calls {p}. Generate audio caption." for a in ANIMALS for p in PLACES]
    end, letters = "<|endoftext|>", pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[end], show_progress=False, initial_alphabet=letters
    )
    tok.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tok, eos_token=end, bos_token=end)


def gpt2(vocab=400, seed=0, positions=128):
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=vocab, n_embd=32, n_layer=2, n_head=2, n_positions=positions)
    return GPT2LMHeadModel(config)


def llama(vocab=400, seed=0, positions=128):
    torch.manual_seed(seed)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": positions}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab, **heads, **sizes))


def small_clap(tokenizer):
    """A CLAP with random weights: 16-d, one second at 8 kHz."""
    torch.manual_seed(0)
    text = dict(n_embd=32, n_layer=1, n_head=2, n_positions=64)
    tower = dict(depths=[1, 1], num_attention_heads=[2, 2], window_size=4)
    audio = dict(spec_size=64, patch_embeds_hidden_size=16, **tower)
    sound = dict(sample_rate=8000, seconds=1.0, hop=128, fmax=4000.0)
    config = CLAPConfig(text=text, audio=audio, dim=16, max_tokens=64, **sound)
    return CLAP(config, tokenizer).freeze()


def flac(seed, seconds=1.5):
    """The bytes of a noise at 8 kHz."""
    buffer, wave = io.BytesIO(), np.random.default_rng(seed).normal(size=int(8000 * seconds)) * 0.1
    sf.write(buffer, wave, 8000, format="FLAC")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def project(tmp_path_factory, tokenizer):
    """A model that never learned anything, its CLAP, and two benchmarks; one clip is no sound."""
    root = tmp_path_factory.mktemp("project")
    small_clap(tokenizer).save_pretrained(root / "clap")
    gpt2(len(tokenizer)).save_pretrained(root / "llm")
    tokenizer.save_pretrained(root / "llm")
    sizes = dict(dim=16, prefix=4, tokens=4, width=32, layers=1, heads=2, max_answer=6)
    model = MATS(MATSConfig(llm=str(root / "llm"), clap=str(root / "clap"), **sizes))
    generator = torch.Generator().manual_seed(0)
    texts = [s["text"] for s in make_samples(40, seed=1)]
    model.santa = Santa.build(torch.randn(40, 16), m=40, k=4, generator=generator, texts=texts)
    model.save_pretrained(root / "run" / "model")
    for name, task in (("sound", "cls"), ("yesno", "aqa")):
        with ShardWriter(root / "bench" / name) as writer:
            for i, s in enumerate(make_samples(20)):
                answer = ANIMALS[i % 8] if task == "cls" else "yes"
                data = flac(i // 2) if i != 7 else b"no sound"  # pairs share a clip
                writer.write({**s, "task": task, "answer": answer}, audio=("flac", data))
    (root / "bench" / "sound" / "labels.json").write_text(json.dumps(ANIMALS))
    return root


def options(project, *more):
    """eval.py's command line for the project."""
    folders = ["--ckpt", str(project / "run/model"), "--shards", str(project / "bench")]
    return [*folders, "--columns", "text,none,shift,santa", *more]


def results_of(out):
    return json.loads((out / "results.json").read_text())


@pytest.fixture(scope="session")
def evaluated(project):
    """The project's results."""
    evaluation.main(options(project))
    return project / "run/eval"


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


def write_samples(directory, samples, per_shard=20, dim=16, vectors=True, clap=None):
    """Shards with vectors: a CLAP's, or random ones."""
    made = {"from": "", "clap": "test", "side": "text", "dim": dim} if vectors else None
    with ShardWriter(directory, per_shard=per_shard, vectors=made) as writer:
        for s in samples:
            z = np.random.default_rng(abs(hash_text(s["text"]))).normal(size=dim)
            if clap:
                z = clap.encode_text([s["text"]])[0].numpy()
            writer.write(s, vector=z / np.linalg.norm(z) if vectors else None)
    return directory


def hash_text(text):
    return int.from_bytes(text.encode()[:64].ljust(64, b"\0"), "little") % (1 << 60)
