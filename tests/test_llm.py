"""llm.py against a real HTTP server on the loopback address, and real (tiny, random) models."""

import json
import re
import threading
import time

import pytest
from conftest import gpt2
from servers import KEY

from disk import DataError
from scoring.llm import (
    Endpoint,
    LLMError,
    Local,
    Unanswered,
    answers,
    growing,
    local_name,
    read_lines,
    whole_lines,
)

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is heard?"}]


def endpoint(server, **kwargs):
    return Endpoint(server.url, "m", **{"backoff": 0.02, "tries": 4, "timeout": None, **kwargs})


# --- one question ---


def test_what_is_sent_and_what_comes_back(server):
    ask = Endpoint(server.url + "/", "m", KEY, temperature=0, max_tokens=64)
    assert ask(CHAT) == ("answer 0", {"prompt_tokens": 100, "completion_tokens": 10})
    assert ask.name == "m"
    url, headers, body = server.requests[0]
    assert url == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert body == {"model": "m", "messages": CHAT, "temperature": 0, "max_tokens": 64}
    endpoint(server)(CHAT)
    assert "Authorization" not in server.requests[1][1]  # a server of one's own needs no key


def pauses_of(ask):
    """A list that fills with the seconds that it would pause; it does not pause."""
    pauses = []
    ask.stopped.wait = pauses.append
    return pauses


@pytest.mark.parametrize(
    "trouble, least",
    [
        ((429, {"Retry-After": "0.6"}, "slow down"), 0.6),
        ((500, {}, "oops"), 0),
        ((503, {"Retry-After": "soon"}, ""), 0),
        ((408, {}, ""), 0),
        ((200, {}, "<html>gateway</html>"), 0),
        ((200, {}, '{"error": "busy"}'), 0),
        ((200, {}, '{"choices": []}'), 0),
        ((200, {}, "[]"), 0),
        ((200, {}, '{"choices": [{"message": {"content": 7}}]}'), 0),
        ("cut", 0),
    ],
    ids=["429", "500", "503", "408", "html", "error", "empty", "list", "number", "cut"],
)
def test_trouble_that_passes_is_retried(server, trouble, least):
    server.script, ask = [trouble], endpoint(server)
    pauses = pauses_of(ask)
    assert ask(CHAT)[0] == "answer 1"
    assert len(server.requests) == 2 and len(pauses) == 1 and pauses[0] >= max(least, 0.01)


def test_silence_is_retried(server):
    ask = endpoint(server, timeout=0.05, tries=10)

    def answer(body, k):
        ask.timeout = None  # however slow this machine is, a later try has its answer
        if k == 0:
            server.opened.wait()
        return f"answer {k}"

    server.answer, began = answer, time.monotonic()
    assert re.fullmatch(r"answer [1-9]", ask(CHAT)[0])
    assert time.monotonic() - began >= 0.05 and len(server.requests) >= 2


def test_the_back_off_grows(server):
    server.script, ask = [(500, {}, "")] * 4, endpoint(server, tries=5, backoff=0.1)
    pauses = pauses_of(ask)
    ask(CHAT)
    assert len(pauses) == 4
    assert all(0.05 * 2**i <= pause <= 0.15 * 2**i for i, pause in enumerate(pauses))


def test_trouble_that_stays_is_unanswered(server):
    server.script = [(500, {}, f"oops {KEY}")] * 9
    with pytest.raises(Unanswered, match="no answer after 2 tries, at last: 500") as e:
        endpoint(server, tries=2, key=KEY)(CHAT)
    assert KEY not in str(e.value) and len(server.requests) == 2


@pytest.mark.slow
def test_a_slow_answer_is_waited_for(server):
    server.script = [0.4]
    assert endpoint(server)(CHAT)[0] == "answer 0" and len(server.requests) == 1


@pytest.mark.parametrize(
    "status, body",
    [
        (400, "bad"),
        (401, f"wrong key {KEY}"),
        (404, "no such model"),
        (429, '{"code": "insufficient_quota"}'),
    ],
)
def test_a_refusal_is_not_retried_and_keeps_the_key_secret(server, status, body):
    server.script = [(status, {}, body)] * 2
    for path, call in (
        ("/chat/completions", lambda: endpoint(server, key=KEY)(CHAT)),
        ("/embeddings", lambda: endpoint(server, key=KEY).embed(["a"])),
    ):
        with pytest.raises(LLMError) as e:
            call()
        said = str(e.value)
        assert not isinstance(e.value, Unanswered)
        assert server.url + path in said
        assert str(status) in said
        assert "OPENAI_API_KEY" in said and KEY not in said
    assert len(server.requests) == 2


