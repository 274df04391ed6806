"""What a person opens after an evaluation.

    markdown, html, plot    eval.py's results as report.md, report.html (one file, nothing outside it) and results.png
    compare                 two files of predictions, row beside row

`results` is what eval.py keeps in results.json:
    ckpt, made, notes       the model, the settings (crop, decoding, tags ...), remarks for the footnotes
    titles, clips, n        by benchmark: its name in print, how many clips it has, on how many the scores stand
    headline                by benchmark: the metric that is named first and plotted
    columns, clap           {bridge: {benchmark: {metric: cell}}} and {benchmark: {metric: cell}}, a cell being
                            {"value": float | None, "ci95": [low, high] | None, "why": the reason where value is None}
    chance                  {benchmark: {metric: float}}
Predictions are rows of shards with "prediction" and, where it is known, "score": 1 right, 0 wrong, or between.
"""

import base64
import io
import json
import math
import re
import textwrap
from collections import Counter
from dataclasses import dataclass
from html import escape
from itertools import zip_longest
from random import Random

import numpy as np

from santa import BRIDGES
from scoring.paper import MARKS, MATS, TABLES, TEXT_ONLY

COLUMNS = {"text": "given the true text's vector instead of the audio's, the ceiling", **BRIDGES}
SUBSETS = (
    "sound",
    "music",
    "speech",
)  # in brackets behind a metric: a part of the benchmark, not a protocol
KINDS = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "ogg": "audio/ogg",
}  # what browsers play
SAMPLES = 12  # clips shown of each benchmark
CLIP_BYTES, PAGE_BYTES = (
    1 << 20,
    64 << 20,
)  # audio in report.html: of one clip, and of all (a benchmark has its equal share)


# --- two sets of predictions side by side --------------------------------------------------------------------------------


def keyed(rows):
    """{(id, instruction, how often these two came before): row}: ClothoAQA asks some questions of a clip twice."""
    seen, out = Counter(), {}
    for r in rows:
        key = r["id"], r["instruction"]
        out[*key, seen[key]] = r
        seen[key] += 1
    return out


def compare(a_rows, b_rows):
    """[(row of a, row of b)] of the same question on the same clip, in a's order. Raises ValueError that names what one side lacks."""
    a, b = keyed(a_rows), keyed(b_rows)
    lacks = []
    for side, missing, of in (
        ("second", [k for k in a if k not in b], a),
        ("first", [k for k in b if k not in a], b),
    ):
        if missing:
            named = ", ".join(
                f"{clip!r} ({textwrap.shorten(str(question), 60)})"
                for clip, question, _ in missing[:3]
            )
            lacks.append(f"the {side} lacks {len(missing):,} of {len(of):,}, such as {named}")
    if lacks:
        raise ValueError(f"these predictions are not of the same clips: {'; '.join(lacks)}")
    return [(r, b[k]) for k, r in a.items()]


# --- the tables, as cells of plain text ------------------------------------------------------------------------------------


@dataclass
class Table:
    title: str
    head: list
    align: str  # l or r, a letter a column
    rows: list  # of lists of str
    note: str = ""


def number(value, digits=3):
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def span(ci, digits=3):
    return f"[{ci[0]:.{digits}f}, {ci[1]:.{digits}f}]" if ci else "–"


def size(results, name):
    n, of = results["n"][name], results["clips"][name]
    return f"{n:,}" if n == of else f"{n:,} of {of:,}"


def metrics_of(results, name):
    """A benchmark's metrics, the headline first."""
    sources = [*results["columns"].values(), results["clap"], results["chance"]]
    return list(
        dict.fromkeys([results["headline"][name], *(m for s in sources for m in s.get(name, {}))])
    )


def published(name, metric):
    """The paper's entry for one of our metrics, or None. It names no protocol, so that every protocol of a metric stands beside it."""
    base, _, inside = metric.partition(" (")
    found = TABLES.get(name, {})
    return found.get(metric) or (None if inside.rstrip(")") in SUBSETS else found.get(base))


