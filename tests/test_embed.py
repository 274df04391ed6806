"""Vectors beside the texts, and index.json for shards without one."""

import errno
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from conftest import make_samples, write_samples

from data import Damage, Source, read_source
from disk import DataError
from shards import embed as embedding
from shards.writer import ShardWriter

ROOT = Path(__file__).parent.parent


class Letters:
    """An encoder of one's own: three attributes and two methods. Counts what it is asked."""

    dim, sample_rate, seconds = 26, 8000, 1.0

    def __init__(self):
        self.asked = []

    def encode_text(self, texts):
        self.asked += texts
        z = torch.tensor(
            [[float(t.lower().count(chr(97 + i))) for i in range(26)] for t in texts]
        ).view(-1, 26)
        return torch.nn.functional.normalize(z, dim=-1)


def test_embed_encodes_each_text_once_and_resumes(tmp_path, monkeypatch):
    samples = list(make_samples(60))
    write_samples(tmp_path / "src", samples, vectors=False)
    clap = Letters()
    real, calls = embedding.copy_shard, []

    def dies_at_the_third(*args):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(args)
        real(*args)

    monkeypatch.setattr(embedding, "copy_shard", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        embedding.embed(tmp_path / "src", tmp_path / "dst", clap, "letters", progress=False)
    asked = clap.asked[3:]  # the first three are the encoder's probe
    assert len(asked) == len(set(asked)) == len({s["text"] for s in samples})
    monkeypatch.setattr(embedding, "copy_shard", real)
    kept = (tmp_path / "dst" / "000001.tar").stat().st_mtime_ns
    with pytest.raises(DataError, match="another encoder"):
        embedding.embed(tmp_path / "src", tmp_path / "dst", clap, "other", progress=False)
    assert (
        embedding.embed(tmp_path / "src", tmp_path / "dst", Letters(), "letters", progress=False)
        == []
    )
    assert (tmp_path / "dst" / "000001.tar").stat().st_mtime_ns == kept
    back = list(read_source(Source(tmp_path / "dst"), strict=True))
    want = Letters().encode_text([s["text"] for s in samples])
    assert [b["id"] for b in back] == [s["id"] for s in samples]
    np.testing.assert_allclose(np.stack([b["vector"] for b in back]), want.numpy(), atol=1e-3)
    assert Source(tmp_path / "dst").index["vectors"]["dim"] == 26


def test_missing_index_says_how_to_make_one(tmp_path):
    write_samples(tmp_path / "s", make_samples(30))
    made = json.loads((tmp_path / "s" / "index.json").read_text())
    (tmp_path / "s" / "index.json").unlink()
    with pytest.raises(DataError, match="shards.embed index"):
        Source(tmp_path / "s")
    assert embedding.index(tmp_path / "s") == []
    again = json.loads((tmp_path / "s" / "index.json").read_text())
    assert again["shards"] == made["shards"] and again["hash"] == made["hash"]


def test_an_index_lists_shards_by_name_in_whatever_order_the_disk_has_them(tmp_path, monkeypatch):
    write_samples(tmp_path / "s", make_samples(60), per_shard=10)
    (tmp_path / "s" / "index.json").unlink()
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: iter(sorted(listed(path), reverse=True)))
    embedding.index(tmp_path / "s")
    files = [shard["file"] for shard in Source(tmp_path / "s").shards]
    assert files == [f"{i:06d}.tar" for i in range(6)]


# --- what fails -------------------------------------------------------------------------------


class Strict(Letters):
    """Takes no text with "!"; makes nothing finite of one with "?". `scale` changes all vectors."""

    def __init__(self, shift=0):
        super().__init__()
        self.shift = shift

    def encode_text(self, texts):
        if any("!" in text for text in texts):
            raise ValueError("no !")
        z = super().encode_text(texts).roll(self.shift, 1)
        z[["?" in text for text in texts]] = float("nan")
        return z

    def encode_audio(self, waves):
        z = torch.ones(len(waves), 26)
        z[waves.abs().amax(1) < 0.01] = float("nan")
        return torch.nn.functional.normalize(z, dim=-1)


def run(src, dst, clap=None, name="letters", **kwargs):
    return embedding.embed(src, dst, clap or Strict(), name, progress=False, **kwargs)


def texts_of(folder):
    return [s["text"] for s in read_source(Source(folder), strict=True)]


def with_texts(folder, *texts, **kwargs):
    with ShardWriter(folder, **kwargs) as writer:
        for i, (text, s) in enumerate(zip(texts, make_samples(len(texts)))):
            writer.write(s | {"text": text, "id": f"clip {i}"})
    return folder


