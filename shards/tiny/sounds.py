"""
Recipes of sounds. Each draws its numbers afresh and fills a `Tape`; none is a recording.

    SOUNDS["rain"].play(Tape(rng, 32000))      two seconds of rain: (32000,) floats

A recipe takes a tape and returns a wave as long as the tape.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from shards.tiny.signals import Tape, Wave, rolloff


@dataclass(frozen=True)
class Sounder:
    """A thing that sounds, and its words."""

    name: str  # the label
    kind: str  # sound | music
    group: str  # its family
    where: str  # a place to hear it
    subjects: tuple[str, ...]  # "a dog", "a hound"
    verbs: tuple[str, ...]  # "barks"
    recipe: Callable[..., Wave]
    gap: float = 0.0  # sound: seconds between two events; 0: continuous, without a count
    lasts: tuple[float, float] | None = None  # sound: seconds of an event; None: all of the tape
    base: float = 0.0  # music: Hz of its low register; 0: it has no pitch

    def play(self, tape: Tape, *note: float) -> Wave:
        """One event or one stretch of a sound; one note of an instrument, by Hz or by beat."""
        if self.lasts is None:
            return self.recipe(tape, *note)
        return tape.pad(self.recipe(tape.event(tape.uniform(*self.lasts))))


SOUNDS: dict[str, Sounder] = {}


def sounder(
    registry: dict[str, Sounder],
    kind: str,
    group: str,
    where: str,
    who: str,  # "a dog|a hound"
    does: str,  # "barks|yaps"
    name: str | None = None,  # None: the recipe's
    **more,  # gap, lasts or base
) -> Callable:
    """A decorator that registers a recipe as a Sounder."""

    def register(recipe):
        label = name or recipe.__name__.replace("_", " ")
        subjects, verbs = tuple(who.split("|")), tuple(does.split("|"))
        registry[label] = Sounder(label, kind, group, where, subjects, verbs, recipe, **more)
        return recipe

    return register


# --------------------------------------------------------------------------------------------------
nature = partial(sounder, SOUNDS, "sound", "nature")


@nature("outdoors in bad weather", "rain|a shower of rain", "falls|pours|patters")
def rain(tape):
    drops = tape.sparks(tape.uniform(150, 500))
    drops = tape.band_pass(drops, tape.uniform(1200, 2500), 7000)
    hiss = tape.noise(tape.uniform(500, 1500), 7000)
    return hiss * 0.5 + drops * tape.uniform(3, 8)


@nature("outdoors in bad weather", "thunder|a thunderstorm", "rumbles|rolls|booms", gap=0.9)
def thunder(tape):
    # One flash, heard from ever farther along its path: a crack, then four softer claps.
    claps = np.r_[0, tape.rng.uniform(0, 0.5, 4)] * tape.n
    attacks = (0.02, 0.05, 0.05, 0.05, 0.05)
    roll = tape.place(
        claps,
        [tape.decay(tape.uniform(0.1, 0.4), attack) * tape.uniform(0.4, 1) for attack in attacks],
    )
    rumble = tape.noise(25, tape.uniform(120, 300), -0.3) * roll
    return rumble + tape.noise(200, 3000) * tape.decay(0.06) * 0.3


@nature("outdoors in bad weather", "the wind|a gale", "howls|blows")
def wind(tape):
    hz = tape.uniform(250, 600)
    howl = tape.noise(hz / 1.1, hz * 1.1) * tape.wander(2, 0.7)
    roar = tape.noise(hz, hz * 2) * tape.wander(2, 0.6)
    return howl + 0.6 * roar + tape.noise(60, 400, -0.5) * 0.7


@nature("by the water", "the sea|the surf", "rolls|roars|breaks on the shore")
def sea_waves(tape):
    up = np.sin(np.pi * (tape.t / tape.uniform(1.2, 2.2) + tape.rng.random())) ** 2
    deep = tape.noise(60, 700, -0.3) * (0.3 + up)
    return deep + tape.noise(800, 5000, -0.4) * (0.1 + up * up)


# --------------------------------------------------------------------------------------------------
animal = partial(sounder, SOUNDS, "sound", "animal")


@animal("in a yard", "a dog|a hound", "barks|yaps", gap=0.25, lasts=(0.13, 0.2))
def dog_bark(tape):
    hz = tape.uniform(300, 650) * tape.curve([0.8, 1.15, 1.0, 0.6])
    throat = tape.tone(hz, rolloff(20, 0.7)) + 0.35 * tape.noise(500, 4000)
    mouth = (tape.uniform(600, 900), 1), (tape.uniform(1300, 1800), 0.7), (2800, 0.3)
    return tape.formants(throat, *mouth) * tape.swell(0.015, 0.08)


@animal("in a living room", "a cat|a tomcat", "meows|mews", gap=0.6, lasts=(0.4, 0.6))
def cat_meow(tape):
    hz = tape.uniform(450, 750) * tape.curve([0.75, 1.05, 1.1, 1.0, 0.7])
    throat = tape.tone(hz, rolloff(14, 0.9))
    mouth = tape.curve([0, 1, 0.8, 0.2, 0])  # closed, open, closed: m-eow
    opened = tape.formants(throat, (1100, 1), (2400, 0.8)) * mouth
    closed = tape.formants(throat, (500, 1), (900, 0.4)) * (1 - mouth)
    return (opened + closed) * tape.swell(0.06, 0.15)


@animal("on a farm", "a cow|an ox", "moos|lows", gap=0.9, lasts=(0.7, 0.9))
def cow_moo(tape):
    hz = tape.uniform(100, 160) * tape.curve([0.8, 1, 1.1, 1.05, 0.8]) * tape.wander(20, 0.01)
    throat = tape.tone(hz, rolloff(25, 0.6))
    mouth = tape.curve([0, 0.3, 1, 0.8, 0.3])
    closed = tape.formants(throat, (250, 1)) * (1 - mouth)
    opened = tape.formants(throat, (450, 1), (850, 0.6), (2200, 0.1)) * mouth
    return (closed + opened) * tape.swell(0.12, 0.2)


@animal("by a pond", "a frog|a toad", "croaks|ribbits", gap=0.3, lasts=(0.16, 0.26))
def frog_croak(tape):
    rattle = tape.tone(tape.uniform(35, 65) * tape.curve([0.8, 1.2]))
    rattle = np.maximum(0, rattle) ** 2
    throat = tape.tone(tape.uniform(90, 160), rolloff(30, 0.2)) * rattle
    mouth = (tape.uniform(500, 800), 1), (tape.uniform(1200, 1700), 0.8)
    return tape.formants(throat, *mouth) * tape.swell(0.03, 0.05)


@animal("in a meadow at night", "a cricket|a grasshopper", "trills|sings in the grass")
def cricket(tape):
    pulses = np.maximum(0, np.sin(2 * np.pi * tape.uniform(26, 36) * tape.t))
    chirps = np.sin(2 * np.pi * (tape.uniform(2.2, 4) * tape.t + tape.rng.random()))
    chirps = np.clip(6 * chirps + tape.uniform(0, 2), 0, 1)
    return tape.tone(tape.uniform(4000, 5200), (1, 0.2)) * pulses * chirps


# --------------------------------------------------------------------------------------------------
human = partial(sounder, SOUNDS, "sound", "human")


@human("in a nursery", "a baby|an infant", "wails|bawls")
def baby_cry(tape):
    cry = tape.grain(tape.uniform(0.55, 0.8))
    hz = tape.uniform(380, 540)
    starts = np.arange(0, tape.n, int(cry.n * tape.uniform(1.1, 1.25)))
    return tape.place(starts, [_cry(cry, hz) for _ in starts])


def _cry(grain, hz):
    hz = hz * grain.uniform(0.95, 1.05) * grain.curve([0.8, 1.1, 1.15, 1.1, 0.75])
    throat = grain.tone(hz * grain.wander(25, 0.015), rolloff(16, 0.5))
    throat = throat + 0.1 * grain.noise(800, 6000)
    mouth = grain.formants(throat, (1100, 1), (1700, 0.6), (3300, 0.6))
    return mouth * grain.swell(0.08, 0.12)


@human("at a party", "a person|a reveller", "laughs|giggles|chuckles")
def laughter(tape):
    starts = tape.beats(tape.uniform(4, 6), 0.06)
    hz = tape.uniform(150, 330)
    falling = [hz * (1.15 - 0.3 * (i % 7) / 7) for i in range(len(starts))]  # seven "ha" a breath
    return tape.place(starts, [_ha(tape.grain(0.14), hz) for hz in falling])


def _ha(grain, hz):
    voice = grain.tone(hz * grain.curve([1.1, 1, 0.85]), rolloff(22, 0.7))
    breath = grain.noise(500, 5000) * grain.curve([0.9, 0.2, 0.1, 0.4])
    mouth = (grain.uniform(650, 800), 1), (1250, 0.6), (2700, 0.3)
    return grain.formants(voice + breath, *mouth) * grain.swell(0.03, 0.06)


@human("in a theatre", "an audience|a crowd", "claps|applauds")
def applause(tape):
    claps = tape.sparks(tape.uniform(60, 250))
    claps = tape.band_pass(claps, 700, tape.uniform(1800, 3000))
    return claps * 4 * tape.wander(3, 0.15) + tape.noise(700, 2500) * 0.06


@human("in a hallway", "a walker|a passer-by", "walks|strolls|steps along")
def footsteps(tape):
    hz = tape.uniform(70, 160)
    starts = tape.beats(tape.uniform(1.7, 2.8), 0.03)
    return tape.place(starts, [_step(tape.grain(0.16), hz) for _ in starts])


def _step(grain, hz):
    """The heel, and half a step later the sole."""
    heel = grain.noise(hz / 1.5, hz * 2) * grain.decay(0.025)
    heel = heel + grain.noise(1000, 4000) * grain.decay(0.006) * 0.2
    sole = grain.noise(1500, 5000) * np.roll(grain.decay(0.02, 0.02), grain.n // 2)
    return heel + sole * 0.12


# --------------------------------------------------------------------------------------------------
vehicle = partial(sounder, SOUNDS, "sound", "vehicle")


@vehicle("on a road", "an engine|a motor", "runs|chugs|rumbles")
def engine(tape):
    speed = tape.uniform(22, 55) * tape.curve(tape.rng.uniform(0.8, 1.3, 4))
    strokes = tape.tone(speed * tape.wander(30, 0.02), rolloff(60, 0.4))
    block = strokes + 0.15 * tape.noise(100, 3000, -0.5)
    low, middle, high = tape.uniform(80, 160), tape.uniform(250, 450), tape.uniform(800, 1300)
    return tape.formants(block, (low, 1), (middle, 0.5), (high, 0.2))


@vehicle("under an open sky", "a helicopter|a chopper", "hovers|thuds overhead")
def helicopter(tape):
    turns = tape.t * tape.uniform(8, 14) + tape.rng.random()
    slap = np.exp(-(turns % 1) * tape.uniform(4, 7))
    rotor = tape.noise(40, 250) * slap * 1.5 + tape.noise(300, 2500) * slap * 0.5
    return rotor + tape.tone(tape.uniform(900, 1600)) * 0.12


@vehicle(
    "at a railway crossing",
    "a train|a locomotive",
    "hoots|blows its horn",
    gap=0.6,
    lasts=(0.45, 0.65),
)
def train_horn(tape):
    chord = tape.chord(tape.uniform(230, 340), (1, 1.19, 1.34, 1.68), rolloff(14, 0.8))
    return chord * tape.swell(0.05, 0.1)


# --------------------------------------------------------------------------------------------------
signal = partial(sounder, SOUNDS, "sound", "signal")


@signal("on a city street", "a siren|an ambulance", "wails|blares|whoops")
def siren(tape):
    low, high = tape.uniform(450, 650), tape.uniform(1000, 1500)
    rate = tape.rng.choice([tape.uniform(0.4, 0.8), tape.uniform(2, 3.5)])  # wail or yelp
    sweep = np.sin(2 * np.pi * (rate * tape.t + tape.rng.random()))
    if tape.rng.random() < 0.35:
        sweep = np.sign(sweep) * 0.5  # the European two-tone
    return tape.tone(low * (high / low) ** (0.5 + 0.5 * sweep), rolloff(8, 1.2))


@signal("in a village", "a church bell|a bell", "tolls|chimes", gap=0.45)
def church_bell(tape):
    # Hum, prime, tierce, quint, nominal and above. The minor third (1.19) makes it a bell.
    ratios = (0.5, 1, 1.19, 1.5, 2, 2.67, 3.01, 4.17, 5.43)
    amplitudes = (0.5, 0.8, 0.9, 0.4, 1, 0.5, 0.4, 0.4, 0.3)
    decays = np.array([1.5, 1, 0.8, 0.6, 0.5, 0.3, 0.3, 0.2, 0.12]) * tape.uniform(0.6, 1.2)
    return tape.modes(tape.uniform(220, 480), ratios, amplitudes, decays) * tape.fade_in(0.002)


# --------------------------------------------------------------------------------------------------
household = partial(sounder, SOUNDS, "sound", "household")


@household("in a kitchen", "glass|a window", "shatters|breaks", gap=0.5)
def glass_break(tape):
    starts = np.minimum(tape.rng.exponential(0.1 * tape.sr, 25), 0.35 * tape.sr)
    splinters = tape.place(starts, [_splinter(tape.grain(0.2)) for _ in starts])
    crash = tape.noise(1500, 7500) * tape.decay(tape.uniform(0.03, 0.06), 0.001)
    return splinters + crash * 0.7


def _splinter(grain):
    hz, strength = grain.uniform(2000, 7000), grain.rng.exponential(0.5)
    return grain.modes(hz, (1,), (strength,), (grain.uniform(0.01, 0.05),))


@household("in a flat being cleaned", "a vacuum cleaner|a hoover", "whirs|hums")
def vacuum_cleaner(tape):
    hz = tape.uniform(180, 330) * tape.wander(5, 0.004)
    return tape.tone(hz, rolloff(20, 0.6)) * 0.4 + tape.noise(200, 6000, -0.4) * 0.6
