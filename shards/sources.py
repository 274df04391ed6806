"""The sources of AudioTIA-5M and AudioAIA: every dataset, and its published count."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple
from zlib import crc32

from disk import DataError
from shards.datasets.captions import (
    audiocaps,
    audiocaps_clips,
    clotho,
    lp_musiccaps,
    macs,
    musiccaps,
    song_describer,
    wavcaps,
)
from shards.datasets.labels import (
    audioset,
    audioset_strong,
    beijing_opera,
    cremad,
    dcase2017,
    esc50,
    fsd50k,
    gtzan,
    ravdess,
    sesa,
    tut2017,
    urbansound8k,
    vggsound,
    vocalsound,
)
from shards.datasets.questions import clothoaqa, musicqa, openaqa
from shards.fetch.catalog import read_catalog
from shards.files import YOUTUBE, Clips, Missing, Root, captions_of, clean, reader_of


@dataclass(frozen=True)
class Dataset:
    """A part of a public dataset: what it is, and how its clips are read."""

    group: str  # sound or music, and the task: a row of Table S5
    title: str
    published: int | None  # captions, questions or labelled clips; None: not known exactly
    tag: str  # of the released training code, which puts it in brackets
    reader: Callable[..., Clips]  # Root, part -> clips
    part: str = ""

    @property
    def folder(self) -> str:  # under the root
        return self.reader.folder

    @property
    def task(self) -> str:  # of data.TASKS
        return "music_cap" if self.group == "music cap" else self.group.split()[1]

    def clips(self, root: Root) -> Clips:
        return self.reader(root, self.part) if self.part else self.reader(root)

    def compare(
        self, name: str, root: str, size: Callable[[dict], int], asked: bool
    ) -> tuple[int | None, list[str]]:
        """Prints the sum of the clips' sizes beside the published one; returns (sum, differences).

        Where files are missing the sum is None: a difference if the dataset was `asked` for. Where
        they are damaged it is None and a difference.
        """
        published, n = f"{self.published:,}" if self.published else "?", None
        there, about, wrong = "-", self.title, []
        try:
            n = sum(map(size, self.clips(Root(root))))
            there = f"{n:,}"
            if self.published not in (None, n):
                wrong = [f"{name}: {there} where {published} were published"]
        except Missing as e:
            about = e
            if asked:
                wrong = [f"{name}: {e}"]
        except DataError as e:
            about, wrong = e, [f"{name}: {e}"]
        print(f"{name:20} {self.task:9} {there:>9} of {published:>9}  {about}")
        return n, wrong


class Page(NamedTuple):
    licence: str
    url: str


# --- questions, joined to captions of their clips -----------------------------------------

VIDEO = re.compile(
    r"Y?([A-Za-z0-9_-]{11})(?:_[0-9].*)?"
)  # Y<id>, <id>, <id>_<start>; an id may begin with Y
MUSIC = re.compile(r"nsynth|gtzan|music|magna|mtt|mtg|fma|medley|mridangam|opera", re.I)


def optional(root: Root, clips: Iterable) -> Iterator:
    """The clips, or none, with a note, where they are not on disk."""
    try:
        yield from clips
    except Missing as e:
        if str(e) not in root.notes:
            root.notes.append(str(e))


def pick(captions: list[str] | None, question: str) -> str | None:
    """One of the captions, always the same for the same question; None where there are none."""
    if not captions:
        return None
    return captions[crc32(question.encode(errors="backslashreplace")) % len(captions)]


@reader_of("clothoaqa")
def joined_clothoaqa(folder, split):
    root, captions = folder.root, {}
    for part in ("development", "validation", "evaluation"):
        for clip in clotho(root, part):
            captions.setdefault(clip["file"], []).extend(clip["captions"])
    for clip in clothoaqa(root, split):
        yield clip | {"text": pick(captions.get(clip["file"]), clip["question"])}


def openaqa_captions(root: Root) -> dict[tuple[str, str], list[str]]:
    """{(kind of id, id): captions} of OpenAQA's clips, as far as their captions are on disk."""
    found = {}
    for kind, key, clips in (
        ("youtube", "youtube", audiocaps(root, "train")),
        ("youtube", "youtube", wavcaps(root, "audioset")),
        ("clotho", "file", clotho(root, "development")),
        ("clotho", "file", clotho(root, "validation")),
        ("freesound", "freesound", wavcaps(root, "freesound")),
        ("soundbible", "id", wavcaps(root, "soundbible")),
    ):
        for clip in optional(root, clips):
            found.setdefault((kind, clip[key]), []).extend(captions_of(clip))
    return found


