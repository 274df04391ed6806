"""From rows of captions to their scores, by as many runs of Java as it takes.

    rows ──► groups of like length ──► a run each ──► {row: score}, or the printed mean
                                          └─ out of time or memory: half, and half again, alone

A parse takes the cube of the length, so that one rambling answer could hold up all others. SPICE
stores parses at the end of a run: groups decide what is kept when Java is stopped.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Container, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from scoring.llm import WRONG_FORM
from scoring.spice.cache import DAMAGED, Cache
from scoring.spice.java import Java, command_of, last_words, run_java

# Seconds on one core, fitted to measurements: 2,000 captions of 10 words 47 s on two cores, one of
# 80 words 6 s, of 120 17 s, of 160 36 s.
CAPTION, CUBE = 0.06, 1e-5
START = 60.0  # seconds that a run may take beside parsing: 5 on a free machine
SLACK = 10  # how many times slower than measured a machine may be
GROUP = 60.0  # seconds of parsing that a group is made for
ALIKE = 1.5  # a group's longest caption may be so much longer than its shortest
SHORT = 40  # words up to which all captions are alike
MEMORY = ("OutOfMemoryError", "StackOverflowError", "insufficient memory")


class Row(NamedTuple):
    """A prediction and its references, as PTB tokens joined by spaces."""

    test: str
    refs: tuple[str, ...]

    @property
    def captions(self) -> tuple[str, ...]:
        return self.test, *self.refs

    @property
    def words(self) -> int:
        """Of the longest caption. A word of hundreds of letters counts as several."""
        return max(map(words_of, self.captions))


class Settings(NamedTuple):
    """How Java is run."""

    java: Java
    memory: str  # -Xmx
    cache: Path | None
    timeout: float | None  # seconds for all runs of one scoring
    patience: float  # seconds that one caption may take


class Result(NamedTuple):
    """The scores of n rows."""

    mean: float
    scores: tuple[float, ...] | None  # None without a JavaScript engine
    unparsed: dict[int, str]  # rows that could not be parsed, which score 0, and why


class Failure(Exception):
    """A run that gave no score. kind: "time", "memory", "cache" (it is damaged) or "other"."""

    def __init__(self, why: str, kind: str, said: str, command: list[str]):
        super().__init__(why)
        self.why, self.kind, self.said, self.command = why, kind, said, command


# --- one run ------------------------------------------------------------------------------------


def read_items(path: Path, n: int) -> list[float]:
    """The n scores, as SPICE writes them with -out."""
    rows = json.loads(path.read_bytes())
    scores = {row["image_id"]: float(row["scores"]["All"]["f"]) for row in rows}
    if len(scores) != n:
        raise ValueError(f"it names {len(scores)} scores")
    if not all(0 <= score <= 1 for score in scores.values()):
        raise ValueError("it names a score that is not in 0..1")
    return [scores[i] for i in range(n)]


def read_printed(text: str, n: int) -> float:
    """The mean of n scores, as SPICE prints it."""
    said = re.search(r"All tuples\s+f-score:\s*([\d.]+).*?num images:\s*(\d+)", text, re.S)
    if not said:
        raise ValueError("it names no score")
    if int(said[2]) != n:
        raise ValueError(f"it names the mean of {said[2]} scores")
    if not 0 <= float(said[1]) <= 1:
        raise ValueError(f"it names a mean of {said[1]}")
    return float(said[1])


def run(
    settings: Settings, rows: Sequence[Row], timeout: float | None, cache: list[str]
) -> tuple[float, list[float] | None]:
    """(mean, score of each row); None without a JavaScript engine. Raises Failure."""
    command, said, kind = command_of(settings.java, settings.memory), "nothing", "other"
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            source, result, out, err = (
                Path(folder, name) for name in ("in.json", "out.json", "stdout", "stderr")
            )
            source.write_text(as_json(rows))
            command += [str(source), *cache]
            if settings.java.engine:
                command += ["-out", str(result)]
            try:
                check_code(run_java(command, timeout, out, err))
                if settings.java.engine:
                    scores = read_items(result, len(rows))
                    return sum(scores) / len(scores), scores
                return read_printed(out.read_text("utf-8", "replace"), len(rows)), None
            except Exception:
                said, kind = last_words(err, out), kind_of(err, out)
                raise
    except subprocess.TimeoutExpired as error:
        raise Failure(f"out of time after {error.timeout:.0f} s", "time", said, command) from error
    except (*WRONG_FORM, OSError) as error:
        kind = "memory" if isinstance(error, Killed) else kind
        raise Failure(" ".join(str(error).split()), kind, said, command) from error


def as_json(rows: Sequence[Row]) -> str:
    """SPICE's input, in ASCII: Java reads it by the machine's own encoding."""
    sent = [{"image_id": i, "test": row.test, "refs": row.refs} for i, row in enumerate(rows)]
    return json.dumps(sent)


def kind_of(*printed: Path) -> str:
    """A Failure's kind by all that Java printed."""
    text = "".join(path.read_text("utf-8", "replace") for path in printed if path.exists())
    if any(word in text for word in DAMAGED):
        return "cache"
    return "memory" if any(word in text for word in MEMORY) else "other"


