import csv
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from stand_in import MEAN, PREDS, REFERENCES, ROOT, SCORES, SENT, TARGETS, StandIn
from test_captions import double
from torchmetrics import MetricCollection

from scoring.captions import CiderD, cider_d
from scoring.spice import Spice, SpiceMissing, Spider, java as machine, on_one_rank, run_spice, runs
from scoring.spice.cache import Cache


def filled(metric, preds=PREDS, target=TARGETS):
    metric.update(preds, target)
    return metric


# --- scores -----------------------------------------------------------------------------------


def test_spice_reads_the_printed_mean(java):
    metric = Spice()
    for i in range(0, 12, 4):
        metric.update(PREDS[i : i + 4], TARGETS[i : i + 4])
    assert metric.compute().dtype == torch.float64
    assert metric.compute().item() == pytest.approx(round(MEAN, 3), abs=1e-12)
    assert metric.per_item(PREDS, TARGETS) is None
    (run,) = java.runs()  # one Java for all three
    path = run["args"][run["args"].index("-cp") + 1]
    assert path.split(":") == [f"{java.home}/spice-1.0.jar", f"{java.home}/lib/*"]
    assert "-out" not in run["args"] and run["rows"] == 12
    assert pickle.loads(pickle.dumps(metric)).compute().item() == metric.compute().item()


@pytest.mark.parametrize("version", ["1.8.0_292", "11.0.2", "21"])
def test_spice_reads_exact_scores_where_there_is_an_engine(java, version):
    java.version(version, engine=version == "21")
    metric = filled(Spice(home=str(java.home), memory="2G"))
    assert metric.compute().item() == pytest.approx(MEAN, abs=1e-12)
    torch.testing.assert_close(metric.per_item(PREDS, TARGETS), double(SCORES), rtol=0, atol=1e-12)
    (run,) = java.runs()
    assert run["args"][0] == "-Xmx2G" and "-out" in run["args"]
    assert run["rows"] == 10  # rows of the same tokens are sent once


def test_a_java_refuses_rows_that_are_not_the_fields_tokens(java):
    java.version("21", engine=True)
    known = dict(java.known)
    java.known = {key.replace("barks loudly", "Barks loudly"): known[key] for key in known}
    java.knows({})
    with pytest.raises(RuntimeError, match="never seen: a dog barks loudly"):
        filled(Spice(), PREDS[:2], TARGETS[:2]).compute()


@pytest.mark.parametrize("version", ["17", "11.0.2"])
def test_what_has_no_token_scores_zero_unsent(java, version):
    java.version(version)
    metric = Spice()
    preds = ["", PREDS[0], "...", PREDS[0], "\0\x01", "\ud83d", "🔊", PREDS[0]]
    target = [REFERENCES] * 7 + [["", "..."]]
    metric.update(preds, target)
    assert metric.compute().item() == 2 * 0.5 / 8
    if version != "17":
        assert metric.per_item(preds, target).tolist() == [0, 0.5, 0, 0.5, 0, 0, 0, 0]
    metric.reset()
    metric.update(["", "-"], [["a"]] * 2)
    assert metric.compute().item() == 0
    assert metric.per_item(["", "-"], [["a"]] * 2).tolist() == [0, 0]
    assert len(java.runs()) == 1


def test_an_empty_reference_is_sent_as_it_is(java):
    """As the real engine gives it: the empty one adds nothing."""
    java.version("11")
    java.knows({"a dog barks |  | a dog barks loudly": 1.0})
    assert Spice().per_item(["a dog barks"], [["", "A dog barks loudly."]]).tolist() == [1.0]


def test_spider_is_the_mean_of_both_and_shares_the_run(java):
    java.version("11.0.2")
    both = MetricCollection({"cider_d": CiderD(), "spice": Spice(), "spider": Spider()})
    both.update(PREDS[:4], TARGETS[:4])
    both.update(PREDS[4:], TARGETS[4:])
    scores = {key: value.item() for key, value in both.compute().items()}
    cider = cider_d(PREDS, TARGETS)
    assert scores["spice"] == pytest.approx(MEAN, abs=1e-12)
    assert scores["spider"] == pytest.approx((MEAN + cider.mean().item()) / 2, abs=1e-12)
    torch.testing.assert_close(
        both["spider"].per_item(PREDS, TARGETS), (cider + double(SCORES)) / 2, rtol=0, atol=1e-12
    )
    assert len(java.runs()) == 1
    java.version("17.0.1")
    assert Spider().per_item(PREDS, TARGETS) is None


