"""Damaged files, read as the project reads them. Each function below is one trial, in a fork.

A trial copies what it needs, damages one file of it as its seed says, reads, and returns its
outcome:

    unchanged    the result is that of the whole file
    left out     broken samples were named and left out; the others are as they were
    changed      only the damaged samples differ, and nothing tells: another text is a text
    refused      DataError, AudioError or SystemExit, in one line
    SILENT       samples are lost or changed whose bytes were not touched, and nothing says so
    CRASH        any other exception
"""

import hashlib
import json
import os
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from audio import CROPS, load_audio
from clap import encode_file, load_clap
from data import Batches, Plan, Source, read_source
from disk import command, sha256
from experiments.stress import mutate
from experiments.stress.forks import run_module
from experiments.stress.world import FORMATS, RATE, commands
from language.prompt import Template
from mats import MATS
from shards import audiotia
from shards.files import Root


def compare(before: list[str], after: list[str], touched: int, named: list[str]) -> str:
    """The outcome of reading `after` where `before` was; `touched` of them were damaged."""
    lost = sum((Counter(before) - Counter(after)).values())
    gained = sum((Counter(after) - Counter(before)).values())
    if gained > touched:
        return "SILENT"
    if named:
        return "left out"
    if lost > touched:
        return "SILENT"
    return "changed" if lost or gained else "unchanged"


def before(world: str, name: str) -> tuple[list[str], list[str]]:
    """(samples, what was named) of the whole files."""
    return json.loads(Path(world, f"before_{name}.json").read_text())


def remember(world: str) -> None:
    """Reads everything as it is, once, for the trials to compare with."""
    found = {name: read_shards(Path(world, name), world) for name in ("few", "heard")}
    found |= {name: build(Path(world, "small"), name, Path(world, "built")) for name in BUILT}
    for name, read in found.items():
        Path(world, f"before_{name}.json").write_text(json.dumps(read))
    Path(world, "answers.json").write_text(answers(Path(world, "first_train/out/model")))
    clap = load_clap(f"{world}/clap")
    vectors = {
        f"{name} {crop}": encode_file(clap, f"{world}/sounds/{name}", crop, seeded())
        for name in FORMATS
        for crop in CROPS
    }
    torch.save(vectors, Path(world, "vectors.pt"))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def scratch(world: str, *names: str) -> Path:
    """A new folder in the world, with copies of these."""
    folder = Path(world, f"m_{os.getpid()}")
    for name in names:
        shutil.copytree(Path(world, name), folder / name)
    return folder


def damage_json(path: Path, rng: random.Random) -> str:
    """Half of the times in its bytes, half in its values."""
    if rng.random() < 0.5:
        made, words, _ = mutate.in_bytes(path.read_bytes(), rng)
    else:
        value, words = mutate.in_value(json.loads(path.read_text()), rng)
        made = mutate.to_json(value)
    path.write_bytes(made)
    return words


# --- shards -------------------------------------------------------------------------------------


def canonical(sample: dict) -> str:
    """All of a sample but its key."""
    parts = {key: value for key, value in sample.items() if key != "key"}
    for key in ("vector", "audio"):
        if parts.get(key) is not None:
            parts[key] = hashlib.sha256(bytes(parts[key])).hexdigest()
    return json.dumps(parts, sort_keys=True)


def read_shards(folder: Path, world: str) -> tuple[list[str], list[str]]:
    """(samples, what was named) of an epoch, by read_source and by Batches."""
    source, named = Source(folder), []
    samples = list(read_source(source, broken=named, audio=True))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(f"{world}/llm")
    template = Template("{audio}{instruction}", tokenizer)

    def decode(data, seed):
        generator = torch.Generator().manual_seed(seed)
        return load_audio(data, RATE, 1.0, "random", generator)

    plan = Plan([source], [1.0], batch=2, lanes=2)
    batches = iter(Batches(plan, template, decode=None if source.vectors else decode))
    known = {sample["text"] for sample in samples}
    for _ in range(12):  # an epoch at least
        batch = next(batches)
        named += batch["broken"]
        if not known.issuperset(batch["text"]):
            raise AssertionError("a batch holds a text that read_source does not give")
        found = batch["z" if "z" in batch else "audio"]
        if not found.isfinite().all() or len(found) != 2:
            raise AssertionError("a batch is not finite")
    return [canonical(sample) for sample in samples], named