def test_a_redirect_is_not_followed_with_the_key(server):
    server.script = [
        (307, {"Location": f"{server.url}/elsewhere"}, ""),
        (302, {"Location": f"{server.url}/elsewhere"}, ""),
    ]
    for status in ("307", "302"):
        with pytest.raises(LLMError, match=status):
            endpoint(server, key=KEY)(CHAT)
    assert [r[0] for r in server.requests] == ["/v1/chat/completions"] * 2


@pytest.mark.parametrize(
    "url, key",
    [
        ("file:///etc", None),
        ("localhost:8000", None),
        ("http://a b", None),
        ("http://a", "sk-1\nsk-2"),
        ("http://a", "schlüssel"),
    ],
)
def test_an_address_or_key_that_cannot_be_used_is_refused(url, key):
    with pytest.raises(LLMError) as e:
        Endpoint(url, "m", key)
    assert "sk-1" not in str(e.value) and Endpoint("http://a", "m", "sk-1\n").key == "sk-1"


def test_thoughts_and_a_cut_last_line_are_left_out(server):
    def said(text, finish="stop"):
        server.script = [
            (
                200,
                {},
                json.dumps(
                    {
                        "choices": [{"message": {"content": text}, "finish_reason": finish}],
                        "usage": None,
                    }
                ),
            )
        ]
        return endpoint(server)(CHAT)

    assert said("<think>Hm.\nHm.</think>8 7\nso") == ("8 7\nso", {})
    assert said("8 7\nthe fir", "length") == ("8 7\n", {})
    assert said("8 1", "length") == ("", {})
    assert said(None) == ("", {})
    assert whole_lines("<think>never ends", False) == ""


# --- embeddings ---


def shuffled(body, k):
    """Vectors (length of the text, place), not in the order of the texts."""
    rows = [{"index": i, "embedding": [len(text), i]} for i, text in enumerate(body["input"])]
    return {"data": rows[::-1]}


def test_embeddings_come_in_batches_and_in_order(server):
    server.answer = shuffled
    texts = ["x" * (i % 7) for i in range(600)]
    found = endpoint(server, key=KEY).embed(texts)
    assert found == [
        [float(i % 7 or 1), float(i % 256)] for i in range(600)
    ]  # an empty text is sent as a space
    assert [len(r[2]["input"]) for r in server.requests] == [
        256,
        256,
        88,
    ]
    assert "" not in server.requests[0][2]["input"]
    url, headers, body = server.requests[0]
    assert url == "/v1/embeddings"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert set(body) == {"model", "input"}
    assert endpoint(server).embed([]) == [] and len(server.requests) == 3


@pytest.mark.parametrize(
    "trouble",
    [
        (429, {"Retry-After": "0.1"}, ""),
        (500, {}, ""),
        "cut",
        (200, {}, "[]"),
        (200, {}, '{"data": []}'),
        (200, {}, '{"data": null}'),
        (200, {}, '{"data": [{"index": 0, "embedding": [1]}, {"index": 0, "embedding": [1]}]}'),
        (200, {}, '{"data": [{"index": 0, "embedding": [1]}, {"index": 2, "embedding": [1]}]}'),
        (200, {}, '{"data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": []}]}'),
        (200, {}, '{"data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [NaN]}]}'),
        (200, {}, '{"data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [null]}]}'),
    ],
    ids=[
        "429",
        "500",
        "cut",
        "list",
        "none",
        "null",
        "twice",
        "index",
        "no numbers",
        "nan",
        "null number",
    ],
)
def test_embeddings_are_asked_for_again(server, trouble):
    server.answer, server.script = shuffled, [trouble]
    assert endpoint(server).embed(["a", "bc"]) == [[1, 0], [2, 1]] and len(server.requests) == 2


def test_embeddings_that_cannot_be_had(server):
    server.answer, server.script = shuffled, [(200, {}, "{}")] * 2
    with pytest.raises(Unanswered, match="not what /embeddings should give: {}"):
        endpoint(server, tries=2).embed(["a"])
    server.answer = lambda body, k: {"data": [{"index": 0, "embedding": [1.0] * (1 + k)}]}
    with pytest.raises(LLMError, match=r"lengths \[3, 4\]"):
        endpoint(server).embed(["a", "b"], batch=1)


# --- many questions ---


