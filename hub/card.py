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

from disk import DataError, is_code, model_digest, read_json, reading

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
        return own.read_text(encoding="utf-8", errors="replace")
    config, training = read_json(upload / "config.json"), upload / "training.json"
    known = read_json(training) if training.exists() else None
    parts = {key: part(upload, config[key]) for key in BASES}
    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True
    ).get_template("card.md.jinja")
    with reading(str(run / "training.json"), "of another version? Without it the card says less"):
        return template.render(
            mark=MARK,
            data=metadata([config[key] for key in BASES if parts[key].startswith("[")]),
            name=name,
            config=config,
            factory=is_code(config["clap"]),
            parts=parts,
            memory=(upload / "santa.safetensors").exists(),
            training=known,
            tiny=known and any(source["name"] == "tiny" for source in known["sources"]),
            scores=scores(run),
            licence=licence,
            cell=cell,
        )


def part(upload: Path, name: str) -> str:
    """Of a base model's name in config.json: where it is, in Markdown."""
    if is_code(name):
        return f"`{cell(name)}`, which is code and not here: give yours with `--clap`"
    if not (upload / name).is_dir():
        return f"[`{name}`](https://huggingface.co/{name})"
    config = read_json(upload / name / "config.json")
    kind = config.get("model_type") or config.get("kind") or "not stated"
    return f"its own, here in `{Path(name).name}/` (architecture: {cell(kind)})"


def metadata(bases: list[str]) -> str:
    """The YAML on top of the card, by which the hub finds the model. bases: of its base models."""
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
    """{"head", "rows", "settings", "warnings"}: a table of cells, and what to know beside it.

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
        made = {key: value for key, value in results["made"].items() if key != "model"}
        made["tags"] = "on" if made.get("tags") else "off"
        settings = cell(", ".join(f"{key} {value}" for key, value in made.items()))
    except (DataError, KeyError, TypeError, AttributeError) as error:
        print(f"{path} is left out of the card: {error}", file=sys.stderr)
        return None
    return {
        "head": [COLUMNS[name] for name in columns],
        "rows": rows,
        "settings": settings,
        "warnings": [
            f"Every one of {n:,} clips of {name} got the same answer over {column}: the model "
            "does not listen."
            for name, counts in results.get("deaf", {}).items()
            for column, n in counts.items()
            if column in columns
        ],
    }


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
