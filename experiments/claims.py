"""The paper's claims as experiments on the small world.

    python -m experiments.claims                        every claim, over seeds and CPU settings
    python -m experiments.claims --seeds 0,1 --settings base,avx2
    python -m experiments.claims --picture docs/picture.png

Runs the quick start again and again (experiments/runs.py), then leaves in RUNS:
    claims.md, claims.json    the quick start's scores, and each claim with its p value
    picture.png               both clouds before and after the bridge, and the scores
Settings of Santa are swept over the first setting's runs, too (experiments/sweeps.py).

A claim is a difference between two columns, on benchmarks that are scored clip by clip. Two spreads
stand beside it, and neither covers the other:
    over clips    95 % interval and p. A clip's score is first averaged over the runs; then a paired
                  test over clips. It asks: would other clips of this kind say the same of these
                  runs? It knows nothing of runs that were not made.
    over runs     mean and standard deviation of the difference, and in how many runs it has the
                  sign of the mean. It asks: would another training run say the same of these clips?
                  Runs of one setting share a world, so they are more alike than strangers' runs.

A value or a bridge that is the best of several is chosen on one half of the clips and tested on the
other: the best of many on the same clips looks better than it is.
"""

import argparse
import json
import math
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch.nn.functional as F

from disk import DataError, command, write_atomic
from eval import pairs
from experiments import picture
from experiments.differences import best_of, compare, halved
from experiments.runs import CLAIMED, SETTINGS, Result, Run, finish
from experiments.sweeps import AROUND, VALUES, both_rounds
from santa import gap
from scoring.paper import ABLATIONS

ALPHA = 0.05
CANDIDATES = ("nearest", "memory", "projection", "shift")  # for the best bridge beside Santa
QUIET = " without noise"  # after a column: of the runs that were trained without noise
BEST = "best"  # stands for the best of CANDIDATES


class Claim(NamedTuple):
    """The first column is better than the second, the claim says."""

    words: str
    better: str
    worse: str
    rows: tuple[str, str] | None = None  # the two rows of the paper's Table 4 that say so


CLAIMS = (
    Claim("text-only training carries over to audio: Santa above chance", "santa", "chance"),
    Claim("the same without a bridge: raw audio above chance", "none", "chance"),
    Claim("noise in training helps raw audio", "none", "none" + QUIET),
    Claim(
        "noise in training and memory helps Santa (w/o GN)",
        "santa",
        "santa" + QUIET,
        ("MATS-LLaMA", "w/o GN"),
    ),
    Claim("a memory helps: the best bridge beside Santa above raw audio", BEST, "none"),
    Claim("Santa above raw audio (w/o MB)", "santa", "none", ("MATS-LLaMA", "w/o MB")),
    Claim("Santa above DRCap's memory", "santa", "memory", ("MATS-LLaMA", "Memory-based")),
    Claim("Santa above projection", "santa", "projection"),
    Claim("Santa above the nearest text", "santa", "nearest"),
    Claim("Santa above shift", "santa", "shift"),
    Claim("Santa above the best bridge beside it", "santa", BEST),
    Claim("k-means helps (w/o K-means)", "santa", "santa-kmeans", ("MATS-LLaMA", "w/o K-means")),
    Claim("the audio vector helps (w/o AE)", "santa", "santa-ae", ("MATS-LLaMA", "w/o AE")),
    Claim("noise in the memory helps", "santa", "santa-gn"),
)
QUICK_START = {  # a column of the quick start's table: its title
    "clap": "CLAP, zero-shot",
    "none": "raw audio",
    "santa": "Santa",
    BEST: "best bridge",
    "text": "true text",
}


# --- the claims ---------------------------------------------------------------------------------


def side_of(results: list[Result], column: str, half: bool | None = None) -> dict:
    """{benchmark: [{clip: score} of each run]}; half: True the first, False the second."""
    names = results[0].clips[column]
    return {
        name: [halved(result.clips[column][name], half) for result in results] for name in names
    }


