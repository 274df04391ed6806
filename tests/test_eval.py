import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from conftest import ANIMALS, gpt2, make_samples

import eval as evaluation
import sample
from clap import CLAP, CLAPConfig
from data import DataError
from mats import MATS, MATSConfig
from santa import Santa
from shards.writer import ShardWriter

# --- the whole path ---


@pytest.fixture(scope="module")
def project(tmp_path_factory, tokenizer):
    """A model that never learned anything, its CLAP, and two benchmarks with sounds, one of which is no sound."""
    root = tmp_path_factory.mktemp("project")
    torch.manual_seed(0)
    config = CLAPConfig(
        text=dict(n_embd=32, n_layer=1, n_head=2, n_positions=64),
        dim=16,
        sample_rate=8000,
        seconds=1.0,
        hop=128,
        fmax=4000.0,
        max_tokens=64,
        audio=dict(
            spec_size=64,
            patch_embeds_hidden_size=16,
            depths=[1, 1],
            num_attention_heads=[2, 2],
            window_size=4,
        ),
    )
    CLAP(config, tokenizer).freeze().save_pretrained(root / "clap")
    gpt2(len(tokenizer)).save_pretrained(root / "llm")
    tokenizer.save_pretrained(root / "llm")
    model = MATS(
        MATSConfig(
            llm=str(root / "llm"),
            clap=str(root / "clap"),
            dim=16,
            prefix=4,
            tokens=4,
            width=32,
            layers=1,
            heads=2,
            max_answer=6,
        )
    )
    model.santa = Santa.build(
        torch.randn(40, 16), m=40, k=4, generator=torch.Generator().manual_seed(0)
    )
    model.save_pretrained(root / "run" / "model")
    for name, task in (("sound", "cls"), ("yesno", "aqa")):
        with ShardWriter(root / "bench" / name) as writer:
            for i, s in enumerate(make_samples(20)):
                buffer = io.BytesIO()
                sf.write(
                    buffer,
                    np.random.default_rng(i // 2).normal(size=12000) * 0.1,
                    8000,
                    format="FLAC",
                )  # pairs share a clip
                answer = ANIMALS[i % 8] if task == "cls" else "yes"
                writer.write(
                    {**s, "task": task, "answer": answer},
                    audio=("flac", buffer.getvalue() if i != 7 else b"no sound"),
                )
    (root / "bench" / "sound" / "labels.json").write_text(json.dumps(ANIMALS))
    return root


def options(project, *more):
    return [
        "--ckpt",
        str(project / "run/model"),
        "--shards",
        str(project / "bench"),
        "--columns",
        "text,none,shift,santa",
        *more,
    ]


def results_of(out):
    return json.loads((out / "results.json").read_text())


@pytest.fixture(scope="module")
def evaluated(project):
    evaluation.main(options(project))
    return project / "run/eval"


def test_evaluation_end_to_end(project, evaluated, capsys, monkeypatch):
    results = results_of(evaluated)
    assert set(results["columns"]) == {"text", "none", "shift", "santa"}
    last = results["columns"]["santa"]
    assert results["benchmarks"]["sound"] == {
        "ACC": last["sound"]["ACC"]["value"],
        "n": 19,
        "ci95": last["sound"]["ACC"]["ci95"],
    }
    assert (
        results["chance"] == {"sound": {"ACC": 1 / 8}, "yesno": {"B-ACC": 1.0}}
        and 0 <= results["clap"]["sound"]["ACC"]["value"] <= 1
    )
    for name in ("report.md", "report.html", "results.png"):
        assert (evaluated / name).stat().st_size > 1000
    assert (
        "| sound classification | ACC | 19 |" in (evaluated / "report.md").read_text()
        and "data:audio/flac" in (evaluated / "report.html").read_text()
    )
    predictions = [
        json.loads(line)
        for line in next((evaluated / "santa").glob("yesno.*.jsonl")).read_text().splitlines()
    ]
    assert len(predictions) == 19 and {"id", "instruction", "answer", "prediction", "text"} <= set(
        predictions[0]
    )

    # a second run generates nothing; neither does --score, which takes what stands in the files
    monkeypatch.setattr(MATS, "from_pretrained", lambda *a: pytest.fail("the model was loaded"))
    evaluation.main(options(project))
    assert "nothing has changed" in capsys.readouterr().out and results_of(evaluated) == results
    path = next((evaluated / "santa").glob("yesno.*.jsonl"))
    said = path.read_text()
    path.write_text("".join(json.dumps({**p, "prediction": "Yes."}) + "\n" for p in predictions))
    evaluation.main(options(project, "--score"))
    assert results_of(evaluated)["benchmarks"]["yesno"]["B-ACC"] == 1.0
    path.write_text(said)
    evaluation.main(options(project, "--score"))
    for more, message in (
        (["--score", "--crop", "windows"], "no stored predictions"),
        (["--bench", "dance"], "no shards for dance"),
        (["--columns", "santaa"], "no santaa .*there are: text, none"),
        (["--decoding", "beams"], "neither greedy, official, beam nor JSON"),
        (["--label-template", "a label"], "where the label goes"),
        (["--ablate", "taste"], "there are table4"),
        (["--ablate", "tau=high"], "expected numbers"),
    ):
        with pytest.raises(DataError, match=message):
            evaluation.main(options(project, *more))
    with pytest.raises(DataError, match="torchrun train.py"):
        evaluation.main(["--ckpt", str(project)])


def test_what_cannot_be_decoded_is_named(project, tmp_path, capsys):
    evaluation.main(options(project, "--out", str(tmp_path), "--columns", "none"))
    assert "farm.7" in capsys.readouterr().err


def test_two_processes_give_the_scores_of_one(project, evaluated, tmp_path):
    argv = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "eval.py",
        *options(project, "--out", str(tmp_path), "--device", "cpu"),
    ]
    done = subprocess.run(
        argv,
        cwd=Path(evaluation.__file__).parent,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    one, two = results_of(evaluated), results_of(tmp_path)
    assert one["columns"] == two["columns"] and one["clap"] == two["clap"]
    assert not list(tmp_path.rglob("*.part")) and not list(tmp_path.rglob("*.tmp*"))


def test_a_killed_run_goes_on_and_says_nothing_twice(project, evaluated, tmp_path, monkeypatch):
    real, asked = MATS.generate, []

    def generate(self, z, instructions, *args, **kwargs):
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(len(z))
        return real(self, z, instructions, *args, **kwargs)

    monkeypatch.setattr(MATS, "generate", generate)
    argv = options(project, "--out", str(tmp_path), "--columns", "santa", "--batch", "5")
    with pytest.raises(KeyboardInterrupt):
        evaluation.main(argv)
    part = next((tmp_path / "santa").glob("*.part"))
    with open(part, "ab") as f:
        f.write(b'{"i": 3, "predic')  # what a kill leaves of a line
    before = sum(asked)
    asked[:] = []
    monkeypatch.setattr(
        MATS, "generate", lambda self, z, *a, **k: asked.append(len(z)) or real(self, z, *a, **k)
    )
    evaluation.main(argv)
    assert before == 15 and sum(asked) == 2 * 19 - 15
    assert results_of(tmp_path)["columns"]["santa"] == results_of(evaluated)["columns"]["santa"]


def test_protocols_change_scores_without_generating(project, evaluated, tmp_path, monkeypatch):
    """Two encoders of words and another label template, on the stored predictions."""
    from transformers import BertConfig, BertModel, CLIPTextConfig, CLIPTextModelWithProjection

    tok = MATS.from_pretrained(project / "run/model").tokenizer
    for name, model in (
        (
            "bert",
            BertModel(
                BertConfig(
                    vocab_size=500,
                    hidden_size=16,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    intermediate_size=16,
                )
            ),
        ),
        (
            "clip",
            CLIPTextModelWithProjection(
                CLIPTextConfig(
                    vocab_size=500,
                    hidden_size=16,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    intermediate_size=16,
                    projection_dim=8,
                    eos_token_id=tok.eos_token_id,
                )
            ),
        ),
    ):
        model.save_pretrained(tmp_path / name)
        tok.pad_token = tok.eos_token
        tok.save_pretrained(tmp_path / name)
    monkeypatch.setattr(MATS, "generate", lambda *a, **k: pytest.fail("it generates"))
    evaluation.main(
        options(
            project,
            "--match",
            f"clap,{tmp_path / 'bert'},{tmp_path / 'clip'}",
            "--label-template",
            "a {}",
        )
    )
    results = results_of(evaluated)
    assert (
        len(results["columns"]["santa"]["sound"]) == 3
        and "'a {}'" in (evaluated / "report.md").read_text()
    )


def test_what_is_not_there_is_a_message(project, tmp_path):
    for more, message in (
        (["--compare", "none", "santaa"], "no santaa"),
        (["--ablate", "tau=0"], "0 is no value"),
        (["--ablate", "L=2.5"], "2.5 is no value"),
    ):
        with pytest.raises(DataError, match=message):
            evaluation.main(options(project, *more))
    assert not (project / "run/eval/santaa").exists()
    shutil.copytree(project / "bench", tmp_path / "bench")
    argv = [
        "--ckpt",
        str(project / "run/model"),
        "--shards",
        str(tmp_path / "bench"),
        "--out",
        str(tmp_path / "out"),
    ]
    for broken in ("{", None):
        (tmp_path / "bench/sound/labels.json").unlink()
        if broken:
            (tmp_path / "bench/sound/labels.json").write_text(broken)
        with pytest.raises(DataError, match="labels.json, the list of sound's classes"):
            evaluation.main(argv)
        (tmp_path / "bench/sound/labels.json").write_text("[]")
    shutil.rmtree(tmp_path / "bench/sound")
    shutil.copytree(project / "run/model", tmp_path / "model")
    (tmp_path / "model/santa.safetensors").unlink()
    config = json.loads((tmp_path / "model/config.json").read_text())
    config |= {k: str(project / k) for k in ("llm", "clap")}
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    argv[1] = str(tmp_path / "model")
    evaluation.main(argv)  # without a memory: the raw audio alone
    assert list(results_of(tmp_path / "out")["columns"]) == ["none"]
    with pytest.raises(DataError, match="has no memory"):
        evaluation.main([*argv, "--columns", "santa"])


def test_mmaus_test_answers_go_into_a_file(project, tmp_path):
    with ShardWriter(tmp_path / "bench/mmau") as writer:
        for i, s in enumerate(make_samples(3)):
            buffer = io.BytesIO()
            sf.write(buffer, np.random.default_rng(i).normal(size=8000) * 0.1, 8000, format="FLAC")
            writer.write(
                {
                    **s,
                    "text": None,
                    "task": "mcq",
                    "answer": "",
                    "choices": ["red", "blue"],
                    "category": "music",
                },
                audio=("flac", buffer.getvalue()),
            )
    evaluation.main(
        [
            "--ckpt",
            str(project / "run/model"),
            "--shards",
            str(tmp_path / "bench"),
            "--out",
            str(tmp_path / "out"),
        ]
    )  # all columns
    rows = json.loads((tmp_path / "out/santa/mmau.submission.json").read_text())
    assert len(rows) == 3 and set(rows[0]) == {
        "id",
        "question",
        "choices",
        "task",
        "model_prediction",
    }
    assert "hand in the submission file" in (tmp_path / "out/report.md").read_text()
    with pytest.raises(DataError, match="have only audio"):
        evaluation.main(
            [
                "--ckpt",
                str(project / "run/model"),
                "--shards",
                str(tmp_path / "bench"),
                "--out",
                str(tmp_path / "out"),
                "--columns",
                "text",
            ]
        )


def test_compare(project, evaluated, capsys):
    evaluation.main(options(project, "--compare", "none", "none"))
    assert "+0.0000 | [+0.0000, +0.0000] | 1 |" in capsys.readouterr().out
    a, b = (str(next((evaluated / c).glob("yesno.*.jsonl"))) for c in ("none", "santa"))
    evaluation.main(options(project, "--compare", a, b))
    assert "| yes/no questions | B-ACC | 19 |" in capsys.readouterr().out


def test_ablations(project, evaluated, capsys, monkeypatch):
    evaluation.main(options(project, "--ablate", "tau=0.05,1", "M=10,20,400", "K=2", "figure3"))
    out = capsys.readouterr().out
    assert "M=400 is left out: 40 texts" in out
    folder = evaluated / "ablate"
    tau, m = (json.loads((folder / f"{n}.json").read_text())["rows"] for n in ("tau", "M"))
    assert list(tau) == ["0.1", "0.05", "1"] and list(m) == ["40", "10", "20"]
    assert (
        tau["0.1"]["sound"]["value"]
        == results_of(evaluated)["columns"]["santa"]["sound"]["ACC"]["value"]
        and "p" in tau["1"]["yesno"]["against the first"]
    )
    assert "0.735" in (folder / "tau.md").read_text()  # the paper's, beside
    assert all((folder / f"{n}.png").stat().st_size > 5000 for n in ("tau", "M", "K", "figure3"))
    panels = json.loads((folder / "figure3.json").read_text())
    assert panels["pairs"] == 19 // 2 + 1 and set(panels["panels"]) == {
        "CLAP",
        "CLAP + noise",
        "memory",
        "Santa",
    }
    with pytest.raises(DataError, match="state.pt is missing"):
        evaluation.main(options(project, "--ablate", "sigma"))


