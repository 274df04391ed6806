import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import flac, gpt2, llama, make_samples, small_clap, write_samples
from torch.distributed import TCPStore

import config
import train
from clap import load_clap
from data import Source
from disk import DataError
from distributed import Ranks, log
from distributed.log import Meter
from distributed.watch import Heard, Watch
from encoders.checks import probe, same_encoder
from language.prompt import Template
from mats import MATS
from shards.embed import embed
from shards.writer import ShardWriter
from train import TrainConfig, lr_at

ALONE = Ranks(0, 1, torch.device("cpu"))
ROOT = Path(__file__).parent.parent
MODEL = dict(dim=16, prefix=4, tokens=4, width=32, layers=2, heads=2, llm_dtype="float32")
DATA = dict(build="", mixture={}, memory=60, clusters=5, batch_size=16, micro_batch=8, lanes=4)
LOOP = dict(steps=30, lr=3e-3, warmup=5, log_every=10, val_every=30, save_every=10, workers=1)
KIND = dict(template="{audio}{instruction}", max_answer=16, dtype="float32", compile=False)
PAPER = dict(variance=0.015, lora_targets="", lora_rank=8, lora_alpha=32, lora_dropout=0.1)
SMALL = MODEL | PAPER | DATA | LOOP | KIND | dict(device="cpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory, tokenizer):
    """Shards with vectors, without, with audio; a small LM of each architecture; a small CLAP."""
    root, clap = tmp_path_factory.mktemp("world"), small_clap(tokenizer)
    for part, n in (("train", 120), ("val", 16)):
        for name in ("farm", "zoo"):
            samples = make_samples(n, name, seed=len(part + name))
            write_samples(root / part / name, samples, per_shard=30, clap=clap)
    for name, make in (("gpt2", gpt2), ("llama", llama)):
        make(len(tokenizer), positions=256).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    clap.save_pretrained(root / "clap")
    write_samples(root / "live", make_samples(40), vectors=False)
    with ShardWriter(root / "audio") as writer:
        for i, s in enumerate(make_samples(24)):
            data = flac(i) if i != 5 else b"no sound"
            writer.write({**s, "text": None}, audio=("flac", data))
    return root


def arguments(world, out, **changes):
    shards = dict(train=str(world / "train"), val=str(world / "val"))
    models = dict(llm=str(world / "gpt2"), clap=str(world / "clap"))
    fields = SMALL | shards | models | dict(out=str(out)) | changes
    return [f"--{k}={v}" for k, v in fields.items()]


def lines_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def losses_of(out):
    return [line["loss"] for line in lines_of(out) if "loss" in line]


def weights(out):
    state = torch.load(out / "state.pt", weights_only=True)
    return state["step"], state["model"]


class Run(subprocess.Popen):
    """train.py as its users start it. It prints to a file, so that a full pipe cannot stop it."""

    def __init__(self, argv, processes=0, **env):
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115, open as long as the process
        super().__init__(
            [sys.executable, *(launch if processes else []), "train.py", *argv],
            cwd=ROOT,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        )

    def printed(self):
        self.log.seek(0)
        return self.log.read()

    def finish(self):
        code = self.wait()
        assert code == 0, f"{code}\n{self.printed()}"

    def until(self, there):
        """Waits until there() is true of the run; what it gives."""
        while not (found := there()):
            assert self.poll() is None, self.printed()
            time.sleep(0.002)
        return found


@pytest.fixture(scope="module")
def timed(world):
    """(folder, seconds) of an uninterrupted run in a process of its own."""
    out, began = world / "whole", time.monotonic()
    Run(arguments(world, out)).finish()
    return out, time.monotonic() - began


@pytest.fixture(scope="module")
def whole(timed):
    """An uninterrupted run in a process of its own, like those it is compared with."""
    return timed[0]


@pytest.fixture(scope="module")
def finished(world):
    """An uninterrupted run in this process."""
    train.main(arguments(world, world / "finished"))
    return world / "finished"


@pytest.mark.slow
def test_it_learns_and_says_so(whole, tokenizer):
    lines = [line for line in lines_of(whole) if "loss" in line]
    assert [line["step"] for line in lines] == [10, 20, 30]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines_of(whole)[-1]["val_loss"] < lines[0]["loss"]
    assert all(line["samples_per_s"] > 0 and line["tokens_per_s"] > 0 for line in lines)
    assert (whole / "loss.png").stat().st_size > 5000
    model = MATS.from_pretrained(whole / "model")
    step, trained = weights(whole)
    assert step == 30 and set(trained) == set(model.trainable())
    assert all(torch.equal(p, trained[n]) for n, p in model.trainable().items())
    assert model.santa.memory.shape == (60, 16) and model.santa.centers.shape == (5, 16)
    assert len(model.generate(torch.randn(2, 16), ["Generate audio caption."] * 2)) == 2


@pytest.mark.slow
def test_killed_anywhere_and_started_again_it_ends_bit_for_bit_the_same(world, whole):
    out = world / "killed"
    argv = arguments(world, out)
    process = Run(argv)
    process.until((out / "state.pt").exists)  # saved at step 10, 20, 30
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed_at = weights(out)[0]
    assert killed_at < 30
    Run(argv).finish()
    (_, a), (_, b) = weights(whole), weights(out)
    assert all(torch.equal(a[n], b[n]) for n in a)
    mine, theirs = (
        [(line["step"], line.get("loss"), line.get("val_loss")) for line in lines_of(o)]
        for o in (out, whole)
    )
    assert mine == theirs


@pytest.mark.slow
def test_a_validation_that_a_kill_prevented_is_made_up_for(world, finished, tmp_path):
    """States are saved before they are validated."""
    shutil.copytree(finished, tmp_path / "run")
    lines = lines_of(finished)
    kept = [json.dumps(line) + "\n" for line in lines if "val_loss" not in line]
    (tmp_path / "run/log.jsonl").write_text("".join(kept))
    argv = [a for a in arguments(world, finished) if not a.startswith("--out")]
    train.main([*argv, f"--out={tmp_path / 'run'}"])
    assert lines_of(tmp_path / "run") == lines


@pytest.mark.slow
def test_two_processes_are_one(world):
    """With two micro-batches an update in each, of which only the last is averaged at once."""
    one, two = world / "one", world / "two"
    Run(arguments(world, one, micro_batch=4)).finish()
    Run(arguments(world, two, micro_batch=4), processes=2).finish()
    (_, a), (_, b) = weights(one), weights(two)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4, msg=name)
    losses = [losses_of(out) for out in (one, two)]
    np.testing.assert_allclose(*losses, rtol=1e-4)  # of both, not of the first alone


