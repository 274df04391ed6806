"""Evaluation shards of every benchmark, with audio and all references (Table S7, section B.3).

    python -m shards.benchmarks --list --root DIR
    python -m shards.benchmarks esc50 audiocaps --root DIR --out data/bench
    python -m shards.benchmarks all --root DIR --out data/bench

DIR is the same as for shards.audiotia. A clip whose audio is missing (YouTube loses some every
year) is counted and left out; index.json says how many of the clips there are. `--no-audio` writes
the references of all clips without audio: enough to score answers that were made elsewhere.
"""

if not __package__:
    raise SystemExit("now: python -m shards.benchmarks")

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from disk import write_atomic
from shards.audiotia import INSTRUCTIONS
from shards.build import Sounds, Tally, build, builder_parser, name_of, run
from shards.datasets import labels
from shards.datasets.captions import audiocaps_clips, clotho, musiccaps
from shards.datasets.questions import airbench, clothoaqa, mmau
from shards.files import DataError, Missing, Root, reader_of
from shards.sources import Dataset

EXTRA = ("labels", "choices", "category", "skill", "difficulty", "meta_info")  # for the metrics


@reader_of("clothoaqa")
def by_question(folder, split):
    """ClothoAQA's questions, each with the answers of its three annotators, in their order.

    The evaluation says how they make one answer (majority, rows, unanimous). It needs all three.
    """
    questions = {}
    for row in clothoaqa(folder, split):
        questions.setdefault((row["file"], row["question"]), []).append(row)
    for rows in questions.values():
        if len(rows) % 3:
            raise DataError(
                f"ClothoAQA {split}: {rows[0]['question']!r} of {rows[0]['file']} has "
                f"{len(rows)} answers, not three of each annotator"
            )
        for i in range(0, len(rows), 3):
            yield rows[i] | {"answer": [row["answer"] for row in rows[i : i + 3]]}


@reader_of("mmau")
def with_options(folder, split):
    """MMAU's questions as its authors ask them."""
    for clip in mmau(folder, split):
        question = (
            f"{clip['question']} Select one option: {', '.join(clip['choices'])} "
            "Respond with exactly one of the options above."
        )
        yield clip | {"question": question}


# `published`: clips or questions, as the benchmark has them; `tag`: the training part's
BENCHMARKS = {
    "esc50": Dataset("sound cls", "ESC-50, all five folds", 2_000, "single event", labels.esc50),
    "fsd50k": Dataset("sound cls", "FSD50K eval", 10_231, "multi events", labels.fsd50k, "eval"),
    "dcase2017": Dataset(
        "sound cls",
        "DCASE2017 task 4, evaluation",
        1_103,
        "single event",
        labels.dcase2017,
        "evaluation",
    ),
    "tut2017": Dataset(
        "sound cls",
        "TUT Acoustic Scenes 2017, evaluation",
        1_620,
        "scene event",
        labels.tut2017,
        "evaluation",
    ),
    "vggsound": Dataset(
        "sound cls", "VGGSound test", 15_446, "single event", labels.vggsound, "test"
    ),
    "urbansound8k": Dataset(
        "sound cls", "UrbanSound8K, all ten folds", 8_732, "single event", labels.urbansound8k
    ),
    "vocalsound": Dataset(
        "sound cls", "VocalSound test", 3_594, "vocal event", labels.vocalsound, "test"
    ),
    "cremad": Dataset("sound cls", "CREMA-D", 7_442, "emotion event", labels.cremad),
    "ravdess": Dataset("sound cls", "RAVDESS, speech", 1_440, "emotion event", labels.ravdess),
    "sesa": Dataset("sound cls", "SESA, test", 105, "surveillance event", labels.sesa, "test"),
    "gtzan": Dataset("music cls", "GTZAN, all tracks", 1_000, "music genres", labels.gtzan),
    "gtzan_filtered": Dataset(
        "music cls",
        "GTZAN, fault-filtered test list",
        290,
        "music genres",
        labels.gtzan,
        "filtered",
    ),
    "beijing_opera": Dataset(
        "music cls", "Beijing Opera percussion", 236, "instruction event", labels.beijing_opera
    ),
    "audiocaps": Dataset(
        "sound cap", "AudioCaps test", 975, "audio caption audiocaps", audiocaps_clips, "test"
    ),
    "clotho": Dataset(
        "sound cap", "Clotho v2 evaluation", 1_045, "audio caption clotho", clotho, "evaluation"
    ),
    "musiccaps": Dataset("music cap", "MusicCaps eval", 2_858, "music caption", musiccaps, "eval"),
    "clothoaqa": Dataset("sound aqa", "ClothoAQA test", 2_838, "audio qa", by_question, "test"),
    "airbench_sound": Dataset(
        "sound open", "AIR-Bench Chat, sound", 500, "open ended", airbench, "sound"
    ),
    "airbench_music": Dataset(
        "music open", "AIR-Bench Chat, music", 500, "open ended", airbench, "music"
    ),
    "mmau_mini": Dataset(
        "mixed mcq", "MMAU test-mini", 1_000, "open ended", with_options, "test-mini"
    ),
    "mmau": Dataset(
        "mixed mcq", "MMAU test, answers withheld", 9_000, "open ended", with_options, "test"
    ),
}


