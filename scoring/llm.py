"""Ask a language model: behind any OpenAI-compatible endpoint, or a local one of `transformers`.

    ask = Endpoint("https://api.openai.com/v1", "gpt-4o-mini", key)    # or Local("Qwen/Qwen3-8B")
    for key, answer in answers(ask, next_chat, workers=8): ...         # many chats at once
    with growing(path, parse, "verdict") as (found, append): ...       # answers survive a kill
    Endpoint(url, "text-embedding-3-small", key).embed(["a dog barks"])

shards/describe.py requests descriptions, judge.py beside this module requests verdicts.
There is no client library: the part of HTTP that is needed fits on a page.
"""

import fcntl
import json
import math
import os
import random
import re
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.request import HTTPErrorProcessor, Request, build_opener

from disk import DataError

OPENAI = "https://api.openai.com/v1"
LONGEST_PAUSE = 600  # seconds that Retry-After can make a request wait
WRONG_FORM = (ValueError, LookupError, TypeError, AttributeError)  # raised on JSON of another form


class LLMError(DataError):
    """The run cannot continue. The message says why and how to fix it; all written lines stay."""


class Unanswered(LLMError):
    """One request failed after all its retries; others may succeed."""


# --- who answers: ask(messages) -> (text, usage) ---


class Reply(NamedTuple):
    status: int | None  # None: no connection, or silence
    text: str
    problem: str  # empty if the reply is complete and its status 200
    retry_after: float  # seconds


class AsItIs(HTTPErrorProcessor):
    """Returns every reply. By default urllib follows a redirect and sends it the API key."""

    def http_response(self, request, response):
        return response

    https_response = http_response


@dataclass(eq=False, repr=False)  # a representation would show the key
class Endpoint:
    """ask() through an OpenAI-compatible endpoint: POST {url}/chat/completions. Thread-safe.

    Retries temporary failures with exponential back-off: 408, 429, 5xx, no connection, silence for
    `timeout` seconds, a reply of the wrong form. It waits at least Retry-After, up to ten minutes.
    Raises Unanswered after `tries`. Raises LLMError where no retry helps: any other status, a
    used-up quota, an invalid key or URL. Set `stopped` to end all retries.
    """

    url: str
    name: str  # the model's
    key: str | None = None
    temperature: float = 1.0
    max_tokens: int = 1200
    timeout: float = 120
    tries: int = 6
    backoff: float = 1.0  # seconds before the second try

    def __post_init__(self):
        self.url, self.key = self.url.rstrip("/"), (self.key or "").strip()
        if not re.match(r"https?://[!-~]+$", self.url) or not re.fullmatch(r"[!-~]*", self.key):
            raise LLMError(
                f"{self.url!r} is no address like {OPENAI}, or OPENAI_API_KEY is not plain ASCII"
            )
        self.stopped = threading.Event()
        self.open = build_opener(AsItIs).open

    def __call__(self, messages: list[dict]) -> tuple[str, dict]:
        options = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        return self.post("/chat/completions", {"messages": messages, **options}, completion)

    def embed(self, texts: list[str], batch: int = 256) -> list[list[float]]:
        """A vector for each text, all of one length, through POST {url}/embeddings.

        `batch` texts are sent at once. Endpoints refuse an empty text: it is sent as a space.
        """
        rows = []
        for i in range(0, len(texts), batch):
            part = [text or " " for text in texts[i : i + batch]]
            rows += self.post("/embeddings", {"input": part}, partial(vectors, count=len(part)))
        if len(lengths := {len(row) for row in rows}) > 1:
            raise LLMError(
                f"{self.url}/embeddings: {self.name} gave vectors of lengths {sorted(lengths)}"
            )
        return rows

    def post(self, path, body, read):
        """read(the reply's JSON); read raises one of WRONG_FORM where that is of another form."""
        url, sent = self.url + path, json.dumps({"model": self.name, **body}).encode()
        for attempt in range(1, self.tries + 1):
            pause = self.backoff * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
            reply = self.send(url, sent)
            problem = reply.problem
            if not problem:
                try:
                    return read(json.loads(reply.text))
                except WRONG_FORM:
                    problem = f"the answer is not what {path} should give:"
            problem = f"{problem} {reply.text}"
            if self.key:  # some endpoints repeat a key that they refuse
                problem = problem.replace(self.key, "***")
            problem = problem[:400]
            if permanent(reply):
                raise LLMError(
                    f"{url} refuses: {problem}\nIs OPENAI_API_KEY a key of this endpoint, with "
                    f"credit? Is the endpoint's address all that stands before {path}? "
                    f"Does it have {self.name}?"
                )
            if attempt == self.tries or self.stopped.wait(max(pause, reply.retry_after)):
                break
        raise Unanswered(f"{url}: no answer after {attempt} tries, at last: {problem}")

    def send(self, url, sent) -> Reply:
        status, text, retry_after = None, "", 0
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        try:
            with self.open(Request(url, sent, headers), timeout=self.timeout) as response:
                status = response.status
                problem = "" if status == 200 else f"{status} {response.reason}:"
                retry_after = seconds(response.headers.get("Retry-After", ""))
                text = response.read().decode(errors="replace")
        except (OSError, HTTPException, ValueError) as error:
            problem = str(error) or repr(error)
        return Reply(status, text, problem, retry_after)


