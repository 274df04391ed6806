"""Score a trained MATS on every benchmark, with every bridge across the modality gap, beside chance, CLAP alone and the paper.

    python eval.py                                                             the tiny world, after `torchrun train.py`
    python eval.py --ckpt out/mats_gpt2/model --shards data/bench              your model, the paper's benchmarks (shards/benchmarks.py)
    torchrun --nproc_per_node=2 eval.py ...                                    the same scores on two GPUs
    python eval.py --score                                                     score the stored predictions again, without the model
    python eval.py --compare none santa                                        is the second really better? paired tests
    python eval.py --ablate table4                                             the paper's ablations: table4, tau, lambda, L, M, K, ...

Four steps: encode the audio -> bridge -> generate -> score. Each leaves its result in `--out`: vectors/, one file of predictions for each
bridge and benchmark (with all that is needed to score it), results.json, report.md, report.html and results.png. A run that was stopped goes
on where it was. The column `text` is the ceiling: MATS given the vector of the clip's true text instead of its audio.
"""

import argparse
import hashlib
import json
import os
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import islice
from pathlib import Path

os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # or a CPU that has other work too slows down tenfold

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from audio import load_audio
from clap import load_clap
from data import DataError, Source, read_source, sha256, write_atomic
from mats import MATS
from santa import BRIDGES, RELEASED_NORM, bridge
from scoring import judge, report
from scoring.captions import Spice, SpiceMissing
from scoring.llm import Endpoint
from scoring.tasks import BENCHMARKS, Context, captions, chance, compared, items, score

COLUMNS = (
    "text",
    "none",
    "nearest",
    "memory",
    "projection",
    "shift",
    "santa",
)  # what a plain run compares
DECODING = {
    "greedy": {},
    "official": {
        "num_beams": 4,
        "max_new_tokens": 200,
        "repetition_penalty": 2.0,
        "no_repeat_ngram_size": 2,
    },  # of the released script
    "beam": {"num_beams": 4},  # of caption models
}
PART = 1024  # clips whose vectors are stored at once: what a kill loses at most


def digest(*what):
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def ahead(pool, f, xs, n=64):
    """map(f, xs) in the pool's threads, in order, at most n ahead: executors' own map would hold all of xs."""
    waiting, xs = deque(), iter(xs)
    while waiting or (waiting := deque(pool.submit(f, x) for x in islice(xs, n))):
        yield waiting.popleft().result()
        waiting.extend(pool.submit(f, x) for x in islice(xs, 1))


