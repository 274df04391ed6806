"""Evaluation shards of every benchmark, with audio and all references (Table S7, section B.3).

    python -m shards.benchmarks --list --root DIR
    python -m shards.benchmarks esc50 audiocaps --root DIR --out data/bench
    python -m shards.benchmarks all --root DIR --out data/bench

DIR is the same as shards/audiotia.py's. A clip whose audio is not there (YouTube loses some every year) is counted, and left out;
index.json says on how many of how many clips a score will stand. `--no-audio` writes the references of all clips without any audio:
enough for scoring answers that were made elsewhere.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from data import write_atomic
from shards import datasets as d
from shards.audiotia import INSTRUCTIONS, one
from shards.files import DataError, Missing, Root, Sounds, Tally, build, command


@dataclass
class Benchmark:
    title: str
    folder: str  # under the root
    task: str  # data.TASKS
    clips: Callable  # Root -> clips, see shards/datasets.py
    expected: int  # clips or questions, as the benchmark has them
    tag: str = ""  # the released code's, for the dataset's training part
    labels: Callable | None = None  # Root -> the classes in the dataset's own order


def by_clip(folder, split):
    """AudioCaps' rows, which stand apart, as one clip with its five captions."""
    clips = {}
    for c in d.audiocaps(folder, split):
        clips.setdefault(c["youtube"], {**c, "captions": []})["captions"].append(c["caption"])
    for c in clips.values():
        del c["caption"]
        yield c


def by_question(root):
    """ClothoAQA's test questions, each with the answers of its three annotators, in their order: which rule makes one of them is
    for the evaluation to say (majority, rows, unanimous)."""
    questions = {}
    for q in d.clothoaqa(root["clothoaqa"], "test"):
        questions.setdefault((q["file"], q["question"]), []).append(q)
    for rows in questions.values():
        if len(rows) % 3:
            raise DataError(
                f"ClothoAQA test: {rows[0]['question']!r} of {rows[0]['file']} has {len(rows)} answers, not three of each annotator"
            )
        for i in range(0, len(rows), 3):
            yield rows[i] | {"answer": [q["answer"] for q in rows[i : i + 3]]}


def options(root, split):
    """MMAU's questions as its authors ask them."""
    for q in d.mmau(root["mmau"], split):
        yield q | {
            "question": f"{q['question']} Select one option: {', '.join(q['choices'])} Respond with exactly one of the options above."
        }


def ordered(folder, reader):
    return lambda root: d.in_order(reader(root[folder]))


fixed = lambda labels: lambda root: [d.readable(x) for x in labels]
AIR_SOUND, AIR_MUSIC = (
    ("sound_QA", "sound_generation_QA"),
    ("music_QA", "music_generation_analysis_QA"),
)
BENCHMARKS = {
    "esc50": Benchmark(
        "ESC-50, all five folds",
        "esc50",
        "cls",
        one("esc50", d.esc50),
        2_000,
        "[single event]",
        ordered("esc50", d.esc50),
    ),
    "fsd50k": Benchmark(
        "FSD50K eval",
        "fsd50k",
        "cls",
        one("fsd50k", d.fsd50k, "eval"),
        10_231,
        "[multi events]",
        one("fsd50k", d.fsd50k_labels),
    ),
    "dcase2017": Benchmark(
        "DCASE2017 task 4, evaluation",
        "dcase2017t4",
        "cls",
        one("dcase2017t4", d.dcase2017, "evaluation"),
        1_103,
        "[single event]",
        one("dcase2017t4", d.dcase2017_labels),
    ),
    "tut2017": Benchmark(
        "TUT Acoustic Scenes 2017, evaluation",
        "tut2017",
        "cls",
        one("tut2017", d.tut2017, "evaluation"),
        1_620,
        "[scene event]",
        fixed(d.TUT),
    ),
    "vggsound": Benchmark(
        "VGGSound test",
        "vggsound",
        "cls",
        one("vggsound", d.vggsound, "test"),
        15_446,
        "[single event]",
        one("vggsound", d.vggsound_labels),
    ),
    "urbansound8k": Benchmark(
        "UrbanSound8K, all ten folds",
        "urbansound8k",
        "cls",
        one("urbansound8k", d.urbansound8k),
        8_732,
        "[single event]",
        ordered("urbansound8k", d.urbansound8k),
    ),
    "vocalsound": Benchmark(
        "VocalSound test",
        "vocalsound",
        "cls",
        one("vocalsound", d.vocalsound, "test"),
        3_594,
        "[vocal event]",
        fixed(d.VOCALSOUND.values()),
    ),
    "cremad": Benchmark(
        "CREMA-D",
        "cremad",
        "cls",
        one("cremad", d.cremad),
        7_442,
        "[emotion event]",
        fixed(d.CREMAD.values()),
    ),
    "ravdess": Benchmark(
        "RAVDESS, speech",
        "ravdess",
        "cls",
        one("ravdess", d.ravdess),
        1_440,
        "[emotion event]",
        fixed(d.RAVDESS),
    ),
    "sesa": Benchmark(
        "SESA, test",
        "sesa",
        "cls",
        one("sesa", d.sesa, "test"),
        105,
        "[surveillance event]",
        fixed(d.SESA),
    ),
    "gtzan": Benchmark(
        "GTZAN, all tracks",
        "gtzan",
        "cls",
        one("gtzan", d.gtzan),
        1_000,
        "[music genres]",
        fixed(d.GTZAN),
    ),
    "gtzan_filtered": Benchmark(
        "GTZAN, fault-filtered test list",
        "gtzan",
        "cls",
        one("gtzan", d.gtzan, True),
        290,
        "[music genres]",
        fixed(d.GTZAN),
    ),
    "beijing_opera": Benchmark(
        "Beijing Opera percussion",
        "beijing_opera",
        "cls",
        one("beijing_opera", d.beijing_opera),
        236,
        "[instruction event]",
        fixed(d.BEIJING_OPERA.values()),
    ),
    "audiocaps": Benchmark(
        "AudioCaps test",
        "audiocaps",
        "cap",
        one("audiocaps", by_clip, "test"),
        975,
        "[audio caption audiocaps]",
    ),
    "clotho": Benchmark(
        "Clotho v2 evaluation",
        "clotho",
        "cap",
        one("clotho", d.clotho, "evaluation"),
        1_045,
        "[audio caption clotho]",
    ),
    "musiccaps": Benchmark(
        "MusicCaps eval",
        "musiccaps",
        "music_cap",
        one("musiccaps", d.musiccaps, "eval"),
        2_858,
        "[music caption]",
    ),
    "clothoaqa": Benchmark("ClothoAQA test", "clothoaqa", "aqa", by_question, 2_838, "[audio qa]"),
    "airbench_sound": Benchmark(
        "AIR-Bench Chat, sound",
        "airbench",
        "open",
        one("airbench", d.airbench, AIR_SOUND),
        500,
        "[open ended]",
    ),
    "airbench_music": Benchmark(
        "AIR-Bench Chat, music",
        "airbench",
        "open",
        one("airbench", d.airbench, AIR_MUSIC),
        500,
        "[open ended]",
    ),
    "mmau_mini": Benchmark(
        "MMAU test-mini",
        "mmau",
        "mcq",
        lambda root: options(root, "test-mini"),
        1_000,
        "[open ended]",
    ),
    "mmau": Benchmark(
        "MMAU test, answers withheld",
        "mmau",
        "mcq",
        lambda root: options(root, "test"),
        9_000,
        "[open ended]",
    ),
}
EXTRA = (
    "labels",
    "choices",
    "category",
    "skill",
    "difficulty",
    "meta_info",
)  # what a sample brings for its metric, beside the schema


