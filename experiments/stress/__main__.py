"""What a user's machine does to files, done on purpose: kills, full disks, damage.

    python -m experiments.stress                                 all, in ten minutes on two cores
    python -m experiments.stress kill train eval --n 20          20 kills each
    python -m experiments.stress disk                            disks that fill up
    python -m experiments.stress mutate shards --seed 17 --n 1   one trial again, with its traceback

On a tiny random world, made first. Writes stress.md and stress.json to --out. Ends with status 1
where a run does not resume exactly, or a damaged file is not refused in one line or left out by
name.

Starts are forked: a command begins in a process that has imported torch already. So no kill falls
into the imports, where nothing is written yet.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from multiprocessing import get_context
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

import torch
from tqdm import tqdm

from experiments.stress import kills, readers, world as worlds
from experiments.stress.forks import Ended, command, fork, imported_by, preload
from experiments.stress.kills import Whole, last_line

COMMANDS = ("train", "eval", "embed", "builder")
COUNTS = {"kill": 50, "disk": 10, "mutate": 500}  # of each command or kind of file
CHAIN = 5  # kills of one task
OUTCOMES = ("unchanged", "left out", "changed", "refused", "SILENT", "CRASH", "HANG", "KILLED")
LIMIT = 30  # seconds for a damaged file
ABOUT = """\
On a tiny random world, by `python -m experiments.stress`; the seeds decide the moments and the
damage. Starts are forked from a process that has imported torch already: no kill falls into the
imports. *Exact*: every file that an uninterrupted run leaves is there, bit for bit the same, but
for pictures and for rates in the log. *Changed*: only the damaged bytes' own sample, sound or
tensor differs, which nothing can tell. *SILENT*: others are lost or changed, and nothing tells."""


# --- tasks --------------------------------------------------------------------------------------


def do(task: tuple) -> dict:
    """Runs one task in this process's forks."""
    part, subject, seed, count = task
    if part == "kill":
        return kills.killed(subject, seed, count)
    if part == "disk":
        return kills.full(subject, seed)
    name, folder = subject
    return trial(name, folder, seed) | {"part": "mutate", "name": name, "seed": seed}


def trial(name: str, folder: str, seed: int, show: bool = False) -> dict:
    """Damages and reads one file."""
    ended = fork(readers.TRIALS[name], folder, seed, limit=LIMIT)
    for left in Path(folder).glob("m_*"):
        if not os.path.exists(f"/proc/{left.name[2:]}"):
            shutil.rmtree(left, ignore_errors=True)
    if show:
        print(ended.output)
    damage = next((x for x in ended.output.splitlines() if x.startswith("damage: ")), "")
    found = {"damage": damage.removeprefix("damage: ").replace(folder, "...")}
    found |= {"outcome": outcome(ended), "kind": "", "message": last_line(ended)}
    if not damage:
        found |= {"outcome": "CRASH", "kind": "the trial itself fails"}
    elif found["outcome"] == "CRASH" and ended.error:
        several = " of several lines" if ended.error["kind"] == "SystemExit" else ""
        found["kind"] = f"{ended.error['kind']}{several} at {ended.error['at']}"
        found["message"] = ended.error["message"]
    elif found["outcome"] in ("SILENT", "HANG", "KILLED", "CRASH"):
        found["kind"] = f"{found['outcome']} (status {ended.status})"
    found["message"] = " ".join(found["message"].replace(folder, "...").split())[:200]
    return found


def outcome(ended: Ended) -> str:
    if ended.late:
        return "HANG"
    if ended.status < 0:
        return "KILLED"
    if ended.value is not None:
        return ended.value["outcome"]
    error = ended.error
    if not error:
        return "CRASH"
    refused = {"DataError", "AudioError"} & {*error["bases"]}
    refused = refused or (error["kind"] == "SystemExit" and ended.status == 1)
    return "refused" if refused and "\n" not in error["message"].strip() else "CRASH"


# --- the report ---------------------------------------------------------------------------------


