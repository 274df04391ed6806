"""AudioTIA-5M (text, instruction, answer), AudioAIA (audio, instruction, answer); 3.5, B.1-B.5.

    python -m shards.audiotia --list  --root DIR      every source, where to get it, what is in DIR
    python -m shards.audiotia --check --root DIR      do the counts agree with the published ones?
    python -m shards.audiotia audiocaps clotho --root DIR --out data/audiotia
    python -m shards.audiotia all --root DIR --out data/audioaia --audio
    python -m shards.audiotia audiocaps_val clotho_val --root DIR --out data/audiotia-val

Every dataset lies in its own folder under DIR; docs/data.md lists the files. Classification
without audio needs descriptions of the labels, which shards/describe.py writes. Clips and texts of
the evaluation sets under DIR are left out (see `HeldOut`).
"""

if not __package__:
    raise SystemExit("now: python -m shards.audiotia")

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from zlib import crc32

from data import has_words
from shards.build import Sounds, Tally, build, builder_parser, name_of, run
from shards.datasets.captions import audiocaps, clotho, musiccaps, wavcaps_blacklist
from shards.datasets.labels import dcase2017, esc50, fsd50k, urbansound8k, vggsound
from shards.datasets.questions import clothoaqa
from shards.files import DataError, Missing, Root, captions_of, clean, json_lines, plain
from shards.sources import EVERY, SOURCES, TEST_ONLY, THOUSANDS, VALIDATION, page

# Table S8, and paraphrases of ours. Questions are their own instruction.
INSTRUCTIONS = {
    "cls": ["Classify events in the audio clip."],
    "cap": ["Generate audio caption."],
    "music_cap": ["Generate music caption."],
}
VARIED = {
    "cls": [
        "Which sound events does this clip contain?",
        "Name what can be heard in the recording.",
        "List the labels that fit this audio.",
        "What kind of sound is this?",
        "Assign the audio clip to its classes.",
    ],
    "cap": [
        "Describe the recording in one sentence.",
        "Write a caption for this audio clip.",
        "Tell in a few words what can be heard.",
        "What is happening in this recording?",
        "Give a short description of the sounds.",
    ],
    "music_cap": [
        "Describe this piece of music.",
        "Write a caption for the music.",
        "What does this track sound like?",
        "Summarise the character of the music in a sentence or two.",
        "Give a short description of the instruments and the mood.",
    ],
}


# --- kept apart from the evaluation -------------------------------------------------------


class HeldOut:
    """Texts and clips that must not be trained on, as far as they lie under the root.

    `texts`: the captions of the caption benchmarks, verbatim but for case and punctuation.
    `ids`: the clips of all evaluation sets, by their ids on YouTube and Freesound and Clotho's file
    names. `listed`, `blacklist`: clips of WavCaps' two lists, for training; the first also lists
    the validation clips of AudioCaps. `remarks` name the sets that are missing or incomplete.
    """

    def __init__(self, root: Root):
        self.root, self.texts, self.remarks = root, set(), []
        self.listed, self.blacklist = {}, {}
        self.ids = {"youtube": set(), "freesound": set(), "file": set()}
        for title, published, clips in (
            ("AudioCaps test", 4_875, audiocaps(root, "test")),
            ("Clotho evaluation", 1_045, clotho(root, "evaluation")),
            ("MusicCaps eval", 2_858, musiccaps(root, "eval")),
            ("ClothoAQA test", 8_514, clothoaqa(root, "test")),
            ("FSD50K eval", 10_231, fsd50k(root, "eval")),
            ("VGGSound test", 15_446, vggsound(root, "test")),
            ("DCASE2017 evaluation", 1_103, dcase2017(root, "evaluation")),
            ("ESC-50", 2_000, esc50(root)),
            ("UrbanSound8K", 8_732, urbansound8k(root)),
        ):
            try:
                found = self.add(clips)
            except Missing:
                self.remarks.append(f"{title} is not under {root.path}, and so not kept apart")
                continue
            if found != published:
                self.remarks.append(
                    f"{title} has {found:,} rows where {published:,} were published: "
                    "an incomplete download cannot be fully excluded from training"
                )
        try:
            self.listed, self.blacklist = wavcaps_blacklist(root["wavcaps"])
        except Missing as e:
            self.remarks.append(str(e))

    def tell(self) -> None:
        """Prints the remarks, once."""
        for remark in self.remarks:
            print(f"    note: {remark}")
        self.remarks = []

    def add(self, clips: Iterable[dict]) -> int:
        """Holds these clips out; returns their number."""
        found = 0
        for clip in clips:
            found += 1
            self.texts.update(filter(None, map(plain, captions_of(clip))))
            for key in self.ids.keys() & clip.keys():
                self.ids[key].add(clip[key])
        return found

    def why(
        self, clip: dict, texts: Iterable[str | None], of_wavcaps: bool, trained: bool = True
    ) -> str | None:
        """The reason to leave out this clip with these texts, or None.

        of_wavcaps: it is a clip, or has a caption, of WavCaps; trained: not for validation.
        """
        for key in self.ids.keys() & clip.keys():
            listed = trained and clip[key] in self.listed.get(key, ())
            if clip[key] in self.ids[key] or listed:
                return "clips of an evaluation set"
            if of_wavcaps and clip[key] in self.blacklist.get(key, ()):
                return "on WavCaps' blacklists"
        if any(text and plain(text) in self.texts for text in texts):
            return "verbatim in an evaluation set"
        return None