def test_a_finished_run_is_left_alone_and_another_one_is_refused(world, finished, capsys):
    before = (finished / "state.pt").stat().st_mtime_ns
    train.main(arguments(world, finished))
    assert "is trained" in capsys.readouterr().out
    assert (finished / "state.pt").stat().st_mtime_ns == before
    with pytest.raises(SystemExit, match="another lr.*--fresh"):
        train.main(arguments(world, finished, lr=1e-2))


@pytest.mark.slow
def test_killed_between_the_last_state_and_its_model(world, finished, tmp_path):
    """The model that eval.py reads is of the last step, whenever the kill came."""
    shutil.copytree(finished, tmp_path / "run")
    argv = [a for a in arguments(world, finished) if not a.startswith("--out")]
    argv += [f"--out={tmp_path / 'run'}"]
    want = MATS.from_pretrained(finished / "model").trainable()
    for damage in (
        lambda: shutil.rmtree(tmp_path / "run/model"),
        lambda: (tmp_path / "run/model/step.json").write_text("20"),
    ):
        damage()
        train.main(argv)
        model = MATS.from_pretrained(tmp_path / "run/model")
        assert all(torch.equal(p, want[n]) for n, p in model.trainable().items())
        assert model.santa is not None


@pytest.mark.slow
def test_live_text_is_cached_text(world, tmp_path):
    """Encoding in the loop gives the loss that shards embedded beforehand give."""
    clap = load_clap(str(world / "clap"))
    embed(world / "live", tmp_path / "cached", clap, "small", progress=False)
    losses, short = [], dict(val="", steps=4, log_every=1, save_every=4, memory=20)
    for name, path in (("a", world / "live"), ("b", tmp_path / "cached")):
        train.main(arguments(world, tmp_path / name, train=str(path), **short))
        losses.append(losses_of(tmp_path / name))
    np.testing.assert_allclose(*losses, rtol=2e-3)  # cached vectors are float16


def memory_of(world, shards, tokenizer, clap, **changes):
    cfg = config.load(TrainConfig, arguments(world, "nowhere", **changes))
    model = SimpleNamespace(template=Template(cfg.template, tokenizer))
    objective = train.Objective(cfg, torch.device("cpu"), clap)
    run = dict(cfg=cfg, sources=[Source(shards)], weights=[1.0], model=model, objective=objective)
    return train.make_memory(SimpleNamespace(**run))


@pytest.mark.parametrize("source", ["live", "train/farm"])
def test_the_memory_keeps_the_text_of_each_vector(world, tokenizer, source):
    """Encoded once more, each text gives its own row, and no other row that has another text."""
    clap = load_clap(str(world / "clap"))
    santa = memory_of(world, world / source, tokenizer, clap, memory=37)
    same = [[a == b for b in santa.texts] for a in santa.texts]
    far = torch.cdist(clap.encode_text(santa.texts), santa.clean)  # cached vectors are float16
    assert len(santa.texts) == 37 and len(set(santa.texts)) > 10
    assert torch.equal(far < 2e-3, torch.tensor(same))


