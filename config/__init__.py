"""Settings, in three places: each changes the one before.

a dataclass         every field, its default, and a comment that --help prints
config/NAME.py      a docstring and `config = dict(field=value, ...)`
the command line    [NAME] [--field=value ...], values as in Python; strings need no quotes
"""

import ast
import difflib
import importlib
import inspect
import re
import sys
from dataclasses import asdict
from pathlib import Path


def load(cls, argv: list[str], default: str = "tiny"):
    """A cls, filled from config/NAME.py and then from the command line.

    Raises SystemExit on an unknown NAME or field, with the nearest right one, and on a value of the
    wrong type.
    """
    args = list(argv)
    name = args.pop(0) if args and not args[0].startswith("-") else default
    known = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))
    if name not in known:
        sys.exit(f"no config/{name}.py{nearest(name, known)}; there are: {', '.join(known)}")
    values = dict(importlib.import_module(f"config.{name}").config)
    for arg in args:
        if arg in ("-h", "--help"):
            print(usage(make(cls, values), name, known))
            sys.exit()
        if not arg.startswith("--"):
            sys.exit(f"{arg!r}: expected --field=value")
        key, _, value = arg[2:].partition("=")
        values[key] = parse(value if "=" in arg else "True", kinds(cls).get(key, str))
    return make(cls, values)


def make(cls, values: dict):
    """cls(**values), every name and type checked."""
    known = kinds(cls)
    for key, value in values.items():
        if key not in known:
            sys.exit(f"there is no field {key!r}{nearest(key, known)}")
        if known[key] is float and type(value) is int:
            values[key] = float(value)
        elif type(value) is not known[key]:
            default = getattr(cls(), key)
            sys.exit(f"{key}={value!r}: expected {known[key].__name__}, as in {key}={default!r}")
    return cls(**values)


def kinds(cls) -> dict[str, type]:
    return {name: type(value) for name, value in vars(cls()).items()}


def parse(text: str, kind: type):
    if kind is str:
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text  # make() refuses it by name


def nearest(name: str, names) -> str:
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.4)
    return f" (did you mean {close[0]!r}?)" if close else ""


def usage(settings, name: str, known: list[str]) -> str:
    """--help: every field with its value in this config, and the comment that stands beside it."""
    comments = {}
    for cls in type(settings).__mro__[:-1]:
        comments |= re.findall(r"^    (\w+): .*?  # (.+)$", inspect.getsource(cls), re.M)
    lines = [f"[NAME] [--field=value ...]    NAME: {', '.join(known)}; with {name}:"]
    for key, value in asdict(settings).items():
        lines.append(f"  --{key}={value!r}".ljust(42) + f"  {comments.get(key, '')}".rstrip())
    return "\n".join(lines)
