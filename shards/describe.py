"""Descriptions of the labels of classification datasets, by a language model (B.4, Figure S5).

    python -m shards.describe esc50 gtzan --root data/raw --price-in 0.15 --price-out 0.6
    python -m shards.describe esc50 --root data/raw --local Qwen/Qwen3-8B --workers 16
    python -m shards.describe esc50 --root data/raw --limit 3 --per-label 5    a cheap first look
    python -m shards.describe esc50 --root data/raw --endpoint http://localhost:8000/v1 \
        --model Qwen/Qwen3-8B
    python -m shards.describe esc50 --root data/raw --templates    no model: for a first run

The default is gpt-4o-mini, as in the paper. A set of labels gets as many descriptions as there are
training clips with it. Each is a line of ROOT/descriptions/NAME.jsonl:

    {"labels": ["dog"], "text": "A dog barks twice.", "model": "gpt-4o-mini"}

Lines are only ever added; after a kill the same command requests only the missing descriptions.
A description is dropped where CLAP finds another label of the dataset nearer to it (--no-check).
The API key comes from OPENAI_API_KEY; a server of your own needs none.
"""

if not __package__:
    raise SystemExit("now: python -m shards.describe")

import argparse
import os
import random
from collections import Counter, deque
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from disk import DataError, command
from scoring.answers import answers, go_ahead, growing
from scoring.llm import OPENAI, Endpoint, Local, Unanswered
from shards.audiotia import label_sets
from shards.descriptions import (
    Labels,
    Report,
    counts,
    described,
    fault,
    key_of,
    misses,
    read,
    row_of,
    unmarked,
)
from shards.templates import TEMPLATES, from_templates

PER_CALL = 20  # descriptions of one request
TEMPERATURE, MAX_TOKENS = 1.0, 1200  # of an answer; twice the tokens that they take
BARREN = 3  # calls in a row without a new description, after which a set of labels is given up


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


# --- the run ------------------------------------------------------------------------------


class Progress:
    """The plan, {labels: number of descriptions}, and its state: chats out, new lines in.

    nearest: as in `misses`.
    """

    def __init__(
        self, plan: Counter, found: list[tuple[Labels, str]], nearest: Callable | None = None
    ):
        self.nearest = nearest
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
        fit, new, wanted = self.fit_lines(labels, text), [], self.plan[labels] - self.have[labels]
        for line, reason in zip(fit, misses(fit, [labels] * len(fit), self.nearest)):
            if not reason and len(new) >= wanted:
                reason = "more than wanted"
            if reason:
                self.report.dropped[reason] += 1
            else:
                self.seen.add(key_of(line))
                new.append(line)
        return new

    def fit_lines(self, labels: Labels, text: str) -> list[str]:
        """The lines of the text that pass the filter, without repetitions."""
        fit = {}
        for line in filter(None, (unmarked(line, labels) for line in text.split("\n"))):
            key, reason = key_of(line), fault(line, labels, self.all_labels)
            if not reason and (key in self.seen or key in fit):
                reason = "duplicate"
            if reason:
                self.report.dropped[reason] += 1
            else:
                fit[key] = line
        return list(fit.values())

    def finish(self) -> Report:
        report = self.report
        report.missing = self.plan - self.have  # answers under way may have completed a set
        report.given_up = {k: why for k, why in report.given_up.items() if k in report.missing}
        return report


def describe(
    plan: Counter,
    ask,
    path: str | Path,
    model: str,
    workers: int = 8,
    nearest: Callable | None = None,
) -> Report:
    """Has every set of labels described until `path` holds the plan: {labels: descriptions}.

    ask: chat messages -> (text, usage), called from `workers` threads at once; or an object with
    many(list of messages) -> list of (text, usage), given `workers` at once. Lines are appended to
    `path` as answers come. nearest: texts -> the label nearest to each (shards/nearest.py); lines
    that are nearer to another label are dropped. A label set is given up after BARREN calls in a
    row without a new description, or when a request for it fails for good (Unanswered). Raises
    LLMError if all fail, DataError if another run writes to `path` or a line in it is no
    description.
    """
    path = Path(path)
    with growing(path, described, "description") as (found, append):
        progress = Progress(plan, found, nearest)
        start = (plan & progress.have).total()
        with (
            closing(answers(ask, progress.next_chat, workers)) as replies,
            tqdm(desc=path.stem, unit=" descriptions", total=plan.total(), initial=start) as bar,
        ):
            for (labels, n), answer in replies:
                new = progress.take(labels, n, answer)
                append(row_of(labels, line, model) for line in new)
                bar.update(len(new))
                bar.set_postfix_str(counts(progress.report.dropped))
    return progress.finish()


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
    option("--templates", action="store_true", help=f"{len(TEMPLATES)} templates and no model")
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
    option("--clap", default="microsoft/msclap", help="of the check: name, folder, module:factory")
    option("--no-check", action="store_true", help="keep descriptions that CLAP takes for others")
    args = parser.parse_args(argv)
    if args.templates and (args.local or args.endpoint or args.model):
        parser.error("--templates takes none of --local, --endpoint and --model")
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


