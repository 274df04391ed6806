"""The command that prints the gap of one's own pairs."""

import sys

import numpy as np
import pytest
import torch
from conftest import flac, make_samples, small_clap

from clap import encode_file
from disk import DataError
from experiments import gap
from santa import add_noise, noise_variance
from shards.writer import ShardWriter


def test_a_csv_and_shards_give_the_same(tmp_path, tokenizer, monkeypatch, capsys):
    clap = small_clap(tokenizer)
    clap.save_pretrained(tmp_path / "clap")
    texts = [sample["text"] for sample in make_samples(8)]
    with ShardWriter(tmp_path / "s") as writer:
        for i, sample in enumerate(make_samples(8)):
            (tmp_path / f"{i}.flac").write_bytes(flac(i))
            writer.write(sample, audio=("flac", flac(i)))
    lines = ["file,text", *(f'{i}.flac,"{text}"' for i, text in enumerate(texts)), "no.wav,x"]
    lines += ["0.flac, ", ""]
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    said = []
    for pairs in ("pairs.csv", "s"):
        argv = ["gap.py", str(tmp_path / pairs), "--clap", str(tmp_path / "clap")]
        monkeypatch.setattr(sys, "argv", argv)
        gap.main()
        said.append(capsys.readouterr().out)
    named, empty, rest = said[0].split("\n", 2)
    assert "line 11: has no text" in empty
    assert (
        named.startswith("left out: ")
        and "line 10: " in named
        and "no.wav" in named
        and rest == said[1]
    )
    text = clap.encode_text(texts)
    audio = torch.stack([encode_file(clap, flac(i)) for i in range(8)])
    cosine = (text * audio).sum(1).mean()
    assert f"cosine of a pair            {cosine:.3f}" in said[0]
    assert f"a variance of {noise_variance(text, audio):.4f}, which" in said[0]


def test_too_few_pairs_and_another_csv_are_named(tmp_path):
    with pytest.raises(DataError, match="0 pairs"):
        gap.encode(iter([]), None, 1)
    (tmp_path / "a.csv").write_text("path;caption\na.wav;x\n")
    with pytest.raises(DataError, match="a.csv, line 1: no column 'file'"):
        list(gap.pairs_of(tmp_path / "a.csv"))


def test_samples_without_a_text_or_a_sound_are_no_pairs(tmp_path):
    with ShardWriter(tmp_path) as writer:
        for i, sample in enumerate(make_samples(4)):
            text = None if i == 1 else sample["text"]
            writer.write(sample | {"text": text}, audio=("flac", flac(i)) if i != 2 else None)
    assert [sound for _, sound, _ in gap.pairs_of(tmp_path)] == [flac(0), flac(3)]


@pytest.mark.parametrize("variance", [0.003, 0.03])
def test_as_far_as_is_the_noise_that_leaves_that_cosine(variance):
    z = torch.nn.functional.normalize(torch.randn(4000, 64), dim=1)
    noisy = add_noise(z, variance, torch.Generator().manual_seed(0))
    found = gap.as_far_as(float((z * noisy).sum(1).mean()), 64)
    np.testing.assert_allclose(found, variance, rtol=0.03)
