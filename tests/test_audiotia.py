"""AudioTIA's sources: joined, kept apart from the evaluation, counted."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from annotations import HEAD, made, openaqa_row, real_root, run, small, talk, wav, write

from config.mats_audio import config as mats_audio
from config.mats_gpt2 import audiotia as mixture
from data import Source, find_sources
from disk import DataError
from shards import audiotia
from shards.sources import TEST_ONLY

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def root(shared, tmp_path_factory):
    return real_root(shared, tmp_path_factory.mktemp("root"))


def words(text):
    return " ".join(re.sub(r"[\W]", " ", text.lower()).split())


def csv_rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_training_text_is_not_evaluation_text(root, tmp_path):
    """Everything that the real files allow, without the texts and clips of the evaluation."""
    run(audiotia, root, tmp_path, "all")
    built = {p.parent.name: made(p.parent) for p in tmp_path.glob("*/index.json")}
    assert {k: len(v) for k, v in built.items()} == {
        "wavcaps_soundbible": 1_217,
        "audiocaps": 48_217,
        "clotho": 17_909,
        "clothoaqa": 10_221,
        "musiccaps": 2_662,
        "song_describer": 1_078,
    }

    def rows(path):
        return csv_rows(root / path)

    music = [r for r in rows("musiccaps/musiccaps-public.csv") if r["is_audioset_eval"] == "True"]
    evaluation = {words(r["caption"]) for r in [*rows("audiocaps/test.csv"), *music]}
    evaluation |= {
        words(r[f"caption_{i}"])
        for r in rows("clotho/clotho_captions_evaluation.csv")
        for i in range(1, 6)
    }
    tested = {r["youtube_id"] for r in rows("audiocaps/test.csv")} | {r["ytid"] for r in music}
    for path in ("vggsound/test.csv", "dcase2017t4/groundtruth_weak_label_evaluation_set.csv"):
        tested |= {line[:11] for line in (root / path).read_text().splitlines()}
    blacklist = json.loads((root / "wavcaps/blacklist_exclude_test_ac.json").read_text())
    tested |= {name[1:-4] for name in blacklist["AudioSet"]}
    want = [
        f"{r['youtube_id']}_{r['start_time']}"
        for r in rows("audiocaps/train.csv")
        if words(r["caption"]) not in evaluation and r["youtube_id"] not in tested
    ]
    assert [s["id"] for s in built["audiocaps"]] == want
    assert not evaluation & {words(s["text"]) for samples in built.values() for s in samples}
    for s in built["audiocaps"][:50]:
        assert (
            s["text"] == s["answer"]
            and s["instruction"] == "Generate audio caption."
            and s["tag"] == "[audio caption audiocaps]"
        )
    captions = {
        (s, r["file_name"]): [r[f"caption_{i}"].strip() for i in range(1, 6)]
        for s in ("development", "validation")
        for r in rows(f"clotho/clotho_captions_{s}.csv")
    }
    known = {
        file: [*captions.get(("development", file), []), *captions.get(("validation", file), [])]
        for _, file in captions
    }
    assert all(
        s["text"] in [" ".join(x.split()) for x in known[s["id"].rpartition("/")[0]]]
        for s in built["clothoaqa"]
    )
    kept = {s["instruction"] for s in built["clothoaqa"]}
    assert kept <= {
        " ".join(r["QuestionText"].split()) for r in rows("clothoaqa/clotho_aqa_train.csv")
    }
    run(audiotia, root, tmp_path / "keep", "audiocaps", "--keep-eval")
    assert len(Source(tmp_path / "keep/audiocaps")) == 49_838


@pytest.mark.slow
def test_counts_are_checked(root, tmp_path, capsys):
    with pytest.raises(SystemExit) as e:
        audiotia.main(["--check", "audiocaps", "clotho", "fsd50k", "--root", str(root)])
    assert e.value.code == 0 and "49,838 of    49,838" in capsys.readouterr().out
    text = (root / "audiocaps/train.csv").read_text(encoding="utf-8")
    write(tmp_path / "audiocaps/train.csv", text[: text.index("\n", len(text) // 2) + 1])
    with pytest.raises(SystemExit, match=r"audiocaps: 2\d,\d+ where 49,838 were published"):
        audiotia.main(["--check", "audiocaps", "--root", str(tmp_path)])


def test_classification_needs_descriptions(tmp_path):
    write(
        tmp_path / "esc50/esc50.csv",
        "filename,fold,target,category,esc10,src_file,take\n"
        + "".join(
            f"1-{i}-A-{i % 2}.wav,1,{i % 2},{['dog', 'mouse_click'][i % 2]},True,{i},A\n"
            for i in range(5)
        ),
    )
    with pytest.raises(SystemExit, match=r"python -m shards.describe esc50"):
        run(audiotia, tmp_path, tmp_path / "out", "esc50")
    assert audiotia.label_sets("esc50", tmp_path) == {("dog",): 3, ("mouse click",): 2}
    write(
        tmp_path / "descriptions/esc50.jsonl",
        '{"labels": ["dog"], "text": "A hound barks."}\n'
        '{"labels": ["mouse click", "dog"], "text": "Click, then woof"}\n',
    )
    run(audiotia, tmp_path, tmp_path / "out", "esc50")
    rows = made(tmp_path / "out/esc50")
    assert [(r["text"], r["answer"], r["instruction"], r["task"]) for r in rows] == [
        ("A hound barks.", "dog", "Classify events in the audio clip.", "cls"),
        ("Click, then woof", "mouse click, dog", "Classify events in the audio clip.", "cls"),
    ]
    write(
        tmp_path / "descriptions/esc50.jsonl",
        '{"labels": ["dog"], "text": "A hound barks."}\n{"labels": ["dog"], "te',
    )
    with pytest.raises(SystemExit, match="esc50.jsonl, line 2"):
        run(audiotia, tmp_path, tmp_path / "other", "esc50")


def test_questions_are_joined_to_captions(tmp_path, capsys):
    """OpenAQA's and MusicQA's rows; what has no caption is counted and named, never invented."""
    small(tmp_path, 10)
    rows = [
        (
            "/data/sls/audioset/as_strong_train/Y00000000001.flac",
            "as_strong_train",
            "open-ended question",
            "What barks?",
            "A dog.",
        ),
        (
            "/x/00000000005.flac",
            "audiocaps_train",
            "open-ended question",
            "Held out?",
            "Yes.",
        ),  # a clip of the evaluation set
        ("/x/zzzzzzzzzzz.flac", "vggsound_train", "open-ended question", "No caption?", "None."),
        ("/x/rain.wav", "clotho_development", "open-ended question", "What falls?", "Rain."),
        ("/x/77.flac", "freesound_10s", "open-ended question", "Which?", "Seventy-seven."),
        (
            "/x/g.wav",
            "nsynth_instrument",
            "close-ended question: classification",
            "Classify",
            "Labels: guitar; bass",
        ),
        ("/x/m.wav", "magnatagatune", "caption", "Write a caption", "A slow piano."),
        ("/x/q.wav", "as_20k", "close-ended question: classification", "Classify", "Labels: dog"),
    ]
    write(
        tmp_path / "openaqa/open.json",
        json.dumps([openaqa_row(*row) for row in rows]),
    )
    write(
        tmp_path / "clotho/clotho_captions_development.csv",
        "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
        "rain.wav,It rains,It rains a,b,c,d\n",
    )
    write(
        tmp_path / "wavcaps/fsd_final.json",
        json.dumps({"num_captions_per_audio": 1, "data": [{"id": 77, "caption": "Seven"}]}),
    )
    run(audiotia, tmp_path, tmp_path / "out", "openaqa", "openaqa_captions")
    out = capsys.readouterr().out
    assert [(s["text"], s["instruction"], s["answer"]) for s in made(tmp_path / "out/openaqa")][
        ::2
    ] == [("A dog, and number 1", "What barks?", "A dog."), ("Seven", "Which?", "Seventy-seven.")]
    assert made(tmp_path / "out/openaqa")[1]["text"] in ("It rains", "It rains a", "b", "c", "d")
    assert (
        "1 without a caption of their clip (open/2 (open.json, record 2))" in out
        and "1 clips of an evaluation set" in out
        and "as_final.json" in out
    )
    assert [s["answer"] for s in made(tmp_path / "out/openaqa_captions")] == ["A slow piano."]
    assert audiotia.label_sets("openaqa_music", tmp_path) == {("guitar", "bass"): 1}

    write(
        tmp_path / "musicqa/FinetuneMusicQA.json",
        json.dumps([talk("f/a-30.mp3", "How is it? ", " Slow."), talk("b.mp3", "And?", "Fast.")]),
    )
    write(
        tmp_path / "lp_musiccaps/captions.jsonl",
        '{"audio_name": "f/a-30.mp3", "caption": "A slow song"}\n',
    )
    run(audiotia, tmp_path, tmp_path / "out", "musicqa")
    assert [(s["text"], s["instruction"], s["answer"]) for s in made(tmp_path / "out/musicqa")] == [
        ("A slow song", "How is it?", "Slow.")
    ]
    out = capsys.readouterr().out
    assert "1 without a caption of their clip" in out and "PretrainMusicQA.json" in out


def test_an_id_that_begins_with_y_and_musicqas_tracks_are_kept_apart(tmp_path):
    small(tmp_path, 3)
    write(tmp_path / "audiocaps/test.csv", HEAD + "1,Yabcdefghij,30,x\n")
    write(
        tmp_path / "musiccaps/musiccaps-public.csv",
        "ytid,start_s,end_s,caption,is_audioset_eval\n-0Gj8-vB1q4,1,2,A tune,True\n",
    )
    names = ("Yabcdefghij", "YYabcdefghij", "Yabcdefghij_30.000", "Y00000000001")
    rows = [openaqa_row(f"/x/{name}.flac") for name in names]
    write(tmp_path / "openaqa/open.json", json.dumps(rows))
    answers = {"-0Gj8-vB1q4": "Slow.", "bbbbbbbbbbb": "a tune!", "ccccccccccc": "Fast."}
    talks = [talk(f"{name}.wav", "?", answer) for name, answer in answers.items()]
    write(tmp_path / "musicqa/PretrainMusicQA.json", json.dumps(talks))
    lines = [json.dumps({"audio_name": name, "caption": "Some song"}) + "\n" for name in answers]
    write(tmp_path / "lp_musiccaps/captions.jsonl", "".join(lines))
    run(audiotia, tmp_path, tmp_path / "out", "openaqa", "musicqa")
    assert [s["id"] for s in made(tmp_path / "out/openaqa")] == ["open/3"] and [
        s["id"] for s in made(tmp_path / "out/musicqa")
    ] == ["Pretrain/2"]


def test_blacklists(tmp_path, capsys):
    write(
        tmp_path / "wavcaps/fsd_final.json",
        json.dumps({"data": [{"id": str(i), "caption": f"Sound {i}"} for i in range(6)]}),
    )
    with pytest.raises(SystemExit, match="blacklist_exclude_test_ac.json"):
        run(audiotia, tmp_path, tmp_path / "out", "wavcaps_freesound")
    write(
        tmp_path / "wavcaps/blacklist_exclude_test_ac.json",
        json.dumps({"AudioSet": ["Yaaaaaaaaaaa.wav"], "FreeSound": ["1"]}),
    )
    write(
        tmp_path / "wavcaps/blacklist_exclude_ub8k_esc50_vggsound.json",
        json.dumps({"AudioSet": [], "FreeSound": ["4", "99"]}),
    )
    run(audiotia, tmp_path, tmp_path / "out", "wavcaps_freesound")
    assert "".join(s["id"] for s in made(tmp_path / "out/wavcaps_freesound")) == "0235"
    assert "1 on WavCaps' blacklists" in capsys.readouterr().out


def test_validation_clips_on_wavcaps_list_stay_in_validation(tmp_path):
    """The list of AudioCaps' and Clotho's clips holds AudioCaps' validation clips, too."""
    for split in ("train", "val"):
        rows = f"1,0000000000{split[0]},0,A dog of {split}\r\n"
        write(tmp_path / f"audiocaps/{split}.csv", HEAD + rows)
    lists = {"AudioSet": ["Y0000000000v.wav", "Y0000000000t.wav"], "FreeSound": []}
    for name in ("test_ac", "ub8k_esc50_vggsound"):
        path = tmp_path / f"wavcaps/blacklist_exclude_{name}.json"
        write(path, json.dumps(lists if name == "test_ac" else dict.fromkeys(lists, [])))
    run(audiotia, tmp_path, tmp_path / "out", "audiocaps_val")
    assert [row["text"] for row in made(tmp_path / "out/audiocaps_val")] == ["A dog of val"]
    with pytest.raises(SystemExit, match="1 clips of an evaluation set"):
        run(audiotia, tmp_path, tmp_path / "out", "audiocaps")


