"""What an encoder must be before it works, and where it encodes in bfloat16."""

import json
import re
import sys
import types
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import make_samples, results_of, small_clap, write_samples

import eval as evaluation
import sample
import scoring.evaluation
import train
from clap import load_clap
from disk import DataError, write_tensors
from distributed import Ranks
from encoders import checks
from encoders.checks import COLLAPSED, LEAST_COSINE, VARIED, check_vectors, faster, ready
from experiments import gap
from scoring import report
from scoring.encoders import text_encoder
from scoring.encoding import encoder_of, encoder_that_made, stored_at
from shards import embed as embedding
from train import TrainConfig


class Pair:
    """An encoder of one's own: every text gets an axis, and sounds the first ones."""

    dim, sample_rate, seconds = 12, 8000, 1.0

    def encode_text(self, texts):
        return self.made(torch.eye(12)[: len(texts)])

    def encode_audio(self, waves):
        return torch.eye(12)[: len(waves)]

    def made(self, rows):
        return rows


def pair(**methods):
    return type("Bad", (Pair,), methods)()


def spoiled(rows):
    rows[3, 5] = float("nan")
    return rows


def leaning(cosine):
    """Rows whose mutual cosine is this: a common part, and an axis of its own each."""

    def made(self, rows):
        rows = (1 - cosine) ** 0.5 * rows
        rows[:, -1] += cosine**0.5
        return rows

    return made


@pytest.mark.parametrize(
    "methods, message",
    [
        (dict(made=lambda self, rows: spoiled(rows)), "encode_text makes vectors that are not fin"),
        (
            dict(made=lambda self, rows: 3 * rows),
            "encode_text .* of length 3 to 3, where unit rows",
        ),
        (dict(made=lambda self, rows: rows.numpy()), "encode_text returns ndarray, where a tensor"),
        (dict(dim=16), r"encode_text makes \(8, 12\) of 8 inputs, where \(8, 16\) belongs"),
        (dict(made=lambda self, rows: rows[1:]), r"encode_text makes \(7, 12\) of 8 inputs"),
        (dict(encode_audio=lambda self, w: torch.zeros(2, 12)), "encode_audio .* of length 0 to 0"),
        (dict(encode_audio=lambda self, w: w[:, :12] / 0), "encode_audio .* not finite"),
        (
            dict(encode_audio=lambda self, w: torch.eye(8)[:2]),
            r"encode_audio makes \(2, 8\) of 2",
        ),
        (dict(made=leaning(0.9993)), "its text tower has collapsed: .* mean cosine of 0.9993"),
    ],
)
def test_an_encoder_that_cannot_work_is_named_in_one_line(methods, message):
    with pytest.raises(DataError, match=f"^my:pair: {message}") as error:
        check_vectors(pair(**methods), "my:pair")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("tower", ["text", "audio"])
def test_a_clap_of_damaged_weights_is_named(tokenizer, tower):
    clap = small_clap(tokenizer)
    getattr(clap, f"{tower}_projection").linear1.weight[0, 0] = float("nan")
    with pytest.raises(DataError, match=f"^it: encode_{tower} .*(not finite|NaN)") as error:
        ready(clap, "it")
    assert "\n" not in str(error.value)


def test_an_encoder_that_can_work_passes(tokenizer):
    half = pair(made=lambda self, rows: (leaning(0.9)(self, rows)).bfloat16())
    for good in (Pair(), half, pair(made=leaning(COLLAPSED - 0.001)), small_clap(tokenizer)):
        assert ready(good, "it") is good
    assert len(set(VARIED)) == len(VARIED) == 8


def test_an_encoder_is_checked_where_it_works(tokenizer, monkeypatch):
    clap, seen = small_clap(tokenizer), []
    monkeypatch.setattr(checks, "check_vectors", lambda clap, name: seen.append(clap.device.type))
    assert ready(clap, "it", "meta") is clap and seen == ["meta"]


