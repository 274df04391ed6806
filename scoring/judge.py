"""AIR-Bench Chat's judge: a language model scores MATS's answers from 1 to 10 (Section 4, Table 3).

    python -m scoring.judge out/mats_gpt2/eval/santa/airbench_*.jsonl       AIR-Bench's own judge
    python -m scoring.judge FILE.jsonl --endpoint http://localhost:8000/v1 --model Qwen/Qwen3-8B
    python -m scoring.judge FILE.jsonl --local Qwen/Qwen3-8B --workers 16 --max-tokens 2000

FILE.jsonl holds predictions as eval.py writes them: id, instruction (the question), answer (the
reference), meta_info (notes on the audio), prediction. The judge cannot hear: it reads the notes,
the question and both answers. Judges favour one place, so it is asked again with the answers
swapped. An item's score is the mean of the model's two scores. FILE.verdicts.jsonl gets a line for
each verdict:

    {"id": "400", "order": "model first", "scores": [6.0, 9.0], "text": "6 9",
     "judge": "gpt-4-0125-preview", "row": "5f0c..."}

`scores` are those of the first and the second answer, or null if the text is ambiguous; then the
verdict is requested again, up to TRIES times. After a kill, the same command requests only the
missing verdicts. `row` is a digest of everything that was judged, so a changed prediction is judged
anew. Files of verdicts among the FILEs are skipped. The API key comes from OPENAI_API_KEY.
"""

import argparse
import hashlib
import json
import os
import re
from collections import Counter, deque
from contextlib import closing
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from disk import DataError, command
from scoring.answers import answers, go_ahead, growing, read_lines
from scoring.llm import OPENAI, Endpoint, Local, Unanswered, local_name

JUDGE = "gpt-4-0125-preview"  # AIR-Bench's
ORDERS = ("reference first", "model first")
TRIES = 3  # requests for one verdict, in all runs together, until it can be read
SHOWN = ("instruction", "answer", "meta_info", "prediction")


# --- the prompt ---

SYSTEM = """You compare two answers to a question about an audio clip. You cannot hear the clip; \
notes, which are right, tell what it contains.
Score each answer from 1 (worthless) to 10 (could not be better). Weigh how helpful it is to \
whoever asked, how relevant to the question, how accurate by the notes, and how comprehensive. \
Neither the place nor the style of an answer may change its score.
Reply with a single line: the score of the first answer, a space, the score of the second answer. \
Write nothing else."""
AGAIN = """Your reply must be two numbers from 1 to 10 with a space between them, and not one \
word more."""


def prompt(row, order, again=False):
    """Chat messages that request one verdict; again: an earlier reply could not be read."""
    first, second = row["answer"], row["prediction"]
    if order == "model first":
        first, second = second, first
    parts = {
        "Notes on the audio": row["meta_info"],
        "Question": row["instruction"],
        "First answer": first,
        "Second answer": second,
        "Both scores": AGAIN if again else "",
    }
    task = "\n\n".join(f"### {title}\n{text}" for title, text in parts.items())
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": task.strip()}]


# --- the verdict ---


def labelled_score(place, number):
    """A pattern: 8 or 8.5 or 8/10, maybe after a label such as "Answer 1: "."""
    noun = rf"(?:the )?(?:{place} )?(?:assistant|answer|response|model)(?: ?{number})?"
    label = rf"(?:{noun}(?:'s)?(?: score)?|{place}) ?[:=] ?"
    return rf"(?:{label})?([0-9]{{1,2}}(?:\.[0-9]+)?)(?: ?/ ?10)?"


PAIR = re.compile(
    r"(?:scores?: )?"
    + labelled_score("first", "(?:1|a|one)")
    + "(?:[,;]? | ?[|] ?| and )"
    + labelled_score("second", "(?:2|b|two)")
    + "[.]?",
    re.IGNORECASE,
)


