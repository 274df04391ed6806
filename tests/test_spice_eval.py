"""SPICE in eval.py and in the ablations."""

import json
import os
import subprocess
import sys

import pytest
from conftest import results_of
from stand_in import MEAN, OWN, PREDS, REFERENCES, SENT, TARGETS
from test_ablate import argv as ablation
from test_captions import own as caption_set, real
from test_eval import ROOT, Said, argv, bench

import eval as evaluation
from experiments import ablate
from scoring.captions import cider_d
from scoring.spice import SpiceMissing
from scoring.tasks import Context, people

CIDER = cider_d(PREDS, TARGETS).mean().item()


@pytest.fixture
def clotho(tmp_path, monkeypatch):
    """A benchmark whose answers are OWN's captions."""
    bench(tmp_path, "clotho", [{"answer": REFERENCES}] * len(OWN))
    return Said(monkeypatch, *PREDS)


# --- eval.py ------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", [True, False])
def test_eval_gives_the_engines_scores(java, clotho, project, tmp_path, engine):
    java.version("17", engine)
    evaluation.main(argv(project, tmp_path))
    cells = results_of(tmp_path / "out")["columns"]["none"]["clotho"]
    mean = MEAN if engine else round(MEAN, 3)
    assert cells["SPICE"]["value"] == pytest.approx(mean, abs=1e-9)
    assert cells["SPIDEr"]["value"] == pytest.approx((mean + CIDER) / 2, abs=1e-9)
    assert bool(cells["SPICE"]["ci95"]) == engine and "unparsed" not in cells["SPICE"]
    assert len(java.runs()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("engine", [True, False])
def test_two_processes_give_the_scores_of_one(java, clotho, project, tmp_path, engine):
    java.version("17", engine)
    evaluation.main(argv(project, tmp_path))
    one = results_of(tmp_path / "out")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launch, "eval.py", *argv(project, tmp_path, "--score", "--device", "cpu")],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert results_of(tmp_path / "out")["columns"] == one["columns"]
    assert len(java.runs()) == 2 and java.runs()[-1]["parsed"] == []


def test_eval_without_spice_names_one_command_once(java, clotho, project, tmp_path, capsys):
    java.goes_wrong("broken")
    evaluation.main(argv(project, tmp_path))
    said, page = capsys.readouterr(), (tmp_path / "out/report.md").read_text()
    assert said.err.count("python -m shards.fetch spice") == 1 and "shards.fetch" not in said.out
    assert page.count("python -m shards.fetch spice") == 1
    cells = results_of(tmp_path / "out")["columns"]["none"]["clotho"]
    assert cells["CIDEr-D"]["value"] == pytest.approx(CIDER, abs=1e-9)
    assert cells["SPIDEr"]["value"] is None and "SPIDEr | | – | – | –¹" in page.replace("  ", " ")
    with pytest.raises(SpiceMissing):
        evaluation.main(argv(project, tmp_path, "--require", "spice"))


def test_what_cannot_be_parsed_is_counted_everywhere(java, project, tmp_path, monkeypatch, capsys):
    java.version("17", engine=True)
    bench(tmp_path, "clotho", [{"answer": REFERENCES}] * 3)
    Said(monkeypatch, PREDS[0], "a crash", PREDS[1])
    evaluation.main(argv(project, tmp_path, "--spice-cache", "off"))
    cells = results_of(tmp_path / "out")["columns"]["none"]["clotho"]
    assert cells["SPICE"]["value"] == pytest.approx(1 / 3) and cells["SPICE"]["unparsed"] == [
        "-farm.1"
    ]
    assert cells["SPIDEr"]["unparsed"] == ["-farm.1"] and "unparsed" not in cells["CIDEr-D"]
    warning = "1 captions of `clotho`, none, could not be parsed, and count as 0 in SPICE"
    said = capsys.readouterr().out
    for text in (said, (tmp_path / "out/report.md").read_text()):
        assert "0.333 (1 unparsed)" in text and warning in text and "-farm.1" in text
    assert "(1 unparsed)" in (tmp_path / "out/report.html").read_text()
    assert not any("-cache" in run["args"] for run in java.runs())


def test_a_spice_that_ran_out_of_time_is_tried_again(java, clotho, project, tmp_path):
    java.version("17", engine=True)
    java.goes_wrong("trace")
    evaluation.main(argv(project, tmp_path))
    cells = results_of(tmp_path / "out")["columns"]["none"]["clotho"]
    assert "IllegalStateException" in cells["SPICE"]["why"]
    java.goes_wrong("")
    evaluation.main(argv(project, tmp_path))
    cells = results_of(tmp_path / "out")["columns"]["none"]["clotho"]
    assert cells["SPICE"]["value"] == pytest.approx(MEAN, abs=1e-9)
    assert len(clotho.asked) == 1


