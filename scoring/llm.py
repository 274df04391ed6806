"""Ask a language model: behind any OpenAI-compatible endpoint, or a local one of `transformers`.

    ask = Endpoint("https://api.openai.com/v1", "gpt-4o-mini", key)    # or Local("Qwen/Qwen3-8B")
    Endpoint(url, "text-embedding-3-small", key).embed(["a dog barks"])

shards/describe.py requests descriptions, judge.py beside this module requests verdicts.
answers.py asks many at once. There is no client library: this is less than what one would not do,
which is to speak every server's dialect.
"""

import base64
import json
import math
import os
import random
import re
import sys
import threading
import time
import zlib
from array import array
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from email.utils import mktime_tz, parsedate_tz
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import HTTPErrorProcessor, Request, build_opener

from tqdm import tqdm

from disk import DataError, reading

OPENAI = "https://api.openai.com/v1"
LONGEST_PAUSE = 600  # seconds that Retry-After can make a request wait
EMPTY_TRIES = 3  # each may have cost all of max_tokens
# raised on JSON of another form
WRONG_FORM = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


class LLMError(DataError):
    """The run cannot continue. The message says why and how to fix it; all written lines stay."""


class Unanswered(LLMError):
    """One request failed after all its retries; others may succeed."""


class Empty(ValueError):
    """An answer without a word."""


# --- dialects: the same request, as some models want it ---


class Dialect(NamedTuple):
    """A change to a request that a model needs."""

    key: str  # of the request's body
    name: str  # a pattern: how an error names the refused part
    said: str  # to the user
    speak: Callable[[dict], dict]  # body -> body


REFUSED = (
    r"(unsupported|not support|not accept|unrecogni[sz]ed|unknown|unexpected|not permitted|"
    r"not allowed|only \S+ is allowed|forbidden|deprecated|not enabled|strictly positive|alternate)"
)


def without(key: str, body: dict) -> dict:
    return {name: value for name, value in body.items() if name != key}


def renamed(old: str, new: str, body: dict) -> dict:
    return {new if name == old else name: value for name, value in body.items()}


def one_message(chat: list[dict]) -> list[dict]:
    """The chat as one message of the user, since some models have no system message."""
    return [{"role": "user", "content": "\n\n".join(message["content"] for message in chat)}]


DIALECTS = (
    Dialect(
        "max_tokens",
        r"\bmax_tokens\b",
        "takes max_completion_tokens for max_tokens",
        partial(renamed, "max_tokens", "max_completion_tokens"),
    ),
    Dialect(
        "temperature",
        r"\btemperature\b",
        "takes no temperature: its answers vary, and a judge is not greedy",
        partial(without, "temperature"),
    ),
    Dialect(
        "messages",
        r"(\bsystem\b|\bdeveloper instruction|\broles\b)",
        "takes no system message: it is part of the user's",
        lambda body: {**body, "messages": one_message(body["messages"])},
    ),
)


