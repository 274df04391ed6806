"""Writing shards: the same bytes, all or nothing, and resuming."""

import json
import tarfile

import numpy as np
import pytest
import torch
from conftest import make_samples, write_samples

from data import Source, read_source
from disk import DataError, sha256
from shards import writer
from shards.writer import ShardWriter


def test_round_trip(tmp_path):
    samples = list(make_samples(50))
    write_samples(tmp_path / "s", samples)
    back = list(read_source(Source(tmp_path / "s")))
    assert [{k: v for k, v in b.items() if k not in ("vector", "key")} for b in back] == samples
    assert all(
        abs(np.linalg.norm(b["vector"]) - 1) < 1e-3 and b["vector"].dtype == np.float32
        for b in back
    )
    index = json.loads((tmp_path / "s" / "index.json").read_text())
    assert (
        index["n"] == 50
        and [s["n"] for s in index["shards"]] == [20, 20, 10]
        and index["sources"] == {"farm": 50}
    )
    with tarfile.open(tmp_path / "s" / "000000.tar") as tar:
        names = tar.getnames()  # plain WebDataset: others can read it
    assert (
        names[0].endswith(".json") and names[1].endswith(".npy") and names[0][:-5] == names[1][:-4]
    )


def test_same_samples_same_bytes(tmp_path):
    for name in "ab":
        write_samples(tmp_path / name, make_samples(50))
    for i in range(3):
        assert (tmp_path / f"a/00000{i}.tar").read_bytes() == (
            tmp_path / f"b/00000{i}.tar"
        ).read_bytes()
    assert (
        json.loads((tmp_path / "a/index.json").read_text())["hash"]
        == json.loads((tmp_path / "b/index.json").read_text())["hash"]
    )


def test_writer_never_overwrites_and_leaves_nothing_half_written(tmp_path):
    write_samples(tmp_path, make_samples(5))
    with pytest.raises(DataError, match="already holds"):
        ShardWriter(tmp_path)
    with pytest.raises(RuntimeError), ShardWriter(tmp_path / "x") as writer:
        writer.write(next(make_samples(1)))
        raise RuntimeError
    assert list((tmp_path / "x").iterdir()) == []


@pytest.mark.parametrize("n", [0, 1, 511, 512, 513, 70_000])
def test_members_are_those_of_tarfile(n):
    info = tarfile.TarInfo("00000000000123.flac")
    info.size = n
    content = np.random.default_rng(n).bytes(n)
    assert b"".join(writer.tar_member(info.name, content)) == info.tobuf(
        tarfile.USTAR_FORMAT
    ) + content + bytes(-n % 512)


def test_shards_of_audio_stay_small(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "SHARD_BYTES", 50_000)
    with ShardWriter(tmp_path) as shards:
        for s in make_samples(12):
            shards.write(s, audio=("wav", bytes(20_000)))
    index = json.loads((tmp_path / "index.json").read_text())
    assert [s["n"] for s in index["shards"]] == [3, 3, 3, 3]
    assert [s["sha256"] for s in index["shards"]] == [
        sha256(p) for p in sorted(tmp_path.glob("*.tar"))
    ]


@pytest.mark.parametrize("stop", [1, 20, 39, 45])
def test_an_interrupted_writer_goes_on_after_its_last_whole_shard(tmp_path, stop):
    samples = list(make_samples(50))
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "a", 20, key="k") as writer:
        for i, s in enumerate(samples):
            if i == stop:
                raise KeyboardInterrupt
            writer.write(s)
    assert len(list((tmp_path / "a").glob("*.tar*"))) == stop // 20
    if stop >= 20:
        for key in ("another", None):
            with pytest.raises(DataError, match="begun from other data"):
                ShardWriter(tmp_path / "a", 20, key=key)
        fewer = pytest.raises(DataError, match="fewer than when it was begun")
        with fewer, ShardWriter(tmp_path / "a", 20, key="k") as writer:
            writer.write(samples[0])
    for name in "ab":
        with ShardWriter(tmp_path / name, 20, key="k") as writer:
            for s in samples:
                writer.write(s)
        assert not (tmp_path / name / "building.json").exists()
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()
    }


# --- what is written can be read again --------------------------------------------------------


def sample(**changed):
    return next(make_samples(1)) | changed