def test_mixtures_name_sources_that_can_be_built(tmp_path):
    assert set(mixture) <= set(audiotia.SOURCES) and sum(mixture.values()) == 1_690
    assert set(mats_audio["mixture"]) == set(mixture) - TEST_ONLY
    assert len(mats_audio["mixture"]) == len(mixture) - 7
    small(tmp_path)
    run(audiotia, tmp_path, tmp_path / "out", "audiocaps")
    with pytest.raises(DataError, match=r"python -m shards.audiotia openaqa .*--skip_missing"):
        find_sources(tmp_path / "out", mixture)
    sources, weights = find_sources(tmp_path / "out", mixture, skip_missing=True)
    assert [s.name for s in sources] == ["audiocaps"] and weights == [40]
    with pytest.raises(DataError, match="lacks openaqa"):
        find_sources(tmp_path / "nothing", mixture, skip_missing=True)


@pytest.mark.parametrize("name", ["audiotia", "benchmarks", "describe"])
def test_an_old_command_says_where_it_went(name):
    argv = [sys.executable, f"shards/{name}.py", "--list"]
    process = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode and process.stderr == f"now: python -m shards.{name}\n"


# --- records without a text -------------------------------------------------------------------

CLOTHO = "file_name," + ",".join(f"caption_{i}" for i in range(1, 6)) + "\n"


