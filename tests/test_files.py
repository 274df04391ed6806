"""Annotation files that are damaged, odd or missing; JSON that is streamed."""

import json
import os
import re
import tracemalloc

import pytest
from annotations import HEAD, run, small, talk, write

from data import has_words
from disk import DataError
from shards import audiotia, benchmarks, datasets
from shards.datasets import captions, labels, questions
from shards.files import (
    Missing,
    Root,
    captions_of,
    checked,
    csv_records,
    json_lines,
    plain,
    stream_json,
    text_lines,
)
from shards.sources import VIDEO


@pytest.mark.parametrize(
    "name, text, read, message",
    [
        (
            "audiocaps/train.csv",
            HEAD + "1,aaaaaaaaaaa,3,one\n2,#NAME?,3,two\n",
            "audiocaps",
            r"line 3: #NAME\?: a spreadsheet",
        ),
        (
            "audiocaps/train.csv",
            HEAD + "1,1.23E+10,3,one\n",
            "audiocaps",
            r"line 2: '1.23E\+10' is no YouTube id",
        ),
        (
            "audiocaps/train.csv",
            HEAD + "1,aaaaaaaaaaa,3,one\n2,aaaaaaaa",
            "audiocaps",
            "line 3: 2 columns instead of 4",
        ),
        (
            "audiocaps/train.csv",
            HEAD + "1,aaaaaaaaaaa,3,one, two\n",
            "audiocaps",
            "line 2: 5 columns instead of 4",
        ),
        ("audiocaps/train.csv", "", "audiocaps", "is empty"),
        (
            "audiocaps/train.csv",
            "id,youtube_id,start,text\n",
            "audiocaps",
            "no column 'audiocap_id'",
        ),
        ("audiocaps/train.csv", HEAD + "1,aaaaaaaaaaa,3,caf\xe9\n", "audiocaps", "not UTF-8"),
        (
            "urbansound8k/UrbanSound8K.csv",
            "slice_file_name,fsID,start,end,salience,fold,classID,class_name\n",
            "urbansound8k",
            "no column 'class' but 'class_name'",
        ),
        (
            "fsd50k/dev.csv",
            "fname,labels,mids,split\n6.4E+04,Dog,/m/1,train\n",
            "fsd50k",
            "line 2: '6.4E.04' is no Freesound id",
        ),
        (
            "musiccaps/musiccaps-public.csv",
            "ytid,start_s,end_s,caption,is_audioset_eval\naaaaaaaaaaa,1,2,x,TRUE\n",
            "musiccaps",
            "is_audioset_eval is 'TRUE'",
        ),
        (
            "wavcaps/sb_final.json",
            '{"data": [{"id": "1", "caption": "x"}, {"id": "2", "cap',
            "wavcaps_soundbible",
            "sb_final.json: a record without an end .* after 1 records: cut off",
        ),
        (
            "wavcaps/sb_final.json",
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "wavcaps_soundbible",
            "Git LFS pointer",
        ),
        (
            "wavcaps/sb_final.json",
            '{"data": [{"id": "1"}]}',
            "wavcaps_soundbible",
            "record 0: no caption",
        ),
        (
            "wavcaps/other.json",
            "{}",
            "wavcaps_soundbible",
            "lacks sb_final.json; it holds other.json",
        ),
        ("macs/MACS.yaml", "files:\n- filename: x\n", "macs", "not MACS as published"),
    ],
)
def test_damage_is_named(tmp_path, name, text, read, message):
    path = write(tmp_path / name, text, "latin-1" if "\xe9" in text else "utf-8")
    with pytest.raises(DataError, match=message) as e:
        list(audiotia.SOURCES[read].clips(Root(tmp_path)))
    assert path.parent.name in str(e.value)
    with pytest.raises(
        SystemExit, match=message if read not in ("urbansound8k", "fsd50k") else "shards.describe"
    ):
        run(audiotia, tmp_path, tmp_path / "out", read, "--keep-eval")
    assert not list(tmp_path.glob("out/*/*"))  # nothing half-written is left


