"""Public data sets from their official places, in the layout that the builders read.

    catalog.yaml    where each file is published, its size, its checksum
    download.py     one file: resumed, from a mirror, with patience
    archives.py     zip, split zip, tar, 7z
    spice.py        SPICE's jars, which are no data set
    __main__.py     python -m shards.fetch

`fetch` brings a file beside the data set's folder, ROOT/.fetch/NAME, compares its checksum, and
only then puts it, or its members, into ROOT/NAME. ROOT/.fetch/NAME/fetched.json lists what came.
Nothing that is in ROOT/NAME already is replaced.
"""

import errno
import filecmp
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from tqdm import tqdm

from disk import DataError, locked, read_json, replacing, write_atomic
from scoring.answers import go_ahead
from shards.build import for_each
from shards.fetch.archives import Damaged, check_tools, unpack
from shards.fetch.catalog import Entry, File, read_catalog
from shards.fetch.download import (
    SILENCE,
    Broken,
    Refused,
    Unreachable,
    checksum_of,
    download_file,
    fetch_json,
    kind_of,
)
from shards.writer import encode_json

ASK = 1_000_000_000  # bytes from which on `fetch` asks first
UNPACKED = 1.5  # bytes of an archive's members for each of its own, roughly


class Incomplete(DataError):
    """Files that could not be fetched, a line each; the others came."""


class Place:
    """A data set's folder under the root, and the folder for what comes."""

    def __init__(self, root: str | Path, entry: Entry):
        self.entry = entry
        self.folder = Path(root) / entry.name
        self.coming = Path(root) / ".fetch" / entry.name
        self.list = self.coming / "fetched.json"
        self.command = f"python -m shards.fetch {entry.name} --root {root}"

    def fetched(self) -> dict:
        """{name of a file: its checksum, where it lies, ...} of all that came. Raises DataError."""
        try:
            return read_json(self.list) if self.list.exists() else {}
        except DataError as error:
            raise DataError(f"{error}; delete it, and {self.folder} is looked at anew") from error

    def note(self, file: File, checksum: str, first: Path) -> None:
        known = self.fetched() | {
            file.name: {
                "checksum": checksum,
                "first": str(first.relative_to(self.folder)),
                "count": count_like(self.folder, file.pattern) if file.pattern else 0,
            }
        }
        self.coming.mkdir(parents=True, exist_ok=True)
        write_atomic(self.list, encode_json(known).encode())

    def has(self, file: File) -> bool:
        """Whether the file, or what an archive holds, is there; also by the user's own hands."""
        if file.volume_of:
            archive = next(f for f in self.entry.files if f.name == file.volume_of)
            return self.has(archive)
        known = self.fetched().get(file.name)
        if known:
            complete = not file.pattern or count_like(self.folder, file.pattern) >= known["count"]
            return complete and (self.folder / known["first"]).exists()
        if file.is_folder:
            return False
        if file.is_archive:
            return bool(file.pattern) and count_like(self.folder, file.pattern) >= file.count
        own = self.folder / file.name
        return own.is_file() and file.checksum in ("", checksum_of(own, kind_of(file.checksum)))


def count_like(folder: Path, pattern: str) -> int:
    """How many files under the folder, at any depth, fit the pattern."""
    return sum(1 for _ in folder.rglob(pattern))


class Missing(NamedTuple):
    """A file that is to come."""

    place: Place
    file: File


# --- the plan -----------------------------------------------------------------------------


def entries_of(names: Iterable[str]) -> list[Entry]:
    """The catalog's entries of these names. Raises DataError on an unknown one."""
    known, names = read_catalog(), dict.fromkeys(names)
    for name in names:
        if name not in known:
            raise DataError(f"there is no {name!r} to fetch; there are: {', '.join(known)}")
    return [known[name] for name in names]