def left_out(folder):
    index = json.loads((folder / "index.json").read_text())
    return {reason: dropped["n"] for reason, dropped in index["left_out"].items()}


def test_captions_without_a_text_are_counted(tmp_path, capsys):
    rows = [
        "1,aaaaaaaaaaa,30,",
        "2,bbbbbbbbbbb,0,  ",
        "3,ccccccccccc,0,nan",
        "4,ddddddddddd,0,rain",
    ]
    write(tmp_path / "audiocaps/train.csv", HEAD + "\n".join(rows) + "\n")
    text = CLOTHO + "a.wav,one,,three,nan,five\nb.wav,,,,,\n"
    write(tmp_path / "clotho/clotho_captions_development.csv", text)
    for more in ((), ("--audio",)):
        if more:
            for name in ("audiocaps/Yaaaaaaaaaaa", "audiocaps/ddddddddddd", "clotho/development/a"):
                wav(tmp_path / f"{name}.wav")
        out = tmp_path / f"out{len(more)}"
        run(audiotia, tmp_path, out, "audiocaps", "clotho", *more)
        assert [s["answer"] for s in made(out / "audiocaps")] == ["rain"]
        assert [s["answer"] for s in made(out / "clotho")] == ["one", "three", "five"]
        assert left_out(out / "audiocaps") == {"without a text": 3}
        assert left_out(out / "clotho") == {"without a text": 1, "captions without a text": 2}
        said = capsys.readouterr().out
        assert "aaaaaaaaaaa_30 (train.csv, line 2)" in said
        assert "development/b.wav (clotho_captions_development.csv, line 3)" in said
        assert "development/a.wav (clotho_captions_development.csv, line 2)" in said


