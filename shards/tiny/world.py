"""The tiny world: the paper's experiment at one thousandth of its scale, from nothing but this folder.

    python -m shards.tiny.world data/tiny      what `torchrun train.py` does first, where it is not there yet

Three stages, each kept once it is whole and made anew only when its recipe (this file, sounds.py and words.py) changes:

1. clap/         a small CLAP, contrastive, on rendered scenes and captions of the part "clap"
2. llm/          a small LLaMA with its tokenizer, on sentences of the part "train"
3. train/, val/  triples of text, instruction and answer, with CLAP's text vectors; no sound was rendered for them
   test/         a folder per benchmark: sounds of the part "test" with references, labels, questions
   listen/       a handful of the test's sounds as wav, with their captions
"""

import hashlib
import io
import json
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from clap import CLAP, CLAPConfig
from data import DataError, write_atomic
from shards.tiny import sounds, words
from shards.writer import ShardWriter

SR, SECONDS, DIM = 16000, 2.0, 128
CLAP_CLIPS, CLAP_EPOCHS, CLAP_BATCH, CLAP_LR = 3200, 12, 48, 3e-3
LLM_LINES, LLM_EPOCHS, LLM_BATCH, LLM_LR = 10000, 2, 32, 4e-3
SCENES = {"train": 2400, "val": 80}  # told in words alone; each gives a triple of every task
TEST = {
    "sound": 280,
    "music": 140,
    "events": 160,
    "caption": 160,
    "music_caption": 80,
    "yesno": 160,
    "open": 160,
    "mcq": 160,
}


# --- the world, in parallel and seeded ---------------------------------------------------------------------------------


def imagine(*seed, kind=None, voices=None):
    """(rng, scene): one seed per scene, so that any of them can be made alone."""
    rng = np.random.default_rng(seed)
    return rng, sounds.random_scene(rng, kind, voices)


def told(stream, n, part):
    """All triples of n scenes that are never rendered."""
    for i in range(n):
        rng, scene = imagine(stream, i)
        yield from words.triples(scene, rng, part)


def clap_clip(i):
    """(caption, labels, wave) of CLAP's i-th training clip."""
    rng, scene = imagine(1, i)
    return words.caption(scene, rng, "clap"), scene.labels, sounds.render(scene, rng, SECONDS, SR)


