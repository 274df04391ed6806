"""The benchmarks' shards, from the real files and from small ones."""

import json

import pytest
from annotations import HEAD, made, real_root, run, write

from data import Source
from disk import DataError
from shards import benchmarks
from shards.files import Root

NAMES = ("audiocaps", "clotho", "clothoaqa")


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


@pytest.mark.parametrize("n", [2, 4])
def test_a_question_without_three_answers_of_each_annotator_is_refused(tmp_path, n):
    head = "file_name,QuestionText,answer,confidence\n"
    write(tmp_path / "clothoaqa/clotho_aqa_test.csv", head + n * "a.wav,A?,yes,yes\n")
    with pytest.raises(DataError, match=f"'A.' of a.wav has {n} answers"):
        list(benchmarks.by_question(Root(tmp_path), "test"))


def test_an_empty_reference_is_no_reference(tmp_path, capsys):
    rows = ["1,aaaaaaaaaaa,0,", "2,bbbbbbbbbbb,0,nan", "3,aaaaaaaaaaa,0,one", "4,aaaaaaaaaaa,0,two"]
    write(tmp_path / "audiocaps/test.csv", HEAD + "\n".join(rows) + "\n")
    captions = "file_name," + ",".join(f"caption_{i}" for i in range(1, 6)) + "\n"
    text = captions + "a.wav,one,,three,four,five\nb.wav, ,,nan,,\n"
    write(tmp_path / "clotho/clotho_captions_evaluation.csv", text)
    answers = ["yes", "no", "yes", "yes", "", "yes", "nan", "nan", "nan"]
    asked = ["a.wav,A?", "a.wav,B?", "b.wav,C?"]
    rows = [f"{asked[i // 3]},{answer},yes" for i, answer in enumerate(answers)]
    head = "file_name,QuestionText,answer,confidence\n"
    write(tmp_path / "clothoaqa/clotho_aqa_test.csv", head + "\n".join(rows) + "\n")
    run(benchmarks, tmp_path, tmp_path / "out", *NAMES, "--no-audio")
    found = {name: [s["answer"] for s in made(tmp_path / "out" / name)] for name in NAMES}
    assert found == {
        "audiocaps": [["one", "two"]],
        "clotho": [["one", "three", "four", "five"]],
        "clothoaqa": [["yes", "no", "yes"]],  # the rules need all three annotators
    }
    index = {name: Source(tmp_path / "out" / name).index for name in NAMES}
    assert {name: index[name]["clips"] for name in NAMES} == dict.fromkeys(NAMES, 1)
    left_out = {name: index[name]["left_out"] for name in NAMES}
    assert {name: left_out[name]["without a text"]["n"] for name in NAMES} == {
        "audiocaps": 1,
        "clotho": 1,
        "clothoaqa": 2,
    }
    assert left_out["audiocaps"]["captions without a text"]["n"] == 1
    assert left_out["clotho"]["captions without a text"]["first"] == [
        "evaluation/a.wav (clotho_captions_evaluation.csv, line 2)"
    ]
    write(tmp_path / "clotho/clotho_captions_evaluation.csv", captions + "b.wav,,,,,\n")
    with pytest.raises(SystemExit, match="clotho: no samples. Left out: 1 without a text"):
        run(benchmarks, tmp_path, tmp_path / "none", "clotho", "--no-audio")


def test_one_benchmark_that_fails_does_not_stop_the_others(tmp_path):
    write(tmp_path / "audiocaps/test.csv", HEAD + "1,aaaaaaaaaaa,0,one\n")
    write(tmp_path / "mmau/mmau-test.json", "[5]")
    row = {"id": "u", "audio_id": "u.wav", "question": "?", "task": "sound"}
    row |= {"answer": "\ud83d", "choices": ["\ud83d", "b"]}
    mini = [row, row | {"id": "v", "answer": "b", "choices": ["a", "b"]}]
    write(tmp_path / "mmau/mmau-test-mini.json", json.dumps(mini))
    names = ("mmau", "fsd50k", "mmau_mini", "audiocaps")
    with pytest.raises(SystemExit) as e:
        run(benchmarks, tmp_path, tmp_path / "out", *names, "--no-audio")
    lines = str(e.value).splitlines()
    assert "mmau: " in lines[0] and "mmau-test.json: entry 0" in lines[0]
    assert lines[1].startswith("fsd50k: ") and len(lines) == 2
    assert len(made(tmp_path / "out/audiocaps")) == 1
    assert [s["id"] for s in made(tmp_path / "out/mmau_mini")] == ["v"]