def test_questions_and_descriptions_without_a_text_are_counted(tmp_path):
    write(
        tmp_path / "clotho/clotho_captions_development.csv",
        CLOTHO + "a.wav,,nan,A dog,,\nb.wav,,,,,\n",
    )
    for part in ("validation", "evaluation"):
        write(tmp_path / f"clotho/clotho_captions_{part}.csv", CLOTHO)
    head = "file_name,QuestionText,answer,confidence\n"
    rows = ["a.wav,Is it?,yes,yes", "a.wav,,yes,yes", "a.wav,Is it?,nan,yes", "b.wav,Is it?,no,no"]
    write(tmp_path / "clothoaqa/clotho_aqa_train.csv", head + "\n".join(rows) + "\n")
    talks = [talk("a.mp3", "How?", "Slow."), talk("b.mp3", "How?", " "), talk("c.mp3", "How?", "!")]
    write(tmp_path / "musicqa/FinetuneMusicQA.json", json.dumps(talks))
    lines = [
        json.dumps({"audio_name": f"{x}.mp3", "caption": "" if x == "c" else x}) for x in "abc"
    ]
    write(tmp_path / "lp_musiccaps/captions.jsonl", "\n".join(lines))
    write(
        tmp_path / "descriptions/sesa.jsonl",
        '{"labels": ["gunshot"], "text": "nan"}\n{"labels": ["siren"], "text": "wails"}',
    )
    texts = ["It rains", None, ""]
    openaqa = [openaqa_row("/x/a.wav", "nsynth", "caption", output=text) for text in texts]
    write(tmp_path / "openaqa/o.json", json.dumps(openaqa))
    names = ("clothoaqa", "musicqa", "sesa", "openaqa_captions")
    out = tmp_path / "out"
    run(audiotia, tmp_path, out, *names)
    kept = {name: [(s["text"], s["answer"]) for s in made(out / name)] for name in names}
    assert kept == {
        "clothoaqa": [("A dog", "yes")],
        "musicqa": [("a", "Slow.")],
        "sesa": [("wails", "siren")],
        "openaqa_captions": [("It rains", "It rains")],
    }
    without = {"without a text": 2, "without a caption of their clip": 1}
    assert left_out(out / "clothoaqa") == without
    assert left_out(out / "musicqa") == without | {"without a text": 1}
    assert left_out(out / "sesa") == {"without a text": 1}
    assert left_out(out / "openaqa_captions") == {"without a text": 2}


