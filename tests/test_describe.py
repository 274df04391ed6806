"""shards.describe against a real HTTP server, a real kill, and a real (tiny, random) model."""

import io
import json
import re
import signal
import subprocess
import sys
import threading
import time
import types
from collections import Counter
from pathlib import Path

import pytest
from servers import KEY

import disk
import shards.describe as module
from disk import DataError
from scoring.llm import Endpoint, LLMError, Local, Unanswered
from shards.describe import EXAMPLES, PER_CALL, describe, estimate, main, prompt
from shards.descriptions import fault, read, unmarked, words

DOG, RAIN, CAT = ("dog",), ("rain", "thunder"), ("cat",)

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow  # together: a server and its waits


@pytest.fixture(autouse=True)
def writer(server):
    """The server's model writes n new descriptions; server.good(labels, n, request) replaces it."""

    def answer(body, k):
        labels, n = re.search(
            r"Labels: (.*)\nWrite (\d+)", body["messages"][-1]["content"].split("\n\n")[-1]
        ).groups()
        return server.good(labels.split(", "), int(n), k)

    server.good = lambda labels, n, k: "\n".join(
        f"The {' and '.join(labels)} is heard {k} times and {i} more." for i in range(n)
    )
    server.answer = answer


def endpoint(server, **kwargs):
    return Endpoint(server.url, "m", **{"backoff": 0.02, "tries": 4, "timeout": None, **kwargs})


def rows(path):
    """The file's lines; fails on half a line, and on two descriptions that are the same."""
    data = Path(path).read_bytes()
    assert data.endswith(b"\n") or not data
    found = [json.loads(line) for line in data.decode().split("\n") if line]
    assert len({" ".join(words(r["text"])) for r in found}) == len(found)
    return found


def counts(path):
    return Counter(tuple(r["labels"]) for r in rows(path))


def ask_text(texts):
    """An ask() that gives these answers in turn, the last one for ever."""
    texts = list(texts)
    return lambda messages: (texts.pop(0) if len(texts) > 1 else texts[0], {})


# --- a server that answers well -----------------------------------------------------------


def test_the_plan_is_met_exactly_in_clean_lines(server, tmp_path):
    plan, path = Counter({DOG: 45, RAIN: 3, CAT: 1}), tmp_path / "d" / "farm.jsonl"
    report = describe(plan, endpoint(server, key=KEY), path, "m", workers=3)
    assert counts(path) == plan and not report.missing and not report.given_up
    assert report.requests == len(server.requests) == 3 + 1 + 1  # 20 + 20 + 5, 3, 1
    assert report.usage == {"prompt_tokens": 500, "completion_tokens": 50}
    url, headers, body = server.requests[0]
    assert (
        url == "/v1/chat/completions"
        and headers["Authorization"] == f"Bearer {KEY}"
        and body["model"] == "m"
    )
    assert (body["temperature"], body["max_tokens"]) == (1.0, 1200)
    first = path.read_text().splitlines()[0]
    assert re.fullmatch(
        r'\{"labels": \["\w+"(, "\w+")?\], "text": "The .*\.", "model": "m"\}', first
    )
    describe(plan, endpoint(server), path, "m")
    assert len(server.requests) == 5  # a finished file asks for nothing


def test_requests_run_at_once_and_no_more_than_workers(server, tmp_path):
    together, good = threading.Barrier(3), server.good

    def answer(labels, n, k):
        together.wait()  # no answer before three requests wait for theirs
        return good(labels, n, k)

    server.good = answer
    describe(
        Counter({(f"label{i}",): 2 for i in range(9)}),
        endpoint(server),
        tmp_path / "a.jsonl",
        "m",
        workers=3,
    )
    assert server.most == 3
    server.most = 0
    describe(Counter({DOG: 3 * PER_CALL}), endpoint(server), tmp_path / "b.jsonl", "m", workers=3)
    assert server.most == 3  # one label set alone fills the workers too


def test_odd_characters_neither_break_the_file_nor_the_run(server, tmp_path):
    server.good = lambda labels, n, k: (
        "A dog\u2028barks \ud83d in a café.\r\nA dog\x00 growls „so“ 犬 near a wall."
    )
    describe(Counter({DOG: 2}), endpoint(server), tmp_path / "a.jsonl", "m")
    assert [r["text"] for r in rows(tmp_path / "a.jsonl")] == [
        "A dog barks in a café.",
        "A dog\x00 growls „so“ 犬 near a wall.",
    ]


