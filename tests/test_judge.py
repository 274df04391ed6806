"""judge.py with a real HTTP server on the loopback address, a kill, and a tiny random model."""

import json
import re
import resource
import signal
import subprocess
import sys
import threading
import time
import types
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from servers import KEY

import disk
from disk import DataError
from scoring import judge as module
from scoring.judge import (
    AGAIN,
    ORDERS,
    TRIES,
    judge,
    main,
    parse,
    predictions,
    prompt,
    stored,
    summary,
    verdicts,
    verdicts_path,
)
from scoring.llm import Endpoint, LLMError, Local

ROOT = Path(__file__).parent.parent


def item(i, **kwargs):
    return {
        "id": f"-air.{i}",
        "instruction": f"What is heard in clip {i}?",
        "answer": f"The reference {i}.",
        "category": "sound_QA",
        "meta_info": f"{{'sound': 'dog {i}', 'said': \"it's\"}}",
        "prediction": f"The model {i}.",
        "tag": "",
        **kwargs,
    }


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def endpoint(server, model="m", **kwargs):
    return Endpoint(
        server.url,
        model,
        temperature=0,
        max_tokens=64,
        **{"backoff": 0.02, "tries": 3, "timeout": None, **kwargs},
    )


def shown(body):
    """(item, order) that a request is about, from what it says and nothing else."""
    text = body["messages"][-1]["content"]
    first, second = re.search(
        r"### First answer\nThe (\w+) .*\n\n### Second answer\nThe (\w+) ", text
    ).groups()
    assert {first, second} == {"reference", "model"}
    numbers = set(re.findall(r"(?:clip|dog|The reference|The model) (\d+)", text))
    assert len(numbers) == 1  # notes, question and both answers of one item
    return int(numbers.pop()), f"{first} first"


def lines(path):
    data = Path(path).read_bytes()
    assert data.endswith(b"\n") or not data
    return [json.loads(line) for line in data.splitlines()]


def fair(body, k):
    """The reference gets 9, the model its number + 1."""
    i, order = shown(body)
    return f"9 {i + 1}" if order == "reference first" else f"{i + 1} 9"


def ask_text(*texts, name="m"):
    """An ask() that gives these answers in turn, the last one for ever."""
    texts, asked = list(texts), []

    def ask(messages):
        asked.append(messages)
        return texts.pop(0) if len(texts) > 1 else texts[0], {}

    ask.name, ask.asked = name, asked
    return ask


# --- scores ---


def test_each_item_is_judged_twice_with_the_places_swapped(server, tmp_path):
    rows, path = [item(i) for i in range(7)], tmp_path / "a.verdicts.jsonl"
    server.answer = fair
    report = judge(rows, endpoint(server), path, workers=3)
    assert Counter(shown(r[2]) for r in server.requests) == {
        (i, order): 1 for i in range(7) for order in ORDERS
    }
    assert report.requests == 14
    assert report.usage["prompt_tokens"] == 1400
    assert not report.failed
    assert not report.unparsable
    body = server.requests[0][2]
    assert (body["temperature"], body["max_tokens"], body["model"]) == (0, 64, "m")
    scores, unparsable = verdicts(path, rows)
    assert scores.dtype == torch.float64
    assert scores.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert unparsable == 0
    assert summary(path, rows) == {
        "judge": "m",
        "n": 7,
        "items": 7,
        "model": 4,
        "reference": 9,
        "unparsable": 0,
        "unasked": 0,
    }
    assert verdicts(path, rows[::-1])[0].tolist() == [7, 6, 5, 4, 3, 2, 1]
    row = next(r for r in lines(path) if r["id"] == "-air.2" and r["order"] == "model first")
    assert row == {
        "id": "-air.2",
        "order": "model first",
        "scores": [3, 9],
        "text": "3 9",
        "judge": "m",
        "row": row["row"],
    }
    judge(rows, endpoint(server), path)
    assert len(server.requests) == 14  # a finished file asks for nothing