def missing(names: Iterable[str], root: str | Path, parts: Iterable[str]) -> list[Missing]:
    """The files of these parts of the data sets that are not there."""
    found = []
    for entry in entries_of(names):
        place = Place(root, entry)
        wanted = (file for file in entry.files if file.part in parts)
        found += [Missing(place, file) for file in wanted if not place.has(file)]
    return found


def complete(plan: list[Missing]) -> list[Missing]:
    """The plan with the sizes and checksums that Zenodo tells, where the catalog has none."""
    records, found, unreachable = {}, [], set()
    for place, file in plan:
        base, _, rest = file.addresses[0].partition("/records/")
        record, _, path = rest.partition("/files/")
        if path and not (file.size and file.checksum):
            address = f"{base}/api/records/{record}"
            if address not in records and base not in unreachable:
                records[address] = published(address)
                if records[address] is None:
                    unreachable.add(base)
            size, checksum = (records.get(address) or {}).get(file.name, (None, ""))
            file = replace(file, size=file.size or size, checksum=file.checksum or checksum)
        found.append(Missing(place, file))
    return found


def published(address: str) -> dict[str, tuple[int, str]] | None:
    """{file: (bytes, checksum)} of a Zenodo record; empty where it tells none, None in silence."""
    try:
        files = fetch_json(address)["files"]
        return {file["key"]: (int(file["size"]), file["checksum"]) for file in files}
    except Broken as broken:
        return None if str(broken.args[0]).startswith(SILENCE) else {}
    except (Refused, KeyError, TypeError, ValueError):
        return {}  # a download says what is wrong with the place


def check_folders(plan: list[Missing]) -> None:
    """Raises DataError where a file, or a link to nothing, stands in a folder's place."""
    for place, _ in plan:
        if os.path.lexists(place.folder) and not place.folder.is_dir():
            raise DataError(f"{place.folder} is no folder: move it away")


def clear_leftovers(names: list[str], root: Path) -> None:
    """Removes archives that a kill left behind after they were unpacked."""
    for entry in entries_of(names):
        place = Place(root, entry)
        for file in entry.files:
            rest = place.coming / file.name
            if file.is_archive and rest.exists() and place.has(file):
                for volume in (file, *volumes_of(place, file)):
                    (place.coming / volume.name).unlink(missing_ok=True)


def volumes_of(place: Place, archive: File) -> list[File]:
    """The archive's other volumes, in order; none of an archive of one file."""
    return [each for each in place.entry.files if each.volume_of == archive.name]


def size_of(plan: list[Missing]) -> tuple[int, int]:
    """(bytes of the files whose size is known, number of the others)."""
    sizes = [file.size for _, file in plan]
    return sum(filter(None, sizes)), sizes.count(None)


def counted(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def in_words(size: float) -> str:
    if size >= 1e9:
        return f"{size / 1e9:,.1f} GB"
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} kB"


def check_space(plan: list[Missing], root: Path) -> None:
    """Raises DataError where the disk cannot hold it all. An archive goes once it is unpacked."""
    need, archives = 0, Counter()
    for place, file in plan:
        size = file.size or 0
        if file.is_archive or file.volume_of:
            archives[place.entry.name, file.volume_of or file.name] += size
            need += size * UNPACKED
        else:
            need += size
    coming = {place.coming for place, _ in plan}
    there = sum(path.stat().st_size for folder in coming for path in folder.glob("*"))
    need += max(archives.values(), default=0) - there
    free = shutil.disk_usage(root).free
    if need > free:
        raise DataError(
            f"{root} has {in_words(free)} free, and this needs about {in_words(need)}: make room, "
            "name another --root, or fetch fewer (--text-only leaves audio out)"
        )


# --- one file -----------------------------------------------------------------------------


