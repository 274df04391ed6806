"""A tiny random world, made in seconds: models, shards, sounds and annotation files.

llm/ clap/            random weights
raw/ train/ val/      shards: texts; texts with vectors
bench/                two benchmarks with audio
root/                 annotation files, as the datasets' owners publish them
sounds/               one sound in every format
first_train/out/ ...  of each command an uninterrupted run; training has twelve updates
half/out/             a training run that was killed after six
"""

import csv
import io
import json
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from clap import CLAP, CLAPConfig, load_clap
from shards.writer import ShardWriter

ANIMALS = ("dog", "cat", "cow", "frog", "crow", "duck", "sheep", "horse")
PLACES = ("near a river", "far away", "in the rain", "again and again", "once", "behind a door")
RATE = 8000
DIM = 16
FORMATS = {  # name of a file: (format, subtype) for soundfile
    "a.wav": ("WAV", "PCM_16"),
    "float.wav": ("WAV", "FLOAT"),
    "a.flac": ("FLAC", "PCM_16"),
    "a.ogg": ("OGG", "VORBIS"),
    "opus.ogg": ("OGG", "OPUS"),
    "a.mp3": ("MP3", "MPEG_LAYER_III"),
    "a.au": ("AU", "PCM_16"),
}


def commands(world: Path) -> dict[str, tuple[str, list[str]]]:
    """{name: (module, arguments)}; each writes to the folder `out`, wherever it is run."""
    sizes = "--dim=16 --width=32 --layers=1 --heads=4 --prefix=4 --tokens=4 --max_answer=8"
    updates = "--micro_batch=4 --batch_size=8 --steps=12 --save_every=3 --log_every=3"
    train = f"""tiny --build= --train={world}/train --val={world}/val --val_every=6 --out=out
        --llm={world}/llm --clap={world}/clap {sizes} {updates} --lora_rank=2 --warmup=3
        --memory=20 --clusters=3 --workers=0 --device=cpu"""
    evaluate = f"""--ckpt {world}/first_train/out/model --shards {world}/bench --out out --batch 4
        --columns text,none,santa --device cpu"""
    return {
        "train": ("train", train.split()),
        "eval": ("eval", evaluate.split()),
        "embed": ("shards.embed", [f"{world}/raw", "out", "--clap", f"{world}/clap"]),
        "builder": (
            "shards.audiotia",
            ["audiocaps", "clotho", "--root", f"{world}/root", "--out", "out"],
        ),
    }


def make(world: Path) -> None:
    """All but the runs."""
    tokenizer = make_tokenizer()
    make_models(world, tokenizer)
    make_sounds(world / "sounds")
    make_shards(world)
    make_annotations(world / "root", audiocaps=9_000)
    make_annotations(world / "small", audiocaps=12)


# --- models -------------------------------------------------------------------------------------


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer, end = Tokenizer(models.BPE()), "<|endoftext|>"
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[end],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    lines = [f"A {animal} calls {place}" for animal in ANIMALS for place in PLACES]
    tokenizer.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, bos_token=end)


def make_models(world: Path, tokenizer) -> None:
    torch.manual_seed(0)
    llm = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(llm).save_pretrained(world / "llm")
    tokenizer.save_pretrained(world / "llm")
    clap = CLAPConfig(
        text=dict(n_embd=32, n_layer=1, n_head=2, n_positions=64),
        audio=dict(
            spec_size=64,
            patch_embeds_hidden_size=16,
            depths=[1, 1],
            num_attention_heads=[2, 2],
            window_size=4,
        ),
        dim=DIM,
        max_tokens=64,
        sample_rate=RATE,
        seconds=1.0,
        hop=128,
        fmax=4000.0,
    )
    CLAP(clap, tokenizer).freeze().save_pretrained(world / "clap")


# --- shards and sounds --------------------------------------------------------------------------


def sound(name: str, seed: int = 0, seconds: float = 1.5) -> bytes:
    """A tone with noise, in the format of the file `name`."""
    form, subtype = FORMATS[name]
    time = np.arange(int(RATE * seconds)) / RATE
    wave = 0.3 * np.sin(2 * np.pi * 220 * (1 + seed) * time)
    wave += np.random.default_rng(seed).normal(size=len(time)) * 0.05
    stream = io.BytesIO()
    sf.write(stream, wave, RATE, format=form, subtype=subtype)
    return stream.getvalue()


def make_sounds(folder: Path) -> None:
    folder.mkdir()
    for name in FORMATS:
        (folder / name).write_bytes(sound(name))


