"""The readers, on the real annotation files and on small ones of the published layouts."""

import json
import re
from collections import Counter

import pytest
from annotations import made, real_root, run, wav, write

from disk import DataError
from shards import audiotia, benchmarks
from shards.datasets import captions, labels, questions
from shards.files import Root


@pytest.fixture(scope="module")
def root(shared, tmp_path_factory):
    return real_root(shared, tmp_path_factory.mktemp("root"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "reader, args, n",
    [
        (captions.audiocaps, ["train"], 49_838),
        (captions.audiocaps, ["val"], 2_475),
        (captions.audiocaps, ["test"], 4_875),
        (captions.clotho, ["development"], 3_839),
        (captions.clotho, ["validation"], 1_045),
        (captions.clotho, ["evaluation"], 1_045),
        (questions.clothoaqa, ["train"], 21_132),
        (questions.clothoaqa, ["val"], 6_192),
        (questions.clothoaqa, ["test"], 8_514),
        (captions.musiccaps, ["train"], 2_663),
        (captions.musiccaps, ["eval"], 2_858),
        (captions.song_describer, [], 1_106),
        (labels.fsd50k, ["dev"], 40_966),
        (labels.fsd50k, ["eval"], 10_231),
        (labels.vggsound, ["test"], 15_446),
        (labels.esc50, [], 2_000),
        (labels.urbansound8k, [], 8_732),
        (labels.dcase2017, ["training"], 51_172),
        (labels.dcase2017, ["testing"], 488),
        (labels.dcase2017, ["evaluation"], 1_103),
        (captions.wavcaps, ["soundbible"], 1_232),
        (labels.cremad, [], 7_442),
        (labels.beijing_opera, [], 20),
        (questions.musicqa, ["Eval"], 5_040),
        (questions.mmau, ["test-mini"], 300),
    ],
)
def test_every_record_is_read(root, reader, args, n):
    rows = list(reader(Root(root), *args))
    assert len(rows) == n
    # AudioCaps has five captions of a clip in val and test
    assert len({r["id"] for r in rows}) == n or reader is captions.audiocaps
    assert all(r["sound"] and r["id"] == r["id"].strip("\n") for r in rows)
    assert not any("\n" in str(r.get("caption", r.get("captions", ""))) for r in rows)


def test_every_label_is_read(root):
    folders = Root(root)
    assert len(labels.fsd50k_labels(folders["fsd50k"])) == 200
    assert len(labels.vggsound_labels(folders["vggsound"])) == 309
    assert len(labels.dcase2017_labels(folders["dcase2017t4"])) == 17
    assert len(labels.audioset_names(folders["audioset"])) == 527


@pytest.mark.slow
def test_the_oddities_survive(root):
    r = Root(root)
    assert sum(c["youtube"].startswith("-") for c in captions.audiocaps(r, "train")) == 2_406
    assert any("\u2019" in c["caption"] for c in captions.audiocaps(r, "train"))
    clotho = [c for s in ("development", "validation", "evaluation") for c in captions.clotho(r, s)]
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
    several = Counter(len(c["labels"]) for c in labels.dcase2017(r, "evaluation"))
    assert several == {1: 891, 2: 182, 3: 25, 4: 5}
    assert {"Air horn, truck horn", "Fire engine, fire truck (siren)"} <= {
        x for c in labels.dcase2017(r, "training") for x in c["labels"]
    }
    assert (
        sum("," in x for x in labels.vggsound_labels(r["vggsound"])) == 23
        and sum("," in x for x in labels.audioset_names(r["audioset"]).values()) == 75
    )
    counts = Counter(len(c["labels"]) for c in labels.fsd50k(r, "dev"))
    assert (min(counts), max(counts)) <= (1, 22) and labels.fsd50k_labels(r["fsd50k"])[
        0
    ] == "Accelerating and revving and vroom"
    assert Counter(c["drop"] for c in captions.song_describer(r)) == {
        None: 1_078,
        "marked as not valid": 28,
    }
    assert Counter(c["labels"][0] for c in labels.cremad(r)) == dict.fromkeys(
        ["anger", "disgust", "fear", "happy", "sad"], 1_271
    ) | {"neutral": 1_087}
    assert labels.in_order(labels.esc50(r))[:3] == [
        "dog",
        "rooster",
        "pig",
    ] and "crying baby" in labels.in_order(labels.esc50(r))
    assert all(
        isinstance(q["skill"], str)
        and q["answer"] in q["choices"]
        and q["answer"] == q["answer"].strip()
        for q in questions.mmau(r, "test-mini")
    )
    asked = list(benchmarks.by_question(r, "test"))
    assert len(asked) == 2_838 and all(len(q["answer"]) == 3 for q in asked)
    majority = [Counter(q["answer"]).most_common(1)[0] for q in asked]
    assert sum(n >= 2 for _, n in majority) == 2_476
    binary = [a for a, n in majority if n >= 2 and a in ("yes", "no")]
    assert len(binary) == 1_892 and round(binary.count("yes") / len(binary), 3) == 0.564


def layouts(root):
    write(
        root / "audioset/class_labels_indices.csv",
        'index,mid,display_name\n0,/m/09x0r,Speech\n1,/m/05zppz,"Male speech, man speaking"\n',
    )
    write(
        root / "audioset/balanced_train_segments.csv",
        "# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids=2\n"
        "# YTID, start_seconds, end_seconds, positive_labels\n"
        '--4gqARaEJE, 0.000, 10.000, "/m/09x0r,/m/05zppz"\n'
        '-0aaaaaaaaa, 30.000, 40.000, "/m/09x0r"\n',
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
    write(
        root / "dcase2017t4/sound_event_list_17_classes.txt",
        "Class_ID Confidence Class\n/m/1\t0.9\tCar\n/m/2\t0.8\tAir horn, truck horn\n",
    )
    write(
        root / "dcase2017t4/groundtruth_weak_label_training_set.csv",
        "".join(f"-aaaaaaaaaa_30_40.wav\t30\t40\t{x}\n" for x in ("Car", "Air horn, truck horn")),
    )
    wav(root / "ravdess/Actor_01/03-01-05-01-02-01-01.wav")
    for name in ("country/country.00000.wav", "jazz/jazz.00054.au"):
        wav(root / f"gtzan/genres/{name}", format=name[-3:].strip(".").upper())
    write(root / "gtzan/test_filtered.txt", "country/country.00000.wav\n")
    write(
        root / "macs/MACS.yaml",
        "files:\n- filename: airport-stockholm-12-488-a.wav\n  annotations:\n"
        "  - {annotator_id: 354, sentence: ball game with people running, tags: [adults talking]}\n"
        "  - {annotator_id: 353, sentence: 'some adults: talking', tags: []}\n",
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
    wav(root / "airbench/Chat/sound_QA_clotho/0.wav")
    wav(root / "airbench/Chat/music_QA_clotho/2.wav")
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

    def read(clips):
        return [(c["id"], c["labels"]) for c in clips]

    assert read(labels.audioset(r)) == [
        ("--4gqARaEJE_0", ["Speech", "Male speech, man speaking"]),
        ("-0aaaaaaaaa_30", ["Speech"]),
    ]
    assert read(labels.audioset_strong(r)) == [
        ("b0RFKhbpFJA_30000", ["Boat, Water vehicle", "Speech"])
    ]
    assert read(labels.vggsound(r, "train")) == [
        ("--0PQM4-hqg_000030", ["bird chirping, tweeting"])
    ]
    assert read(labels.tut2017(r, "development")) == [
        ("development/b020_90_100", ["cafe/restaurant"])
    ]
    assert read(labels.sesa(r, "train")) == [
        ("train/casual_000", ["casual"]),
        ("train/gunshot_032", ["gunshot"]),
    ]
    assert read(labels.dcase2017(r, "training")) == [
        ("-aaaaaaaaaa_30_40", ["Car", "Air horn, truck horn"])
    ]
    assert read(labels.vocalsound(r, "train")) == [("f0003_0_cough", ["cough"])]
    assert read(labels.ravdess(r)) == [("03-01-05-01-02-01-01", ["angry"])]
    assert read(labels.gtzan(r)) == [("country.00000", ["country"]), ("jazz.00054", ["jazz"])]
    assert [c["caption"] for c in captions.macs(r)] == [
        "ball game with people running",
        "some adults: talking",
    ]
    out = tmp_path / "bench"
    run(benchmarks, tmp_path, out, "all")
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
        ("macs/MACS.yaml", "files:\n- filename: x\n  annotations: [{sentence: 5}]\n", "macs"),
        ("vocalsound/datafiles/tr.json", '{"data": [{"labels": "x"}]}', "vocalsound"),
    ],
)
def test_records_in_another_form_are_named(tmp_path, name, text, read):
    write(tmp_path / name, text)
    with pytest.raises(DataError, match=name.split("/")[0]):
        list(audiotia.SOURCES[read].clips(Root(tmp_path)))
