"""AudioTIA-5M (text, instruction, answer) and AudioAIA (audio, instruction, answer), from the public datasets on disk (sections 3.5, B.1-B.5).

    python -m shards.audiotia --list  --root DIR                       what there is, where to get it, and what was found under DIR
    python -m shards.audiotia --check --root DIR                       do the counts agree with the published ones?
    python -m shards.audiotia audiocaps clotho --root DIR --out data/audiotia
    python -m shards.audiotia all --root DIR --out data/audioaia --audio

Every dataset lies in a folder of its own under DIR; shards/README.md says which files are expected there. Classification without audio needs
descriptions of the labels, which shards/describe.py writes. What belongs to an evaluation set under DIR is left out (see `HeldOut`).
"""

import itertools
import json
import re
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Callable
from zlib import crc32

from shards import datasets as d
from shards.files import (
    YOUTUBE,
    DataError,
    Missing,
    Root,
    Sounds,
    Tally,
    build,
    clean,
    command,
    plain,
)

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


@dataclass
class Source:
    title: str
    folder: str  # under the root
    task: str  # data.TASKS
    clips: Callable  # Root -> clips, see shards/datasets.py
    expected: (
        int | None
    )  # captions, questions or labelled clips as published; None: not known exactly
    tag: str  # of the released training code
    url: str
    licence: str
    group: str  # row of Table S5
    audio: bool = True  # also in AudioAIA (Table S6); the others are only tested on there


def optional(root, clips):
    """clips, or none, with a note, where they are not on disk."""
    try:
        yield from clips
    except Missing as e:
        root.notes.append(str(e))


def captions_of(root):
    """{(kind, id): captions} of the clips that OpenAQA asks about, as far as their captions are on disk."""
    found, wavcaps = {}, root["wavcaps"]
    for kind, key, clips in (
        ("youtube", "youtube", d.audiocaps(root["audiocaps"], "train")),
        ("youtube", "youtube", d.wavcaps(wavcaps, "audioset")),
        ("clotho", "file", d.clotho(root["clotho"], "development")),
        ("clotho", "file", d.clotho(root["clotho"], "validation")),
        ("freesound", "freesound", d.wavcaps(wavcaps, "freesound")),
        ("soundbible", "id", d.wavcaps(wavcaps, "soundbible")),
    ):
        for c in optional(root, clips):
            found.setdefault((kind, c[key]), []).extend(c.get("captions") or [c["caption"]])
    return found


def pick(captions, question):
    """One of several captions, always the same for the same question; None where there are none."""
    return captions[crc32(question.encode()) % len(captions)] if captions else None


def clothoaqa(root):
    captions = {}
    for split in ("development", "validation", "evaluation"):
        for c in d.clotho(root["clotho"], split):
            captions.setdefault(c["file"], []).extend(c["captions"])
    for q in d.clothoaqa(root["clothoaqa"], "train"):
        yield q | {"text": pick(captions.get(q["file"]), q["question"])}


VIDEO = re.compile(
    r"Y?([\w-]{11})(?:_\d.*)?"
)  # Y<id>, <id>, <id>_<start>; an id may itself begin with Y
MUSIC = re.compile(r"nsynth|gtzan|music|magna|mtt|mtg|fma|medley|mridangam|opera", re.I)


def openaqa(root, part):
    """part: open (open-ended questions about sounds), cls and music_cap (closed tasks about music)."""
    captions = captions_of(root) if part == "open" else None
    for r in d.openaqa(root["openaqa"]):
        stem = (
            r["audio_id"].rpartition("/")[2].rpartition(".")[0] or r["audio_id"].rpartition("/")[2]
        )
        clip, music = {"id": r["id"], "sound": (stem,)}, bool(MUSIC.search(r["dataset"]))
        kind = (
            "open"
            if "open" in r["task"].lower()
            else "music_cap"
            if "cap" in r["task"].lower()
            else "cls"
        )
        if kind != part or music != (part != "open"):
            continue
        if part == "open":
            where = next(
                (
                    k
                    for k in ("soundbible", "freesound", "clotho")
                    if k in r["dataset"].lower().replace("_", "")
                ),
                "youtube",
            )
            video = VIDEO.fullmatch(stem)
            name = {"clotho": f"{stem}.wav", "youtube": video[1] if video else stem}.get(
                where, stem
            )
            yield clip | {
                "question": r["instruction"],
                "answer": r["output"],
                "text": pick(captions.get((where, name)), r["instruction"]),
                "file" if where == "clotho" else where: name,
            }
        elif part == "music_cap":
            yield clip | {"caption": r["output"]}
        else:
            labels = [clean(x) for x in r["output"].rpartition(":")[2].split(";") if x.strip(" .")]
            yield clip | (
                {"labels": labels} if labels else {"labels": [], "drop": "without a label"}
            )


