"""
The tasks of the tiny world: triples (text, instruction, answer).

The answer follows from the triple's own text alone. So a question is asked only about facts that
the text tells; `words.describe` reports them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from shards.tiny.scenes import SOUNDERS, Scene, labels
from shards.tiny.words import COUNTS, a, base_form, caption, describe_in, ing, pick, the

# -- tables: fact -> value -> words

YES = {  # the question to which that value says yes
    "layout": {
        "together": "Do the sounds happen at the same time?",
        "sequence": "Does one sound follow the other?",
    },
    "number": {"many": "Is there more than one sound?", "one": "Is there only one sound?"},
    "noise": {"noisy": "Is there background noise?", "quiet": "Is the recording clean?"},
    "tempo": {"slow": "Is the music slow?", "fast": "Is the music fast?"},
    "register": {"low": "Is the pitch low?", "high": "Is the pitch high?"},
    "contour": {"rising": "Is the melody rising?", "falling": "Is the melody falling?"},
}
OPEN = {  # the question, then the answers
    "noise": {
        "?": "How clean is the recording?",
        "noisy": "there is background noise",
        "quiet": "it is clean",
    },
    "tempo": {
        "?": "How does the music feel?",
        "slow": "calm and gentle",
        "fast": "lively and energetic",
    },
    "register": {"?": "How high is the music?", "low": "low and deep", "high": "high in pitch"},
    "contour": {
        "?": "Where does the melody go?",
        "rising": "it goes up",
        "falling": "it goes down",
    },
}
ORDER = {"together": "at the same time", "sequence": "one after the other"}
DISTANCE = {"near": "close by", "far": "far away"}
FAMILY = {
    "sound": "What kind of sound is it?",
    "music": "Which family does the instrument belong to?",
}
MAKER = {"sound": "What is making the sound?", "music": "Which instrument is playing?"}
NOUN = {"sound": "sound", "music": "instrument"}


class Question(NamedTuple):
    text: str
    answer: str
    wrong: Sequence[str] = ()  # choices that are not the answer


# -- triples


def triples(scene: Scene, rng: np.random.Generator, where: str | None = None) -> list[dict]:
    """One triple of each task: cls, cap or music_cap, aqa, open, mcq.

    Each is {"text", "instruction", "answer", "task"}; mcq has "choices" too. Each has a caption of
    its own, in part `where`. The answers are also true of render(scene).
    """
    text = caption(scene, rng, where)
    out = [triple("cls", text, "Classify events in the audio clip.", ", ".join(scene.labels))]

    text = caption(scene, rng, where)
    if scene.kind == "sound":
        out.append(triple("cap", text, "Generate audio caption.", text))
    else:
        out.append(triple("music_cap", text, "Generate music caption.", text))

    text, said = describe_in(scene, rng, where)
    yes = bool(rng.random() < 0.5)
    question = pick(rng, yes_no(scene, said, yes, rng))
    out.append(triple("aqa", text, question, "yes" if yes else "no"))

    text, said = describe_in(scene, rng, where)
    question = pick(rng, open_questions(scene, said, rng))
    out.append(triple("open", text, question.text, question.answer))

    text, said = describe_in(scene, rng, where)
    question = pick(rng, choice_questions(scene, said, rng))
    choices = [question.answer, *(str(x) for x in rng.choice(question.wrong, 3, replace=False))]
    choices = [choices[i] for i in rng.permutation(4)]
    instruction = (
        f"{question.text} Select one option: {', '.join(choices)}"
        " Respond with exactly one of the options above."
    )
    return [*out, triple("mcq", text, instruction, question.answer) | {"choices": choices}]


def triple(task: str, text: str, instruction: str, answer: str) -> dict:
    return {"text": text, "instruction": instruction, "answer": answer, "task": task}


# -- questions: one that stands twice in a list is asked twice as often


def yes_no(scene: Scene, said: set, yes: bool, rng: np.random.Generator) -> list[str]:
    """Questions to which the answer is yes, or else no."""
    voice = pick(rng, scene.voices)
    questions = _presence(scene, voice, yes, rng)
    if scene.layout == "sequence":
        before, after = (the(v.sounder.subjects[0]) for v in scene.voices)
        if not yes:
            before, after = after, before
        order = [f"Does {before} come before {after}?", f"Does {after} come after {before}?"]
        questions += order * 2
    if scene.layout != "solo":
        questions.append(_yes_to("layout", scene.layout, yes))
    questions.append(_yes_to("number", "one" if scene.layout == "solo" else "many", yes))
    questions += _about_the_voice(voice, said, yes, rng)
    if "noise" in said:
        questions.append(_yes_to("noise", scene.noise, yes))
    for fact in ("tempo", "register", "contour"):
        if fact in said:
            questions += [_yes_to(fact, getattr(scene, fact), yes)] * 2
    return questions


def _yes_to(fact, value, yes):
    """The question to which `value` says yes, or else the one to which its opposite does."""
    return next(question for v, question in YES[fact].items() if (v == value) == yes)


def _presence(scene, voice, yes, rng):
    """Three questions whether a sound, or one of a group, is there."""
    asked = voice.sounder if yes else _absent(scene, rng)
    forms = [
        f"Is there a sound of {_doing(asked)}?",
        f"Can you hear {_doing(asked)}?",
        f"Does the clip contain this: {asked.name}?",
    ]
    questions = [pick(rng, forms), pick(rng, forms)]
    groups = {v.sounder.group for v in scene.voices}
    if not yes:
        groups = {s.group for s in _kin(scene)} - groups
    return [*questions, f"Is there {a(pick(rng, sorted(groups)))} {NOUN[scene.kind]}?"]


def _absent(scene, rng):
    """A sounder that the scene does not hold, often of the same group as one that it does."""
    here = [voice.name for voice in scene.voices]
    group = pick(rng, scene.voices).sounder.group
    away = [s for s in _kin(scene) if s.name not in here]
    similar = [s for s in away if s.group == group]
    return pick(rng, similar if rng.random() < 0.5 and similar else away)


def _about_the_voice(voice, said, yes, rng):
    sounder, questions = voice.sounder, []
    who = the(sounder.subjects[0])
    if ("count", voice.name) in said:
        others = [count for count in COUNTS if count != voice.count]
        count = voice.count if yes else pick(rng, others)
        questions += [f"Does {who} {base_form(sounder.verbs[0])} {COUNTS[count][0]}?"] * 2
    if ("distance", voice.name) in said:
        where = DISTANCE["far" if (voice.distance == "far") == yes else "near"]
        questions += [f"Is {who} {where}?"] * 2
    return questions


def open_questions(scene: Scene, said: set, rng: np.random.Generator) -> list[Question]:
    """Questions with a free answer."""
    voice = pick(rng, scene.voices)
    sounder = voice.sounder
    number = ("one", "two", "three")[len(scene.voices) - 1]
    questions = [Question("How many different sounds are there?", number)]
    if scene.layout == "solo":
        maker = Question(MAKER[scene.kind], sounder.subjects[0])
        questions += [maker, *_about_the_place_and_family(scene)]
    else:
        questions += _about_the_order(scene, rng)
    if ("count", voice.name) in said:
        questions.append(_how_many_times(voice))
    if ("distance", voice.name) in said:
        question = f"How far away is {the(sounder.subjects[0])}?"
        questions.append(Question(question, DISTANCE[voice.distance]))
    for fact, words in OPEN.items():
        if fact in said:
            questions.append(Question(words["?"], words[getattr(scene, fact)]))
    return questions


def _about_the_order(scene, rng):
    """Open questions on a scene of several voices."""
    voices, questions = [v.sounder for v in scene.voices], []
    if scene.layout == "sequence":
        first, last = voices
        one, other = first.subjects[0], last.subjects[0]
        questions = [
            Question("What sound comes first?", _doing(first)),
            Question("What sound comes last?", _doing(last)),
            Question(f"What happens after {the(one)}?", f"{other} {last.verbs[0]}"),
            Question(f"What happens before {the(other)}?", f"{one} {first.verbs[0]}"),
        ]
    elif len(voices) == 2:
        one, other = (voices[i] for i in rng.permutation(2))
        question = f"What else can be heard besides {the(one.subjects[0])}?"
        questions = [Question(question, _doing(other))]
    return [*questions, Question("In what order do the sounds come?", ORDER[scene.layout])]


def choice_questions(scene: Scene, said: set, rng: np.random.Generator) -> list[Question]:
    """Questions with one right answer and at least three wrong ones."""
    here = [voice.name for voice in scene.voices]
    away = [name for name in labels(scene.kind) if name not in here]
    voice, noun = pick(rng, scene.voices), NOUN[scene.kind]
    questions = [
        Question(f"Which {noun} can be heard?", voice.name, away),
        Question(f"Which of these {noun}s is in the clip?", voice.name, away),
    ]
    if scene.layout == "sequence":
        first, last = here
        decoys = [str(name) for name in rng.choice(away, 2, replace=False)]
        questions += [
            Question("Which sound comes first?", first, [last, *decoys]),
            Question("Which sound comes last?", last, [first, *decoys]),
        ] * 2
    if scene.layout == "solo":
        questions += _about_the_place_and_family(scene)
    if ("count", voice.name) in said:
        questions.append(_how_many_times(voice))
    if {"tempo", "register"} <= said:
        right = f"{scene.tempo} and {scene.register}"
        ways = [f"{x} and {y}" for x in ("slow", "fast") for y in ("low", "high")]
        wrong = [way for way in ways if way != right]
        questions += [Question("How is the music played?", right, wrong)] * 2
    return questions


def _about_the_place_and_family(scene):
    (voice,) = scene.voices
    sounder, kin = voice.sounder, _kin(scene)
    places = sorted({s.where for s in kin} - {sounder.where})
    groups = sorted({s.group for s in kin} - {sounder.group})
    return [
        Question("Where could this be recorded?", sounder.where, places),
        Question(FAMILY[scene.kind], sounder.group, groups),
    ]


def _how_many_times(voice):
    sounder = voice.sounder
    question = f"How many times does {the(sounder.subjects[0])} {base_form(sounder.verbs[0])}?"
    wrong = [words[0] for count, words in COUNTS.items() if count != voice.count]
    return Question(question, COUNTS[voice.count][0], wrong)


def _kin(scene):
    return [s for s in SOUNDERS.values() if s.kind == scene.kind]


def _doing(sounder):
    return f"{sounder.subjects[0]} {ing(sounder.verbs[0])}"
