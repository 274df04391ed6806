"""Train MATS on text alone (sections 3.2, 3.5, 4.1).

    torchrun train.py                                          the tiny world: minutes on a laptop
    torchrun --nproc_per_node=2 train.py mats_gpt2             the paper's MATS-GPT2 on two GPUs
    torchrun train.py mats_gpt2 --micro_batch=16 --lr=1e-4     any field below, by name

A run lives in its folder `out`: state.pt (all that is needed to resume), model/ (eval.py and
sample.py read it), log.jsonl and loss.png. Started again, it resumes with exactly the batches and
the noise that it would have seen.
"""

import errno
import fcntl
import math
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from datetime import timedelta
from functools import cached_property
from importlib import import_module
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import IO

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # or a busy CPU slows down tenfold

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel as DDP
from tqdm import tqdm

import config
from clap import encode_file, load_clap, windows_of
from data import Batches, Plan, Source, collate, find_sources, loader, read_source
from disk import (
    DataError,
    command,
    fingerprint,
    is_path,
    libraries_write,
    reading,
    replacing,
    seems,
    why,
)
from distributed import Ranks, end, log
from distributed.log import Meter
from distributed.watch import Watch
from encoders.checks import faster, probe, ready
from language import nf4
from mats import MATS, MATSConfig
from santa import Santa, add_noise, noise_cosine

SEEDS = 1_000_003  # micro-batch m of a run has the seed: seed * SEEDS + m


@dataclass
class MachineConfig:
    """Fields that may change when a run is resumed.

    They affect neither batches nor schedule, nor the noise on the same kind of device.
    """

    out: str = "out/tiny"  # the run's folder
    val: str = ""  # shards for the validation loss; empty: none
    build: str = ""  # module whose build(this config) makes the shards where they are missing
    skip_missing: bool = False  # leave out sources of the mixture that are not on disk
    strict: bool = False  # stop at a broken sample instead of leaving it out
    fresh: bool = False  # start over, replacing the run in `out`
    device: str = ""  # empty: cuda where there is one, else cpu
    compile: bool = False  # torch.compile: worth its minutes on a GPU
    workers: int = 2  # reading processes per rank
    patience: int = 10  # updates in a row that may be skipped for a gradient that is not finite
    timeout: float = 30.0  # minutes without a finished update after which the run ends
    log_every: int = 50  # updates
    val_every: int = 1000  # updates
    save_every: int = 1000  # updates


@dataclass
class TrainConfig(MachineConfig, MATSConfig):
    """A run. Its model's fields stand in mats.MATSConfig."""

    train: str = ""  # shards: a folder, a folder of folders, or a URL
    mixture: dict = field(default_factory=dict)  # {subfolder of train: weight}; empty: all, by size
    supervision: str = "text"  # text | audio (MATS-Audio)
    variance: float = 0.015  # of the noise, per dimension of the unit vector (section 3.2)
    memory: int = 5172  # Santa: texts in the memory (M); 0: no memory
    clusters: int = 100  # Santa: K
    batch_size: int = 128  # samples per update, over all ranks and micro-batches
    micro_batch: int = 128  # samples per forward pass
    steps: int = 90_000  # updates
    lr: float = 5e-5  # the highest learning rate
    schedule: str = "linear"  # linear | cosine, to 0 after the warm-up
    warmup: int = 2000  # updates
    warmup_from: float = 1e-7  # learning rate of the first update
    weight_decay: float = 0.05  # none on 1-D tensors
    beta1: float = 0.9  # of AdamW
    beta2: float = 0.999  # of AdamW
    dtype: str = "float32"  # of the arithmetic: float32 | bfloat16 (autocast)
    lanes: int = 8  # shards under way at once (data.Plan)
    together: int = 1  # consecutive micro-batches of similar length; best: the number of processes
    seed: int = 0  # of weights, order, dropout and noise


def lr_at(step: int, cfg: TrainConfig) -> float:
    """Learning rate of update `step`, from 0: linear warm-up, then linear or cosine to 0."""
    if step < cfg.warmup:
        return cfg.warmup_from + (cfg.lr - cfg.warmup_from) * step / cfg.warmup
    t = (step - cfg.warmup) / max(1, cfg.steps - cfg.warmup)
    if cfg.schedule == "linear":
        return cfg.lr * (1 - t)
    return cfg.lr * (0.5 * (1 + math.cos(math.pi * t)))


