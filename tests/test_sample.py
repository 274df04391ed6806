import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

import sample


def test_readable_files_are_answered(project, tmp_path, capsys):
    formats = {"a.wav": 44100, "b.ogg": 22050, "c.flac": 8000, "d.mp3": 16000}
    for name, rate in formats.items():
        wave = np.random.default_rng(1).normal(size=(3 * rate, 2)) * 0.1
        sf.write(tmp_path / name, wave, rate, format=name[2:].upper())
    (tmp_path / "e.wav").write_bytes(b"")
    names = ["a.wav", "b.ogg", "e.wav", "c.flac", "d.mp3", "missing.wav"]
    files, ckpt = [str(tmp_path / name) for name in names], ["--ckpt", str(project / "run/model")]
    code = sample.main([*files, *ckpt, "--ask", "Is there a dog?", "--json"])
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert code == 1 and [Path(line["file"]).name for line in lines] == list(formats)
    assert all(line["instruction"] == "Is there a dog?" and line["answer"] for line in lines)
    assert "e.wav" in printed.err and "missing.wav" in printed.err
    assert sample.main([files[0], *ckpt, "--bridge", "official"]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    with pytest.raises(SystemExit, match="audio_mean"):
        sample.main([files[0], *ckpt, "--bridge", "shift"])
