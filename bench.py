"""What is fast here and by how much: each part against the obvious way, in the same process, medians of several runs.

    python bench.py                      all parts
    python bench.py text kmeans --json   some of them, as JSON

Random weights of the true sizes; the sentences are the synthetic world's.
"""
import argparse
import contextlib
import json
import platform
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import webdataset as wds
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from clap import CLAP, CLAPConfig
from data import Batches, Plan, Source, Template, collate, loader
from mats import MATS, MATSConfig
from santa import add_noise, kmeans
from shards import tiny
from writer import ShardWriter


def clock(*ways, repeats=3):
    """Median seconds of each way, taking turns so that a drift of the machine hits all alike; one unmeasured turn first."""
    times = [[] for _ in ways]
    for turn in range(repeats + 1):
        for way, log in zip(ways, times):
            start = time.perf_counter()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            log.append(time.perf_counter() - start)
    return [statistics.median(t[1:]) for t in times]


def captions(n):
    return [t["text"] for t in tiny.told(7, n // 5 + 1, "val")][:n]


def true_size_clap(device):
    torch.manual_seed(0)
    return CLAP(CLAPConfig(text={"vocab_size": 50257}), tiny.make_tokenizer(captions(500))).freeze().to(device)


def text(device):
    """Text encoding: sorted, padded to the batch's longest, against one call a text padded to 77 as msclap does."""
    clap, texts = true_size_clap(device), captions(64)

    def one_by_one():
        with torch.no_grad():
            for t in texts:
                ids, mask = clap.tokenize([t])
                wide = torch.zeros(1, 77, dtype=ids.dtype, device=device)
                wide[:, :ids.shape[1]], padded = ids, torch.nn.functional.pad(mask, (0, 77 - mask.shape[1]))
                clap.text_features(wide, padded)
    ours, obvious = clock(lambda: clap.encode_text(texts), one_by_one)
    return {"unit": "texts/s", "ours": len(texts) / ours, "obvious": len(texts) / obvious}


def audio(device):
    """Audio encoding of 8 clips of 7 s against msclap's own package, one batch each."""
    sys.path.append(str(Path(__file__).parent / "tests"))
    import oracle
    try:
        theirs = oracle.msclap()[1].to(device)
    except ImportError:
        return {"skipped": f"needs msclap's package: {oracle.INSTALL}"}
    clap = true_size_clap(device)
    waves = 0.1 * torch.randn(8, clap.samples, device=device, generator=torch.Generator(device).manual_seed(0))

    def msclap():
        with torch.no_grad():
            theirs.audio_encoder(waves)
    ours, obvious = clock(lambda: clap.encode_audio(waves), msclap)
    return {"unit": "clips/s", "ours": len(waves) / ours, "obvious": len(waves) / obvious}


def reading(device):
    """Reading shards with vectors in one process: to shuffled, tokenised batches of 128 of similar length; against WebDataset's
    pipeline with a shuffle buffer and one tokeniser call a sample."""
    tokenizer, n = tiny.make_tokenizer(captions(500)), 5 * 4096
    template = Template("{audio}{instruction}", tokenizer)
    told = [{**t, "source": "told", "id": str(i)} for i, t in enumerate(tiny.told(9, 200, "val"))]
    with tempfile.TemporaryDirectory() as root:
        with ShardWriter(root, vectors={"dim": 1024, "side": "text"}) as writer:
            for i in range(n):
                writer.write(told[i % len(told)], vector=torch.randn(1024, generator=torch.Generator().manual_seed(i)))

        def ours():
            batches = iter(Batches(Plan([Source(root)], [1], 128, lanes=5), template))
            for _ in range(n // 128):
                next(batches)

        def obvious():
            stream = wds.WebDataset([str(p) for p in sorted(Path(root).glob("*.tar"))], shardshuffle=False).shuffle(1000).decode()
            rows = []
            for sample in stream:
                rows.append({**sample["json"], "vector": sample["npy"].astype("float32")})
                if len(rows) == 128:
                    collate(rows, [template.encode([r])[0] for r in rows], tokenizer.eos_token_id)
                    rows = []
        a, b = clock(ours, obvious, repeats=1)
    return {"unit": "samples/s", "ours": n / a, "obvious": n / b}


def steps(device):
    """(model, z, batch, texts): a training step of MATS-GPT2 at true size, cut to a batch that a CPU can bear."""
    torch.manual_seed(0)
    tokenizer = tiny.make_tokenizer(captions(500))
    llm = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0))
    model = MATS(MATSConfig(), llm, tokenizer).to(device).train()
    samples = list(tiny.told(8, 2, "val"))[:8]
    batch = collate(samples, model.template.encode(samples), tokenizer.eos_token_id)
    return model, torch.randn(len(samples), 1024, device=device), batch["ids"].to(device), batch["answer"].to(device), batch["text"]


def logits(device):
    """A training step (forward and backward) with logits on answer tokens alone, against logits everywhere."""
    model, z, ids, answer, _ = steps(device)

    def everywhere():
        labels = torch.cat([torch.full((len(ids), model.config.prefix), -100, device=device), ids.masked_fill(~answer, -100)], 1)
        model.llm(inputs_embeds=model.inputs(z, ids), labels=labels).loss.backward()
    ours, obvious = clock(lambda: model(z, ids, answer).backward(), everywhere)
    return {"unit": "samples/s", "ours": len(z) / ours, "obvious": len(z) / obvious}


def cached(device):
    """A training step with the CLAP vectors at hand, against encoding the texts live."""
    (model, z, ids, answer, texts), clap = steps(device), true_size_clap(device)
    ours, obvious = clock(lambda: model(add_noise(z, 0.015), ids, answer).backward(),
                          lambda: model(add_noise(clap.encode_text(texts), 0.015), ids, answer).backward())
    return {"unit": "samples/s", "ours": len(z) / ours, "obvious": len(z) / obvious}


def sized(device, size):
    """MATS with random weights of a true size: gpt2, or llama (7 B, in bfloat16; give it a GPU). -> (model, samples of a batch)."""
    torch.manual_seed(0)
    tokenizer = tiny.make_tokenizer(captions(500))
    if size == "llama":
        with torch.device(device):
            llm = LlamaForCausalLM._from_config(LlamaConfig(vocab_size=32000), dtype=torch.bfloat16)
        config = MATSConfig(llm_dtype="bfloat16")
    else:
        llm, config = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0)), MATSConfig()
    n = {"gpt2": 128, "llama": 12}[size] if device.startswith("cuda") else 8
    samples = [{**t, "source": "told", "id": str(i)} for i, t in enumerate(tiny.told(8, 60, "val"))]
    return MATS(config, llm, tokenizer).to(device).train(), samples, n


