"""Readers of datasets of questions and answers (a clip's shape: shards/datasets/__init__.py)."""

import os.path
from pathlib import Path

from shards.files import DataError, clean, csv_records, reader_of, stream_json

AIRBENCH = {
    "sound": ("sound_QA", "sound_generation_QA"),
    "music": ("music_QA", "music_generation_analysis_QA"),
}


@reader_of("clothoaqa")
def clothoaqa(folder, split):
    """One row an annotator: three rows a question, answered independently."""
    path = folder.find(f"clotho_aqa_{split}.csv")
    for row in csv_records(path, ("file_name", "QuestionText", "answer", "confidence")):
        if row["confidence"].lower() not in ("yes", "no", "maybe"):
            raise row.error(f"confidence {row['confidence']!r} is none of yes, no and maybe")
        file = row.name("file_name")
        yield row.clip(
            id=f"{file}/{row.number}",
            file=file,
            question=clean(row["QuestionText"]),
            answer=clean(row["answer"]),
            sound=(file.removesuffix(".wav"),),
        )


@reader_of("openaqa")
def openaqa(folder):
    """The rows of all of OpenAQA's files: instruction, output, audio_id, dataset and task."""
    paths = folder.names("*.json", "OpenAQA's json files")
    folder.opened |= dict.fromkeys(paths)
    for path in paths:
        for row in stream_json(path):
            row.require(("audio_id", "dataset", "task"), str)
            row.require(("instruction", "output"))
            texts = {column: clean(row[column]) for column in ("instruction", "output")}
            yield row | texts | row.clip(id=f"{path.stem}/{row.number}")


@reader_of("musicqa")
def musicqa(folder, split):
    """split: Pretrain, Finetune or Eval. A conversation is a question (human), an answer (gpt)."""
    for row in stream_json(folder.find(f"{split}MusicQA.json")):
        turns = row.get("conversation", ())
        talk = {turn["from"]: turn["value"] for turn in turns}
        if set(talk) != {"human", "gpt"} or len(turns) != 2 or "audio_name" not in row:
            raise row.error(
                f"not one question of 'human' and one answer of 'gpt': {str(row)[:120]}"
            )
        yield row.clip(
            id=f"{split}/{row.number}",
            file=row.name("audio_name"),
            question=clean(talk["human"]),
            answer=clean(talk["gpt"]),
            sound=(os.path.splitext(row["audio_name"])[0],),
        )


@reader_of("airbench")
def airbench(folder, part):
    """AIR-Bench Chat; part: sound or music.

    meta_info is a string that holds a Python dict, and stays one: the judge reads it.
    """
    path, tasks, found = folder.find("Chat_meta.json"), AIRBENCH[part], 0
    columns = ("uniq_id", "path", "task_name", "dataset_name", "question", "answer_gt", "meta_info")
    for row in stream_json(path):
        row.require(columns)
        if row["task_name"] not in tasks:
            continue
        found += 1
        stem = os.path.splitext(row["path"])[0]
        yield row.clip(
            id=row.name("uniq_id"),
            question=clean(row["question"]),
            answer=clean(row["answer_gt"]),
            meta_info=str(row["meta_info"]),
            category=row["task_name"],
            sound=(f"{row['task_name']}_{row['dataset_name']}/{stem}",),
        )
    if not found:
        raise DataError(f"{path}: no row of {', '.join(tasks)}")


@reader_of("mmau")
def mmau(folder, split):
    """split: test-mini, or test, whose answers are withheld.

    Some categories are lists, some choices have a leading space.
    """
    for row in stream_json(folder.find(f"mmau-{split}.json")):
        row.require(["choices"], list)
        choices, answer = [clean(choice) for choice in row["choices"]], clean(row.get("answer"))
        withheld = split == "test" and not answer
        if len(set(choices)) < 2 or not (withheld or answer in choices):
            raise row.error(f"the answer {answer!r} is not among the choices {choices}")
        category = row.get("category", "")
        yield row.clip(
            id=row.name("id"),
            question=clean(row["question"]),
            choices=choices,
            answer=answer,
            category=row["task"],
            skill=category[0] if isinstance(category, list) else category,
            difficulty=row.get("difficulty", ""),
            sound=(Path(row.name("audio_id")).stem,),
        )
