"""
The language of the small world of sounds.py.

1. A *caption* says in English some of what the scene holds, and nothing that it does not: `caption(scene, rng)`.
2. A *triple* is (text, instruction, answer) whose answer follows from its own text alone: `triples(scene, rng, "train")`.
3. Every caption belongs to one part of the world, by its hash: `part(text)`. So no part sees a caption of another.

Listen to it: python -m shards.tiny.words out/listen --n 12
"""

import argparse
import hashlib
import re
from pathlib import Path

import numpy as np

from shards.tiny.sounds import SOURCES, labels, random_scene, render

# ---------------------------------------------------------------------------------------------------------------------
# language

COUNTS = {
    1: ("once", "one time"),
    2: ("twice", "two times"),
    3: ("three times", "thrice"),
    5: ("again and again", "repeatedly", "over and over", "many times"),
}
ADVERBS = {
    "near": ("nearby", "close by", "up close"),
    "far": ("in the distance", "far away", "from afar"),
}
ADJECTIVES = {"near": ("nearby", "loud"), "far": ("distant", "faraway", "faint")}
NOISE = {
    "noisy": (
        "over background noise",
        "in a noisy recording",
        "amid a steady hiss",
        "with noise in the background",
    ),
    "quiet": ("in a clean recording", "without background noise", "against silence"),
}
MUSIC = {
    "slow": ("slow", "calm", "gentle", "unhurried"),
    "fast": ("fast", "quick", "lively", "energetic"),
    "low": ("low", "deep", "low-pitched"),
    "high": ("high", "high-pitched"),
    "rising": ("rising", "ascending", "climbing"),
    "falling": ("falling", "descending", "sinking"),
}
GOES_ON = (
    "steadily",
    "on and on",
    "without a break",
)  # what is not counted lasts as long as its turn does
SOLO = (
    "{a}",
    "{a}",
    "{A}",
    "the sound of {A}",
    "a recording of {A}",
    "we hear {A}",
    "{A} can be heard",
    "this is {A}",
    "you can hear {A}",
    "in this clip {a}",
    "a clip of {A}",
    "here {a}",
    "one can hear {A}",
    "listen as {a}",
    "there is the sound of {A}",
)
TOGETHER = (
    "{a} while {b}",
    "{a} as {b}",
    "{a} and {b} at the same time",
    "{A} together with {B}",
    "{A} along with {B}",
    "{A} mixed with {B}",
    "we hear {A} and at once {B}",
    "the sounds of {A} and {B} at the same time",
    "while {b}, {a}",
    "{a}, and at the same time {b}",
)
SEQUENCE = (
    "{a}, then {b}",
    "{a} and then {b}",
    "{A} followed by {B}",
    "first {a}, then {b}",
    "{a} before {b}",
    "{b} after {a}",
    "after {a}, {b}",
    "{A}, and afterwards {B}",
    "we hear {A} and next {B}",
    "{B}, preceded by {A}",
)
THREE = (
    "{a} while {b} and {c}",
    "{A}, {B} and {C} together",
    "{A}, {B} and {C} at the same time",
    "as {b}, {a} and {c}",
    "we hear {A} with {B} and {C}",
)


def pick(rng, options):
    return options[int(rng.integers(len(options)))]


def base_form(verb):  # barks -> bark, blows its horn -> blow its horn
    return re.sub(r"^(\w+)s\b", r"\1", verb)


def ing(verb):  # barks -> barking, claps -> clapping, crackles -> crackling
    head, _, tail = base_form(verb).partition(" ")
    head = (
        head[:-1]
        if head.endswith("e")
        else head + head[-1]
        if re.fullmatch(r"[^aeiou]*[aeiou][bdgmnprtv]", head)
        else head
    )
    return (head + "ing " + tail).strip()


def a(phrase):
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def the(subject):
    return "the " + re.sub(r"^(an?|the) ", "", subject)


def _with(subject, adjective):
    article, bare = re.match(r"(an? |the )?(.*)", subject).groups()
    return {"the ": "the " + adjective + " " + bare, None: adjective + " " + bare}.get(
        article, a(adjective + " " + bare)
    )


