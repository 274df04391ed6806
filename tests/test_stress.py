"""Kills, full disks and damaged files: the tool tells them apart, and the project bears a few."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from disk import DataError
from experiments.stress import mutate
from experiments.stress.__main__ import outcome
from experiments.stress.forks import Disk, fork
from experiments.stress.kills import Whole, fingerprint
from experiments.stress.readers import compare

ROOT = Path(__file__).parent.parent


def refuse(message):
    raise DataError(message)


def take(size):
    return len(bytearray(size))


def write(path):
    time.sleep(0.3)
    Path(path).write_bytes(bytes(1000))


@pytest.mark.slow
def test_outcomes_of_forks():
    assert outcome(fork(dict, {"outcome": "changed"})) == "changed"
    assert outcome(fork(refuse, "one line")) == "refused"
    assert outcome(fork(refuse, "two\nlines")) == "CRASH"
    assert outcome(fork(sys.exit, "one line")) == "refused"
    assert outcome(fork(sys.exit, 0)) == "CRASH"
    assert outcome(fork(int, "x")) == "CRASH"
    assert outcome(fork(time.sleep, 60, limit=0.2)) == "HANG"
    assert outcome(fork(time.sleep, 60, kill_at=0.1)) == "KILLED"


@pytest.mark.slow
def test_a_fork_is_short_of_memory_and_disk(tmp_path):
    assert fork(take, 1 << 40).error["kind"] == "MemoryError"
    assert fork(write, str(tmp_path / "a")).status == 0
    ended = fork(write, str(tmp_path / "b"), disk=Disk(0.1, 10))
    assert ended.error["kind"] == "OSError" and (tmp_path / "b").stat().st_size == 10


def test_a_resumed_run_is_compared_in_all_that_matters(tmp_path):
    whole, out = Whole("train", "train", [], str(tmp_path)), tmp_path / "out"
    out.mkdir()
    ended = fork(dict)

    def write(value, rate, name="a.json"):
        torch.save({"model": {"w": torch.tensor([value])}, "step": 1}, out / "state.pt")
        line = {"step": 1, "loss": 2.5, "samples_per_s": rate}
        (out / "log.jsonl").write_text(json.dumps(line) + "\n")
        (out / name).write_text("{}")

    write(1.0, rate=3.0)
    whole.files = fingerprint(str(out))
    write(1.0, rate=4.0)
    assert whole.judge(ended, tmp_path) == (None, [])
    write(1.0, rate=4.0, name="b.json")
    assert whole.judge(ended, tmp_path) == (None, ["b.json"])
    write(1.0000001, rate=3.0)
    assert whole.judge(ended, tmp_path)[0] == "another result: state.pt"
    assert "status 70" in whole.judge(fork(int, "x"), tmp_path)[0]


def test_compare():
    before = ["a", "b", "c"]
    assert compare(before, before, 0, []) == "unchanged"
    assert compare(before, ["a", "b", "x"], 1, []) == "changed"
    assert compare(before, ["a", "b"], 0, []) == "SILENT"  # lost, and nobody says so
    assert compare(before, ["a", "b"], 0, ["c is broken"]) == "left out"
    assert compare(before, ["a", "b", "x"], 0, ["c is broken"]) == "SILENT"  # another sample came
    assert compare(before, [*before, "a"], 0, []) == "SILENT"  # one came twice


@pytest.mark.parametrize("change", [mutate.in_bytes, mutate.in_table])
def test_a_seed_repeats_its_damage_and_tells_where_it_is(change):
    data = "".join(f"{i},word {i}\n" for i in range(50)).encode()
    for seed in range(200):
        made, _, spans = change(data, random.Random(seed))
        assert change(data, random.Random(seed))[0] == made
        first = min(start for start, _ in spans)
        first = data.rfind(b"\n", 0, first) + 1  # a table's spans are lines
        assert made[:first] == data[:first] or made[:2] in (b"\x1f\x8b", b"\xef\xbb")


def stress(out, *arguments):
    """(results, output) of the command."""
    command = [sys.executable, "-m", "experiments.stress", *arguments, "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (out / "stress.json").exists(), done.stderr[-3000:]
    return json.loads((out / "stress.json").read_text()), done.stdout


@pytest.mark.slow
def test_a_few_of_everything(tmp_path):
    results, said = stress(tmp_path, "--n", "20")
    killed = [result for result in results if result["part"] == "kill"]
    assert {result["name"]: result["kills"] for result in killed} == dict.fromkeys(
        ("train", "eval", "embed", "builder"), 2
    )
    assert not [problem for result in killed for problem in result["problems"]]
    assert all(result["finished"] == result["same"] > 0 for result in killed)
    full = [result for result in results if result["part"] == "disk"]
    assert all(result["same"] and result["one_line"] == result["full"] for result in full), said
    damaged = [result for result in results if result["part"] == "mutate"]
    assert len(damaged) == 80
    bad = ("SILENT", "CRASH", "HANG", "KILLED")
    assert not [result for result in damaged if result["outcome"] in bad], said