def test_a_judge_that_favours_the_first_place_gives_5(tmp_path):
    rows, path = [item(i) for i in range(4)], tmp_path / "v.jsonl"
    judge(rows, ask_text("9 1"), path)
    found = stored(path, rows)
    assert found.model.tolist() == [[1, 9]] * 4 and found.reference.tolist() == [[9, 1]] * 4
    assert verdicts(path, rows)[0].tolist() == [5] * 4 and summary(path, rows)["reference"] == 5


def test_requests_run_at_once_and_no_more_than_workers(server, tmp_path):
    together = threading.Barrier(3)  # no answer before three requests wait for theirs

    def answer(body, k):
        together.wait()
        return fair(body, k)

    server.answer = answer
    judge([item(i) for i in range(6)], endpoint(server), tmp_path / "v.jsonl", workers=3)
    assert server.most == 3 and len(server.requests) == 12


def test_the_prompt_shows_all_and_only_what_it_should():
    row = item(
        3,
        meta_info="two dogs",
        answer="Reference, at 5 s.",
        prediction="MATS says {0} %s.",
        tag="[open ended]",
    )
    for order, places in zip(
        ORDERS,
        (("Reference, at 5 s.", "MATS says {0} %s."), ("MATS says {0} %s.", "Reference, at 5 s.")),
    ):
        system, user = prompt(row, order)
        text = user["content"]
        assert [text.index(part) for part in ("two dogs", "clip 3?", *places)] == sorted(
            map(text.index, ("two dogs", "clip 3?", *places))
        )
        assert not re.search(
            "reference first|model first|-air|open ended|sound_QA", system["content"] + text
        )  # who is who is not said
        assert all(
            w in system["content"]
            for w in ("helpful", "relevant", "accurate", "comprehensive", "1", "10")
        )
        assert AGAIN not in text
        assert prompt(row, order, again=True)[1]["content"] == f"{text}\n{AGAIN}"


@pytest.mark.parametrize(
    "text, scores",
    [
        ("8 7", [8, 7]),
        ("10 1", [10, 1]),
        (" 8 7 \n", [8, 7]),
        ("7.5 8", [7.5, 8]),
        ("8/10 7/10", [8, 7]),
        ("8 / 10, 7 / 10", [8, 7]),
        ("8, 7", [8, 7]),
        ("8; 7", [8, 7]),
        ("8 | 7", [8, 7]),
        ("8 and 7.", [8, 7]),
        ("**8 7**", [8, 7]),
        ("**8** **7**", [8, 7]),
        ("`8 7`", [8, 7]),
        ("[8, 7]", [8, 7]),
        ("(8 7)", [8, 7]),
        ("Scores: 8 7", [8, 7]),
        ('"8 7"', [8, 7]),
        ("8\n7", [8, 7]),
        ("Assistant 1: 8\nAssistant 2: 7", [8, 7]),
        ("Answer 1: 8/10, Answer 2: 7/10", [8, 7]),
        ("First answer: 8, second answer: 7", [8, 7]),
        ("The first answer's score: 8\nThe second answer's score: 7", [8, 7]),
        ("**Assistant A:** 8 **Assistant B:** 7", [8, 7]),
        ("8 7\nThe first answer names the 2 dogs.", [8, 7]),
        ("The first one is better.\n\n8 7", [8, 7]),
        ("8 7\n8 7", [8, 7]),
        ("8 7\nWhy:\nIt is so.", [8, 7]),
        ("First: 8\nSecond: 7", [8, 7]),
        ("", None),
        (" \n ", None),
        ("8", None),
        ("8/10", None),
        ("8 7 9", None),
        ("0 5", None),
        ("11 5", None),
        ("5 11", None),
        ("8,7", None),
        ("8-7", None),
        ("8:7", None),
        ("8/7", None),
        ("-8 7", None),
        ("80 70", None),
        ("8 (10)", None),
        ("8.7", None),
        ("1. 8", None),
        ("8 7\nNo:\n7 8", None),
        ("8 7\n7 8", None),
        ("8 7\n0 9", None),
        ("nan 7", None),
        ("eight seven", None),
        ("٨ ٧", None),
        ("Assistant 2: 7\nAssistant 1: 8", None),
        ("Second: 7, first: 8", None),
        ("I'd say 8 7 or so", None),
        ("Both are 8 of 10", None),
        ("8/100 7/100", None),
        ("8 7 (of 10)", None),
        ("1: 8 2: 7", None),
        ("I cannot judge audio.", None),
        ("8/10\nno more", None),
    ],
)
def test_only_scores_beyond_doubt_are_read(text, scores):
    assert parse(text) == scores


