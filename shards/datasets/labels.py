"""One short reader for each public dataset: its annotation files, as they were published, to clips.

A clip is a dict: id; what is known of it (`labels`, a list; or `caption` or `captions`; or `question` and `answer`); `sound`, the names
under which its audio may lie; `youtube` or `freesound`, its id there, or `file`, its name in Clotho, where it has one (for keeping training
and test apart); and `drop`, the reason where its makers themselves exclude it.
A reader takes the dataset's Folder. Readers raise DataError, naming the file and the line, on anything that is not as published. Labels come
readable: "mouse_click" is "mouse click". The lists of labels are in the datasets' own order.
"""

import json
import re
from pathlib import Path

import yaml

from shards.files import DataError, as_published, clean, load_json, stream_json, table, youtube

TUT = [
    "beach",
    "bus",
    "cafe/restaurant",
    "car",
    "city_center",
    "forest_path",
    "grocery_store",
    "home",
    "library",
    "metro_station",
    "office",
    "park",
    "residential_area",
    "train",
    "tram",
]
SESA = ["casual", "explosion", "gunshot", "siren"]
VOCALSOUND = {
    "laughter": "laughter",
    "sigh": "sigh",
    "cough": "cough",
    "throatclearing": "throat clearing",
    "sneeze": "sneeze",
    "sniff": "sniff",
}
CREMAD = {
    "ANG": "anger",
    "DIS": "disgust",
    "FEA": "fear",
    "HAP": "happy",
    "NEU": "neutral",
    "SAD": "sad",
}
RAVDESS = ["neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised"]
GTZAN = [
    "blues",
    "classical",
    "country",
    "disco",
    "hiphop",
    "jazz",
    "metal",
    "pop",
    "reggae",
    "rock",
]
BEIJING_OPERA = {
    "bangu": "clapper-drum",
    "naobo": "cymbals",
    "daluo": "large gong",
    "xiaoluo": "small gong",
}


def readable(label):
    return clean(label.replace("_", " "))


# --- captions ---------------------------------------------------------------------------------------------------------


@as_published
def audiocaps(folder, split):
    path = folder.find(f"{split}.csv")
    for line, r in table(path, ("audiocap_id", "youtube_id", "start_time", "caption")):
        name = youtube(path, line, r["youtube_id"])
        yield {
            "id": f"{name}_{r['start_time']}",
            "caption": clean(r["caption"]),
            "youtube": name,
            "sound": (f"Y{name}", f"{name}_{r['start_time']}", name),
        }


@as_published
def clotho(folder, split):
    """Names keep their leading spaces and HTML entities. Only within a split are they unique, so audio must lie in its split's folder."""
    path = folder.find(f"clotho_captions_{split}.csv")
    columns = [f"caption_{i}" for i in range(1, 6)]
    for _, r in table(path, ("file_name", *columns)):
        stem = r["file_name"].removesuffix(".wav")
        yield {
            "id": f"{split}/{r['file_name']}",
            "file": r["file_name"],
            "captions": [clean(r[c]) for c in columns],
            "sound": (f"{split}/{stem}", f"clotho_audio_{split}/{stem}"),
        }


@as_published
def macs(folder):
    path = folder.find("MACS.yaml")
    try:
        with open(path, encoding="utf-8") as f:
            entries = yaml.load(f, getattr(yaml, "CSafeLoader", yaml.SafeLoader))["files"]
        for entry in entries:
            for i, a in enumerate(entry["annotations"]):
                yield {
                    "id": f"{entry['filename']}/{i}",
                    "caption": clean(a["sentence"]),
                    "sound": (Path(entry["filename"]).stem,),
                }
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as e:
        raise DataError(
            f"{path}: not MACS as published ({type(e).__name__} {str(e)[:200]}); get it again"
        ) from e


WAVCAPS = {
    "audioset": "as_final.json",
    "bbc": "bbc_final.json",
    "freesound": "fsd_final.json",
    "soundbible": "sb_final.json",
}


@as_published
def wavcaps(folder, part):
    """Keys differ from part to part; only id and caption are in all. AudioSet's ids are Y<video>.wav, the others' bare."""
    path = folder.find(WAVCAPS[part])
    for i, r in enumerate(stream_json(path, "data")):
        if not isinstance(r, dict) or not isinstance(r.get("caption"), str) or "id" not in r:
            raise DataError(f"{path}, record {i}: no id or no caption: {str(r)[:100]}")
        name = str(r["id"]).removesuffix(".wav").removesuffix(".flac")
        clip = {"id": name, "caption": clean(r["caption"]), "sound": (name,)}
        if part == "audioset":
            clip["youtube"] = youtube(path, i, name.removeprefix("Y"))
        elif part == "freesound":
            clip["freesound"] = name
        yield clip


