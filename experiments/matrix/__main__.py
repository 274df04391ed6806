"""Which language models work with MATS: every family of transformers, small and random.

    python -m experiments.matrix                       all of them, as a Markdown table
    python -m experiments.matrix --only llama,gemma2   some, by their model_type

Each is saved to a folder and loaded from there, as one of the true size would be. "works" means
that all checks of experiments/matrix/checks.py hold. loss: how far the loss is from that of
transformers' full logits, as a share, in float32. load: seconds for MATS.from_pretrained.
"""

import argparse
import tempfile
from pathlib import Path

import transformers
from tqdm import tqdm

from disk import DataError, command
from experiments.matrix.checks import build, lora_names, loss_error, problems, seconds_to_load
from experiments.matrix.families import FAMILIES, Family

COLUMNS = ("language model", "`model_type`", "", "LoRA on", "loss", "load", "")


def row(family: Family, folder: Path) -> tuple[str, ...]:
    """A line of the table."""
    first = family.name, f"`{family.type}`"
    try:
        case = build(family, folder)
    except DataError as error:
        expected = family.refused and family.refused in str(error)
        return *first, "refused", "", "", "", family.note if expected else str(error)
    lora = ", ".join(lora_names(case.model))
    if found := problems(case):
        return *first, "fails", lora, "", "", "; ".join(f"{k}: {v}" for k, v in found.items())
    measured = f"{loss_error(case):.0e}", f"{seconds_to_load(case):.1f}"
    return *first, "works", lora, *measured, family.note


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="comma-joined model_types")
    only = [name for name in parser.parse_args(argv).only.split(",") if name]
    unknown = set(only) - {family.type for family in FAMILIES}
    if unknown:
        known = ", ".join(sorted({family.type for family in FAMILIES}))
        raise DataError(f"--only: no {', '.join(sorted(unknown))} among {known}")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    chosen = [family for family in FAMILIES if not only or family.type in only]
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    with tempfile.TemporaryDirectory() as folder:
        for i, family in enumerate(tqdm(chosen, unit=" models", disable=None)):
            rows.append(row(family, Path(folder) / str(i)))
    print("\n".join(f"| {' | '.join(cells)} |" for cells in rows))


if __name__ == "__main__":
    with command("matrix"):
        main()