@pytest.mark.parametrize("name", ["1-5-A-10.wav", "1-5-A0.wav"])
def test_a_name_ends_with_its_whole_target(tmp_path, name):
    head = "filename,fold,target,category,esc10,src_file,take\n"
    write(tmp_path / "esc50/esc50.csv", f"{head}{name},1,0,dog,True,5,A\n")
    with pytest.raises(DataError, match="line 2: target '0' does not fit"):
        list(labels.esc50(Root(tmp_path)))


def test_what_is_certain_is_read(tmp_path):
    """A byte-order mark, CRLF, empty columns to the right, line feeds and quotes in a caption."""
    text = (
        "\ufeffaudiocap_id,youtube_id,start_time,caption,,\r\n"
        '1,-aaaaaaaaaa,3,"On|on ""loud""\ntwice",,\r\n\r\n2,aaaaaaaaaaa,3,two,,\r\n'
    )
    write(tmp_path / "audiocaps/train.csv", text)
    assert [c["caption"] for c in captions.audiocaps(Root(tmp_path), "train")] == [
        'On|on "loud" twice',
        "two",
    ]
    path = write(tmp_path / "x.csv", 'a, b\n1, "2,3"\n')
    assert list(csv_records(path, ("x", "y"), header=False, spaced=True)) == [
        {"x": "a", "y": "b"},
        {"x": "1", "y": "2,3"},
    ]
    path = write(tmp_path / "y.csv", "a,b\n x ,2\n")
    assert list(csv_records(path, ("a",))) == [{"a": " x ", "b": "2"}]


def test_wrong_folders(tmp_path):
    with pytest.raises(SystemExit, match="there is no folder .*nowhere"):
        run(audiotia, tmp_path / "nowhere", tmp_path / "out", "audiocaps")
    with pytest.raises(SystemExit, match="there is no 'audiocap'"):
        audiotia.main(["audiocap", "--root", str(tmp_path), "--out", "x"])
    way = f"To get it: python -m shards.fetch audiocaps --root {re.escape(str(tmp_path))}"
    with pytest.raises(SystemExit, match=f"there is no folder .*audiocaps; it should hold.*{way}"):
        run(audiotia, tmp_path, tmp_path / "out", "audiocaps")
    for copy in ("a", "b"):
        write(tmp_path / f"audiocaps/{copy}/train.csv", HEAD)
    with pytest.raises(DataError, match="holds train.csv 2 times"):
        list(captions.audiocaps(Root(tmp_path), "train"))
    small(tmp_path / "r")
    with pytest.raises(SystemExit, match="holds 0 audio files.*--no-audio"):
        run(benchmarks, tmp_path / "r", tmp_path / "bench", "audiocaps")
    if os.getuid():
        (tmp_path / "r/audiocaps").chmod(0)
        with pytest.raises(SystemExit, match="Permission denied"):
            run(audiotia, tmp_path / "r", tmp_path / "out", "audiocaps")
        (tmp_path / "r/audiocaps").chmod(0o755)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
def test_streamed_json_is_json(tmp_path, chunk):
    records = [{"a": 'x]},{"\\' * (i % 5), "b": [1, {"c": [i]}], "é": None} for i in range(40)]
    path = write(
        tmp_path / "x.json",
        json.dumps({"n": 1, "data": records, "z": 2}, indent=2 if chunk == 7 else None),
    )
    assert list(stream_json(path, "data", chunk)) == records
    assert (
        list(stream_json(write(tmp_path / "y.json", json.dumps(records)), None, chunk)) == records
    )
    with pytest.raises(DataError, match="no list 'other'|not the JSON"):
        list(stream_json(path, "other", chunk))
    with pytest.raises(DataError, match="cut off"):
        list(stream_json(write(tmp_path / "z.json", json.dumps(records)[:-40]), None, chunk))