def wavcaps_blacklist(folder):
    """WavCaps' two lists of evaluation clips, each {"youtube": ids, "freesound": ids}: those of AudioCaps and Clotho, whatever a source is called,
    and those that its authors left out of WavCaps for UrbanSound8K, ESC-50 and VGGSound (some 1,400 of AudioCaps' training clips among them)."""
    found = []
    for name in ("blacklist_exclude_test_ac.json", "blacklist_exclude_ub8k_esc50_vggsound.json"):
        lists = load_json(path := folder.find(name))
        if not isinstance(lists, dict) or not {"AudioSet", "FreeSound"} <= lists.keys():
            raise DataError(
                f"{path}: not WavCaps' list of ids for AudioSet and FreeSound; get it again"
            )
        found.append(
            {
                "youtube": {n.removesuffix(".wav").removeprefix("Y") for n in lists["AudioSet"]},
                "freesound": {str(n).removesuffix(".wav") for n in lists["FreeSound"]},
            }
        )
    return found


@as_published
def musiccaps(folder, split):
    path = folder.find("musiccaps-public.csv")
    for line, r in table(path, ("ytid", "start_s", "end_s", "caption", "is_audioset_eval")):
        if r["is_audioset_eval"] not in ("True", "False"):
            raise DataError(
                f"{path}, line {line}: is_audioset_eval is {r['is_audioset_eval']!r}, not True or False; get the original file"
            )
        if (r["is_audioset_eval"] == "True") == (split == "eval"):
            name = youtube(path, line, r["ytid"])
            yield {
                "id": f"{name}_{r['start_s']}",
                "caption": clean(r["caption"]),
                "youtube": name,
                "sound": (
                    f"[{name}]-[{r['start_s']}-{r['end_s']}]",
                    f"{name}_{r['start_s']}",
                    name,
                ),
            }


@as_published
def song_describer(folder):
    """Captions marked False in is_valid_subset are to be dropped; empty means that nobody validated them."""
    path = folder.find("song_describer.csv")
    for line, r in table(path, ("caption_id", "track_id", "caption", "is_valid_subset", "path")):
        if r["is_valid_subset"] not in ("True", "False", ""):
            raise DataError(
                f"{path}, line {line}: is_valid_subset is {r['is_valid_subset']!r}, not True, False or empty"
            )
        stem = r["path"].removesuffix(".mp3")
        yield {
            "id": r["caption_id"],
            "caption": clean(r["caption"]),
            "sound": (f"{stem}.2min", stem),
            "drop": "marked as not valid" if r["is_valid_subset"] == "False" else None,
        }


# --- labels -----------------------------------------------------------------------------------------------------------


def audioset_names(folder):
    return {
        r["mid"]: r["display_name"]
        for _, r in table(folder.find("class_labels_indices.csv"), ("index", "mid", "display_name"))
    }


@as_published
def audioset(folder, split="balanced_train"):
    """The official segments have three lines of comment, and a space after each comma."""
    path, names = folder.find(f"{split}_segments.csv"), audioset_names(folder)
    for line, r in table(
        path, ("ytid", "start", "end", "mids"), header=False, comment="#", spaced=True
    ):
        if r["ytid"] == "YTID":
            continue
        name = youtube(path, line, r["ytid"])
        unknown = [m for m in r["mids"].split(",") if m not in names]
        if unknown:
            raise DataError(
                f"{path}, line {line}: unknown label {unknown[0]!r}; get the original file"
            )
        yield {
            "id": f"{name}_{r['start'].split('.')[0]}",
            "labels": [names[m] for m in r["mids"].split(",")],
            "youtube": name,
            "sound": (f"Y{name}", f"{name}_{r['start']}", name),
        }


@as_published
def audioset_strong(folder, split="train"):
    path = folder.find(f"audioset_{split}_strong.tsv")
    names = {
        r["mid"]: r["name"]
        for _, r in table(
            folder.find("mid_to_display_name.tsv"), ("mid", "name"), header=False, delimiter="\t"
        )
    }
    segments = {}
    for line, r in table(
        path, ("segment_id", "start_time_seconds", "end_time_seconds", "label"), delimiter="\t"
    ):
        if r["label"] not in names:
            raise DataError(f"{path}, line {line}: unknown label {r['label']!r}")
        youtube(path, line, r["segment_id"].rpartition("_")[0])
        segments.setdefault(r["segment_id"], {})[names[r["label"]]] = (
            None  # a dict keeps the order and drops repetitions
        )
    for segment, labels in segments.items():
        name = segment.rpartition("_")[0]
        yield {
            "id": segment,
            "labels": list(labels),
            "youtube": name,
            "sound": (segment, f"Y{name}", name),
        }


