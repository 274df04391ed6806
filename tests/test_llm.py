"""llm.py against a real HTTP server on the loopback address, and real (tiny, random) models."""

import base64
import fcntl
import gzip
import json
import re
import resource
import struct
import threading
import time
import types
from email.utils import formatdate

import pytest
from conftest import gpt2
from servers import KEY, REFUSALS, openai, vllm

from disk import DataError
from scoring.answers import answers, go_ahead, growing, read_lines
from scoring.llm import Endpoint, LLMError, Local, Unanswered, local_name, whole_lines

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


def reply(content, finish="stop", **message):
    return {"choices": [{"message": {"content": content, **message}, "finish_reason": finish}]}


# --- dialects ---


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refused_part_is_asked_for_in_the_other_dialect(server, capsys, name):
    server.refuses, ask = [name], endpoint(server, temperature=0, max_tokens=64)
    pauses = pauses_of(ask)
    assert ask(CHAT)[0] == "answer 1" and ask(CHAT)[0] == "answer 2"  # asked so from now on
    assert not pauses and len(server.requests) == 3
    body, said = server.requests[-1][2], capsys.readouterr().err
    assert body == server.requests[1][2]
    whole = {"model": "m", "messages": CHAT, "temperature": 0, "max_tokens": 64}
    if "tokens" in name:
        del whole["max_tokens"]
        assert body == whole | {"max_completion_tokens": 64}
        assert "takes max_completion_tokens" in said
    elif "system" in name:
        text = "Be brief.\n\nWhat is heard?"
        assert body == whole | {"messages": [{"role": "user", "content": text}]}
        assert "takes no system message" in said
    else:
        assert body == {key: value for key, value in whole.items() if key != "temperature"}
        assert "takes no temperature" in said and "not greedy" in said
    host = server.url.removeprefix("http://").removesuffix("/v1")
    assert said.count("\n") == 1 and said.startswith(f"{host}: m takes ")


def test_several_dialects_are_learned_by_one_request_with_one_try(server, capsys):
    server.refuses = ["o-series tokens", "o-series temperature", "o1 system"]
    assert endpoint(server, temperature=0, tries=1)(CHAT)[0] == "answer 3"
    assert set(server.requests[-1][2]) == {"model", "messages", "max_completion_tokens"}
    assert capsys.readouterr().err.count("asked so from now on") == 3


def test_a_dialect_is_said_once_by_all_threads(server, capsys):
    server.refuses, together = ["o-series tokens"], threading.Barrier(4)
    ask, numbers, send = endpoint(server), iter(range(4)), Endpoint.send

    def at_once(self, url, body):
        if "max_tokens" in body:
            together.wait()  # all four are refused
        return send(self, url, body)

    ask.send = at_once.__get__(ask)
    found = list(answers(ask, lambda: next(((i, CHAT) for i in numbers), None), 4))
    assert len(found) == 4 and all(isinstance(answer, tuple) for _, answer in found)
    assert capsys.readouterr().err.count("\n") == 1 and len(server.requests) == 8


def test_a_refusal_in_every_dialect_ends(server, capsys):
    server.script = [(400, {}, REFUSALS["o-series tokens"][2])] * 9
    with pytest.raises(LLMError, match="400.*Unsupported parameter"):
        endpoint(server)(CHAT)
    assert len(server.requests) == 2 and capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "status, body",
    [
        (
            400,
            openai(
                "max_tokens is too large: 9999. This model supports at most 4096 tokens",
                "max_tokens",
                "invalid_value",
            ),
        ),
        (400, {"error": "unknown " + "word " * 30 + "temperature"}),  # of a request repeated
        (400, {"error": "temperature " + "word " * 30 + "unknown"}),
        (404, REFUSALS["o-series tokens"][2]),
        (400, openai("Unsupported parameter: 'input'", "input", "unsupported_parameter")),
    ],
    ids=["too large", "far", "far before", "404", "another"],
)
def test_other_errors_change_no_dialect(server, capsys, status, body):
    server.script, ask = [(status, {}, body)], endpoint(server)
    with pytest.raises(LLMError, match=str(status)):
        ask(CHAT)
    assert len(server.requests) == 1 and not ask.spoken and not capsys.readouterr().err
    server.script = [(400, {}, REFUSALS["o-series temperature"][2])]
    with pytest.raises(LLMError, match="400"):
        ask.embed(["a"])  # which has no temperature
    assert not ask.spoken