def test_what_comes_too_much_is_dropped_and_counted(server, tmp_path):
    server.good = lambda labels, n, k: "\n".join(f"A dog barks {i} times." for i in range(n + 5))
    report = describe(Counter({DOG: 4}), endpoint(server), tmp_path / "a.jsonl", "m")
    assert counts(tmp_path / "a.jsonl") == {DOG: 4} and report.dropped == {"more than wanted": 5}


# --- one that does not --------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble",
    [(500, {}, "oops"), (200, {}, "<html>gateway</html>"), "cut"],
    ids=["500", "html", "cut"],
)
def test_trouble_that_passes_is_no_trouble(server, tmp_path, trouble):
    server.script = [trouble]
    report = describe(Counter({DOG: 2}), endpoint(server), tmp_path / "a.jsonl", "m")
    assert counts(tmp_path / "a.jsonl") == {DOG: 2} and not report.given_up
    assert len(server.requests) == 2 and report.requests == 1


@pytest.mark.parametrize(
    "status, body",
    [
        (400, "bad"),
        (401, f"wrong key {KEY}"),
        (404, "no such model"),
        (429, '{"code": "insufficient_quota"}'),
    ],
)
def test_a_refusal_stops_at_once_and_keeps_the_key_secret(server, tmp_path, status, body):
    server.script = [(status, {}, body)] * 50
    with pytest.raises(LLMError) as e:
        describe(
            Counter({(f"label{i}",): 1 for i in range(40)}),
            endpoint(server, key=KEY),
            tmp_path / "a.jsonl",
            "m",
            workers=2,
        )
    assert not isinstance(e.value, Unanswered) and len(server.requests) <= 6
    said = str(e.value)
    assert (
        server.url in said and str(status) in said and "OPENAI_API_KEY" in said and KEY not in said
    )


def test_one_label_set_that_fails_is_named_and_the_others_go_on(server, tmp_path):
    server.script = [(500, {}, "")] * 2
    report = describe(
        Counter({DOG: 1, CAT: 2, RAIN: 2}),
        endpoint(server, tries=2),
        tmp_path / "a.jsonl",
        "m",
        workers=1,
    )
    assert counts(tmp_path / "a.jsonl") == {CAT: 2, RAIN: 2} == Counter({CAT: 2, RAIN: 2})
    assert (
        report.missing == {DOG: 1}
        and list(report.given_up) == [DOG]
        and "500" in report.given_up[DOG]
    )


def test_a_closed_port_ends_the_run_and_keeps_what_it_has(nobody, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"labels": ["dog"], "text": "A dog barks far away.", "model": "m"}\n')
    asked = []

    closed = Endpoint(nobody, "m", tries=2, backoff=0.01)

    def ask(messages):
        asked.append(messages)
        return closed(messages)

    with pytest.raises(
        LLMError, match="1[01] requests in a row failed.*(?s:.)*refused(?s:.)*keeps what it has"
    ):
        describe(
            Counter({DOG: 2} | {(f"label{i}",): 1 for i in range(60)}), ask, path, "m", workers=2
        )
    assert len(asked) <= 13 and counts(path) == {DOG: 1}
    with pytest.raises(
        LLMError, match="1 requests in a row failed"
    ):  # also where there are fewer than ten to fail
        describe(Counter({CAT: 1}), ask, path, "m")


# --- answers that bring nothing -----------------------------------------------------------


def test_duplicates_for_ever_give_the_label_set_up(server, tmp_path):
    server.good = lambda labels, n, k: (
        f"A {labels[0]} calls once.\nA {labels[0].upper()} calls... once!"
    )
    report = describe(
        Counter({DOG: 50, CAT: 1}), endpoint(server), tmp_path / "a.jsonl", "m", workers=1
    )
    assert counts(tmp_path / "a.jsonl") == {DOG: 1, CAT: 1} and report.missing == {DOG: 49}
    assert "nothing new in 3 calls" in report.given_up[DOG] and CAT not in report.given_up
    assert (
        len(server.requests) == 5 and report.dropped["duplicate"] == 8
    )  # CAT's second line is a duplicate too