def test_texts_that_the_encoder_cannot_take_are_named(tmp_path):
    texts = ["a", "b!", "c", None, "d?", "b!", "e"]
    src = with_texts(tmp_path / "src", *texts, per_shard=6)
    broken = run(src, tmp_path / "dst")
    assert texts_of(tmp_path / "dst") == ["a", "c", "e"]
    for i, said in ((1, "cannot take"), (3, "no text"), (4, "no finite"), (5, "cannot take")):
        assert any(f"'clip {i}'" in line and said in line for line in broken)
    assert len(broken) == 4


def test_clips_without_a_vector_are_named(tmp_path):
    with ShardWriter(tmp_path / "src") as writer:
        for i, s in enumerate(make_samples(4)):
            buffer = io.BytesIO()
            sf.write(buffer, np.full(9_000, 0.0 if i == 1 else 0.5), 8_000, format="WAV")
            data = b"<html>" if i == 2 else buffer.getvalue()
            writer.write(s | {"id": f"clip {i}"}, audio=None if i == 3 else ("wav", data))
    broken = run(tmp_path / "src", tmp_path / "dst", side="audio")
    assert [s["id"] for s in read_source(Source(tmp_path / "dst"))] == ["clip 0"]
    assert ["clip 1" in broken[1], "clip 2" in broken[2], "clip 3" in broken[0]] == [True] * 3


def test_members_of_one_key_that_lie_apart_are_named_once(tmp_path):
    """First all texts, then all sounds: no sample has both."""
    (tmp_path / "src").mkdir()
    samples = list(make_samples(3))
    with tarfile.open(tmp_path / "src/0.tar", "w") as tar:
        for kind, content in (("json", None), ("wav", b"RIFF")):
            for i, sample in enumerate(samples):
                data = content or json.dumps(sample).encode()
                info = tarfile.TarInfo(f"{i}.{kind}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    assert len(embedding.index(tmp_path / "src")) == 3
    problems = []
    assert len(list(read_source(Source(tmp_path / "src"), broken=problems))) == 3
    assert len(problems) == 3 and not any(isinstance(problem, Damage) for problem in problems)
    broken = run(tmp_path / "src", tmp_path / "dst", Letters())
    assert sum("no json" in line for line in broken) == 3 and "dst" not in " ".join(broken)
    assert len(texts_of(tmp_path / "dst")) == 3


def test_a_result_of_nothing_is_a_failure_and_blocks_nothing(tmp_path):
    src = with_texts(tmp_path / "src", "a!", "b?", None)
    with pytest.raises(DataError, match="not one sample got a vector; at first: .*clip 2"):
        run(src, tmp_path / "dst")
    assert not (tmp_path / "dst").exists()
    assert len(run(src, tmp_path / "dst", Letters())) == 1  # another encoder takes the first two
    assert texts_of(tmp_path / "dst") == ["a!", "b?"]


def test_an_encoder_of_another_shape_is_named(tmp_path):
    clap = Letters()
    src = with_texts(tmp_path / "src", "a", "b")
    clap.dim = 20
    with pytest.raises(DataError, match=r"the encoder made \(2, 26\) of 2 texts"):
        run(src, tmp_path / "dst", clap)


@pytest.mark.parametrize("finished", [True, False])
def test_an_encoder_that_has_changed_is_told_by_its_probe(tmp_path, finished, capsys, monkeypatch):
    src = with_texts(tmp_path / "src", "a", "b", "c", per_shard=2)
    if finished:
        run(src, tmp_path / "dst")
    else:
        monkeypatch.setattr(embedding, "write_index", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(src, tmp_path / "dst")
        monkeypatch.undo()
    with pytest.raises(DataError, match="of the same name .it has changed since.; delete it"):
        run(src, tmp_path / "dst", Strict(shift=1))
    for changed in ({"name": "other"}, {"side": "audio"}):
        with pytest.raises(DataError, match="from other shards or with another encoder; delete"):
            run(src, tmp_path / "dst", **changed)
    other = with_texts(tmp_path / "other", "a", "b")
    with pytest.raises(DataError, match="from other shards or with another encoder"):
        run(other, tmp_path / "dst")
    path = tmp_path / "dst" / ("index.json" if finished else "embed.json")
    content = json.loads(path.read_text())
    made = content["vectors"] if finished else content
    assert len(made["probe"]) == 48 and not capsys.readouterr().out
    made["probe"][0] += 0.01  # another machine's rounding
    path.write_text(json.dumps(content))
    assert run(src, tmp_path / "dst") == []
    if not finished:
        return
    for odd in ("x", ["x"] * 48, [], made["probe"][:5]):
        made["probe"] = odd
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match="has changed since"):
            run(src, tmp_path / "dst")
    del made["probe"]  # from before there were probes
    path.write_text(json.dumps(content))
    assert run(src, tmp_path / "dst") == [] and "taken as it is" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"{", b"[]", None])
