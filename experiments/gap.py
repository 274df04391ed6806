"""How far a CLAP's sounds are from its texts, on your own pairs, and the noise that reaches as far.

    python -m experiments.gap pairs.csv --clap microsoft/msclap      two columns: file,text
    python -m experiments.gap data/bench/clotho --clap laion/clap-htsat-unfused

The pairs are the lines of a csv file, whose sound files are seen from its folder, or the samples of
shards with text and audio.
"""

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm

from audio import AudioError
from clap import encode_file, load_clap
from data import Source, has_words, read_source
from disk import DataError, command
from encoders.checks import ready
from santa import gap, noise_cosine, noise_variance
from shards.files import csv_records


def pairs_of(path: Path) -> Iterator[tuple[str, str | bytes, str]]:
    """(name, sound, text) of each pair. Raises DataError where the file is not as expected."""
    if path.is_dir():
        for sample in read_source(Source(path), audio=True):
            if sample["text"] and sample["audio"]:
                yield str(sample["id"]), sample["audio"], sample["text"]
        return
    for row in csv_records(path, ("file", "text")):
        yield row.place, str(path.parent / row["file"]), row["text"]


def encode(pairs: Iterator, clap, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(texts (n, D), sounds (n, D)). Sounds that cannot be decoded are named and left out."""
    texts, sounds = [], []
    for name, sound, text in tqdm(pairs, total=most, unit=" pairs"):
        try:
            if not has_words(text):
                raise AudioError("has no text")
            sounds.append(encode_file(clap, sound).cpu())
            texts.append(text)
        except AudioError as error:
            tqdm.write(f"left out: {name}: {error}")
    if len(texts) < 5:
        raise DataError(f"{len(texts)} pairs of a sound and a text: at least 5 are needed")
    return clap.encode_text(texts).cpu(), torch.stack(sounds)


def table(text: torch.Tensor, audio: torch.Tensor, found: dict, variance: float) -> str:
    n, dim = text.shape
    lines = [
        f"{n} pairs in {dim} dimensions",
        f"cosine of a pair            {found['paired_cosine']:.3f}",
        f"distance of the centroids   {found['centroid_distance']:.3f}",
        f"a classifier is wrong in    {found['classifier_error']:.1%} (50 %: no gap)",
        f"sound to text, R@1, R@10    {found['audio_to_text_R@1']:.3f}, "
        f"{found['audio_to_text_R@10']:.3f}",
        f"the 30-pair rule: a variance of {variance:.4f}, which leaves a cosine of "
        f"{noise_cosine(variance, dim):.2f}",
        f"as far as a pair is apart: a variance of {as_far_as(found['paired_cosine'], dim):.4f}",
        "torchrun train.py --variance=...; does it still listen? docs/models.md",
    ]
    return "\n".join(lines)


def as_far_as(cosine: float, dim: int) -> float:
    """The variance of noise that leaves this cosine, 1 / sqrt(1 + dim variance)."""
    return (1 / max(cosine, 0.05) ** 2 - 1) / dim


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("pairs", type=Path, help="a csv file, or a folder of shards")
    option("--clap", default="microsoft/msclap", help="name, folder or module:factory")
    option("--n", type=int, default=300, help="pairs, at most")
    args = parser.parse_args()
    if args.n < 5:
        parser.error("--n should be 5 or more")
    clap = ready(load_clap(args.clap), args.clap)
    text, audio = encode(islice(pairs_of(args.pairs), args.n), clap, args.n)
    variance = noise_variance(text, audio, generator=torch.Generator().manual_seed(0))
    print(table(text, audio, gap(text, audio), variance))


if __name__ == "__main__":
    with command("gap.py"):
        main()