def test_a_new_description_now_and_then_is_progress(tmp_path):
    same, answers = "A dog barks.", [f"A dog barks {i} times." for i in range(4)]
    ask = ask_text([x for a in answers for x in (a, same, same)] + [same])
    report = describe(Counter({DOG: 5}), ask, tmp_path / "a.jsonl", "m", workers=1)
    assert counts(tmp_path / "a.jsonl") == {DOG: 5} and not report.given_up


def test_later_calls_say_so_and_differ_and_echoes_of_the_prompt_do_not_count(server, tmp_path):
    echo = EXAMPLES[DOG].split("\n")[0]
    server.good = lambda labels, n, k: (
        f"{echo}\nA {labels[0]} calls {k} times." if k != 2 else "None."
    )
    report = describe(Counter({CAT: 5}), endpoint(server), tmp_path / "a.jsonl", "m", workers=1)
    asked = [r[2]["messages"][1]["content"] for r in server.requests]
    assert (
        len(set(asked)) == len(asked) == 6
        and "already" not in asked[0]
        and all("write others" in a for a in asked[1:])
    )
    assert echo in asked[0] and report.dropped == {"duplicate": 5, "too short": 1}
    assert echo not in prompt(DOG, 3)[1]["content"]  # an example for these labels would be copied


# --- stopping and going on ----------------------------------------------------------------


@pytest.mark.slow
def test_a_kill_loses_nothing_that_was_written(server, tmp_path):
    server.gate, path = 10, tmp_path / "a.jsonl"
    plan = Counter({DOG: 130, RAIN: 90, CAT: 70})
    code = (
        "from collections import Counter\n"
        "from scoring.llm import Endpoint\nfrom shards.describe import describe\n"
        f"describe(Counter({dict(plan)!r}), Endpoint({server.url!r}, 'm'), {str(path)!r}, 'm', 2)"
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
            describe(plan, endpoint(server), path, "m")
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    server.settle()
    kept = path.read_bytes()
    assert 0 < counts(path).total() < plan.total()
    with open(path, "ab") as f:
        f.write(kept.split(b"\n")[0][:25])  # as if the kill had come within a write
    describe(plan, endpoint(server), path, "m")
    assert counts(path) == plan and path.read_bytes().startswith(kept)


def test_a_file_that_an_editor_saved_keeps_its_last_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"labels": ["dog"], "text": "A dog barks – far away.", "model": "m"}')
    assert read(path) == {DOG: 1} and path.read_text().endswith("}")  # to look changes nothing
    describe(
        Counter({DOG: 2}), ask_text(["A dog barks - FAR away!\nA dog growls at home."]), path, "m"
    )
    assert [r["text"] for r in rows(path)] == ["A dog barks – far away.", "A dog growls at home."]


@pytest.mark.parametrize(
    "line", ["half a li", "[1]", '{"labels": ["dog"]}', '{"labels": ["dog"], "text": 3}', ""]
)
def test_a_line_that_is_no_description_is_named_and_left_alone(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"labels": ["dog"], "text": "A dog barks.", "model": "m"}}\n{line}\n')
    before = path.read_bytes()
    with pytest.raises(DataError, match="a.jsonl, line 2 is no description"):
        describe(Counter({DOG: 2}), ask_text(["A dog growls at home."]), path, "m")
    assert path.read_bytes() == before


# --- the filter ---------------------------------------------------------------------------

OTHERS = {"dog", "cat", "rain", "thunder", "flash flood", "sea waves", "crying baby"}