def _clause(scene, v, rng, said):
    """One voice as ("a dog barks twice", "a dog barking twice"); `said` learns what the words give away."""
    s = SOURCES[v.name]
    who, does, rest = pick(rng, s.subjects), pick(rng, s.verbs), []
    if s.kind == "music":
        words = []
        for key in ("tempo", "register", "contour") if s.base else ("tempo",):
            if getattr(scene, key) in MUSIC and rng.random() < 0.7:
                words.append(pick(rng, MUSIC[getattr(scene, key)]))
                said.add(key)
        thing = pick(
            rng, ("melody", "tune", "phrase", "line") if s.base else ("beat", "rhythm", "pattern")
        )
        what = a(" ".join([words[i] for i in rng.permutation(len(words))] + [thing]))
        doing = (
            pick(rng, (f"{who} {ing(does)} {what}", f"{what} on {who}", f"{what} played by {who}"))
            if s.base
            else f"{who} {ing(does)} {what}"
        )
        return f"{who} {does} {what}", doing
    if v.count and rng.random() < 0.7:
        rest.append(pick(rng, COUNTS[v.count]))
        said.add(("count", v.name))
    elif not v.count and rng.random() < 0.35:
        rest.append(pick(rng, GOES_ON))
    if v.distance and rng.random() < 0.7:
        said.add(("distance", v.name))
        if rng.random() < 0.5:
            who = _with(who, pick(rng, ADJECTIVES[v.distance]))
        else:
            rest.append(pick(rng, ADVERBS[v.distance]))
    return " ".join([who, does, *rest]), " ".join([who, ing(does), *rest])


def describe(scene, rng):
    """(caption, said): `said` holds "noise", "tempo", "register", "contour", ("count", name), ("distance", name), as far as the words tell them."""
    said = set()
    voices = (
        [scene.voices[i] for i in rng.permutation(len(scene.voices))]
        if scene.layout == "together"
        else scene.voices
    )
    words = {}
    for small, large, v in zip("abc", "ABC", voices):
        words[small], words[large] = _clause(scene, v, rng, said)
    template = pick(
        rng,
        THREE
        if len(voices) == 3
        else {"solo": SOLO, "together": TOGETHER, "sequence": SEQUENCE}[scene.layout],
    )
    text = template.format(**words)
    if rng.random() < 0.3:
        said.add("noise")
        text += ", " * (len(voices) > 1) + " " * (len(voices) == 1) + pick(rng, NOISE[scene.noise])
    return text, said


def caption(scene, rng, where=None):
    """One English caption of the scene; with `where`, one that belongs to that part of the world."""
    return _told(scene, rng, where)[0]


def _told(scene, rng, where):
    for _ in range(5000):
        text, said = describe(scene, rng)
        if where is None or part(text) == where:
            return text, said
    raise ValueError(
        f"no caption of this scene falls in part {where!r}; the parts are {', '.join(PARTS)}: {scene}"
    )


PARTS = {"test": 0.10, "val": 0.05, "clap": 0.35, "train": 0.50}


def part(text, parts=PARTS):
    """The part of the world that a caption belongs to, by the hash of its lower-cased words."""
    x = int(hashlib.sha1(text.lower().encode()).hexdigest()[:12], 16) / 16**12
    for name, share in parts.items():
        x -= share
        if x < 0:
            return name
    return name


# ---------------------------------------------------------------------------------------------------------------------
# triples: the question is asked only where the words of its own text give the answer


def triples(scene, rng, where=None):
    """One triple of each task (cls, cap | music_cap, aqa, open, mcq), each with a caption of its own, all in part `where`.
    A list of {"text", "instruction", "answer", "task"}; mcq has "choices" too. What is asked is also true of render(scene)."""
    out = []

    def add(task, text, instruction, answer, **more):
        out.append(
            {"text": text, "instruction": instruction, "answer": answer, "task": task, **more}
        )

    text = caption(scene, rng, where)
    add("cls", text, "Classify events in the audio clip.", ", ".join(scene.labels))
    text = caption(scene, rng, where)
    add(
        *(
            ("cap", text, "Generate audio caption.")
            if scene.kind == "sound"
            else ("music_cap", text, "Generate music caption.")
        ),
        text,
    )
    text, said = _told(scene, rng, where)
    yes = bool(rng.random() < 0.5)
    add("aqa", text, pick(rng, _yes_no(scene, said, yes, rng)), "yes" if yes else "no")
    text, said = _told(scene, rng, where)
    add("open", text, *pick(rng, _open(scene, said, rng)))
    text, said = _told(scene, rng, where)
    question, answer, wrong = pick(rng, _choice(scene, said, rng))
    choices = [answer] + [str(x) for x in rng.choice(wrong, 3, replace=False)]
    choices = [choices[i] for i in rng.permutation(4)]
    add(
        "mcq",
        text,
        f"{question} Select one option: {', '.join(choices)} Respond with exactly one of the options above.",
        answer,
        choices=choices,
    )
    return out


