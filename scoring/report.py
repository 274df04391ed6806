"""The files that a person opens after an evaluation.

    markdown, html, plot    eval.py's results as report.md, report.html (one file, nothing outside
                            it) and results.png
    summary                 the warnings and the table of scores, as the terminal shows them
    compare                 two files of predictions, row beside row

`results` is what eval.py writes to results.json:
    ckpt, made, notes       the model, the settings (crop, decoding, tags ...), footnotes
    titles, clips, n        by benchmark: its printed name, its number of clips, and of scored ones
    headline                by benchmark: the metric that is named first and plotted
    columns, clap           {bridge: {benchmark: {metric: cell}}} and {benchmark: {metric: cell}};
                            a cell is {"value": float | None, "ci95": [low, high] | None,
                            "why": the reason where value is None, "unparsed": ids of clips that
                            could not be scored and count as 0, where there are any}
    chance                  {benchmark: {metric: float}}
    gap                     of true texts and audio: {"pairs", santa.gap's measures, "noise":
                            {"trained", "rule": {"variance", "cosine"}}}; may be empty or missing
and, each of which may be missing:
    encoder                 "name", and where its vectors say so "seconds", "sample_rate" (Hz) and
                            "padding": its windows, and how shorter clips are filled up
    failed                  {benchmark: why it was not scored}
    deaf                    {benchmark: {column: clips with the same answer to the same question}}
    human                   {benchmark: {metric: cell}} of people against people
    listening               of the last validation in training: step, val_loss, val_loss_other
Predictions are rows of shards with "prediction" and, where it is known, "score": 1 right, 0 wrong,
or between.
"""

import base64
import io
import json
import math
import re
import textwrap
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product, zip_longest
from pathlib import Path
from random import Random

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from santa import BRIDGES
from scoring.paper import MARKS, MATS, TABLES, TEXT_ONLY

COLUMNS = {"text": "given the true text's vector instead of the audio's, the ceiling", **BRIDGES}
SUBSETS = ("sound", "music", "speech")  # in brackets after a metric: part of a benchmark
BROWSERS_PLAY = {"wav": "audio/wav", "flac": "audio/flac", "mp3": "audio/mpeg", "ogg": "audio/ogg"}
SHOWN = 5  # ids in a warning
SAMPLES = 12  # clips shown of each benchmark
CLIP_BYTES = 1 << 20  # audio of one clip in report.html
PAGE_BYTES = 64 << 20  # audio of all clips; each benchmark has an equal share


# --- two sets of predictions side by side ---


def keyed(rows: list[dict]) -> dict[tuple, dict]:
    """{(id, instruction, how often these came before): row}. ClothoAQA repeats some questions."""
    seen, found = Counter(), {}
    for row in rows:
        question = row["id"], row["instruction"]
        found[*question, seen[question]] = row
        seen[question] += 1
    return found


def compare(a_rows: list[dict], b_rows: list[dict]) -> list[tuple[dict, dict]]:
    """Pairs of rows with the same question on the same clip, in a's order.

    Raises ValueError that names rows which one side lacks.
    """
    a, b = keyed(a_rows), keyed(b_rows)
    problems = []
    for side, here, there in (("second", b, a), ("first", a, b)):
        if missing := [key for key in there if key not in here]:
            named = ", ".join(
                f"{clip!r} ({textwrap.shorten(str(question), 60)})"
                for clip, question, _ in missing[:3]
            )
            problems.append(f"the {side} lacks {len(missing):,} of {len(there):,}, such as {named}")
    if problems:
        raise ValueError(f"these predictions are not of the same clips: {'; '.join(problems)}")
    return [(row, b[key]) for key, row in a.items()]


# --- the tables, as cells of plain text ---


@dataclass
class Table:
    title: str
    head: list[str]
    classes: list[str]  # of each column in CSS; "r" aligns it to the right
    rows: list[list[str]]
    note: str = ""


def number(value):
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


def span(interval, digits=3):
    if not interval:
        return "–"
    return f"[{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def size(results, name):
    """How many clips of a benchmark were scored."""
    n, total = results["n"][name], results["clips"][name]
    return f"{n:,}" if n == total else f"{n:,} of {total:,}"


