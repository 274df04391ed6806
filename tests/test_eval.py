import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import flac, make_samples, options, results_of

import eval as evaluation
from disk import DataError
from distributed import Ranks
from distributed.parts import Parts
from eval import load_answers as load
from mats import MATS
from scoring.results import trained_variance, with_scores
from shards.writer import ShardWriter

ROOT = Path(__file__).parents[1]


def test_evaluation_end_to_end(project, evaluated, capsys, monkeypatch):
    results = results_of(evaluated)
    assert set(results["columns"]) == {"text", "none", "shift", "santa"}
    last = results["columns"]["santa"]
    assert results["benchmarks"]["sound"] == {
        "ACC": last["sound"]["ACC"]["value"],
        "n": 19,
        "clips": 20,
        "ci95": last["sound"]["ACC"]["ci95"],
    }
    assert (
        results["chance"] == {"sound": {"ACC": 1 / 8}, "yesno": {"B-ACC": 1.0}}
        and 0 <= results["clap"]["sound"]["ACC"]["value"] <= 1
    )
    for name in ("report.md", "report.html", "results.png"):
        assert (evaluated / name).stat().st_size > 1000
    assert (
        "| sound classification | ACC | 19 of 20 |" in (evaluated / "report.md").read_text()
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
        (["--label-template", "a label"], "in place of the label"),
    ):
        with pytest.raises(DataError, match=message):
            evaluation.main(options(project, *more))
    with pytest.raises(DataError, match="torchrun train.py"):
        evaluation.main(["--ckpt", str(project)])
    with pytest.raises(SystemExit, match="now: python -m experiments.ablate"):
        evaluation.main(["--ablate", "table4"])


def shift_only(project, out, bench):
    """{benchmark: the file of predictions that this evaluation leaves}."""
    before = set((out / "shift").glob("*.jsonl"))
    argv = options(project, "--out", str(out), "--bench", bench)
    evaluation.main([*argv, "--columns", "shift"])
    made = set((out / "shift").glob("*.jsonl")) - before
    return {path.name.split(".")[0]: path.name for path in made}


def test_shift_takes_the_mean_of_all_benchmarks(project, evaluated, tmp_path):
    """Each benchmark counts once, and other benchmarks make another file of predictions."""
    args = evaluation.arguments().parse_args(options(project))
    whole = evaluation.evaluation_of(args)
    audio = [evaluation.encode(whole, name).audio for name in whole.names]
    santa = whole.model.santa
    mean = (audio[0].mean(0) + audio[1].mean(0)) / 2
    over = santa.clean / santa.clean.norm(dim=1, keepdim=True)
    expected = audio[0] - mean + over.mean(0)
    found = evaluation.cross(whole, "sound", "shift")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    alone = shift_only(project, tmp_path, "sound")
    both = shift_only(project, tmp_path, "sound,yesno")
    assert alone["sound"] != both["sound"]
    kept = {path.name for path in (evaluated / "shift").glob("*.jsonl")}
    assert kept == set(both.values())
    assert len(list((tmp_path / "shift").glob("sound.*"))) == 2


def test_two_threads_encode_a_benchmark_once(project, tmp_path, monkeypatch):
    args = evaluation.arguments().parse_args(options(project, "--out", str(tmp_path)))
    whole, encode_clips, calls = evaluation.evaluation_of(args), evaluation.encode_clips, []

    def counted(*job):
        calls.append(job[1])
        encode_clips(*job)

    monkeypatch.setattr(evaluation, "encode_clips", counted)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: evaluation.encode(whole, "sound"), range(4)))
    assert calls == ["sound"] and all(part is found[0] for part in found)


def test_a_clip_of_two_benchmarks_is_encoded_once(project, tmp_path, monkeypatch):
    args = evaluation.arguments().parse_args(options(project, "--out", str(tmp_path)))
    whole, encode_group, heard = evaluation.evaluation_of(args), evaluation.encode_group, []

    def counted(clap, group):
        heard.extend(clip.digest for clip, _ in group)
        return encode_group(clap, group)

    monkeypatch.setattr(evaluation, "encode_group", counted)
    first, second = (evaluation.encode(whole, name) for name in ("sound", "yesno"))
    assert len(heard) == len(set(heard)) == 10
    assert torch.equal(first.audio, second.audio)
    again = evaluation.evaluation_of(args)  # from the files
    assert torch.equal(evaluation.encode(again, "yesno").audio, second.audio)
    assert len(heard) == 10


