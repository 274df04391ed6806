"""The paper's ablations, beside the paper's values (Table 4, Figures 3, 4 and S6, Tables S9-S15).

    python -m experiments.ablate table4 tau lambda       of the tiny world, or --ckpt, --shards
    python -m experiments.ablate tau=0.01,0.1,1          values of your own
    python -m experiments.ablate M --memory SHARDS       larger memories, of these texts' vectors
    python -m experiments.ablate sigma layers=1,2,4      one training run a value, resumable
    python -m experiments.ablate figure3                 t-SNE of pairs; how far apart they are

Each leaves NAME.md, NAME.json and NAME.png in OUT/ablate. A setting of inference costs one pass of
generation, since the encoded audio is there. Every row is tested against the first, the model's own
setting, on the same clips (p, two-sided, paired).
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from data import find_sources, read_source
from disk import DataError, command, reading, replacing, write_atomic
from eval import arguments, context, evaluation_of, find_spice, generate, pairs
from santa import Santa, add_noise, bridge, gap
from scoring.evaluation import Evaluation
from scoring.paper import ABLATED_IN, ABLATIONS, CHOSEN
from scoring.spice import Spice
from scoring.statistics import Score
from scoring.tasks import BENCHMARKS, compared, measure, summaries

TABLE4 = {  # the paper's row: our bridge
    "MATS": "santa",
    "Memory-based": "memory",
    "Noise-based": "none",
    "w/o K-means": "santa-kmeans",
    "w/o MB": "santa-mb",
    "w/o AE": "santa-ae",
    "w/o GN in the memory": "santa-gn",
}


class Sweep(NamedTuple):
    field: str  # Santa's argument, or train.py's field
    values: list  # the paper's where they are known
    whole: bool = True  # numbers


INFERENCE = {
    "tau": Sweep("tau", [*ABLATIONS["tau"]], whole=False),
    "lambda": Sweep("lam", [i / 10 for i in range(11)], whole=False),
    "L": Sweep("L", [*ABLATIONS["L"], 64]),
    "K": Sweep("k", [*ABLATIONS["K"]]),
    "M": Sweep("m", [*ABLATIONS["M"]]),
}
TRAINING = {
    "sigma": Sweep("variance", [0.0, 0.005, 0.01, 0.015, 0.02, 0.025], whole=False),
    "lora_rank": Sweep("lora_rank", [2, 4, 8, 16, 32]),
    "lora_alpha": Sweep("lora_alpha", [8, 16, 32, 64]),
    "layers": Sweep("layers", [*ABLATIONS["layers"]]),
}


class Variant(NamedTuple):
    """A row of a table."""

    evaluation: Evaluation
    column: str
    over: Callable | None = None  # the bridge, where `column` does not name it


def run(
    evaluation: Evaluation, wanted: list[str], memory: str | None = None, spice: Spice | None = None
) -> None:
    """wanted: names, each with `=value,value` for other values than the paper's.

    Raises DataError on an unknown name, and on values that are none.
    """
    for what in wanted:
        name, _, text = what.partition("=")
        values = numbers(what, text)
        if name in ("figure3", *INFERENCE) and evaluation.model.santa is None:
            raise DataError(f"{name}: this model has no memory (MATS-Audio needs none)")
        if name == "figure3":
            figure3(evaluation)
        elif name == "table4":
            rows = {row: Variant(evaluation, column) for row, column in TABLE4.items()}
            table(evaluation, name, rows | trained_without_noise(evaluation), spice)
        elif name in INFERENCE:
            table(evaluation, name, inference(evaluation, name, values, memory), spice)
        elif name in TRAINING:
            table(evaluation, name, training(evaluation, name, values), spice)
        else:
            raise DataError(f"{name}: there are table4, figure3, {', '.join(INFERENCE | TRAINING)}")


def numbers(what: str, text: str) -> list[float] | None:
    if not text:
        return None
    try:
        return [float(v) if "." in v or "e" in v else int(v) for v in text.split(",")]
    except ValueError:
        raise DataError(f"{what}: expected numbers after the =") from None


# --- settings of inference ----------------------------------------------------------------------


def inference(
    evaluation: Evaluation,
    name: str,
    values: list | None,
    memory: str | None,
    around: Santa | None = None,
    column: str = "santa",
) -> dict[str, Variant]:
    """The rows {label: Variant} of a sweep over one of Santa's settings, the own value first.

    around: the Santa that has all other settings, and `column`, the name of its predictions;
    without them the model's own.
    """
    santa, sweep = around or evaluation.model.santa, INFERENCE[name]
    own = own_value(santa, name)
    texts, which = santa.clean, ""
    if memory and sweep.field in ("k", "m"):
        texts, which = vectors_of(memory)
    if around:
        which += f" with {column}"
    rows = {f"{own:g}": Variant(evaluation, column, santa)}
    for value in sorted({*(values or sweep.values)} - {own}):
        fits = 0 <= value <= 1 if name == "lambda" else value > 0
        if not fits or (sweep.whole and value != int(value)):
            raise DataError(f"{name}: {value} is no value for it")
        value = int(value) if sweep.whole else value
        made = changed(santa, sweep.field, value, texts)
        if made is None:
            hint = "" if memory else " (--memory SHARDS gives more)"
            texts_at_hand = f"{len(texts):,} texts and {len(santa.memory):,} rows of memory"
            print(f"{name}={value} is left out: {texts_at_hand} are at hand{hint}")
            continue
        rows[f"{value:g}"] = Variant(evaluation, f"{name}={value:g}{which}", made)
    return rows


def own_value(santa: Santa, name: str) -> float:
    """A Santa's own value of a setting in INFERENCE."""
    sizes = {"K": len(santa.centers), "M": len(santa.memory)}
    return sizes[name] if name in sizes else getattr(santa, INFERENCE[name].field)


