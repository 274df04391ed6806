"""Ask about sound files.

    python sample.py dog.wav                                       what is in it?
    python sample.py *.mp3 --ask "Is there a siren?" --json        one JSON line per file
    python sample.py dog.wav --ckpt out/mats_gpt2/model --bridge none

Any format that libsndfile reads, any length. Files that cannot be read are named on stderr.
"""

import argparse
import json
import sys

import torch

from audio import CROPS, AudioError
from clap import encode_file, load_clap
from mats import MATS
from santa import BRIDGES, RELEASED_NORM, bridge


def options(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE")
    add("--ask", default="Generate audio caption.", help="instruction or question")
    add("--ckpt", default="out/tiny/model", help="a model as train.py writes it")
    add("--bridge", default="santa", choices=BRIDGES, help="across the modality gap (santa.py)")
    add("--crop", default="windows", choices=CROPS, help="of long files")
    add("--seed", type=int, default=0, help="of random crops and fresh noise")
    add("--batch", type=int, default=32)
    add("--json", action="store_true", help="JSON lines: file, instruction, answer")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(argv)


def main(argv=None):
    args = options(argv)
    try:
        model = MATS.from_pretrained(args.ckpt).to(args.device)
    except FileNotFoundError as e:
        sys.exit(f"sample.py: {e}")
    clap, generator = load_clap(model.config.clap), torch.Generator().manual_seed(args.seed)
    if isinstance(clap, torch.nn.Module):
        clap.to(args.device)
    try:
        across = bridge(args.bridge, model.santa, generator=generator)
    except ValueError as e:
        sys.exit(f"sample.py: {e}")

    norm = RELEASED_NORM if args.bridge == "official" else 1.0
    failed = 0
    for start in range(0, len(args.files), args.batch):
        files, vectors = [], []
        for file in args.files[start : start + args.batch]:
            try:
                vectors.append(encode_file(clap, file, args.crop, generator).cpu())  # (D,)
                files.append(file)
            except AudioError as e:
                print(f"sample.py: {e}", file=sys.stderr)
                failed += 1
        if files:
            z = norm * torch.stack(vectors)  # (B, D)
            answers = model.generate(across(z), [args.ask] * len(files))
            for file, answer in zip(files, answers):
                show(args, file, answer)
    return 1 if failed else 0


def show(args, file, answer):
    if args.json:
        line = {"file": file, "instruction": args.ask, "answer": answer}
        print(json.dumps(line, ensure_ascii=False))
    elif len(args.files) == 1:
        print(answer)
    else:
        print(f"{file}: {answer}")


if __name__ == "__main__":
    sys.exit(main())
