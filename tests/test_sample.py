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

import clap as clap_module
import sample
from disk import DataError
from encoders import checks
from santa import RELEASED_NORM, Bridge, Cluster, Explanation, Moved, Retrieved, Santa

ROOT = Path(__file__).parents[1]


def sound(path, factor=0.1, **how):
    wave = np.random.default_rng(1).normal(size=16000) * factor
    sf.write(path, wave, 8000, **how)
    return str(path)


def ckpt_of(project):
    return ["--ckpt", str(project / "run/model")]


@pytest.fixture
def without_memory(project, tmp_path):
    """A model like the project's, but without a memory."""
    shutil.copytree(project / "run/model", tmp_path / "model")
    (tmp_path / "model/santa.safetensors").unlink()
    config = json.loads((tmp_path / "model/config.json").read_text())
    config |= {key: str(project / key) for key in ("llm", "clap")} | {"memory": False}
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    return tmp_path / "model"


def test_readable_files_are_answered(project, tmp_path, capsys):
    formats = {"a.wav": 44100, "b.ogg": 22050, "c.flac": 8000, "d.mp3": 16000}
    for name, rate in formats.items():
        wave = np.random.default_rng(1).normal(size=(3 * rate, 2)) * 0.1
        sf.write(tmp_path / name, wave, rate, format=name[2:].upper())
    (tmp_path / "e.wav").write_bytes(b"")
    sound(tmp_path / "f.wav", 1e30, subtype="FLOAT")
    (tmp_path / "g.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(500))
    bad = ["e.wav", "f.wav", "g.m4a", "missing.wav"]
    names = ["a.wav", "b.ogg", *bad, "c.flac", "d.mp3"]
    files, ckpt = [*(str(tmp_path / name) for name in names), str(tmp_path)], ckpt_of(project)
    code = sample.main([*files, *ckpt, "--ask", "Is there a dog?", "--json"])
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert code == 1 and [Path(line["file"]).name for line in lines] == list(formats)
    assert all(line["instruction"] == "Is there a dog?" and line["answer"] for line in lines)
    named = [line for line in printed.err.splitlines() if line.startswith("sample.py: ")]
    assert all(a in b for a, b in zip([*bad, "directory"], named, strict=True))
    assert sample.main([files[0], *ckpt, "--bridge", "official"]) == 0
    assert capsys.readouterr().out.count("\n") == 1


def test_an_encoders_own_error_is_about_the_file(project, tmp_path, capsys, monkeypatch):
    def encode(clap, file, *more):
        if "b" in Path(file).name:
            raise ValueError("no such sound")
        return clap_module.encode_file(clap, file, *more)

    monkeypatch.setattr(sample, "encode_file", encode)
    files = [sound(tmp_path / name) for name in ("a.wav", "b.wav", "c.wav")]
    assert sample.main([*files, *ckpt_of(project)]) == 1
    printed = capsys.readouterr()
    assert f"sample.py: {files[1]}: no such sound" in printed.err
    assert [line.split(": ")[0] for line in printed.out.splitlines()] == [files[0], files[2]]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--bridge", "shift"], "--bridge shift needs the mean .* eval.py"),
        (["--ask", "caf\udce9?"], r"--ask 'caf\\udce9\?' holds characters that are no text"),
        (["--ask", "word " * 900], "--ask.* tokens"),
    ],
)
def test_bad_requests_are_one_line(project, tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        sample.main([sound(tmp_path / "a.wav"), *ckpt_of(project), *options])
    with pytest.raises(SystemExit):
        sample.main(["a.wav", *ckpt_of(project), "--batch", "0"])


def test_without_a_memory_the_raw_vector_is_taken(project, without_memory, tmp_path, capsys):
    file = sound(tmp_path / "a.wav")
    said = {}
    for more in ((), ("--bridge", "none"), ("--bridge", "santa-mb")):
        assert sample.main([file, "--ckpt", str(without_memory), *more]) == 0
        said[more] = capsys.readouterr().out
    assert len(set(said.values())) == 1
    with pytest.raises(DataError, match="--bridge nearest: .* no memory; use --bridge none"):
        sample.main([file, "--ckpt", str(without_memory), "--bridge", "nearest"])
    sample.main([file, *ckpt_of(project)])
    default = capsys.readouterr().out
    sample.main([file, *ckpt_of(project), "--bridge", "santa"])
    assert capsys.readouterr().out == default


def test_a_long_file_is_heard_from_end_to_end_unless_asked_otherwise(
    project, tmp_path, monkeypatch, capsys
):
    heard = []

    def encode(clap, file, crop, generator):
        heard.append(crop)
        return torch.ones(16)

    monkeypatch.setattr(sample, "encode_file", encode)
    for more in ([], ["--crop", "center"]):
        sample.main([sound(tmp_path / "a.wav"), *ckpt_of(project), *more])
    assert heard == ["windows", "center"]


def test_bridges_by_name(project, monkeypatch):
    made = []

    def bridge(name, santa, generator=None):
        made.append(name)
        return Bridge(Moved, prepare=lambda z: z)

    monkeypatch.setattr(sample, "bridge", bridge)
    model, z = sample.MATS.from_pretrained(project / "run/model"), torch.ones(1, 16)
    for name in (None, "memory", "official"):
        found = sample.bridge_of(model, name, None)(z)
        assert torch.equal(found, z * (RELEASED_NORM if name == "official" else 1))
    model.santa = None
    sample.bridge_of(model, None, None)
    assert made == ["santa", "memory", "official", "none"]


def test_explain_shows_the_texts_that_were_retrieved(project, tmp_path, capsys):
    files = [sound(tmp_path / name) for name in ("a.wav", "b.wav")]
    clap, santa = clap_module.load_clap(str(project / "clap")), Santa.load(memory_of(project))
    a = clap_module.encode_file(clap, files[0], "windows", None).numpy()
    far = ((a - santa.centers.numpy()) ** 2).sum(1)
    inside = np.flatnonzero(santa.labels.numpy() == far.argmin())
    weights = np.exp(santa.memory.numpy()[inside] @ a / santa.tau)
    best = [santa.texts[i] for i in inside[weights.argsort()[::-1]]]
    assert sample.main([*files, *ckpt_of(project), "--explain"]) == 0
    printed = capsys.readouterr().out.splitlines()
    first = printed[1 : printed.index(next(line for line in printed if line.startswith(files[1])))]
    assert first[0].startswith(f"    cluster {far.argmin()} of 4 ({len(inside)} texts); the bridge")
    assert [line[11:] for line in first[1:6]] == best[:5]
    assert abs(float(first[1].split()[0]) - weights.max() / weights.sum()) < 6e-4
    assert first[6:] == ([f"    and {len(inside) - 5} more"] if len(inside) > 5 else [])
    assert sample.main([*files, *ckpt_of(project), "--explain", "--json"]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[0])
    assert line["answer"] and line["explain"]["cluster"]["size"] == len(inside)
    assert [one["text"] for one in line["explain"]["retrieved"]] == best[:5]
    for name, said in (("none", "retrieved no text"), ("nearest", "1.000  "), ("official", "deg")):
        sample.main([files[0], *ckpt_of(project), "--explain", "--bridge", name])
        assert said in capsys.readouterr().out


def test_as_json_an_explanation_keeps_every_field():
    found = [Retrieved(7, 0.5, "a dog barks"), Retrieved(9, 0.25, None)]
    told = sample.as_json(Explanation(0.5, 60.0, Cluster(3, 40, 100), found, 30))
    assert json.loads(json.dumps(told)) == {
        "cosine": 0.5,
        "degrees": 60.0,
        "cluster": {"number": 3, "size": 40, "of": 100},
        "retrieved": [
            {"row": 7, "weight": 0.5, "text": "a dog barks"},
            {"row": 9, "weight": 0.25, "text": None},
        ],
        "more": 30,
    }
    assert sample.as_json(Explanation(1.0, 0.0, None, [], 0))["cluster"] is None


def memory_of(project):
    return project / "run/model/santa.safetensors"


def test_a_memory_without_texts_shows_rows_by_number(project, without_memory, tmp_path, capsys):
    Santa.load(memory_of(project)).but(texts=None).save(without_memory / "santa.safetensors")
    words = [sound(tmp_path / "a.wav"), "--ckpt", str(without_memory), "--bridge"]
    assert sample.main([*words, "santa", "--explain"]) == 0
    printed = capsys.readouterr()
    said = [line for line in printed.err.splitlines() if line.startswith("sample.py: ")]
    assert len(said) == 1 and "keeps no texts" in said[0]
    assert all(line[11:].startswith("row ") for line in printed.out.splitlines()[2:7])
    for more in (["none", "--explain"], ["santa"]):
        assert sample.main([*words, *more]) == 0
        assert "keeps no texts" not in capsys.readouterr().err


def test_a_model_that_is_not_there_is_named(project, without_memory, tmp_path):
    file = sound(tmp_path / "a.wav")
    with pytest.raises(DataError, match="did you mean .*run/model\\?"):
        sample.main([file, "--ckpt", str(project / "run")])
    with pytest.raises(DataError, match="holds no trained model"):
        sample.main([file, "--ckpt", str(tmp_path / "nowhere")])
    for config, message in (
        ("{", "config.json is damaged"),
        ("[]", "a JSON list where a dict belongs"),
        ('{"clap": 5}', "clap is 5, expected str"),
        ('{"clap": "../gone"}', "the field clap names ../gone, .* is not there: copy it there"),
        ('{"llm": "../gone", "clap": "x"}', "the field llm names ../gone, .* is not there"),
    ):
        (without_memory / "config.json").write_text(config)
        with pytest.raises(DataError, match=message):
            sample.main([file, "--ckpt", str(without_memory)])
    (without_memory / "config.json").write_text('{"clap": "laion/some"}')
    assert sample.read_config(without_memory)[0].clap == "laion/some"


def test_another_encoder_than_in_training_is_refused(project):
    clap = clap_module.load_clap(str(project / "clap"))
    own = checks.probe(clap)
    for probe in (None, own):
        checks.check_encoder(probe, 16, clap, "it")
    with pytest.raises(DataError, match="of another encoder than it is now"):
        checks.check_encoder([value + 0.1 for value in own], 16, clap, "it")
    with pytest.raises(DataError, match="vectors of 8 numbers, and those of it have 16"):
        checks.check_encoder(own, 8, clap, "it")


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_named(project, device):
    with pytest.raises(DataError, match=f"--device {device}: .*this machine has cpu"):
        sample.main(["x.wav", *ckpt_of(project), "--device", device])


def test_sample_checks_the_encoder(project, tmp_path, monkeypatch):
    load = sample.MATS.from_pretrained

    def trained_elsewhere(*args):
        model = load(*args)
        model.probe = [1.0] * 48
        return model

    monkeypatch.setattr(sample.MATS, "from_pretrained", trained_elsewhere)
    with pytest.raises(DataError, match="another encoder"):
        sample.main([sound(tmp_path / "a.wav"), *ckpt_of(project)])


def run(project, *args, shell="", **how):
    """(status, stdout, stderr) of sample.py as a command."""
    words = [sys.executable, str(ROOT / "sample.py"), *args, *ckpt_of(project)]
    if shell:
        words = ["bash", "-c", f'"$0" "$@" {shell}', *words]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, **how)
    assert not any(word in done.stderr for word in (b"Traceback", b"Exception"))
    ours = [line for line in done.stderr.splitlines() if line.startswith(b"sample.py")]
    return done.returncode, done.stdout, ours


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_names_that_are_no_utf8_are_answered(project, tmp_path, more):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav")
    os.rename(sound(tmp_path / "x.wav"), odd)
    missing = os.fsdecode(os.fsencode(tmp_path) + b"/no\xe9.wav")
    env = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    status, out, err = run(project, odd, missing, sound(tmp_path / "y.wav"), *more, env=env)
    assert status == 1 and len(out.splitlines()) == 2 and b"y.wav" in out
    assert len(err) == 1 and b"no\\udce9.wav: No such file" in err[0]
    if more:
        assert json.loads(out.splitlines()[0])["file"] == odd


@pytest.mark.slow
def test_a_closed_pipe_and_a_full_disk_are_no_traceback(project, tmp_path):
    files = [sound(tmp_path / f"{i}.wav") for i in range(3)]
    status, _, err = run(project, *files, "--batch", "1", shell="| true; exit ${PIPESTATUS[0]}")
    assert status == 141 and not err
    status, _, err = run(project, *files, shell="> /dev/full")
    assert status == 1 and len(err) == 1 and b"disk is full" in err[0]


def test_the_command_hands_on_what_main_says():
    source = (ROOT / "sample.py").read_text()
    assert 'with command("sample.py"):\n        status = main()\n    sys.exit(status)' in source
