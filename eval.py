"""Score a trained MATS on every benchmark, with every bridge across the modality gap, beside chance and CLAP alone.

    python eval.py                                                 the tiny world, after `torchrun train.py`
    python eval.py --ckpt out/mats_gpt2/model --shards data/bench  your model, your benchmarks
    python eval.py --score                                         score the stored predictions again, without the model

Four steps: encode the audio -> bridge -> generate -> score. Each leaves its result in `--out`: vectors/, one file of
predictions for each bridge and benchmark (with all that is needed to score it), results.json, report.md and results.png.
The column `text` is the ceiling: MATS given the vector of the clip's true text instead of its audio.
"""
import argparse
import hashlib
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torchmetrics.functional.classification import binary_accuracy, multilabel_average_precision
from torchmetrics.text import ROUGEScore, SacreBLEUScore
from tqdm import tqdm

from clap import load_audio, load_clap
from data import DataError, Source, read_source, sha256, write_atomic
from mats import MATS
from santa import bridge

COLUMNS = ("text", "none", "nearest", "memory", "projection", "shift", "santa")     # what a plain run compares
BOOTSTRAP = 100                                                                      # resamples behind an interval


@dataclass
class Benchmark:
    title: str
    metrics: tuple              # names in METRICS; the first is the headline


# To add a benchmark: a folder of shards under --shards by this name, and a line here. Text matching (ACC, mAP) reads the
# classes from labels.json in that folder.
BENCHMARKS = {
    "sound": Benchmark("sound classification", ("ACC",)),
    "music": Benchmark("instrument classification", ("ACC",)),
    "events": Benchmark("sound events, multi-label", ("mAP",)),
    "caption": Benchmark("sound captions", ("ROUGE-L", "BLEU4")),
    "music_caption": Benchmark("music captions", ("ROUGE-L", "BLEU4")),
    "yesno": Benchmark("yes/no questions", ("B-ACC",)),
    "open": Benchmark("open questions", ("EM", "ROUGE-L")),
    "mcq": Benchmark("multiple choice", ("MC-ACC",)),
    # shards/benchmarks.py's
    "esc50": Benchmark("ESC-50", ("ACC",)),
    "fsd50k": Benchmark("FSD50K", ("mAP",)),
    "dcase2017": Benchmark("DCASE2017 task 4", ("ACC",)),
    "tut2017": Benchmark("TUT 2017", ("ACC",)),
    "vggsound": Benchmark("VGGSound", ("ACC",)),
    "urbansound8k": Benchmark("UrbanSound8K", ("ACC",)),
    "vocalsound": Benchmark("VocalSound", ("ACC",)),
    "cremad": Benchmark("CREMA-D", ("ACC",)),
    "ravdess": Benchmark("RAVDESS", ("ACC",)),
    "sesa": Benchmark("SESA", ("ACC",)),
    "gtzan": Benchmark("GTZAN", ("ACC",)),
    "gtzan_filtered": Benchmark("GTZAN, fault-filtered", ("ACC",)),
    "beijing_opera": Benchmark("Beijing Opera", ("ACC",)),
    "mmau_mini": Benchmark("MMAU test-mini", ("MC-ACC",)),
}


# --- metrics: rows -> (statistics, one row each; a function from any resample of them to the score) ----------------------

def words(text):
    return re.findall(r"\b\w+\b", text.lower())


def references(row):
    return row["answer"] if isinstance(row["answer"], list) else [row["answer"]]


def classes_in(row, labels):
    """(C,) 0/1: the labels that the answer names; `labels` names them where a label may hold a comma."""
    named = {a.lower() for a in row["labels"]} if "labels" in row else {a.strip().lower() for a in references(row)[0].split(",")} | {references(row)[0].strip().lower()}
    return torch.tensor([float(label.lower() in named) for label in labels])


def matching(rows, labels, encode, split=False):
    """(n, C): text matching. CLAP's text vectors of "sound of " + label against that of the prediction. With `split` (FSD50K's
    rule) a prediction of several labels is taken apart at ; and , and their similarities are summed."""
    parts = [[p.strip() for p in re.split("[;,]", r["prediction"]) if p.strip()] or [""] if split else [r["prediction"]] for r in rows]
    texts = list(dict.fromkeys(p for ps in parts for p in ps))
    similar = dict(zip(texts, encode(texts) @ encode([f"sound of {label.lower()}" for label in labels]).T))
    return torch.stack([sum(similar[p] for p in ps) for ps in parts])


