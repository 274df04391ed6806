"""Files, so that what goes wrong with them is said in one line; and how a command ends.

read_json, read_tensors       what a file holds, or DataError: which file, what it seems to be
reading                       the errors of a library that loads something, as a DataError
locked                        one process at a time
replacing, write_atomic, ...  all of a file or nothing: a kill or a full disk leaves the old one
command                       around a command's main: bad data, a full disk, Ctrl-C, `| head`
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class DataError(ValueError):
    """Data that cannot be used as it is; the message names the file and what to do."""


# --- reading ------------------------------------------------------------------------------------


def seems(path) -> str:
    """What a file that cannot be used seems to be, and what to do: "is empty: ..."."""
    if problem := visible_problem(path):
        return problem
    return f"is damaged or cut off ({Path(path).stat().st_size:,} bytes): get it again"


def visible_problem(path) -> str:
    """What is wrong with a file, where its first bytes tell; empty where they tell nothing."""
    path = Path(path)
    if not path.exists():
        return "is missing"
    if path.is_dir():
        return "is a folder"
    with open(path, "rb") as file:
        return recognised(file.read(200))


def recognised(head: bytes) -> str:
    """What a file that begins so is, where it is often met in place of another; else empty."""
    if not head:
        return "is empty: a copy or a download that was broken off? Get it again"
    if head.startswith(b"version https://git-lfs"):
        return "is only a Git LFS pointer: fetch the file itself (git lfs pull)"
    if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        return "is a web page: the download was refused? Get the file itself"
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return "is compressed: unpack it first"
    return ""


def read_json(path, kind: type = dict):
    """The JSON value of a file. Raises DataError where it is none, or not of this kind."""
    try:
        value = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise DataError(why(error, path)) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} {seems(path)}; it should hold JSON ({error})") from error
    if not isinstance(value, kind):
        raise DataError(
            f"{path} holds a JSON {type(value).__name__} where a {kind.__name__} belongs: "
            "another program's file?"
        )
    return value


def read_tensors(path, device="cpu") -> dict:
    """{name: tensor} of a safetensors file. Raises DataError where it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device=str(device))
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path} {seems(path)}; it should hold tensors ({error})") from error


def read_finite(path) -> dict:
    """{name: tensor} of a safetensors file. Raises DataError where a number is NaN or infinite."""
    tensors = read_tensors(path)
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise DataError(f"{path}: {name} holds NaN or infinity: damaged, or of a failed run")
    return tensors


@contextmanager
def reading(what: str, advice: str) -> Iterator[None]:
    """Turns the errors of a library that loads `what` into a DataError that ends with `advice`.

    Errors of the machine (memory, the user's interrupt) and DataErrors pass as they are.
    """
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:200] or "no reason given"
        raise DataError(f"{what}: {said} ({type(error).__name__}); {advice}") from error


def is_path(name: str) -> bool:
    """Whether a model's name is that of a folder, there or not, and no name on the hub."""
    return os.path.exists(name) or name.startswith((".", "/", "~")) or name.count("/") > 1


def is_code(name: str) -> bool:
    """Whether it is "package.module:factory": whoever loads it imports code."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name) is not None


MODEL = (".safetensors", ".bin", ".pth", ".json", ".model")  # files that make a model what it is


def fingerprint(folder) -> str:
    """A hash of a model's files: of their names and sizes, and of each file's first and last MB.

    The same wherever the folder lies. Quick for models of many GB.
    """
    found = hashlib.sha256()
    for path in sorted(path for path in Path(folder).rglob("*") if path.suffix in MODEL):
        size = path.stat().st_size
        found.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode(errors="replace"))
        with open(path, "rb") as file:
            found.update(file.read(1 << 20))
            file.seek(max(0, size - (1 << 20)))
            found.update(file.read())
    return found.hexdigest()


def sha256(path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def digest(*parts) -> str:
    """12 characters for a JSON value."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def weights(folder) -> list[Path]:
    """The files that a CLAP or a trained model is made of, in order."""
    folder = Path(folder)
    found = sorted(folder.rglob("*")) if folder.is_dir() else []
    return [path for path in found if path.suffix in (".safetensors", ".json", ".pth")]


def model_digest(folder, llm: str) -> str:
    """A digest of a trained model's files, and of its language model's where that is a folder."""
    parts = [sha256(path) for path in weights(folder)]
    return digest([*parts, fingerprint(llm)] if os.path.isdir(llm) else parts)


# --- writing ------------------------------------------------------------------------------------


@contextmanager
def replacing(path) -> Iterator[Path]:
    """A path to write to, beside `path`. It takes the place of `path` once the block is through.

    Where the block fails it is removed. An OSError names `path`.
    """
    part = Path(f"{path}.part")
    try:
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_atomic(path, data: bytes) -> None:
    """Writes all or nothing: a kill leaves the old file or the new one, never half of it."""
    with replacing(path) as part, open(part, "wb") as file:
        file.write(data)


def write_tensors(tensors: dict, path, metadata: dict | None = None) -> None:
    """Writes a safetensors file, all or nothing. Raises OSError."""
    from safetensors.torch import save_file

    with replacing(path) as part:
        with libraries_write():
            save_file(tensors, part, metadata)
        share(part)


def share(path) -> None:
    """Gives a file the permissions of any new file. safetensors leaves its own to the owner alone.

    A new file tells them: to read the umask is to change it, for all threads.
    """
    new = Path(f"{path}.mode")
    new.touch()
    os.chmod(path, new.stat().st_mode & 0o777)
    new.unlink()


@contextmanager
def libraries_write() -> Iterator[None]:
    """Turns what safetensors and torch.save raise on a full disk into an OSError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise
        number = re.search(r"os error (\d+)", str(error))
        if number:
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        if "inline_container" in str(error):  # it does not say why
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


@contextmanager
def locked(path, what: str) -> Iterator[None]:
    """Holds a lock file. Raises DataError while another process, another `what`, holds it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"another {what} is writing there ({path} is locked): wait for it"
            ) from None
        except OSError:  # a network's file system without locks
            pass
        yield


# --- a command ----------------------------------------------------------------------------------


def why(error: OSError, path=None) -> str:
    """One line about a file that could not be read or written."""
    where = error.filename or path
    where = f"{os.fsdecode(where)}: " if where else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"{where}the disk is full ({error.strerror}). All that was complete is kept; "
            "the same command resumes from there"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{where}{error.strerror}: choose another folder, or change who may write there"
    return f"{where}{error.strerror or error}"


@contextmanager
def command(name: str) -> Iterator[None]:
    """Around a command's main: what a user can cause ends in one line on stderr and a status.

    1 for bad data and files, 130 for Ctrl-C, 141 where the reader of a pipe has gone. Printing
    never fails on characters that the terminal lacks: they are escaped.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted; the same command resumes from what it has", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except DataError as error:
        sys.exit(f"{name}: {error}")
    except OSError as error:
        if error.errno is None:  # a library's own, such as transformers': not about one file
            raise
        sys.exit(f"{name}: {why(error)}")
