import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score
from torchmetrics.text import ROUGEScore, SacreBLEUScore

import eval as evaluation
import sample
from clap import CLAP, CLAPConfig
from conftest import ANIMALS, gpt2, make_samples
from data import DataError, ShardWriter
from mats import MATS, MATSConfig
from santa import Santa

LABELS = ["dog", "cat", "rain", "church bell"]


def letters(texts):
    """A text encoder by hand: counts of letters."""
    return F.normalize(torch.tensor([[t.lower().count(chr(97 + i)) + 0.01 for i in range(26)] for t in texts]).float(), dim=-1)


def row(prediction, answer, **more):
    return {"id": "x", "prediction": prediction, "answer": answer, **more}


# --- metrics ---

def test_text_matching_finds_the_label_that_was_said():
    rows = [row(f"sound of {p}", a) for p, a in zip(LABELS, ["dog", "cat", "rain", "rain"])]
    result = evaluation.score("sound", rows, LABELS, letters)
    assert result["ACC"] == 0.75 and result["n"] == 4
    with pytest.raises(DataError, match="'fox'"):
        evaluation.score("sound", [row("dog", "fox")], LABELS, letters)


def test_map_is_scikit_learns(tmp_path):
    rng = np.random.default_rng(0)
    rows = [row(", ".join(rng.choice(LABELS, 2, replace=False)), ", ".join(rng.choice(LABELS[:3], rng.integers(1, 3), replace=False)))
            for _ in range(60)]
    scores = torch.stack([sum(letters([p])[0] @ letters([f"sound of {l}"])[0] * torch.eye(4)[i] for p in r["prediction"].split(", ")
                              for i, l in enumerate(LABELS)) for r in rows])
    truth = np.array([[l in r["answer"].split(", ") for l in LABELS] for r in rows])
    want = np.mean([average_precision_score(truth[:, c], scores[:, c]) for c in range(3)])      # no row is a church bell
    result = evaluation.score("events", rows, LABELS, letters)
    assert result["mAP"] == pytest.approx(want, abs=1e-5)
    assert result["ci95"][0] < result["mAP"] < result["ci95"][1]
    assert evaluation.score("events", rows, LABELS, scores=scores * 9 - 4)["mAP"] == pytest.approx(want, abs=1e-5)    # no sigmoid


def test_caption_metrics_are_torchmetrics_on_the_whole_set():
    rng = np.random.default_rng(0)
    tell = lambda: " ".join(rng.choice(["a", "dog", "barks", "while", "rain", "falls", "and", "bells", "ring"], rng.integers(5, 12)))
    rows = [row(tell(), [tell() for _ in range(3)]) for _ in range(30)] + [row("", ["a dog barks"])]
    result = evaluation.score("caption", rows)
    bleu, rouge = SacreBLEUScore(n_gram=4, tokenize="13a"), ROUGEScore(rouge_keys="rougeL")
    for metric in (bleu, rouge):
        metric.update([r["prediction"] for r in rows], [r["answer"] for r in rows])
    assert result["BLEU4"] == pytest.approx(float(bleu.compute()), abs=1e-5)
    assert result["ROUGE-L"] == pytest.approx(float(rouge.compute()["rougeL_fmeasure"]), abs=1e-5)
    assert result["ci95"][0] < result["ROUGE-L"] < result["ci95"][1]


def test_yes_no():
    rows = [row("Yes, it is.", "yes"), row("no", "yes"), row("maybe", "no"), row("", "no"), row("NO", "no")]
    assert evaluation.score("yesno", rows)["B-ACC"] == pytest.approx(2 / 5)
    assert evaluation.chance("yesno", rows) == pytest.approx(3 / 5)


def test_open_questions_want_the_words_of_the_answer():
    rows = [row("A dog barking.", "a dog barking"), row("dog a barking", "a dog barking"), row("two", ["two", "three"])]
    assert evaluation.score("open", rows)["EM"] == pytest.approx(2 / 3, abs=1e-5)


def test_multiple_choice_is_mmaus_rule(shared):
    cases = json.loads((shared / "vectors" / "mmau_string_match.json").read_text())["cases"]
    stats, _ = evaluation.multiple_choice([row(c["prediction"], c["answer"], choices=c["choices"]) for c in cases])
    assert [bool(s) for s in stats[:, 0]] == [c["correct"] for c in cases] and len(cases) > 10


# --- the whole path ---

