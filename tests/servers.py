"""A language model's server on the loopback address, and folders of tiny random models."""

import json
import math
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

KEY = "sk-loopback-0123456789"


class Counting(ThreadingHTTPServer):
    """Counts the connections that are open."""

    daemon_threads, connections, lock = True, 0, threading.Lock()

    def process_request(self, request, address):
        with self.lock:
            self.connections += 1
        super().process_request(request, address)

    def shutdown_request(self, request):
        super().shutdown_request(request)
        with self.lock:
            self.connections -= 1


def openai(message: str, param: str | None, code: str, kind="invalid_request_error") -> dict:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def vllm(message: str) -> dict:
    return {
        "object": "error",
        "message": message,
        "type": "BadRequestError",
        "param": None,
        "code": 400,
    }


def greedy(body):
    return body.get("temperature", 1) == 0


def has_system(body):
    return any(message["role"] == "system" for message in body.get("messages", ()))


REFUSALS = {  # name: (whether a request has the refused part, status, body), as real ones answer
    "o-series tokens": (
        lambda body: "max_tokens" in body,
        400,
        openai(
            "Unsupported parameter: 'max_tokens' is not supported with this model. "
            "Use 'max_completion_tokens' instead.",
            "max_tokens",
            "unsupported_parameter",
        ),
    ),
    "vllm tokens": (
        lambda body: "max_tokens" in body,
        400,
        vllm("max_tokens is deprecated; use max_completion_tokens"),
    ),
    "pydantic tokens": (
        lambda body: "max_tokens" in body,
        422,
        {
            "detail": [
                {
                    "type": "extra_forbidden",
                    "loc": ["body", "max_tokens"],
                    "msg": "Extra inputs are not permitted",
                    "input": 64,
                }
            ]
        },
    ),
    "o-series temperature": (
        greedy,
        400,
        openai(
            "Unsupported value: 'temperature' does not support 0.0 with this model. "
            "Only the default (1) value is supported.",
            "temperature",
            "unsupported_value",
        ),
    ),
    "kimi temperature": (
        greedy,
        400,
        openai("invalid temperature: only 1 is allowed for this model", None, ""),
    ),
    "tgi temperature": (
        greedy,
        422,
        {
            "error": "Input validation error: `temperature` must be strictly positive",
            "error_type": "validation",
        },
    ),
    "status 200": (
        greedy,
        200,
        openai("temperature is deprecated for this model", "temperature", 400),
    ),
    "o1 system": (
        has_system,
        400,
        openai(
            "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
            "messages[0].role",
            "unsupported_value",
        ),
    ),
    "gemma system": (has_system, 400, vllm("System role not supported")),
    "mistral system": (
        has_system,
        400,
        vllm("Conversation roles must alternate user/assistant/user/assistant/..."),
    ),
}


def as_bytes(data) -> bytes:
    if isinstance(data, bytes):
        return data
    return (data if isinstance(data, str) else json.dumps(data)).encode()


class Server:
    """answer(body, k) is the reply to request k: a text, sent as a chat completion, or a dict.

    `script` holds other replies to the next requests: (status, headers, body), a number of seconds
    to stay silent before the answer, or "cut" for half of the answer. A body may be bytes, or a
    dict for JSON; a header None is left out. `refuses` holds names of REFUSALS.
    `most` is the largest number of requests at once: each counts until the last moment before its
    reply is written, since the client can send its next request before the handler of this one
    returns. `gate` stops answers: from request `gate` on there are none before `opened` is set.
    """

    def __init__(self):
        self.script, self.requests, self.refuses = [], [], []
        self.now, self.most, self.gate, self.opened = 0, 0, math.inf, threading.Event()
        self.lock = threading.Lock()
        self.answer = lambda body, k: f"answer {k}"
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_POST(self):
                outer.serve(self)

        self.http = Counting(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def serve(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            k = len(self.requests)
            self.requests.append((handler.path, dict(handler.headers), body))
            turn = self.script.pop(0) if self.script else None
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            status, headers, data = self.reply(turn, body, k)
        finally:
            with self.lock:
                self.now -= 1
        with suppress(OSError):  # the client hung up, as it should after its timeout
            handler.send_response_only(status)  # without a Date
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                if value is not None:
                    handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(data[: len(data) // 2] if turn == "cut" else data)

    def reply(self, turn, body, k):
        """(status, headers, bytes), after the silence that is asked for."""
        if k >= self.gate:
            self.opened.wait()
        if isinstance(turn, tuple):
            status, headers, data = turn
            return status, headers, as_bytes(data)
        for refused_in, status, data in map(REFUSALS.get, self.refuses):
            if refused_in(body):
                return status, {}, as_bytes(data)
        if isinstance(turn, (int, float)):
            time.sleep(turn)
        data = self.answer(body, k)
        if isinstance(data, str):
            choice = {"message": {"content": data}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 100, "completion_tokens": 10}
            data = {"choices": [choice], "usage": usage}
        return 200, {}, as_bytes(data)

    def settle(self):
        """Opens the gate, and returns when all that was sent before has been received."""
        self.opened.set()
        with socket.create_connection(self.http.server_address) as last:  # they come in order
            last.shutdown(socket.SHUT_WR)
            last.recv(1)
        while self.http.connections:
            time.sleep(0.001)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    yield server
    server.opened.set()
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def nobody(monkeypatch):
    """The URL of a port where nobody listens; it stays bound, so that no other process takes it."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/v1"


@pytest.fixture(scope="module")
def random_llms(tokenizer, tmp_path_factory):
    """Folders of random models with a chat template: a LLaMA with a long context, and a GPT-2."""
    from conftest import gpt2, llama  # which imports this module

    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
    folders = {}
    for name, model in (("llama", llama()), ("gpt2", gpt2())):
        if name == "llama":
            model.config.max_position_embeddings = 4096
        folders[name] = str(tmp_path_factory.mktemp(name))
        model.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
        config = Path(folders[name], "tokenizer_config.json")
        config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": template}))
    return folders