class Job(NamedTuple):
    """What is to be written to one dataset's file."""

    path: Path
    plan: Counter  # {labels: descriptions}
    have: Counter  # those in the file
    labels: set[str]  # all of the dataset


def run(args) -> None:
    """Plans and describes. Raises DataError if it is not done."""
    jobs = make_jobs(args)
    if not any(job.plan - job.have for job in jobs):
        print("nothing to do")
    elif args.templates:
        run_templates(jobs, args)
    else:
        run_model(jobs, args)


def run_templates(jobs: list[Job], args) -> None:
    for job, check in zip(jobs, checks(jobs, args)):
        report = from_templates(job.plan, job.path, check)
        most = f"a set of labels gets {len(TEMPLATES)} at most"
        print_report(report, job, f"{report.missing.total():,} missing, {most}")


def run_model(jobs: list[Job], args) -> None:
    """Estimates, asks whether to start, describes. Raises DataError if it is not done."""
    total = Counter()
    for job in jobs:
        total.update(estimate(job.plan, job.have))
    print(
        f"about {total['requests']:,} requests, {spent(total['in'], total['out'], args)}, "
        "and some more to replace unfit ones"
    )
    if refused := go_ahead(args.yes):
        raise DataError(refused)
    nearest, max_tokens = checks(jobs, args), args.max_tokens or MAX_TOKENS
    if args.local:
        ask = Local(args.local, TEMPERATURE, max_tokens)
    else:
        url, model = args.endpoint or OPENAI, args.model or "gpt-4o-mini"
        ask = Endpoint(url, model, os.environ.get("OPENAI_API_KEY"), TEMPERATURE, max_tokens)
    missing = 0
    try:
        for job, check in zip(jobs, nearest):
            report = describe(job.plan, ask, job.path, ask.name, args.workers, check)
            missing += report.missing.total()
            tokens = report.usage["prompt_tokens"], report.usage["completion_tokens"]
            print_report(report, job, f"{report.requests:,} requests, {spent(*tokens, args)}")
    finally:
        if not args.local:
            ask.stopped.set()  # threads that wait to retry need not delay the exit
    if missing:
        raise DataError(f"{missing:,} descriptions missing; run the same command to request them")


def make_jobs(args) -> list[Job]:
    """One for each dataset."""
    jobs = []
    for name in args.names:
        sets = label_sets(name, args.root)
        limited = list(sets.items())[: args.limit]
        plan = Counter({labels: args.per_label or n for labels, n in limited})
        path = Path(args.root, "descriptions", f"{name}.jsonl")
        jobs.append(Job(path, plan, read(path), set().union(*sets)))
        print(
            f"{name}: {plan.total():,} descriptions of {len(plan):,} label sets, "
            f"{(plan - jobs[-1].have).total():,} to be written"
        )
    return jobs


def checks(jobs: list[Job], args) -> list:
    """A Nearest for each job, or None with --no-check. Raises DataError."""
    if args.no_check:
        return [None] * len(jobs)
    from shards.nearest import Nearest, load_encoder  # which takes seconds to import

    clap = load_encoder(args.clap)
    return [Nearest(clap, job.labels) for job in jobs]


def print_report(report: Report, job: Job, how: str) -> None:
    missing, total = report.missing.total(), job.plan.total()
    print(f"{job.path}: {total - missing:,} of {total:,}; {how}")
    print("dropped:", counts(report.dropped) or "none")
    for labels, why in report.given_up.items():
        print(f"given up: {', '.join(labels)} ({report.missing[labels]} missing): {why}")


if __name__ == "__main__":
    with command("describe.py"):
        main()
