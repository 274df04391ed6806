"""A model's card, written from the run: config.json, training.json and the scores of eval.py.

    training.json    of train.py, in the model's folder: {"step", "config", "sources", "versions"};
                     a source is {"name", "samples", "share", "licences"}
    results.json     of eval.py, in eval/ beside the model's folder (scoring/report.py has its form)

Either may be missing; the card says less then.
"""

import os
import sys
from pathlib import Path

from huggingface_hub import ModelCardData
from jinja2 import Environment, FileSystemLoader

from disk import DataError, is_code, model_digest, read_json

MARK = "<!-- Written by hub/card.py. Without this line the card is yours, and is kept. -->"
TAGS = ["audio", "audio-captioning", "audio-question-answering", "audio-classification", "clap"]
BASES = ("llm", "clap")
COLUMNS = {  # of the table of scores
    "none": "raw audio",
    "santa": "Santa",
    "text": "true text, the ceiling",
}


def is_ours(text: str) -> bool:
    return MARK in text


def write(upload: Path, name: str, run: Path) -> str:
    """The card of the model in `upload` (push.pack), to be found as `name`.

    run: the model's folder within its run. A README.md that lies there is the card.
    """
    own = run / "README.md"
    if own.exists():
        return own.read_text()
    config = read_json(upload / "config.json")
    training = upload / "training.json"
    shared = {key: not config[key].startswith("./") and not is_code(config[key]) for key in BASES}
    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True
    ).get_template("card.md.jinja")
    return template.render(
        mark=MARK,
        data=metadata(config, shared),
        name=name,
        config=config,
        factory=is_code(config["clap"]),
        shared=shared,
        memory=(upload / "santa.safetensors").exists(),
        training=read_json(training) if training.exists() else None,
        scores=scores(run),
        licence=licence,
        cell=cell,
    )


def metadata(config: dict, shared: dict[str, bool]) -> str:
    """The YAML on top of the card, by which the hub finds the model."""
    bases = [config[key] for key in BASES if shared[key]]
    data = ModelCardData(
        library_name="mats", pipeline_tag="audio-text-to-text", tags=TAGS, base_model=bases or None
    )
    return data.to_yaml()


def cell(value) -> str:
    """A text in a cell of a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def licence(source: dict) -> str:
    """Of a source's samples, as far as its shards say."""
    said = source.get("licences") or {}
    if len(set(said.values())) == 1:
        return cell(next(iter(said.values())))
    return cell(", ".join(f"{name}: {words}" for name, words in said.items()) or "not stated")


def scores(run: Path) -> dict | None:
    """{"head": names of columns, "rows": [[benchmark, metric, clips, chance, ...]]} for a table.

    None where the model was not scored. Says so where the results are another model's, or where
    another version wrote them.
    """
    path = Path(os.path.abspath(run)).parent / "eval" / "results.json"
    if not path.exists():
        return None
    try:
        results = read_json(path)
        llm = str(Path(run, read_json(run / "config.json")["llm"]))
        if results["made"]["model"] != model_digest(run, llm):
            raise DataError("of another model than this one is now: run eval.py again")
        columns = [name for name in COLUMNS if name in results["columns"]]
        rows = [row_of(results, name, columns) for name in results["headline"]]
    except (DataError, KeyError, TypeError, AttributeError) as error:
        print(f"{path} is left out of the card: {error}", file=sys.stderr)
        return None
    return {"head": [COLUMNS[name] for name in columns], "rows": rows}


def row_of(results: dict, name: str, columns: list[str]) -> list[str]:
    metric = results["headline"][name]
    chance = results["chance"].get(name, {}).get(metric)
    cells = [results["columns"][column].get(name, {}).get(metric) or {} for column in columns]
    known = number(chance) if chance is not None else "–"
    clips = f"{results['n'][name]:,}"
    return [cell(results["titles"][name]), metric, clips, known, *map(with_interval, cells)]


def with_interval(score: dict) -> str:
    value, interval = score.get("value"), score.get("ci95")
    if value is None:
        return "–"
    between = f" [{number(interval[0])}, {number(interval[1])}]" if interval else ""
    return number(value) + between


def number(value: float) -> str:
    return f"{value:.3f}"
