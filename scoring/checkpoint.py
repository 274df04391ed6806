"""What eval.py and sample.py check of a trained model before they use it."""

import os
from pathlib import Path

from clap import probe, same_encoder
from disk import DataError, read_json


def find_model(ckpt: Path) -> dict:
    """config.json of a model as train.py writes it. Raises DataError where there is none."""
    if not (ckpt / "config.json").exists():
        if (ckpt / "model" / "config.json").exists():
            raise DataError(f"{ckpt} is the folder of a run: did you mean {ckpt / 'model'}?")
        raise DataError(f"{ckpt} holds no trained model; first: torchrun train.py")
    return read_json(ckpt / "config.json")


def clap_name(ckpt: Path) -> str:
    """The CLAP that config.json names: a local folder's path, or a name.

    Raises DataError where a local folder is not there.
    """
    named = find_model(ckpt).get("clap")
    if not isinstance(named, str) or not named:
        raise DataError(f"{ckpt / 'config.json'}: the field clap should name a CLAP, not {named!r}")
    local = os.path.normpath(ckpt / named)
    if os.path.exists(local):
        return local
    if named.startswith((".", "/", "~")):
        raise DataError(
            f"{ckpt / 'config.json'}: the field clap names {named}, which is not there ({local}); "
            "copy the CLAP to that place, or change the field to its path or to a name such as "
            "microsoft/msclap"
        )
    return named


def check_encoder(trained: list[float] | None, dim: int, clap, name: str) -> None:
    """Raises DataError where the model was trained on vectors of another encoder than this CLAP.

    trained: MATS.probe, what the encoder of the training vectors made of a few texts; None where
    the model does not say. dim: of these vectors.
    """
    if clap.dim != dim:
        raise DataError(
            f"the model was trained on vectors of {dim} numbers, and those of {name} have "
            f"{clap.dim}: config.json's field clap names another CLAP than in training"
        )
    if trained is not None and not same_encoder(trained, probe(clap)):
        raise DataError(
            f"the model was trained on vectors of another encoder than {name} is now: "
            "it has changed since"
        )
