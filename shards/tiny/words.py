"""
The language of the tiny world: captions of a scene, and its tags.

`caption(scene, rng)` tells some of the scene's facts and nothing else. Every caption belongs to one
part of the world, by its hash: `part(text)`. So no part sees a caption of another.

    python -m shards.tiny.words out/listen --n 12      a dozen scenes as wav, with captions
"""

import argparse
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shards.tiny.scenes import SOUNDERS, Scene, alone, random_scene, render
from shards.tiny.signals import Tape

PARTS = {"test": 0.10, "val": 0.05, "clap": 0.35, "train": 0.50}

# -- vocabulary


def _options(**texts):
    return {key: text.split("|") for key, text in texts.items()}


COUNTS = {
    1: ["once", "one time"],
    2: ["twice", "two times"],
    3: ["three times", "thrice"],
    5: ["again and again", "repeatedly", "over and over", "many times"],
}
CONTINUOUS = ["steadily", "on and on", "without a break"]  # for sounds that have no count
ADVERBS = _options(near="nearby|close by|up close", far="in the distance|far away|from afar")
ADJECTIVES = _options(near="nearby|loud", far="distant|faraway|faint")
MUSIC = _options(
    slow="slow|calm|gentle|unhurried",
    fast="fast|quick|lively|energetic",
    low="low|deep|low-pitched",
    high="high|high-pitched",
)
DISTANCE = {"near": "close by", "far": "far away"}
# A template has {a} for "a dog barks" and {A} for "a dog barking"; b is the other voice.
TEMPLATES = _options(
    solo="{a}|{a}|{A}|the sound of {A}|a recording of {A}|we hear {A}|{A} can be heard|this is {A}"
    "|you can hear {A}|in this clip {a}|a clip of {A}|here {a}|one can hear {A}|listen as {a}"
    "|there is the sound of {A}",
    together="{a} while {b}|{a} as {b}|{a} and {b} at the same time|{A} together with {B}"
    "|{A} along with {B}|{A} mixed with {B}|we hear {A} and at once {B}"
    "|the sounds of {A} and {B} at the same time|while {b}, {a}|{a}, and at the same time {b}",
    sequence="{a}, then {b}|{a} and then {b}|{A} followed by {B}|first {a}, then {b}"
    "|{a} before {b}|{b} after {a}|after {a}, {b}|{A}, and afterwards {B}"
    "|we hear {A} and next {B}|{B}, preceded by {A}",
)


# -- grammar


def pick(rng: np.random.Generator, options: Sequence):
    return options[int(rng.integers(len(options)))]


def base_form(verb: str) -> str:
    """barks -> bark, blows its horn -> blow its horn"""
    return re.sub(r"^(\w+)s\b", r"\1", verb)


def ing(verb: str) -> str:
    """barks -> barking, claps -> clapping, crackles -> crackling"""
    head, _, tail = base_form(verb).partition(" ")
    if head.endswith("e"):
        head = head[:-1]
    elif re.fullmatch(r"[^aeiou]*[aeiou][bdgmnprtv]", head):
        head += head[-1]
    return f"{head}ing {tail}".strip()