def test_every_command_looks_at_its_encoder_first(project, tmp_path, monkeypatch):
    """Not one vector of a collapsed tower gets anywhere."""
    bad = pair(made=leaning(0.9993), dim=12)
    write_samples(tmp_path / "src", make_samples(4), vectors=False)
    for module in (embedding, train, gap, sample, scoring.evaluation):
        monkeypatch.setattr(module, "load_clap", lambda name: bad)
    with pytest.raises(DataError, match="^my:pair: its text tower has collapsed"):
        embedding.main([str(tmp_path / "src"), str(tmp_path / "dst"), "--clap", "my:pair"])
    assert not (tmp_path / "dst").exists()
    cfg = TrainConfig(train=str(tmp_path / "src"), clap="my:pair", dim=12)
    sources, alone = train.find_sources(cfg.train)[0], Ranks(0, 1, torch.device("cpu"))
    with pytest.raises(DataError, match="^my:pair: its text tower has collapsed"):
        train.load_encoder(cfg, sources, alone)
    monkeypatch.setattr("sys.argv", ["gap.py", str(tmp_path / "src"), "--clap", "my:pair"])
    with pytest.raises(DataError, match="^my:pair: its text tower has collapsed"):
        gap.main()
    ckpt = ["--ckpt", str(project / "run/model")]
    with pytest.raises(DataError, match="its text tower has collapsed"):
        sample.main(["dog.wav", *ckpt])
    args = evaluation.arguments().parse_args([*ckpt, "--shards", str(project / "bench")])
    with pytest.raises(DataError, match="its text tower has collapsed"):
        _ = evaluation.evaluation_of(args).clap
    monkeypatch.setattr(train, "load_clap", lambda name: Pair())
    with pytest.raises(DataError, match="my:pair makes vectors of 12 numbers.*set --dim=12"):
        train.load_encoder(TrainConfig(clap="my:pair"), sources, alone)


# --- bfloat16 ---


@pytest.fixture
def gaining(monkeypatch):
    """A machine that gains by bfloat16 everywhere."""
    monkeypatch.setattr(checks, "gains", lambda clap: True)


@pytest.mark.parametrize("tower", ["text", "audio"])
def test_a_faster_tower_stays_within_its_cosine(tokenizer, gaining, tower):
    clap, waves = small_clap(tokenizer), 0.1 * torch.randn(6, 8000)
    texts = [row["text"] for row in make_samples(12)]
    encode = {"text": lambda: clap.encode_text(texts), "audio": lambda: clap.encode_audio(waves)}
    before = {name: make() for name, make in encode.items()}
    said = faster(clap, tower)
    found = re.fullmatch(rf"the {tower} tower encodes in bfloat16: cosine (\S+) with float32", said)
    assert LEAST_COSINE <= float(found[1]) <= 1 and clap.fast_towers == (tower,)
    for name, make in encode.items():
        now = make()
        cosine = F.cosine_similarity(now, before[name]).min()
        assert now.dtype == torch.float32 and cosine > LEAST_COSINE
        assert torch.equal(now, before[name]) == (name != tower)
        torch.testing.assert_close(now.norm(dim=1), torch.ones(len(now)))
    assert faster(clap, tower) == said and clap.fast_towers == (tower,)


def test_both_towers_may_be_faster(tokenizer, gaining):
    clap = small_clap(tokenizer)
    assert faster(clap, "audio") and faster(clap, "text")
    assert set(clap.fast_towers) == {"audio", "text"}


def test_a_tower_that_rounding_spoils_stays_in_float32(gaining):
    class Coarse(Pair):
        fast_towers = ("audio",)

        def made(self, rows):
            rows[0, 1] = 0.05 if "text" in self.fast_towers else 0.0
            return F.normalize(rows, dim=-1)

    clap = Coarse()
    cosine = (1 + 0.05**2) ** -0.5
    assert f"in float32: in bfloat16 the cosine with it is {cosine:.5f}" in faster(clap, "text")
    assert clap.fast_towers == ("audio",) and faster(Pair(), "text") == ""


def test_the_spectrogram_stays_in_float32(tokenizer, gaining, monkeypatch):
    """And a caller's autocast changes no vector."""
    clap, waves, mels = small_clap(tokenizer), 0.1 * torch.randn(2, 8000), []
    want, texts = clap.encode_audio(waves), clap.encode_text(list(VARIED))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(clap.encode_audio(waves), want)
        assert torch.equal(clap.encode_text(list(VARIED)), texts)
    faster(clap, "audio")
    features = clap.audio_features
    monkeypatch.setattr(clap, "audio_features", lambda mel: mels.append(mel) or features(mel))
    clap.encode_audio(waves)
    torch.testing.assert_close(mels[0], clap.mel(waves), rtol=0, atol=0)


def test_text_matching_stays_in_float64(tokenizer, gaining):
    clap = small_clap(tokenizer)
    want = text_encoder("clap", lambda: clap)(list(VARIED))
    faster(clap, "text")
    found = text_encoder("clap", lambda: clap)(list(VARIED))
    assert found.dtype == torch.float64 and torch.equal(found, want)


