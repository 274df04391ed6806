"""Several processes, one to a GPU, started by torchrun; or one, started by python.

Ranks       which process this is, what to wait for, what to sum; the same calls with one process
find_device a device of this machine, by name
end         ends this process at once, with its reason
progress    the master's progress bar
watch.py    ends a process that makes no progress, and names the rank that hangs
log.py      what a training run logs, summed over the processes
parts.py    partial results of all processes, which survive a kill
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from tqdm import tqdm

from disk import reading


@dataclass
class Ranks:
    """This process among `size`. Only the master prints and writes."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def start(
        cls, device: str = "", timeout: timedelta | None = None, backend: str = ""
    ) -> "Ranks":
        """Joins the group that torchrun's environment names, if any.

        device: empty for cuda where there is one, else cpu; on cuda each process takes its own.
        backend: nccl on a GPU and gloo elsewhere, unless named.
        """
        rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        chosen = find_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if chosen.type == "cuda" and (size > 1 or chosen.index is None):
            chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        if size > 1 and not dist.is_initialized():
            default = "nccl" if chosen.type == "cuda" else "gloo"
            dist.init_process_group(backend or default, timeout=timeout)
        return cls(rank, size, chosen)

    @property
    def master(self) -> bool:
        return self.rank == 0

    def say(self, text: str) -> None:
        """Prints in the master, clear of any progress bar."""
        if self.master:
            tqdm.write(text)

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def master_first(self, work: Callable[[], None]) -> None:
        """Runs work() in the master alone, for hours if need be; the others wait for its end."""
        if self.size > 1:  # the group's own time-out would end them
            patient = dist.new_group(backend="gloo", timeout=timedelta(days=7))
        if self.master:
            work()
        if self.size > 1:
            dist.barrier(patient)

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of all processes' x, in every process; x itself may be overwritten."""
        if self.size > 1:
            x = x.to(self.device)
            dist.all_reduce(x)
        return x

    def close(self) -> None:
        """Waits for all, then leaves the group.

        Gloo's last work must be over before DDP goes: its destructor waits, holding the GIL, for
        threads that want the GIL.
        """
        if self.size > 1:
            dist.barrier()
            dist.destroy_process_group()


def find_device(name: str) -> torch.device:
    """Raises DataError where there is no such device."""
    with reading(f"--device {name}", "this machine has cpu, and cuda where torch finds a GPU"):
        device = torch.device(name)
        torch.empty(0, device=device)
    return device


def end(message: str) -> None:
    """Prints why and ends this process at once.

    One of several cannot leave in good order while the others wait for it.
    """
    print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def progress(what: str, total: int, unit: str, ranks: Ranks, done: int = 0) -> tqdm:
    """The master's progress bar."""
    hidden = not ranks.master
    return tqdm(total=total, initial=done, desc=what, unit=f" {unit}", leave=False, disable=hidden)