def musicqa(root):
    """Questions about MusicCaps' and MagnaTagATune's tracks; MTG-Jamendo's, the Eval part, are MU-LLaMA's test set and stay out."""
    captions = {
        c["youtube"]: c["caption"] for c in optional(root, d.musiccaps(root["musiccaps"], "train"))
    }
    try:
        captions |= d.lp_musiccaps(root["lp_musiccaps"])
    except Missing as e:
        root.notes.append(str(e))
    parts = []
    for split in ("Pretrain", "Finetune"):
        try:
            root["musicqa"].find(f"{split}MusicQA.json")
            parts.append(split)
        except Missing as e:
            root.notes.append(str(e))
    if not parts:
        raise Missing(f"{root['musicqa']} lacks PretrainMusicQA.json and FinetuneMusicQA.json")
    for split in parts:
        for q in d.musicqa(root["musicqa"], split):
            stem = q["sound"][0]
            yield (
                q
                | {"text": captions.get(stem)}
                | ({"youtube": stem} if YOUTUBE.fullmatch(stem) else {})
            )  # MusicCaps' tracks


def one(folder, reader, *args):
    return lambda root: reader(root[folder], *args)


HUB, ZENODO = "https://huggingface.co/datasets/", "https://zenodo.org/records/"
SOURCES = {
    # sound, classification
    "audioset": Source(
        "AudioSet, balanced segments",
        "audioset",
        "cls",
        one("audioset", d.audioset),
        22_160,
        "[multi events]",
        "https://research.google.com/audioset/download.html",
        "CC BY 4.0",
        "sound cls",
    ),
    "audioset_strong": Source(
        "AudioSet, strong labels",
        "audioset",
        "cls",
        one("audioset", d.audioset_strong),
        103_463,
        "[multi events]",
        "https://research.google.com/audioset/download_strong.html",
        "CC BY 4.0",
        "sound cls",
    ),
    "fsd50k": Source(
        "FSD50K dev",
        "fsd50k",
        "cls",
        one("fsd50k", d.fsd50k, "dev"),
        40_966,
        "[multi events]",
        ZENODO + "4060432",
        "CC BY 4.0; each clip its own",
        "sound cls",
    ),
    "vggsound": Source(
        "VGGSound train",
        "vggsound",
        "cls",
        one("vggsound", d.vggsound, "train"),
        None,
        "[single event]",
        "https://www.robots.ox.ac.uk/~vgg/data/vggsound/",
        "CC BY 4.0",
        "sound cls",
    ),
    "dcase2017": Source(
        "DCASE2017 task 4, training",
        "dcase2017t4",
        "cls",
        one("dcase2017t4", d.dcase2017, "training"),
        51_172,
        "[single event]",
        "https://github.com/ankitshah009/Task-4-Large-scale-weakly-supervised-sound-event-detection-for-smart-cars",
        "Apache-2.0 (lists)",
        "sound cls",
    ),
    "esc50": Source(
        "ESC-50",
        "esc50",
        "cls",
        one("esc50", d.esc50),
        2_000,
        "[single event]",
        "https://github.com/karolpiczak/ESC-50",
        "CC BY-NC 3.0",
        "sound cls",
        audio=False,
    ),
    "urbansound8k": Source(
        "UrbanSound8K",
        "urbansound8k",
        "cls",
        one("urbansound8k", d.urbansound8k),
        8_732,
        "[single event]",
        "https://urbansounddataset.weebly.com/urbansound8k.html",
        "CC BY-NC 3.0",
        "sound cls",
        audio=False,
    ),
    "tut2017": Source(
        "TUT Acoustic Scenes 2017, development",
        "tut2017",
        "cls",
        one("tut2017", d.tut2017, "development"),
        4_680,
        "[scene event]",
        ZENODO + "400515",
        "non-commercial (Tampere University)",
        "sound cls",
    ),
    "sesa": Source(
        "SESA, train",
        "sesa",
        "cls",
        one("sesa", d.sesa, "train"),
        480,
        "[surveillance event]",
        ZENODO + "3519845",
        "see its page",
        "sound cls",
    ),
    "vocalsound": Source(
        "VocalSound, train",
        "vocalsound",
        "cls",
        one("vocalsound", d.vocalsound, "train"),
        None,
        "[vocal event]",
        "https://github.com/YuanGongND/vocalsound",
        "CC BY-SA 4.0",
        "sound cls",
        audio=False,
    ),
    "cremad": Source(
        "CREMA-D",
        "cremad",
        "cls",
        one("cremad", d.cremad),
        7_442,
        "[emotion event]",
        "https://github.com/CheyneyComputerScience/CREMA-D",
        "ODbL",
        "sound cls",
        audio=False,
    ),
    "ravdess": Source(
        "RAVDESS, speech",
        "ravdess",
        "cls",
        one("ravdess", d.ravdess),
        1_440,
        "[emotion event]",
        ZENODO + "1188976",
        "CC BY-NC-SA 4.0",
        "sound cls",
        audio=False,
    ),
    # sound, captions
    "wavcaps_audioset": Source(
        "WavCaps, AudioSet-SL",
        "wavcaps",
        "cap",
        one("wavcaps", d.wavcaps, "audioset"),
        108_317,
        "[audio caption]",
        HUB + "cvssp/WavCaps",
        "academic use only",
        "sound cap",
    ),
    "wavcaps_bbc": Source(
        "WavCaps, BBC",
        "wavcaps",
        "cap",
        one("wavcaps", d.wavcaps, "bbc"),
        31_201,
        "[audio caption]",
        HUB + "cvssp/WavCaps",
        "academic use only",
        "sound cap",
    ),
    "wavcaps_freesound": Source(
        "WavCaps, FreeSound",
        "wavcaps",
        "cap",
        one("wavcaps", d.wavcaps, "freesound"),
        262_300,
        "[audio caption]",
        HUB + "cvssp/WavCaps",
        "academic use only",
        "sound cap",
    ),
    "wavcaps_soundbible": Source(
        "WavCaps, SoundBible",
        "wavcaps",
        "cap",
        one("wavcaps", d.wavcaps, "soundbible"),
        1_232,
        "[audio caption]",
        HUB + "cvssp/WavCaps",
        "academic use only",
        "sound cap",
    ),
    "macs": Source(
        "MACS",
        "macs",
        "cap",
        one("macs", d.macs),
        None,
        "[audio caption]",
        ZENODO + "5114771",
        "see its page",
        "sound cap",
    ),
    "audiocaps": Source(
        "AudioCaps train",
        "audiocaps",
        "cap",
        one("audiocaps", d.audiocaps, "train"),
        49_838,
        "[audio caption audiocaps]",
        "https://github.com/cdjkim/audiocaps",
        "MIT",
        "sound cap",
    ),
    "clotho": Source(
        "Clotho v2 development",
        "clotho",
        "cap",
        one("clotho", d.clotho, "development"),
        19_195,
        "[audio caption clotho]",
        ZENODO + "4783391",
        "non-commercial (Tampere University)",
        "sound cap",
    ),
    # sound, questions
    "clothoaqa": Source(
        "ClothoAQA train",
        "clothoaqa",
        "aqa",
        clothoaqa,
        21_132,
        "[audio qa]",
        ZENODO + "6473207",
        "see its page",
        "sound aqa",
    ),
    "openaqa": Source(
        "OpenAQA, open-ended",
        "openaqa",
        "open",
        partial(openaqa, part="open"),
        None,
        "[open ended]",
        "https://github.com/YuanGongND/ltu",
        "see its page",
        "sound open",
    ),
    # music
    "gtzan": Source(
        "GTZAN",
        "gtzan",
        "cls",
        one("gtzan", d.gtzan),
        1_000,
        "[music genres]",
        "https://www.kaggle.com/datasets/andradaolteanu/gtzan-dataset-music-genre-classification",
        "none stated",
        "music cls",
        audio=False,
    ),
    "beijing_opera": Source(
        "Beijing Opera percussion",
        "beijing_opera",
        "cls",
        one("beijing_opera", d.beijing_opera),
        236,
        "[instruction event]",
        "https://freesound.org/people/ajaysm/packs/14056/",
        "CC BY 3.0",
        "music cls",
        audio=False,
    ),
    "openaqa_music": Source(
        "OpenAQA, closed music tasks",
        "openaqa",
        "cls",
        partial(openaqa, part="cls"),
        None,
        "[music classification]",
        "https://github.com/Sreyan88/GAMA",
        "see its page",
        "music cls",
    ),
    "openaqa_captions": Source(
        "OpenAQA, music captions",
        "openaqa",
        "music_cap",
        partial(openaqa, part="music_cap"),
        None,
        "[music caption]",
        "https://github.com/Sreyan88/GAMA",
        "see its page",
        "music cap",
    ),
    "musiccaps": Source(
        "MusicCaps train",
        "musiccaps",
        "music_cap",
        one("musiccaps", d.musiccaps, "train"),
        2_663,
        "[music caption]",
        HUB + "google/MusicCaps",
        "CC BY-SA 4.0",
        "music cap",
    ),
    "song_describer": Source(
        "Song Describer",
        "song_describer",
        "music_cap",
        one("song_describer", d.song_describer),
        1_106,
        "[music caption]",
        ZENODO + "10072001",
        "CC BY-SA 4.0",
        "music cap",
        audio=False,
    ),
    "musicqa": Source(
        "MusicQA",
        "musicqa",
        "open",
        musicqa,
        None,
        "[open ended]",
        HUB + "mu-llama/MusicQA",
        "see its page",
        "music open",
    ),
}
# Tables S5 and S6: thousands of samples in each group
TABLE_S5 = {
    "sound cls": 385,
    "sound cap": 518,
    "sound aqa": 20,
    "music cls": 497,
    "music cap": 30,
    "sound open": 2547,
    "music open": 1207,
}
TABLE_S6 = {
    "sound cls": 331,
    "sound cap": 517,
    "sound aqa": 6.1,
    "music cls": 630,
    "music cap": 28.3,
    "sound open": 2467,
    "music open": 118,
}