@pytest.mark.slow
def test_streamed_json_needs_little_memory(tmp_path):
    path = write(
        tmp_path / "x.json", json.dumps([{"id": i, "text": "word " * 40} for i in range(60_000)])
    )
    tracemalloc.start()
    assert sum(1 for _ in stream_json(path)) == 60_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 12e6 and peak < 8e6


def test_plain():
    assert plain(" A dog, barks -- TWICE!") == plain("a dog barks twice") != plain("a dog barks")


# --- texts and names --------------------------------------------------------------------------


def test_only_a_line_feed_ends_a_line(tmp_path):
    lines = ['{"a": "soft\u2028piano"}', '{"a": "loud\x85drums"}', "", '{"a": "x\u2029y"}']
    path = write(tmp_path / "x.jsonl", "\ufeff" + "\r\n".join(lines) + "\n")
    read = list(json_lines(path, lambda number, row: (number, row["a"]), "a", "again"))
    assert read == [(1, "soft\u2028piano"), (2, "loud\x85drums"), (4, "x\u2029y")]
    write(path, '{"a": "b"}\n{"a": "caf\xe9"}\n', "latin-1")
    with pytest.raises(DataError, match=r"x.jsonl, line 2: not UTF-8"):
        list(text_lines(path))
    write(path, "[" * 100_000 + "\n")
    with pytest.raises(DataError, match=r"x.jsonl, line 1: not a"):
        list(json_lines(path, lambda number, row: row, "a", "again"))
    with pytest.raises(DataError, match="x.jsonl"):
        list(stream_json(path))
    where = "tut2017/TUT-acoustic-scenes-2017-development/meta.txt"
    write(tmp_path / where, "audio/a\u2028b.wav\tbeach\tx\n")
    (clip,) = labels.tut2017(Root(tmp_path), "development")
    assert clip["id"] == "development/a\u2028b"


@pytest.mark.parametrize("text", ["", "  ", "\u2028", "nan", " NaN\n", "<NA>", None, float("nan")])
def test_a_missing_text_is_no_text(text):
    assert not has_words(text) and not captions_of({"caption": text})


@pytest.mark.parametrize("text", ["a", "None", "no", "nand", "0"])
def test_a_short_text_is_a_text(text):
    assert has_words(text) and captions_of({"captions": [text, ""]}) == [text]


def test_clips_are_checked():
    assert checked({"caption": "nan"})["drop"] == "without a text"
    assert checked({"captions": ["", "x", "nan"]}) == {"captions": ["x"], "blank": 2}
    assert checked({"captions": ["", " "]})["drop"] == "without a text"
    assert checked({"question": " ", "answer": "yes"})["drop"] == "without a text"
    assert checked({"question": "?", "answer": ["yes", ""]})["drop"] == "without a text"
    assert checked({"caption": "", "drop": "not valid"})["drop"] == "not valid"
    assert checked({"labels": ["dog", ""]}) == {"labels": ["dog"]}
    assert checked({"labels": [" "]})["drop"] == "without a label"
    withheld = {"question": "?", "answer": "", "choices": ["a", "b"]}
    assert "drop" not in checked(withheld)