def at(scores, name, metric):
    """The cell of a benchmark's metric, or None."""
    return scores.get(name, {}).get(metric)


def lines(results):
    """Yields (benchmark, metric, [CLAP's cell, each column's cell]), the headline metrics first."""
    columns = list(results["columns"].values())
    for name in results["titles"]:
        metrics = [results["headline"][name]]
        for scores in [*columns, results["clap"], results["chance"]]:
            metrics += scores.get(name, {})
        for metric in dict.fromkeys(metrics):
            yield name, metric, [at(scores, name, metric) for scores in (results["clap"], *columns)]


def tables(results) -> tuple[list[Table], list[str]]:
    """(tables, footnotes): scores, and intervals and the paper's scores if there are any."""
    reasons = []
    scores = score_table(results, reasons)
    more = [interval_table(results), gap_table(results), paper_table(results)]
    more = [table for table in more if table.rows]
    columns = ["CLAP: zero-shot, without MATS"]
    columns += [f"{name}: {COLUMNS[name]}" for name in results["columns"] if name in COLUMNS]
    notes = [
        "; ".join(f"{key}: {setting(value)}" for key, value in results["made"].items()),
        windows(results.get("encoder") or {}),
        "; ".join(columns) + " (a: the unit vector of the audio, S: the memory's texts)",
        *results["notes"],
        *(f"{superscript(i)} {why}" for i, why in enumerate(reasons, 1)),
    ]
    return [scores, *more], [note for note in notes if note]


def windows(encoder: dict) -> str:
    """How the encoder heard the clips; empty where that is not known."""
    if "seconds" not in encoder:
        return ""
    return (
        f"audio: windows of {encoder['seconds']:g} s at {encoder['sample_rate']:,} Hz "
        f"({encoder['padding']}), by {encoder['name']}"
    )


def warnings(results) -> list[str]:
    """Why scores may be missing or mean little, a sentence each."""
    said = [f"{name} was not scored: {why}." for name, why in results.get("failed", {}).items()]
    for name, columns in results.get("deaf", {}).items():
        for column, n in columns.items():
            said.append(
                f"Every one of {n:,} clips of `{name}` got the same answer to the same question "
                f"over {column}: the model does not listen (docs/models.md)."
            )
    columns = results["columns"] | {"human": results.get("human") or {}}
    for column, name in product(columns, results["titles"]):
        if lost := columns[column].get(name, {}).get("SPICE", {}).get("unparsed"):
            more = ", ..." if len(lost) > SHOWN else ""
            said.append(
                f"{len(lost):,} captions of `{name}`, {column}, could not be parsed, and count as "
                f"0 in SPICE and SPIDEr: {', '.join(lost[:SHOWN])}{more}."
            )
    return said


def heard(results) -> str:
    """The model's loss with and without its vector; empty where training did not measure it."""
    found = results.get("listening")
    if not found:
        return ""
    own, other = found["val_loss"], found["val_loss_other"]
    return (
        f"Validation at step {found['step']:,} of training: loss {own:.3f}, and {other:.3f} with "
        f"another sample's vector. The difference, {other - own:.3f}, is due to the vector."
    )


def score_table(results, reasons):
    """Appends to `reasons` why cells have no value."""
    rows, human = [], results.get("human") or {}
    for name, metric, cells in lines(results):
        title, n = results["titles"][name], size(results, name)
        if metric != results["headline"][name]:
            title, n = "", ""
        around = [number(at(results["chance"], name, metric))]
        if human:
            around.append(shown(at(human, name, metric), reasons))
        rows.append([title, metric, n, *around, *(shown(cell, reasons) for cell in cells)])
    around = ["chance", "human"] if human else ["chance"]
    head = ["benchmark", "metric", "n", *around, "CLAP", *results["columns"]]
    return Table("Scores", head, ["", "", *"r" * (len(head) - 2)], rows)


