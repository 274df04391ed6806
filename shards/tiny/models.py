"""The models of the tiny world: a CLAP that has a real one's gap, and a language model."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.optim.lr_scheduler import OneCycleLR
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from clap import CLAP, CLAPConfig
from shards.tiny.questions import LESSON, taught, told
from shards.tiny.scenes import CLIP, SECONDS, SR, Scene, imagine, render
from shards.tiny.words import caption
from shards.tiny.work import progress

DIM = 128
CLAP_CLIPS, CLAP_EPOCHS, CLAP_BATCH, CLAP_LR = 3200, 10, 48, 3e-3
# Of its cosines. At a fixed scale of 50 text and audio stay apart (paired cosine .46). With a
# learned one, which ended at 13, hardly a gap was left to bridge (.85).
CLAP_SCALE = 50.0
LLM_SCENES, LLM_BATCH, LLM_LR = 6500, 48, 2e-3
ANSWERS_COUNT = 5.0  # as much as any other token in the language model's loss
# seconds of one core, roughly
CLAP_STEP, LLM_STEP = 0.06, 0.035


class Descent:
    """AdamW under a one-cycle learning rate."""

    def __init__(self, parameters, lr: float, weight_decay: float, steps: int):
        self.optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
        self.schedule = OneCycleLR(self.optimizer, lr, total_steps=steps + 1, pct_start=0.1)

    def step(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()


# --- the tokenizer -------------------------------------------------------------------------------


def world_tokenizer() -> PreTrainedTokenizerFast:
    triples = [*told(6, 1200, "train"), *taught(7, 600)]
    return make_tokenizer(t[fact] for t in triples for fact in ("text", "instruction", "answer"))


def make_tokenizer(lines: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that has a token for each word of the lines.

    It cuts any other word into the longest pieces that it knows, at worst into bytes.
    """
    end, cut = "<|endoftext|>", pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = {word for line in lines for word, _ in cut.pre_tokenize_str(line)}
    tokens = [end, *sorted({*pre_tokenizers.ByteLevel.alphabet(), *words})]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    longest = models.WordPiece(
        vocabulary, unk_token=end, continuing_subword_prefix="", max_input_chars_per_word=10**6
    )
    tokenizer = Tokenizer(longest)
    tokenizer.pre_tokenizer, tokenizer.decoder = cut, decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, bos_token=end)


# --- CLAP ----------------------------------------------------------------------------------------


class Clip(NamedTuple):
    scene: Scene
    wave: np.ndarray  # (SECONDS * SR,) float32


def clap_clip(i: int) -> Clip:
    """CLAP's i-th training clip."""
    rng, scene = imagine(1, i)
    progress(CLIP)
    return Clip(scene, render(scene, rng, SECONDS, SR))