def parse(text: str) -> list[float] | None:
    """[score of the first answer, score of the second], or None if the text is ambiguous.

    AIR-Bench reads a reply of exactly "8 7". This reads more: "8/10, 7/10", "Scores: 8 7",
    "Answer 1: 8, answer 2: 7", in bold or brackets, on one line or two. An explanation may come
    before or after, if the first or the last line holds only the scores. Ambiguous are: two lines
    with different scores, scores outside 1 to 10, "8,7" (a decimal comma?), "8 (10)", "8" alone.
    """
    plain = [re.sub("[*`]", "", line).strip("[]()\"' \t") for line in text.splitlines()]
    lines = [" ".join(line.split()) for line in plain if line.split()]
    candidates = [*lines[:1], *lines[-1:]]
    if len(lines) == 2:
        candidates.append(" ".join(lines))
    matches = [match for line in candidates if (match := PAIR.fullmatch(line))]
    found = {tuple(float(score) for score in match.groups()) for match in matches}
    if len(found) != 1:
        return None
    scores = list(found.pop())
    return scores if all(1 <= score <= 10 for score in scores) else None


class Pair(NamedTuple):
    row: str  # its digest
    order: str  # one of ORDERS


class Verdict(NamedTuple):
    judge: str
    pair: Pair
    scores: list[float] | None


def verdict(line) -> Verdict:
    """A line of a file of verdicts. Raises ValueError, LookupError or TypeError if it is none."""
    scores = line["scores"]
    texts = (line["judge"], line["row"], line["text"])
    if line["order"] not in ORDERS or not all(isinstance(text, str) for text in texts):
        raise ValueError("order, judge, row or text")
    if scores is not None and not (len(scores) == 2 and all(1 <= s <= 10 for s in scores)):
        raise ValueError("scores")
    return Verdict(line["judge"], Pair(line["row"], line["order"]), scores)


def fit(row):
    """A row's id and the texts that the judge reads. Raises DataError if one of them is no text."""
    row = {key: row.get(key) for key in ("id", *SHOWN)}
    if isinstance(row["answer"], list) and len(row["answer"]) == 1:  # AIR-Bench has one reference
        row["answer"] = row["answer"][0]
    if missing := [key for key in SHOWN if not isinstance(row[key], str)]:
        raise DataError(
            f"no {' and no '.join(missing)} as text in the row {row['id']!r}; "
            "is it a prediction on AIR-Bench Chat?"
        )
    return row


def digest(row):
    """16 hex digits of a row's id and the texts that the judge reads."""
    return hashlib.sha256(json.dumps(list(fit(row).values())).encode()).hexdigest()[:16]


def predictions(path) -> list[dict]:
    """fit(row) of every row in a file of predictions. Raises DataError if one is not fit."""
    if not os.path.exists(path):
        raise DataError(f"{path}: there is no such file of predictions; eval.py writes them")
    rows, end = read_lines(path, fit, "prediction")
    if not rows:
        raise DataError(f"{path} holds no predictions; let eval.py write it again")
    if end < os.path.getsize(path):
        raise DataError(f"{path} is cut off; let eval.py write it again")
    return rows


# --- stored verdicts ---


def verdicts_path(path) -> Path:
    """A file of predictions -> its file of verdicts: a/sound.jsonl -> a/sound.verdicts.jsonl."""
    return Path(str(path).removesuffix(".jsonl") + ".verdicts.jsonl")


def tally(found, judge):
    """(how often each Pair was judged, {Pair: its first readable scores}) by one judge."""
    asked, scores = Counter(), {}
    for given in found:
        if given.judge == judge:
            asked[given.pair] += 1
            if given.scores:
                scores.setdefault(given.pair, given.scores)
    return asked, scores


@dataclass
class Verdicts:
    """All verdicts of one judge on n rows, in both ORDERS."""

    judge: str | None  # None: the file is empty as yet
    model: torch.Tensor  # (n, 2) float64; nan without a readable verdict
    reference: torch.Tensor  # (n, 2)
    asked: torch.Tensor  # (n, 2) int64: stored verdicts, readable or not

    @property
    def scores(self) -> torch.Tensor:
        """(n,) the model's mean over both orders; nan if neither has a readable verdict."""
        return self.model.nanmean(1)

    @property
    def unparsable(self) -> int:
        """How many of the 2n orders have verdicts, but none that is readable."""
        return int((self.model.isnan() & (self.asked > 0)).sum())


