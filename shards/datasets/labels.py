"""Readers of datasets of labelled clips (a clip's shape: shards/datasets/__init__.py)."""

from collections.abc import Callable, Iterable
from pathlib import Path

from shards.files import (
    DataError,
    Folder,
    Record,
    Root,
    csv_records,
    readable,
    reader_of,
    stream_json,
    text_lines,
)

# --- labels as the files name them, and as they read --------------------------------------


def same(names: str) -> dict[str, str]:
    return {name: name.replace("_", " ") for name in names.split()}


TUT = same(
    "beach bus cafe/restaurant car city_center forest_path grocery_store home library "
    "metro_station office park residential_area train tram"
)
SESA = same("casual explosion gunshot siren")
VOCALSOUND = same("laughter sigh cough throatclearing sneeze sniff")
VOCALSOUND["throatclearing"] = "throat clearing"
CREMAD = dict(ANG="anger", DIS="disgust", FEA="fear", HAP="happy", NEU="neutral", SAD="sad")
RAVDESS = {"01": "neutral", "02": "calm", "03": "happy", "04": "sad"}
RAVDESS |= {"05": "angry", "06": "fearful", "07": "disgust", "08": "surprised"}
GTZAN = same("blues classical country disco hiphop jazz metal pop reggae rock")
BEIJING_OPERA = dict(
    bangu="clapper-drum", naobo="cymbals", daluo="large gong", xiaoluo="small gong"
)


# --- labels in a table --------------------------------------------------------------------


def audioset_names(folder: Folder) -> dict[str, str]:
    """{id of a label: its name}."""
    path = folder.find("class_labels_indices.csv")
    rows = csv_records(path, ("index", "mid", "display_name"))
    return {row["mid"]: row["display_name"] for row in rows}


@reader_of("audioset")
def audioset(folder, split="balanced_train"):
    """The official segments have three lines of comment, and a space after each comma."""
    path, names = folder.find(f"{split}_segments.csv"), audioset_names(folder)
    columns = ("ytid", "start", "end", "mids")
    for row in csv_records(path, columns, header=False, comment="#", spaced=True):
        if row["ytid"] == "YTID":
            continue
        video, start = row.youtube(row["ytid"]), row["start"]
        yield row.clip(
            id=f"{video}_{start.split('.')[0]}",
            labels=[name_of(label, names, row) for label in row["mids"].split(",")],
            youtube=video,
            sound=(f"Y{video}", f"{video}_{start}", video),
        )


def name_of(label: str, names: dict[str, str], row: Record) -> str:
    if label not in names:
        raise row.error(f"unknown label {label!r}; get the original file")
    return names[label]


@reader_of("audioset")
def audioset_strong(folder, split="train"):
    """One row a sound, so a segment has several."""
    path = folder.find(f"audioset_{split}_strong.tsv")
    table = folder.find("mid_to_display_name.tsv")
    rows = csv_records(table, ("mid", "name"), header=False, delimiter="\t")
    names = {row["mid"]: row["name"] for row in rows}
    columns = ("segment_id", "start_time_seconds", "end_time_seconds", "label")
    clips = {}  # {segment: {label: None}}: a dict keeps the order, without repetitions
    for row in csv_records(path, columns, delimiter="\t"):
        label, segment = name_of(row["label"], names, row), row["segment_id"]
        row.youtube(segment.rpartition("_")[0])
        clips.setdefault(segment, {})[label] = None
    for segment, labels in clips.items():
        video = segment.rpartition("_")[0]
        sound = (segment, f"Y{video}", video)
        yield dict(id=segment, labels=list(labels), youtube=video, sound=sound)


@reader_of("fsd50k")
def fsd50k(folder, split):
    for row in csv_records(folder.find(f"{split}.csv"), ("fname", "labels", "mids")):
        name = row.digits("fname", "Freesound id")
        labels = [readable(label) for label in row["labels"].split(",")]
        yield row.clip(id=name, labels=labels, freesound=name, sound=(name,))


