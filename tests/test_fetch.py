"""shards.fetch against the official places on the loopback address: what it promises."""

import fcntl
import hashlib
import importlib.util
import io
import os
import random
import re
import resource
import shutil
import signal
import threading
import time
import zipfile
import zlib
from dataclasses import replace
from itertools import repeat
from types import SimpleNamespace

import pytest
import yaml
from hub_server import Hub
from places import (
    PAGE,
    Places,
    breaks,
    count,
    damaged,
    official,
    page,
    publish,
    real_places,
    seven_zipped,
    split_zipped,
    status,
    tarred,
    unmeasured,
    whole,
    zipped,
)

import shards.fetch as package
from disk import DataError, command
from shards import audiotia, benchmarks
from shards.benchmarks import BENCHMARKS
from shards.datasets.labels import gtzan, tut2017
from shards.fetch import __main__ as script, archives, catalog, download, fetch, missing
from shards.files import Root
from shards.sources import EVERY

DATA = bytes(range(256)) * 1200  # 300 kB
PLACE = "https://example.org/files/a.bin"
PATH = "example.org/files/a.bin"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


@pytest.fixture
def places(monkeypatch):
    """The official places. Proxies are out of the way, and waits are short."""
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(download, "PAUSE", 0.001)
    monkeypatch.setattr(download, "CHUNK", 1 << 14)
    server = Places()
    yield server
    server.close()
    assert not server.unknown


@pytest.fixture
def naps(monkeypatch):
    """The seconds that a download waits between its tries; it does not wait them."""
    waited = []
    monkeypatch.setattr(download, "time", SimpleNamespace(sleep=waited.append))
    return waited


@pytest.fixture
def own(places, monkeypatch, tmp_path):
    """A function that makes a catalog of one data set, `things`, with these lines."""

    def make(*lines, part="test", mirror=places.url, **others):
        entry = {"page": "https://example.org/things", "licence": "CC0", part: "\n".join(lines)}
        path = tmp_path / f"catalog-{len(list(tmp_path.glob('catalog*')))}.yaml"
        entries = {"mirror": mirror, "things": entry | others}
        path.write_text(yaml.safe_dump(entries, width=10_000))
        monkeypatch.setenv("MATS_CATALOG", str(path))

    return make


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


def things(root):
    """{path: content} of all files in the data set's folder."""
    folder = root / "things"
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def left(root):
    """The names of what is still beside the data set's folder."""
    return {path.name for path in root.glob(".fetch/things/*")} - {"fetched.json"}


def failing(root, *args, **kwargs):
    """What is said of a fetch that fails."""
    with pytest.raises(DataError) as error:
        fetch(["things"], root, *args, **kwargs)
    return str(error.value)


def unchecked(line):
    """A catalog's line without its checksum."""
    return " ".join([*line.split()[:2], "-", *line.split()[3:]])


# --- the catalog --------------------------------------------------------------------------


def test_every_reader_has_its_data_set_in_the_catalog():
    known = catalog.read_catalog()
    folders = {part.folder for part in (*EVERY.values(), *BENCHMARKS.values())}
    assert folders - known.keys() == set()
    for entry in known.values():
        assert entry.page.startswith("https://") and entry.licence
        assert entry.files or entry.hand, f"{entry.name} has neither files nor a way to them"
        names = [file.name for file in entry.files]
        assert len(names) == len(set(names))


def test_the_catalogs_checksums_are_those_of_the_table_of_downloads(shared):
    table = (shared / "data/DOWNLOADS.md").read_text()
    here = {path.name: path.stat().st_size for path in shared.glob("data/*/*")}
    for entry in catalog.read_catalog().values():
        for file in entry.files:
            kind, _, value = file.checksum.partition(":")
            assert value in table, f"{entry.name}/{file.name}: {kind}"
            about = not file.size or not file.size % 100_000_000
            if not about and file.size != here.get(file.name):
                assert re.search(rf"\b({file.size}|{file.size:,})\b", table), file.name


def test_the_catalogs_addresses_stand_in_the_table_of_downloads(shared):
    """Each one's record or repository, and each file's name, up to the parts that vary."""
    table = (shared / "data/DOWNLOADS.md").read_text()
    for entry in catalog.read_catalog().values():
        for address in (address for file in entry.files for address in file.addresses):
            host, _, path = address.partition("://")[2].partition("?")[0].partition("/")
            parts = [part for part in path.split("/") if part not in ("records", "datasets")]
            owner = parts[0] if host == "zenodo.org" else "/".join(parts[:2])
            short = {"raw.githubusercontent.com": "", "huggingface.co": ""}.get(host, host)
            assert short in table and owner in table, address
            words = re.findall(r"[A-Za-z]{3,}", parts[-1])
            assert all(word in table for word in words), address


@pytest.mark.parametrize(
    "content, said",
    [
        ("a: [", "cannot be read as a catalog"),
        ("- a", "is no catalog"),
        ("a: {page: x, licence: y, texts: z}", "a is no entry.*unknown field 'texts'"),
        ("a: {licence: y}", "a is no entry"),
        ("a: {page: x, licence: y, text: 'ftp://a/b - -'}", "is no address"),
        ("a: {page: x, licence: y, text: 'https://a/b - md5:12'}", "is no checksum"),
        ("a: {page: x, licence: y, text: 'https://a/b -'}", "a is no entry"),
        ("a: {page: x, licence: y, text: 'https://a/b - -', test: 'https://c/b - -'}", "named b"),
        ("a: {page: x, licence: y, text: 'or https://a/b'}", "a is no entry"),
        ("a: {page: x, licence: y, test: 'https://a/b.z01 - -'}", "volume of b.zip and no b.zip"),
        ("../a: {page: x, licence: y}", "its name is a folder's"),
    ],
)
def test_a_catalog_of_ones_own_that_is_none_is_named(tmp_path, monkeypatch, content, said):
    path = tmp_path / "own.yaml"
    path.write_text(content)
    monkeypatch.setenv("MATS_CATALOG", str(path))
    with pytest.raises(DataError, match=f"own.yaml.*{said}"):
        catalog.read_catalog()
    path.unlink()
    catalog.read.cache_clear()
    with pytest.raises(DataError, match=r"own.yaml cannot be read as a catalog.*MATS_CATALOG"):
        catalog.read_catalog()


def test_an_entry_of_ones_own_takes_the_place_of_ours(own):
    ours = dict(catalog.read_catalog())
    own("https://example.org/a.csv - -")
    known = catalog.read_catalog()
    assert known.keys() == ours.keys() | {"things"}
    assert known["audiocaps"].files[0].addresses[0].startswith("http://127.0.0.1")
    assert (
        known["audiocaps"]
        .files[0]
        .addresses[0]
        .endswith(ours["audiocaps"].files[0].addresses[0].removeprefix("https:/"))
    )


