"""What is fast here and by how much: each part against the obvious way, in one process, on the machine that this is started on.

    python -m experiments.bench                      all parts that this machine can bear
    python -m experiments.bench training kmeans      some of them
    python -m experiments.bench --json               one JSON object

Random weights of the true sizes, and samples whose lengths are those of real annotations (KINDS). A time is the median of several after one
that does not count; ± is half of their range, as a share of it. A rate of arithmetic is compared with that of large matrix products, measured here.
"""

import argparse
import contextlib
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import weakref
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as train.py

import numpy as np
import torch
import torch.nn.functional as F
import webdataset as wds
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import config
from audio import load_audio
from clap import CLAP, CLAPConfig
from data import Batches, Plan, Source, collate, loader
from experiments.bench import oracle
from mats import MATS, MATSConfig, Template
from santa import Santa, add_noise, kmeans
from shards.tiny import world as tiny
from shards.writer import ShardWriter
from train import PEAK, TrainConfig

ROOT = Path(__file__).parents[2]
SMALL = {"n_embd": 256, "n_layer": 4, "n_head": 4}
# Tokens of instructions and answers (mean, standard deviation), counted with GPT-2's tokenizer on AudioCaps, MusicCaps, MusicQA and ClothoAQA,
# labels as FSD50K's; the shares are those of the released mixture's weights.
KINDS = {
    "cls": (0.33, 7, 5, 3),
    "cap": (0.20, 5, 10, 5),
    "music_cap": (0.09, 5, 60, 20),
    "open": (0.35, 9, 32, 23),
    "aqa": (0.03, 7, 1, 0),
}


class Timing(float):
    """Seconds: the median, and `spread`, half of the range as a share of it."""


def clock(*ways, repeats=3):
    """The Timing of each way, taking turns so that a drift of the machine hits all alike; one turn before that does not count."""
    times = [[] for _ in ways]
    for turn in range(repeats + 1):
        for way, log in zip(ways, times):
            start = time.perf_counter()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            log.append(time.perf_counter() - start)
    return [timing(log[1:]) for log in times]


def timing(log):
    t = Timing(statistics.median(log))
    t.spread = (max(log) - min(log)) / 2 / t
    return t


def rate(n, unit, ours, obvious=None):
    """The result of a part that does n of something in these Timings."""
    result = {"unit": unit, "ours": n / ours, "spread": ours.spread}
    return result | ({"obvious": n / obvious, "obvious spread": obvious.spread} if obvious else {})


class Machine:
    """Where and in what precision a part runs."""

    def __init__(self, device, dtype):
        self.device, self.dtype, self.cuda = device, dtype, device.startswith("cuda")
        self.amp = lambda: (
            torch.autocast(device.split(":")[0], torch.bfloat16)
            if dtype == "bfloat16"
            else contextlib.nullcontext()
        )

    def peak(self):
        """FLOP/s of large matrix products."""
        n = 8192 if self.cuda else 2048
        x, y = (
            torch.randn(n, n, device=self.device, dtype=getattr(torch, self.dtype)) for _ in "xy"
        )
        return 2 * n**3 / clock(lambda: x @ y, repeats=7)[0]

    def memory(self):
        """Bytes: the GPU's most since it was last asked, or the process's most so far."""
        if not self.cuda:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        most = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return most


# --- samples and models -----------------------------------------------------------------------------------------------


