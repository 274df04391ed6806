"""The speed of every part against the obvious way, in one process on this machine.

    python -m experiments.bench                      all parts that this machine can bear
    python -m experiments.bench training kmeans      some of them
    python -m experiments.bench --json               one JSON object

Weights are random and of the true sizes. Samples are as long as real annotations (samples.KINDS). A
time is the median of several, after one that does not count; ± is half of their range, as a share
of it. A rate of arithmetic is compared with that of large matrix products, measured here.
"""

import argparse
import json
import platform
import sys

import torch

from disk import command
from experiments.bench.clock import Machine
from experiments.bench.counting import memory, schedule, waiting
from experiments.bench.encoding import audio, reading, text
from experiments.bench.inference import evaluation, generation, kmeans, kmeans_huge, kmeans_large
from experiments.bench.scaling import scaling
from experiments.bench.training import step, step_llama, training, training_llama, training_small

# A function (machine) -> result. Its docstring is printed.
PARTS = {
    part.__name__: part
    for part in (
        reading, text, audio,
        step, step_llama, training, training_small, training_llama, scaling,
        waiting, memory, schedule,
        generation, evaluation, kmeans, kmeans_large, kmeans_huge,
    )
}  # fmt: skip


def add_ratio(result: dict) -> None:
    if "obvious" not in result:
        return
    ours, obvious = result["ours"], result["obvious"]
    result["times"] = obvious / ours if result["unit"] == "s" else ours / obvious


def show(name: str, result: dict) -> None:
    print(f"{name}: {PARTS[name].__doc__}")
    rest = dict(result)
    unit = rest.pop("unit", "")
    if "ours" in rest:
        line = f"    ours {rest.pop('ours'):.3g} {unit} ± {rest.pop('spread'):.0%}"
        if "obvious" in rest:
            line += f", obvious {rest.pop('obvious'):.3g} {unit} ± {rest.pop('obvious spread'):.0%}"
            line += f": {rest.pop('times'):.2f}x"
        print(line)
    for key, value in rest.items():
        print(f"    {key}: {value}")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="experiments.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dtype",
        default="bfloat16",
        choices=("bfloat16", "float32"),
        help="of training's arithmetic, on both sides",
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    unknown = [name for name in args.parts if name not in PARTS]
    if unknown:
        sys.exit(f"unknown part {', '.join(unknown)}; there are: {', '.join(PARTS)}")
    machine, results = Machine(args.device, args.dtype), {}
    for i, name in enumerate(args.parts, 1):
        print(f"{name} ({i} of {len(args.parts)}) ...", file=sys.stderr)
        results[name] = PARTS[name](machine)
        add_ratio(results[name])
        if not args.json:
            show(name, results[name])
    if args.json:
        about = {
            "device": args.device,
            "dtype": args.dtype,
            "threads": torch.get_num_threads(),
            "machine": torch.cuda.get_device_name() if machine.cuda else platform.processor(),
        }
        print(json.dumps(about | results))


if __name__ == "__main__":
    with command("bench"):
        main()
