import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf
import torch
from conftest import flac, make_samples, options, results_of

import eval as evaluation
from data import Source
from disk import DataError, read_tensors, write_tensors
from distributed import Ranks
from distributed.parts import Parts, json_lines, whole_lines
from eval import load_answers as load
from mats import MATS
from santa import Santa
from scoring import encoding
from scoring.evaluation import Evaluation
from scoring.results import listening, trained_variance, with_scores
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
    check_retrieved(project, evaluated)
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
        (["--batch", "0"], "--batch 0: expected 1 or more"),
        (["--decoding", "beams"], "neither greedy, official, beam nor JSON"),
        (["--label-template", "a label"], "in place of the label"),
        (["--label-template", "{} of {x}"], "in place of the label"),
    ):
        with pytest.raises(DataError, match=message):
            evaluation.main(options(project, *more))
    with pytest.raises(DataError, match="torchrun train.py"):
        evaluation.main(["--ckpt", str(project)])
    with pytest.raises(SystemExit, match="now: python -m experiments.ablate"):
        evaluation.main(["--ablate", "table4"])


def check_retrieved(project, evaluated):
    """Each clip on the page stands above the texts that Santa retrieved for its vector."""
    santa = Santa.load(project / "run/model/santa.safetensors")
    path = next((evaluated / "vectors").glob("sound.*.safetensors"))
    rows, vectors = json.loads(path.with_suffix(".json").read_text()), read_tensors(path)
    page = (evaluated / "report.html").read_text().partition('id="b-sound"')[2]
    page = page.partition("</section>")[0]
    cards = re.findall(r'<p class="dim">(-farm[^<]*)</p>(.*?)</article>', page, re.DOTALL)
    assert len(cards) == 12
    for clip, card in cards:
        z = next(vectors[row["clip"]] for row in rows if row["id"] == clip.strip())
        best = [santa.texts[i] for i in santa.retrieve(z[None])[0][0, :3]]
        assert re.findall(r"<li>0\.\d{3} (.*?)</li>", card) == best


def shift_only(project, out, bench):
    """{benchmark: the file of predictions that this evaluation leaves}."""
    before = set((out / "shift").glob("*.jsonl"))
    argv = options(project, "--out", str(out), "--bench", bench)
    evaluation.main([*argv, "--columns", "shift"])
    made = set((out / "shift").glob("*.jsonl")) - before
    return {path.name.split(".")[0]: path.name for path in made}


@pytest.mark.slow
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
    whole, encode_clips, calls = evaluation.evaluation_of(args), encoding.encode_clips, []

    def counted(*job):
        calls.append(job[1])
        encode_clips(*job)

    monkeypatch.setattr(encoding, "encode_clips", counted)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: evaluation.encode(whole, "sound"), range(4)))
    assert calls == ["sound"] and all(part is found[0] for part in found)


def test_a_clip_of_two_benchmarks_is_encoded_once(project, tmp_path, monkeypatch):
    args = evaluation.arguments().parse_args(options(project, "--out", str(tmp_path)))
    whole, encode_group, heard = evaluation.evaluation_of(args), encoding.encode_group, []

    def counted(clap, group):
        heard.extend(clip.digest for clip, _ in group)
        return encode_group(clap, group)

    monkeypatch.setattr(encoding, "encode_group", counted)
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


def made_of(**benchmarks):
    """What `encode` finds: of each benchmark n clips, which no other one has."""
    encoded = {}
    for name, n in benchmarks.items():
        rows = [{"clip": f"{name}{i}"} for i in range(n)]
        audio = torch.full((n, 4), float(n))
        encoded[name] = encoding.Encoded(rows, audio, audio)
    return SimpleNamespace(names=list(benchmarks), encoded=encoded)


def test_pairs_of_a_large_benchmark_leave_room_for_a_small_one():
    text, _ = evaluation.pairs(made_of(large=90, small=3), 10)
    assert text[:, 0].tolist().count(3.0) == 3 and len(text) == 10