def peak(device):
    """The rate of large matrix products, bfloat16 on a GPU, float32 on a CPU: what a share of the peak below refers to."""
    n, dtype = (8192, torch.bfloat16) if device.startswith("cuda") else (1536, torch.float32)
    x, y = (torch.randn(n, n, device=device, dtype=dtype) for _ in "xy")
    seconds, = clock(lambda: x @ y, repeats=7)
    return 2 * n ** 3 / seconds


def profile(device, size="gpt2"):
    """One training step in its parts: seconds, and TFLOP/s of the whole as a share of the rate of large matrix products."""
    model, samples, n = sized(device, size)
    batch = collate(samples[:n], model.template.encode(samples[:n]), model.tokenizer.eos_token_id)
    ids, answer, z = batch["ids"].to(device), batch["answer"].to(device), torch.randn(n, 1024, device=device)
    params = list(model.trainable().values())
    optimizer = torch.optim.AdamW(params, lr=1e-5, fused=device.startswith("cuda"))
    amp = torch.autocast("cuda", torch.bfloat16) if device.startswith("cuda") else contextlib.nullcontext()
    kept = {}

    def mapper():
        with amp:
            kept["prefix"] = model.mapper(add_noise(z, 0.015))

    def forward():
        with amp:
            kept["loss"] = model(z, ids, answer)

    def update():
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    steps = [("mapper forward", mapper), ("whole forward", forward), ("backward", lambda: kept["loss"].backward()), ("optimiser", update)]
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    times = clock(*(f for _, f in steps), repeats=5)
    whole, flops = sum(times[1:]), model.flops(ids.shape[1]) * n
    result = {"unit": "samples/s", "ours": n / whole, "parts, s": {name: round(t, 4) for (name, _), t in zip(steps, times)},
              "positions of text": ids.shape[1], "TFLOP/s": round(flops / whole / 1e12, 3), "share of peak": round(flops / whole / peak(device), 3)}
    memory = torch.cuda.max_memory_allocated() if device.startswith("cuda") else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return result | {"memory, GB": round(memory / 1e9, 1)}


def llama(device):
    """The same of MATS-LLaMA-7B, micro-batch 12."""
    if not device.startswith("cuda"):
        return {"skipped": "7 billion weights want a GPU"}
    return profile(device, "llama")


