"""Train MATS on text alone (sections 3.2, 3.5, 4.1).

    torchrun train.py                                              the tiny world: minutes on a laptop, no download
    torchrun --nproc_per_node=2 train.py mats_gpt2                 the paper's MATS-GPT2 on two GPUs
    torchrun train.py mats_gpt2 --micro_batch=16 --lr=1e-4         any field below, by name

A run lives in its folder `out`: state.pt (everything needed to go on), model/ (what eval.py and sample.py read), log.jsonl
and loss.png. Started again it goes on where it was, with exactly the batches and the noise that it would have seen.
"""

import json
import math
import os
import shutil
import sys
import threading
import time
import traceback
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from datetime import timedelta
from importlib import import_module
from pathlib import Path

os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # or a CPU that has other work too slows down tenfold

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
from tqdm import tqdm

import config
from audio import load_audio
from clap import load_clap
from data import Batches, DataError, Plan, collate, find_sources, loader, read_source, write_atomic
from mats import MATS, MATSConfig
from santa import Santa, add_noise

PEAK = {"A100": 312e12, "H100": 989e12, "H200": 989e12}  # dense bf16 FLOP/s, for MFU


@dataclass
class TrainConfig(MATSConfig):
    out: str = "out/tiny"  # the run's folder
    train: str = ""  # shards: a folder, a folder of folders, or a URL
    val: str = ""  # shards for the validation loss; empty: none
    mixture: dict = field(
        default_factory=dict
    )  # {subfolder of train: weight}; empty: all, by their size
    skip_missing: bool = False  # leave out what of the mixture is not on disk, instead of refusing
    build: str = ""  # module whose build() makes the shards when they are not there
    supervision: str = "text"  # text | audio (MATS-Audio)
    variance: float = 0.015  # of the noise (section 3.2; per dimension of the unit vector)
    memory: int = 5172  # Santa: texts in the memory (M); 0: no memory
    clusters: int = 100  # Santa: K
    batch_size: int = 128  # samples per update, over all ranks and micro-batches
    micro_batch: int = 128  # samples per forward pass
    steps: int = 90_000  # updates
    lr: float = 5e-5
    schedule: str = "linear"  # linear | cosine, to 0 after the warm-up
    warmup: int = 2000
    warmup_from: float = 1e-7  # learning rate at the first update
    weight_decay: float = 0.05  # none on 1-D tensors
    beta1: float = 0.9
    beta2: float = 0.999
    device: str = ""  # empty: cuda where there is one, else cpu
    dtype: str = "float32"  # of the arithmetic: float32 | bfloat16 (autocast)
    compile: bool = False
    workers: int = 2  # reading processes per rank
    lanes: int = 8  # shards under way at once (data.Plan)
    together: int = 1  # micro-batches of like length in a row; as many as processes: none waits, each reads all lanes
    strict: bool = False  # stop at a broken sample instead of leaving it out
    patience: int = 10  # updates in a row that may be skipped for a gradient that is not finite
    timeout: float = 30.0  # minutes without a finished update after which the run ends
    log_every: int = 50
    val_every: int = 1000
    save_every: int = 1000
    seed: int = 0
    fresh: bool = False  # start over, replacing the run in `out`


# what may differ when a run goes on: nothing that changes its batches or its schedule, nor its noise on the same kind of device
FREE = {
    "build",
    "skip_missing",
    "patience",
    "timeout",
    "device",
    "compile",
    "workers",
    "log_every",
    "val_every",
    "save_every",
    "fresh",
    "strict",
    "out",
    "val",
}


def lr_at(step, c):
    """Learning rate of update `step` (from 0): linear warm-up, then linear or cosine to 0."""
    if step < c.warmup:
        return c.warmup_from + (c.lr - c.warmup_from) * step / c.warmup
    t = (step - c.warmup) / max(1, c.steps - c.warmup)
    return c.lr * ((1 - t) if c.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * t)))