def captions(n):
    return [t["text"] for t in tiny.told(7, n // 5 + 1, "val")][:n]


def mixture(n, seed=0):
    """n samples of KINDS, their words a synthetic world's, which bench's tokenizer knows."""
    rng, texts = np.random.default_rng(seed), captions(200)
    words = [w for t in captions(40) for w in t.split()]
    kinds, shares = list(KINDS), [k[0] for k in KINDS.values()]
    say = lambda k: " ".join(words[(start := int(rng.integers(len(words) - 151))) : start + k])
    for i in range(n):
        kind = kinds[rng.choice(len(kinds), p=shares)]
        _, asked, mean, sd = KINDS[kind]
        yield {
            "text": texts[rng.integers(len(texts))],
            "instruction": say(asked),
            "answer": say(int(np.clip(rng.normal(mean, sd), 1, 150))),
            "task": kind,
            "source": kind,
            "id": str(i),
        }


def make_tokenizer():
    return tiny.make_tokenizer([t for t in captions(500) for t in (t, " " + t)])


def sized(size, machine, meta=False):
    """MATS with random weights, in training. gpt2: the true size. small: a third of its width and of its depth, mapper and CLAP too. llama: 7 B, on a GPU
    or as `meta`; on a CPU its shape at a fourth of the width and of the depth, with a mapper that does as little of the work as there."""
    torch.manual_seed(0)
    paper = config.load(TrainConfig, ["mats_llama" if size == "llama" else "mats_gpt2"])
    keep = {"llm_dtype": paper.llm_dtype if machine.dtype == "bfloat16" else "float32"}
    with torch.device("meta" if meta else machine.device):
        if size == "gpt2":
            llm = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0))
        elif size == "small":
            llm = GPT2LMHeadModel(GPT2Config(**SMALL, bos_token_id=0, eos_token_id=0))
            keep |= {"width": 256, "layers": 3, "heads": 4}
        elif machine.cuda or meta:
            llm = LlamaForCausalLM._from_config(
                LlamaConfig(vocab_size=32000), dtype=getattr(torch, keep["llm_dtype"])
            )
        else:
            llm = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=32000,
                    hidden_size=1024,
                    intermediate_size=2752,
                    num_hidden_layers=8,
                    num_attention_heads=8,
                )
            )
            keep |= {"width": 256, "layers": 2}
        return (
            MATS(MATSConfig(**keep), llm, make_tokenizer())
            .to("meta" if meta else machine.device)
            .train()
        )


def micro_batch(size, machine):
    return (
        {"gpt2": 128, "llama": 12, "small": 128}[size]
        if machine.cuda
        else 32
        if size == "small"
        else 16
    )


def batches_of(model, samples, n, similar=True, multiple=8):
    """The samples in batches of n, of similar length as the plan cuts them, or as they come; z at random."""
    tokens = model.template.encode(samples)
    rows = np.arange(len(samples)).reshape(-1, n)
    if similar:
        rows = Plan([None], [1], n).cut((0, 0, 0, len(rows)), [len(ids) for ids, _ in tokens])
    made = [
        collate(
            [samples[i] for i in r], [tokens[i] for i in r], model.tokenizer.eos_token_id, multiple
        )
        for r in rows
    ]
    return [b | {"z": torch.randn(n, model.config.dim)} for b in made]


def true_size_clap(machine, **text):
    torch.manual_seed(0)
    return (
        CLAP(CLAPConfig(text={"vocab_size": 50257, **text}), make_tokenizer())
        .freeze()
        .to(machine.device)
    )


def fake(model):
    """The model with its weights replaced by fake ones, under FakeTensorMode: shapes without values, of any size."""
    for module in model.modules():
        for kind in (module._parameters, module._buffers):
            for name, old in kind.items():
                if old is not None:
                    new = torch.empty(old.shape, dtype=old.dtype)
                    kind[name] = (
                        torch.nn.Parameter(new, old.requires_grad)
                        if kind is module._parameters
                        else new
                    )
    return model


# --- data and CLAP ----------------------------------------------------------------------------------------------------


