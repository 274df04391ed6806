"""A training run's log.jsonl, a line each `log_every` updates and each validation; and its plot."""

import json
import math
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from disk import write_atomic
from distributed import Ranks
from distributed.parts import readable_lines

CURVES = (  # of the plot: field of the log, title, style
    ("loss", "loss", "-"),
    ("val_loss", "validation", "o-"),
    ("val_loss_other", "validation, another sample's vector", "o--"),
)
PEAK = {"A100": 312e12, "H100": 989e12, "H200": 989e12}  # dense bf16 FLOP/s, for MFU


class Meter:
    """Sums since the last line of the log. Those on the device are read only when it is written.

    before: the lines of a run that is resumed.
    """

    def __init__(self, ranks: Ranks, before: list[dict] = ()):
        last = next((line for line in reversed(before) if "loss" in line), {})
        self.ranks = ranks
        # of the whole run
        self.broken, self.skipped = last.get("broken", 0), last.get("skipped", 0)
        self.named = 20  # broken samples that are still printed
        self.in_a_row = torch.zeros((), device=ranks.device)  # skipped updates
        self.restart()

    def restart(self) -> None:
        self.loss = self.updates = self.left_out = torch.zeros((), device=self.ranks.device)
        self.samples = self.positions = self.answers = 0
        self.since = time.time()

    def add_batch(self, batch: dict) -> None:
        self.samples += len(batch["ids"])
        self.positions += batch["ids"].numel()
        self.answers += len(batch["answer"])
        for problem in batch["broken"]:
            self.broken += 1
            self.named -= 1
            if self.named >= 0:
                tqdm.write(f"broken: {problem}", file=sys.stderr)
            if self.named == 0:
                tqdm.write("further ones are counted in log.jsonl (broken)", file=sys.stderr)

    def add_update(self, loss: Tensor, good: Tensor) -> None:
        self.loss = self.loss + torch.where(good, loss, 0.0)
        self.updates = self.updates + good
        self.left_out = self.left_out + ~good
        self.in_a_row = torch.where(good, 0.0, self.in_a_row + 1)

    def line(self, step: int, norm: Tensor, run) -> dict:
        """The updates since the last line. Only here does the loop wait for the device."""
        sums = torch.stack([self.loss, self.updates, self.left_out, self.in_a_row])
        loss, updates, left_out, in_a_row = (self.ranks.sum(sums) / self.ranks.size).tolist()
        self.skipped += int(left_out)
        self.in_a_row = torch.full_like(self.in_a_row, in_a_row)
        cfg = run.cfg
        if in_a_row >= cfg.patience:
            sys.exit(
                f"the last {int(in_a_row)} updates before step {step} were skipped, because their "
                f"gradients are not finite; {cfg.out}/state.pt holds the last saved state. A lower "
                "--lr, or --dtype=float32, may help"
            )
        seconds, ranks = time.time() - self.since, self.ranks.size
        rate = self.samples * ranks / seconds
        positions = self.samples * cfg.prefix + self.positions
        flop = run.model.flops(self.positions / self.samples, self.answers / self.samples)
        peak = peak_of(self.ranks.device)
        line = {
            "step": step,
            "loss": round(loss / updates, 5) if updates else None,
            "grad_norm": round(float(norm), 4) if math.isfinite(norm) else None,
            "lr": run.optimizer.param_groups[0]["lr"],
            "samples_per_s": round(rate, 1),
            "tokens_per_s": round(positions * ranks / seconds, 1),
            "tflops": round(rate * flop / 1e12, 3),
            "mfu": round(rate * flop / ranks / peak, 4) if peak else None,
            "broken": self.broken,
            "skipped": self.skipped,
        }
        self.restart()
        return line


def peak_of(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name()
    return next((flops for gpu, flops in PEAK.items() if gpu in name), None)


def read(out: Path) -> list[dict]:
    """The lines of log.jsonl. A kill may have cut the last one; others that are none are named."""
    path = out / "log.jsonl"
    lines, broken = readable_lines(path) if path.exists() else ([], [])
    for number in broken:
        tqdm.write(f"left out: {path}, line {number} is no line of a log", file=sys.stderr)
    return [line for line in lines if type(line.get("step")) is int]


def rewrite(out: Path, lines: list[dict]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "log.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())


def append(out: Path, **line) -> None:
    with open(out / "log.jsonl", "a") as f:
        f.write(json.dumps(line) + "\n")


def plot(out: Path) -> None:
    """loss.png, from log.jsonl."""
    from matplotlib.figure import Figure

    lines = read(out)
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axis = figure.subplots()
    for key, label, style in CURVES:
        points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        if points:
            axis.plot(*zip(*points), style, ms=3, lw=1, label=label)
    axis.set(xlabel="step", ylabel="cross-entropy per answer token")
    axis.legend(frameon=False)
    figure.savefig(out / "loss.png", dpi=120)
