import json
import os
import pickle
import re
import sys

import pytest
import torch
from test_captions import SCORES, double, own
from torchmetrics import MetricCollection

from scoring import spice as module
from scoring.captions import CiderD
from scoring.spice import Spice, SpiceMissing, Spider

SPICE = [  # id, F, true and false positives, false negatives: the stand-in's answers
    ["identical", 1.0, 4, 0, 0],
    ["synonym_object", 1.0, 2, 0, 0],
    ["synonym_verb_attr", 1.0, 2, 0, 0],
    ["no_overlap", 0.0, 0, 2, 2],
    ["merge_in_refs", 0.8, 2, 0, 1],
    ["relation_partial", 0.4444444444444445, 2, 3, 2],
    ["be_prefix_relation", 1.0, 3, 0, 0],
    ["duplicate_test_tuples", 0.8, 2, 0, 1],
    ["cardinality_color_size", 0.888888888888889, 4, 0, 1],
    ["empty_test", 0.0, 0, 0, 1],
    ["empty_ref", 0.0, 0, 1, 0],
]
# A java that answers from SPICE, or fails as the environment's STAND_IN says.
STAND_IN = r"""#!{python} -S
import json, os, sys

args, mode = sys.argv[1:], os.environ.get("STAND_IN", "")
if args == ["-version"]:
    if mode == "broken":
        sys.exit("Unable to locate a Java Runtime")
    version = 'openjdk version "{version}" 2025-04-15'
    print("Picked up JAVA_TOOL_OPTIONS: -Dx=y", version, sep="\n", file=sys.stderr)
    sys.exit()
open({log!r}, "a").write(json.dumps(args) + "\n")
assert args[0].startswith("-Xmx") and args[2] == "-cp" and args[4] == "edu.anu.spice.SpiceScorer"
items = json.load(open(args[5]))
answers = {{x[0]: x[1:] for x in {answers!r}}}
print("Initiating Stanford parsing pipeline", "Parsing test captions", sep="\n", file=sys.stderr)
if mode == "fail":
    sys.exit("java.lang.OutOfMemoryError: Java heap space")
if mode == "trace":
    print("Exception in thread main java.lang.StackOverflowError: deep", file=sys.stderr)
    sys.exit("\tat edu.anu\n" + "\tat java.util\n" * 99 + "Caused by: x.IOException: y")
if mode == "killed":
    sys.stderr.flush()
    os.kill(os.getpid(), 9)
if mode == "hang":
    os.execv("/bin/sleep", ["sleep", "600"])
for item in items:
    assert isinstance(item["test"], str) and item["test"].strip() and isinstance(item["refs"], list)
f, tp, fp, fn = zip(*(answers.get(x["test"], [0.5, 1, 1, 1]) for x in items))
images = len(items) - (mode == "short")
printed = f'''********  SPICE Evaluation  ********

All tuples
  f-score:\t{{sum(f) / len(f):.3f}} (SPICE metric)
  precision:\t0.900
  recall:\t0.800
  true pos:\t{{sum(tp)}}
  false pos:\t{{sum(fp)}}
  false neg:\t{{sum(fn)}}
  num images:\t{{images}}
'''
print("?\0" * 50 if mode == "garbage" else printed)
if args[6:]:
    assert args[6] == "-out" and len(args) == 8
    none = dict(pr=None, re=None, f=None, fn=0, numImages=1, fp=0, tp=0)
    rows = []
    for x, a, b, c, d in list(zip(items, f, tp, fp, fn))[:images]:
        every = dict(pr=0.9, re=0.8, f=a, fn=d, numImages=1, fp=c, tp=b)
        rows.append(dict(scores=dict(All=every, Color=none), image_id=x["image_id"]))
    odd = {{"garbage": "[1, {{", "other": "[[1]]"}}
    open(args[7], "w").write(odd.get(mode) or json.dumps(rows, indent=2))
print("SPICE evaluation took: 6.285 s")
"""
NAMES = [row[0] for row in SPICE]
TARGETS = [["ein Hund", f"a {name}"] for name in NAMES]
MEAN = sum(row[1] for row in SPICE) / len(SPICE)