def tables(results):
    """([Table], [footnote]): scores, intervals, and beside the paper, as far as there is something in them."""
    columns, last = list(results["columns"]), list(results["columns"])[-1]
    reasons = {}

    def shown(cell):
        if cell is None or cell["value"] is not None:
            return number(cell and cell["value"])
        why = reasons.setdefault(
            cell.get("why") or "no value, and no reason given", len(reasons) + 1
        )
        return "–" + str(why).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))

    scores, intervals, beside = [], [], []
    for name, title in results["titles"].items():
        for i, metric in enumerate(metrics_of(results, name)):
            cells = [
                results["clap"].get(name, {}).get(metric),
                *(results["columns"][c].get(name, {}).get(metric) for c in columns),
            ]
            scores.append(
                [
                    title if i == 0 else "",
                    metric,
                    size(results, name) if i == 0 else "",
                    number(results["chance"].get(name, {}).get(metric)),
                    *map(shown, cells),
                ]
            )
            spans = [span(c and c.get("ci95")) for c in cells]
            if set(spans) != {"–"}:
                intervals.append([title, metric, *spans])
            if entry := published(name, metric):
                beside.append(
                    [
                        title,
                        metric,
                        f"{entry['scale']:d} ×",
                        size(results, name),
                        *against(entry, cells[-1]),
                    ]
                )
    out = [
        Table(
            "Scores",
            ["benchmark", "metric", "n", "chance", "CLAP", *columns],
            "llr" + "r" * (len(columns) + 2),
            scores,
        )
    ]
    if intervals:
        head, align = ["benchmark", "metric", "CLAP", *columns], "ll" + "r" * (len(columns) + 1)
        out.append(Table("95 % bootstrap intervals", head, align, intervals))
    if beside:
        out.append(
            Table(
                "Beside the paper",
                [
                    "benchmark",
                    "metric",
                    "scale",
                    "n",
                    f"this run: {last}",
                    *MATS,
                    "others, text only",
                    "others, with audio",
                ],
                "llrrrrrrll",
                beside,
                "The paper's Tables 1-3 as printed; this run's score is multiplied by the scale to be on theirs. "
                f"{'; '.join(f'{mark} {what}' for mark, what in MARKS.items())}; Table 1 leaves zero-shot scores unmarked, Tables 2 and 3 mark "
                "next to nothing. The paper names no protocol beyond the metric; compare only where n is whole.",
            )
        )
    notes = ["; ".join(f"{key}: {setting(value)}" for key, value in results["made"].items())]
    notes += [
        "; ".join(
            [
                "CLAP: zero-shot, without MATS",
                *(f"{c}: {COLUMNS[c]}" for c in columns if c in COLUMNS),
            ]
        )
        + " (a: the unit vector of the audio, S: the memory's texts)"
    ]
    notes += results["notes"] + [
        f"{shown({'value': None, 'why': why})[1:]} {why}" for why in reasons
    ]
    return out, [note for note in notes if note]


def against(entry, cell):
    """This run's score on the paper's scale, the paper's own, and its peers' by supervision, best first."""
    digits, rows = entry["digits"], entry["rows"]
    printed = lambda model: (
        f"{rows[model]:.{digits}f}{entry['marks'].get(model, '')}" if model in rows else "–"
    )
    ours = "–"
    if cell and cell["value"] is not None:
        ours = f"{cell['value'] * entry['scale']:.{digits}f}"
        if cell.get("ci95"):
            ours += " " + span([x * entry["scale"] for x in cell["ci95"]], digits)
    peers = sorted((m for m in rows if m not in MATS), key=rows.get, reverse=True)
    listed = lambda models: ", ".join(f"{m} {printed(m)}" for m in models) or "–"
    return [
        ours,
        *map(printed, MATS),
        listed([m for m in peers if m in TEXT_ONLY]),
        listed([m for m in peers if m not in TEXT_ONLY]),
    ]


def setting(value):
    """A setting in words: true and false are on and off, the empty one is the default."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return (
        value
        if isinstance(value, str) and value
        else json.dumps(value, ensure_ascii=False)
        if value
        else "default"
    )


def markdown(results):
    """report.md: the tables of scores, intervals and the paper's figures, then the footnotes with the protocols."""
    found, notes = tables(results)
    line = lambda cells: (
        "| " + " | ".join(" ".join(c.replace("|", "\\|").split()) for c in cells) + " |"
    )
    out = [f"# {results['ckpt']}", ""]
    for i, table in enumerate(found):
        out += [f"## {table.title}", ""] if i else []
        out += [
            line(table.head),
            "|" + "|".join({"l": "---", "r": "--:"}[a] for a in table.align) + "|",
            *map(line, table.rows),
            "",
        ]
        out += [table.note, ""] if table.note else []
    return "\n".join(
        out + ["## Notes", ""] + [f"- {' '.join(note.split())}" for note in notes] + [""]
    )


