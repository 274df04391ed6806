import base64
import copy
import re
from html.parser import HTMLParser
from itertools import product

import numpy as np
import pytest

from santa import Explanation, Retrieved
from scoring import report

COLUMNS = ("text", "none", "santa")
TITLES = {
    "esc50": "ESC-50",
    "audiocaps": "AudioCaps",
    "musiccaps": "MusicCaps",
    "clothoaqa": "ClothoAQA",
    "mmau_mini": "MMAU test-mini",
    "own": "a|b",
}
HEADLINE = {
    "esc50": "ACC",
    "audiocaps": "CIDEr-D",
    "musiccaps": "ROUGE-L",
    "clothoaqa": "B-ACC (majority)",
    "mmau_mini": "MC-ACC",
    "own": "EM",
}
MORE = {
    "audiocaps": ("SPICE", "SPIDEr"),
    "clothoaqa": ("ACC (majority)", "B-ACC (rows)"),
    "mmau_mini": ("MC-ACC (sound)", "MC-ACC (speech)"),
}


def make_results():
    rng = np.random.default_rng(0)
    columns = {}
    for c in COLUMNS:
        for name, headline in HEADLINE.items():
            for metric in (headline, *MORE.get(name, ())):
                v = round(float(rng.uniform(0.2, 0.8)), 5)
                cell = {"value": v, "ci95": [v - 0.04, v + 0.03]}
                if metric.startswith("SPI"):
                    cell = {"value": None, "ci95": None, "why": f"{metric}: no Java | none"}
                columns.setdefault(c, {}).setdefault(name, {})[metric] = cell
    del columns["text"]["own"]  # the true text is not known of every benchmark
    columns["santa"]["mmau_mini"]["MC-ACC"] = {"value": 0.5, "ci95": None}
    columns["santa"]["musiccaps"]["ROUGE-L"] = {"value": 0.187, "ci95": [0.17, 0.2]}
    return {
        "ckpt": "out/<b>tiny</b>/model",
        "made": {"crop": "center", "decoding": {}, "tags": False},
        "notes": ["ClothoAQA: two of\nthree agree"],
        "titles": TITLES,
        "clips": dict.fromkeys(TITLES, 2000) | {"own": 12},
        "n": dict.fromkeys(TITLES, 240) | {"own": 12},
        "headline": HEADLINE,
        "columns": columns,
        "chance": {"esc50": {"ACC": 0.02}, "own": {"EM": 0.25}},
        "clap": {"esc50": {"ACC": {"value": 0.61234, "ci95": [0.55, 0.66]}}},
        "benchmarks": {},
    }


def make_predictions(n=30, said="a dog"):
    predictions = {}
    for c, name in product(COLUMNS, TITLES):
        if (c, name) != ("text", "own"):
            predictions[c, name] = [
                {
                    "id": f"{name}/{i // 2}",
                    "instruction": f"what is {i % 2}?",
                    "answer": ["a dog", "a cat"],
                    "task": "cap",
                    "score": i % 5 == 0,
                    "prediction": f"{said} {c} {i}",
                }
                for i in range(n)
            ]
    return predictions


