"""The tiny world, built smaller still; and how it is kept."""

import json

import numpy as np
import pytest

from clap import CLAP
from data import Source, read_source
from disk import DataError
from shards.tiny import benchmarks, models, recipe, scenes, world as tiny
from shards.tiny.models import clap_clip, clap_text


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The tiny world, smaller still: everything is made, nothing is learned well."""
    patch = pytest.MonkeyPatch()
    for module, name, value in (
        (models, "CLAP_CLIPS", 96),
        (models, "CLAP_EPOCHS", 1),
        (models, "LLM_SCENES", 60),
        (benchmarks, "CLIPS", 40),
        (tiny, "SCENES", {"train": 60, "val": 10}),
    ):
        patch.setattr(module, name, value)
    root = tmp_path_factory.mktemp("tiny") / "world"
    tiny.build(root)
    yield root
    patch.undo()


def samples(world, part):
    folders = (
        [world / part] if part != "test" else [world / part / name for name in benchmarks.TEST]
    )
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
    r = np.random.default_rng(0)
    clap = {clap_text(clap_clip(i).scene, r).lower() for i in range(96) for _ in range(4)}
    labels = {text for text in train | clap if text.startswith("sound of ")}
    assert len(labels) > 10
    train, clap = train - labels, clap - labels  # labels belong to everyone
    assert len(train) > 150 and len(test) > 30 and len(clap) > 100
    for a, b in ((train, val), (train, test), (val, test), (clap, train), (clap, test)):
        assert not a & b


@pytest.mark.slow
def test_training_is_text_alone_and_every_task_is_there(world):
    train = samples(world, "train")
    assert {s["task"] for s in train} == {"cls", "cap", "music_cap", "aqa", "open", "mcq"}
    assert len(train) == 360
    assert all(s["audio"] is None for s in train)
    assert all(abs(np.linalg.norm(s["vector"]) - 1) < 1e-2 for s in train)
    clap = CLAP.from_pretrained(world / "clap")
    z = clap.encode_text([s["text"] for s in train])
    np.testing.assert_allclose(np.stack([s["vector"] for s in train]), z, atol=2e-3)


@pytest.mark.slow
def test_test_part_is_audio_with_references(world):
    for name, test in benchmarks.TEST.items():
        rows = list(read_source(Source(world / "test" / name), strict=True, audio=True))
        assert 5 <= len(rows) <= min(test.n, 40)
        assert all(r["audio"][:4] == b"fLaC" for r in rows)
        if name == "caption":
            assert all(len(set(r["answer"])) == 5 and r["text"] not in r["answer"] for r in rows)
    labels = json.loads((world / "test" / "events" / "labels.json").read_text())
    rows = list(read_source(Source(world / "test" / "events")))
    assert labels == scenes.labels("sound")
    assert all(set(r["answer"].split(", ")) <= set(labels) for r in rows)
    assert all("," in r["answer"] for r in rows)
    heard = {clap_clip(i).wave.tobytes() for i in range(96)}
    clips = [(place, i) for place in benchmarks.PLACES for i in range(40)]
    assert not heard & {benchmarks.wave_of(*clip).tobytes() for clip in clips}
    assert len(list((world / "listen").glob("*.wav"))) == 12


@pytest.mark.slow
def test_benchmarks_share_their_clips(world):
    def rows(name):
        return list(read_source(Source(world / "test" / name), strict=True, audio=True))

    assert [row["audio"] for row in rows("yesno")] == [row["audio"] for row in rows("mcq")]
    assert {row["audio"] for row in rows("events")} < {row["audio"] for row in rows("mcq")}
    assert {row["task"] for row in rows("caption")} == {"cap"}
    assert {row["task"] for row in rows("music_caption")} == {"music_cap"}
    instruments = scenes.labels("music")
    assert all(row["answer"] in instruments for row in rows("music"))


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
    (tmp_path / "recipe.txt").write_text("pancakes")
    with pytest.raises(DataError, match="left alone"):
        tiny.build(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


class Rebuilt(Exception):
    pass


WRITERS = "write_clap", "write_llm", "write_test", "write_listen", "write_text_part"


def rebuild(*_):
    raise Rebuilt


@pytest.fixture
def old_world(tmp_path, monkeypatch):
    """old_world(stamp): a finished world with this stamp; to build a stage of it raises Rebuilt."""

    for module in (models, benchmarks, tiny):
        for name in vars(module).keys() & set(WRITERS):
            monkeypatch.setattr(module, name, rebuild)

    def make(stamp):
        for name in ("clap", "llm", "train", "val", "test", "listen"):
            (tmp_path / name).mkdir()
        (tmp_path / "recipe.txt").write_text(stamp)
        return tmp_path

    return make


@pytest.mark.slow
def test_another_recipe_is_another_world(old_world):
    root = old_world("0123456789abcdef")
    (root / "thesis.txt").write_text("mine")
    with pytest.raises(Rebuilt):
        tiny.build(root)
    assert sorted(path.name for path in root.iterdir()) == ["recipe.txt", "thesis.txt"]
    assert (root / "recipe.txt").read_text() == recipe.recipe()


def test_a_finished_world_is_kept(old_world):
    root = old_world(recipe.recipe())
    tiny.build(root)
    assert (root / "recipe.txt").read_text() == recipe.recipe()