def _absent(scene, rng):
    """A source that the scene does not hold, more often than not one that is easily mistaken for one that it does."""
    here = {v.name for v in scene.voices}
    group = SOURCES[pick(rng, scene.voices).name].group
    away = [s for s in SOURCES.values() if s.kind == scene.kind and s.name not in here]
    return pick(
        rng,
        [s for s in away if s.group == group]
        if rng.random() < 0.5 and any(s.group == group for s in away)
        else away,
    )


_FAMILY = {
    "sound": "What kind of sound is it?",
    "music": "Which family does the instrument belong to?",
}


def _doing(s):
    return f"{s.subjects[0]} {ing(s.verbs[0])}"


def _yes_no(scene, said, yes, rng):
    """Questions about the scene whose answer is yes (or no), from which one is drawn."""
    first, last = SOURCES[scene.voices[0].name], SOURCES[scene.voices[-1].name]
    v = pick(rng, scene.voices)
    s = SOURCES[v.name]
    x = s if yes else _absent(scene, rng)
    there = [
        f"Is there a sound of {_doing(x)}?",
        f"Can you hear {_doing(x)}?",
        f"Does the clip contain this: {x.name}?",
    ]
    out = [pick(rng, there), pick(rng, there)]
    groups = {SOURCES[u.name].group for u in scene.voices}
    group = pick(
        rng,
        sorted(
            groups if yes else {u.group for u in SOURCES.values() if u.kind == scene.kind} - groups
        ),
    )
    out += [f"Is there {a(group)} {'sound' if scene.kind == 'sound' else 'instrument'}?"]
    if scene.layout == "sequence":
        p, q = (first, last) if yes else (last, first)
        out += [
            f"Does {the(p.subjects[0])} come before {the(q.subjects[0])}?",
            f"Does {the(q.subjects[0])} come after {the(p.subjects[0])}?",
        ] * 2
    if scene.layout != "solo":
        out += [
            "Do the sounds happen at the same time?"
            if (scene.layout == "together") == yes
            else "Does one sound follow the other?"
        ]
    out += [
        "Is there more than one sound?"
        if (len(scene.voices) > 1) == yes
        else "Is there only one sound?"
    ]
    if ("count", v.name) in said:
        c = v.count if yes else pick(rng, [c for c in COUNTS if c != v.count])
        out += [f"Does {the(s.subjects[0])} {base_form(s.verbs[0])} {COUNTS[c][0]}?"] * 2
    if ("distance", v.name) in said:
        out += [
            f"Is {the(s.subjects[0])} {'far away' if (v.distance == 'far') == yes else 'close by'}?"
        ] * 2
    if "noise" in said:
        out += [
            "Is there background noise?"
            if (scene.noise == "noisy") == yes
            else "Is the recording clean?"
        ]
    for key, x, y, question in (
        ("tempo", "slow", "fast", "Is the music {}?"),
        ("register", "low", "high", "Is the pitch {}?"),
        ("contour", "rising", "falling", "Is the melody {}?"),
    ):
        if key in said:
            out += [question.format(x if (getattr(scene, key) == x) == yes else y)] * 2
    return out


