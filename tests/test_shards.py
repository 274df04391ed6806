"""The builders against the real annotation files, and against small files that follow the published layouts."""

import csv
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from config.mats_audio import config as mats_audio
from config.mats_gpt2 import audiotia as mixture
from data import DataError, Source, find_sources, read_source
from shards import audiotia, benchmarks, datasets as d, writer
from shards.files import Root, Sounds, Tally, plain, read_audio, stream_json, table

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def root(shared, tmp_path_factory):
    """The real files, laid out as their owners publish them."""
    root = tmp_path_factory.mktemp("root")
    for folder in (shared / "data").iterdir():
        if folder.is_dir() and folder.name not in ("mmau", "esc10", "gpt2_tokenizer"):
            (root / folder.name).mkdir()
            for f in folder.iterdir():
                (root / folder.name / f.name).symlink_to(f)
    (root / "mmau").mkdir()
    (root / "mmau/mmau-test-mini.json").symlink_to(shared / "data/mmau/mmau-test-mini-300.json")
    (root / "esc50/audio").symlink_to(shared / "data/esc10")
    return root


def write(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def wav(path, seconds=0.1, rate=8000, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    sf.write(
        buffer,
        np.sin(np.arange(int(rate * seconds)) * len(path.name) / 30) * 0.3,
        rate,
        **{"format": "WAV"} | kwargs,
    )
    path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def made(folder, **kwargs):
    return list(read_source(Source(folder), **kwargs))


# --- the real files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folder, reader, args, n",
    [
        ("audiocaps", d.audiocaps, ["train"], 49_838),
        ("audiocaps", d.audiocaps, ["val"], 2_475),
        ("audiocaps", d.audiocaps, ["test"], 4_875),
        ("clotho", d.clotho, ["development"], 3_839),
        ("clotho", d.clotho, ["validation"], 1_045),
        ("clotho", d.clotho, ["evaluation"], 1_045),
        ("clothoaqa", d.clothoaqa, ["train"], 21_132),
        ("clothoaqa", d.clothoaqa, ["val"], 6_192),
        ("clothoaqa", d.clothoaqa, ["test"], 8_514),
        ("musiccaps", d.musiccaps, ["train"], 2_663),
        ("musiccaps", d.musiccaps, ["eval"], 2_858),
        ("song_describer", d.song_describer, [], 1_106),
        ("fsd50k", d.fsd50k, ["dev"], 40_966),
        ("fsd50k", d.fsd50k, ["eval"], 10_231),
        ("fsd50k", d.fsd50k_labels, [], 200),
        ("vggsound", d.vggsound, ["test"], 15_446),
        ("vggsound", d.vggsound_labels, [], 309),
        ("esc50", d.esc50, [], 2_000),
        ("urbansound8k", d.urbansound8k, [], 8_732),
        ("dcase2017t4", d.dcase2017, ["training"], 51_172),
        ("dcase2017t4", d.dcase2017, ["testing"], 488),
        ("dcase2017t4", d.dcase2017, ["evaluation"], 1_103),
        ("dcase2017t4", d.dcase2017_labels, [], 17),
        ("wavcaps", d.wavcaps, ["soundbible"], 1_232),
        ("audioset", d.audioset_names, [], 527),
        ("cremad", d.cremad, [], 7_442),
        ("beijing_opera", d.beijing_opera, [], 20),
        ("musicqa", d.musicqa, ["Eval"], 5_040),
        ("mmau", d.mmau, ["test-mini"], 300),
    ],
)
def test_every_record_is_read(root, folder, reader, args, n):
    rows = list(reader(Root(root)[folder], *args))
    assert len(rows) == n
    if rows and isinstance(rows[0], dict):
        assert (
            len({r["id"] for r in rows}) == n or folder == "audiocaps"
        )  # five captions of a clip in val and test
        assert all(r["sound"] and r["id"] == r["id"].strip("\n") for r in rows)
        assert not any("\n" in str(r.get("caption", r.get("captions", ""))) for r in rows)


def test_the_oddities_survive(root):
    r = Root(root)
    assert sum(c["youtube"].startswith("-") for c in d.audiocaps(r["audiocaps"], "train")) == 2_406
    assert any("\u2019" in c["caption"] for c in d.audiocaps(r["audiocaps"], "train"))
    clotho = [
        c for s in ("development", "validation", "evaluation") for c in d.clotho(r["clotho"], s)
    ]
    assert (
        sum(bool(re.search(r"&#?\w+;", c["file"])) for c in clotho) == 72
    )  # HTML entities are part of the names
    assert {c["file"] for c in clotho if c["file"] != c["file"].strip()} == {
        " e ieio ieai.wav",
        " Ambience Birds.wav",
        " typical neighborhood in Porto.wav",
    }
    assert len(clotho) - len({c["file"] for c in clotho}) == 4 and len(
        {c["id"] for c in clotho}
    ) == len(clotho)
    assert all(len(c["captions"]) == 5 and x == x.strip() for c in clotho for x in c["captions"])
    several = Counter(len(c["labels"]) for c in d.dcase2017(r["dcase2017t4"], "evaluation"))
    assert several == {1: 891, 2: 182, 3: 25, 4: 5}
    assert {"Air horn, truck horn", "Fire engine, fire truck (siren)"} <= {
        x for c in d.dcase2017(r["dcase2017t4"], "training") for x in c["labels"]
    }
    assert (
        sum("," in x for x in d.vggsound_labels(r["vggsound"])) == 23
        and sum("," in x for x in d.audioset_names(r["audioset"]).values()) == 75
    )
    counts = Counter(len(c["labels"]) for c in d.fsd50k(r["fsd50k"], "dev"))
    assert (min(counts), max(counts)) <= (1, 22) and d.fsd50k_labels(r["fsd50k"])[
        0
    ] == "Accelerating and revving and vroom"
    assert Counter(c["drop"] for c in d.song_describer(r["song_describer"])) == {
        None: 1_078,
        "marked as not valid": 28,
    }
    assert Counter(c["labels"][0] for c in d.cremad(r["cremad"])) == dict.fromkeys(
        ["anger", "disgust", "fear", "happy", "sad"], 1_271
    ) | {"neutral": 1_087}
    assert d.in_order(d.esc50(r["esc50"]))[:3] == [
        "dog",
        "rooster",
        "pig",
    ] and "crying baby" in d.in_order(d.esc50(r["esc50"]))
    assert all(
        isinstance(q["skill"], str)
        and q["answer"] in q["choices"]
        and q["answer"] == q["answer"].strip()
        for q in d.mmau(r["mmau"], "test-mini")
    )
    questions = list(benchmarks.by_question(r))
    assert len(questions) == 2_838 and all(len(q["answer"]) == 3 for q in questions)
    majority = [Counter(q["answer"]).most_common(1)[0] for q in questions]
    assert sum(n >= 2 for _, n in majority) == 2_476
    binary = [a for a, n in majority if n >= 2 and a in ("yes", "no")]
    assert len(binary) == 1_892 and round(binary.count("yes") / len(binary), 3) == 0.564


def test_all_benchmarks_and_their_audio(root, tmp_path):
    """The real recordings of 10 of ESC-50's classes and of Beijing opera, and the references of all others."""
    names = ["esc50", "beijing_opera"]
    benchmarks.main([*names, "--root", str(root), "--out", str(tmp_path / "bench")])
    for name, n in zip(names, (240, 20)):
        rows, index = (
            made(tmp_path / "bench" / name, audio=True),
            Source(tmp_path / "bench" / name).index,
        )
        assert len(rows) == n and index["published"] == {"esc50": 2_000, "beijing_opera": 236}[name]
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
    benchmarks.main(["all", "--no-audio", "--root", str(root), "--out", str(tmp_path / "all")])
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


def test_training_text_is_not_evaluation_text(root, tmp_path):
    """Everything that the real files allow, and what is left out, against a count made another way."""
    audiotia.main(["all", "--root", str(root), "--out", str(tmp_path)])
    built = {p.parent.name: made(p.parent) for p in tmp_path.glob("*/index.json")}
    assert {k: len(v) for k, v in built.items()} == {
        "wavcaps_soundbible": 1_217,
        "audiocaps": 48_217,
        "clotho": 17_909,
        "clothoaqa": 10_221,
        "musiccaps": 2_662,
        "song_describer": 1_078,
    }
    words = lambda text: " ".join(re.sub(r"[\W]", " ", text.lower()).split())
    rows = lambda path: csv.DictReader(open(root / path, newline="", encoding="utf-8"))
    evaluation = {words(r["caption"]) for r in rows("audiocaps/test.csv")}
    evaluation |= {
        words(r[f"caption_{i}"])
        for r in rows("clotho/clotho_captions_evaluation.csv")
        for i in range(1, 6)
    }
    evaluation |= {
        words(r["caption"])
        for r in rows("musiccaps/musiccaps-public.csv")
        if r["is_audioset_eval"] == "True"
    }
    tested = {r["youtube_id"] for r in rows("audiocaps/test.csv")} | {
        r["ytid"] for r in rows("musiccaps/musiccaps-public.csv") if r["is_audioset_eval"] == "True"
    }
    tested |= {row[0][:11] for row in csv.reader(open(root / "vggsound/test.csv", newline=""))}
    tested |= {
        line[:11] for line in open(root / "dcase2017t4/groundtruth_weak_label_evaluation_set.csv")
    }
    tested |= {
        name[1:-4]
        for name in json.loads((root / "wavcaps/blacklist_exclude_test_ac.json").read_text())[
            "AudioSet"
        ]
    }
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
    audiotia.main(
        ["audiocaps", "--keep-eval", "--root", str(root), "--out", str(tmp_path / "keep")]
    )
    assert len(Source(tmp_path / "keep/audiocaps")) == 49_838


def test_counts_are_checked(root, tmp_path, capsys):
    with pytest.raises(SystemExit) as e:
        audiotia.main(["--check", "audiocaps", "clotho", "fsd50k", "--root", str(root)])
    assert e.value.code == 0 and "49,838 of    49,838" in capsys.readouterr().out
    text = (root / "audiocaps/train.csv").read_text(encoding="utf-8")
    write(tmp_path / "audiocaps/train.csv", text[: text.index("\n", len(text) // 2) + 1])
    with pytest.raises(SystemExit, match=r"audiocaps: 2\d,\d+ where 49,838 were published"):
        audiotia.main(["--check", "audiocaps", "--root", str(tmp_path)])


# --- building -----------------------------------------------------------------------------------------------------------


def small(root, n=40):
    """An AudioCaps of n captions, with an evaluation set that shares one caption and one clip with it."""
    rows = "".join(f'{i},{i:011d},{i % 9},"A dog, and number {i}"\r\n' for i in range(n))
    write(root / "audiocaps/train.csv", "audiocap_id,youtube_id,start_time,caption\r\n" + rows)
    write(
        root / "audiocaps/test.csv",
        "audiocap_id,youtube_id,start_time,caption\r\n"
        "1,aaaaaaaaaaa,30,a dog and NUMBER 3!\r\n2,00000000005,30,Quite another\r\n",
    )
    return root


def test_same_input_same_bytes_and_nothing_twice(tmp_path, capsys):
    small(tmp_path)
    run = lambda out, *more: audiotia.main(
        ["audiocaps", "--root", str(tmp_path), "--out", str(tmp_path / out), *more]
    )
    run("a"), run("b")
    tar = [(tmp_path / out / "audiocaps/000000.tar").read_bytes() for out in "ab"]
    assert tar[0] == tar[1] and len(made(tmp_path / "a/audiocaps")) == 38
    stamp = (tmp_path / "a/audiocaps/index.json").stat().st_mtime_ns
    run("a")
    assert (
        "nothing to do" in capsys.readouterr().out
        and (tmp_path / "a/audiocaps/index.json").stat().st_mtime_ns == stamp
    )
    with pytest.raises(SystemExit, match="built with another instructions"):
        run("a", "--instructions", "varied")
    run("c", "--instructions", "varied", "--limit", "30")
    instructions = [s["instruction"] for s in made(tmp_path / "c/audiocaps")]
    assert len(instructions) == 30 and set(instructions) == set(audiotia.VARIED["cap"])
    small(tmp_path, 41)
    with pytest.raises(SystemExit, match="built with another files"):  # the input has changed
        run("a")


def test_killed_and_started_again(tmp_path):
    small(tmp_path, 60_000)
    argv = [
        sys.executable,
        "-m",
        "shards.audiotia",
        "audiocaps",
        "--root",
        tmp_path,
        "--out",
        tmp_path / "killed",
    ]
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 60
    while not (tmp_path / "killed/audiocaps/building.json").exists():
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = sorted((tmp_path / "killed/audiocaps").glob("*.tar"))
    assert there and not (tmp_path / "killed/audiocaps/index.json").exists()
    stamps = [p.stat().st_mtime_ns for p in there]
    for out in ("killed", "whole"):
        audiotia.main(["audiocaps", "--root", str(tmp_path), "--out", str(tmp_path / out)])
    assert [p.stat().st_mtime_ns for p in there] == stamps  # kept, not written again
    files = lambda out: {
        p.name: p.read_bytes()
        for p in (tmp_path / out / "audiocaps").iterdir()
        if p.suffix == ".tar"
    }
    assert files("killed") == files("whole") and len(files("whole")) == 15
    assert {p.suffix for p in (tmp_path / "killed/audiocaps").iterdir()} == {".tar", ".json"}
    assert not (tmp_path / "killed/audiocaps/building.json").exists()


def test_a_full_disk(tmp_path, monkeypatch):
    small(tmp_path, 9_000)
    real, calls = writer.tar_member, []

    def member(name, content):
        calls.append(name)
        if len(calls) == 6_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(name, content)

    monkeypatch.setattr(writer, "tar_member", member)
    argv = ["audiocaps", "--root", str(tmp_path), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="the disk is full"):
        audiotia.main(argv)
    assert sorted(p.name for p in (tmp_path / "out/audiocaps").iterdir()) == [
        "000000.tar",
        "building.json",
    ]
    audiotia.main(argv)
    assert len(made(tmp_path / "out/audiocaps")) == 8_998


def test_audio_is_copied_as_it_is(tmp_path, capsys):
    """AudioAIA: every naming in the wild, an mp3 that is called wav, a file that is no sound, a clip that is not there."""
    small(tmp_path, 12)
    folder = tmp_path / "audiocaps/audio"
    sounds = {
        0: wav(folder / "Y00000000000.wav"),
        1: wav(folder / "train/00000000001_1.flac", format="FLAC"),
        2: wav(folder / "00000000002.wav", format="MP3", rate=16000),
        4: wav(folder / "x/y/00000000004.ogg", format="OGG"),
    }
    write(folder / "00000000006.wav", "<html>not found</html>")
    audiotia.main(["audiocaps", "--audio", "--root", str(tmp_path), "--out", str(tmp_path / "aia")])
    rows = made(tmp_path / "aia/audiocaps", audio=True)
    assert {int(r["id"].split("_")[0]): r["audio"] for r in rows} == sounds
    out = capsys.readouterr().out
    assert (
        "5 without their audio file" in out
        and "1 with an unreadable audio file" in out
        and "00000000006.wav" in out
    )
    import tarfile

    names = tarfile.open(tmp_path / "aia/audiocaps/000000.tar").getnames()
    assert [n.rpartition(".")[2] for n in names if not n.endswith("json")] == [
        "wav",
        "flac",
        "mp3",
        "ogg",
    ]
    with pytest.raises(
        SystemExit, match="was built with another audio"
    ):  # a clip has arrived since
        wav(folder / "00000000007.wav")
        audiotia.main(
            ["audiocaps", "--audio", "--root", str(tmp_path), "--out", str(tmp_path / "aia")]
        )
    with pytest.raises(SystemExit, match="no part of AudioAIA"):
        write(
            tmp_path / "esc50/esc50.csv",
            "filename,fold,target,category,esc10,src_file,take\n1-1-A-0.wav,1,0,dog,True,1,A\n",
        )
        audiotia.main(["esc50", "--audio", "--root", str(tmp_path), "--out", str(tmp_path / "aia")])


def test_classification_needs_descriptions(tmp_path):
    write(
        tmp_path / "esc50/esc50.csv",
        "filename,fold,target,category,esc10,src_file,take\n"
        + "".join(
            f"1-{i}-A-{i % 2}.wav,1,{i % 2},{['dog', 'mouse_click'][i % 2]},True,{i},A\n"
            for i in range(5)
        ),
    )
    argv = ["esc50", "--root", str(tmp_path), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=r"python -m shards.describe esc50"):
        audiotia.main(argv)
    assert audiotia.label_sets("esc50", tmp_path) == {("dog",): 3, ("mouse click",): 2}
    write(
        tmp_path / "descriptions/esc50.jsonl",
        '{"labels": ["dog"], "text": "A hound barks."}\n{"labels": ["mouse click", "dog"], "text": "Click, then woof"}\n',
    )
    audiotia.main(argv)
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
        audiotia.main(["esc50", "--root", str(tmp_path), "--out", str(tmp_path / "other")])


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
        json.dumps(
            [
                dict(audio_id=a, dataset=s, task=t, instruction=i, output=o, input="")
                for a, s, t, i, o in rows
            ]
        ),
    )
    write(
        tmp_path / "clotho/clotho_captions_development.csv",
        "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\nrain.wav,It rains,It rains a,b,c,d\n",
    )
    write(
        tmp_path / "wavcaps/fsd_final.json",
        json.dumps({"num_captions_per_audio": 1, "data": [{"id": 77, "caption": "Seven"}]}),
    )
    run = lambda *names: audiotia.main(
        [*names, "--root", str(tmp_path), "--out", str(tmp_path / "out")]
    )
    run("openaqa", "openaqa_captions")
    out = capsys.readouterr().out
    assert [(s["text"], s["instruction"], s["answer"]) for s in made(tmp_path / "out/openaqa")][
        ::2
    ] == [("A dog, and number 1", "What barks?", "A dog."), ("Seven", "Which?", "Seventy-seven.")]
    assert made(tmp_path / "out/openaqa")[1]["text"] in ("It rains", "It rains a", "b", "c", "d")
    assert (
        "1 without a caption of their clip (open/2)" in out
        and "1 clips of an evaluation set" in out
        and "as_final.json" in out
    )
    assert [s["answer"] for s in made(tmp_path / "out/openaqa_captions")] == ["A slow piano."]
    assert audiotia.label_sets("openaqa_music", tmp_path) == {("guitar", "bass"): 1}

    talk = lambda name, q, a: {
        "audio_name": name,
        "conversation": [{"from": "human", "value": q}, {"from": "gpt", "value": a}],
    }
    write(
        tmp_path / "musicqa/FinetuneMusicQA.json",
        json.dumps([talk("f/a-30.mp3", "How is it? ", " Slow."), talk("b.mp3", "And?", "Fast.")]),
    )
    write(
        tmp_path / "lp_musiccaps/captions.jsonl",
        '{"audio_name": "f/a-30.mp3", "caption": "A slow song"}\n',
    )
    run("musicqa")
    assert [(s["text"], s["instruction"], s["answer"]) for s in made(tmp_path / "out/musicqa")] == [
        ("A slow song", "How is it?", "Slow.")
    ]
    assert (
        "1 without a caption of their clip" in (out := capsys.readouterr().out)
        and "PretrainMusicQA.json" in out
    )


def test_what_is_not_there_does_not_stop_all(tmp_path, capsys):
    """Annotations without audio, an OpenAQA without music: the other sources are built all the same."""
    small(tmp_path, 12)
    wav(tmp_path / "audiocaps/00000000001.wav")
    write(tmp_path / "fsd50k/dev.csv", "fname,labels,mids,split\n64,Dog,/m/1,train\n")
    write(
        tmp_path / "openaqa/open.json",
        json.dumps(
            [
                dict(
                    audio_id="/x/q.wav",
                    dataset="as_20k",
                    task="open-ended",
                    instruction="?",
                    output="!",
                    input="",
                )
            ]
        ),
    )
    audiotia.main(["all", "--audio", "--root", str(tmp_path), "--out", str(tmp_path / "aia")])
    out = capsys.readouterr().out
    assert (
        "missing: fsd50k: no samples. Left out: 1 without their audio file (64)" in out
        and "missing: openaqa_captions: no samples. Left out: nothing" in out
    )
    assert [p.parent.name for p in (tmp_path / "aia").glob("*/index.json")] == ["audiocaps"]
    with pytest.raises(SystemExit, match="clotho: there is no folder"):
        audiotia.main(["--check", "clotho", "--root", str(tmp_path)])


def test_an_id_that_begins_with_y_and_musicqas_tracks_are_kept_apart(tmp_path):
    small(tmp_path, 3)
    write(tmp_path / "audiocaps/test.csv", HEAD + "1,Yabcdefghij,30,x\n")
    write(
        tmp_path / "musiccaps/musiccaps-public.csv",
        "ytid,start_s,end_s,caption,is_audioset_eval\n-0Gj8-vB1q4,1,2,A tune,True\n",
    )
    rows = [
        f"/x/{name}.flac"
        for name in ("Yabcdefghij", "YYabcdefghij", "Yabcdefghij_30.000", "Y00000000001")
    ]
    write(
        tmp_path / "openaqa/open.json",
        json.dumps(
            [
                dict(
                    audio_id=a,
                    dataset="as_20k",
                    task="open-ended",
                    instruction="?",
                    output="!",
                    input="",
                )
                for a in rows
            ]
        ),
    )
    talk = lambda name, a: {
        "audio_name": name,
        "conversation": [{"from": "human", "value": "?"}, {"from": "gpt", "value": a}],
    }
    write(
        tmp_path / "musicqa/PretrainMusicQA.json",
        json.dumps(
            [
                talk("-0Gj8-vB1q4.wav", "Slow."),
                talk("bbbbbbbbbbb.wav", "a tune!"),
                talk("ccccccccccc.wav", "Fast."),
            ]
        ),
    )
    write(
        tmp_path / "lp_musiccaps/captions.jsonl",
        "".join(
            json.dumps({"audio_name": n, "caption": "Some song"}) + "\n"
            for n in ("-0Gj8-vB1q4", "bbbbbbbbbbb", "ccccccccccc")
        ),
    )
    audiotia.main(["openaqa", "musicqa", "--root", str(tmp_path), "--out", str(tmp_path / "out")])
    assert [s["id"] for s in made(tmp_path / "out/openaqa")] == ["open/3"] and [
        s["id"] for s in made(tmp_path / "out/musicqa")
    ] == ["Pretrain/2"]


@pytest.mark.parametrize(
    "name, text, read",
    [
        ("vggsound/vggsound.csv", "--0PQM4-hqg,30.0,dog,train\n", "vggsound"),
        (
            "musicqa/FinetuneMusicQA.json",
            '[{"audio_name": "a", "conversation": [{"value": "x"}]}]',
            "musicqa",
        ),
        ("musicqa/FinetuneMusicQA.json", '["a"]', "musicqa"),
        ("openaqa/x.json", '["a"]', "openaqa_captions"),
        ("macs/MACS.yaml", "files:\n- filename: x\n  annotations: [{sentence: }]\n", "macs"),
        ("vocalsound/datafiles/tr.json", '{"data": [{"labels": "x"}]}', "vocalsound"),
    ],
)
def test_records_in_another_form_are_named(tmp_path, name, text, read):
    write(tmp_path / name, text)
    with pytest.raises(DataError, match=name.split("/")[0]):
        list(audiotia.SOURCES[read].clips(Root(tmp_path)))


def test_blacklists(tmp_path, capsys):
    write(
        tmp_path / "wavcaps/fsd_final.json",
        json.dumps({"data": [{"id": str(i), "caption": f"Sound {i}"} for i in range(6)]}),
    )
    argv = ["wavcaps_freesound", "--root", str(tmp_path), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="blacklist_exclude_test_ac.json"):
        audiotia.main(argv)
    write(
        tmp_path / "wavcaps/blacklist_exclude_test_ac.json",
        json.dumps({"AudioSet": ["Yaaaaaaaaaaa.wav"], "FreeSound": ["1"]}),
    )
    write(
        tmp_path / "wavcaps/blacklist_exclude_ub8k_esc50_vggsound.json",
        json.dumps({"AudioSet": [], "FreeSound": ["4", "99"]}),
    )
    audiotia.main(argv)
    assert [s["id"] for s in made(tmp_path / "out/wavcaps_freesound")] == [
        "0",
        "2",
        "3",
        "5",
    ] and "1 on WavCaps' blacklists" in capsys.readouterr().out


def test_mixtures_name_sources_that_can_be_built(tmp_path):
    assert set(mixture) <= set(audiotia.SOURCES) and sum(mixture.values()) == 1_690
    assert (
        all(audiotia.SOURCES[name].audio for name in mats_audio["mixture"])
        and len(mats_audio["mixture"]) == len(mixture) - 7
    )
    small(tmp_path)
    audiotia.main(["audiocaps", "--root", str(tmp_path), "--out", str(tmp_path / "out")])
    with pytest.raises(DataError, match=r"python -m shards.audiotia openaqa .*--skip_missing"):
        find_sources(tmp_path / "out", mixture)
    sources, weights = find_sources(tmp_path / "out", mixture, skip_missing=True)
    assert [s.name for s in sources] == ["audiocaps"] and weights == [40]
    with pytest.raises(DataError, match="lacks openaqa"):
        find_sources(tmp_path / "nothing", mixture, skip_missing=True)


# --- layouts that are known without their files -----------------------------------------------------------------------------


def layouts(root):
    write(
        root / "audioset/class_labels_indices.csv",
        'index,mid,display_name\n0,/m/09x0r,Speech\n1,/m/05zppz,"Male speech, man speaking"\n',
    )
    write(
        root / "audioset/balanced_train_segments.csv",
        "# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids=2\n# YTID, start_seconds, end_seconds, "
        'positive_labels\n--4gqARaEJE, 0.000, 10.000, "/m/09x0r,/m/05zppz"\n-0aaaaaaaaa, 30.000, 40.000, "/m/09x0r"\n',
    )
    write(
        root / "audioset/mid_to_display_name.tsv",
        "/m/09x0r\tSpeech\n/t/dd00003\tBoat, Water vehicle\n",
    )
    write(
        root / "audioset/audioset_train_strong.tsv",
        "segment_id\tstart_time_seconds\tend_time_seconds\tlabel\n"
        + "".join(
            f"b0RFKhbpFJA_30000\t{i}.0\t{i}.5\t{m}\n"
            for i, m in enumerate(["/t/dd00003", "/m/09x0r", "/t/dd00003"])
        ),
    )
    write(
        root / "vggsound/vggsound.csv",
        '---g-f_I2yQ,1,people marching,test\n--0PQM4-hqg,30,"bird chirping, tweeting",train\n',
    )
    write(
        root / "tut2017/TUT-acoustic-scenes-2017-development/meta.txt",
        "audio/b020_90_100.wav\tcafe/restaurant\tb020\n",
    )
    write(
        root / "tut2017/TUT-acoustic-scenes-2017-evaluation/meta.txt",
        "audio/1.wav\tcity_center\naudio/2.wav\tbeach\n",
    )
    for name in ("development/audio/b020_90_100", "evaluation/audio/1", "evaluation/audio/2"):
        wav(root / f"tut2017/TUT-acoustic-scenes-2017-{name}.wav")
    for name in ("train/casual_000", "train/gunshot_032", "test/siren_001"):
        wav(root / f"sesa/{name}.wav")
    write(
        root / "vocalsound/datafiles/tr.json",
        json.dumps({"data": [{"wav": "/x/f0003_0_cough.wav", "labels": "/m/01b_21"}]}),
    )
    write(
        root / "vocalsound/datafiles/te.json",
        json.dumps({"data": [{"wav": "/x/m0001_0_throatclearing.wav", "labels": "/m/0dl9sf8"}]}),
    )
    wav(root / "vocalsound/audio_16k/m0001_0_throatclearing.wav")
    wav(root / "ravdess/Actor_01/03-01-05-01-02-01-01.wav")
    for name in ("country/country.00000.wav", "jazz/jazz.00054.au"):
        wav(root / f"gtzan/genres/{name}", format=name[-3:].strip(".").upper())
    write(root / "gtzan/test_filtered.txt", "country/country.00000.wav\n")
    write(
        root / "macs/MACS.yaml",
        "files:\n- filename: airport-stockholm-12-488-a.wav\n  annotations:\n"
        "  - {annotator_id: 354, sentence: ball game with people running, tags: [adults talking]}\n  - {annotator_id: 353, sentence: 'some adults: talking', tags: []}\n",
    )
    write(
        root / "airbench/Chat_meta.json",
        json.dumps(
            [
                {
                    "uniq_id": i,
                    "path": f"{i}.wav",
                    "task_name": t,
                    "dataset_name": "clotho",
                    "question": "What?",
                    "answer_gt": "Rain.",
                    "meta_info": "{'a': \"it's\"}",
                }
                for i, t in enumerate(["sound_QA", "speech_QA", "music_QA", "sound_generation_QA"])
            ]
        ),
    )
    (
        wav(root / "airbench/Chat/sound_QA_clotho/0.wav"),
        wav(root / "airbench/Chat/music_QA_clotho/2.wav"),
    )
    write(
        root / "mmau/mmau-test.json",
        json.dumps(
            [
                {
                    "id": "u1",
                    "audio_id": "./test-audios/u1.wav",
                    "question": "Which?",
                    "choices": [" red", "blue"],
                    "task": "music",
                    "category": ["Reasoning"],
                    "difficulty": "easy",
                }
            ]
        ),
    )
    wav(root / "mmau/test-audios/u1.wav")
    return root


def test_published_layouts(tmp_path):
    r = Root(layouts(tmp_path))
    labels = lambda clips: [(c["id"], c["labels"]) for c in clips]
    assert labels(d.audioset(r["audioset"])) == [
        ("--4gqARaEJE_0", ["Speech", "Male speech, man speaking"]),
        ("-0aaaaaaaaa_30", ["Speech"]),
    ]
    assert labels(d.audioset_strong(r["audioset"])) == [
        ("b0RFKhbpFJA_30000", ["Boat, Water vehicle", "Speech"])
    ]
    assert labels(d.vggsound(r["vggsound"], "train")) == [
        ("--0PQM4-hqg_000030", ["bird chirping, tweeting"])
    ]
    assert labels(d.tut2017(r["tut2017"], "development")) == [
        ("development/b020_90_100", ["cafe/restaurant"])
    ]
    assert labels(d.sesa(r["sesa"], "train")) == [
        ("train/casual_000", ["casual"]),
        ("train/gunshot_032", ["gunshot"]),
    ]
    assert labels(d.vocalsound(r["vocalsound"], "train")) == [("f0003_0_cough", ["cough"])]
    assert labels(d.ravdess(r["ravdess"])) == [("03-01-05-01-02-01-01", ["angry"])]
    assert labels(d.gtzan(r["gtzan"])) == [("country.00000", ["country"]), ("jazz.00054", ["jazz"])]
    assert [c["caption"] for c in d.macs(r["macs"])] == [
        "ball game with people running",
        "some adults: talking",
    ]
    out = tmp_path / "bench"
    benchmarks.main(["all", "--root", str(tmp_path), "--out", str(out)])
    rows = {p.parent.name: made(p.parent, audio=True) for p in out.glob("*/index.json")}
    assert {k: len(v) for k, v in rows.items()} == {
        "tut2017": 2,
        "sesa": 1,
        "vocalsound": 1,
        "ravdess": 1,
        "gtzan": 2,
        "gtzan_filtered": 1,
        "airbench_sound": 1,
        "airbench_music": 1,
        "mmau": 1,
    }
    assert (
        rows["airbench_sound"][0]["meta_info"] == "{'a': \"it's\"}"
        and rows["vocalsound"][0]["answer"] == "throat clearing"
    )
    assert (
        rows["mmau"][0]["instruction"]
        == "Which? Select one option: red, blue Respond with exactly one of the options above."
    )
    assert json.loads((out / "tut2017/labels.json").read_text())[2:5] == [
        "cafe/restaurant",
        "car",
        "city center",
    ]


# --- files that somebody has damaged ------------------------------------------------------------------------------------------

HEAD = "audiocap_id,youtube_id,start_time,caption\n"


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
            "sb_final.json: a record without an end .* at character 55: cut off",
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
            "record 0: no id or no caption",
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
        audiotia.main(
            [read, "--keep-eval", "--root", str(tmp_path), "--out", str(tmp_path / "out")]
        )
    assert not list(tmp_path.glob("out/*/*"))  # nothing half-written is left


def test_what_is_certain_is_read(tmp_path):
    """A byte-order mark, CRLF, empty columns to the right, line feeds and quotes inside a caption."""
    text = '\ufeffaudiocap_id,youtube_id,start_time,caption,,\r\n1,-aaaaaaaaaa,3,"On|on ""loud""\ntwice",,\r\n\r\n2,aaaaaaaaaaa,3,two,,\r\n'
    write(tmp_path / "audiocaps/train.csv", text)
    assert [c["caption"] for c in d.audiocaps(Root(tmp_path)["audiocaps"], "train")] == [
        'On|on "loud" twice',
        "two",
    ]
    path = write(tmp_path / "x.csv", 'a, b\n1, "2,3"\n')
    assert [r for _, r in table(path, ("x", "y"), header=False, spaced=True)] == [
        {"x": "a", "y": "b"},
        {"x": "1", "y": "2,3"},
    ]
    assert [r for _, r in table(write(tmp_path / "y.csv", "a,b\n x ,2\n"), ("a",))] == [
        {"a": " x ", "b": "2"}
    ]


def test_wrong_folders(tmp_path):
    with pytest.raises(SystemExit, match="there is no folder .*nowhere"):
        audiotia.main(
            ["audiocaps", "--root", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]
        )
    with pytest.raises(SystemExit, match="there is no 'audiocap'"):
        audiotia.main(["audiocap", "--root", str(tmp_path), "--out", "x"])
    with pytest.raises(SystemExit, match="there is no folder .*audiocaps; it should hold"):
        audiotia.main(["audiocaps", "--root", str(tmp_path), "--out", str(tmp_path / "out")])
    for copy in ("a", "b"):
        write(tmp_path / f"audiocaps/{copy}/train.csv", HEAD)
    with pytest.raises(DataError, match="holds train.csv 2 times"):
        list(d.audiocaps(Root(tmp_path)["audiocaps"], "train"))
    small(tmp_path / "r")
    with pytest.raises(SystemExit, match="holds 0 audio files.*--no-audio"):
        benchmarks.main(
            ["audiocaps", "--root", str(tmp_path / "r"), "--out", str(tmp_path / "bench")]
        )
    if os.getuid():
        (tmp_path / "r/audiocaps").chmod(0)
        with pytest.raises(SystemExit, match="Permission denied"):
            audiotia.main(
                ["audiocaps", "--root", str(tmp_path / "r"), "--out", str(tmp_path / "out")]
            )
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


def test_streamed_json_needs_little_memory(tmp_path):
    path = write(
        tmp_path / "x.json", json.dumps([{"id": i, "text": "word " * 40} for i in range(60_000)])
    )
    tracemalloc.start()
    assert sum(1 for _ in stream_json(path)) == 60_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 12e6 and peak < 8e6


def test_sounds_are_found_by_name(tmp_path):
    for name in ("fold1/x.wav", "fold2/x.wav", "fold2/y.mp4", "z.FLAC"):
        write(tmp_path / name, name)
    sounds = Sounds(tmp_path)
    assert (
        len(sounds) == 3
        and sounds.find("fold2/x").endswith("fold2/x.wav")
        and sounds.find("nothing", "z").endswith("z.FLAC")
        and sounds.find("y") is None
    )
    assert sounds.find("x").endswith("fold1/x.wav")  # of equal size: copies
    write(tmp_path / "fold2/x.wav", "longer than the other")
    with pytest.raises(DataError, match="x is there 2 times"):
        sounds.find("x")
    for content in (b"", b"\0\0\0\x20ftypM4A "):
        (tmp_path / "bad.wav").write_bytes(content)
        with pytest.raises(DataError, match="bad.wav"):
            read_audio(tmp_path / "bad.wav")


def test_plain_and_tally():
    assert plain(" A dog, barks -- TWICE!") == plain("a dog barks twice") != plain("a dog barks")
    tally = Tally()
    for i in range(5):
        tally.drop("odd", i)
    assert str(tally) == "5 odd (0, 1, 2, ...)"