@pytest.fixture(params=["engine", "no engine"])
def replayed(request, shared, tmp_path, monkeypatch):
    """The real engine's answers, played back; whether there are scores per item."""
    folder = shared / "vectors/spice"
    if not folder.exists():
        pytest.skip("real answers: no folder shared/vectors/spice")
    java = StandIn(tmp_path, monkeypatch)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    java.version("17.0.15", engine=request.param == "engine")
    return folder, request.param == "engine"


def test_scores_are_the_real_engines(replayed, shared):
    folder, engine = replayed
    clips = {}
    with open(shared / "data/audiocaps/test.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            clips.setdefault(row["youtube_id"], []).append(row["caption"])
    for rotation in (0, 1):
        want = json.loads((folder / f"audiocaps_{rotation}.json").read_text())
        preds = [captions[rotation] for captions in clips.values()]
        target = [c[:rotation] + c[rotation + 1 :] for c in clips.values()]
        spice, spider = filled(Spice(), preds, target), filled(Spider(), preds, target)
        if engine:
            assert spice.compute().item() == pytest.approx(want["spice"], abs=1e-9)
            assert spider.compute().item() == pytest.approx(want["spider"], abs=1e-9)
            assert spice.per_item(preds, target).mean().item() == pytest.approx(want["spice"])
        else:
            printed = round(want["spice"], 3)
            assert spice.compute().item() == pytest.approx(printed, abs=1e-12)
            assert spider.compute().item() == pytest.approx((printed + want["cider_d"]) / 2)
    own = json.loads((folder / "own.json").read_text())
    items = Spice().per_item(own["captions"], [own["references"]] * len(own["captions"]))
    if engine:
        torch.testing.assert_close(items, double(own["per_item"]), rtol=0, atol=1e-9)


# --- a Java that fails --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode, version, message",
    [
        ("heap", "17", "Java ended with code 1.*OutOfMemoryError: Java heap space"),
        ("trace", "17", r"Java said: Error: Could not .*IllegalStateException: deep at java\.util"),
        ("killed", "17", "Java was killed: too little memory.*Java said: Parsing reference"),
        ("garbage", "17", "names no score"),
        ("other", "11", "attribute|indices"),
        ("garbage", "11", "Expecting property name"),
        ("short", "17", "names the mean of 11 scores"),
        ("short", "11", "names 9 scores"),
        ("hang", "17", "out of time: give a longer timeout"),
    ],
)
def test_a_java_that_does_not_answer(java, monkeypatch, mode, version, message):
    java.version(version)
    metric = filled(Spice(timeout=0.5 if mode == "hang" else None))
    java.goes_wrong(mode)
    with pytest.raises(RuntimeError, match=f"no score for 1[02] captions.*{message}") as error:
        metric.compute()
    assert "\n" not in str(error.value) and "The command was: " in str(error.value)
    assert len(java.runs()) < 10
    java.goes_wrong("")
    metric.settings = metric.settings._replace(timeout=None)
    assert metric.compute().item() == pytest.approx(MEAN, abs=1e-3)  # a failure is not remembered


def test_no_room_for_its_files_is_a_run_that_fails(java, tmp_path, monkeypatch):
    metric = filled(Spice())
    for trouble in ("missing", "full"):
        with monkeypatch.context() as patch:
            if trouble == "missing":
                patch.setattr(runs.tempfile, "tempdir", str(tmp_path / "nowhere"))
            else:
                patch.setattr(
                    runs.Path, "write_text", lambda *_: os.write(os.open("/dev/full", 1), b"x")
                )
            with pytest.raises(RuntimeError, match="no score for 12 captions.*(No such|No space)"):
                metric.compute()
    assert metric.compute().item() == pytest.approx(MEAN, abs=1e-3)


def test_a_java_that_has_gone(java, tmp_path):
    metric = filled(Spice())
    (tmp_path / "bin/java").unlink()
    with pytest.raises(RuntimeError, match="no score for 12 captions.*No such file"):
        metric.compute()