def test_merged_lora_answers_alike(project, tmp_path):
    model = MATS.from_pretrained(project / "run/model")
    generator = torch.Generator().manual_seed(0)
    for name, p in model.trainable().items():
        if "lora_B" in name:
            p.data = torch.randn(p.shape, generator=generator)
    plain = MATS.from_pretrained(project / "run/model").eval()
    z, asked = torch.randn(12, 16, generator=generator), ["What is it?"] * 12
    wanted = model.eval().generate(z, asked)
    assert wanted != plain.generate(z, asked)  # LoRA matters
    model.save_pretrained(tmp_path / "model")
    folders = ["--ckpt", str(tmp_path / "model"), "--shards", str(project / "bench")]
    made = evaluation.evaluation_of(evaluation.arguments().parse_args(folders)).model
    assert all(m.merged for m in made.llm.modules() if hasattr(m, "merged_adapters"))
    assert made.generate(z, asked) == wanted


def test_pairs_are_drawn_evenly(project):
    """Both benchmarks hold the same ten clips, two questions each."""
    args = evaluation.arguments().parse_args(options(project))
    whole = evaluation.evaluation_of(args)
    text, audio = evaluation.pairs(whole, 1000)
    assert text.shape == audio.shape == (10, 16)
    assert len(audio.unique(dim=0)) == 10
    few, _ = evaluation.pairs(whole, 4)
    torch.testing.assert_close(few, text[:4])


def test_the_gap_and_the_noise_are_reported(project, evaluated):
    found = results_of(evaluated)["gap"]
    assert found["pairs"] == 10 and 0 <= found["classifier_error"] <= 1
    trained = found["noise"]["trained"]
    assert trained["variance"] == 0.015
    assert trained["cosine"] == pytest.approx((1 + 16 * 0.015) ** -0.5)
    report = (evaluated / "report.md").read_text()
    assert "## The gap between texts and audio" in report
    assert f"leaves a cosine of | {trained['cosine']:.3f} |" in report
    assert "noise by the 30-pair rule: variance" in report


def test_the_trained_variance_is_found_without_a_memory(tmp_path):
    model = tmp_path / "model"
    assert trained_variance(model) is None
    torch.save({"identity": {"variance": 0.002}}, tmp_path / "state.pt")
    assert trained_variance(model) == 0.002


def test_what_cannot_be_decoded_is_named(project, tmp_path, capsys):
    evaluation.main(options(project, "--out", str(tmp_path), "--columns", "none"))
    assert "farm.7" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_give_the_scores_of_one(project, evaluated, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    argv = ["eval.py", *options(project, "--out", str(tmp_path), "--device", "cpu")]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *argv], cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    one, two = results_of(evaluated), results_of(tmp_path)
    assert one["columns"] == two["columns"] and one["clap"] == two["clap"]
    assert not list(tmp_path.rglob("*.part")) and not list(tmp_path.rglob("*.tmp*"))


@pytest.mark.slow
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