# --- the real tables ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def fetched(shared, tmp_path_factory):
    """(root, places, hub) after a fetch of the real tables and of ESC-10's clips."""
    folder = tmp_path_factory.mktemp("fetched")
    places, hub = Places(), Hub()
    with pytest.MonkeyPatch.context() as patch:
        own = folder / "catalog.yaml"
        own.write_text(yaml.safe_dump(real_places(shared, places, hub), width=10_000))
        patch.setenv("MATS_CATALOG", str(own))
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        whole_sets = "audiocaps clotho clothoaqa fsd50k vggsound musiccaps song_describer cremad"
        names = [*whole_sets.split(), "dcase2017t4", "esc50"]
        fetch(names, folder / "root", ("text",))
        fetch(["esc50"], folder / "root")
        with pytest.raises(DataError) as error:  # the large lists are not beside the project
            fetch(["wavcaps"], folder / "root")
        assert missing(names, folder / "root", ("text",)) == []
    places.close()
    hub.close()
    assert places.unknown == hub.unknown == []
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == [
        f"wavcaps/{name}_final.json" for name in ("as", "bbc", "fsd")
    ]
    return folder / "root"


READ = "audiocaps audiocaps_val clotho clotho_val clothoaqa fsd50k vggsound musiccaps"
READ += " song_describer cremad dcase2017 esc50 wavcaps_soundbible"


def test_what_comes_is_read(fetched):
    for name in READ.split():
        assert next(iter(EVERY[name].clips(Root(fetched))))["id"]


@pytest.mark.slow
def test_the_builders_count_what_was_published(fetched, capsys):
    with pytest.raises(SystemExit) as done:
        audiotia.main([*READ.split(), "--check", "--root", str(fetched)])
    said = capsys.readouterr()
    assert not done.value.code, said.err
    lines = {line.split()[0]: line for line in said.out.splitlines()}
    for name in READ.split():
        published = EVERY[name].published
        assert published is None or f" {published:,} of " in lines[name]
    assert " 183,730 of " in lines["vggsound"]  # 199,176 clips less 15,446


def test_fetched_audio_is_found_by_the_builder(fetched, tmp_path):
    benchmarks.main(["esc50", "--root", str(fetched), "--out", str(tmp_path)])
    index = (tmp_path / "esc50/index.json").read_text()
    assert '"n": 240' in index and "without their audio file" in index


# --- one file -----------------------------------------------------------------------------


def test_a_file_comes_once(own, places, root):
    own(places.put(PLACE, DATA), part="text")
    fetch(iter(["things", "things"]), root, ("text",))
    assert things(root) == {"a.bin": DATA} and left(root) == set()
    fetch(["things"], root, ("text",))
    assert len(places.requests) == 1
    (root / "things/a.bin").unlink()
    fetch(["things"], root, ("text",))
    assert things(root) == {"a.bin": DATA} and len(places.requests) == 2


def test_only_the_parts_that_are_wanted_come(own, places, root):
    lines = [places.put(f"https://example.org/{name}", name.encode()) for name in "abc"]
    own(lines[0], part="text", test=lines[1], train=lines[2])
    script.main(["things", "--root", str(root)])
    assert things(root) == {"a": b"a", "b": b"b"}
    script.main(["things", "--root", str(root), "--text-only"])
    assert set(things(root)) == {"a", "b"}
    script.main(["things", "--root", str(root), "--train-audio"])
    assert set(things(root)) == {"a", "b", "c"}
    with pytest.raises(SystemExit):
        script.main(["things", "--root", str(root), "--train-audio", "--text-only"])


def test_a_broken_connection_is_resumed(own, places, root):
    own(places.put(PLACE, DATA))
    places.faults[PATH] = iter([breaks(100_000), breaks(50_000), breaks(0)])
    fetch(["things"], root)
    assert things(root) == {"a.bin": DATA}
    tag = f'"{hashlib.md5(DATA).hexdigest()}"'
    asked = [(r.status, r.headers.get("Range"), r.headers.get("If-Range")) for r in places.requests]
    assert asked == [
        (200, None, None),
        (206, "bytes=100000-", tag),
        (206, "bytes=150000-", tag),
        (206, "bytes=150000-", tag),
    ]


def test_progress_gives_new_tries_and_standstill_ends(own, places, root):
    own(places.put(PLACE, DATA))
    places.faults[PATH] = repeat(breaks(20_000))
    fetch(["things"], root)  # 15 breaks, each after something new
    assert things(root) == {"a.bin": DATA}
    shutil.rmtree(root)
    places.requests.clear()
    places.faults[PATH] = repeat(breaks(0))
    assert f"{download.TRIES} times in a row" in failing(root)
    assert len(places.requests) == download.TRIES


def test_a_killed_fetch_is_resumed(own, places, root):
    own(places.put(PLACE, DATA))
    places.faults[PATH] = iter([breaks(100_000, silent=True)])
    child = os.fork()
    if not child:
        fetch(["things"], root)
        os._exit(0)
    part = root / ".fetch/things/a.bin.part"
    while not part.exists() or part.stat().st_size < 90_000:
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    size = part.stat().st_size
    fetch(["things"], root)
    assert things(root) == {"a.bin": DATA} and left(root) == set()
    assert places.requests[-1].headers["Range"] == f"bytes={size}-"


def test_a_file_that_was_whole_when_it_was_killed_is_taken(own, places, root):
    own(places.put(PLACE, DATA))
    part = root / ".fetch/things/a.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(DATA)
    fetch(["things"], root)
    assert [request.status for request in places.requests] == [416]
    assert things(root) == {"a.bin": DATA}


def test_a_partial_file_that_is_too_long_comes_again(own, places, root):
    own(places.put(PLACE, DATA))
    part = root / ".fetch/things/a.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(DATA + b"more")
    fetch(["things"], root)
    assert [request.status for request in places.requests] == [416, 200]
    assert things(root) == {"a.bin": DATA}


def test_a_place_that_sends_all_again_is_believed(own, places, root):
    own(places.put(PLACE, DATA))
    places.faults[PATH] = iter([breaks(100_000), whole])
    fetch(["things"], root)
    assert things(root) == {"a.bin": DATA}
    assert [request.status for request in places.requests] == [200, 200]


@pytest.mark.parametrize("checked", [True, False])
def test_a_file_that_changes_between_is_not_joined_from_two_versions(own, places, root, checked):
    newer = DATA[::-1]
    old, line = places.put(PLACE, DATA), places.put(PLACE, newer)
    places.put(PLACE, DATA)
    own(line if checked else unchecked(line))
    assert old != line

    def then_change(reply, data):
        places.put(PLACE, newer)
        return breaks(100_000)(reply, data)

    places.faults[PATH] = iter([then_change])
    fetch(["things"], root)
    assert things(root) == {"a.bin": newer}
    assert [request.status for request in places.requests] == [200, 200]


