"""Audio descriptions for the labels of classification data sets, written by an LLM (section B.4, Figure S5 of the paper).

    python -m shards.describe esc50 gtzan --root data/raw --price-in 0.15 --price-out 0.6      gpt-4o-mini, as in the paper
    python -m shards.describe esc50 --root data/raw --endpoint http://localhost:8000/v1 --model Qwen/Qwen3-8B
    python -m shards.describe esc50 --root data/raw --local Qwen/Qwen3-8B --workers 16
    python -m shards.describe esc50 --root data/raw --limit 3 --per-label 5                    a cheap look at what it writes

For every set of labels, as many descriptions as there are training clips with it, until ROOT/descriptions/NAME.jsonl holds them:
{"labels": ["dog"], "text": "A dog barks twice.", "model": "gpt-4o-mini"}, a line each. Lines are only ever added; after a kill
the same command asks for what lacks. The API key comes from OPENAI_API_KEY; a server of your own needs none.
"""

if not __package__:
    raise SystemExit("now: python -m shards.describe")

import argparse
import os
import random
import re
import sys
from collections import Counter, deque
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from data import DataError
from scoring.llm import OPENAI, Endpoint, Local, Unanswered, answers, go_ahead, growing, read_lines

PER_CALL = 20  # descriptions asked for in one request
TEMPERATURE, MAX_TOKENS = 1.0, 1200  # of an answer; twice the tokens that they take
BARREN = 3  # calls in a row that bring nothing new, after which a set of labels is given up


# --- the prompt -------------------------------------------------------------------------------------------------------

SYSTEM = """You write descriptions of short audio clips from the labels of what is heard in them.
Answer with one description on each line and nothing else: no numbers, no quotes, no headings, no remarks.
Each is one sentence of 5 to 25 words in plain English, and tells only what can be heard: no colours, no light, no looks.
Every label given must be recognisably heard in each description, as part of the sentence and never as a list of labels.
Vary the place, the distance, the number and kind of sources, loudness, length, order, and how the sentence begins."""
EXAMPLES = {
    ("dog",): "Two dogs bark at each other across a yard, one voice much deeper than the other.\n"
    "A small dog yaps without pause while footsteps climb a wooden stair.",
    (
        "rain",
        "thunder",
    ): "Steady rain drums on a tin roof until a long roll of thunder passes overhead.\n"
    "Thunder cracks close by, and a sudden downpour of rain hisses on the pavement.",
    (
        "library",
    ): "Pages turn and someone whispers in a hushed library, where a chair creaks far away.",
    (
        "angry",
    ): "A woman shouts a short sentence, angry and breathless, her voice rising sharply at the end.",
    (
        "jazz",
    ): "Brushed drums and a walking bass carry a loose saxophone solo in a small jazz club.",
}
HINTS = (  # later calls for the same labels get one of each, so that their answers differ
    (
        "in a small room",
        "outdoors",
        "in a large hall that echoes",
        "heard through a wall",
        "in a busy street",
        "at work",
        "at home",
        "in a quiet place at night",
        "in the countryside",
        "near water",
        "in a vehicle",
        "over a loudspeaker or telephone",
    ),
    (
        "very near",
        "far away",
        "coming nearer",
        "moving away",
        "soft",
        "loud",
        "sudden",
        "long",
        "broken off",
        "repeated",
    ),
    (
        "a single source",
        "two that answer each other",
        "many at once",
        "over a quiet background",
        "over a noisy background",
        "told from its rhythm",
        "told from its pitch and timbre",
        "told from how it begins and ends",
        "an unusual kind of it",
    ),
)


def prompt(labels, n, later=None):
    """Chat messages that ask for n descriptions of a set of labels; `later`, where it is not their first call, a random.Random."""
    shown = "\n\n".join(f"Labels: {', '.join(k)}\n{v}" for k, v in EXAMPLES.items() if k != labels)
    task = f"Labels: {', '.join(labels)}\nWrite {n} description{'s' * (n > 1)}."
    if later:
        task += (
            " The obvious ones are written: write others. Where it fits, now: "
            + "; ".join(map(later.choice, HINTS))
            + "."
        )
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": f"{shown}\n\n{task}"},
    ]