def test_all_that_is_missing_is_named_at_once(java, tmp_path, monkeypatch):
    Spice()
    java.goes_wrong("broken")
    with pytest.raises(SpiceMissing, match=r"no Java 8 or later \(.*bin/java\).*shards.fetch"):
        Spice()
    java.goes_wrong("")
    java.version("1.7.0_80")
    with pytest.raises(SpiceMissing, match=r"no Java 8 or later \(.*bin/java is Java 7\)"):
        Spice()
    (java.home / "lib/stanford-corenlp-3.6.0-models.jar").unlink()
    (java.home / "lib/Meteor-1.5.jar").write_bytes(b"another")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SpiceMissing) as missing:
        Spider()
    said = str(missing.value)
    assert "none on PATH or in JAVA_HOME" in said and "\n" not in said
    assert f"no lib/stanford-corenlp-3.6.0-models.jar in {java.home}" in said
    assert f"{java.home}/lib/Meteor-1.5.jar is another file" in said
    assert said.count("python -m shards.fetch spice") == 1
    monkeypatch.delenv("SPICE_HOME")
    with pytest.raises(SpiceMissing) as missing:
        Spice()
    wanted = f"no {', '.join(machine.PIECES)} in {tmp_path}/user/mats/spice-1.0."
    assert wanted in str(missing.value)
    assert isinstance(missing.value, RuntimeError)


def test_java_home_comes_before_path(java, tmp_path, monkeypatch):
    other = tmp_path / "jdk/bin"
    java.put(other)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jdk"))
    assert Spice().settings.java.path == str(other / "java")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "elsewhere"))  # set, but with no Java in it
    assert Spice().settings.java.path == str(tmp_path / "bin/java")


def test_java_gets_a_quarter_of_the_memory(tmp_path):
    wanted = {1: "768m", 8: "2048m", 16: "4096m", 512: "8192m"}
    assert {size: machine.heap(size << 30) for size in wanted} == wanted
    limit = tmp_path / "memory.max"
    limit.write_text("max\n")
    whole = machine.machine_memory((str(limit), str(tmp_path / "none")))
    limit.write_text("1000000000\n")
    assert machine.machine_memory((str(limit),)) == 1_000_000_000 < whole


# --- the cache ----------------------------------------------------------------------------------


def cached(java):
    (path,) = (java.folder / "user/mats/spice-parses").glob("*[0-9]")
    return path


@pytest.mark.parametrize("version", ["1.8.0_292", "17"])
def test_every_caption_is_parsed_once(java, version):
    java.version(version, engine=True)
    first = Spice().per_item(PREDS[:6], TARGETS[:6])
    run_spice.cache_clear()
    both = Spice().per_item(PREDS, TARGETS)
    assert both[:6].tolist() == first.tolist() == SCORES[:6]
    parsed = java.parsed()
    assert len(parsed) == len(set(parsed)) == 10 + 2
    run_spice.cache_clear()
    assert Spice().per_item(PREDS, TARGETS).tolist() == SCORES
    assert java.runs()[-1]["parsed"] == []
    run_spice.cache_clear()
    java.version("21", engine=True)  # another Java has a cache of its own
    assert Spice().per_item(PREDS, TARGETS).tolist() == SCORES
    assert len(java.runs()[-1]["parsed"]) == 12


def test_the_cache_can_be_moved_and_switched_off(java, tmp_path):
    java.version("17", engine=True)
    assert Spice(cache=tmp_path / "here").per_item(PREDS, TARGETS).tolist() == SCORES
    assert len(list((tmp_path / "here").glob("*/data.mdb"))) == 1
    assert Spice(cache=False).per_item(PREDS, TARGETS).tolist() == SCORES
    assert "-cache" not in java.runs()[-1]["args"] and not (tmp_path / "user").exists()


@pytest.mark.parametrize("content", ['["a dog', "cut off"])
def test_a_damaged_cache_is_set_aside(java, capsys, content):
    java.version("17", engine=True)
    Spice().per_item(PREDS, TARGETS)
    path = cached(java)
    (path / "data.mdb").write_text(content)
    run_spice.cache_clear()
    assert Spice().per_item(PREDS, TARGETS).tolist() == SCORES
    said = capsys.readouterr().err
    assert f"a damaged cache of parses was set aside: {path}.damaged" in said
    assert (path.with_name(f"{path.name}.damaged") / "data.mdb").read_text() == content
    run_spice.cache_clear()
    assert Spice().per_item(PREDS, TARGETS).tolist() == SCORES
    assert java.runs()[-1]["parsed"] == []