class HeldOut:
    """What must not be trained on, as far as it lies under the root: the captions of the caption benchmarks, verbatim but for case and
    punctuation; the clips of all evaluation sets, by their ids on YouTube and Freesound and Clotho's file names; WavCaps' blacklists.
    `remarks` say which of them are not there, or not whole."""

    def __init__(self, root):
        self.root, self.texts, self.ids, self.remarks = (
            root,
            set(),
            {"youtube": set(), "freesound": set(), "file": set()},
            [],
        )
        for title, n, clips in (
            ("AudioCaps test", 4_875, d.audiocaps(root["audiocaps"], "test")),
            ("Clotho evaluation", 1_045, d.clotho(root["clotho"], "evaluation")),
            ("MusicCaps eval", 2_858, d.musiccaps(root["musiccaps"], "eval")),
            ("ClothoAQA test", 8_514, d.clothoaqa(root["clothoaqa"], "test")),
            ("FSD50K eval", 10_231, d.fsd50k(root["fsd50k"], "eval")),
            ("VGGSound test", 15_446, d.vggsound(root["vggsound"], "test")),
            ("DCASE2017 evaluation", 1_103, d.dcase2017(root["dcase2017t4"], "evaluation")),
            ("ESC-50", 2_000, d.esc50(root["esc50"])),
            ("UrbanSound8K", 8_732, d.urbansound8k(root["urbansound8k"])),
        ):
            found = 0
            try:
                for found, c in enumerate(clips, 1):
                    self.texts.update(
                        map(plain, c.get("captions") or [c[k] for k in ("caption",) if k in c])
                    )
                    for key in self.ids.keys() & c.keys():
                        self.ids[key].add(c[key])
                if found != n:
                    self.remarks.append(
                        f"{title} has {found:,} rows where {n:,} were published: half a download cannot be kept apart whole"
                    )
            except Missing:
                self.remarks.append(f"{title} is not under {root.path}, and so not kept apart")
        try:
            anywhere, self.blacklist = d.wavcaps_blacklist(root["wavcaps"])
            for key, ids in anywhere.items():
                self.ids[key] |= ids
        except Missing as e:
            self.blacklist = {}
            self.remarks.append(str(e))

    def why(self, clip, texts, wavcaps):
        """The reason for leaving this clip, with these texts, out, or None. wavcaps: it is a clip, or has a caption, of WavCaps."""
        for key in self.ids.keys() & clip.keys():
            if clip[key] in self.ids[key]:
                return "clips of an evaluation set"
            if wavcaps and clip[key] in self.blacklist.get(key, ()):
                return "on WavCaps' blacklists"
        if any(text and plain(text) in self.texts for text in texts):
            return "verbatim in an evaluation set"