@reader_of("openaqa")
def openaqa_part(folder, part):
    """part: open, questions about sounds; cls or music_cap, closed tasks about music."""
    captions = openaqa_captions(folder.root) if part == "open" else {}
    for row in openaqa(folder.root):
        if part_of(row) != part:
            continue
        stem = PurePosixPath(row["audio_id"]).stem
        clip = {"id": row["id"], "sound": (stem,), "place": row["place"]}
        if part == "open":
            yield clip | open_question(row, stem, captions)
        elif part == "music_cap":
            yield clip | {"caption": row["output"]}
        else:
            names = row["output"].rpartition(":")[2].split(";")
            yield clip | {"labels": [clean(name) for name in names if name.strip(" .")]}


def part_of(row: dict) -> str | None:
    """The part that a row belongs to; None for open questions about music, closed about sound."""
    task, music = row["task"].lower(), bool(MUSIC.search(row["dataset"]))
    if "open" in task:
        return None if music else "open"
    if not music:
        return None
    return "music_cap" if "cap" in task else "cls"


def open_question(row: dict, stem: str, captions: dict) -> dict:
    """The question with a caption of its clip. Its dataset says what the clip's name stands for."""
    dataset = row["dataset"].lower().replace("_", "")
    kinds = [kind for kind in ("soundbible", "freesound", "clotho") if kind in dataset]
    kind, name, video = kinds[0] if kinds else "youtube", stem, VIDEO.fullmatch(stem)
    if kind == "clotho":
        name = f"{stem}.wav"
    elif kind == "youtube" and video:
        name = video[1]
    return {
        "question": row["instruction"],
        "answer": row["output"],
        "text": pick(captions.get((kind, name)), row["instruction"]),
        "file" if kind == "clotho" else kind: name,
    }


@reader_of("musicqa")
def joined_musicqa(folder):
    """Questions about MusicCaps' and MagnaTagATune's tracks.

    MusicQA's Eval part, about MTG-Jamendo's tracks, is MU-LLaMA's test set and stays out.
    """
    root, parts = folder.root, []
    captions = {}
    for key, tracks in (("youtube", musiccaps(root, "train")), ("id", lp_musiccaps(root))):
        for track in optional(root, tracks):
            captions.update((track[key], caption) for caption in captions_of(track))
    for part in ("Pretrain", "Finetune"):
        try:
            folder.find(f"{part}MusicQA.json")
            parts.append(part)
        except Missing as e:
            root.notes.append(str(e))
    if not parts:
        raise Missing(f"{folder} lacks PretrainMusicQA.json and FinetuneMusicQA.json")
    for part in parts:
        for clip in musicqa(root, part):
            stem = clip["sound"][0]
            clip["text"] = captions.get(stem)
            if YOUTUBE.fullmatch(stem):
                clip["youtube"] = stem  # one of MusicCaps' tracks
            yield clip


# --- the table ----------------------------------------------------------------------------