class Evaluation:
    """One model on one folder of benchmarks, under one set of protocols; what it computes it stores, and what is stored it does not compute.

    ckpt, shards, out: folders. crop, tags, decoding: protocols that change predictions; match (encoders), template: that change scores.
    """

    def __init__(
        self,
        ckpt,
        shards,
        out,
        bench="all",
        crop="center",
        tags=True,
        decoding="greedy",
        match="clap",
        template="sound of {}",
        judge_name=None,
        batch=128,
        device="cpu",
        vectors=None,
    ):
        self.options = {
            "bench": bench,
            "crop": crop,
            "tags": tags,
            "decoding": decoding,
            "match": match,
            "template": template,
            "judge_name": judge_name,
            "batch": batch,
            "device": device,
        }
        self.ckpt, self.shards, self.out, self.batch, self.device = (
            Path(ckpt),
            Path(shards),
            Path(out),
            batch,
            device,
        )
        self.crop, self.tags, self.match, self.template, self.judge = (
            crop,
            tags,
            match.split(","),
            template,
            judge_name,
        )
        try:
            self.decoding = (
                DECODING[decoding] if decoding in DECODING else dict(json.loads(decoding))
            )
        except (ValueError, TypeError):
            raise DataError(
                f"--decoding {decoding}: neither {', '.join(DECODING)} nor JSON such as '{{\"num_beams\": 8}}'"
            ) from None
        if "{}" not in template:
            raise DataError(f"--label-template {template!r} needs {{}} where the label goes")
        self.rank, self.ranks = (
            (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        )
        if not (self.ckpt / "config.json").exists():
            raise DataError(f"{ckpt} holds no trained model; first: torchrun train.py")
        found = [b for b in BENCHMARKS if (self.shards / b / "index.json").exists()]
        self.names = found if bench == "all" else bench.split(",")
        if not found or set(self.names) - set(found):
            raise DataError(
                f"no shards for {', '.join(sorted(set(self.names) - set(found))) or 'any benchmark'} under {shards}; "
                f"there are: {', '.join(found) or 'none'}; known: {', '.join(BENCHMARKS)}"
            )
        self.sources = {b: Source(f"{shards}/{b}") for b in self.names}
        self.labels = {}
        for b in self.names:
            path = self.shards / b / "labels.json"
            try:
                self.labels[b] = (
                    json.loads(path.read_text()) if BENCHMARKS[b].classes or path.exists() else None
                )
            except (OSError, ValueError) as error:
                raise DataError(
                    f"{path}, the list of {b}'s classes, cannot be read: {error}"
                ) from error
        name = json.loads((self.ckpt / "config.json").read_text())["clap"]
        self.clap_name = str(self.ckpt / name) if (self.ckpt / name).exists() else name
        self.made = {
            "model": digest([sha256(p) for p in files(self.ckpt)]),
            "crop": crop,
            "tags": tags,
            "decoding": self.decoding,
        }
        clap = [sha256(p) for p in files(Path(self.clap_name))] or self.clap_name
        self.vector_dir = Path(vectors or self.out / "vectors")
        self.vector_key = {b: digest(clap, crop, self.sources[b].index["hash"]) for b in self.names}
        self.key = {b: digest(self.made, self.vector_key[b]) for b in self.names}
        self.loaded, self.encoders = {}, {}

    def like(self, ckpt, out):
        """The same evaluation of another model of the same CLAP, which need not encode the audio again."""
        return Evaluation(ckpt, self.shards, out, **self.options, vectors=self.vector_dir)

    def barrier(self):
        if self.ranks > 1:
            dist.barrier()

    def clap(self):
        if "clap" not in self.loaded:
            self.loaded["clap"] = load_clap(self.clap_name)
            if isinstance(self.loaded["clap"], torch.nn.Module):
                self.loaded["clap"].to(self.device)
        return self.loaded["clap"]

    def model(self):
        if "model" not in self.loaded:
            self.loaded["model"] = MATS.from_pretrained(self.ckpt).to(self.device)
        return self.loaded["model"]

    # --- 1. encode ---

    def vectors(self, b):
        """(rows, {"audio": (n, D), "text": (n, D) where all texts are known}) of one benchmark; rows are its samples without audio.

        A clip that several questions share is encoded once; decoding runs in threads ahead of the encoder; each process takes its share of
        the clips. Clips without audio, or with audio that cannot be decoded, are named and left out.
        """
        if ("vectors", b) in self.loaded:
            return self.loaded["vectors", b]
        path = self.vector_dir / f"{b}.{self.vector_key[b]}.safetensors"
        if not path.exists():
            self.encode(b, path)
        known, rows = load_file(path), json.loads(path.with_suffix(".json").read_text())
        kept = [i for i, r in enumerate(rows) if r["clip"] in known]
        if not kept:
            raise DataError(f"{self.sources[b].url}: not one clip has audio that can be decoded")
        z = {"audio": torch.stack([known[rows[i]["clip"]] for i in kept])}
        if "text" in known:
            z["text"] = known["text"][kept]
        self.loaded["vectors", b] = [rows[i] for i in kept], z
        return self.loaded["vectors", b]

    def encode(self, b, path):
        clap, source, vectors, rows = self.clap(), self.sources[b], {}, []
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = lambda: sorted(path.parent.glob(f"{path.stem}.*.part"))
        done = {clip for p in parts() for clip in load_file(p)}
        number = 1 + max((int(p.name.split(".")[-2]) for p in parts()), default=0)
        self.barrier()

        def clips():
            """(clip, name, bytes) of this process's share; fills rows on the way."""
            seen = set(done)
            for r in read_source(source, audio=True):
                data, _, _ = r.pop("audio"), r.pop("kind"), r.pop("vector", None)
                if data is None:
                    if self.rank == 0:
                        print(f"left out: {source.url}: {r['id']!r} has no audio", file=sys.stderr)
                    continue
                clip = hashlib.sha256(data).hexdigest()
                rows.append({**r, "clip": clip})
                if clip not in seen and int(clip[:8], 16) % self.ranks == self.rank:
                    seen.add(clip)
                    yield clip, r["id"], data

        def decode(task):
            clip, name, data = task
            try:
                wave = load_audio(
                    data,
                    clap.sample_rate,
                    clap.seconds,
                    self.crop,
                    torch.Generator().manual_seed(int(clip[:8], 16)),
                )
                return clip, wave.view(-1, wave.shape[-1])  # (windows, T)
            except ValueError as e:
                print(f"left out: {source.url}: {name!r}: {e}", file=sys.stderr)
                return clip, None

        def store():
            nonlocal number
            if vectors:
                save_file(vectors, f"{path}.tmp{self.rank}")
                os.replace(
                    f"{path}.tmp{self.rank}", path.parent / f"{path.stem}.{self.rank}.{number}.part"
                )
                number += 1
                vectors.clear()

        bar = tqdm(
            total=len(source),
            initial=len(done),
            desc=f"encode {b}",
            unit=" clips",
            leave=False,
            disable=self.rank > 0,
        )
        with ThreadPoolExecutor(4) as pool:
            good = ((clip, wave) for clip, wave in ahead(pool, decode, clips()) if wave is not None)
            while group := list(islice(good, 32)):
                z = (
                    clap.encode_audio(torch.cat([wave for _, wave in group]))
                    .cpu()
                    .split([len(wave) for _, wave in group])
                )
                vectors.update(
                    {
                        clip: F.normalize(windows.mean(0), dim=0)
                        for (clip, _), windows in zip(group, z)
                    }
                )
                bar.update(len(group) * self.ranks)
                if len(vectors) >= PART:
                    store()
        store()
        bar.close()
        self.barrier()
        if self.rank == 0:
            vectors = {k: v for p in parts() for k, v in load_file(p).items()}
            texts = [r["text"] for r in rows]
            if None not in texts:
                vectors["text"] = clap.encode_text(texts).cpu().contiguous()
            write_atomic(path.with_suffix(".json"), json.dumps(rows, ensure_ascii=False).encode())
            save_file(vectors, f"{path}.tmp")
            os.replace(f"{path}.tmp", path)
            for p in parts():
                p.unlink()
        self.barrier()

    # --- 2. and 3. bridge and generate ---

    def across(self, b, column):
        """The bridge of that name for one benchmark's audio."""
        try:
            return bridge(
                column,
                self.model().santa,
                self.vectors(b)[1]["audio"].mean(0),
                torch.Generator().manual_seed(0),
            )
        except ValueError as error:
            raise DataError(
                f"column {column!r}: {error}{'' if self.model().santa else ' (this model has no memory: --columns none)'}"
            ) from error

    def stored(self, b, column):
        return self.out / column / f"{b}.{self.key[b]}.jsonl"

    def predict(self, b, column, across=None):
        """One benchmark's rows with the model's `prediction` under one bridge, or from the true text; from the file where they are stored.

        across: the bridge, where it is not the one that `column` names.
        """
        rows, z = self.vectors(b)
        path = self.stored(b, column)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            parts = lambda: sorted(path.parent.glob(f"{path.stem}.*.part"))
            done = {line["i"] for p in parts() for line in whole_lines(p)}
            self.barrier()
            todo = sorted(set(range(len(rows))) - done, key=lambda i: len(rows[i]["instruction"]))[
                self.rank :: self.ranks
            ]
            model = self.model()
            if column == "text" and "text" not in z:
                raise DataError(
                    f"{b}: column text needs samples whose text is known, and these have only audio"
                )
            audio = z["audio"] * (RELEASED_NORM if column == "official" else 1)
            z = z["text"] if column == "text" else (across or self.across(b, column))(audio)
            with open(path.parent / f"{path.stem}.{self.rank}.part", "a+b") as f:
                f.seek(0)
                f.truncate(f.read().rfind(b"\n") + 1)  # a line that a kill has cut
                for start in tqdm(
                    range(0, len(todo), self.batch),
                    desc=f"{b}, {column}",
                    unit=" batches",
                    leave=False,
                    disable=self.rank > 0,
                ):
                    at = todo[start : start + self.batch]
                    tags = [rows[i].get("tag") or "" if self.tags else "" for i in at]
                    answers = model.generate(
                        z[at],
                        [rows[i]["instruction"] for i in at],
                        tags,
                        self.batch,
                        **self.decoding,
                    )
                    f.write(
                        "".join(
                            json.dumps({"i": i, "prediction": a}, ensure_ascii=False) + "\n"
                            for i, a in zip(at, answers)
                        ).encode()
                    )
                    f.flush()
            self.barrier()
            if self.rank == 0:
                said = {line["i"]: line["prediction"] for p in parts() for line in whole_lines(p)}
                lines = [
                    json.dumps({**r, "prediction": said[i]}, ensure_ascii=False) + "\n"
                    for i, r in enumerate(rows)
                ]
                write_atomic(path, "".join(lines).encode())
                for p in parts():
                    p.unlink()
            self.barrier()
        return whole_lines(path)

    # --- 4. score ---

    def context(self, b, spice=None, column=None):
        """scoring.Context of one benchmark; with column: the judge's verdicts on its predictions."""
        for name in self.match:
            if name not in self.encoders:
                self.encoders[name] = text_encoder(name, self)
        verdicts = {}
        if (
            column
            and b.startswith("airbench")
            and (path := judge.verdicts_path(self.stored(b, column))).exists()
        ):
            rows = self.predict(b, column)
            scores, unparsable = judge.verdicts(path, rows, self.judge)
            if unparsable:
                print(f"{b}, {column}: {unparsable} verdicts cannot be read", file=sys.stderr)
            verdicts = {
                (r["id"], r["instruction"]): float(s) for r, s in zip(rows, scores) if s == s
            }
        return Context(self.labels[b], self.encoders, self.template, spice=spice, verdicts=verdicts)

    def zero_shot(self, b):
        """CLAP's own scores, without MATS: {} where the benchmark has neither classes nor choices."""
        rows, z = self.vectors(b)
        texts = lambda xs: (
            self.clap().encode_text([self.template.format(x.lower()) for x in xs]).cpu()
        )
        if self.labels[b]:
            return score(
                b, rows, Context(self.labels[b], scores=z["audio"] @ texts(self.labels[b]).T)
            )
        if all("choices" in r for r in rows) and b != "mmau":
            picked = [
                r["choices"][int((texts(r["choices"]) @ a).argmax())]
                for r, a in zip(rows, z["audio"])
            ]
            return score(b, [{**r, "prediction": p} for r, p in zip(rows, picked)], Context())
        return {}


def files(folder):
    return (
        [p for p in sorted(folder.rglob("*")) if p.suffix in (".safetensors", ".json", ".pth")]
        if folder.is_dir()
        else []
    )


def whole_lines(path):
    """The JSON lines of a file that a kill may have cut in the last one."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def text_encoder(name, evaluation):
    """Text matching's encoder: `clap` (the model's own text tower), https://... (an OpenAI-compatible endpoint, its model behind a #), or a
    text tower of CLIP or a sentence encoder of transformers, by name. -> list of str -> (n, D) unit rows."""
    if name == "clap":
        return lambda texts: evaluation.clap().encode_text(texts).cpu()
    if name.startswith(("http://", "https://")):
        url, _, model = name.partition("#")
        endpoint = Endpoint(
            url, model or "text-embedding-ada-002", os.environ.get("OPENAI_API_KEY")
        )
        return lambda texts: F.normalize(torch.tensor(endpoint.embed(texts)), dim=-1)
    from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPTextModelWithProjection

    clip = AutoConfig.from_pretrained(name).model_type.startswith("clip")
    model = (
        (CLIPTextModelWithProjection if clip else AutoModel)
        .from_pretrained(name)
        .eval()
        .to(evaluation.device)
    )
    tokenizer = AutoTokenizer.from_pretrained(name)

    @torch.inference_mode()
    def encode(texts, batch=256):
        rows = []
        for start in range(0, len(texts), batch):
            tokens = tokenizer(
                texts[start : start + batch], padding=True, truncation=True, return_tensors="pt"
            ).to(evaluation.device)
            out = model(**tokens)
            if clip:
                rows.append(out.text_embeds)
            else:  # the mean over the words, as sentence encoders are trained
                mask = tokens["attention_mask"][..., None]
                rows.append((out.last_hidden_state * mask).sum(1) / mask.sum(1))
        return F.normalize(torch.cat(rows).float().cpu(), dim=-1)

    return encode


def evaluate(e, columns, spice, only_score=False):
    """Runs the four steps for all benchmarks and columns. -> (results for report.py, predictions {(column, benchmark): rows})."""
    for b in e.names if only_score else ():
        for c in columns:
            if c != "text" and not e.stored(b, c).exists():
                raise DataError(
                    f"--score: no stored predictions for {b} with {c} from this model and these settings"
                )
    predictions, pool = {}, ThreadPoolExecutor(1)
    try:
        # One benchmark's audio is decoded and encoded while another's answers are generated; several processes keep step instead.
        encoded = {b: pool.submit(e.vectors, b) for b in e.names} if e.ranks == 1 else {}
        for b in e.names:
            z = encoded[b].result()[1] if encoded else e.vectors(b)[1]
            for c in columns:
                if c == "text" and "text" not in z:
                    continue
                predictions[c, b] = e.predict(b, c)
    finally:
        pool.shutdown(cancel_futures=True)
    if not predictions:
        raise DataError(
            "nothing to score: column text needs samples whose text is known, and these have only audio"
        )
    if e.rank:
        return None, predictions
    decoding = next((k for k, v in DECODING.items() if v == e.decoding), json.dumps(e.decoding))
    results = {
        "ckpt": str(e.ckpt),
        "made": {**e.made, "decoding": decoding},
        "notes": notes(e),
        "titles": {b: BENCHMARKS[b].title for b in e.names},
        "n": {b: len(e.vectors(b)[0]) for b in e.names},
        "clips": {b: e.sources[b].index.get("published", len(e.vectors(b)[0])) for b in e.names},
        "headline": {},
        "chance": {},
        "clap": {},
        "columns": {c: {} for c in columns},
    }
    for b in tqdm(e.names, desc="score", leave=False):
        results["chance"][b] = chance(b, e.vectors(b)[0], e.context(b))
        results["clap"][b] = e.zero_shot(b)
        for c in columns:
            if (c, b) in predictions:
                results["columns"][c][b] = score(b, predictions[c, b], e.context(b, spice, c))
                results["headline"][b] = next(iter(results["columns"][c][b]))
        if b == "mmau":
            for c in (c for c in columns if (c, b) in predictions):
                said = [
                    {
                        "id": r["id"],
                        "question": r["instruction"],
                        "choices": r["choices"],
                        "task": r["category"],
                        "model_prediction": r["prediction"],
                    }
                    for r in predictions[c, b]
                ]
                write_atomic(
                    e.out / c / "mmau.submission.json",
                    json.dumps(said, ensure_ascii=False, indent=1).encode(),
                )
    last = results["columns"][columns[-1]]
    results["benchmarks"] = {
        b: {m: s["value"] for m, s in last[b].items()}
        | {"n": results["n"][b], "ci95": last[b][results["headline"][b]]["ci95"]}
        for b in e.names
        if b in last
    }
    return results, predictions


def write(e, results, predictions):
    """results.json, report.md, report.html and results.png."""
    rows = {}
    for (c, b), said in predictions.items():  # each with its own score, where the headline has one
        scores = items(b, said, e.context(b, column=c)).get(results["headline"][b])
        if scores is None:
            rows[c, b] = said
        else:
            most = 10 if b.startswith("airbench") else 1  # a judge's
            rows[c, b] = [
                r if s != s else {**r, "score": float(s) / most} for r, s in zip(said, scores)
            ]
    clips = {}

    def sound(b, row):
        """(extension, bytes) of the row's clip; one pass over the shards brings all that the page shows of a benchmark."""
        if b not in clips:
            shown = {
                r["key"]
                for r in report.choose(
                    rows[[c for c, name in rows if name == b][-1], b], report.SAMPLES, b
                )
            }
            clips[b] = {
                s["key"]: (s["kind"], s["audio"])
                for s in read_source(e.sources[b], audio=True)
                if s["key"] in shown
            }
        return clips[b].get(row["key"])

    write_atomic(e.out / "report.md", report.markdown(results).encode())
    write_atomic(e.out / "report.html", report.html(results, rows, sound).encode())
    report.plot(results, e.out / "results.png")
    write_atomic(
        e.out / "results.json", json.dumps(results, indent=1, ensure_ascii=False).encode()
    )  # last: it says that all is there