def samples(n: int, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        text = f"A {ANIMALS[rng.integers(8)]} calls {PLACES[rng.integers(6)]} {seed} {i}"
        sample = dict(text=text, instruction="Generate audio caption.", answer=text, task="cap")
        made.append(sample | dict(source="farm", id=str(i), tag="[farm]"))
    return made


def make_shards(world: Path) -> None:
    clap = load_clap(str(world / "clap"))
    made = {"clap": "clap", "side": "text", "dim": DIM, "from": ""}
    for name, n, per_shard in (("raw", 480, 16), ("train", 64, 16), ("val", 8, 8), ("few", 12, 4)):
        vectors = None if name == "raw" else made
        with ShardWriter(world / name, per_shard, vectors=vectors, command="stress") as writer:
            written = samples(n, len(name))
            texts = clap.encode_text([sample["text"] for sample in written])
            for sample, z in zip(written, texts):
                writer.write(sample, vector=z if vectors else None)
    for name, task in (("sound", "cls"), ("yesno", "aqa")):
        with ShardWriter(world / "bench" / name, 8, command="stress") as writer:
            for i, sample in enumerate(samples(24, len(name))):
                sample |= {"task": task, "answer": "yes" if task == "aqa" else ANIMALS[i % 8]}
                kind = ("a.wav", "a.flac", "a.ogg")[i % 3]
                writer.write(sample, audio=(kind[2:], sound(kind, i)))
    (world / "bench/sound/labels.json").write_text(json.dumps(ANIMALS))
    with ShardWriter(world / "heard", 4, command="stress") as writer:
        for i, sample in enumerate(samples(8, 9)):
            writer.write(sample, audio=("flac", sound("a.flac", i, 0.5)))


# --- annotation files ---------------------------------------------------------------------------


def table(path: Path, header: str, rows: list[tuple]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header.split(","), *rows])


def records(path: Path, rows: list, key: str | None = None) -> None:
    """A JSON array of these rows, one a line; with `key`, inside of an object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]"
    path.write_text(f'{{"{key}": {text}}}' if key else text)


def make_annotations(root: Path, audiocaps: int) -> None:
    """Some of the public datasets, with `audiocaps` captions in AudioCaps and a third in Clotho."""
    captions = [f"a {ANIMALS[i % 8]} calls, {PLACES[i % 6]}, for the {i}th time" for i in range(99)]

    def caption(i):
        return f"{captions[i % 99]} {i}"

    few = 12
    head = "audiocap_id,youtube_id,start_time,caption"
    rows = [(i, f"{i:011d}", i % 9, caption(i)) for i in range(audiocaps)]
    table(root / "audiocaps/train.csv", head, rows)
    table(
        root / "audiocaps/test.csv", head, [(1, "x" * 11, 3, caption(5)), (2, f"{2:011d}", 3, "")]
    )
    columns = ",".join(f"caption_{i}" for i in range(1, 6))
    for split, n in (("development", audiocaps // 3), ("validation", 3), ("evaluation", 3)):
        rows = [
            (f"{split} {i}.wav", *(f"{caption(i)} {split} {j}" for j in range(5))) for i in range(n)
        ]
        table(root / f"clotho/clotho_captions_{split}.csv", f"file_name,{columns}", rows)
    for split, files in (("train", "development"), ("test", "evaluation")):
        rows = [
            (f"{files} {i // 3}.wav", f"Is it a {ANIMALS[i % 8]}? {split}", "yes", "maybe")
            for i in range(few)
        ]
        header = "file_name,QuestionText,answer,confidence"
        table(root / f"clothoaqa/clotho_aqa_{split}.csv", header, rows)
    rows = [{"id": f"{i}", "caption": caption(i), "duration": 1.5} for i in range(few)]
    records(root / "wavcaps/sb_final.json", rows, "data")
    for name in ("exclude_test_ac", "exclude_ub8k_esc50_vggsound"):
        lists = {"AudioSet": [f"Y{'x' * 11}.wav"], "FreeSound": ["7.wav"]}
        (root / f"wavcaps/blacklist_{name}.json").write_text(json.dumps(lists))
    entries = [
        f"- filename: {i}.wav\n  annotations:\n  - annotator_id: 1\n    sentence: {captions[i]}\n"
        for i in range(few)
    ]
    (root / "macs").mkdir()
    (root / "macs/MACS.yaml").write_text("files:\n" + "".join(entries))
    for part in ("Pretrain", "Finetune"):
        rows = [
            {
                "audio_name": f"{i}.wav",
                "conversation": [
                    {"from": "human", "value": f"What plays? {i}"},
                    {"from": "gpt", "value": caption(i)},
                ],
            }
            for i in range(few)
        ]
        records(root / f"musicqa/{part}MusicQA.json", rows)
    (root / "lp_musiccaps").mkdir()
    lines = [json.dumps({"audio_name": f"{i}.wav", "caption": caption(i)}) for i in range(few)]
    (root / "lp_musiccaps/captions.jsonl").write_text("\n".join(lines) + "\n")