def changed(santa: Santa, field: str, value: float, texts: Tensor) -> Santa | None:
    """Santa with one setting changed; None: there are too few texts for it."""
    if field not in ("k", "m"):
        return santa.but(**{field: value})
    sizes = {"m": len(santa.memory), "k": len(santa.centers)} | {field: value}
    if sizes["m"] > len(texts) or sizes["k"] > sizes["m"]:
        return None
    hyper = {"L": santa.L, "tau": santa.tau, "lam": santa.lam, "variance": santa.variance}
    made = Santa.build(texts, generator=torch.Generator().manual_seed(0), **sizes, **hyper)
    return made.to(santa.memory.device)


def vectors_of(shards: str) -> tuple[Tensor, str]:
    """(N, D) vectors of all texts in these shards, and a name for the set."""
    sources = find_sources(shards)[0]
    for source in sources:
        if not source.vectors or "hash" not in source.index:
            raise DataError(
                f"--memory: {source.url} has no vectors; "
                f"first: python -m shards.embed {source.url} FOLDER"
            )
    key = hashlib.sha256("".join(source.index["hash"] for source in sources).encode()).hexdigest()
    samples = (sample for source in sources for sample in read_source(source))
    vectors = [torch.from_numpy(sample["vector"]) for sample in samples if "vector" in sample]
    if len({vector.shape for vector in vectors}) != 1:
        raise DataError(f"--memory: the vectors in {shards} are none, or not of one length")
    return torch.stack(vectors), f" of {key[:8]}"


# --- settings of training -----------------------------------------------------------------------


def training(evaluation: Evaluation, name: str, values: list | None) -> dict:
    """{label: Variant} of runs that differ from the model's own in one field of train.py."""
    sweep, own = TRAINING[name], settings(evaluation)
    value, kind = own[sweep.field], type(own[sweep.field])
    chosen = values or sweep.values
    if name == "layers" and not values:
        chosen = sorted({*chosen, value})
    rows = {f"{value:g}": Variant(evaluation, "santa")}
    for other in map(kind, chosen):
        if other != value:
            rows[f"{other:g}"] = Variant(trained(evaluation, {sweep.field: other}), "santa")
    return rows


