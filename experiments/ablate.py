"""The paper's ablations, beside the paper's values (Table 4, Figures 3, 4 and S6, Tables S9-S15).

    python eval.py --ablate table4 tau lambda                       of the tiny world; or with --ckpt and --shards
    python eval.py --ablate tau=0.01,0.1,1 M --memory SHARDS        values of your own; a larger memory from shards of text vectors
    python eval.py --ablate sigma layers=1,2,4                      one training run a value: made like the model's own, and resumed
    python eval.py --ablate figure3                                 t-SNE of pairs, and how far apart the modalities are

Each leaves NAME.md, NAME.json and NAME.png in OUT/ablate. What varies only at inference starts from the same encoded audio, so a value costs one
pass of generation. Every row is tested against the first, the model's own setting, on the same clips (p, two-sided, paired).
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from data import DataError, find_sources, read_source, write_atomic
from santa import Santa, add_noise, bridge, gap
from scoring.paper import ABLATED_IN, ABLATIONS, CHOSEN
from scoring.tasks import BENCHMARKS, compared, score

TABLE4 = {  # the paper's row: our bridge
    "MATS": "santa",
    "Memory-based": "memory",
    "Noise-based": "none",
    "w/o K-means": "santa-kmeans",
    "w/o MB": "santa-mb",
    "w/o AE": "santa-ae",
    "w/o GN in the memory": "santa-gn",
}
INFERENCE = {  # name: (Santa's argument, values: the paper's where they are known)
    "tau": ("tau", [*ABLATIONS["tau"]]),
    "lambda": ("lam", [i / 10 for i in range(11)]),
    "L": ("L", [*ABLATIONS["L"], 64]),
    "K": ("k", [*ABLATIONS["K"]]),
    "M": ("m", [*ABLATIONS["M"]]),
}
TRAINING = {  # name: (train.py's field, values)
    "sigma": ("variance", [0.0, 0.005, 0.01, 0.015, 0.02, 0.025]),
    "lora_rank": ("lora_rank", [2, 4, 8, 16, 32]),
    "lora_alpha": ("lora_alpha", [8, 16, 32, 64]),
    "layers": ("layers", [*ABLATIONS["layers"]]),
}


def run(e, wanted, memory=None):
    """e: eval.Evaluation. wanted: names, each with `=value,value` where it shall not be the paper's values. Raises DataError on an unknown name."""
    for what in wanted:
        name, _, values = what.partition("=")
        try:
            values = (
                [float(v) if "." in v or "e" in v else int(v) for v in values.split(",")]
                if values
                else None
            )
        except ValueError:
            raise DataError(f"--ablate {what}: expected numbers after the =")
        if name in ("figure3", *INFERENCE) and e.model().santa is None:
            raise DataError(f"--ablate {name}: this model has no memory (MATS-Audio needs none)")
        if name == "figure3":
            figure3(e)
        elif name == "table4":
            table(
                e,
                name,
                {row: (e, column, None) for row, column in TABLE4.items()}
                | trained_without_noise(e),
            )
        elif name in INFERENCE:
            table(e, name, inference(e, name, values, memory))
        elif name in TRAINING:
            table(e, name, training(e, name, values))
        else:
            raise DataError(
                f"--ablate {name}: there are table4, figure3, {', '.join([*INFERENCE, *TRAINING])}"
            )


def inference(e, name, values, memory):
    """{label: (evaluation, column, bridge)} of a sweep over one of Santa's settings, the model's own first."""
    argument, paper_values = INFERENCE[name]
    santa, texts, which = e.model().santa, e.model().santa.clean, ""
    if memory and argument in ("k", "m"):
        which = (
            " of "
            + hashlib.sha256(
                "".join(source.index["hash"] for source in find_sources(memory)[0]).encode()
            ).hexdigest()[:8]
        )
        texts = torch.stack(
            [
                torch.from_numpy(s["vector"])
                for source in find_sources(memory)[0]
                for s in read_source(source)
            ]
        )
    m, k = len(santa.memory), len(santa.centers)
    today = {"tau": santa.tau, "lambda": santa.lam, "L": santa.L, "K": k, "M": m}[name]
    chosen = sorted({*(values or paper_values), today})
    rows = {}
    for value in chosen:
        whole = argument in ("k", "m", "L")
        if not (0 <= value <= 1 if argument == "lam" else value > 0) or (
            whole and value != int(value)
        ):
            raise DataError(f"--ablate {name}: {value} is no value for it")
        value = int(value) if whole else value
        if argument in ("k", "m"):
            size, clusters = (value, k) if argument == "m" else (m, value)
            if size > len(texts) or clusters > size:
                print(
                    f"{name}={value} is left out: {len(texts):,} texts and {m:,} rows of memory are at hand"
                    f"{'' if memory else ' (--memory SHARDS gives more)'}"
                )
                continue
            made = (
                santa
                if value == today
                else Santa.build(
                    texts,
                    m=size,
                    k=clusters,
                    variance=santa.variance,
                    generator=torch.Generator().manual_seed(0),
                    L=santa.L,
                    tau=santa.tau,
                    lam=santa.lam,
                ).to(santa.memory.device)
            )
        else:
            made = santa.but(**{argument: value})
        column = "santa" if value == today else f"{name}={value:g}{which}"
        rows[f"{value:g}"] = e, column, made
    return {
        f"{today:g}": rows.pop(f"{today:g}")
    } | rows  # the model's own setting first: what the others are tested against