@pytest.mark.parametrize(
    "text, labels, why",
    [
        ("A dog barks twice in the distance.", DOG, None),
        ("Dogs bark.", DOG, "too short"),
        ("Three dogs bark.", DOG, None),
        ("A dog " + "barks and " * 18 + "growls.", DOG, None),
        ("A dog " + "barks and " * 19 + "growls.", DOG, "too long"),
        ("I'm sorry, but I cannot describe a dog.", DOG, "refusal"),
        ("I’m sorry, I can’t do that.", DOG, "refusal"),
        ("As an AI, I have never heard a dog.", DOG, "refusal"),
        ("A man mutters I'm sorry to his barking dog.", DOG, None),
        ("I cannot provide audio of a dog.", DOG, "refusal"),
        ("Here are 20 varied lines about a dog", DOG, "remark"),
        ("Sure, a dog it is", DOG, "remark"),
        ("Dog sounds at home:", DOG, "remark"),
        ("Let me know if you want more dogs.", DOG, "remark"),
        ("A sure-footed dog barks here and there.", DOG, None),
        ("The sound of a dog.", DOG, "label only"),
        ("Rain and thunder, thunder.", RAIN, "label only"),
        ("The sound of rain falling.", RAIN, None),
        ("A brown dog barks loudly.", DOG, "visual"),
        ("You can see a dog barking.", DOG, "visual"),
        ("A bright, barking dog at home.", DOG, "visual"),
        ("A dog barks by the sea, unseeing.", DOG, None),
        ("A dog barks through white noise on a phone.", DOG, None),
        ("A flash of light, then thunder and rain.", RAIN, "visual"),
        ("A flash flood roars past as rain falls.", RAIN, None),
        ("A black capped chickadee sings at dawn.", ("black capped chickadee",), None),
        ("The blues shuffle rolls on slowly.", ("blues",), None),
        ("A cat meows at the door.", DOG, "wrong label"),
        ("A cat hisses while dogs bark.", DOG, None),
        ("A hound howls at dawn.", DOG, None),
        ("The cattle low at dawn.", DOG, None),
        ("Someone sneezes into a scarf near a cat.", ("sneezing",), None),
        ("A baby sobs while the cat purrs.", ("crying baby",), None),
    ],
)
def test_the_filter(text, labels, why):
    assert fault(text, labels, OTHERS) == why


@pytest.mark.parametrize(
    "line, text",
    [
        ("1. A dog barks.", "A dog barks."),
        ("12) A dog barks.", "A dog barks."),
        ("- A dog barks.", "A dog barks."),
        ("• **A dog** barks.", "A dog barks."),
        ('3. "A dog barks."', "A dog barks."),
        ('  "A dog barks.",', "A dog barks."),
        ("“A dog barks.”", "A dog barks."),
        ("'A dog's bark.'", "A dog's bark."),
        ("Dog: A dog barks.", "A dog barks."),
        ("Labels: dog", "dog"),
        ("```json", ""),
        ("[", ""),
        ("   ", ""),
        ("A  dog\tbarks.\r", "A dog barks."),
        ("3 dogs bark.", "3 dogs bark."),
        ("2.5 seconds of barking.", "2.5 seconds of barking."),
        ("A man says: go!", "A man says: go!"),
        ('"Stop!" a man shouts, then "go"', '"Stop!" a man shouts, then "go"'),
        ('A man shouts "stop"', 'A man shouts "stop"'),
    ],
)
def test_lines_are_cleaned(line, text):
    assert unmarked(line, DOG) == text


def test_our_own_examples_pass_our_own_filter():
    everything = {label for labels in EXAMPLES for label in labels}
    for labels, shown in EXAMPLES.items():
        assert all(
            fault(text, labels, everything) is None and unmarked(text, labels) == text
            for text in shown.split("\n")
        )


def test_dropped_lines_are_counted_by_reason_and_a_cut_answer_loses_its_last_line(server, tmp_path):
    text = (
        "<think>A dog might growl.\nHm.</think>\nHere are 3 of them:\n"
        "1. A dog barks near a wall.\n2. A red dog barks.\n3. A dog whi"
    )
    body = json.dumps(
        {"choices": [{"message": {"content": text}, "finish_reason": "length"}], "usage": None}
    )
    server.script = [(200, {}, body)]
    report = describe(Counter({DOG: 1}), endpoint(server), tmp_path / "a.jsonl", "m")
    assert [r["text"] for r in rows(tmp_path / "a.jsonl")] == ["A dog barks near a wall."]
    assert report.dropped == {"remark": 1, "visual": 1} and not report.missing


# --- a local model ------------------------------------------------------------------------


