"""
Building blocks of synthesis: noise, tones, ringing bodies, filters and envelopes.

Most are methods of a `Tape`, an empty stretch of sound with a random generator:

    tape.noise(200, 3000) * tape.decay(0.1)      a burst of noise: (n,) floats

n is a number of samples, sr the sample rate in Hz, t a time in seconds, f or hz a frequency, x a
wave of shape (n,), k the number of a harmonic.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

Wave = np.ndarray  # (n,) floats
BLOCK = 192  # samples of a fine piece in Tape.modes


@dataclass(frozen=True)
class Tape:
    """An empty stretch of sound. Methods return waves of its length unless they say otherwise."""

    rng: np.random.Generator
    n: int
    sr: int = 16000

    @property
    def t(self) -> np.ndarray:
        """The time of every sample, in seconds."""
        return np.arange(self.n) / self.sr

    def uniform(self, low: float, high: float) -> float:
        return self.rng.uniform(low, high)

    # -- pieces of it

    def grain(self, seconds: float) -> "Tape":
        """A tape for one of many short sounds, of exactly that length."""
        return replace(self, n=int(seconds * self.sr))

    def event(self, seconds: float) -> "Tape":
        """A tape for one sound at the beginning of this one, and never longer than this one."""
        return replace(self, n=min(self.n, int(seconds * self.sr)))

    def pad(self, x: Wave) -> Wave:
        """x, then silence."""
        return np.r_[x, np.zeros(self.n - len(x), np.float32)]

    # -- things that sound

    def noise(self, low: float = 20, high: float = 8000, tilt: float = 0.0) -> Wave:
        """Noise of unit RMS between low and high Hz, times frequency to the power `tilt`."""
        f = frequencies(fft_length(self.n), self.sr)
        spectrum = self.rng.standard_normal(2 * len(f), dtype=np.float32).view(np.complex64)
        spectrum = spectrum * band(f, low, high)
        if tilt:
            spectrum = spectrum * np.exp(np.float32(tilt) * np.log(f))
        x = np.fft.irfft(spectrum)[: self.n]
        return x / (np.sqrt(np.mean(x * x)) + 1e-9)

    def sparks(self, rate: float) -> Wave:
        """Impulses at random instants, `rate` a second, of random strength."""
        strikes = self.rng.random(self.n, dtype=np.float32) < rate / self.sr
        return strikes * self.rng.exponential(1, self.n).astype(np.float32)

    def tone(self, hz, harmonics: Sequence[float] = (1.0,), phase: float = 0.0) -> Wave:
        """A periodic wave, read from a table.

        hz is a number or a curve (n,); harmonics are amplitudes; phase is a share of a period.
        """
        audible = max(1, int(0.47 * self.sr / np.max(hz)))  # higher ones would alias
        table = period(tuple(harmonics[:audible]))
        turns = np.cumsum(hz, dtype=np.float64) if np.ndim(hz) else hz * np.arange(self.n)
        return table[((turns / self.sr + phase) * 2048).astype(np.int32) & 2047]

    def chord(self, hz: float, ratios: Sequence[float], harmonics: Sequence[float]) -> Wave:
        """Tones at hz times each ratio, each at a random phase."""
        return sum(self.tone(hz * ratio, harmonics, self.rng.random()) for ratio in ratios)

    def modes(self, hz: float, ratios, amplitudes, decays) -> Wave:
        """The decaying sinusoids of something struck or plucked; decays are seconds to 1/e.

        exp(c (t + s)) = exp(c t) exp(c s): every mode is a product of coarse times t and fine
        times s. This saves most of the n exponentials.
        """
        arrays = np.broadcast_arrays(np.asarray(ratios, float), amplitudes, decays)
        audible = hz * arrays[0] < 0.47 * self.sr
        ratios, amplitudes, decays = (a[audible] for a in arrays)
        c = (2j * np.pi * hz * ratios - 1 / decays) / self.sr  # (modes,)
        start = amplitudes * np.exp(2j * np.pi * self.rng.random(len(c)))
        coarse = np.exp(np.outer(c, np.arange(0, self.n, BLOCK))) * start[:, None]
        coarse[np.abs(coarse) < 1e-9] = 0  # denormal numbers would be ten times as slow
        coarse = coarse.astype(np.complex64)  # (modes, n / BLOCK)
        fine = np.exp(np.outer(c, np.arange(BLOCK))).astype(np.complex64)  # (modes, BLOCK)
        x = np.zeros((coarse.shape[1], BLOCK), np.float32)
        # A loop rather than a matrix product: BLAS adds in an order that depends on its threads.
        for u, v in zip(coarse, fine):
            x += u.real[:, None] * v.imag
            x += u.imag[:, None] * v.real
        return x.ravel()[: self.n]

    # -- filters: of a wave of any length

    def band_pass(self, x: Wave, low: float, high: float) -> Wave:
        return self._filter(x, lambda f: band(f, low, high))

    def formants(self, x: Wave, *peaks: tuple[float, float]) -> Wave:
        """x through resonances (Hz, gain), as a mouth or a wooden body has them."""
        return self._filter(
            x,
            lambda f: sum(
                gain / (1 + ((f - centre) / (40 + 0.12 * centre)) ** 2) for centre, gain in peaks
            ),
        )

    def _filter(self, x, response):
        n = fft_length(len(x))
        return np.fft.irfft(np.fft.rfft(x, n) * response(frequencies(n, self.sr)))[: len(x)]

    # -- envelopes and curves

    def decay(self, seconds: float, attack: float = 0.002) -> Wave:
        """Up to 1 in `attack` seconds, and down to 1/e in `seconds`."""
        t = self.t.astype(np.float32)
        return np.exp(np.maximum(-t / seconds, -40)) * np.minimum(1, t / attack)

    def swell(self, rise: float, fall: float) -> Wave:
        """0 -> 1 in `rise` seconds, 1 -> 0 in the last `fall` seconds."""
        t = self.t.astype(np.float32)
        return np.clip(np.minimum(t / rise, (self.n / self.sr - t) / fall), 0, 1)

    def fade_in(self, seconds: float) -> Wave:
        return np.minimum(1, np.arange(self.n) / (seconds * self.sr))

    def curve(self, points: Sequence[float]) -> Wave:
        """A line through evenly spaced points."""
        places = np.linspace(0, len(points) - 1, self.n)
        return np.interp(places, np.arange(len(points)), points).astype(np.float32)

    def wander(self, rate: float, depth: float) -> Wave:
        """A slow random curve around 1, `rate` points a second, never below 0."""
        points = self.rng.standard_normal(int(rate * self.n / self.sr) + 3)
        return np.maximum(self.curve(1 + depth * points), 0)

    # -- many sounds in time: instants are in samples

    def beats(self, rate: float, jitter: float) -> np.ndarray:
        """Instants, `rate` a second, human rather than exact; the first comes at once."""
        step = self.sr / rate
        instants = np.arange(0.02 * self.sr, self.n, step)
        instants += step * jitter * self.rng.standard_normal(len(instants))
        return np.clip(instants, 0, self.n)

    def scatter(self, rate: float) -> np.ndarray:
        """Instants anywhere, `rate` a second on average."""
        return self.rng.integers(0, self.n, int(rate * self.n / self.sr))

    def place(self, instants: Sequence[float], grains: Iterable[Wave]) -> Wave:
        """The sum of all grains, each at its instant and cut at the tape's end."""
        out = np.zeros(self.n, np.float32)
        for start, grain in zip(np.asarray(instants).astype(int), grains):
            heard = grain[: max(self.n - start, 0)]
            out[start : start + len(heard)] += heard
        return out