def reading(machine):
    """Reading shards with vectors in one process: to shuffled, tokenised batches of 128 of similar length; against WebDataset's
    pipeline with a shuffle buffer and one tokeniser call a sample."""
    tokenizer, n = make_tokenizer(), 5 * 4096
    template = Template("{audio}{instruction}", tokenizer)
    with tempfile.TemporaryDirectory() as root:
        with ShardWriter(root, vectors={"dim": 1024, "side": "text"}) as writer:
            for i, sample in enumerate(mixture(n)):
                writer.write(
                    sample, vector=torch.randn(1024, generator=torch.Generator().manual_seed(i))
                )
        stream = lambda: Batches(Plan([Source(root)], [1], 128, lanes=5), template)

        def take(batches):
            for _ in range(n // 128):
                next(batches)

        def obvious():
            rows = []
            for sample in (
                wds.WebDataset(
                    [str(p) for p in sorted(Path(root).glob("*.tar"))], shardshuffle=False
                )
                .shuffle(1000)
                .decode()
            ):
                rows.append({**sample["json"], "vector": sample["npy"].astype("float32")})
                if len(rows) == 128:
                    collate(rows, [template.encode([r])[0] for r in rows], tokenizer.eos_token_id)
                    rows = []

        worker = iter(loader(stream(), 1))
        ours, theirs, other = clock(lambda: take(iter(stream())), obvious, lambda: take(worker))
        del worker
    return rate(n, "samples/s", ours, theirs) | {
        "from a reading process, samples/s": round(n / other)
    }


def text(machine):
    """Text encoding: sorted, padded to the batch's longest, against one call a text padded to 77 as msclap does."""
    clap, texts = true_size_clap(machine), captions(64)

    def one_by_one():
        with torch.no_grad():
            for t in texts:
                clap.text_features(*padded_to_77(clap, [t]))

    return rate(len(texts), "texts/s", *clock(lambda: clap.encode_text(texts), one_by_one))


def padded_to_77(clap, texts):
    return [F.pad(x, (0, 77 - x.shape[1])) for x in clap.tokenize(texts)]


def audio(machine):
    """Audio encoding of 8 clips of 7 s against msclap's own package, one batch each."""
    try:
        theirs = oracle.msclap()[1].to(machine.device)
    except ImportError:
        return {"skipped": f"needs msclap's package: {oracle.INSTALL}"}
    clap = true_size_clap(machine)
    waves = 0.1 * torch.randn(8, clap.samples, device=machine.device)

    def msclap():
        with torch.no_grad():
            theirs.audio_encoder(waves)

    return rate(len(waves), "clips/s", *clock(lambda: clap.encode_audio(waves), msclap))


# --- training ---------------------------------------------------------------------------------------------------------


def step(machine, size="gpt2"):
    """One training step of MATS-GPT2 in its parts, on a batch of mean length."""
    model, n = sized(size, machine), micro_batch(size, machine)
    made = batches_of(model, list(mixture(32 * n)), n)
    batch = sorted(made, key=lambda b: b["ids"].shape[1])[len(made) // 2]
    z, ids, answer = (batch[k].to(machine.device) for k in ("z", "ids", "answer"))
    optimizer, kept = torch.optim.AdamW(model.trainable().values(), lr=1e-5, fused=True), {}
    if machine.cuda:
        model.compile()
        torch._dynamo.mark_dynamic(ids, 1)
        torch._dynamo.mark_dynamic(answer, 0)

    def mapper():
        with machine.amp():
            model.mapper(add_noise(z, 0.015))

    def forward():
        with machine.amp():
            kept["loss"] = model(add_noise(z, 0.015), ids, answer)

    def update():
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def whole():
        forward()
        kept["loss"].backward()
        update()

    machine.memory()
    (t,) = clock(whole, repeats=5)
    memory = machine.memory()
    parts = {
        "mapper, forward": mapper,
        "all, forward": forward,
        "backward": lambda: kept["loss"].backward(),
        "optimiser": update,
    }
    times = dict(zip(parts, clock(*parts.values(), repeats=5)))
    flop = model.flops(ids.shape[1], len(answer) / n) * n
    return rate(n, "samples/s", t) | {
        "batch": f"{n} samples of {ids.shape[1]} positions of text and {model.config.prefix} of prefix",
        "parts, s": {k: round(v, 4) for k, v in times.items()},
        "TFLOP/s": round(flop / t / 1e12, 3),
        "share of the rate of matrix products": round(flop / t / machine.peak(), 3),
        "peak memory, GB": round(memory / 1e9, 1),
    }


def step_llama(machine):
    """The same of MATS-LLaMA-7B."""
    if not machine.cuda:
        return {"skipped": "7 billion weights want a GPU"}
    return step(machine, "llama")


def training(machine, size="gpt2"):
    """Training MATS-GPT2, data included, against Hugging Face's Trainer and peft with CLAP's text tower live and padded to 77, logits everywhere
    and batches as they come; and one thing after the other changed in between."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    model, clap, n = (
        sized(size, machine),
        true_size_clap(machine, **SMALL if size == "small" else {}),
        micro_batch(size, machine),
    )
    steps, rounds = (12, 4) if machine.cuda else (4, 3)  # of which the first does not count
    samples, optimizer = (
        list(mixture(steps * n)),
        torch.optim.AdamW(model.trainable().values(), lr=1e-5, fused=True),
    )
    frozen = [p for p in model.llm.parameters() if not p.requires_grad]
    as_configured = [p.data for p in frozen]
    in_float32 = (
        as_configured if size == "llama" else [p.data.float() for p in frozen]
    )  # from_pretrained's dtype of GPT-2; 7 B come in 16 bits

    def weights(kind):
        for p, data in zip(frozen, kind):
            p.data = data

    def everywhere(z, ids, answer):
        """The obvious loss: logits and cross-entropy at all positions."""
        labels = (
            torch.full_like(ids, -100)
            .flatten()
            .index_copy(0, answer, ids.flatten()[answer])
            .view_as(ids)
        )
        return model.llm(
            inputs_embeds=model.inputs(z, ids),
            labels=F.pad(labels, (model.config.prefix, 0), value=-100),
        ).loss

    def train_on(batches, loss):
        for batch in batches:
            ids, answer = (
                batch[k].to(machine.device, non_blocking=True) for k in ("ids", "answer")
            )
            if machine.cuda:
                torch._dynamo.mark_dynamic(ids, 1)
                torch._dynamo.mark_dynamic(answer, 0)
            with machine.amp():
                value = loss(
                    add_noise(batch["z"].to(machine.device, non_blocking=True), 0.015), ids, answer
                )
            value.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    class Obvious(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mats = model

        def forward(self, texts, mask, ids, answer):
            with torch.no_grad():
                z = clap.text_features(texts, mask)
            return {"loss": everywhere(add_noise(z, 0.015), ids, answer)}

    def gather(rows):
        batch = collate(rows, model.template.encode(rows), model.tokenizer.eos_token_id, multiple=1)
        texts, mask = (x.cpu() for x in padded_to_77(clap, [r["text"] for r in rows]))
        return {"texts": texts, "mask": mask, "ids": batch["ids"], "answer": batch["answer"]}

    with tempfile.TemporaryDirectory() as root:
        with ShardWriter(f"{root}/shards", vectors={"dim": 1024, "side": "text"}) as writer:
            for sample in samples:
                writer.write(sample, vector=torch.randn(1024))
        stream = iter(
            loader(
                Batches(Plan([Source(f"{root}/shards")], [1], n), model.template),
                1,
                pin=machine.cuda,
            )
        )
        as_they_come, similar = (
            batches_of(model, samples, n, False, 1),
            batches_of(model, samples, n),
        )
        ways = {
            "our loop, CLAP's vectors cached": (in_float32, everywhere, lambda: as_they_come),
            "logits of answers alone": (in_float32, model.forward, lambda: as_they_come),
            "batches of similar length": (in_float32, model.forward, lambda: similar),
            "frozen weights as configured": (as_configured, model.forward, lambda: similar),
        }
        if machine.cuda:
            model.compile()
            ways["compiled"] = (as_configured, model, lambda: similar)
        ways["read from shards"] = (
            as_configured,
            model,
            lambda: (next(stream) for _ in range(steps)),
        )
        log = {name: [] for name in ("Trainer", *ways)}

        class Turns(TrainerCallback):
            """Each way has its turn between `steps` steps of the Trainer, so that a drift of the machine hits all alike."""

            def start(self):
                if machine.cuda:
                    torch.cuda.synchronize()
                self.since = time.perf_counter()

            def stop(self, name):
                if machine.cuda:
                    torch.cuda.synchronize()
                log[name].append(time.perf_counter() - self.since)

            def on_train_begin(self, args, state, control, **kwargs):
                weights(in_float32)
                self.start()

            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step % steps == 0:
                    self.stop("Trainer")
                    for name, (kind, loss, batches) in ways.items():
                        weights(kind)
                        self.start()
                        train_on(batches(), loss)
                        self.stop(name)
                    self.on_train_begin(args, state, control)

        args = TrainingArguments(
            root,
            per_device_train_batch_size=n,
            max_steps=steps * rounds,
            report_to=[],
            use_cpu=not machine.cuda,
            bf16=machine.dtype == "bfloat16",
            remove_unused_columns=False,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        args._n_gpu = min(1, args.n_gpu)  # or the Trainer spreads one process over all GPUs
        with contextlib.redirect_stdout(sys.stderr):
            Trainer(
                Obvious(), args, train_dataset=samples, data_collator=gather, callbacks=[Turns()]
            ).train()
        del stream
    times = {name: timing(seconds[1:]) for name, seconds in log.items()}
    return rate(n * steps, "samples/s", times["read from shards"], times["Trainer"]) | {
        "one after the other, samples/s": {k: round(n * steps / t, 2) for k, t in times.items()}
    }


def training_small(machine):
    """The same at a third of the width and of the depth, where logits weigh more."""
    return training(machine, "small")


def training_llama(machine):
    """The same of MATS-LLaMA: 7 B on a GPU; on a CPU its shape at a fourth of the width and the depth."""
    return training(machine, "llama")


def scaling(machine):
    """`torchrun train.py` on two processes, each with a batch of its own (weak scaling), against two runs of one process at the same time, which know
    nothing of each other; one thread a process on a CPU."""
    gpus = torch.cuda.device_count() if machine.cuda else 0
    if gpus == 1 or not gpus and (os.cpu_count() or 1) < 2:
        return {"skipped": "needs two GPUs, or two cores and --device=cpu"}
    width, n, steps = (768, 64, 200) if gpus else (256, 16, 8)
    with tempfile.TemporaryDirectory() as root:
        torch.manual_seed(0)
        GPT2LMHeadModel(
            GPT2Config(n_embd=width, n_layer=6, n_head=8, bos_token_id=0, eos_token_id=0)
        ).save_pretrained(f"{root}/llm")
        make_tokenizer().save_pretrained(f"{root}/llm")
        with ShardWriter(f"{root}/train", vectors={"dim": 1024, "side": "text"}) as writer:
            for sample in mixture(4096):
                writer.write(sample, vector=torch.randn(1024))

        def run(*runs):
            """samples/s of runs at the same time, each of so many ranks; without their first quarter, in which they get under way."""
            started = []
            for i, ranks in enumerate(runs):
                argv = [
                    sys.executable,
                    "-m",
                    "torch.distributed.run",
                    "--standalone",
                    f"--nproc_per_node={ranks}",
                    "train.py",
                    "mats_gpt2",
                    "--mixture={}",
                    "--fresh",
                    f"--train={root}/train",
                    f"--llm={root}/llm",
                    f"--out={root}/{i}",
                    f"--width={width}",
                    "--memory=0",
                    f"--device={machine.device}",
                    f"--dtype={machine.dtype}",
                    f"--compile={bool(gpus)}",
                    "--workers=1",
                    "--together=2",
                    f"--micro_batch={n}",
                    f"--batch_size={4 * n * ranks}",
                    f"--steps={steps}",
                    f"--log_every={steps // 4}",
                    f"--save_every={steps}",
                ]
                env = {**os.environ, "OMP_NUM_THREADS": "1"} | (
                    {
                        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(
                            ","
                        )[i]
                    }
                    if gpus and len(runs) > 1
                    else {}
                )
                started.append(
                    subprocess.Popen(
                        argv,
                        cwd=ROOT,
                        env=env,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.PIPE,
                        text=True,
                    )
                )
            rates = []
            for i, process in enumerate(started):
                said = process.communicate()[1]
                if process.returncode:
                    sys.exit(f"bench.py: scaling: train.py failed: {said[-2000:]}")
                lines = [
                    json.loads(line)["samples_per_s"]
                    for line in Path(f"{root}/{i}/log.jsonl").read_text().splitlines()
                ][1:]
                rates.append(len(lines) / sum(1 / r for r in lines))
            return sum(rates)

        alone, apart, both = map(
            max, zip(*[(run(1), run(1, 1), run(2)) for _ in range(2)])
        )  # what else the machine does only slows them
    return {
        "unit": "samples/s",
        "two processes": round(both, 1),
        "two runs at the same time": round(apart, 1),
        "one run": round(alone, 1),
        "efficiency against two runs": round(both / apart, 3),
        "efficiency against one": round(both / 2 / alone, 3),
    }


# --- without a device: how much memory, how much time -----------------------------------------------------------------


class Living(TorchDispatchMode):
    """Bytes of all storages that live, and the most there have been."""

    def __init__(self):
        super().__init__()
        self.now, self.most, self.known = 0, 0, set()

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        out = f(*args, **kwargs or {})
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and (s := t.untyped_storage())._cdata not in self.known:
                self.known.add(s._cdata)
                self.now += s.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(s, self.gone, s._cdata, s.nbytes())
        return out

    def gone(self, which, n):
        self.known.discard(which)
        self.now -= n


def memory_of(size, n, positions, answers):
    """GB that two training steps take at most, summed over fake tensors: not compiled, without what CUDA and its libraries take (about 1 GB)."""
    model = sized(size, Machine("cpu", "bfloat16"), meta=True)
    with FakeTensorMode(), Living() as living:
        fake(model)
        optimizer = torch.optim.AdamW(model.trainable().values(), fused=True)
        for _ in range(2):
            z, ids, answer = (
                torch.empty(n, 1024),
                torch.empty(n, positions, dtype=torch.long),
                torch.empty(n * answers, dtype=torch.long),
            )
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(add_noise(z, 0.015), ids, answer)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return living.most / 1e9


def memory(machine):
    """Memory of a training step at its true size, computed: a usual batch, and one of the longest samples."""
    usual, longest = (64, 40), (176, 151)
    return {
        "unit": "GB",
        **{
            f"MATS-{name}, micro-batch {n}": " to ".join(
                f"{memory_of(size, n, *shape):.1f}" for shape in (usual, longest)
            )
            + " GB"
            for name, size, n in (
                ("GPT2", "gpt2", 128),
                ("GPT2", "gpt2", 64),
                ("LLaMA-7B", "llama", 12),
                ("LLaMA-7B", "llama", 4),
            )
        },
    }


def schedule(machine):
    """What the paper's two runs are worth: FLOP of their samples, and hours on GPUs that spend 40 % of their nominal bf16 rate on them."""
    result = {"unit": "hours"}
    for name, size, n, updates in (
        ("MATS-GPT2", "gpt2", 128, 90_000),
        ("MATS-LLaMA-7B", "llama", 96, 90_000),
    ):
        model = sized(size, Machine("cpu", "bfloat16"), meta=True)
        made = batches_of(model, list(mixture(32 * n)), n)
        seen, padded, answers = (
            sum(f(b) for b in made)
            for f in (
                lambda b: len(b["ids"]),
                lambda b: b["ids"].numel(),
                lambda b: len(b["answer"]),
            )
        )
        each = model.flops(padded / seen, answers / seen)
        total = each * n * updates
        result[name] = {
            "GFLOP a sample": round(each / 1e9, 1),
            "EFLOP in all": round(total / 1e18, 2),
            **{
                f"{k} x {gpu}, h": round(total / (k * 0.4 * PEAK[gpu]) / 3600, 1)
                for k, gpu in ((2, "A100"), (1, "H200"))
            },
        }
    return result


def waiting(machine):
    """The share of their time that processes side by side work, and do not wait for the longest batch among them, by the plan and FLOP alone; with the
    order as it is, and with as many micro-batches together as there are processes."""
    rng, result = np.random.default_rng(0), {"unit": "share"}
    sources = [
        type(
            "Kind",
            (),
            {
                "shards": 8 * [{"n": 4096}],
                "lengths": asked + rng.normal(mean, sd, 4096).clip(1, 150).astype(int) + 1,
            },
        )
        for _, asked, mean, sd in KINDS.values()
    ]
    for name, size, n, ranks, accumulate in (
        ("MATS-GPT2, 2 x 64", "gpt2", 64, 2, 1),
        ("MATS-LLaMA-7B, 2 x 4 x 12", "llama", 12, 2, 4),
        ("MATS-LLaMA-7B, 8 x 12", "llama", 12, 8, 1),
    ):
        model = sized(size, Machine("cpu", "bfloat16"), meta=True)
        fixed, each, shares = model.flops(0, 0), model.flops(1, 0) - model.flops(0, 0), []
        for together in (1, ranks):
            plan, longest, cost = (
                Plan(sources, [k[0] for k in KINDS.values()], n, together=together),
                {},
                [],
            )
            for _, visit, k in itertools.islice(plan.batches(), 1000 * ranks * accumulate):
                if visit[0] not in longest:
                    lengths = sources[visit[1]].lengths
                    longest[visit[0]] = lengths[plan.cut(visit, lengths)].max(1)  # (micro-batches,)
                cost.append(fixed + each * -(-longest[visit[0]][k] // 8) * 8)
            cost = np.reshape(cost, (1000, accumulate, ranks)).sum(1)  # (updates, ranks)
            shares.append(round(cost.mean() / cost.max(1).mean(), 3))
        result[name] = f"{shares[0]}, together {shares[1]}"
    return result


# --- inference --------------------------------------------------------------------------------------------------------


def generation(machine):
    """Greedy answers of 20 tokens to 16 questions in one batch, against one by one."""
    model = sized("gpt2", machine).eval()
    z, asked = torch.randn(16, 1024, device=machine.device), [s["instruction"] for s in mixture(16)]
    how = dict(max_new_tokens=20, min_new_tokens=20)
    return rate(
        16,
        "answers/s",
        *clock(
            lambda: model.generate(z, asked, **how),
            lambda: [model.generate(z[i : i + 1], asked[i : i + 1], **how) for i in range(16)],
        ),
    )


def evaluation(machine):
    """Captions of AudioCaps' length for its 975 clips (on a CPU: 16) from files in memory: decoding, CLAP, Santa, 4 beams of 30 tokens by MATS-GPT2."""
    import io

    import soundfile

    n = 975 if machine.cuda else 16
    model, clap = sized("gpt2", machine).eval(), true_size_clap(machine)
    santa = Santa.build(torch.randn(5172, 1024), generator=torch.Generator().manual_seed(0)).to(
        machine.device
    )
    buffer = io.BytesIO()
    soundfile.write(
        buffer, np.random.default_rng(0).normal(size=10 * 44100) * 0.1, 44100, format="FLAC"
    )
    data = buffer.getvalue()

    def captioned():
        z = [
            clap.encode_audio(
                torch.stack(
                    [
                        load_audio(data, clap.sample_rate, clap.seconds)
                        for _ in range(min(32, n - i))
                    ]
                )
            )
            for i in range(0, n, 32)
        ]
        model.generate(
            santa(torch.cat(z)),
            ["Generate audio caption."] * n,
            batch_size=128,
            num_beams=4,
            max_new_tokens=30,
            min_new_tokens=30,
        )

    (t,) = clock(captioned, repeats=3 if machine.cuda else 1)
    return rate(n, "clips/s", t) | {"seconds": round(t, 1)}


def against_others(machine, n, d, k, repeats):
    """k-means with k-means++ and 10 Lloyd steps against scikit-learn, and 10 from random rows against faiss where that is installed."""
    from sklearn.cluster import KMeans

    draw = lambda seed, *shape: torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    x = draw(0, n, d) + 2 * draw(1, k, d)[torch.arange(n) % k] + draw(2, d)
    y = x.to(machine.device)
    ours, theirs = clock(
        lambda: kmeans(y, k, 10, torch.Generator().manual_seed(3)),
        lambda: KMeans(k, n_init=1, max_iter=10, tol=0, random_state=3).fit(x.numpy()),
        repeats=repeats,
    )
    result = {
        "unit": "s",
        "ours": ours,
        "spread": ours.spread,
        "obvious": theirs,
        "obvious spread": theirs.spread,
    }
    try:
        import faiss
    except ImportError:
        return result
    ours, theirs = clock(
        lambda: kmeans(y, k, 10, torch.Generator().manual_seed(3), init="random"),
        lambda: faiss.Kmeans(d, k, niter=10, seed=3, max_points_per_centroid=n).train(x.numpy()),
        repeats=repeats,
    )
    return result | {"from random rows, s": {"ours": round(ours, 3), "faiss-cpu": round(theirs, 3)}}


def kmeans_memory(machine):
    """k-means of Santa's memory: 5172 x 1024, K = 100; k-means++ and at most 10 Lloyd steps, against scikit-learn."""
    return against_others(machine, 5172, 1024, 100, 3)


def kmeans_large(machine):
    """The same of 100,000 x 256, K = 1000."""
    return against_others(machine, 100_000, 256, 1000, 1)


def kmeans_huge(machine):
    """k-means of all of AudioTIA's vectors on a GPU: 5.3 M x 1024, K = 1000, k-means++ and 10 Lloyd steps."""
    if not machine.cuda:
        return {"skipped": "5.3 M x 1024 want a GPU"}
    x = torch.randn(5_300_000, 1024, device=machine.device)
    x += (
        2
        * torch.randn(1000, 1024, device=machine.device)[
            torch.arange(len(x), device=machine.device) % 1000
        ]
    )
    machine.memory()
    (t,) = clock(lambda: kmeans(x, 1000, 10, torch.Generator().manual_seed(3)), repeats=1)
    return {
        "unit": "s",
        "ours": t,
        "spread": t.spread,
        "peak memory, GB": round(machine.memory() / 1e9, 1),
    }


PARTS = {
    "reading": reading,
    "text": text,
    "audio": audio,
    "step": step,
    "step_llama": step_llama,
    "training": training,
    "training_small": training_small,
    "training_llama": training_llama,
    "scaling": scaling,
    "waiting": waiting,
    "memory": memory,
    "schedule": schedule,
    "generation": generation,
    "evaluation": evaluation,
    "kmeans": kmeans_memory,
    "kmeans_large": kmeans_large,
    "kmeans_huge": kmeans_huge,
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dtype",
        default="bfloat16",
        choices=("bfloat16", "float32"),
        help="of training's arithmetic, on both sides",
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if set(args.parts) - set(PARTS):
        sys.exit(
            f"bench.py: unknown part {', '.join(set(args.parts) - set(PARTS))}; there are: {', '.join(PARTS)}"
        )
    machine, results = Machine(args.device, args.dtype), {}
    for name in args.parts:
        r = results[name] = PARTS[name](machine)
        if "obvious" in r:
            r["times"] = r["obvious"] / r["ours"] if r["unit"] == "s" else r["ours"] / r["obvious"]
        if not args.json:
            print(f"{name}: {PARTS[name].__doc__}")
            if "ours" in r:
                print(
                    f"    ours {r['ours']:.3g} {r['unit']} ± {r['spread']:.0%}"
                    + (
                        f", obvious {r['obvious']:.3g} {r['unit']} ± {r['obvious spread']:.0%}: {r['times']:.2f}x"
                        if "obvious" in r
                        else ""
                    )
                )
            print(
                "".join(
                    f"    {k}: {v}\n"
                    for k, v in r.items()
                    if k not in ("unit", "ours", "spread", "obvious", "obvious spread", "times")
                ),
                end="",
                flush=True,
            )
    if args.json:
        name = torch.cuda.get_device_name() if machine.cuda else platform.processor()
        print(
            json.dumps(
                {
                    "device": args.device,
                    "dtype": args.dtype,
                    "threads": torch.get_num_threads(),
                    "machine": name,
                    **results,
                }
            )
        )


if __name__ == "__main__":
    main()