# --- data ---------------------------------------------------------------------------------------


def find_data(cfg: TrainConfig, ranks: Ranks) -> tuple[list[Source], list[float]]:
    """The training sources and their weights, built first where the config says how."""
    if cfg.build:
        ranks.master_first(lambda: import_module(cfg.build).build(cfg))
    audio = cfg.supervision == "audio"
    sources, weights = find_sources(cfg.train, cfg.mixture, cfg.skip_missing, audio)
    if cfg.mixture and len(sources) < len(cfg.mixture):
        missing = cfg.mixture.keys() - {source.name for source in sources}
        ranks.say(f"not on disk, and left out: {', '.join(n for n in cfg.mixture if n in missing)}")
        shares = [f"{s.name} {w / sum(weights):.1%}" for s, w in zip(sources, weights)]
        ranks.say(f"the others' shares: {', '.join(shares)}")
    return sources, weights


def held_out(cfg: TrainConfig, sources: list[Source], model: MATS, ranks: Ranks) -> list[dict]:
    """The validation samples in batches of similar length.

    Each batch has under `other` as many other samples, whose vectors a model that listens cannot
    use: it does worse with them.
    """
    broken = []
    samples = [sample for source in sources for sample in read_source(source, broken=broken)]
    if ranks.master:
        for problem in broken[:20]:
            print(f"broken: {problem}", file=sys.stderr)
        if len(broken) > 20:
            print(f"broken: {len(broken) - 20:,} more", file=sys.stderr)
    tokens = model.template.encode(samples)
    order = sorted(range(len(samples)), key=lambda i: len(tokens[i][0]))
    turn = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0)).tolist()
    other = dict(zip(turn, turn[1:] + turn[:1]))  # never the sample itself
    batches, pad = [], model.tokenizer.eos_token_id
    for start in range(0, len(order), cfg.micro_batch):
        rows = order[start : start + cfg.micro_batch]
        batch, others = (
            collate([samples[i] for i in these], [tokens[i] for i in these], pad)
            for these in (rows, [other[i] for i in rows])
        )
        batches.append(
            batch | {"other": {key: others[key] for key in ("text", "z") & others.keys()}}
        )
    return batches


def make_memory(run: "Run") -> Santa:
    """Santa's memory: texts of the training set, drawn by the plan of another seed."""
    cfg, vectors, texts, count = run.cfg, [], [], 0
    plan = Plan(run.sources, run.weights, cfg.micro_batch, cfg.seed + 1, cfg.lanes)
    for batch in Batches(plan, run.model.template):
        vectors.append(run.objective.encode(batch).cpu())
        texts += batch["text"]
        count += len(vectors[-1])
        if count >= cfg.memory:
            break
    vectors, texts = torch.cat(vectors)[: cfg.memory], texts[: cfg.memory]
    generator = torch.Generator().manual_seed(cfg.seed)
    return Santa.build(vectors, cfg.memory, cfg.clusters, cfg.variance, generator, texts)


# --- the model ----------------------------------------------------------------------------------


class Objective:
    """The loss of micro-batch m: CLAP vectors, cached or encoded now, noise on them, then MATS."""

    def __init__(self, cfg: TrainConfig, device: torch.device, clap):
        self.cfg, self.device, self.clap = cfg, device, clap
        self.precision = nullcontext()
        if cfg.dtype == "bfloat16":
            self.precision = torch.autocast(device.type, torch.bfloat16)

    def encode(self, batch: dict) -> Tensor:
        """(B, D): the batch's CLAP vectors."""
        if "z" in batch:
            return batch["z"].to(self.device, non_blocking=True)
        if "audio" in batch:
            return self.clap.encode_audio(batch["audio"]).to(self.device)
        return self.clap.encode_text(batch["text"]).to(self.device)

    def __call__(self, net: Callable, batch: dict, m: int, heard: dict | None = None) -> Tensor:
        """The mean loss per answer token; heard: another batch, whose vectors are used instead."""
        ids, answer = (batch[k].to(self.device, non_blocking=True) for k in ("ids", "answer"))
        if self.cfg.compile:  # one graph for all lengths of text and all numbers of answer tokens
            torch._dynamo.mark_dynamic(ids, 1)
            torch._dynamo.mark_dynamic(answer, 0)
        with self.precision:
            generator = torch.Generator(self.device).manual_seed(self.cfg.seed * SEEDS + m)
            z = add_noise(self.encode(heard or batch), self.cfg.variance, generator)  # Eq. 1
            return net(z, ids, answer)