def seconds(retry_after):
    """Seconds that the header Retry-After requests; 0 if it is missing or a date."""
    number = re.fullmatch(r"\d+(\.\d+)?", retry_after.strip())
    return min(float(number[0]), LONGEST_PAUSE) if number else 0


def permanent(reply):
    """Whether no retry helps. A complete reply of the wrong form (200) is temporary, too."""
    if reply.status == 429:
        return "insufficient_quota" in reply.text
    return reply.status is not None and reply.status < 500 and reply.status not in (200, 408)


def completion(reply):
    """(text, usage) of a chat completion, without lone surrogates. Raises one of WRONG_FORM."""
    choice, usage = reply["choices"][0], reply.get("usage") or {}
    text = whole_lines(choice["message"]["content"] or "", choice.get("finish_reason") == "length")
    counts = {name: count for name, count in usage.items() if isinstance(count, int)}
    return text.encode(errors="ignore").decode(), counts


def whole_lines(text, cut):
    """The text without a reasoning model's thoughts, and without its last line if it was cut."""
    if cut:
        text = text[: text.rfind("\n") + 1]
    return re.sub(r"<think>.*?(</think>|\Z)", "", text, flags=re.DOTALL)


def vectors(reply, count):
    """`count` vectors in the order of their texts, given by `index`. Raises one of WRONG_FORM."""
    rows = {row["index"]: [float(x) for x in row["embedding"]] for row in reply["data"]}
    ordered = [rows[i] for i in range(count)]
    finite = all(row and all(map(math.isfinite, row)) for row in ordered)
    if len(reply["data"]) != count or not finite:
        raise ValueError
    return ordered


