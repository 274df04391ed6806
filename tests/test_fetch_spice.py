"""`python -m shards.fetch spice` against places on the loopback address."""

import hashlib

import pytest
import yaml
from places import Places, zipped
from stand_in import SENT

from disk import DataError
from scoring.spice.java import PIECES
from shards.fetch import __main__ as script

MAVEN = "https://repo1.maven.org/maven2"
WHEEL = "https://files.pythonhosted.org/packages/pycocoevalcap-1.2-py3-none-any.whl"


@pytest.fixture
def places(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    server = Places()
    yield server
    server.close()
    assert not server.unknown


@pytest.fixture
def jars(java, places, tmp_path, monkeypatch):
    """The places of SPICE's jars, which are empty here, and no jars in SPICE_HOME."""
    monkeypatch.delenv("SPICE_HOME")
    java.version("17")
    java.home = tmp_path / "user/mats/spice-1.0"
    spice = {name for name in PIECES if "corenlp" not in name} | {"lib/fst-2.47.jar"}
    members = {f"pycocoevalcap/spice/{name}": b"" for name in spice}
    wheel = zipped(members | {"pycocoevalcap/meteor/meteor-1.5.jar": b"no", "a/spice.py": b""})
    places.files[WHEEL.removeprefix("https://")] = wheel
    lines = [f"{WHEEL} {len(wheel)} sha256:{hashlib.sha256(wheel).hexdigest()}"]
    for name in ("stanford-corenlp-3.6.0", "stanford-corenlp-3.6.0-models", "nashorn-core-15.4"):
        data = name.encode()
        places.files[f"repo1.maven.org/maven2/{name}.jar"] = data
        checksum = hashlib.sha256(data).hexdigest()
        lines.append(f"{MAVEN}/{name}.jar {len(data)} sha256:{checksum}")
        if f"lib/{name}.jar" in PIECES:
            monkeypatch.setitem(PIECES, f"lib/{name}.jar", checksum)
    places.files["repo1.maven.org/maven2/asm-7.3.1.jar"] = b"asm"
    sha1 = hashlib.sha1(b"asm").hexdigest().encode()
    places.files["repo1.maven.org/maven2/asm-7.3.1.jar.sha1"] = sha1 + b"  asm.jar\n"
    lines.append(f"{MAVEN}/asm-7.3.1.jar - -")
    entry = {"page": "https://example.org", "licence": "AGPL", "test": "\n".join(lines)}
    path = tmp_path / "catalog.yaml"
    path.write_text(yaml.safe_dump({"mirror": places.url, "spice": entry}, width=10_000))
    monkeypatch.setenv("MATS_CATALOG", str(path))
    return java


def test_one_command_sets_spice_up(jars, places, capsys):
    with pytest.raises(DataError, match="add --yes"):
        script.main(["spice"])
    assert "490.0 MB" in capsys.readouterr().out and not places.requests
    script.main(["spice", "--yes"])
    said = capsys.readouterr().out
    assert "SPICE runs: 0.5000, 0.2857, 0.5455, as known" in said
    found = {
        path.relative_to(jars.home).as_posix() for path in jars.home.rglob("*") if path.is_file()
    }
    assert found == {*PIECES, "lib/fst-2.47.jar", "lib/nashorn-core-15.4.jar", "lib/asm-7.3.1.jar"}
    assert (jars.home / "lib/asm-7.3.1.jar").read_bytes() == b"asm"
    asked = len(places.requests)
    script.main(["spice"])  # nothing comes again, and nothing is asked
    assert len(places.requests) == asked and "as known" in capsys.readouterr().out
    (jars.home / "lib/Meteor-1.5.jar").unlink()
    script.main(["spice", "--yes"])
    assert (jars.home / "lib/Meteor-1.5.jar").exists()


def test_a_jar_of_another_checksum_is_refused(jars, places):
    path = "repo1.maven.org/maven2/stanford-corenlp-3.6.0.jar"
    places.files[path] = b"another"
    with pytest.raises(DataError, match=r"stanford-corenlp-3.6.0.jar: it has changed.*sha256"):
        script.main(["spice", "--yes"])
    places.files[path] = b"stanford-corenlp-3.6.0"
    places.files["repo1.maven.org/maven2/asm-7.3.1.jar.sha1"] = b"0" * 40
    with pytest.raises(DataError, match=r"asm-7.3.1.jar: it has changed.*sha1"):
        script.main(["spice", "--yes"])
    target = jars.home / "lib/stanford-corenlp-3.6.0.jar"
    assert target.exists()
    target.write_bytes(b"mine")
    with pytest.raises(DataError, match=f"{target} has the checksum.*delete it"):
        script.main(["spice", "--yes"])


def test_a_wheel_of_the_users_is_used_and_kept(jars, places):
    wheel = jars.home / WHEEL.rpartition("/")[2]
    wheel.parent.mkdir(parents=True, exist_ok=True)
    wheel.write_bytes(places.files[WHEEL.removeprefix("https://")])
    script.main(["spice", "--yes"])
    assert wheel.exists() and not any("pycocoevalcap" in str(asked) for asked in places.requests)


def test_without_java_the_command_says_how_to_get_it(jars):
    jars.goes_wrong("broken")
    with pytest.raises(DataError, match=r"apt-get.*brew.*conda.*python -m shards.fetch spice"):
        script.main(["spice", "--yes"])
    assert (jars.home / "spice-1.0.jar").exists()


def test_another_score_than_the_known_is_an_error(jars):
    jars.knows({"dog" + SENT: 0.5})
    with pytest.raises(DataError, match=r"SPICE gave \[0.5, 0.5, 0.545.* is known"):
        script.main(["spice", "--yes"])


def test_other_names_need_a_root(jars, capsys):
    with pytest.raises(SystemExit):
        script.main(["esc50"])
    assert "required: --root" in capsys.readouterr().err
