"""The benchmarks' shards, from the real files."""

import json

import pytest
from annotations import made, real_root, run

from data import Source
from shards import benchmarks


@pytest.fixture(scope="module")
def root(shared, tmp_path_factory):
    return real_root(shared, tmp_path_factory.mktemp("root"))


@pytest.mark.slow
def test_all_benchmarks_and_their_audio(root, tmp_path):
    """Real recordings of 10 of ESC-50's classes and of Beijing opera; references of all others."""
    run(benchmarks, root, tmp_path / "bench", "esc50", "beijing_opera")
    for name, n, published in (("esc50", 240, 2_000), ("beijing_opera", 20, 236)):
        rows = made(tmp_path / "bench" / name, audio=True)
        index = Source(tmp_path / "bench" / name).index
        assert len(rows) == n and index["published"] == published
        assert all(
            r["audio"][:4] in (b"OggS", b"RIFF")
            and r["labels"] == [r["answer"]]
            and r["text"] is None
            for r in rows
        )
    assert (
        Source(tmp_path / "bench/esc50").index["left_out"]["without their audio file"]["n"] == 1_760
    )
    assert len(json.loads((tmp_path / "bench/esc50/labels.json").read_text())) == 50
    assert json.loads((tmp_path / "bench/beijing_opera/labels.json").read_text()) == [
        "clapper-drum",
        "cymbals",
        "large gong",
        "small gong",
    ]
    run(benchmarks, root, tmp_path / "all", "all", "--no-audio")
    there = {p.parent.name: len(Source(p.parent)) for p in (tmp_path / "all").glob("*/index.json")}
    assert there == {
        "esc50": 2_000,
        "fsd50k": 10_231,
        "dcase2017": 1_103,
        "vggsound": 15_446,
        "urbansound8k": 8_732,
        "cremad": 7_442,
        "beijing_opera": 20,
        "audiocaps": 975,
        "clotho": 1_045,
        "musiccaps": 2_858,
        "clothoaqa": 2_838,
        "mmau_mini": 300,
    }
    assert all(
        len(r["answer"]) == 5
        for name in ("audiocaps", "clotho")
        for r in made(tmp_path / "all" / name)
    )
    with pytest.raises(SystemExit, match="beijing_opera: 20 where 236"):
        benchmarks.main(["--check", "beijing_opera", "audiocaps", "--root", str(root)])
