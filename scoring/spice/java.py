"""Java and SPICE's jars: where they are, whether they are the right ones, and one run of Java."""

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import platformdirs

from disk import digest, sha256

FETCH = "python -m shards.fetch spice"
JAR = "spice-1.0.jar"
PIECES = {  # the jars that SPICE cannot do without, and their sha256
    JAR: "6c6a73ae6dd108667047c1818707590413934dcb9f1a62cef6469059b41b3d59",
    "lib/Meteor-1.5.jar": "014a3627d277a6f4ba5b44a20733f8dff28bbb428204c36abfda56565658ba09",
    "lib/SceneGraphParser-1.0.jar": (
        "83a1b7c3f896dd135f9539ba41d65b155827dfc312893bfd5bb835c9f9ae310a"
    ),
    "lib/stanford-corenlp-3.6.0.jar": (
        "d341d5863276f55782c5ef73212222d6b3b48e02ae1951ab6de7618d28b12742"
    ),
    "lib/stanford-corenlp-3.6.0-models.jar": (
        "d285157bd7887ee3018094b5dbae092e49088b023361ccdb550ee1daf9b2c9bd"
    ),
}
OPENED = ("lang", "math", "util", "util.concurrent", "net", "text")  # by -cache, since Java 9


class SpiceMissing(RuntimeError):
    """SPICE cannot run here. One line names each missing piece, and the command that helps."""


class Java(NamedTuple):
    """A Java and SPICE's jars."""

    path: str
    version: int
    home: Path  # the folder with spice-1.0.jar and lib/
    engine: bool  # a JavaScript engine is there, which SPICE needs to write scores per item
    parses: str  # a name for the parses that these jars make


# --- what is there ------------------------------------------------------------------------------


def user_folder() -> Path:
    """The project's folder among the user's caches."""
    return platformdirs.user_cache_path("mats", appauthor=False)


def find_home(home: str | None = None) -> Path:
    """The folder of spice-1.0.jar: the one given, or SPICE_HOME, or where shards.fetch puts it."""
    named = home or os.environ.get("SPICE_HOME")
    return Path(named or user_folder() / "spice-1.0").expanduser().resolve()


def find_java() -> tuple[str | None, int | None]:
    """(path, version) of JAVA_HOME's java, else of PATH's; None for what there is not."""
    folder = Path(os.environ.get("JAVA_HOME") or "/nowhere", "bin")
    java = shutil.which("java", path=folder) or shutil.which("java")
    if java:
        java = os.path.abspath(java)
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = [java, "-version"]
            said = subprocess.run(command, capture_output=True, check=True, timeout=60)
            version = re.search(rb'version "(?:1\.)?(\d+)', said.stderr + said.stdout)
            if version:
                return java, int(version[1])
    return java, None


@functools.cache
def checksum(path: Path, size: int, changed: int) -> str:
    """The sha256 of a file of this size and time of change."""
    return sha256(path)


def checksum_now(path: Path) -> str:
    known = path.stat()
    return checksum(path, known.st_size, known.st_mtime_ns)


def find_problems(home: Path, java: str | None, version: int | None) -> list[str]:
    """What is missing or wrong: its name, and where it was looked for."""
    problems = []
    if not version:
        problems.append(f"no Java 8 or later ({java or 'none on PATH or in JAVA_HOME'})")
    elif version < 8:
        problems.append(f"no Java 8 or later ({java} is Java {version})")
    missing = [name for name in PIECES if not (home / name).is_file()]
    if missing:
        problems.append(f"no {', '.join(missing)} in {home}")
    for name in PIECES.keys() - set(missing):
        path = home / name
        # an empty one fails in Java, which says so
        if path.stat().st_size and checksum_now(path) != PIECES[name]:
            problems.append(f"{path} is another file than SPICE's (by its sha256): delete it")
    return problems


def find_spice(home: str | None = None) -> Java:
    """Raises SpiceMissing, in one line."""
    folder, (java, version) = find_home(home), find_java()
    if problems := find_problems(folder, java, version):
        raise SpiceMissing(
            f"SPICE cannot run: {'; '.join(problems)}. `{FETCH}` gets the jars, and says how to "
            "get Java"
        )
    engine = version < 15 or any((folder / "lib").glob("nashorn-core*.jar"))
    jars = digest([checksum_now(folder / name) for name in PIECES])
    return Java(java, version, folder, engine, f"{jars}-java{version}")


# --- memory -------------------------------------------------------------------------------------

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def machine_memory(limits: tuple[str, ...] = LIMITS) -> int:
    """Bytes of memory of this machine, or of the container that this runs in."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in limits:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            found.append(int(Path(path).read_text()))
    return min(found)


def heap(memory: int | None = None) -> str:
    """Java's -Xmx: a quarter of the memory, at least 768 MB and at most 8 GB.

    200 clips of five captions need 768 MB, and gain nothing above 2 GB. Long captions need more.
    """
    quarter = (memory or machine_memory()) // 4 >> 20
    return f"{min(max(quarter, 768), 8192)}m"


# --- one run ------------------------------------------------------------------------------------


def command_of(java: Java, memory: str) -> list[str]:
    """The command up to SPICE's own arguments."""
    opened = []
    if java.version >= 9:
        opened = [f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in OPENED]
    return [
        java.path,
        f"-Xmx{memory}",
        "-Duser.language=en",  # others print 0,123
        *opened,
        "-cp",
        f"{java.home / JAR}{os.pathsep}{java.home}/lib/*",  # the jar's manifest knows no engine
        "edu.anu.spice.SpiceScorer",
    ]


def run_java(command: list[str], timeout: float | None, out: Path, err: Path) -> int:
    """The code that Java ends with. Raises OSError, subprocess.TimeoutExpired.

    Java, and all that it starts, ends with this call, also by Ctrl-C, SIGTERM and SIGHUP.
    """
    # into files, since a pipe would wait for a killed child's children
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd=out.parent,
            process_group=0,
        )
        with ended(process):
            return process.wait(timeout)


@contextlib.contextmanager
def ended(process: subprocess.Popen) -> Iterator[None]:
    """Around waiting for a process: ends its group where this is left before its own end."""
    former = {}

    def on_signal(number, _):
        kill_group(process)
        signal.signal(number, former[number])
        os.kill(os.getpid(), number)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            known = signal.getsignal(number)
            if known not in (None, signal.SIG_IGN):
                former[number] = known
                signal.signal(number, on_signal)
    try:
        yield
    except BaseException:
        kill_group(process)
        process.wait()
        raise
    finally:
        for number, known in former.items():
            signal.signal(number, known)


def kill_group(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def last_words(*printed: Path) -> str:
    """The error that Java printed, else its last line, in one line."""
    texts = [path.read_text("utf-8", "replace") for path in printed if path.exists()]
    lines = [line for text in texts for line in map(str.strip, text.split("\n")) if line]
    errors = [i for i, line in enumerate(lines) if re.search(r"(Error|Exception)\b", line)]
    start = errors[0] if errors else max(len(lines) - 1, 0)
    return " ".join(" ".join(lines[start:]).split())[:300] or "nothing"
