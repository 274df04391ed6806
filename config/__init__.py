"""Settings: a dataclass says what there is, config/NAME.py what a run changes, the command line what you change.

config/NAME.py      a docstring and `config = dict(field=value, ...)`
command line        [NAME] [--field=value ...]     values as Python writes them; strings need no quotes
"""

import ast
import difflib
import importlib
import sys
from dataclasses import asdict, fields
from pathlib import Path


def load(cls, argv, default="tiny"):
    """cls filled from config/NAME.py and then from `--field=value`.

    Raises SystemExit with the nearest right name on an unknown NAME or field, and on a value of the wrong type.
    """
    args = list(argv)
    name = args.pop(0) if args and not args[0].startswith("-") else default
    known = sorted(p.stem for p in Path(__file__).parent.glob("[!_]*.py"))
    if name not in known:
        sys.exit(f"no config/{name}.py{nearest(name, known)}; there are: {', '.join(known)}")
    values = dict(importlib.import_module(f"config.{name}").config)
    for arg in args:
        if arg in ("-h", "--help"):
            sys.exit(usage(cls, values, name, known))
        if not arg.startswith("--"):
            sys.exit(f"{arg!r}: expected --field=value")
        key, equals, value = arg[2:].partition("=")
        values[key] = value if equals else "True"
        if key in (f.name for f in fields(cls)):
            values[key] = parse(value if equals else "True", field_type(cls, key))
    return make(cls, values)


def make(cls, values):
    """cls(**values), every name and type checked."""
    for key, value in values.items():
        if key not in (f.name for f in fields(cls)):
            sys.exit(f"there is no field {key!r}{nearest(key, [f.name for f in fields(cls)])}")
        kind = field_type(cls, key)
        if kind is float and type(value) is int:
            values[key] = float(value)
        elif type(value) is not kind:
            sys.exit(
                f"{key}={value!r}: expected {kind.__name__}, as in {key}={getattr(cls(), key)!r}"
            )
    return cls(**values)


def field_type(cls, key):
    return type(getattr(cls(), key))


def parse(text, kind):
    if kind is str:
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text  # make() refuses it by name


def nearest(name, names):
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    return f" (did you mean {close[0]!r}?)" if close else ""


def usage(cls, values, name, known):
    lines = [cls.__doc__ or "", f"configs: {', '.join(known)}; with {name}:"]
    return "\n".join(lines + [f"  --{k}={v!r}" for k, v in asdict(make(cls, values)).items()])
