"""The README's picture, drawn from what experiments.claims leaves.

python -m experiments.picture [--claims out/claims/claims.json] [--out docs/picture.png]

Above, the method. Below on the left, the clouds of texts and audio before and after the bridge. On
the right, scores of the quick start, each with two standard deviations over its runs.

The clouds' plane is the same in both panels. Its first axis points from the mean of the audio to
the mean of the texts, before the bridge; so it shows the gap at its full length. Its second axis is
the direction in which all vectors, without their part along the first, vary most. Nothing is
stretched: a unit on both axes is the length of every vector.
"""

import argparse
import io
import json
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image
from torch import Tensor

from disk import DataError, command

INK, PAPER, GREY, MODEL = "#22303c", "#fbfaf7", "#6b7680", "#3f7f5f"
TEXT, AUDIO = "#2f6db3", "#d1772b"
BARS = {  # a column of the quick start's scores: (words, color)
    "chance": ("chance", "#c3c8cc"),
    "none": ("audio, raw vector", "#eab98c"),
    "santa": ("audio, Santa", AUDIO),
    "best": ("audio, best bridge", "#8a4a12"),
    "text": ("true text (ceiling)", TEXT),
}
SHOWN = {  # a benchmark: its words below the bars
    "sound": "sounds",
    "music": "instruments",
    "mcq": "one of four",
    "yesno": "yes or no",
}


# --- the clouds ---------------------------------------------------------------------------------


def clouds(text: Tensor, audio: Tensor, bridged: Tensor) -> dict[str, list]:
    """{"text", "audio", "bridged": (n, 2) points} of unit vectors (n, D), in the plane above."""
    middle = (text.mean(0) + audio.mean(0)) / 2
    across = torch.nn.functional.normalize(text.mean(0) - audio.mean(0), dim=0)  # (D,)
    rest = torch.cat([text - text.mean(0), audio - audio.mean(0)])
    rest = rest - (rest @ across)[:, None] * across
    along = torch.linalg.svd(rest, full_matrices=False).Vh[0]
    along = along * (along[along.abs().argmax()].sign())  # either sign fits: take one
    plane = torch.stack([across, along], 1)  # (D, 2)
    sides = {"text": text, "audio": audio, "bridged": bridged}
    return {name: ((z - middle) @ plane).round(decimals=3).tolist() for name, z in sides.items()}


def draw_clouds(axes, points: dict, gaps: dict) -> None:
    """Two panels: texts with the raw audio, and with the audio after the bridge."""
    text = np.array(points["text"])
    panels = (("audio", "raw audio"), ("bridged", "audio after Santa"))
    every = np.concatenate([text, *(points[name] for name, _ in panels)])
    middle, size = (every.min(0) + every.max(0)) / 2, np.ptp(every, axis=0) * 1.12
    box = axes[0].get_window_extent()
    unit = max(size[0] / box.width, size[1] / box.height)  # the same on both axes
    half = unit * box.width / 2, unit * box.height / 2
    for axis, (name, words) in zip(axes, panels):
        axis.scatter(*np.array(points[name]).T, s=5, lw=0, color=AUDIO, alpha=0.65)
        axis.scatter(*text.T, s=5, lw=0, color=TEXT, alpha=0.65)
        axis.set(xlim=middle[0] + np.array([-1, 1]) * half[0], xticks=[], facecolor=PAPER)
        axis.set(ylim=middle[1] + np.array([-1, 1]) * half[1], yticks=[])
        axis.set_title(words, size=9.5, color=AUDIO, weight="bold")
        found = gaps[name]
        axis.set_xlabel(
            f"centroids {found['centroid_distance']:.2f} apart\n"
            f"paired cosine {found['paired_cosine']:.2f}",
            color=INK,
            size=8.5,
        )
        for spine in axis.spines.values():
            spine.set(color=GREY, linewidth=0.8)
    axes[0].text(0.97, 0.95, "texts", transform=axes[0].transAxes, color=TEXT, size=9, ha="right")


# --- the method ---------------------------------------------------------------------------------


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


# --- the scores ---------------------------------------------------------------------------------


def draw_bars(axes, scores: dict, best: str, runs: int) -> None:
    """Scores of the quick start as bars, each with two standard deviations over runs."""
    names = [name for name in SHOWN if name in scores]
    for i, (column, (words, color)) in enumerate(BARS.items()):
        label = f"{words}: {best}" if column == "best" else words
        for place, name in enumerate(names):
            x, cell = place + (i - 2) * 0.17, scores[name][column]
            if cell is None:
                continue
            value, spread = cell
            axes.bar(x, value, 0.155, color=color, label=None if place else label)
            if column != "chance":
                axes.plot([x, x], [value - spread, value + spread], color=INK, lw=1)
            top = value + (0 if column == "chance" else spread)
            axes.text(
                x, top + 0.012, f"{value:.2f}".removeprefix("0"), color=INK, size=7.5, ha="center"
            )
    axes.set_xticks(range(len(names)), [SHOWN[name] for name in names], color=INK, size=9)
    axes.set(ylim=(0, 1.34), xlim=(-0.5, len(names) - 0.5), yticks=[], facecolor=PAPER)
    axes.tick_params(length=0)
    axes.spines[["top", "left", "right"]].set_visible(False)
    options = {"frameon": False, "loc": "upper left", "labelcolor": INK, "fontsize": 8.5}
    axes.legend(ncols=2, columnspacing=1.2, handlelength=1.2, borderaxespad=0, **options)
    words = f"mean of {runs} runs ± two standard deviations"
    axes.text(1, 0.835, words, transform=axes.transAxes, color=GREY, size=8, ha="right")


def draw(found: dict, path: Path) -> None:
    """Writes the picture of claims.json's content `found` as a PNG of few colors."""
    figure = Figure(figsize=(9, 6), facecolor=PAPER)
    top, below = figure.add_gridspec(2, 1, height_ratios=(1, 1.25), hspace=0.1)
    left, middle, right = below.subgridspec(1, 3, width_ratios=(0.9, 0.9, 2.3), wspace=0.07)
    figure.subplots_adjust(left=0.015, right=0.985, top=0.985, bottom=0.09)
    draw_method(figure.add_subplot(top))
    panels = [figure.add_subplot(place) for place in (left, middle)]
    draw_clouds(panels, found["picture"]["points"], found["picture"]["gap"])
    runs = sum(noise for _, _, noise in found["runs"])
    draw_bars(figure.add_subplot(right), found["quick start"], found["best bridge"], runs)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=200)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(buffer).convert("RGB").quantize(128).save(path, optimize=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--claims", default="out/claims/claims.json", help="of experiments.claims")
    parser.add_argument("--out", default="docs/picture.png")
    args = parser.parse_args(argv)
    path = Path(args.claims)
    if not path.exists():
        raise DataError(f"{path} is missing; first: python -m experiments.claims")
    draw(json.loads(path.read_text()), Path(args.out))


if __name__ == "__main__":
    with command("picture.py"):
        main()