def notes(e):
    return [
        f"ACC and mAP: text matching with {' and '.join('CLAP’s text tower' if m == 'clap' else m for m in e.match)}, label template {e.template!r}.",
        "Chance: an answer that did not listen. Intervals: 95 % bootstrap over items; CIDEr-D's document frequencies are those of the whole set.",
        *(
            [
                "MMAU's labels are those of the file that the shards were built from; v05.15.25 differs from the paper's."
            ]
            if any("mmau" in b for b in e.names)
            else []
        ),
        *(
            ["ClothoAQA: the paper's sizes fit the majority rule."]
            if "clothoaqa" in e.names
            else []
        ),
        *([] if e.tags else ["Without the released code's tags."]),
    ]


def find_spice(e, required):
    """scoring.captions.Spice where a benchmark wants it, or why there is none. Raises SpiceMissing where it is required."""
    if not any(BENCHMARKS[b].metrics is captions for b in e.names) and not required:
        return None
    try:
        return Spice()
    except SpiceMissing as missing:
        if required:
            raise
        return (
            str(missing).splitlines()[0]
            + ": "
            + "; ".join(line.strip() for line in str(missing).splitlines()[1:])
        )


def compare(e, a, b, spice):
    """Prints, for every benchmark and metric, whether `b` is better than `a`: columns, or two files of predictions."""
    if Path(a).is_file() and Path(b).is_file():
        names = [Path(a).name.split(".")[0]]
        load, column = lambda which, _: whole_lines(Path(which)), lambda which: None
        if names[0] not in e.names:
            raise DataError(
                f"{a}: {names[0]!r} is none of the benchmarks {', '.join(e.names)}, and the file's name should begin with one"
            )
    else:
        known_columns([a, b])
        names, load, column = (
            e.names,
            lambda which, name: e.predict(name, which),
            lambda which: which,
        )
    lines = [
        f"| benchmark | metric | n | {Path(b).name} - {Path(a).name} | 95 % | p |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for name in names:
        try:
            rows = [list(side) for side in zip(*report.compare(load(a, name), load(b, name)))]
        except ValueError as error:
            raise DataError(f"{name}: {error}") from error
        for metric, r in compared(
            name, *rows, e.context(name, spice, column(a)), e.context(name, spice, column(b))
        ).items():
            lines.append(
                f"| {BENCHMARKS[name].title} | {metric} | "
                + (
                    f"– | no test: {r} | | |"
                    if isinstance(r, str)
                    else f"{r['n']:,} | {r['difference']:+.4f} | [{r['ci95'][0]:+.4f}, {r['ci95'][1]:+.4f}] | {r['p']:.3g} |"
                )
            )
    if e.rank == 0:
        print("\n".join(lines))


def known_columns(columns):
    unknown = [c for c in columns if c not in ("text", *BRIDGES)]
    if unknown:
        raise DataError(
            f"no {', '.join(unknown)} (columns, or files that exist); there are: text, {', '.join(BRIDGES)}"
        )


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", default="out/tiny/model", help="a model as train.py writes it")
    parser.add_argument(
        "--shards", default="data/tiny/test", help="folder with a folder of shards per benchmark"
    )
    parser.add_argument("--bench", default="all", help="comma-separated, or all that are found")
    parser.add_argument(
        "--columns",
        help=f"text, and bridges (santa.BRIDGES), comma-separated, the last is the headline; default: {','.join(COLUMNS)}",
    )
    parser.add_argument("--out", help="default: eval/ beside the checkpoint")
    parser.add_argument(
        "--crop",
        default="center",
        choices=("center", "random", "windows"),
        help="of clips longer than CLAP's window",
    )
    parser.add_argument(
        "--tags",
        default="on",
        choices=("on", "off"),
        help="the released code's dataset tags, where the template has {tag}",
    )
    parser.add_argument(
        "--decoding",
        default="greedy",
        help=f"{', '.join(DECODING)}, or keywords of generate: '{{\"num_beams\": 8}}'",
    )
    parser.add_argument(
        "--match",
        default="clap",
        help="text-matching encoders, comma-separated: clap, a model of transformers, https://ENDPOINT#MODEL",
    )
    parser.add_argument(
        "--label-template", default="sound of {}", help="what text matching encodes for a label"
    )
    parser.add_argument(
        "--judge",
        metavar="NAME",
        help="whose verdicts on AIR-Bench Chat count, where several have judged (scoring/judge.py)",
    )
    parser.add_argument(
        "--require",
        choices=("spice",),
        help="stop at once where SPICE cannot run, instead of leaving it out",
    )
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument(
        "--score", action="store_true", help="only score the stored predictions again"
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="paired tests between two columns, or two files of predictions",
    )
    parser.add_argument(
        "--ablate",
        nargs="+",
        metavar="NAME[=VALUE,...]",
        help="table4, lambda, tau, L, M, K, sigma, lora_rank, lora_alpha, layers, figure3",
    )
    parser.add_argument(
        "--memory",
        help="--ablate M, K: shards of texts with vectors, for memories larger than the model's own",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def main(argv=None):
    args = arguments().parse_args(argv)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        if args.device.startswith("cuda"):
            args.device = f"cuda:{os.environ['LOCAL_RANK']}"
        # What the processes exchange are files and barriers, and one may wait for days while another trains an ablation.
        dist.init_process_group("gloo", timeout=timedelta(days=7))
    out, columns = (
        Path(args.out) if args.out else Path(args.ckpt).parent / "eval",
        args.columns.split(",") if args.columns else list(COLUMNS),
    )
    known_columns(columns)
    e = Evaluation(
        args.ckpt,
        args.shards,
        out,
        args.bench,
        args.crop,
        args.tags == "on",
        args.decoding,
        args.match,
        args.label_template,
        args.judge,
        args.batch,
        args.device,
    )
    if not args.columns and not (Path(args.ckpt) / "santa.safetensors").exists():
        columns = ["none"]  # MATS-Audio needs no bridge, and has no memory
    spice = find_spice(e, args.require)
    if args.ablate:
        from experiments import ablate

        ablate.run(e, args.ablate, args.memory)
    elif args.compare:
        compare(e, *args.compare, spice)
    else:
        verdicts = [
            sha256(p)
            for c in columns
            for b in e.names
            if (p := judge.verdicts_path(e.stored(b, c))).exists()
        ]
        key = digest(
            columns,
            e.key,
            e.match,
            e.template,
            list(e.labels.items()),
            args.judge,
            verdicts,
            isinstance(spice, Spice),
        )
        if (
            (out / "results.json").exists()
            and not args.score
            and json.loads((out / "results.json").read_text()).get("key") == key
        ):
            if e.rank == 0:
                print(
                    (out / "report.md").read_text().split("\n\n")[1],
                    f"\n\nnothing has changed since this was written to {out}",
                )
        else:
            results, predictions = evaluate(e, columns, spice, args.score)
            if e.rank == 0:
                write(e, {"key": key} | results, predictions)
                print(report.markdown(results).split("\n\n")[1])
                print(f"\nreport, plot and predictions: {out} (open report.html)")
                failed = [
                    s["SPICE"]["why"]
                    for column in results["columns"].values()
                    for s in column.values()
                    if s.get("SPICE", {}).get("why")
                ]
                if args.require and failed:
                    sys.exit(f"eval.py: --require spice: {failed[0]}")
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    try:
        main()
    except (DataError, SpiceMissing) as e:
        sys.exit(f"eval.py: {e}")