def stored(path, rows: list[dict], judge: str | None = None) -> Verdicts:
    """The Verdicts in `path` on these rows. judge: whose, if the file has several judges.

    Raises DataError if there is no file, no verdict by that judge, or no judge chosen among
    several, or if a line is no verdict.
    """
    found, _ = read_lines(path, verdict, "verdict")
    judges = list(dict.fromkeys(given.judge for given in found))
    if judge is None and len(judges) > 1:
        raise DataError(f"{path} holds verdicts of several judges; choose one: {', '.join(judges)}")
    if not os.path.exists(path) or judge not in (None, *judges):
        by = f" by {judge}" if judge else ""
        raise DataError(f"{path}: no verdicts{by}; first: python -m scoring.judge FILE.jsonl")
    if judges and not judge:  # a run may have been killed before its first verdict
        judge = judges[0]
    asked, scores = tally(found, judge)
    pairs = [Pair(digest(row), order) for row in rows for order in ORDERS]
    given = torch.tensor([scores.get(pair, [nan, nan]) for pair in pairs], dtype=torch.float64)
    given = given.view(-1, 2, 2)  # (n, order, place)
    given[:, 1] = given[:, 1].flip(-1)  # "model first": the reference goes first here, too
    reference, model = given.unbind(-1)
    asked = torch.tensor([asked[pair] for pair in pairs], dtype=torch.int64).view(-1, 2)
    return Verdicts(judge, model, reference, asked)


def verdicts(path, rows: list[dict], judge: str | None = None) -> tuple[torch.Tensor, int]:
    """(scores, unparsable) of the stored Verdicts, without asking the judge. Raises as stored()."""
    found = stored(path, rows, judge)
    return found.scores, found.unparsable


def summary(path, rows: list[dict], judge: str | None = None) -> dict:
    """The mean scores of model and reference on the n items that have one.

    unparsable and unasked: how many of the 2 x items orders. Raises as stored().
    """
    found = stored(path, rows, judge)
    return dict(
        judge=found.judge,
        n=int((~found.scores.isnan()).sum()),
        items=len(rows),
        model=float(found.scores.nanmean()),
        reference=float(found.reference.nanmean(1).nanmean()),
        unparsable=found.unparsable,
        unasked=int((found.asked == 0).sum()),
    )


# --- the run ---


@dataclass
class Question:
    """A Pair without a readable verdict."""

    row: dict
    pair: Pair
    asked: int  # times, in all runs together

    @property
    def name(self):
        return self.row["id"], self.pair.order

    def line(self, scores, text, judge):
        """The answer as a line of a file of verdicts."""
        question = {"id": self.row["id"], "order": self.pair.order}
        return {**question, "scores": scores, "text": text, "judge": judge, "row": self.pair.row}


@dataclass
class Outcome:
    requests: int = 0
    usage: Counter = field(default_factory=Counter)  # prompt_tokens, completion_tokens
    failed: dict = field(default_factory=dict)  # (id, order) -> why it has no verdict
    unparsable: dict = field(default_factory=dict)  # (id, order) -> the last reply


def unjudged(rows, found, judge):
    """The Questions about these rows, also those that were asked TRIES times."""
    asked, scores = tally(found, judge)
    pairs = {Pair(digest(row), order): row for row in rows for order in ORDERS}
    return [Question(row, pair, asked[pair]) for pair, row in pairs.items() if pair not in scores]


def judge(rows: list[dict], ask, path, workers: int = 8) -> Outcome:
    """Requests verdicts until `path` has one that can be read, or TRIES, on each row and order.

    rows: dicts with id, instruction, answer, meta_info, prediction. ask: llm.Endpoint, llm.Local,
    or any callable like them; its `name` is the judge. Verdicts are appended as they come. Raises
    LLMError if all requests fail; DataError if a row lacks a text, another run writes to `path`, or
    a line in it is no verdict.
    """
    outcome, rows = Outcome(), [fit(row) for row in rows]
    with growing(path, verdict, "verdict") as (found, append):
        questions = unjudged(rows, found, ask.name)
        queue = deque(question for question in questions if question.asked < TRIES)
        total = 2 * len(rows)
        bar = tqdm(desc=Path(path).stem, unit=" verdicts", total=total, initial=total - len(queue))

        def next_chat():
            if not queue:
                return None
            question = queue.popleft()
            return question, prompt(question.row, question.pair.order, again=question.asked > 0)

        with closing(answers(ask, next_chat, workers)) as replies, bar:
            for question, answer in replies:
                outcome.requests += 1
                if isinstance(answer, Unanswered):
                    outcome.failed[question.name] = str(answer)
                    continue
                text, usage = answer
                scores = parse(text)
                append([question.line(scores, text, ask.name)])
                outcome.usage.update(usage)
                question.asked += 1
                if scores is None and question.asked < TRIES:
                    queue.append(question)
                    continue
                if scores is None:
                    outcome.unparsable[question.name] = text
                bar.update()
    return outcome