@as_published
def fsd50k(folder, split):
    path = folder.find(f"{split}.csv")
    for line, r in table(path, ("fname", "labels", "mids")):
        if not r["fname"].isdigit():
            raise DataError(
                f"{path}, line {line}: {r['fname']!r} is no Freesound id; a spreadsheet may have changed it: get the original file"
            )
        yield {
            "id": r["fname"],
            "labels": [readable(x) for x in r["labels"].split(",")],
            "freesound": r["fname"],
            "sound": (r["fname"],),
        }


def fsd50k_labels(folder):
    return [
        readable(r["label"])
        for _, r in table(folder.find("vocabulary.csv"), ("index", "label", "mid"), header=False)
    ]


@as_published
def vggsound(folder, split):
    """test.csv is what the authors score on: 15,446 clips; vggsound.csv has the training part."""
    if split == "test":
        path = folder.find("test.csv")
        for line, r in table(path, ("file", "label"), header=False):
            stem = r["file"].removesuffix(".mp4")
            yield {
                "id": stem,
                "labels": [r["label"]],
                "youtube": youtube(path, line, stem[:11]),
                "sound": (stem,),
            }
        return
    path = folder.find("vggsound.csv")
    for line, r in table(path, ("ytid", "start", "label", "split"), header=False):
        if r["split"] == split:
            name = youtube(path, line, r["ytid"])
            stem = f"{name}_{int(r['start']):06d}"
            yield {
                "id": stem,
                "labels": [r["label"]],
                "youtube": name,
                "sound": (stem, f"{name}_{r['start']}"),
            }


def vggsound_labels(folder):
    return [
        r["label"]
        for _, r in table(folder.find("stat.csv"), ("label", "count", "super"), header=False)
    ]


@as_published
def dcase2017(folder, split):
    """One row a label, so a file has several; file names are those of the audio without its leading Y."""
    path, clips = folder.find(f"groundtruth_weak_label_{split}_set.csv"), {}
    known = set(dcase2017_labels(folder))
    for line, r in table(path, ("file", "start", "end", "label"), header=False, delimiter="\t"):
        if r["label"] not in known:
            raise DataError(f"{path}, line {line}: unknown label {r['label']!r}")
        youtube(path, line, r["file"][:11])
        clips.setdefault(r["file"].removesuffix(".wav"), {})[r["label"]] = None
    for stem, labels in clips.items():
        yield {
            "id": stem,
            "labels": list(labels),
            "youtube": stem[:11],
            "sound": (f"Y{stem}", stem),
        }


def dcase2017_labels(folder):
    """The list's header is separated by spaces, its rows by tabs."""
    path = folder.find("sound_event_list_17_classes.txt")
    return [
        r["label"]
        for _, r in table(
            path, ("mid", "confidence", "label"), header=False, delimiter="\t", comment="Class_ID"
        )
    ]


@as_published
def esc50(folder):
    for line, r in table(
        path := folder.find("esc50.csv"), ("filename", "fold", "target", "category", "src_file")
    ):
        stem = r["filename"].removesuffix(".wav")
        if not (r["target"].isdigit() and stem.endswith(f"-{r['target']}")):
            raise DataError(
                f"{path}, line {line}: target {r['target']!r} does not fit {r['filename']!r}; get the original file"
            )
        yield {
            "id": stem,
            "labels": [readable(r["category"])],
            "class": int(r["target"]),
            "freesound": r["src_file"],
            "sound": (stem, stem.rpartition("-")[0]),
        }  # ESC-10's own download names its files without the target


@as_published
def urbansound8k(folder):
    for line, r in table(
        path := folder.find("UrbanSound8K.csv"),
        ("slice_file_name", "fsID", "fold", "classID", "class"),
    ):
        if not r["fsID"].isdigit() or not r["classID"].isdigit():
            raise DataError(
                f"{path}, line {line}: fsID {r['fsID']!r} or classID {r['classID']!r} is no whole number; get the original file"
            )
        stem = r["slice_file_name"].removesuffix(".wav")
        yield {
            "id": stem,
            "labels": [readable(r["class"])],
            "class": int(r["classID"]),
            "freesound": r["fsID"],
            "sound": (f"fold{r['fold']}/{stem}", stem),
        }