def trained_without_noise(evaluation: Evaluation) -> dict:
    """Table 4's last row: no noise while training, nor in the memory, which training makes."""
    if not (evaluation.ckpt.parent / "state.pt").exists():
        missing = "no state.pt beside the model, so its training cannot be repeated"
        print(f"w/o GN is left out: {missing}")
        return {}
    return {"w/o GN": Variant(trained(evaluation, {"variance": 0.0}), "santa")}


def settings(evaluation: Evaluation) -> dict:
    path = evaluation.ckpt.parent / "state.pt"
    if not path.exists():
        raise DataError(
            f"{path} is missing: it says how the model was trained, "
            "and a training ablation repeats that"
        )
    with reading(str(path), "a training ablation repeats it; train the model again: --fresh"):
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["identity"]
        missing = {"data", "train", "mixture", *(sweep.field for sweep in TRAINING.values())}
        missing -= found.keys()
        if missing:
            raise KeyError(f"it lacks {', '.join(sorted(missing))}")
        return found


def trained(evaluation: Evaluation, change: dict) -> Evaluation:
    """The evaluation of a run like the model's own but for `change`, trained or resumed now."""
    own = settings(evaluation)
    now = [s.index["hash"] for s in find_sources(own["train"], own["mixture"], True)[0]]
    if now != own["data"]:
        raise DataError(
            f"the shards in {own['train']} are no longer those that the model was trained on; "
            "train it again first"
        )
    fields = {key: value for key, value in own.items() if key != "data"} | change
    fields["micro_batch"] = shared_batch(fields, evaluation.ranks.size)
    label = ",".join(f"{key}={value:g}" for key, value in change.items())
    key = hashlib.sha256(json.dumps([fields, now], sort_keys=True).encode()).hexdigest()[:8]
    folder = evaluation.out / "ablate" / "runs" / f"{label}.{key}"
    options = fields | {
        "out": folder,
        "build": "",
        "val": "",
        "skip_missing": True,
        "device": evaluation.ranks.device.type,
    }
    if evaluation.ranks.master:
        print(f"training with {label}:", flush=True)
        train(label, [f"--{key}={value}" for key, value in options.items()], evaluation.ranks.size)
    evaluation.ranks.barrier()
    return evaluation.like(folder / "model", folder / "eval")


def shared_batch(fields: dict, processes: int) -> int:
    """The largest micro-batch, up to the run's own, with which processes can share its batch.

    The result is the same but for rounding.
    """
    for size in range(fields["micro_batch"], 0, -1):
        if fields["batch_size"] % (size * processes) == 0:
            return size
    raise DataError(f"a batch of {fields['batch_size']} cannot be shared by {processes} processes")


def train(label: str, options: list[str], processes: int) -> None:
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    script = Path(__file__).parents[1] / "train.py"
    code = subprocess.run([*launch, str(script), *options]).returncode
    if code:
        raise DataError(
            f"the training run of {label} ended with code {code}; the same command resumes it"
        )


# --- table and plot -----------------------------------------------------------------------------


def table(
    evaluation: Evaluation, name: str, variants: dict[str, Variant], spice: Spice | None = None
) -> None:
    """Predicts and scores every variant on every benchmark; writes Markdown, JSON and plot."""
    first, rows = None, {}
    for label, variant in variants.items():
        measured = scores(evaluation, variant, spice)
        rows[label] = {
            benchmark: headline(found, first and first[benchmark])
            for benchmark, found in measured.items()
        }
        first = first or measured
    if not evaluation.ranks.master:
        return
    folder, paper = evaluation.out / "ablate", ABLATIONS.get(name, {})
    folder.mkdir(parents=True, exist_ok=True)
    text = markdown(name, rows, paper)
    made = asdict(evaluation.made)
    found = {"rows": rows, "made": made, "paper": {str(key): v for key, v in paper.items()}}
    write_atomic(folder / f"{name}.json", json.dumps(found, indent=1, default=float).encode())
    write_atomic(folder / f"{name}.md", text.encode())
    print(f"{text}\nwritten to {folder}")
    plot(name, rows, paper, folder / f"{name}.png")


