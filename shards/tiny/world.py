"""The tiny world: the paper's experiment at one thousandth of its scale, from this folder alone.

    python -m shards.tiny.world data/tiny      `torchrun train.py` does this first, where needed

Stages, each kept once it is complete, and made anew only when the code of this folder changes:

1. clap/         a small CLAP, trained on rendered scenes and captions of the part "clap"
2. llm/          a small LLaMA with its tokenizer, trained on sentences of the part "train"
3. train/, val/  triples of text, instruction and answer, with CLAP's text vectors; no audio
   test/         a folder per benchmark: sounds of the part "test", references, labels, questions
   listen/       a dozen of the test's sounds as wav, with their captions
"""

import argparse
import hashlib
import io
import json
import multiprocessing
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile as sf
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from clap import CLAP, CLAPConfig
from data import DataError, write_atomic
from scoring.tasks import BENCHMARKS
from shards.tiny import scenes
from shards.tiny.questions import (
    TASKS,
    ask_caption,
    ask_choice,
    ask_label,
    ask_open,
    ask_yes_no,
    lesson,
    triples,
)
from shards.tiny.recipe import is_current, recipe
from shards.tiny.words import caption, describe_in
from shards.writer import ShardWriter

SR, SECONDS, DIM = 16000, 2.0, 128
CLAP_CLIPS, CLAP_EPOCHS, CLAP_BATCH, CLAP_LR = 3200, 10, 48, 3e-3
# Of its cosines. CLAPs of the size of msclap's end where text and audio stay apart. So does this
# one at a fixed scale of 50: with a learned one, which ends at 13, no gap is left to bridge.
CLAP_SCALE = 50.0
LLM_SCENES, LLM_BATCH, LLM_LR = 6500, 48, 2e-3
ANSWERS_COUNT = 5.0  # as much as any other token in the language model's loss
SCENES = {"train": 4000, "val": 80}  # told in words alone; each gives a triple of every task
TEST_CLIPS = 1000  # of each of PLACES


# --- progress over several processes -------------------------------------------------------------

# Seconds of one core, roughly: they say how far the bar moves.
CLIP, CLAP_STEP, LLM_STEP = 0.004, 0.06, 0.05
work_done = multiprocessing.Value("d")


def share(done) -> None:
    """Begins a process of the pool. One thread each: two would be slower, and round otherwise."""
    global work_done
    work_done = done
    torch.set_num_threads(1)


def progress(seconds: float) -> None:
    with work_done.get_lock():
        work_done.value += seconds


# --- the world, seeded ----------------------------------------------------------


def imagine(*seed: int, kind: str | None = None, voices: int | None = None):
    """(generator, scene): one seed per scene, so that each can be made alone."""
    rng = np.random.default_rng(seed)
    return rng, scenes.random_scene(rng, kind, voices)


def told(stream: int, n: int, part: str) -> Iterator[dict]:
    """All triples of n scenes that are never rendered."""
    for i in range(n):
        rng, scene = imagine(stream, i)
        yield from triples(scene, rng, part)


def taught(stream: int, n: int) -> Iterator[dict]:
    """All triples about the tags of n scenes."""
    for i in range(n):
        rng, scene = imagine(stream, i)
        yield from lesson(scene, rng, "train")


class Clip(NamedTuple):
    scene: scenes.Scene
    wave: np.ndarray  # (SECONDS * SR,) float32


def clap_clip(i: int) -> Clip:
    """CLAP's i-th training clip."""
    rng, scene = imagine(1, i)
    progress(CLIP)
    return Clip(scene, scenes.render(scene, rng, SECONDS, SR))


class Test(NamedTuple):
    """A benchmark: a task on clips of one of PLACES, at most n, of scenes that fit."""

    place: str
    ask: Callable
    n: int
    fits: Callable[[scenes.Scene], bool] = lambda scene: True


def references(scene: scenes.Scene, text: str, said: set, rng: np.random.Generator) -> dict:
    """The caption task with five references, none of which is the text."""
    captions = {text}
    while len(captions) < 6:
        captions.add(caption(scene, rng, "test"))
    others = sorted(captions - {text}, key=lambda c: hashlib.sha1(c.encode()).digest())
    return ask_caption(scene, text, said, rng) | {"answer": others}