def test_sample(job):
    """(sample of the schema, flac bytes, wave) of the i-th sample of a benchmark."""
    name, i = job
    kind = {
        "sound": "sound",
        "events": "sound",
        "caption": "sound",
        "music": "music",
        "music_caption": "music",
    }.get(name)
    voices = {"sound": 1, "music": 1, "events": 2 + i % 4 // 3}.get(name)
    rng, scene = imagine(2, list(TEST).index(name), i, kind=kind, voices=voices)
    tell = lambda: words.caption(scene, rng, "test")
    if name in ("yesno", "open", "mcq"):
        task = {"yesno": "aqa"}.get(name, name)
        sample = next(t for t in words.triples(scene, rng, "test") if t["task"] == task)
    elif name in ("caption", "music_caption"):
        told = set()
        while (
            len(told) < 6
        ):  # five references, and the text that the ceiling is given, which is none of them
            told.add(tell())
        text, *references = sorted(told, key=lambda t: hashlib.sha1(t.encode()).digest())
        sample = {
            "text": text,
            "answer": references,
            "task": "cap" if name == "caption" else "music_cap",
            "instruction": f"Generate {'audio' if name == 'caption' else 'music'} caption.",
        }
    else:
        sample = {
            "text": tell(),
            "instruction": "Classify events in the audio clip.",
            "answer": ", ".join(scene.labels),
            "task": "cls",
        }
    wave = sounds.render(scene, rng, SECONDS, SR)
    buffer = io.BytesIO()
    sf.write(buffer, wave, SR, format="FLAC")
    return {**sample, "source": f"tiny-{name}", "id": f"{name}-{i}"}, buffer.getvalue(), wave


def parallel(function, jobs, what):
    """Results in order, from two processes."""
    with ProcessPoolExecutor(2) as pool:
        yield from tqdm(
            pool.map(function, jobs, chunksize=32), total=len(jobs), desc=what, unit=" clips"
        )


# --- stage 1: CLAP --------------------------------------------------------------------------------------------------------


def make_tokenizer(lines):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer, tok.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    tok.train_from_iterator(
        lines,
        trainers.BpeTrainer(
            vocab_size=1024,
            special_tokens=["<|endoftext|>"],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )


def train_clap(tokenizer):
    """Contrastive, symmetric cross-entropy. Many texts are label lists, as in the pairs of the real CLAP; the same text twice in
    a batch is right twice."""
    clips = list(parallel(clap_clip, range(CLAP_CLIPS), "rendering for CLAP"))
    config = CLAPConfig(
        text=dict(
            n_embd=64,
            n_layer=1,
            n_head=4,
            n_positions=64,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        ),
        audio=dict(
            spec_size=64,
            patch_size=8,
            patch_stride=[8, 8],
            patch_embeds_hidden_size=48,
            depths=[1, 1],
            num_attention_heads=[4, 8],
            window_size=4,
        ),
        dim=DIM,
        sample_rate=SR,
        seconds=SECONDS,
        hop=512,
        fmax=SR / 2,
        max_tokens=64,
        dropout=0.1,
    )
    clap = CLAP(config, tokenizer).train()
    mels = torch.cat(
        [
            clap.mel(torch.tensor(np.stack([c[2] for c in clips[i : i + 128]])))
            for i in range(0, len(clips), 128)
        ]
    )
    log_scale = torch.nn.Parameter(torch.tensor(2.66))  # 1 / 0.07
    optimizer = torch.optim.AdamW([*clap.parameters(), log_scale], lr=CLAP_LR, weight_decay=0.05)
    steps = CLAP_EPOCHS * (len(clips) // CLAP_BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, CLAP_LR, total_steps=steps + 1, pct_start=0.1
    )
    rng, bar = np.random.default_rng(0), tqdm(total=steps, desc="training CLAP", unit=" steps")
    for _ in range(CLAP_EPOCHS):
        for rows in rng.permutation(len(clips))[: steps // CLAP_EPOCHS * CLAP_BATCH].reshape(
            -1, CLAP_BATCH
        ):
            named = ", ".join
            texts = [
                (clips[i][0], named(clips[i][1]), "sound of " + named(clips[i][1]))[k]
                for i, k in zip(rows, rng.choice(3, len(rows), p=[0.6, 0.2, 0.2]))
            ]
            a = F.normalize(clap.audio_features(mels[rows]), dim=-1)  # (B, DIM)
            t = F.normalize(clap.text_features(*clap.tokenize(texts)), dim=-1)  # (B, DIM)
            same = torch.tensor([[float(x == y) for x in texts] for y in texts])  # (B, B)
            logits, same = (
                a @ t.T * log_scale.exp().clamp(max=100),
                same / same.sum(1, keepdim=True),
            )
            loss = (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()
        bar.set_postfix(loss=f"{loss.item():.2f}")
    bar.close()
    return clap.freeze()


# --- stage 2: the language model -----------------------------------------------------------------------------------------


def train_llm(tokenizer):
    """Next-token prediction on the world's language: a text, then a question about it and its answer, as prose.

    A LLaMA and not a GPT-2, because with rotary positions a small model learns within minutes to look up in a text what is
    asked about it (72 % of the label lists after 500 steps against 38 %): what a pretrained LLM brings along.
    """
    lines = [
        f"{t['text']}\n{t['instruction']} {t['answer']}" for t in told(3, LLM_LINES // 5, "train")
    ]
    ids = [i + [tokenizer.eos_token_id] for i in tokenizer(lines)["input_ids"]]
    llm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).train()
    optimizer = torch.optim.AdamW(llm.parameters(), lr=LLM_LR, weight_decay=0.01)
    rng, batches = np.random.default_rng(0), []
    for _ in range(LLM_EPOCHS):  # batches of like length
        rows = sorted(rng.permutation(len(ids)), key=lambda i: len(ids[i]))
        batches += [rows[i : i + LLM_BATCH] for i in range(0, len(rows) - LLM_BATCH + 1, LLM_BATCH)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LLM_LR, total_steps=len(batches) + 1, pct_start=0.1
    )
    bar = tqdm(total=len(batches), desc="training the language model", unit=" steps")
    for k in rng.permutation(len(batches)):
        width = max(len(ids[i]) for i in batches[k])
        x = torch.tensor([ids[i] + [-100] * (width - len(ids[i])) for i in batches[k]])
        loss = llm(input_ids=x.clamp(min=0), labels=x).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.update()
        if bar.n % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.2f}")
    bar.close()
    return llm.eval()


# --- stage 3: shards -------------------------------------------------------------------------------------------------------


def write_text_part(directory, part, clap):
    triples = list(told({"train": 4, "val": 5}[part], SCENES[part], part))
    vectors = clap.encode_text([t["text"] for t in triples]).numpy()
    made = {"from": recipe(), "clap": "tiny", "side": "text", "dim": DIM}
    with ShardWriter(directory, per_shard=1024, vectors=made, licences={"tiny": "MIT"}) as writer:
        for i, (t, z) in enumerate(zip(triples, vectors)):
            writer.write({**t, "source": "tiny", "id": f"{part}-{i}"}, vector=z)


def write_test_part(directory):
    jobs = [(name, i) for name, n in TEST.items() for i in range(n)]
    results = parallel(test_sample, jobs, "rendering the test sounds")
    for name, n in TEST.items():
        with ShardWriter(directory / name, licences={"tiny": "MIT"}) as writer:
            for sample, flac, _ in islice(results, n):
                writer.write(sample, audio=("flac", flac))
        if name in ("sound", "music", "events"):
            labels = sounds.labels("music" if name == "music" else "sound")
            write_atomic(directory / name / "labels.json", json.dumps(labels, indent=1).encode())


def write_listen(directory, n=12):
    directory.mkdir()
    lines = []
    for i in range(n):
        sample, _, wave = test_sample(("caption" if i % 3 else "music_caption", i))
        sf.write(directory / f"{i:02d}.wav", wave, SR)
        lines.append(f"{i:02d}.wav\t{sample['text']}\n")
    (directory / "captions.tsv").write_text("".join(lines))


# --- all of it ---------------------------------------------------------------------------------------------------------


def recipe():
    """What the world is made from, as a hash: of these three files."""
    return hashlib.sha256(
        b"".join(Path(f).read_bytes() for f in (__file__, sounds.__file__, words.__file__))
    ).hexdigest()[:16]


def build(root):
    """Makes what is missing of the tiny world in `root`. Raises DataError where `root` holds something else."""
    root, stamp = Path(root), Path(root) / "recipe.txt"
    if root.exists() and any(root.iterdir()) and not stamp.exists():
        raise DataError(
            f"{root} is not a tiny world of ours and is left alone; choose another folder"
        )
    if stamp.exists() and stamp.read_text() != recipe():
        shutil.rmtree(root)
    root.mkdir(parents=True, exist_ok=True)
    write_atomic(stamp, recipe().encode())

    def stage(name, make):
        """root/name, made under another name first: what is there is whole."""
        if not (root / name).exists():
            shutil.rmtree(root / f"{name}.part", ignore_errors=True)
            torch.manual_seed(0)
            make(root / f"{name}.part")
            (root / f"{name}.part").rename(root / name)
        return root / name

    def clap_stage(directory):
        lines = [
            x for t in told(6, 1200, "train") for x in (t["text"], t["instruction"], t["answer"])
        ]
        train_clap(make_tokenizer(lines)).save_pretrained(directory)

    def llm_stage(directory):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(root / "clap")
        train_llm(tokenizer).save_pretrained(directory)
        tokenizer.save_pretrained(directory)

    clap_dir = stage("clap", clap_stage)
    stage("llm", llm_stage)
    for part in ("train", "val"):
        stage(
            part, lambda directory: write_text_part(directory, part, CLAP.from_pretrained(clap_dir))
        )
    stage("test", write_test_part)
    stage("listen", write_listen)


if __name__ == "__main__":
    build(sys.argv[1] if len(sys.argv) > 1 else "data/tiny")
