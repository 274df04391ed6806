"""Descriptions of the labels of classification datasets, by a language model (B.4, Figure S5).

    python -m shards.describe esc50 gtzan --root data/raw --price-in 0.15 --price-out 0.6
    python -m shards.describe esc50 --root data/raw --local Qwen/Qwen3-8B --workers 16
    python -m shards.describe esc50 --root data/raw --limit 3 --per-label 5    a cheap first look
    python -m shards.describe esc50 --root data/raw --endpoint http://localhost:8000/v1 \
        --model Qwen/Qwen3-8B

The default is gpt-4o-mini, as in the paper. A set of labels gets as many descriptions as there are
training clips with it. Each is a line of ROOT/descriptions/NAME.jsonl:

    {"labels": ["dog"], "text": "A dog barks twice.", "model": "gpt-4o-mini"}

Lines are only ever added; after a kill the same command requests only the missing descriptions.
The API key comes from OPENAI_API_KEY; a server of your own needs none.
"""

if not __package__:
    raise SystemExit("now: python -m shards.describe")

import argparse
import os
import random
import re
from collections import Counter, deque
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from disk import DataError, command
from scoring.answers import answers, go_ahead, growing, read_lines
from scoring.llm import OPENAI, Endpoint, Local, Unanswered
from shards.audiotia import label_sets

PER_CALL = 20  # descriptions of one request
TEMPERATURE, MAX_TOKENS = 1.0, 1200  # of an answer; twice the tokens that they take
BARREN = 3  # calls in a row without a new description, after which a set of labels is given up

Labels = tuple[str, ...]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def key_of(text: str) -> str:
    """The text without case, punctuation and white space: equal for repetitions."""
    return " ".join(words(text))


# --- the prompt ---------------------------------------------------------------------------

SYSTEM = """\
You write descriptions of short audio clips from the labels of what is heard in them.
Answer with one description on each line and nothing else: no numbers, no quotes, no headings, \
no remarks.
Each is one sentence of 5 to 25 words in plain English, and tells only what can be heard: \
no colours, no light, no looks.
Every label given must be recognisably heard in each description, as part of the sentence and \
never as a list of labels.
Vary the place, the distance, the number and kind of sources, loudness, length, order, and how the \
sentence begins."""
EXAMPLES = {
    ("dog",): """\
Two dogs bark at each other across a yard, one voice much deeper than the other.
A small dog yaps without pause while footsteps climb a wooden stair.""",
    ("rain", "thunder"): """\
Steady rain drums on a tin roof until a long roll of thunder passes overhead.
Thunder cracks close by, and a sudden downpour of rain hisses on the pavement.""",
    ("library",): """\
Pages turn and someone whispers in a hushed library, where a chair creaks far away.""",
    ("angry",): """\
A woman shouts a short sentence, angry and breathless, her voice rising sharply at the end.""",
    ("jazz",): """\
Brushed drums and a walking bass carry a loose saxophone solo in a small jazz club.""",
}
# later calls for the same labels get one of each line, so that their answers differ
HINTS = """\
in a small room; outdoors; in a large hall that echoes; heard through a wall; in a busy street; \
at work; at home; in a quiet place at night; in the countryside; near water; in a vehicle; \
over a loudspeaker or telephone
very near; far away; coming nearer; moving away; soft; loud; sudden; long; broken off; repeated
a single source; two that answer each other; many at once; over a quiet background; \
over a noisy background; told from its rhythm; told from its pitch and timbre; \
told from how it begins and ends; an unusual kind of it"""


def prompt(labels: Labels, n: int, later: random.Random | None = None) -> list[dict]:
    """Chat messages that ask for n descriptions. later: draws hints, except in the first call."""
    examples = {known: lines for known, lines in EXAMPLES.items() if known != labels}
    shown = "\n\n".join(f"Labels: {', '.join(known)}\n{x}" for known, x in examples.items())
    noun = "description" if n == 1 else "descriptions"
    task = f"Labels: {', '.join(labels)}\nWrite {n} {noun}."
    if later:
        hints = [later.choice(line.split("; ")) for line in HINTS.split("\n")]
        task += " The obvious ones are written: write others. Where it fits, now: "
        task += "; ".join(hints) + "."
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": f"{shown}\n\n{task}"},
    ]


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


# --- the run ------------------------------------------------------------------------------


@dataclass
class Report:
    requests: int = 0
    dropped: Counter = field(default_factory=Counter)  # reason -> lines
    usage: Counter = field(default_factory=Counter)  # prompt_tokens, completion_tokens
    given_up: dict[Labels, str] = field(default_factory=dict)  # labels -> reason
    missing: Counter = field(default_factory=Counter)  # labels -> descriptions