def main(argv: list[str] | None = None):
    run(arguments(argv))


def arguments(argv):
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    option = parser.add_argument
    option("files", nargs="+", metavar="FILE", help="predictions on AIR-Bench Chat, by eval.py")
    option("--endpoint", help=f"OpenAI-compatible; default {OPENAI}, with {JUDGE}")
    option("--model", help="the judge's name at the endpoint")
    option("--local", help="a transformers model with a chat template (name or folder)")
    option("--max-tokens", type=int, default=64, help="of a reply; more if the judge thinks first")
    option("--workers", type=int, default=8, help="concurrent requests; with --local: batch size")
    option("--yes", action="store_true", help="start without asking")
    args = parser.parse_args(argv)
    if args.local and (args.endpoint or args.model):
        parser.error("--local takes neither --endpoint nor --model")
    if args.endpoint and not args.model:
        parser.error("--endpoint needs --model, the judge's name there")
    if args.workers < 1 or args.max_tokens < 1:
        parser.error("--workers and --max-tokens must be at least 1")
    return args


def run(args):
    """Requests the missing verdicts and prints summaries. Raises DataError if a request failed."""
    name = local_name(args.local) if args.local else (args.model or JUDGE)
    files = {
        file: predictions(file)
        for file in dict.fromkeys(args.files)
        if not file.endswith(".verdicts.jsonl")  # a pattern brings them, too
    }
    if not files:
        raise DataError("no file of predictions among these")
    missing = [question for file, rows in files.items() for question in plan(file, rows, name)]
    failed = request(files, missing, name, args) if missing else 0
    for file, rows in files.items():
        s = summary(verdicts_path(file), rows, name)
        print(
            f"{file}: model {s['model']:.3f}, reference {s['reference']:.3f} on {s['n']:,} of "
            f"{s['items']:,}; of {2 * s['items']:,} verdicts {s['unparsable']:,} unparsable, "
            f"{s['unasked']:,} missing; judge {s['judge']}"
        )
    if failed:
        raise DataError(f"{failed:,} verdicts missing; run the same command again to request them")


def plan(file, rows, judge):
    """The questions about a file that are still to be asked. Prints their number and the others."""
    found, _ = read_lines(verdicts_path(file), verdict, "verdict")
    questions = unjudged(rows, found, judge)
    missing = [question for question in questions if question.asked < TRIES]
    print(f"{file}: {len(rows):,} predictions, {len(missing):,} verdicts missing")
    for question in questions:
        if question.asked >= TRIES:
            name, order = question.name
            print(f"unparsable: {name}, {order}: in none of {TRIES} replies; delete them to retry")
    return missing


def request(files, missing, name, args):
    """Requests the missing verdicts, if the user agrees. Returns how many requests failed."""
    chats = [prompt(question.row, question.pair.order) for question in missing]
    tokens = sum(len(message["content"]) for chat in chats for message in chat) // 4
    print(
        f"about {len(missing):,} requests, {tokens:,} tokens in, {4 * len(missing):,} out, and "
        "some more for replies that cannot be read"
    )
    if refused := go_ahead(args.yes):
        raise DataError(refused)
    if args.local:
        ask = Local(args.local, 0, args.max_tokens)
    else:
        key = os.environ.get("OPENAI_API_KEY")
        ask = Endpoint(args.endpoint or OPENAI, name, key, 0, args.max_tokens)
    failed = 0
    try:
        for file, rows in files.items():
            outcome = judge(rows, ask, verdicts_path(file), args.workers)
            print_outcome(file, outcome, args.max_tokens)
            failed += len(outcome.failed)
    finally:
        if not args.local:
            ask.stopped.set()  # pending retries must not delay the exit
    return failed


def print_outcome(file, outcome, max_tokens):
    used, made = outcome.usage["prompt_tokens"], outcome.usage["completion_tokens"]
    print(f"{file}: {outcome.requests:,} requests, {used:,} tokens in, {made:,} out")
    for (name, order), text in outcome.unparsable.items():
        said = f"no whole line within {max_tokens} tokens (--max-tokens)"
        if text.strip():
            said = repr(text[:80])
        print(f"unparsable: {name}, {order}: {said}")
    for (name, order), why in outcome.failed.items():
        print(f"no verdict: {name}, {order}: {why}")


if __name__ == "__main__":
    with command("judge.py"):
        main()