class Killed(ValueError):
    pass


def check_code(code: int) -> None:
    """Raises ValueError where Java did not end well."""
    if code == -signal.SIGKILL:
        raise Killed("Java was killed: too little memory?")
    if code:
        raise ValueError(f"Java ended with code {code}")


def run_cached(
    settings: Settings, rows: Sequence[Row], timeout: float | None, cache: Cache
) -> tuple[float, list[float] | None]:
    """As `run`, with the cache as long as it can be used. Raises Failure."""
    state = cache.state()
    try:
        return run(settings, rows, timeout, cache.arguments())
    except Failure as failure:
        if cache.folder is None or failure.kind not in ("cache", "other"):
            raise
        if failure.kind == "cache" and cache.set_aside(state):
            return run_cached(settings, rows, timeout, cache)
        answer = run(settings, rows, timeout, [])
        cache.leave_out(f"Java said: {failure.said}")
        return answer


# --- groups -------------------------------------------------------------------------------------


def words_of(caption: str) -> int:
    return max(caption.count(" ") + 1, len(caption) // 20)


def seconds_for(words: int) -> float:
    return CAPTION + CUBE * words**3


def seconds_of(captions: Iterable[str]) -> float:
    """Of parsing, on all cores."""
    return sum(seconds_for(words_of(caption)) for caption in captions) / cores()


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def groups_of(
    rows: Sequence[Row], at: Sequence[int], known: Container[str] = ()
) -> list[list[int]]:
    """`at`, places in rows, by length: at most GROUP seconds each, and of like length.

    known: captions that need no time.
    """
    groups, spent, shortest = [], 0.0, 0
    new = {i: [text for text in rows[i].captions if text not in known] for i in at}
    words = {i: max(map(words_of, new[i]), default=1) for i in at}
    for i in sorted(at, key=words.get):
        seconds = seconds_of(new[i])
        if not groups or spent + seconds > GROUP or words[i] > max(SHORT, ALIKE * shortest):
            groups.append([])
            spent, shortest = 0.0, words[i]
        groups[-1].append(i)
        spent += seconds
    return groups


def limit_of(rows: Sequence[Row], patience: float) -> float:
    """Seconds that a run of these rows may take."""
    allowed = [
        min(SLACK * seconds_for(words_of(caption)), patience)
        for row in rows
        for caption in row.captions
    ]
    return START + max(max(allowed), sum(allowed) / cores())


# --- all rows -----------------------------------------------------------------------------------


class Scoring:
    """One scoring of rows: what is known so far."""

    def __init__(self, settings: Settings, rows: Sequence[Row]):
        self.settings, self.rows, self.cache = settings, rows, Cache(settings.cache)
        self.end = time.monotonic() + (settings.timeout or float("inf"))
        self.means: list[tuple[float, int]] = []  # of runs: mean, rows
        self.scores: dict[int, float] = {}
        self.scored: list[int] = []
        self.failed: dict[int, Failure] = {}
        self.unparsed: dict[int, str] = {}

    def run(self, at: Sequence[int]) -> tuple[float, list[float] | None]:
        """As `run_cached`, in the time that is left. Raises RuntimeError where none is."""
        rows = [self.rows[i] for i in at]
        left, limit = self.end - time.monotonic(), limit_of(rows, self.settings.patience)
        try:
            return run_cached(self.settings, rows, max(0.1, min(left, limit)), self.cache)
        except Failure as failure:
            if failure.kind == "time" and left < limit:
                failure.why = (
                    "out of time: give a longer timeout, or repeat the command: what has been "
                    "parsed is kept"
                )
                raise self.error(failure) from failure
            raise

    def score(self, at: Sequence[int], bar: tqdm) -> None:
        """Scores these rows; those that cannot be parsed alone get into `failed`."""
        try:
            mean, scores = self.run(at)
        except Failure as failure:
            if len(at) > 1:
                self.divide(at, failure, bar)
                return
            if not self.scored and self.rows[at[0]].words <= SHORT and failure.kind != "other":
                raise self.error(failure) from failure  # no caption's fault
            self.failed[at[0]] = failure
        else:
            self.cache.add(text for i in at for text in self.rows[i].captions)
            self.means.append((mean, len(at)))
            self.scored += at
            if scores is not None:
                self.scores.update(zip(at, scores))
        bar.update(len(at))

    def divide(self, at: Sequence[int], failure: Failure, bar: tqdm) -> None:
        """Scores the parts of a group that failed."""
        if failure.kind not in ("time", "memory"):
            # a caption's fault, or Java's: then the first and the last fail too
            for i in dict.fromkeys((at[0], at[-1])):
                self.score([i], bar)
            if {at[0], at[-1]} <= self.failed.keys() and not self.is_well():
                raise self.error(failure) from failure
            at = at[1:-1]
        middle = (len(at) + 1) // 2
        for part in (at[:middle], at[middle:]):
            if part:
                self.score(part, bar)

    def is_well(self) -> bool:
        """Whether Java still scores a row that it has scored."""
        with suppress(Failure):
            return bool(self.scored) and bool(self.run(self.scored[:1]))
        return False

    def error(self, failure: Failure) -> RuntimeError:
        return RuntimeError(
            f"SPICE gave no score for {len(self.rows)} captions ({failure.why}). "
            f"Java said: {failure.said}. The command was: {shlex.join(failure.command)}"
        )

    def result(self) -> Result:
        """Raises RuntimeError where no row can be scored."""
        hopeless = {
            i for i, row in enumerate(self.rows) if seconds_for(row.words) > self.settings.patience
        }
        at = [i for i in range(len(self.rows)) if i not in hopeless]
        exact = self.settings.java.engine
        groups = groups_of(self.rows, at, self.cache.known)
        if not exact and not self.cache.folder and at:
            groups = [at]  # the mean of a whole run is printed with more digits than many means'
        bar = tqdm(total=len(at), desc="SPICE", unit=" clips", leave=False, bar_format=BAR)
        with bar:
            self.run_groups(groups, bar)
        if not self.scored and (failed := [f for f in self.failed.values() if f.kind == "other"]):
            raise self.error(failed[0]) from failed[0]
        for i in hopeless:
            self.unparsed[i] = f"{self.rows[i].words:,} words are too many to parse"
        for i, failure in self.failed.items():
            self.unparsed[i] = f"{self.rows[i].words:,} words, {failure.why}: {failure.said[:100]}"
        mean = self.mean()
        scores = tuple(self.scores.get(i, 0.0) for i in range(len(self.rows))) if exact else None
        return Result(mean, scores, dict(sorted(self.unparsed.items())))

    def run_groups(self, groups: list[list[int]], bar: tqdm) -> None:
        begun, done = time.monotonic(), 0.0
        costs = []
        for at in groups:
            captions = {text for i in at for text in self.rows[i].captions}
            costs.append(START / 10 + seconds_of(captions - self.cache.known))
        bar.set_postfix_str(f"about {clock(sum(costs))} left")
        for at, cost in zip(groups, costs):
            self.score(at, bar)
            done += cost
            rate = (time.monotonic() - begun) / done
            bar.set_postfix_str(f"about {clock((sum(costs) - done) * rate)} left")

    def mean(self) -> float:
        """Over all rows; those that were not scored count as 0."""
        if self.settings.java.engine:
            return sum(self.scores.values()) / len(self.rows)
        if len(self.means) > 1 and self.cache.folder:
            # all is parsed, and one run's mean has three true decimals
            with suppress(Failure, RuntimeError):
                self.means = [(self.run(self.scored)[0], len(self.scored))]
        return sum(mean * n for mean, n in self.means) / len(self.rows)


BAR = "{desc}: {n_fmt}/{total_fmt} clips, {elapsed}{postfix}"


def clock(seconds: float) -> str:
    return tqdm.format_interval(max(0, round(seconds)))


# Spice and Spider of one collection score the same captions, and Java takes minutes.
@lru_cache(4)
def run_spice(settings: Settings, rows: tuple[Row, ...]) -> Result:
    """The scores of these rows. Raises RuntimeError, in one line, where Java gives none."""
    different = list(dict.fromkeys(rows)) if settings.java.engine else list(rows)
    found = Scoring(settings, different).result()
    tell(different, found.unparsed)
    if not settings.java.engine:
        return found
    scores = dict(zip(different, found.scores))
    why = {different[i]: reason for i, reason in found.unparsed.items()}
    each = tuple(scores[row] for row in rows)
    unparsed = {i: why[row] for i, row in enumerate(rows) if row in why}
    return Result(sum(each) / len(each), each, unparsed)


def tell(rows: Sequence[Row], unparsed: dict[int, str]) -> None:
    """Names the rows that could not be parsed."""
    if unparsed:
        named = [f"{rows[i].test[:40]!r} ({why})" for i, why in list(unparsed.items())[:3]]
        more = f", and {len(unparsed) - 3:,} more" if len(unparsed) > 3 else ""
        tqdm.write(
            f"SPICE: {len(unparsed):,} of {len(rows):,} captions could not be parsed and score 0: "
            f"{'; '.join(named)}{more}",
            file=sys.stderr,
        )