def in_order(clips):
    """The labels of single-label clips by their class number."""
    return [label for _, label in sorted({(c["class"], c["labels"][0]) for c in clips})]


@as_published
def tut2017(folder, split):
    path = folder.find(f"TUT-acoustic-scenes-2017-{split}/meta.txt", f"{split}/meta.txt")
    for line, text in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        name, *rest = text.split("\t")
        if not rest or rest[0] not in TUT:
            raise DataError(
                f"{path}, line {line}: no known scene in {text[:80]!r} (tab-separated: file, scene)"
            )
        stem = Path(name).stem
        yield {
            "id": f"{split}/{stem}",
            "labels": [readable(rest[0])],
            "sound": (
                f"TUT-acoustic-scenes-2017-{split}/audio/{stem}",
                f"{split}/audio/{stem}",
                stem,
            ),
        }


def sesa(folder, split):
    for path in folder.names(f"{split}/*.wav", f"{split}/<class>_<number>.wav"):
        label = path.stem.rpartition("_")[0]
        if label not in SESA:
            raise DataError(f"{path}: {label!r} is none of {', '.join(SESA)}")
        yield {"id": f"{split}/{path.stem}", "labels": [label], "sound": (f"{split}/{path.stem}",)}


@as_published
def vocalsound(folder, split):
    """The label is in the file's name: f0003_0_cough.wav."""
    path = folder.find(f"datafiles/{ {'train': 'tr', 'val': 'val', 'test': 'te'}[split] }.json")
    for i, r in enumerate(stream_json(path, "data")):
        stem = Path(r["wav"]).stem
        label = stem.rpartition("_")[2]
        if label not in VOCALSOUND:
            raise DataError(
                f"{path}, record {i}: {r['wav']!r} names none of {', '.join(VOCALSOUND)}"
            )
        yield {"id": stem, "labels": [VOCALSOUND[label]], "sound": (stem,)}


def cremad(folder):
    """1001_DFA_ANG_XX: actor, sentence, emotion, intensity."""
    for line, r in table(
        path := folder.find("SentenceFilenames.csv"), ("Stimulus_Number", "Filename")
    ):
        parts = r["Filename"].split("_")
        if len(parts) != 4 or parts[2] not in CREMAD:
            raise DataError(f"{path}, line {line}: no known emotion in {r['Filename']!r}")
        yield {"id": r["Filename"], "labels": [CREMAD[parts[2]]], "sound": (r["Filename"],)}


def ravdess(folder):
    """03-01-05-01-02-01-12: modality, channel, emotion, intensity, statement, repetition, actor. Audio-only speech: 03-01-*."""
    for path in folder.names(
        "03-01-??-??-??-??-??.wav", "Actor_*/03-01-*.wav (Audio_Speech_Actors_01-24)"
    ):
        number = path.stem.split("-")[2]
        if not number.isdigit() or not 1 <= int(number) <= len(RAVDESS):
            raise DataError(f"{path}: emotion {number} is none of 01 to 08")
        yield {"id": path.stem, "labels": [RAVDESS[int(number) - 1]], "sound": (path.stem,)}


def gtzan(folder, filtered=False):
    """All 1,000 tracks, wav or au; or those of the fault-filtered test list, which lies beside them."""
    if filtered:
        names = [
            Path(n.strip()).stem
            for n in folder.find("test_filtered.txt").read_text().splitlines()
            if n.strip()
        ]
    else:
        names = [
            p.stem
            for p in folder.names("*.[wa][au]*", "genres/<genre>/<genre>.00000.wav or .au")
            if p.suffix in (".wav", ".au")
        ]
    for name in dict.fromkeys(names):
        if name.split(".")[0] not in GTZAN:
            raise DataError(f"{folder}: {name!r} begins with none of {', '.join(GTZAN)}")
        yield {"id": name, "labels": [name.split(".")[0]], "sound": (name,)}


def beijing_opera(folder):
    """222136__ajaysm__bangu-05.wav; six names have no number."""
    for path in folder.names("*__ajaysm__*.wav", "<number>__ajaysm__<instrument>-<number>.wav"):
        label = path.stem.rpartition("__")[2].split("-")[0]
        if label not in BEIJING_OPERA:
            raise DataError(f"{path}: {label!r} is none of {', '.join(BEIJING_OPERA)}")
        yield {"id": path.stem, "labels": [BEIJING_OPERA[label]], "sound": (path.stem,)}


# --- questions --------------------------------------------------------------------------------------------------------


