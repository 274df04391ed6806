"""One run of train.py on two processes, against two runs of one process."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from experiments.bench.clock import Machine
from experiments.bench.samples import make_tokenizer, mixture, write_shards

PROJECT = Path(__file__).parents[2]


def scaling(machine: Machine) -> dict:
    """`torchrun train.py` on two processes, each with a batch of its own (weak scaling); against
    two independent runs of one process at the same time; one thread a process on a CPU."""
    gpus = torch.cuda.device_count() if machine.cuda else 0
    if (gpus or os.cpu_count() or 1) < 2:
        return {"skipped": "needs two GPUs, or two cores and --device=cpu"}
    with tempfile.TemporaryDirectory() as root:
        runs = Runs(machine, gpus, root)
        rounds = [(runs.rate(1), runs.rate(1, 1), runs.rate(2)) for _ in range(2)]
    # the best of the rounds: the machine's other work only slows them
    alone, apart, both = map(max, zip(*rounds))
    return {
        "unit": "samples/s",
        "two processes": round(both, 1),
        "two runs at the same time": round(apart, 1),
        "one run": round(alone, 1),
        "efficiency against two runs": round(both / apart, 3),
        "efficiency against one": round(both / 2 / alone, 3),
    }


class Runs:
    """Runs of train.py on one language model and one set of shards."""

    def __init__(self, machine: Machine, gpus: int, root: str):
        self.machine, self.gpus, self.root = machine, gpus, root
        self.width, self.micro_batch, self.steps = (768, 64, 200) if gpus else (256, 16, 8)
        torch.manual_seed(0)
        shape = GPT2Config(n_embd=self.width, n_layer=6, n_head=8, bos_token_id=0, eos_token_id=0)
        GPT2LMHeadModel(shape).save_pretrained(f"{root}/llm")
        make_tokenizer().save_pretrained(f"{root}/llm")
        write_shards(f"{root}/train", mixture(4096))

    def rate(self, *ranks: int) -> float:
        """samples/s of runs at the same time, each of so many ranks."""
        alone = len(ranks) == 1
        processes = [self.start(i, n, alone) for i, n in enumerate(ranks)]
        return sum(self.finish(i, process) for i, process in enumerate(processes))

    def start(self, i: int, ranks: int, alone: bool) -> subprocess.Popen:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        if self.gpus and not alone:
            visible = environment.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")
            environment["CUDA_VISIBLE_DEVICES"] = visible[i]
        launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        return subprocess.Popen(
            [sys.executable, "-m", *launcher, "train.py", "mats_gpt2", *self.options(i, ranks)],
            cwd=PROJECT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def options(self, i: int, ranks: int) -> list[str]:
        return [
            "--mixture={}",
            "--fresh",
            f"--train={self.root}/train",
            f"--llm={self.root}/llm",
            f"--out={self.root}/{i}",
            f"--width={self.width}",
            "--memory=0",
            f"--device={self.machine.device}",
            f"--dtype={self.machine.dtype}",
            f"--compile={bool(self.gpus)}",
            "--workers=1",
            "--together=2",
            f"--micro_batch={self.micro_batch}",
            f"--batch_size={4 * self.micro_batch * ranks}",
            f"--steps={self.steps}",
            f"--log_every={self.steps // 4}",
            f"--save_every={self.steps}",
        ]

    def finish(self, i: int, process: subprocess.Popen) -> float:
        """samples/s of run i without its first quarter, in which it gets under way."""
        errors = process.communicate()[1]
        if process.returncode:
            sys.exit(f"scaling: train.py failed: {errors[-2000:]}")
        lines = Path(f"{self.root}/{i}/log.jsonl").read_text().splitlines()
        rates = [json.loads(line)["samples_per_s"] for line in lines[1:]]
        return len(rates) / sum(1 / rate for rate in rates)