def bring(place: Place, file: File, bar: tqdm, accept: bool) -> tuple[Path, str]:
    """(where the file lies, its checksum), downloaded where it is not there yet.

    Raises DataError where it is not what was published. A damaged transfer comes again.
    """
    kind, own = kind_of(file.checksum), place.folder / file.name
    if own.exists():  # the user's
        found = checksum_of(own, kind)
        if file.checksum not in ("", found) and not accept:
            raise DataError(
                f"{own} has the checksum {found} where {file.checksum} was published; delete it "
                f"to fetch it; {place.command} --accept uses it as it is"
            )
        return own, found
    path, seen = place.coming / file.name, set()
    while True:
        if not path.exists():
            download_file(file, path, bar)
        found = checksum_of(path, kind)
        if accept or file.checksum in ("", found):
            return path, found
        if found in seen:  # the file stays for --accept
            raise DataError(
                f"it has changed where it is published: its checksum is {found}, and was "
                f"{file.checksum}; {place.command} --accept takes the one of today"
            )
        if len(seen) == 2:
            raise DataError("it came damaged three times, never alike: is there a proxy between?")
        seen.add(found)
        bar.update(-path.stat().st_size)
        path.unlink()


def unpack_into(place: Place, file: File, paths: list[Path], accept: bool) -> Path:
    """Moves the archive's members into the data set's folder; returns the first one's path.

    Raises DataError where it cannot be unpacked, lacks members, or another file is in the way.
    """
    part = place.coming / f"{file.name}.unpacked"
    shutil.rmtree(part, ignore_errors=True)
    try:
        unpack(paths, part)
        found = count_like(part, file.pattern) if file.pattern else 0
        if found < file.count and not accept:
            raise DataError(
                f"it holds {found:,} files like {file.pattern} where {file.count:,} were "
                f"published; {place.command} --accept takes them as they are; delete {paths[-1]} "
                "to get it anew"
            )
        first = move_all(part, place.folder)
        if first is None:
            raise Damaged(f"{paths[-1]} holds no file")
        return first
    finally:
        shutil.rmtree(part, ignore_errors=True)


def move_all(source: Path, folder: Path) -> Path | None:
    """Moves all files below `source` into the folder; returns the first one's path there, if any.

    A file that is there already stays. Raises DataError, before any is moved, where it differs.
    """
    moves = {
        path: folder / path.relative_to(source)
        for path in sorted(source.rglob("*"))
        if path.is_file()
    }
    there = {path for path, target in moves.items() if target.exists()}
    for path in there:
        if not filecmp.cmp(path, moves[path], shallow=False):
            raise DataError(
                f"{moves[path]} is there, and another file: move it away, and fetch again"
            )
    for path, target in moves.items():
        if path not in there:
            move(path, target)
    return next(iter(moves.values()), None)


def move(path: Path, target: Path) -> None:
    """Moves a file, all or nothing; also to another disk, where the data set's folder is a link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with replacing(target) as part:
            shutil.copyfile(path, part)
        path.unlink()


def snapshot(place: Place, file: File) -> None:
    """A folder of a data set on the hub, by huggingface_hub, which resumes and checks."""
    from huggingface_hub import snapshot_download

    from hub import asking

    address = urlsplit(file.addresses[0]).path
    repo, _, path = address.partition("/datasets/")[2].partition("/resolve/main/")
    part = place.coming / "snapshot"
    with asking(repo):
        snapshot_download(repo, repo_type="dataset", allow_patterns=f"{path}*", local_dir=part)
    if not (part / path).exists():
        raise DataError(f"{repo} has no {path}")
    move_all(part / path, place.folder / path)
    shutil.rmtree(part)
    place.note(file, "", place.folder / path.rstrip("/"))


# --- all of them ----------------------------------------------------------------------------


def fetch(
    names: Iterable[str],
    root: str | Path,
    parts: Iterable[str] = ("text", "test"),
    accept: bool = False,
    yes: bool = True,
) -> None:
    """Brings all files of these parts of the data sets that are not under the root.

    accept: takes files whose checksum is not the published one. yes: does not ask before gigabytes.
    A file that fails does not stop the others: Incomplete lists the failures. Raises DataError
    where nothing can be fetched: an unknown name, no space, another process that fetches.
    """
    root, names = Path(root), [entry.name for entry in entries_of(names)]
    with locked(root / ".fetch" / "lock", "fetch"):
        plan = complete(missing(names, root, parts))
        check_folders(plan)
        clear_leftovers(names, root)
        if not plan:
            return
        for _, file in plan:
            check_tools(file.name)
        check_space(plan, root)
        total, unknown = size_of(plan)
        more = f", and {unknown} of unknown size" if unknown else ""
        unchecked = sum(not file.checksum for _, file in plan)
        more += f"; {unchecked} without a published checksum" if unchecked else ""
        print(f"to fetch into {root}: {counted(len(plan), 'file')}, {in_words(total)}{more}")
        large = any(file.size is None and (file.is_archive or file.is_folder) for _, file in plan)
        if (total >= ASK or large) and (refused := go_ahead(yes)):
            raise DataError(refused)
        fetch_all(plan, total, accept)


def page_of(file: File, entry: Entry) -> str:
    """Where to look for a file: its record on Zenodo, else the data set's page."""
    record, _, name = file.addresses[0].partition("/files/")
    return record if name and "/records/" in record else entry.page