def test_a_damaged_embed_json_does_not_block_for_ever(tmp_path, content):
    src, dst = with_texts(tmp_path / "src", "a", "b"), tmp_path / "dst"
    dst.mkdir()
    if content is not None:
        (dst / "embed.json").write_bytes(content)
    (dst / "000000.tar").write_bytes(b"whatever")
    with pytest.raises(DataError, match="dst.*delete (it|.*dst)"):
        run(src, dst)
    (dst / "000000.tar").unlink()  # nothing is at stake now
    assert run(src, dst) == [] and texts_of(dst) == ["a", "b"]
    assert not (dst / "embed.json").exists()


@pytest.mark.parametrize("vectors", [None, [], "x"])
def test_a_folder_of_other_shards_is_never_taken(tmp_path, vectors):
    src, dst = (with_texts(tmp_path / name, "a") for name in ("src", "dst"))
    index = json.loads((dst / "index.json").read_text()) | {"vectors": vectors}
    (dst / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="from other shards|is another program's"):
        run(src, dst)


def test_a_full_disk_keeps_complete_shards(tmp_path, monkeypatch):
    src = with_texts(tmp_path / "src", *"abcdef", per_shard=2)
    real, calls = embedding.npy_bytes, []

    def full(vector):
        calls.append(1)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(vector)

    monkeypatch.setattr(embedding, "npy_bytes", full)
    with pytest.raises(OSError, match="000001.tar"):
        run(src, tmp_path / "dst")
    names = {p.name for p in (tmp_path / "dst").iterdir()}
    assert names == {"000000.tar", "embed.json"}
    assert run(src, tmp_path / "dst") == [] and texts_of(tmp_path / "dst") == [*"abcdef"]


def test_a_copy_keeps_long_names(tmp_path):
    (tmp_path / "src").mkdir()
    names = ["a" * 150, "folder/" * 30 + "\u00e9" * 120]
    tar(tmp_path / "src/0.tar", *((f"{name}.json", members(i)) for i, name in enumerate(names)))
    assert embedding.index(tmp_path / "src") == []
    assert run(tmp_path / "src", tmp_path / "dst") == []
    assert [s["key"] for s in read_source(Source(tmp_path / "dst"))] == names


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch):
    monkeypatch.setattr(embedding, "load_clap", lambda name: Strict())
    return lambda *argv: embedding.main([str(word) for word in argv])


def test_one_source_that_fails_does_not_stop_the_others(tmp_path, command, capsys):
    with_texts(tmp_path / "src/a", "!")
    with_texts(tmp_path / "src/b", "b", "!")
    (tmp_path / "src/c").mkdir()
    (tmp_path / "src/c/index.json").write_text("[")
    with pytest.raises(DataError) as e:
        command(tmp_path / "src", tmp_path / "dst")
    lines = str(e.value).splitlines()
    assert lines[0].startswith("a: ") and lines[1].startswith("c: ") and len(lines) == 2
    assert texts_of(tmp_path / "dst/b") == ["b"]
    assert "1 broken parts were left out" in capsys.readouterr().err
    with pytest.raises(DataError):  # nothing, in a folder of its own
        command(tmp_path / "src/a/", tmp_path / "one")
    command(f"{tmp_path}/src/b/", tmp_path / "one")
    assert texts_of(tmp_path / "one") == ["b"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no shards under"):
        command(tmp_path / "empty", tmp_path / "two")


def test_an_encoder_that_cannot_be_loaded_is_named(tmp_path):
    with_texts(tmp_path / "src", "a")
    argv = [str(tmp_path / "src"), str(tmp_path / "dst"), "--clap", "nowhere:factory"]
    with pytest.raises(DataError, match="--clap nowhere:factory: .*that can be imported"):
        embedding.main(argv)


def test_a_clip_with_one_number_that_is_not_finite_is_named(monkeypatch):
    made = {b"good": torch.ones(4), b"bad": torch.tensor([1.0, 1.0, float("inf"), 1.0])}
    monkeypatch.setattr(embedding, "encode_file", lambda clap, data: made[data])
    samples, broken = [{"key": k, "id": k, "audio": k.encode()} for k in ("good", "bad")], []
    assert list(embedding.audio_vectors(None, samples, "0.tar", broken)) == ["good"]
    assert broken == ["0.tar: sample 'bad': CLAP makes no finite vector of it"]


@pytest.mark.slow
def test_an_index_of_nothing_exits_with_1(tmp_path):
    (tmp_path / "tars").mkdir()
    tar(tmp_path / "tars/0.tar", ("x 1.5.json", members(0)))
    argv = [sys.executable, "-m", "shards.embed", "index", str(tmp_path / "tars")]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "embed.py: " in done.stderr and "Traceback" not in done.stderr


# --- index.json ---------------------------------------------------------------------------------


def members(i):
    return json.dumps(next(make_samples(1)) | {"id": str(i)}).encode()


def tar(path, *files, mode="w"):
    with tarfile.open(path, mode) as out:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))