@pytest.mark.slow
def test_protocols_change_scores_without_generating(project, evaluated, tmp_path, monkeypatch):
    """Two encoders of words and another label template, on the stored predictions."""
    from transformers import BertConfig, BertModel, CLIPTextConfig, CLIPTextModelWithProjection

    tok = MATS.from_pretrained(project / "run/model").tokenizer
    size = dict(vocab_size=500, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    size["intermediate_size"] = 16
    bert = BertModel(BertConfig(**size))
    clip = CLIPTextConfig(**size, projection_dim=8, eos_token_id=tok.eos_token_id)
    for name, model in (("bert", bert), ("clip", CLIPTextModelWithProjection(clip))):
        model.save_pretrained(tmp_path / name)
        tok.pad_token = tok.eos_token
        tok.save_pretrained(tmp_path / name)
    monkeypatch.setattr(MATS, "generate", lambda *a, **k: pytest.fail("it generates"))
    match = f"clap,{tmp_path / 'bert'},{tmp_path / 'clip'}"
    evaluation.main(options(project, "--match", match, "--label-template", "a {}"))
    results = results_of(evaluated)
    assert (
        len(results["columns"]["santa"]["sound"]) == 3
        and "'a {}'" in (evaluated / "report.md").read_text()
    )


def test_what_is_not_there_is_a_message(project, tmp_path):
    with pytest.raises(DataError, match="no santaa"):
        evaluation.main(options(project, "--compare", "none", "santaa"))
    assert not (project / "run/eval/santaa").exists()
    shutil.copytree(project / "bench", tmp_path / "bench")
    folders = ["--shards", str(tmp_path / "bench"), "--out", str(tmp_path / "out")]
    argv = ["--ckpt", str(project / "run/model"), *folders]
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
    mcq = {"task": "mcq", "answer": "", "choices": ["red", "blue"], "category": "music"}
    with ShardWriter(tmp_path / "bench/mmau") as writer:
        for i, s in enumerate(make_samples(3)):
            writer.write({**s, "text": None, **mcq}, audio=("flac", flac(i)))
    folders = ["--shards", str(tmp_path / "bench"), "--out", str(tmp_path / "out")]
    argv = ["--ckpt", str(project / "run/model"), *folders]
    evaluation.main(argv)  # all columns
    rows = json.loads((tmp_path / "out/santa/mmau.submission.json").read_text())
    keys = {"id", "question", "choices", "task", "model_prediction"}
    assert len(rows) == 3 and set(rows[0]) == keys
    assert "hand in the submission file" in (tmp_path / "out/report.md").read_text()
    with pytest.raises(DataError, match="have only audio"):
        evaluation.main([*argv, "--columns", "text"])


def test_compare(project, evaluated, capsys):
    evaluation.main(options(project, "--compare", "none", "none"))
    assert "+0.0000 | [+0.0000, +0.0000] | 1 |" in capsys.readouterr().out
    a, b = (str(next((evaluated / c).glob("yesno.*.jsonl"))) for c in ("none", "santa"))
    evaluation.main(options(project, "--compare", a, b))
    assert "| yes/no questions | B-ACC | 19 |" in capsys.readouterr().out


def test_tags_are_given_to_the_model_unless_they_are_off(project, tmp_path, monkeypatch):
    with ShardWriter(tmp_path / "bench/yesno") as writer:
        for i, s in enumerate(make_samples(3)):
            sample = {**s, "task": "aqa", "answer": "yes", "tag": "[audio qa]"}
            writer.write(sample, audio=("flac", flac(i)))
    seen = []

    def generate(self, z, instructions, tags, *args, **kwargs):
        seen.append(tags)
        return ["yes"] * len(tags)

    monkeypatch.setattr(MATS, "generate", generate)
    folders = ["--shards", str(tmp_path / "bench"), "--out", str(tmp_path / "out")]
    for tags in ("on", "off"):
        argv = ["--ckpt", str(project / "run/model"), *folders, "--columns", "none"]
        evaluation.main([*argv, "--tags", tags])
    assert seen == [["[audio qa]"] * 3, [""] * 3]


def test_parts_are_told_from_other_writers_files(tmp_path):
    """write_atomic leaves WHOLE.part where it is killed; earlier versions wrote STEM.RANK.part."""
    parts = Parts(tmp_path / "sound.key.jsonl", Ranks(0, 1, None), evaluation.save_answers, load)
    (tmp_path / "sound.key.jsonl.part").write_text("half of it")
    (tmp_path / "sound.key.1.part").write_text('{"i": 0, "prediction": "dog"}\n{"i": 1')
    parts.add({2: "cat"})
    assert parts.merged() == {0: "dog", 2: "cat"}
    parts.remove()
    assert [f.name for f in tmp_path.iterdir()] == ["sound.key.jsonl.part"]


def test_a_judges_scores_are_shares_of_ten():
    rows = [{"id": "a"}, {"id": "b"}]
    scores = torch.tensor([8.0, float("nan")])
    assert with_scores(rows, scores, "airbench_sound") == [{"id": "a", "score": 0.8}, {"id": "b"}]
    assert with_scores(rows, scores / 8, "sound")[0]["score"] == 1.0


def test_a_clip_of_several_windows_is_their_unit_mean():
    class Clap:
        def encode_audio(self, waves):
            return torch.nn.functional.normalize(waves, dim=-1)

    waves = torch.randn(3, 4)
    a, b = (evaluation.Clip(name, "", b"") for name in "ab")
    found = evaluation.encode_group(Clap(), [(a, waves), (b, waves[:1])])
    mean = torch.nn.functional.normalize(waves, dim=-1).mean(0)
    torch.testing.assert_close(found["a"], mean / mean.norm())
    torch.testing.assert_close(found["b"], waves[0] / waves[0].norm())
