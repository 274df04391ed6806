"""The label that an encoder pair finds nearest to a text: a check of descriptions.

clap = load_encoder("microsoft/msclap")
nearest = Nearest(clap, ["dog", "fox"])
nearest(["A puppy yaps at the door."])        ["dog"]
"""

from collections.abc import Iterable

import numpy as np
import torch

from clap import load_clap
from disk import DataError
from encoders.checks import ready
from scoring.llm import clean
from scoring.matching import steps
from scoring.tasks import Context
from shards.embed import encode_texts

REMEDY = "name another encoder with --clap, or leave the check out with --no-check"


def load_encoder(name: str):
    """The CLAP of this name, checked, on a GPU where there is one. Raises DataError."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return ready(load_clap(name), name, device)
    except DataError as error:
        raise DataError(f"{error}; {REMEDY}") from error


class Nearest:
    """nearest(texts) -> list of labels: for each text the most similar one.

    None stands for a text that the encoder refuses, or of which it makes no finite vector. Labels
    are encoded as scoring's text matching does, in "sound of dog"; of equally similar ones the
    first by the alphabet is taken. Raises DataError where a label cannot be encoded.
    """

    def __init__(self, clap, labels: Iterable[str]):
        self.clap, self.labels = clap, sorted(labels)
        texts = [Context.template.format(clean(label.lower())) for label in self.labels]
        vectors = encode_texts(clap, list(dict.fromkeys(texts)))
        for label, text in zip(self.labels, texts):
            if isinstance(vectors[text], str):
                raise DataError(f"the label {label!r}: {vectors[text]}; {REMEDY}")
        self.vectors = stacked([vectors[text] for text in texts])  # (C, D)

    def __call__(self, texts: list[str]) -> list[str | None]:
        found = encode_texts(self.clap, texts)  # a str says why there is no vector
        known = [text for text, vector in found.items() if not isinstance(vector, str)]
        if not known:
            return [None] * len(texts)
        similarity = steps(stacked([found[text] for text in known]) @ self.vectors.T)  # (N, C)
        best = similarity.argmax(1).tolist()  # the first of equals
        labels = {text: self.labels[i] for text, i in zip(known, best)}
        return [labels.get(text) for text in texts]


def stacked(rows: list[np.ndarray]) -> torch.Tensor:
    """(N, D) float64."""
    return torch.from_numpy(np.stack(rows)).double()