# --- the filter -------------------------------------------------------------------------------------------------------

REFUSAL = re.compile(
    r"^(i'?m|i am) (very |so )?sorry|^sorry,|^i (cannot|can't|can not|won't|am unable|apologi[sz]e)|\bas an ai\b"
    r"|^unfortunately, i\b|\blanguage model\b|\bi'm unable to\b|\b(cannot|can't) (assist|comply|help with)"
)
REMARK = re.compile(
    r":$|^(here are|here is|here's|let me know|i hope|note that|labels)\b|^(sure|certainly|of course)[,!.]"
    r"|\bdescriptions?\b"
)
VISUAL = set(
    """see sees seeing seen look looks looked looking watching view views viewed viewing visible visibly invisible
    visual visually sight sights image images picture pictures pictured photo photos photograph photographs video videos
    scenery color colors colored colorful colour colours coloured colourful red orange yellow green blue purple pink brown
    black white gray grey bright brightly shiny shining glow glows glowing gleaming glittering flash flashes flashing darkness
    sunlight sunlit moonlight moonlit shadow shadows silhouette silhouettes""".split()
)
HEARD = re.compile(
    r"\b(flash flood(s|ing)?|(white|pink|brown|gray|grey|blue) noise)\b"
)  # visual words that sound
SMALL = set(
    "a an and are as at by for from in is it of on or other sound sounds the to with".split()
)
QUOTES = {'"': '"', "“": "”", "'": "'", "‘": "’", "«": "»", "`": "`"}


def words(text):
    return re.findall(r"\w+", text.casefold())


def clean(line, labels=()):
    """The line without numbering, bullets, bold, quotes around it, and its labels before a colon; empty if nothing is left."""
    text = " ".join(line.replace("**", "").split()).rstrip(",")
    text = re.sub(r"^([-*•–—]+\s+|#+\s+|\(?\d{1,3}[.):](?!\d)\s*)+", "", text)
    head, colon, rest = text.partition(":")
    if (
        colon
        and words(head)
        and set(words(head)) <= {"label", "labels", "and"}.union(*map(words, labels))
    ):
        text = rest.strip()
    while (
        len(text) > 1
        and QUOTES.get(text[0]) == text[-1]
        and not re.search(rf"\s{text[0]}|{text[-1]}\s", text[1:-1])
    ):
        text = text[1:-1].strip()  # but not: "Stop!" a man shouts, then "go"
    return "" if text in ("[", "]") or text.startswith("```") else text  # round a list


def fault(text, labels, others=()):
    """Why `text` cannot describe `labels`, in a word or two, or None if it can. others: all labels of the data set."""
    said, plain, n = words(text), text.casefold().replace("’", "'"), len(text.split())
    own = set().union(*map(words, labels))
    if REFUSAL.search(plain) or REMARK.search(plain):
        return "refusal" if REFUSAL.search(plain) else "remark"
    if not 3 <= n <= 40:
        return "too short" if n < 3 else "too long"
    if set(said) <= own | SMALL:
        return "label only"
    if set(words(HEARD.sub("", plain))) & VISUAL - own:
        return "visual"
    stems = tuple(re.sub(r"(?<=\w{3})(ing|er|ed|es|s|e)$", "", w) for w in own - SMALL)
    phrase = f" {' '.join(said)} "
    if not any(w.startswith(stems) for w in said) and any(
        f" {' '.join(words(o))} " in phrase for o in others if o not in labels
    ):
        return "wrong label"


# --- the run ----------------------------------------------------------------------------------------------------------


@dataclass
class Report:
    requests: int = 0
    dropped: Counter = field(default_factory=Counter)  # reason -> lines
    usage: Counter = field(
        default_factory=Counter
    )  # prompt_tokens, completion_tokens, as the endpoint counts them
    given_up: dict = field(default_factory=dict)  # labels -> why
    lacks: Counter = field(default_factory=Counter)  # labels -> number