def described(root, name):
    """The descriptions of shards/describe.py as clips: labels, and a text in which they are heard (section B.4)."""
    folder = root["descriptions"]
    try:
        path = folder.find(f"{name}.jsonl")
    except Missing as e:
        raise Missing(
            f"text supervision needs descriptions of its labels, {folder}/{name}.jsonl; write them with: python -m shards.describe {name} "
            f"--root {root.path}"
        ) from e
    with open(path, encoding="utf-8") as f:
        for line, text in enumerate(f, 1):
            try:
                r = json.loads(text)
                yield {
                    "id": f"{name}/{line}",
                    "labels": [str(x) for x in r["labels"]],
                    "text": clean(r["text"]),
                }
            except (ValueError, KeyError, TypeError, AttributeError) as e:
                raise DataError(
                    f'{path}, line {line}: not {{"labels": [...], "text": ...}} ({e}); cut off? Start describe.py again'
                ) from e


def label_sets(name, root):
    """{labels: training clips that have them}: what describe.py describes, and how often by default (the paper's sample counts)."""
    source = SOURCES.get(name)
    if source is None or source.task != "cls":
        raise DataError(
            f"{name} is no classification source; there are: {', '.join(n for n, s in SOURCES.items() if s.task == 'cls')}"
        )
    return Counter(tuple(c["labels"]) for c in source.clips(Root(root)) if c["labels"])