def samples(name: str, root: Root, tally: Tally) -> Iterator[dict]:
    """The benchmark's clips in the project's schema. Only their audio is known: text is null.

    A clip without a reference is counted in `tally` and left out.
    """
    benchmark = BENCHMARKS[name]
    for clip in benchmark.clips(root):
        if clip.get("drop"):
            tally.drop(clip["drop"], name_of(clip))
            continue
        tally.drop_blank(clip)
        if benchmark.task == "cls":
            answer = ", ".join(clip["labels"])
        else:
            answer = clip.get("captions") or clip.get("answer", clip.get("caption"))
        yield {
            "text": None,
            "instruction": clip.get("question") or INSTRUCTIONS[benchmark.task][0],
            "answer": answer,
            "task": benchmark.task,
            "source": name,
            "id": clip["id"],
            "tag": f"[{benchmark.tag}]",
            "sound": clip["sound"],
            "place": clip.get("place"),
        } | {field: clip[field] for field in EXTRA if field in clip}


def make(name: str, root: str, out: str, audio: bool = True, limit: int | None = None) -> dict:
    """Builds OUT/NAME, with labels.json where there are classes; returns its index.json.

    Raises Missing when its files, or all of its audio, are not there, and DataError when a file is
    damaged or a label is not in the list of classes.
    """
    benchmark, tally, root = BENCHMARKS[name], Tally(), Root(root)
    rows, names = list(samples(name, root, tally)), labels.classes(benchmark.reader, root)
    for row in rows if names else ():
        if not set(row["labels"]) <= set(names):
            raise DataError(
                f"{name}: {row['id']} has the labels {row['labels']}, "
                f"which are not all among its {len(names)} classes"
            )
    folder = root.path / benchmark.folder
    sounds = Sounds(folder) if audio else None
    if not rows:
        raise Missing(f"no samples. Left out: {tally}")
    if audio and not any(sounds.find(*row["sound"]) for row in rows):
        raise Missing(
            f"{folder} holds {len(sounds):,} audio files, and none of a clip of this benchmark, "
            f"such as {rows[0]['sound'][0]}.wav{sounds.advice()}. To get them: "
            f"{root[benchmark.folder].advice}. --no-audio writes the references alone"
        )
    index, new = build(
        out,
        name,
        rows,
        tally,
        {"files": root.fingerprint()},
        "the dataset's own",
        sounds,
        limit,
        per_shard=512,
        clips=len(rows),
        published=benchmark.published,
    )
    path = Path(out) / name / "labels.json"
    if names and (new or not path.exists()):
        write_atomic(path, json.dumps(names, ensure_ascii=False, indent=1).encode())
    there = "" if new else "(there, nothing to do) "
    print(f"{name}: {index['n']:,} of {benchmark.published:,} {there}{benchmark.title}")
    if tally.counts:
        print(f"    left out: {tally}")
    return index


def overview(names: list[str], args, asked: bool) -> list[str]:
    """Prints the counts beside the published ones; returns the differences, one line each."""
    wrong = []
    for name in names:
        wrong += BENCHMARKS[name].compare(name, args.root, lambda clip: 1, asked)[1]
    return wrong


def builder(args) -> Callable[[str], int]:
    """The function that builds one benchmark and returns its number of samples."""
    return lambda name: make(name, args.root, args.out, not args.no_audio, args.limit)["n"]


def main(argv=None):
    parser = builder_parser(__doc__, BENCHMARKS)
    parser.add_argument("--no-audio", action="store_true", help="all references, and no audio")
    run(parser, argv, BENCHMARKS, overview, builder)


if __name__ == "__main__":
    main()