def training(e, name, values):
    """{label: (evaluation, column, bridge)} of runs that differ from the model's own in one field of train.py."""
    field, paper_values = TRAINING[name]
    own = settings(e)
    chosen = values or (
        paper_values if name != "layers" else sorted({*paper_values, own["layers"]})
    )
    kind = type(own[field])
    return {f"{own[field]:g}": (e, "santa", None)} | {
        f"{v:g}": (trained(e, {field: kind(v)}), "santa", None)
        for v in chosen
        if kind(v) != own[field]
    }


def trained_without_noise(e):
    """Table 4's last row: no noise while training (nor in the memory, which training makes)."""
    if not (e.ckpt.parent / "state.pt").exists():
        print(
            "w/o GN is left out: no state.pt beside the model, so its training cannot be repeated"
        )
        return {}
    return {"w/o GN": (trained(e, {"variance": 0.0}), "santa", None)}


def settings(e):
    path = e.ckpt.parent / "state.pt"
    if not path.exists():
        raise DataError(
            f"{path} is missing: it says how the model was trained, and a training ablation repeats that"
        )
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)["identity"]


def trained(e, change):
    """The evaluation of a run like the model's own but for `change`; trained now where it is not there, or not finished."""
    own = settings(e)
    now = [
        s.index["hash"] for s in find_sources(own["train"], own["mixture"], skip_missing=True)[0]
    ]
    if now != own["data"]:
        raise DataError(
            f"the shards in {own['train']} are no longer those that the model was trained on; train it again first"
        )
    fields = {k: v for k, v in own.items() if k != "data"} | change
    while fields["batch_size"] % (fields["micro_batch"] * e.ranks):
        fields["micro_batch"] -= 1  # the result is the same but for rounding
        if not fields["micro_batch"]:
            raise DataError(
                f"a batch of {fields['batch_size']} cannot be shared by {e.ranks} processes"
            )
    label = ",".join(f"{k}={v:g}" for k, v in change.items())
    folder = (
        e.out
        / "ablate"
        / "runs"
        / f"{label}.{hashlib.sha256(json.dumps([fields, now], sort_keys=True).encode()).hexdigest()[:8]}"
    )
    argv = [f"--{k}={v}" for k, v in fields.items()] + [
        f"--out={folder}",
        "--build=",
        "--val=",
        "--skip_missing=True",
        f"--device={e.device.split(':')[0]}",
    ]
    if e.rank == 0:
        print(f"training with {label}:", flush=True)
        launch = (
            ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={e.ranks}"]
            if e.ranks > 1
            else []
        )
        code = subprocess.run(
            [sys.executable, *launch, str(Path(__file__).parent.parent / "train.py"), *argv]
        ).returncode
        if code:
            raise DataError(
                f"the training run of {label} ended with code {code}; the same command goes on with it"
            )
    e.barrier()
    return e.like(folder / "model", folder / "eval")


def table(e, name, variants):
    """Predicts and scores every variant on every benchmark, and writes the Markdown table, the JSON and the plot."""
    baseline, rows = None, {}
    for label, (evaluation, column, across) in variants.items():
        found = {b: evaluation.predict(b, column, across) for b in e.names}
        if e.rank:
            continue
        rows[label] = {}
        for b in e.names:
            scores = score(b, found[b], e.context(b))
            metric = next(iter(scores))
            row = rows[label][b] = scores[metric] | {"metric": metric}
            if baseline and not isinstance(
                test := compared(b, baseline[b], found[b], e.context(b))[metric], str
            ):
                row["against the first"] = test
        baseline = baseline or found
    if e.rank:
        return
    paper = ABLATIONS.get(name, {})
    lines = [
        f"| {name} | "
        + " | ".join(
            f"{BENCHMARKS[b].title} ({next(iter(rows.values()))[b]['metric']})" for b in e.names
        )
        + f" | paper, AudioCaps ({ABLATED_IN[name]}) |",
        "|---|" + "--:|" * (len(e.names) + 1),
    ]
    for label, row in rows.items():
        cells = []
        for b in e.names:
            s = row[b]
            test = s.get("against the first")
            cells.append(
                "–"
                if s["value"] is None
                else f"{s['value']:.3f} [{s['ci95'][0]:.3f}, {s['ci95'][1]:.3f}]"
                + (f", p = {test['p']:.2g}" if test else "")
            )
        lines.append(f"| {label} | " + " | ".join(cells) + f" | {published(paper, label)} |")
    folder = e.out / "ablate"
    folder.mkdir(parents=True, exist_ok=True)
    found = {"rows": rows, "made": e.made, "paper": {str(k): v for k, v in paper.items()}}
    write_atomic(folder / f"{name}.json", json.dumps(found, indent=1, default=float).encode())
    write_atomic(folder / f"{name}.md", ("\n".join(lines) + "\n").encode())
    print("\n".join(lines), f"\n\nwritten to {folder}", sep="")
    plot(name, rows, paper, folder / f"{name}.png")