def acc(scores, targets):
    """Right iff the most similar class is one of the clip's (DCASE2017's clips may have several)."""
    return share(targets.gather(1, scores.argmax(1, keepdim=True))[:, 0].tolist())


def mean_ap(scores, targets):
    scores = (scores - scores.min()) / (scores.max() - scores.min()).clamp(min=1e-9)    # torchmetrics wants [0, 1]
    seen = targets.any(0)                                                               # a class nobody has, has no AP
    stats = torch.cat([scores[:, seen], targets[:, seen]], 1).double()
    C = int(seen.sum())
    return stats, lambda s: multilabel_average_precision(s[:, :C], s[:, C:].long(), C, average="macro")


def share(right):
    """right: n truth values."""
    return torch.tensor(right).long()[:, None], lambda s: binary_accuracy(s[:, 0], torch.ones_like(s[:, 0]))


def yes_no(rows):
    """Right iff the prediction's first word is the answer; anything but yes or no is wrong."""
    return share([words(r["prediction"])[:1] == words(references(r)[0])[:1] for r in rows])


def exact(rows):
    """Right iff the prediction's words are those of a reference, in order; case and punctuation aside."""
    return share([any(words(r["prediction"]) == words(a) for a in references(r)) for r in rows])


def multiple_choice(rows):
    """MMAU's rule: all words of the answer are in the prediction, and none of a wrong choice that the answer lacks."""
    right = []
    for r in rows:
        said, answer = set(words(r["prediction"])), set(words(references(r)[0]))
        wrong = set().union(*(words(c) for c in r["choices"])) - answer
        right.append(answer <= said and not said & wrong)
    return share(right)


def rouge(rows):
    """ROUGE-L F1 against the best reference."""
    metric = ROUGEScore(rouge_keys="rougeL")
    metric.update([r["prediction"] for r in rows], [references(r) for r in rows])
    return torch.stack([torch.as_tensor(f) for f in metric.rougeL_fmeasure]).double().view(-1, 1), lambda s: s.mean()


def bleu(rows):
    """Corpus BLEU-4 with the 13a tokenizer."""
    stats = []
    for r in rows:
        metric = SacreBLEUScore(n_gram=4, tokenize="13a")
        metric.update([r["prediction"]], [references(r)])
        stats.append(torch.cat([metric.numerator, metric.denominator, metric.preds_len.view(1), metric.target_len.view(1)]))

    def compute(s):
        metric, total = SacreBLEUScore(n_gram=4, tokenize="13a"), s.sum(0)
        metric.update([""], [[""]])
        metric.numerator, metric.denominator, metric.preds_len, metric.target_len = \
            total[:4], total[4:8], total[8], total[9]
        return metric.compute()
    return torch.stack(stats), compute


METRICS = {"ACC": acc, "mAP": mean_ap, "B-ACC": yes_no, "EM": exact, "MC-ACC": multiple_choice, "ROUGE-L": rouge, "BLEU4": bleu}


def score(benchmark, rows, labels=None, encode=None, scores=None):
    """{metric: value, "n": rows, "ci95": bootstrap interval of the headline} of one benchmark's rows.

    scores (n, C) replaces text matching, for a model that has similarities and no words (CLAP itself).
    """
    result = {"n": len(rows)}
    for name in BENCHMARKS[benchmark].metrics:
        if name in ("ACC", "mAP"):
            targets = torch.stack([classes_in(r, labels) for r in rows])
            if not targets.any(1).all():
                row = rows[int((~targets.any(1)).nonzero()[0])]
                raise DataError(f"{benchmark}: the answer of {row['id']!r}, {references(row)[0]!r}, is not in labels.json")
            stats, compute = METRICS[name](matching(rows, labels, encode, name == "mAP") if scores is None else scores, targets)
        else:
            stats, compute = METRICS[name](rows)
        result[name] = round(float(compute(stats)), 5)
        if "ci95" not in result:
            rng = np.random.default_rng(0)
            draws = [float(compute(stats[rng.integers(len(rows), size=len(rows))])) for _ in range(BOOTSTRAP)]
            result["ci95"] = [round(float(q), 5) for q in np.nanpercentile(draws, [2.5, 97.5])]
    return result


