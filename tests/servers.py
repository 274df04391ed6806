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


class Server:
    """answer(body, k) is the reply to request k: a text, sent as a chat completion, or a dict.

    `script` holds other replies to the next requests: (status, headers, body), a number of seconds
    to stay silent before the answer, or "cut" for half of the answer. `most` is the largest number
    of requests at once: each counts until the last moment before its reply is written, since the
    client can send its next request before the handler of this one returns. `gate` stops answers:
    from request `gate` on there are none before `opened` is set.
    """

    def __init__(self):
        self.script, self.requests = [], []
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
            handler.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(data[: len(data) // 2] if turn == "cut" else data)

    def reply(self, turn, body, k):
        """(status, headers, bytes), after the silence that is asked for."""
        if k >= self.gate:
            self.opened.wait()
        if isinstance(turn, tuple):
            status, headers, data = turn
            return status, headers, data.encode()
        if isinstance(turn, (int, float)):
            time.sleep(turn)
        data = self.answer(body, k)
        if isinstance(data, str):
            choice = {"message": {"content": data}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 100, "completion_tokens": 10}
            data = {"choices": [choice], "usage": usage}
        return 200, {}, json.dumps(data).encode()

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