def fsd50k_labels(folder: Folder) -> list[str]:
    rows = csv_records(folder.find("vocabulary.csv"), ("index", "label", "mid"), header=False)
    return [readable(row["label"]) for row in rows]


@reader_of("vggsound")
def vggsound(folder, split):
    """test.csv is the list that the authors score on: 15,446 clips. vggsound.csv has the rest."""
    if split == "test":
        for row in csv_records(folder.find("test.csv"), ("file", "label"), header=False):
            stem = row["file"].removesuffix(".mp4")
            yield row.clip(
                id=stem, labels=[row["label"]], youtube=row.youtube(stem[:11]), sound=(stem,)
            )
        return
    columns = ("ytid", "start", "label", "split")
    for row in csv_records(folder.find("vggsound.csv"), columns, header=False):
        if row["split"] == split:
            video = row.youtube(row["ytid"])
            stem = f"{video}_{int(row.digits('start')):06d}"
            sound = (stem, f"{video}_{row['start']}")
            yield row.clip(id=stem, labels=[row["label"]], youtube=video, sound=sound)


def vggsound_labels(folder: Folder) -> list[str]:
    rows = csv_records(folder.find("stat.csv"), ("label", "count", "super"), header=False)
    return [row["label"] for row in rows]


@reader_of("dcase2017t4")
def dcase2017(folder, split):
    """One row a label, so a file has several. Names are those of the audio without its first Y."""
    path = folder.find(f"groundtruth_weak_label_{split}_set.csv")
    known, clips = set(dcase2017_labels(folder)), {}
    columns = ("file", "start", "end", "label")
    for row in csv_records(path, columns, header=False, delimiter="\t"):
        label = row.one_of("label", known)
        row.youtube(row["file"][:11])
        clips.setdefault(row["file"].removesuffix(".wav"), {})[label] = None
    for stem, labels in clips.items():
        sound = (f"Y{stem}", stem)
        yield dict(id=stem, labels=list(labels), youtube=stem[:11], sound=sound)


def dcase2017_labels(folder: Folder) -> list[str]:
    """The list's header is separated by spaces, its rows by tabs."""
    path, columns = folder.find("sound_event_list_17_classes.txt"), ("mid", "confidence", "label")
    rows = csv_records(path, columns, header=False, delimiter="\t", comment="Class_ID")
    return [row["label"] for row in rows]


@reader_of("esc50")
def esc50(folder):
    columns = ("filename", "fold", "target", "category", "src_file")
    for row in csv_records(folder.find("esc50.csv"), columns):
        stem, target = row.name("filename").removesuffix(".wav"), row.digits("target")
        if not stem.endswith(f"-{target}"):
            raise row.error(
                f"target {target!r} does not fit {row['filename']!r}; get the original file"
            )
        yield row.clip(
            id=stem,
            labels=[readable(row["category"])],
            number=int(target),
            freesound=row.digits("src_file", "Freesound id"),
            sound=(stem, stem.rpartition("-")[0]),  # ESC-10's own files lack the target
        )


@reader_of("urbansound8k")
def urbansound8k(folder):
    columns = ("slice_file_name", "fsID", "fold", "classID", "class")
    for row in csv_records(folder.find("UrbanSound8K.csv"), columns):
        stem = row.name("slice_file_name").removesuffix(".wav")
        yield row.clip(
            id=stem,
            labels=[readable(row["class"])],
            number=int(row.digits("classID")),
            freesound=row.digits("fsID", "Freesound id"),
            sound=(f"fold{row['fold']}/{stem}", stem),
        )


@reader_of("tut2017")
def tut2017(folder, split):
    outer = f"TUT-acoustic-scenes-2017-{split}"
    path = folder.find(f"{outer}/meta.txt", f"{split}/meta.txt")
    for number, line in text_lines(path):
        name, *rest = line.split("\t")
        if not rest or rest[0] not in TUT:
            expected = "(tab-separated: file, scene)"
            raise DataError(f"{path}, line {number}: no known scene in {line[:80]!r} {expected}")
        stem = Path(name).stem
        sound = (f"{outer}/audio/{stem}", f"{split}/audio/{stem}", stem)
        yield dict(id=f"{split}/{stem}", labels=[TUT[rest[0]]], sound=sound)


