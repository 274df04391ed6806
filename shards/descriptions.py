"""The lines of descriptions/NAME.jsonl: their form, and the texts that are fit for them.

shards/describe.py has them written by a language model, shards/templates.py by templates.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from scoring.answers import read_lines

Labels = tuple[str, ...]


@dataclass
class Report:
    requests: int = 0
    dropped: Counter = field(default_factory=Counter)  # reason -> lines
    usage: Counter = field(default_factory=Counter)  # prompt_tokens, completion_tokens
    given_up: dict[Labels, str] = field(default_factory=dict)  # labels -> reason
    missing: Counter = field(default_factory=Counter)  # labels -> descriptions


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def key_of(text: str) -> str:
    """The text without case, punctuation and white space: equal for repetitions."""
    return " ".join(words(text))


def row_of(labels: Labels, text: str, model: str) -> dict:
    """A line of the file."""
    return {"labels": list(labels), "text": text, "model": model}


def described(row: dict) -> tuple[Labels, str]:
    """(labels, key of the text) of a line; raises LookupError, TypeError or AttributeError."""
    return tuple(row["labels"]), key_of(row["text"])


def read(path: str | Path) -> Counter:
    """{labels: descriptions in the file}. Raises DataError, naming a line that is none."""
    return Counter(labels for labels, _ in read_lines(path, described, "description")[0])


def counts(counter: Counter) -> str:
    return ", ".join(f"{n:,} {name}" for name, n in counter.most_common())


# --- the filter ---------------------------------------------------------------------------

REFUSAL = re.compile(
    r"^(i'?m|i am) (very |so )?sorry|^sorry,"
    r"|^i (cannot|can't|can not|won't|am unable|apologi[sz]e)|\bas an ai\b"
    r"|^unfortunately, i\b|\blanguage model\b|\bi'm unable to\b"
    r"|\b(cannot|can't) (assist|comply|help with)"
)
REMARK = re.compile(
    r":$|^(here are|here is|here's|let me know|i hope|note that|labels)\b"
    r"|^(sure|certainly|of course)[,!.]|\bdescriptions?\b"
)
VISUAL = set(
    words("""
    see sees seeing seen look looks looked looking watching view views viewed viewing visible
    visibly invisible visual visually sight sights image images picture pictures pictured photo
    photos photograph photographs video videos scenery color colors colored colorful colour colours
    coloured colourful red orange yellow green blue purple pink brown black white gray grey bright
    brightly shiny shining glow glows glowing gleaming glittering flash flashes flashing darkness
    sunlight sunlit moonlight moonlit shadow shadows silhouette silhouettes""")
)
HEARD = re.compile(  # visual words that sound
    r"\b(flash flood(s|ing)?|(white|pink|brown|gray|grey|blue) noise)\b"
)
SMALL = set(
    words("a an and are as at by for from in is it of on or other sound sounds the to with")
)
QUOTES = {'"': '"', "“": "”", "'": "'", "‘": "’", "«": "»", "`": "`"}


def unmarked(line: str, labels: Labels = ()) -> str:
    """The line without numbering, bullets, bold, quotes, and its labels before a colon.

    Empty if nothing is left.
    """
    text = " ".join(line.replace("**", "").split()).rstrip(",")
    text = re.sub(r"^([-*•–—]+\s+|#+\s+|\(?\d{1,3}[.):](?!\d)\s*)+", "", text)
    head, colon, rest = text.partition(":")
    own = {"label", "labels", "and"}.union(*map(words, labels))
    if colon and words(head) and own.issuperset(words(head)):
        text = rest.strip()
    while is_quoted(text):
        text = text[1:-1].strip()
    if text in ("[", "]") or text.startswith("```"):  # around a list
        return ""
    return text


def is_quoted(text: str) -> bool:
    """Whether one pair of quotes encloses it all, unlike: "Stop!" a man shouts, then "go"."""
    if len(text) < 2 or QUOTES.get(text[0]) != text[-1]:
        return False
    return not re.search(rf"\s{text[0]}|{text[-1]}\s", text[1:-1])


def fault(text: str, labels: Labels, others: Iterable[str] = ()) -> str | None:
    """A word or two: why the text cannot describe these labels; None if it can.

    others: all labels of the dataset.
    """
    said, lower, n = words(text), text.casefold().replace("’", "'"), len(text.split())
    own = set().union(*map(words, labels))
    if REFUSAL.search(lower):
        return "refusal"
    if REMARK.search(lower):
        return "remark"
    if n < 3:
        return "too short"
    if n > 40:
        return "too long"
    if set(said) <= own | SMALL:
        return "label only"
    if set(words(HEARD.sub("", lower))) & VISUAL - own:
        return "visual"
    if not names_own(said, own) and names_other(said, labels, others):
        return "wrong label"
    return None


def names_own(said: list[str], own: set[str]) -> bool:
    """Whether a word begins with the stem of a word of the labels."""
    stems = tuple(re.sub(r"(?<=\w{3})(ing|er|ed|es|s|e)$", "", word) for word in own - SMALL)
    return any(word.startswith(stems) for word in said)


def names_other(said: list[str], labels: Labels, others: Iterable[str]) -> bool:
    phrase = f" {' '.join(said)} "
    return any(f" {key_of(label)} " in phrase for label in others if label not in labels)


def misses(texts: list[str], owners: list[Labels], nearest: Callable | None) -> list[str | None]:
    """For each text, why it does not describe its labels; None where it does.

    owners: the labels of each text. nearest: texts -> the label nearest to each, or None where a
    text has none; called at most once. Without it every text passes.
    """
    if nearest is None or not texts:
        return [None] * len(texts)
    reasons = []
    for label, labels in zip(nearest(texts), owners):
        if label is None:
            reasons.append("no vector")
        elif label in labels:
            reasons.append(None)
        else:
            reasons.append("nearer to another label")
    return reasons
