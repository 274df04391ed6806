"""Writing shards: the same bytes, all or nothing, and resuming."""

import json
import tarfile

import numpy as np
import pytest
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
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()
    }