class Watch:
    """Ends a process that finishes no update for `minutes`, and says which rank is behind.

    Whatever stops one rank (a disk that does not answer, a GPU that is gone) leaves all others waiting for it in silence. Here each tells
    the others every few seconds, through a TCPStore, that it lives and which update it has finished (on a GPU: handed over; the host runs at
    most `log_every` ahead). A process that is itself stopped, as by a batch system, does not count the time.
    """

    def __init__(self, minutes, out, rank, ranks):
        self.minutes, self.out, self.rank, self.ranks, self.pause = (
            minutes,
            out,
            rank,
            ranks,
            min(5, 6 * minutes),
        )
        self.step = self.tick = 0
        self.heard = [
            ("0", 0)
        ] * ranks  # of each rank: what it said last, and at which of our ticks that was new
        self.over, self.threads = threading.Event(), []

    def start(self, step):
        self.step = step
        # talking in a thread of its own: a store whose host is gone may never answer
        self.threads = [
            threading.Thread(target=f, daemon=True)
            for f in ([self.watch, self.talk] if self.ranks > 1 else [self.watch])
        ]
        for thread in self.threads:
            thread.start()

    def close(self):
        self.over.set()
        for thread in self.threads:
            thread.join(5)

    def talk(self):
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False
        )
        while not self.over.wait(self.pause):
            store.set(f"watch {self.rank}", f"{self.step} {self.tick}")
            for r, said in enumerate(store.multi_get([f"watch {r}" for r in range(self.ranks)])):
                if said != self.heard[r][0]:
                    self.heard[r] = said, self.tick

    def watch(self):
        at, since = self.step, 0
        while not self.over.wait(self.pause):
            self.tick += 1
            if self.step != at:
                at, since = self.step, self.tick
            if (self.tick - since) * self.pause > 60 * self.minutes:
                each = "".join(
                    f"; rank {r} finished update {int(said.split()[0]):,}"
                    + " and no longer answers" * (r != self.rank and self.tick - new > 3)
                    for r, (said, new) in enumerate(self.heard)
                    if self.ranks > 1
                )
                end(
                    f"no update has been finished for {self.minutes:g} minutes{each}. {self.out}/state.pt holds the last saved state, and the same "
                    f"command goes on from it; --timeout=MINUTES waits longer"
                )


def end(message):
    """Says why and ends this process at once: one of several cannot leave in good order while the others wait for it."""
    print(f"train.py: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def explained(e):
    """What to do about an exception, where that is known."""
    if isinstance(e, (DataError, SystemExit)):
        return str(e)
    if "DataLoader worker (pid" in str(e):
        return (
            "a reading process died, usually because the machine ran out of memory: lower --workers or --lanes; the same command goes on from the "
            f"last saved state. {e}"
        )
    if isinstance(e, torch.OutOfMemoryError) or "can't allocate memory" in str(e):
        return f"out of memory: lower --micro_batch (batch_size, and so the result, stays the same), or --llm_dtype=bfloat16. {e}"


def main(argv):
    c = config.load(TrainConfig, argv)
    if c.timeout <= 0:
        sys.exit(f"timeout={c.timeout:g}: expected minutes, more than 0")
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device(c.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    if ranks > 1:  # its own time-out comes after the watch's, which knows more to say
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=c.timeout + 1)
        )
    watch = Watch(c.timeout, c.out, rank, ranks)
    try:
        train(c, device, rank, ranks, watch)
    except (Exception, SystemExit) as e:
        if ranks > 1:
            end(explained(e) or traceback.format_exc())
        if isinstance(e, SystemExit) or not explained(e):
            raise
        sys.exit(f"train.py: {explained(e)}")
    finally:
        watch.close()