def _open(scene, said, rng):
    """(question, answer) pairs."""
    n, v = len(scene.voices), pick(rng, scene.voices)
    s = SOURCES[v.name]
    out = [("How many different sounds are there?", ("one", "two", "three")[n - 1])]
    if n == 1:
        out += [
            (
                "What is making the sound?"
                if s.kind == "sound"
                else "Which instrument is playing?",
                s.subjects[0],
            ),
            ("Where could this be recorded?", s.where),
            (_FAMILY[s.kind], s.group),
        ]
    if scene.layout == "sequence":
        x, y = (SOURCES[u.name] for u in scene.voices)
        out += [
            ("What sound comes first?", _doing(x)),
            ("What sound comes last?", _doing(y)),
            (f"What happens after {the(x.subjects[0])}?", f"{y.subjects[0]} {y.verbs[0]}"),
            (f"What happens before {the(y.subjects[0])}?", f"{x.subjects[0]} {x.verbs[0]}"),
        ]
    if scene.layout == "together" and n == 2:
        x, y = (SOURCES[scene.voices[i].name] for i in rng.permutation(2))
        out += [(f"What else can be heard besides {the(x.subjects[0])}?", _doing(y))]
    if n > 1:
        out += [
            (
                "In what order do the sounds come?",
                "one after the other" if scene.layout == "sequence" else "at the same time",
            )
        ]
    if ("count", v.name) in said:
        out += [
            (
                f"How many times does {the(s.subjects[0])} {base_form(s.verbs[0])}?",
                COUNTS[v.count][0],
            )
        ]
    if ("distance", v.name) in said:
        out += [
            (
                f"How far away is {the(s.subjects[0])}?",
                {"near": "close by", "far": "far away"}[v.distance],
            )
        ]
    if "noise" in said:
        out += [
            (
                "How clean is the recording?",
                {"noisy": "there is background noise", "quiet": "it is clean"}[scene.noise],
            )
        ]
    if "tempo" in said:
        out += [
            (
                "How does the music feel?",
                {"slow": "calm and gentle", "fast": "lively and energetic"}[scene.tempo],
            )
        ]
    if "register" in said:
        out += [
            (
                "How high is the music?",
                {"low": "low and deep", "high": "high in pitch"}[scene.register],
            )
        ]
    if "contour" in said:
        out += [
            (
                "Where does the melody go?",
                {"rising": "it goes up", "falling": "it goes down"}[scene.contour],
            )
        ]
    return out


def _choice(scene, said, rng):
    """(question, answer, wrong answers) triples."""
    here = [v.name for v in scene.voices]
    away = [x for x in labels(scene.kind) if x not in here]
    v = pick(rng, scene.voices)
    s = SOURCES[v.name]
    noun = "sound" if scene.kind == "sound" else "instrument"
    out = [
        (f"Which {noun} can be heard?", v.name, away),
        (f"Which of these {noun}s is in the clip?", v.name, away),
    ]
    if scene.layout == "sequence":
        decoys = [here[1]] + [str(x) for x in rng.choice(away, 2, replace=False)]
        out += [
            ("Which sound comes first?", here[0], decoys),
            ("Which sound comes last?", here[1], [here[0]] + decoys[1:]),
        ] * 2
    if len(here) == 1:
        kin = [u for u in SOURCES.values() if u.kind == scene.kind]
        out += [
            ("Where could this be recorded?", s.where, sorted({u.where for u in kin} - {s.where})),
            (_FAMILY[s.kind], s.group, sorted({u.group for u in kin} - {s.group})),
        ]
    if ("count", v.name) in said:
        out += [
            (
                f"How many times does {the(s.subjects[0])} {base_form(s.verbs[0])}?",
                COUNTS[v.count][0],
                [COUNTS[c][0] for c in COUNTS if c != v.count],
            )
        ]
    if {"tempo", "register"} <= said:
        right = f"{scene.tempo} and {scene.register}"
        ways = [f"{x} and {y}" for x in ("slow", "fast") for y in ("low", "high")]
        out += [("How is the music played?", right, [w for w in ways if w != right])] * 2
    return out


# ---------------------------------------------------------------------------------------------------------------------


def main():
    p = argparse.ArgumentParser(
        description="Write a handful of clips of the synthetic world as wav, with their captions."
    )
    p.add_argument("dir", type=Path)
    p.add_argument("--n", type=int, default=12, help="how many scenes")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument(
        "--sources", action="store_true", help="every source once, alone, instead of scenes"
    )
    args = p.parse_args()
    import soundfile

    if args.dir.exists() and any(args.dir.iterdir()):
        raise SystemExit(f"{args.dir} is not empty: name a new folder, or remove it first")
    args.dir.mkdir(parents=True, exist_ok=True)
    rng, lines = np.random.default_rng(args.seed), []
    clips = (
        [(f"{name}", SOURCES[name].render(rng, 32000)) for name in SOURCES]
        if args.sources
        else [(caption(s, rng), render(s, rng)) for s in (random_scene(rng) for _ in range(args.n))]
    )
    for i, (text, x) in enumerate(clips):
        soundfile.write(args.dir / f"{i:03d}.wav", x, 16000)
        lines.append(f"{i:03d}.wav\t{text}")
    (args.dir / "captions.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
