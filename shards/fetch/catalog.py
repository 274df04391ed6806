"""What can be fetched: catalog.yaml as objects, and a catalog of your own beside it."""

import os
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import yaml

from disk import DataError

PARTS = ("text", "test", "train")
OURS = Path(__file__).with_name("catalog.yaml")
SPICE = Path(__file__).with_name("spice.yaml")  # which is no data set
OWN = "MATS_CATALOG"  # the environment variable that names a catalog of one's own
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".7z")
CHECKSUM = re.compile(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}|git:[0-9a-f]{40}")


@dataclass(frozen=True)
class File:
    """A file of a data set as its owners publish it."""

    part: str  # one of PARTS
    addresses: tuple[str, ...]  # the official one, then mirrors
    size: int | None  # bytes
    checksum: str  # "" where none is known
    pattern: str = ""  # of an archive: files that it must hold,
    count: int = 0  # and their number

    @property
    def name(self) -> str:
        return unquote(urlsplit(self.addresses[0]).path.rstrip("/")).rpartition("/")[2]

    @property
    def is_folder(self) -> bool:
        return self.addresses[0].endswith("/")

    @property
    def is_archive(self) -> bool:
        return self.name.lower().endswith(ARCHIVES)

    @property
    def volume_of(self) -> str:
        """The archive that this is a volume of: a.zip for a.z01; else empty."""
        stem, volume = os.path.splitext(self.name)
        return f"{stem}.zip" if re.fullmatch(r"\.z\d\d", volume) else ""


@dataclass(frozen=True)
class Entry:
    """A data set: its files, and the rest of its lines in the catalog."""

    name: str
    page: str
    licence: str
    files: tuple[File, ...]
    hand: tuple[str, ...] = ()  # steps to what cannot be fetched
    pages: dict = field(default_factory=dict)  # {source: page}, where they differ


class Hosts(NamedTuple):
    hub: str  # HF_ENDPOINT, as for huggingface_hub
    mirror: str  # stands before all addresses but the hub's; or empty


# --- addresses ----------------------------------------------------------------------------


def address_of(short: str, hosts: Hosts) -> str:
    """The whole address. Raises ValueError where it is none."""
    kind, _, rest = short.partition(":")
    if kind == "hf":
        owner, name, path = rest.split("/", 2)
        return f"{hosts.hub}/datasets/{owner}/{name}/resolve/main/{path}"
    if kind == "zenodo":
        record, _, name = rest.partition("/")
        short = f"https://zenodo.org/records/{record}/files/{name}?download=1"
    elif kind == "github":
        short = f"https://raw.githubusercontent.com/{rest}"
    elif kind not in ("http", "https"):
        raise ValueError(f"{short!r} is no address")
    return f"{hosts.mirror}/{short.partition('://')[2]}" if hosts.mirror else short


# --- reading ------------------------------------------------------------------------------


def file_of(part: str, line: str, hosts: Hosts) -> File:
    """The file of a line of the catalog. Raises ValueError where it is none."""
    if len(line.split()) not in (3, 5):
        raise ValueError(f"{line!r}: not an address, bytes, a checksum, and a pattern with a count")
    short, size, checksum, *held = line.split()
    if checksum != "-" and not CHECKSUM.fullmatch(checksum):
        raise ValueError(f"{checksum!r} is no checksum")
    if not re.fullmatch(r"-|[0-9]+", size):
        raise ValueError(f"{size!r} is no number of bytes")
    pattern, count = held or ("", 0)
    return File(
        part=part,
        addresses=(address_of(short, hosts),),
        size=None if size == "-" else int(size),
        checksum="" if checksum == "-" else checksum,
        pattern=pattern,
        count=int(count),
    )


def files_of(part: str, lines: str, hosts: Hosts) -> list[File]:
    found: list[File] = []
    for line in lines.strip().splitlines():
        if line.startswith("or "):
            address = address_of(line.removeprefix("or ").strip(), hosts)
            found[-1] = replace(found[-1], addresses=(*found[-1].addresses, address))
        else:
            found.append(file_of(part, line, hosts))
    return found


def entry_of(name: str, values: dict, hosts: Hosts) -> Entry:
    """Raises ValueError, TypeError, KeyError or AttributeError where the values are no entry."""
    if not isinstance(values, dict) or not {"page", "licence"} <= values.keys():
        raise ValueError("it lacks a page or a licence")
    unknown = values.keys() - {*PARTS, "page", "licence", "hand", "pages"}
    if unknown:
        raise ValueError(f"unknown field {min(unknown)!r}")
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError("its name is a folder's")
    if not isinstance(values.get("hand", []), list):
        raise ValueError("hand is no list of steps")
    files = tuple(f for part in PARTS for f in files_of(part, values.get(part, ""), hosts))
    named = Counter(file.name for file in files)
    if named and max(named.values()) > 1:
        raise ValueError(f"two files are named {named.most_common(1)[0][0]}")
    lost = {file.volume_of for file in files} - named.keys() - {""}
    if lost:
        raise ValueError(f"a volume of {min(lost)} and no {min(lost)}")
    return Entry(
        name=name,
        page=values["page"],
        licence=values["licence"],
        files=files,
        hand=tuple(" ".join(step.split()) for step in values.get("hand", ())),
        pages=values.get("pages", {}),
    )


def load(path: Path) -> dict:
    """The values of a catalog, {name: {field: ...}}. Raises DataError."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())[:200]
        raise DataError(f"{path} cannot be read as a catalog ({said}); see {OWN}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} is no catalog of data sets, as {OURS} is")
    return values


@cache
def read(own: str, hub: str, path: Path = OURS) -> dict[str, Entry]:
    ours = load(path)
    theirs = load(Path(own)) if own else {}
    hosts = Hosts(hub.rstrip("/"), str(theirs.pop("mirror", "")).rstrip("/"))
    if not re.match(r"https?://|$", hosts.mirror):
        raise DataError(f"{own}: mirror is {hosts.mirror!r}, and no address like http://HOST")
    entries = {}
    for name, values in (ours | theirs).items():
        try:
            entries[name] = entry_of(name, values, hosts)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            wrong = own if name in theirs else path
            raise DataError(
                f"{wrong}: {name} is no entry like those of {OURS} ({error})"
            ) from error
    return entries


def hub() -> str:
    """The hub's address, as huggingface_hub takes it from the environment."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def read_catalog() -> dict[str, Entry]:
    """{name: Entry} of all data sets: ours, and those of the file that MATS_CATALOG names.

    An entry of that file takes the place of ours of the same name. Its `mirror` is put before every
    address: http://host/zenodo.org/records/... Raises DataError where that file is no catalog.
    """
    return read(os.environ.get(OWN, ""), hub())


def read_spice() -> Entry:
    """SPICE's jars, or the entry `spice` of the file that MATS_CATALOG names."""
    return read(os.environ.get(OWN, ""), hub(), SPICE)["spice"]