def fetch_all(plan: list[Missing], total: int, accept: bool) -> None:
    """Obtains all files of the plan. Raises Incomplete, which lists those that failed."""
    named = {f"{item.place.entry.name}/{item.file.name}": item for item in plan}
    unreachable = set()  # hosts
    with tqdm(total=total, unit="B", unit_scale=True, disable=None) as bar:

        def work(name):
            place, file = named[name]
            hosts = {urlsplit(address).netloc for address in file.addresses}
            if hosts <= unreachable:
                raise DataError(f"{', '.join(hosts)} does not answer: is there a network?")
            bar.set_description(f"fetching {name}")
            try:
                obtain(place, file, bar, accept)
            except DataError as error:
                if isinstance(error, Unreachable):
                    unreachable.update(hosts)
                raise DataError(
                    f"{error}. Look at {page_of(file, place.entry)}; a file that you get by hand "
                    f"goes into {place.folder}"
                ) from error
            if bar.disable:  # no terminal
                print(f"fetched {name}")

        try:
            for_each(named, work)
        except DataError as failures:
            raise Incomplete(str(failures)) from failures


def obtain(place: Place, file: File, bar: tqdm, accept: bool) -> None:
    """Brings a file, or the members of an archive, to its place. Raises DataError, OSError."""
    if file.is_folder:
        return snapshot(place, file)
    if file.volume_of:
        bring(place, file, bar, accept)  # it is unpacked with its archive
        return None
    if not file.is_archive:
        return bring_plain(place, file, bar, accept)
    try:
        return bring_archive(place, file, bar, accept)
    except Damaged:  # it is gone, but for the user's own
        if (place.folder / file.name).exists():
            raise
        return bring_archive(place, file, bar, accept)


def bring_plain(place: Place, file: File, bar: tqdm, accept: bool) -> None:
    path, checksum = bring(place, file, bar, accept)
    move(path, place.folder / file.name)
    place.note(file, checksum, place.folder / file.name)


def bring_archive(place: Place, file: File, bar: tqdm, accept: bool) -> None:
    files = [*volumes_of(place, file), file]
    brought = [bring(place, each, bar, accept) for each in files]
    paths = [path for path, _ in brought]
    ours = [path for path in paths if path.parent == place.coming]
    try:
        first = unpack_into(place, file, paths, accept)
    except Damaged as damaged:
        if all(each.checksum == checksum for each, (_, checksum) in zip(files, brought)):
            raise DataError(
                f"{damaged}; its checksum is the published one: it is kept"
            ) from damaged
        for path in ours:
            path.unlink()
        raise
    place.note(file, brought[-1][1], first)
    for path in ours:
        path.unlink()
