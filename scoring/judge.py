"""AIR-Bench Chat's judge: a language model scores MATS's answers beside the reference answers, from 1 to 10 (section 4, Table 3).

    python -m scoring.judge out/mats_gpt2/eval/santa/airbench_*.jsonl                             gpt-4-0125-preview, AIR-Bench's own
    python -m scoring.judge FILE.jsonl --endpoint http://localhost:8000/v1 --model Qwen/Qwen3-8B
    python -m scoring.judge FILE.jsonl --local Qwen/Qwen3-8B --workers 16 --max-tokens 2000       room for one that thinks first

FILE.jsonl holds predictions as eval.py writes them: id, instruction (the question), answer (the reference), meta_info (what the audio
contains), prediction. The judge cannot hear. It reads meta_info, the question and both answers, twice, with the places of the answers
swapped, because judges favour a place; the mean of the model's two scores is the item's. Every verdict is a line of
FILE.verdicts.jsonl:

    {"id": "400", "order": "model first", "scores": [6.0, 9.0], "text": "6 9", "judge": "gpt-4-0125-preview", "row": "5f0c..."}

`scores` are those of the first and the second answer, or null where the text does not say them beyond doubt; such a pair is asked up to
TRIES times. Lines are only ever added: after a kill the same command asks for what lacks, and `verdicts` needs no judge. `row` is a
digest of all that was judged, so a prediction that has changed is judged anew. Files of verdicts among the FILEs are passed over. The
API key comes from OPENAI_API_KEY.
"""

import argparse
import hashlib
import json
import os
import re
import sys
from collections import Counter, deque
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from data import DataError
from scoring.llm import (
    OPENAI,
    Endpoint,
    Local,
    Unanswered,
    answers,
    go_ahead,
    growing,
    local_name,
    read_lines,
)

JUDGE = "gpt-4-0125-preview"  # AIR-Bench's
ORDERS = ("reference first", "model first")
TRIES = 3  # times that a pair is asked, in all runs together, until its verdict can be read
SHOWN = ("instruction", "answer", "meta_info", "prediction")


# --- the prompt -------------------------------------------------------------------------------------------------------

SYSTEM = """You compare two answers to a question about an audio clip. You cannot hear the clip; notes, which are right, tell what it \
contains.
Score each answer from 1 (worthless) to 10 (could not be better). Weigh how helpful it is to whoever asked, how relevant to the question, \
how accurate by the notes, and how comprehensive. Neither the place nor the style of an answer may change its score.
Reply with a single line: the score of the first answer, a space, the score of the second answer. Write nothing else."""
AGAIN = (
    "Your reply must be two numbers from 1 to 10 with a space between them, and not one word more."
)


def prompt(row, order, again=False):
    """Chat messages that ask for one verdict; again: an earlier reply to them could not be read."""
    pair = [row["answer"], row["prediction"]][:: 1 if order == "reference first" else -1]
    parts = {
        "Notes on the audio": row["meta_info"],
        "Question": row["instruction"],
        "First answer": pair[0],
        "Second answer": pair[1],
        "Both scores": AGAIN if again else "",
    }
    task = "\n\n".join(f"### {title}\n{text}" for title, text in parts.items())
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": task.strip()}]


# --- the verdict ------------------------------------------------------------------------------------------------------

NUMBER = r"([0-9]{1,2}(?:\.[0-9]+)?)(?: ?/ ?10)?"
CALLED = r"(?:(?:the )?(?:{0} )?(?:assistant|answer|response|model)(?: ?{1})?(?:'s)?(?: score)?|{0}) ?[:=] ?"
PAIR = re.compile(
    rf"(?:scores?: )?(?:{CALLED.format('first', '(?:1|a|one)')})?{NUMBER}(?:[,;]? | ?[|] ?| and )"
    rf"(?:{CALLED.format('second', '(?:2|b|two)')})?{NUMBER}[.]?",
    re.I,
)


