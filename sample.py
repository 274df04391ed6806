"""Ask about sound files.

    python sample.py dog.wav                                       what is in it?
    python sample.py *.mp3 --ask "Is there a siren?" --json        one JSON line per file
    python sample.py dog.wav --ckpt out/mats_gpt2/model --bridge none

Any format that libsndfile reads, any length. A file that cannot be read is named on stderr; the others are answered.
"""

import argparse
import json
import sys

import torch

from audio import AudioError
from clap import encode_file, load_clap
from mats import MATS
from santa import BRIDGES, RELEASED_NORM, bridge


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--ask", default="Generate audio caption.", help="instruction or question")
    parser.add_argument("--ckpt", default="out/tiny/model", help="a model as train.py writes it")
    parser.add_argument(
        "--bridge",
        default="santa",
        choices=list(BRIDGES),
        help="across the modality gap (santa.py)",
    )
    parser.add_argument(
        "--crop", default="windows", choices=("center", "random", "windows"), help="of long files"
    )
    parser.add_argument("--seed", type=int, default=0, help="of random crops and fresh noise")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--json", action="store_true", help="JSON lines: file, instruction, answer")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)

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

    norm, failed = RELEASED_NORM if args.bridge == "official" else 1.0, 0
    for start in range(0, len(args.files), args.batch):
        files, vectors = [], []
        for file in args.files[start : start + args.batch]:
            try:
                vectors.append(encode_file(clap, file, args.crop, generator).cpu())  # (D,)
                files.append(file)
            except AudioError as e:
                print(f"sample.py: {e}", file=sys.stderr)
                failed += 1
        if not files:
            continue
        for file, answer in zip(
            files, model.generate(across(norm * torch.stack(vectors)), [args.ask] * len(files))
        ):
            if args.json:
                print(
                    json.dumps(
                        {"file": file, "instruction": args.ask, "answer": answer},
                        ensure_ascii=False,
                    )
                )
            else:
                print(answer if len(args.files) == 1 else f"{file}: {answer}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
