"""Readers of datasets of captions (the shape of a clip: shards/datasets/__init__.py)."""

import re
from pathlib import Path

import yaml

from disk import read_json
from shards.files import (
    DataError,
    Folder,
    check_head,
    clean,
    csv_records,
    json_lines,
    reader_of,
    stream_json,
)


@reader_of("audiocaps")
def audiocaps(folder, split):
    path = folder.find(f"{split}.csv")
    for row in csv_records(path, ("audiocap_id", "youtube_id", "start_time", "caption")):
        video = row.youtube(row["youtube_id"])
        name = f"{video}_{row['start_time']}"
        sound = (f"Y{video}", name, video)
        yield row.clip(id=name, caption=clean(row["caption"]), youtube=video, sound=sound)


@reader_of("audiocaps")
def audiocaps_clips(folder, split):
    """The clips of val or test, each with its five captions, which stand in rows of their own."""
    clips = {}
    for row in audiocaps(folder, split):
        known = {field: row[field] for field in ("id", "youtube", "sound", "place")}
        clip = clips.setdefault(row["youtube"], known | {"captions": []})
        clip["captions"].append(row["caption"])
    yield from clips.values()


@reader_of("clotho")
def clotho(folder, split):
    """Names keep their leading spaces and HTML entities.

    They are unique only within a split, so the audio must lie in its split's folder.
    """
    path = folder.find(f"clotho_captions_{split}.csv")
    columns = [f"caption_{i}" for i in range(1, 6)]
    for row in csv_records(path, ("file_name", *columns)):
        file = row.name("file_name")
        stem = file.removesuffix(".wav")
        captions = [clean(row[column]) for column in columns]
        sound = (f"{split}/{stem}", f"clotho_audio_{split}/{stem}")
        yield row.clip(id=f"{split}/{file}", file=file, captions=captions, sound=sound)


@reader_of("macs")
def macs(folder):
    path = folder.find("MACS.yaml")
    check_head(path)
    try:
        with open(path, encoding="utf-8") as file:
            entries = yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))["files"]
        for entry in entries:
            name = entry["filename"]
            for i, annotation in enumerate(entry["annotations"]):
                caption = clean(annotation["sentence"])
                yield dict(id=f"{name}/{i}", caption=caption, sound=(Path(name).stem,))
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as e:
        said = " ".join(str(e).split())[:200]  # YAML's are of several lines
        problem = f"not MACS as published ({type(e).__name__} {said}); get it again"
        raise DataError(f"{path}: {problem}") from e


WAVCAPS = {
    "audioset": "as_final.json",
    "bbc": "bbc_final.json",
    "freesound": "fsd_final.json",
    "soundbible": "sb_final.json",
}


@reader_of("wavcaps")
def wavcaps(folder, part):
    """Only id and caption are in all parts. AudioSet's ids are Y<video>.wav, the others' bare."""
    for row in stream_json(folder.find(WAVCAPS[part]), "data"):
        row.require(["id", "caption"])
        name = row.name("id").removesuffix(".wav").removesuffix(".flac")
        clip = row.clip(id=name, caption=clean(row["caption"]), sound=(name,))
        if part == "audioset":
            clip["youtube"] = row.youtube(name.removeprefix("Y"))
        elif part == "freesound":
            clip["freesound"] = row.digits("id", "Freesound id")
        yield clip


def wavcaps_blacklist(folder: Folder) -> list[dict[str, set]]:
    """WavCaps' two lists of evaluation clips, each {"youtube": ids, "freesound": ids}.

    The first holds the clips of AudioCaps and Clotho, to be kept out of every source. The second
    holds the clips of UrbanSound8K, ESC-50 and VGGSound that WavCaps' authors left out of WavCaps;
    some 1,400 of AudioCaps' training clips are among them.
    """
    found = []
    for name in ("blacklist_exclude_test_ac.json", "blacklist_exclude_ub8k_esc50_vggsound.json"):
        path = folder.find(name)
        lists = read_json(path)
        if not all(is_list_of_ids(lists.get(key)) for key in ("AudioSet", "FreeSound")):
            raise DataError(
                f"{path}: not WavCaps' list of ids for AudioSet and FreeSound; get it again"
            )
        youtube = {str(name).removesuffix(".wav").removeprefix("Y") for name in lists["AudioSet"]}
        freesound = {str(name).removesuffix(".wav") for name in lists["FreeSound"]}
        found.append({"youtube": youtube, "freesound": freesound})
    return found


def is_list_of_ids(value) -> bool:
    return isinstance(value, list) and all(type(entry) in (str, int) for entry in value)


@reader_of("musiccaps")
def musiccaps(folder, split):
    path = folder.find("musiccaps-public.csv")
    for row in csv_records(path, ("ytid", "start_s", "end_s", "caption", "is_audioset_eval")):
        in_eval = row.one_of("is_audioset_eval", ("True", "False")) == "True"
        if in_eval != (split == "eval"):
            continue
        video = row.youtube(row["ytid"])
        name = f"{video}_{row['start_s']}"
        sound = (f"[{video}]-[{row['start_s']}-{row['end_s']}]", name, video)
        yield row.clip(id=name, caption=clean(row["caption"]), youtube=video, sound=sound)


@reader_of("song_describer")
def song_describer(folder):
    """is_valid_subset: False, the caption is to be dropped; empty, nobody validated it."""
    path = folder.find("song_describer.csv")
    for row in csv_records(path, ("caption_id", "track_id", "caption", "is_valid_subset", "path")):
        invalid = row.one_of("is_valid_subset", ("True", "False", "")) == "False"
        stem = row.name("path").removesuffix(".mp3")
        yield row.clip(
            id=row.name("caption_id"),
            caption=clean(row["caption"]),
            sound=(f"{stem}.2min", stem),
            drop="marked as not valid" if invalid else None,
        )


@reader_of("lp_musiccaps")
def lp_musiccaps(folder):
    """The tracks that captions.jsonl has a caption of."""

    def parse(line, track):
        name = re.sub(r"\.(wav|mp3|flac)$", "", track["audio_name"])
        place = f"captions.jsonl, line {line}"
        return dict(id=name, caption=clean(track["caption"]), sound=(name,), place=place)

    expected = '{"audio_name": ..., "caption": ...}'
    yield from json_lines(folder.find("captions.jsonl"), parse, expected, "get it again")