def is_sound(scene):
    return scene.kind == "sound"


# Where clips are heard: what imagine() should imagine. A mixed clip serves several benchmarks.
PLACES = {
    "sound": dict(kind="sound", voices=1),
    "music": dict(kind="music", voices=1),
    "mixed": {},
}
TEST = {
    "sound": Test("sound", ask_label, 1000),
    "music": Test("music", ask_label, 1000),
    "events": Test("mixed", ask_label, 300, lambda s: is_sound(s) and len(s.voices) == 2),
    "caption": Test("mixed", references, 300, is_sound),
    "music_caption": Test("mixed", references, 150, lambda s: s.kind == "music"),
    "yesno": Test("mixed", ask_yes_no, 1000),
    "open": Test("mixed", ask_open, 500),
    "mcq": Test("mixed", ask_choice, 1000),
}


def test_scene(place: str, i: int) -> scenes.Scene:
    return imagine(2, list(PLACES).index(place), i, **PLACES[place])[1]


def test_wave(place: str, i: int) -> np.ndarray:
    """The i-th clip of a place: (SECONDS * SR,) float32."""
    progress(CLIP)
    rng = np.random.default_rng((8, list(PLACES).index(place), i))
    return scenes.render(test_scene(place, i), rng, SECONDS, SR)


def test_samples(name: str) -> Iterator[tuple[int, dict]]:
    """(number of its clip, sample) for all samples of a benchmark."""
    test, k = TEST[name], 0
    for i in range(TEST_CLIPS):
        scene = test_scene(test.place, i)
        if test.fits(scene) and k < test.n:
            rng = np.random.default_rng((9, list(TEST).index(name), i))
            sample = test.ask(scene, *describe_in(scene, rng, "test"), rng)
            yield i, sample | {"source": f"tiny-{name}", "id": f"{name}-{k}"}
            k += 1


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


# --- stage 1: CLAP ------------------------------------------------------------------------------


def write_clap(directory: Path) -> None:
    train_clap(world_tokenizer()).save_pretrained(directory)


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
    longest = models.WordPiece(vocabulary, unk_token=end, continuing_subword_prefix="")
    tokenizer = Tokenizer(longest)
    tokenizer.pre_tokenizer, tokenizer.decoder = cut, decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, bos_token=end)


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


def clap_text(scene: scenes.Scene, rng: np.random.Generator) -> str:
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


# --- stage 2: the language model ----------------------------------------------------------------


class Line(NamedTuple):
    ids: list[int]
    answer: int  # place of the answer's first token


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
    told = list(taught(3, LLM_SCENES))
    asked = tokenizer([f"{t['text']}\n{t['instruction']}" for t in told])["input_ids"]
    answers = tokenizer([f" {t['answer']}" for t in told])["input_ids"]
    end = [tokenizer.eos_token_id]
    return [Line(ask + answer + end, len(ask)) for ask, answer in zip(asked, answers)]


def next_token_loss(llm: LlamaForCausalLM, batch: list[Line]) -> torch.Tensor:
    """Cross-entropy of all tokens; those of the answers count ANSWERS_COUNT times."""
    width = max(len(line.ids) for line in batch)
    ids = torch.tensor([line.ids + [0] * (width - len(line.ids)) for line in batch])  # (B, T)
    place = torch.arange(width)
    start, end = (torch.tensor(x)[:, None] for x in zip(*[(n, len(ids)) for ids, n in batch]))
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


# --- stage 3: shards ----------------------------------------------------------------------------


def write_text_part(directory: Path, part: str, clap: Path) -> None:
    triples = told({"train": 4, "val": 5}[part], SCENES[part], part)
    bar = tqdm(triples, f"writing {part}", len(TASKS) * SCENES[part], unit=" samples", leave=False)
    tower, lines, numbers = CLAP.from_pretrained(clap), iter(bar), count()
    made = {"from": recipe(), "clap": "tiny", "side": "text", "dim": DIM}
    with ShardWriter(directory, per_shard=1024, vectors=made, licences={"tiny": "MIT"}) as writer:
        while chunk := list(islice(lines, 1024)):
            vectors = tower.encode_text([t["text"] for t in chunk]).numpy()
            for line, z, i in zip(chunk, vectors, numbers):
                writer.write({**line, "source": "tiny", "id": f"{part}-{i}"}, vector=z)