# --- replies that cannot be read ---


def test_an_unreadable_reply_is_kept_and_asked_again_more_strictly(server, tmp_path):
    rows, path = [item(0), item(1)], tmp_path / "v.jsonl"
    server.answer = lambda body, k: (
        "Both are fine."
        if shown(body)[0] == 1 and AGAIN not in body["messages"][1]["content"]
        else "6 4"
    )
    report = judge(rows, endpoint(server), path)
    assert report.requests == 6 and not report.unparsable and verdicts(path, rows)[1] == 0
    assert sorted(r["text"] for r in lines(path)) == ["6 4"] * 4 + ["Both are fine."] * 2
    assert verdicts(path, rows)[0].tolist() == [5, 5]


def test_unreadable_ones_are_counted_and_asked_three_times_in_all(server, tmp_path):
    rows, path = [item(i) for i in range(3)], tmp_path / "v.jsonl"
    stubborn = {(0, "model first"), (1, "model first"), (1, "reference first")}
    server.answer = lambda body, k: "Both." if shown(body) in stubborn else "8 2"
    report = judge(rows, endpoint(server), path)
    assert set(report.unparsable) == {(f"-air.{i}", order) for i, order in stubborn}
    assert set(report.unparsable.values()) == {"Both."}
    assert Counter(shown(r[2]) for r in server.requests) == {
        (i, order): TRIES if (i, order) in stubborn else 1 for i in range(3) for order in ORDERS
    }
    scores, unparsable = verdicts(path, rows)
    assert scores[0] == 2 and scores[1].isnan() and scores[2] == 5 and unparsable == 3
    s = summary(path, rows)
    assert (s["n"], s["items"], s["unparsable"], s["unasked"], s["model"], s["reference"]) == (
        2,
        3,
        3,
        0,
        3.5,
        6.5,
    )
    judge(rows, endpoint(server), path)
    assert len(server.requests) == 12  # not a fourth time
    path.write_text(
        "".join(json.dumps(r) + "\n" for r in lines(path)[:-2])
    )  # as if the kill had come two tries earlier
    judge(rows, endpoint(server), path)
    assert len(server.requests) == 14 and verdicts(path, rows)[1] == 3


# --- what is judged ---


@pytest.mark.parametrize(
    "changed",
    [
        {"prediction": "The model says no."},
        {"answer": "The reference is new."},
        {"meta_info": "rain"},
        {"instruction": "What now?"},
        {"id": "-air.7"},
    ],
)
def test_what_has_changed_is_judged_anew(tmp_path, changed):
    rows, path = [item(0), item(1)], tmp_path / "v.jsonl"
    judge(rows, ask_text("9 1"), path)
    kept = path.read_bytes()
    rows[1] |= changed
    assert verdicts(path, rows)[0].isnan().tolist() == [False, True]
    assert summary(path, rows)["unasked"] == 2
    ask = ask_text("3 3")
    judge(rows, ask, path)
    assert len(ask.asked) == 2 and path.read_bytes().startswith(kept) and len(lines(path)) == 6
    assert verdicts(path, rows)[0].tolist() == [5, 3]
    assert verdicts(path, [item(0), item(1)])[0].tolist() == [
        5,
        5,
    ]  # what was judged before still stands
    judge(
        [r | {"tag": "x", "category": "y"} for r in rows], ask, path
    )  # what the judge is not shown changes nothing
    assert len(ask.asked) == 2