def shown(cell, reasons):
    """A cell's value, with how many clips count as 0; or a dash with its reason's number."""
    if cell is None:
        return "–"
    if cell["value"] is not None:
        lost = f" ({len(cell['unparsed']):,} unparsed)" if cell.get("unparsed") else ""
        return number(cell["value"]) + lost
    why = cell.get("why") or "no value, and no reason given"
    if why not in reasons:
        reasons.append(why)
    return "–" + superscript(reasons.index(why) + 1)


def superscript(i):
    return str(i).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def interval_table(results):
    rows = []
    for name, metric, cells in lines(results):
        spans = [span(cell and cell.get("ci95")) for cell in cells]
        if set(spans) != {"–"}:
            rows.append([results["titles"][name], metric, *spans])
    head = ["benchmark", "metric", "CLAP", *results["columns"]]
    return Table("95 % bootstrap intervals", head, ["", "", *"r" * (len(head) - 2)], rows)


GAP = {  # santa.gap's measure: how the report names it
    "paired_cosine": "cosine of a clip's text and audio",
    "centroid_distance": "distance of the two centroids",
    "classifier_error": "error of a classifier that tells them apart",
    "audio_to_text_R@10": "R@10, audio to text",
    "text_to_audio_R@10": "R@10, text to audio",
}
NOISE = {
    "trained": "noise in training: variance {variance:.4g}, which leaves a cosine of",
    "rule": "noise by the 30-pair rule: variance {variance:.4g}, which would leave a cosine of",
}


def gap_table(results):
    """How far texts and audio are apart, and whether the noise reaches as far."""
    found = results.get("gap") or {"noise": {}}
    rows = [[words, number(found[name])] for name, words in GAP.items() if name in found]
    for name, noise in found["noise"].items():
        rows.append([NOISE[name].format(**noise), number(noise["cosine"])])
    note = (
        f"Of {found.get('pairs', 0):,} clips with a known text, drawn evenly from the benchmarks. "
        "Classifier: 0 where it can tell text from audio, 0.5 where it cannot. The 30-pair rule: "
        "section 3.2, on 30 of these clips."
    )
    return Table("The gap between texts and audio", ["", ""], ["", "r"], rows, note)


def paper_table(results):
    rows = []
    for name, metric, cells in lines(results):
        if entry := published(name, metric):
            start = [results["titles"][name], metric, f"{entry['scale']:d} ×", size(results, name)]
            rows.append([*start, ours(entry, cells[-1]), *theirs(entry)])
    column = list(results["columns"])[-1]
    head = ["benchmark", "metric", "scale", "n", f"this run: {column}", *MATS]
    head += ["others, text only", "others, with audio"]
    marks = "; ".join(f"{mark} {meaning}" for mark, meaning in MARKS.items())
    note = (
        "The paper's Tables 1-3 as printed; this run's score is multiplied by the scale to be on "
        f"theirs. {marks}; Table 1 leaves zero-shot scores unmarked, Tables 2 and 3 mark next to "
        "nothing. The paper names no protocol beyond the metric; compare only where n is whole."
    )
    return Table("Beside the paper", head, ["", "", *"rrrrrr", "list", "list"], rows, note)


def published(name, metric):
    """The paper's entry for one of our metrics. It names no protocol, so all of ours match it."""
    base, _, inside = metric.partition(" (")
    entries = TABLES.get(name, {})
    if metric in entries or inside.rstrip(")") in SUBSETS:
        return entries.get(metric)
    return entries.get(base)


def ours(entry, cell):
    """This run's score on the paper's scale."""
    if not cell or cell["value"] is None:
        return "–"
    scale, digits = entry["scale"], entry["digits"]
    score = f"{cell['value'] * scale:.{digits}f}"
    if not cell.get("ci95"):
        return score
    return f"{score} {span([bound * scale for bound in cell['ci95']], digits)}"