def train(c, device, rank, ranks, watch):
    master, cuda = rank == 0, device.type == "cuda"
    say = print if master else lambda *a, **k: None
    if c.schedule not in ("linear", "cosine") or c.supervision not in ("text", "audio"):
        sys.exit("schedule is linear or cosine, and supervision text or audio")
    accumulate, rest = divmod(c.batch_size, c.micro_batch * ranks)
    if rest or not accumulate:
        sys.exit(
            f"batch_size={c.batch_size} is not a multiple of micro_batch={c.micro_batch} x {ranks} processes"
        )

    # --- data ---
    if c.build and master:
        import_module(c.build).build(Path(c.train).parent)
    if ranks > 1:
        dist.barrier()
    sources, weights = find_sources(c.train, c.mixture, c.skip_missing, c.supervision == "audio")
    if c.mixture and len(sources) < len(c.mixture):
        say(
            f"not on disk, and left out: {', '.join(n for n in c.mixture if n not in [s.name for s in sources])}"
        )
        say(
            "the others' shares: "
            + ", ".join(f"{s.name} {w / sum(weights):.1%}" for s, w in zip(sources, weights))
        )
    for s in sources:
        vectors = s.index.get("vectors")
        if vectors and (vectors["dim"] != c.dim or vectors["side"] != c.supervision):
            sys.exit(
                f"{s.url} holds {vectors['dim']}-d vectors of its {vectors['side']}, made with {vectors['clap']}; "
                f"this run wants dim={c.dim} and supervision={c.supervision}"
            )
    plan = Plan(sources, weights, c.micro_batch, c.seed, c.lanes, c.together)

    # --- the run that may already be there ---
    out = Path(c.out)
    identity = {k: v for k, v in asdict(c).items() if k not in FREE} | {
        "data": [s.index["hash"] for s in sources]
    }
    state, start = None, 0
    if (out / "state.pt").exists() and not c.fresh:
        state = torch.load(out / "state.pt", map_location="cpu", weights_only=True)
        start = state["step"]
        before = (
            asdict(TrainConfig()) | state["identity"]
        )  # a field that the run was begun without has its default
        changed = [k for k in identity if identity[k] != before[k]]
        if changed:
            sys.exit(
                f"{out} holds a run with another {', '.join(changed)} (for instance {changed[0]}="
                f"{before[changed[0]]!r}); choose another --out, or --fresh to replace it"
            )
        if (
            start == c.steps
            and (out / "model" / "step.json").exists()
            and json.loads((out / "model" / "step.json").read_text()) == start
        ):
            say(f"{out} is trained ({c.steps:,} steps); next: python eval.py")
            return
    if master:
        out.mkdir(parents=True, exist_ok=True)
        lines = (
            (out / "log.jsonl").read_text().splitlines()
            if state and (out / "log.jsonl").exists()
            else []
        )
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= start]
        write_atomic(out / "log.jsonl", "".join(line + "\n" for line in kept).encode())

    # --- model ---
    torch.manual_seed(c.seed)
    model = MATS(MATSConfig(**{f.name: getattr(c, f.name) for f in fields(MATSConfig)}))
    params = model.trainable()
    if state:
        for name, p in params.items():
            p.data.copy_(state["model"][name])
    model.to(device).train()
    groups = [
        {"params": [p for p in params.values() if p.ndim > 1], "weight_decay": c.weight_decay},
        {"params": [p for p in params.values() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=c.lr, betas=(c.beta1, c.beta2), fused=True)
    # Not for scaling: it leaves out the update where a gradient is not finite, and on a GPU without waiting to know.
    scaler = torch.amp.GradScaler(device.type, init_scale=1.0)
    if state:
        optimizer.load_state_dict(state["optimizer"])
    state = None
    if c.compile:
        model.compile()
    step_model = model
    if ranks > 1:
        step_model = DDP(
            model,
            device_ids=[device.index] if cuda else None,
            gradient_as_bucket_view=True,
            broadcast_buffers=False,
        )
    amp = torch.autocast(device.type, torch.bfloat16) if c.dtype == "bfloat16" else nullcontext()

    val_sources = find_sources(c.val)[0] if c.val else []
    if c.supervision == "audio" and not all(s.index.get("vectors") for s in val_sources):
        sys.exit(
            f"{c.val}: validation of supervision=audio needs the clips' vectors: python -m shards.embed SRC DST --side audio"
        )
    cached = all(s.index.get("vectors") for s in sources + val_sources)
    clap = None if cached else load_clap(c.clap)
    if isinstance(clap, torch.nn.Module):
        clap.to(device)
    decode = None
    if c.supervision == "audio" and not cached:
        decode = lambda data, seed: load_audio(
            data,
            clap.sample_rate,
            clap.seconds,
            crop="random",
            generator=torch.Generator().manual_seed(seed),
        )
    batches = Batches(
        plan, model.template, start * accumulate * ranks, rank, ranks, c.strict, decode
    )

    def vectors(batch, m):
        """(B, D): the batch's CLAP vectors, cached or encoded now, with the noise of micro-batch m (Eq. 1)."""
        if "z" in batch:
            z = batch["z"].to(device, non_blocking=True)
        elif "audio" in batch:
            z = clap.encode_audio(batch["audio"])
        else:
            z = clap.encode_text(batch["text"])
        return add_noise(
            z.to(device), c.variance, torch.Generator(device).manual_seed(c.seed * 1_000_003 + m)
        )

    def loss_of(net, batch, m):
        ids, answer = (batch[k].to(device, non_blocking=True) for k in ("ids", "answer"))
        if c.compile:  # one graph for all lengths of text and all numbers of answer tokens
            torch._dynamo.mark_dynamic(ids, 1)
            torch._dynamo.mark_dynamic(answer, 0)
        with amp:
            return net(vectors(batch, m), ids, answer)

    # --- validation ---
    held_out = []
    if c.val:
        samples = [s for source in val_sources for s in read_source(source)]
        tokens = model.template.encode(samples)
        order = sorted(range(len(samples)), key=lambda i: len(tokens[i][0]))
        rows = [order[i : i + c.micro_batch] for i in range(0, len(order), c.micro_batch)]
        held_out = [
            collate([samples[i] for i in r], [tokens[i] for i in r], model.tokenizer.eos_token_id)
            for r in rows
        ]

    @torch.no_grad()
    def validate():
        """Mean loss per answer token of the held-out samples, with fixed noise; every rank takes its share."""
        model.eval()
        total = torch.zeros(2, dtype=torch.float64)
        for i in range(rank, len(held_out), ranks):
            n = len(held_out[i]["answer"])
            loss = loss_of(
                model.forward, held_out[i], -1 - i
            )  # not compiled: its last batch is smaller
            total += torch.tensor([float(loss) * n, n], dtype=torch.float64)
        model.train()
        if ranks > 1:
            total = total.to(device)
            dist.all_reduce(total)
        return float(total[0] / total[1])

    # --- saving ---
    def save(step):
        """state.pt first, in one rename: a kill at any moment leaves a run that goes on from the last whole one."""
        torch.save(
            {
                "step": step,
                "identity": identity,
                "optimizer": optimizer.state_dict(),
                "model": {n: p.detach() for n, p in params.items()},
            },
            out / "state.pt.part",
        )
        os.replace(out / "state.pt.part", out / "state.pt")
        for junk in ("model.part", "model.old"):
            shutil.rmtree(out / junk, ignore_errors=True)
        model.save_pretrained(out / "model.part")
        (out / "model.part" / "step.json").write_text(
            str(step)
        )  # a kill before the renaming below leaves an older model, and this tells
        if (out / "model").exists():
            os.rename(out / "model", out / "model.old")
        os.rename(out / "model.part", out / "model")
        shutil.rmtree(out / "model.old", ignore_errors=True)
        plot(out)

    def log(**line):
        with open(out / "log.jsonl", "a") as f:
            f.write(json.dumps(line) + "\n")

    # --- Santa's memory: texts of the training set, drawn through the plan of another seed ---
    if c.memory and c.supervision == "text" and master:
        memory, wanted = [], c.memory
        for batch in Batches(
            Plan(sources, weights, c.micro_batch, c.seed + 1, c.lanes), model.template
        ):
            memory.append(batch["z"] if "z" in batch else clap.encode_text(batch["text"]).cpu())
            wanted -= len(memory[-1])
            if wanted <= 0:
                break
        model.santa = Santa.build(
            torch.cat(memory)[: c.memory],
            m=c.memory,
            k=c.clusters,
            variance=c.variance,
            generator=torch.Generator().manual_seed(c.seed),
        )

    # --- the loop ---
    size = lambda ps: sum(p.numel() for p in ps) / 1e6
    say(
        f"{size(model.mapper.parameters()):.1f} M weights in the mapper, {size(p for n, p in params.items() if 'lora_' in n):.2f} M "
        f"in LoRA, {size(p for p in model.llm.parameters() if not p.requires_grad):.1f} M frozen in the language model; "
        f"{sum(map(len, sources)):,} samples of {len(sources)} sources; {c.supervision} supervision; {ranks} x {device.type}"
    )
    peak = next((v for k, v in PEAK.items() if cuda and k in torch.cuda.get_device_name()), None)
    stream = iter(loader(batches, c.workers, pin=cuda))
    bar = tqdm(
        total=c.steps,
        initial=start,
        unit=" steps",
        disable=not master,
        mininterval=0.5,
        dynamic_ncols=True,
    )
    zero = lambda: torch.zeros(
        4, device=device
    )  # sums since the last line: loss, updates, skipped; and skipped in a row
    since, seen, padded, answers, broken, skipped, sums = time.time(), 0, 0, 0, 0, 0, zero()
    watch.start(start)
    for step in range(start, c.steps):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, c)
        total = torch.zeros((), device=device)
        for micro in range(accumulate):
            batch = next(stream)
            m = int(batch["m"])
            for what in batch["broken"]:
                broken += 1
                tqdm.write(f"left out: {what}", file=sys.stderr)
            torch.manual_seed(
                c.seed * 1_000_003 + m
            )  # LoRA's dropout, like the noise, belongs to the micro-batch
            sync = ranks == 1 or micro == accumulate - 1
            with nullcontext() if sync else step_model.no_sync():
                loss = loss_of(step_model, batch, m) / accumulate
                scaler.scale(loss).backward()
            total += loss.detach()
            seen += len(batch["ids"])
            padded += batch["ids"].numel()
            answers += len(batch["answer"])
        norm = torch.nn.utils.get_total_norm([p.grad for p in params.values()])
        scaler.step(optimizer)
        scaler.update(1.0)
        optimizer.zero_grad(set_to_none=True)
        good = norm.isfinite() & total.isfinite()
        sums = torch.stack(
            [
                sums[0] + torch.where(good, total, 0.0),
                sums[1] + good,
                sums[2] + ~good,
                torch.where(good, 0.0, sums[3] + 1),
            ]
        )
        bar.update()
        done = step + 1
        if done % c.log_every == 0 or done == c.steps:
            if ranks > 1:
                dist.all_reduce(sums)
                sums /= ranks
            loss, updates, new, row = (
                sums.tolist()
            )  # the one place where the loop waits for the device
            skipped += int(new)
            if row >= c.patience:
                sys.exit(
                    f"the last {int(row)} updates before step {done} were skipped, because their gradients are not finite; {out}/state.pt holds "
                    f"the last saved state. A lower --lr, or --dtype=float32, may help"
                )
            loss = loss / updates if updates else math.nan
            seconds = time.time() - since
            rate = seen * ranks / seconds
            flops = rate * model.flops(padded / seen, answers / seen)
            line = {
                "step": done,
                "loss": round(loss, 5) if updates else None,
                "grad_norm": round(float(norm), 4) if math.isfinite(norm) else None,
                "lr": lr_at(step, c),
                "samples_per_s": round(rate, 1),
                "tokens_per_s": round((seen * c.prefix + padded) * ranks / seconds, 1),
                "tflops": round(flops / 1e12, 3),
                "mfu": round(flops / ranks / peak, 4) if peak else None,
                "broken": broken,
                "skipped": skipped,
            }
            if master:
                log(**line)
            bar.set_postfix(loss=f"{loss:.3f}", samples_per_s=f"{rate:.0f}", refresh=False)
            since, seen, padded, answers, sums = (
                time.time(),
                0,
                0,
                0,
                zero() + sums * torch.tensor([0, 0, 0, 1], device=device),
            )
        paused = time.time()
        if held_out and (done % c.val_every == 0 or done == c.steps):
            loss = validate()
            if master:
                log(step=done, val_loss=round(loss, 5))
                tqdm.write(f"step {done:,}: validation loss {loss:.4f}")
        if (done % c.save_every == 0 or done == c.steps) and master:
            save(done)
        since += time.time() - paused
        watch.step = done
    bar.close()
    if (
        start == c.steps and master
    ):  # killed after its last state was saved, and before its model was
        save(start)
    if ranks > 1:
        # Gloo's last work must be over before DDP goes: its destructor waits, holding the GIL, for threads that want the GIL.
        dist.barrier()
        dist.destroy_process_group()
    say(f"trained in {out}; next: python eval.py --ckpt {out}/model")


def plot(out):
    """loss.png from log.jsonl."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for key in ("loss", "val_loss"):
        points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        if points:
            axis.plot(
                *zip(*points),
                marker="o" if key == "val_loss" else None,
                ms=3,
                lw=1,
                label=key.replace("_", " "),
            )
    axis.set(xlabel="step", ylabel="cross-entropy per answer token")
    axis.legend(frameon=False)
    figure.savefig(out / "loss.png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main(sys.argv[1:])
