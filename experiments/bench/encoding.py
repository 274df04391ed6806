"""From shards to batches, and from text and audio to CLAP's vectors."""

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
import webdataset as wds
from torch import Tensor

from clap import CLAP
from data import Batches, Plan, Source, collate, loader
from experiments.bench import oracle
from experiments.bench.clock import Machine, Timing, clock, rate
from experiments.bench.samples import captions, make_tokenizer, mixture, sized_clap, write_shards
from language.prompt import Template


def reading(machine: Machine) -> dict:
    """Reading shards with vectors in one process: to shuffled, tokenised batches of 128 of similar
    length; against WebDataset's pipeline with a shuffle buffer and one tokeniser call a sample."""
    n = 5 * 4096
    with tempfile.TemporaryDirectory() as root:
        write_shards(root, mixture(n))
        ours, obvious, worker = clock_readers(root, n // 128)
    return rate(n, "samples/s", ours, obvious) | {
        "from a reading process, samples/s": round(n / worker)
    }


def clock_readers(root: str, count: int) -> list[Timing]:
    """Of `count` batches: read in this process, by WebDataset, and in a process of their own."""
    template = Template("{audio}{instruction}", make_tokenizer())

    def stream():
        return Batches(Plan([Source(root)], [1], 128, lanes=5), template)

    def take(batches):
        for _ in range(count):
            next(batches)

    worker = iter(loader(stream(), workers=1))
    return clock(
        lambda: take(iter(stream())), lambda: webdataset(root, template), lambda: take(worker)
    )


def webdataset(root: str, template: Template) -> None:
    """Reads all samples the obvious way."""
    shards = sorted(str(path) for path in Path(root).glob("*.tar"))
    rows = []
    for sample in wds.WebDataset(shards, shardshuffle=False).shuffle(1000).decode():
        rows.append(sample["json"] | {"vector": sample["npy"].astype("float32")})
        if len(rows) == 128:
            tokens = [template.encode([row])[0] for row in rows]
            collate(rows, tokens, template.tokenizer.eos_token_id)
            rows = []


def text(machine: Machine) -> dict:
    """Text encoding: sorted, padded to the batch's longest; against one call a text padded to 77 as
    msclap does."""
    clap, texts = sized_clap(machine), captions(64)

    @torch.no_grad()
    def one_by_one():
        for text in texts:
            clap.text_features(*padded_to_77(clap, [text]))

    return rate(len(texts), "texts/s", *clock(lambda: clap.encode_text(texts), one_by_one))


def padded_to_77(clap: CLAP, texts: list[str]) -> list[Tensor]:
    """[ids, mask], each (N, 77)."""
    return [F.pad(x, (0, 77 - x.shape[1])) for x in clap.tokenize(texts)]


def audio(machine: Machine) -> dict:
    """Audio encoding of 8 clips of 7 s, one batch each; against msclap's own package."""
    try:
        _, theirs = oracle.msclap()
    except ImportError:
        return {"skipped": f"needs msclap's package: {oracle.INSTALL}"}
    theirs.to(machine.device)
    clap = sized_clap(machine)
    waves = 0.1 * torch.randn(8, clap.samples, device=machine.device)

    @torch.no_grad()
    def msclap():
        theirs.audio_encoder(waves)

    return rate(len(waves), "clips/s", *clock(lambda: clap.encode_audio(waves), msclap))
