"""docs/models.md's GLAP, over a stand-in that takes what glap-model 0.0.13 takes, and no more."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from conftest import flac, make_samples, write_samples

from clap import encode_file, load_clap
from data import Source, read_source
from encoders.checks import ready
from shards import embed as embedding

PAGE = Path(__file__).parents[1] / "docs/models.md"
EXAMPLE = re.search(r"^```python\n(# my_glap\.py\n.*?)^```", PAGE.read_text(), re.M | re.S)[1]
SIZE = 16  # the example's batches
CPU = torch.device("cpu")


class Standin(nn.Module):
    """GLAPInference's two methods: unit rows, with gradients that nobody switched off."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.text_proj, self.audio_proj = nn.Linear(256, 1024), nn.Linear(64, 1024)
        self.sizes = []
        self.eval()

    def encode_text(self, text, device=CPU, *, source_lang="eng_Latn"):
        assert isinstance(text, list) and text and all(isinstance(t, str) for t in text)
        assert source_lang == "eng_Latn"
        self.sizes.append(len(text))
        counts = torch.zeros(len(text), 256)
        for row, string in zip(counts, text):
            for byte in string.encode():
                row[byte] += 1
        return F.normalize(self.text_proj(counts), dim=-1).to(device)

    def encode_audio(self, audio, audio_length=None):
        assert audio.ndim == 2 and audio.dtype == torch.float32 and audio_length is None
        self.sizes.append(len(audio))
        spectrum = torch.fft.rfft(audio).abs()[:, :6400].unflatten(1, (64, 100)).mean(2)
        return F.normalize(self.audio_proj(spectrum), dim=-1)


@pytest.fixture
def glap(tmp_path, monkeypatch):
    (tmp_path / "my_glap.py").write_text(EXAMPLE)
    monkeypatch.syspath_prepend(tmp_path)
    package = types.ModuleType("glap_model")
    package.glap_inference = lambda: Standin()
    monkeypatch.setitem(sys.modules, "glap_model", package)
    monkeypatch.delitem(sys.modules, "my_glap", raising=False)
    yield load_clap("my_glap:GLAP")
    sys.modules.pop("my_glap", None)


def test_the_example_is_an_encoder_pair(glap):
    assert len([line for line in EXAMPLE.splitlines() if line.strip()]) <= 18
    assert ready(glap, "my_glap:GLAP") is glap
    texts = [f"a dog barks {i} times" for i in range(2 * SIZE + 3)]
    glap.model.sizes.clear()
    vectors = glap.encode_text(texts)
    assert glap.model.sizes == [SIZE, SIZE, 3] and not vectors.requires_grad
    torch.testing.assert_close(vectors, torch.cat([glap.encode_text([text]) for text in texts]))
    heard = encode_file(glap, flac(0), "windows")  # 1.5 s at 8 kHz, tiled to 10 s at 16 kHz
    assert heard.shape == (1024,) and heard.norm().item() == pytest.approx(1, abs=1e-5)


def test_shards_are_embedded_with_it(glap, tmp_path):
    write_samples(tmp_path / "src", make_samples(40), vectors=False)
    embedding.main([str(tmp_path / "src"), str(tmp_path / "dst"), "--clap", "my_glap:GLAP"])
    rows = list(read_source(Source(tmp_path / "dst")))
    stored = torch.stack([torch.from_numpy(row["vector"]) for row in rows])
    want = glap.encode_text([row["text"] for row in rows])
    assert len(rows) == 40 and (stored - want).abs().max() < 1e-3