def best_bridge(results: list[Result]) -> str:
    return best_of({column: side_of(results, column, True) for column in CANDIDATES})


def tested(results: list[Result]) -> dict[str, dict]:
    """{a claim's words: its tests}; claims whose runs are missing are left out."""
    noisy = [result for result in results if result.noise]
    quiet = {(r.setting, r.seed): r for r in results if not r.noise}
    twins = [result for result in noisy if (result.setting, result.seed) in quiet]
    best, found = best_bridge(noisy), {}
    for claim in CLAIMS:
        half = False if BEST in (claim.better, claim.worse) else None
        columns = [best if c == BEST else c for c in (claim.better, claim.worse)]
        if columns[1].endswith(QUIET):
            if not twins:
                continue
            a = side_of(twins, columns[0], half)
            others = [quiet[result.setting, result.seed] for result in twins]
            b = side_of(others, columns[1].removesuffix(QUIET), half)
        else:
            a, b = (side_of(noisy, column, half) for column in columns)
        found[claim.words] = compare(a, b) | {"columns": columns, "paper": of_paper(claim)}
    return found


def of_paper(claim: Claim) -> float | None:
    """The difference of CIDEr-D on AudioCaps in the paper's Table 4."""
    if claim.rows is None:
        return None
    better, worse = (ABLATIONS["table4"][row]["CIDEr-D"] for row in claim.rows)
    return round(better - worse, 3)


def verdict(test: dict) -> str:
    """The runs' answer to a claim. Chance means: p of at least ALPHA."""
    runs = len(test["each"])
    if test["p"] >= ALPHA:
        return "no difference beyond chance"
    words = "holds" if test["difference"] > 0 else "the opposite holds"
    return words if test["same"] == runs else f"{words}, though not in every run"


# --- tables -------------------------------------------------------------------------------------


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def head(*cells: str) -> list[str]:
    return [row(*cells), "|---|" + "--:|" * (len(cells) - 1)]


def signed(value: float) -> str:
    return f"{value:+.3f}"


def p_value(p: float) -> str:
    return "p < .001" if p < 0.001 else f"p = {p:.2g}"


def p_cell(test: dict) -> str:
    return p_value(test["p"]).removeprefix("p ").removeprefix("= ")


def over_clips(test: dict) -> str:
    low, high = test["ci95"]
    return f"{signed(test['difference'])} [{signed(low)}, {signed(high)}]"


def over_runs(test: dict) -> str:
    same = f"{test['same']} of {len(test['each'])}"
    return same if test["sd"] is None else f"± {test['sd']:.3f}, {same}"


def brief(test: dict) -> str:
    return f"{signed(test['difference'])}, {p_value(test['p'])}"


def claims_table(found: dict[str, dict]) -> list[str]:
    """One line a claim."""
    lines = head("claim", "over clips [95 %]", "p", "over runs", "paper", "here")
    for words, tests in found.items():
        test = tests["together"]
        paper = "–" if tests["paper"] is None else signed(tests["paper"])
        cells = over_clips(test), p_cell(test), over_runs(test)
        lines.append(row(words, *cells, paper, verdict(test)))
    return lines


def benchmark_table(found: dict[str, dict]) -> list[str]:
    """The same claims on each benchmark alone."""
    names = [name for name in next(iter(found.values())) if name in CLAIMED]
    lines = head("claim", *(CLAIMED[name] for name in names))
    for words, tests in found.items():
        lines.append(row(words, *(brief(tests[name]) for name in names)))
    return lines


def value_of(result: Result, column: str, name: str) -> float | None:
    """A headline score of a run, as eval.py found it."""
    results = result.results
    metric = results["headline"][name]
    if column == "chance":
        return results["chance"][name].get(metric)
    cells = results["clap"] if column == "clap" else results["columns"][column]
    return cells.get(name, {}).get(metric, {}).get("value")