def chance(benchmark, rows, labels=None):
    """The headline of an answer that did not listen: uniform for classes and choices, the share of positives for mAP, the
    more frequent of yes and no, and another clip's reference for captions and open questions."""
    metric = BENCHMARKS[benchmark].metrics[0]
    if metric == "ACC":
        return 1 / len(labels)
    if metric == "mAP":
        targets = torch.stack([classes_in(r, labels) for r in rows])
        return float(targets[:, targets.any(0)].mean())
    if metric == "B-ACC":
        yes = np.mean([words(references(r)[0])[:1] == ["yes"] for r in rows])
        return float(max(yes, 1 - yes))
    if metric == "MC-ACC":
        return float(np.mean([1 / len(r["choices"]) for r in rows]))
    others = [{**r, "prediction": references(o)[0]} for r, o in zip(rows, rows[1:] + rows[:1])]
    return score(benchmark, others)[metric]


# --- 1. encode ---------------------------------------------------------------------------------------------------------

def encode(source, clap, crop, path):
    """Rows and CLAP vectors of one benchmark: rows (dicts without audio), {"audio": (n, D), "text": (n, D) where known}.

    A clip that several questions share is encoded once; decoding runs in threads beside the encoder. Clips that cannot be decoded
    are named and left out. The vectors are kept in `path`.
    """
    rows, clips = [], {}
    for r in read_source(source, audio=True):
        data = r.pop("audio")
        if data is None:
            print(f"left out: {source.url}: {r['id']!r} has no audio", file=sys.stderr)
            continue
        rows.append({**{k: v for k, v in r.items() if k not in ("vector", "key")}, "clip": hashlib.sha256(data).hexdigest()})
        clips.setdefault(rows[-1]["clip"], (data, r["id"]))
    if path.exists():
        return rows_with(load_file(path), rows)

    def decode(clip):
        try:
            wave = load_audio(clips[clip][0], clap.sample_rate, clap.seconds, crop,
                              torch.Generator().manual_seed(int(clip[:8], 16)))
            return clip, wave.view(-1, wave.shape[-1])                      # (windows, T)
        except ValueError as e:
            print(f"left out: {source.url}: {clips[clip][1]!r}: {e}", file=sys.stderr)
            return clip, None
    vectors = {}
    with ThreadPoolExecutor(4) as pool:
        decoded = tqdm(pool.map(decode, clips), total=len(clips), desc=f"encode {source.name}", unit=" clips", leave=False)
        good = ((clip, wave) for clip, wave in decoded if wave is not None)
        while group := list(islice(good, 32)):
            z = clap.encode_audio(torch.cat([wave for _, wave in group])).cpu().split([len(wave) for _, wave in group])
            vectors.update({clip: F.normalize(windows.mean(0), dim=0) for (clip, _), windows in zip(group, z)})
    texts = [r["text"] for r in rows]
    if None not in texts:
        vectors.update({f"text {i}": z for i, z in enumerate(clap.encode_text(texts).cpu())})
    if not any(r["clip"] in vectors for r in rows):
        raise DataError(f"{source.url}: not one clip can be decoded")
    save_file({k: v.contiguous() for k, v in vectors.items()}, path)
    return rows_with(vectors, rows)


def rows_with(vectors, rows):
    kept = [(i, r) for i, r in enumerate(rows) if r["clip"] in vectors]
    z = {"audio": torch.stack([vectors[r["clip"]] for _, r in kept])}
    if "text 0" in vectors:
        z["text"] = torch.stack([vectors[f"text {i}"] for i, _ in kept])
    return [r for _, r in kept], z


# --- 2. and 3. bridge and generate -----------------------------------------------------------------------------------------

def predict(model, rows, z, name, audio_mean, decoding, batch_size, bar):
    """The rows with the model's prediction under one bridge (or from the true text)."""
    if name == "text":
        z = z["text"]
    else:
        z = bridge(name, model.santa, audio_mean=audio_mean, generator=torch.Generator().manual_seed(0))(z["audio"])
    tags = [r.get("tag") or "" for r in rows]
    answers = model.generate(z, [r["instruction"] for r in rows], tags, batch_size, bar.update, **decoding)
    return [{**r, "prediction": a} for r, a in zip(rows, answers)]


# --- 4. the report -----------------------------------------------------------------------------------------------------