# --- answers of other forms ---


@pytest.mark.parametrize(
    "data, text",
    [
        (reply([{"type": "text", "text": "8 "}, {"type": "text", "text": "7"}]), "8 7"),
        (reply([{"type": "reasoning", "text": "9 9"}, {"type": "output_text", "text": "8"}]), "8"),
        (
            reply(
                [{"type": "thinking", "thinking": [{"type": "text", "text": "9"}]}, {"text": "8"}]
            ),
            "8",
        ),
        (reply("8 7", reasoning_content="Is it 9 9?", reasoning="9 9", refusal=None), "8 7"),
        ({"choices": [{"text": "8 7", "finish_reason": "stop"}]}, "8 7"),
        ({"error": None, **reply("8 7")}, "8 7"),
        (reply("8\ud83d7"), "87"),
    ],
    ids=["parts", "reasoning part", "thinking part", "reasoning", "legacy", "error null", "half"],
)
def test_the_text_of_answers_in_many_forms(server, data, text):
    server.script = [(200, {}, data)]
    assert endpoint(server)(CHAT) == (text, {})


@pytest.mark.parametrize(
    "data",
    [
        reply("", "length"),
        reply(None, "length", reasoning_content="Hm, the first"),
        reply("<think>Hm, the first", "length"),
        reply(" \n", "stop"),
        reply([{"type": "reasoning", "text": "Hm"}], "length"),
        reply(None, "content_filter"),
    ],
)
def test_an_empty_answer_is_asked_for_again_a_little(server, data):
    server.script, ask = [(200, {}, data)], endpoint(server)
    pauses = pauses_of(ask)
    assert ask(CHAT)[0] == "answer 1" and len(pauses) == 1
    server.script = [(200, {}, data)] * 9
    with pytest.raises(Unanswered, match="after 3 tries.*empty answer.*raise max_tokens") as e:
        endpoint(server, tries=6, backoff=0.01)(CHAT)
    assert data["choices"][0]["finish_reason"] in str(e.value) and len(server.requests) == 2 + 3


@pytest.mark.parametrize(
    "data",
    [
        reply(None, refusal="I can't help\nwith that."),
        reply([{"type": "refusal", "refusal": "I can't help\nwith that."}]),
    ],
)
def test_a_refusal_of_the_model_is_quoted_and_not_retried(server, data):
    server.script = [(200, {}, data)] * 2
    with pytest.raises(Unanswered, match=r"refuses: \"I can't help\\nwith that") as e:
        endpoint(server)(CHAT)
    assert len(server.requests) == 1 and "\n" not in str(e.value)


@pytest.mark.parametrize(
    "status, body",
    [
        (400, openai("filtered by Azure OpenAI's content management policy", "prompt", "")),
        (400, openai("The maximum context length is 8192 tokens", "messages", "")),
        (400, openai("too long", "messages", "context_length_exceeded")),
        (200, openai("too long: maximum context length", "messages", 400)),
    ],
)
def test_an_error_about_one_text_leaves_the_others_to_be_asked(server, status, body):
    server.script = [(status, {}, body)]
    with pytest.raises(Unanswered, match="refuses this request: 400"):
        endpoint(server)(CHAT)
    assert len(server.requests) == 1 and endpoint(server)(CHAT)[0] == "answer 1"


@pytest.mark.parametrize(
    "error, status",
    [
        (openai("You exceeded your quota", None, "insufficient_quota", "insufficient_quota"), 402),
        (openai("Incorrect API key", None, "invalid_api_key"), 401),
        (openai("Insufficient credits", None, 402), 402),
        (openai("no such model", None, "model_not_found"), 404),
        (openai("no", None, None, "authentication_error"), 401),
        (vllm("The model `m` is not right."), 400),
    ],
)
def test_an_error_within_status_200_is_permanent_where_its_status_would_be(server, error, status):
    server.script = [(200, {}, error)] * 2
    with pytest.raises(LLMError, match=f"refuses: {status}, in a reply of status 200") as e:
        endpoint(server)(CHAT)
    assert not isinstance(e.value, Unanswered) and len(server.requests) == 1


@pytest.mark.parametrize("code", [429, "503", "rate_limit_exceeded", None])
def test_an_error_within_status_200_that_passes_is_retried(server, code):
    server.script = [(200, {}, openai("later", None, code, "server_error"))]
    assert endpoint(server)(CHAT)[0] == "answer 1"