def spread(results: list[Result], column: str, name: str) -> tuple[float, float] | None:
    """(mean, two standard deviations) over runs; None where the column has no score."""
    values = [value_of(result, column, name) for result in results]
    if None in values:
        return None
    return float(np.mean(values)), 2 * float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def quick_start(results: list[Result], best: str) -> dict[str, dict]:
    """{benchmark: {"title", "metric", column: [mean, two sd] or None}}."""
    first, found = results[0].results, {}
    for name, title in first["titles"].items():
        found[name] = {"title": title, "metric": first["headline"][name]}
        for column in ("chance", *QUICK_START):
            found[name][column] = spread(results, best if column == BEST else column, name)
    return found


def quick_start_table(found: dict[str, dict], best: str) -> list[str]:
    titles = [f"{title}: {best}" if c == BEST else title for c, title in QUICK_START.items()]
    lines = head("task (metric, chance)", *titles)
    for scores in found.values():
        chance = "" if scores["chance"] is None else f", {scores['chance'][0]:.2f}"
        cells = [plus_minus(scores[column]) for column in QUICK_START]
        lines.append(row(f"{scores['title']} ({scores['metric']}{chance})", *cells))
    return lines


def plus_minus(cell: tuple[float, float] | None) -> str:
    """Mean ± spread, which is rounded up."""
    return "–" if cell is None else f"{cell[0]:.2f} ± {math.ceil(100 * cell[1]) / 100:.2f}"


def coverage(results: list[Result], best: str) -> tuple[int, int]:
    """(inside, all) scores of each run, against mean ± two sd of the *other* runs."""
    inside = total = 0
    for name in results[0].results["titles"]:
        for column in QUICK_START:
            column = best if column == BEST else column
            values = [value_of(result, column, name) for result in results]
            if None in values:
                continue
            for i, value in enumerate(values):
                others = values[:i] + values[i + 1 :]
                far = abs(value - np.mean(others))
                inside += bool(far <= 2 * np.std(others, ddof=1) + 1e-9)
                total += 1
    return inside, total


def runs_table(results: list[Result]) -> list[str]:
    """Every run's own scores."""
    shown = [("sound", "none"), ("sound", "santa"), ("sound", "text"), ("music", "santa")]
    shown.append(("mcq", "santa"))
    shown = [(n, c) for n, c in shown if n in results[0].results["titles"]]
    titles = {"none": "raw audio", "santa": "Santa", "text": "true text"}
    lines = head("run", *(f"{CLAIMED[name]}: {titles[column]}" for name, column in shown))
    for result in results:
        label = f"{result.setting}, seed {result.seed}" + ("" if result.noise else QUIET)
        cells = [f"{value_of(result, column, name):.3f}" for name, column in shown]
        lines.append(row(label, *cells))
    return lines


# --- the page -----------------------------------------------------------------------------------