def build_model(cfg: TrainConfig, device: torch.device, state: dict | None) -> MATS:
    torch.manual_seed(cfg.seed)
    model = MATS(MATSConfig(**{f.name: getattr(cfg, f.name) for f in fields(MATSConfig)}))
    if state:
        with reading(f"{cfg.out}/state.pt", FRESH):
            for name, p in model.trainable().items():
                p.data.copy_(state["model"][name])
    return model.to(device).train()


def build_optimizer(cfg: TrainConfig, model: MATS, state: dict | None) -> torch.optim.AdamW:
    trained = model.trainable().values()
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": cfg.weight_decay},
        {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
    ]
    betas = cfg.beta1, cfg.beta2
    optimizer = torch.optim.AdamW(groups, lr=cfg.lr, betas=betas, fused=True)
    if state:
        with reading(f"{cfg.out}/state.pt", FRESH):
            optimizer.load_state_dict(state["optimizer"])
            for p in model.trainable().values():
                kept = optimizer.state[p]
                # the fused update would read beyond a tensor that is too small
                if {kept["exp_avg"].shape, kept["exp_avg_sq"].shape} != {p.shape}:
                    raise ValueError("the optimizer's tensors do not fit the model's")
    return optimizer


@dataclass
class Run:
    """All that a run holds in memory."""

    cfg: TrainConfig
    ranks: Ranks
    identity: dict
    start: int  # updates already made
    sources: list[Source]
    weights: list[float]
    validation: list[dict]  # batches
    model: MATS
    net: torch.nn.Module  # the model as the loop calls it
    objective: Objective
    optimizer: torch.optim.AdamW
    lock: IO | None  # of the master: kept open, so that no other run writes to `out`
    # Not for scaling: it skips an update whose gradient is not finite, without a GPU sync.
    scaler: torch.amp.GradScaler

    @property
    def out(self) -> Path:
        return Path(self.cfg.out)

    @cached_property
    def params(self) -> list[torch.nn.Parameter]:
        """All that is trained."""
        return list(self.model.trainable().values())

    @property
    def accumulate(self) -> int:
        """Micro-batches of an update in each process."""
        return self.cfg.batch_size // (self.cfg.micro_batch * self.ranks.size)


def load(cfg: TrainConfig, ranks: Ranks) -> Run | None:
    """The run in `out`, new or resumed; None: it is trained."""
    sources, weights = find_data(cfg, ranks)
    out, identity = Path(cfg.out), identity_of(cfg, sources)
    lock = lock_folder(out) if ranks.master else None
    state = resume(out, identity, cfg.fresh)
    start = state["step"] if state else 0
    if is_trained(out, cfg, start):
        return None
    if ranks.master:
        lines = log.read(out) if state else []
        log.rewrite(out, [line for line in lines if line["step"] <= start])
    model = build_model(cfg, ranks.device, state)
    optimizer = build_optimizer(cfg, model, state)
    net = wrap(cfg, model, ranks)
    validation = find_sources(cfg.val)[0] if cfg.val else []
    clap, model.probe = load_encoder(cfg, sources + validation, ranks)
    run = Run(
        cfg=cfg,
        ranks=ranks,
        identity=identity,
        start=start,
        sources=sources,
        weights=weights,
        validation=held_out(cfg, validation, model, ranks),
        model=model,
        net=net,
        objective=Objective(cfg, ranks.device, clap),
        optimizer=optimizer,
        lock=lock,
        scaler=torch.amp.GradScaler(ranks.device.type, init_scale=1.0),
    )
    if ranks.master and cfg.memory and cfg.supervision == "text":
        model.santa = make_memory(run)
    return run


def wrap(cfg: TrainConfig, model: MATS, ranks: Ranks) -> torch.nn.Module:
    """The model as the loop calls it: compiled, its gradients averaged over all ranks."""
    if cfg.compile:
        model.compile()
    if ranks.size == 1:
        return model
    devices = [ranks.device.index] if ranks.device.type == "cuda" else None
    return DDP(model, devices, gradient_as_bucket_view=True, broadcast_buffers=False)


