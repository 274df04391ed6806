"""Building shards: interrupted, repeated, on a full disk, with audio."""

import errno
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from annotations import HEAD, made, openaqa_row, run, small, wav, write

from disk import DataError
from shards import audiotia, benchmarks, writer
from shards.build import Sounds, Tally, for_each, read_audio

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
    (tmp_path / "fold3").mkdir()
    (tmp_path / "fold3/x.wav").symlink_to(tmp_path / "nowhere")
    assert Sounds(tmp_path).find("x").endswith("fold1/x.wav")
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


# --- clips and sources that fail ----------------------------------------------------------------


def wavcaps(root, *records):
    write(root / "wavcaps/sb_final.json", json.dumps({"data": records}))
    for name in ("test_ac", "ub8k_esc50_vggsound"):
        path = root / f"wavcaps/blacklist_exclude_{name}.json"
        write(path, json.dumps({"AudioSet": [], "FreeSound": ["Not found"]}))


def test_text_that_is_no_unicode_is_left_out(tmp_path, capsys):
    half = {"id": "2", "caption": "bird \ud83d"}
    wavcaps(tmp_path, {"id": "1", "caption": "dog"}, half, {"id": "x\udce9", "caption": "rain"})
    run(audiotia, tmp_path, tmp_path / "out", "wavcaps_soundbible")
    assert [s["id"] for s in made(tmp_path / "out/wavcaps_soundbible")] == ["1"]
    out = capsys.readouterr().out
    assert "2 that cannot be written (sample '2' does not fit: text holds half a character" in out
    assert "(sb_final.json, record 1), sample" in out
    index = json.loads((tmp_path / "out/wavcaps_soundbible/index.json").read_bytes())
    assert index["left_out"]["that cannot be written"]["n"] == 2
    wavcaps(tmp_path, half)
    with pytest.raises(SystemExit, match="no samples. Left out: 1 that cannot be written"):
        run(audiotia, tmp_path, tmp_path / "none", "wavcaps_soundbible")
    assert not list(tmp_path.glob("none/*"))


def test_what_is_left_out_does_not_move_a_build_that_goes_on(tmp_path, monkeypatch):
    """Left-out samples are not counted among those that complete shards hold."""
    monkeypatch.setattr(writer, "SHARD_BYTES", 3_000)
    texts = ["a", "", "bird \ud83d", "b", "c", "nan", "d", "e", "\ud83d", "f"]
    wavcaps(tmp_path, *({"id": i, "caption": text} for i, text in enumerate(texts)))
    real, calls = writer.tar_member, []

    def member(name, content):
        calls.append(name)
        if len(calls) == 5:
            raise OSError(errno.ENOSPC, "No space left on device", "x.tar")
        return real(name, content)

    monkeypatch.setattr(writer, "tar_member", member)
    with pytest.raises(SystemExit, match="wavcaps_soundbible: x.tar: the disk is full"):
        run(audiotia, tmp_path, tmp_path / "out", "wavcaps_soundbible")
    assert list(tmp_path.glob("out/*/*.tar")) and not list(tmp_path.glob("out/*/*.part"))
    run(audiotia, tmp_path, tmp_path / "out", "wavcaps_soundbible")
    texts = [s["text"] for s in made(tmp_path / "out/wavcaps_soundbible")]
    assert texts == ["a", "b", "c", "d", "e", "f"]


def test_one_source_that_fails_does_not_stop_the_others(tmp_path, capsys):
    small(tmp_path, 5)
    write(tmp_path / "macs/MACS.yaml", "files: 5\n")
    write(tmp_path / "wavcaps/sb_final.json", "<html>")
    with pytest.raises(SystemExit) as e:
        run(audiotia, tmp_path, tmp_path / "out", "macs", "sesa", "audiocaps", "wavcaps_soundbible")
    said = str(e.value)
    assert "macs: " in said and "MACS.yaml: not MACS" in said and "sesa: " in said
    assert "wavcaps_soundbible: " in said and "audiocaps: " not in said
    assert len(made(tmp_path / "out/audiocaps")) == 4
    with pytest.raises(SystemExit, match="macs: .*MACS.yaml"):  # not merely missing: all fails too
        run(audiotia, tmp_path, tmp_path / "all", "all")
    assert "missing: gtzan" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="macs: .*not MACS as published"):
        audiotia.main(["--check", "--root", str(tmp_path)])
    audiotia_list = ["--list", "--root", str(tmp_path)]
    with pytest.raises(SystemExit) as e:
        audiotia.main(audiotia_list)
    assert e.value.code == 0 and "song_describer" in capsys.readouterr().out


def test_a_full_disk_ends_the_command_in_one_line():
    done = []

    def work(name):
        done.append(name)
        if name == "b":
            raise DataError("bad")
        if name == "c":
            raise PermissionError(errno.EACCES, "Permission denied", "c.csv")
        if name == "d":
            raise OSError(errno.ENOSPC, "No space left on device", "d.tar")

    with pytest.raises(DataError) as e:
        for_each("abcde", work)
    lines = str(e.value).splitlines()
    assert done == [*"abcd"] and [line[:3] for line in lines] == ["b: ", "c: ", "d: "]
    assert "d.tar: the disk is full" in lines[2] and "c.csv" in lines[1]
    with pytest.raises(RuntimeError):
        for_each("a", lambda name: exec("raise RuntimeError"))
    for_each("a", print)


