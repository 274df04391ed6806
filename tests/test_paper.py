"""paper.py against the text of the paper."""

import re

import pytest

from scoring import paper


@pytest.fixture(scope="module")
def text(shared):
    if not (shared / "paper.txt").exists():
        pytest.skip("no shared/paper.txt")
    return (shared / "paper.txt").read_text()


def cells(line):
    """The numbers and dashes behind the model's name, with their marks, of a line of paper.txt."""
    out = []
    for cell in (c.strip(" $") for c in line.split("\t")):
        if found := re.fullmatch(r"(?:<u>)?([\d.]+)(?:</u>)?\s*(.*)", cell):
            mark = found[2].strip("^{}[] ").replace("\\dagger", "†").replace("+", "†")
            out.append((float(found[1]), mark))
        elif cell == "-":
            out.append(None)
    return out


@pytest.mark.parametrize(
    "table, start, end", [("1", "Table 1.", "Table 2."), ("2", "Table 2.", "Table 3.")]
)
def test_tables_1_and_2_are_transcribed_whole(text, table, start, end):
    part = text[text.index(start) : text.index(end + " Comparision" if end == "Table 2." else end)]
    columns = [
        e for metrics in paper.TABLES.values() for e in metrics.values() if e["table"] == table
    ]
    checked = set()
    for line in part.splitlines():
        model = next(
            (
                m
                for m in sorted({m for e in columns for m in e["rows"]}, key=len, reverse=True)
                if re.match(rf"(\w*\s*(\(\w+\))?\t)?\s*{m}( \(|\t)", line)
            ),
            None,
        )
        if model and "MATS-GPT2 (Ours) MATS-LLaMA" not in line:
            want = [
                (e["rows"][model], e["marks"].get(model, "")) if model in e["rows"] else None
                for e in columns
            ]
            assert cells(line) == want, line
            checked.add(model)
    assert len(checked) == {"1": 10, "2": 13}[table], checked
    if table == "1":  # GPT2 and LLaMA share a line, in this order
        line = next(line for line in part.splitlines() if "MATS-GPT2 (Ours) MATS-LLaMA" in line)
        want = [(e["rows"]["MATS-GPT2"], e["rows"]["MATS-LLaMA"]) for e in columns]
        assert [
            tuple(map(float, re.findall(r"\d\.\d+", cell))) for cell in line.split("\t")[1:]
        ] == want


def test_table_3_is_transcribed_column_by_column(text):
    part = text[text.index("(a) AIR-Bench") : text.index("validating the effectiveness")]
    numbers = re.findall(r"(?<![\d.])\d+\.\d+", part)
    for name in ("airbench_sound", "airbench_music", "mmau_mini", "mmau"):
        for entry in paper.TABLES[name].values():
            rows = [f"{v:.{entry['digits']}f}" for v in entry["rows"].values()]
            assert all(r in numbers for r in rows), (name, set(rows) - set(numbers))
            assert len(entry["rows"]) == (12 if name.startswith("air") else 13)
    assert paper.TABLES["airbench_sound"]["GPT4"]["rows"]["Qwen-Audio"] == 6.95
    assert paper.TABLES["airbench_music"]["GPT4"]["rows"]["MATS-LLaMA"] == 5.76
    line = "51.7\t57.4\t43.7\t41.5\t42.2\t43.8"  # MATS-Audio's is the one row that came whole
    metrics = [
        (b, m)
        for m in ("MC-ACC (sound)", "MC-ACC (music)", "MC-ACC")
        for b in ("mmau_mini", "mmau")
    ]
    assert line in part
    assert [paper.TABLES[b][m]["rows"]["MATS-Audio"] for b, m in metrics] == [
        float(x) for x in line.split()
    ]


def test_spider_is_the_mean_of_cider_and_spice_everywhere():
    triples = [
        (e["CIDEr-D"], e["SPICE"], e["SPIDEr"])
        for rows in paper.ABLATIONS.values()
        for e in rows.values()
        if len(e) == 3
    ]
    for name in ("audiocaps", "clotho"):
        t = {m: paper.TABLES[name][m]["rows"] for m in ("CIDEr-D", "SPICE", "SPIDEr")}
        triples += [
            tuple(t[m][model] for m in t)
            for model in t["SPIDEr"]
            if model in t["SPICE"] and model in t["CIDEr-D"]
        ]
    assert len(triples) > 25 and all(abs((c + s) / 2 - spider) < 0.0011 for c, s, spider in triples)


def test_the_ablations_are_transcribed(text):
    for key, start in (("table4", "Table 4. Abl"), ("K", "K\tCIDEr"), ("layers", "Table S15. Abl")):
        part = text[text.index(start) :][:600]
        for label, scores in paper.ABLATIONS[key].items():
            found = re.search(rf"^(- )?{label}\t.*$", part, re.MULTILINE)
            if label == "Memory-based":  # Table 4's first two rows share a line
                assert "0.234 0.698\t0.094\t0.164" in part
            elif label == "Noise-based":
                assert "\t0.170\t0.434" in found[0]
            else:
                assert found[0].split("\t")[1:] == [f"{v:.3f}" for v in scores.values()], label
    tau, L, M = (
        "\t".join(f"{v['CIDEr-D']:.3f}" for v in paper.ABLATIONS[key].values())
        for key in ("tau", "L", "M")
    )
    assert f"Er\t{tau}\t-\tCIDEr\t{L}\t0.7" in text
    assert "\t".join(map(str, paper.ABLATIONS["M"])) in text and f"CIDEr(%)\t{M}" in text
    assert set(paper.ABLATED_IN) == set(paper.CHOSEN) == set(paper.ABLATIONS)
    for key, rows in paper.ABLATIONS.items():
        if rows:  # the chosen setting is the best, and always the same model
            best = max(r["CIDEr-D"] for r in rows.values())
            assert rows[paper.CHOSEN[key]]["CIDEr-D"] == best == 0.735


def test_the_benchmarks_are_the_projects():
    from shards.benchmarks import BENCHMARKS

    assert set(paper.TABLES) <= set(BENCHMARKS) and len(paper.TABLES) == 16