def scores(
    evaluation: Evaluation, variant: Variant, spice: Spice | None = None
) -> dict[str, dict[str, Score]]:
    """{benchmark: {metric: Score}} of one row, the headline first; {} beside the master.

    Answers that are stored are not generated again.
    """
    said = {
        name: generate(variant.evaluation, name, variant.column, variant.over)
        for name in evaluation.names
    }
    if not evaluation.ranks.master:
        return {}
    return {
        name: measure(name, rows, context(evaluation, name, spice)) for name, rows in said.items()
    }


def headline(measured: dict, first: dict | None) -> dict:
    """The first metric's summary, its paired test against the first row, and SPICE if it ran."""
    metric = next(iter(measured))
    row = summaries(measured)[metric] | {"metric": metric}
    for other in ("SPICE", "SPIDEr"):
        if other in measured and measured[other].value is not None:
            row[other] = measured[other].summary()
    if first:
        test = compared(first, measured)[metric]
        if not isinstance(test, str):
            row["against the first"] = test
    return row


def markdown(name: str, rows: dict, paper: dict) -> str:
    own = next(iter(rows.values()))
    heads = [f"{BENCHMARKS[benchmark].title} ({row['metric']})" for benchmark, row in own.items()]
    heads = [name, *heads, f"paper, AudioCaps ({ABLATED_IN[name]})"]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "--:|" * (len(heads) - 1)]
    for label, row in rows.items():
        cells = [label, *map(in_cell, row.values()), published(paper, label)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def in_cell(row: dict) -> str:
    if row["value"] is None:
        return "–"
    low, high = row["ci95"]
    text = f"{row['value']:.3f} [{low:.3f}, {high:.3f}]"
    if "against the first" in row:
        text += f", p = {row['against the first']['p']:.2g}"
    for other in ("SPICE", "SPIDEr"):
        if other in row:
            lost = len(row[other].get("unparsed", ()))
            text += f"; {other} {row[other]['value']:.3f}"
            text += f" ({lost:,} unparsed)" if lost else ""
    return text


def published(paper: dict, label: str) -> str:
    """The paper's figures for this row."""
    for key, values in paper.items():
        if is_same(str(key), label) or (label == "MATS" and key == CHOSEN["table4"]):
            return ", ".join(f"{metric} {value}" for metric, value in values.items())
    return "–"


def is_same(key: str, label: str) -> bool:
    if is_number(key) and is_number(label):
        return abs(float(key) - float(label)) < 1e-3 * max(1e-9, abs(float(label)))
    return key == label


def is_number(text: str) -> bool:
    try:
        float(text)
        return True
    except ValueError:
        return False


def plot(name: str, rows: dict, paper: dict, path: Path) -> None:
    numeric = all(map(is_number, rows))
    order = sorted(rows, key=float) if numeric else list(rows)
    by_value = numeric and name != "tau"  # tau's values are too far apart
    at = np.array([float(label) for label in order]) if by_value else np.arange(len(order))
    figure = Figure(figsize=(9, 4), layout="constrained")
    axis = figure.subplots()
    for benchmark, own in rows[order[0]].items():
        cells = [rows[label][benchmark] for label in order]
        values = np.array([cell["value"] for cell in cells], float)
        spread = np.array([cell["ci95"] or (np.nan, np.nan) for cell in cells], float)
        axis.errorbar(
            at,
            values,
            yerr=np.abs(spread.T - values),
            marker="o",
            ms=3,
            lw=1 if numeric else 0,
            elinewidth=0.5,
            capsize=2,
            label=f"{benchmark}, {own['metric']}",
        )
    theirs = [(x, cider(published(paper, label))) for x, label in zip(at, order)]
    theirs = [(x, value) for x, value in theirs if value is not None]
    if theirs:
        label = "paper, AudioCaps CIDEr-D"
        axis.plot(*zip(*theirs), "k*--", lw=0.8 if numeric else 0, label=label)
    if not by_value:
        axis.set_xticks(at, order, rotation=0 if numeric else 20)
    axis.set(xlabel=name, ylabel="headline metric, 95 % interval")
    axis.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    with replacing(path) as part:
        figure.savefig(part, dpi=120, format="png")


def cider(text: str) -> float | None:
    return float(text.split("CIDEr-D ")[1].split(",")[0]) if "CIDEr-D " in text else None


# --- Figure 3 -----------------------------------------------------------------------------------


def figure3(evaluation: Evaluation, n: int = 350) -> None:
    """t-SNE of n pairs of texts and audio, and below each panel the numbers of `santa.gap`.

    CLAP's own vectors; with noise on the texts; the audio over the memory; over Santa.
    """
    text, audio = pairs(evaluation, n)
    if not len(text):
        raise DataError("figure3 needs shards whose samples have both a text and audio")
    santa = evaluation.model.santa
    noisy = add_noise(text, santa.variance, torch.Generator().manual_seed(0))
    panels = {
        "CLAP": (text, audio),
        "CLAP + noise": (noisy, audio),
        "memory": (noisy, bridge("memory", santa)(audio)),
        "Santa": (noisy, santa(audio)),
    }
    if not evaluation.ranks.master:
        return
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    axes = figure.subplots(1, 4)
    measured = {title: gap(*sides) for title, sides in panels.items()}
    for axis, (title, sides) in zip(axes, panels.items()):
        scatter(axis, *sides)
        g = measured[title]
        axis.set(title=title, xticks=[], yticks=[])
        axis.set_xlabel(
            f"centroids {g['centroid_distance']:.2f} apart, "
            f"paired cosine {g['paired_cosine']:.2f}\n"
            f"R@1 {g['audio_to_text_R@1']:.2f}, A-distance {g['a_distance']:.2f}",
            fontsize=9,
        )
    axes[0].legend(frameon=False)
    folder = evaluation.out / "ablate"
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "figure3.png") as part:
        figure.savefig(part, dpi=120, format="png")
    found = {"pairs": len(text), "panels": measured}
    write_atomic(folder / "figure3.json", json.dumps(found, indent=1).encode())
    print(f"{len(text)} pairs; written to {folder}/figure3.png\n{json.dumps(measured, indent=1)}")


