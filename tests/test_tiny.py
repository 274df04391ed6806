"""The tiny world, built smaller still; and how it is kept."""

import json

import numpy as np
import pytest

from clap import CLAP
from data import DataError, Source, read_source
from shards.tiny import recipe, scenes, world as tiny


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The tiny world, smaller still: everything is made, nothing is learned well."""
    patch = pytest.MonkeyPatch()
    for name, value in dict(
        CLAP_CLIPS=96,
        CLAP_EPOCHS=1,
        LLM_LINES=200,
        LLM_EPOCHS=1,
        SCENES={"train": 60, "val": 10},
        TEST=dict.fromkeys(tiny.TEST, 4),
    ).items():
        patch.setattr(tiny, name, value)
    root = tmp_path_factory.mktemp("tiny") / "world"
    tiny.build(root)
    yield root
    patch.undo()


def samples(world, part):
    folders = [world / part] if part != "test" else [world / part / name for name in tiny.TEST]
    return [s for f in folders for s in read_source(Source(f), strict=True, audio=True)]


def texts(rows):
    """All captions, references too, in lower case."""
    out = {row["text"].lower() for row in rows}
    for row in rows:
        if isinstance(row["answer"], list):
            out |= {reference.lower() for reference in row["answer"]}
    return out


@pytest.mark.slow
def test_parts_share_no_caption(world):
    train, val, test = (texts(samples(world, part)) for part in ("train", "val", "test"))
    clap = {tiny.clap_clip(i).caption.lower() for i in range(96)}
    assert len(train) > 150 and len(test) > 30
    for a, b in ((train, val), (train, test), (val, test), (clap, train), (clap, test)):
        assert not a & b


@pytest.mark.slow
def test_training_is_text_alone_and_every_task_is_there(world):
    train = samples(world, "train")
    assert {s["task"] for s in train} == {"cls", "cap", "music_cap", "aqa", "open", "mcq"}
    assert len(train) == 300
    assert all(s["audio"] is None for s in train)
    assert all(abs(np.linalg.norm(s["vector"]) - 1) < 1e-2 for s in train)
    clap = CLAP.from_pretrained(world / "clap")
    z = clap.encode_text([s["text"] for s in train])
    np.testing.assert_allclose(np.stack([s["vector"] for s in train]), z, atol=2e-3)


@pytest.mark.slow
def test_test_part_is_audio_with_references(world):
    for name in tiny.TEST:
        rows = list(read_source(Source(world / "test" / name), strict=True, audio=True))
        assert len(rows) == 4
        assert all(r["audio"][:4] == b"fLaC" for r in rows)
        if name == "caption":
            assert all(len(set(r["answer"])) == 5 and r["text"] not in r["answer"] for r in rows)
    labels = json.loads((world / "test" / "events" / "labels.json").read_text())
    rows = list(read_source(Source(world / "test" / "events")))
    assert labels == scenes.labels("sound")
    assert all(set(r["answer"].split(", ")) <= set(labels) for r in rows)
    assert all("," in r["answer"] for r in rows)
    heard = {tiny.clap_clip(i).wave.tobytes() for i in range(96)}
    tests = [(name, i) for name in tiny.TEST for i in range(4)]
    assert not heard & {tiny.test_sample(job).wave.tobytes() for job in tests}
    assert len(list((world / "listen").glob("*.wav"))) == 12


@pytest.mark.slow
def test_built_once_and_each_stage_alone(world):
    written = {p: p.stat().st_mtime_ns for p in world.rglob("*") if p.is_file()}
    tiny.build(world)
    assert written == {p: p.stat().st_mtime_ns for p in written}
    (world / "val" / "index.json").unlink()  # as if killed in the middle of a stage
    (world / "val").rename(world / "val.part")
    before = (world / "val.part" / "000000.tar").read_bytes()
    tiny.build(world)
    assert (world / "val" / "000000.tar").read_bytes() == before  # seeded: the same bytes
    assert not (world / "val.part").exists()
    assert all(p.stat().st_mtime_ns == t for p, t in written.items() if "val" not in p.parts)


def test_a_folder_of_yours_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="left alone"):
        tiny.build(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


class Rebuilt(Exception):
    pass


@pytest.fixture
def old_world(tmp_path, monkeypatch):
    """old_world(stamp): a finished world with this stamp; to build a stage of it raises Rebuilt."""

    def write(*_):
        raise Rebuilt

    for name in ("write_clap", "write_llm", "write_text_part", "write_test_part", "write_listen"):
        monkeypatch.setattr(tiny, name, write)

    def make(stamp):
        for name in ("clap", "llm", "train", "val", "test", "listen"):
            (tmp_path / name).mkdir()
        (tmp_path / "recipe.txt").write_text(stamp)
        return tmp_path

    return make


@pytest.mark.slow
def test_another_recipe_is_another_world(old_world):
    root = old_world("an older recipe")
    with pytest.raises(Rebuilt):
        tiny.build(root)
    assert [path.name for path in root.iterdir()] == ["recipe.txt"]
    assert (root / "recipe.txt").read_text() == recipe.recipe()


@pytest.mark.parametrize("stamp", ["a916c8ec7e88b7d3", recipe.recipe()])
def test_a_world_with_an_old_stamp_is_kept(old_world, stamp):
    root = old_world(stamp)
    tiny.build(root)
    assert (root / "recipe.txt").read_text() == stamp


def test_an_old_stamp_is_not_kept_with_other_code(old_world, monkeypatch):
    monkeypatch.setattr(recipe, "recipe", lambda: "code of tomorrow")
    with pytest.raises(Rebuilt):
        tiny.build(old_world("a916c8ec7e88b7d3"))