def samples(name, root, audio, varied, held, tally):
    """The source's samples in the project's schema, with `sound`, the names that their audio may have."""
    source = SOURCES[name]
    clips = source.clips(root) if audio or source.task != "cls" else described(root, name)
    choices = (VARIED if varied else INSTRUCTIONS).get(source.task)
    for c in clips:
        texts = c.get("captions") or [c.get("caption", c.get("text"))]
        for i, text in enumerate(texts):
            reason = (
                c.get("drop")
                or (
                    held
                    and held.why(
                        c, (text, c.get("answer")), source.folder in ("wavcaps", "openaqa")
                    )
                )
                or ("without a caption of their clip" if text is None and not audio else None)
            )
            if reason:
                tally.drop(reason, c["id"])
                continue
            key = f"{c['id']}/{i}" if len(texts) > 1 else c["id"]
            yield {
                "text": text,
                "instruction": c.get("question")
                or choices[crc32(f"{name}/{key}".encode()) % len(choices)],
                "answer": ", ".join(c["labels"]) if "labels" in c else c.get("answer", text),
                "task": source.task,
                "source": name,
                "id": key,
                "tag": source.tag,
                "sound": c.get("sound", ()),
            }


def make(name, root, out, audio=False, varied=False, held=None, limit=None):
    """Builds OUT/NAME, without what `held` holds. Returns index.json's content. Raises Missing when the dataset is not there, DataError when
    it is damaged, or when its audio is only for tests."""
    source, tally, start = SOURCES[name], Tally(), time.time()
    if audio and not source.audio and held:
        raise DataError(
            f"{name} is no part of AudioAIA: MATS-Audio is only tested on it (Table S6). --keep-eval builds it all the same"
        )
    root = Root(root)
    if held and source.folder == "wavcaps":
        d.wavcaps_blacklist(root["wavcaps"])  # WavCaps without its blacklists is refused
    stream = samples(name, root, audio, varied, held, tally)
    first = next(
        stream, None
    )  # by now all annotation files are open, and the fingerprint knows them
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
    index, new = build(
        out, name, itertools.chain([first], stream), tally, key, source.licence, sounds, limit
    )
    if not new:
        print(f"{name}: {index['n']:,} samples are there, nothing to do")
        return index
    seconds = time.time() - start
    print(
        f"{name}: {index['n']:,} samples in {len(index['shards'])} shards, {seconds:.1f} s, {index['n'] / seconds:,.0f}/s"
    )
    for note in root.notes:
        print(f"    not used: {note}")
    if tally.counts:
        print(f"    left out: {tally}")
    for remark in held.remarks if held else ():
        print(f"    mind: {remark}")
    return index