def test_after_a_damaged_cache_nothing_counts_as_parsed_and_a_second_one_is_left(tmp_path):
    cache = Cache(tmp_path / "cache")
    cache.add(["a dog barks"])
    assert cache.set_aside(cache.state()) and not Cache(tmp_path / "cache").known
    assert not cache.set_aside(cache.state())


def test_a_cache_that_another_process_replaced_stays(tmp_path):
    cache = Cache(tmp_path / "cache")
    before = cache.state()
    (tmp_path / "cache").rename(tmp_path / "old")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/data.mdb").touch()
    assert cache.set_aside(before) and (tmp_path / "cache/data.mdb").exists()


@pytest.mark.parametrize("trouble", ["read-only", "a file", "full disk"])
def test_a_cache_that_cannot_be_used_is_left_out(java, tmp_path, capsys, monkeypatch, trouble):
    java.version("17", engine=True)
    place = tmp_path / "cache"
    if trouble == "a file":
        place.write_text("mine")
    else:
        java.goes_wrong(trouble)
    assert Spice(cache=place).per_item(PREDS, TARGETS).tolist() == SCORES
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "cannot be used" in line]
    assert str(place) in line and "--spice-cache" in line


@pytest.mark.slow
def test_two_scorings_at_once_are_both_right(java):
    java.version("17", engine=True)
    code = (
        "import json, sys; from scoring.spice import Spice; "
        "print(json.dumps(Spice().per_item(*json.load(sys.stdin)).tolist()))"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True, cwd=ROOT)
        for _ in range(2)
    ]
    for process in both:
        process.stdin.write(json.dumps([PREDS, TARGETS]))
        process.stdin.close()
    assert [json.loads(process.stdout.read()) for process in both] == [SCORES] * 2


# --- one run ------------------------------------------------------------------------------------


def test_scores_are_read_by_id_and_in_0_to_1(tmp_path):
    def written(scores):
        rows = [{"image_id": i, "scores": {"All": {"f": f}}} for i, f in scores.items()]
        path = tmp_path / "out.json"
        path.write_text(json.dumps(rows))
        return path

    assert runs.read_items(written({1: 0.5, 0: 0.25}), 2) == [0.25, 0.5]
    for wrong in (1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"not in 0\.\.1"):
            runs.read_items(written({0: wrong}), 1)


def test_java_is_sent_ascii():
    assert runs.as_json([runs.Row("où ça", ("très fort",))]).isascii()


def test_a_killed_java_lacks_memory(java):
    java.goes_wrong("killed")
    with pytest.raises(runs.Failure, match="too little memory") as failure:
        runs.run(Spice().settings, [runs.Row("a dog", ("a dog",))], 60, [])
    assert failure.value.kind == "memory"


def test_a_run_that_is_out_of_time_is_not_repeated_without_the_cache(java, tmp_path, monkeypatch):
    tried = []

    def run(settings, rows, timeout, arguments):
        tried.append(arguments)
        raise runs.Failure("out of time", "time", "nothing", [])

    monkeypatch.setattr(runs, "run", run)
    cache = Cache(tmp_path / "cache")
    with pytest.raises(runs.Failure, match="out of time"):
        runs.run_cached(Spice().settings, [], 60, cache)
    assert tried == [cache.arguments()]


def test_a_run_may_take_as_long_as_its_longest_caption(monkeypatch):
    monkeypatch.setattr(runs, "cores", lambda: 64)  # one caption is parsed on one core
    rows = [runs.Row(" ".join(["dog"] * 160), ("dog",))]
    assert runs.limit_of(rows, 300) == runs.START + 300


# --- captions that cannot be parsed -------------------------------------------------------------


def sentence(java, words, score=0.5):
    """A caption of so many words that the engine knows."""
    text = " ".join(["dog"] * words)
    java.knows({text + SENT: score})
    return text