def test_an_engine_that_came_later_gives_intervals(java, clotho, project, tmp_path):
    java.version("17")
    evaluation.main(argv(project, tmp_path))
    assert not results_of(tmp_path / "out")["columns"]["none"]["clotho"]["SPICE"]["ci95"]
    java.version("17", engine=True)
    evaluation.main(argv(project, tmp_path))
    assert results_of(tmp_path / "out")["columns"]["none"]["clotho"]["SPICE"]["ci95"]
    runs = len(java.runs())
    evaluation.main(argv(project, tmp_path))  # nothing has changed
    assert len(java.runs()) == runs and len(clotho.asked) == 1


# --- people -------------------------------------------------------------------------------------


def test_the_table_shows_people_against_people(java, clotho, project, tmp_path, capsys):
    java.version("17", engine=True)
    first, second = SENT.removeprefix(" | ").split(" | ")
    java.knows({f"{first} | {second}": 0.75, f"{second} | {first}": 0.25})
    evaluation.main(argv(project, tmp_path, "--human"))
    human = results_of(tmp_path / "out")["human"]["clotho"]
    assert human["SPICE"]["value"] == 0.5
    assert human["SPIDEr"]["value"] == pytest.approx((human["CIDEr-D"]["value"] + 0.5) / 2)
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if "SPICE" in line]
    assert [cell.strip() for cell in rows[-1]][4:6] == ["–", "0.500"]
    page = (tmp_path / "out/report.md").read_text()
    assert (
        "| chance | human | CLAP |" in page and "each reference against the clip's others" in page
    )
    evaluation.main(argv(project, tmp_path))
    assert results_of(tmp_path / "out")["human"] == {}


def test_people_are_the_mean_of_all_rotations():
    preds, target = caption_set()
    rows = [
        {"id": str(i), "prediction": pred, "answer": refs}
        for i, (pred, refs) in enumerate(zip(preds, target))
    ]
    found = people("clotho", rows, Context(spice="no Java"))
    total = clips = 0
    for k in range(max(map(len, target))):
        turn = [(refs[k], refs[:k] + refs[k + 1 :]) for refs in target if 1 < len(refs) > k]
        total += cider_d(*zip(*turn)).sum().item()
        clips += len(turn)
    assert found["CIDEr-D"].value == pytest.approx(total / clips, abs=1e-9)
    assert found["SPICE"].value is None and found["SPIDEr"].why == "no Java"
    assert people("clotho", [row | {"answer": "one"} for row in rows], Context()) == {}
    assert people("musiccaps", rows, Context()) == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, wanted", [("audiocaps_test_rot0", 0.9076), ("clotho_eval_rot0", 0.9057)]
)
def test_people_reach_the_published_line(shared, name, wanted):
    preds, target = real(shared, {"name": name})
    rows = [
        {"id": str(i), "answer": [pred, *refs]} for i, (pred, refs) in enumerate(zip(preds, target))
    ]
    found = people("audiocaps", rows, Context())
    assert found["CIDEr-D"].value == pytest.approx(wanted, abs=5e-5)


# --- ablations ----------------------------------------------------------------------------------


def test_all_rows_of_an_ablation_share_the_parses(
    java, clotho, project, tmp_path, monkeypatch, capsys
):
    java.version("17", engine=True)
    monkeypatch.chdir(tmp_path)
    names = [
        *ablation(project, "tau=0.05,1,2"),
        "--bench",
        "clotho",
        "--out",
        str(tmp_path / "out"),
    ]
    names[names.index("--shards") + 1] = str(tmp_path / "bench")
    ablate.main(names)
    rows = json.loads((tmp_path / "out/ablate/tau.json").read_text())["rows"]
    assert len(rows) == 4
    for row in rows.values():
        assert row["clotho"]["SPICE"]["value"] == pytest.approx(MEAN, abs=1e-9)
    assert f"SPIDEr {(MEAN + CIDER) / 2:.3f}" in capsys.readouterr().out
    assert len(java.parsed()) == len(set(java.parsed())) == 12
    java.goes_wrong("broken")
    ablate.main(names)
    table = (tmp_path / "out/ablate/tau.md").read_text()
    assert "SPIDEr" not in table and f"{CIDER:.3f}" in table