def described(row):
    """(labels, the text's words without case and punctuation) of a line; raises LookupError, TypeError or AttributeError."""
    return tuple(row["labels"]), " ".join(words(row["text"]))


def read(path):
    """Counter of the label sets that a file of descriptions holds. Raises DataError, naming the line, on one that is none."""
    return Counter(labels for labels, _ in read_lines(path, described, "description")[0])


def describe(plan, ask, path, model, workers=8):
    """Has every set of labels described until `path` holds what the plan wants; returns a Report.

    plan: Counter, tuple of labels -> number of descriptions. ask: chat messages -> (text, usage), called from `workers` threads at
    once; or an object with many(list of messages) -> list of (text, usage), given `workers` at once. Lines are appended to `path`
    as answers come. A label set is given up after BARREN calls in a row without anything new, or when a request for it fails for
    good (Unanswered). Raises LLMError if all fail, DataError if another run writes to `path` or a line in it is no description.
    """
    path, report, universe = Path(path), Report(), set().union(*plan)
    asked, calls, barren = Counter(), Counter(), Counter()
    queue = deque(plan)  # label sets take turns, so that an early end leaves something for each
    with growing(path, described, "description") as (found, append):
        have, seen = Counter(labels for labels, _ in found), {key for _, key in found}
        seen.update(
            " ".join(words(text)) for shown in EXAMPLES.values() for text in shown.split("\n")
        )  # echoes of the prompt

        def next_chat():
            while queue:
                labels = queue.popleft()
                n = min(PER_CALL, plan[labels] - have[labels] - asked[labels])
                if n <= 0 or labels in report.given_up:
                    continue  # enough is under way; it comes back if that does not suffice
                later = random.Random(f"{labels} {have[labels]} {calls[labels]}")
                messages = prompt(labels, n, later if have[labels] or calls[labels] else None)
                asked[labels] += n
                calls[labels] += 1
                queue.append(labels)
                return (labels, n), messages

        with (
            closing(answers(ask, next_chat, workers)) as replies,
            tqdm(
                desc=path.stem,
                unit=" descriptions",
                total=plan.total(),
                initial=(plan & have).total(),
            ) as bar,
        ):
            for (labels, n), answer in replies:
                asked[labels] -= n
                report.requests += 1
                if isinstance(answer, Unanswered):
                    report.given_up[labels] = str(answer)
                    continue
                (text, usage), new = answer, []
                report.usage.update(usage)
                for line in filter(None, (clean(line, labels) for line in text.split("\n"))):
                    key, full = " ".join(words(line)), have[labels] + len(new) >= plan[labels]
                    why = (
                        fault(line, labels, universe)
                        or key in seen
                        and "duplicate"
                        or full
                        and "more than wanted"
                    )
                    if why:
                        report.dropped[why] += 1
                    else:
                        seen.add(key)
                        new.append(line)
                append({"labels": list(labels), "text": line, "model": model} for line in new)
                have[labels] += len(new)
                bar.update(len(new))
                bar.set_postfix_str(", ".join(f"{v} {k}" for k, v in report.dropped.most_common()))
                barren[labels] = 0 if new else barren[labels] + 1
                if barren[labels] >= BARREN and have[labels] < plan[labels]:
                    report.given_up[labels] = f"nothing new in {barren[labels]} calls in a row"
                queue.append(labels)
    report.lacks = plan - have
    report.given_up = {
        k: why for k, why in report.given_up.items() if k in report.lacks
    }  # others under way may have sufficed
    return report