@pytest.fixture
def java(tmp_path, monkeypatch):
    """java(version) puts a stand-in on PATH and the jars' names into SPICE_HOME.

    java.runs() is a list of the arguments of its runs.
    """
    home, log = tmp_path / "SPICE home", tmp_path / "log"
    monkeypatch.delenv("JAVA_HOME", raising=False)

    def make(version="17.0.15", folder="bin"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        path = tmp_path / folder / "java"
        path.write_text(
            STAND_IN.format(python=sys.executable, version=version, log=str(log), answers=SPICE)
        )
        path.chmod(0o755)
        (home / "lib").mkdir(parents=True, exist_ok=True)
        for name in module.PIECES:
            (home / name).touch()
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        monkeypatch.setenv("SPICE_HOME", str(home))
        return home

    make.runs = lambda: (
        [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    )
    module.run_spice.cache_clear()
    return make


def test_spice_reads_the_printed_mean(java):
    home = java()
    metric = Spice()
    for i in range(0, 11, 4):
        metric.update(NAMES[i : i + 4], TARGETS[i : i + 4])
    assert metric.compute().dtype == torch.float64
    assert metric.compute().item() == pytest.approx(round(MEAN, 3), abs=1e-12)
    assert metric.per_item(NAMES, TARGETS) is None
    (run,) = java.runs()  # one Java for all three
    assert run[3].split(":") == [f"{home}/spice-1.0.jar", f"{home}/lib/*"]
    assert not {"-cache", "-silent", "-out"} & set(run) and "-Duser.language=en" in run
    assert pickle.loads(pickle.dumps(metric)).compute().item() == metric.compute().item()


@pytest.mark.parametrize("version", ["1.8.0_292", "11.0.2", "21"])
def test_spice_reads_exact_scores_where_there_is_an_engine(java, version):
    home = java(version)
    if version == "21":
        (home / "lib/nashorn-core-15.4.jar").touch()
    metric = Spice(home=str(home), memory="2G")
    metric.update(NAMES, TARGETS)
    assert metric.compute().item() == pytest.approx(MEAN, abs=1e-12)
    torch.testing.assert_close(
        metric.per_item(NAMES, TARGETS), double([row[1] for row in SPICE]), rtol=0, atol=1e-12
    )
    (run,) = java.runs()
    assert run[0] == "-Xmx2G" and "-out" in run and not {"-cache", "-silent"} & set(run)


@pytest.mark.parametrize("version", ["17", "11.0.2"])
def test_predictions_without_a_token_are_not_sent(java, version):
    java(version)
    metric = Spice()
    preds = ["", "identical", "...", "identical"]
    metric.update(preds, [["a"]] * 4)
    assert metric.compute().item() == 0.5
    if version != "17":
        assert metric.per_item(preds, [["a"]] * 4).tolist() == [0, 1, 0, 1]
    metric.reset()
    metric.update(["", "-"], [["a"]] * 2)
    assert metric.compute().item() == 0
    assert metric.per_item(["", "-"], [["a"]] * 2).tolist() == [0, 0]
    assert len(java.runs()) == 1


def test_spider_is_the_mean_of_both_and_shares_the_run(java):
    java("11.0.2")
    preds, target = own()
    both = MetricCollection({"cider_d": CiderD(), "spice": Spice(), "spider": Spider()})
    both.update(preds[:4], target[:4])
    both.update(preds[4:], target[4:])
    scores = {key: value.item() for key, value in both.compute().items()}
    assert scores["spice"] == 0.5 and scores["cider_d"] == pytest.approx(
        SCORES["own_small_v1"]["score"][0], abs=1e-9
    )
    assert scores["spider"] == pytest.approx((scores["spice"] + scores["cider_d"]) / 2, abs=1e-12)
    assert both["spider"].per_item(preds, target).mean().item() == pytest.approx(
        scores["spider"], abs=1e-12
    )
    assert len(java.runs()) == 1
    java("17.0.1")
    assert Spider().per_item(preds, target) is None


@pytest.mark.parametrize(
    "mode, version, message",
    [
        ("fail", "17", "Java ended with code 1.*OutOfMemoryError: Java heap space"),
        ("trace", "17", r"Java said: Exception in thread .*StackOverflowError: deep at edu\.anu"),
        ("killed", "17", "Java was killed: too little memory.*Java said: Parsing test captions"),
        ("garbage", "17", "names no score"),
        ("other", "11", "attribute|indices"),
        ("garbage", "11", "Expecting property name"),
        ("short", "17", "mean of .* over 10 captions"),
        ("short", "11", "mean of .* over 10 captions"),
        pytest.param("hang", "17", "out of time: give a longer timeout", marks=pytest.mark.slow),
    ],
)
def test_a_java_that_does_not_answer(java, monkeypatch, mode, version, message):
    java(version)
    metric = Spice(timeout=0.5 if mode == "hang" else None)
    metric.update(NAMES, TARGETS)
    monkeypatch.setenv("STAND_IN", mode)
    with pytest.raises(RuntimeError, match=f"no score for 11 captions.*{message}") as e:
        metric.compute()
    assert "\n" not in str(e.value) and "The command was: " in str(e.value)
    monkeypatch.delenv("STAND_IN")
    metric.timeout = None
    assert metric.compute().item() == pytest.approx(MEAN, abs=1e-3)  # a failure is not remembered


def test_no_room_for_its_files_is_a_run_that_fails(java, tmp_path, monkeypatch):
    java()
    metric = Spice()
    metric.update(NAMES, TARGETS)
    for trouble in ("missing", "full"):
        with monkeypatch.context() as patch:
            if trouble == "missing":
                patch.setattr(module.tempfile, "tempdir", str(tmp_path / "nowhere"))
            else:
                patch.setattr(
                    module.Path, "write_text", lambda *_: os.write(os.open("/dev/full", 1), b"x")
                )
            with pytest.raises(RuntimeError, match="no score for 11 captions.*(No such|No space)"):
                metric.compute()
    assert metric.compute().item() == pytest.approx(MEAN, abs=1e-3)


def test_a_java_that_has_gone(java, tmp_path):
    java()
    metric = Spice()
    metric.update(NAMES, TARGETS)
    (tmp_path / "bin/java").unlink()
    with pytest.raises(RuntimeError, match="no score for 11 captions.*No such file"):
        metric.compute()


def test_all_that_is_missing_is_named_at_once(java, tmp_path, monkeypatch):
    home = java()
    Spice()
    monkeypatch.setenv("STAND_IN", "broken")
    with pytest.raises(
        SpiceMissing, match=r"Java 8 or later \(.*bin/java\): apt-get install default-jre-headless"
    ):
        Spice()
    (home / "lib/stanford-corenlp-3.6.0-models.jar").unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SpiceMissing) as missing:
        Spider()
    lines = str(missing.value).split("\n  ")[1:]
    assert [line.split(" (")[0] for line in lines] == [
        "Java 8 or later",
        "lib/stanford-corenlp-3.6.0-models.jar",
    ]
    assert f"-d '{home}'/lib" in lines[1] and "none on PATH or in JAVA_HOME" in lines[0]
    monkeypatch.delenv("SPICE_HOME")
    with pytest.raises(SpiceMissing) as missing:
        Spice()
    lines = str(missing.value).split("\n  ")[1:]
    assert len(lines) == 6 and all(re.search(r"\): (apt-get|pip|curl) ", line) for line in lines)
    assert all("SPICE_HOME is not set" in line for line in lines[1:])
    assert isinstance(missing.value, RuntimeError)


def test_java_home_comes_before_path(java, tmp_path, monkeypatch):
    java("17")
    java("11.0.2", folder="jdk/bin")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jdk"))
    assert Spice().engine
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "elsewhere"))  # set, but with no Java in it
    assert not Spice().engine