def test_a_vector_without_its_text_is_kept_without(world, tokenizer, tmp_path):
    with ShardWriter(tmp_path, vectors={"side": "text", "dim": 16}) as writer:
        for i, s in enumerate(make_samples(16)):
            writer.write({**s, "text": None if i else "A dog"}, vector=np.eye(16)[i])
    santa = memory_of(world, tmp_path, tokenizer, None, memory=64, clusters=2)
    known = santa.clean[:, 0] == 1
    assert 0 < known.sum() < 64
    assert santa.texts == ["A dog" if one else None for one in known]


@pytest.mark.slow
def test_audio_supervision(world, tmp_path, capfd):
    short = dict(val="", steps=6, save_every=6, log_every=6)
    audio = dict(train=str(world / "audio"), supervision="audio")
    train.main(arguments(world, tmp_path, **audio, **short))
    assert "farm.5" in capfd.readouterr().err  # the clip that is no sound is named
    line = lines_of(tmp_path)[-1]
    assert line["broken"] >= 1 and np.isfinite(line["loss"])
    assert MATS.from_pretrained(tmp_path / "model").santa is None  # nothing to bridge
    with pytest.raises(SystemExit, match="supervision=audio"):
        train.main(arguments(world, tmp_path / "x", supervision="audio"))  # vectors of texts


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mats_gpt2", "mats_llama", "mats_audio"])
def test_the_papers_configs_run_with_small_weights(world, tmp_path, name):
    paper = config.load(TrainConfig, [name])
    llm = world / ("gpt2" if name == "mats_gpt2" else "llama")
    shards = world / ("audio" if name == "mats_audio" else "train")
    short = dict(steps=2, save_every=2, log_every=1, val="", micro_batch=paper.batch_size // 4)
    argv = arguments(world, tmp_path, llm=str(llm), train=str(shards), **short)
    own = ("template", "batch_size", "warmup", "lr", "max_answer")  # the config's are kept
    train.main([name] + [a for a in argv if a[2:].split("=")[0] not in own])
    last = lines_of(tmp_path)[-1]
    assert last["step"] == 2 and np.isfinite(last["loss"])
    schedule = paper.batch_size, paper.lr, paper.schedule, paper.warmup
    if name == "mats_gpt2":  # section 4.1
        assert schedule == (128, 5e-5, "linear", 2000)
    else:
        assert schedule == (96, 3e-5, "cosine", 3000)
    assert (paper.steps, paper.variance, paper.prefix, paper.layers) == (90_000, 0.015, 40, 8)
    lora = paper.lora_rank, paper.lora_alpha / paper.lora_rank, paper.lora_dropout
    assert lora == (8, 4, 0.1) and (paper.memory, paper.clusters) == (5172, 100)


def test_learning_rate():
    c = TrainConfig(steps=110, warmup=10, lr=1.0, warmup_from=0.0)
    assert [lr_at(s, c) for s in (0, 5, 10, 60, 110)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    c.schedule = "cosine"
    want = [1, 0.5 + 0.5 * 0.5**0.5, 0.5, 0]
    assert [lr_at(s, c) for s in (10, 35, 60, 110)] == pytest.approx(want)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--micro_bach=3"], "did you mean 'micro_batch'"),
        (["mats_gtp2"], "did you mean 'mats_gpt2'"),
        (["--lr=fast"], "expected float"),
        (["--steps=1.5"], "expected int"),
        (["--strict=1"], "expected bool"),
        (["--steps=True"], "expected int"),
        (["lr=3"], "no config/lr=3"),
        (["tiny", "lr=3"], "--field=value"),
    ],
)
def test_wrong_settings_are_refused_by_name(argv, message):
    with pytest.raises(SystemExit, match=message):
        config.load(TrainConfig, argv)