def report(results, out):
    """results.json, report.md and results.png; returns the table."""
    write_atomic(out / "results.json", json.dumps(results, indent=1).encode())
    columns = [c for c in results["columns"]]
    lines = ["| benchmark | metric | n | chance | CLAP | " + " | ".join(columns) + " |",
             "|---|---|--:|" + "--:|" * (len(columns) + 2)]
    number = lambda v: "–" if v is None else f"{v:.3f}"
    size = lambda name: f"{results['n'][name]:,}" + (f" of {results['clips'][name]:,}" if results["clips"][name] != results["n"][name] else "")
    for name in results["chance"]:
        for metric in BENCHMARKS[name].metrics:
            headline = metric == BENCHMARKS[name].metrics[0]
            cells = [results["columns"][c].get(name, {}).get(metric) for c in columns]
            row = [BENCHMARKS[name].title if headline else "", metric, size(name) if headline else "",
                   number(results["chance"][name] if headline else None),
                   number(results["clap"].get(name, {}).get(metric))] + [number(c) for c in cells]
            lines.append("| " + " | ".join(row) + " |")
    notes = ["", f"Model: {results['ckpt']}. Crop: {results['crop']}. Decoding: {results['decoding'] or 'greedy'}. "
             "ACC and mAP: text matching with CLAP's text tower, label template \"sound of \". `text`: given the true text's "
             "vector instead of the audio, the ceiling. `CLAP`: zero-shot, without MATS.", "",
             "95 % bootstrap intervals of the headline metric:", ""]
    for c in columns:
        notes.append(f"- {c}: " + ", ".join(f"{n} [{r['ci95'][0]:.3f}, {r['ci95'][1]:.3f}]"
                                            for n, r in results["columns"][c].items()))
    write_atomic(out / "report.md", "\n".join(lines + notes + [""]).encode())
    plot(results, out / "results.png")
    return "\n".join(lines)