@pytest.mark.parametrize("labels", ['"dog"', "[]", '["dog", 5]', '["dog", ""]', "null"])
def test_a_description_needs_its_labels(tmp_path, labels):
    text = f'{{"labels": ["dog"], "text": "x"}}\n{{"labels": {labels}, "text": "y"}}\n'
    write(tmp_path / "descriptions/sesa.jsonl", text)
    with pytest.raises(SystemExit, match="sesa.jsonl, line 2: not"):
        run(audiotia, tmp_path, tmp_path / "out", "sesa")


def test_an_empty_reference_holds_nothing_out(tmp_path):
    """A caption of punctuation alone is like no other."""
    small(tmp_path, 3)
    write(tmp_path / "audiocaps/test.csv", HEAD + "1,zzzzzzzzzzz,30,...\n2,zzzzzzzzzzz,30,\n")
    write(tmp_path / "audiocaps/train.csv", HEAD + "1,aaaaaaaaaaa,30,!!!\n2,zzzzzzzzzzz,3,a dog\n")
    run(audiotia, tmp_path, tmp_path / "out", "audiocaps")
    assert [s["text"] for s in made(tmp_path / "out/audiocaps")] == ["!!!"]
    assert left_out(tmp_path / "out/audiocaps") == {"clips of an evaluation set": 1}


