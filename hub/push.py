"""From a model's folder to the hub: what goes along, and under which names.

The folder that is pushed holds links: nothing is copied.
"""

import json
import os
import shutil
import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from disk import DataError, fingerprint, is_code, is_path, read_json, sha256, share
from hub import FILES, FOLDERS, KINDS, LOG_IN, PATTERNS, REQUIRED, asking, card

HOW = {  # a folder of another form becomes one of safetensors
    "llm": "transformers writes it so: AutoModelForCausalLM.from_pretrained(X).save_pretrained(Y)",
    "clap": "clap.py writes it so: load_clap(X).save_pretrained(Y)",
}


def push(
    folder,
    name: str,
    private: bool = False,
    branch: str | None = None,
    token: str | None = None,
    message: str = "Push a model of MATS",
    run=None,
) -> str:
    """The model's page on the hub, once the model in `folder` is there, with its card.

    private: of a repository that is new; else it is as its owner's are. branch: else main; it is
    made where it is missing. run: the folder of the same model within its run, whose scores the
    card tells; by default `folder`. Files of an earlier push that this model lacks are deleted.
    Raises DataError.
    """
    if "/" not in name or not is_name(name):
        raise DataError(f"{name!r} is no name on the hub: expected user/name")
    if not (token or get_token()):
        raise DataError(f"{name}: no token: {LOG_IN}")
    with tempfile.TemporaryDirectory() as upload:
        for line in pack(Path(folder), Path(upload)):
            print(line, file=sys.stderr)
        text = card.write(Path(upload), name, Path(run or folder))
        with asking(name):
            api = HfApi(token=token, library_name="mats")
            page = api.create_repo(name, private=private or None, exist_ok=True)
            if branch:
                api.create_branch(name, branch=branch, exist_ok=True)
            if card.is_ours(text) and has_own_card(api, name, branch):
                print(f"{page} has a card of its own, which is kept", file=sys.stderr)
            else:
                Path(upload, "README.md").write_text(text, encoding="utf-8")
            api.upload_folder(
                repo_id=name,
                folder_path=upload,
                revision=branch,
                commit_message=message,
                delete_patterns=PATTERNS,
            )
    return str(page)


def export(folder, target) -> None:
    """Writes the model, with its card and all that goes along, to a new folder `target`.

    Raises DataError where that is there already, or as pack does.
    """
    target = Path(target)
    if target.exists():
        raise DataError(f"{target} is there already: name a new folder")
    with tempfile.TemporaryDirectory() as upload:
        for line in pack(Path(folder), Path(upload)):
            print(line, file=sys.stderr)
        text = card.write(Path(upload), target.name, Path(folder))
        Path(upload, "README.md").write_text(text, encoding="utf-8")
        shutil.copytree(upload, target)
    share(target)


def has_own_card(api: HfApi, name: str, branch: str | None) -> bool:
    """Whether someone has written the card that is on the hub, or has changed it there."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            there = api.hf_hub_download(name, "README.md", revision=branch, local_dir=folder)
        except EntryNotFoundError:
            return False
        return not card.is_ours(Path(there).read_text(encoding="utf-8", errors="replace"))


def pack(folder: Path, upload: Path) -> list[str]:
    """Fills `upload` with all that is pushed but the card. Returns what the user should know.

    Local folders of the language model and of CLAP go along, as llm/ and clap/, and are named so.
    Raises DataError where a file is missing, or cannot be shared.
    """
    for name in FILES:
        if (folder / name).exists():
            link(folder / name, upload / name)
        elif name in REQUIRED:
            raise DataError(f"{folder} holds no trained model: {name} is missing")
    config, said = read_json(folder / "config.json"), []
    for key in FOLDERS:
        value = str(config.get(key))
        place = folder / value
        if is_code(value):
            said.append(f"{key} {value} stays here: whoever runs the model gives --{key}")
        elif place.is_dir():
            size = bundle(place, upload / key, key)
            said.append(f"{key}/ goes along: {os.path.normpath(place)}, {size / 1e6:,.1f} MB")
            config[key] = f"./{key}"
        else:
            require_name(folder, key, value)
    if (upload / "llm").exists():
        config["llm_hash"] = fingerprint(upload / "llm")
    replace_json(upload / "config.json", config)
    lora = read_json(folder / "lora/adapter_config.json")
    lora["base_model_name_or_path"] = config["llm"]
    replace_json(upload / "lora/adapter_config.json", lora)
    return said


def require_name(folder: Path, key: str, value: str) -> None:
    """Raises DataError unless a field of the config, which names no folder, is a hub name."""
    field, place = f"{folder / 'config.json'}: the field {key} names {value}", folder / value
    if is_path(value) and not place.exists():
        raise DataError(f"{field}, seen from its folder, and {os.path.abspath(place)} is not there")
    if value == "None" or not is_name(value):
        raise DataError(
            f"{field}, which is neither a folder nor a name on the hub, and cannot be shared; "
            f"{HOW[key]}"
        )


def bundle(place: Path, target: Path, key: str) -> int:
    """Links the files of a model's folder that are shared. Returns their bytes."""
    files = [
        path
        for path in sorted(place.iterdir())
        if path.is_file() and any(fnmatch(path.name, kind) for kind in KINDS)
    ]
    if not any(path.suffix == ".safetensors" for path in files):
        raise DataError(
            f"{place} ({key}) holds no safetensors, and other weights are not shared; {HOW[key]}"
        )
    for path in files:
        link(path, target / path.name)
    return sum(path.stat().st_size for path in files)


def same_weights(a: Path, b: Path) -> bool:
    """Whether two folders hold the same model, memory included."""
    files = [name for name in FILES if name.endswith(".safetensors")]
    return all(
        (a / name).exists() == (b / name).exists()
        and (not (a / name).exists() or sha256(a / name) == sha256(b / name))
        for name in files
    )


def link(path: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    target.symlink_to(path.resolve())


def replace_json(path: Path, value: dict) -> None:
    path.unlink()  # a link
    path.write_text(json.dumps(value, indent=1))


def is_name(value: str) -> bool:
    """Whether it can be the name of a model on the hub."""
    try:
        validate_repo_id(value)
    except HFValidationError:
        return False
    return True
