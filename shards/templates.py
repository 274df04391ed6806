"""Descriptions of labels by templates, without a language model: for a first run.

from_templates(Counter({("dog",): 3}), "descriptions/mine.jsonl")

{"labels": ["dog"], "text": "Dog can be heard in the distance.", "model": "templates"}
"""

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from zlib import crc32

from tqdm import tqdm

from scoring.answers import growing
from shards.descriptions import Labels, Report, counts, described, key_of, misses, row_of

TEMPLATES = (
    "The sound of {labels}.",
    "{labels} can be heard in the distance.",
    "A recording of {labels} in a quiet room.",
    "Close to the microphone, the sound of {labels} is loud and clear.",
    "From far away comes the faint sound of {labels}.",
    "Outdoors, with little else around, someone has recorded {labels}.",
    "In a large hall, the sound of {labels} echoes from the walls.",
    "Muffled by a wall, {labels} can just be made out.",
    "A short clip of {labels} that ends abruptly.",
    "One can hear {labels} again and again, always about as loud.",
    "Over a low background noise there is the sound of {labels}.",
    "Suddenly the sound of {labels} breaks the silence.",
    "The sound of {labels} comes nearer, is very loud for a moment, and fades away.",
    "Through an open window one hears {labels}, soft at first and then louder.",
    "Loud sounds of {labels}, right next to the listener.",
    "For the whole length of the recording, {labels} can be heard at a steady volume.",
)
BATCH = 256  # texts that the encoder gets at once


def readable(labels: Labels) -> str:
    """The labels in lower case and without underscores: "a, b and c"."""
    *first, last = (" ".join(label.replace("_", " ").lower().split()) for label in labels)
    return f"{', '.join(first)} and {last}" if first else last


def sentences(labels: Labels) -> Iterator[str]:
    """A description by each template; different labels begin at different templates."""
    start = crc32("\n".join(labels).encode(errors="backslashreplace")) % len(TEMPLATES)
    for template in TEMPLATES[start:] + TEMPLATES[:start]:
        text = template.format(labels=readable(labels))
        yield text[0].upper() + text[1:]


def from_templates(plan: Counter, path: str | Path, nearest: Callable | None = None) -> Report:
    """Appends descriptions by templates to `path` until it holds the plan, or there are no more.

    plan: {labels: descriptions}. A set of labels gets at most one of each template. nearest: as in
    `misses`; another template replaces what it drops. The same plan makes the same file. Raises
    DataError if another run writes to `path` or a line in it is no description.
    """
    path, report = Path(path), Report()
    with growing(path, described, "description") as (found, append):
        have, seen = Counter(labels for labels, _ in found), {key for _, key in found}
        left = {labels: sentences(labels) for labels in plan}
        total = sum(min(n, len(TEMPLATES)) for n in (plan - have).values())
        with tqdm(desc=path.stem, unit=" descriptions", total=total, disable=None) as bar:
            while drafts := next_drafts(plan - have, left, seen):
                for start in range(0, len(drafts), BATCH):
                    batch = drafts[start : start + BATCH]
                    reasons = misses(
                        [text for _, text in batch], [labels for labels, _ in batch], nearest
                    )
                    new = [draft for draft, reason in zip(batch, reasons) if not reason]
                    append(row_of(labels, text, "templates") for labels, text in new)
                    have.update(labels for labels, _ in new)
                    report.dropped.update(filter(None, reasons))
                    bar.update(len(new))
                    bar.set_postfix_str(counts(report.dropped))
            bar.total = bar.n  # the check may have left nothing more to write
    report.missing = plan - have
    for labels in report.missing:
        if not have[labels]:
            report.given_up[labels] = "the check dropped every template"
    return report


def next_drafts(
    missing: Counter, left: dict[Labels, Iterator[str]], seen: set[str]
) -> list[tuple[Labels, str]]:
    """(labels, text) for as many as are missing, or left. Their keys are added to `seen`."""
    drafts = []
    for labels, n in missing.items():
        new = (text for text in left[labels] if key_of(text) not in seen)
        for text in islice(new, n):
            seen.add(key_of(text))
            drafts.append((labels, text))
    return drafts
