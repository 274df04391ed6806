import json

import numpy as np
import pytest

from clap import CLAP
from data import DataError, Source, read_source
from shards.tiny import sounds, world as tiny


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
        TEST={name: 4 for name in tiny.TEST},
    ).items():
        patch.setattr(tiny, name, value)
    root = tmp_path_factory.mktemp("tiny") / "world"
    tiny.build(root)
    yield root
    patch.undo()


def samples(world, part):
    folders = [world / part] if part != "test" else [world / part / name for name in tiny.TEST]
    return [s for f in folders for s in read_source(Source(f), strict=True, audio=True)]


def texts(parts):
    return {
        t.lower()
        for s in parts
        for t in [
            s["text"],
            *(s["answer"] if s["task"].endswith("cap") and isinstance(s["answer"], list) else []),
        ]
    }


def test_parts_share_no_caption(world):
    train, val, test = (texts(samples(world, part)) for part in ("train", "val", "test"))
    clap = {tiny.clap_clip(i)[0].lower() for i in range(96)}
    assert len(train) > 150 and len(test) > 30
    for a, b in ((train, val), (train, test), (val, test), (clap, train), (clap, test)):
        assert not a & b


def test_training_is_text_alone_and_every_task_is_there(world):
    train = samples(world, "train")
    assert {s["task"] for s in train} == {"cls", "cap", "music_cap", "aqa", "open", "mcq"} and len(
        train
    ) == 300
    assert all(s["audio"] is None and abs(np.linalg.norm(s["vector"]) - 1) < 1e-2 for s in train)
    clap = CLAP.from_pretrained(world / "clap")
    z = clap.encode_text([s["text"] for s in train])
    np.testing.assert_allclose(np.stack([s["vector"] for s in train]), z, atol=2e-3)


def test_test_part_is_audio_with_references(world):
    for name in tiny.TEST:
        rows = list(read_source(Source(world / "test" / name), strict=True, audio=True))
        assert len(rows) == 4 and all(r["audio"][:4] == b"fLaC" for r in rows)
        if name == "caption":
            assert all(len(set(r["answer"])) == 5 and r["text"] not in r["answer"] for r in rows)
    labels = json.loads((world / "test" / "events" / "labels.json").read_text())
    rows = list(read_source(Source(world / "test" / "events")))
    assert labels == sounds.labels("sound") and all(
        set(r["answer"].split(", ")) <= set(labels) for r in rows
    )
    assert all("," in r["answer"] for r in rows)
    heard = {tiny.clap_clip(i)[2].tobytes() for i in range(96)}
    assert not heard & {
        tiny.test_sample((name, i))[2].tobytes() for name in tiny.TEST for i in range(4)
    }
    assert len(list((world / "listen").glob("*.wav"))) == 12


def test_built_once_and_each_stage_alone(world, monkeypatch):
    stamps = {
        p: p.stat().st_mtime_ns for p in world.rglob("*") if p.is_file() and p.name != "recipe.txt"
    }
    tiny.build(world)
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps}
    (world / "val" / "index.json").unlink()  # as if killed in the middle of a stage
    (world / "val").rename(world / "val.part")
    before = [(world / "val.part" / "000000.tar").read_bytes()]
    tiny.build(world)
    assert [(world / "val" / "000000.tar").read_bytes()] == before  # seeded: the same bytes
    assert not (world / "val.part").exists()
    assert all(p.stat().st_mtime_ns == t for p, t in stamps.items() if "val" not in p.parts)


def test_a_folder_of_yours_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="left alone"):
        tiny.build(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_another_recipe_is_another_world(tmp_path, monkeypatch):
    (tmp_path / "recipe.txt").write_text("an older recipe")
    (tmp_path / "clap").mkdir()
    monkeypatch.setattr(
        tiny, "train_clap", lambda tokenizer: (_ for _ in ()).throw(InterruptedError)
    )
    with pytest.raises(InterruptedError):
        tiny.build(tmp_path)
    assert (
        not (tmp_path / "clap").exists() and (tmp_path / "recipe.txt").read_text() == tiny.recipe()
    )