@pytest.mark.parametrize("column, length", [("official", 32.0), ("none", 1.0)])
def test_the_released_bridge_hears_the_released_codes_length(monkeypatch, column, length):
    monkeypatch.setattr(evaluation, "bridge", lambda *_: lambda z: z)
    stub = made_of(a=1)
    stub.model = SimpleNamespace(santa=None)
    assert evaluation.cross(stub, "a", column).tolist() == [[length] * 4]


def test_results_are_taken_as_they_are_only_where_all_files_are_there(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation.report, "summary", lambda results: "the table")
    stub = SimpleNamespace(out=tmp_path, failed={})
    (tmp_path / "results.json").write_text('{"key": "now"}')
    assert evaluation.unchanged(stub, "now") == ""  # no report as yet
    for kind in ("md", "html"):
        (tmp_path / f"report.{kind}").write_text("")
    assert evaluation.unchanged(stub, "now") == "the table"
    assert evaluation.unchanged(stub, "then") == ""
    stub.failed = {"sound": "no shards"}
    assert evaluation.unchanged(stub, "now") == ""


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


@pytest.mark.slow
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


@pytest.mark.slow
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
    with pytest.raises(DataError, match="santa.safetensors is missing: copy the whole folder"):
        evaluation.main(argv)
    (tmp_path / "model/config.json").write_text(json.dumps(config | {"memory": False}))
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


def test_a_model_on_the_hub_is_evaluated_here_and_by_its_name(project, monkeypatch):
    ckpt, clap = project / "run/model", str(project / "clap")
    monkeypatch.setattr(evaluation, "find_model", lambda name: ckpt)
    monkeypatch.setattr(evaluation, "is_on_hub", lambda name: True)
    words = ["--ckpt", "ana/sounds", "--shards", str(project / "bench"), "--clap", clap + "/."]
    found = evaluation.evaluation_of(evaluation.arguments().parse_args(words))
    assert (found.ckpt, found.title) == (ckpt, "ana/sounds")
    assert found.out == Path("out/ana--sounds/eval") and found.clap_name == clap + "/."
    assert found.like(ckpt, project / "other").title == ""


def test_compare(project, evaluated, capsys):
    evaluation.main(options(project, "--compare", "none", "none"))
    assert "+0.0000 | [+0.0000, +0.0000] | 1 |" in capsys.readouterr().out
    a, b = (str(next((evaluated / c).glob("yesno.*.jsonl"))) for c in ("none", "santa"))
    evaluation.main(options(project, "--compare", a, b))
    assert "| yes/no questions | B-ACC | 19 |" in capsys.readouterr().out


@pytest.mark.slow
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


def test_a_resumed_run_adds_to_its_earlier_parts(tmp_path):
    for found in ({0: "dog"}, {1: "cat"}, {2: "cow"}):  # three runs: two were killed
        parts = Parts(tmp_path / "a.key.jsonl", Ranks(0, 1, None), evaluation.save_answers, load)
        parts.add(found)
    assert parts.merged() == {0: "dog", 1: "cat", 2: "cow"}


def test_a_judges_scores_are_shares_of_ten():
    rows = [{"id": "a"}, {"id": "b"}]
    scores = torch.tensor([8.0, float("nan")])
    assert with_scores(rows, scores, "airbench_sound") == [{"id": "a", "score": 0.8}, {"id": "b"}]
    assert with_scores(rows, scores / 8, "sound")[0]["score"] == 1.0


def test_classes_that_differ_in_case_alone_are_refused(tmp_path):
    (tmp_path / "esc50").mkdir()
    (tmp_path / "esc50" / "labels.json").write_text('["Dog", "cat", "dog"]')
    with pytest.raises(DataError, match="names a class twice"):
        Evaluation.read_labels(SimpleNamespace(shards=tmp_path), "esc50")


