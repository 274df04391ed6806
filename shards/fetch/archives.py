"""Archives: zip, also of several volumes, tar and 7z."""

import errno
import io
import lzma
import os
import tarfile
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path

from tqdm import tqdm

from disk import DataError

LONGEST_END = (1 << 16) + 42  # bytes of a zip's end, with the longest comment and its locator
FAULTS = (  # that the libraries find in a damaged archive
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,  # also NotImplementedError
    ValueError,  # also a name that is no Unicode
    LookupError,
    AssertionError,
)
NEEDS_7Z = "pip install -r requirements-fetch.txt (py7zr, for .7z)"


class Damaged(DataError):
    """An archive that cannot be unpacked: cut off, or no archive."""


class Volumes(io.RawIOBase):
    """Files, one after the other, as one that can be read.

    `instead`: {position: byte} of what is read in place of the files' own bytes.
    """

    def __init__(self, paths: Sequence[Path]):
        self.files = [open(path, "rb") for path in paths]  # noqa: SIM115, closed by close()
        sizes = [path.stat().st_size for path in paths]
        self.starts, self.end = [0, *accumulate(sizes)][:-1], sum(sizes)
        self.at, self.instead = 0, {}

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.end}[whence]
        self.at = max(0, base + offset)
        return self.at

    def readinto(self, buffer) -> int:
        if self.at >= self.end:
            return 0
        volume = self.volume_at(self.at)
        file = self.files[volume]
        file.seek(self.at - self.starts[volume])
        count = file.readinto(buffer)
        for position, byte in self.instead.items():
            if self.at <= position < self.at + count:
                buffer[position - self.at] = byte
        self.at += count
        return count

    def volume_at(self, position: int) -> int:
        return bisect_right(self.starts, position) - 1

    def close(self) -> None:
        for file in self.files:
            file.close()
        super().close()


class SplitZip(zipfile.ZipFile):
    """A zip of several volumes. Each member's offset counts from the start of its own volume."""

    def __init__(self, paths: Sequence[Path]):
        volumes = Volumes(paths)
        volumes.instead = one_volume(volumes)
        super().__init__(io.BufferedReader(volumes, 1 << 20))
        # zipfile has added the start of the volume in which the list of members begins
        added = volumes.starts[volumes.volume_at(self.start_dir)]
        for member in self.infolist():
            member.header_offset += volumes.starts[member.volume] - added
        self.mark_ends()

    def mark_ends(self) -> None:
        """Tells zipfile, from Python 3.11.8 on, where each member must end: at the next one."""
        end = self.start_dir
        for member in sorted(self.filelist, key=offset_of, reverse=True):
            if hasattr(member, "_end_offset"):
                member._end_offset = end
            end = member.header_offset


def offset_of(member: zipfile.ZipInfo) -> int:
    return member.header_offset


def one_volume(volumes: Volumes) -> dict[int, int]:
    """What to read in an archive above 4 GB, so that zipfile does not refuse its several volumes.

    The end's locator has the number of the volume that it is in, and how many there are.
    """
    start = max(0, volumes.end - LONGEST_END)
    volumes.seek(start)
    tail = volumes.readall()
    locator = tail.rfind(b"PK\x05\x06") - 20
    if locator < 0 or tail[locator : locator + 4] != b"PK\x06\x07":
        return {}
    fields = {4: bytes(4), 16: (1).to_bytes(4, "little")}  # where in it: what to read there
    return {
        start + locator + place + i: byte
        for place, value in fields.items()
        for i, byte in enumerate(value)
    }


# --- unpacking ----------------------------------------------------------------------------


def unpack_zip(paths: Sequence[Path], folder: Path) -> None:
    with SplitZip(paths) if len(paths) > 1 else zipfile.ZipFile(paths[0]) as archive:
        members = archive.infolist()
        with bar(paths[-1], sum(member.file_size for member in members)) as progress:
            for member in members:
                archive.extract(member, folder)
                progress.update(member.file_size)


def unpack_tar(paths: Sequence[Path], folder: Path) -> None:
    with tarfile.open(paths[0]) as archive, bar(paths[0], None) as progress:
        for member in archive:
            archive.extract(member, folder, filter="data")
            progress.update(member.size)


def unpack_7z(paths: Sequence[Path], folder: Path) -> None:
    import py7zr
    from py7zr.callbacks import ExtractCallback

    class Progress(ExtractCallback):
        def report_start_preparation(self):
            pass

        def report_start(self, processing_file_path, processing_bytes):
            pass

        def report_update(self, decompressed_bytes):
            pass

        def report_end(self, processing_file_path, wrote_bytes):
            progress.update(int(wrote_bytes))

        def report_warning(self, message):
            pass

        def report_postprocess(self):
            pass

    try:
        with (
            py7zr.SevenZipFile(paths[0]) as archive,
            bar(paths[0], archive.archiveinfo().uncompressed) as progress,
        ):
            archive.extractall(folder, callback=Progress())
    except (py7zr.exceptions.ArchiveError, TypeError) as error:
        raise zipfile.BadZipFile(str(error)) from error


def bar(path: Path, total: int | None) -> tqdm:
    how = {"unit": "B", "unit_scale": True, "leave": False, "disable": None}
    return tqdm(desc=f"unpacking {path.name}", total=total, **how)


def check_tools(name: str) -> None:
    """Raises DataError where this machine cannot unpack an archive of this name."""
    if name.lower().endswith(".7z") and find_spec("py7zr") is None:
        raise DataError(f"{name} needs one more package: {NEEDS_7Z}")


def unpack(paths: Sequence[Path], folder: Path) -> None:
    """Unpacks an archive, given its volumes in order, into a folder.

    Nothing is written outside of the folder. Raises Damaged; OSError where it cannot be written.
    """
    name = paths[-1].name.lower()
    check_tools(name)
    if name.endswith(".zip"):
        work = unpack_zip
    else:
        work = unpack_7z if name.endswith(".7z") else unpack_tar
    try:
        folder.mkdir(parents=True, exist_ok=True)
        work(paths, folder)
    except FAULTS as error:
        raise Damaged(
            f"{paths[-1]} cannot be unpacked ({error}): cut off or damaged; without it, it is "
            "fetched"
        ) from error
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):
            raise
        raise Damaged(
            f"{paths[-1]} cannot be unpacked ({error})"
        ) from error  # gzip's, or a wrong offset