def clap_seconds() -> float:
    return CLAP_CLIPS * CLIP + CLAP_EPOCHS * (CLAP_CLIPS // CLAP_BATCH) * CLAP_STEP


def write_clap(directory: Path) -> None:
    train_clap(world_tokenizer()).save_pretrained(directory)


def clap_config() -> CLAPConfig:
    no_dropout = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    size = dict(n_embd=64, n_layer=1, n_head=4, n_positions=64, initializer_range=0.08)
    audio = dict(
        spec_size=64,
        patch_size=8,
        patch_stride=[8, 8],
        patch_embeds_hidden_size=48,
        depths=[1, 1],
        num_attention_heads=[4, 8],
        window_size=4,
        initializer_range=0.08,
    )
    return CLAPConfig(
        text=dict(**size, **no_dropout, bos_token_id=0, eos_token_id=0),
        audio=audio,
        dim=DIM,
        sample_rate=SR,
        seconds=SECONDS,
        hop=512,
        fmax=SR / 2,
        max_tokens=64,
        dropout=0.1,
    )


def train_clap(tokenizer: PreTrainedTokenizerFast) -> CLAP:
    """A frozen CLAP, trained by contrast on clips with captions or label lists."""
    clips = [clap_clip(i) for i in range(CLAP_CLIPS)]
    clap = CLAP(clap_config(), tokenizer).train()
    waves = torch.tensor(np.stack([clip.wave for clip in clips]))
    mels = torch.cat([clap.mel(chunk) for chunk in waves.split(128)])
    per_epoch = len(clips) // CLAP_BATCH
    descent = Descent(clap.parameters(), CLAP_LR, 0.05, CLAP_EPOCHS * per_epoch)
    rng = np.random.default_rng(0)
    for _ in range(CLAP_EPOCHS):
        order = rng.permutation(len(clips))[: per_epoch * CLAP_BATCH]
        for rows in order.reshape(per_epoch, CLAP_BATCH):
            texts = [clap_text(clips[i].scene, rng) for i in rows]
            audio = F.normalize(clap.audio_features(mels[rows]), dim=-1)  # (B, DIM)
            text = F.normalize(clap.text_features(*clap.tokenize(texts)), dim=-1)  # (B, DIM)
            descent.step(contrastive_loss(audio @ text.T * CLAP_SCALE, texts))
            progress(CLAP_STEP)
    return clap.freeze()


def clap_text(scene: Scene, rng: np.random.Generator) -> str:
    """A new text each time. Many are label lists, as in the pairs of the real CLAP."""
    names = ", ".join(scene.labels)
    if rng.random() < 0.6:
        return caption(scene, rng, "clap")
    return names if rng.random() < 0.5 else f"sound of {names}"


def contrastive_loss(logits: torch.Tensor, texts: list[str]) -> torch.Tensor:
    """Symmetric cross-entropy of logits (B, B); clips with the same text are all right."""
    same = torch.tensor([[float(x == y) for x in texts] for y in texts])  # (B, B)
    same = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2


# --- the language model --------------------------------------------------------------------------


class Line(NamedTuple):
    ids: list[int]
    answer: int  # place of the answer's first token


def llm_seconds() -> float:
    return LLM_SCENES * len(LESSON) / LLM_BATCH * LLM_STEP


def write_llm(directory: Path) -> None:
    tokenizer = world_tokenizer()
    train_llm(tokenizer).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def train_llm(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A language model, trained to predict the next token of the world's language.

    A line is a scene's tags, then a question about it and its answer. A pretrained LLM can look up
    in a text the answer to a question; this one can in tags.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    llm = LlamaForCausalLM(config).train()
    batches = batches_of_similar_length(lines_of(tokenizer))
    descent = Descent(llm.parameters(), LLM_LR, 0.01, len(batches))
    for batch in batches:
        descent.step(next_token_loss(llm, batch))
        progress(LLM_STEP)
    return llm.eval()


def lines_of(tokenizer: PreTrainedTokenizerFast) -> list[Line]:
    triples = list(taught(3, LLM_SCENES))
    asked = tokenizer([f"{t['text']}\n{t['instruction']}" for t in triples])["input_ids"]
    answers = tokenizer([f" {t['answer']}" for t in triples])["input_ids"]
    end = [tokenizer.eos_token_id]
    return [Line(ask + answer + end, len(ask)) for ask, answer in zip(asked, answers)]


def next_token_loss(llm: LlamaForCausalLM, batch: list[Line]) -> torch.Tensor:
    """Cross-entropy of all tokens; those of the answers count ANSWERS_COUNT times."""
    width = max(len(line.ids) for line in batch)
    ids = torch.tensor([line.ids + [0] * (width - len(line.ids)) for line in batch])  # (B, T)
    place = torch.arange(width)
    start = torch.tensor([[line.answer] for line in batch])  # (B, 1)
    end = torch.tensor([[len(line.ids)] for line in batch])  # (B, 1)
    weight = torch.where(place >= start, ANSWERS_COUNT, 1.0) * (place < end)  # (B, T)
    logits = llm(input_ids=ids).logits[:, :-1]  # (B, T - 1, V)
    loss = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return (loss * weight[:, 1:]).sum() / weight[:, 1:].sum()


def batches_of_similar_length(lines: list[Line]) -> list[list[Line]]:
    """All lines, in batches of random order."""
    rng = np.random.default_rng(0)
    lines = sorted((lines[i] for i in rng.permutation(len(lines))), key=lambda line: len(line.ids))
    starts = range(0, len(lines) - LLM_BATCH + 1, LLM_BATCH)
    batches = [lines[start : start + LLM_BATCH] for start in starts]
    return [batches[i] for i in rng.permutation(len(batches))]
