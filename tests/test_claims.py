"""The claims: their statistics on synthetic scores, and the runs that they come from."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from scipy.stats import permutation_test

from disk import DataError
from experiments import claims, differences, picture, runs, sweeps
from experiments.runs import Result, Run

BENCHMARKS = ("sound", "mcq")
GAIN = {"text": 0.5, "santa": 0.3, "projection": 0.25, "none": 0.1, "chance": -0.3}


def clip(name, i):
    return json.dumps([f"{name}-{i}", "What is it?", 0])


def result(setting="base", seed=0, noise=True, n=120):
    """A run whose columns are better by GAIN."""
    rng, columns = np.random.default_rng([seed, noise, len(setting)]), {}
    hard = np.random.default_rng(0).random((len(BENCHMARKS), n))
    for column in (*runs.COLUMNS, "chance"):
        gain = GAIN.get(column, 0.0) - (0 if noise else 0.1)
        right = hard + gain + rng.normal(0, 0.1, hard.shape) > 0.6
        columns[column] = {
            name: {clip(name, i): float(x) for i, x in enumerate(row)}
            for name, row in zip(BENCHMARKS, right)
        }
    means = {c: {n: np.mean([*s.values()]) for n, s in part.items()} for c, part in columns.items()}
    cells = {c: {n: {"ACC": {"value": m}} for n, m in part.items()} for c, part in means.items()}
    results = {
        "titles": {"sound": "sound classification", "mcq": "multiple choice"},
        "headline": dict.fromkeys(BENCHMARKS, "ACC"),
        "chance": {name: {"ACC": means["chance"][name]} for name in BENCHMARKS},
        "clap": {"sound": {"ACC": {"value": 0.7}}, "mcq": {}},
        "columns": {column: cells[column] for column in runs.COLUMNS},
    }
    return Result(setting, seed, noise, columns, results)


@pytest.fixture(scope="module")
def results():
    noisy = [result(setting, seed) for setting in ("base", "avx2") for seed in (0, 1)]
    return noisy + [result(seed=seed, noise=False) for seed in (0, 1)]


# --- statistics ---------------------------------------------------------------------------------


def test_pooled_is_scipys_permutation_test():
    rng = np.random.default_rng(0)
    a, b = (rng.random((3, 40)) + extra for extra in (0.12, 0.0))
    sides = [[{clip("x", i): v for i, v in enumerate(run)} for run in side] for side in (a, b)]
    found = differences.pooled(*sides)
    means = a.mean(0), b.mean(0)
    theirs = permutation_test(
        means,
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    )
    assert found["difference"] == pytest.approx(theirs.statistic)
    assert found["p"] == pytest.approx(theirs.pvalue, abs=0.01)
    each = a.mean(1) - b.mean(1)
    assert found["each"] == pytest.approx(each.tolist())
    assert found["sd"] == pytest.approx(each.std(ddof=1))
    assert found["same"] == 3 and found["n"] == 40


def test_clips_are_matched_by_name_and_need_all_scores():
    a = [{"x": 1.0, "y": 0.0, "z": 1.0, "only here": 1.0}]
    b = [{"z": 0.5, "x": 0.0, "y": float("nan")}]
    found = differences.pooled(a, b)
    assert found["n"] == 2 and found["difference"] == 0.75
    assert found["sd"] is None
    with pytest.raises(DataError, match="no clip in common"):
        differences.pooled([{"x": 1.0}], [{"y": 1.0}])


def test_benchmarks_count_the_same_together():
    """Ten clips that gain 1 and ninety that gain 0 are a gain of one half."""
    a = {"few": [{f"f{i}": 1.0 for i in range(10)}], "many": [{f"m{i}": 0.0 for i in range(90)}]}
    b = {name: [dict.fromkeys(run, 0.0) for run in side] for name, side in a.items()}
    found = differences.together(a, b)
    assert found["difference"] == pytest.approx(0.5)
    assert found["each"] == pytest.approx([0.5])
    assert found["p"] == pytest.approx(2**-9, rel=0.3)  # ten signs, both ways


def test_halves_share_no_clip_and_keep_its_questions_together():
    clips = [clip("sound", i) for i in range(400)]
    first = [c for c in clips if differences.in_first_half(c)]
    assert 150 < len(first) < 250
    for i in range(20):
        questions = [json.dumps([f"sound-{i}", text, 0]) for text in ("What?", "Where?")]
        assert len({differences.in_first_half(q) for q in questions}) == 1


def test_the_best_is_chosen_on_the_first_half_alone():
    """`spoilt` is better on all clips, but worse on the first half."""
    clips = [clip("sound", i) for i in range(100)]
    good = dict.fromkeys(clips, 0.4)
    spoilt = {c: 0.3 if differences.in_first_half(c) else 1.0 for c in clips}
    sides = {"good": good, "spoilt": spoilt}
    halves = {label: {"sound": [differences.halved(s, True)]} for label, s in sides.items()}
    assert differences.best_of(halves) == "good"
    assert differences.best_of({label: {"sound": [s]} for label, s in sides.items()}) == "spoilt"


# --- claims and tables --------------------------------------------------------------------------


def test_claims_of_known_differences(results):
    found = claims.tested(results)
    assert list(found) == [claim.words for claim in claims.CLAIMS]
    above_chance = found[claims.CLAIMS[0].words]
    assert claims.verdict(above_chance["together"]) == "holds"
    noise = found["noise in training helps raw audio"]
    assert len(noise["together"]["each"]) == 2  # seeds of base alone
    assert noise["columns"] == ["none", "none without noise"]
    best = found["a memory helps: the best bridge beside Santa above raw audio"]
    assert best["columns"] == ["projection", "none"]
    every = found["Santa above raw audio (w/o MB)"]
    assert every["together"]["n"] == 240 > best["together"]["n"] > 80
    assert every["paper"] == pytest.approx(0.037)
    assert len(every["together"]["each"]) == 4
    no_quiet = claims.tested([r for r in results if r.noise])
    assert len(no_quiet) == len(found) - 2


@pytest.mark.parametrize(
    ("difference", "p", "same", "words"),
    [
        (0.1, 0.01, 3, "holds"),
        (0.1, 0.01, 2, "holds, though not in every run"),
        (-0.1, 0.01, 3, "the opposite holds"),
        (0.1, 0.2, 3, "no difference beyond chance"),
    ],
)
def test_verdicts(difference, p, same, words):
    test = {"difference": difference, "p": p, "same": same, "each": [0, 0, 0]}
    assert claims.verdict(test) == words


def test_the_page_holds_every_table(results):
    found = claims.analyse(results)
    text = claims.page(results, found)
    assert json.loads(json.dumps(found))["best bridge"] == "projection"
    scores = [claims.value_of(r, "santa", "sound") for r in results if r.noise]
    cell = f"{np.mean(scores):.2f} ± {2 * np.std(scores, ddof=1):.2f}"
    line = next(line for line in text.splitlines() if line.startswith("| sound classification"))
    assert line.split(" | ")[3] == cell
    assert line.split(" | ")[1] == "0.70 ± 0.00"
    assert "best bridge: projection" in text
    assert "What does not hold here:" in text and "- k-means helps" not in text
    assert "| base, seed 1 without noise |" in text
    assert "| p |" in text and "+0.037" in text
    for line in text.splitlines():
        assert line.count("|") <= 7 or line.startswith("|---")  # README and docs take no wider ones


@pytest.mark.slow
def test_the_best_bridge_is_tested_on_the_clips_that_it_was_not_chosen_on(results):
    """projection is above Santa on the first half alone: that must not hold."""
    lucky = []
    for one in results:
        columns = {name: dict(parts) for name, parts in one.clips.items()}
        columns["projection"] = {
            name: {c: 1.0 if differences.in_first_half(c) else score for c, score in part.items()}
            for name, part in one.clips["santa"].items()
        }
        lucky.append(replace(one, clips=columns))
    assert claims.best_bridge([one for one in lucky if one.noise]) == "projection"
    found = claims.tested(lucky)["Santa above the best bridge beside it"]
    assert found["columns"] == ["santa", "projection"]
    assert found["together"]["difference"] == 0
    whole = claims.tested(lucky)["Santa above projection"]
    assert whole["together"]["difference"] < -0.1


def test_coverage_by_hand(results, monkeypatch):
    """Of scores 0, 0, 1 (and 0, 1, 2) each is compared with the other two."""
    monkeypatch.setattr(claims, "QUICK_START", {"none": "raw audio"})
    three = [one for one in results if one.noise][:3]
    values = dict(zip(map(id, three), (0.0, 0.0, 1.0)))
    monkeypatch.setattr(claims, "value_of", lambda result, column, name: values[id(result)])
    assert claims.coverage(three, "projection") == (4, 6)  # 0 against 0, 1: 0.5 < 2 x 0.71
    values = dict(zip(map(id, three), (0.0, 1.0, 2.0)))
    assert claims.coverage(three, "projection") == (2, 6)  # 0 against 1, 2: 1.5 > 2 x 0.71


def test_coverage_leaves_each_run_out(results):
    noisy = [r for r in results if r.noise]
    inside, total = claims.coverage(noisy, "projection")
    assert total == 4 * (5 + 4) and total / 2 < inside <= total  # CLAP has no score on choices


# --- the picture --------------------------------------------------------------------------------


def test_clouds_show_the_whole_gap():
    """Two clouds that are apart along one axis only, and the widest along another."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(2, 200, 6, generator=generator) * torch.tensor([0.0, 0.1, 0.1, 0.5, 0, 0])
    text = spread[0] + torch.tensor([1.0, 0, 0, 0, 0, 0])
    audio = spread[1] - spread[1].mean(0) + spread[0].mean(0)
    points = {k: np.array(v) for k, v in picture.clouds(text, audio, text).items()}
    means = {name: cloud.mean(0) for name, cloud in points.items()}
    assert means["text"] - means["audio"] == pytest.approx([1, 0], abs=1e-3)
    assert points["text"][:, 1].std() == pytest.approx(text[:, 3].std().item(), rel=0.02)
    assert (points["bridged"] == points["text"]).all()


