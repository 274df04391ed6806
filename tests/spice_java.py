"""A stand-in for Java that plays SPICE: only rows that it has scores of, and its real quirks.

Environment: STAND_IN_FOLDER has rows.json, {"test | ref | ref": F1}, and log, a line of JSON for
each run. STAND_IN_VERSION is Java's. STAND_IN is what goes wrong. Words of a caption go wrong too:
`hang` never ends, `heap` takes all memory, `crash` ends the parser.

With -cache FOLDER it stores the captions that it parsed in FOLDER/data.mdb when all are parsed.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

OPENED = {"lang", "math", "util", "util.concurrent", "net", "text"}
PRINTED = """********  SPICE Evaluation  ********

All tuples
  f-score:\t{:.3f} (SPICE metric)
  precision:\t0.900
  recall:\t0.800
  true pos:\t1
  false pos:\t1
  false neg:\t1
  num images:\t{}
"""


def main(args):
    mode, folder = os.environ.get("STAND_IN", ""), Path(os.environ["STAND_IN_FOLDER"])
    version = os.environ.get("STAND_IN_VERSION", "17.0.15")
    if args == ["-version"]:
        if mode == "broken":
            sys.exit("Unable to locate a Java Runtime")
        said = f'openjdk version "{version}" 2025-04-15'
        return print("Picked up JAVA_TOOL_OPTIONS: -Dx=y", said, sep="\n", file=sys.stderr)
    number = int(version.removeprefix("1.").split(".")[0])
    place = args.index("edu.anu.spice.SpiceScorer")
    machine, source, rest = args[:place], Path(args[place + 1]), args[place + 2 :]
    given = dict(zip(rest[::2], rest[1::2]))
    assert given.keys() <= {"-cache", "-out"}, rest
    assert machine[0].startswith("-Xmx") and "-Duser.language=en" in machine
    opened = [option for option in machine if option.startswith("--add-opens")]
    if opened and number < 9:
        sys.exit(f"Unrecognized option: {opened[0]}")
    rows = json.loads(source.read_bytes())
    entry = {
        "args": args,
        "pid": os.getpid(),
        "parent": os.getppid(),
        "rows": len(rows),
        "parsed": [],
    }
    captions = dict.fromkeys(text for row in rows for text in (row["test"], *row["refs"]))
    try:
        cached = stored(given, opened, number)
        entry["parsed"] = [text for text in captions if text not in cached]
        with open(folder / "log", "a") as log:
            log.write(json.dumps(entry) + "\n")
        fail(mode, entry["parsed"])
        answer(mode, folder, rows, given, number, machine)
    except Failed as failed:
        sys.exit(f"Error: Could not score batched file input:\n{failed}\n\tat edu.anu.spice")
    if "-cache" in given:
        Path(given["-cache"], "data.mdb").write_text(json.dumps([*cached, *captions]))
    return None


class Failed(Exception):
    pass


def stored(given, opened, number):
    """The captions in the cache."""
    if "-cache" not in given:
        return []
    path = Path(given["-cache"], "data.mdb")
    if number >= 16 and len(opened) < len(OPENED):
        raise Failed("java.lang.reflect.InaccessibleObjectException")
    if not path.parent.is_dir():
        raise Failed("org.fusesource.lmdbjni.LMDBException: No such file or directory")
    trouble = {"read-only": "Read-only file system", "full disk": "No space left on device"}
    if said := trouble.get(os.environ.get("STAND_IN")):
        raise Failed(f"org.fusesource.lmdbjni.LMDBException: {said}")
    if not path.exists():
        return []
    if path.read_text() == "cut off":  # it is mapped into memory
        print("# A fatal error has been detected\n#\n#  SIGBUS (0x7) at pc=0x00007f", flush=True)
        os.abort()
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise Failed("LMDBException: MDB_INVALID: File is not an LMDB file") from None


def fail(mode, parsed):
    print("Parsing reference captions", file=sys.stderr, flush=True)
    words = {word for text in parsed for word in text.split()}
    if mode == "hang" or "hang" in words:
        time.sleep(600)
    if mode == "heap" or "heap" in words:
        raise Failed("java.lang.OutOfMemoryError: Java heap space")
    if mode == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "trace" or "crash" in words:
        raise Failed("java.lang.IllegalStateException: deep\n" + "\tat java.util\n" * 99)


def answer(mode, folder, rows, given, number, machine):
    known, scores = json.loads((folder / "rows.json").read_text()), []
    for row in rows:
        key = " | ".join([row["test"], *row["refs"]])
        if key not in known:
            raise Failed(f"never seen: {key}")
        scores.append(known[key])
    if "-out" in given:
        home = Path(machine[machine.index("-cp") + 1].split(":")[0]).parent
        if number >= 15 and not list(home.glob("lib/nashorn-core*.jar")):
            raise Failed("java.lang.NullPointerException: engine")
        every = [dict(pr=0.9, re=0.8, f=score, fn=0, numImages=1, fp=0, tp=0) for score in scores]
        none = dict(pr=None, re=None, f=None, fn=0, numImages=1, fp=0, tp=0)
        found = [
            {"image_id": row["image_id"], "scores": {"Color": none, "All": one}}
            for row, one in zip(rows, every)
        ]
        odd = {"garbage": "[1, {", "other": "[[1]]", "short": json.dumps(found[1:])}
        Path(given["-out"]).write_text(odd.get(mode) or json.dumps(found, indent=2))
    printed = PRINTED.format(sum(scores) / len(scores), len(rows) - (mode == "short"))
    print("?\0" * 50 if mode == "garbage" else printed)


main(sys.argv[1:])