def test_an_index_of_another_form_is_named(tmp_path):
    small(tmp_path, 5)
    for content, said in (("[]", "JSON list"), ("", "is empty"), ('{"key": 5}', "another files")):
        write(tmp_path / "out/audiocaps/index.json", content)
        with pytest.raises(SystemExit, match=said):
            run(audiotia, tmp_path, tmp_path / "out", "audiocaps")


def test_opus_and_aiff_are_taken_and_other_formats_named(tmp_path, capsys):
    small(tmp_path, 8)
    folder = tmp_path / "audiocaps/audio"
    taken = {
        0: wav(folder / "Y00000000000.opus", format="OGG", subtype="OPUS"),
        1: wav(folder / "Y00000000001.aiff", format="AIFF"),
        2: wav(folder / "Y00000000002.aif", format="AIFF", subtype="FLOAT"),  # an AIFC
    }
    write(folder / "Y00000000004.m4a", "\0\0\0\x20ftypM4A ")
    write(folder / "._Y00000000006.wav", "Mac OS X")
    wav(folder / "__MACOSX/Y00000000006.wav")
    run(audiotia, tmp_path, tmp_path / "aia", "audiocaps", "--audio")
    rows = made(tmp_path / "aia/audiocaps", audio=True)
    assert {int(r["id"].split("_")[0]): r["audio"] for r in rows} == taken
    assert [r["kind"] for r in rows] == ["ogg", "aiff", "aiff"]
    out = capsys.readouterr().out
    assert "1 without their audio file but an .m4a: convert it with ffmpeg (Y00000000004)" in out
    assert "2 without their audio file (" in out
    for path in folder.glob("*.[oa]*"):
        path.unlink()
    said = r"1 .m4a are there and are not taken: convert them with ffmpeg"
    with pytest.raises(SystemExit, match=said):
        run(audiotia, tmp_path, tmp_path / "none", "audiocaps", "--audio")
    write(tmp_path / "audiocaps/test.csv", HEAD + "1,00000000004,30,x\n" * 5)
    with pytest.raises(SystemExit, match=said):
        run(benchmarks, tmp_path, tmp_path / "none", "audiocaps")


def test_the_decoder_decides_where_the_header_is_unknown(tmp_path):
    content = wav(tmp_path / "y.WAV", format="W64")
    assert read_audio(tmp_path / "y.WAV") == ("wav", content)
    for text, said in (("<html>no</html>", "web page"), ("version https://git-lfs x", "LFS")):
        with pytest.raises(DataError, match=f"bad.wav.*{said}"):
            read_audio(write(tmp_path / "bad.wav", text))
    with pytest.raises(DataError, match="bad.wav is no audio that can be decoded"):
        read_audio(write(tmp_path / "bad.wav", "\x01\x02 noise " * 50))


def test_names_of_audio_files_need_not_be_utf_8(tmp_path, capsys):
    small(tmp_path, 3)
    wav(tmp_path / "audiocaps/a.wav")
    odd = os.fsencode(tmp_path / "audiocaps")
    os.rename(odd + b"/a.wav", odd + b"/caf\xe9.wav")
    write(tmp_path / "audiocaps/Y00000000000.wav", "no sound")
    os.rename(odd, odd + b"\xe9")
    os.symlink(odd + b"\xe9", odd)
    wav(tmp_path / "audiocaps/Y00000000001.wav")
    run(audiotia, tmp_path, tmp_path / "aia", "audiocaps", "--audio")
    assert len(made(tmp_path / "aia/audiocaps")) == 1
    tally = Tally()
    tally.drop("odd", os.fsdecode(b"caf\xe9"))
    assert json.dumps(tally.as_dict(), ensure_ascii=False).encode() and "caf\\udce9" in str(tally)


def test_one_clip_that_cannot_be_opened_is_left_out(tmp_path, capsys, monkeypatch):
    small(tmp_path, 3)
    for i in range(2):
        wav(tmp_path / f"audiocaps/Y0000000000{i}.wav")
    real = Path.read_bytes

    def fails(path):
        if path.name == "Y00000000000.wav":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", fails)
    run(audiotia, tmp_path, tmp_path / "aia", "audiocaps", "--audio")
    assert "1 with an unreadable audio file (" in capsys.readouterr().out


def test_a_folder_may_have_any_name(tmp_path):
    root = small(tmp_path / "a {1..2}::b ?*[c] %20", 5)
    wav(root / "audiocaps/x: {y}/Y00000000000.wav")
    run(audiotia, root, root / "out", "audiocaps", "--audio")
    run(benchmarks, root, root / "bench", "audiocaps", "--no-audio")
    with tarfile.open(root / "out/audiocaps/000000.tar") as tar:
        assert len(tar.getnames()) == 2
    assert (root / "bench/audiocaps/index.json").exists()