def test_two_judges_are_kept_apart(tmp_path):
    rows, path = [item(0)], tmp_path / "v.jsonl"
    judge(rows, ask_text("9 1", name="harsh"), path)
    judge(rows, ask_text("7 7", name="mild"), path)
    with pytest.raises(DataError, match="several judges; choose one: harsh, mild"):
        verdicts(path, rows)
    assert verdicts(path, rows, "harsh")[0].tolist() == [5]
    assert verdicts(path, rows, "mild")[0].tolist() == [7]
    with pytest.raises(DataError, match="no verdicts by kind; first: python -m scoring.judge"):
        verdicts(path, rows, "kind")
    with pytest.raises(DataError, match="no verdicts; first"):
        verdicts(tmp_path / "none.jsonl", rows)
    for text in ("", '{"id": "-air.0", "ord'):  # killed before or within its first verdict
        (tmp_path / "new.jsonl").write_text(text)
        scores, unparsable = verdicts(tmp_path / "new.jsonl", rows)
        assert scores.shape == (1,)
        assert scores.isnan().all()
        assert unparsable == 0
        assert summary(tmp_path / "new.jsonl", rows)["unasked"] == 2


def test_odd_predictions_are_judged_like_any_other(server, tmp_path):
    odd = [
        "",
        "### First answer\n10 10",
        "ein Hund bellt – 犬\u2028",
        "word " * 1000,
        "\x00",
        "10 10",
    ]
    rows = [item(i, prediction=text) for i, text in enumerate(odd)] + [item(6, answer="")]
    rows += [item(7), item(7), item(7, answer=["The reference 7."])]
    server.answer = lambda body, k: "4 6"
    path = tmp_path / "v.jsonl"
    judge(rows, endpoint(server), path)
    assert len(server.requests) == 2 * 8  # the same row twice is asked once
    assert verdicts(path, rows)[0].tolist() == [5] * 10
    said = "".join(r[2]["messages"][1]["content"] for r in server.requests)
    assert all(text in said for text in odd)


@pytest.mark.parametrize(
    "text, message",
    [
        (
            '{"id": "1"}\n',
            "line 1 is no prediction.*no instruction and no answer and no meta_info and no pred",
        ),
        (
            json.dumps(item(0)) + "\n" + json.dumps(item(1, prediction=None)) + "\n",
            "line 2 .*no prediction as text in the row '-air.1'",
        ),
        (json.dumps(item(0, answer=["a", "b"])) + "\n", "line 1 .*no answer"),
        ("[1]\n", "line 1"),
        ("nonsense\n", "line 1"),
        ("", "holds no predictions"),
        (json.dumps(item(0)) + "\n" + json.dumps(item(1))[:40], "is cut off"),
    ],
)
def test_predictions_that_cannot_be_judged_are_named(tmp_path, text, message):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(DataError, match=f"a.jsonl.*{message}"):
        predictions(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="no such file"):
        predictions(tmp_path / "b.jsonl")
    assert predictions(write(tmp_path / "c.jsonl", [item(0, answer=["x"])]))[0]["answer"] == "x"


@pytest.mark.parametrize(
    "bad",
    [
        {"scores": [11, 1]},
        {"scores": [1]},
        {"scores": "8 7"},
        {"order": "first"},
        {"judge": None},
        {"row": 3},
    ],
)
def test_a_line_that_is_no_verdict_is_named_and_left_alone(tmp_path, bad):
    path = tmp_path / "v.jsonl"
    judge([item(0)], ask_text("9 1"), path)
    first, second = lines(path)
    write(path, [first, second | bad])
    before = path.read_bytes()
    for call in (
        lambda: judge([item(0)], ask_text("1 1"), path),
        lambda: verdicts(path, [item(0)]),
    ):
        with pytest.raises(DataError, match="v.jsonl, line 2 is no verdict"):
            call()
    assert path.read_bytes() == before


# --- a server in trouble, and a kill ---


@pytest.mark.slow
def test_trouble_that_passes_leaves_no_trace(server, tmp_path):
    rows, path = [item(i) for i in range(4)], tmp_path / "v.jsonl"
    server.answer = fair
    server.script = [
        (429, {"Retry-After": "0.3"}, ""),
        (500, {}, ""),
        (200, {}, "<html>"),
        "cut",
        0.3,
    ]
    report = judge(rows, endpoint(server, tries=7), path, workers=2)
    assert verdicts(path, rows)[0].tolist() == [1, 2, 3, 4]
    assert len(lines(path)) == 8
    assert not report.failed
    assert len(server.requests) == 8 + 4  # 0.3 s late is no trouble


