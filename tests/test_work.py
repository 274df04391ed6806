"""Stages: complete or missing, side by side."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from shards.tiny.work import Stage, progress, side_by_side, stage


def write_pid(folder):
    folder.mkdir()
    progress(1)
    random = torch.rand(1).item()
    (folder / "made.txt").write_text(f"{os.getpid()} {torch.get_num_threads()} {random}")


def wait(folder):
    folder.mkdir()
    (folder / "pid.txt").write_text(str(os.getpid()))
    threading.Event().wait()  # for ever


def fail(folder):
    folder.mkdir()
    (folder / "half.txt").write_text("half")
    raise RuntimeError("the disk is full")


def test_missing_stages_are_made_by_other_processes(tmp_path):
    (tmp_path / "old").mkdir()
    side_by_side({tmp_path / name: Stage(write_pid, 1) for name in ("old", "a", "b")})
    assert not any((tmp_path / "old").iterdir())
    made = [(tmp_path / name / "made.txt").read_text().split() for name in "ab"]
    assert str(os.getpid()) not in [pid for pid, *_ in made]
    assert [threads for _, threads, _ in made] == ["1", "1"]
    torch.manual_seed(0)
    assert {float(random) for *_, random in made} == {torch.rand(1).item()}  # each seeded alike


def test_a_failure_is_raised_and_leaves_no_half_stage(tmp_path):
    with pytest.raises(RuntimeError, match="disk is full"):
        side_by_side({tmp_path / "bad": Stage(fail, 1), tmp_path / "slow": Stage(wait, 1)})
    assert not (tmp_path / "bad").exists() and not (tmp_path / "slow").exists()
    stage(tmp_path / "bad", write_pid)  # again: the rest of the first attempt is gone
    assert [path.name for path in (tmp_path / "bad").iterdir()] == ["made.txt"]


def test_nothing_is_started_where_nothing_is_missing(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    side_by_side({tmp_path / "a": Stage(fail, 1)})
    assert capsys.readouterr().err == ""


def pid_in(folder):
    """The process that waits in `folder`, once it is there."""
    file = folder / "waits.part" / "pid.txt"
    while not (file.exists() and file.read_text()):
        time.sleep(0.01)
    return int(file.read_text())


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_its_parent(tmp_path, kill):
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    code = (
        f"import sys; sys.path[:0] = {folders}\n"
        "from pathlib import Path\n"
        "from test_work import Stage, side_by_side, wait\n"
        f"side_by_side({{Path({str(tmp_path)!r}) / 'waits': Stage(wait, 1)}})"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as parent:
        worker = pid_in(tmp_path)
        parent.send_signal(kill)
        parent.wait()
    while not is_gone(worker):
        time.sleep(0.01)