# --- samples ------------------------------------------------------------------------------


def described(root: Root, name: str) -> Iterator[dict]:
    """The descriptions of shards/describe.py as clips: labels, and a text that tells them (B.4)."""
    folder = root["descriptions"]
    try:
        path = folder.find(f"{name}.jsonl")
    except Missing as e:
        raise Missing(
            f"text supervision needs descriptions of its labels, {folder}/{name}.jsonl; "
            f"write them with: python -m shards.describe {name} --root {root.path}"
        ) from e

    def parse(line, row):
        labels = row["labels"]
        if not isinstance(labels, list) or not labels or not all(map(has_words, labels)):
            raise ValueError(f"labels: {labels!r}")
        clip = {"id": f"{name}/{line}", "labels": labels, "text": clean(row["text"])}
        return clip if has_words(clip["text"]) else clip | {"drop": "without a text"}

    expected, advice = '{"labels": [...], "text": ...}', "cut off? Resume shards.describe"
    return json_lines(path, parse, expected, advice)


def label_sets(name: str, root: str) -> Counter:
    """{labels: number of training clips with them}, the descriptions that the paper has of each."""
    if name not in SOURCES or SOURCES[name].task != "cls":
        known = ", ".join(name for name, source in SOURCES.items() if source.task == "cls")
        raise DataError(f"{name} is no classification source; there are: {known}")
    clips = SOURCES[name].clips(Root(root))
    return Counter(tuple(clip["labels"]) for clip in clips if not clip.get("drop"))


def why_dropped(clip, text, name: str, audio: bool, held: HeldOut | None) -> str | None:
    """The reason to leave out the source's clip with this text, or None."""
    reason = clip.get("drop")
    if not reason and held:
        of_wavcaps, texts = EVERY[name].folder in ("wavcaps", "openaqa"), (text, clip.get("answer"))
        reason = held.why(clip, texts, of_wavcaps, trained=name in SOURCES)
    if not reason and text is None and not audio:
        reason = "without a caption of their clip"
    return reason


def samples(
    name: str, root: Root, audio: bool, varied: bool, held: HeldOut | None, tally: Tally
) -> Iterator[dict]:
    """The source's samples in the project's schema, with `sound`, the names of their audio."""
    source = EVERY[name]
    clips = source.clips(root) if audio or source.task != "cls" else described(root, name)
    instructions = (VARIED if varied else INSTRUCTIONS).get(source.task)
    for clip in clips:
        texts = captions_of(clip) or [clip.get("text")]
        tally.drop_blank(clip)
        for i, text in enumerate(texts):
            reason = why_dropped(clip, text, name, audio, held)
            if reason:
                tally.drop(reason, name_of(clip))
                continue
            key = f"{clip['id']}/{i}" if len(texts) > 1 else clip["id"]
            instruction = clip.get("question")
            if not instruction:
                draw = crc32(f"{name}/{key}".encode(errors="backslashreplace"))
                instruction = instructions[draw % len(instructions)]
            answer = ", ".join(clip["labels"]) if "labels" in clip else clip.get("answer", text)
            yield {
                "text": text,
                "instruction": instruction,
                "answer": answer,
                "task": source.task,
                "source": name,
                "id": key,
                "tag": f"[{source.tag}]",
                "sound": clip.get("sound", ()),
                "place": clip.get("place"),
            }


# --- the command --------------------------------------------------------------------------


