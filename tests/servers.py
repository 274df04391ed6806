"""A language model's server on the loopback address, and folders of tiny random models, for all that asks language models."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

KEY = "sk-loopback-0123456789"


class Server:
    """answer(body, k) is what request k gets: a text, as a chat completion, or a dict, as it is. `script` holds what the next
    requests get instead: (status, headers, body), a number of seconds to stay silent before the answer, "cut" for half of it."""

    def __init__(self):
        self.script, self.requests, self.now, self.most, self.pause, self.lock = (
            [],
            [],
            0,
            0,
            0.0,
            threading.Lock(),
        )
        self.answer = lambda body, k: f"answer {k}"
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    k = len(outer.requests)
                    outer.requests.append((self.path, dict(self.headers), body, time.monotonic()))
                    turn = outer.script.pop(0) if outer.script else None
                    outer.now += 1
                    outer.most = max(outer.most, outer.now)
                try:
                    outer.reply(self, turn, body, k)
                except OSError:
                    pass  # the client hung up, as it should after its timeout
                finally:
                    with outer.lock:
                        outer.now -= 1

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def reply(self, handler, turn, body, k):
        time.sleep(self.pause)
        status, headers, data = 200, {}, None
        if isinstance(turn, (int, float)):
            time.sleep(turn)
        elif isinstance(turn, tuple):
            status, headers, data = turn
        if data is None:
            data = self.answer(body, k)
            if isinstance(data, str):
                data = {
                    "choices": [{"message": {"content": data}, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 100, "completion_tokens": 10},
                }
            data = json.dumps(data)
        data = data.encode()
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data[: len(data) // 2] if turn == "cut" else data)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture(scope="module")
def random_llms(tokenizer, tmp_path_factory):
    """Folders of random models with a chat template: a LLaMA with room for our prompts, and a GPT-2 without."""
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