@pytest.mark.slow
def test_the_picture_is_drawn_and_small(results, tmp_path):
    points = np.random.default_rng(0).normal(size=(3, 350, 2)) * 0.3
    measured = {"centroid_distance": 0.9, "paired_cosine": 0.4}
    found = claims.analyse(results)
    found["picture"] = {
        "points": dict(zip(("text", "audio", "bridged"), points.tolist())),
        "gap": {"audio": measured, "bridged": measured},
    }
    (tmp_path / "claims.json").write_text(json.dumps(found))
    out = tmp_path / "new" / "picture.png"
    argv = ["--claims", str(tmp_path / "claims.json"), "--out", str(out)]
    picture.main(argv)
    before = imread(out)
    assert before.shape[:2] == (1200, 1800)
    assert 30_000 < out.stat().st_size < 200_000
    found["quick start"]["sound"]["santa"] = [0.1, 0.02]
    (tmp_path / "claims.json").write_text(json.dumps(found))
    picture.main(argv)
    assert (before != imread(out)).any()
    with pytest.raises(DataError, match="first: python -m experiments.claims"):
        picture.main(["--claims", str(tmp_path / "none.json")])


# --- sweeps -------------------------------------------------------------------------------------


def sweep_sides(gains, n=200):
    """{label: side of three runs}: each value is right more often by its gain."""
    rng = np.random.default_rng(0)
    hard = rng.random(n)
    runs_of = {
        label: [hard + gain + rng.normal(0, 0.05, n) > 0.5 for _ in range(3)]
        for label, gain in gains.items()
    }
    return {
        label: {"sound": [{clip("s", i): float(x) for i, x in enumerate(run)} for run in found]}
        for label, found in runs_of.items()
    }


