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
import re
import shutil
import sys
from itertools import count, islice
from pathlib import Path

from tqdm import tqdm

from clap import CLAP
from disk import DataError, write_atomic
from shards.tiny import benchmarks, models
from shards.tiny.questions import TASKS, told
from shards.tiny.recipe import recipe
from shards.tiny.work import Stage, side_by_side, stage
from shards.writer import ShardWriter

STAGES = ("clap", "llm", "train", "val", "test", "listen")
SCENES = {"train": 4000, "val": 80}  # told in words alone; each gives a triple of every task


def write_text_part(directory: Path, part: str, clap: Path) -> None:
    triples = told({"train": 4, "val": 5}[part], SCENES[part], part)
    bar = tqdm(triples, f"writing {part}", len(TASKS) * SCENES[part], unit=" samples", leave=False)
    tower, lines, numbers = CLAP.from_pretrained(clap), iter(bar), count()
    made = {"from": recipe(), "clap": "tiny", "side": "text", "dim": models.DIM}
    with ShardWriter(directory, per_shard=1024, vectors=made, licences={"tiny": "MIT"}) as writer:
        while chunk := list(islice(lines, 1024)):
            vectors = tower.encode_text([t["text"] for t in chunk]).numpy()
            for line, z, i in zip(chunk, vectors, numbers):
                writer.write({**line, "source": "tiny", "id": f"{part}-{i}"}, vector=z)


# --- all of it ----------------------------------------------------------------------------------


def build(root: str | Path) -> None:
    """Makes the missing stages of the tiny world in `root`.

    Raises DataError where `root` holds something else.
    """
    root = Path(root)
    stamp = root / "recipe.txt"
    known = stamp.read_text() if stamp.exists() else ""
    if not re.fullmatch("[0-9a-f]{16}", known) and root.exists() and any(root.iterdir()):
        raise DataError(
            f"{root} is not a tiny world and is left alone; choose another folder, "
            "or --build= to train on shards of your own"
        )
    if known != recipe():
        for name in STAGES:  # files of others stay
            shutil.rmtree(root / name, ignore_errors=True)
        root.mkdir(parents=True, exist_ok=True)
        write_atomic(stamp, recipe().encode())
    side_by_side(
        {
            root / "clap": Stage(models.write_clap, models.clap_seconds()),
            root / "llm": Stage(models.write_llm, models.llm_seconds()),
            root / "test": Stage(benchmarks.write_test, benchmarks.seconds()),
            root / "listen": Stage(benchmarks.write_listen, 0),
        }
    )
    for part in ("train", "val"):
        stage(root / part, write_text_part, part, root / "clap")


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
