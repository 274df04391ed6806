"""Stages: complete or missing, side by side."""

import os

import pytest
import torch

from shards.tiny.work import Stage, progress, side_by_side, stage


def write_pid(folder):
    folder.mkdir()
    progress(1)
    random = torch.rand(1).item()
    (folder / "made.txt").write_text(f"{os.getpid()} {torch.get_num_threads()} {random}")


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
        side_by_side({tmp_path / "bad": Stage(fail, 1), tmp_path / "good": Stage(write_pid, 1)})
    assert (tmp_path / "good" / "made.txt").exists()
    assert not (tmp_path / "bad").exists()
    stage(tmp_path / "bad", write_pid)  # again: the rest of the first attempt is gone
    assert [path.name for path in (tmp_path / "bad").iterdir()] == ["made.txt"]


def test_nothing_is_started_where_nothing_is_missing(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    side_by_side({tmp_path / "a": Stage(fail, 1)})
    assert capsys.readouterr().err == ""