def scatter(axis, text: Tensor, audio: Tensor) -> None:
    from sklearn.manifold import TSNE  # slow to import

    both = F.normalize(torch.cat([text, audio]).cpu(), dim=-1).numpy()
    near = min(30, len(both) // 4)
    tsne = TSNE(2, metric="cosine", init="pca", random_state=0, perplexity=near)
    points = tsne.fit_transform(both)
    axis.scatter(*points[: len(text)].T, s=5, color="C0", alpha=0.6, label="text")
    axis.scatter(*points[len(text) :].T, s=5, color="C3", alpha=0.6, label="audio")


def main(argv: list[str] | None = None) -> None:
    parser = arguments()
    parser.description = __doc__
    known = ", ".join(["table4", "figure3", *INFERENCE, *TRAINING])
    parser.add_argument("names", nargs="+", metavar="NAME[=VALUE,...]", help=known)
    larger = "M, K: shards of texts with vectors, for memories larger than the model's own"
    parser.add_argument("--memory", metavar="SHARDS", help=larger)
    args = parser.parse_args(argv)
    if args.columns or args.compare or args.require or args.score or args.human:
        parser.error("--columns, --compare, --human, --require and --score are for eval.py alone")
    evaluation = evaluation_of(args)
    spice = find_spice(evaluation, cache=args.spice_cache)
    run(evaluation, args.names, args.memory, spice)
    evaluation.ranks.close()


if __name__ == "__main__":
    with command("ablate.py"):
        main()