def page(results: list[Result], found: dict) -> str:
    noisy = [result for result in results if result.noise]
    settings = list(dict.fromkeys(result.setting for result in noisy))
    failed = [
        f"- {words}: {verdict(tests['together'])} ({brief(tests['together'])})"
        for words, tests in found["claims"].items()
        if not verdict(tests["together"]).startswith("holds")
    ]
    tests = len(found["claims"]) * (1 + len(CLAIMED))
    lines = [
        "# The paper's claims on the small world",
        "",
        f"{len(noisy)} runs: {', '.join(map(described, settings))}. Seeds of MATS's training: "
        f"{', '.join(map(str, sorted({result.seed for result in noisy})))}. Every setting has "
        "a world of its own.",
        "",
        "## The quick start",
        "",
        "Mean over these runs ± two standard deviations. The best bridge was chosen on one half of "
        "the clips; its scores here are on all of them.",
        "",
        *quick_start_table(found["quick start"], found["best bridge"]),
        "",
        *covered(found["coverage"]),
        "## The claims",
        "",
        f"The difference between two columns: the mean of those on {', '.join(named(results))}. "
        "Over clips: its 95 % interval and p, of scores averaged over runs. Over runs: its "
        "standard deviation, and in how many runs it has the same sign. The paper's column is "
        "CIDEr-D on AudioCaps (Table 4).",
        "",
        *claims_table(found["claims"]),
        "",
        f"A claim holds where p is below {ALPHA}. Of these {tests} tests of claims, "
        f"{tests * ALPHA:.0f} would come below it if there were no difference anywhere. Claims "
        "about noise compare runs of one seed. Claims about the best bridge are tested on the "
        "clips that it was not chosen on.",
        "",
        "What does not hold here:",
        "",
        *(failed or ["- nothing: every claim holds"]),
        "",
        "## The claims, task by task",
        "",
        *benchmark_table(found["claims"]),
        "",
        *sweeps_section(found.get("sweeps")),
        "## Every run",
        "",
        *runs_table(results),
        "",
    ]
    return "\n".join(lines)


def sweeps_section(found: dict | None) -> list[str]:
    """Every sweep of both rounds, and what the best values are worth."""
    if not found:
        return []
    lines = [
        "## Santa's settings",
        "",
        "Each setting changed alone. Its best value was chosen on one half of the clips; the "
        "difference and p are of the other half, on all tasks together, against the value at the "
        "left.",
        "",
    ]
    for turn, sweeps in enumerate(found["rounds"]):
        lines += [f"Around {AROUND[turn]}:", "", *sweeps_table(sweeps), ""]
    if found["whole"]:
        values = ", ".join(f"{name} {short(value)}" for name, value in found["best"].items())
        test = found["whole"]["together"]
        lines += [
            f"Santa with all best values of the first round ({values}) against the runs' own "
            f"Santa, on the other half: {over_clips(test)}, {p_value(test['p'])}; over runs "
            f"{over_runs(test)}.",
            "",
        ]
    for turn, sweeps in enumerate(found["rounds"]):
        for name, sweep in sweeps.items():
            lines += [f"### {name}, around {AROUND[turn]}", "", *values_table(name, sweep), ""]
    return lines


def sweeps_table(sweeps: dict[str, dict]) -> list[str]:
    """One line a setting."""
    lines = head("setting", "reference", "best here", "on the other half [95 %]", "p", "over runs")
    for name, sweep in sweeps.items():
        cells = ["–"] * 3
        if sweep["test"]:
            test = sweep["test"]["together"]
            cells = [over_clips(test), p_cell(test), over_runs(test)]
        lines.append(row(name, short(sweep["reference"]), short(sweep["best"]), *cells))
    return lines


def short(label: str) -> str:
    """A swept value in three digits, whole numbers in all of theirs."""
    return label if label.isdigit() else f"{float(label):.3g}"


def values_table(name: str, sweep: dict) -> list[str]:
    """One line a value: the mean of every task, and the test against the reference."""
    tasks = list(next(iter(sweep["rows"].values())))
    lines = head(name, *(CLAIMED[task] for task in tasks), "all: against the reference")
    for label in sorted(sweep["rows"], key=float):
        cells = [f"{sweep['rows'][label][task]:.3f}" for task in tasks]
        test = sweep["tests"].get(label)
        last = brief(test["together"]) if test else "reference"
        lines.append(row(short(label), *cells, last))
    return lines


def described(setting: str) -> str:
    words = " ".join(f"{name}={value}" for name, value in SETTINGS[setting].items())
    return f"{setting} (`{words}`)" if words else f"{setting} (no variables)"


def named(results: list[Result]) -> list[str]:
    return [CLAIMED[name] for name in results[0].clips["santa"]]