def test_bodies_are_unpacked_joined_and_decoded(server):
    text = json.dumps(reply("café 犬"), ensure_ascii=False)
    latin = json.dumps(reply("café"), ensure_ascii=False).encode("latin-1")
    kind, chunks = "application/json; charset=", text.encode().partition(b"caf")
    parts = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))
    chunked = {"Transfer-Encoding": "chunked", "Content-Length": None}
    server.script = [
        (200, {"Content-Encoding": "gzip"}, gzip.compress(text.encode())),
        (200, {}, gzip.compress(text.encode())[:-9]),
        (200, chunked, parts[:40]),
        (200, chunked, parts),
        (200, {}, b"\xef\xbb\xbf" + text.encode()),
        (200, {"Content-Type": kind + "iso-8859-1"}, latin),
        (200, {"Content-Type": kind + "nonsense"}, text),
        (200, {}, latin),
    ]
    ask = endpoint(server)
    assert [ask(CHAT)[0] for _ in range(6)] == ["café 犬"] * 3 + ["café", "café 犬", "caf\ufffd"]
    assert not server.script  # two were broken off, and asked for again


def test_a_web_page_is_retried_and_named_in_one_line(server):
    server.script = [(200, {}, "<!DOCTYPE html>\n<html>\n<p>Log in</p>")] * 2
    with pytest.raises(Unanswered, match="is it a web page's address.*<p>Log in</p>") as e:
        endpoint(server, tries=2)(CHAT)
    assert "\n" not in str(e.value)


def test_lone_surrogates_are_not_sent(server):
    endpoint(server)([{"role": "user", "content": "a \ud83d dog\u2028 犬"}])
    assert server.requests[0][2]["messages"][0]["content"] == "a ? dog\u2028 犬"


NOON = "Wed, 21 Oct 2015 12:00:00 GMT"


@pytest.mark.parametrize(
    "headers, least, most",
    [
        ({"Retry-After": "Wed, 21 Oct 2015 12:00:30 GMT", "Date": NOON}, 30, 30),
        ({"Retry-After": "Wed Oct 21 12:00:30 2015", "Date": NOON}, 30, 30),
        ({"Retry-After": "Wed, 21 Oct 2015 14:00:30 +0200", "Date": NOON}, 30, 30),
        ({"Retry-After": "Thu, 22 Oct 2015 12:00:00 GMT", "Date": NOON}, 600, 600),
        ({"Retry-After": "Wed, 21 Oct 2015 11:00:00 GMT", "Date": NOON}, 0, 0.1),
        ({"Retry-After": NOON}, 0, 0.1),  # of 2015
        ({"Retry-After": "SOON + 40"}, 35, 40),
        ({"Retry-After": "SOON + 40", "Date": "Wed, 99 Foo 2015"}, 35, 40),
        ({"Retry-After": "-5"}, 0, 0.1),
        ({"Retry-After": "9" * 400}, 600, 600),
        ({"Retry-After-Ms": "1500", "Retry-After": "2"}, 1.5, 1.5),
        ({"Retry-After": "Wed, 99 Oct 99999 12:00:30 GMT"}, 0, 0.1),
    ],
)
def test_a_rate_limit_may_give_a_date(server, headers, least, most):
    soon = formatdate(time.time() + 40, usegmt=True)
    headers = {name: value.replace("SOON + 40", soon) for name, value in headers.items()}
    server.script, ask = [(429, headers, "slow down")], endpoint(server)
    pauses = pauses_of(ask)
    assert ask(CHAT)[0] == "answer 1"
    assert least <= pauses[0] <= most


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
    assert said("Hm, 9 1?\nNo.</think>8 7") == ("8 7", {})  # the prompt held <think>
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


def test_embeddings_in_base64_and_without_an_index(server):
    packed = base64.b64encode(struct.pack("<2f", 0.5, -2)).decode()
    server.answer = lambda body, k: {
        "data": [{"embedding": packed}, {"index": None, "embedding": [1, 2]}]
    }
    assert endpoint(server).embed(["a", "b"]) == [[0.5, -2], [1, 2]]
    server.answer = lambda body, k: {"data": [{"index": 0, "embedding": packed[:-3]}]}
    for broken in (packed[:-3], packed[:4], "0.5, -2"):
        server.script = [(200, {}, {"data": [{"index": 0, "embedding": broken}]})]
        with pytest.raises(Unanswered, match="not what /embeddings should give"):
            endpoint(server, tries=1).embed(["a"])


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

    numbers, seen, said = iter(range(40)), [], ""
    try:
        for i, answer in answers(ask, lambda: next(((i, i) for i in numbers), None), 1):
            seen.append(i)
            assert isinstance(answer, tuple if i in good else Unanswered)
    except LLMError as e:
        said = str(e)
    assert len(seen) == total
    assert (f"10 requests in a row failed; the last: no {seen[-1]}" in said) == (total < 40)


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