def estimate(plan, have):
    """{requests, tokens in, tokens out} that what lacks will take: 4 characters a token, 20 tokens a description."""
    calls = {k: -(-n // PER_CALL) for k, n in (plan - have).items()}
    tokens = sum(
        n * sum(len(m["content"]) for m in prompt(k, PER_CALL)) // 4 for k, n in calls.items()
    )
    return {"requests": sum(calls.values()), "in": tokens, "out": 20 * (plan - have).total()}


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help="data sets, as shards/audiotia.py --list names them",
    )
    parser.add_argument(
        "--root",
        required=True,
        help="the folder that holds the data sets, and then descriptions/NAME.jsonl",
    )
    parser.add_argument(
        "--per-label",
        type=int,
        help="descriptions for each set of labels, instead of its number of clips",
    )
    parser.add_argument("--endpoint", help="OpenAI-compatible; default https://api.openai.com/v1")
    parser.add_argument("--model", help="the endpoint's model; default gpt-4o-mini, the paper's")
    parser.add_argument(
        "--local",
        help="name or folder of a transformers model with a chat template, instead of an endpoint",
    )
    parser.add_argument(
        "--workers", type=int, default=8, help="requests at once; with --local: prompts in a batch"
    )
    parser.add_argument(
        "--price-in", type=float, default=0, help="dollars per million tokens in, for the estimate"
    )
    parser.add_argument("--price-out", type=float, default=0, help="dollars per million tokens out")
    parser.add_argument("--yes", action="store_true", help="start without asking")
    parser.add_argument("--limit", type=int, help="only the first N label sets of each data set")
    args = parser.parse_args(argv)
    if args.local and (args.endpoint or args.model):
        parser.error("--local takes neither --endpoint nor --model")
    if any(n is not None and n < 1 for n in (args.per_label, args.limit, args.workers)):
        parser.error("--per-label, --limit and --workers must be at least 1")
    try:
        sys.exit(run(args))
    except KeyboardInterrupt:
        sys.exit("describe.py: stopped; the same command goes on from here")
    except (DataError, OSError) as e:
        sys.exit(f"describe.py: {e}")


def run(args):
    """Plans, estimates, asks whether to start, describes. Returns what went wrong, for sys.exit, or None."""
    from shards.audiotia import label_sets

    def spent(tokens_in, tokens_out):
        dollars = (tokens_in * args.price_in + tokens_out * args.price_out) / 1e6
        return f"{tokens_in:,} tokens in, {tokens_out:,} out" + (
            f", ${dollars:,.2f}" if dollars else ""
        )

    plans, total, lacks = {}, Counter(), 0
    for name in args.names:
        plan = Counter(
            {
                k: args.per_label or n
                for k, n in list(label_sets(name, args.root).items())[: args.limit]
            }
        )
        path = Path(args.root, "descriptions", f"{name}.jsonl")
        plans[path], have = plan, read(path)
        total.update(estimate(plan, have))
        print(
            f"{name}: {plan.total():,} descriptions of {len(plan):,} label sets, {(plan - have).total():,} to be written"
        )
    if not total["requests"]:
        return print("nothing to do")
    print(
        f"about {total['requests']:,} requests, {spent(total['in'], total['out'])}, and some more to replace unfit ones"
    )
    if refused := go_ahead(args.yes):
        return f"describe.py: {refused}"
    if args.local:
        ask = Local(args.local, TEMPERATURE, MAX_TOKENS)
    else:
        key = os.environ.get("OPENAI_API_KEY")
        ask = Endpoint(
            args.endpoint or OPENAI, args.model or "gpt-4o-mini", key, TEMPERATURE, MAX_TOKENS
        )
    try:
        for path, plan in plans.items():
            report = describe(plan, ask, path, ask.name, workers=args.workers)
            tokens = report.usage["prompt_tokens"], report.usage["completion_tokens"]
            print(
                f"{path}: {(plan - report.lacks).total():,} of {plan.total():,}; {report.requests:,} requests, {spent(*tokens)}"
            )
            print(
                "dropped:",
                ", ".join(f"{v:,} {k}" for k, v in report.dropped.most_common()) or "none",
            )
            for labels, why in report.given_up.items():
                print(f"given up: {', '.join(labels)} ({report.lacks[labels]} lacking): {why}")
            lacks += report.lacks.total()
    finally:
        if not args.local:
            ask.stopped.set()  # threads that wait for their next try need not hold up the exit
    return (
        f"describe.py: {lacks:,} descriptions lack; the same command asks for them again"
        if lacks
        else None
    )


if __name__ == "__main__":
    main()
