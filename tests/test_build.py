"""Building shards: interrupted, repeated, on a full disk, with audio."""

import errno
import json
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from annotations import made, openaqa_row, run, small, wav, write

from disk import DataError
from shards import audiotia, writer
from shards.build import Sounds, Tally, read_audio

ROOT = Path(__file__).parent.parent


def test_same_input_same_bytes_and_nothing_twice(tmp_path, capsys):
    small(tmp_path)

    def run_to(out, *more):
        run(audiotia, tmp_path, tmp_path / out, "audiocaps", *more)

    run_to("a")
    run_to("b")
    tar = [(tmp_path / out / "audiocaps/000000.tar").read_bytes() for out in "ab"]
    assert tar[0] == tar[1] and len(made(tmp_path / "a/audiocaps")) == 38
    stamp = (tmp_path / "a/audiocaps/index.json").stat().st_mtime_ns
    run_to("a")
    assert (
        "nothing to do" in capsys.readouterr().out
        and (tmp_path / "a/audiocaps/index.json").stat().st_mtime_ns == stamp
    )
    with pytest.raises(SystemExit, match="built with another instructions"):
        run_to("a", "--instructions", "varied")
    run_to("c", "--instructions", "varied", "--limit", "30")
    instructions = [s["instruction"] for s in made(tmp_path / "c/audiocaps")]
    assert len(instructions) == 30 and set(instructions) == set(audiotia.VARIED["cap"])
    small(tmp_path, 41)
    with pytest.raises(SystemExit, match="built with another files"):  # the input has changed
        run_to("a")


@pytest.mark.slow
def test_killed_and_started_again(tmp_path):
    small(tmp_path, 60_000)
    argv = [sys.executable, "-m", "shards.audiotia", "audiocaps"]
    argv += ["--root", tmp_path, "--out", tmp_path / "killed"]
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "killed/audiocaps/building.json").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = sorted((tmp_path / "killed/audiocaps").glob("*.tar"))
    assert there and not (tmp_path / "killed/audiocaps/index.json").exists()
    stamps = [p.stat().st_mtime_ns for p in there]
    for out in ("killed", "whole"):
        run(audiotia, tmp_path, tmp_path / out, "audiocaps")
    assert [p.stat().st_mtime_ns for p in there] == stamps  # kept, not written again

    def files(out):
        return {p.name: p.read_bytes() for p in (tmp_path / out / "audiocaps").glob("*.tar")}

    assert files("killed") == files("whole") and len(files("whole")) == 15
    assert {p.suffix for p in (tmp_path / "killed/audiocaps").iterdir()} == {".tar", ".json"}
    assert not (tmp_path / "killed/audiocaps/building.json").exists()


@pytest.mark.slow
def test_a_full_disk(tmp_path, monkeypatch):
    small(tmp_path, 9_000)
    real, calls = writer.tar_member, []

    def member(name, content):
        calls.append(name)
        if len(calls) == 6_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(name, content)

    monkeypatch.setattr(writer, "tar_member", member)
    with pytest.raises(SystemExit, match="the disk is full"):
        run(audiotia, tmp_path, tmp_path / "out", "audiocaps")
    assert sorted(p.name for p in (tmp_path / "out/audiocaps").iterdir()) == [
        "000000.tar",
        "building.json",
    ]
    run(audiotia, tmp_path, tmp_path / "out", "audiocaps")
    assert len(made(tmp_path / "out/audiocaps")) == 8_998


def test_audio_is_copied_as_it_is(tmp_path, capsys):
    """AudioAIA: every naming in the wild, an mp3 that is called wav, no sound, a missing clip."""
    small(tmp_path, 12)
    folder = tmp_path / "audiocaps/audio"
    sounds = {
        0: wav(folder / "Y00000000000.wav"),
        1: wav(folder / "train/00000000001_1.flac", format="FLAC"),
        2: wav(folder / "00000000002.wav", format="MP3", rate=16000),
        4: wav(folder / "x/y/00000000004.ogg", format="OGG"),
    }
    write(folder / "00000000006.wav", "<html>not found</html>")
    run(audiotia, tmp_path, tmp_path / "aia", "audiocaps", "--audio")
    rows = made(tmp_path / "aia/audiocaps", audio=True)
    assert {int(r["id"].split("_")[0]): r["audio"] for r in rows} == sounds
    out = capsys.readouterr().out
    assert (
        "5 without their audio file" in out
        and "1 with an unreadable audio file" in out
        and "00000000006.wav" in out
    )
    with tarfile.open(tmp_path / "aia/audiocaps/000000.tar") as tar:
        kinds = [n.rpartition(".")[2] for n in tar.getnames() if not n.endswith("json")]
    assert kinds == ["wav", "flac", "mp3", "ogg"]
    wav(folder / "00000000007.wav")  # a clip has arrived since
    with pytest.raises(SystemExit, match="was built with another audio"):
        run(audiotia, tmp_path, tmp_path / "aia", "audiocaps", "--audio")
    with pytest.raises(SystemExit, match="no part of AudioAIA"):
        write(
            tmp_path / "esc50/esc50.csv",
            "filename,fold,target,category,esc10,src_file,take\n1-1-A-0.wav,1,0,dog,True,1,A\n",
        )
        run(audiotia, tmp_path, tmp_path / "aia", "esc50", "--audio")


def test_what_is_not_there_does_not_stop_all(tmp_path, capsys):
    """Annotations without audio, an OpenAQA without music: the other sources are built."""
    small(tmp_path, 12)
    wav(tmp_path / "audiocaps/00000000001.wav")
    write(tmp_path / "fsd50k/dev.csv", "fname,labels,mids,split\n64,Dog,/m/1,train\n")
    write(tmp_path / "openaqa/open.json", json.dumps([openaqa_row("/x/q.wav")]))
    run(audiotia, tmp_path, tmp_path / "aia", "all", "--audio")
    out = capsys.readouterr().out
    assert (
        "missing: fsd50k: no samples. Left out: 1 without their audio file (64)" in out
        and "missing: openaqa_captions: no samples. Left out: nothing" in out
    )
    assert [p.parent.name for p in (tmp_path / "aia").glob("*/index.json")] == ["audiocaps"]
    with pytest.raises(SystemExit, match="clotho: there is no folder"):
        audiotia.main(["--check", "clotho", "--root", str(tmp_path)])


def test_sounds_are_found_by_name(tmp_path):
    for name in ("fold1/x.wav", "fold2/x.wav", "fold2/y.mp4", "z.FLAC"):
        write(tmp_path / name, name)
    sounds = Sounds(tmp_path)
    assert (
        len(sounds) == 3
        and sounds.find("fold2/x").endswith("fold2/x.wav")
        and sounds.find("nothing", "z").endswith("z.FLAC")
        and sounds.find("y") is None
    )
    assert sounds.find("x").endswith("fold1/x.wav")  # of equal size: copies
    write(tmp_path / "fold2/x.wav", "longer than the other")
    with pytest.raises(DataError, match="x is there 2 times"):
        sounds.find("x")
    for content in (b"", b"\0\0\0\x20ftypM4A "):
        (tmp_path / "bad.wav").write_bytes(content)
        with pytest.raises(DataError, match="bad.wav"):
            read_audio(tmp_path / "bad.wav")


def test_tally():
    tally = Tally()
    for i in range(5):
        tally.drop("odd", i)
    assert str(tally) == "5 odd (0, 1, 2, ...)"