def good(n, start=0):
    return [(f"{i:04}.json", members(i)) for i in range(start, start + n)]


def test_files_that_are_no_tar_are_named_and_passed_over(tmp_path):
    tar(tmp_path / "a.tar", *good(3))
    tar(tmp_path / "b.tar.gz", *good(1), mode="w:gz")
    tar(tmp_path / "c.tgz", *good(1), mode="w:gz")
    tar(tmp_path / "d.tar", *good(1), mode="w:gz")
    tar(tmp_path / "e.tar", *good(1), mode="w:xz")
    (tmp_path / "f.tar").write_bytes(b"")
    (tmp_path / "g.tar").write_bytes(b"<html>quota</html>")
    (tmp_path / "h.tar").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    for hidden in ("._a.tar", ".DS_Store", "labels.json", "a.tar.part", "README"):
        (tmp_path / hidden).write_bytes(b"Mac OS X")
    (tmp_path / "__MACOSX").mkdir()
    tar(tmp_path / "__MACOSX/a.tar", *good(1))
    broken = embedding.index(tmp_path)
    said = ["gunzip b.tar.gz", "gunzip c.tgz", "mv d.tar d.tar.gz && gunzip d.tar.gz"]
    said += ["mv e.tar e.tar.xz && unxz e.tar.xz", "f.tar is empty", "g.tar is a web page"]
    said += ["h.tar is only a Git LFS pointer"]
    assert len(broken) == len(said) and all(map(str.__contains__, broken, said))
    assert [s["file"] for s in Source(tmp_path).shards] == ["a.tar"] and len(Source(tmp_path)) == 3
    with pytest.raises(DataError, match="has an index.json already; delete it"):
        embedding.index(tmp_path)


def test_an_index_of_nothing_is_not_written(tmp_path):
    with pytest.raises(DataError, match=r"no \*.tar in it"):
        embedding.index(tmp_path)
    tar(tmp_path / "a.tar.gz", *good(1), mode="w:gz")
    with pytest.raises(DataError, match=r"no \*.tar in it; .*gunzip a.tar.gz"):
        embedding.index(tmp_path)
    tar(tmp_path / "b.tar", ("x/._1.json", b"Mac"), ("x/track 1 2.0 (live).json", members(0)))
    with pytest.raises(DataError, match="first dot in a member's name begins its extension") as e:
        embedding.index(tmp_path)
    assert "'x/track 1 2.0 (live).json'" in str(e.value) and "rename" in str(e.value)
    tar(tmp_path / "b.tar", ("1.wav", b"x"))
    with pytest.raises(DataError, match="not one sample in its 1 shards.*gunzip.*no json") as e:
        embedding.index(tmp_path)
    assert "first dot" not in str(e.value)
    assert not (tmp_path / "index.json").exists()
    tar(tmp_path / "b.tar", *good(2))
    assert len(embedding.index(tmp_path)) == 1 and len(Source(tmp_path)) == 2
    index = Source(tmp_path).index
    assert index["sources"] == {"farm": 2} and index["tasks"] == {"cap": 2}


def test_a_folder_called_index_can_be_embedded(tmp_path, command, monkeypatch):
    with_texts(tmp_path / "index", "a")
    monkeypatch.chdir(tmp_path)
    command("./index", "dst")
    assert texts_of(tmp_path / "dst") == ["a"]
    (tmp_path / "index/index.json").unlink()
    command("index", "index")
    assert len(Source(tmp_path / "index")) == 1
