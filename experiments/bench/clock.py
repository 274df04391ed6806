"""Times and rates, and the machine that they are measured on."""

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


class Timing(float):
    """Seconds: the median of several times, and `spread`, half of their range as a share of it."""

    spread: float


def timing(seconds: list[float]) -> Timing:
    median = Timing(statistics.median(seconds))
    median.spread = (max(seconds) - min(seconds)) / 2 / median
    return median


def now() -> float:
    """Seconds of a clock, read when the GPU has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def clock(*ways: Callable, repeats: int = 3) -> list[Timing]:
    """The Timing of each way.

    The ways take turns, so that a drift of the machine hits all alike. One turn before the
    `repeats` does not count.
    """
    times = [[] for _ in ways]
    for _ in range(repeats + 1):
        for way, seconds in zip(ways, times):
            start = now()
            way()
            seconds.append(now() - start)
    return [timing(seconds[1:]) for seconds in times]


def duration(ours: Timing, obvious: Timing | None = None) -> dict:
    """The result of a part that takes this long here, and the obvious way."""
    result = {"unit": "s", "ours": ours, "spread": ours.spread}
    if obvious:
        result |= {"obvious": obvious, "obvious spread": obvious.spread}
    return result


def rate(n: int, unit: str, ours: Timing, obvious: Timing | None = None) -> dict:
    """The result of a part that does n of something in this time."""
    result = duration(ours, obvious) | {"unit": unit}
    return result | {key: n / result[key] for key in ("ours", "obvious") if key in result}


@dataclass
class Machine:
    """The device that a part runs on, and the precision of its arithmetic."""

    device: str
    dtype: str  # bfloat16 | float32

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    def amp(self):
        kind, enabled = self.device.split(":")[0], self.dtype == "bfloat16"
        return torch.autocast(kind, torch.bfloat16, enabled=enabled)

    def peak(self) -> float:
        """FLOP/s of large matrix products."""
        n = 8192 if self.cuda else 2048
        x, y = torch.randn(2, n, n, device=self.device, dtype=getattr(torch, self.dtype))
        return 2 * n**3 / clock(lambda: x @ y, repeats=7)[0]

    def memory(self) -> int:
        """Bytes: the most on the GPU since the last call, or the most of this process so far."""
        if not self.cuda:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        most = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return most