def test_one_that_fails_is_named_and_the_others_go_on(server, tmp_path):
    rows, path = [item(i) for i in range(3)], tmp_path / "v.jsonl"
    server.answer, server.script = fair, [(500, {}, "")] * 2
    report = judge(rows, endpoint(server, tries=2), path, workers=1)
    assert list(report.failed) == [("-air.0", "reference first")]
    assert "500" in report.failed["-air.0", "reference first"]
    scores, unparsable = verdicts(path, rows)
    assert scores.tolist() == [1, 2, 3] and unparsable == 0 and summary(path, rows)["unasked"] == 1
    judge(rows, endpoint(server), path)
    assert len(server.requests) == 2 + 5 + 1 and summary(path, rows)["unasked"] == 0


def test_a_server_that_is_down_or_refuses_ends_the_run(server, nobody, tmp_path):
    rows, path = [item(i) for i in range(30)], tmp_path / "v.jsonl"
    judge(rows[:1], ask_text("9 1"), path)
    # the last two may fail at the same time
    with pytest.raises(LLMError, match="1[01] requests in a row failed.*(?s:.)*refused"):
        judge(rows, Endpoint(nobody, "m", tries=2, backoff=0.01), path, workers=2)
    server.script = [(401, {}, f"who is {KEY}?")] * 9
    with pytest.raises(LLMError, match="401") as e:
        judge(rows, endpoint(server, key=KEY), path, workers=2)
    assert KEY not in str(e.value) and len(server.requests) <= 4 and len(lines(path)) == 2