def overview(names, root, audio, check, asked):
    """Prints what was found beside what was published. Returns the differences, one line each; what is missing only where it was `asked` for."""
    wrong, groups = [], {}
    for name in names:
        s = SOURCES[name]
        if audio and not s.audio:
            continue
        try:
            n = sum(len(c.get("captions", "1")) for c in s.clips(Root(root)))
            print(
                f"{name:20} {s.task:9} {n:>9,} of {format(s.expected, ',') if s.expected else '?':>9}  {s.title}"
            )
            if s.expected not in (None, n):
                wrong.append(f"{name}: {n:,} where {s.expected:,} were published")
        except Missing as e:
            n = None
            wrong += [f"{name}: {e}"] if asked else []
            print(
                f"{name:20} {s.task:9} {'-':>9} of {format(s.expected, ',') if s.expected else '?':>9}  {e}"
            )
        groups.setdefault(s.group, []).append(n)
        if not check:
            print(f"{'':20} {s.url}  ({s.licence})")
    for group, thousands in (TABLE_S6 if audio else TABLE_S5).items():
        known = [n for n in groups.get(group, ()) if n is not None]
        whole = len(known) == sum(
            s.group == group and (s.audio or not audio) for s in SOURCES.values()
        )
        print(
            f"{group:20} {sum(known):>9,} of about {thousands:,}K in Table {'S6' if audio else 'S5'}{'' if whole else ', sources are missing'}"
        )
        if whole and abs(sum(known) / 1000 / thousands - 1) > 0.1:
            wrong.append(
                f"{group}: {sum(known):,} where Table {'S6' if audio else 'S5'} has about {thousands:,}K"
            )
    return wrong


def options(parser):
    parser.add_argument(
        "--audio", action="store_true", help="AudioAIA: the clips' audio instead of texts"
    )
    parser.add_argument(
        "--instructions",
        choices=("paper", "varied"),
        default="paper",
        help="Table S8's, or five paraphrases a task",
    )
    parser.add_argument(
        "--keep-eval",
        action="store_true",
        help="do not leave out what belongs to an evaluation set",
    )


def maker(args):
    held = None if args.keep_eval else HeldOut(Root(args.root))

    def one(name):
        if args.names == ["all"] and args.audio and held and not SOURCES[name].audio:
            return 0
        return make(
            name, args.root, args.out, args.audio, args.instructions == "varied", held, args.limit
        )["n"]

    return one


def main(argv=None):
    command(
        argv,
        __doc__,
        SOURCES,
        options,
        lambda names, args: overview(
            names, args.root, args.audio, args.check, args.names not in ([], ["all"])
        ),
        maker,
    )


if __name__ == "__main__":
    main()