def test_sample_answers_what_it_can_read(project, tmp_path, capsys):
    for name, rate, form in (
        ("a.wav", 44100, "WAV"),
        ("b.ogg", 22050, "OGG"),
        ("c.flac", 8000, "FLAC"),
        ("d.mp3", 16000, "MP3"),
    ):
        sf.write(
            tmp_path / name,
            np.random.default_rng(1).normal(size=(3 * rate, 2)) * 0.1,
            rate,
            format=form,
        )
    (tmp_path / "e.wav").write_bytes(b"")
    files = [
        str(tmp_path / f"{n}")
        for n in ("a.wav", "b.ogg", "e.wav", "c.flac", "d.mp3", "missing.wav")
    ]
    code = sample.main(
        [*files, "--ckpt", str(project / "run/model"), "--ask", "Is there a dog?", "--json"]
    )
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert code == 1 and [Path(l["file"]).name for l in lines] == [
        "a.wav",
        "b.ogg",
        "c.flac",
        "d.mp3",
    ]
    assert all(l["instruction"] == "Is there a dog?" and l["answer"] for l in lines)
    assert "e.wav" in printed.err and "missing.wav" in printed.err
    assert (
        sample.main([files[0], "--ckpt", str(project / "run/model"), "--bridge", "official"]) == 0
    )
    assert capsys.readouterr().out.count("\n") == 1
    with pytest.raises(SystemExit, match="audio_mean"):
        sample.main([files[0], "--ckpt", str(project / "run/model"), "--bridge", "shift"])