def parse(text):
    """[score of the first answer, score of the second] if the text says them beyond doubt, else None.

    AIR-Bench reads a reply of exactly "8 7". Read here too: "8/10, 7/10", "Scores: 8 7", "Answer 1: 8, answer 2: 7", in bold or
    brackets, on one line or two; with an explanation before or after, if the first or the last line is nothing but the scores. Not
    read: two lines that say different scores, anything outside 1 to 10, "8,7" (a decimal comma?), "8 (10)" (of 10?), "8" alone.
    """
    lines = [
        " ".join(re.sub("[*`]", "", line).strip("[]()\"' \t").split()) for line in text.splitlines()
    ]
    lines = [line for line in lines if line]
    tried = [
        PAIR.fullmatch(t)
        for t in ([lines[0], lines[-1]] + [" ".join(lines)] * (len(lines) == 2) if lines else [])
    ]
    found = {tuple(map(float, m.groups())) for m in tried if m}
    if len(found) == 1 and all(1 <= score <= 10 for score in min(found)):
        return list(min(found))


def fit(row):
    """A row's id and what the judge is shown of it. Raises DataError where one of these is not text."""
    row = {k: row.get(k) for k in ("id", *SHOWN)}
    if isinstance(row["answer"], list) and len(row["answer"]) == 1:  # AIR-Bench has one reference
        row["answer"] = row["answer"][0]
    if lacks := [k for k in SHOWN if not isinstance(row[k], str)]:
        raise DataError(
            f"no {' and no '.join(lacks)} as text in the row {row['id']!r}; is it a prediction on AIR-Bench Chat?"
        )
    return row


def digest(row):
    """What a verdict stands for: 16 hex digits over a row's id and all that the judge is shown."""
    return hashlib.sha256(json.dumps(list(fit(row).values())).encode()).hexdigest()[:16]


def verdict(row):
    """One line of a file of verdicts, checked; raises ValueError, LookupError or TypeError if it is none."""
    scores = row["scores"]
    if row["order"] not in ORDERS or not all(
        isinstance(row[k], str) for k in ("judge", "row", "text")
    ):
        raise ValueError("order, judge, row or text")
    if scores is not None and not (len(scores) == 2 and all(1 <= s <= 10 for s in scores)):
        raise ValueError("scores")
    return row["judge"], (row["row"], row["order"]), scores


def predictions(path):
    """The rows of a file of predictions, as fit() gives them. Raises DataError, naming the line, on one that is not fit."""
    if not os.path.exists(path):
        raise DataError(f"{path}: there is no such file of predictions; eval.py writes them")
    rows, end = read_lines(path, fit, "prediction")
    if not rows or end < os.path.getsize(path):
        raise DataError(
            f"{path} {'is cut off' if rows else 'holds no predictions'}; let eval.py write it again"
        )
    return rows


def verdicts_path(path):
    """Where the verdicts on a file of predictions are: santa/airbench_sound.jsonl -> santa/airbench_sound.verdicts.jsonl."""
    return Path(str(path).removesuffix(".jsonl") + ".verdicts.jsonl")


def tally(found, judge):
    """Of a file's verdicts those of one judge: Counter of how often each pair was asked, {pair: its first readable scores}."""
    asked, scores = Counter(), {}
    for name, pair, said in found:
        if name == judge:
            asked[pair] += 1
            if said:
                scores.setdefault(pair, said)
    return asked, scores


@dataclass
class Table:
    """All verdicts of one judge on n rows; index 0 is "reference first", 1 "model first"."""

    judge: str | None  # None: the file is empty as yet
    model: torch.Tensor  # (n, 2) float64, nan where there is no readable verdict
    reference: torch.Tensor  # (n, 2)
    asked: torch.Tensor  # (n, 2) int64: verdicts that are stored, readable or not


def table(path, rows, judge=None):
    """The Table of what `path` says on these rows. judge: whose verdicts, where the file has those of several; None: the only one's.

    Raises DataError if there is no file, none by that judge in it, or by several and none was chosen, or if a line is no verdict.
    """
    found = read_lines(path, verdict, "verdict")[0]
    names = list(dict.fromkeys(name for name, _, _ in found))
    if judge is None and len(names) > 1:
        raise DataError(f"{path} holds verdicts of several judges; choose one: {', '.join(names)}")
    if not os.path.exists(path) or judge not in (None, *names):
        raise DataError(
            f"{path}: no verdicts{f' by {judge}' if judge else ''}; first: python -m scoring.judge FILE.jsonl"
        )
    judge = judge or (
        names[0] if names else None
    )  # a run may have been killed before its first verdict
    asked, scores = tally(found, judge)
    keys = [[(digest(row), order) for order in ORDERS] for row in rows]
    pairs = [[scores.get(key, (float("nan"),) * 2) for key in both] for both in keys]
    pairs = torch.tensor(pairs, dtype=torch.float64).view(-1, 2, 2)  # row, order, place
    return Table(
        judge,
        torch.stack([pairs[:, 0, 1], pairs[:, 1, 0]], 1),
        torch.stack([pairs[:, 0, 0], pairs[:, 1, 1]], 1),
        torch.tensor([[asked[key] for key in both] for both in keys], dtype=torch.int64).view(
            -1, 2
        ),
    )


