"""Vectors beside the texts, and index.json for shards without one."""

import json

import numpy as np
import pytest
import torch
from conftest import make_samples, write_samples

from data import Source, read_source
from disk import DataError
from shards import embed as embedding


class Letters:
    """An encoder of one's own: three attributes and two methods. Counts what it is asked."""

    dim, sample_rate, seconds = 26, 8000, 1.0

    def __init__(self):
        self.asked = []

    def encode_text(self, texts):
        self.asked += texts
        z = torch.tensor(
            [[float(t.lower().count(chr(97 + i))) for i in range(26)] for t in texts]
        ).view(-1, 26)
        return torch.nn.functional.normalize(z, dim=-1)


def test_embed_encodes_each_text_once_and_resumes(tmp_path, monkeypatch):
    samples = list(make_samples(60))
    write_samples(tmp_path / "src", samples, vectors=False)
    clap = Letters()
    real, calls = embedding.copy_shard, []

    def dies_at_the_third(*args):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(args)
        real(*args)

    monkeypatch.setattr(embedding, "copy_shard", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        embedding.embed(tmp_path / "src", tmp_path / "dst", clap, "letters", progress=False)
    asked = clap.asked[3:]  # the first three are the encoder's probe
    assert len(asked) == len(set(asked)) == len({s["text"] for s in samples})
    monkeypatch.setattr(embedding, "copy_shard", real)
    kept = (tmp_path / "dst" / "000001.tar").stat().st_mtime_ns
    with pytest.raises(DataError, match="another encoder"):
        embedding.embed(tmp_path / "src", tmp_path / "dst", clap, "other", progress=False)
    assert (
        embedding.embed(tmp_path / "src", tmp_path / "dst", Letters(), "letters", progress=False)
        == []
    )
    assert (tmp_path / "dst" / "000001.tar").stat().st_mtime_ns == kept
    back = list(read_source(Source(tmp_path / "dst"), strict=True))
    want = Letters().encode_text([s["text"] for s in samples])
    assert [b["id"] for b in back] == [s["id"] for s in samples]
    np.testing.assert_allclose(np.stack([b["vector"] for b in back]), want.numpy(), atol=1e-3)
    assert Source(tmp_path / "dst").index["vectors"]["dim"] == 26


def test_missing_index_says_how_to_make_one(tmp_path):
    write_samples(tmp_path / "s", make_samples(30))
    made = json.loads((tmp_path / "s" / "index.json").read_text())
    (tmp_path / "s" / "index.json").unlink()
    with pytest.raises(DataError, match="shards.index"):
        Source(tmp_path / "s")
    assert embedding.index(tmp_path / "s") == []
    again = json.loads((tmp_path / "s" / "index.json").read_text())
    assert again["shards"] == made["shards"] and again["hash"] == made["hash"]