def limited(size):
    """Files cannot grow beyond this size, as on a full disk."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))


def test_a_full_disk_loses_only_the_line_that_did_not_fit(tmp_path):
    path, number = tmp_path / "a.jsonl", lambda row: row["n"]
    with growing(path, number, "number") as (found, append):
        append([{"n": 1}])
        limited(14)
        try:
            with pytest.raises(OSError, match="a.jsonl"):
                append([{"n": 2}])
        finally:
            limited(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    assert path.read_text() == '{"n": 1}\n{"n":'
    with growing(path, number, "number") as (found, append):
        append([{"n": 3}])
    assert found == [1] and path.read_text() == '{"n": 1}\n{"n": 3}\n'


def test_lines_are_divided_at_line_feeds_alone_and_keep_odd_characters(tmp_path):
    path, odd = tmp_path / "a.jsonl", "a\u2028b\x85c\x0bd\r\ud83d犬"
    with growing(path, lambda row: row, "text") as (_, append):
        append([{"text": odd}, {"text": "b"}])
    assert path.read_bytes().decode().count("\n") == 2
    assert read_lines(path, lambda row: row["text"], "text")[0] == [odd, "b"]


@pytest.mark.parametrize(
    "text",
    ["hello", '{"of": "another program"}', "[1, 2", "version https://git-lfs", "\xff\xfe{"],
)
def test_another_programs_file_is_named_and_not_cut(tmp_path, text):
    path = tmp_path / "a.jsonl"
    path.write_bytes(text.encode("latin-1"))
    with (
        pytest.raises(DataError, match="a.jsonl, line 1 is no number"),
        growing(path, lambda row: row["n"], "number"),
    ):
        pass
    assert path.read_bytes() == text.encode("latin-1")


def test_zeros_of_a_crash_are_removed_and_deep_nesting_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": 1}\n' + bytes(100))
    with growing(path, lambda row: row["n"], "number") as (found, _):
        assert found == [1] and path.read_bytes() == b'{"n": 1}\n'
    path.write_text("[" * 100_000 + "\n")
    with pytest.raises(DataError, match="line 1 is no number"):
        read_lines(path, lambda row: row["n"], "number")


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with growing(tmp_path / "a.jsonl", lambda row: row, "row") as (found, append):
        append([{"n": 1}])
    assert (tmp_path / "a.jsonl").read_text() == '{"n": 1}\n'


def test_a_closed_terminal_is_no_yes(monkeypatch):
    def closed(_):
        raise EOFError

    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", closed)
    assert go_ahead(False) == "not started" and go_ahead(True) is None


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


def test_control_tokens_in_a_chat_are_text(random_llms):
    local = Local(random_llms["llama"])
    end = local.tokenizer.eos_token
    plain, odd = (local.prompt([{"role": "user", "content": c}]) for c in ("a dog", f"a {end} dog"))
    counts = [
        local.tokenizer(text, add_special_tokens=False).input_ids.count(
            local.tokenizer.eos_token_id
        )
        for text in (plain, odd)
    ]
    assert counts[0] == counts[1] and end[1:] in odd  # it can still be read


def test_a_local_model_that_cannot_serve_says_why(random_llms, tokenizer, tmp_path):
    with pytest.raises(LLMError, match="context of 128 tokens"):
        Local(random_llms["gpt2"]).many([CHAT])
    gpt2().save_pretrained(tmp_path / "bare")
    tokenizer.save_pretrained(tmp_path / "bare")
    with pytest.raises(LLMError, match="chat template"):
        Local(str(tmp_path / "bare"))
    for name in (str(tmp_path / "nowhere"), str(tmp_path)):  # missing; without a model
        with pytest.raises(DataError, match="the model .*; get it first") as e:
            Local(name)
        assert "\n" not in str(e.value)
    Local(random_llms["llama"], max_tokens=1).many([[{"role": "user", "content": "a \ud83d dog"}]])
    assert local_name(str(tmp_path / "bare") + "/") == "bare"
    assert local_name("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"