def test_a_random_model_brings_nothing_and_ends(random_llms, tmp_path):
    report = describe(
        Counter({DOG: 3, RAIN: 2}),
        Local(random_llms["llama"], max_tokens=24),
        tmp_path / "a.jsonl",
        "m",
        workers=2,
    )
    assert report.missing == {DOG: 3, RAIN: 2} and all(
        "nothing new in 3" in why for why in report.given_up.values()
    )
    assert (
        report.requests == 6
        and report.usage["prompt_tokens"] > 1000
        and counts(tmp_path / "a.jsonl") == {}
    )


def test_a_local_model_that_writes_well(random_llms, tmp_path):
    """The real tokenizer, template and padding; only the sampled tokens are replaced."""
    import torch

    local, seen = Local(random_llms["llama"]), []

    def generate(input_ids, attention_mask, **kwargs):
        prompts = [
            local.tokenizer.decode(row[mask.bool()]) for row, mask in zip(input_ids, attention_mask)
        ]
        seen.append(len(prompts))
        assert all(p.startswith("user: You write") and p.endswith("assistant: ") for p in prompts)
        texts = []
        for p in prompts:
            labels, n = re.findall(r"Labels: (.*)\nWrite (\d+)", p)[-1]
            texts.append(
                "\n".join(f"The {labels} sounds {len(seen)} and {i} times." for i in range(int(n)))
                + "<|endoftext|>"
            )
        new = local.tokenizer(
            texts, return_tensors="pt", padding=True, padding_side="right"
        ).input_ids
        return torch.cat([input_ids, new], 1)

    local.model.generate = generate
    plan = Counter({DOG: 25, RAIN: 2, CAT: 1})
    report = describe(plan, local, tmp_path / "a.jsonl", "m", workers=2)
    assert counts(tmp_path / "a.jsonl") == plan and seen == [2, 2] and not report.dropped


# --- the command --------------------------------------------------------------------------


@pytest.fixture
def command(server, tmp_path, monkeypatch, capfd):
    """Runs main() on two datasets, farm and sky; returns (status or message, all it printed)."""
    plans = {"farm": Counter({DOG: 30, CAT: 1}), "sky": Counter({RAIN: 2})}

    def label_sets(name, root):
        assert root == str(tmp_path)
        return plans[name]

    monkeypatch.setattr(module, "label_sets", label_sets)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def run(*args):
        with pytest.raises(SystemExit) as e:
            own = {"--local", "--templates"} & set(args)
            where = [] if own else ["--endpoint", server.url, "--model", "m"]
            check = [] if "--clap" in args else ["--no-check"]
            with disk.command("describe.py"):
                main([*args, "--root", str(tmp_path), *where, *check])
            sys.exit()  # with code None
        out = capfd.readouterr()
        return e.value.code, out.out + out.err

    return run


def test_the_command_estimates_describes_and_keeps_the_key_secret(command, server, tmp_path):
    code, out = command(
        "farm", "sky", "--yes", "--price-in", "1000", "--price-out", "2000", "--workers", "2"
    )
    assert code is None, out
    folder = tmp_path / "descriptions"
    assert counts(folder / "farm.jsonl") == {DOG: 30, CAT: 1} and counts(folder / "sky.jsonl") == {
        RAIN: 2
    }
    assert (
        "farm: 31 descriptions of 2 label sets, 31 to be written" in out
        and "about 4 requests" in out
    )
    n = int(re.search(r"([\d,]+) tokens in, 660 out, \$", out)[1].replace(",", ""))
    sent = sum(len(m["content"]) for r in server.requests for m in r[2]["messages"])
    assert 0.8 < n / (sent / 4) < 1.1 and f"${(n * 1000 + 660 * 2000) / 1e6:,.2f}" in out
    assert (
        "farm.jsonl: 31 of 31" in out
        and "3 requests, 300 tokens in, 30 out, $0.36" in out
        and "dropped: none" in out
    )
    assert server.requests[0][1]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in out + "".join(p.read_text() for p in folder.iterdir())
    assert (
        command("farm")[1].endswith("nothing to do\n") and len(server.requests) == 4
    )  # and needs no --yes


def test_the_command_asks_before_it_starts(command, server, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    code, out = command("sky")
    assert (
        "--yes" in code
        and "about 1 requests" in out
        and not server.requests
        and not (tmp_path / "descriptions").exists()
    )
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(isatty=lambda: True))
    for answer, n in (("n", 0), ("", 0), ("y", 1)):
        monkeypatch.setattr("builtins.input", lambda _, answer=answer: answer)
        code, _ = command("sky")
        assert (code is None) == (answer == "y") and len(server.requests) == n


