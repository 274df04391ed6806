"""
The tasks of the tiny world: triples (text, instruction, answer).

The answer follows from the triple's own text alone. So a question is asked only about facts that
the text tells; `words.describe` reports them.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from shards.tiny.instruments import REGISTERS, TEMPOS
from shards.tiny.scenes import SOUNDERS, TWO, Scene, imagine, labels
from shards.tiny.words import COUNTS, DISTANCE, a, caption, describe_in, pick, tags

# -- tables: fact -> value -> words

YES = {  # the question to which that value says yes
    "layout": {
        "together": "Do the sounds happen at the same time?",
        "sequence": "Does one sound follow the other?",
    },
    "number": {"many": "Is there more than one sound?", "one": "Is there only one sound?"},
}
OPEN = {  # the question, then the answers
    "tempo": {
        "?": "How does the music feel?",
        "slow": "calm and gentle",
        "fast": "lively and energetic",
    },
    "register": {"?": "How high is the music?", "low": "low and deep", "high": "high in pitch"},
}
FAMILY = {
    "sound": "What kind of sound is it?",
    "music": "Which family does the instrument belong to?",
}
MAKER = {"sound": "What is making the sound?", "music": "Which instrument is playing?"}
NUMBERS = {1: "one", 2: "two"}
NOUN = {"sound": "sound", "music": "instrument"}


class Question(NamedTuple):
    text: str
    answer: str
    wrong: Sequence[str] = ()  # choices that are not the answer


# -- triples


def triples(scene: Scene, rng: np.random.Generator, where: str | None = None) -> list[dict]:
    """Triples of each task, cls, cap or music_cap, aqa (two), open, mcq, each with its own caption.

    Each is {"text", "instruction", "answer", "task"}; mcq has "choices" too. The captions belong to
    part `where`. The answers are also true of render(scene).
    """
    asked = [ask(scene, *describe_in(scene, rng, where), rng) for ask in TASKS]
    if rng.random() < 0.5:  # as from a dataset of labels without captions
        asked[TASKS.index(ask_label)]["text"] = f"sound of {', '.join(scene.labels)}"
    return asked


def lesson(scene: Scene, rng: np.random.Generator, where: str | None = None) -> list[dict]:
    """Triples about the scene's tags, or about its labels alone where yes or no is asked.

    A language model learns from tags in minutes, since they name the labels themselves. A caption
    has many words for one label. The caption task writes a caption of part `where` from tags.
    """
    asked = []
    for ask in LESSON:
        text, said = tags(scene, rng, facts=ask is not ask_yes_no)
        asked.append(ask(scene, text, said, rng))
    asked[LESSON.index(ask_caption)]["answer"] = caption(scene, rng, where)
    return asked


def told(stream: int, n: int, part: str) -> Iterator[dict]:
    """All triples of n scenes that are never rendered."""
    for i in range(n):
        rng, scene = imagine(stream, i)
        yield from triples(scene, rng, part)


def taught(stream: int, n: int) -> Iterator[dict]:
    """All triples about the tags of n scenes."""
    for i in range(n):
        rng, scene = imagine(stream, i)
        yield from lesson(scene, rng, "train")


def triple(task: str, text: str, instruction: str, answer: str) -> dict:
    return {"text": text, "instruction": instruction, "answer": answer, "task": task}


def ask_label(scene, text, said, rng):
    return triple("cls", text, "Classify events in the audio clip.", ", ".join(scene.labels))


def ask_caption(scene, text, said, rng):
    if scene.kind == "sound":
        return triple("cap", text, "Generate audio caption.", text)
    return triple("music_cap", text, "Generate music caption.", text)


def ask_yes_no(scene, text, said, rng):
    yes = bool(rng.random() < 0.5)
    question = pick(rng, yes_no(scene, yes, rng))
    return triple("aqa", text, question, "yes" if yes else "no")


def ask_open(scene, text, said, rng):
    question = pick(rng, open_questions(scene, said, rng))
    return triple("open", text, question.text, question.answer)


def ask_choice(scene, text, said, rng):
    question = pick(rng, choice_questions(scene, said, rng))
    choices = [question.answer, *(str(x) for x in rng.choice(question.wrong, 3, replace=False))]
    choices = [choices[i] for i in rng.permutation(4)]
    instruction = f"{question.text} Select one option: {', '.join(choices)}"
    return triple("mcq", text, instruction, question.answer) | {"choices": choices}


# Yes or no is the hardest to learn: neither the question nor the text alone says anything about it.
TASKS = (ask_label, ask_caption, ask_yes_no, ask_yes_no, ask_open, ask_choice)
LESSON = (*TASKS, ask_yes_no, ask_yes_no, ask_yes_no)


# -- questions: one that stands twice in a list is asked twice as often


def yes_no(scene: Scene, yes: bool, rng: np.random.Generator) -> list[str]:
    """Questions to which the answer is yes, or else no."""
    questions = [f"Is there {a(_group(scene, yes, rng))} {NOUN[scene.kind]}?"] * 3
    one, two = 1 - TWO[scene.kind], TWO[scene.kind]
    if scene.layout != "solo":
        questions.append(_yes_to("number", "many", yes))
    elif rng.random() < two / one:  # so that both answers are as frequent
        questions.append(_yes_to("number", "one", yes))
    if scene.layout != "solo" and scene.kind == "sound":
        questions.append(_yes_to("layout", scene.layout, yes))
    return questions


def _yes_to(fact, value, yes):
    """The question to which `value` says yes, or else the one to which its opposite does."""
    return next(question for v, question in YES[fact].items() if (v == value) == yes)


def _group(scene, here, rng):
    """A group that the scene holds, or one that it does not; large ones more often in both cases,
    so that the question does not give its answer away."""
    groups = {voice.sounder.group for voice in scene.voices}
    return pick(rng, [s.group for s in _kin(scene) if (s.group in groups) == here])


def open_questions(scene: Scene, said: set, rng: np.random.Generator) -> list[Question]:
    """Questions with a free answer."""
    questions = [Question("How many different sounds are there?", NUMBERS[len(scene.voices)])]
    if scene.layout == "sequence":
        questions += _about_the_order(scene)
    if scene.layout == "solo":
        (voice,) = scene.voices
        questions.append(Question(MAKER[scene.kind], voice.sounder.subjects[0]))
        questions += _about_the_place_and_family(scene)
        if ("count", voice.name) in said:
            questions.append(_how_many_times(voice))
        if ("distance", voice.name) in said:
            questions.append(Question("How far away is it?", DISTANCE[voice.distance]))
    for fact, words in OPEN.items():
        if fact in said:
            questions.append(Question(words["?"], words[getattr(scene, fact)]))
    return questions


def choice_questions(scene: Scene, said: set, rng: np.random.Generator) -> list[Question]:
    """Questions with one right answer and at least three wrong ones."""
    here = [voice.name for voice in scene.voices]
    away = [name for name in labels(scene.kind) if name not in here]
    questions = [Question(f"Which {NOUN[scene.kind]} can be heard?", pick(rng, here), away)] * 2
    if scene.layout == "sequence":
        decoys = [str(name) for name in rng.choice(away, 2, replace=False)]
        questions += [q._replace(wrong=[*here, *decoys]) for q in _about_the_order(scene)]
    if scene.layout == "solo":
        questions += _about_the_place_and_family(scene)
        if ("count", here[0]) in said:
            questions.append(_how_many_times(scene.voices[0]))
    if {"tempo", "register"} <= said:
        ways = [f"{tempo} and {register}" for tempo in TEMPOS for register in REGISTERS]
        right = f"{scene.tempo} and {scene.register}"
        questions.append(Question("How is the music played?", right, ways))
    return [q._replace(wrong=[w for w in q.wrong if w != q.answer]) for q in questions]


def _about_the_order(scene):
    first, last = (voice.name for voice in scene.voices)
    return [Question("Which sound comes first?", first), Question("Which sound comes last?", last)]


def _about_the_place_and_family(scene):
    (voice,) = scene.voices
    places, groups = ({getattr(s, f) for s in _kin(scene)} for f in ("where", "group"))
    return [
        Question("Where could this be recorded?", voice.sounder.where, sorted(places)),
        Question(FAMILY[scene.kind], voice.sounder.group, sorted(groups)),
    ]


def _how_many_times(voice):
    times = [words[0] for words in COUNTS.values()]
    return Question("How many times does it sound?", COUNTS[voice.count][0], times)


def _kin(scene):
    return [s for s in SOUNDERS.values() if s.kind == scene.kind]