class Local:
    """A local `transformers` model. many() answers a batch of chats, and repeats itself exactly.

    Temperature 0 means greedy decoding. Raises LLMError if the model has no chat template, or if
    its context is too short for prompt and answer.
    """

    def __init__(self, name: str, temperature: float = 1.0, max_tokens: int = 1200):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.name, self.temperature, self.max_tokens = local_name(name), temperature, max_tokens
        self.tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
        if not self.tokenizer.chat_template:
            raise LLMError(
                f"{name} has no chat template; choose a model that was tuned to follow instructions"
            )
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = AutoModelForCausalLM.from_pretrained(name, dtype="auto").to(device).eval()

    def many(self, batch: list[list[dict]]) -> list[tuple[str, dict]]:
        import torch

        prompts = [self.prompt(chat) for chat in batch]
        inputs = self.tokenizer(
            prompts, return_tensors="pt", padding=True, add_special_tokens=False
        ).to(self.model.device)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]  # (B, T), padded on the left
        context = getattr(self.model.config, "max_position_embeddings", None) or float("inf")
        if ids.shape[1] + self.max_tokens > context:
            raise LLMError(
                f"the model's context of {context} tokens is too short for {ids.shape[1]} of "
                f"prompt and {self.max_tokens} of answer"
            )
        sampling = {"do_sample": False}
        if self.temperature:
            sampling = {"do_sample": True, "temperature": self.temperature, "top_p": 0.95}
        torch.manual_seed(zlib.crc32("".join(prompts).encode()))
        out = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=self.max_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
            **sampling,
        )
        return [
            (self.text(row), {"prompt_tokens": int(used), "completion_tokens": len(row)})
            for row, used in zip(out[:, ids.shape[1] :], mask.sum(1))
        ]

    def prompt(self, chat):
        """The chat as one message of the user, since some templates have no system message."""
        message = {"role": "user", "content": "\n\n".join(m["content"] for m in chat)}
        return self.tokenizer.apply_chat_template(
            [message], tokenize=False, add_generation_prompt=True
        )

    def text(self, ids):
        cut = len(ids) == self.max_tokens and int(ids[-1]) not in self.tokenizer.all_special_ids
        return whole_lines(self.tokenizer.decode(ids, skip_special_tokens=True), cut)


def local_name(name):
    """A local model's name in files: its own, or that of its folder."""
    return Path(name).resolve().name if os.path.isdir(name) else name


# --- many chats, and a file that keeps the answers ---


def answers(ask, next_chat: Callable, workers: int) -> Iterator[tuple]:
    """Yields (key, (text, usage)) as answers come, or (key, Unanswered) for a failed request.

    next_chat() is called in the caller's thread whenever a worker is free. It returns (key,
    messages), or None if there is no chat until another answer has come.
    ask(messages) -> (text, usage) is called from `workers` threads at once. An object with
    many(list of messages) -> list of (text, usage) gets `workers` chats at once instead.
    Raises LLMError after max(10, 2 workers) failures in a row, or if all requests failed.
    """
    running, total, failures = {}, 0, []  # failures: those in a row
    limit, pool = max(10, 2 * workers), ThreadPoolExecutor(workers)
    try:
        while len(failures) < limit:
            while len(running) < workers and (chat := next_chat()):
                key, messages = chat
                future = Future() if hasattr(ask, "many") else pool.submit(ask, messages)
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
                f"{len(failures)} requests in a row failed; the last: {failures[-1]}\n"
                "The file keeps what it has; run the same command again to resume"
            )
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def finished(ask, running):
    """The futures that are done, at least one. many() answers all of them here."""
    if hasattr(ask, "many"):
        replies = ask.many([messages for _, messages in running.values()])
        for future, reply in zip(running, replies):
            future.set_result(reply)
    return wait(running, return_when=FIRST_COMPLETED).done


def read_lines(path, parse: Callable, noun: str) -> tuple[list, int]:
    """([parse(row) of every line of JSON], the byte where the last complete line ends).

    Without a file ([], 0). A kill can leave an incomplete last line, which is skipped. Raises
    DataError, with the line's number, where a line is no `noun`: it is no JSON, or parse raises.
    """
    found, end = [], 0
    if not os.path.exists(path):
        return found, end
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                found.append(parse(json.loads(line)))
            except WRONG_FORM as error:
                if not line.endswith(b"\n"):
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
    with open(path, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another run is writing to {path}; wait for it") from None
        found, end = read_lines(path, parse, noun)
        file.truncate(end)
        if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
            file.write(b"\n")  # an editor removed it

        def append(rows):
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
            file.flush()

        yield found, append


def go_ahead(yes: bool) -> str | None:
    """None if the run may start, by --yes or because the user says so; otherwise why not."""
    if yes:
        return None
    if not sys.stdin.isatty():
        return "there is nobody to ask whether to start; add --yes"
    if input("Start? [y/N] ").strip().lower() not in ("y", "yes"):
        return "not started"
    return None