@pytest.mark.parametrize(
    "bad, said",
    [
        (dict(sample=sample(id="clip 7"), audio=("m4a", b"x")), "'clip 7'.*'m4a'.*flac"),
        (dict(sample=sample(id="clip 7"), audio=("wav", "x.wav")), "'clip 7': audio must be"),
        (dict(sample=sample(id="clip 7"), audio=("wav", b"")), "'clip 7': audio must be"),
        (dict(sample=sample(id="clip 7"), vector=np.ones((1, 4))), r"'clip 7'.*\(1, 4\)"),
        (dict(sample=sample(id="clip 7"), vector=np.array([1, np.nan])), "'clip 7'.*no finite"),
        (dict(sample=sample(id="clip 7"), vector=np.array([1, 1e6])), "'clip 7'.*no finite"),
        (dict(sample=sample(id="clip 7"), vector=np.ones(0)), "'clip 7'.*no finite"),
        (dict(sample=sample(id="clip 7"), vector=["a"]), "'clip 7'.*no numbers"),
        (dict(sample=sample(id="clip 7"), vector=np.ones(5)), "'clip 7'.*has 5 .*others have 4"),
        (dict(sample=sample(id="clip 7", weight=float("nan"))), "'clip 7': weight is nothing that"),
        (dict(sample=sample(id="clip 7", tags={"a"})), "'clip 7': tags is nothing that JSON"),
        (dict(sample=sample(id="clip 7", answer="\ud83d")), "'clip 7' .*answer holds half"),
        (dict(sample=sample(id="clip 7", more=[{"a": "\ud83d"}])), "'clip 7' .*more holds half"),
        (dict(sample=sample(id="clip 7", task="x")), "'clip 7' .*task"),
        (dict(sample=sample(id="clip 7", answer=5)), "'clip 7' .*answer is 5"),
        (dict(sample=["clip 7"]), "a sample is a dict"),
        (dict(sample=sample(id="clip 7"), vector=np.zeros(4)), "'clip 7'.*has a direction"),
        (dict(sample=sample(id="clip 7"), audio="x.wav"), "'clip 7'.*extension, bytes"),
    ],
)
def test_what_the_reader_would_not_find_is_refused_by_name(tmp_path, bad, said):
    with ShardWriter(tmp_path) as shards:
        shards.write(sample(), vector=np.ones(4))
        with pytest.raises(DataError, match=said):
            shards.write(**bad)
        shards.write(sample(id="after"), vector=np.ones(4))
    ids = [s["id"] for s in read_source(Source(tmp_path), strict=True)]
    assert ids == [sample()["id"], "after"]  # nothing half-written between them


@pytest.mark.parametrize(
    "bad", [{"licences": "CC0"}, {"key": {"a": {1}}}, {"licences": {("a",): 1}}]
)
def test_what_an_index_cannot_hold_is_refused_at_once(tmp_path, bad):
    with pytest.raises(DataError, match=f"{next(iter(bad))} is .*JSON"):
        ShardWriter(tmp_path / "s", **bad)
    assert not (tmp_path / "s").exists()


def test_the_first_vector_or_the_set_says_the_dimension(tmp_path):
    with ShardWriter(tmp_path / "a", vectors={"dim": 8, "side": "text"}) as shards:
        with pytest.raises(DataError, match="has 4 .*others have 8"):
            shards.write(sample(), vector=np.ones(4))
        shards.write(sample(), vector=torch.ones(8, requires_grad=True))
        shards.write(sample(), vector=[0.5] * 8)
    assert [s["vector"].sum() for s in read_source(Source(tmp_path / "a"))] == [8, 4]


def test_ordinary_relatives_are_taken(tmp_path):
    """numpy's numbers, as pandas hands them out; an extension as the file has it."""
    fields = dict(id=np.int64(5), n=np.array([1, 2]), x=np.float32(0.5), b=np.bool_(True))
    with ShardWriter(tmp_path) as shards:
        shards.write(sample(**fields, t=(np.str_("a"), 1)), audio=(".WAV", bytearray(b"RIFF")))
    (back,) = read_source(Source(tmp_path), strict=True, audio=True)
    assert str(back["id"]) == "5" and (back["kind"], back["audio"]) == ("wav", b"RIFF")
    assert (back["n"], back["x"], back["b"], back["t"]) == ([1, 2], 0.5, True, ["a", 1])


def test_a_writer_without_a_sample_leaves_no_index(tmp_path):
    with pytest.raises(DataError, match="no sample was written"), ShardWriter(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "is empty"),
        (b"[]", "JSON list"),
        (b"{}", "not of the writer's form"),
        (b'{"key": "k", "shards": 5, "sources": {}, "tasks": {}}', "not of the writer's form"),
        (
            b'{"key": "k", "shards": [{"file": "0.tar"}], "sources": {}, "tasks": {}}',
            "not of the writer's form",
        ),
        (
            b'{"key": "k", "sources": {}, "tasks": {},'
            b'"shards": [{"file": "000007.tar", "n": 2, "sha256": ""}]}',
            "000007.tar, which is gone",
        ),
    ],
)
def test_a_damaged_building_json_says_what_to_do(tmp_path, content, said):
    (tmp_path / "building.json").write_bytes(content)
    with pytest.raises(DataError, match=f"building.json.*{said}.*delete the folder"):
        ShardWriter(tmp_path, key="k")


def test_an_index_is_written_whatever_its_texts(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["x.py", "caf\udce9"])
    with ShardWriter(tmp_path) as shards:
        shards.write(sample())
        shards.info["left_out"] = "\ud83d"
    index = json.loads((tmp_path / "index.json").read_bytes())
    assert index["command"].endswith("'caf\\udce9'") and index["left_out"] == "\ud83d"
