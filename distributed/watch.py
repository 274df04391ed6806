"""A watch over processes that wait for one another."""

import os
import threading
from typing import NamedTuple

import torch.distributed as dist

from distributed import Ranks, end


class Heard(NamedTuple):
    said: str  # "update tick": the rank's last finished update, and a count of its time
    tick: int  # of ours, when that was new


class Watch:
    """Ends a process that finishes no update for `minutes`, and says which rank is behind.

    A fault that stops one rank (a disk that does not answer, a lost GPU) leaves all others waiting
    in silence. So each rank writes to a TCPStore, every few seconds, that it is alive and
    which update it has finished. (On a GPU: handed over; the host is at most `log_every` updates
    ahead.) Time in which the process itself is stopped, as by a batch system, does not count.

    The owner sets `step` after each update. `advice` ends the message.
    """

    def __init__(self, minutes: float, ranks: Ranks, advice: str):
        self.minutes, self.ranks, self.advice = minutes, ranks, advice
        self.pause = min(5, 6 * minutes)  # seconds in a tick
        self.step = self.tick = 0
        self.heard = [Heard("0", 0)] * ranks.size
        self.over, self.threads = threading.Event(), []

    def start(self, step: int) -> None:
        self.step = step
        # The store has a thread of its own: one whose host is gone may never answer.
        tasks = [self.watch, self.talk] if self.ranks.size > 1 else [self.watch]
        self.threads = [threading.Thread(target=task, daemon=True) for task in tasks]
        for thread in self.threads:
            thread.start()

    def close(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(5)

    def talk(self) -> None:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=False)
        keys = [f"watch {rank}" for rank in range(self.ranks.size)]
        while not self.over.wait(self.pause):
            store.set(keys[self.ranks.rank], f"{self.step} {self.tick}")
            for rank, said in enumerate(store.multi_get(keys)):
                if said != self.heard[rank].said:
                    self.heard[rank] = Heard(said, self.tick)

    def watch(self) -> None:
        seen, since = self.step, 0
        while not self.over.wait(self.pause):
            self.tick += 1
            if self.step != seen:
                seen, since = self.step, self.tick
            if (self.tick - since) * self.pause > 60 * self.minutes:
                end(
                    f"train.py: no update has been finished for {self.minutes:g} minutes"
                    f"{self.report()}. {self.advice}"
                )

    def report(self) -> str:
        """Where each of several ranks stands."""
        if self.ranks.size == 1:
            return ""
        report = ""
        for rank, heard in enumerate(self.heard):
            report += f"; rank {rank} finished update {int(heard.said.split()[0]):,}"
            if rank != self.ranks.rank and self.tick - heard.tick > 3:
                report += " and no longer answers"
        return report