@pytest.mark.parametrize("digits", ["\u00b2", "\u0663", "1.0", "1_0", "", " 1"])
def test_digits_are_ascii(tmp_path, digits):
    """Ids keep training and test apart: each must be the same number in all files."""
    write(tmp_path / "fsd50k/dev.csv", f"fname,labels,mids,split\n{digits},Dog,/m/1,train\n")
    with pytest.raises(DataError, match="dev.csv, line 2"):
        list(labels.fsd50k(Root(tmp_path), "dev"))
    head = "filename,fold,target,category,esc10,src_file,take\n"
    for row in (f"1-1-A-{digits}.wav,1,{digits},dog,True,1,A", f"x-1.wav,1,1,dog,True,{digits},A"):
        write(tmp_path / "esc50/esc50.csv", f"{head}{row}\n")
        with pytest.raises(DataError, match="esc50.csv, line 2"):
            list(labels.esc50(Root(tmp_path)))
    write(
        tmp_path / "wavcaps/fsd_final.json", json.dumps({"data": [{"id": digits, "caption": "x"}]})
    )
    with pytest.raises(DataError, match="fsd_final.json, record 0"):
        list(captions.wavcaps(Root(tmp_path), "freesound"))
    write(tmp_path / "vggsound/vggsound.csv", f"aaaaaaaaaaa,{digits},dog,train\n")
    with pytest.raises(DataError, match="vggsound.csv, line 1"):
        list(labels.vggsound(Root(tmp_path), "train"))


@pytest.mark.parametrize("video", ["aaaaaaaaaa\u00e9", "aaaaaaaaaa\u0663", "aaaaaaaaaa"])
def test_ids_of_videos_are_ascii(tmp_path, video):
    write(tmp_path / "audiocaps/train.csv", f"{HEAD}1,{video},3,one\n")
    with pytest.raises(DataError, match="train.csv, line 2.*no YouTube id"):
        list(captions.audiocaps(Root(tmp_path), "train"))
    assert not VIDEO.fullmatch(f"{video}_30.0") and VIDEO.fullmatch("Yaaaaaaaaaaa_30.0")
    assert not VIDEO.fullmatch("aaaaaaaaaaa_\u0663")


@pytest.mark.parametrize("value", [None, 1.5, True, "", "nan", ["a"], {}])
def test_a_name_is_text_or_a_whole_number(tmp_path, value):
    row = {"id": value, "audio_name": value, "conversation": talk("a", "?", "!")["conversation"]}
    write(tmp_path / "wavcaps/sb_final.json", json.dumps({"data": [{**row, "caption": "x"}]}))
    with pytest.raises(DataError, match="sb_final.json, record 0"):
        list(captions.wavcaps(Root(tmp_path), "soundbible"))
    write(tmp_path / "musicqa/EvalMusicQA.json", json.dumps([row]))
    with pytest.raises(DataError, match="EvalMusicQA.json, record 0"):
        list(questions.musicqa(Root(tmp_path), "Eval"))


def test_null_in_json_is_left_out_and_another_type_is_named(tmp_path):
    rows = [{"id": i, "caption": c} for i, c in enumerate(["dog", None, float("nan"), "rain"])]
    write(tmp_path / "wavcaps/sb_final.json", json.dumps({"data": rows}))
    clips = list(captions.wavcaps(Root(tmp_path), "soundbible"))
    assert [clip.get("drop") for clip in clips] == [None, "without a text", "without a text", None]
    assert clips[1]["place"] == "sb_final.json, record 1"
    write(tmp_path / "wavcaps/sb_final.json", '{"data": [{"id": "1", "caption": ["x"]}]}')
    with pytest.raises(DataError, match="wavcaps.*after the first 0"):
        list(captions.wavcaps(Root(tmp_path), "soundbible"))


@pytest.mark.parametrize(
    "chosen",
    [("red", "red blue"), ("green", ["red", "blue"]), ("", ["a", "b"]), ("red", ["red", "red "])],
)
@pytest.mark.parametrize("split", ["test", "test-mini"])
def test_an_answer_is_among_its_choices(tmp_path, chosen, split):
    row = {"id": "u", "audio_id": "u.wav", "question": "?", "task": "sound"}
    row |= {"answer": chosen[0], "choices": chosen[1]}
    write(tmp_path / f"mmau/mmau-{split}.json", json.dumps([row]))
    clips = questions.mmau(Root(tmp_path), split)
    if split == "test" and not chosen[0]:  # withheld
        assert [clip["answer"] for clip in clips] == [""]
        return
    with pytest.raises(DataError, match=f"mmau-{split}.json, record 0"):
        list(clips)