def covered(coverage: tuple[int, int] | None) -> list[str]:
    if coverage is None:
        return []
    inside, total = coverage
    share = f"{inside:,} of {total:,} scores ({inside / total:.0%})"
    text = f"Each run in turn left out: {share} lie within mean ± two sd of the other runs."
    return [text, ""]


# --- the command line ---------------------------------------------------------------------------


def analyse(results: list[Result]) -> dict:
    """All that claims.json holds of the runs."""
    noisy = [result for result in results if result.noise]
    best = best_bridge(noisy)
    return {
        "runs": [[result.setting, result.seed, result.noise] for result in results],
        "best bridge": best,
        "quick start": quick_start(noisy, best),
        "coverage": coverage(noisy, best) if len(noisy) > 2 else None,
        "claims": tested(results),
    }


def picture_of(run: Run, most: int = 350) -> dict:
    """{"points", "gap"}: texts and audio of the same clips, before and after Santa."""
    text, audio = pairs(run.evaluation, most)
    bridged = F.normalize(run.evaluation.model.santa(audio), dim=1)
    measured = {"audio": gap(text, audio), "bridged": gap(text, bridged)}
    return {"points": picture.clouds(text, audio, bridged), "gap": measured}


def planned(args: argparse.Namespace) -> list[Run]:
    """All runs, the noisy ones of the first setting first."""
    seeds, others = whole_numbers("--seeds", args.seeds), args.setting_seeds or args.seeds
    settings, options = args.settings.split(","), tuple(shlex.split(args.train))
    if unknown := [setting for setting in settings if setting not in SETTINGS]:
        raise DataError(f"--settings: no {', '.join(unknown)}; there are {', '.join(SETTINGS)}")
    root, runs = Path(args.runs), []
    for setting in dict.fromkeys(settings):
        is_first = setting == settings[0]
        own = seeds if is_first else whole_numbers("--setting-seeds", others)
        runs += [Run(root, setting, seed, True, options) for seed in own]
        if is_first:
            runs += [Run(root, setting, seed, False, options) for seed in own]
    return runs


def sweep_names(text: str) -> list[str]:
    names = list(dict.fromkeys(text.split(","))) if text else []
    if unknown := [name for name in names if name not in VALUES]:
        raise DataError(f"--sweeps: no {', '.join(unknown)}; there are {', '.join(VALUES)}")
    return names


def whole_numbers(option: str, text: str) -> list[int]:
    try:
        return list(dict.fromkeys(int(word) for word in text.split(",")))
    except ValueError:
        raise DataError(f"{option} {text}: expected whole numbers, such as 0,1,2") from None


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--runs", default="out/claims", help="folder of the runs and of the results")
    add("--seeds", default="0,1,2", help="of the first setting")
    add("--settings", default=",".join(SETTINGS), help="of CPU rounding: experiments/runs.py")
    add("--setting-seeds", help="of the other settings; default: as --seeds")
    swept = "Santa's settings to sweep over the first setting's runs; empty: none"
    add("--sweeps", default=",".join(VALUES), metavar="NAMES", help=swept)
    add("--train", default="", help='more options of train.py, as in --train="--steps=100"')
    add("--picture", help="where the picture goes; default: RUNS/picture.png")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = arguments().parse_args(argv)
    plan, swept, root = planned(args), sweep_names(args.sweeps), Path(args.runs)
    results = finish(plan)
    found = analyse(results) | {"picture": picture_of(plan[0])}
    if swept:
        alike = [run for run in plan if run.noise and run.setting == plan[0].setting]
        found["sweeps"] = both_rounds(alike, swept)
    drawn = Path(args.picture or root / "picture.png")
    write_atomic(root / "claims.json", json.dumps(found, indent=1).encode())
    write_atomic(root / "claims.md", page(results, found).encode())
    picture.draw(found, drawn)
    print("\n".join(claims_table(found["claims"])))
    print(f"\nall tables: {root / 'claims.md'}; the picture: {drawn}")


if __name__ == "__main__":
    with command("claims.py"):
        main()