def table(head: str, rows: list[list]) -> str:
    names = head.split(" | ")
    lines = [names, ["---", *["--:"] * (len(names) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def by_name(results: list[dict], part: str) -> dict[str, list[dict]]:
    found = defaultdict(list)
    for result in results:
        if result["part"] == part:
            found[result["name"]].append(result)
    return found


def total(results: list[dict], field: str) -> int:
    return sum(result[field] for result in results)


def markdown(results: list[dict], seconds: dict[str, float]) -> str:
    """The tables, and every problem with the seed that repeats it."""
    parts = [ABOUT]
    if found := by_name(results, "kill"):
        head = "command | uninterrupted | kills | runs that ended | of these exact | in a row"
        rows = [
            [
                name,
                f"{seconds[name]:.1f} s",
                *(total(some, field) for field in ("kills", "finished", "same")),
                max(result["most"] for result in some),
            ]
            for name, some in found.items()
        ]
        parts += ["Killed at random moments, and started again:", table(head, rows)]
    if found := by_name(results, "disk"):
        head = "command | runs | disk was full | one line | then exact"
        rows = [
            [name, len(some), *(total(some, field) for field in ("full", "one_line", "same"))]
            for name, some in found.items()
        ]
        parts += ["The disk is full from a random moment on, and then has room:", table(head, rows)]
    if found := by_name(results, "mutate"):
        rows = []
        for name, some in found.items():
            counts = Counter(result["outcome"] for result in some)
            rows.append([name, len(some), *(counts[name] for name in OUTCOMES)])
        parts += ["Damaged files:", table(f"files | trials | {' | '.join(OUTCOMES)}", rows)]
        parts += [f"- {line}" for line in crashes(found)]
    for result in results:
        name = result["name"]
        parts += [f"- {name}: {problem}" for problem in result.get("problems", ())]
    left = {f"{r['name']}: {file}" for r in results for file in r.get("left", ())}
    parts += [f"- left behind by {line}" for line in sorted(left)]
    return "\n\n".join(parts) + "\n"


def crashes(found: dict[str, list[dict]]) -> list[str]:
    """A line for each kind of failure, the most frequent first."""
    lines = []
    for name, some in found.items():
        kinds = defaultdict(list)
        for result in some:
            if result["kind"]:
                kinds[result["kind"]].append(result)
        for kind, same in sorted(kinds.items(), key=lambda item: -len(item[1])):
            seeds = ", ".join(str(result["seed"]) for result in same[:6])
            more = ", ..." if len(same) > 6 else ""
            first = same[0]
            lines.append(
                f"{name}, {len(same)} x {kind}, seeds {seeds}{more}; "
                f"{first['damage']}: {first['message']}"
            )
    return lines


def failed(result: dict) -> bool:
    return bool(result.get("problems") or result.get("kind"))


# --- the command --------------------------------------------------------------------------------


def prepare(folder: Path, damage: bool) -> None:
    """The world, in forks; and every module that its commands import, here.

    damage: with all that the trials of damaged files need.
    """

    def need(ended):
        if ended.status:
            raise SystemExit(f"stress: the world cannot be made:\n{ended.output[-3000:]}")
        return ended.value

    preload([])
    need(fork(worlds.make, folder, limit=120))
    for name, (module, argv) in worlds.commands(folder).items():
        place = folder / f"first_{name}"
        place.mkdir()
        preload(need(fork(imported_by, module, argv, str(place), limit=120)))
    if damage:
        halve(folder)
        need(fork(readers.remember, str(folder), limit=120))


def halve(folder: Path) -> None:
    """A training run that is killed when six of its twelve updates are saved."""
    module, argv = worlds.commands(folder)["train"]
    place, at = folder / "half", 1.5  # seconds
    for _ in range(60):
        place.mkdir()
        command(module, argv, place, kill_at=at)
        step = fork(saved_step, str(place / "out")).value
        if step == 6:
            return
        at *= 1.2 if step < 6 else 0.9
        shutil.rmtree(place)
    raise SystemExit("stress: no run could be killed half-way")


def saved_step(out: str) -> int:
    """Updates that are saved, with a model beside them."""
    if not os.path.exists(f"{out}/model/step.json"):
        return 0
    return torch.load(f"{out}/state.pt", weights_only=True)["step"]


def tasks_of(args: argparse.Namespace, folder: Path, pool) -> list[tuple]:
    """(part, command or files, seed, count) of all that was asked for."""
    parts = [part for part in ("mutate", "disk", "kill") if args.part in ("all", part)]
    tasks, wholes = [], {}
    if parts != ["mutate"]:
        asked = args.names or COMMANDS
        known = worlds.commands(folder)
        runs = [Whole(name, *known[name], str(folder)) for name in asked]
        wholes = {whole.name: whole for whole in pool.map(Whole.measure, runs)}
    for part in parts:
        n = COUNTS[part] if args.n is None else args.n
        if args.part == "all":
            n = max(1, n * COUNTS[part] // COUNTS["mutate"]) if args.n else n
        for name in args.names or (readers.TRIALS if part == "mutate" else COMMANDS):
            if part == "mutate":
                tasks += [(part, (name, str(folder)), args.seed + i, 1) for i in range(n)]
            elif part == "disk":
                tasks += [(part, wholes[name], args.seed + i, 1) for i in range(n)]
            else:  # in chains
                starts = range(0, n, CHAIN)
                tasks += [(part, wholes[name], args.seed + i, min(CHAIN, n - i)) for i in starts]
    return tasks


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("part", nargs="?", default="all", choices=("all", *COUNTS))
    add("names", nargs="*", help=f"{', '.join(COMMANDS)}; mutate: {', '.join(readers.TRIALS)}")
    add("--seed", type=int, default=0, help="of the first; each has the next")
    add(
        "--n",
        type=int,
        help=f"of each; default: {COUNTS}; all: of mutations, the rest as many less",
    )
    add("--out", type=Path, default=Path("out/stress"))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # no thread
    known = {"all": (), "mutate": readers.TRIALS}.get(args.part, COMMANDS)
    if unknown := set(args.names) - {*known}:
        parser.error(f"no {', '.join(unknown)} in {args.part}; there are: {', '.join(known)}")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), args.part in ("all", "mutate"))
        with get_context("fork").Pool(2) as pool:
            tasks = tasks_of(args, Path(folder), pool)
            if args.part == "mutate" and len(tasks) == 1:
                print(trial(*tasks[0][1], tasks[0][2], show=True))
                return
            bar = tqdm(pool.imap_unordered(do, tasks), total=len(tasks), unit=" tasks")
            for result in bar:
                results.append(result)
                bar.set_postfix(failed=sum(map(failed, results)), refresh=False)
    seconds = {task[1].name: task[1].seconds for task in tasks if task[0] == "kill"}
    results.sort(key=lambda result: (result["part"], result["name"], result.get("seed", 0)))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "stress.json").write_text(json.dumps(results, indent=1))
    text = markdown(results, seconds)
    (args.out / "stress.md").write_text(text)
    print(text)
    if any(map(failed, results)):
        sys.exit(1)


if __name__ == "__main__":
    main()