@pytest.mark.parametrize("word", [pytest.param("hang", marks=pytest.mark.slow), "heap", "crash"])
def test_a_caption_that_cannot_be_parsed_costs_only_itself(java, monkeypatch, capsys, word):
    java.version("17", engine=True)
    monkeypatch.setattr(runs, "START", 4.0)
    preds = [*PREDS[:5], f"a {word}", *PREDS[5:]]
    metric = Spice(patience=0.5)
    items = metric.per_item(preds, [REFERENCES] * 13)
    assert items.tolist() == [*SCORES[:5], 0, *SCORES[5:]]
    assert list(metric.unparsed) == [5] and "7 words" in metric.unparsed[5]
    said = capsys.readouterr().err
    assert "1 of 11 captions could not be parsed and score 0: 'a " + word in said
    assert {"hang": "out of time", "heap": "OutOfMemory", "crash": "deep"}[word] in said


def test_unparsed_captions_are_named_by_their_place_among_all(java):
    java.version("17", engine=True)
    metric = Spice()
    items = metric.per_item(["", "a crash", PREDS[0], "a crash"], [REFERENCES] * 4)
    assert items.tolist() == [0, 0, 0.5, 0] and list(metric.unparsed) == [1, 3]


def test_two_captions_that_crash_cost_only_themselves(java, monkeypatch):
    java.version("17", engine=True)
    long = [sentence(java, words) for words in (50, 51, 52)]
    preds = [*PREDS[:2], f"{long[0]} crash", long[1], f"{long[2]} crash"]
    java.knows({long[1] + SENT: 0.25})
    monkeypatch.setattr(runs, "groups_of", lambda rows, at, known: [[0], [1, 2, 3]])
    metric = Spice()
    assert metric.per_item(preds, [REFERENCES] * 5).tolist() == [0.5, 0.5, 0, 0.25, 0]
    assert list(metric.unparsed) == [2, 4]


@pytest.mark.slow
def test_without_an_engine_the_others_keep_their_mean(java, monkeypatch):
    monkeypatch.setattr(runs, "START", 4.0)
    metric = filled(Spice(patience=0.5), [*PREDS, "a hang"], [*TARGETS, REFERENCES])
    assert metric.compute().item() == pytest.approx(round(MEAN, 3) * 12 / 13, abs=1e-12)
    assert list(metric.unparsed) == [12]


def test_a_timeout_at_the_last_run_keeps_the_mean_of_all_runs(java, monkeypatch):
    java.version("17")
    monkeypatch.setattr(runs, "groups_of", lambda rows, at, known: [[0], [1, 2]])
    score = runs.Scoring.run

    def run(self, at):
        if len(at) == 3:
            raise RuntimeError("out of time")
        return score(self, at)

    monkeypatch.setattr(runs.Scoring, "run", run)
    preds = ["A DOG BARKS LOUDLY", "dog", "12345 6789"]
    metric = filled(Spice(), preds, [REFERENCES] * 3)
    assert metric.compute().item() == pytest.approx((0.5 + 2 * 0.143) / 3)


def test_captions_go_in_groups_of_like_length(java):
    java.version("17", engine=True)
    lengths = [8, 45, 70, 100, 160, 9]
    preds = [sentence(java, words, words / 1000) for words in lengths]
    items = Spice().per_item(preds, [REFERENCES] * 6)
    assert items.tolist() == [words / 1000 for words in lengths]
    assert [run["rows"] for run in java.runs()] == [2, 1, 2, 1]


def test_a_group_is_made_for_a_minute_and_its_limit_fits_its_length():
    short = runs.Row("a dog barks in the rain at night again", ("a dog barks",) * 4)
    rows = [short] * 2000
    groups = runs.groups_of(rows, range(2000))
    assert sorted(i for group in groups for i in group) == list(range(2000))
    for group in groups:
        assert runs.seconds_of(text for i in group for text in rows[i].captions) <= runs.GROUP
    known = set(short.captions)
    assert runs.groups_of(rows, range(2000), known) == [list(range(2000))]
    limits = [runs.limit_of([runs.Row("dog " * n + "dog", ("dog",))], 300) for n in (20, 99, 160)]
    assert 60 < limits[0] < 70 < limits[1] < 200 < limits[2] < 400
    assert runs.limit_of([runs.Row("dog " * 5000, ("dog",))], 300) < 400