def test_without_a_validator_or_a_checksum_nothing_is_joined(own, places, root):
    own(unchecked(places.put(PLACE, DATA)))

    def untagged(reply, data):
        cut = breaks(100_000)(reply, data)
        cut.headers.pop("ETag")
        return cut

    places.faults[PATH] = iter([untagged])
    fetch(["things"], root)
    assert things(root) == {"a.bin": DATA}
    assert [request.headers.get("Range") for request in places.requests] == [None, None]


def test_another_part_than_was_asked_for_is_not_joined(own, places, root):
    own(unchecked(places.put(PLACE, DATA)))

    def elsewhere(reply, _):
        place = {"Content-Range": f"bytes 7-{len(DATA) - 1}/{len(DATA)}"}
        return replace(reply, headers=reply.headers | place, body=DATA[7:])

    places.faults[PATH] = iter([breaks(100_000), elsewhere])
    fetch(["things"], root)
    assert things(root) == {"a.bin": DATA}


def test_a_damaged_file_comes_again(own, places, root):
    own(places.put(PLACE, DATA))
    places.faults[PATH] = iter([damaged])
    fetch(["things"], root)
    assert things(root) == {"a.bin": DATA} and len(places.requests) == 2


@pytest.mark.parametrize("kind", ["md5", "sha256", "git"])
def test_a_file_that_changed_upstream_is_told_with_both_checksums(own, places, root, kind):
    git = hashlib.sha1(b"blob %d\0" % len(DATA) + DATA).hexdigest()
    right = {"md5": hashlib.md5(DATA).hexdigest(), "sha256": hashlib.sha256(DATA).hexdigest()}
    right = f"{kind}:{(right | {'git': git})[kind]}"
    wrong = f"{kind}:{'0' * len(right.partition(':')[2])}"
    places.put(PLACE, DATA)
    own(f"{PLACE} - {wrong}")
    said = failing(root)
    assert right in said and wrong in said and "--accept" in said and "\n" not in said
    assert things(root) == {} and len(places.requests) == 2
    fetch(["things"], root, accept=True)
    assert things(root) == {"a.bin": DATA}
    own(f"{PLACE} - {right}")
    shutil.rmtree(root)
    fetch(["things"], root)
    assert things(root) == {"a.bin": DATA}


def test_a_second_address_is_taken(own, places, root):
    mirror = "https://mirror.example.org/a.bin"
    places.put(mirror, DATA)
    line = places.put(PLACE, DATA)
    del places.files[PATH]
    places.put("https://example.org/other", b"")
    own(line, f"or {mirror}")
    fetch(["things"], root)
    assert things(root) == {"a.bin": DATA}
    assert [request.status for request in places.requests] == [404, 200]


def test_the_rest_of_a_file_may_come_from_its_mirror(own, places, root):
    mirror = "https://mirror.example.org/a.bin"
    places.put(mirror, DATA)
    own(places.put(PLACE, DATA), f"or {mirror}")
    places.faults[PATH] = iter([breaks(100_000), *[status(503)] * download.TRIES])
    fetch(["things"], root)
    assert things(root) == {"a.bin": DATA}
    assert places.requests[-1].headers["Range"] == "bytes=100000-"
    assert "If-Range" not in places.requests[-1].headers


def test_a_file_that_is_gone_is_told_with_its_page_and_the_others_come(own, places, root):
    gone = "https://example.org/gone.csv"
    own(f"{gone} - -", places.put(PLACE, DATA))
    said = failing(root)
    assert "things/gone.csv: " in said and "404" in said and "\n" not in said
    assert "https://example.org/things" in said and str(root / "things") in said
    assert things(root) == {"a.bin": DATA}
    assert len(places.asked("gone")) == 1


def test_starting_anew_is_no_progress(own, places, root):
    """A place that sends another part than the rest, again and again, is given up."""
    own(places.put(PLACE, DATA))

    def other_part(reply, _):
        return replace(reply, headers={**reply.headers, "Content-Range": "bytes 0-9/10"})

    places.faults[PATH] = iter([breaks(100_000), other_part] * 30)
    assert "in a row" in failing(root) and len(places.requests) < 12