def a(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def the(subject: str) -> str:
    return "the " + re.sub(r"^(an?|the) ", "", subject)


def _with(subject, adjective):
    """a dog, distant -> a distant dog"""
    article, bare = re.match(r"(an? |the )?(.*)", subject).groups()
    phrase = f"{adjective} {bare}"
    if article is None:
        return phrase
    return f"the {phrase}" if article == "the " else a(phrase)


# -- captions


def describe(scene: Scene, rng: np.random.Generator) -> tuple[str, set]:
    """A caption, and the facts that its words tell.

    Possible facts: "tempo", "register", ("count", name), ("distance", name).
    """
    said, words, voices, form = set(), {}, scene.voices, scene.layout
    if scene.layout == "together":
        voices = [voices[i] for i in rng.permutation(len(voices))]
    for letter, voice in zip("ab", voices):
        clause = _music_clause if scene.kind == "music" else _sound_clause
        words[letter], words[letter.upper()] = clause(scene, voice, rng, said)
    text = pick(rng, TEMPLATES[form]).format(**words)
    return text, said


def _sound_clause(scene, voice, rng, said):
    """("a dog barks twice", "a dog barking twice"); adds the facts that these tell to `said`."""
    sounder, rest = voice.sounder, []
    who, does = pick(rng, sounder.subjects), pick(rng, sounder.verbs)
    if not voice.count:
        if rng.random() < 0.35:
            rest.append(pick(rng, CONTINUOUS))
    elif rng.random() < 0.7:
        said.add(("count", voice.name))
        rest.append(pick(rng, COUNTS[voice.count]))
    if voice.distance and rng.random() < 0.7:
        said.add(("distance", voice.name))
        if rng.random() < 0.5:
            who = _with(who, pick(rng, ADJECTIVES[voice.distance]))
        else:
            rest.append(pick(rng, ADVERBS[voice.distance]))
    return " ".join([who, does, *rest]), " ".join([who, ing(does), *rest])


def _music_clause(scene, voice, rng, said):
    """("a harp plays a slow tune", "a slow tune on a harp"); adds to `said` as above."""
    sounder, words = voice.sounder, []
    who, does = pick(rng, sounder.subjects), pick(rng, sounder.verbs)
    facts, things = ["tempo"], ["beat", "rhythm", "pattern"]
    if sounder.base:
        facts, things = ["tempo", "register"], ["melody", "tune", "phrase", "line"]
    for fact in facts:
        value = getattr(scene, fact)
        if value in MUSIC and rng.random() < 0.7:
            words.append(pick(rng, MUSIC[value]))
            said.add(fact)
    thing = pick(rng, things)
    tune = a(" ".join([words[i] for i in rng.permutation(len(words))] + [thing]))
    doing = f"{who} {ing(does)} {tune}"
    if sounder.base:
        doing = pick(rng, [doing, f"{tune} on {who}", f"{tune} played by {who}"])
    return f"{who} {does} {tune}", doing


def tags(scene: Scene, rng: np.random.Generator, facts: bool = True) -> tuple[str, set]:
    """The scene in keywords, such as "dog bark twice then siren far away", and the facts told.

    facts: whether to tell any beside the labels and their order.
    """
    odds = 0.7 if facts else 0.0
    said, words, voices = set(), [], scene.voices
    if scene.layout == "together":
        voices = [voices[i] for i in rng.permutation(len(voices))]
    for voice in voices:
        words.append(voice.name)
        if voice.count and rng.random() < odds:
            said.add(("count", voice.name))
            words[-1] += f" {COUNTS[voice.count][0]}"
        if voice.distance and rng.random() < odds:
            said.add(("distance", voice.name))
            words[-1] += f" {DISTANCE[voice.distance]}"
    text = (" then " if scene.layout == "sequence" else ", ").join(words)
    for fact in ("tempo", "register"):
        if getattr(scene, fact) and rng.random() < odds:
            said.add(fact)
            text += f", {getattr(scene, fact)}"
    return text, said


def caption(scene: Scene, rng: np.random.Generator, where: str | None = None) -> str:
    """A caption of the scene; with `where`, one that belongs to that part of the world."""
    return describe_in(scene, rng, where)[0]


def describe_in(scene: Scene, rng: np.random.Generator, where: str | None) -> tuple[str, set]:
    """`describe`, again and again until its caption belongs to part `where` (None: any)."""
    for _ in range(5000):
        text, said = describe(scene, rng)
        if where is None or part(text) == where:
            return text, said
    names = ", ".join(PARTS)
    raise ValueError(
        f"no caption of this scene falls in part {where!r}; the parts are {names}: {scene}"
    )


def part(text: str, parts: dict[str, float] = PARTS) -> str:
    """The part of the world that a caption belongs to, by the hash of its lower-cased words."""
    x = int(hashlib.sha1(text.lower().encode()).hexdigest()[:12], 16) / 16**12
    for name, share in parts.items():
        x -= share
        if x < 0:
            return name
    return name


# -- listening


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write clips of the tiny world as wav, with their captions."
    )
    parser.add_argument("dir", type=Path)
    parser.add_argument("--n", type=int, default=12, help="number of scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--sources", action="store_true", help="every source once, alone, instead of scenes"
    )
    args = parser.parse_args()
    import soundfile

    if args.dir.exists() and any(args.dir.iterdir()):
        raise SystemExit(f"{args.dir} is not empty: name a new folder, or remove it first")
    args.dir.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(args.seed)
    if args.sources:
        clips = [(name, alone(sounder, Tape(rng, 32000))) for name, sounder in SOUNDERS.items()]
    else:
        scenes = (random_scene(rng) for _ in range(args.n))
        clips = [(caption(scene, rng), render(scene, rng)) for scene in scenes]
    lines = []
    for i, (text, wave) in enumerate(clips):
        soundfile.write(args.dir / f"{i:03d}.wav", wave, 16000)
        lines.append(f"{i:03d}.wav\t{text}")
    (args.dir / "captions.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
