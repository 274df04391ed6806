"""Asking a language model: one behind any OpenAI-compatible endpoint, or a local one of `transformers`.

    ask = Endpoint("https://api.openai.com/v1", "gpt-4o-mini", key)         # or Local("Qwen/Qwen3-8B")
    for key, answer in answers(ask, next_chat, workers=8): ...              # many questions at once
    with growing(path, parse, "verdict") as (found, append): ...            # a file that keeps every answer through a kill
    Endpoint(url, "text-embedding-3-small", key).embed(["a dog barks"])     # vectors of texts

shards/describe.py has descriptions written, judge.py beside it has answers judged. No client library: what is needed of HTTP is a page.
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
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.request import HTTPErrorProcessor, Request, build_opener

from data import DataError

OPENAI = "https://api.openai.com/v1"


class LLMError(DataError):
    """The run cannot go on; the message says why and what to do. What was written stays."""


class Unanswered(LLMError):
    """One request failed for good, after all its retries; others may succeed."""


# --- who answers: ask(messages) -> (text, usage) ------------------------------------------------------------------------


class Plain(HTTPErrorProcessor):
    """Hands on every answer as it is; urllib by itself follows redirects, and takes the API key along."""

    def http_response(self, request, response):
        return response

    https_response = http_response


class Endpoint:
    """ask() through an OpenAI-compatible endpoint: POST {url}/chat/completions. Safe to call from many threads.

    Retries with exponential back-off what may pass: 408, 429 (no sooner than Retry-After says, up to ten minutes), 5xx, no
    connection, silence for `timeout` seconds, an answer that is not of the expected form. Raises Unanswered after `tries`, and
    LLMError on what no retry mends: any other status, a used-up quota, a key or URL that cannot be sent.
    """

    def __init__(
        self,
        url,
        model,
        key=None,
        temperature=1.0,
        max_tokens=1200,
        timeout=120,
        tries=6,
        backoff=1.0,
    ):
        self.url, self.name, self.key = url.rstrip("/"), model, (key or "").strip()
        if not re.match(r"https?://[!-~]+$", self.url) or not re.fullmatch(r"[!-~]*", self.key):
            raise LLMError(
                f"{url!r} is no address like {OPENAI}, or OPENAI_API_KEY is not plain ASCII"
            )
        self.temperature, self.max_tokens = temperature, max_tokens
        self.timeout, self.tries, self.backoff = timeout, tries, backoff
        self.stopped, self.open = (
            threading.Event(),
            build_opener(Plain).open,
        )  # stopped: no more retries are wanted

    def __call__(self, messages):
        body = {
            "messages": messages,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        return self.post("/chat/completions", body, completion)

    def embed(self, texts, batch=256):
        """A list of floats for each text, all of one length, through POST {url}/embeddings, `batch` texts a request.

        An empty text is sent as a space, since endpoints refuse an empty one.
        """
        rows = []
        for i in range(0, len(texts), batch):
            part = [text or " " for text in texts[i : i + batch]]
            rows += self.post(
                "/embeddings", {"input": part}, lambda answer: vectors(answer, len(part))
            )
        if len({len(row) for row in rows}) > 1:
            raise LLMError(
                f"{self.url}/embeddings: {self.name} gave vectors of lengths {sorted({len(row) for row in rows})}"
            )
        return rows

    def post(self, path, body, read):
        """read(the JSON that answers the body); read raises LookupError, TypeError, ValueError or AttributeError on a wrong form."""
        url, body = self.url + path, json.dumps({"model": self.name, **body}).encode()
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {self.key}"} if self.key else {}
        )
        for attempt in range(1, self.tries + 1):
            pause, status, said = (
                self.backoff * 2 ** (attempt - 1) * random.uniform(0.5, 1.5),
                None,
                "",
            )
            try:
                with self.open(Request(url, body, headers), timeout=self.timeout) as response:
                    status, after = response.status, response.headers.get("Retry-After", "")
                    said = response.read().decode(errors="replace")
                if status == 200:
                    return read(json.loads(said))
                if re.fullmatch(r"\d+(\.\d+)?", after.strip()):  # a date is left to the back-off
                    pause = max(pause, min(float(after), 600))
                problem = f"{status} {response.reason}:"
            except (OSError, HTTPException) as e:
                problem = str(e) or repr(e)
            except (ValueError, LookupError, TypeError, AttributeError):
                problem = f"the answer is not what {path} should give:"
            problem += (
                " " + (said.replace(self.key, "***") if self.key else said)[:300]
            )  # some repeat a key that they refuse
            if (
                status
                and status < 500
                and status not in (200, 408, 429)
                or status == 429
                and "insufficient_quota" in said
            ):
                raise LLMError(
                    f"{url} refuses: {problem}\nIs OPENAI_API_KEY a key of this endpoint, with credit? Is the endpoint's "
                    f"address all that stands before {path}? Does it have {self.name}?"
                )
            if attempt == self.tries or self.stopped.wait(pause):
                raise Unanswered(f"{url}: no answer after {attempt} tries, at last: {problem}")


def completion(answer):
    """(text, usage) of a chat completion; raises LookupError, TypeError or AttributeError if it is none."""
    choice, usage = answer["choices"][0], answer.get("usage") or {}
    text = whole_lines(choice["message"]["content"] or "", choice.get("finish_reason") == "length")
    return text.encode(errors="ignore").decode(), {
        k: v for k, v in usage.items() if isinstance(v, int)
    }  # no lone surrogates


def whole_lines(text, cut):
    """`text` without what a reasoning model thought first, and without its last line if it was cut off there."""
    return re.sub(
        r"<think>.*?(</think>|\Z)", "", text[: text.rfind("\n") + 1] if cut else text, flags=re.S
    )


def vectors(answer, n):
    """The n vectors of an answer to /embeddings, in the order of the texts: `index` says which is whose."""
    rows = {row["index"]: [float(x) for x in row["embedding"]] for row in answer["data"]}
    if len(answer["data"]) != n or not all(
        rows[i] and all(map(math.isfinite, rows[i])) for i in range(n)
    ):
        raise ValueError
    return [rows[i] for i in range(n)]


class Local:
    """A local `transformers` model: many() answers a batch of chats, always the same way; greedily where temperature is 0.

    Raises LLMError if the model has no chat template, or too short a context for prompt and answer.
    """

    def __init__(self, name, temperature=1.0, max_tokens=1200):
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

    def many(self, batch):
        import torch

        chats = [
            [{"role": "user", "content": "\n\n".join(m["content"] for m in chat)}] for chat in batch
        ]  # some know no system
        chats = [
            self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            for chat in chats
        ]
        inputs = self.tokenizer(
            chats, return_tensors="pt", padding=True, add_special_tokens=False
        ).to(self.model.device)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]  # (B, T), padded on the left
        context = getattr(self.model.config, "max_position_embeddings", None) or float("inf")
        if ids.shape[1] + self.max_tokens > context:
            raise LLMError(
                f"the model's context of {context} tokens is too short for {ids.shape[1]} of prompt and "
                f"{self.max_tokens} of answer"
            )
        torch.manual_seed(zlib.crc32("".join(chats).encode()))
        how = (
            {"do_sample": True, "temperature": self.temperature, "top_p": 0.95}
            if self.temperature
            else {"do_sample": False}
        )
        out = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=self.max_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
            **how,
        )[:, ids.shape[1] :]
        cut = out.shape[1] == self.max_tokens and [
            int(row[-1]) not in self.tokenizer.all_special_ids for row in out
        ]
        return [
            (
                whole_lines(self.tokenizer.decode(row, skip_special_tokens=True), cut and cut[i]),
                {"prompt_tokens": int(mask[i].sum()), "completion_tokens": len(row)},
            )
            for i, row in enumerate(out)
        ]


def local_name(name):
    """What a local model is called in files: its name, or that of its folder."""
    return Path(name).resolve().name if os.path.isdir(name) else name


# --- many questions, and a file that keeps the answers --------------------------------------------------------------------


def answers(ask, next_chat, workers):
    """Yields (key, (text, usage)), or (key, Unanswered) where a request failed for good, as the answers come.

    next_chat: called in the caller's thread whenever a worker is free; returns (key, messages), or None if there is nothing to ask
    before another answer has come. ask: messages -> (text, usage), called from `workers` threads at once; or an object with
    many(list of messages) -> list of (text, usage), given `workers` at once. Raises LLMError after max(10, 2 workers) failures in a
    row, or if all failed.
    """
    flying, total, failures, limit, pool = (
        {},
        0,
        [],
        max(10, 2 * workers),
        ThreadPoolExecutor(workers),
    )
    try:
        while len(failures) < limit:
            while len(flying) < workers and (chat := next_chat()):
                flying[Future() if hasattr(ask, "many") else pool.submit(ask, chat[1])] = chat
            if not flying:
                break
            if hasattr(ask, "many"):
                for future, answer in zip(
                    flying, ask.many([messages for _, messages in flying.values()])
                ):
                    future.set_result(answer)
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                key, _ = flying.pop(future)
                total += 1
                try:
                    answer, failures = future.result(), []
                except Unanswered as e:
                    answer = e
                    failures.append(e)
                yield key, answer
        if failures and (len(failures) >= limit or len(failures) == total):
            raise LLMError(
                f"{len(failures)} requests in a row failed; the last: {failures[-1]}\n"
                f"The file keeps what it has; the same command goes on from there"
            )
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def read_lines(path, parse, what):
    """[parse(row) for every line of JSON] ([] where there is no file), and where the last whole line ends: a kill may have cut the
    last one in half. Raises DataError, naming the line, where one is no `what`: no JSON, or parse raises."""
    found, end = [], 0
    for i, line in enumerate(open(path, "rb") if os.path.exists(path) else [], 1):
        try:
            found.append(parse(json.loads(line)))
        except (ValueError, LookupError, TypeError, AttributeError) as e:
            if not line.endswith(b"\n"):  # the last line, cut in half by a kill
                break
            raise DataError(
                f"{path}, line {i} is no {what} ({e!r}); mend or delete that line"
            ) from None
        end += len(line)
    return found, end


@contextmanager
def growing(path, parse, what):
    """A file of JSON lines to which lines are only ever added: (what read_lines finds in it, append(rows)). Half a last line is
    dropped. Raises DataError if another run has it open, or as read_lines does."""
    Path(path).parent.mkdir(exist_ok=True)
    with open(path, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another run is writing to {path}; wait for it") from None
        found, end = read_lines(path, parse, what)
        file.truncate(end)
        if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
            file.write(b"\n")  # an editor took it from the last line

        def append(rows):
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
            file.flush()

        yield found, append


def go_ahead(yes):
    """None if the run may start: --yes was given, or whoever sits there says so. Else why not."""
    if not yes and not sys.stdin.isatty():
        return "there is nobody to ask whether to start; add --yes"
    if not yes and input("Start? [y/N] ").strip().lower() not in ("y", "yes"):
        return "not started"