class Page(HTMLParser):
    VOID = {"meta", "input", "hr", "br", "path", "use", "rect"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


# --- the tables ---


def test_markdown_holds_every_number_and_says_why_one_is_missing():
    results = make_results()
    text = report.markdown(results)
    for scored in results["columns"].values():
        for cells in scored.values():
            for cell in cells.values():
                if cell["value"] is not None:
                    assert f"{cell['value']:.3f}" in text
                    if cell["ci95"]:
                        assert f"[{cell['ci95'][0]:.3f}, {cell['ci95'][1]:.3f}]" in text
    row = next(line for line in text.splitlines() if line.startswith("| ESC-50 | ACC"))
    assert [c.strip() for c in row.split("|")][3:6] == ["240 of 2,000", "0.020", "0.612"]
    assert "| a\\|b | EM | 12 | 0.250 | – | – |" in text
    spice = next(line for line in text.splitlines() if line.startswith("|  | SPICE"))
    assert [c.strip() for c in spice.split("|")][6:9] == ["–¹"] * 3
    assert "- ¹ SPICE: no Java | none" in text and "- ² SPIDEr: no Java | none" in text
    assert "- ClothoAQA: two of three agree" in text
    assert "crop: center; decoding: default; tags: off" in text
    widths = [
        {line.replace("\\|", "").count("|") for line in block.splitlines()}
        for block in text.split("\n\n")
        if block.startswith("|")
    ]
    assert len(widths) == 3
    assert all(len(w) == 1 for w in widths)  # as many cells in every row of a table


def test_the_papers_figures_stand_beside_ours_on_its_scale():
    text = report.markdown(make_results()).partition("## Beside the paper")[2]
    lines = [
        [c.strip() for c in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    rows = {tuple(line[:2]): line[2:] for line in lines}
    assert rows["MusicCaps", "ROUGE-L"] == [
        "100 ×",
        "240 of 2,000",
        "18.7 [17.0, 20.0]",
        "22.9",
        "18.7",
        "21.7",
        "–",
        "SALMONN 21.5†, LP-MusicCaps 13.0",
    ]
    assert rows["ESC-50", "ACC"][3:6] == ["0.86", "0.88", "0.70"]
    assert rows["ESC-50", "ACC"][7].startswith("Pengi 0.92, CLAP 0.83, LTU 0.83ZS-")
    assert rows["AudioCaps", "SPICE"][2:4] == ["–", "0.164"]
    assert rows["AudioCaps", "SPICE"][6].startswith("DRCap 0.186, NoAudioCaptioning 0.178")
    assert (
        rows["ClothoAQA", "B-ACC (majority)"][3:5]
        == rows["ClothoAQA", "B-ACC (rows)"][3:5]
        == ["0.66", "0.76"]
    )
    assert rows["MMAU test-mini", "MC-ACC"][2:5] == ["50.0", "10.5", "43.3"]
    assert rows["MMAU test-mini", "MC-ACC (sound)"][4] == "52.3"
    assert ("MMAU test-mini", "MC-ACC (speech)") not in rows
    assert not any(name.startswith("a\\") for name, _ in rows)


def test_results_without_anything_but_scores():
    results = make_results()
    results |= {
        "titles": {"own": "own"},
        "clap": {},
        "chance": {},
        "notes": [],
        "made": {},
        "columns": {"none": {"own": {"EM": {"value": 0.5, "ci95": None}}}},
    }
    text = report.markdown(results)
    assert "| own | EM | 12 | – | – | 0.500 |" in text
    assert "Beside the paper" not in text
    assert "interval" not in text
    assert "0.500" in report.html(results, {}, lambda name, row: None)
    results["columns"]["none"]["own"]["EM"] = {
        "value": None,
        "ci95": None,
        "why": "nothing to score",
    }
    assert "nothing to score" in report.html(results, {}, lambda name, row: None)


def test_the_gap_stands_beside_the_noise():
    gap = {"pairs": 1000, "paired_cosine": 0.471, "centroid_distance": 0.85}
    noise = {"rule": {"variance": 0.0171, "cosine": 0.56}}
    text = report.markdown(make_results() | {"gap": gap | {"noise": noise}})
    part = text.partition("## The gap between texts and audio")[2].partition("##")[0]
    assert "| cosine of a clip's text and audio | 0.471 |" in part
    assert "variance 0.0171, which would leave a cosine of | 0.560 |" in part
    assert "1,000 clips" in part and "noise in training" not in part
    assert "The gap" not in report.markdown(make_results() | {"gap": {}})


# --- the page ---


@pytest.mark.slow
def test_the_page_needs_nothing_outside_it_and_plays_the_same_bytes():
    rng, given = np.random.default_rng(0), []

    def sound(name, row):
        if name == "own":
            return None
        given.append(rng.bytes(500))
        return {
            "esc50": ".WAV",
            "audiocaps": "flac",
            "musiccaps": "mp3",
            "clothoaqa": "ogg",
            "mmau_mini": "au",
        }[name], given[-1]

    text = report.html(make_results(), make_predictions(), sound, samples=4)
    page = Page(text)
    for _, attrs in page.tags:
        for key, value in attrs.items():
            if key in ("src", "href", "xlink:href", "data", "action", "srcset", "poster"):
                assert value.startswith(("#", "data:audio/")), value
    assert "http:" not in text and "https:" not in text and "@import" not in text
    assert all(v.startswith("#") for v in re.findall(r"url\(([^)]*)\)", text))
    players = [a["src"] for a in page.all("audio")]
    assert [base64.b64decode(p.partition(",")[2]) for p in players] == given[:16]
    assert [p.partition(";")[0] for p in players[::4]] == [
        "data:audio/wav",
        "data:audio/flac",
        "data:audio/mpeg",
        "data:audio/ogg",
    ]
    assert text.count("a browser does not play .au") == 4
    assert text.count("no audio in the shards") == 4
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids)) and {a["href"][1:] for a in page.all("a")} <= set(ids)


@pytest.mark.slow
def test_samples_are_few_mixed_and_the_same_each_time():
    predictions = make_predictions()
    text = report.html(make_results(), predictions, lambda name, row: None, samples=6)
    assert len(Page(text).all("article")) == 6 * len(TITLES)
    for mark in ('<span class="right">✓</span> a dog', '<span class="wrong">✗</span> a dog'):
        assert text.count(mark) == 3 * (len(COLUMNS) * len(TITLES) - 1)  # half of the clips each
    assert text == report.html(make_results(), predictions, lambda name, row: None, samples=6)
    chosen = report.choose(predictions["santa", "esc50"], 6, "esc50")
    assert sorted(r["score"] for r in chosen) == [False] * 3 + [True] * 3
    assert (
        report.choose(predictions["santa", "esc50"], 99, "esc50") == predictions["santa", "esc50"]
    )
    unknown = [{"id": i} for i in range(50)]
    chosen = report.choose(unknown, 5, "x")
    assert chosen == report.choose(unknown, 5, "x") != report.choose(unknown, 5, "y")
    assert len(chosen) == 5


def test_columns_are_joined_by_question_not_by_place():
    predictions = make_predictions(6)
    # another order, and two are missing
    predictions["none", "esc50"] = predictions["none", "esc50"][:1:-1]
    text = report.html(make_results(), predictions, lambda name, row: None, samples=6)
    cards = re.findall(
        r"<article.*?</article>",
        text.partition('id="b-esc50"')[2].partition("</section>")[0],
        re.DOTALL,
    )
    assert [re.findall(r"a dog (\w+) (\d)", c) for c in cards] == [
        [("text", str(i))] + ([("none", str(i))] if i > 1 else []) + [("santa", str(i))]
        for i in range(6)
    ]


@pytest.mark.slow
def test_whatever_a_model_or_a_label_says_is_shown_as_text():
    evil = '<script>alert("x")</script>\ud83d</table>\'" & <b>'
    results, predictions = make_results(), make_predictions(4, said=evil)
    results["titles"] = {**TITLES, "own": evil.replace("\ud83d", "?")}  # goes into the plot, too
    results["notes"] = [evil]
    results["columns"]["none"]["audiocaps"]["SPICE"]["why"] = evil
    predictions["santa", "own"] = [
        dict.fromkeys(("id", "instruction", "answer", "prediction", "task", "category"), evil)
        | {"score": 0.25}
    ]
    text = report.html(results, predictions, lambda name, row: (evil, b"x"), samples=4)
    page = Page(text)
    assert text.count('<span class="dim">0.25</span> &lt;script&gt;') == 1
    text.encode()  # half a surrogate pair is no UTF-8
    assert len(page.all("script")) == 1 and not page.all("b")[0] and "<script>alert" not in text
    assert sum(s.count('<script>alert("x")</script>?</table>\'" & <b>') for s in page.text) > 60
    report.markdown(results)


def test_the_retrieved_texts_of_the_clips_shown():
    asked = []

    def explain(name, row):
        asked.append((name, row["id"]))
        near = [Retrieved(7, 0.625, f"a <b>cat</b> of {name}"), Retrieved(9, 0.25, None)]
        return Explanation(0.5, 60.0, None, near, 3) if name == "esc50" else None

    results, predictions = make_results(), make_predictions(8)
    page = report.html(results, predictions, lambda name, row: None, 4, explain)
    assert len(asked) == 4 * len(TITLES)
    assert page.count("0.625 a &lt;b&gt;cat&lt;/b&gt; of esc50") == page.count("by 60.0°") == 4
    assert "by 60.0°" not in report.html(results, predictions, lambda name, row: None, 4)


def test_rows_of_every_score_are_chosen():
    rows = [{"id": i, "score": score} for i, score in enumerate((0, 0.25, 0.5, 0.75, 1, None))]
    assert report.choose(rows, 99, "x") == rows


@pytest.mark.slow
def test_audio_is_limited(monkeypatch):
    big, small = b"x" * (report.CLIP_BYTES + 1), b"x" * 1000
    text = report.html(
        make_results(),
        make_predictions(),
        lambda name, row: ("wav", big if name == "esc50" else small),
        samples=3,
    )
    assert text.count("no player: 1.0 MB of audio, and a clip may have 1.0 MB") == 3
    assert len(Page(text).all("audio")) == 3 * (len(TITLES) - 1)
    monkeypatch.setattr(report, "PAGE_BYTES", 2000 * len(TITLES))  # two clips each
    text = report.html(
        make_results(), make_predictions(), lambda name, row: ("wav", small), samples=3
    )
    assert len(Page(text).all("audio")) == 2 * len(TITLES)
    assert text.count("as much sound as it may") == len(TITLES)


@pytest.mark.slow
def test_the_plot_wraps(tmp_path):
    results = make_results()
    for i in range(14):
        results["titles"] = {**results["titles"], f"b{i}": f"benchmark {i}"}
        results["headline"] = {**results["headline"], f"b{i}": "ACC"}
        for scored in results["columns"].values():
            scored[f"b{i}"] = {"ACC": {"value": 0.5, "ci95": [0.4, 0.7]}}
    figure = report.draw(results)
    assert len([a for a in figure.axes if a.axison]) == 20
    assert figure.get_figwidth() < 15
    assert figure.get_figheight() > 8
    report.plot(results, tmp_path / "results.png")
    assert (tmp_path / "results.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (tmp_path / "results.png").stat().st_size < 1 << 20


def test_compare_joins_by_clip_and_question():
    rows = make_predictions(8)["santa", "esc50"]
    rows += [copy.deepcopy(rows[0]) | {"prediction": "asked again"}]
    pairs = report.compare(
        rows,
        [{**r, "prediction": r["prediction"] + "!"} for r in rows[1:8][::-1] + [rows[0], rows[8]]],
    )
    assert [b["prediction"] for _, b in pairs] == [a["prediction"] + "!" for a, _ in pairs]
    assert [a for a, _ in pairs] == rows
    with pytest.raises(ValueError, match=r"second lacks 1 of 9, such as 'esc50/3' \(what is 1\?\)"):
        report.compare(rows, rows[:7] + rows[8:])
    with pytest.raises(ValueError, match="the second lacks 1 of 8.*; the first lacks 1 of 8"):
        report.compare(rows[:8], rows[:7] + [rows[7] | {"id": "other"}])


def test_warnings_come_first_and_are_text():
    results = make_results()
    assert report.warnings(results) == [] and report.heard(results) == ""
    assert report.summary(results).startswith("| benchmark |")
    table = report.summary(results)
    results["failed"] = {"sound": "a shard is <b>damaged</b>\nand more"}
    results["deaf"] = {"esc50": {"none": 2000, "santa": 1999}}
    results["listening"] = {"step": 4000, "val_loss": 1.5, "val_loss_other": 2.25}
    said = report.markdown(results)
    assert said.index("**Warning:** sound was not scored") < said.index("| benchmark |")
    assert "Every one of 2,000 clips of `esc50`" in said and "over santa" in said
    assert "loss 1.500, and 2.250 with another" in said and "difference, 0.750," in said
    assert said.index("| benchmark |") < said.index("step 4,000") < said.index("## 95 %")
    summary = report.summary(results)
    assert summary.startswith(
        "warning: sound was not scored: a shard is <b>damaged</b> and more.\n"
    )
    assert summary.count("warning: ") == 3 and summary.endswith(table)
    page = report.html(results, make_predictions(), lambda name, row: None)
    assert "a shard is &lt;b&gt;damaged&lt;/b&gt;" in page and "difference, 0.750," in page