def test_answers_come_as_they_are_ready_and_may_lead_to_more_questions():
    gate, todo, got = threading.Event(), ["slow", "quick"], []

    def ask(chat):
        assert chat != "slow" or gate.wait()
        return chat, {}

    for key, (text, _) in answers(ask, lambda: todo and (len(todo), todo.pop(0)) or None, 2):
        got.append((key, text))
        if text == "quick":
            todo.append("more")
        if text == "more":
            gate.set()
    assert got == [(1, "quick"), (1, "more"), (2, "slow")]


@pytest.mark.parametrize("good, total", [((), 10), ((5,), 16), ((0, 9, 18, 27, 36), 40)])
def test_failures_in_a_row_end_it_and_others_do_not(good, total):
    def ask(i):
        if i in good:
            return "", {}
        raise Unanswered(f"no {i}")

    numbers, seen = iter(range(40)), []
    try:
        for i, answer in answers(ask, lambda: next(((i, i) for i in numbers), None), 1):
            seen.append(i)
            assert isinstance(answer, tuple if i in good else Unanswered)
    except LLMError as e:
        assert f"10 requests in a row failed; the last: no {seen[-1]}" in str(e)
    assert len(seen) == total


def test_a_caller_who_has_enough_leaves_nothing_running():
    before = set(threading.enumerate())
    for _ in answers(lambda chat: ("", {}), lambda: (0, ""), 3):
        break
    for thread in set(threading.enumerate()) - before:
        thread.join()


# --- the file ---


def test_a_file_grows_and_half_a_line_is_dropped(tmp_path):
    path, number = tmp_path / "new" / "a.jsonl", lambda row: row["n"]
    assert read_lines(path, number, "number") == ([], 0)
    with growing(path, number, "number") as (found, append):
        append([{"n": 1}, {"n": 2}])
        assert found == []
        assert read_lines(path, number, "number")[0] == [1, 2]  # others see it at once
        with (
            pytest.raises(DataError, match="another run is writing"),
            growing(path, number, "number"),
        ):
            pass
    with open(path, "a") as f:
        f.write('{"n": 3')
    assert read_lines(path, number, "number") == ([1, 2], 18)
    with growing(path, number, "number") as (found, append):
        append([{"n": 4}])
    path.write_text(path.read_text().rstrip("\n"))  # as an editor may leave it
    with growing(path, number, "number") as (found, append):
        append([{"n": "é"}])
    assert found == [1, 2, 4] and path.read_text() == '{"n": 1}\n{"n": 2}\n{"n": 4}\n{"n": "é"}\n'
    path.write_text('{"n": 1}\n{}\n{"n": 2}\n')
    with (
        pytest.raises(DataError, match="a.jsonl, line 2 is no number"),
        growing(path, number, "number"),
    ):
        pass
    assert path.read_text() == '{"n": 1}\n{}\n{"n": 2}\n'


# --- a local model ---


def recorded(generate, calls, ids):
    """generate() that also appends its arguments and its new tokens to these lists."""

    def record(**kwargs):
        calls.append(kwargs)
        ids.append(generate(**kwargs)[:, -12:])
        return ids[-1]

    return record


def test_local_answers_are_repeatable_and_sampled_unless_temperature_is_0(random_llms):
    chats, ids = [CHAT, [{"role": "user", "content": "Which animal calls near a river?"}]], []
    for temperature in (1.0, 0):
        local = Local(random_llms["llama"], temperature, max_tokens=12)
        calls = []
        local.model.generate = recorded(local.model.generate, calls, ids)
        for batch in (chats, chats, chats[::-1]):
            local.many(batch)
        assert len(calls) == 3
        assert all(kwargs["do_sample"] == (temperature > 0) for kwargs in calls)
    sampled, greedy = ids[:3], ids[3:]
    assert (
        sampled[0].tolist()
        == sampled[1].tolist()
        != sampled[2].tolist()
        != sampled[0].flip(0).tolist()
    )
    assert greedy[0].tolist() == greedy[1].tolist() == greedy[2].flip(0).tolist()


def test_a_local_model_that_cannot_serve_says_why(random_llms, tokenizer, tmp_path):
    with pytest.raises(LLMError, match="context of 128 tokens"):
        Local(random_llms["gpt2"]).many([CHAT])
    gpt2().save_pretrained(tmp_path / "bare")
    tokenizer.save_pretrained(tmp_path / "bare")
    with pytest.raises(LLMError, match="chat template"):
        Local(str(tmp_path / "bare"))
    assert local_name(str(tmp_path / "bare") + "/") == "bare"
    assert local_name("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"
