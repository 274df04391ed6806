"""A trained model on the Hugging Face hub: found and fetched here, shared by push.py, described by
card.py.

    find_model       a folder, or user/name[@revision] on the hub -> a folder
    python -m hub    the card of a model, and its way to the hub

huggingface_hub does the work, so HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and its cache count. Only
safetensors, json and the files of a tokenizer are fetched: nothing that holds code.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from disk import DataError, is_path

# Of a model: all that is fetched, and all that is pushed beside its card.
REQUIRED = (
    "config.json",
    "mapper.safetensors",
    "lora/adapter_config.json",
    "lora/adapter_model.safetensors",
)
FILES = (*REQUIRED, "santa.safetensors", "training.json")
FOLDERS = ("llm", "clap")  # which go along where they are not on the hub themselves
# their files; the last three are tokenizers'
KINDS = ("*.safetensors", "*.json", "*.model", "merges.txt", "vocab.txt")
PATTERNS = [*FILES, *(f"{folder}/{kind}" for folder in FOLDERS for kind in KINDS)]


def is_on_hub(name: str | os.PathLike) -> bool:
    """Whether a model's name is user/name or user/name@revision on the hub.

    It is a folder's where that folder is here, or where one of the name's first part is.
    """
    repo = str(without_address(name)).partition("@")[0]
    if isinstance(name, os.PathLike) or os.path.exists(name) or is_path(repo) or "/" not in repo:
        return False
    return not os.path.isdir(repo.split("/")[0])


def is_cached(folder: Path) -> bool:
    """Whether a model's folder is in the hub's cache: someone else wrote it."""
    cache = os.path.abspath(constants.HF_HUB_CACHE)
    return Path(os.path.abspath(folder)).is_relative_to(cache)


def without_address(name: str | os.PathLike) -> str | os.PathLike:
    """user/name of the address of a model's page; anything else as it is."""
    if isinstance(name, str):
        return name.removeprefix(f"{constants.ENDPOINT}/").removesuffix("/")
    return name


def find_model(name: str | os.PathLike) -> Path:
    """The folder of a model: the one that is named, or what the cache holds of one on the hub.

    A model on the hub is fetched where the cache lacks it, or has an older one. Raises DataError
    where that cannot be.
    """
    name = without_address(name)
    if not is_on_hub(name):
        return Path(name)
    repo, _, revision = str(name).partition("@")
    with asking(str(name)):
        folder = snapshot_download(
            repo, revision=revision or None, allow_patterns=PATTERNS, library_name="mats"
        )
    missing = [file for file in REQUIRED if not Path(folder, file).exists()]
    if missing:
        raise DataError(
            f"{name} is on {constants.ENDPOINT}, and is no model of MATS: it lacks "
            f"{', '.join(missing)}; name another (--ckpt)"
        )
    return Path(folder)


@contextmanager
def asking(name: str) -> Iterator[None]:
    """Turns what huggingface_hub raises into a DataError: which model, why, and what to do."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno:  # a full disk
            raise
        raise DataError(f"{name}: {reason(error)}") from error


LOG_IN = "log in (`hf auth login`, or a token in HF_TOKEN)"
REASONS = (  # the first that fits
    (GatedRepoError, f"its readers are chosen: ask for access on its page, then {LOG_IN}"),
    (
        RepositoryNotFoundError,
        "there is no such folder here, and {hub} shows no such model: check the name; where the "
        f"model is private, {LOG_IN}",
    ),
    (RevisionNotFoundError, "{hub} has the model and not this revision: see its branches and tags"),
    (
        OfflineModeIsEnabled,
        "HF_HUB_OFFLINE is set, so {hub} is not asked: unset it",
    ),
    (
        HFValidationError,
        "neither a folder here nor a name on the hub, which is user/name or user/name@revision",
    ),
)


def reason(error: Exception) -> str:
    """Why the hub could not be used, and what to do."""
    for kind, why in REASONS:
        if isinstance(error, kind):
            return why.format(hub=constants.ENDPOINT)
    if isinstance(error, LocalEntryNotFoundError):
        return not_cached(error)
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status in (401, 403):
        return (
            f"{constants.ENDPOINT} refuses the token, or there is none that may do this: {LOG_IN}"
        )
    said = " ".join(str(error).split())[:200] or "no reason given"
    return (
        f"{constants.ENDPOINT} cannot be used: {said} ({type(error).__name__}); check the "
        "connection (HF_ENDPOINT names another hub)"
    )


def not_cached(error: LocalEntryNotFoundError) -> str:
    """Why a model could not be fetched, where the cache does not have it either."""
    have = "there is no such folder here, and the cache lacks it"
    if hasattr(error, "snapshot_path"):  # IncompleteSnapshotError, of newer versions
        have = "the cache has only a part of it"
    if constants.HF_HUB_OFFLINE:
        return f"{have}, and HF_HUB_OFFLINE is set: unset it once, and it is fetched"
    why = f" ({type(error.__cause__).__name__})" if error.__cause__ else ""
    return (
        f"{have}, and {constants.ENDPOINT} cannot be reached{why}: connect once, and it is fetched "
        "(HF_ENDPOINT names another hub)"
    )