SOURCES = {
    # sounds: labels
    "audioset": Dataset(
        "sound cls", "AudioSet, balanced segments", 22_160, "multi events", audioset
    ),
    "audioset_strong": Dataset(
        "sound cls", "AudioSet, strong labels", 103_463, "multi events", audioset_strong
    ),
    "fsd50k": Dataset("sound cls", "FSD50K dev", 40_966, "multi events", fsd50k, "dev"),
    "vggsound": Dataset("sound cls", "VGGSound train", None, "single event", vggsound, "train"),
    "dcase2017": Dataset(
        "sound cls", "DCASE2017 task 4, training", 51_172, "single event", dcase2017, "training"
    ),
    "esc50": Dataset("sound cls", "ESC-50", 2_000, "single event", esc50),
    "urbansound8k": Dataset("sound cls", "UrbanSound8K", 8_732, "single event", urbansound8k),
    "tut2017": Dataset(
        "sound cls",
        "TUT Acoustic Scenes 2017, development",
        4_680,
        "scene event",
        tut2017,
        "development",
    ),
    "sesa": Dataset("sound cls", "SESA, train", 480, "surveillance event", sesa, "train"),
    "vocalsound": Dataset(
        "sound cls", "VocalSound, train", None, "vocal event", vocalsound, "train"
    ),
    "cremad": Dataset("sound cls", "CREMA-D", 7_442, "emotion event", cremad),
    "ravdess": Dataset("sound cls", "RAVDESS, speech", 1_440, "emotion event", ravdess),
    # sounds: captions
    "wavcaps_audioset": Dataset(
        "sound cap", "WavCaps, AudioSet-SL", 108_317, "audio caption", wavcaps, "audioset"
    ),
    "wavcaps_bbc": Dataset("sound cap", "WavCaps, BBC", 31_201, "audio caption", wavcaps, "bbc"),
    "wavcaps_freesound": Dataset(
        "sound cap", "WavCaps, FreeSound", 262_300, "audio caption", wavcaps, "freesound"
    ),
    "wavcaps_soundbible": Dataset(
        "sound cap", "WavCaps, SoundBible", 1_232, "audio caption", wavcaps, "soundbible"
    ),
    "macs": Dataset("sound cap", "MACS", None, "audio caption", macs),
    "audiocaps": Dataset(
        "sound cap", "AudioCaps train", 49_838, "audio caption audiocaps", audiocaps, "train"
    ),
    "clotho": Dataset(
        "sound cap", "Clotho v2 development", 19_195, "audio caption clotho", clotho, "development"
    ),
    # sounds: questions
    "clothoaqa": Dataset(
        "sound aqa", "ClothoAQA train", 21_132, "audio qa", joined_clothoaqa, "train"
    ),
    "openaqa": Dataset(
        "sound open", "OpenAQA, open-ended", None, "open ended", openaqa_part, "open"
    ),
    # music
    "gtzan": Dataset("music cls", "GTZAN", 1_000, "music genres", gtzan),
    "beijing_opera": Dataset(
        "music cls", "Beijing Opera percussion", 236, "instruction event", beijing_opera
    ),
    "openaqa_music": Dataset(
        "music cls",
        "OpenAQA, closed music tasks",
        None,
        "music classification",
        openaqa_part,
        "cls",
    ),
    "openaqa_captions": Dataset(
        "music cap", "OpenAQA, music captions", None, "music caption", openaqa_part, "music_cap"
    ),
    "musiccaps": Dataset(
        "music cap", "MusicCaps train", 2_663, "music caption", musiccaps, "train"
    ),
    "song_describer": Dataset(
        "music cap", "Song Describer", 1_106, "music caption", song_describer
    ),
    "musicqa": Dataset("music open", "MusicQA", None, "open ended", joined_musicqa),
}

# for train.py's --val; no part of AudioTIA
VALIDATION = {
    "audiocaps_val": Dataset(
        "sound cap", "AudioCaps val", 2_475, "audio caption audiocaps", audiocaps_clips, "val"
    ),
    "clotho_val": Dataset(
        "sound cap", "Clotho v2 validation", 5_225, "audio caption clotho", clotho, "validation"
    ),
}
EVERY = SOURCES | VALIDATION


def page(name: str) -> Page:
    """The licence of a source, and where to get it."""
    entry = read_catalog()[EVERY[name].folder]
    return Page(entry.licence, entry.pages.get(name, entry.page))


# sources that MATS-Audio is only tested on (Table S6)
TEST_ONLY = {
    *("esc50", "urbansound8k", "vocalsound", "cremad", "ravdess"),
    *("gtzan", "beijing_opera", "song_describer"),
}
# thousands of samples in each group: AudioTIA (Table S5), AudioAIA (Table S6)
THOUSANDS = {
    "sound cls": (385, 331),
    "sound cap": (518, 517),
    "sound aqa": (20, 6.1),
    "music cls": (497, 630),
    "music cap": (30, 28.3),
    "sound open": (2547, 2467),
    "music open": (1207, 118),
}
