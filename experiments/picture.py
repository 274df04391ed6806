"""The README's picture: the method as a drawing, and below it the results that eval.py left.

python -m experiments.picture [--results OUT/results.json] [--out docs/picture.png]
"""

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

INK, PAPER, GREY, MODEL = "#22303c", "#fbfaf7", "#6b7680", "#3f7f5f"
TEXT, AUDIO = "#2f6db3", "#d1772b"
BARS = {  # label: (color, column of results.json)
    "chance": ("#c3c8cc", None),
    "audio, raw vector": ("#eab98c", "none"),
    "audio, Santa": (AUDIO, "santa"),
    "true text (ceiling)": (TEXT, "text"),
}


def box(axes, x, y, width, height, words, color, filled=True):
    """A rounded box in percent of the axes, its words in the middle."""
    face, ink = (color, "white") if filled else (PAPER, color)
    round_box = FancyBboxPatch((x, y), width, height, "round,pad=0,rounding_size=1.4")
    axes.add_patch(round_box).set(facecolor=face, edgecolor=color, linewidth=1.2)
    axes.text(x + width / 2, y + height / 2, words, color=ink, ha="center", va="center", size=8.5)


def arrow(axes, start, end, color=GREY):
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": color, "lw": 1.3})


def draw_method(axes):
    """Both paths into the mapper: a text's vector in training, a sound's vector at inference."""
    axes.set(xlim=(0, 100), ylim=(2, 36))
    axes.axis("off")
    lanes = (
        (25, TEXT, "Training: text only", "“a dog barks in the rain”", "text", "+ noise"),
        (5, AUDIO, "Inference: audio", "", "audio", "Santa\n(memory of texts)"),
    )
    for y, color, title, example, side, bridge in lanes:
        axes.text(1, y + 8.3, title, color=color, size=10, weight="bold", va="center")
        box(axes, 1, y, 19, 6, example, color, filled=False)
        box(axes, 23.5, y, 11, 6, f"CLAP {side}\nencoder", color)
        box(axes, 38, y, 15.5, 6, bridge, color)
        arrow(axes, (20.2, y + 3), (23.3, y + 3))
        arrow(axes, (34.7, y + 3), (37.8, y + 3))
        arrow(axes, (53.8, y + 3), (58.2, 18 + (y - 15) / 4), color)
    x = np.linspace(2.5, 18.5, 65)
    wave = 2.2 * np.sin(x * 1.7) * np.sin((x - 2.5) * 0.393)
    axes.vlines(x, 7.9 - wave, 8.1 + wave, color=AUDIO, lw=1)
    box(axes, 58.5, 13, 10, 10, "Mapper", MODEL)
    box(axes, 72, 13, 14.5, 10, "Language model\n+ LoRA", MODEL)
    box(axes, 90, 14.5, 9, 7, "“dog, rain”", INK, filled=False)
    arrow(axes, (68.7, 18), (71.8, 18))
    arrow(axes, (86.7, 18), (89.8, 18))
    axes.text(79, 28, "“Classify events\nin the audio clip.”", color=GREY, size=8.5, ha="center")
    arrow(axes, (79, 27.2), (79, 23.3))


def draw_bars(axes, results, names):
    """Every benchmark's headline score as bars with their 95 % intervals, beside chance."""
    metrics = [results["headline"][name] for name in names]
    for i, (label, (color, column)) in enumerate(BARS.items()):
        for place, (name, metric) in enumerate(zip(names, metrics, strict=True)):
            x = place + (i - 1.5) * 0.2
            value = top = results["chance"][name][metric]
            if column:
                score = results["columns"][column][name][metric]
                value, (low, top) = score["value"], score["ci95"]
                axes.plot([x, x], [low, top], color=INK, lw=1)
            axes.bar(x, value, 0.18, color=color, label=None if place else label)
            axes.text(x, top + 0.015, f"{value:.2f}", color=INK, size=8, ha="center")
    titles = [f"{results['titles'][name]}\n({m})" for name, m in zip(names, metrics, strict=True)]
    axes.set_xticks(range(len(names)), titles, color=INK, size=8.5)
    axes.set(ylim=(0, 1), xlim=(-0.5, len(names) - 0.5), yticks=[], facecolor=PAPER)
    axes.tick_params(length=0)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.legend(ncols=4, frameon=False, loc="upper left", fontsize=9, labelcolor=INK)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", default="out/tiny/eval/results.json", help="of eval.py")
    parser.add_argument("--out", default="docs/picture.png")
    parser.add_argument("--bench", default="sound,music,mcq,open,yesno", help="comma-separated")
    args = parser.parse_args(argv)
    figure = Figure(figsize=(9, 5.2), facecolor=PAPER)
    top, bottom = figure.subplots(2, height_ratios=(1, 1.05))
    draw_method(top)
    draw_bars(bottom, json.loads(Path(args.results).read_text()), args.bench.split(","))
    figure.subplots_adjust(left=0.015, right=0.985, top=0.98, bottom=0.09, hspace=0.03)
    figure.savefig(args.out, dpi=200)


if __name__ == "__main__":
    main()