def published(paper, label):
    """The paper's figures for this row, as text."""
    for key, values in paper.items():
        same = str(key) == label or (label == "MATS" and key == CHOSEN["table4"])
        if not same:
            try:
                same = abs(float(key) - float(label)) < 1e-3 * max(1e-9, abs(float(label)))
            except ValueError:
                continue
        if same:
            return ", ".join(f"{metric} {value}" for metric, value in values.items())
    return "–"


def plot(name, rows, paper, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    benchmarks = list(next(iter(rows.values())))
    numeric = all(is_number(label) for label in rows)
    order = sorted(rows, key=float) if numeric else list(rows)
    figure, axis = plt.subplots(figsize=(9, 4), layout="constrained")
    at = (
        np.arange(len(order))
        if not numeric or name == "tau"
        else np.array([float(x) for x in order])
    )
    for b in benchmarks:
        values = np.array(
            [rows[x][b]["value"] if rows[x][b]["value"] is not None else np.nan for x in order],
            float,
        )
        spread = np.array([rows[x][b]["ci95"] or [np.nan] * 2 for x in order], float)
        axis.errorbar(
            at,
            values,
            yerr=np.abs(spread.T - values),
            marker="o",
            ms=3,
            lw=1 if numeric else 0,
            elinewidth=0.5,
            capsize=2,
            label=f"{b}, {rows[order[0]][b]['metric']}",
        )
    theirs = [
        (x, float(text.split("CIDEr-D ")[1].split(",")[0]))
        for x, label in zip(at, order)
        if "CIDEr-D " in (text := published(paper, label))
    ]
    if theirs:
        axis.plot(*zip(*theirs), "k*--", lw=0.8 if numeric else 0, label="paper, AudioCaps CIDEr-D")
    if not numeric or name == "tau":
        axis.set_xticks(at, order, rotation=0 if numeric else 20)
    axis.set(xlabel=name, ylabel="headline metric, 95 % interval")
    axis.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def is_number(text):
    try:
        float(text)
        return True
    except ValueError:
        return False


def figure3(e, n=350):
    """t-SNE of n pairs of texts and audio: CLAP's own vectors, with noise on the texts, over the memory, over Santa; below each what `gap` measures."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from sklearn.manifold import TSNE

    pairs = [e.vectors(b)[1] for b in e.names if "text" in e.vectors(b)[1]]
    if not pairs:
        raise DataError("figure3 needs shards whose samples have both a text and audio")
    text, audio = (torch.cat([z[side] for z in pairs]) for side in ("text", "audio"))
    _, first = np.unique(
        audio.numpy(), axis=0, return_index=True
    )  # a clip that several questions share counts once
    pick = torch.from_numpy(np.sort(first))[
        torch.randperm(len(first), generator=torch.Generator().manual_seed(0))[:n]
    ]
    text, audio, santa = text[pick], audio[pick], e.model().santa
    noisy = add_noise(text, santa.variance, torch.Generator().manual_seed(0))
    panels = {
        "CLAP": (text, audio),
        "CLAP + noise": (noisy, audio),
        "memory": (noisy, bridge("memory", santa)(audio)),
        "Santa": (noisy, santa(audio)),
    }
    if e.rank:
        return
    figure, axes = plt.subplots(1, 4, figsize=(14, 4.2), layout="constrained")
    measured = {}
    for axis, (title, (t, a)) in zip(axes, panels.items()):
        both = torch.nn.functional.normalize(torch.cat([t, a]).cpu(), dim=-1).numpy()
        points = TSNE(
            2, metric="cosine", init="pca", random_state=0, perplexity=min(30, len(both) // 4)
        ).fit_transform(both)
        for half, color, label in (
            (points[: len(t)], "C0", "text"),
            (points[len(t) :], "C3", "audio"),
        ):
            axis.scatter(*half.T, s=5, color=color, alpha=0.6, label=label)
        measured[title] = g = gap(t, a)
        axis.set_title(title)
        axis.set_xticks([]), axis.set_yticks([])
        axis.set_xlabel(
            f"centroids {g['centroid_distance']:.2f} apart, paired cosine {g['paired_cosine']:.2f}\nR@1 {g['audio_to_text_R@1']:.2f}, "
            f"A-distance {g['a_distance']:.2f}",
            fontsize=9,
        )
    axes[0].legend(frameon=False)
    folder = e.out / "ablate"
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "figure3.png", dpi=120)
    plt.close(figure)
    write_atomic(
        folder / "figure3.json",
        json.dumps({"pairs": len(text), "panels": measured}, indent=1).encode(),
    )
    print(f"{len(text)} pairs; written to {folder}/figure3.png\n" + json.dumps(measured, indent=1))
