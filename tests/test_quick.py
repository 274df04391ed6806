"""`train.py quick`, docs/quick.ipynb: from an empty folder to a table, against a local server."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import soundfile as sf
import torch
import yaml
from annotations import HEAD, made
from conftest import llama
from hub_server import Hub
from places import ARCHIVE, Places, official, own_catalog, publish, status, zipped
from test_docs import check_pip
from topics import TOPICS

from config.quick import config
from disk import DataError, locked
from mats import MATS
from shards import quick
from shards.fetch import Incomplete

ROOT = Path(__file__).parents[1]
LLM = config["llm"]
SIZES = "--dim=31 --width=32 --heads=2 --layers=1 --steps=4 --batch_size=8 --micro_batch=8"
CLAP = "--clap=topics:tones"
OPTIONS = f"{CLAP} {SIZES} --memory=40 --clusters=4 --workers=1"
WORDS = ("loudly", "softly", "twice", "again", "far away", "near a house", "at night", "in a hall")


# --- the public data, small -----------------------------------------------------------------


def table(header: str, rows) -> bytes:
    return "\n".join([header, *map(str, rows), ""]).encode()


def caption(i: int) -> str:
    return f"A {TOPICS[i % 5]} sounds {WORDS[i % 8]} number {i}"


def clotho(start: int) -> bytes:
    head = "file_name," + ",".join(f"caption_{i}" for i in range(1, 6))
    clips = range(start, start + 8)
    rows = [f"{i}.wav," + ",".join(caption(100 * i + j) for j in range(5)) for i in clips]
    return table(head, rows)


def questions(start: int) -> bytes:
    rows = [f"{i}.wav,Is there a dog?,yes,yes" for i in range(start, start + 8) for _ in range(3)]
    return table("file_name,QuestionText,answer,confidence", rows)


def audiocaps(start: int) -> bytes:
    rows = [f"{i},{i:011d},0,{caption(i)}" for i in range(start, start + 30)]
    return HEAD.encode() + table("", rows)[1:]


def tone(label: int, seed: int) -> bytes:
    """A wav whose frequency tells the topic."""
    noise = np.random.default_rng(seed).normal(size=8000) * 0.02
    wave = np.sin(2 * np.pi * 500 * (label + 1) * np.arange(8000) / 8000) * 0.5 + noise
    buffer = io.BytesIO()
    sf.write(buffer, wave, 8000, format="WAV")
    return buffer.getvalue()


def esc50() -> dict[str, bytes]:
    rows, members = [], {}
    for i in range(15):
        name = f"1-{1000 + i}-A-{i % 5}.wav"
        rows.append(f"{name},1,{i % 5},{TOPICS[i % 5]},False,{1000 + i},A")
        members[f"ESC-50-master/audio/{name}"] = tone(i % 5, i)
    members["esc50.csv"] = table("filename,fold,target,category,esc10,src_file,take", rows)
    return members


def serve(places: Places, hub: Hub) -> None:
    """Puts small tables in the official forms to their official places."""
    for split, start in (("train", 0), ("val", 1000), ("test", 2000)):
        places.put(
            official(f"github:cdjkim/audiocaps/master/dataset/{split}.csv"), audiocaps(start)
        )
    for split, start in (("development", 0), ("validation", 10), ("evaluation", 20)):
        address = official(f"zenodo:4783391/clotho_captions_{split}.csv")
        places.put(address, clotho(start))
    for split, start in (("train", 0), ("val", 10), ("test", 20)):
        places.put(official(f"zenodo:6473207/clotho_aqa_{split}.csv"), questions(start))
    clips = [
        {"filename": f"audio/{i}.wav", "annotations": [{"sentence": caption(300 + i)}]}
        for i in range(10)
    ]
    places.put(official("zenodo:5114771/MACS.yaml"), yaml.safe_dump({"files": clips}).encode())
    rows = [f"{i},{i},{caption(400 + i)},True,00/{i}.mp3" for i in range(10)]
    head = "caption_id,track_id,caption,is_valid_subset,path"
    places.put(official("zenodo:10072001/song_describer.csv"), table(head, rows))
    rows = [f"{3000 + i:011d},0,10,{caption(500 + i)},{i % 2 == 0}" for i in range(20)]
    head = "ytid,start_s,end_s,caption,is_audioset_eval"
    publish(hub, "google/MusicCaps", {"musiccaps-public.csv": table(head, rows)})
    files = esc50()
    csv = files.pop("esc50.csv")
    places.put(official("github:karolpiczak/ESC-50/master/meta/esc50.csv"), csv)
    places.files[ARCHIVE] = zipped(files | {"ESC-50-master/meta/esc50.csv": csv})
    places.moved["github.com/karolpiczak/ESC-50/archive/refs/heads/master.zip"] = ARCHIVE
    head, rows = "fname,labels,mids", [f"{i},{TOPICS[i % 5].title()},/m/{i % 5}" for i in range(10)]
    truth = {"dev": table(head, rows), "eval": table(head, [f"9{row}" for row in rows])}
    truth["vocabulary"] = table("", [f"{i},{t.title()},/m/{i}" for i, t in enumerate(TOPICS)])[1:]
    members = {f"FSD50K.ground_truth/{name}.csv": data for name, data in truth.items()}
    places.put(official("zenodo:4060432/FSD50K.ground_truth.zip"), zipped(members))
    place = "github:hche11/VGGSound/master/data"
    rows = [f"{7000 + i:011d},{i},{TOPICS[i % 5]},train" for i in range(10)]
    places.put(official(f"{place}/vggsound.csv"), table("", rows)[1:])
    places.put(official(f"{place}/test.csv"), b"00000008000_000001.mp4,dog\n")
    rows = [f"{topic},2,animals" for topic in TOPICS]
    places.put(official(f"{place}/stat.csv"), table("", rows)[1:])
    name = "Task-4-Large-scale-weakly-supervised-sound-event-detection-for-smart-cars"
    place, rows = f"github:ankitshah009/{name}/master", [f"{'a' * 11}_0_10.wav\t0\t10\tTrain horn"]
    list_of = b"Class_ID Confidence Label\n/m/1\t1\tTrain horn\n"
    for path, data in (
        ("groundtruth_weak_label_training_set.csv", table("", rows)[1:]),
        ("groundtruth_release/groundtruth_weak_label_evaluation_set.csv", table("", rows)[1:]),
        ("sound_event_list_17_classes.txt", list_of),
    ):
        places.put(official(f"{place}/{path}"), data)


@pytest.fixture(scope="module")
def world(tmp_path_factory, tokenizer):
    """The places, the hub with a tiny language model, and the environment that asks them."""
    places, hub, folder = Places(), Hub(), tmp_path_factory.mktemp("world")
    serve(places, hub)
    (folder / "catalog.yaml").write_text(yaml.safe_dump(own_catalog(places, hub), width=10_000))
    llama(len(tokenizer), positions=512).save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")
    files = {path.name: path.read_bytes() for path in (folder / "llm").iterdir()}
    publish(hub, LLM, files, kind="")
    own = {
        "MATS_CATALOG": str(folder / "catalog.yaml"),
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
    }
    proxies = {"http_proxy", "https_proxy", "all_proxy", "hf_hub_offline"}
    env = {k: v for k, v in os.environ.items() if k.lower() not in proxies} | own
    yield SimpleNamespace(places=places, hub=hub, env=env)
    places.close()
    hub.close()
    assert not places.unknown and not hub.unknown


def start(world, folder: Path, *more: str, program=("train.py",)) -> subprocess.Popen:
    script, *rest = program
    command = [sys.executable, str(ROOT / script), *rest, "quick", *OPTIONS.split(), *more]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=world.env, stdout=pipe, stderr=pipe, text=True)


def train(world, folder: Path, *more: str) -> SimpleNamespace:
    folder.mkdir(exist_ok=True)
    process = start(world, folder, *more)
    out, err = process.communicate(timeout=240)
    return SimpleNamespace(status=process.returncode, out=out, err=err)


def shards(folder: Path) -> dict[str, bytes]:
    found = sorted(folder.glob("data/quick/*/*/*.tar"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("trained")
    run = train(world, folder)
    assert run.status == 0, run.err
    assert [int(n) for n in re.findall(r"quick: (\d) of 4", run.out)] == [1, 2, 3, 4]
    return folder


# --- tests ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_from_nothing_to_a_model(trained):
    found = {path.name: made(path) for path in sorted((trained / "data/quick/train").iterdir())}
    assert found.keys() == set(config["mixture"]) == set(quick.TRAIN)
    texts = {row["text"] for rows in found.values() for row in rows}
    assert {caption(i) for i in range(30)} <= texts  # AudioCaps'
    tested = {caption(i) for i in (*range(2000, 2030), 2003)}
    assert not texts & tested and not texts & {caption(i) for i in range(1000, 1030)}
    for row in (row for rows in found.values() for row in rows):
        assert row["vector"].shape == (31,) and abs(np.linalg.norm(row["vector"]) - 1) < 1e-2
    for name in quick.LABELS:
        answers = {row["answer"].lower() for row in found[name]}
        assert answers == set(TOPICS)
        assert all(row["answer"].lower() in row["text"].lower() for row in found[name])
    val = {path.name: made(path) for path in (trained / "data/quick/val").iterdir()}
    assert {name: len(rows) for name, rows in val.items()} == {
        "audiocaps_val": 30,
        "clotho_val": 40,
    }
    files = {path.name for path in (trained / "out/quick/model").iterdir()}
    assert {"config.json", "mapper.safetensors", "santa.safetensors"} <= files
    lines = (trained / "out/quick/log.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 4


@pytest.mark.slow
def test_a_second_start_asks_nobody(world, trained):
    before, asked = shards(trained), len(world.places.requests)
    run = train(world, trained)
    assert run.status == 0 and "is trained" in run.out
    assert shards(trained) == before and len(world.places.requests) == asked


@pytest.mark.slow
def test_a_place_that_is_gone_and_a_kill(world, trained, tmp_path):
    """Each start goes on from what is whole; in the end all is as if nothing had happened."""
    macs = "zenodo.org/records/5114771/files/MACS.yaml"
    world.places.faults[macs] = iter([status(404)])
    run = train(world, tmp_path)
    assert run.status == 1 and run.err.strip().count("\n") < 12
    for part in ("macs/MACS.yaml", "404", "zenodo.org/records/5114771;", "--skip_missing"):
        assert part in run.err, run.err
    asked = len(world.places.asked("audiocaps"))
    process = start(world, tmp_path)
    while process.poll() is None and not list(tmp_path.glob("data/quick/train/*/embed.json")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "out/quick/model").exists()
    run = train(world, tmp_path)
    assert run.status == 0, run.err
    assert len(world.places.asked("audiocaps")) == asked
    assert shards(tmp_path) == shards(trained)


@pytest.mark.parametrize("skip", [True, False])
def test_without_a_data_set(skip, capsys):
    """Two failures in two lines, as `fetch` lists them."""
    cfg = SimpleNamespace(skip_missing=skip)
    try:
        with quick.left_out(cfg):
            raise Incomplete("macs: gone\nclotho: gone, too")
        assert skip
    except DataError as error:
        assert not skip
        assert str(error) == "macs: gone; and 1 more; --skip_missing trains without them"
    assert ("left out: macs: gone" in capsys.readouterr().out) == skip


def test_two_at_once(tmp_path):
    cfg = SimpleNamespace(train=f"{tmp_path}/quick/train", val=f"{tmp_path}/quick/val")
    refused = pytest.raises(DataError, match="another train.py quick.*wait for it")
    with locked(tmp_path / "quick/lock", "test"), refused:
        quick.build(cfg)
    with locked(tmp_path / "quick/lock", "test"):  # free again
        pass


def test_skip_missing_is_not_for_data_that_is_there():
    cfg = SimpleNamespace(skip_missing=True)
    with pytest.raises(DataError, match="is writing$"), quick.left_out(cfg):
        raise DataError("another fetch is writing")


def complete(folder: Path, names) -> None:
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "index.json").touch()


def test_what_is_complete_is_not_built(tmp_path, monkeypatch):
    """Without validation, only the training shards are looked for."""
    monkeypatch.setattr(quick, "forecast", lambda *_: pytest.fail("it builds"))
    monkeypatch.chdir(tmp_path)
    cfg = SimpleNamespace(train="data/quick/train", val="", device="cpu")
    complete(tmp_path / cfg.train, quick.TRAIN)
    quick.build(cfg)
    cfg.val = "data/quick/val"
    complete(tmp_path / cfg.val, quick.VAL[:1])
    with pytest.raises(pytest.fail.Exception, match="it builds"):
        quick.build(cfg)


@pytest.fixture
def parts_of_a_build(tmp_path, monkeypatch):
    """(cfg, calls) of a build whose parts only note how they are called."""
    calls = []

    def fetch(names, root, parts):
        calls.append(("fetch", set(names), Path(root), parts))

    def make(name, root, out, held, limit):
        calls.append(("make", name, held, limit))
        complete(Path(out), [name])

    def embed(source, folder, clap, name):
        calls.append(("embed", source, folder))
        complete(folder.parent, [folder.name])
        return []

    for name in ("forecast", "check_space", "load_clap", "ready", "Root", "report"):
        monkeypatch.setattr(quick, name, lambda *_: None)
    monkeypatch.setattr(quick, "HeldOut", lambda root: "held")
    monkeypatch.setattr(quick, "describe", lambda name, *_: calls.append(("describe", name)))
    for part in (fetch, make, embed):
        monkeypatch.setattr(quick, part.__name__, part)
    folder = tmp_path / "quick"
    places = dict(train=folder / "train", val=folder / "val")
    return SimpleNamespace(**places, device="cpu", clap="", skip_missing=False), calls


def test_the_parts_of_a_build(parts_of_a_build):
    """Nothing that is held out is trained on; all captions train, and 200 of each validate."""
    cfg, calls = parts_of_a_build
    quick.build(cfg)
    folder = cfg.train.parent
    names = {"audiocaps", "clotho", "clothoaqa", "macs", "musiccaps", "song_describer"}
    labels = {"esc50", "fsd50k", "vggsound"}
    fetched = names | labels | {"dcase2017t4"}  # the last only to be held out
    assert calls[0] == ("fetch", fetched, folder / "raw", ["text"])
    order = [call[:2] for call in calls]
    for name in labels:  # at once before its shards: a kill in between costs the checks of one
        assert order[order.index(("make", name)) - 1] == ("describe", name)
    assert sum(kind == "describe" for kind, *_ in calls) == len(labels)
    made = {name: rest for kind, name, *rest in calls if kind == "make"}
    assert made == dict.fromkeys(names | labels, ["held", None]) | {
        "audiocaps_val": ["held", 200],
        "clotho_val": ["held", 200],
    }
    embedded = [(call[1].name, call[2]) for call in calls if call[0] == "embed"]
    parts = {name: "val" if name.endswith("_val") else "train" for name in made}
    assert dict(embedded) == {name: folder / part / name for name, part in parts.items()}


def test_descriptions_of_built_shards_are_left_as_they_are(parts_of_a_build):
    """One more would make them shards of something else, which are not built again."""
    cfg, calls = parts_of_a_build
    complete(cfg.train.parent / "text", quick.LABELS[:1])
    quick.build(cfg)
    assert [name for kind, name, *_ in calls if kind == "describe"] == list(quick.LABELS[1:])


def test_the_forecast(monkeypatch):
    """100,000 texts of 2.4 GFLOP, 100 updates of 16 samples of 22, at 70 % of 100 GFLOP/s."""
    monkeypatch.setattr(quick, "products", lambda: 100e9)
    cfg = SimpleNamespace(steps=100, batch_size=16)
    said = quick.forecast(cfg, torch.device("cpu"))
    assert "0.3 PFLOP" in said and "100 GFLOP/s" in said
    assert f"about {(240_000 + 35_200) / 70 / 3600:.1f} h" in said
    monkeypatch.setattr(quick, "products", lambda: pytest.fail("it measures the CPU"))
    assert "on a GPU (not measured)" in quick.forecast(cfg, torch.device("cuda"))


def test_the_rate_of_products(monkeypatch):
    """Two products of 1024 x 1024 within a second, by a clock that goes 0.4 s a look."""
    clock = iter(range(100))
    times = SimpleNamespace(perf_counter=lambda: 0.4 * next(clock))
    monkeypatch.setattr(quick, "time", times)
    assert quick.products(seconds=1.0) == pytest.approx(2 * (2 * 1024**3) / 1.2)


def test_a_disk_without_room_is_named(tmp_path, monkeypatch):
    usage = SimpleNamespace(free=1e9)
    monkeypatch.setattr(quick.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"1\.0 GB free.*about 2"):
        quick.check_space(tmp_path)


def test_the_forecast_counts_as_the_model_does(tokenizer):
    """SAMPLE against MATS.flops at SmolLM2's true sizes, TEXT against GPT-2's weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from mats import MATSConfig

    sizes = dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30)
    heads = dict(num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True)
    known = {name: config[name] for name in ("prefix", "tokens", "width", "layers")}
    with torch.device("meta"):
        llm = LlamaForCausalLM(LlamaConfig(vocab_size=49152, **sizes, **heads))
        model = MATS(MATSConfig(**known), llm, tokenizer)
    assert model.flops(40, 14) == pytest.approx(quick.SAMPLE, rel=0.05)
    blocks = 12 * 12 * 768**2  # GPT-2's weights in products
    assert 2 * 13 * blocks == pytest.approx(quick.TEXT, rel=0.1)