def described(row: dict) -> tuple[Labels, str]:
    """(labels, key of the text) of a line; raises LookupError, TypeError or AttributeError."""
    return tuple(row["labels"]), key_of(row["text"])


def read(path: str | Path) -> Counter:
    """{labels: descriptions in the file}. Raises DataError, naming a line that is none."""
    return Counter(labels for labels, _ in read_lines(path, described, "description")[0])


class Progress:
    """The plan, {labels: number of descriptions}, and its state: chats out, new lines in."""

    def __init__(self, plan: Counter, found: list[tuple[Labels, str]]):
        self.plan, self.all_labels, self.report = plan, set().union(*plan), Report()
        self.have, self.seen = Counter(labels for labels, _ in found), {key for _, key in found}
        for shown in EXAMPLES.values():
            self.seen.update(map(key_of, shown.split("\n")))  # echoes of the prompt
        self.asked, self.calls, self.barren = Counter(), Counter(), Counter()
        self.queue = deque(plan)  # label sets take turns: an early end leaves something for each

    def next_chat(self):
        """((labels, number of descriptions), messages), or None if enough is under way."""
        while self.queue:
            labels = self.queue.popleft()
            have, calls = self.have[labels], self.calls[labels]
            n = min(PER_CALL, self.plan[labels] - have - self.asked[labels])
            if n <= 0 or labels in self.report.given_up:
                continue  # it returns to the queue if the answers under way do not suffice
            later = random.Random(f"{labels} {have} {calls}") if have or calls else None
            self.asked[labels] += n
            self.calls[labels] += 1
            self.queue.append(labels)
            return (labels, n), prompt(labels, n, later)
        return None

    def take(self, labels: Labels, n: int, answer) -> list[str]:
        """The new descriptions of an answer to a chat that asked for n of them."""
        self.asked[labels] -= n
        self.report.requests += 1
        if isinstance(answer, Unanswered):
            self.report.given_up[labels] = str(answer)
            return []
        text, usage = answer
        self.report.usage.update(usage)
        new = self.new_lines(labels, text)
        self.have[labels] += len(new)
        self.barren[labels] = 0 if new else self.barren[labels] + 1
        if self.barren[labels] >= BARREN and self.have[labels] < self.plan[labels]:
            self.report.given_up[labels] = f"nothing new in {self.barren[labels]} calls in a row"
        self.queue.append(labels)
        return new

    def new_lines(self, labels: Labels, text: str) -> list[str]:
        """The fit lines of the text that nobody has written yet, as many as are missing."""
        new, wanted = [], self.plan[labels] - self.have[labels]
        for line in filter(None, (unmarked(line, labels) for line in text.split("\n"))):
            key, reason = key_of(line), fault(line, labels, self.all_labels)
            if not reason and key in self.seen:
                reason = "duplicate"
            elif not reason and len(new) >= wanted:
                reason = "more than wanted"
            if reason:
                self.report.dropped[reason] += 1
            else:
                self.seen.add(key)
                new.append(line)
        return new

    def finish(self) -> Report:
        report = self.report
        report.missing = self.plan - self.have  # answers under way may have completed a set
        report.given_up = {k: why for k, why in report.given_up.items() if k in report.missing}
        return report


def describe(plan: Counter, ask, path: str | Path, model: str, workers: int = 8) -> Report:
    """Has every set of labels described until `path` holds the plan: {labels: descriptions}.

    ask: chat messages -> (text, usage), called from `workers` threads at once; or an object with
    many(list of messages) -> list of (text, usage), given `workers` at once. Lines are appended to
    `path` as answers come. A label set is given up after BARREN calls in a row without a new
    description, or when a request for it fails for good (Unanswered). Raises LLMError if all fail,
    DataError if another run writes to `path` or a line in it is no description.
    """
    path = Path(path)
    with growing(path, described, "description") as (found, append):
        progress = Progress(plan, found)
        start = (plan & progress.have).total()
        with (
            closing(answers(ask, progress.next_chat, workers)) as replies,
            tqdm(desc=path.stem, unit=" descriptions", total=plan.total(), initial=start) as bar,
        ):
            for (labels, n), answer in replies:
                new = progress.take(labels, n, answer)
                append({"labels": list(labels), "text": line, "model": model} for line in new)
                bar.update(len(new))
                bar.set_postfix_str(counts(progress.report.dropped))
    return progress.finish()


def counts(counter: Counter) -> str:
    return ", ".join(f"{n:,} {name}" for name, n in counter.most_common())