def test_the_best_value_is_tested_on_the_other_half():
    found = sweeps.found_in(sweep_sides({"0.3": 0.0, "0.1": -0.1, "0.9": 0.2}), "lambda")
    assert (found["own"], found["reference"], found["best"]) == ("0.3", "0.3", "0.9")
    test = found["test"]["together"]
    assert 80 < test["n"] < 120 and test["difference"] > 0.1 and test["p"] < 0.01
    assert found["tests"]["0.1"]["together"]["n"] == 200
    assert found["rows"]["0.9"]["sound"] > found["rows"]["0.3"]["sound"]
    alone = sweeps.found_in(sweep_sides({"0.3": 0.2, "0.1": 0.0}), "lambda")
    assert alone["best"] == "0.3" and alone["test"] is None


def test_the_reference_is_the_papers_value_where_it_is_there():
    gains = {"40": 0.0, "10": 0.0, "100": 0.1}
    assert sweeps.found_in(sweep_sides(gains), "K")["reference"] == "100"
    gains.pop("100")
    assert sweeps.found_in(sweep_sides(gains), "K")["reference"] == "40"
    assert sweeps.value_of("tau", "0.00666667") == 1 / 150


@pytest.fixture
def small_run(project, monkeypatch):
    """The project's model as a run, with two settings of two values."""
    monkeypatch.setattr(sweeps, "VALUES", {"lambda": [0.0, 1.0], "L": [1]})
    monkeypatch.setattr(Run, "folder", project / "run")
    monkeypatch.setattr(Run, "world", project)
    (project / "test").symlink_to(project / "bench")
    yield Run(Path("unused"), "base", 0)
    (project / "test").unlink()