# --- the plot --------------------------------------------------------------------------------------------------------------


def draw(results, ink="black"):
    """A matplotlib figure: a panel for each benchmark, a bar for each column with its interval; chance dotted, CLAP dashed."""
    import matplotlib
    from matplotlib.figure import (
        Figure,
    )  # without pyplot: Agg, and no state that outlives the figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    names, columns = list(results["titles"]), list(results["columns"])
    wide = min(5, len(names))
    high = math.ceil(len(names) / wide)
    colored = dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), ink
    )
    with matplotlib.rc_context(
        {**colored, "font.size": 8, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure = Figure(figsize=(max(2.3 * wide, 5), 2 * high + 0.6), layout="constrained")
        figure.patch.set_alpha(ink == "black")
        panels = figure.subplots(high, wide, squeeze=False).ravel()
        for axis, name in zip(panels, names):
            metric = results["headline"][name]
            for i, column in enumerate(columns):
                cell = results["columns"][column].get(name, {}).get(metric) or {"value": None}
                if cell["value"] is not None:
                    error = (
                        np.abs(np.array(cell["ci95"])[:, None] - cell["value"])
                        if cell.get("ci95")
                        else None
                    )
                    axis.bar(
                        i,
                        cell["value"],
                        0.8,
                        yerr=error,
                        color="0.7" if column == "text" else f"C{i % 10}",
                        error_kw={"lw": 0.8},
                        ecolor=ink,
                    )
            clap = (results["clap"].get(name, {}).get(metric) or {}).get("value")
            for level, style in ((results["chance"].get(name, {}).get(metric), ":"), (clap, "--")):
                if level is not None:
                    axis.hlines(level, -0.5, len(columns) - 0.5, ink, lw=1, ls=style)
            axis.set(xticks=[], xlim=(-0.6, len(columns) - 0.4), facecolor="none")
            axis.set_ylim(0, None if axis.containers or axis.collections else 1)
            axis.set_title(
                f"{textwrap.fill(results['titles'][name], 30)}\n{metric}",
                fontsize=8,
                parse_math=False,
            )
        for axis in panels[len(names) :]:
            axis.axis("off")
        handles = [
            Patch(color="0.7" if c == "text" else f"C{i % 10}", label=c)
            for i, c in enumerate(columns)
        ]
        handles += [
            Line2D([], [], color=ink, lw=1, ls=s, label=label)
            for label, s in (("chance", ":"), ("CLAP", "--"))
        ]
        figure.legend(
            handles=handles,
            loc="outside upper center",
            ncols=len(handles) if wide > 2 else 4,
            frameon=False,
        )
    return figure


def plot(results, path):
    """results.png: the headline metrics."""
    draw(results).savefig(path, dpi=150)


def svg(results):
    """The same, as SVG inside a page, in the colour of its text."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        draw(results, ink="#010203").savefig(buffer, format="svg")
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text[text.index("<svg") :])
    return text.replace("#010203", "currentColor")


# --- the page --------------------------------------------------------------------------------------------------------------

CSS = """
:root{color-scheme:light dark;--ink:#1c2024;--dim:#60646c;--page:#fcfcfd;--card:#fff;--line:#e0e1e6;--good:#18794e;--bad:#c62a2f}
@media(prefers-color-scheme:dark){
:root{--ink:#edeef0;--dim:#a0a6ae;--page:#111113;--card:#18191b;--line:#2e3135;--good:#3dd68c;--bad:#ff9592}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;scroll-padding-top:1rem}
body{margin:0;display:grid;grid-template-columns:15rem minmax(0,1fr);font:15px/1.5 system-ui,sans-serif;color:var(--ink);
background:var(--page)}
nav{position:sticky;top:0;height:100vh;overflow:auto;padding:1.5rem 1rem;border-right:1px solid var(--line);font-size:.9rem}
nav a{display:block;padding:.2rem .5rem;border-radius:.4rem;color:inherit;text-decoration:none}
nav a:hover{background:var(--line)}
nav input{width:100%;margin:.5rem 0 1rem;padding:.4rem .6rem;font:inherit;border:1px solid var(--line);border-radius:.4rem;
background:var(--card)}
nav hr{border:0;border-top:1px solid var(--line)}
figure{margin:1.5rem 0}
main{padding:1.5rem 2rem 6rem;max-width:90rem}
h1{font-size:1.5rem;overflow-wrap:anywhere;margin:0}
h2{font-size:1.15rem;margin:2.5rem 0 .5rem;padding-top:1rem;border-top:1px solid var(--line)}
.dim{color:var(--dim);font-size:.85rem;margin:.2rem 0}
.wide{overflow-x:auto}
.wide table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
.wide th,.wide td{padding:.3rem .7rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
.wide th{color:var(--dim);font-weight:500}
.wide .r{text-align:right;white-space:nowrap}
.wide .list{min-width:16rem}
svg{max-width:100%;height:auto}
.chips span{display:inline-block;margin:.2rem .4rem .2rem 0;padding:.1rem .6rem;border:1px solid var(--line);border-radius:1rem;
font-size:.85rem}
.clips{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(26rem,100%),1fr));gap:1rem;margin-top:1rem}
.clip{padding:1rem;border:1px solid var(--line);border-radius:.6rem;background:var(--card);overflow-wrap:anywhere}
.clip[hidden]{display:none}
.clip audio{width:100%;height:2.2rem;margin:.5rem 0}
.clip p{margin:.4rem 0}
.clip ul{margin:.2rem 0 .6rem;padding-left:1.2rem}
.clip div{max-height:9rem;overflow:auto}
.clip table{width:100%;border-collapse:collapse;font-size:.9rem}
.clip th,.clip td{padding:.25rem .4rem .25rem 0;border-top:1px solid var(--line);text-align:left;vertical-align:top}
.clip th{width:6rem;color:var(--dim);font-weight:500}
.right{color:var(--good)}.wrong{color:var(--bad)}
@media(max-width:60rem){
body{display:block}main{padding:1rem}html{scroll-padding-top:32vh}
nav{height:auto;max-height:30vh;border:0;border-bottom:1px solid var(--line);background:var(--page);z-index:1}}
"""
SCRIPT = """
const box = document.querySelector("nav input")
const clips = [...document.querySelectorAll(".clip")].map(c => [c, c.textContent.toLowerCase()])
box.oninput = () => clips.forEach(([c, text]) => c.hidden = !text.includes(box.value.toLowerCase()))
"""


def safe(text):
    """Any text, inside an element or a quoted attribute. Half a surrogate pair, which JSON can hold and UTF-8 cannot, becomes "?"."""
    return escape(str(text)).encode("utf-8", "replace").decode()


def page_table(table):
    kinds = ["r" if a == "r" else "list" if i > 1 else "" for i, a in enumerate(table.align)]
    line = lambda cells, tag: (
        "<tr>"
        + "".join(f'<{tag} class="{k}">{safe(c)}</{tag}>' for k, c in zip(kinds, cells))
        + "</tr>"
    )
    note = f'<p class="dim">{safe(table.note)}</p>' if table.note else ""
    return f'<div class="wide"><table>{line(table.head, "th")}{"".join(line(row, "td") for row in table.rows)}</table></div>{note}'


def choose(rows, n, seed):
    """Up to n rows in their order: drawn with a fixed seed, half of them right and half wrong where rows are scored."""
    order = Random(seed).sample(range(len(rows)), len(rows))
    if any(r.get("score") is not None for r in rows):
        right = [i for i in order if (rows[i].get("score") or 0) >= 0.5]
        wrong = [i for i in order if (rows[i].get("score") or 0) < 0.5]
        order = [i for pair in zip_longest(right, wrong) for i in pair if i is not None]
    return [rows[i] for i in sorted(order[:n])]


def verdict(row):
    """What is known of a prediction: a tick, a cross, or how good it is."""
    if row.get("score") is None:
        return ""
    if row["score"] in (0, 1):
        return '<span class="right">✓</span> ' if row["score"] else '<span class="wrong">✗</span> '
    return f'<span class="dim">{row["score"]:.2f}</span> '


def player(found, left):
    """(HTML, bytes of audio in it) of sound()'s answer, where `left` bytes still fit."""
    if found is None:
        return '<p class="dim">no audio in the shards</p>', 0
    kind, data = KINDS.get(found[0].lstrip(".").lower()), found[1]
    if kind is None:
        return (
            f'<p class="dim">no player: a browser does not play .{safe(found[0].lstrip("."))}</p>',
            0,
        )
    if len(data) > min(CLIP_BYTES, left):
        limit = (
            f"a clip may have {CLIP_BYTES / 1e6:.1f} MB"
            if len(data) > CLIP_BYTES
            else "the page has as much sound as it may"
        )
        return f'<p class="dim">no player: {len(data) / 1e6:.1f} MB of audio, and {limit}</p>', 0
    return (
        f'<audio controls preload="none" src="data:{kind};base64,{base64.b64encode(data).decode()}"></audio>',
        len(data),
    )


def card(row, answers, audio):
    """One clip: player, question, references, every column's prediction. answers: {column: row or None}."""
    references = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
    said = "".join(
        f"<tr><th>{safe(c)}</th><td><div>{verdict(r) + safe(r['prediction']) if r else '–'}</div></td></tr>"
        for c, r in answers.items()
    )
    about = " · ".join(safe(x) for x in (row["id"], row.get("category")) if x)
    return (
        f'<article class="clip"><p class="dim">{about}</p>{audio}<div><p>{safe(row["instruction"])}</p>'
        f"<ul>{''.join(f'<li>{safe(a)}</li>' for a in references)}</ul></div><table>{said}</table></article>"
    )


def html(results, predictions, sound, samples=SAMPLES):
    """report.html, a page that needs nothing but itself: the tables, the plot, and some clips of every benchmark to listen to.

    predictions: {(column, benchmark): rows}; columns may hold different rows, and the last that has any says which are shown.
    sound(benchmark, row): (extension, bytes) of the clip, or None.
    """
    found, notes = tables(results)
    links, body = [], []
    for i, table in enumerate(found):
        links.append(f'<a href="#t-{i}">{safe(table.title)}</a>')
        body.append(f'<h2 id="t-{i}">{safe(table.title)}</h2>{page_table(table)}')
        body += [f"<figure>{svg(results)}</figure>"] if i == 0 else []
    links.append('<a href="#notes">Notes</a><hr>')
    body.append(
        f'<h2 id="notes">Notes</h2><ul>{"".join(f"<li>{safe(note)}</li>" for note in notes)}</ul>'
    )
    for name, title in results["titles"].items():
        metric = results["headline"][name]
        links.append(f'<a href="#b-{safe(name)}">{safe(title)}</a>')
        chips = []
        for c, scored in results["columns"].items():
            if cell := scored.get(name, {}).get(metric):
                chips.append(
                    f"<span>{safe(c)} <b>{number(cell['value'])}</b> {span(cell['ci95']) if cell.get('ci95') else ''}</span>"
                )
        about = f"{safe(metric)}, n = {size(results, name)}, chance {number(results['chance'].get(name, {}).get(metric))}"
        body.append(
            f'<section id="b-{safe(name)}"><h2>{safe(title)}</h2><p class="dim">{about}</p><div class="chips">{"".join(chips)}</div>'
            '<div class="clips">'
        )
        by_column = {
            c: keyed(predictions[c, name]) for c in results["columns"] if predictions.get((c, name))
        }
        left = PAGE_BYTES // len(results["titles"])
        if by_column:
            last = by_column[list(by_column)[-1]]
            keys = {id(row): key for key, row in last.items()}
            for row in choose(list(last.values()), samples, name):
                audio, used = player(sound(name, row), left)
                left -= used
                body.append(
                    card(row, {c: rows.get(keys[id(row)]) for c, rows in by_column.items()}, audio)
                )
        body.append("</div></section>")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{safe(results["ckpt"])}</title><style>{CSS}</style></head><body>
<nav><input type="search" placeholder="find in the clips" aria-label="find in the clips">{"".join(links)}</nav>
<main><h1>{safe(results["ckpt"])}</h1>{"".join(body)}</main>
<script>{SCRIPT}</script></body></html>
"""