def load_encoder(cfg: TrainConfig, sources: list[Source], ranks: Ranks) -> tuple:
    """(CLAP, or None where all sources bring their vectors; what it makes of a few texts).

    Raises DataError where a source's vectors are not those of this run's CLAP. Where that is not at
    hand, and not needed, they cannot be compared.
    """
    made = [source for source in sources if source.vectors]
    for source in made:
        dim, side, name = source.vectors["dim"], source.vectors["side"], maker(source)
        if dim != cfg.dim or side != cfg.supervision:
            raise DataError(
                f"{source.url} holds {dim}-d vectors of its {side}, made with {name}; this run "
                f"wants dim={cfg.dim} and supervision={cfg.supervision}"
            )
    needed = len(made) < len(sources)
    if not needed and not ranks.master:
        return None, None
    try:
        clap = load_clap(cfg.clap)
    except DataError as error:
        if needed or is_path(cfg.clap):
            raise
        ranks.say(
            f"the shards' vectors are taken for those of {cfg.clap}, which cannot be loaded: "
            f"{error}"
        )
        return None, None
    ready(clap, cfg.clap, ranks.device)
    if clap.dim != cfg.dim:
        raise DataError(
            f"{cfg.clap} makes vectors of {clap.dim} numbers, and this run wants dim={cfg.dim}: "
            f"set --dim={clap.dim}"
        )
    for source in made:
        if not compare_vectors(source, clap, cfg.clap):
            ranks.say(
                f"the vectors of {source.url} are taken for those of {cfg.clap}: no sample holds "
                f"the {source.vectors['side']} that its vector was made of"
            )
    found = probe(clap)
    if needed and (line := faster(clap, cfg.supervision)):
        ranks.say(f"{cfg.clap}: {line}")
    return (clap if needed else None), found


def maker(source: Source) -> str:
    """The CLAP that made the source's vectors, as far as index.json says."""
    return source.vectors.get("clap") or "an encoder without a name"


@torch.no_grad()
def compare_vectors(source: Source, clap, name: str) -> bool:
    """Whether there is a vector whose text (or audio) is there, too.

    Raises DataError where the first of these are not what this CLAP makes now.
    """
    side = source.vectors["side"]
    read = read_source(source, audio=side == "audio")
    samples = list(islice((s for s in read if "vector" in s and s[side] is not None), 4))
    if not samples:
        return False
    if side == "text":
        own = clap.encode_text([sample["text"] for sample in samples]).cpu()  # (n, D)
    else:
        own = torch.stack([encode_file(clap, sample["audio"]).cpu() for sample in samples])
    theirs = torch.from_numpy(np.stack([sample["vector"] for sample in samples]))  # (n, D)
    if F.cosine_similarity(own.float(), theirs).min() < 0.99:  # half precision leaves 0.9999
        raise DataError(
            f"{source.url} holds vectors of another encoder than {name} is now (it was called "
            f"{maker(source)}): run shards.embed again, or name the right one with --clap"
        )
    return True


def read(run: Run) -> Iterator[dict]:
    """This process's micro-batches, from the run's start on, endlessly."""
    cfg, ranks, clap = run.cfg, run.ranks, run.objective.clap

    def decode(data, seed):
        generator = torch.Generator().manual_seed(seed)
        return windows_of(clap, data, "random", generator)[0]

    plan = Plan(run.sources, run.weights, cfg.micro_batch, cfg.seed, cfg.lanes, cfg.together)
    at = run.start * run.accumulate * ranks.size
    live_audio = decode if clap and cfg.supervision == "audio" else None
    batches = Batches(plan, run.model.template, at, ranks.rank, ranks.size, cfg.strict, live_audio)
    return iter(loader(batches, cfg.workers, pin=ranks.device.type == "cuda"))


# --- a run's files ------------------------------------------------------------------------------


def lock_folder(out: Path) -> IO:
    """An open file; while it is open, a call in another process raises DataError.

    The lock is the process's own: its reading processes, which may outlive a kill, do not hold it.
    """
    out.mkdir(parents=True, exist_ok=True)
    lock = open(out / "lock", "w")  # noqa: SIM115, closed when the run ends
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise DataError(f"another run is writing to {out}: wait for it, or another --out") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        # a file system without locks
    return lock