@pytest.mark.parametrize(
    "lists",
    [
        {"AudioSet": ["Ya.wav"]},
        {"AudioSet": "Ya.wav", "FreeSound": []},
        {"AudioSet": [None], "FreeSound": []},
        [],
    ],
)
def test_a_blacklist_of_another_form_is_named(tmp_path, lists):
    for name in ("test_ac", "ub8k_esc50_vggsound"):
        write(tmp_path / f"wavcaps/blacklist_exclude_{name}.json", json.dumps(lists))
    with pytest.raises(DataError, match="blacklist_exclude_test_ac.json"):
        captions.wavcaps_blacklist(Root(tmp_path)["wavcaps"])


# --- files of another form --------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, said",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
        (b"<!DOCTYPE html>\n<html>quota exceeded</html>", "web page"),
        (b"", "is empty"),
        (b"\x1f\x8b\x08\0\0\0", "compressed"),
    ],
)
def test_another_file_in_its_place_is_named(tmp_path, content, said):
    for name, read in (
        ("audiocaps/train.csv", lambda root: captions.audiocaps(root, "train")),
        ("wavcaps/sb_final.json", lambda root: captions.wavcaps(root, "soundbible")),
        ("lp_musiccaps/captions.jsonl", captions.lp_musiccaps),
        ("macs/MACS.yaml", captions.macs),
        ("fsd50k/dev.csv", lambda root: labels.fsd50k(root, "dev")),
        ("tut2017/development/meta.txt", lambda root: labels.tut2017(root, "development")),
    ):
        write(tmp_path / name, "")
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}.*{said}"):
            list(read(Root(tmp_path)))


def test_companions_of_macos_are_passed_over(tmp_path):
    for name in ("casual_000.wav", "._casual_000.wav"):
        write(tmp_path / f"sesa/train/{name}", "x")
    assert [clip["id"] for clip in labels.sesa(Root(tmp_path), "train")] == ["train/casual_000"]
    write(tmp_path / "audiocaps/__MACOSX/train.csv", "x")
    write(tmp_path / "audiocaps/x/train.csv", HEAD + "1,aaaaaaaaaaa,3,one\n")
    (tmp_path / "audiocaps/train.csv").mkdir()  # some unpack into a folder of the file's name
    assert len(captions.audiocaps(Root(tmp_path), "train")) == 1


def test_names_of_files_need_not_be_utf_8(tmp_path):
    write(tmp_path / "sesa/train/casual_000.wav", "x")
    odd = os.fsencode(tmp_path / "sesa/train") + b"/casual_\xe9.wav"
    os.rename(tmp_path / "sesa/train/casual_000.wav", odd)
    root = Root(tmp_path)
    assert len(labels.sesa(root, "train")) == 1 and root.fingerprint()
    with pytest.raises(DataError, match="train.csv"):
        root["sesa"].find("train.csv")


def test_readers_can_be_read_again(tmp_path):
    """By the root or the dataset's folder; nothing is read before it is asked for."""
    clips = captions.audiocaps(Root(tmp_path), "train")
    small(tmp_path, 5)
    assert len(clips) == 5 and [clip["id"] for clip in clips] == [clip["id"] for clip in clips]
    (tmp_path / "audiocaps").rename(tmp_path / "elsewhere")
    root = Root(tmp_path)
    with pytest.raises(Missing):
        iter(captions.audiocaps(root, "train")).__next__()
    assert next(iter(datasets.audiocaps(root["elsewhere"], "train")))["id"] == "00000000000_0"
    write(tmp_path / "lp_musiccaps/captions.jsonl", '{"audio_name": "a/b.mp3", "caption": "Slow"}')
    (track,) = datasets.lp_musiccaps(Root(tmp_path))
    assert (track["id"], track["caption"]) == ("a/b", "Slow")
