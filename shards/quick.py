"""Real text for a first run: fetched, built into shards, embedded (config/quick.py).

1. data/quick/raw                annotations of public data sets, 27 MB (shards.fetch)
2. data/quick/raw/descriptions   of their labels: templates, checked by CLAP (shards.describe)
3. data/quick/text               AudioTIA of them, without clips of benchmarks (shards.audiotia)
4. data/quick/train, val         the same with CLAP's vectors (shards.embed)

`torchrun train.py quick` does this first. Each part is kept once it is complete: after a kill, the
same command resumes. Delete data/quick to make it anew.
"""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from clap import load_clap
from disk import DataError, locked
from distributed import find_device
from encoders.checks import ready
from shards.audiotia import HeldOut, label_sets, make
from shards.descriptions import counts, read
from shards.embed import embed, report
from shards.fetch import Incomplete, fetch
from shards.files import Missing, Root
from shards.nearest import Nearest
from shards.sources import EVERY, VALIDATION
from shards.templates import from_templates

DOWNLOADS = "27 MB of annotations, 0.7 GB of CLAP and 0.3 GB of the language model"
DISK = 2e9  # bytes of all that, and of the shards
TEXTS, TEXT = 100_000, 2.4e9  # texts to embed, and FLOP of one: GPT-2's size, 13 tokens
SAMPLE = 22e9  # FLOP of a training sample with SmolLM2-135M, padded: MATS.flops(40, 14)
SHARE = 0.7  # of the rate of large matrix products that both reach, roughly
LABELS = ("esc50", "fsd50k", "vggsound")  # described by templates
TRAIN = ("audiocaps", "clotho", "clothoaqa", "macs", "musiccaps", "song_describer", *LABELS)
VAL = tuple(VALIDATION)
VAL_CLIPS = 200  # captions of each
TESTED = ("dcase2017t4",)  # only to keep its clips out of training


def build(cfg) -> None:
    """Makes the shards of a run, cfg.train and cfg.val, where they are missing.

    cfg: a train.TrainConfig; its `clap` makes the vectors. With its `skip_missing` a data set that
    cannot be fetched is left out. Raises DataError, OSError.
    """
    train, val = Path(cfg.train), Path(cfg.val)
    parts = {train / name: name for name in TRAIN}
    if cfg.val:
        parts |= {val / name: name for name in VAL}
    if all((folder / "index.json").exists() for folder in parts):
        return
    with locked(train.parent / "lock", "train.py quick"):
        make_all(cfg, parts)


def make_all(cfg, parts: dict[Path, str]) -> None:
    """parts: {folder of the shards with vectors: source}."""
    train = Path(cfg.train)
    device = find_device(cfg.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    raw, text = train.parent / "raw", train.parent / "text"
    if not text.exists():
        print(forecast(cfg, device))
        check_space(train.parent)
    step(1, "annotations")
    with left_out(cfg):
        fetch(sorted({EVERY[name].folder for name in parts.values()} | {*TESTED}), raw, ["text"])
    clap = ready(load_clap(cfg.clap), cfg.clap, device)
    step(2, "shards, with labels described by templates")
    held = HeldOut(Root(raw))
    for name in parts.values():
        with left_out(cfg):
            if name in LABELS and not (text / name / "index.json").exists():
                describe(name, raw, clap)
            make(name, str(raw), str(text), held=held, limit=VAL_CLIPS if name in VAL else None)
    step(3, "vectors")
    broken = []
    for folder, name in parts.items():
        if (text / name).exists():
            broken += embed(text / name, folder, clap, cfg.clap)
    report(broken)
    if not any((folder / "index.json").exists() for folder in parts if parts[folder] in TRAIN):
        raise DataError(f"none of {', '.join(TRAIN)} is there to train on: is there a network?")
    step(4, "training")


@contextmanager
def left_out(cfg) -> Iterator[None]:
    """Prints what a data set lacks, and goes on without it, where the run may skip_missing.

    Damaged data, shards of something else, and a second build at the same time are errors.
    """
    try:
        yield
    except (Incomplete, Missing) as error:
        if not cfg.skip_missing:
            first, *others = str(error).splitlines()
            more = f"; and {len(others)} more" if others else ""
            raise DataError(f"{first}{more}; --skip_missing trains without them") from error
        print(f"left out: {error}")


def describe(name: str, raw: Path, clap) -> None:
    """Writes RAW/descriptions/NAME.jsonl, where it lacks some. Prints how many were dropped."""
    plan, path = label_sets(name, str(raw)), raw / "descriptions" / f"{name}.jsonl"
    made = from_templates(plan, path, Nearest(clap, set().union(*plan)))
    print(f"{path}: {read(path).total():,} descriptions; dropped: {counts(made.dropped) or 'none'}")


def step(number: int, what: str) -> None:
    print(f"quick: {number} of 4, {what}")


def forecast(cfg, device: torch.device) -> str:
    """What comes, and how long it takes: on a CPU, by arithmetic from a rate that is measured."""
    line = f"quick: downloads {DOWNLOADS}; takes {DISK / 1e9:.0f} GB of disk and"
    if device.type != "cpu":
        return f"{line} some minutes on a GPU (not measured)"
    rate = products()
    work = TEXTS * TEXT + cfg.steps * cfg.batch_size * SAMPLE
    hours = work / (SHARE * rate) / 3600
    return (
        f"{line} about {hours:.1f} h on this machine: {work / 1e15:.1f} PFLOP, at {SHARE:.0%} of "
        f"the {rate / 1e9:.0f} GFLOP/s that its matrix products reach just now"
    )


def products(seconds: float = 0.5) -> float:
    """FLOP/s of products of float32 matrices, measured for so long."""
    side, count = 1024, 0
    matrix = torch.randn(side, side)
    matrix @ matrix  # the first one also starts threads
    start = time.perf_counter()
    while (took := time.perf_counter() - start) < seconds:
        matrix @ matrix
        count += 1
    return 2 * side**3 * count / took


def check_space(folder: Path) -> None:
    """Raises DataError where the disk has too little room for all of it."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < DISK:
        raise DataError(
            f"{folder} has {free / 1e9:.1f} GB free, and this needs about {DISK / 1e9:.0f}: make "
            "room, or name another disk with --train=DIR/quick/train --val=DIR/quick/val"
        )