def wanted(reply, body: dict, spoken: tuple) -> Dialect | None:
    """The dialect, not spoken yet, that an error asks for: it names a part of body and refuses it.

    Both within some words, since some errors repeat the whole request.
    """
    if reply.status not in (400, 422):
        return None
    for dialect in DIALECTS:
        near = f"{dialect.name}.{{0,60}}{REFUSED}|{REFUSED}.{{0,60}}{dialect.name}"
        if (
            dialect.key in body
            and dialect not in spoken
            and re.search(near, reply.text, re.IGNORECASE | re.DOTALL)
        ):
            return dialect
    return None


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
    A refusal that asks for one of DIALECTS is followed at once, for all later requests, too.
    Raises Unanswered after `tries`, after EMPTY_TRIES empty answers, and where this one request is
    refused. Raises LLMError where no retry helps: any other status, a used-up quota, an invalid key
    or URL. Set `stopped` to end all retries.
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
        self.stopped, self.spoken, self.lock = threading.Event(), (), threading.Lock()
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
        """read(the reply's JSON).

        read raises one of WRONG_FORM where that is of another form, Empty where it holds no word,
        and Unanswered where a retry would not help.
        """
        url, body = self.url + path, {"model": self.name, **body}
        for attempt in range(1, self.tries + 1):
            pause = self.backoff * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
            reply, empty = self.converse(url, body), False
            problem = reply.problem
            if not problem:
                try:
                    return read(json.loads(reply.text))
                except Unanswered as error:
                    raise Unanswered(self.shown(f"{url}: {error}")) from None
                except Empty as error:
                    problem, empty = str(error), True
                except WRONG_FORM:
                    page = " (is it a web page's address?)" if reply.text[:1] == "<" else ""
                    problem = f"the answer is not what {path} should give{page}:"
            problem = self.shown(f"{problem} {reply.text}")
            if reply.status in (400, 413, 422) and ONE_REFUSED.search(reply.text):
                raise Unanswered(f"{url} refuses this request: {problem}")
            if permanent(reply):
                raise LLMError(
                    f"{url} refuses: {problem} - Is OPENAI_API_KEY a key of this endpoint, with "
                    f"credit? Is the endpoint's address all that stands before {path}? "
                    f"Does it have {self.name}?"
                )
            if attempt == self.tries or (empty and attempt >= EMPTY_TRIES):
                break
            if self.stopped.wait(max(pause, reply.retry_after)):
                break
        tries = "1 try" if attempt == 1 else f"{attempt} tries"
        raise Unanswered(f"{url}: no answer after {tries}, at last: {problem}")

    def shown(self, problem: str) -> str:
        """In one line, without a key: some endpoints repeat the one that they refuse."""
        if self.key:
            problem = problem.replace(self.key, "***")
        return " ".join(problem.split())[:400]

    def converse(self, url, body: dict) -> Reply:
        """The reply to a body in the dialects known so far; an error may teach another one.

        It ends, since each request speaks more dialects than the one before it.
        """
        while True:
            spoken, sent = self.spoken, body
            for dialect in spoken:
                if dialect.key in body:
                    sent = dialect.speak(sent)
            reply = self.send(url, sent)
            dialect = wanted(reply, body, spoken)
            if not dialect:
                return reply
            with self.lock:
                if dialect not in self.spoken:  # another thread may have been first
                    self.spoken += (dialect,)
                    host = urlsplit(self.url).netloc.rpartition("@")[2]
                    line = f"{host}: {self.name} {dialect.said}; asked so from now on"
                    tqdm.write(line, file=sys.stderr)  # a plain print would break a progress bar

    def send(self, url, body: dict) -> Reply:
        status, text, retry_after = None, "", 0
        # a lone surrogate is no text: a "?" instead
        sent = json.dumps(body, ensure_ascii=False).encode(errors="replace")
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        try:
            with self.open(Request(url, sent, headers), timeout=self.timeout) as response:
                status = response.status
                problem = "" if status == 200 else f"{status} {response.reason}:"
                retry_after = seconds(response.headers)
                text = decoded(response.read(), response.headers.get_content_charset("utf-8"))
            if status == 200 and (status := status_within(text)) != 200:
                problem = f"{status}, in a reply of status 200:"
        except (OSError, HTTPException, ValueError, zlib.error) as error:
            problem = str(error) or repr(error)
        return Reply(status, text, problem, retry_after)


def decoded(data: bytes, charset: str) -> str:
    """The text of a reply, which some servers compress unasked."""
    if data.startswith(b"\x1f\x8b"):
        data = zlib.decompress(data, 47)  # 47: gzip's header
    with suppress(LookupError):  # no such charset
        return data.decode(charset, "replace").removeprefix("\ufeff")
    return data.decode(errors="replace")


def seconds(headers) -> float:
    """Seconds that a reply asks to wait, 0 to LONGEST_PAUSE; 0 if it does not say.

    A date is compared with the reply's own, since clocks differ.
    """
    for name, unit in (("Retry-After-Ms", 1000), ("Retry-After", 1)):
        if number := re.fullmatch(r"\d+(\.\d+)?", headers.get(name, "").strip()):
            return min(float(number[0]) / unit, LONGEST_PAUSE)
    until = timestamp(headers.get("Retry-After"))
    if until is None:
        return 0
    now = timestamp(headers.get("Date"))
    return min(max(until - (time.time() if now is None else now), 0), LONGEST_PAUSE)


def timestamp(date: str | None) -> float | None:
    """Seconds since 1970 of a date in a header; None if it is none."""
    with suppress(ValueError, TypeError, OverflowError):
        return mktime_tz(parsedate_tz(date))
    return None


STATUS = {  # of errors that come with status 200
    "insufficient_quota": 402,
    "invalid_api_key": 401,
    "authentication_error": 401,
    "model_not_found": 404,
    "invalid_request_error": 400,
}
SAID = ("text", "output_text")  # types of the parts of an answer; others are thoughts
ONE_REFUSED = re.compile(  # an error about one text, not about the key or the model
    "content_filter|content management policy|content_policy|context_length_exceeded|"
    "maximum context length",
    re.IGNORECASE,
)