@pytest.mark.parametrize("device, able", [("cuda", True), ("cuda", False), ("cpu", True)])
def test_a_gpu_gains_where_it_computes_in_bfloat16(monkeypatch, device, able):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: able)
    clap = SimpleNamespace(device=torch.device(device), fast_towers=())
    assert checks.gains(clap) == (device == "cuda" and able)
    if not checks.gains(clap):
        assert faster(clap, "text") == "" and clap.fast_towers == ()


def test_shards_are_embedded_so_and_an_evaluation_is_not(project, tmp_path, gaining, capsys):
    """Evaluations keep their vectors, and compare them between machines."""
    src, name = str(project / "bench" / "sound"), str(project / "clap")
    embedding.main([src, str(tmp_path / "dst"), "--clap", name, "--side", "audio"])
    assert f"{name}: the audio tower encodes in bfloat16: cosine " in capsys.readouterr().out
    argv = ["--ckpt", str(project / "run/model"), "--shards", str(project / "bench")]
    assert evaluation.evaluation_of(evaluation.arguments().parse_args(argv)).clap.fast_towers == ()


# --- the report ---


def test_the_report_tells_how_the_encoder_heard(project, evaluated, tmp_path):
    encoder = {"seconds": 1.0, "sample_rate": 8000, "padding": "tile"}
    assert results_of(evaluated)["encoder"] == {"name": str(project / "clap"), **encoder}
    line = "audio: windows of 1 s at 8,000 Hz (tile), by "
    assert line in (evaluated / "report.md").read_text()
    assert line in (evaluated / "report.html").read_text()

    # it is the encoder of the stored vectors that counts
    argv = ["--ckpt", str(project / "run/model"), "--shards", str(project / "bench")]
    other = evaluation.evaluation_of(
        evaluation.arguments().parse_args([*argv, "--out", str(tmp_path)])
    )
    assert encoder_that_made(other) == {}
    path = stored_at(other, other.names[0])
    path.parent.mkdir(parents=True)
    write_tensors({"a": torch.ones(2)}, path)  # as before encoders were asked
    assert encoder_that_made(other) == {}
    heard = encoder_of(pair(padding="repeat", seconds=2.5))
    write_tensors({"a": torch.ones(2)}, path, {"encoder": json.dumps(heard)})
    assert encoder_that_made(other) == {"seconds": 2.5, "sample_rate": 8000, "padding": "repeat"}
    assert report.windows({"name": "it"}) == ""


@pytest.mark.parametrize(
    "methods, message",
    [
        (dict(made=lambda self, rows: rows.requires_grad_()), "with gradients: .*no_grad"),
        (
            dict(made=lambda self, rows: F.normalize(torch.randn(len(rows), 12), dim=-1)),
            "encode_text makes other vectors of the same two texts",
        ),
        (
            dict(encode_text=lambda self, texts: {}["a dog"]),
            "encode_text of 8 texts: 'a dog' .*own",
        ),
        (dict(encode_audio=lambda self, w: w @ w), "encode_audio of a noise and a tone: mat1"),
    ],
)
def test_an_encoders_own_faults_are_told(methods, message):
    with pytest.raises(DataError, match=f"^my:pair: .*{message}") as error:
        check_vectors(pair(**methods), "my:pair")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "made, message",
    [
        (lambda: 5, "returned no encoder pair: missing encode_text"),
        (lambda needed: needed, "called without arguments, it should return an encoder pair"),
        (lambda: pair(dim="64"), "dim is '64', expected a whole number above 0"),
        (lambda: pair(sample_rate=None), "sample_rate is None, expected a number above 0"),
        (lambda: pair(seconds=0), "seconds is 0, expected a number above 0"),
    ],
)
def test_what_a_factory_makes_is_checked(made, message, monkeypatch):
    module = types.ModuleType("my_pairs")
    module.load = made
    monkeypatch.setitem(sys.modules, "my_pairs", module)
    with pytest.raises(DataError, match=f"my_pairs:load.*{message}") as error:
        load_clap("my_pairs:load")
    assert "\n" not in str(error.value)


class Trained(torch.nn.Module):
    """A pair of one's own that is a module, as most are."""

    dim, sample_rate, seconds = 12, 8000, 1.0

    def __init__(self):
        super().__init__()
        self.rows = torch.nn.Parameter(torch.eye(12), requires_grad=False)

    def encode_text(self, texts):
        return self.rows[: len(texts)] * 1

    def encode_audio(self, waves):
        return self.rows[: len(waves)] * 1


def test_a_module_of_ones_own_keeps_its_precision():
    mine = ready(Trained(), "my:pair")
    assert faster(mine, "text") == "" and callable(mine.bfloat16)
    (row,) = text_encoder("clap", lambda: mine)(["a dog"])
    assert row.dtype == torch.float32 and mine.rows.dtype == torch.float32