def shards(world: str, seed: int) -> dict:
    rng = random.Random(f"shards {seed}")
    name = rng.choice(("few", "few", "heard"))
    folder = scratch(world, name)
    place, (whole, _) = folder / name, before(world, name)
    path = place / ("index.json" if rng.random() < 0.2 else f"{rng.randrange(2):06d}.tar")
    data, words = path.read_bytes(), mutate.in_place(path, rng)
    touched = len(whole)
    if not words and path.suffix == ".json":
        words = damage_json(path, rng)
    elif not words and rng.random() < 0.05:
        other = place / "000001.tar" if path.stem == "000000" else place / "000000.tar"
        shutil.copy(other, path)
        words = "another shard in its place"
    elif not words and rng.random() < 0.4:
        made, words, spans = mutate.in_bytes(data, rng)
        touched = mutate.at_offset(data, spans)
        path.write_bytes(made)
    elif not words:
        made, words, touched = mutate.in_members(data, rng)
        path.write_bytes(made)
    tell(f"{name}/{path.name}: {words}")
    with command("stress"):
        after, named = read_shards(place, world)
    return {"outcome": compare(whole, after, touched, named)}


def tell(how: str) -> None:
    """The first line of a trial's output: how the file was damaged."""
    print(f"damage: {how}".encode("ascii", "backslashreplace").decode(), flush=True)


# --- annotation files ---------------------------------------------------------------------------

BUILT = {  # a source: the files that it reads
    "audiocaps": ("audiocaps/train.csv",),
    "clotho": ("clotho/clotho_captions_development.csv", "clotho/clotho_captions_validation.csv"),
    "clothoaqa": ("clothoaqa/clotho_aqa_train.csv", "clotho/clotho_captions_development.csv"),
    "wavcaps_soundbible": ("wavcaps/sb_final.json", "wavcaps/blacklist_exclude_test_ac.json"),
    "macs": ("macs/MACS.yaml",),
    "musicqa": (
        "musicqa/PretrainMusicQA.json",
        "musicqa/FinetuneMusicQA.json",
        "lp_musiccaps/captions.jsonl",
    ),
}
HELD = (
    "audiocaps/test.csv",
    "clotho/clotho_captions_evaluation.csv",
    "clothoaqa/clotho_aqa_test.csv",
)


def build(root: Path, name: str, out: Path) -> tuple[list[str], list[str]]:
    """(samples, what was named)."""
    held = audiotia.HeldOut(Root(root))
    index = audiotia.make(name, str(root), str(out), held=held)
    named = [f"{why}: {count}" for why, count in index["left_out"].items()]
    return [canonical(sample) for sample in read_source(Source(out / name))], named


def annotations(world: str, seed: int) -> dict:
    rng = random.Random(f"annotations {seed}")
    name = rng.choice(tuple(BUILT))
    folder = scratch(world, "small")
    root = folder / "small"
    whole, always = before(world, name)
    of_held = rng.random() < 0.15
    file = rng.choice(HELD if of_held else BUILT[name])
    path = root / file
    data, words, touched = path.read_bytes(), mutate.in_place(path, rng), len(whole)
    if not words:
        how = rng.choice(("bytes", "table", "value"))
        if how == "value" and path.suffix == ".json":
            value, words = mutate.in_value(json.loads(data), rng)
            made = mutate.to_json(value)
        else:
            change = mutate.in_bytes if how == "bytes" else mutate.in_table
            made, words, spans = change(data, rng)
            touched = 5 * mutate.lines_in(data, spans)
        path.write_bytes(made)
    tell(f"{name} from {file}: {words}")
    if of_held or "blacklist" in file:
        touched = len(whole) + 12  # all that was held out may come in
    with command("stress"):
        after, named = build(root, name, folder / "after")
    named = [reason for reason in named if reason not in always]
    return {"outcome": compare(whole, after, touched, named)}


# --- sounds -------------------------------------------------------------------------------------


def audio(world: str, seed: int) -> dict:
    """A damaged sound may be another sound: `changed`. Its vector is finite and of unit length."""
    rng = random.Random(f"audio {seed}")
    name, crop = rng.choice(tuple(FORMATS)), rng.choice(CROPS)
    clap, folder = load_clap(f"{world}/clap"), scratch(world, "sounds")
    path = folder / "sounds" / name
    whole = torch.load(Path(world, "vectors.pt"), weights_only=True)[f"{name} {crop}"]
    words = mutate.in_place(path, rng)
    if not words:
        data = path.read_bytes()
        head = rng.random() < 0.5  # of most formats' bytes few say how to read the others
        made, words, _ = mutate.in_bytes(data[:200] if head else data, rng)
        path.write_bytes(made + data[200:] if head else made)
        words += " in the header" if head else ""
    tell(f"{name}, crop {crop}: {words}")
    file = path if rng.random() < 0.5 or not path.is_file() else path.read_bytes()
    with command("stress"):
        after = encode_file(clap, file, crop, seeded())
    if not after.isfinite().all() or abs(float(after.norm()) - 1) > 1e-3:
        raise AssertionError("the vector is not finite and of unit length")
    return {"outcome": "unchanged" if torch.equal(whole, after) else "changed"}