def make(
    name: str,
    root: str,
    out: str,
    audio: bool = False,
    varied: bool = False,
    held: HeldOut | None = None,
    limit: int | None = None,
) -> dict:
    """Builds OUT/NAME, without the clips that are held out; returns its index.json.

    Raises Missing when the dataset is not there, DataError when it is damaged, or when its audio is
    only for tests.
    """
    source, tally, start = EVERY[name], Tally(), time.time()
    if audio and name in TEST_ONLY and held:
        raise DataError(
            f"{name} is no part of AudioAIA: MATS-Audio is only tested on it (Table S6). "
            "--keep-eval builds it all the same"
        )
    root = Root(root)
    if held and source.folder == "wavcaps":
        wavcaps_blacklist(root["wavcaps"])  # raises: WavCaps is not built without its blacklists
    stream = samples(name, root, audio, varied, held, tally)
    first = next(stream, None)  # opens all annotation files; the fingerprint needs them
    if first is None:
        raise Missing(f"no samples. Left out: {str(tally) or 'nothing'}")
    if held:
        root.opened |= held.root.opened
    key = {
        "files": root.fingerprint(),
        "instructions": "varied" if varied else "paper",
        "keep_eval": not held,
    }
    sounds = Sounds(root.path / source.folder) if audio else None
    licence = page(name).licence
    index, new = build(out, name, chain([first], stream), tally, key, licence, sounds, limit)
    if not new:
        print(f"{name}: {index['n']:,} samples are there, nothing to do")
        return index
    seconds, n = time.time() - start, index["n"]
    print(
        f"{name}: {n:,} samples in {len(index['shards'])} shards, "
        f"{seconds:.1f} s, {n / seconds:,.0f}/s"
    )
    for note in root.notes:
        print(f"    not used: {note}")
    if tally.counts:
        print(f"    left out: {tally}")
    if held:
        held.tell()
    return index


def overview(names: list[str], args, asked: bool) -> list[str]:
    """Prints the counts beside the published ones; returns the differences, one line each."""
    wrong, groups = [], {}
    for name in names:
        if args.audio and name in TEST_ONLY:
            continue
        source = EVERY[name]
        n, differences = source.compare(name, args.root, rows_of, asked)
        wrong += differences
        if name in SOURCES:
            groups.setdefault(source.group, {})[name] = n
        if not args.check:
            print(f"{'':20} {page(name).url}  ({page(name).licence})")
    return wrong + group_overview(groups, args.audio)


def rows_of(clip: dict) -> int:
    return len(clip.get("captions", "1"))


def group_overview(groups: dict[str, dict[str, int | None]], audio: bool) -> list[str]:
    """Prints each group's count beside the paper's. groups: {group: {source: count, if there}}."""
    wrong, table = [], "Table S6" if audio else "Table S5"
    for group, (text_thousands, audio_thousands) in THOUSANDS.items():
        thousands = audio_thousands if audio else text_thousands
        counts = groups.get(group, {})
        total = sum(n for n in counts.values() if n is not None)
        complete = None not in counts.values() and all(
            name in counts
            for name, source in SOURCES.items()
            if source.group == group and not (audio and name in TEST_ONLY)
        )
        missing = "" if complete else ", sources are missing"
        print(f"{group:20} {total:>9,} of about {thousands:,}K in {table}{missing}")
        if complete and abs(total / 1000 / thousands - 1) > 0.1:
            wrong.append(f"{group}: {total:,} where {table} has about {thousands:,}K")
    return wrong


def builder(args) -> Callable[[str], int]:
    """The function that builds one source and returns its number of samples."""
    held = None if args.keep_eval else HeldOut(Root(args.root))
    varied = args.instructions == "varied"

    def build_one(name):
        if args.names == ["all"] and args.audio and held and name in TEST_ONLY:
            return 0
        return make(name, args.root, args.out, args.audio, varied, held, args.limit)["n"]

    return build_one


def main(argv=None):
    parser = builder_parser(__doc__, SOURCES, VALIDATION)
    option = parser.add_argument
    option("--audio", action="store_true", help="AudioAIA: the clips' audio instead of texts")
    option(
        "--instructions",
        choices=("paper", "varied"),
        default="paper",
        help="Table S8's, or five paraphrases a task",
    )
    option("--keep-eval", action="store_true", help="keep clips and texts of evaluation sets")
    run(parser, argv, SOURCES, overview, builder, VALIDATION)


if __name__ == "__main__":
    main()