@as_published
def clothoaqa(folder, split):
    """One row an annotator: three rows a question, answered independently."""
    path = folder.find(f"clotho_aqa_{split}.csv")
    for line, r in table(path, ("file_name", "QuestionText", "answer", "confidence")):
        if r["confidence"].lower() not in ("yes", "no", "maybe"):
            raise DataError(
                f"{path}, line {line}: confidence {r['confidence']!r} is none of yes, no and maybe"
            )
        yield {
            "id": f"{r['file_name']}/{line}",
            "file": r["file_name"],
            "question": clean(r["QuestionText"]),
            "answer": clean(r["answer"]),
            "sound": (r["file_name"].removesuffix(".wav"),),
        }


@as_published
def openaqa(folder):
    """The rows of all of OpenAQA's json files: dicts with instruction, output, audio_id, dataset and task; `file` says which."""
    paths = folder.names("*.json", "OpenAQA's json files")
    folder.opened |= dict.fromkeys(paths)
    for path in paths:
        for i, r in enumerate(stream_json(path)):
            missing = [
                k
                for k in ("instruction", "audio_id", "dataset", "task", "output")
                if not isinstance(r.get(k), str)
            ]
            if missing:
                raise DataError(f"{path}, record {i}: no {', '.join(missing)}")
            yield r | {
                "id": f"{path.stem}/{i}",
                "instruction": clean(r["instruction"]),
                "output": clean(r["output"]),
            }


@as_published
def musicqa(folder, split):
    """split: Pretrain, Finetune or Eval. The conversation is one question of `human` and one answer of `gpt`."""
    path = folder.find(f"{split}MusicQA.json")
    for i, r in enumerate(stream_json(path)):
        talk = {turn["from"]: turn["value"] for turn in r.get("conversation", ())}
        if set(talk) != {"human", "gpt"} or len(r["conversation"]) != 2 or "audio_name" not in r:
            raise DataError(
                f"{path}, record {i}: not one question of 'human' and one answer of 'gpt': {str(r)[:120]}"
            )
        stem = r["audio_name"].rpartition(".")[0] or r["audio_name"]
        yield {
            "id": f"{split}/{i}",
            "file": r["audio_name"],
            "question": clean(talk["human"]),
            "answer": clean(talk["gpt"]),
            "sound": (stem,),
        }


def lp_musiccaps(folder):
    """{audio name without extension: caption}, from captions.jsonl, of which each line is {"audio_name": ..., "caption": ...}."""
    path, captions = folder.find("captions.jsonl"), {}
    for line, text in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        try:
            r = json.loads(text)
            captions[re.sub(r"\.(wav|mp3|flac)$", "", r["audio_name"])] = clean(r["caption"])
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise DataError(
                f'{path}, line {line}: not {{"audio_name": ..., "caption": ...}} ({e})'
            ) from e
    return captions


@as_published
def airbench(folder, tasks):
    """AIR-Bench Chat's rows of these tasks. meta_info is a string that holds a Python dict, and stays one: the judge reads it."""
    path, found = folder.find("Chat_meta.json"), 0
    for i, r in enumerate(stream_json(path)):
        missing = [
            k
            for k in (
                "uniq_id",
                "path",
                "task_name",
                "dataset_name",
                "question",
                "answer_gt",
                "meta_info",
            )
            if k not in r
        ]
        if missing:
            raise DataError(f"{path}, record {i}: no {', '.join(missing)}")
        if r["task_name"] in tasks:
            found += 1
            yield {
                "id": str(r["uniq_id"]),
                "question": clean(r["question"]),
                "answer": clean(r["answer_gt"]),
                "meta_info": str(r["meta_info"]),
                "category": r["task_name"],
                "sound": (f"{r['task_name']}_{r['dataset_name']}/{r['path'].rpartition('.')[0]}",),
            }
    if not found:
        raise DataError(f"{path}: no row of {', '.join(tasks)}")


@as_published
def mmau(folder, split):
    """split: test-mini or test, whose answers are withheld. Some categories are lists, some choices have a leading space."""
    path = folder.find(f"mmau-{split}.json")
    for i, r in enumerate(stream_json(path)):
        choices, answer = [c.strip() for c in r.get("choices", ())], (r.get("answer") or "").strip()
        if len(choices) < 2 or (split != "test" and answer not in choices):
            raise DataError(
                f"{path}, record {i}: the answer {answer!r} is not among the choices {choices}"
            )
        category = r.get("category", "")
        yield {
            "id": r["id"],
            "question": clean(r["question"]),
            "choices": choices,
            "answer": answer,
            "category": r["task"],
            "skill": category[0] if isinstance(category, list) else category,
            "difficulty": r.get("difficulty", ""),
            "sound": (Path(r["audio_id"]).stem,),
        }