def test_vectors_are_named_after_all_that_makes_them():
    """The folder of a CLAP's files, the crop, and the shards."""

    def key(clap="some/clap", crop="center", hash="x"):
        source = SimpleNamespace(index={"hash": hash})
        stub = SimpleNamespace(clap_name=clap, crop=crop, sources={"a": source})
        return Evaluation.vector_keys.func(stub)["a"]

    keys = [key(), key(clap="other/clap"), key(crop="windows"), key(hash="y")]
    assert len(set(keys)) == 4 and key() == keys[0]


def test_a_clip_of_several_windows_is_their_unit_mean():
    class Clap:
        def encode_audio(self, waves):
            return torch.nn.functional.normalize(waves, dim=-1)

    waves = torch.randn(3, 4)
    a, b = (encoding.Clip(name, "", b"") for name in "ab")
    found = encoding.encode_group(Clap(), [(a, waves), (b, waves[:1])])
    mean = torch.nn.functional.normalize(waves, dim=-1).mean(0)
    torch.testing.assert_close(found["a"], mean / mean.norm())
    torch.testing.assert_close(found["b"], waves[0] / waves[0].norm())


# --- troubles with files ---


class Said:
    """Stands in for MATS.generate: other answers than the model's."""

    def __init__(self, monkeypatch, *answers):
        self.answers, self.asked = answers or ("a dog",), []
        monkeypatch.setattr(MATS, "generate", self.generate)

    def generate(self, z, instructions, *args, **kwargs):
        self.asked.append(len(z))
        return [self.answers[i % len(self.answers)] for i in range(len(z))]


def bench(tmp_path, name, rows, audio=None, labels=None):
    """A benchmark of these rows' fields; audio: {place: bytes} in place of a noise."""
    with ShardWriter(tmp_path / "bench" / name) as writer:
        for i, (s, row) in enumerate(zip(make_samples(len(rows)), rows)):
            data = (audio or {}).get(i, flac(i))
            writer.write({**s, "task": "aqa", **row}, audio=("flac", data))
    if labels:
        (tmp_path / "bench" / name / "labels.json").write_text(json.dumps(labels))


def argv(project, tmp_path, *more):
    folders = ["--shards", str(tmp_path / "bench"), "--out", str(tmp_path / "out")]
    return ["--ckpt", str(project / "run/model"), *folders, "--columns", "none", *more]


def spoil(path, changes):
    """Rewrites a shard: {number of the sample: fields to change}."""
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    at = [i for i, (name, _) in enumerate(members) if name.endswith(".json")]
    for number, fields in changes.items():
        name, content = members[at[number]]
        members[at[number]] = name, json.dumps(json.loads(content) | fields).encode()
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_half_a_shard_is_not_taken_for_the_whole(tmp_path):
    with ShardWriter(tmp_path) as writer:
        for i, sample in enumerate(make_samples(4)):
            writer.write(sample, audio=("flac", flac(i)))
    path = tmp_path / "000000.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="a shard is damaged: .*000000.tar.*get it again"):
        list(encoding.clips_of(Source(tmp_path), Ranks(0, 1, None), set(), []))


@pytest.mark.parametrize(
    "require, cell, said",
    [
        ("spice", {"value": None, "why": "Java ended"}, "--require spice: Java ended"),
        ("spice", {"value": 0.1}, None),
        (None, {"value": None, "why": "Java ended"}, None),
    ],
)
def test_a_spice_that_fails_ends_in_an_error_where_it_is_required(monkeypatch, require, cell, said):
    results = {"columns": {"santa": {"clotho": {"SPICE": cell}}}}
    stubs = dict(result_key="", unchanged="", predict={}, score=(results, {}), write=None)
    for name, value in stubs.items():
        monkeypatch.setattr(evaluation, name, lambda *_, value=value: value)
    monkeypatch.setattr(evaluation.report, "summary", lambda results: "")
    stub = SimpleNamespace(ranks=Ranks(0, 1, None), failed={}, out="out")
    args = SimpleNamespace(score=False, require=require)
    with pytest.raises(SystemExit, match=said) if said else nullcontext():
        evaluation.evaluate(stub, ["santa"], None, args)