def status_within(text: str) -> int:
    """The status that a reply of status 200 should have had: its error's; 200 if it has none."""
    with suppress(*WRONG_FORM):
        reply = json.loads(text)
        error = reply if reply.get("object") == "error" else reply["error"]
        if re.fullmatch(r"[45]\d\d", str(error.get("code"))):
            return int(error["code"])
        return STATUS.get(error.get("code")) or STATUS.get(error.get("type")) or 200
    return 200


def permanent(reply):
    """Whether no retry helps. A complete reply of the wrong form (200) is temporary, too."""
    if reply.status == 429:
        return "insufficient_quota" in reply.text
    return reply.status is not None and reply.status < 500 and reply.status not in (200, 408)


def completion(reply):
    """(text, usage) of a chat completion, without lone surrogates.

    Raises Empty, Unanswered with a refusal's words, or one of WRONG_FORM.
    """
    choice, usage = reply["choices"][0], reply.get("usage") or {}
    message = choice.get("message") or {"content": choice["text"]}  # text: an old form
    content, refusal = message.get("content") or "", message.get("refusal")
    if isinstance(content, list):
        refusal = refusal or "".join(part.get("refusal") or "" for part in content)
        content = "".join(part["text"] for part in content if part.get("type", "text") in SAID)
    finish = choice.get("finish_reason")
    if not whole_lines(content, False).strip():
        if refusal:
            raise Unanswered(f"the model refuses: {refusal!r}")
        raise Empty(
            f"an empty answer (finish_reason {finish}); raise max_tokens if the model thinks first:"
        )
    text = whole_lines(content, finish == "length")
    counts = {name: count for name, count in usage.items() if isinstance(count, int)}
    return text.encode(errors="ignore").decode(), counts


def whole_lines(text, cut):
    """The text without a reasoning model's thoughts, and without its last line if it was cut."""
    if cut:
        text = text[: text.rfind("\n") + 1]
    text = re.sub(r"<think>.*?(</think>|\Z)", "", text, flags=re.DOTALL)
    return text.rpartition("</think>")[2]  # some templates put <think> into the prompt


def vectors(reply, count):
    """`count` vectors in the order of their texts, given by `index`. Raises one of WRONG_FORM."""
    rows = {}
    for place, row in enumerate(reply["data"]):
        index, vector = row.get("index"), row["embedding"]
        if isinstance(vector, str):  # float32, little-endian as this machine is
            vector = array("f", base64.b64decode(vector, validate=True))
        rows[place if index is None else index] = [float(x) for x in vector]
    ordered = [rows[i] for i in range(count)]
    finite = all(row and all(map(math.isfinite, row)) for row in ordered)
    if len(reply["data"]) != count or not finite:
        raise ValueError
    return ordered


def clean(text: str) -> str:
    """The text with "?" for lone surrogates, which tokenizers do not take."""
    return text.encode(errors="replace").decode()


GET_MODEL = "get it first, on a machine with a connection (hf download NAME), or give its folder"


class Local:
    """A local `transformers` model. many() answers a batch of chats, and repeats itself exactly.

    Temperature 0 means greedy decoding. Raises LLMError if the model has no chat template, or if
    its context is too short for prompt and answer.
    """

    def __init__(self, name: str, temperature: float = 1.0, max_tokens: int = 1200):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.name, self.temperature, self.max_tokens = local_name(name), temperature, max_tokens
        with reading(f"the model {name}", GET_MODEL):
            self.tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
        if not self.tokenizer.chat_template:
            raise LLMError(
                f"{name} has no chat template; choose a model that was tuned to follow instructions"
            )
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with reading(f"the model {name}", GET_MODEL):
            model = AutoModelForCausalLM.from_pretrained(name, dtype="auto")
            self.model = model.to(device).eval()

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
        (message,) = one_message(chat)
        content = clean(message["content"])
        for control in self.tokenizer.all_special_tokens:  # in a caption it is text: "< |im_end|>"
            content = content.replace(control, f"{control[:1]} {control[1:]}")
        return self.tokenizer.apply_chat_template(
            [message | {"content": content}], tokenize=False, add_generation_prompt=True
        )

    def text(self, ids):
        cut = len(ids) == self.max_tokens and int(ids[-1]) not in self.tokenizer.all_special_ids
        return whole_lines(self.tokenizer.decode(ids, skip_special_tokens=True), cut)


def local_name(name):
    """A local model's name in files: its own, or that of its folder."""
    return Path(name).resolve().name if os.path.isdir(name) else name