def identity_of(cfg: TrainConfig, sources: list[Source]) -> dict:
    """All that must stay the same for a run to be resumed. A folder counts by what is in it."""
    free = {f.name for f in fields(MachineConfig)} | {"train"}
    fixed = {name: value for name, value in asdict(cfg).items() if name not in free}
    for name in ("llm", "clap"):
        if os.path.isdir(fixed[name]):
            fixed[name] = f"folder {fingerprint(fixed[name])}"
    return fixed | {"data": [source.index["hash"] for source in sources]}


FRESH = "--fresh starts the run over, another --out leaves it as it is"


def resume(out: Path, identity: dict, fresh: bool) -> dict | None:
    """The state of the run in `out`; None: a new run begins. Ends where another run is there.

    Raises DataError where the state is damaged.
    """
    path = out / "state.pt"
    if not fresh and not path.exists() and (out / "model").exists():
        raise DataError(
            f"{out} holds a trained model and no state.pt to resume from: choose another --out, or "
            "--fresh to replace the model"
        )
    if fresh or not path.exists():
        return None
    with reading(f"{path} {seems(path)}", FRESH):
        state = torch.load(path, map_location="cpu", weights_only=True)
        before = asdict(TrainConfig()) | state["identity"]  # fields that are newer than the run
        if type(state.get("step")) is not int:
            raise ValueError("no number of steps")
        missing = {"step", "optimizer", "model"} - state.keys()
    if missing:
        raise DataError(f"{path} is no run's state: it lacks {', '.join(sorted(missing))}; {FRESH}")
    changed = [name for name in identity if identity[name] != before.get(name)]
    if changed:
        sys.exit(
            f"{out} holds a run with another {', '.join(changed)} (for instance {changed[0]}="
            f"{repr(before.get(changed[0]))[:60]}); choose another --out, or --fresh to replace it"
        )
    return state


def is_trained(out: Path, cfg: TrainConfig, start: int) -> bool:
    """Whether the last update is saved, its model too, and validated."""
    written = out / "model" / "step.json"
    if start < cfg.steps or not written.exists() or written.read_text() != str(start):
        return False
    return not cfg.val or is_validated(out, start)


def is_validated(out: Path, step: int) -> bool:
    return any(line["step"] == step and "val_loss" in line for line in log.read(out))


def save(run: "Run", step: int) -> None:
    """state.pt first, in one rename: a kill at any moment leaves a run that can be resumed."""
    if not run.ranks.master:
        return
    out, model = run.out, run.model
    state = {"step": step, "identity": run.identity, "optimizer": run.optimizer.state_dict()}
    state["model"] = {name: p.detach() for name, p in model.trainable().items()}
    model.history = description(run, step)
    with replacing(out / "state.pt") as path, libraries_write():
        torch.save(state, path)
    part, old = out / "model.part", out / "model.old"
    for rest in (part, old):
        shutil.rmtree(rest, ignore_errors=True)
    try:
        model.save_pretrained(part)
        (part / "step.json").write_text(str(step))  # tells whether the model is as new as the state
        if (out / "model" / "README.md").exists():  # its user's
            shutil.copy(out / "model" / "README.md", part)
    except OSError:  # a full disk
        shutil.rmtree(part, ignore_errors=True)
        raise
    if (out / "model").exists():
        os.rename(out / "model", old)
    os.rename(part, out / "model")
    shutil.rmtree(old, ignore_errors=True)
    log.plot(out)


def description(run: Run, step: int) -> dict:
    """What the model's card says of its training (hub/card.py): no place on this machine."""
    left = {f.name for cls in (MachineConfig, MATSConfig) for f in fields(cls)}
    left |= {"train", "mixture"}  # `sources` tells them
    total = sum(run.weights)
    return {
        "step": step,
        "config": {name: value for name, value in asdict(run.cfg).items() if name not in left},
        "sources": [
            {
                "name": ", ".join(source.index.get("sources", {}))
                or source.name.rpartition("/")[2],
                "samples": len(source),
                "share": weight / total,
                "licences": source.index.get("licences", {}),
                "hash": source.index["hash"],
            }
            for source, weight in zip(run.sources, run.weights)
        ],
        "versions": {package: version(package) for package in ("torch", "transformers", "peft")},
    }


# --- the loop -----------------------------------------------------------------------------------


