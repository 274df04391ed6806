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

COLUMNS = ("language model", "`model_type`", "with MATS", "LoRA on", "loss", "load")


def row(family: Family, folder: Path) -> tuple[str, ...]:
    """A line of the table."""
    name = family.name, f"`{family.type}`"
    try:
        case = build(family, folder)
    except DataError as error:
        foreseen = family.refused and family.refused in str(error)
        return *name, expected(family) if foreseen else f"refused: {error}", "", "", ""
    lora = ", ".join(lora_names(case.model))
    if found := problems(case):
        return *name, "; ".join(f"{check}: {it}" for check, it in found.items()), lora, "", ""
    works = "works" if family.refused else expected(family)
    off = loss_error(case)
    return *name, works, lora, f"{off:.0e}" if off else "0", f"{seconds_to_load(case):.1f} s"


def expected(family: Family) -> str:
    """The table's word for a family."""
    if family.refused:
        return f"refused: {family.note}"
    return f"works ({family.note})" if family.note else "works"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.matrix",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for i, family in enumerate(tqdm(chosen, unit=" models", disable=None)):
            rows.append(row(family, Path(folder) / str(i)))
    for cells in (COLUMNS, ("---",) * len(COLUMNS), *rows):
        print(f"| {' | '.join(cells)} |")
    wrong = [family.name for family, cells in zip(chosen, rows) if cells[2] != expected(family)]
    if wrong:
        raise DataError(f"not as experiments/matrix/families.py says: {', '.join(wrong)}")


if __name__ == "__main__":
    with command("matrix"):
        main()