def write_test_part(directory: Path) -> None:
    flacs = {place: [flac(test_wave(place, i)) for i in range(TEST_CLIPS)] for place in PLACES}
    for name, test in TEST.items():
        with ShardWriter(directory / name, licences={"tiny": "MIT"}) as writer:
            for i, sample in test_samples(name):
                writer.write(sample, audio=("flac", flacs[test.place][i]))
        if BENCHMARKS[name].classes:
            kind = "music" if name == "music" else "sound"
            labels = json.dumps(scenes.labels(kind), indent=1)
            write_atomic(directory / name / "labels.json", labels.encode())


def flac(wave: np.ndarray) -> bytes:
    out = io.BytesIO()
    sf.write(out, wave, SR, format="FLAC")
    return out.getvalue()


def write_listen(directory: Path) -> None:
    directory.mkdir()
    captions = {
        i: sample["text"]
        for name in ("caption", "music_caption")
        for i, sample in test_samples(name)
    }
    lines = []
    for i in range(12):
        sf.write(directory / f"{i:02d}.wav", test_wave("mixed", i), SR)
        lines.append(f"{i:02d}.wav\t{captions[i]}\n")
    (directory / "captions.tsv").write_text("".join(lines))


# --- all of it ----------------------------------------------------------------------------------


def build(root: str | Path) -> None:
    """Makes the missing stages of the tiny world in `root`.

    Raises DataError where `root` holds something else.
    """
    root = Path(root)
    stamp = root / "recipe.txt"
    if stamp.exists() and not is_current(stamp.read_text()):
        shutil.rmtree(root)
    if not stamp.exists():
        if root.exists() and any(root.iterdir()):
            raise DataError(
                f"{root} is not a tiny world and is left alone; choose another folder, "
                "or --build= to train on shards of your own"
            )
        root.mkdir(parents=True, exist_ok=True)
        write_atomic(stamp, recipe().encode())
    side_by_side([root / name for name in ALONE])
    for part in ("train", "val"):
        stage(root / part, write_text_part, part, root / "clap")


def side_by_side(stages: list[Path]) -> None:
    """Makes the missing ones of ALONE, two at a time, behind one progress bar."""
    missing = [path for path in stages if not path.exists()]
    if not missing:
        return
    done = multiprocessing.Value("d")
    work = sum(ALONE[path.name].seconds() for path in missing)
    layout = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"
    with (
        ProcessPoolExecutor(2, initializer=share, initargs=(done,)) as pool,
        tqdm(total=work, bar_format=layout) as bar,
    ):
        waiting = {pool.submit(stage, p, ALONE[p.name].write): p.name for p in missing}
        while waiting:
            bar.set_description(f"making {', '.join(waiting.values())}", refresh=False)
            bar.update(min(done.value, work) - bar.n)
            for future in wait(waiting, 0.5, FIRST_COMPLETED).done:
                future.result()
                del waiting[future]


def stage(path: Path, write: Callable, *details) -> Path:
    """path; a missing one is written under another name first, so that a folder is complete."""
    if not path.exists():
        part = path.with_name(f"{path.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        torch.manual_seed(0)
        write(part, *details)
        part.rename(path)
    return path


class Alone(NamedTuple):
    """A stage that needs no other."""

    write: Callable
    seconds: Callable[[], float]  # of work


ALONE = {
    "clap": Alone(write_clap, lambda: CLAP_CLIPS * (CLIP + CLAP_EPOCHS / CLAP_BATCH * CLAP_STEP)),
    "llm": Alone(write_llm, lambda: LLM_SCENES * (len(TASKS) + 2) / LLM_BATCH * LLM_STEP),
    "test": Alone(write_test_part, lambda: len(PLACES) * TEST_CLIPS * CLIP),
    "listen": Alone(write_listen, lambda: 12 * CLIP),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dir", nargs="?", default="data/tiny", help="where the world is made")
    try:
        build(parser.parse_args().dir)
    except DataError as e:
        sys.exit(f"world.py: {e}")


if __name__ == "__main__":
    main()