@pytest.mark.slow
def test_both_rounds_on_a_model(small_run, evaluated, monkeypatch):
    chosen = {"lambda": "1", "L": "1"}
    found_in = sweeps.found_in

    def choosing(sides, name, own=None):
        return found_in(sides, name, own) | {"best": chosen[name]}

    monkeypatch.setattr(sweeps, "found_in", choosing)
    found = sweeps.both_rounds([small_run], ["lambda", "L"])
    first, second = found["rounds"]
    assert list(first["lambda"]["rows"]) == ["0.3", "0", "1"]
    assert list(second["lambda"]["rows"]) == ["1", "0"]
    assert list(second["L"]["rows"]) == ["1"]
    assert found["best"] == chosen and found["whole"]["together"]["n"] > 3
    both = small_run.folder / "eval" / "lambda=1,L=1"
    assert [path.name.split(".")[0] for path in both.glob("*.jsonl")] == ["sound"]
    z = small_run.evaluation.encoded["sound"].audio[:3]
    around = sweeps.best_santa(small_run, chosen)
    assert around.santa.L == 1 and around.santa.lam == 1.0
    assert (around.santa(z) - small_run.evaluation.model.santa(z)).abs().max() > 1e-3
    text = "\n".join(claims.sweeps_section(found))
    assert "Around the best values here:" in text and "(lambda 1, L 1)" in text
    monkeypatch.setattr(sweeps, "inference", None)  # all is stored
    assert sweeps.both_rounds([small_run], ["lambda", "L"]) == found


# --- runs ---------------------------------------------------------------------------------------


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """programs(train, eval): sources that stand in for train.py and eval.py."""

    def write(train="", evaluate=""):
        (tmp_path / "train.py").write_text(train)
        (tmp_path / "eval.py").write_text(evaluate)
        monkeypatch.setattr(runs, "PROGRAMS", tmp_path)
        monkeypatch.setattr(runs, "clips_of", lambda run: {"santa": {"sound": {"x": 1.0}}})
        return tmp_path / "runs"

    return write


FAKE_EVAL = """
import pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--ckpt") + 1]).parent / "eval"
out.mkdir()  # fails where this is done twice
(out / "results.json").write_text('{"scores": 1}')
"""


def test_a_failing_step_names_its_command(programs):
    root = programs("import sys; print('loading'); sys.exit('train.py: no such shards')")
    with pytest.raises(DataError) as error:
        runs.finish([Run(root, "avx2", 3)])
    text = str(error.value)
    assert "\n" not in text
    assert "avx2, seed 3: MKL_ENABLE_INSTRUCTIONS=AVX2" in text and "train.py tiny --train=" in text
    assert "ended with code 1 and said: train.py: no such shards" in text
    assert str(root / "avx2/seed3/train.txt") in text