# --- labels in the files' names -----------------------------------------------------------


def named_clip(where, name: str, label: str, known: dict[str, str]) -> dict:
    """The clip of this name, whose label is a part of it; raises DataError on an unknown label."""
    if label not in known:
        raise DataError(f"{where}: {label!r} in {name!r} is none of {', '.join(known)}")
    return dict(id=name, labels=[known[label]], sound=(name,))


@reader_of("sesa")
def sesa(folder, split):
    for path in folder.names(f"{split}/*.wav", f"{split}/<class>_<number>.wav"):
        yield named_clip(path, f"{split}/{path.stem}", path.stem.rpartition("_")[0], SESA)


@reader_of("vocalsound")
def vocalsound(folder, split):
    """f0003_0_cough.wav: speaker, number, sound."""
    part = {"train": "tr", "val": "val", "test": "te"}[split]
    for row in stream_json(folder.find(f"datafiles/{part}.json"), "data"):
        stem = Path(row["wav"]).stem
        yield named_clip(row.place, stem, stem.rpartition("_")[2], VOCALSOUND)


@reader_of("cremad")
def cremad(folder):
    """1001_DFA_ANG_XX: actor, sentence, emotion, intensity."""
    for row in csv_records(folder.find("SentenceFilenames.csv"), ("Stimulus_Number", "Filename")):
        _, _, emotion, _ = row["Filename"].split("_")
        yield named_clip(row.place, row["Filename"], emotion, CREMAD)


@reader_of("ravdess")
def ravdess(folder):
    """03-01-05-01-02-01-12: modality, channel, emotion, intensity, statement, repetition, actor.

    Audio-only speech is 03-01-*.
    """
    expected = "Actor_*/03-01-*.wav (Audio_Speech_Actors_01-24)"
    for path in folder.names("03-01-??-??-??-??-??.wav", expected):
        yield named_clip(path, path.stem, path.stem.split("-")[2], RAVDESS)


@reader_of("gtzan")
def gtzan(folder, tracks="all"):
    """tracks: all 1,000, wav or au, or those of the fault-"filtered" test list beside them."""
    if tracks == "filtered":
        lines = text_lines(folder.find("test_filtered.txt"))
        names = [Path(line.strip()).stem for _, line in lines]
    else:
        paths = folder.names("*.[wa][au]*", "genres/<genre>/<genre>.00000.wav or .au")
        names = [path.stem for path in paths if path.suffix in (".wav", ".au")]
    for name in dict.fromkeys(names):
        yield named_clip(folder, name, name.split(".")[0], GTZAN)


@reader_of("beijing_opera")
def beijing_opera(folder):
    """222136__ajaysm__bangu-05.wav; six names have no number."""
    expected = "<number>__ajaysm__<instrument>-<number>.wav"
    for path in folder.names("*__ajaysm__*.wav", expected):
        instrument = path.stem.rpartition("__")[2].split("-")[0]
        yield named_clip(path, path.stem, instrument, BEIJING_OPERA)


# --- the classes of each dataset, in its own order ----------------------------------------


CLASSES = {
    fsd50k: fsd50k_labels,
    vggsound: vggsound_labels,
    dcase2017: dcase2017_labels,
    tut2017: TUT,
    vocalsound: VOCALSOUND,
    cremad: CREMAD,
    ravdess: RAVDESS,
    sesa: SESA,
    gtzan: GTZAN,
    beijing_opera: BEIJING_OPERA,
}


def classes(reader: Callable, root: Root) -> list[str] | None:
    """The labels of the reader's dataset; None where its clips have no labels."""
    if reader in (esc50, urbansound8k):
        return in_order(reader(root))
    known = CLASSES.get(reader)
    if callable(known):
        return known(root[reader.folder])
    return list(known.values()) if known else None


def in_order(clips: Iterable[dict]) -> list[str]:
    """The labels of single-label clips by their class number."""
    pairs = {(clip["number"], label) for clip in clips for label in clip["labels"]}
    return [label for _, label in sorted(pairs)]