@torch.no_grad()
def validate(run: Run) -> tuple[float, float]:
    """Mean loss per answer token of the held-out samples, and with another sample's vector each.

    The noise is fixed. Each rank takes a share.
    """
    run.model.eval()
    total = torch.zeros(3, dtype=torch.float64)
    for i in range(run.ranks.rank, len(run.validation), run.ranks.size):
        batch = run.validation[i]
        losses = [  # not compiled: sizes differ
            float(run.objective(run.model.forward, batch, -1 - i, heard))
            for heard in (batch, batch["other"])
        ]
        total += len(batch["answer"]) * torch.tensor([*losses, 1], dtype=torch.float64)
    run.model.train()
    own, other, count = run.ranks.sum(total).tolist()
    return own / count, other / count


def update(run: Run, stream: Iterator[dict], meter: Meter) -> Tensor:
    """One update of the weights, from `accumulate` micro-batches. Returns the gradients' norm."""
    total = torch.zeros((), device=run.ranks.device)
    for micro in range(run.accumulate):
        batch = next(stream)
        m = int(batch["m"])
        torch.manual_seed(run.cfg.seed * SEEDS + m)  # LoRA's dropout, like the noise, belongs to m
        sync = run.ranks.size == 1 or micro == run.accumulate - 1
        with nullcontext() if sync else run.net.no_sync():
            loss = run.objective(run.net, batch, m) / run.accumulate
            run.scaler.scale(loss).backward()
        total += loss.detach()
        meter.add_batch(batch)
    norm = torch.nn.utils.get_total_norm([p.grad for p in run.params])
    run.scaler.step(run.optimizer)
    run.scaler.update(1.0)
    run.optimizer.zero_grad(set_to_none=True)
    meter.add_update(total, norm.isfinite() & total.isfinite())
    return norm


def due(step: int, every: int, cfg: TrainConfig) -> bool:
    return step % every == 0 or step == cfg.steps


def check(run: Run, step: int) -> None:
    """Logs the validation loss after update `step`, and whether the model listens."""
    loss, other = validate(run)
    if run.ranks.master:
        log.append(run.out, step=step, val_loss=round(loss, 5), val_loss_other=round(other, 5))
        log.plot(run.out)
    deaf = ""
    if other < 1.01 * loss:
        deaf = ": the model does not listen to its vector, or not yet (docs/models.md)"
    run.ranks.say(
        f"step {step:,}: validation loss {loss:.4f}, with another sample's vector {other:.4f}{deaf}"
    )


def train(cfg: TrainConfig, ranks: Ranks, watch: Watch) -> None:
    run = load(cfg, ranks)
    if run is None:
        ranks.say(f"{cfg.out} is trained ({cfg.steps:,} steps); {following(cfg)}")
        return
    ranks.say(summary(run))
    pending = run.validation and run.start and due(run.start, cfg.val_every, cfg)
    if pending and not is_validated(run.out, run.start):  # killed after it was saved
        check(run, run.start)
    stream, meter = read(run), Meter(ranks, log.read(run.out))
    bar = tqdm(initial=run.start, total=cfg.steps, unit=" steps", disable=not ranks.master)
    watch.start(run.start)
    for step in range(run.start, cfg.steps):
        for group in run.optimizer.param_groups:
            group["lr"] = lr_at(step, cfg)
        norm = update(run, stream, meter)
        done = step + 1
        bar.update()
        if due(done, cfg.log_every, cfg):
            line = meter.line(done, norm, run)
            if ranks.master:
                log.append(run.out, **line)
            bar.set_postfix(loss=line["loss"], samples_per_s=line["samples_per_s"], refresh=False)
        paused = time.time()
        if due(done, cfg.save_every, cfg):
            save(run, done)
        if run.validation and due(done, cfg.val_every, cfg):
            check(run, done)
        meter.since += time.time() - paused
        watch.step = done
    bar.close()
    if run.start == cfg.steps:  # killed after its last state was saved, and before its model was
        save(run, run.start)
    ranks.close()
    ranks.say(f"trained in {cfg.out}; {following(cfg)}")


def following(cfg: TrainConfig) -> str:
    """The next command. The tiny world's benchmarks are eval.py's default."""
    shards = "" if cfg.build == "shards.tiny" else " --shards BENCHMARKS (shards.benchmarks)"
    return f"next: python eval.py --ckpt {cfg.out}/model{shards}"