# --- validation -------------------------------------------------------------------------------


def test_validation_sets_are_built_and_kept_apart(tmp_path, capsys):
    small(tmp_path, 3)
    rows = [f"{i},{i % 2:011d},{i % 2},caption {i}" for i in range(9)]
    rows += ["9,00000000005,1,of a test clip", "10,ccccccccccc,1,A dog; and number 3."]
    write(tmp_path / "audiocaps/val.csv", HEAD + "\n".join(rows) + "\n")
    text = CLOTHO + "a.wav,one,two,three,four,five\nb.wav,six,,eight,nine,ten\n"
    write(tmp_path / "clotho/clotho_captions_validation.csv", text)
    write(tmp_path / "clotho/clotho_captions_evaluation.csv", CLOTHO + "b.wav,1,2,3,4,5\n")
    run(audiotia, tmp_path, tmp_path / "val", "audiocaps_val", "clotho_val")
    rows = made(tmp_path / "val/audiocaps_val")
    assert [s["text"] for s in rows] == [f"caption {i}" for i in (0, 2, 4, 6, 8, 1, 3, 5, 7)]
    assert len({s["id"] for s in rows}) == 9 and {s["task"] for s in rows} == {"cap"}
    assert left_out(tmp_path / "val/audiocaps_val") == {
        "clips of an evaluation set": 1,
        "verbatim in an evaluation set": 1,
    }
    assert [s["text"] for s in made(tmp_path / "val/clotho_val")] == [
        "one",
        "two",
        "three",
        "four",
        "five",
    ]
    assert len(find_sources(tmp_path / "val")[0]) == 2
    index = json.loads((tmp_path / "val/audiocaps_val/index.json").read_text())
    assert index["licences"] == {"audiocaps_val": "MIT"}
    capsys.readouterr()
    run(audiotia, tmp_path, tmp_path / "all", "all")
    assert [p.parent.name for p in (tmp_path / "all").glob("*/index.json")] == ["audiocaps"]
    with pytest.raises(SystemExit):
        audiotia.main(["--list", "audiocaps", "audiocaps_val", "--root", str(tmp_path)])
    out = capsys.readouterr().out
    assert "audiocaps_val        cap              11 of     2,475" in out
    assert "sound cap                    3 of about 518K" in out  # no part of AudioTIA's counts
    with pytest.raises(SystemExit, match="audiocaps_val: 11 where 2,475 were published"):
        audiotia.main(["--check", "audiocaps_val", "--root", str(tmp_path)])


@pytest.mark.parametrize("n, differs", [(20_000, 0), (17_500, 1), (22_500, 1), (None, 0)])
def test_a_group_is_compared_with_the_papers_count_both_ways(n, differs, capsys):
    wrong = audiotia.group_overview({"sound aqa": {"clothoaqa": n}}, audio=False)
    assert len(wrong) == differs and "of about 20K in Table S5" in capsys.readouterr().out


def test_another_evaluation_set_makes_other_shards(tmp_path):
    """What is held out decides what is built."""
    small(tmp_path / "r")
    run(audiotia, tmp_path / "r", tmp_path / "out", "audiocaps")
    with open(tmp_path / "r/audiocaps/test.csv", "a") as file:
        file.write("3,00000000007,30,One more\n")
    with pytest.raises(SystemExit, match="built with another files"):
        run(audiotia, tmp_path / "r", tmp_path / "out", "audiocaps")