@pytest.fixture(scope="module")
def project(tmp_path_factory, tokenizer):
    """A model that never learned anything, its CLAP, and two benchmarks with sounds, one of which is no sound."""
    root = tmp_path_factory.mktemp("project")
    torch.manual_seed(0)
    config = CLAPConfig(text=dict(n_embd=32, n_layer=1, n_head=2, n_positions=64), dim=16, sample_rate=8000, seconds=1.0, hop=128,
                        fmax=4000.0, max_tokens=64, audio=dict(spec_size=64, patch_embeds_hidden_size=16, depths=[1, 1],
                                                               num_attention_heads=[2, 2], window_size=4))
    CLAP(config, tokenizer).freeze().save_pretrained(root / "clap")
    gpt2(len(tokenizer)).save_pretrained(root / "llm")
    tokenizer.save_pretrained(root / "llm")
    model = MATS(MATSConfig(llm=str(root / "llm"), clap=str(root / "clap"), dim=16, prefix=4, tokens=4, width=32, layers=1, heads=2,
                            max_answer=6))
    model.santa = Santa.build(torch.randn(40, 16), m=40, k=4, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(root / "run" / "model")
    for name, task in (("sound", "cls"), ("yesno", "aqa")):
        with ShardWriter(root / "bench" / name) as writer:
            for i, s in enumerate(make_samples(20)):
                buffer = io.BytesIO()
                sf.write(buffer, np.random.default_rng(i // 2).normal(size=12000) * 0.1, 8000, format="FLAC")   # pairs share a clip
                answer = ANIMALS[i % 8] if task == "cls" else "yes"
                writer.write({**s, "task": task, "answer": answer}, audio=("flac", buffer.getvalue() if i != 7 else b"no sound"))
    (root / "bench" / "sound" / "labels.json").write_text(json.dumps(ANIMALS))
    return root


def test_evaluation_end_to_end(project, capsys, monkeypatch):
    argv = ["--ckpt", str(project / "run/model"), "--shards", str(project / "bench"), "--columns", "text,none,shift,santa"]
    evaluation.main(argv)
    printed = capsys.readouterr()
    assert "farm.7" in printed.err                                          # named, left out
    out = project / "run" / "eval"
    results = json.loads((out / "results.json").read_text())
    assert set(results["columns"]) == {"text", "none", "shift", "santa"} and results["benchmarks"] == results["columns"]["santa"]
    assert results["benchmarks"]["sound"]["n"] == 19 and 0 <= results["benchmarks"]["sound"]["ACC"] <= 1
    assert results["chance"] == {"sound": 1 / 8, "yesno": 1.0} and "ACC" in results["clap"]["sound"]
    assert "| sound classification | ACC | 19 |" in printed.out and printed.out.split("\n\n")[0] in (out / "report.md").read_text()
    assert (out / "results.png").stat().st_size > 5000
    predictions = [json.loads(line) for line in next((out / "santa").glob("yesno.*.jsonl")).read_text().splitlines()]
    assert len(predictions) == 19 and {"id", "instruction", "answer", "prediction", "text"} <= set(predictions[0])

    # a second run generates nothing; neither does --score, which takes what stands in the files
    monkeypatch.setattr(MATS, "from_pretrained", lambda *a: pytest.fail("the model was loaded"))
    evaluation.main(argv)
    assert json.loads((out / "results.json").read_text()) == results
    path = next((out / "santa").glob("yesno.*.jsonl"))
    path.write_text("".join(json.dumps({**p, "prediction": "Yes."}) + "\n" for p in predictions))
    evaluation.main([*argv, "--score"])
    assert json.loads((out / "results.json").read_text())["benchmarks"]["yesno"]["B-ACC"] == 1.0
    with pytest.raises(SystemExit, match="no stored predictions"):
        evaluation.main([*argv, "--score", "--crop", "windows"])
    with pytest.raises(SystemExit, match="no shards for dance"):
        evaluation.main([*argv, "--bench", "dance"])
    with pytest.raises(SystemExit, match="torchrun train.py"):
        evaluation.main(["--ckpt", str(project)])


def test_sample_answers_what_it_can_read(project, tmp_path, capsys):
    for name, rate, form in (("a.wav", 44100, "WAV"), ("b.ogg", 22050, "OGG"), ("c.flac", 8000, "FLAC"), ("d.mp3", 16000, "MP3")):
        sf.write(tmp_path / name, np.random.default_rng(1).normal(size=(3 * rate, 2)) * 0.1, rate, format=form)
    (tmp_path / "e.wav").write_bytes(b"")
    files = [str(tmp_path / f"{n}") for n in ("a.wav", "b.ogg", "e.wav", "c.flac", "d.mp3", "missing.wav")]
    code = sample.main([*files, "--ckpt", str(project / "run/model"), "--ask", "Is there a dog?", "--json"])
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert code == 1 and [Path(l["file"]).name for l in lines] == ["a.wav", "b.ogg", "c.flac", "d.mp3"]
    assert all(l["instruction"] == "Is there a dog?" and l["answer"] for l in lines)
    assert "e.wav" in printed.err and "missing.wav" in printed.err
    assert sample.main([files[0], "--ckpt", str(project / "run/model"), "--bridge", "official"]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    with pytest.raises(SystemExit, match="audio_mean"):
        sample.main([files[0], "--ckpt", str(project / "run/model"), "--bridge", "shift"])