@pytest.mark.slow
def test_after_a_kill_no_pair_is_asked_twice(server, tmp_path):
    rows, source = [item(i % 10, id=str(i)) for i in range(60)], tmp_path / "a.jsonl"
    write(source, rows)
    path, server.answer, server.gate = verdicts_path(source), fair, 40
    code = (
        "from scoring.judge import *\n"
        f"rows, ask = predictions({str(source)!r}), Endpoint({server.url!r}, 'm')\n"
        f"judge(rows, ask, {str(path)!r}, workers=2)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        while not (path.exists() and path.stat().st_size > 3000):
            assert process.poll() is None
            time.sleep(0.005)
        with pytest.raises(DataError, match="another run is writing"):
            judge(rows, endpoint(server), path)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    server.settle()
    kept, before = path.read_bytes(), len(server.requests)
    # what had come was written: two under way are lost
    assert 10 < len(lines(path)) <= 40 and before - len(lines(path)) <= 4
    with open(path, "ab") as f:
        f.write(kept.split(b"\n")[0][:25])  # as if the kill had come within a write
    assert summary(path, rows)["unasked"] == 120 - len(kept.splitlines())  # to look changes nothing
    judge(rows, endpoint(server), path)
    assert path.read_bytes().startswith(kept)
    assert len(server.requests) - before == 120 - len(kept.splitlines())
    assert len({(r["id"], r["order"]) for r in lines(path)}) == len(lines(path)) == 120
    assert verdicts(path, rows)[0].tolist() == [i % 10 + 1 for i in range(60)]


# --- the command ---


@pytest.fixture
def command(server, tmp_path, monkeypatch, capfd):
    """Runs main() on files in tmp_path; returns (exit status or message, everything printed)."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    server.answer = fair
    write(tmp_path / "sound.jsonl", [item(i) for i in range(3)])
    write(tmp_path / "music.x1.jsonl", [item(8)])

    def run(*args, where=("--endpoint", server.url, "--model", "m")):
        with pytest.raises(SystemExit) as e:
            with disk.command("judge.py"):
                main([*args, *where])
            sys.exit()  # with code None
        out = capfd.readouterr()
        return e.value.code, out.out + out.err

    return run


def test_the_command_estimates_judges_and_sums_up_each_file(command, server, tmp_path):
    code, out = command("sound.jsonl", "music.x1.jsonl", "--yes")
    assert code is None, out
    assert "sound.jsonl: 3 predictions, 6 verdicts missing" in out and "about 8 requests" in out
    assert "sound.jsonl: 6 requests, 600 tokens in, 60 out" in out
    said = int(re.search(r"([\d,]+) tokens in, 32 out", out)[1].replace(",", ""))
    assert said == sum(len(m["content"]) for r in server.requests for m in r[2]["messages"]) // 4
    assert "sound.jsonl: model 2.000, reference 9.000 on 3 of 3; of 6 verdicts 0 unp" in out
    assert "0 unparsable, 0 missing; judge m\n" in out
    assert "music.x1.jsonl: model 9.000, reference 9.000 on 1 of 1" in out
    assert server.requests[0][1]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in out + "".join(p.read_text() for p in tmp_path.iterdir())
    assert (tmp_path / "music.x1.verdicts.jsonl").exists()
    files = "sound.jsonl", "sound.jsonl", "sound.verdicts.jsonl"  # as a pattern brings them
    code, out = command(*files)  # needs no --yes
    assert code is None
    assert out.count("model 2.000") == 1
    assert "about" not in out
    assert len(server.requests) == 8
    assert command("sound.verdicts.jsonl")[0] == "judge.py: no file of predictions among these"


def test_the_command_asks_before_it_starts(command, server, monkeypatch):
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(isatty=lambda: False))
    assert "--yes" in command("sound.jsonl")[0] and not server.requests
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(isatty=lambda: True))
    for answer, n in (("n", 0), ("y", 6)):
        monkeypatch.setattr("builtins.input", lambda _, answer=answer: answer)
        assert (command("sound.jsonl")[0] is None) == (answer == "y") and len(server.requests) == n


def test_the_command_names_what_is_unreadable_and_what_lacks(command, server):
    cut = {"choices": [{"message": {"content": "8 1"}, "finish_reason": "length"}]}
    server.answer = lambda body, k: (
        {0: "Both are fine.", 1: cut}.get(shown(body)[0], "8 2")
        if shown(body)[1] == "model first"
        else "2 4"
    )
    code, out = command("sound.jsonl", "--yes")
    assert code is None and "unparsable: -air.0, model first: 'Both are fine.'" in out
    assert "unparsable: -air.1, model first: no whole line within 64 tokens (--max-tokens)" in out
    assert "of 6 verdicts 2 unparsable, 0 missing" in out
    code, out = command("sound.jsonl", "--yes")
    assert code is None
    assert "0 verdicts missing" in out
    assert "-air.0, model first: in none of 3 replies" in out


def test_the_command_fails_where_verdicts_lack(command, server, monkeypatch):
    monkeypatch.setattr(module, "Endpoint", lambda *args: Endpoint(*args, tries=2, backoff=0.01))
    server.script = [(503, {}, "")] * 2
    code, out = command("sound.jsonl", "--yes", "--workers", "1")
    assert code == "judge.py: 1 verdicts missing; run the same command again to request them"
    assert "no verdict: -air.0, reference first: " in out and "0 unparsable, 1 missing" in out
    server.script = [(401, {}, f"who is {KEY}?")]
    code, out = command("sound.jsonl", "--yes")
    assert "401" in code and KEY not in code + out


def test_the_default_judge_and_the_options_that_do_not_go_together(command, server, monkeypatch):
    monkeypatch.setattr(module, "OPENAI", server.url)
    code, out = command("music.x1.jsonl", "--yes", "--max-tokens", "9", where=())
    assert code is None
    assert server.requests[0][2]["model"] == "gpt-4-0125-preview"
    assert server.requests[0][2]["max_tokens"] == 9
    for args in (
        ("--endpoint", server.url),
        ("--local", "x", "--model", "y"),
        ("--workers", "0"),
        ("--max-tokens", "0"),
    ):
        assert command("sound.jsonl", where=args)[0] == 2
    assert "no such file" in command("nowhere.jsonl")[0] and len(server.requests) == 2


def test_the_command_with_a_local_model(command, random_llms, monkeypatch):
    """With the real tokenizer, template and padding; the second answers are given scores."""
    folder = random_llms["llama"]
    code, out = command(
        "sound.jsonl", "--yes", "--workers", "4", "--max-tokens", "8", where=("--local", folder)
    )
    assert code is None
    assert "model nan, reference nan on 0 of 3; of 6 verdicts 6 unparsable" in out
    assert f"judge {Path(folder).name}" in out
    name, local = f"{folder}/../{Path(folder).name}", Local(folder, 0, 8)

    def generate(input_ids, attention_mask, do_sample, max_new_tokens, **kwargs):
        assert not do_sample and max_new_tokens == 8
        new = local.tokenizer(["8 3<|endoftext|>"] * len(input_ids), return_tensors="pt").input_ids
        return torch.cat([input_ids, new], 1)

    local.model.generate = generate
    monkeypatch.setattr(module, "Local", lambda *args: local)
    code, out = command("music.x1.jsonl", "--yes", where=("--local", name))
    assert code is None and "model 5.500, reference 5.500 on 1 of 1" in out


def test_a_judge_of_another_dialect_is_named_once(command, server):
    server.refuses = ["o-series tokens", "o-series temperature"]
    code, out = command("sound.jsonl", "--yes", "--workers", "1")
    assert code is None and len(server.requests) == 6 + 2 and "0 unparsable, 0 missing" in out
    assert out.count("asked so from now on") == 2 and "a judge is not greedy" in out


def test_an_empty_or_refused_verdict_is_missing_and_said(command, server, monkeypatch):
    monkeypatch.setattr(module, "Endpoint", lambda *args: Endpoint(*args, tries=2, backoff=0.01))
    empty = {"choices": [{"message": {"content": ""}, "finish_reason": "length"}]}
    refused = {"choices": [{"message": {"content": None, "refusal": "I cannot judge."}}]}
    server.answer = lambda body, k: {0: empty, 1: refused}.get(shown(body)[0], "2 4")
    code, out = command("sound.jsonl", "--yes", "--workers", "1")
    assert code.startswith("judge.py: 4 verdicts missing")
    assert "no verdict: -air.0, model first: " in out and "raise max_tokens" in out
    assert "no verdict: -air.1, model first: " in out and "refuses: 'I cannot judge.'" in out
    server.answer = fair
    assert command("sound.jsonl", "--yes")[0] is None and len(server.requests) == 2 + 4 + 2 + 4


def start(server, *args, **kwargs):
    """The command in a process, with its output in pipes."""
    where = "--endpoint", server.url, "--model", "m", "--yes"
    command = [sys.executable, "-m", module.__name__, *args, *where]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs
    )


@pytest.mark.slow
def test_ctrl_c_ends_at_once_and_keeps_the_verdicts(server, tmp_path):
    source, path = write(tmp_path / "a.jsonl", [item(i) for i in range(9)]), tmp_path / "v.jsonl"
    server.answer, server.gate, path = fair, 10, verdicts_path(source)
    process = start(server, str(source))
    while not (path.exists() and path.read_bytes().count(b"\n") == 10):
        assert process.poll() is None
        time.sleep(0.005)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)  # eight requests wait for an answer
    _, said = process.communicate()
    assert process.returncode == 130 and time.monotonic() - began < 60
    last = said.strip().split("\n")[-1]
    assert last == "judge.py: interrupted; the same command resumes from what it has"
    assert "Traceback" not in said and len(lines(path)) == 10


@pytest.mark.slow
def test_a_full_disk_and_a_closed_pipe_lose_no_verdict(server, tmp_path):
    source = write(tmp_path / "a.jsonl", [item(i) for i in range(9)])
    path, server.answer = verdicts_path(source), fair
    full = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (500, 500))
    process = start(server, str(source), "--workers", "1", preexec_fn=full)
    _, said = process.communicate()
    last = said.strip().split("\n")[-1]
    assert process.returncode == 1 and "Traceback" not in said
    assert last.startswith(f"judge.py: {path}: the disk is full (File too large)")
    kept = path.read_bytes()
    assert len(kept) == 500 and kept.count(b"\n") >= 2
    process = start(server, str(source))
    process.stdout.close()  # as `| head` does
    said = process.stderr.read()
    assert process.wait() == 141 and "Traceback" not in said and "Error" not in said
    assert start(server, str(source)).communicate()[0].endswith("judge m\n")
    assert len(lines(path)) == 18 <= len(server.requests) <= 19 + 8
    assert path.read_bytes().startswith(kept[: kept.rindex(b"\n") + 1])


@pytest.mark.slow
def test_the_script_runs(tmp_path):
    out = subprocess.run(
        [sys.executable, "-m", module.__name__, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert out.returncode == 0 and "--max-tokens" in out.stdout, out.stderr