def trainer(device):
    """Training MATS-GPT2, data included, against the obvious way: Hugging Face's Trainer and peft, CLAP's text tower live and padded to 77, logits
    everywhere, batches as they come."""
    from transformers import Trainer, TrainerCallback, TrainingArguments
    model, samples, n = sized(device, "gpt2")
    clap, steps = true_size_clap(device), 12 if device.startswith("cuda") else 3
    amp = torch.autocast("cuda", torch.bfloat16) if device.startswith("cuda") else contextlib.nullcontext()

    class Obvious(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mats = model
            self.clap = [clap]                              # in a list: not to be trained

        def forward(self, texts, mask, ids, labels):
            with torch.no_grad():
                z = self.clap[0].text_features(texts, mask)
            return self.mats.llm(inputs_embeds=self.mats.inputs(add_noise(z, 0.015), ids), labels=labels)

    def gather(rows):
        texts, mask = clap.tokenize([r["text"] for r in rows])
        wide = lambda x: torch.nn.functional.pad(x, (0, 77 - x.shape[1])).cpu()
        batch = collate(rows, model.template.encode(rows), model.tokenizer.eos_token_id, multiple=1)
        labels = torch.cat([torch.full((len(rows), model.config.prefix), -100), batch["ids"].masked_fill(~batch["answer"], -100)], 1)
        return {"texts": wide(texts), "mask": wide(mask), "ids": batch["ids"], "labels": labels}
    stamps = []

    class Stamp(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            stamps.append(time.perf_counter())
    rows = samples * (1 + (steps + 1) * n // len(samples))
    with tempfile.TemporaryDirectory() as root:
        args = TrainingArguments(root, per_device_train_batch_size=n, max_steps=steps + 1, report_to=[], use_cpu=not device.startswith("cuda"),
                                 bf16=device.startswith("cuda"), remove_unused_columns=False, save_strategy="no", logging_strategy="no", disable_tqdm=True)
        Trainer(Obvious(), args, train_dataset=rows, data_collator=gather, callbacks=[Stamp()]).train()
        obvious = (stamps[-1] - stamps[0]) / steps
        with ShardWriter(f"{root}/shards", vectors={"dim": 1024, "side": "text"}) as writer:
            for i, row in enumerate(rows):
                writer.write(row, vector=torch.randn(1024, generator=torch.Generator().manual_seed(i)))
        batches = iter(loader(Batches(Plan([Source(f"{root}/shards")], [1], n), model.template), 1))
        optimizer = torch.optim.AdamW(model.trainable().values(), lr=1e-5, fused=device.startswith("cuda"))

        def ours():
            for _ in range(steps):
                batch = next(batches)
                with amp:
                    loss = model(add_noise(batch["z"].to(device), 0.015), batch["ids"].to(device), batch["answer"].to(device))
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        seconds, = clock(ours, repeats=1)
    return {"unit": "samples/s", "ours": n * steps / seconds, "obvious": n / obvious}


def generation(device):
    """Greedy answers of 20 tokens to 16 questions in one batch, against one by one."""
    model, samples, _ = sized(device, "gpt2")
    z, asked = torch.randn(16, 1024, device=device), [s["instruction"] for s in samples[:16]]
    how = dict(max_new_tokens=20, min_new_tokens=20)
    ours, obvious = clock(lambda: model.generate(z, asked, **how), lambda: [model.generate(z[i:i + 1], asked[i:i + 1], **how) for i in range(16)], repeats=1)
    return {"unit": "answers/s", "ours": 16 / ours, "obvious": 16 / obvious}


def against_sklearn(n, d, k, device, repeats):
    from sklearn.cluster import KMeans
    draw = lambda seed, *shape: torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    x = draw(0, n, d) + 2 * draw(1, k, d)[torch.arange(n) % k] + draw(2, d)
    y = x.to(device)
    ours, obvious = clock(lambda: kmeans(y, k, 10, torch.Generator().manual_seed(3)),
                          lambda: KMeans(k, n_init=1, max_iter=10, tol=0, random_state=3).fit(x.numpy()), repeats=repeats)
    return {"unit": "s", "ours": ours, "obvious": obvious}


def kmeans_memory(device):
    """k-means of Santa's memory (5172 x 1024, K = 100), greedy k-means++ and up to 10 Lloyd steps, against scikit-learn's."""
    return against_sklearn(5172, 1024, 100, device, 3)


def kmeans_large(device):
    """The same of 100,000 x 256, K = 1000."""
    return against_sklearn(100_000, 256, 1000, device, 1)


PARTS = {"reading": reading, "text": text, "audio": audio, "profile": profile, "llama": llama, "logits": logits, "cached": cached, "trainer": trainer,
         "generation": generation, "kmeans": kmeans_memory, "kmeans_large": kmeans_large}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if set(args.parts) - set(PARTS):
        sys.exit(f"bench.py: unknown part {', '.join(set(args.parts) - set(PARTS))}; there are: {', '.join(PARTS)}")
    results = {}
    for name in args.parts:
        r = results[name] = PARTS[name](args.device)
        if "skipped" in r:
            print(f"{name}: {r['skipped']}", file=sys.stderr)
            continue
        if "obvious" in r:
            r["times"] = r["obvious"] / r["ours"] if r["unit"] == "s" else r["ours"] / r["obvious"]
        if not args.json:
            more = f", obvious {r['obvious']:.3g} {r['unit']}: {r['times']:.2f}x" if "obvious" in r else "".join(
                f"\n    {k}: {v}" for k, v in r.items() if k not in ("unit", "ours"))
            print(f"{PARTS[name].__doc__}\n    ours {r['ours']:.3g} {r['unit']}{more}", flush=True)
    if args.json:
        machine = torch.cuda.get_device_name() if args.device.startswith("cuda") else platform.processor()
        print(json.dumps({"device": args.device, "threads": torch.get_num_threads(), "machine": machine, **results}))


if __name__ == "__main__":
    main()