def fft_length(n: int) -> int:
    """A length that an FFT likes, at least n."""
    return -(-n // 256) * 256


def frequencies(n: int, sr: int) -> np.ndarray:
    """Hz of every bin of an FFT, plus 1 so that one can divide by it: (n // 2 + 1,) float32."""
    return np.fft.rfftfreq(n, 1 / sr).astype(np.float32) + 1


def band(f: np.ndarray, low: float, high: float) -> np.ndarray:
    """The gain at f of a filter that passes low to high Hz."""
    below, above = (low / f) ** 2, (f / high) ** 2
    return 1 / ((1 + below * below) * (1 + above * above))


@lru_cache(maxsize=256)
def period(harmonics: tuple[float, ...]) -> np.ndarray:
    """One period of a wave with these harmonics: (2048,)."""
    spectrum = [[0], -1024j * np.array(harmonics), np.zeros(1024 - len(harmonics))]
    return np.fft.irfft(np.concatenate(spectrum)).astype(np.float32)


def rolloff(k: int, power: float) -> np.ndarray:
    """Amplitudes of k harmonics, ever weaker: (k,)."""
    return np.arange(1, k + 1) ** -float(power)


def level(x: Wave) -> Wave:
    """x at a loudness that suits a click and a hiss alike; its peak is at most 0.8."""
    peak, rms = np.abs(x).max(), np.sqrt(np.mean(x * x))
    return (x * min(0.8 / (peak + 1e-9), 0.16 / (rms + 1e-9))).astype(np.float32)