def verdicts(path, rows, judge=None):
    """(scores, unparsable) from stored verdicts, without the judge.

    scores: (n,) float64, from 1 to 10, the mean of the model's scores in both orders; that of one order where only one has a
    readable verdict; nan where none has. unparsable: orders, of 2n, that were asked and have no readable verdict. Raises as table().
    """
    t = table(path, rows, judge)
    return t.model.nanmean(1), int((t.model.isnan() & (t.asked > 0)).sum())


def summary(path, rows, judge=None):
    """{judge, n, model, reference: mean scores over the n items that have one, items, unparsable, unasked: of 2 x items orders}."""
    t = table(path, rows, judge)
    lacks = t.model.isnan()
    return {
        "judge": t.judge,
        "n": int((~lacks.all(1)).sum()),
        "items": len(rows),
        "model": float(t.model.nanmean(1).nanmean()),
        "reference": float(t.reference.nanmean(1).nanmean()),
        "unparsable": int((lacks & (t.asked > 0)).sum()),
        "unasked": int((t.asked == 0).sum()),
    }


# --- the run ----------------------------------------------------------------------------------------------------------


@dataclass
class Report:
    requests: int = 0
    usage: Counter = field(
        default_factory=Counter
    )  # prompt_tokens, completion_tokens, as the endpoint counts them
    failed: dict = field(default_factory=dict)  # (id, order) -> why it has no verdict
    unparsable: dict = field(
        default_factory=dict
    )  # (id, order) -> the last reply, which could not be read


def open_pairs(rows, found, judge):
    """{(digest, order): (row, times it was asked)} of the pairs that have no readable verdict; asked TRIES times, they stay so."""
    asked, scores = tally(found, judge)
    pairs = {(digest(row), order): row for row in rows for order in ORDERS}
    return {pair: (row, asked[pair]) for pair, row in pairs.items() if pair not in scores}


def judge(rows, ask, path, workers=8):
    """Has every row judged in both orders until `path` holds a verdict that can be read, or TRIES that cannot; returns a Report.

    rows: dicts with id, instruction, answer, meta_info, prediction. ask: llm.Endpoint or llm.Local, or any callable like them with a
    `name`, by which its verdicts are known. Verdicts are appended as they come; what `path` has is not asked again. Raises LLMError
    if all requests fail, DataError if a row lacks something, another run writes to `path`, or a line in it is no verdict.
    """
    report, path, rows = Report(), Path(path), [fit(row) for row in rows]
    with growing(path, verdict, "verdict") as (found, append):
        todo = {
            key: (row, n)
            for key, (row, n) in open_pairs(rows, found, ask.name).items()
            if n < TRIES
        }
        queue, tries = deque(todo), {key: n for key, (_, n) in todo.items()}

        def next_chat():
            if queue:
                key = queue.popleft()
                return key, prompt(todo[key][0], key[1], again=tries[key] > 0)

        with (
            closing(answers(ask, next_chat, workers)) as replies,
            tqdm(
                desc=path.stem,
                unit=" verdicts",
                total=2 * len(rows),
                initial=2 * len(rows) - len(todo),
            ) as bar,
        ):
            for key, answer in replies:
                row, order = todo[key][0], key[1]
                report.requests += 1
                if isinstance(answer, Unanswered):
                    report.failed[row["id"], order] = str(answer)
                    continue
                text, usage = answer
                scores = parse(text)
                append(
                    [
                        {
                            "id": row["id"],
                            "order": order,
                            "scores": scores,
                            "text": text,
                            "judge": ask.name,
                            "row": key[0],
                        }
                    ]
                )
                report.usage.update(usage)
                tries[key] += 1
                if scores is None and tries[key] < TRIES:
                    queue.append(key)
                    continue
                if scores is None:
                    report.unparsable[row["id"], order] = text
                bar.update()
    return report


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="predictions on AIR-Bench Chat, as eval.py writes them",
    )
    parser.add_argument("--endpoint", help=f"OpenAI-compatible; default {OPENAI}, with {JUDGE}")
    parser.add_argument("--model", help="the judge's name at the endpoint")
    parser.add_argument(
        "--local",
        help="name or folder of a transformers model with a chat template, instead of an endpoint",
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=64,
        help="of a reply; a judge that thinks first needs more",
    )
    parser.add_argument(
        "--workers", type=int, default=8, help="requests at once; with --local: prompts in a batch"
    )
    parser.add_argument("--yes", action="store_true", help="start without asking")
    args = parser.parse_args(argv)
    if args.local and (args.endpoint or args.model):
        parser.error("--local takes neither --endpoint nor --model")
    if args.endpoint and not args.model:
        parser.error("--endpoint needs --model, the judge's name there")
    if args.workers < 1 or args.max_tokens < 1:
        parser.error("--workers and --max-tokens must be at least 1")
    try:
        sys.exit(run(args))
    except KeyboardInterrupt:
        sys.exit("judge.py: stopped; the same command goes on from here")
    except (DataError, OSError) as e:
        sys.exit(f"judge.py: {e}")