def test_what_failed_differs_from_what_was_not_begun(own, places, root, monkeypatch):
    own(places.put(PLACE, DATA))
    places.faults[PATH] = repeat(status(404))
    with pytest.raises(package.Incomplete, match="404"):
        fetch(["things"], root)
    monkeypatch.setattr(package.shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    with pytest.raises(DataError, match="free") as error:
        fetch(["things"], root)
    assert not isinstance(error.value, package.Incomplete)


def test_an_error_of_several_lines_is_said_in_one(own, places, root):
    """As urllib's, of a place that sends its visitors round in a circle."""
    own(places.put(PLACE, DATA))
    places.moved[PATH] = PATH
    said = failing(root)
    assert "302" in said and "infinite loop" in said and "\n" not in said


@pytest.mark.parametrize(
    "sent, asked",
    [
        ({"ETag": '"a"', "Last-Modified": "Monday"}, '"a"'),
        ({"ETag": 'W/"a"', "Last-Modified": "Monday"}, "Monday"),
        ({"Last-Modified": "Monday"}, "Monday"),
        ({"ETag": 'W/"a"'}, None),
    ],
)
def test_what_tells_a_version_from_the_next(tmp_path, sent, asked):
    """A strong ETag, else a date; with neither nothing is resumed, but with a checksum all is."""
    partial = download.Partial(tmp_path / "a.bin", checked=False)
    partial.note(PLACE, sent)
    assert partial.headers(PLACE) == {}  # nothing has come
    partial.path.write_bytes(b"12345")
    rest = {"Range": "bytes=5-"}
    assert partial.headers(PLACE) == (rest | {"If-Range": asked} if asked else {})
    assert partial.headers("https://mirror.example.org/a.bin") == {}
    partial.checked = True
    assert partial.headers("https://mirror.example.org/a.bin") == rest


def test_a_kill_before_the_first_byte_of_another_version(own, places, root, monkeypatch):
    """The old version's bytes are gone before the new one's tag is noted."""
    own(unchecked(places.put(PLACE, DATA)))
    places.faults[PATH] = iter([breaks(100_000)] + [status(503)] * 9)
    failing(root)
    places.put(PLACE, DATA[::-1])
    places.faults.clear()
    with monkeypatch.context() as patch:
        patch.setattr(download, "write", lambda *_: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            fetch(["things"], root)
    fetch(["things"], root)
    assert things(root) == {"a.bin": DATA[::-1]}


def test_a_shorter_version_is_not_taken_for_the_rest(own, places, root):
    """A place without If-Range; without a checksum only its total tells that the file changed."""
    own(unchecked(places.put(PLACE, DATA)))
    places.faults[PATH] = iter([breaks(100_000)] + [status(503)] * 9)
    failing(root)
    places.put(PLACE, DATA[:50_000])
    places.faults[PATH] = iter([status(416, Content_Range="bytes */50000")])
    fetch(["things"], root)
    assert things(root) == {"a.bin": DATA[:50_000]}


def test_a_mirrors_part_is_asked_for_by_the_mirrors_tag(own, places, root):
    mirror = "https://mirror.example.org/a.bin"
    places.put(mirror, DATA)
    own(places.put(PLACE, DATA), f"or {mirror}")
    places.faults[PATH] = iter([breaks(100_000), *[status(503)] * download.TRIES])
    places.faults["mirror.example.org/a.bin"] = iter([breaks(50_000)])
    fetch(["things"], root)
    assert things(root) == {"a.bin": DATA}
    assert [each.headers.get("If-Range") for each in places.asked("mirror")][0] is None
    assert '"' in places.asked("mirror")[1].headers["If-Range"]


def test_nothing_is_asked_for_in_a_compressed_form(own, places, root):
    own(places.put(PLACE, DATA))
    fetch(["things"], root)
    assert places.requests[0].headers["Accept-Encoding"] == "identity"


def test_the_bar_ends_with_the_files_size(places, tmp_path):
    """Also where a place sends all again."""
    places.put(PLACE, DATA)
    places.faults[PATH] = iter([breaks(100_000), whole])
    file = catalog.File("text", (f"{places.url}/{PATH}",), len(DATA), "")
    bar = download.tqdm(total=len(DATA), file=io.StringIO())
    download.download_file(file, tmp_path / "a.bin", bar)
    assert (tmp_path / "a.bin").read_bytes() == DATA and bar.n == bar.total == len(DATA)


def test_a_mirror_that_is_silent_is_no_reason_to_give_up_the_host(places, tmp_path):
    """Its first place answers, without the file."""
    places.put("https://example.org/other", DATA)
    addresses = (f"{places.url}/{PATH}", "http://127.0.0.1:1/a.bin")
    file = catalog.File("text", addresses, None, "")
    with pytest.raises(DataError, match="404.*no connection") as error:
        download.download_file(file, tmp_path / "a.bin", download.tqdm(disable=True))
    assert not isinstance(error.value, download.Unreachable)


def test_a_file_that_is_always_damaged_ends(own, places, root):
    """Each time in another way."""
    own(places.put(PLACE, DATA))

    def spoil(i):
        return lambda reply, data: replace(reply, body=data[:i] + b"!" + data[i + 1 :])

    places.faults[PATH] = (spoil(i) for i in range(1, 99))
    assert "damaged three times" in failing(root) and len(places.requests) == 3


def test_the_catalogs_size_and_checksum_stand_before_zenodos(places, root, own):
    places.put("https://zenodo.org/records/7/files/a.bin", DATA)
    own(f"zenodo:7/a.bin 5 {'-'}", f"zenodo:7/b.bin - md5:{'0' * 32}")
    places.put("https://zenodo.org/records/7/files/b.bin", b"b")
    plan = package.complete(missing(["things"], root, ["test"]))
    md5 = hashlib.md5(DATA).hexdigest()
    found = [(file.size, file.checksum) for _, file in plan]
    assert found == [(5, f"md5:{md5}"), (1, f"md5:{'0' * 32}")]


@pytest.mark.parametrize("listed", [[], [{}], [None], [{"key": "a", "size": "?", "checksum": ""}]])
def test_a_list_of_zenodo_in_another_form_tells_nothing(monkeypatch, listed):
    monkeypatch.setattr(package, "fetch_json", lambda _: {"files": listed})
    assert package.published("https://zenodo.org/api/records/7") == {}


def test_a_place_that_asks_for_patience_gets_it(own, places, root, naps):
    own(places.put(PLACE, DATA))
    places.faults[PATH] = iter([status(429, Retry_After=7), status(503), breaks(9000), status(429)])
    fetch(["things"], root)
    assert things(root) == {"a.bin": DATA}
    assert naps == [7, 0.002, 0.001, 0.002]
    places.faults[PATH] = repeat(status(429, Retry_After=7))
    shutil.rmtree(root)
    assert "429" in failing(root)


def test_a_proxys_page_is_no_file(own, places, root):
    mirror = "https://mirror.example.org/a.bin"
    own(places.put(PLACE, DATA))
    places.faults[PATH] = repeat(page)
    said = failing(root)
    assert "web page" in said and things(root) == {} and len(places.requests) == 1
    places.put(mirror, DATA)
    own(unchecked(places.put(PLACE, DATA)), f"or {mirror}")
    fetch(["things"], root)
    assert things(root) == {"a.bin": DATA}


def test_a_proxys_page_leaves_what_had_come(own, places, root):
    own(places.put(PLACE, DATA))
    places.faults[PATH] = iter([breaks(100_000), page])
    assert "web page" in failing(root)
    fetch(["things"], root)
    assert things(root) == {"a.bin": DATA}
    assert places.requests[-1].headers["Range"] == "bytes=100000-"


@pytest.mark.parametrize("content, said", [(LFS, "LFS pointer"), (PAGE, "page"), (b"", "empty")])
def test_a_pointer_or_a_page_is_no_file(own, places, root, content, said):
    mirror = "https://mirror.example.org/a.bin"
    own(unchecked(places.put(PLACE, content)))
    assert said in failing(root) and things(root) == {} and left(root) == set()
    places.put(mirror, DATA)
    own(unchecked(places.put(PLACE, content)), f"or {mirror}")
    fetch(["things"], root)
    assert things(root) == {"a.bin": DATA}


def test_a_file_without_its_length_comes(own, places, root):
    own(places.put(PLACE, DATA))
    places.faults[PATH] = iter([unmeasured])
    fetch(["things"], root)
    assert things(root) == {"a.bin": DATA}


@pytest.mark.parametrize("length", ["9" * 5000, "٤", "-1", "many"])
def test_a_length_that_is_none_is_not_believed(length):
    assert download.length_of({"Content-Length": length}, 7) is None
    assert download.length_of({"Content-Length": "35"}, 7) == 42


def test_a_redirect_keeps_the_range(own, places, root):
    target = "https://uc1.dl.dropboxusercontent.com/cd/0/get/things.bin"
    short = "https://www.dropbox.com/s/abc/things.bin?dl=1"
    places.put(target, DATA)
    places.move(short, target)
    own(f"{short} - -")
    places.faults[target.removeprefix("https://")] = iter([breaks(100_000)])
    fetch(["things"], root)
    assert things(root) == {"things.bin": DATA}
    assert [(r.status, r.query, r.headers.get("Range")) for r in places.requests] == [
        (302, "dl=1", None),
        (200, "", None),
        (302, "dl=1", "bytes=100000-"),
        (206, "", "bytes=100000-"),
    ]


def test_silence_is_ended_and_the_file_resumed(own, places, root, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    own(places.put(PLACE, DATA))
    places.faults[PATH] = iter([breaks(0, silent=True), breaks(100_000, silent=True)])
    fetch(["things"], root)
    assert things(root) == {"a.bin": DATA}
    assert places.requests[-1].headers.get("Range")


def test_without_a_network_each_host_is_asked_for_one_file(places, own, root, monkeypatch):
    asked = []

    def nobody(request, timeout):
        asked.append(request.full_url)
        raise OSError("Name or service not known")

    monkeypatch.setattr(download, "urlopen", nobody)
    lines = [f"https://one.org/a{i} - -" for i in range(9)]
    lines += [f"https://two.org/b{i} - -" for i in range(9)]
    lines += [f"zenodo:{i}/{i}.csv - -" for i in range(10, 19)]
    own(*lines, mirror="")
    said = failing(root)
    assert len(said.splitlines()) == 27 and said.count("is there a network?") == 24
    assert len(asked) == 3 * download.TRIES + 1  # and Zenodo's list once
    assert {address for address in asked if "api" not in address} == {
        "https://one.org/a0",
        "https://two.org/b0",
        "https://zenodo.org/records/10/files/10.csv?download=1",
    }


def test_zenodos_list_fills_in_sizes_and_checksums(own, places, root, capsys):
    places.put("https://zenodo.org/records/7/files/a b.csv", DATA)
    places.put("https://zenodo.org/records/7/files/b.csv", b"b")
    own("zenodo:7/a%20b.csv - -", "zenodo:7/b.csv - -")
    places.faults["zenodo.org/records/7/files/a b.csv"] = iter([damaged])
    fetch(["things"], root)
    assert things(root) == {"a b.csv": DATA, "b.csv": b"b"}
    assert len(places.asked("api")) == 1 and len(places.asked("a b")) == 2
    assert "2 files, 307 kB" in (said := capsys.readouterr().out) and "unknown" not in said
    shutil.rmtree(root)
    places.faults["zenodo.org/api/records/7"] = iter([status(503)])
    fetch(["things"], root)
    assert set(things(root)) == {"a b.csv", "b.csv"}


# --- archives -----------------------------------------------------------------------------

CLIPS = {f"set/audio/{i}.wav": f"clip {i}".encode() * 9000 for i in range(4)}
PACKED = {"a.zip": zipped, "a.tar.gz": tarred, "a.tgz": tarred, "a.7z": seven_zipped}


def renamed_7z(members, name):
    """A 7z whose last member has got a name that py7zr would not write."""
    import py7zr

    made = io.BytesIO()
    with py7zr.SevenZipFile(made, "w") as archive:
        archive.set_encoded_header_mode(False)
        for path, data in members.items():
            archive.writestr(data, path)
    old, new = [*members][-1].encode("utf-16-le"), name.encode("utf-16-le")
    assert made.getvalue().count(old) == 1
    data = bytearray(made.getvalue().replace(old, new))
    offset, size = (int.from_bytes(data[at : at + 8], "little") for at in (12, 20))
    header = data[32 + offset : 32 + offset + size]
    data[28:32] = zlib.crc32(header).to_bytes(4, "little")
    data[8:12] = zlib.crc32(data[12:32]).to_bytes(4, "little")
    return bytes(data)


def archive_at(places, name, data, held="audio/*.wav 4"):
    return f"{places.put(f'https://example.org/{name}', data)} {held}"


@pytest.mark.parametrize("name", PACKED)
def test_an_archives_members_come_and_it_goes(own, places, root, name):
    if name.endswith("7z"):
        pytest.importorskip("py7zr")
    own(archive_at(places, name, PACKED[name](CLIPS)))
    fetch(["things"], root)
    assert things(root) == CLIPS and left(root) == set()
    fetch(["things"], root)
    assert len(places.requests) == 1


def test_official_layouts_fit_their_readers(places, root, monkeypatch, tmp_path):
    """GTZAN's tar of two genres, and TUT's scenes of several zips."""
    genres = {
        f"genres/{genre}/{genre}.{i:05d}.wav": b"RIFF"
        for genre in ("blues", "jazz")
        for i in (0, 1)
    }
    values = yaml.safe_load(catalog.OURS.read_text())
    gtzan_entry, tut_entry = values["gtzan"], values["tut2017"]
    address = "https://archive.org/download/gtzan_genre/genres.tar.gz"
    data = tarred(genres)
    places.put(address, data)
    checksum = f"sha256:{hashlib.sha256(data).hexdigest()}"
    gtzan_entry["test"] = f"{address} - {checksum} genres/*/*.wav 4"
    outer = "TUT-acoustic-scenes-2017-evaluation"
    scenes = {
        f"{outer}.meta.zip": {f"{outer}/meta.txt": b"audio/1.wav\tbeach\naudio/2.wav\tbus\n"},
        f"{outer}.audio.1.zip": {f"{outer}/audio/1.wav": b"RIFF1"},
        f"{outer}.audio.2.zip": {f"{outer}/audio/2.wav": b"RIFF2"},
    }
    for name, members in scenes.items():
        places.put(official(f"zenodo:1040168/{name}"), zipped(members))
    tut_entry["text"] = f"zenodo:1040168/{outer}.meta.zip - - {outer}/meta.txt 1"
    tut_entry["test"] = "\n".join(f"zenodo:1040168/{name} - -" for name in [*scenes][1:])
    own = tmp_path / "own.yaml"
    own.write_text(
        yaml.safe_dump({"mirror": places.url, "gtzan": gtzan_entry, "tut2017": tut_entry})
    )
    monkeypatch.setenv("MATS_CATALOG", str(own))
    fetch(["gtzan", "tut2017"], root)
    assert sorted(clip["labels"][0] for clip in gtzan(Root(root))) == ["blues"] * 2 + ["jazz"] * 2
    assert [clip["labels"] for clip in tut2017(Root(root), "evaluation")] == [["beach"], ["bus"]]
    assert (root / "tut2017" / outer / "audio/2.wav").read_bytes() == b"RIFF2"


@pytest.mark.skipif(not shutil.which("zip"), reason="makes a split zip with Info-ZIP's zip")
@pytest.mark.parametrize("options", [(), ("-fz",)])
def test_a_split_zip_is_unpacked(own, places, root, options):
    volumes = split_zipped(CLIPS, "FSD50K.eval_audio", *options)
    assert bool(options) == (b"PK\x06\x07" in volumes["FSD50K.eval_audio.zip"])
    assert len(volumes) > 2
    lines = [places.put(f"https://example.org/{name}", data) for name, data in volumes.items()]
    own(*lines[:-1], f"{lines[-1]} audio/*.wav 4")
    assert count(zipped(CLIPS), "audio/*.wav") == 4
    places.faults["example.org/FSD50K.eval_audio.z02"] = repeat(status(404))
    assert "z02" in failing(root) and things(root) == {}
    del places.faults["example.org/FSD50K.eval_audio.z02"]
    places.requests.clear()
    fetch(["things"], root)
    assert things(root) == CLIPS and left(root) == set()
    assert len(places.requests) == 2  # z02, and the last, which came only after it
    fetch(["things"], root)
    assert len(places.requests) == 2


@pytest.mark.skipif(not shutil.which("zip"), reason="makes a split zip with Info-ZIP's zip")
def test_a_split_zip_of_many_files_whose_list_spans_volumes(tmp_path):
    members = {f"audio/{i:05d}.wav": b"RIFF%d" % i * (i % 9) for i in range(900)}
    paths = []
    for name, data in split_zipped(members, "a", "-fz").items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(data)
    assert len(paths) > 2
    archives.unpack(paths, tmp_path / "out")
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    found = {path.relative_to(tmp_path / "out").as_posix(): path.read_bytes() for path in files}
    assert found == members
    paths[1].write_bytes(paths[1].read_bytes()[:-500])
    with pytest.raises(archives.Damaged):
        archives.unpack(paths, tmp_path / "out2")


class ZipInfoWithEnd(zipfile.ZipInfo):
    _end_offset = None


@pytest.mark.skipif(not shutil.which("zip"), reason="makes a split zip with Info-ZIP's zip")
@pytest.mark.skipif(hasattr(zipfile.ZipInfo, "_end_offset"), reason="this Python compares itself")
@pytest.mark.parametrize("options", [(), ("-fz",)])
def test_members_of_a_split_zip_do_not_seem_to_overlap(tmp_path, monkeypatch, options):
    """From 3.11.8 on, zipfile refuses a member that reaches beyond the start of the next one."""
    read_list, open_member = zipfile.ZipFile._RealGetContents, zipfile.ZipFile.open

    def read_list_and_ends(archive):
        read_list(archive)
        end = archive.start_dir
        for member in sorted(archive.filelist, key=archives.offset_of, reverse=True):
            member._end_offset, end = end, member.header_offset

    def open_checked(archive, member, *args, **kwargs):
        size = 30 + len(member.filename) + member.compress_size
        if member._end_offset is not None and member.header_offset + size > member._end_offset:
            raise zipfile.BadZipFile(f"Overlapped entries: {member.filename}")
        return open_member(archive, member, *args, **kwargs)

    monkeypatch.setattr(zipfile, "ZipInfo", ZipInfoWithEnd)
    monkeypatch.setattr(zipfile.ZipFile, "_RealGetContents", read_list_and_ends)
    monkeypatch.setattr(zipfile.ZipFile, "open", open_checked)
    draw = random.Random(0)
    members = {f"audio/{i}.wav": draw.randbytes(draw.randrange(9000)) for i in range(40)}
    paths = []
    for name, data in split_zipped(members, "a", *options).items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(data)
    assert len(paths) > 2
    archives.unpack(paths, tmp_path / "out")
    for name, data in members.items():
        assert (tmp_path / "out" / name).read_bytes() == data


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_an_archive_that_is_cut_off_comes_again_once(own, places, root, name, share):
    if name.endswith("7z"):
        pytest.importorskip("py7zr")
    data = PACKED[name](CLIPS)
    short = data[: int(len(data) * share)]
    places.put(f"https://example.org/{name}", short)
    own(f"https://example.org/{name} - - audio/*.wav 4")

    def then_whole(reply, _):
        places.put(f"https://example.org/{name}", data)
        return reply

    places.faults[f"example.org/{name}"] = iter([then_whole])
    fetch(["things"], root)
    assert things(root) == CLIPS and len(places.requests) == 2
    shutil.rmtree(root)
    places.put(f"https://example.org/{name}", short)
    said = failing(root)
    assert "cannot be unpacked" in said and "\n" not in said
    assert things(root) == {} and left(root) == set() and len(places.requests) == 4


def test_an_archive_of_the_published_checksum_does_not_come_again(own, places, root):
    """One that this machine cannot unpack, as by an encryption, may have many gigabytes."""
    own(places.put("https://example.org/a.zip", zipped(CLIPS)[:-30]))
    said = failing(root)
    assert "cannot be unpacked" in said and "it is kept" in said
    assert left(root) == {"a.zip"} and len(places.requests) == 1
    failing(root)
    assert len(places.requests) == 1


def test_a_zip_with_a_name_that_is_no_unicode_is_damaged(own, places, root):
    data = zipped({"audio/\u00e9.wav": b"RIFF"}).replace("\u00e9".encode(), b"\x87\x87")
    own(unchecked(places.put("https://example.org/a.zip", data)))
    assert "a.zip cannot be unpacked" in failing(root) and len(places.requests) == 2


def test_an_archive_that_lacks_members_is_told(own, places, root):
    own(archive_at(places, "a.zip", zipped(CLIPS), "audio/*.wav 5"))
    said = failing(root)
    assert "4 files like audio/*.wav where 5 were published" in said and "--accept" in said
    assert things(root) == {} and left(root) == {"a.zip"}
    fetch(["things"], root, accept=True)
    assert things(root) == CLIPS and len(places.requests) == 1


def test_an_empty_archive_is_told(own, places, root):
    own(unchecked(places.put("https://example.org/a.zip", zipped({}))))
    assert "holds no file" in failing(root)


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("escape", ["../../evil.wav", "/tmp/mats-evil/evil.wav"])
def test_members_do_not_escape(own, places, root, name, escape, tmp_path):
    if name.endswith("7z"):
        pytest.importorskip("py7zr")
        data = renamed_7z({"audio/0.wav": b"good", "x" * len(escape): b"evil"}, escape)
    else:
        data = PACKED[name]({"audio/0.wav": b"good", escape: b"evil"})
    own(unchecked(places.put(f"https://example.org/{name}", data)))
    try:
        fetch(["things"], root)
    except DataError as error:
        assert "cannot be unpacked" in str(error)
    assert not os.path.exists("/tmp/mats-evil")
    inside = list(tmp_path.rglob("evil.wav"))
    assert all(path.is_relative_to(root / "things") for path in inside)


def test_the_users_own_files_stay(own, places, root):
    (root / "things").mkdir(parents=True)
    (root / "things/a.bin").write_bytes(b"mine")
    clip, data = "set/audio/2.wav", tarred(CLIPS)
    own(places.put(PLACE, DATA), archive_at(places, "a.tar.gz", data))
    mine = root / "things" / clip
    mine.parent.mkdir(parents=True)
    mine.write_bytes(CLIPS[clip][::-1])  # as many bytes,
    os.utime(mine, (0, 0))  # and as old as the archive's
    said = failing(root)
    assert str(mine) in said and "a.bin has the checksum md5:" in said and "--accept" in said
    assert things(root) == {"a.bin": b"mine", clip: CLIPS[clip][::-1]}
    assert not places.asked("a.bin")
    mine.write_bytes(CLIPS[clip])
    before = mine.stat()
    fetch(["things"], root, accept=True)
    fetch(["things"], root)  # what was accepted once stays
    assert things(root) == CLIPS | {"a.bin": b"mine"}
    after = mine.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert len(places.requests) == 1


def test_a_file_by_hand_that_is_the_published_one_is_not_fetched(own, places, root):
    own(places.put(PLACE, DATA))
    (root / "things").mkdir(parents=True)
    (root / "things/a.bin").write_bytes(DATA)
    fetch(["things"], root)
    assert not places.requests


def test_clips_that_were_deleted_come_again(own, places, root):
    own(archive_at(places, "a.zip", zipped(CLIPS)))
    fetch(["things"], root)
    fetch(["things"], root)
    assert len(places.requests) == 1
    clips = sorted((root / "things").rglob("*.wav"))
    clips[-1].unlink()
    fetch(["things"], root)
    assert things(root) == CLIPS and len(places.requests) == 2


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_no_folder_in_the_place_of_the_folder(kind, own, places, root):
    own(places.put(PLACE, DATA))
    root.mkdir()
    if kind == "file":
        (root / "things").write_text("mine")
    else:
        (root / "things").symlink_to(root / "nowhere")
    assert "things is no folder: move it away" in failing(root)
    assert not places.requests


def test_a_damaged_list_of_what_came_is_named(own, places, root):
    own(places.put(PLACE, DATA))
    fetch(["things"], root)
    path = root / ".fetch/things/fetched.json"
    path.write_text("{")
    assert "fetched.json" in failing(root) and "delete it" in failing(root)
    path.unlink()
    fetch(["things"], root)
    assert len(places.requests) == 1


@pytest.mark.parametrize(
    ("others", "problem"),
    [({"hand": "ask them"}, "hand is no list"), ({"mirror": "127.0.0.1:80"}, "no address like")],
)
def test_a_catalog_of_ones_own_with_a_mistake(others, problem, own, places, root):
    own(places.put(PLACE, DATA), **others)
    assert problem in failing(root)


def test_a_changed_file_is_kept_for_accept(own, places, root):
    own(places.put(PLACE, DATA))
    places.files[PATH] = DATA[::-1]
    assert "it has changed where it is published" in failing(root)
    asked = len(places.requests)
    fetch(["things"], root, accept=True)
    assert things(root) == {"a.bin": DATA[::-1]} and len(places.requests) == asked


def test_what_a_kill_left_of_an_unpacked_archive_goes(own, places, root):
    own(archive_at(places, "a.zip", zipped(CLIPS)))
    fetch(["things"], root)
    (root / ".fetch/things/a.zip").write_bytes(b"gigabytes")
    fetch(["things"], root)
    assert not left(root) and len(places.requests) == 1


@pytest.mark.parametrize("name", ["a/../../x", "../x", ".x", ""])
def test_an_entrys_name_is_a_folders(name):
    with pytest.raises(ValueError, match="a folder's"):
        catalog.entry_of(name, {"page": "", "licence": ""}, catalog.Hosts("", ""))


def test_sizes_are_whole_numbers(own, root):
    own(f"{PLACE} -5 -")
    assert "'-5' is no number of bytes" in failing(root)


def test_an_archive_that_the_user_placed_is_used_and_kept(own, places, root):
    data = zipped(CLIPS)
    own(archive_at(places, "a.zip", data))
    (root / "things").mkdir(parents=True)
    (root / "things/a.zip").write_bytes(data[:-9])
    said = failing(root)
    assert f"{root / 'things/a.zip'} has the checksum md5:" in said and "--accept" in said
    assert "cannot be unpacked" in failing(root, accept=True)
    assert (root / "things/a.zip").read_bytes() == data[:-9]
    (root / "things/a.zip").write_bytes(data)
    fetch(["things"], root)
    assert things(root) == CLIPS | {"a.zip": data}
    assert places.requests == []
    fetch(["things"], root)


def test_what_the_user_unpacked_does_not_come(own, places, root):
    own(archive_at(places, "a.zip", zipped(CLIPS)))
    for path, data in CLIPS.items():
        (root / "things/elsewhere" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "things/elsewhere" / path).write_bytes(data)
    fetch(["things"], root)
    assert places.requests == []


def test_an_unpacking_that_was_killed_is_done_again(own, places, root):
    own(archive_at(places, "a.zip", zipped(CLIPS)))
    stale = root / ".fetch/things/a.zip.unpacked/set/audio/9.wav"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of an older archive")
    moved = root / "things/set/audio/0.wav"
    moved.parent.mkdir(parents=True)
    moved.write_bytes(CLIPS["set/audio/0.wav"])
    fetch(["things"], root)
    assert things(root) == CLIPS and left(root) == set()


def test_7z_without_py7zr_is_told_before_anything_comes(own, places, root, monkeypatch):
    def without(name):
        return None if name == "py7zr" else importlib.util.find_spec(name)

    monkeypatch.setattr(archives, "find_spec", without)
    own(places.put(PLACE, DATA), archive_at(places, "a.7z", b"7z"))
    said = failing(root)
    assert "a.7z" in said and "requirements-fetch.txt" in said and "\n" not in said
    assert places.requests == []


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="wants two file systems")
def test_a_data_sets_folder_may_be_on_another_disk(own, places, root):
    own(archive_at(places, "a.zip", zipped(CLIPS)), places.put(PLACE, DATA))
    root.mkdir()
    other = f"/dev/shm/mats-{os.getpid()}"
    os.mkdir(other)
    try:
        (root / "things").symlink_to(other)
        fetch(["things"], root)
        assert things(root) == CLIPS | {"a.bin": DATA} and left(root) == set()
    finally:
        shutil.rmtree(other)


# --- the disk -----------------------------------------------------------------------------


def said_by_command(capsys, *args):
    with pytest.raises(SystemExit) as done, command("fetch"):
        script.main([*map(str, args)])
    assert done.value.code != 0
    return str(done.value.code)


def test_a_full_disk_is_told_and_resumed(own, places, root):
    own(places.put(PLACE, DATA), places.put("https://example.org/b.bin", DATA[1:]))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        said = failing(root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "the disk is full" in said and "b.bin" not in said and len(places.requests) == 1
    fetch(["things"], root)
    assert things(root) == {"a.bin": DATA, "b.bin": DATA[1:]}
    assert places.requests[1].headers["Range"].startswith("bytes=100000-")


def test_a_root_that_cannot_be_written_is_one_line(own, places, tmp_path, capsys):
    own(places.put(PLACE, DATA))
    (tmp_path / "file").write_text("")
    said = said_by_command(capsys, "things", "--root", tmp_path / "file")
    assert str(tmp_path / "file") in said and "\n" not in said
    if os.path.isdir("/sys/kernel"):  # nobody makes folders there
        said = said_by_command(capsys, "things", "--root", "/sys/kernel")
        assert "/sys/kernel/.fetch" in said and "choose another folder" in said
    assert places.requests == []


def test_space_is_looked_for_first(own, places, root, monkeypatch):
    def disk(free):
        monkeypatch.setattr(package.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))

    data = zipped(CLIPS)
    small = zipped({"small.wav": b"RIFF"})  # unpacked before the other comes, or after it
    own(
        places.put(PLACE, DATA),
        archive_at(places, "a.zip", data),
        archive_at(places, "b.zip", small, "small.wav 1"),
    )
    need = len(DATA) + 2.5 * len(data) + 1.5 * len(small)
    disk(need - 1)
    said = failing(root)
    assert "make room" in said and str(root) in said and places.requests == []
    part = root / ".fetch/things/a.bin.part"
    part.parent.mkdir()
    part.write_bytes(DATA[:1000])
    disk(need - 1000)
    fetch(["things"], root)
    assert things(root) == CLIPS | {"a.bin": DATA, "small.wav": b"RIFF"}


def test_two_fetches_at_once_are_one_too_many(own, places, root):
    own(places.put(PLACE, DATA))
    places.faults[PATH] = iter([breaks(100_000, silent=True)])
    first = threading.Thread(target=fetch, args=(["things"], root))
    first.start()
    while not places.requests:
        time.sleep(0.005)
    assert "another fetch is writing" in failing(root)
    places.opened.set()
    first.join()
    assert things(root) == {"a.bin": DATA}
    with open(root / ".fetch/lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (root / "things/a.bin").unlink()
        assert "another fetch is writing" in failing(root)


# --- the command --------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["https://example.org/a.zip - -", f"{PLACE} 1000000000 -"])
def test_it_asks_before_a_gigabyte_or_an_archive_of_unknown_size(
    own, places, root, monkeypatch, line
):
    free = SimpleNamespace(free=10**12)
    monkeypatch.setattr(package.shutil, "disk_usage", lambda _: free)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    places.put("https://example.org/a.zip", zipped(CLIPS))
    places.put(PLACE, DATA)
    own(line)
    with pytest.raises(DataError, match="--yes"):
        script.main(["things", "--root", str(root)])
    assert places.requests == []
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    for answer in ("n", "y"):
        monkeypatch.setattr("builtins.input", lambda _, said=answer: said)
        if answer == "n":
            with pytest.raises(DataError, match="not started"):
                script.main(["things", "--root", str(root)])
            assert places.requests == []
    script.main(["things", "--root", str(root)])
    assert len(places.requests) == 1
    shutil.rmtree(root)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    script.main(["things", "--root", str(root), "--yes"])
    assert len(places.requests) == 2


def test_below_a_gigabyte_it_does_not_ask(own, places, root, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    own(places.put(PLACE, DATA), hand=["audio: crawl it", "the rest: write a letter"])
    script.main(["things", "--root", str(root)])
    said = capsys.readouterr().out
    assert "by hand: audio: crawl it" in said and "by hand: the rest" in said
    assert f"to fetch into {root}: 1 file, 307 kB" in said
    script.main(["things", "--root", str(root), "--text-only"])
    said = capsys.readouterr().out
    assert "crawl it" not in said and "write a letter" in said


def test_an_unknown_name_is_told_with_the_known(root):
    with pytest.raises(DataError, match="no 'audiocap'.*audiocaps, clotho"):
        script.main(["audiocap", "--root", str(root)])
    with pytest.raises(DataError, match="no 'audiocap'"):
        fetch(["audiocap"], root)
    assert not root.exists()


def test_a_sources_name_means_its_data_set(places, root, own):
    address = catalog.read_catalog()["dcase2017t4"].files[-1]
    label_list = b"a\tb\n"
    places.put(address.addresses[0], label_list)
    own("https://example.org/x - -")
    with pytest.raises(DataError) as error:
        script.main(["dcase2017", "--root", str(root)])
    assert "dcase2017t4/sound_event_list" in str(error.value)
    for name, folder in (("dcase2017", "dcase2017t4"), ("audiocaps_val", "audiocaps")):
        assert script.folder_of(name) == folder


def test_the_list_tells_what_is_there(own, places, root, capsys):
    own(places.put(PLACE, DATA), "https://example.org/b.bin - -", hand=["audio: ask"])
    fetching = ["things", "--root", str(root)]
    script.main([*fetching, "--list"])
    assert "0 of 2 files there" in capsys.readouterr().out
    failing(root)
    script.main([*fetching, "--list"])
    said = capsys.readouterr().out
    assert "1 of 2 files there" in said and "0.3 MB+" in said.replace("307 kB+", "0.3 MB+")
    assert "by hand: audio: ask" in said and "https://example.org/things (CC0)" in said
    script.main(["--root", str(root)])
    said = capsys.readouterr().out
    assert all(name in said for name in catalog.read_catalog())
    assert "train: dcase2017; test: dcase2017" in said


# --- the hub ------------------------------------------------------------------------------


@pytest.fixture
def datasets(hub, own, places, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    files = {
        "Chat/Chat_meta.json": b"[]",
        "Chat/sound/1.wav": b"RIFF1" * 99,
        "Chat/sound/2.mp3": b"ID3",
        "Foundation/3.wav": b"RIFF3",
        "data/genres.tar.gz": DATA,
    }
    publish(hub, "owner/things", files)
    return files


def test_a_file_of_the_hub_comes_and_resumes(hub, own, datasets, root):
    own(f"hf:owner/things/data/genres.tar - sha256:{hashlib.sha256(b'').hexdigest()}")
    assert "404" in failing(root)
    own("hf:owner/things/Chat/Chat_meta.json - -", "hf:owner/things/Chat/sound/1.wav - -")
    part = root / ".fetch/things/1.wav.part"
    wav = datasets["Chat/sound/1.wav"]
    part.write_bytes(wav[:100])
    oid = hashlib.sha256(wav).hexdigest()
    address = f"{hub.url}/datasets/owner/things/resolve/main/Chat/sound/1.wav"
    part.with_name("1.wav.origin").write_text(f'{address}\n"{oid}"')
    fetch(["things"], root)
    assert things(root) == {"Chat_meta.json": b"[]", "1.wav": wav}
    assert hub.ranges == [(f"/lfs/{oid}", "bytes=100-")]


def test_a_folder_of_the_hub_comes_whole(hub, own, datasets, root):
    own("hf:owner/things/Chat/ - -")
    mine = root / "things/Chat/sound/1.wav"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    assert str(mine) in failing(root)
    assert things(root) == {"Chat/sound/1.wav": b"mine"}
    mine.unlink()
    fetch(["things"], root)
    wanted = {path: data for path, data in datasets.items() if path.startswith("Chat/")}
    assert things(root) == wanted and left(root) == set()
    assert not any("Foundation" in path for _, path in hub.requests)
    asked = len(hub.requests)
    fetch(["things"], root)
    assert len(hub.requests) == asked
    own("hf:owner/things/Talk/ - -")
    assert "has no Talk" in failing(root)
    own("hf:owner/nothing/Chat/ - -")
    assert "owner/nothing" in failing(root / "other")