def test_texts_stay_beside_their_clips_where_one_is_left_out(monkeypatch):
    clips, text = (
        {f"c{i}": torch.full((2,), float(i)) for i in (0, 2)},
        torch.arange(6.0).view(3, 2),
    )
    rows = [{"clip": f"c{i}", "id": str(i)} for i in range(3)]
    monkeypatch.setattr(encoding, "stored_vectors", lambda path: (clips | {"text": text}, rows))
    monkeypatch.setattr(encoding, "unfit", lambda *_: "")
    keys, ranks = {"a": "key"}, Ranks(0, 1, None)
    stub = SimpleNamespace(
        labels={}, vector_folder=Path(), vector_keys=keys, sources={"a": None}, ranks=ranks
    )
    found = encoding.encoded(stub, "a")
    assert found.rows == [rows[0], rows[2]] and found.audio[:, 0].tolist() == [0, 2]
    assert torch.equal(found.text, text[[0, 2]])


def test_clips_that_cannot_be_used_are_counted(project, tmp_path, monkeypatch, capsys):
    Said(monkeypatch, "yes", "no")
    loud = io.BytesIO()
    sf.write(loud, np.full(8000, 1e30), 8000, format="WAV", subtype="FLOAT")
    bench(tmp_path, "yesno", [{"answer": "yes"}] * 5, {1: loud.getvalue()})
    spoil(tmp_path / "bench/yesno/000000.tar", {3: {"answer": " "}, 4: {"tag": ["a", "b"]}})
    evaluation.main(argv(project, tmp_path))
    printed = capsys.readouterr()
    assert "| B-ACC | 2 of 5 |" in printed.out
    assert "| B-ACC | 2 of 5 |" in (tmp_path / "out/report.md").read_text()
    assert "n = 2 of 5" in (tmp_path / "out/report.html").read_text()
    found = results_of(tmp_path / "out")
    assert (found["n"]["yesno"], found["clips"]["yesno"]) == (2, 5)
    for said in ("samples up to 1e+30", "answer is ' ' where", "tag is ['a', 'b'] where"):
        assert said in printed.err


