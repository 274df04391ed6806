"""Annotation files that are damaged, odd or missing; JSON that is streamed."""

import json
import os
import tracemalloc

import pytest
from annotations import HEAD, run, small, write

from disk import DataError
from shards import audiotia, benchmarks
from shards.datasets import captions
from shards.files import Root, csv_records, plain, stream_json


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
    with pytest.raises(SystemExit, match="there is no folder .*audiocaps; it should hold"):
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
