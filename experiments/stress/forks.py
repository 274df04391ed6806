"""Functions and commands in forks of this process: watched, killed, short of disk and memory.

Starting Python with torch and transformers takes seconds; a fork of a process that has them takes
milliseconds. So the modules are imported once, before the first fork. That process makes no
tensors' gradients and keeps no threads: neither survives a fork.
"""

import gc
import importlib
import json
import os
import resource
import runpy
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).parents[2]
MEMORY = 4 << 30  # bytes that a fork may add to those that it has


class Ended(NamedTuple):
    """How a fork ended."""

    status: int  # of the process; -9: killed
    output: str  # stdout and stderr together
    value: object  # what the function returned; None: it did not
    error: dict | None  # an exception: its kind and message
    seconds: float
    late: bool  # killed at its time limit


class Disk(NamedTuple):
    """A disk that is full from a moment on: no file may be written beyond `size` bytes."""

    at: float  # seconds after the start
    size: int


def fork(
    function: Callable,
    *arguments,
    kill_at: float | None = None,
    disk: Disk | None = None,
    limit: float = 60,
) -> Ended:
    """function(*arguments), JSON in its result, in a fork that has `limit` seconds."""
    out, back = os.pipe(), os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(out[0])
        os.close(back[0])
        serve(function, arguments, out[1], back[1], limit)
    os.close(out[1])
    os.close(back[1])
    start = time.monotonic()
    read, late = watch(pid, (out[0], back[0]), kill_at, disk, limit)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    value, error = None, None
    with suppress(ValueError):  # nothing, or the half that a killed process wrote
        value, error = json.loads(read[back[0]])
    output = read[out[0]].decode(errors="replace")
    return Ended(status, output, value, error, time.monotonic() - start, late)


def watch(pid: int, pipes, kill_at, disk, limit) -> tuple[dict[int, bytes], bool]:
    """What the process wrote to each pipe until it ended, and whether it was late."""
    start, read, open_pipes, late = time.monotonic(), dict.fromkeys(pipes, b""), {*pipes}, False
    while open_pipes:
        events = [kill_at, limit, disk.at if disk else None]
        wait = min(at for at in events if at is not None) - (time.monotonic() - start)
        for pipe in select.select(open_pipes, [], [], max(0, wait))[0]:
            piece = os.read(pipe, 1 << 16)
            read[pipe] += piece
            if not piece:
                os.close(pipe)
                open_pipes.discard(pipe)
        passed = time.monotonic() - start
        if disk and passed >= disk.at:
            with suppress(ProcessLookupError):
                hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (disk.size, hard))
            disk = None
        late = late or passed >= limit
        if late or (kill_at is not None and passed >= kill_at):
            os.kill(pid, signal.SIGKILL)
            kill_at, limit = None, limit + 60
    return read, late


def serve(function, arguments, out: int, back: int, limit: float):
    """The child: writes [result, error] to `back`, and leaves without the parent's clean-up."""
    status, result = 0, (None, None)
    try:
        signal.alarm(int(limit) + 10)  # in case that nobody watches any more
        memory = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (memory + MEMORY, -1))
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)  # the parent's may be a file's
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        result = (function(*arguments), None)
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        status = error.code if isinstance(error.code, int | None) else 1
        result = (None, described(error))
    except BaseException as error:
        status, result = 70, (None, described(error))
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
            data = json.dumps(result).encode()
            while data:
                data = data[os.write(back, data) :]
        os._exit(status or 0)


def described(error: BaseException) -> dict:
    """An exception: its class and its bases, its message, and the project's line that it met."""
    cause = error
    if isinstance(error, SystemExit) and error.__context__:  # it tells of this one
        cause = error.__context__
    frames = traceback.extract_tb(cause.__traceback__)
    here = str(Path(__file__).parent)
    ours = [f for f in frames if f.filename.startswith(str(PROJECT)) and here not in f.filename]
    outside = frames[-1] if frames else None
    at = f"{Path(ours[-1].filename).relative_to(PROJECT)}, {ours[-1].name}" if ours else "?"
    if ours and outside is not ours[-1]:
        at += f" (in {Path(outside.filename).name})"
    return {
        "kind": type(error).__name__,
        "bases": [base.__name__ for base in type(error).__mro__],
        "message": str(error),
        "at": at,
    }


# --- commands -----------------------------------------------------------------------------------


def command(module: str, argv: list[str], folder: Path, **how) -> Ended:
    """`python -m module argv`, run in `folder`."""
    return fork(run_module, module, argv, str(folder), **how)


def run_module(module: str, argv: list[str], folder: str) -> None:
    os.chdir(folder)
    sys.argv = [module, *argv]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def imported_by(module: str, argv: list[str], folder: str) -> list[str]:
    """The names of all modules that a command has imported in the end."""
    with suppress(SystemExit):
        run_module(module, argv, folder)
    return sorted(sys.modules)


def preload(names: list[str]) -> None:
    """Imports these modules here, so that no fork has to."""
    for name in names:
        if name not in sys.modules and not name.startswith("__"):
            with suppress(Exception):
                importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or the collector of every fork copies all pages