@pytest.mark.slow
def test_one_benchmark_that_fails_does_not_stop_the_others(project, tmp_path, monkeypatch, capsys):
    said = Said(monkeypatch, "yes", "no")
    bench(tmp_path, "yesno", [{"answer": "yes"}] * 3)
    bench(tmp_path, "open", [{"answer": "a dog"}] * 2, dict.fromkeys(range(2), b"no sound"))
    bench(tmp_path, "sound", [{"answer": "dog"}] * 2, labels=["cat", "cow"])
    bench(tmp_path, "music", [{"answer": "dog"}] * 2, labels=["dog", "Dog"])
    bench(tmp_path, "caption", [{"answer": "a dog"}] * 4)
    shard = next((tmp_path / "bench/caption").glob("*.tar"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError) as error:
        evaluation.main(argv(project, tmp_path, "--columns", "shift,none"))
    reasons = (
        "open: .*not one clip has audio",
        "sound: .*not one clip .*'dog', is none of the classes in labels.json",
        "music: .*names a class twice",
        "caption: a shard is damaged: .*tar",
    )
    for reason in reasons:
        assert re.search(reason, str(error.value))
    found = results_of(tmp_path / "out")
    assert "key" not in found  # the same command tries again
    assert set(found["columns"]["none"]) == {"yesno"} and set(found["failed"]) == {
        *("open", "sound", "music", "caption")
    }
    report = (tmp_path / "out/report.md").read_text()
    assert "| yes/no questions | B-ACC | 3 |" in report and "**Warning:** open was not" in report
    assert "music was not scored" in (tmp_path / "out/report.html").read_text()

    # `shift` is made of the benchmarks that have audio, and its file named after them
    evaluation.main(argv(project, tmp_path, "--columns", "shift", "--bench", "yesno"))
    once = sum(said.asked)
    with pytest.raises(DataError):
        evaluation.main(argv(project, tmp_path, "--columns", "shift", "--bench", "yesno,open"))
    assert sum(said.asked) == once

    shard.write_bytes(whole)  # nothing that was made of half of it is taken for the whole
    (tmp_path / "bench/sound/labels.json").write_text('["cat", "dog"]')
    asked = sum(said.asked)
    with pytest.raises(DataError, match="^not scored, unlike the others: music: .*; open: "):
        evaluation.main(argv(project, tmp_path))
    assert sum(said.asked) == asked + 4 + 2  # captions and sounds; yesno's `none` is stored
    assert results_of(tmp_path / "out")["n"] == {"sound": 2, "caption": 4, "yesno": 3}
    assert "| sound captions | ROUGE-L | 4 |" in capsys.readouterr().out


def test_a_question_that_does_not_fit_the_model_is_named(project, tmp_path):
    bench(tmp_path, "yesno", [{"answer": "yes"}, {"answer": "no", "instruction": "why " * 300}])
    with pytest.raises(DataError, match="yesno: .*tokens"):
        evaluation.main(argv(project, tmp_path))
    bench(tmp_path, "open", [{"answer": "a dog"}])
    words = ["--bench", "open", "--decoding", '{"num_bims": 2}']
    with pytest.raises(DataError, match="open: .*num_bims"):
        evaluation.main(argv(project, tmp_path, *words))


def test_where_every_benchmark_fails_the_reasons_are_given(project, tmp_path):
    bench(tmp_path, "yesno", [{"answer": "yes"}], {0: b"no sound"})
    with pytest.raises(DataError, match="^.*yesno: not one clip has audio that can be decoded$"):
        evaluation.main(argv(project, tmp_path))
    (tmp_path / "bench/yesno/index.json").write_text('{"shards": [{"file": "a", "n": 1}]}')
    with pytest.raises(DataError, match="index.json"):
        evaluation.main(argv(project, tmp_path))


@pytest.mark.slow
def test_damaged_vectors_are_made_again(project, tmp_path, monkeypatch, capsys):
    Said(monkeypatch, "yes", "no")
    bench(tmp_path, "yesno", [{"answer": "yes"}] * 3)
    evaluation.main(argv(project, tmp_path))
    vectors = next((tmp_path / "out/vectors").glob("yesno.*.safetensors"))
    rows, whole = vectors.with_suffix(".json"), vectors.read_bytes()
    other = {name: z.clone() for name, z in read_tensors(vectors).items()}  # no view of the file
    first = {**other, next(k for k in other if k != "text"): torch.full((16,), torch.nan)}
    wide = {**other, next(k for k in other if k != "text"): torch.zeros(3)}
    damages = [
        lambda: vectors.write_bytes(whole[:100]),
        lambda: vectors.write_bytes(b""),
        lambda: rows.write_text("[1"),
        lambda: rows.write_text('[{"id": "a"}]'),
        lambda: rows.write_text(json.dumps([{"id": "a"}] * 3)),
        lambda: rows.unlink(),
        lambda: write_tensors(first, vectors),
        lambda: write_tensors(wide, vectors),
        lambda: write_tensors({**other, "text": other["text"][:2]}, vectors),
    ]
    for damage in damages:
        damage()
        (tmp_path / "out/results.json").unlink()
        evaluation.main(argv(project, tmp_path))
        printed = capsys.readouterr()
        assert str(vectors.stem) in printed.err and "encoded again" in printed.err
        torch.testing.assert_close(read_tensors(vectors), other)
    assert not list((tmp_path / "out").rglob("*.part"))


def test_damaged_predictions_lose_no_answer_that_can_be_read(
    project, tmp_path, monkeypatch, capsys
):
    said = Said(monkeypatch, "a\u2028b", "\ud83d dog", "x\x85y", "\x0bz")
    bench(tmp_path, "open", [{"answer": "a dog", "id": f"clip{i}"} for i in range(6)])
    evaluation.main(argv(project, tmp_path))
    path = next((tmp_path / "out/none").glob("open.*.jsonl"))
    lines = path.read_bytes().split(b"\n")
    answers = [json.loads(line)["prediction"] for line in lines[:-1]]
    assert len(answers) == 6 and {*answers} == {*said.answers}
    capsys.readouterr()
    said.answers = ("new",)
    path.write_bytes(
        b"\n".join([lines[0], lines[1][:20], b"[]", lines[3], b'{"id": 1}', lines[5], b""])
    )
    with pytest.raises(DataError, match="3 of 6 answers cannot be read .*line is 2.*--score"):
        evaluation.main(argv(project, tmp_path, "--score"))
    (tmp_path / "out/results.json").write_text("[")
    evaluation.main(argv(project, tmp_path))
    assert "3 of 6 answers cannot be read" in capsys.readouterr().err
    found = [line["prediction"] for line in whole_lines(path)]
    assert [a for a, b in zip(found, answers) if a == b] == [answers[i] for i in (0, 3, 5)]
    assert found.count("new") == 3 and sum(said.asked) == 6 + 3
    assert "\ufffd" not in (tmp_path / "out/report.html").read_text()


@pytest.mark.slow
def test_results_of_another_form_are_made_again(project, tmp_path, monkeypatch, capsys):
    said = Said(monkeypatch, "yes", "no")
    bench(tmp_path, "yesno", [{"answer": "yes"}] * 3)
    evaluation.main(argv(project, tmp_path))
    wanted, path = results_of(tmp_path / "out"), tmp_path / "out/results.json"
    for form in ("", "[]", "{", "{}", json.dumps({"key": wanted["key"], "columns": 3})):
        path.write_text(form)
        evaluation.main(argv(project, tmp_path))
        assert results_of(tmp_path / "out") == wanted
    assert len(said.asked) == 1 and "is made again" in capsys.readouterr().err
    (tmp_path / "out/report.md").unlink()
    evaluation.main(argv(project, tmp_path))
    assert (tmp_path / "out/report.md").exists()


def test_damaged_parts_are_named_and_made_again(tmp_path, capsys):
    parts = Parts(tmp_path / "sound.key.jsonl", Ranks(0, 1, None), evaluation.save_answers, load)
    parts.add({1: "cat"})
    damaged = {
        "sound.key.0.2.part": b"\x00\x01\n",
        "sound.key.0.3.part": b"[]\n",
        "sound.key.0.4.part": b'{"i": "x", "prediction": "dog"}\n',
        "sound.key.0.5.part": b'{"i": 3}\n',
    }
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
    assert parts.merged() == {1: "cat"}
    said = capsys.readouterr().err
    assert all(name in said and not (tmp_path / name).exists() for name in damaged)
    vectors = Parts(tmp_path / "v.safetensors", Ranks(0, 1, None), write_tensors, read_tensors)
    vectors.add({"a": torch.ones(2)})
    (tmp_path / "v.0.7.part").write_bytes(b"half")
    assert list(vectors.merged()) == ["a"] and "v.0.7.part" in capsys.readouterr().err


def test_lines_end_at_newlines_alone(tmp_path):
    values = [{"a": "x\u2028y\x85\x0c\r\n"}, {"a": "half \ud83d"}]
    (tmp_path / "a").write_bytes(json_lines(values))
    assert whole_lines(tmp_path / "a") == values
    (tmp_path / "a").write_bytes(json_lines(values) + b"{\n")
    with pytest.raises(DataError, match="a is damaged.*line 3 should hold a JSON object"):
        whole_lines(tmp_path / "a")


def test_compare_names_a_file_that_holds_no_predictions(project, evaluated, tmp_path):
    good = next((evaluated / "none").glob("yesno.*.jsonl"))
    bad = tmp_path / "yesno.x.jsonl"
    for content, message in (
        (b"", "holds no predictions"),
        (b"{\n", "line 1 should hold"),
        (b'{"id": "a"}\n', "line 1: sample 'a' lacks"),
        (good.read_bytes().replace(b'"prediction"', b'"other"'), "line 1: it has no prediction"),
    ):
        bad.write_bytes(content)
        with pytest.raises(DataError, match=message):
            evaluation.main(options(project, "--compare", str(good), str(bad)))


def test_a_clip_that_the_encoder_refuses_is_left_out_alone(capsys):
    class Clap:
        def encode_audio(self, waves):
            if (waves > 5).any():
                raise ValueError("row 0: much too large")
            return torch.nn.functional.normalize(waves, dim=-1)

    group = [(encoding.Clip(str(i), f"clip {i}", b""), torch.ones(1, 4)) for i in range(7)]
    group[3][1][0, 0] = 9
    assert list(encoding.encode_group(Clap(), group)) == ["0", "1", "2", "4", "5", "6"]
    assert capsys.readouterr().err == "left out: clip 3: row 0: much too large\n"


@pytest.mark.slow
def test_equal_answers_are_a_warning(project, tmp_path, monkeypatch, capsys):
    said = Said(monkeypatch, "yes")
    bench(tmp_path, "yesno", [{"answer": ("yes", "no")[i % 2]} for i in range(12)])
    evaluation.main(argv(project, tmp_path))
    line = "Every one of 12 clips of `yesno` got the same answer to the same question over none"
    assert f"warning: {line}" in capsys.readouterr().out
    assert f"**Warning:** {line}" in (tmp_path / "out/report.md").read_text()
    assert line in (tmp_path / "out/report.html").read_text()
    evaluation.main(argv(project, tmp_path))  # nothing has changed, and the warning stays
    assert line in capsys.readouterr().out
    said.answers = ("yes", "no")
    evaluation.main(argv(project, tmp_path, "--crop", "windows"))
    assert "warning" not in capsys.readouterr().out


def test_the_run_beside_the_model_says_how_much_it_hears(project, tmp_path, monkeypatch):
    Said(monkeypatch, "yes", "no")
    bench(tmp_path, "yesno", [{"answer": "yes"}] * 2)
    assert listening(tmp_path / "log.jsonl") == {}
    lines = [
        {"step": 2, "val_loss": 1.5, "val_loss_other": 2.0},
        {"step": 4, "val_loss": 1.25, "val_loss_other": 2.5},
        {"step": 5, "loss": 1},
        {"step": 6, "val_loss": 1},
    ]
    log = project / "run/log.jsonl"
    log.write_bytes(json_lines(lines) + b"[]\nnonsense\n" + b'{"step": 9, "val_lo')
    try:
        evaluation.main(argv(project, tmp_path))
    finally:
        log.unlink()
    sentence = "Validation at step 4 of training: loss 1.250, and 2.500 with another sample"
    assert sentence in (tmp_path / "out/report.md").read_text()
    assert sentence in (tmp_path / "out/report.html").read_text()


def test_the_encoder_is_checked_where_it_is_loaded(project, evaluated, tmp_path, monkeypatch):
    shutil.copytree(project / "run/model", tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    config |= {k: str(project / k) for k in ("llm", "clap")} | {"probe": [1.0] * 48}
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    words = ["--ckpt", str(tmp_path / "model"), "--shards", str(project / "bench")]
    with pytest.raises(DataError, match="trained on vectors of another encoder than .*clap is now"):
        evaluation.main(words)
    config["probe"] = None
    config["clap"] = "../gone"
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="the field clap names ../gone, .* is not there"):
        evaluation.main(words)
    with pytest.raises(DataError, match="did you mean .*run/model"):
        evaluation.main(["--ckpt", str(project / "run")])


def test_a_damaged_state_is_said_and_no_more(tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "state.pt").write_bytes(b"half")
    assert trained_variance(tmp_path / "model") is None
    assert "state.pt" in capsys.readouterr().err
    (tmp_path / "model/santa.safetensors").write_bytes(b"version https://git-lfs")
    assert trained_variance(tmp_path / "model") is None
    assert "santa.safetensors" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_while_clips_are_decoded_waits_for_none(project, tmp_path, monkeypatch):
    """The clips that were encoded are kept, and those that wait are not decoded."""
    bench(tmp_path, "yesno", [{"answer": "yes"}] * 70)
    decoded, real = [], encoding.windows_of

    def slow(*args):
        decoded.append(1)
        time.sleep(0.02)
        return real(*args)

    def interrupted(clap, group):
        raise KeyboardInterrupt

    monkeypatch.setattr(encoding, "windows_of", slow)
    encode_group = encoding.encode_group
    monkeypatch.setattr(encoding, "encode_group", interrupted)
    args = evaluation.arguments().parse_args(argv(project, tmp_path))
    with pytest.raises(KeyboardInterrupt):
        evaluation.encode(evaluation.evaluation_of(args), "yesno")
    monkeypatch.setattr(encoding, "encode_group", encode_group)
    assert len(decoded) < 45

    whole = evaluation.evaluation_of(args)

    def stops(clap, group):
        whole.stopping.set()
        return encode_group(clap, group)

    monkeypatch.setattr(encoding, "encode_group", stops)
    with pytest.raises(encoding.Stopped):
        evaluation.encode(whole, "yesno")
    part = next((tmp_path / "out/vectors").glob("*.part"))
    assert len(read_tensors(part)) == 32
    monkeypatch.setattr(encoding, "encode_group", encode_group)
    found = evaluation.encode(evaluation.evaluation_of(args), "yesno")
    assert len(found.rows) == 70 and not part.exists()


def test_ctrl_c_while_generating_stops_the_encoding_thread(project, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(MATS, "generate", interrupted)
    bench(tmp_path, "yesno", [{"answer": "yes"}] * 2)
    args = evaluation.arguments().parse_args(argv(project, tmp_path))
    whole = evaluation.evaluation_of(args)
    with pytest.raises(KeyboardInterrupt):
        evaluation.predict(whole, ["none"])
    assert whole.stopping.is_set()


@pytest.mark.slow
def test_as_a_command_troubles_are_one_line(project, tmp_path):
    bench(tmp_path, "yesno", [{"answer": "yes"}] * 3)
    (tmp_path / "file").write_text("")

    def run(out, limit=None):
        def full():
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        words = [sys.executable, str(ROOT / "eval.py"), *argv(project, tmp_path), "--out", str(out)]
        done = subprocess.run(words, capture_output=True, preexec_fn=limit and full, text=True)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr.splitlines()[-1]

    status, said = run(tmp_path / "file/x")
    assert status == 1 and said.startswith("eval.py: ") and "Not a directory" in said
    status, said = run(tmp_path / "full", 20_000)
    assert status == 1 and "the disk is full" in said
    assert not list((tmp_path / "full").rglob("*.part"))
    assert run(tmp_path / "full")[0] == 0


def test_a_bridge_without_a_memory_is_refused_before_any_work(project, tmp_path):
    shutil.copytree(project, tmp_path / "p")
    model = tmp_path / "p/run/model"
    (model / "santa.safetensors").unlink()
    config = json.loads((model / "config.json").read_text()) | {"memory": False}
    (model / "config.json").write_text(json.dumps(config))
    shutil.rmtree(tmp_path / "p/run/eval", ignore_errors=True)
    with pytest.raises(DataError, match="--columns santa: .*has no memory.*--columns text,none"):
        evaluation.main([*options(tmp_path / "p"), "--columns", "none,santa"])
    assert not (tmp_path / "p/run/eval").exists()