# --- the notebook ---------------------------------------------------------------------------


def cells() -> list[str]:
    notebook = json.loads((ROOT / "docs/quick.ipynb").read_text())
    assert all(not cell.get("outputs") for cell in notebook["cells"])
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def shell(line: str, names: dict, env: dict) -> None:
    """A line of a notebook that begins with "!": {name} stands for a variable."""
    command = re.sub(r"\{(\w+)\}", lambda match: str(names[match[1]]), line.strip()[1:])
    if command.startswith("pip"):
        return check_pip(command.split()[1:])
    done = subprocess.run(command, shell=True, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return None


@pytest.mark.slow
def test_the_notebook_runs(world, tmp_path, monkeypatch):
    for path in ROOT.iterdir():
        if path.name not in ("data", "out") and not path.name.startswith("."):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "docs").unlink()
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path / "docs")  # where Jupyter starts a notebook
    shown = ModuleType("IPython.display")
    shown.Image = lambda path: Path(path).read_bytes()
    shown.Audio = lambda path: sf.read(path)
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    bin_of_python = os.path.dirname(sys.executable)
    env = world.env | {"PATH": f"{bin_of_python}{os.pathsep}{os.environ['PATH']}"}
    names = {"shell": lambda line: shell(line, names, env)}
    for cell in cells():
        cell = re.sub(r'^OPTIONS = ""', f"OPTIONS = {OPTIONS!r}", cell, flags=re.M)
        cell = re.sub(r"^BENCHMARKS = .*?  #", 'BENCHMARKS = "esc50"  #', cell, flags=re.M)
        cell = re.sub(r"(--ckpt \S+)", rf"\1 {CLAP}", cell)  # a model does not say which code runs
        code = re.sub(r"^( *)(!.*)$", lambda m: f"{m[1]}shell({m[2]!r})", cell, flags=re.M)
        exec(compile(code, "docs/quick.ipynb", "exec"), names)
    scores = json.loads((tmp_path / "out/quick/eval/results.json").read_text())
    assert "esc50" in json.dumps(scores)
    assert names["SOUND"].startswith("data/raw/esc50/ESC-50-master/audio/1-1000-A-0")