def samples(name, root):
    """The benchmark's clips in the project's schema. Nothing is known of a clip but its audio: text is null."""
    b = BENCHMARKS[name]
    for c in b.clips(root):
        answer = (
            ", ".join(c["labels"])
            if b.task == "cls"
            else c.get("captions") or c.get("answer", c.get("caption"))
        )
        yield {
            "text": None,
            "instruction": c.get("question") or INSTRUCTIONS[b.task][0],
            "answer": answer,
            "task": b.task,
            "source": name,
            "id": c["id"],
            "tag": b.tag,
            "sound": c["sound"],
        } | {k: c[k] for k in EXTRA if k in c}


def make(name, root, out, audio=True, limit=None):
    """Builds OUT/NAME, with labels.json where there are classes. Returns index.json's content. Raises Missing when its files, or
    all of its audio, are not there, and DataError when a file is damaged or a label is not in the list of classes."""
    b, tally, root = BENCHMARKS[name], Tally(), Root(root)
    rows = list(samples(name, root))
    labels = b.labels(root) if b.labels else None
    if labels:
        for r in rows:
            if not set(r["labels"]) <= set(labels):
                raise DataError(
                    f"{name}: {r['id']} has the label {r['labels']}, which is not in the list of its {len(labels)} classes"
                )
    sounds = Sounds(root.path / b.folder) if audio else None
    if audio and not any(sounds.find(*r["sound"]) for r in rows):
        raise Missing(
            f"{root.path / b.folder} holds {len(sounds):,} audio files, and none of a clip of this benchmark, such as "
            f"{rows[0]['sound'][0]}.wav. --no-audio writes the references alone"
        )
    index, new = build(
        out,
        name,
        iter(rows),
        tally,
        {"files": root.fingerprint()},
        "the dataset's own",
        sounds,
        limit,
        per_shard=512,
        clips=len(rows),
        published=b.expected,
    )
    if labels and (new or not (Path(out) / name / "labels.json").exists()):
        write_atomic(
            Path(out) / name / "labels.json",
            json.dumps(labels, ensure_ascii=False, indent=1).encode(),
        )
    print(
        f"{name}: {index['n']:,} of {b.expected:,} {'' if new else '(there, nothing to do) '}{b.title}"
    )
    if tally.counts:
        print(f"    left out: {tally}")
    return index


def overview(names, root, asked):
    wrong = []
    for name in names:
        b = BENCHMARKS[name]
        try:
            n = sum(1 for _ in b.clips(Root(root)))
            print(f"{name:16} {b.task:9} {n:>7,} of {b.expected:>7,}  {b.title}")
            if n != b.expected:
                wrong.append(f"{name}: {n:,} where {b.expected:,} were published")
        except Missing as e:
            wrong += [f"{name}: {e}"] if asked else []
            print(f"{name:16} {b.task:9} {'-':>7} of {b.expected:>7,}  {e}")
    return wrong


def main(argv=None):
    command(
        argv,
        __doc__,
        BENCHMARKS,
        lambda parser: parser.add_argument(
            "--no-audio", action="store_true", help="all references, and no audio"
        ),
        lambda names, args: overview(names, args.root, args.names not in ([], ["all"])),
        lambda args: (
            lambda name: make(name, args.root, args.out, not args.no_audio, args.limit)["n"]
        ),
    )


if __name__ == "__main__":
    main()