def summary(run: Run) -> str:
    """The sizes of all that trains, and the noise, in a line."""

    def millions(parameters):
        return nf4.count(parameters) / 1e6

    mapper = millions(run.model.mapper.parameters())
    lora = millions(p for name, p in run.model.trainable().items() if "lora_" in name)
    frozen = millions(p for p in run.model.llm.parameters() if not p.requires_grad)
    variance, dim = run.cfg.variance, run.cfg.dim
    return (
        f"{mapper:.1f} M weights in the mapper, {lora:.2f} M in LoRA, {frozen:.1f} M frozen in the "
        f"language model; {sum(map(len, run.sources)):,} samples of {len(run.sources)} sources; "
        f"{run.cfg.supervision} supervision; noise of variance {variance:g}, which leaves a cosine "
        f"of {noise_cosine(variance, dim):.2f}; {run.ranks.size} x {run.ranks.device.type}"
    )


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those that it came from."""
    while error:
        yield error
        error = error.__cause__ or error.__context__


def explain(error: BaseException) -> str | None:
    """How to go on after an exception, where that is known."""
    for cause in causes(error):  # raised wherever the process is, and wrapped by what runs there
        if "DataLoader worker (pid" in str(cause):
            return (
                "a reading process died, usually because the machine ran out of memory: lower "
                f"--workers or --lanes; the same command resumes from the last saved state. {cause}"
            )
    if isinstance(error, DataError | SystemExit):
        # a reading process's comes as its traceback
        return str(error).strip().rpartition("\n")[2].removeprefix("disk.DataError: ")
    if isinstance(error, OSError) and error.errno:
        return why(error)
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return (
            "out of memory: lower --micro_batch (batch_size, and so the result, stays the same), "
            f"or --llm_dtype=bfloat16 or nf4. {error}"
        )
    return None


def start_ranks(cfg: TrainConfig) -> Ranks:
    # the group's own time-out comes after the watch's, which has more to say
    ranks = Ranks.start(cfg.device, timedelta(minutes=cfg.timeout + 1))
    if ranks.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    return ranks


CHOICES = {
    "schedule": ("linear", "cosine"),
    "supervision": ("text", "audio"),
    "dtype": ("float32", "bfloat16"),
    "llm_dtype": ("float32", "bfloat16", "nf4"),
}


def refuse_bad(cfg: TrainConfig) -> None:
    if cfg.timeout <= 0:
        sys.exit(f"timeout={cfg.timeout:g}: expected minutes, more than 0")
    for name in ("log_every", "val_every", "save_every", "lanes", "together", "patience"):
        if getattr(cfg, name) < 1:
            sys.exit(f"{name}={getattr(cfg, name)}: expected 1 or more")
    for name in ("steps", "memory", "workers"):
        if getattr(cfg, name) < (name == "steps"):
            sys.exit(f"{name}={getattr(cfg, name)}: expected {int(name == 'steps')} or more")
    for name, known in CHOICES.items():
        if getattr(cfg, name) not in known:
            sys.exit(f"{name}={getattr(cfg, name)!r}: expected {' or '.join(known)}")
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if cfg.micro_batch < 1 or cfg.batch_size < 1 or cfg.batch_size % (cfg.micro_batch * processes):
        sys.exit(
            f"batch_size={cfg.batch_size} is not a multiple of micro_batch={cfg.micro_batch} x "
            f"{processes} processes"
        )


def main(argv: list[str]) -> None:
    cfg = config.load(TrainConfig, argv)
    refuse_bad(cfg)
    ranks = start_ranks(cfg)
    advice = (
        f"{cfg.out}/state.pt holds the last saved state, and the same command resumes from it; "
        "--timeout=MINUTES waits longer"
    )
    watch = Watch(cfg.timeout, ranks, advice)
    try:
        train(cfg, ranks, watch)
    except (Exception, SystemExit) as error:
        reason = explain(error)
        if ranks.size > 1:
            end(f"train.py: {reason or traceback.format_exc()}")
        if reason is None or isinstance(error, SystemExit):
            raise
        sys.exit(f"train.py: {reason}")
    finally:
        watch.close()


if __name__ == "__main__":
    with command("train.py"):
        main(sys.argv[1:])