@pytest.mark.parametrize(
    "argv, message",
    [
        ("--log_every=0", "log_every=0: expected 1 or more"),
        ("--together=0", "together=0: expected 1 or more"),
        ("--schedule=step", "schedule='step': expected linear or cosine"),
        ("--supervision=Audio", "supervision='Audio': expected text or audio"),
        ("--batch_size=100", "batch_size=100 is not a multiple of micro_batch="),
        ("--timeout=0", "timeout=0: expected minutes"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_starts(argv, message):
    with pytest.raises(SystemExit, match=message):
        train.main([argv])


def test_settings_come_from_file_then_command_line():
    argv = ["mats_gpt2", "--lr=1e-4", "--steps=7", "--mixture={'a': 2}", "--compile=False"]
    c = config.load(TrainConfig, [*argv, "--fresh"])
    assert (c.lr, c.steps, c.mixture, c.batch_size) == (1e-4, 7, {"a": 2}, 128)
    assert c.fresh and not c.compile
    assert config.load(TrainConfig, ["--lr=1"]).lr == 1.0
    assert asdict(config.load(TrainConfig, []))["width"] == 128


def test_help_prints_every_field_with_its_comment(capsys):
    with pytest.raises(SystemExit) as end:
        config.load(TrainConfig, ["mats_llama", "--help"])
    lines = {line.split("=")[0].strip(): line for line in capsys.readouterr().out.splitlines()}
    assert end.value.code is None
    for name in asdict(TrainConfig()):
        assert re.search(r"=.+  \S.*", lines[f"--{name}"]), f"{name} has no comment"
    assert "3e-05" in lines["--lr"] and "the highest learning rate" in lines["--lr"]


@pytest.mark.slow
@pytest.mark.parametrize("bad", [{12}, {3, 4, 5, 6, 20}])
def test_an_update_that_is_not_finite_is_skipped_and_counted(world, tmp_path, monkeypatch, bad):
    """Neither the weights nor the optimizer's moments see it."""
    real = train.add_noise

    def noise(z, variance, generator):
        made = real(z, variance, generator)
        return made * float("nan") if generator.initial_seed() in bad else made

    monkeypatch.setattr(train, "add_noise", noise)
    short = dict(batch_size=8, steps=24, val="", save_every=24, log_every=4)
    train.main(arguments(world, tmp_path / "a", **short))
    assert lines_of(tmp_path / "a")[-1]["skipped"] == len(bad)
    assert np.isfinite(losses_of(tmp_path / "a")).all()
    assert all(torch.isfinite(t).all() for t in weights(tmp_path / "a")[1].values())
    state = torch.load(tmp_path / "a/state.pt", weights_only=True)["optimizer"]["state"]
    assert {int(s["step"]) for s in state.values()} == {24 - len(bad)}


@pytest.mark.slow
def test_many_in_a_row_stop_the_run_and_leave_the_last_good_state(world, tmp_path, monkeypatch):
    real = train.add_noise

    def noise(z, variance, generator):
        made = real(z, variance, generator)
        return made * float("nan") if generator.initial_seed() >= 12 else made

    monkeypatch.setattr(train, "add_noise", noise)
    short = dict(batch_size=8, steps=40, val="", save_every=10, log_every=2, patience=4)
    argv = arguments(world, tmp_path, **short)
    with pytest.raises(SystemExit, match="the last 4 updates before step 16 were skipped"):
        train.main(argv)
    step, trained = weights(tmp_path)
    assert step == 10 and all(torch.isfinite(t).all() for t in trained.values())


def test_the_watch_says_where_each_rank_stands():
    watch = Watch(1, Ranks(1, 3, torch.device("cpu")), "")
    watch.tick, watch.heard = 10, [Heard("5 9", 9), Heard("5 9", 0), Heard("1200 2", 2)]
    assert watch.report() == (
        "; rank 0 finished update 5; rank 1 finished update 5; "
        "rank 2 finished update 1,200 and no longer answers"
    )


@pytest.mark.slow
def test_a_rank_that_hangs_is_named(world, timed, tmp_path):
    """The other ends and says what to do, also where the one that hangs hosts their store."""
    # on no machine does one update last as long as a whole run, with its start
    minutes = round(timed[1] / 60, 4)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    argv = arguments(world, tmp_path, steps=100_000, timeout=minutes, val="")
    group = dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    ranks = [Run(argv, RANK=str(rank), LOCAL_RANK=str(rank), **group) for rank in range(2)]
    try:
        ranks[0].until((tmp_path / "model" / "step.json").exists)
        store = TCPStore("127.0.0.1", int(port), is_master=False)

        def told(rank):
            """The update and the tick that a rank has told the other."""
            return [int(number) for number in store.get(f"watch {rank}").split()]

        ranks[0].until(lambda: told(0)[0] > 0)
        tick = told(1)[1]
        ranks[1].until(lambda: told(1)[1] > tick + 1)  # it has read what the other told
        ranks[0].send_signal(signal.SIGSTOP)
        assert ranks[1].wait() == 1
    finally:
        for r in ranks:
            r.kill()
    stand = r"rank 0 finished update [1-9]\d* and no longer answers; rank 1 finished update \d+\."
    said = rf"no update has been finished for {minutes:g} minutes; {stand}.*same command resumes"
    assert re.search(said, ranks[1].printed())
    assert all(torch.isfinite(t).all() for t in weights(tmp_path)[1].values())


@pytest.mark.slow
def test_one_of_several_that_fails_ends_at_once(world, tmp_path):
    diverging = dict(steps=100_000, val="", lr=1e30, patience=3, log_every=5)
    run = Run(arguments(world, tmp_path, **diverging), processes=2)
    assert run.wait() == 1
    assert "updates before step" in run.printed() and "were skipped" in run.printed()


@pytest.mark.slow
def test_a_reader_that_dies_is_named(world, tmp_path):
    run = Run(arguments(world, tmp_path, steps=100_000, val=""))
    run.until((tmp_path / "state.pt").exists)
    readers = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    assert len(readers) == 1
    os.kill(int(readers[0]), signal.SIGKILL)
    assert run.wait() == 1
    printed = run.printed()
    assert re.search(r"a reading process died, .*lower --workers or --lanes.*Killed", printed), (
        printed
    )


def test_out_of_memory_says_what_to_lower(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "add_noise", lambda *_: torch.empty(1 << 60))
    with pytest.raises(SystemExit, match="out of memory: lower --micro_batch"):
        train.main(arguments(world, tmp_path, val="", workers=0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_compiled_in_bfloat16_it_learns_what_a_cpu_learns(world, tmp_path):
    fast = dict(compile=True, dtype="bfloat16", llm_dtype="bfloat16")
    for name, more in (("cpu", {}), ("cuda", fast)):
        still = dict(device=name, lora_dropout=0.0, variance=0.0)
        train.main(arguments(world, tmp_path / name, **still, **more))
    np.testing.assert_allclose(*(losses_of(tmp_path / n) for n in ("cpu", "cuda")), rtol=0.03)


FREE = """build skip_missing patience timeout device compile workers log_every val_every save_every
    fresh strict out val train"""  # train: the data count by their hashes


@pytest.mark.parametrize("name", asdict(TrainConfig()))
def test_a_run_is_resumed_with_no_other_field_that_matters(tmp_path, name):
    cfg = TrainConfig()
    state = {"step": 1, "identity": train.identity_of(cfg, []), "model": {}, "optimizer": {}}
    torch.save(state, tmp_path / "state.pt")
    value = getattr(cfg, name)
    others = {bool: not value, str: "another", dict: {"a": 1}}
    setattr(cfg, name, others[type(value)] if type(value) in others else value + 1)
    identity = train.identity_of(cfg, [])
    if name in FREE.split():
        assert train.resume(tmp_path, identity, fresh=False)["step"] == 1
    else:
        with pytest.raises(SystemExit, match=f"another {name}"):
            train.resume(tmp_path, identity, fresh=False)


@pytest.mark.parametrize("content", [b"", b"half", b"PK half", None])
def test_a_damaged_state_is_named(tmp_path, content):
    torch.save({"step": 1, "identity": {}, "model": {}}, tmp_path / "state.pt")
    if content is not None:
        whole = (tmp_path / "state.pt").read_bytes()
        half = whole[: len(whole) // 2]
        (tmp_path / "state.pt").write_bytes(half if content == b"half" else content)
    with pytest.raises(DataError, match="state.pt .*--fresh") as error:
        train.resume(tmp_path, {}, fresh=False)
    assert "\n" not in str(error.value)
    assert train.resume(tmp_path, {}, fresh=True) is None


def test_a_model_without_its_state_is_not_replaced(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(DataError, match="no state.pt to resume from.*--fresh"):
        train.resume(tmp_path, {}, fresh=False)
    assert train.resume(tmp_path, {}, fresh=True) is None


def test_one_run_at_a_time_writes_to_a_folder(tmp_path):
    def other(reply):
        try:
            train.lock_folder(tmp_path / "run").close()
            reply.put("free")
        except DataError as error:
            reply.put(str(error))

    def ask():
        reply = multiprocessing.get_context("fork").Queue()
        child = multiprocessing.get_context("fork").Process(target=other, args=(reply,))
        child.start()
        said = reply.get()
        child.join()
        return said

    with train.lock_folder(tmp_path / "run"):
        assert "another run is writing" in ask()
    assert ask() == "free"


@pytest.mark.parametrize(
    "bad", ["dtype=half", "llm_dtype=float16", "steps=-5", "steps=0", "workers=-1", "memory=-1"]
)
def test_values_that_mean_nothing_are_refused(bad):
    name, _, value = bad.partition("=")
    with pytest.raises(SystemExit, match=f"{name}='?{value}'?: expected"):
        train.main([f"--{bad}", "--build="])


def test_a_clap_that_is_a_folder_must_be_there(world, tmp_path, capsys):
    """A name on the hub that cannot be had is said; the vectors are there, so training goes on."""
    argv = arguments(world, tmp_path / "run", steps=1, val="", memory=0)
    gone = str(world / "no" / "clap")
    with pytest.raises(SystemExit, match="no/clap"):
        train.main([*argv, f"--clap={gone}"])
    train.main([*argv, "--clap=someone/clap"])
    assert "taken for those of someone/clap, which cannot be loaded" in capsys.readouterr().out


def test_lines_that_are_none_do_not_stop_a_run(tmp_path, capsys):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"st\n[2]\n{"step": 3}\n{"step"')
    assert train.log.read(tmp_path) == [{"step": 1}, {"step": 3}]
    said = capsys.readouterr().err
    assert "line 2" in said and "line 3" in said and "line 4" not in said


def test_a_readers_death_is_told_wherever_it_is_noticed():
    """torch raises it in the middle of whatever runs: here in a parser that wraps every error."""
    try:
        try:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
        except RuntimeError as error:
            raise SyntaxError("Killed.") from error
    except SyntaxError as error:
        assert "a reading process died" in train.explain(error)
    assert train.explain(SyntaxError("Killed.")) is None


def test_a_reading_processs_error_is_its_last_line():
    text = "Caught DataError in worker 0.\nOriginal Traceback ...\ndisk.DataError: a.tar is empty\n"
    assert train.explain(DataError(text)) == "a.tar is empty"


def test_models_and_shards_that_moved_are_the_same_run(world, tmp_path):
    """And the same folder with another weight is another run."""
    cfg = config.load(TrainConfig, arguments(world, tmp_path))
    sources, _ = train.find_sources(cfg.train)
    before = train.identity_of(cfg, sources)
    for name in ("gpt2", "clap", "train"):
        shutil.copytree(world / name, tmp_path / "elsewhere" / name)
    for key in ("llm", "clap", "train"):
        setattr(cfg, key, str(tmp_path / "elsewhere" / Path(getattr(cfg, key)).name))
    sources, _ = train.find_sources(cfg.train)
    assert train.identity_of(cfg, sources) == before
    for name in ("gpt2", "clap"):
        file = tmp_path / "elsewhere" / name / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-2] ^= 1
        file.write_bytes(content)
    after = train.identity_of(cfg, sources)
    assert {name for name in before if before[name] != after[name]} == {"llm", "clap"}


@pytest.mark.slow
def test_vectors_of_another_encoder_are_refused(world, tmp_path, tokenizer):
    """Another folder, and the same folder trained again, whose name says nothing."""
    shutil.copytree(world / "clap", tmp_path / "clap")
    argv = arguments(world, tmp_path / "run", clap=tmp_path / "clap", steps=1, val="")
    train.main(argv)  # a copy is no other encoder
    other = small_clap(tokenizer)
    for projection in (other.text_projection, other.audio_projection):
        torch.nn.init.normal_(projection.linear1.weight)
    other.save_pretrained(tmp_path / "clap")
    with pytest.raises(SystemExit, match="farm holds vectors of another encoder.*shards.embed"):
        train.main([*argv, "--fresh"])
    audio = [*argv, f"--train={world / 'audio'}", "--supervision=audio", "--fresh"]
    embed(world / "audio", tmp_path / "heard", small_clap(tokenizer), "x", "audio", progress=False)
    with pytest.raises(SystemExit, match="heard holds vectors of another encoder"):
        train.main([*audio, f"--train={tmp_path / 'heard'}"])
    argv[argv.index(f"--clap={tmp_path / 'clap'}")] = f"--clap={world / 'clap'}"
    train.main([*audio, f"--train={tmp_path / 'heard'}", f"--clap={world / 'clap'}"])
    model = MATS.from_pretrained(tmp_path / "run" / "model")
    assert same_encoder(model.probe, probe(small_clap(tokenizer)))


def test_validation_lends_each_sample_anothers_vector(world, tmp_path):
    samples = [s | {"text": f"{s['text']} {i}"} for i, s in enumerate(make_samples(32))]
    write_samples(tmp_path / "val", samples, clap=load_clap(str(world / "clap")))
    cfg = config.load(TrainConfig, arguments(world, "nowhere", micro_batch=5, val=tmp_path / "val"))
    sources, _ = train.find_sources(cfg.val)
    batches = train.held_out(cfg, sources, train.build_model(cfg, ALONE.device, None), ALONE)
    own = [text for batch in batches for text in batch["text"]]
    other = [text for batch in batches for text in batch["other"]["text"]]
    vectors = torch.cat([batch["z"] for batch in batches])
    lent = torch.cat([batch["other"]["z"] for batch in batches])
    assert sorted(own) == sorted(other) and len(own) == 32
    at = {text: i for i, text in enumerate(own)}
    assert len(at) == 32 and not any(a == b for a, b in zip(own, other))
    for text, z in zip(other, lent):
        torch.testing.assert_close(z, vectors[at[text]])


def test_broken_samples_of_the_validation_are_named_once_for_all_ranks(world, monkeypatch, capsys):
    def read(source, broken):
        broken += [f"sample {i}" for i in range(30)]
        return make_samples(4)

    monkeypatch.setattr(train, "read_source", read)
    cfg = config.load(TrainConfig, arguments(world, "nowhere"))
    model = train.build_model(cfg, ALONE.device, None)
    capsys.readouterr()
    for rank in (0, 1):
        train.held_out(cfg, [None], model, Ranks(rank, 2, ALONE.device))
    said = capsys.readouterr().err.splitlines()
    assert said == [*(f"broken: sample {i}" for i in range(20)), "broken: 10 more"]


@pytest.mark.slow
@pytest.mark.parametrize("listens", [True, False])
def test_a_model_that_does_not_listen_is_noticed(world, tmp_path, capsys, monkeypatch, listens):
    """A mapper that gives the same tokens for every vector; and a model that knows its samples."""

    def loss(objective, net, batch, m, heard=None):
        return torch.tensor(2.0 if heard is None or heard is batch or not listens else 3.0)

    argv = arguments(world, tmp_path, steps=1, val_every=1)
    validate = train.validate
    monkeypatch.setattr(
        train,
        "validate",
        lambda run: (monkeypatch.setattr(train.Objective, "__call__", loss), validate(run))[1],
    )
    train.main(argv)
    said, line = capsys.readouterr().out, lines_of(tmp_path)[-1]
    assert line["val_loss"] == 2.0 and line["val_loss_other"] == (3.0 if listens else 2.0)
    assert ("does not listen" in said) == (not listens)


@pytest.mark.slow
def test_long_texts_are_named_in_training(world, tmp_path, capsys):
    samples = [s | {"answer": "moo " * 40} if i == 3 else s for i, s in enumerate(make_samples(16))]
    write_samples(tmp_path / "long", samples, clap=load_clap(str(world / "clap")))
    argv = arguments(world, tmp_path / "run", train=tmp_path / "long", val="", steps=2)
    train.main(argv)
    assert "farm -farm.3: its answer" in capsys.readouterr().err.replace("broken: ", "")
    with pytest.raises(SystemExit, match="cut to 16"):
        train.main([*argv, "--fresh", "--strict"])


@pytest.mark.slow
def test_a_resumed_log_has_no_line_twice(world, finished, tmp_path):
    """The lines after the saved state are dropped, and written again."""
    shutil.copytree(finished, tmp_path / "run")
    state = torch.load(tmp_path / "run/state.pt", weights_only=True)
    torch.save(state | {"step": 20}, tmp_path / "run/state.pt")
    argv = [a for a in arguments(world, finished) if not a.startswith("--out")]
    train.main([*argv, f"--out={tmp_path / 'run'}"])
    assert [line["step"] for line in lines_of(tmp_path / "run")] == [10, 20, 30, 30]


def test_only_matrices_decay(finished):
    model = MATS.from_pretrained(finished / "model")
    matrices, vectors = train.build_optimizer(TrainConfig(), model, None).param_groups
    assert {p.ndim for p in vectors["params"]} == {1} and vectors["weight_decay"] == 0
    assert min(p.ndim for p in matrices["params"]) == 2 and matrices["weight_decay"] == 0.05


def test_several_ranks_log_their_mean(monkeypatch):
    """Two ranks with the same two updates, of which one was skipped."""
    ranks = Ranks(0, 2, torch.device("cpu"))
    ranks.sum = lambda x: 2 * x
    meter = Meter(ranks)
    monkeypatch.setattr(log, "time", SimpleNamespace(time=lambda: meter.since + 2))
    meter.add_batch({"ids": torch.zeros(4, 8), "answer": torch.zeros(3), "broken": []})
    meter.add_update(torch.tensor(2.0), torch.tensor(True))
    meter.add_update(torch.tensor(float("nan")), torch.tensor(False))
    model = SimpleNamespace(flops=lambda *_: 1.0)
    optimizer = SimpleNamespace(param_groups=[{"lr": 1.0}])
    run = SimpleNamespace(cfg=TrainConfig(), model=model, optimizer=optimizer)
    line = meter.line(2, torch.tensor(1.0), run)
    assert line["loss"] == 2.0 and line["skipped"] == 1 and meter.in_a_row == 1
    assert line["samples_per_s"] == 4 and line["tokens_per_s"] == 2 * (4 * 40 + 32) / 2
    resumed = Meter(ranks, [{"loss": 1, "broken": 3, "skipped": 2}, {"val_loss": 1.0}])
    assert (resumed.broken, resumed.skipped) == (3, 2)


@pytest.mark.slow
def test_noise_of_validation_and_texts_of_the_memory_have_seeds_of_their_own(
    world, tmp_path, monkeypatch, capsys
):
    noise, plan, noises, plans = train.add_noise, train.Plan, [], []

    def add_noise(z, variance, generator):
        noises.append(generator.initial_seed())
        return noise(z, variance, generator)

    def make_plan(sources, weights, batch, seed, *more):
        plans.append(seed)
        return plan(sources, weights, batch, seed, *more)

    monkeypatch.setattr(train, "add_noise", add_noise)
    monkeypatch.setattr(train, "Plan", make_plan)
    train.main(arguments(world, tmp_path, steps=2, val_every=2, save_every=2, log_every=2))
    assert sorted(plans) == [0, 1]
    assert sorted(noises[:4]) == [0, 1, 2, 3]
    # each batch of the validation twice: with its own vectors, and with others
    assert noises[4::2] == noises[5::2] and len(set(noises[4::2])) == len(noises[4::2]) == 4
    left = (1 + 16 * 0.015) ** -0.5
    assert (
        f"noise of variance 0.015, which leaves a cosine of {left:.2f}" in capsys.readouterr().out
    )


@pytest.mark.parametrize("change", [{"dim": 32}, {"supervision": "audio"}])
def test_vectors_of_another_size_or_side_are_refused(world, change):
    cfg = config.load(TrainConfig, arguments(world, "nowhere", **change))
    with pytest.raises(DataError, match="16-d vectors of its text, made with test; this run wants"):
        train.load_encoder(cfg, [Source(world / "train" / "farm")], ALONE)


def test_vectors_that_nothing_can_be_compared_with_are_taken_and_named(world, tmp_path, capsys):
    """Vectors of audio that is not in the shards, by an encoder that index.json does not name."""
    with ShardWriter(tmp_path, vectors={"dim": 16, "side": "audio"}) as writer:
        for sample in make_samples(3):
            writer.write(sample, vector=torch.ones(16))
    cfg = config.load(TrainConfig, arguments(world, "nowhere", supervision="audio"))
    clap, found = train.load_encoder(cfg, [Source(tmp_path)], ALONE)
    assert clap is None and same_encoder(found, probe(load_clap(cfg.clap)))
    assert "no sample holds the audio that its vector was made of" in capsys.readouterr().out
    with pytest.raises(DataError, match="made with an encoder without a name"):
        train.load_encoder(replace(cfg, dim=8), [Source(tmp_path)], ALONE)


def test_each_answer_token_of_the_validation_counts_the_same():
    def batch(tokens, rows, loss):
        made = {"answer": torch.zeros(tokens), "ids": torch.zeros(rows, 8), "loss": loss}
        return made | {"other": {"loss": 2 * loss}}

    model = SimpleNamespace(eval=lambda: None, train=lambda: None, forward=None)
    run = SimpleNamespace(model=model, ranks=ALONE, validation=[batch(1, 5, 3), batch(3, 5, 7)])
    run.objective = lambda net, batch, m, heard: heard["loss"]
    assert train.validate(run) == (6, 12)


@pytest.mark.slow
def test_time_for_validation_and_saving_is_not_training_time(world, tmp_path, monkeypatch):
    """A clock that goes on by 1 s in an update, by 1,000 s in a validation."""
    clock, update = [0.0], train.update

    def updated(*arguments):
        clock[0] += 1
        return update(*arguments)

    def checked(run, step):
        clock[0] += 1000

    for module in (train, log):
        monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: clock[0]))
    monkeypatch.setattr(train, "update", updated)
    monkeypatch.setattr(train, "check", checked)
    train.main(arguments(world, tmp_path, steps=4, log_every=2, val_every=1))
    assert [line["samples_per_s"] for line in lines_of(tmp_path)] == [16.0, 16.0]


def test_a_model_says_what_it_was_trained_on_and_keeps_its_card(world, tmp_path):
    short = dict(steps=2, save_every=2, memory=0, val="", batch_size=8)
    mixture = {"farm": 3.0, "zoo": 1.0}
    train.main(arguments(world, tmp_path, mixture=mixture, **short))
    (tmp_path / "model/README.md").write_text("Mine.")
    told = (tmp_path / "model/training.json").read_text()
    assert str(world) not in told and str(tmp_path) not in told
    told = json.loads(told)
    assert told["step"] == 2 and told["config"]["variance"] == 0.015
    sources = [(s["name"], s["samples"], s["share"]) for s in told["sources"]]
    assert sources == [("farm", 120, 0.75), ("zoo", 120, 0.25)]
    assert MATS.from_pretrained(tmp_path / "model").history == told
    train.main(arguments(world, tmp_path, mixture=mixture, fresh=True, **short))
    assert (tmp_path / "model/README.md").read_text() == "Mine."