def test_each_step_has_the_settings_variables_alone(programs, monkeypatch):
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "SSE41")  # of another setting
    names = "[n for n in ('DNNL_MAX_CPU_ISA', 'ATEN_CPU_CAPABILITY') if n in os.environ]"
    root = programs(f"import os; print({names})", FAKE_EVAL)
    runs.finish([Run(root, "base", 0), Run(root, "default", 0)])
    assert (root / "base/seed0/train.txt").read_text() == "[]\n"
    assert (root / "default/seed0/train.txt").read_text() == "['ATEN_CPU_CAPABILITY']\n"


def test_a_finished_run_is_not_redone(programs, capsys):
    root = programs("", FAKE_EVAL)
    plan = [Run(root, "base", 0), Run(root, "base", 0, noise=False)]
    first = runs.finish(plan[:1])
    assert "run 1 of 1: base, seed 0" in capsys.readouterr().out
    programs("raise SystemExit('again')", "raise SystemExit('again')")
    assert runs.finish(plan[:1]) == first
    assert first[0].results == {"scores": 1}
    assert capsys.readouterr().out == "1 of 1 runs are done already\n"
    for other in (plan[1], replace(plan[0], options=("--steps=3",))):
        with pytest.raises(DataError, match="again"):
            runs.finish([other])


def test_the_estimate_counts_worlds(tmp_path):
    (tmp_path / "base/world").mkdir(parents=True)
    left = [Run(tmp_path, "base", 1), Run(tmp_path, "avx2", 0), Run(tmp_path, "avx2", 1)]
    assert runs.estimate([(True, 100), (False, 40), (False, 20)], left) == 30 + 100 + 30
    assert runs.estimate([(True, 100)], left) == 300


def test_the_plan():
    parser_of = claims.arguments().parse_args
    plan = claims.planned(parser_of(["--seeds", "0,5", "--setting-seeds", "7", "--runs", "r"]))
    names = [run.name for run in plan]
    assert names[:4] == [
        "base, seed 0",
        "base, seed 5",
        "base, seed 0, without noise",
        "base, seed 5, without noise",
    ]
    assert names[4:] == [f"{setting}, seed 7" for setting in ("default", "avx2", "sse41")]
    quiet = plan[2].commands["train"]
    assert quiet[-1] == "--variance=0" and "--train=r/base/world/train" in quiet
    assert plan[2].folder == Path("r/base/seed0-no-noise")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--settings", "base,amd"], "no amd; there are base, default"),
        (["--seeds", "one"], "--seeds one: expected whole numbers"),
        (["--sweeps", "L,taste"], "no taste; there are lambda, tau, L, K, M"),
    ],
)
def test_bad_options_are_named(argv, message):
    with pytest.raises(DataError, match=message):
        claims.main(argv)


def test_clips_of_an_evaluation(project, evaluated, monkeypatch):
    """The real thing on two small benchmarks: one of the claims', one that is none."""
    monkeypatch.setattr(runs, "COLUMNS", ("none", "shift", "santa"))
    run = Run(Path("unused"), "base", 0)
    monkeypatch.setattr(Run, "folder", project / "run")
    monkeypatch.setattr(Run, "world", project)
    (project / "test").symlink_to(project / "bench")
    found = runs.clips_of(run)
    (project / "test").unlink()
    assert set(found) == {"none", "shift", "santa", "chance"}
    assert all(list(part) == ["sound"] and len(part["sound"]) == 19 for part in found.values())
    assert set(found["chance"]["sound"].values()) == {1 / 8}
    results = json.loads((evaluated / "results.json").read_text())
    for column in ("none", "shift", "santa"):
        value = results["columns"][column]["sound"]["ACC"]["value"]
        assert np.mean([*found[column]["sound"].values()]) == pytest.approx(value)
