"""Ask about sound files.

    python sample.py dog.wav                                       what is in it?
    python sample.py *.mp3 --ask "Is there a siren?" --json        one JSON line per file
    python sample.py dog.wav --ckpt out/mats_gpt2/model --bridge none
    python sample.py dog.wav --ckpt user/name                      a model on the hub
    python sample.py dog.wav --explain                             and which texts were retrieved?

Any format that libsndfile reads, any length. Files that cannot be read are named on stderr, and the
exit status is then 1.
"""

import argparse
import json
import sys
from dataclasses import replace

import torch

from audio import CROPS, AudioError
from clap import encode_file, load_clap
from disk import DataError, command
from distributed import find_device
from encoders.checks import check_encoder, ready
from hub import find_model
from mats import MATS, read_config
from santa import BRIDGES, RELEASED_NORM, Bridge, Explanation, bridge


def options(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE")
    add("--ask", default="Generate audio caption.", help="instruction or question")
    ckpt = "a model as train.py writes it, or one on the hub: user/name or user/name@revision"
    add("--ckpt", default="out/tiny/model", help=ckpt)
    clap = "instead of the CLAP that the model names; needed where that is module:factory"
    add("--clap", default="", help=clap)
    across = "across the modality gap (santa.py); default: santa, or none without a memory"
    add("--bridge", choices=BRIDGES, help=across)
    add("--crop", default="windows", choices=CROPS, help="of long files")
    add("--seed", type=int, default=0, help="of random crops and fresh noise")
    add("--batch", type=int, default=32)
    add("--json", action="store_true", help="JSON lines: file, instruction, answer")
    retrieved = "also the texts of the memory that the bridge retrieved, with their weights"
    add("--explain", action="store_true", help=retrieved)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    if args.batch < 1:
        parser.error("--batch should be 1 or more")
    if not 0 <= args.seed < 2**63:
        parser.error("--seed should be 0 or more, and below 2^63")
    return args


def main(argv=None) -> int:
    """The exit status: 1 where a file cannot be read. Raises DataError."""
    args = options(argv)
    ckpt = find_model(args.ckpt)
    name = read_config(ckpt, clap=args.clap)[0].clap
    device = find_device(args.device)
    model = MATS.from_pretrained(ckpt).to(device)
    check_question(model, args.ask)
    generator = torch.Generator().manual_seed(args.seed)
    across = bridge_of(model, args.bridge, generator)
    if args.explain:
        check_texts(across, args.ckpt)
    clap = ready(load_clap(name), name, device)
    check_encoder(model.probe, model.config.dim, clap, name)

    failed = 0
    for start in range(0, len(args.files), args.batch):
        files, vectors = [], []
        for file in args.files[start : start + args.batch]:
            try:
                vectors.append(encode_file(clap, file, args.crop, generator).cpu())  # (D,)
                files.append(file)
            except ValueError as error:
                reason = error if isinstance(error, AudioError) else f"{file}: {error}"
                print(f"sample.py: {reason}", file=sys.stderr)
                failed += 1
        if files:
            z, explanations = across.explain(torch.stack(vectors))
            for each in zip(files, answers(model, z, args.ask), explanations):
                show(args, *each)
    return 1 if failed else 0


def check_question(model: MATS, question: str) -> None:
    """Raises DataError where the model cannot be asked this."""
    try:
        question.encode()
        model.template.prompts([question])
    except UnicodeEncodeError as error:
        raise DataError(f"--ask {question!r} holds characters that are no text: {error}") from error
    except ValueError as error:
        raise DataError(f"--ask: {error}") from error


def answers(model: MATS, z: torch.Tensor, question: str) -> list[str]:
    try:
        return model.generate(z, [question] * len(z))
    except ValueError as error:  # with the template and the answer it does not fit the model
        raise DataError(f"--ask: {error}") from error


def bridge_of(model: MATS, name: str | None, generator) -> Bridge:
    """The bridge of that name, of unit vectors (B, D)."""
    name = name or ("none" if model.santa is None else "santa")
    if name == "shift":
        raise DataError(
            "--bridge shift needs the mean of many clips' vectors, which eval.py has and sample.py "
            "has not: choose another bridge"
        )
    if model.santa is None and name not in ("none", "santa-mb"):
        raise DataError(f"--bridge {name}: this model has no memory; use --bridge none")
    try:
        across = bridge(name, model.santa, generator=generator)
    except ValueError as error:
        raise DataError(f"--bridge {name}: {error}") from error
    if name == "official":
        return replace(across, prepare=lambda z: RELEASED_NORM * z)
    return across


def check_texts(across: Bridge, ckpt: str) -> None:
    """Says on stderr where the bridge reads a memory that keeps no texts."""
    if across.santa is not None and across.santa.texts is None:
        print(
            f"sample.py: {ckpt} keeps no texts beside its memory, as it is of an earlier version: "
            "rows go by number. To add texts, delete step.json in the model's folder and repeat "
            "its train command, which then only writes it again",
            file=sys.stderr,
        )


def show(args, file, answer, explanation):
    if args.json:
        line = {"file": file, "instruction": args.ask, "answer": answer}
        if args.explain:
            line["explain"] = as_json(explanation)
        print(json.dumps(line, ensure_ascii=False))
        return
    print(answer if len(args.files) == 1 else f"{file}: {answer}")
    if args.explain:
        for line in lines(explanation):
            print(f"    {line}")


def lines(explanation: Explanation) -> list[str]:
    """What the bridge did, then the retrieved texts with their weights, a line each."""
    turned = (
        f"the bridge turned the vector by {explanation.degrees:.1f} degrees "
        f"(cosine {explanation.cosine:.2f})"
    )
    if not explanation.retrieved:
        return [f"{turned}; it retrieved no text"]
    if cluster := explanation.cluster:
        turned = f"cluster {cluster.number} of {cluster.of} ({cluster.size} texts); {turned}"
    texts = [one.text or f"row {one.row}" for one in explanation.retrieved]
    found = [
        f"{one.weight:.3f}  {' '.join(text.split())}"
        for one, text in zip(explanation.retrieved, texts)
    ]
    more = [f"and {explanation.more:,} more"] if explanation.more else []
    return [turned, *found, *more]


def as_json(explanation: Explanation) -> dict:
    cluster, retrieved = explanation.cluster, explanation.retrieved
    return explanation._asdict() | {
        "cluster": cluster and cluster._asdict(),
        "retrieved": [one._asdict() for one in retrieved],
    }


if __name__ == "__main__":
    with command("sample.py"):
        status = main()
    sys.exit(status)
