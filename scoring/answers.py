"""Many chats at once, and a file that keeps their answers.

    for key, answer in answers(ask, next_chat, workers=8): ...         # many chats at once
    with growing(path, parse, "verdict") as (found, append): ...       # answers survive a kill

ask is an Endpoint or a Local of llm.py.
"""

import fcntl
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, suppress
from pathlib import Path

from disk import DataError
from scoring.llm import WRONG_FORM, LLMError, Unanswered


def answers(ask, next_chat: Callable, workers: int) -> Iterator[tuple]:
    """Yields (key, (text, usage)) as answers come, or (key, Unanswered) for a failed request.

    next_chat() is called in the caller's thread whenever a worker is free. It returns (key,
    messages), or None if there is no chat until another answer has come.
    ask(messages) -> (text, usage) is called from `workers` threads at once. An object with
    many(list of messages) -> list of (text, usage) gets `workers` chats at once instead.
    Raises LLMError after max(10, 2 workers) failures in a row, or if all requests failed.
    """
    running, total, failures = {}, 0, []  # failures: those in a row
    limit = max(10, 2 * workers)
    while len(failures) < limit:
        while len(running) < workers and (chat := next_chat()):
            key, messages = chat
            future = Future() if hasattr(ask, "many") else started(ask, messages)
            running[future] = key, messages
        if not running:
            break
        for future in finished(ask, running):
            key, _ = running.pop(future)
            total += 1
            try:
                answer, failures = future.result(), []
            except Unanswered as error:
                answer = error
                failures.append(error)
            yield key, answer
    if failures and (len(failures) >= limit or len(failures) == total):
        raise LLMError(
            f"{len(failures)} requests in a row failed; the last: {failures[-1]} - "
            "The file keeps what it has; run the same command again to resume"
        )


def started(ask, messages) -> Future:
    """The future of ask(messages), in a daemon thread: Ctrl-C need not wait for an answer."""
    future = Future()

    def run():
        try:
            future.set_result(ask(messages))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def finished(ask, running):
    """The futures that are done, at least one. many() answers all of them here."""
    if hasattr(ask, "many"):
        replies = ask.many([messages for _, messages in running.values()])
        for future, reply in zip(running, replies):
            future.set_result(reply)
    return wait(running, return_when=FIRST_COMPLETED).done


def read_lines(path, parse: Callable, noun: str) -> tuple[list, int]:
    """([parse(row) of every line of JSON], the byte where the last complete line ends).

    Without a file ([], 0). A kill or a full disk can leave an incomplete last line, which is
    skipped: it begins like an object, or a crash left zeros of it. Raises DataError, with the
    line's number, where a line is no `noun`: it is no JSON, or parse raises.
    """
    found, end = [], 0
    if not os.path.exists(path):
        return found, end
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            row = None
            try:
                row = json.loads(line)
                found.append(parse(row))
            except WRONG_FORM as error:
                if row is None and line[:1] in (b"{", b"\0") and not line.endswith(b"\n"):
                    break
                raise DataError(
                    f"{path}, line {number} is no {noun} ({error!r}); fix or delete that line"
                ) from None
            end += len(line)
    return found, end


@contextmanager
def growing(path, parse: Callable, noun: str):
    """Opens a file of JSON lines for appending; yields (its parsed lines, append(rows)).

    Removes an incomplete last line. Raises DataError if another run has the file open, or as
    read_lines does.
    """
    Path(path).parent.mkdir(exist_ok=True)
    with open(path, "a+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another run is writing to {path}; wait for it") from None
        except OSError:  # a network's file system without locks
            pass
        found, end = read_lines(path, parse, noun)
        file.truncate(end)
        if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
            file.write(b"\n")  # an editor removed it

        def append(rows):
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            data = lines.encode(errors="backslashreplace")  # JSON's way to write a lone surrogate
            try:
                while data:
                    data = data[file.write(data) :]
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error

        yield found, append


def go_ahead(yes: bool) -> str | None:
    """None if the run may start, by --yes or because the user says so; otherwise why not."""
    if yes:
        return None
    if not sys.stdin.isatty():
        return "there is nobody to ask whether to start; add --yes"
    with suppress(EOFError):
        if input("Start? [y/N] ").strip().lower() in ("y", "yes"):
            return None
    return "not started"
