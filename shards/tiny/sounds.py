"""
A small world of sounds. numpy only, seeded, no recordings; words.py describes it.

1. A *source* is a recipe, physical or musical, with its numbers drawn afresh at every call: `SOURCES["rain"].render(rng, n, sr)`.
2. A *scene* is one to three sources with a count, a distance, an order, a tempo: `random_scene(rng)`, `render(scene, rng)`.
"""

import functools
from dataclasses import dataclass

import numpy as np

# ---------------------------------------------------------------------------------------------------------------------
# signals: every function returns (n,) float32


def fast(n):
    """A length that an FFT likes, at least n."""
    return -(-n // 256) * 256


def freqs(n, sr):
    return np.fft.rfftfreq(n, 1 / sr).astype(np.float32) + 1  # + 1: never divide by zero


def band(f, lo, hi):
    u, v = (lo / f) ** 2, (f / hi) ** 2
    return 1 / ((1 + u * u) * (1 + v * v))


def noise(rng, n, sr, lo=20, hi=8000, tilt=0.0):
    """Noise between lo and hi Hz, times frequency to the power `tilt` (-1: brown), unit RMS."""
    f = freqs(fast(n), sr)
    x = rng.standard_normal(2 * len(f), dtype=np.float32).view(np.complex64) * band(f, lo, hi)
    x = np.fft.irfft(x * np.exp(np.float32(tilt) * np.log(f)) if tilt else x)[:n]
    return x / (np.sqrt(np.mean(x * x)) + 1e-9)


def filtered(x, sr, response):
    """x through a filter given as a function of frequency in Hz."""
    n = fast(len(x))
    return np.fft.irfft(np.fft.rfft(x, n) * response(freqs(n, sr)))[: len(x)]


def formants(x, sr, *peaks):
    """x through resonances (Hz, gain), as a mouth or a wooden body has them."""
    return filtered(
        x, sr, lambda f: sum(g / (1 + ((f - c) / (40 + 0.12 * c)) ** 2) for c, g in peaks)
    )


@functools.lru_cache(maxsize=256)
def period(amps):
    """One period of a wave with harmonics `amps`, 2048 points."""
    return np.fft.irfft(
        np.concatenate([[0], -1024j * np.array(amps), np.zeros(1024 - len(amps))])
    ).astype(np.float32)


def tone(hz, n, sr, amps=(1.0,), phase=0.0):
    """A periodic wave; hz is a number or a curve (n,). One look-up in a table, however many harmonics."""
    table = period(
        tuple(amps[: max(1, int(0.47 * sr / np.max(hz)))])
    )  # higher ones would fold back below the Nyquist frequency
    turns = np.cumsum(hz, dtype=np.float64) if np.ndim(hz) else hz * np.arange(n)
    return table[((turns / sr + phase) * 2048).astype(np.int32) & 2047]


def modes(rng, n, sr, hz, ratios, amps, decays):
    """The sum of decaying sinusoids that a struck or plucked thing rings with; decays in seconds to 1/e.
    exp(c(t + s)) = exp(ct) exp(cs): coarse times by fine times, one small product a mode, instead of n exponentials."""
    ratios, amps, decays = np.broadcast_arrays(np.asarray(ratios, float), amps, decays)
    keep = hz * ratios < 0.47 * sr
    c = (2j * np.pi * hz * ratios[keep] - 1 / decays[keep]) / sr  # (K,)
    start = amps[keep] * np.exp(2j * np.pi * rng.random(keep.sum()))
    coarse = np.exp(np.outer(c, np.arange(0, n, 192))) * start[:, None]  # (K, n / 192)
    coarse[np.abs(coarse) < 1e-9] = 0  # else denormal numbers, ten times as slow
    coarse, fine = (
        coarse.astype(np.complex64),
        np.exp(np.outer(c, np.arange(192))).astype(np.complex64),
    )  # (K, 192)
    out = np.zeros((coarse.shape[1], 192), np.float32)
    for u, v in zip(
        coarse, fine
    ):  # not one matrix product: BLAS would add in an order, and with threads, of its own
        out += u.real[:, None] * v.imag
        out += u.imag[:, None] * v.real
    return out.ravel()[:n]


def rolloff(k, power):
    return np.arange(1, k + 1) ** -float(power)


def decay(n, sr, seconds, attack=0.002):
    t = np.arange(n, dtype=np.float32) / sr
    return np.exp(np.maximum(-t / seconds, -40)) * np.minimum(1, t / attack)


def swell(n, sr, rise, fall):
    """0 -> 1 in `rise` seconds, 1 -> 0 in the last `fall` seconds."""
    t = np.arange(n, dtype=np.float32) / sr
    return np.clip(np.minimum(t / rise, (n / sr - t) / fall), 0, 1)


def curve(points, n):
    """A line through evenly spaced points."""
    return np.interp(np.linspace(0, len(points) - 1, n), np.arange(len(points)), points).astype(
        np.float32
    )


def wander(rng, n, sr, rate, depth):
    """A slow random curve around 1, `rate` points a second, never below 0."""
    return np.maximum(curve(1 + depth * rng.standard_normal(int(rate * n / sr) + 3), n), 0)


def sparks(rng, n, sr, rate):
    """Impulses at random instants, `rate` a second, of random strength."""
    return (rng.random(n, dtype=np.float32) < rate / sr) * rng.exponential(1, n).astype(np.float32)


def place(n, starts, grain):
    """Adds grain(i) at each start (in samples), cut at the end."""
    out = np.zeros(n, np.float32)
    for i, s in enumerate(np.asarray(starts).astype(int)):
        g = grain(i)[: max(n - s, 0)]
        out[s : s + len(g)] += g
    return out


def beats(rng, n, sr, rate, jitter=0.05):
    """Instants, in samples, `rate` a second, human rather than exact; the first comes at once."""
    step = sr / rate
    s = np.arange(0.02 * sr, n, step)
    return np.clip(s + step * jitter * rng.standard_normal(len(s)), 0, n)


# ---------------------------------------------------------------------------------------------------------------------
# sources


@dataclass(frozen=True)
class Source:
    """One thing that sounds. `gap` seconds between two events of it; 0: it goes on by itself and is not counted."""

    name: str  # the label
    kind: str  # sound | music
    group: str  # what family it belongs to
    where: str  # where one would hear it
    subjects: tuple  # "a dog", "a hound": who
    verbs: tuple  # "barks": does what
    gap: float  # sound only
    base: float  # music only: Hz of its low register; 0: it has no pitch
    recipe: object  # sound: (rng, n, sr); music: (rng, n, sr, hz), for one note; without pitch hz is the step in the bar

    def render(self, rng, n, sr=16000):
        """One event or one stretch of a sound, one melody of an instrument: (n,) float32 in [-1, 1]."""
        if self.kind == "music":
            return _level(
                _melody(
                    self,
                    rng,
                    n,
                    sr,
                    *(str(rng.choice(v)) for v in (("slow", "fast"), ("low", "high"), CONTOURS)),
                )
            )
        return _level(self.recipe(rng, n, sr))


SOURCES = {}
CONTOURS = ("rising", "falling", "wandering")


def source(name, group, where, who, does, gap=0.0, base=None):
    def add(recipe):
        kind = "sound" if base is None else "music"
        SOURCES[name] = Source(
            name,
            kind,
            group,
            where,
            tuple(who.split("|")),
            tuple(does.split("|")),
            gap,
            base or 0.0,
            recipe,
        )
        return recipe

    return add


# -- nature


@source("rain", "nature", "outdoors in bad weather", "rain|a shower of rain", "falls|pours|patters")
def rain(rng, n, sr):
    drops = filtered(
        sparks(rng, n, sr, rng.uniform(150, 500)),
        sr,
        lambda f: band(f, rng.uniform(1200, 2500), 7000),
    )
    return noise(rng, n, sr, rng.uniform(500, 1500), 7000) * 0.5 + drops * rng.uniform(3, 8)


@source(
    "thunder",
    "nature",
    "outdoors in bad weather",
    "thunder|a thunderstorm",
    "rumbles|rolls|booms",
    gap=0.9,
)
def thunder(rng, n, sr):
    claps = (
        np.r_[0, rng.uniform(0, 0.5, 4)] * n
    )  # the one flash, heard from ever farther along its path
    roll = place(
        n,
        claps,
        lambda i: decay(n, sr, rng.uniform(0.1, 0.4), 0.02 + 0.03 * (i > 0)) * rng.uniform(0.4, 1),
    )
    return (
        noise(rng, n, sr, 25, rng.uniform(120, 300), -0.3) * roll
        + noise(rng, n, sr, 200, 3000) * decay(n, sr, 0.06) * 0.3
    )


@source("wind", "nature", "outdoors in bad weather", "the wind|a gale", "howls|blows")
def wind(rng, n, sr):
    c = rng.uniform(250, 600)
    howl, roar = (
        noise(rng, n, sr, c / 1.1, c * 1.1) * wander(rng, n, sr, 2, 0.7),
        noise(rng, n, sr, c, c * 2) * wander(rng, n, sr, 2, 0.6),
    )
    return howl + 0.6 * roar + noise(rng, n, sr, 60, 400, -0.5) * 0.7


@source(
    "sea waves", "nature", "by the water", "the sea|the surf", "rolls|roars|breaks on the shore"
)
def waves(rng, n, sr):
    up = np.sin(np.pi * (np.arange(n) / sr / rng.uniform(1.2, 2.2) + rng.random())) ** 2
    return noise(rng, n, sr, 60, 700, -0.3) * (0.3 + up) + noise(rng, n, sr, 800, 5000, -0.4) * (
        0.1 + up * up
    )


@source("stream", "nature", "by the water", "a stream|a brook", "babbles|flows|gurgles")
def stream(rng, n, sr):
    m = int(0.04 * sr)
    bubbles = [
        tone(rng.uniform(400, 1800) * np.linspace(1, rng.uniform(1.1, 1.6), m), m, sr)
        * decay(m, sr, 0.012)
        * rng.exponential()
        for _ in range(20)
    ]  # Minnaert: a bubble rings at a pitch set by its size, and rises as it nears the surface
    gurgle = place(
        n, rng.integers(0, n, int(rng.uniform(40, 90) * n / sr)), lambda i: bubbles[i % 20]
    )
    return gurgle + noise(rng, n, sr, 300, 3000) * 0.08


@source("water drip", "nature", "in a cave", "water|a leaking tap", "drips", gap=0.2)
def drip(rng, n, sr):
    hz = rng.uniform(900, 2200)
    t = np.arange(n) / sr
    return tone(hz * (1 + np.minimum(t, 0.08) * rng.uniform(3, 8)), n, sr) * decay(
        n, sr, rng.uniform(0.02, 0.04)
    )


@source("fire", "nature", "at a camp in the woods", "a fire|a campfire", "crackles|burns")
def fire(rng, n, sr):
    m = int(0.02 * sr)
    snaps = [
        noise(rng, m, sr, rng.uniform(800, 3000), 7500)
        * decay(m, sr, rng.uniform(0.001, 0.005), 0.0003)
        * rng.exponential()
        for _ in range(15)
    ]
    snaps = place(n, rng.integers(0, n, int(rng.uniform(14, 35) * n / sr)), lambda i: snaps[i % 15])
    return snaps + noise(rng, n, sr, 60, 500, -0.4) * wander(rng, n, sr, 8, 0.3) * 0.12


# -- animals


@source("dog bark", "animal", "in a yard", "a dog|a hound", "barks|yaps", gap=0.25)
def dog(rng, n, sr):
    m = min(n, int(rng.uniform(0.13, 0.2) * sr))
    f = rng.uniform(300, 650) * curve([0.8, 1.15, 1.0, 0.6], m)
    x = tone(f, m, sr, rolloff(20, 0.7)) + 0.35 * noise(rng, m, sr, 500, 4000)
    return _pad(
        formants(x, sr, (rng.uniform(600, 900), 1), (rng.uniform(1300, 1800), 0.7), (2800, 0.3))
        * swell(m, sr, 0.015, 0.08),
        n,
    )


@source("cat meow", "animal", "in a living room", "a cat|a tomcat", "meows|mews", gap=0.6)
def cat(rng, n, sr):
    m = min(n, int(rng.uniform(0.4, 0.6) * sr))
    x = tone(rng.uniform(450, 750) * curve([0.75, 1.05, 1.1, 1.0, 0.7], m), m, sr, rolloff(14, 0.9))
    mouth = curve([0, 1, 0.8, 0.2, 0], m)  # closed, open, closed: m-eow
    return _pad(
        (
            formants(x, sr, (1100, 1), (2400, 0.8)) * mouth
            + formants(x, sr, (500, 1), (900, 0.4)) * (1 - mouth)
        )
        * swell(m, sr, 0.06, 0.15),
        n,
    )


@source("cow moo", "animal", "on a farm", "a cow|an ox", "moos|lows", gap=0.9)
def cow(rng, n, sr):
    m = min(n, int(rng.uniform(0.7, 0.9) * sr))
    x = tone(
        rng.uniform(100, 160) * curve([0.8, 1, 1.1, 1.05, 0.8], m) * wander(rng, m, sr, 20, 0.01),
        m,
        sr,
        rolloff(25, 0.6),
    )
    mouth = curve([0, 0.3, 1, 0.8, 0.3], m)
    return _pad(
        (
            formants(x, sr, (250, 1)) * (1 - mouth)
            + formants(x, sr, (450, 1), (850, 0.6), (2200, 0.1)) * mouth
        )
        * swell(m, sr, 0.12, 0.2),
        n,
    )


@source("bird chirp", "animal", "in a forest", "a bird|a sparrow", "chirps|tweets|sings", gap=0.22)
def bird(rng, n, sr):
    m = min(n, int(rng.uniform(0.08, 0.16) * sr))
    a, b, c = rng.uniform(2500, 5500, 3)
    trill = 1 + 0.06 * np.sin(2 * np.pi * rng.uniform(25, 60) * np.arange(m) / sr)
    return _pad(tone(curve([a, b, c], m) * trill, m, sr, (1, 0.15)) * swell(m, sr, 0.02, 0.04), n)


@source("frog croak", "animal", "by a pond", "a frog|a toad", "croaks|ribbits", gap=0.3)
def frog(rng, n, sr):
    m = min(n, int(rng.uniform(0.16, 0.26) * sr))
    rattle = np.maximum(0, tone(rng.uniform(35, 65) * curve([0.8, 1.2], m), m, sr)) ** 2
    x = tone(rng.uniform(90, 160), m, sr, rolloff(30, 0.2)) * rattle
    return _pad(
        formants(x, sr, (rng.uniform(500, 800), 1), (rng.uniform(1200, 1700), 0.8))
        * swell(m, sr, 0.03, 0.05),
        n,
    )


@source(
    "cricket",
    "animal",
    "in a meadow at night",
    "a cricket|a grasshopper",
    "trills|sings in the grass",
)
def cricket(rng, n, sr):
    t = np.arange(n) / sr
    pulses = np.maximum(0, np.sin(2 * np.pi * rng.uniform(26, 36) * t))
    chirps = np.clip(
        6 * np.sin(2 * np.pi * (rng.uniform(2.2, 4) * t + rng.random())) + rng.uniform(0, 2), 0, 1
    )
    return tone(rng.uniform(4000, 5200), n, sr, (1, 0.2)) * pulses * chirps


# -- people


@source("baby cry", "human", "in a nursery", "a baby|an infant", "wails|bawls")
def baby(rng, n, sr):
    m = int(rng.uniform(0.55, 0.8) * sr)
    hz = rng.uniform(380, 540)

    def cry(_):
        f = (
            hz
            * rng.uniform(0.95, 1.05)
            * curve([0.8, 1.1, 1.15, 1.1, 0.75], m)
            * wander(rng, m, sr, 25, 0.015)
        )
        x = tone(f, m, sr, rolloff(16, 0.5)) + 0.1 * noise(rng, m, sr, 800, 6000)
        return formants(x, sr, (1100, 1), (1700, 0.6), (3300, 0.6)) * swell(m, sr, 0.08, 0.12)

    return place(n, np.arange(0, n, int(m * rng.uniform(1.1, 1.25))), cry)


@source("laughter", "human", "at a party", "a person|a reveller", "laughs|giggles|chuckles")
def laugh(rng, n, sr):
    starts = beats(rng, n, sr, rng.uniform(4, 6), 0.06)
    m, hz = int(0.14 * sr), rng.uniform(150, 330)

    def ha(i):
        f = hz * (1.15 - 0.3 * (i % 7) / 7) * curve([1.1, 1, 0.85], m)
        x = tone(f, m, sr, rolloff(22, 0.7)) + noise(rng, m, sr, 500, 5000) * curve(
            [0.9, 0.2, 0.1, 0.4], m
        )
        return formants(x, sr, (rng.uniform(650, 800), 1), (1250, 0.6), (2700, 0.3)) * swell(
            m, sr, 0.03, 0.06
        )

    return place(n, starts, ha)


@source("applause", "human", "in a theatre", "an audience|a crowd", "claps|applauds")
def applause(rng, n, sr):
    claps = filtered(
        sparks(rng, n, sr, rng.uniform(60, 250)),
        sr,
        lambda f: band(f, 700, rng.uniform(1800, 3000)),
    )
    return claps * 4 * wander(rng, n, sr, 3, 0.15) + noise(rng, n, sr, 700, 2500) * 0.06


@source("footsteps", "human", "in a hallway", "a walker|a passer-by", "walks|strolls|steps along")
def footsteps(rng, n, sr):
    m, c = int(0.16 * sr), rng.uniform(70, 160)

    def step(i):
        heel = (
            noise(rng, m, sr, c / 1.5, c * 2) * decay(m, sr, 0.025)
            + noise(rng, m, sr, 1000, 4000) * decay(m, sr, 0.006) * 0.2
        )
        return (
            heel + noise(rng, m, sr, 1500, 5000) * np.roll(decay(m, sr, 0.02, 0.02), m // 2) * 0.12
        )

    return place(n, beats(rng, n, sr, rng.uniform(1.7, 2.8), 0.03), step)


# -- vehicles and signals


@source("engine", "vehicle", "on a road", "an engine|a motor", "runs|chugs|rumbles")
def engine(rng, n, sr):
    f = rng.uniform(22, 55) * curve(rng.uniform(0.8, 1.3, 4), n) * wander(rng, n, sr, 30, 0.02)
    x = tone(f, n, sr, rolloff(60, 0.4)) + 0.15 * noise(rng, n, sr, 100, 3000, -0.5)
    return formants(
        x,
        sr,
        (rng.uniform(80, 160), 1),
        (rng.uniform(250, 450), 0.5),
        (rng.uniform(800, 1300), 0.2),
    )


@source(
    "helicopter", "vehicle", "under an open sky", "a helicopter|a chopper", "hovers|thuds overhead"
)
def helicopter(rng, n, sr):
    rate, t = rng.uniform(8, 14), np.arange(n) / sr
    slap = np.exp(-((t * rate + rng.random()) % 1) * rng.uniform(4, 7))
    return (
        noise(rng, n, sr, 40, 250) * slap * 1.5
        + noise(rng, n, sr, 300, 2500) * slap * 0.5
        + tone(rng.uniform(900, 1600), n, sr) * 0.12
    )


@source(
    "train horn",
    "vehicle",
    "at a railway crossing",
    "a train|a locomotive",
    "hoots|blows its horn",
    gap=0.6,
)
def train(rng, n, sr):
    m = min(n, int(rng.uniform(0.45, 0.65) * sr))
    hz = rng.uniform(230, 340)
    return _pad(
        sum(tone(hz * r, m, sr, rolloff(14, 0.8), rng.random()) for r in (1, 1.19, 1.34, 1.68))
        * swell(m, sr, 0.05, 0.1),
        n,
    )


@source("siren", "signal", "on a city street", "a siren|an ambulance", "wails|blares|whoops")
def siren(rng, n, sr):
    t, lo, hi = np.arange(n) / sr, rng.uniform(450, 650), rng.uniform(1000, 1500)
    lfo = np.sin(
        2 * np.pi * (rng.choice([rng.uniform(0.4, 0.8), rng.uniform(2, 3.5)]) * t + rng.random())
    )  # wail or yelp
    if rng.random() < 0.35:
        lfo = np.sign(lfo) * 0.5  # the European two-tone
    return tone(lo * (hi / lo) ** (0.5 + 0.5 * lfo), n, sr, rolloff(8, 1.2))


@source("church bell", "signal", "in a village", "a church bell|a bell", "tolls|chimes", gap=0.45)
def bell(rng, n, sr):
    d = rng.uniform(
        0.6, 1.2
    )  # hum, prime, tierce, quint, nominal and above: a minor third is what makes it a bell
    ring = modes(
        rng,
        n,
        sr,
        rng.uniform(220, 480),
        (0.5, 1, 1.19, 1.5, 2, 2.67, 3.01, 4.17, 5.43),
        (0.5, 0.8, 0.9, 0.4, 1, 0.5, 0.4, 0.4, 0.3),
        d * np.array([1.5, 1, 0.8, 0.6, 0.5, 0.3, 0.3, 0.2, 0.12]),
    )
    return ring * np.minimum(1, np.arange(n) / (0.002 * sr))


@source("alarm", "signal", "in a bedroom", "an alarm|an alarm clock", "beeps|bleeps", gap=0.2)
def alarm(rng, n, sr):
    m = min(n, int(rng.uniform(0.08, 0.14) * sr))
    return _pad(
        tone(rng.uniform(1000, 2600), m, sr, (1, 0, 0.35, 0, 0.2)) * swell(m, sr, 0.004, 0.006), n
    )


@source(
    "telephone ring", "signal", "in an office", "a telephone|a phone", "rings|jangles", gap=0.55
)
def telephone(rng, n, sr):
    m = min(n, int(rng.uniform(0.35, 0.45) * sr))
    hz, rate, k = rng.uniform(900, 1300), rng.uniform(18, 26), int(0.12 * sr)
    clang = [
        modes(rng, k, sr, hz * r, (1, 2.32, 4.25), (1, 0.7, 0.4), (0.06, 0.04, 0.02))
        for r in (1, 1.25)
    ]
    return _pad(
        place(m, np.arange(0, m - k // 3, sr / rate), lambda i: clang[i % 2])
        * swell(m, sr, 0.003, 0.05),
        n,
    )


# -- the house


@source("knocking", "household", "at a front door", "a visitor|a caller", "knocks", gap=0.16)
def knock(rng, n, sr):
    c = rng.uniform(160, 380)
    return (
        modes(rng, n, sr, c, (1, 2.3, 3.9), (1, 0.5, 0.25), (0.03, 0.018, 0.01))
        + noise(rng, n, sr, 300, 3000) * decay(n, sr, 0.004) * 0.4
    )


@source("clock tick", "household", "in a study", "a clock|a watch", "ticks|ticks away")
def clock(rng, n, sr):
    m, hz = int(0.05 * sr), rng.uniform(1800, 3500)

    def tick(i):
        f = hz * (1 if i % 2 else 0.8)
        return (
            modes(rng, m, sr, f, (1, 1.7), (1, 0.5), (0.006, 0.003))
            + noise(rng, m, sr, 3000, 7500) * decay(m, sr, 0.002, 0.0003) * 0.4
        )

    return place(n, beats(rng, n, sr, rng.uniform(1.8, 4), 0), tick)


@source("glass break", "household", "in a kitchen", "glass|a window", "shatters|breaks", gap=0.5)
def glass(rng, n, sr):
    m = int(0.2 * sr)
    shards = place(
        n,
        np.minimum(rng.exponential(0.1 * sr, 25), 0.35 * sr),
        lambda i: modes(
            rng,
            m,
            sr,
            rng.uniform(2000, 7000),
            (1,),
            (rng.exponential(0.5),),
            (rng.uniform(0.01, 0.05),),
        ),
    )
    return (
        shards + noise(rng, n, sr, 1500, 7500) * decay(n, sr, rng.uniform(0.03, 0.06), 0.001) * 0.7
    )


@source(
    "vacuum cleaner",
    "household",
    "in a flat being cleaned",
    "a vacuum cleaner|a hoover",
    "whirs|hums",
)
def vacuum(rng, n, sr):
    hz = rng.uniform(180, 330)
    whine = tone(hz * wander(rng, n, sr, 5, 0.004), n, sr, rolloff(20, 0.6))
    return whine * 0.4 + noise(rng, n, sr, 200, 6000, -0.4) * 0.6


# -- instruments: one note of `hz`


@source("guitar", "string", "at a fireside", "a guitar|an acoustic guitar", "plays|strums", base=98)
def guitar(rng, n, sr, hz):
    return _pluck(rng, n, sr, hz, rng.uniform(0.15, 0.3), 0.9, 0.5)


@source("harp", "string", "in a concert hall", "a harp|a lyre", "plays", base=131)
def harp(rng, n, sr, hz):
    return _pluck(rng, n, sr, hz, 0.48, 1.8, 0.9)


@source("bass", "string", "in a rehearsal room", "an electric bass|a bass", "plays", base=49)
def bass(rng, n, sr, hz):
    return _pluck(rng, n, sr, hz, rng.uniform(0.2, 0.35), 1.4, 0.6) + 0.5 * tone(hz, n, sr) * decay(
        n, sr, 0.5, 0.01
    )


@source("violin", "string", "in a concert hall", "a violin|a fiddle", "plays", base=196)
def violin(rng, n, sr, hz):
    x = tone(hz * _vibrato(rng, n, sr, 0.008), n, sr, rolloff(25, 0.8)) + 0.03 * noise(
        rng, n, sr, 2000, 7000
    )
    return formants(x, sr, (500, 0.8), (1000, 0.6), (3000, 1)) * swell(n, sr, 0.07, 0.06)


@source("flute", "wind", "in a concert hall", "a flute|a wooden flute", "plays", base=262)
def flute(rng, n, sr, hz):
    breath = noise(rng, n, sr, hz, min(hz * 4, 7000)) * rng.uniform(0.05, 0.12)
    return (tone(hz * _vibrato(rng, n, sr, 0.004), n, sr, (1, 0.3, 0.1, 0.03)) + breath) * swell(
        n, sr, 0.05, 0.05
    )


@source("clarinet", "wind", "in a jazz club", "a clarinet|a chalumeau", "plays", base=147)
def clarinet(rng, n, sr, hz):
    return tone(hz, n, sr, (1, 0.03, 0.6, 0.05, 0.4, 0.05, 0.25, 0.05, 0.12)) * swell(
        n, sr, 0.04, 0.05
    )  # odd harmonics: a closed pipe


@source("trumpet", "wind", "in a jazz club", "a trumpet|a bugle", "plays|blows", base=165)
def trumpet(rng, n, sr, hz):
    dark, bright = tone(hz, n, sr, rolloff(20, 1.5)), tone(hz, n, sr, np.exp(-np.arange(20) / 7.0))
    push = np.minimum(swell(n, sr, 0.1, 0.1), 1) ** 2  # brass brightens as it gets loud
    return (dark * (1 - push) + bright * push) * swell(n, sr, 0.03, 0.05)


@source("piano", "keyboard", "in a concert hall", "a piano|a grand piano", "plays", base=82)
def piano(rng, n, sr, hz):
    k = np.arange(1, 10)
    return modes(
        rng, n, sr, hz, k * np.sqrt(1 + 0.0006 * k * k), k**-1.1, 0.7 / (1 + 0.25 * k)
    ) * np.minimum(1, np.arange(n) / (0.004 * sr))


@source("organ", "keyboard", "in a church", "an organ|a pipe organ", "plays", base=98)
def organ(rng, n, sr, hz):
    return sum(
        tone(hz * r, n, sr, (1, 0.5, 0.3, 0.25, 0.1, 0.15), rng.random())
        for r in (0.5, 1, 1.498, 2.003)
    ) * swell(n, sr, 0.02, 0.04)


@source(
    "synthesizer", "keyboard", "in a dance club", "a synthesizer|a synth", "plays|drones", base=110
)
def synth(rng, n, sr, hz):
    saws = sum(tone(hz * r, n, sr, rolloff(40, 1), rng.random()) for r in (0.992, 1, 1.009))
    return filtered(saws, sr, lambda f: band(f, 30, rng.uniform(1500, 4000))) * swell(
        n, sr, 0.01, 0.03
    )


@source(
    "xylophone", "percussion", "in a school music room", "a xylophone|a marimba", "plays", base=262
)
def xylophone(rng, n, sr, hz):
    mallet = noise(rng, n, sr, 500, 3000) * decay(n, sr, 0.004) * 0.2
    return (
        modes(rng, n, sr, hz, (1, 3.0, 6.1, 9.8), (1, 0.5, 0.25, 0.1), (0.12, 0.05, 0.025, 0.01))
        + mallet
    )


@source(
    "music box",
    "percussion",
    "in a toy shop",
    "a music box|a musical box",
    "plays|tinkles",
    base=523,
)
def music_box(rng, n, sr, hz):
    return modes(rng, n, sr, hz, (1, 2.0, 5.4, 6.27), (1, 0.15, 0.3, 0.25), (0.5, 0.3, 0.08, 0.05))


@source(
    "drum loop", "percussion", "in a dance club", "a drum kit|a drummer", "plays|pounds", base=0
)
def drums(rng, n, sr, step):
    n = min(n, int(0.25 * sr))
    t = np.arange(n) / sr
    if step % 4 == 0:
        return tone(50 + 110 * np.exp(-t / 0.03), n, sr) * decay(n, sr, 0.12) * 1.5
    if step % 4 == 2:
        return (
            noise(rng, n, sr, 1200, 6000) * decay(n, sr, 0.06) * 0.5
            + tone(190, n, sr) * decay(n, sr, 0.05) * 0.6
        )
    return noise(rng, n, sr, 6000, 8000) * decay(n, sr, 0.02) * 0.25


@source("hi-hat", "percussion", "in a rehearsal room", "a hi-hat|a cymbal", "plays|taps", base=0)
def hihat(rng, n, sr, step):
    n = min(n, int(0.3 * sr))
    return noise(rng, n, sr, 5500, 8000) * decay(n, sr, 0.12 if step % 4 == 3 else 0.025, 0.001)


def _pluck(rng, n, sr, hz, where, ring, power):
    """A string plucked `where` along its length: the higher the harmonic, the sooner it is gone."""
    k = np.arange(1, 21)
    amps = np.abs(np.sin(np.pi * k * where)) * k ** -float(1 + power / 2)
    return modes(
        rng, n, sr, hz, k, amps, ring * min(1, (200 / hz) ** 0.5) / (1 + 0.25 * (k - 1))
    ) * np.minimum(1, np.arange(n) / (0.001 * sr))


def _vibrato(rng, n, sr, depth):
    t = np.arange(n) / sr
    return 1 + depth * np.minimum(1, t / 0.3) * np.sin(
        2 * np.pi * (rng.uniform(4.5, 6.5) * t + rng.random())
    )


def _pad(x, n):
    return np.r_[x, np.zeros(n - len(x), np.float32)]


def _level(x):
    """The same loudness for a click and for a hiss, as near as one number can bring them; never above 0.8."""
    return (
        x * min(0.8 / (np.abs(x).max() + 1e-9), 0.16 / (np.sqrt(np.mean(x * x)) + 1e-9))
    ).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# scenes


@dataclass(frozen=True)
class Voice:
    name: str
    count: int = 0  # how many times; 0: goes on
    distance: str | None = None  # near | far | None: neither


@dataclass(frozen=True)
class Scene:
    kind: str  # sound | music
    voices: tuple  # of Voice, in the order of time when one follows the other
    layout: str  # solo | together | sequence
    noise: str  # quiet | noisy
    tempo: str | None = None  # music only: slow | fast
    register: str | None = None  # low | high; None: nothing in it has a pitch
    contour: str | None = None  # rising | falling | wandering

    @property
    def labels(self):
        """Names of its sources: in the order of time in a sequence, else in the alphabet's."""
        names = [v.name for v in self.voices]
        return names if self.layout == "sequence" else sorted(names)


def labels(kind=None):
    """Names of all sources of a kind, "sound", "music" or None for both, in a fixed order."""
    return [s.name for s in SOURCES.values() if kind in (None, s.kind)]


def random_scene(rng, kind=None, n=None):
    """A scene of n sources (1 to 3; None: drawn) and of kind "sound" | "music" (None: two thirds are sound)."""
    kind = kind or ("sound" if rng.random() < 2 / 3 else "music")
    n = n or int(rng.choice([1, 2, 3], p=[0.45, 0.47, 0.08] if kind == "sound" else [0.7, 0.3, 0]))
    layout = (
        "solo"
        if n == 1
        else "sequence"
        if n == 2 and kind == "sound" and rng.random() < 0.5
        else "together"
    )
    names = [str(x) for x in rng.choice(labels(kind), n, replace=False)]
    noisy = "noisy" if rng.random() < 0.4 else "quiet"
    if kind == "music":
        pitched = any(SOURCES[x].base for x in names)
        tempo, register, contour = (
            str(rng.choice(v)) for v in (("slow", "fast"), ("low", "high"), CONTOURS)
        )
        return Scene(
            kind,
            tuple(Voice(x) for x in names),
            layout,
            noisy,
            tempo,
            register if pitched else None,
            contour if pitched else None,
        )
    span = 0.95 if layout == "sequence" else 1.9

    def voice(x):
        gap = SOURCES[x].gap
        count = (
            int(rng.choice([c for c in (1, 2, 3, 5) if c * gap <= max(span, gap)])) if gap else 0
        )
        return Voice(x, count, [None, "near", "far"][rng.integers(3)])

    return Scene(kind, tuple(voice(x) for x in names), layout, noisy)


def render(scene, rng, seconds=2.0, sr=16000):
    """The scene as sound: (seconds * sr,) float32, peak at most 0.95. Near is loud and dry, far is soft, dull and reverberant."""
    n, out = int(seconds * sr), np.zeros(int(seconds * sr), np.float32)
    cut = int(n * rng.uniform(0.45, 0.55))
    for i, v in enumerate(scene.voices):
        a, b = (0, n) if scene.layout != "sequence" else (0, cut) if i == 0 else (cut, n)
        m = b - a
        s = SOURCES[v.name]
        if s.kind == "music":
            x = _melody(s, rng, m, sr, scene.tempo, scene.register, scene.contour)
        elif (
            s.gap
        ):  # v.count events, evenly spread with a human hand, all of the same animal, bell or door
            step = m / v.count
            starts = [
                step * (k + (rng.uniform(0, 0.2) if k else rng.uniform(0, 0.1)))
                for k in range(v.count)
            ]
            event, gains = (
                s.recipe(rng, min(m, int(4 * s.gap * sr)), sr),
                rng.uniform(0.75, 1, v.count).tolist(),
            )
            x = place(m, starts, lambda k: event * gains[k])
        else:
            x = s.recipe(rng, m, sr)
        if scene.layout == "sequence":
            x = x * swell(m, sr, 0.01, 0.04)
        out[a:b] += _distance(x, v.distance, rng, sr)
    floor = rng.uniform(0.008, 0.02) if scene.noise == "noisy" else rng.uniform(5e-4, 2e-3)
    out += noise(rng, n, sr, 50, rng.uniform(3000, 8000), rng.uniform(-0.6, 0)) * floor
    return (out * min(1, 0.95 / np.abs(out).max())).astype(np.float32)


def _distance(x, distance, rng, sr):
    x = _level(x)
    if distance != "far":
        return x * (rng.uniform(0.85, 1.1) if distance == "near" else rng.uniform(0.45, 0.65))
    size = fast(
        len(x) + sr // 4
    )  # room for the tail of the reverberation, so that it does not wrap around
    room = (
        rng.standard_normal(sr // 4, dtype=np.float32)
        * decay(sr // 4, sr, rng.uniform(0.06, 0.12))
        * 0.04
    )
    room[0] = 1
    dull = 1 / (1 + (freqs(size, sr) / rng.uniform(900, 1500)) ** 2)
    wet = np.fft.irfft(np.fft.rfft(x, size) * np.fft.rfft(room, size) * dull)[: len(x)]
    return wet * (rng.uniform(0.18, 0.28) * np.sqrt(np.sum(x * x) / (np.sum(wet * wet) + 1e-12)))


def _melody(s, rng, n, sr, tempo, register, contour):
    """Notes of a pentatonic scale, one a beat; the two registers lie two octaves apart."""
    beat = rng.uniform(0.5, 0.7) if tempo == "slow" else rng.uniform(0.14, 0.22)
    starts = np.arange(0, n, beat * sr)

    def note(m, what):
        x = s.recipe(rng, m, sr, what)
        return x * swell(len(x), sr, 0.001, 0.03) * rng.uniform(0.8, 1)

    if not s.base:
        return place(n, starts, lambda i: note(sr // 2, i))
    scale = np.array([[0, 2, 4, 7, 9], [0, 3, 5, 7, 10]][rng.integers(2)])
    k = len(starts)
    degree = {
        "rising": np.arange(k),
        "falling": np.arange(k)[::-1],
        "wandering": np.cumsum(rng.integers(-2, 3, k)),
    }[contour]
    degree = degree - degree.min()
    degree = np.round(degree * min(1, 7 / max(degree.max(), 1))).astype(
        int
    )  # within an octave and a half
    semitones = scale[degree % 5] + 12 * (degree // 5) + rng.integers(0, 5)
    hz = s.base * (4 if register == "high" else 1) * 2 ** (semitones / 12)
    m = int(beat * sr * rng.uniform(0.9, 1.3))
    return place(n, starts, lambda i: note(m, hz[i]))