def run(args):
    """Estimates, asks whether to start, judges, sums up. Returns what went wrong, for sys.exit, or None."""
    name, files, left = local_name(args.local) if args.local else args.model or JUDGE, {}, []
    for file in dict.fromkeys(args.files):
        if file.endswith(".verdicts.jsonl"):
            continue  # as a pattern brings them
        files[file] = predictions(file)
        pairs = open_pairs(
            files[file], read_lines(verdicts_path(file), verdict, "verdict")[0], name
        )
        todo = [(row, order) for (_, order), (row, n) in pairs.items() if n < TRIES]
        left += todo
        print(f"{file}: {len(files[file]):,} predictions, {len(todo):,} verdicts to ask for")
        for row, order in [(row, order) for (_, order), (row, n) in pairs.items() if n >= TRIES]:
            print(
                f"unparsable: {row['id']}, {order}: in none of {TRIES} replies; to have it asked again, delete them"
            )
    if not files:
        return "judge.py: no file of predictions among these"
    failed = 0
    if left:
        tokens = sum(len(m["content"]) for row, order in left for m in prompt(row, order)) // 4
        print(
            f"about {len(left):,} requests, {tokens:,} tokens in, {4 * len(left):,} out, and some more for replies that cannot be read"
        )
        if refused := go_ahead(args.yes):
            return f"judge.py: {refused}"
        if args.local:
            ask = Local(args.local, 0, args.max_tokens)
        else:
            ask = Endpoint(
                args.endpoint or OPENAI, name, os.environ.get("OPENAI_API_KEY"), 0, args.max_tokens
            )
        try:
            for file, rows in files.items():
                report = judge(rows, ask, verdicts_path(file), args.workers)
                print(
                    f"{file}: {report.requests:,} requests, {report.usage['prompt_tokens']:,} tokens in, "
                    f"{report.usage['completion_tokens']:,} out"
                )
                for (i, order), text in report.unparsable.items():
                    said = (
                        repr(text[:80])
                        if text.strip()
                        else f"no whole line within {args.max_tokens} tokens (--max-tokens)"
                    )
                    print(f"unparsable: {i}, {order}: {said}")
                for (i, order), why in report.failed.items():
                    print(f"no verdict: {i}, {order}: {why}")
                failed += len(report.failed)
        finally:
            if not args.local:
                ask.stopped.set()  # threads that wait for their next try need not hold up the exit
    for file, rows in files.items():
        s = summary(verdicts_path(file), rows, name)
        print(
            f"{file}: model {s['model']:.3f}, reference {s['reference']:.3f} on {s['n']:,} of {s['items']:,}; of {2 * s['items']:,} "
            f"verdicts {s['unparsable']:,} unparsable, {s['unasked']:,} lacking; judge {s['judge']}"
        )
    return (
        f"judge.py: {failed:,} verdicts lack; the same command asks for them again"
        if failed
        else None
    )


if __name__ == "__main__":
    main()
