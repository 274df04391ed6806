import json
import os
import resource
import subprocess
import sys

import pytest
import torch

from disk import (
    DataError,
    command,
    fingerprint,
    read_json,
    read_tensors,
    reading,
    replacing,
    write_atomic,
    write_tensors,
)

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "is empty"),
        (LFS, "Git LFS pointer"),
        (b"\n <!DOCTYPE html><p>quota", "web page"),
        (b"\x1f\x8b\x08\x00rest", "compressed"),
        (b'{"a": 1', "damaged or cut off"),
        (b'{"a": "\xff"}', "damaged or cut off"),
        (b"[" * 100_000, "damaged or cut off"),
    ],
)
def test_a_file_that_is_no_json_is_named_with_what_it_seems_to_be(tmp_path, content, said):
    path = tmp_path / "index.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"index.json {said}|index.json .*{said}"):
        read_json(path)
    with pytest.raises(DataError, match=said):
        read_tensors(path)


def test_json_of_another_kind_a_folder_and_nothing(tmp_path):
    (tmp_path / "a.json").write_text('["0.tar"]')
    assert read_json(tmp_path / "a.json", list) == ["0.tar"]
    with pytest.raises(DataError, match="a.json holds a JSON list where a dict"):
        read_json(tmp_path / "a.json")
    with pytest.raises(DataError, match="b.json"):
        read_json(tmp_path / "b.json")
    with pytest.raises(DataError, match="is a folder"):
        read_tensors(tmp_path)


def test_a_folders_fingerprint_covers_names_and_both_ends_of_files(tmp_path):
    def made(name="model.bin", head=b"a", tail=b"b", folder="one"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_bytes(head + bytes(3 << 20) + tail)
        found = fingerprint(tmp_path / folder)
        (tmp_path / folder / name).unlink()
        return found

    assert made() == made(folder="two")
    others = [made(name="other.bin"), made(head=b"b"), made(tail=b"c"), made(tail=b"bb")]
    assert len({made(), *others}) == 5


def test_tensors_come_back(tmp_path):
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(1, dtype=torch.int64)}
    write_tensors(tensors, tmp_path / "x.safetensors", {"santa": "{}"})
    found = read_tensors(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    whole = (tmp_path / "x.safetensors").read_bytes()
    for n in (4, 60, len(whole) - 1):
        (tmp_path / "x.safetensors").write_bytes(whole[:n])
        with pytest.raises(DataError, match="x.safetensors is damaged"):
            read_tensors(tmp_path / "x.safetensors")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a"
    write_atomic(path, b"old")
    with pytest.raises(RuntimeError), replacing(path) as part:
        part.write_bytes(b"ne")
        raise RuntimeError
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/x"):
        write_atomic(tmp_path / "file" / "x", b"")


def test_a_librarys_error_is_one_line():
    said = r"^gpt3: first second \(ValueError\); name another$"
    with pytest.raises(DataError, match=said), reading("gpt3", "name another"):
        raise ValueError("\nfirst\nsecond")
    with pytest.raises(DataError, match="^as it is$"), reading("x", "y"):
        raise DataError("as it is")
    with pytest.raises(MemoryError), reading("x", "y"):
        raise MemoryError


def run(body, limit=None, **how):
    """(status, stdout, stderr) of a command with this body."""
    code = f"import os, sys\nfrom disk import *\nwith command('it.py'):\n    {body}"

    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, preexec_fn=full if limit else None, **how
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_a_command_ends_in_one_line(tmp_path):
    assert run("raise DataError('a.json is empty')") == (1, "", "it.py: a.json is empty\n")
    assert run("raise KeyboardInterrupt")[0] == 130
    status, _, said = run(f"open({str(tmp_path / 'gone')!r})")
    assert status == 1 and said == f"it.py: {tmp_path / 'gone'}: No such file or directory\n"
    assert "Traceback" in run("raise KeyError('a fault of ours')")[2]
    assert run("print('a')") == (0, "a\n", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [
        "write_atomic({path!r}, bytes(9999))",
        "import torch\n    with replacing({path!r}) as part, libraries_write():\n"
        "        torch.save({{'a': torch.zeros(9999)}}, part)",
        "import torch; write_tensors({{'a': torch.zeros(9999)}}, {path!r})",
    ],
)
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, body):
    status, _, said = run(body.format(path=str(tmp_path / "a")), limit=5000)
    assert status == 1 and said.startswith(f"it.py: {tmp_path / 'a'}: the disk is full")
    assert said.count("\n") == 1 and not os.listdir(tmp_path)


def test_printing_never_fails():
    env = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    status, said, _ = run("print('caf\\udce9 ♪'); print('y')", env=env)
    assert status == 0 and said == "caf\\udce9 \\u266a\ny\n"
    line = run("import json; print(json.dumps('caf\\udce9', ensure_ascii=False))", env=env)[1]
    assert json.loads(line) == "caf\udce9"


def test_a_closed_pipe_is_no_error():
    body = "\n    ".join(["for i in range(9**6):", "    print(i)"])
    code = f"from disk import command\nwith command('it.py'):\n    {body}"
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "$0" | head -1; exit ${{PIPESTATUS[0]}}', code],
        capture_output=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (141, b"0\n", b"")


def test_a_command_calls_its_main():
    with pytest.raises(SystemExit, match="^it.py: bad$"), command("it.py"):
        raise DataError("bad")
