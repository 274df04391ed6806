"""A model on the hub: pushed, found, described, refused."""

import errno
import json
import os
import pickle
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import flac, make_samples, write_samples
from hub_server import Repo
from huggingface_hub import constants

import hub.__main__ as command
import sample
import train
from clap import load_clap
from data import Source
from disk import DataError, fingerprint, model_digest, write_tensors
from hub import card, find_model, is_on_hub
from hub.push import bundle, pack
from mats import MATS, read_config

ROOT = Path(__file__).parents[1]
ASKED = ["What is it?", "Is there a dog?"]
CODE = "import pathlib; pathlib.Path({!r}).touch()\n"


@pytest.fixture
def ana(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_ana")


def answers(model):
    """What it says, and all that its language model is given of two sounds."""
    z = model.santa(torch.randn(2, 16, generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        return model.generate(z, ASKED), model.mapper(z).tolist(), model.history


def with_history(project, folder):
    """A copy of the project's run whose model knows what it was trained on."""
    for part in ("run", "llm", "clap"):
        shutil.copytree(project / part, folder / part)
    write_samples(folder / "data" / "farm", make_samples(30))
    index = folder / "data/farm/index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"licences": {"farm": "CC|BY"}}))
    cfg = train.TrainConfig(train=str(folder / "data"), steps=40, variance=0.003)
    run = SimpleNamespace(cfg=cfg, sources=[Source(folder / "data/farm")], weights=[3.0])
    training = json.dumps(train.description(run, 40))
    (folder / "run/model/training.json").write_text(training)
    return folder / "run/model"


# --- there and back -------------------------------------------------------------------------------


def test_a_model_comes_back_as_it_was(project, hub, ana, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = MATS.from_pretrained(project / "run/model")
    said = answers(model)
    assert model.push_to_hub("ana/sounds") == f"{hub.url}/ana/sounds"
    notes = capsys.readouterr().err
    assert re.search(r"llm/ goes along: \S*llm, [\d.]+ MB\nclap/ goes along: ", notes)
    there = hub.files("ana/sounds")
    parts = {"config.json", "mapper.safetensors", "santa.safetensors", "README.md"}
    assert {path for path in there if "/" not in path} == parts | {".gitattributes"}
    assert {path.split("/")[0] for path in there if "/" in path} == {"lora", "llm", "clap"}
    assert not any(str(project).encode() in data for data in there.values())
    config = json.loads(there["config.json"])
    assert config["llm"], config["clap"] == ("./llm", "./clap")
    assert json.loads(there["lora/adapter_config.json"])["base_model_name_or_path"] == "./llm"

    again = MATS.from_pretrained("ana/sounds")
    assert answers(again) == said
    Path("dog.wav").write_bytes(flac(0))
    (snippet,) = re.findall(r"```python\n(.*?)```", there["README.md"].decode(), re.S)
    exec(snippet, {})
    assert capsys.readouterr().out.count("\n") == 1
    assert Path(constants.HF_HUB_CACHE) in Path(again.config.llm).parents
    hub.close()  # the network is gone, and then it is not asked
    assert answers(MATS.from_pretrained("ana/sounds")) == said
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert answers(MATS.from_pretrained("ana/sounds@main")) == said


def test_a_later_push_leaves_no_file_of_an_earlier_one(project, hub, ana, tmp_path):
    model = MATS.from_pretrained(project / "run/model")
    model.push_to_hub("ana/sounds", private=True)
    model.santa = None
    model.push_to_hub("ana/sounds", branch="bare", commit_message="Without a memory")
    assert "santa.safetensors" in hub.files("ana/sounds")
    assert "santa.safetensors" not in hub.files("ana/sounds", "bare")
    assert MATS.from_pretrained("ana/sounds@bare").santa is None
    assert MATS.from_pretrained("ana/sounds").santa is not None
    assert hub.repos["ana/sounds"].private


def test_a_card_of_ones_own_is_kept(project, hub, ana, tmp_path, capsys):
    model = MATS.from_pretrained(project / "run/model")
    model.push_to_hub("ana/sounds")
    model.push_to_hub("ana/sounds")  # ours is replaced
    assert card.is_ours(hub.files("ana/sounds")["README.md"].decode())
    hub.files("ana/sounds")["README.md"] = b"---\nlicense: mit\n---\nMine.\n"
    model.santa.variance = 0.5
    model.push_to_hub("ana/sounds")
    assert hub.files("ana/sounds")["README.md"].endswith(b"Mine.\n")
    assert "has a card of its own, which is kept" in capsys.readouterr().err
    shutil.copytree(project / "run/model", tmp_path / "run/model")
    for part in ("llm", "clap"):
        shutil.copytree(project / part, tmp_path / part)
    (tmp_path / "run/model/README.md").write_text("---\nlicense: mit\n---\nMine, later.\n")
    MATS.from_pretrained(tmp_path / "run/model").push_to_hub("ana/sounds")
    assert hub.files("ana/sounds")["README.md"].endswith(b"Mine, later.\n")


def test_the_card_of_a_branch_is_its_own(project, hub, ana):
    """Ours is written again, and one that was written there is kept there."""
    model = MATS.from_pretrained(project / "run/model")
    model.push_to_hub("ana/sounds", branch="v2", commit_message="Version 2")
    hub.files("ana/sounds", "v2")["README.md"] = b"Mine.\n"
    model.push_to_hub("ana/sounds")
    hub.files("ana/sounds")["README.md"] = card.MARK.encode() + b"An earlier one."
    for branch in ("v2", None):
        model.push_to_hub("ana/sounds", branch=branch)
    assert hub.files("ana/sounds", "v2")["README.md"] == b"Mine.\n"
    assert b"## Base models" in hub.files("ana/sounds")["README.md"]


def test_a_push_takes_the_token_that_is_given(project, hub):
    MATS.from_pretrained(project / "run/model").push_to_hub("ana/sounds", token="hf_ana")
    assert "mapper.safetensors" in hub.files("ana/sounds")


def test_only_what_is_read_is_fetched(project, hub, tmp_path):
    with_history(project, tmp_path)
    pack(tmp_path / "run/model", tmp_path / "upload")
    files = {
        str(path.relative_to(tmp_path / "upload")): path.read_bytes()
        for path in (tmp_path / "upload").rglob("*")
        if path.is_file()
    }
    bad = ("evil.py", "llm/modeling_evil.py", "mapper.bin", "lora/adapter_model.bin", "state.pt")
    repo = hub.repos["ana/sounds"] = Repo(private=False)
    repo.commits[repo.branches["main"]] = files | dict.fromkeys(bad, b"")
    folder = find_model("ana/sounds")
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == set(files)


def test_a_language_model_that_goes_along_without_its_pickles_is_the_same(project, tmp_path):
    """Its hash is that of the files that go along."""
    folder = with_history(project, tmp_path)
    (tmp_path / "llm/optimizer.bin").write_bytes(b"not read")
    change(folder / "config.json", llm_hash=fingerprint(tmp_path / "llm"))
    pack(folder, tmp_path / "upload")
    config, made = read_config(tmp_path / "upload", ("llm",))
    assert config.llm == str(tmp_path / "upload/llm")
    assert made["llm_hash"] == fingerprint(config.llm) != fingerprint(tmp_path / "llm")


# --- refusals: one line each ----------------------------------------------------------------------

NAME_OR_LOGIN = (
    "ana/sounds: there is no such folder here, and http://127.* no such model: check the name"
)
REFUSED = {
    "unknown": (None, "", NAME_OR_LOGIN),
    "private, no token": (Repo(private=True), "", NAME_OR_LOGIN + ".*hf auth login.*HF_TOKEN"),
    "private, another's token": (Repo(private=True), "hf_bob", NAME_OR_LOGIN),
    "bad token": (Repo(private=False), "hf_no", "refuses the token, .*hf auth login"),
    "gated": (Repo(private=False, gated=True), "hf_bob", "ask for access on its page"),
    "not ours": (Repo(private=False), "", "no model of MATS: it lacks mapper.safetensors"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_cannot_be_fetched(case, hub, monkeypatch):
    repo, token, message = REFUSED[case]
    if repo:
        repo.commits[repo.branches["main"]] = {"config.json": b"{}"}
        hub.repos["ana/sounds"] = repo
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(DataError, match=message) as refused:
        find_model("ana/sounds")
    assert "\n" not in str(refused.value)


def test_a_wrong_revision_and_no_name_at_all(hub):
    hub.repos["ana/sounds"] = Repo(private=False)
    with pytest.raises(DataError, match="ana/sounds@v2: http.* has the model and not this rev"):
        find_model("ana/sounds@v2")
    for name in ("ana/so unds", "ana/a--b", "ana/sounds.git"):
        with pytest.raises(DataError, match=f"{name}: neither a folder here nor .* user/name@rev"):
            find_model(name)


def test_offline_and_without_a_network(hub, monkeypatch):
    hub.close()
    with pytest.raises(DataError, match="ana/sounds: .*the cache lacks it, and http.*connect once"):
        find_model("ana/sounds")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="the cache lacks it, and HF_HUB_OFFLINE is set: unset"):
        find_model("ana/sounds")


@pytest.mark.parametrize(
    "token, name, message",
    [
        ("", "ana/sounds", "ana/sounds: no token: log in .*HF_TOKEN"),
        ("hf_no", "ana/sounds", "refuses the token"),
        ("hf_bob", "ana/sounds", "refuses the token, or .* may do this"),
        ("hf_ana", "sounds", "'sounds' is no name on the hub: expected user/name"),
        ("hf_ana", "ana/so unds", "is no name on the hub: expected user/name"),
    ],
)
def test_a_push_that_is_refused(token, name, message, project, hub, monkeypatch):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(DataError, match=message) as refused:
        command.main([str(project / "run/model"), name])
    assert "\n" not in str(refused.value) and not hub.repos


def test_a_full_disk_is_none_of_the_hubs_faults(hub, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hub.snapshot_download", full)
    with pytest.raises(OSError, match="No space left"):
        find_model("ana/sounds")


def test_a_folders_name_is_never_looked_up(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    for name in ("out/model", "out/tiny/model", "./a/b", "model", "/a/b", Path("ana/sounds")):
        assert not is_on_hub(name)
        with pytest.raises(DataError, match="no trained model.*train one: torchrun train.py"):
            MATS.from_pretrained(name)
    assert is_on_hub("ana/sounds") and is_on_hub("ana/sounds@refs/pr/1")
    assert not hub.requests


# --- the card -------------------------------------------------------------------------------------


def test_the_card_tells_the_run(project, evaluated, tmp_path, capsys):
    folder = with_history(project, tmp_path)
    results = json.loads((folder.parent / "eval/results.json").read_text())
    command.main([str(folder)])
    assert "left out of the card: of another model than this one is now" in capsys.readouterr().err
    llm = str(folder / json.loads((folder / "config.json").read_text())["llm"])
    results["made"]["model"] = model_digest(folder, llm)
    (folder.parent / "eval/results.json").write_text(json.dumps(results))
    command.main([str(folder)])
    text = capsys.readouterr().out
    assert text.startswith("---\n") and "library_name: mats" in text and "base_model" not in text
    assert "| farm | 30 | 100.0% | CC\\|BY |" in text and "40 updates of 128" in text
    assert "variance 0.003" in text and "text alone" in text
    assert str(tmp_path) not in text and str(project) not in text
    for name in results["titles"]:
        metric = results["headline"][name]
        cells = [results["columns"][c][name][metric] for c in ("none", "santa", "text")]
        numbers = [f"{c['value']:.3f} [{c['ci95'][0]:.3f}, {c['ci95'][1]:.3f}]" for c in cells]
        chance = f"{results['chance'][name][metric]:.3f}"
        row = [results["titles"][name], metric, str(results["n"][name]), chance, *numbers]
        assert f"| {' | '.join(row)} |\n" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) in (3, 5, 8) for row in rows)


def test_scores_of_another_form_are_left_out(project, tmp_path, capsys):
    folder = with_history(project, tmp_path)
    path = folder.parent / "eval/results.json"
    path.parent.mkdir(exist_ok=True)
    for results in ("{}", '{"made": null}', '{"made": {"model": 1}'):
        path.write_text(results)
        command.main([str(folder)])
        printed = capsys.readouterr()
        assert "Not scored yet" in printed.out and "left out of the card: " in printed.err


def test_a_sources_licences_are_all_named():
    assert card.licence({"licences": {"farm": "CC|BY", "zoo": "MIT"}}) == "farm: CC\\|BY, zoo: MIT"
    assert card.licence({"licences": {"farm": "MIT", "zoo": "MIT"}}) == "MIT"
    assert card.licence({}) == "not stated"


def test_the_scores_of_a_model_that_has_changed_are_left_out(project, evaluated, hub, ana):
    model = MATS.from_pretrained(project / "run/model")
    for name, change in {
        "as-read": lambda: None,
        "memory": lambda: model.santa.memory.mul_(2),
        "mapper": lambda: model.mapper.queries.data.mul_(2),
    }.items():
        change()
        model.push_to_hub(f"ana/{name}")
        text = hub.files(f"ana/{name}")["README.md"].decode()
        assert ("95 % bootstrap" in text) == (name == "as-read") != ("Not scored yet" in text)


def test_the_card_of_an_older_model_says_less(project, tmp_path, capsys):
    shutil.copytree(project / "run/model", tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    config |= {"llm": "gpt2", "clap": "my_encoders:load"}
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    command.main([str(tmp_path / "model")])
    text = capsys.readouterr().out
    assert "base_model:\n- gpt2\n" in text and "--ckpt user/name --clap module:factory" in text
    assert "does not say what it was trained on" in text and "Not scored yet" in text
    assert pack(tmp_path / "model", tmp_path / "upload")[0].startswith(
        "clap my_encoders:load stays"
    )
    (tmp_path / "model/training.json").write_text('{"step": 1}')
    with pytest.raises(DataError, match="model/training.json: .*Without it the card says less"):
        command.main([str(tmp_path / "model")])
    (tmp_path / "model/README.md").write_text("Mine.")
    command.main([str(tmp_path / "model")])
    assert capsys.readouterr().out == "Mine.\n"


def test_what_cannot_be_shared_is_named(project, tmp_path):
    shutil.copytree(project / "run/model", tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/bin").mkdir()
    (tmp_path / "model/bin/pytorch_model.bin").touch()
    (tmp_path / "model/clap.pth").touch()
    for n, (key, value, message) in enumerate(
        (
            ("llm", "./bin", r"bin \(llm\) holds no safetensors"),
            ("clap", "./clap.pth", "field clap names ./clap.pth, which is neither a folder nor"),
            (
                "llm",
                "../gone",
                "field llm names ../gone, seen from its folder, and /.*/gone is not there",
            ),
        )
    ):
        changed = config | {"llm": "gpt2", "clap": "msclap-2023", key: value}
        (tmp_path / "model/config.json").write_text(json.dumps(changed))
        with pytest.raises(DataError, match=message):
            pack(tmp_path / "model", tmp_path / f"upload{n}")
    (tmp_path / "model/mapper.safetensors").unlink()
    with pytest.raises(DataError, match="model holds no trained model: mapper.safetensors"):
        pack(tmp_path / "model", tmp_path / "upload")


def test_a_copy_has_all_that_the_model_needs(project, tmp_path, capsys):
    """A copied folder alone would look for its language model beside it."""
    copy = tmp_path / "far" / "away"
    command.main([str(project / "run/model"), "--to", str(copy)])
    shutil.move(tmp_path / "far", tmp_path / "further")
    again = MATS.from_pretrained(tmp_path / "further/away")
    z, ask = torch.randn(2, 16), ["Hi", "dog"]
    assert again.generate(z, ask) == MATS.from_pretrained(project / "run/model").generate(z, ask)
    assert load_clap(again.config.clap).dim == 16
    assert "# away" in (tmp_path / "further/away/README.md").read_text()
    with pytest.raises(DataError, match="is there already"):
        command.main([str(project / "run/model"), "--to", str(tmp_path / "further/away")])


@pytest.mark.parametrize("where", ["relative", "absolute"])
def test_a_model_of_the_cache_names_nothing_outside_of_it(project, tmp_path, where, monkeypatch):
    """It would be read here, and would go along with the next push."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache/models--eve--m/snapshots/1"
    shutil.copytree(project / "run/model", folder)
    config = json.loads((folder / "config.json").read_text())
    llm = str(project / "llm")
    if where == "relative":
        llm = os.path.relpath(llm, folder)
    (folder / "config.json").write_text(json.dumps(config | {"llm": llm}))
    with pytest.raises(DataError, match="the field llm names .*a folder outside of the model"):
        MATS.from_pretrained(folder)
    shutil.move(folder, tmp_path / "mine")
    (tmp_path / "mine/config.json").write_text(json.dumps(config | {"llm": str(project / "llm")}))
    assert MATS.from_pretrained(tmp_path / "mine")


def test_of_a_bundled_folder_only_the_models_own_files_go_along(project, tmp_path):
    shutil.copytree(project / "llm", tmp_path / "llm")
    for name in ("secret.txt", "notes.md", "vocab.txt"):
        (tmp_path / "llm" / name).write_text(name)
    bundle(tmp_path / "llm", tmp_path / "upload", "llm")
    there = {path.name for path in (tmp_path / "upload").iterdir()}
    assert "vocab.txt" in there and "model.safetensors" in there
    assert not there & {"secret.txt", "notes.md"}


@pytest.mark.parametrize("kind", ["pe_audio", "pe_audio_evil"])
def test_an_encoders_config_never_runs_code(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("asked to run code"))
    auto = {"AutoConfig": "evil.Evil", "AutoTokenizer": "evil.Evil"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "auto_map": auto}))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(DataError):
        load_clap(str(tmp_path))
    assert not (tmp_path / "ran").exists()


# --- nothing of a model is code -------------------------------------------------------------------


@pytest.fixture
def trapped(project, tmp_path, monkeypatch):
    """A model with code wherever code could be, and the file that appears where any of it runs."""
    folder, ran = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(project / "run/model", folder)
    for part in ("llm", "clap"):
        shutil.copytree(project / part, folder / part)

    class Trap:
        def __reduce__(self):
            return exec, (CODE.format(str(ran)),)

    for name in ("mapper.bin", "lora/adapter_model.bin", "llm/pytorch_model.bin", "santa.bin"):
        (folder / name).write_bytes(pickle.dumps(Trap()))
    maps = {
        "AutoConfig": "evil.C",
        "AutoTokenizer": ["evil.T", None],
        "AutoModelForCausalLM": "evil.M",
    }
    for name in ("evil.py", "llm/evil.py", "clap/evil.py"):
        (folder / name).write_text(CODE.format(str(ran)))
    for name in ("llm/config.json", "llm/tokenizer_config.json", "clap/tokenizer_config.json"):
        values = json.loads((folder / name).read_text()) | {"auto_map": maps}
        (folder / name).write_text(json.dumps(values))
    config = json.loads((folder / "config.json").read_text())
    config |= {"llm": "./llm", "clap": "./clap", "llm_hash": None}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # whoever is asked says yes
    return folder, ran


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_model_never_runs_code(trapped, tmp_path):
    folder, ran = trapped
    sound = str(
        ROOT / "docs/picture.png"
    )  # named as a file that cannot be read; all else is loaded
    assert sample.main([sound, "--ckpt", str(folder)]) == 1
    change(folder / "clap/tokenizer_config.json", tokenizer_class="UnheardOf")
    with pytest.raises(DataError, match="CLAP's tokenizer '.*clap'"):
        load_clap(str(folder / "clap"))
    change(folder / "llm/config.json", model_type="unheard-of")
    with pytest.raises(DataError, match="language model"):
        MATS.from_pretrained(folder)
    change(folder / "llm/config.json", model_type="gpt2")
    (folder / "llm/model.safetensors").unlink()
    with pytest.raises(DataError, match="llm lacks model.safetensors: .*only safetensors are read"):
        MATS.from_pretrained(folder)
    assert not ran.exists()


def test_weights_in_several_files_are_read(trapped):
    folder, _ = trapped
    (folder / "llm/model.safetensors").rename(folder / "llm/model-00001-of-00001.safetensors")
    with pytest.raises(DataError, match="llm lacks model.safetensors"):
        read_config(folder, ("llm",))
    (folder / "llm/model.safetensors.index.json").write_text("{}")
    assert read_config(folder, ("llm",))[0].llm == str(folder / "llm")


def test_pickled_weights_are_refused_by_name(trapped):
    folder, ran = trapped
    for name, pickled in {
        "lora/adapter_model.safetensors": "adapter_model.bin",
        "mapper.safetensors": "mapper.bin",
    }.items():
        (folder / name).unlink()
        with pytest.raises(DataError, match=f"{name} is missing.*{pickled} is a pickle"):
            MATS.from_pretrained(folder)
    assert not ran.exists()


def test_a_clap_that_is_code_needs_whoever_runs_it(trapped, tmp_path, monkeypatch):
    folder, ran = trapped
    (folder / "evil:load").mkdir()  # a folder of that name is no way around
    change(folder / "config.json", clap="evil:load")
    for ckpt in (folder, Path(".")):
        with pytest.raises(
            DataError, match="config.json: the field clap .*trust it, --clap evil:load"
        ):
            sample.main(["a.wav", "--ckpt", str(ckpt)])
        with pytest.raises(DataError, match="--clap evil:load"):
            read_config(ckpt, ("clap",))
    change(folder / "config.json", clap="./evil:load")  # seen from the model's folder
    with pytest.raises(DataError, match="--clap ./evil:load"):
        read_config(Path("."), ("clap",))
    assert not ran.exists()
    given = read_config(folder, clap=str(folder / "clap"))[0].clap
    assert given == str(folder / "clap")
    with pytest.raises(DataError, match="evil:load"):  # it lacks the function, and was run
        sample.main(["a.wav", "--ckpt", str(folder), "--clap", "evil:load"])
    assert ran.exists()


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_are_readable_as_the_umask_says(project, tmp_path, umask):
    model = MATS.from_pretrained(project / "run/model")
    before = os.umask(umask)
    try:
        model.save_pretrained(tmp_path / "model")
        write_tensors({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 6
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~umask}


# --- the commands, with their own environment -----------------------------------------------------


@pytest.mark.slow
def test_commands_with_the_documented_variables(project, hub, tmp_path, capsys):
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "hf_ana",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": str(ROOT),
    }

    def run(*words, **more):
        done = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env=environment | more,
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout, done.stderr

    model, name = str(project / "run/model"), "ana/sounds"
    code, out, _ = run("-m", "hub", model, name, "--private")
    assert (code, out.strip()) == (0, f"{hub.url}/{name}")
    sound = str(tmp_path / "a.flac")
    Path(sound).write_bytes(flac(0))
    script = str(ROOT / "sample.py")
    assert sample.main([sound, "--ckpt", model]) == 0
    here = 0, capsys.readouterr().out
    assert run(script, sound, "--ckpt", name)[:2] == here
    asked = len(hub.requests)
    assert run(script, sound, "--ckpt", name, HF_HUB_OFFLINE="1")[:2] == here
    assert len(hub.requests) == asked
    options = ["--shards", str(project / "bench"), "--bench", "yesno", "--columns", "none"]
    code, out, err = run(str(ROOT / "eval.py"), "--ckpt", name, *options)
    assert code == 0, err
    results = json.loads((tmp_path / "out/ana--sounds/eval/results.json").read_text())
    assert results["ckpt"] == name
    assert not [p for p in (tmp_path / "home").rglob("*") if p.name == "eval"]