def test_per_label_and_limit(command, tmp_path):
    assert command("farm", "--yes", "--limit", "1", "--per-label", "2")[0] is None
    assert counts(tmp_path / "descriptions" / "farm.jsonl") == {DOG: 2}


def test_a_model_that_thinks_needs_more_tokens(command, server):
    server.refuses = ["o-series tokens"]
    empty = {"choices": [{"message": {"content": ""}, "finish_reason": "length"}]}
    good = server.answer
    server.answer = lambda body, k: empty if body["max_completion_tokens"] < 5000 else good(body, k)
    module_endpoint = module.Endpoint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Endpoint", lambda *args: module_endpoint(*args, backoff=0.01))
        code, out = command("sky", "--yes")
    assert "1 requests in a row failed" in code and "raise max_tokens" in code
    assert "\n" not in code and out.count("takes max_completion_tokens") == 1
    assert command("sky", "--yes", "--max-tokens", "5000")[0] is None
    assert command("sky", "--max-tokens", "0")[0] == 2


@pytest.mark.parametrize(
    "error, code, message",
    [
        (KeyboardInterrupt(), 130, "describe.py: interrupted; the same command resumes"),
        (OSError(28, "No space left on device", "a.jsonl"), None, "a.jsonl: the disk is full"),
    ],
)
def test_an_end_midway_is_one_line_and_goes_on(
    command, tmp_path, monkeypatch, error, code, message
):
    def broken(self, labels, n, answer, take=module.Progress.take):
        if self.report.requests:
            raise error
        return take(self, labels, n, answer)

    with monkeypatch.context() as patch:
        patch.setattr(module.Progress, "take", broken)
        found, out = command("farm", "--yes", "--workers", "1")
    assert message in f"{found} {out}" and (code is None or found == code)
    assert counts(tmp_path / "descriptions" / "farm.jsonl") == {DOG: 20}
    assert command("farm", "--yes")[0] is None
    assert counts(tmp_path / "descriptions" / "farm.jsonl") == {DOG: 30, CAT: 1}


def test_labels_with_odd_characters_are_found_again(tmp_path):
    path, odd = tmp_path / "a.jsonl", ("dog\u2028pack \udc80",)
    describe(Counter({odd: 1}), ask_text(["A dog pack growls at home."]), path, "m")
    assert read(path) == {odd: 1} and counts(path) == {odd: 1}


def test_the_command_says_what_is_missing_and_fails(command, server):
    server.good = lambda labels, n, k: f"A {labels[0]} calls once.\nA pink {labels[0]} calls."
    code, out = command("farm", "--yes", "--workers", "1")
    assert "29 descriptions missing" in code and "dropped: 5 visual" in out
    assert "given up: dog (29 missing): nothing new in 3 calls" in out
    server.script = [(401, {}, f"who is {KEY}?")]
    code, out = command("sky", "--yes")
    assert "401" in code and KEY not in code + out
    assert (
        "--local takes neither" in command("sky", "--local", "x", "--model", "y")[1]
        and command("sky", "--workers", "0")[0] == 2
    )