@pytest.mark.parametrize("text", ["dog " * 20_000, "x" * 100_000, "{[(" * 33_000])
def test_an_answer_of_100_000_characters_is_not_sent(java, capsys, text):
    java.version("17", engine=True)
    metric, begun = Spice(), time.monotonic()
    assert metric.per_item([text, PREDS[0]], TARGETS[:2]).tolist() == [0, 0.5]
    assert "are too many to parse" in metric.unparsed[0] and time.monotonic() - begun < 30
    assert len(java.runs()) == 1 and "1 of 2 captions" in capsys.readouterr().err


@pytest.mark.slow
def test_a_java_that_never_answers_is_given_up(java, monkeypatch):
    java.version("17", engine=True)
    monkeypatch.setattr(runs, "START", 0.5)
    java.goes_wrong("hang")
    with pytest.raises(RuntimeError, match="no score for 10 captions.*out of time after"):
        Spice(patience=0.1).per_item(PREDS, TARGETS)
    assert len(java.runs()) < 6


@pytest.mark.slow
def test_what_was_parsed_is_kept_when_a_run_ends_early(java, monkeypatch):
    java.version("17", engine=True)
    preds = [*PREDS, sentence(java, 100) + " hang"]
    java.knows({preds[-1] + SENT: 0.25})
    metric = Spice(timeout=12)
    with pytest.raises(RuntimeError, match="out of time: give a longer timeout.*is kept"):
        metric.per_item(preds, [REFERENCES] * 13)
    assert len(java.runs()) == 2
    assert Spice().per_item(PREDS, TARGETS).tolist() == SCORES
    assert java.runs()[-1]["parsed"] == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_java_ends_with_us(java, number):
    java.goes_wrong("hang")
    code = "from scoring.spice import Spice; Spice().per_item(['a dog'], [['a dog']])"
    us = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE)
    while not java.runs():
        time.sleep(0.05)
        assert us.poll() is None
    (run,) = java.runs()
    os.kill(run["pid"], 0)
    us.send_signal(number)
    us.communicate(timeout=30)
    assert us.returncode in (-number, 1, 130)
    for _ in range(100):
        if ended(run["pid"]):
            break
        time.sleep(0.05)
    assert ended(run["pid"])


def ended(pid):
    try:
        return "Z" in re.sub(r".*\) ", "", Path(f"/proc/{pid}/stat").read_text())[:1]
    except FileNotFoundError:
        return True


# --- several processes ----------------------------------------------------------------------------


def rank_main(rank, folder, engine):
    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    found = []
    for first in (7, 12, 0):  # of the items, how many the first process has
        mine = slice(first) if rank == 0 else slice(first, 12)
        metrics = MetricCollection({"spice": Spice(), "spider": Spider()})
        alone = Spice(sync_on_compute=False)
        if PREDS[mine]:
            metrics.update(PREDS[mine], TARGETS[mine])
        found.append({name: value.item() for name, value in metrics.compute().items()})
    if rank == 1:  # one rank alone, as eval.py's master
        alone.update(PREDS, TARGETS)
        found.append(alone.compute().item())
    os.environ["STAND_IN"] = "trace"
    run_spice.cache_clear()
    try:
        metrics.compute()
        metrics["spice"]._computed = None
        metrics["spice"].compute()
    except RuntimeError as error:
        found.append(str(error))
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no Gloo"
)
def test_any_error_of_the_rank_that_runs_java_ends_all(tmp_path):
    def work():
        raise OSError("no room")

    meet = f"file://{tmp_path}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=0, world_size=1)
    try:
        with pytest.raises(RuntimeError, match="no room"):
            on_one_rank(work)
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no Gloo"
)
@pytest.mark.parametrize("engine", [True, False])
def test_one_rank_runs_java_for_all(java, tmp_path, monkeypatch, engine):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    java.version("17", engine)
    mp.spawn(rank_main, (str(tmp_path), engine), nprocs=2)
    mean = MEAN if engine else round(MEAN, 3)
    wanted = {"spice": mean, "spider": (mean + cider_d(PREDS, TARGETS).mean().item()) / 2}
    for rank in (0, 1):
        *found, said = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found[:3] == [pytest.approx(wanted, abs=1e-9)] * 3
        assert "IllegalStateException" in said
        if rank == 1:
            assert found[3] == pytest.approx(mean, abs=1e-9)
    started = Counter(run["parent"] for run in java.runs())
    assert len(started) == 2 and min(started.values()) == 1  # rank 1: only by itself