def theirs(entry):
    """Scores of the paper's models; those of the others by supervision, best first."""
    scores, digits = entry["rows"], entry["digits"]
    printed = {
        model: f"{score:.{digits}f}{entry['marks'].get(model, '')}"
        for model, score in scores.items()
    }
    text_only, with_audio = [], []
    for model in sorted(scores, key=scores.get, reverse=True):
        if model not in MATS:
            group = text_only if model in TEXT_ONLY else with_audio
            group.append(f"{model} {printed[model]}")
    others = [", ".join(group) or "–" for group in (text_only, with_audio)]
    return [*(printed.get(model, "–") for model in MATS), *others]


def setting(value):
    """A setting in words: true and false are on and off, an empty one is the default."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if not value:
        return "default"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def summary(results: dict) -> str:
    """The warnings, then the table of scores, in Markdown."""
    lines = markdown_table(score_table(results, []))
    if said := warnings(results):
        lines = [*(f"warning: {' '.join(line.split())}" for line in said), "", *lines]
    return "\n".join(lines)


def markdown_table(table: Table) -> list[str]:
    rules = "|".join("--:" if name == "r" else "---" for name in table.classes)
    return [markdown_row(table.head), f"|{rules}|", *map(markdown_row, table.rows)]


def markdown(results: dict) -> str:
    """report.md: the warnings, the tables, then the footnotes with the protocols."""
    found, notes = tables(results)
    out = [f"# {results['ckpt']}", ""]
    for line in warnings(results):
        out += [f"**Warning:** {' '.join(line.split())}", ""]
    for table in found:
        if table is not found[0]:
            out += [f"## {table.title}", ""]
        out += [*markdown_table(table), ""]
        if table is found[0] and heard(results):
            out += [heard(results), ""]
        if table.note:
            out += [table.note, ""]
    out += ["## Notes", "", *(f"- {' '.join(note.split())}" for note in notes), ""]
    return "\n".join(out)


def markdown_row(cells):
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


# --- the plot ---


def draw(results: dict, ink: str = "black"):
    """A matplotlib figure: a panel a benchmark, a bar a column with its interval.

    Chance is dotted, CLAP dashed.
    """
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot, whose state outlives the figure

    names = list(results["titles"])
    wide = min(5, len(names))
    high = math.ceil(len(names) / wide)
    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    style = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(dict.fromkeys(inked, ink) | style):
        figure = Figure(figsize=(max(2.3 * wide, 5), 2 * high + 0.6), layout="constrained")
        figure.patch.set_alpha(ink == "black")
        panels = figure.subplots(high, wide, squeeze=False).ravel()
        for axis, name in zip(panels, names):
            draw_panel(axis, results, name, ink)
        for axis in panels[len(names) :]:
            axis.axis("off")
        draw_legend(figure, list(results["columns"]), wide, ink)
    return figure


def draw_panel(axis, results, name, ink):
    metric, columns = results["headline"][name], results["columns"]
    for i, (column, scores) in enumerate(columns.items()):
        cell = at(scores, name, metric)
        if cell and cell["value"] is not None:
            error = None
            if cell.get("ci95"):
                error = np.abs(np.array(cell["ci95"])[:, None] - cell["value"])
            axis.bar(
                i,
                cell["value"],
                0.8,
                yerr=error,
                color=color(i, column),
                error_kw={"lw": 0.8},
                ecolor=ink,
            )
    clap = at(results["clap"], name, metric) or {}
    for level, style in ((at(results["chance"], name, metric), ":"), (clap.get("value"), "--")):
        if level is not None:
            axis.hlines(level, -0.5, len(columns) - 0.5, ink, lw=1, ls=style)
    axis.set(xticks=[], xlim=(-0.6, len(columns) - 0.4), facecolor="none")
    axis.set_ylim(0, None if axis.containers or axis.collections else 1)
    title = f"{textwrap.fill(results['titles'][name], 30)}\n{metric}"
    axis.set_title(title, fontsize=8, parse_math=False)


def draw_legend(figure, columns, wide, ink):
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [Patch(color=color(i, column), label=column) for i, column in enumerate(columns)]
    for label, style in (("chance", ":"), ("CLAP", "--")):
        handles.append(Line2D([], [], color=ink, lw=1, ls=style, label=label))
    ncols = len(handles) if wide > 2 else 4
    figure.legend(handles=handles, loc="outside upper center", ncols=ncols, frameon=False)


def color(i, column):
    return "0.7" if column == "text" else f"C{i % 10}"


def plot(results: dict, path):
    """Writes results.png: the headline metrics."""
    draw(results).savefig(path, dpi=150, format="png")


def svg(results):
    """The same plot as SVG inside a page, in the colour of the page's text."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        draw(results, ink="#010203").savefig(buffer, format="svg")  # no other part has this ink
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text[text.index("<svg") :])
    return text.replace("#010203", "currentColor")