def estimate(plan: Counter, have: Counter) -> dict[str, int]:
    """Requests, tokens in and out of the missing ones: 4 letters a token, 20 tokens a line."""
    missing = plan - have
    calls = {labels: -(-n // PER_CALL) for labels, n in missing.items()}
    letters = {k: sum(len(m["content"]) for m in prompt(k, PER_CALL)) for k in calls}
    tokens = sum(n * letters[labels] // 4 for labels, n in calls.items())
    return {"requests": sum(calls.values()), "in": tokens, "out": 20 * missing.total()}


# --- the command --------------------------------------------------------------------------


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("names", nargs="+", metavar="NAME", help="datasets, as shards.audiotia --list has them")
    option("--root", required=True, help="the datasets' folder, for descriptions/NAME.jsonl too")
    option("--per-label", type=int, help="descriptions of each set of labels; default: its clips")
    option("--endpoint", help=f"OpenAI-compatible; default {OPENAI}")
    option("--model", help="the endpoint's model; default gpt-4o-mini, the paper's")
    option("--local", help="a transformers model with a chat template, instead of an endpoint")
    option(
        "--max-tokens",
        type=int,
        help=f"of an answer; default {MAX_TOKENS}; a model that thinks needs more",
    )
    option("--workers", type=int, default=8, help="requests at once; --local: prompts in a batch")
    option("--price-in", type=float, default=0, help="dollars per million tokens in")
    option("--price-out", type=float, default=0, help="dollars per million tokens out")
    option("--yes", action="store_true", help="start without asking")
    option("--limit", type=int, help="only the first N label sets of each dataset")
    args = parser.parse_args(argv)
    if args.local and (args.endpoint or args.model):
        parser.error("--local takes neither --endpoint nor --model")
    numbers = args.per_label, args.limit, args.workers, args.max_tokens
    if any(n is not None and n < 1 for n in numbers):
        parser.error("--per-label, --limit, --workers and --max-tokens must be at least 1")
    run(args)


def spent(tokens_in: int, tokens_out: int, args) -> str:
    dollars = (tokens_in * args.price_in + tokens_out * args.price_out) / 1e6
    price = f", ${dollars:,.2f}" if dollars else ""
    return f"{tokens_in:,} tokens in, {tokens_out:,} out{price}"


def run(args) -> None:
    """Plans, estimates, asks whether to start, describes. Raises DataError if it is not done."""
    plans, total = make_plans(args)
    if not total["requests"]:
        print("nothing to do")
        return
    print(
        f"about {total['requests']:,} requests, {spent(total['in'], total['out'], args)}, "
        "and some more to replace unfit ones"
    )
    if refused := go_ahead(args.yes):
        raise DataError(refused)
    max_tokens = args.max_tokens or MAX_TOKENS
    if args.local:
        ask = Local(args.local, TEMPERATURE, max_tokens)
    else:
        url, model = args.endpoint or OPENAI, args.model or "gpt-4o-mini"
        ask = Endpoint(url, model, os.environ.get("OPENAI_API_KEY"), TEMPERATURE, max_tokens)
    missing = 0
    try:
        for path, plan in plans.items():
            report = describe(plan, ask, path, ask.name, args.workers)
            missing += report.missing.total()
            print_report(report, path, plan, args)
    finally:
        if not args.local:
            ask.stopped.set()  # threads that wait to retry need not delay the exit
    if missing:
        raise DataError(f"{missing:,} descriptions missing; run the same command to request them")


def make_plans(args) -> tuple[dict[Path, Counter], Counter]:
    """({path: plan} of each dataset, the estimate for all)."""
    plans, total = {}, Counter()
    for name in args.names:
        sets = list(label_sets(name, args.root).items())[: args.limit]
        plan = Counter({labels: args.per_label or n for labels, n in sets})
        path = Path(args.root, "descriptions", f"{name}.jsonl")
        plans[path], have = plan, read(path)
        total.update(estimate(plan, have))
        print(
            f"{name}: {plan.total():,} descriptions of {len(plan):,} label sets, "
            f"{(plan - have).total():,} to be written"
        )
    return plans, total


def print_report(report: Report, path: Path, plan: Counter, args):
    written = (plan - report.missing).total()
    tokens = report.usage["prompt_tokens"], report.usage["completion_tokens"]
    print(
        f"{path}: {written:,} of {plan.total():,}; "
        f"{report.requests:,} requests, {spent(*tokens, args)}"
    )
    print("dropped:", counts(report.dropped) or "none")
    for labels, why in report.given_up.items():
        print(f"given up: {', '.join(labels)} ({report.missing[labels]} missing): {why}")


if __name__ == "__main__":
    with command("describe.py"):
        main()
