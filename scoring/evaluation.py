"""One model on one folder of benchmarks: the settings, and the place of each result."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import Event, Lock

from clap import load_clap
from data import Source
from disk import DataError, digest, model_digest, read_json, sha256, weights
from distributed import Ranks
from encoders.checks import check_encoder, ready
from mats import MATS, read_config
from scoring.encoders import text_encoder
from scoring.tasks import BENCHMARKS

DECODING = {
    "greedy": {},
    "official": {  # of the released script
        "num_beams": 4,
        "max_new_tokens": 200,
        "repetition_penalty": 2.0,
        "no_repeat_ngram_size": 2,
    },
    "beam": {"num_beams": 4},  # of caption models
}


@dataclass(frozen=True)
class MadeWith:
    """All that changes a prediction, beside the clip and the bridge."""

    model: str  # digest of the checkpoint's files
    crop: str  # of clips longer than CLAP's window
    tags: bool
    decoding: dict  # keywords of generate


@dataclass
class Evaluation:
    """One model on one folder of benchmarks. Results are stored, and stored ones are used.

    Raises DataError where the model, a benchmark or its labels are missing, and on a bad option.
    A `tolerant` one goes on with the benchmarks that can be used, and keeps in `failed` why others
    cannot.
    """

    ckpt: Path
    shards: Path
    out: Path
    ranks: Ranks
    bench: str = "all"
    crop: str = "center"
    tags: bool = True
    decoding: str = "greedy"
    match: str = "clap"  # encoders of text matching, comma-separated
    template: str = "sound of {}"  # text matching: the text of a label
    judge: str | None = None
    batch: int = 128
    vectors: Path | None = None  # folder of another evaluation of the same CLAP
    tolerant: bool = False
    stored_only: bool = False  # answers are read, and never generated
    encoder: str = ""  # instead of the CLAP that the model names (mats.read_config)
    title: str = ""  # of the model; empty: its folder
    human: bool = False  # captions: also people against people
    failed: dict[str, str] = field(default_factory=dict)  # benchmark -> why it cannot be scored
    stopping: Event = field(default_factory=Event)  # threads should end
    encoded: dict = field(default_factory=dict)  # benchmark -> Encoded
    encoding: Lock = field(default_factory=Lock)  # held by the thread that fills `encoded`

    def __post_init__(self):
        try:
            fits = "{}" in self.template and self.template.format("label")
        except (LookupError, ValueError):  # other braces
            fits = False
        if not fits:
            raise DataError(f"--label-template {self.template!r} needs {{}} in place of the label")
        self.config, self.trained_with = read_config(self.ckpt, ("clap",), self.encoder)
        self.clap_name = self.config.clap
        self.names, self.sources, self.labels = self.find_benchmarks(), {}, {}
        for name in list(self.names):
            with self.tolerating(name):
                self.sources[name] = Source(self.shards / name)
                self.labels[name] = self.read_labels(name)
        model = model_digest(self.ckpt, self.config.llm)
        self.made = MadeWith(model, self.crop, self.tags, keywords(self.decoding))

    @contextmanager
    def tolerating(self, name: str) -> Iterator[None]:
        """Around work on one benchmark: bad data takes it from `names`, and its reason is kept.

        Where none is left, and in one that is not tolerant, the DataError goes on.
        """
        try:
            yield
        except DataError as error:
            if not self.tolerant:
                raise
            self.failed[name] = str(error)
            if name in self.names:
                self.names.remove(name)
            if not self.names:
                raise DataError("; ".join(dict.fromkeys(self.failed.values()))) from error

    def find_benchmarks(self) -> list[str]:
        found = [name for name in BENCHMARKS if (self.shards / name / "index.json").exists()]
        if not self.shards.is_dir():
            raise DataError(f"there is no folder {self.shards} (--shards)")
        names = found if self.bench == "all" else self.bench.replace(" ", "").split(",")
        missing = sorted(set(names) - set(found))
        if not found or missing:
            raise DataError(
                f"no shards for {', '.join(missing) or 'any benchmark'} under {self.shards}; "
                f"there are: {', '.join(found) or 'none'}; known: {', '.join(BENCHMARKS)}"
            )
        return names

    def read_labels(self, name: str) -> list[str] | None:
        path = self.shards / name / "labels.json"
        if not BENCHMARKS[name].classes and not path.exists():
            return None
        what = f"{path}, the list of {name}'s classes,"
        try:
            labels = read_json(path, list)
        except DataError as error:
            raise DataError(f"{what} cannot be read: {error}") from error
        if not labels or not all(isinstance(label, str) and label.strip() for label in labels):
            raise DataError(f"{what} should hold names and nothing else")
        if len({*map(str.lower, labels)}) < len(labels):
            raise DataError(f"{what} names a class twice")
        return labels

    @cached_property
    def vector_keys(self) -> dict[str, str]:
        """Of each benchmark a digest of all that its vectors are made of."""
        clap = [sha256(path) for path in weights(self.clap_name)] or self.clap_name
        return {
            name: digest(clap, self.crop, source.index["hash"])
            for name, source in self.sources.items()
        }

    @cached_property
    def keys(self) -> dict[str, str]:
        """Of each benchmark a digest of all that its predictions are made of, but the bridge."""
        made = asdict(self.made)
        return {name: digest(made, key) for name, key in self.vector_keys.items()}

    @cached_property
    def vector_folder(self) -> Path:
        return self.vectors or self.out / "vectors"

    @cached_property
    def clap(self):
        # in float32, whatever the device: vectors are kept, and compared between machines
        clap = ready(load_clap(self.clap_name), self.clap_name, self.ranks.device)
        check_encoder(self.trained_with["probe"], self.config.dim, clap, self.clap_name)
        return clap

    @cached_property
    def model(self) -> MATS:
        model = MATS.from_pretrained(self.ckpt).to(self.ranks.device)
        if model.config.llm_dtype == "float32":  # in another dtype, merging would round the weights
            model.llm.merge_adapter()
        return model

    @cached_property
    def clap_text(self) -> Callable:
        """CLAP's text tower, as scores need it: list of str -> (n, D) unit rows."""
        return text_encoder("clap", lambda: self.clap)

    @cached_property
    def encoders(self) -> dict[str, Callable]:
        """Text matching's encoders by name: list of str -> (n, D) unit rows."""
        return {
            name: self.clap_text if name == "clap" else text_encoder(name, None, self.ranks.device)
            for name in self.match.split(",")
        }

    def like(self, ckpt: Path, out: Path) -> "Evaluation":
        """The same evaluation of another model of the same CLAP; the audio is not encoded again."""
        fresh = {"encoded": {}, "failed": {}, "title": ""}
        return replace(self, ckpt=ckpt, out=out, vectors=self.vector_folder, **fresh)

    def on(self, names: list[str]) -> "Evaluation":
        """The same evaluation on some of its benchmarks; the audio is not encoded again."""
        return replace(self, bench=",".join(names), vectors=self.vector_folder)

    def predictions(self, name: str, column: str) -> Path:
        """The file of one benchmark's answers over one bridge.

        `shift` depends on the audio of all benchmarks, so its key does too.
        """
        key = self.keys[name]
        if column == "shift":
            known = self.vector_keys
            key = digest(key, sorted((name, known[name]) for name in self.names))
        return self.out / column / f"{name}.{key}.jsonl"


def keywords(decoding: str) -> dict:
    """generate's keywords: of a named way of decoding, or given as JSON."""
    if decoding in DECODING:
        return DECODING[decoding]
    try:
        return dict(json.loads(decoding))
    except (ValueError, TypeError):
        example = '{"num_beams": 8}'
        raise DataError(
            f"--decoding {decoding}: neither {', '.join(DECODING)} nor JSON such as '{example}'"
        ) from None