# --- the page ---


def choose(rows: list[dict], n: int, seed) -> list[dict]:
    """Up to n rows in their order, drawn with a fixed seed; half right, half wrong if scored."""
    order = Random(seed).sample(range(len(rows)), len(rows))
    if any(row.get("score") is not None for row in rows):
        right = [i for i in order if (rows[i].get("score") or 0) >= 0.5]
        wrong = [i for i in order if (rows[i].get("score") or 0) < 0.5]
        order = [i for pair in zip_longest(right, wrong) for i in pair if i is not None]
    return [rows[i] for i in sorted(order[:n])]


def player(audio, left):
    """(data URL of a clip's audio, why there is none): one of them is empty.

    audio: (extension, bytes), or None. left: bytes that the benchmark's audio may still take.
    """
    if audio is None:
        return "", "no audio in the shards"
    extension, data = audio[0].lstrip("."), audio[1]
    kind = BROWSERS_PLAY.get(extension.lower())
    if kind is None:
        return "", f"no player: a browser does not play .{extension}"
    limit = ""
    if len(data) > CLIP_BYTES:
        limit = f"a clip may have {CLIP_BYTES / 1e6:.1f} MB"
    elif len(data) > left:
        limit = "the page has as much sound as it may"
    if limit:
        return "", f"no player: {len(data) / 1e6:.1f} MB of audio, and {limit}"
    return f"data:{kind};base64,{base64.b64encode(data).decode()}", ""


def html(
    results: dict,
    predictions: dict,
    sound: Callable,
    samples: int = SAMPLES,
    explain: Callable = lambda name, row: None,
) -> str:
    """report.html: the tables, the plot, and some clips of every benchmark to listen to.

    predictions: {(column, benchmark): rows}. Columns may hold different rows; the last one that has
    any decides which are shown. sound(benchmark, row): (extension, bytes) of the clip, or None.
    explain(benchmark, row): a santa.Explanation of the clip's vector over Santa, or None.
    Half a surrogate pair, which JSON can hold and UTF-8 cannot, becomes "?".
    """
    loader = FileSystemLoader(Path(__file__).parent)
    pages = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    pages.globals |= {"at": at, "number": number, "size": size, "span": span}
    found, notes = tables(results)
    page = pages.get_template("report.html").render(
        results=results,
        tables=found,
        figure=Markup(svg(results)),
        warnings=warnings(results),
        heard=heard(results),
        notes=notes,
        clips={
            name: clips(results, predictions, name, sound, samples, explain)
            for name in results["titles"]
        },
    )
    return page.encode("utf-8", "replace").decode()


def clips(results, predictions, name, sound, samples, explain):
    """Of the clips shown of a benchmark: [{row, url, missing, answers, explanation}].

    answers: {column: row or None}.
    """
    columns = {
        column: keyed(predictions[column, name])
        for column in results["columns"]
        if predictions.get((column, name))
    }
    if not columns:
        return []
    found, left = [], PAGE_BYTES // len(results["titles"])
    last = list(columns.values())[-1]
    keys = {id(row): key for key, row in last.items()}
    for row in choose(list(last.values()), samples, name):
        audio = sound(name, row)
        url, missing = player(audio, left)
        if url:
            left -= len(audio[1])
        answers = {column: rows.get(keys[id(row)]) for column, rows in columns.items()}
        found.append(
            {
                "row": row,
                "url": url,
                "missing": missing,
                "answers": answers,
                "explanation": explain(name, row),
            }
        )
    return found