def test_the_command_with_a_local_model(command, random_llms, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_TOKENS", 16)
    code, out = command("sky", "--yes", "--local", random_llms["llama"])
    assert "2 descriptions missing" in code and "given up: rain, thunder (2 missing)" in out
    assert "nowhere" in command("sky", "--yes", "--local", str(tmp_path / "nowhere"))[0]


def test_the_command_checks_with_a_clap_and_keeps_what_is_there(command, server, tmp_path):
    path = tmp_path / "descriptions" / "farm.jsonl"
    path.parent.mkdir()
    path.write_text('{"labels": ["dog"], "text": "A fox gazes at the moon.", "model": "m"}\n')
    server.good = lambda labels, n, k: f"A dog calls once.\nA cat calls a cat and a dog {k} times."
    code, out = command("farm", "--yes", "--workers", "1", "--clap", "topics:Topics", "--limit=1")
    assert [r["text"] for r in rows(path)] == ["A fox gazes at the moon.", "A dog calls once."]
    assert "28 descriptions missing" in code
    assert "dropped: 4 nearer to another label, 3 duplicate" in out


def test_with_a_limit_all_labels_of_the_dataset_are_compared(command, server, tmp_path):
    server.good = lambda labels, n, k: f"A dog meets cat after cat {k} times."
    arguments = ("farm", "--yes", "--workers", "1", "--limit", "1", "--per-label", "1")
    code, out = command(*arguments, "--clap", "topics:Topics")
    assert "1 descriptions missing" in code and "dropped: 3 nearer to another label" in out
    assert command(*arguments)[0] is None  # --no-check
    assert [r["text"] for r in rows(tmp_path / "descriptions" / "farm.jsonl")] == [
        "A dog meets cat after cat 3 times."
    ]


@pytest.mark.parametrize("name", ["no_such_pair:Pair", "./nowhere", "topics:Nothing"])
def test_a_clap_that_cannot_be_loaded_costs_no_request(command, server, tmp_path, name):
    code, out = command("farm", "--yes", "--clap", name)
    assert name in code and "--clap" in code and "--no-check" in code and "\n" not in code
    assert not server.requests and not (tmp_path / "descriptions").exists()
    code, out = command("sky", "--templates", "--clap", name)
    assert "--no-check" in code and not (tmp_path / "descriptions").exists()


def test_the_clap_is_loaded_once_for_all_datasets_and_not_for_nothing(command, monkeypatch):
    import topics

    made, real = [], topics.Topics

    def counting():
        made.append(real())
        return made[-1]

    monkeypatch.setattr(topics, "Topics", counting)
    run = ("farm", "sky", "--yes", "--per-label", "2", "--clap", "topics:Topics")
    assert command(*run)[0] is None and len(made) == 1
    labels = [[f"sound of {label}" for label in sorted(names)] for names in (DOG + CAT, RAIN)]
    assert [calls for calls in made[0].calls if "sound of" in calls[0]] == labels
    assert command(*run)[1].endswith("nothing to do\n") and len(made) == 1


def test_the_command_by_templates(command, server, tmp_path):
    code, out = command("farm", "sky", "--templates", "--clap", "topics:Choosy")
    folder = tmp_path / "descriptions"
    assert code is None and not server.requests and "requests" not in out
    assert counts(folder / "farm.jsonl") == {DOG: 14, CAT: 1}
    assert counts(folder / "sky.jsonl") == {RAIN: 2}
    assert f"{folder / 'farm.jsonl'}: 15 of 31; 16 missing, a set of labels gets 16 at most" in out
    assert "dropped: 2 nearer to another label" in out and "dropped: none" in out
    before = (folder / "farm.jsonl").read_bytes()
    assert command("farm", "--templates", "--per-label", "16")[0] is None
    assert counts(folder / "farm.jsonl") == {DOG: 16, CAT: 16}
    assert (folder / "farm.jsonl").read_bytes().startswith(before)
    assert command("sky", "--templates")[1].endswith("nothing to do\n")


@pytest.mark.parametrize("option", ["--local", "--endpoint", "--model"])
def test_templates_need_no_model(command, option):
    code, out = command("farm", "--templates", option, "x")
    assert code == 2 and "--templates takes none of --local, --endpoint and --model" in out


@pytest.mark.slow
def test_the_script_finds_the_project_from_anywhere(tmp_path):
    out = subprocess.run(
        [sys.executable, "-m", module.__name__, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert out.returncode == 0 and "--per-label" in out.stdout, out.stderr
    out = subprocess.run(
        [sys.executable, "-m", module.__name__, "esc50", "--root", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert out.returncode == 1 and out.stderr.startswith("describe.py: "), out.stderr
    assert out.stderr.count("\n") == 1


def test_the_estimate_counts_only_what_is_missing():
    plan = Counter({DOG: 45, CAT: 20})
    whole, part = estimate(plan, Counter()), estimate(plan, Counter({DOG: 40, CAT: 25}))
    assert (
        whole["requests"] == 4
        and whole["out"] == 65 * 20
        and part["requests"] == 1
        and part["out"] == 100
    )
    assert 3.5 < whole["in"] / part["in"] < 4.5