# --- checkpoints --------------------------------------------------------------------------------

MODEL = (
    "model/config.json",
    "model/mapper.safetensors",
    "model/santa.safetensors",
    "model/lora/adapter_config.json",
    "model/lora/adapter_model.safetensors",
)
RUN = ("state.pt", "state.pt", "log.jsonl", "model/step.json")


def damage_tensors(path: Path, rng: random.Random) -> str:
    """Changes a tensor of a safetensors file: it is missing, of another shape, not finite."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    if metadata and rng.random() < 0.3:
        metadata, words = mutate.in_value(metadata, rng)
        metadata = {k: str(v) for k, v in metadata.items()} if isinstance(metadata, dict) else None
    else:
        words = damage_tensor(tensors, rng.choice(sorted(tensors)), rng)
    save_file(tensors, path, metadata)
    return words


def damage_tensor(tensors: dict, key: str, rng: random.Random) -> str:
    tensor = tensors[key]
    how = rng.choice(
        ("dropped", "shorter", "transposed", "integers", "half", "NaN", "renamed", "empty")
    )
    if how in ("dropped", "renamed"):
        del tensors[key]
        if how == "renamed":
            tensors[f"{key}x"] = tensor
    else:
        tensors[key] = {
            "shorter": tensor[:-1] if tensor.ndim else tensor[None],
            "transposed": tensor.mT.contiguous() if tensor.ndim > 1 else tensor[None],
            "integers": tensor.long(),
            "half": tensor.half(),
            "NaN": torch.full_like(tensor.float(), np.nan),
            "empty": torch.zeros(0),
        }[how]
    return f"{key} {how}"


def damage_state(path: Path, rng: random.Random) -> str:
    state = torch.load(path, weights_only=True)
    kind = rng.choice(("model", "optimizer", "any", "any"))
    if kind == "model":
        words = damage_tensor(state["model"], rng.choice(sorted(state["model"])), rng)
    elif kind == "optimizer":
        slot = state["optimizer"]["state"][rng.choice(sorted(state["optimizer"]["state"]))]
        words = damage_tensor(slot, rng.choice(sorted(slot)), rng)
    else:
        holder, key, name = rng.choice(list(mutate.walk(state)))
        holder[key] = rng.choice(mutate.WRONG)
        words = f"{name} -> {mutate.short(holder[key])}"
        if rng.random() < 0.3:
            state, words = rng.choice((None, [], state["model"], {})), "another value"
    torch.save(state, path)
    return f"state {words}"


def answers(folder: Path) -> str:
    """Of a model: what it answers to two vectors over its memory, and what it was loaded with."""
    model = MATS.from_pretrained(folder)
    z = torch.nn.functional.normalize(
        torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    )
    if model.santa is not None:
        z = model.santa(z)
    said = model.generate(z, ["Generate audio caption."] * 2)
    weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    return json.dumps([said, z.tolist(), hashlib.sha256(weights).hexdigest()])


def checkpoint(world: str, seed: int) -> dict:
    """MATS.from_pretrained reads a damaged model, and train.py resumes a damaged run."""
    rng = random.Random(f"checkpoint {seed}")
    part = rng.choice(MODEL + RUN)
    folder = scratch(world)
    of_run = part in RUN
    shutil.copytree(Path(world, "half" if of_run else "first_train", "out"), folder / "out")
    path = folder / "out" / part
    words = mutate.in_place(path, rng)
    if not words and rng.random() < 0.5:
        made, words, _ = mutate.in_bytes(path.read_bytes(), rng)
        path.write_bytes(made)
    elif not words and path.suffix == ".json":
        words = damage_json(path, rng)
    elif not words and path.suffix == ".jsonl":
        made, words, _ = mutate.in_table(path.read_bytes(), rng)
        path.write_bytes(made)
    elif not words:
        words = (damage_state if path.suffix == ".pt" else damage_tensors)(path, rng)
    tell(f"{part}: {words}")
    if of_run:
        return {"outcome": resume(Path(world), folder)}
    whole = Path(world, "answers.json").read_text()
    with command("stress"):
        same = answers(folder / "out/model") == whole
    return {"outcome": "unchanged" if same else "changed"}


def resume(world: Path, folder: Path) -> str:
    """The same command on the damaged half of a run."""
    module, argv = commands(world)["train"]
    rarely = [f"--{what}_every=12" for what in ("save", "val", "log")]
    run_module(module, [*argv, *rarely], str(folder))
    same = weights(folder / "out/model") == weights(world / "first_train/out/model")
    return "unchanged" if same else "changed"


def weights(folder: Path) -> list[str]:
    return [sha256(path) for path in sorted(folder.rglob("*.safetensors"))]


TRIALS = {"shards": shards, "annotations": annotations, "audio": audio, "checkpoint": checkpoint}