def plot(results, path):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    names = list(results["chance"])
    figure, axis = plt.subplots(figsize=(1.5 * len(names) + 1.5, 4), layout="constrained")
    width = 0.8 / len(results["columns"])
    for i, (column, scores) in enumerate(results["columns"].items()):
        values = [scores.get(n, {}).get(BENCHMARKS[n].metrics[0], np.nan) for n in names]
        spread = [scores.get(n, {}).get("ci95", [np.nan] * 2) for n in names]
        error = np.abs(np.array(spread).T - np.array(values))
        axis.bar(np.arange(len(names)) + i * width - 0.4 + width / 2, values, width, yerr=error, label=column,
                 color="0.75" if column == "text" else f"C{i}", error_kw={"lw": 0.6})
    axis.hlines([results["chance"][n] for n in names], np.arange(len(names)) - 0.4, np.arange(len(names)) + 0.4, "k",
                lw=1, ls=":", label="chance")
    axis.set_xticks(range(len(names)), [f"{n}\n{BENCHMARKS[n].metrics[0]}" for n in names])
    axis.set_ylim(0, 1)
    axis.legend(frameon=False, ncols=len(results["columns"]) + 1, loc="upper center", bbox_to_anchor=(0.5, 1.12), fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="out/tiny/model", help="a model as train.py writes it")
    parser.add_argument("--shards", default="data/tiny/test", help="folder with a folder of shards per benchmark")
    parser.add_argument("--bench", default="all", help="comma-separated, or all that are found")
    parser.add_argument("--columns", default=",".join(COLUMNS), help="text, and bridges (santa.BRIDGES), comma-separated")
    parser.add_argument("--out", help="default: eval/ beside the checkpoint")
    parser.add_argument("--crop", default="center", choices=("center", "random", "windows"))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--decoding", type=json.loads, default={}, help='keywords of generate, e.g. \'{"num_beams": 4}\'')
    parser.add_argument("--score", action="store_true", help="only score the stored predictions again")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)

    ckpt, columns = Path(args.ckpt), args.columns.split(",")
    out = Path(args.out) if args.out else ckpt.parent / "eval"
    if not (ckpt / "config.json").exists():
        sys.exit(f"eval.py: {ckpt} holds no trained model; first: torchrun train.py")
    found = [b for b in BENCHMARKS if (Path(args.shards) / b / "index.json").exists()]
    names = found if args.bench == "all" else args.bench.split(",")
    if not found or set(names) - set(found):
        sys.exit(f"eval.py: no shards for {', '.join(set(names) - set(found)) or 'any benchmark'} under {args.shards}; "
                 f"there are: {', '.join(found) or 'none'}; known: {', '.join(BENCHMARKS)}")
    sources = {b: Source(f"{args.shards}/{b}") for b in names}
    labels = {b: json.loads(p.read_text()) if (p := Path(args.shards) / b / "labels.json").exists() else None for b in names}

    # Stored vectors and predictions stand for this model, these shards and these settings; under others they are made anew.
    weights = [p for p in sorted(ckpt.rglob("*")) if p.suffix in (".safetensors", ".json")]
    made = {"model": hashlib.sha256("".join(map(sha256, weights)).encode()).hexdigest(), "crop": args.crop,
            "decoding": args.decoding}
    run_key = lambda b: hashlib.sha256(json.dumps([made, sources[b].index["hash"]], sort_keys=True).encode()).hexdigest()[:12]
    (out / "vectors").mkdir(parents=True, exist_ok=True)
    stored = {(c, b): out / c / f"{b}.{run_key(b)}.jsonl" for c in columns for b in names}
    key = hashlib.sha256("".join(map(str, stored)).encode() + json.dumps([[run_key(b), labels[b]] for b in names]).encode()).hexdigest()[:12]
    if (out / "results.json").exists() and not args.score and json.loads((out / "results.json").read_text()).get("key") == key:
        print((out / "report.md").read_text().split("\n\n")[0], f"\n\nnothing has changed since this was written to {out}")
        return

    model_config = json.loads((ckpt / "config.json").read_text())
    name = model_config["clap"]
    clap = load_clap(str(ckpt / name) if (ckpt / name).exists() else name)
    if isinstance(clap, torch.nn.Module):
        clap.to(args.device)
    text = lambda texts: clap.encode_text(texts).cpu()

    rows, z = {}, {}
    for b in names:
        rows[b], z[b] = encode(sources[b], clap, args.crop, out / "vectors" / f"{b}.{run_key(b)}.safetensors")
    todo = [(c, b) for (c, b), path in stored.items() if not path.exists() and (c != "text" or "text" in z[b])]
    if todo and args.score:
        sys.exit(f"eval.py --score: no stored predictions for {todo[0][1]} with {todo[0][0]} from this model and these settings")
    if todo:
        model = MATS.from_pretrained(ckpt).to(args.device)
        bar = tqdm(total=sum(len(rows[b]) for _, b in todo), unit=" answers", desc="generate")
        for c, b in todo:
            predictions = predict(model, rows[b], z[b], c, z[b]["audio"].mean(0), args.decoding, args.batch, bar)
            stored[c, b].parent.mkdir(exist_ok=True)
            write_atomic(stored[c, b], "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in predictions).encode())
        bar.close()

    results = {"benchmarks": {}, "ckpt": args.ckpt, "key": key, **made, "n": {b: len(rows[b]) for b in names},
               "clips": {b: sources[b].index.get("clips", len(rows[b])) for b in names},
               "chance": {b: round(chance(b, rows[b], labels[b]), 5) for b in names}, "clap": {}, "columns": {}}
    for b in names:
        if BENCHMARKS[b].metrics[0] in ("ACC", "mAP"):
            similar = z[b]["audio"] @ text([f"sound of {label.lower()}" for label in labels[b]]).T
            results["clap"][b] = score(b, rows[b], labels[b], scores=similar)
        elif BENCHMARKS[b].metrics[0] == "MC-ACC":
            choices = [text([f"sound of {x.lower()}" for x in r["choices"]]) for r in rows[b]]
            picked = [r["choices"][int((zc @ a).argmax())] for r, zc, a in zip(rows[b], choices, z[b]["audio"])]
            results["clap"][b] = score(b, [{**r, "prediction": p} for r, p in zip(rows[b], picked)])
    for c in tqdm(columns, desc="score"):
        results["columns"][c] = {b: score(b, [json.loads(line) for line in stored[c, b].read_text().splitlines()], labels[b], text)
                                 for b in names if stored[c, b].exists()}
    results["benchmarks"] = results["columns"][columns[-1]]
    print(report(results, out))
    print(f"\nreport, plot and predictions: {out}")


if __name__ == "__main__":
    try:
        main()
    except DataError as e:
        sys.exit(f"eval.py: {e}")
