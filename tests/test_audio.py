"""audio.py against soundfile, soxr and numpy."""

import io
import tracemalloc
import types
from contextlib import suppress
from itertools import pairwise

import numpy as np
import pytest
import soundfile as sf
import soxr
import torch
from scipy.signal import fftconvolve
from transformers import ClapFeatureExtractor

from audio import AudioError, decode, further_chains, load_audio, places


def as_bytes(wave, rate, format="WAV", subtype="FLOAT"):
    out = io.BytesIO()
    sf.write(out, wave, rate, format=format, subtype=subtype)
    return out.getvalue()


def music(n, channels=1, seed=0):
    wave = np.random.default_rng(seed).standard_normal((n + 200, channels)).cumsum(0)
    wave = wave - np.apply_along_axis(lambda c: np.convolve(c, np.ones(201) / 201, "same"), 0, wave)
    return (wave[100:-100] / np.abs(wave).max() * 0.8).astype(np.float32)


@pytest.mark.parametrize(
    "format, subtype, rate, error",
    [
        ("WAV", "PCM_U8", 16000, 2**-7),
        ("WAV", "PCM_16", 16000, 2**-15),
        ("WAV", "PCM_24", 16000, 2**-22),
        ("WAV", "PCM_32", 16000, 1e-6),
        ("WAV", "FLOAT", 16000, 0),
        ("WAV", "DOUBLE", 16000, 0),
        ("WAVEX", "PCM_16", 16000, 2**-15),
        ("FLAC", "PCM_16", 16000, 2**-15),
        ("FLAC", "PCM_24", 16000, 2**-22),
        ("AIFF", "PCM_16", 16000, 2**-15),
        ("OGG", "VORBIS", 16000, None),
        ("OGG", "OPUS", 16000, None),
        ("MP3", "MPEG_LAYER_III", 16000, None),
    ],
)
def test_every_format_whatever_its_name(tmp_path, format, subtype, rate, error):
    wave = music(3 * rate, 2)
    data = as_bytes(wave, rate, format, subtype)
    (tmp_path / "sound.wav").write_bytes(data)
    (tmp_path / "sound.raw").write_bytes(data)
    got = load_audio(tmp_path / "sound.wav", rate, 2)
    middle = wave.mean(1)[rate // 2 :][: 2 * rate]
    if error is None:  # lossy: the same sound at the same place
        assert np.corrcoef(got.numpy(), middle)[0, 1] > 0.9
    else:
        assert np.abs(got.numpy() - middle).max() <= error
    with open(tmp_path / "sound.wav", "rb") as file:
        pipe = types.SimpleNamespace(read=file.read, seekable=lambda: False)
        for source in (str(tmp_path / "sound.raw"), data, bytearray(data), io.BytesIO(data), pipe):
            assert torch.equal(load_audio(source, rate, 2), got)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 6])
def test_down_mix_is_the_mean(channels):
    wave = music(8000, channels)
    got = load_audio(as_bytes(wave, 8000), 8000, 1)
    assert np.abs(got.numpy() - wave.astype(np.float64).mean(1)).max() < 1e-7
    opposite = np.stack([wave[:, 0], -wave[:, 0]], 1)  # only mixing cancels
    assert load_audio(as_bytes(opposite, 8000), 8000, 1).abs().max() == 0


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 22051, 32000, 44100, 48000, 96000])
@pytest.mark.parametrize("target", [16000, 44100])
def test_resampling_keeps_the_pitch(rate, target):
    t = np.arange(4 * rate) / rate
    got = load_audio(as_bytes(0.5 * np.sin(2 * np.pi * 1000 * t), rate), target, 2)
    assert got.shape == (2 * target,)
    spectrum = np.abs(np.fft.rfft(got.numpy() * np.hanning(2 * target)))
    assert spectrum.argmax() == 2000  # bins of 0.5 Hz
    assert abs(got.abs().max() - 0.5) < 0.01


@pytest.mark.parametrize("rate", [8000, 22050, 22051, 44100, 48000, 96000])
def test_reading_a_part_equals_reading_all(rate):
    wave = music(12 * rate, 2)
    data = as_bytes(wave, rate)
    whole = soxr.resample(wave.mean(1), rate, 44100)
    start = (len(whole) - 2 * 44100) // 2
    assert np.abs(load_audio(data, 44100, 2).numpy() - whole[start:][: 2 * 44100]).max() < 1e-5


@pytest.mark.parametrize("rate", [8000, 16000, 96000])
@pytest.mark.parametrize("channels", [1, 6])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_a_few_samples_are_enough(rate, channels, n):
    got = load_audio(as_bytes(np.full((n, channels), 0.25), rate), 16000, 0.5)
    assert got.shape == (8000,) and got.isfinite().all() and got.abs().max() > 0.05


def test_short_clips_are_tiled():
    wave = music(1000)[:, 0]
    got = load_audio(as_bytes(wave, 8000), 8000, 1).numpy()
    assert np.array_equal(got, np.concatenate([wave] * 8)) and got.dtype == np.float32
    up = soxr.resample(wave, 8000, 16000)
    assert np.array_equal(load_audio(as_bytes(wave, 8000), 16000, 1).numpy(), np.resize(up, 16000))
    for crop in ("center", "random"):
        assert np.array_equal(load_audio(as_bytes(wave, 8000), 8000, 1, crop).numpy(), got)
    assert load_audio(as_bytes(wave, 8000), 8000, 1, "windows").shape == (1, 8000)


@pytest.mark.parametrize("n", [999, 1000, 3001, 4000, 5000, 7999])
def test_short_clips_are_filled_up_as_claps_extractor_does_it(n):
    """Whole repeats and then zeros; repeats whose last is cut off; zeros alone."""
    sizes = dict(sampling_rate=8000, max_length_s=1, hop_length=256, frequency_max=4000)
    extractor = ClapFeatureExtractor(feature_size=32, **sizes)
    wave, mels = music(n)[:, 0], []
    for theirs, ours in (("repeatpad", "repeat"), ("repeat", "tile"), ("pad", "zero")):
        whole = load_audio(as_bytes(wave, 8000), 8000, 1, padding=ours).numpy()
        assert whole.shape == (8000,)
        made = [
            extractor(x, sampling_rate=8000, truncation="rand_trunc", padding=theirs)
            for x in (wave, whole)
        ]
        mels.append(made[0]["input_features"][0])
        np.testing.assert_array_equal(mels[-1], made[1]["input_features"][0])
    alike = [np.array_equal(a, b) for a, b in pairwise([*mels, mels[0]])]
    # a divisor's repeats fill the window; what fits once is not repeated
    assert alike == {1000: [True, False, False], 4000: [True, False, False]}.get(
        n, [False, False, n > 4000]
    )
    with pytest.raises(ValueError, match="tile, repeat, zero, not 'mirror'"):
        load_audio(as_bytes(wave, 8000), 8000, 1, padding="mirror")


def ramp(n):
    """A wav whose samples are their own positions, in steps that float32 holds exactly."""
    return as_bytes(np.arange(n) / 2**20, 1000)


def starts(waves):
    """Where each row of a ramp begins; that it goes on without a gap is checked too."""
    positions = (waves * 2**20).round().long()
    assert torch.equal(positions, positions[:, :1] + torch.arange(positions.shape[1]))
    return positions[:, 0].tolist()


def test_crops_lie_where_they_should():
    data = ramp(10_000)
    assert starts(load_audio(data, 1000, 3)[None]) == [3500]
    assert starts(load_audio(data, 1000, 3, "windows")) == [
        0,
        2333,
        4667,
        7000,
    ]  # no gap, first to last sample
    assert starts(load_audio(data, 1000, 5, "windows")) == [0, 5000]
    assert starts(load_audio(data, 1000, 1, "windows", max_windows=3)) == [0, 4500, 9000]
    assert starts(load_audio(data, 1000, 10)[None]) == [0]

    g = torch.Generator().manual_seed(0)
    drawn = [starts(load_audio(data, 1000, 9.99, "random", g)[None])[0] for _ in range(200)]
    assert set(drawn) == set(range(11))  # each of the 11 places, both ends included
    g = torch.Generator().manual_seed(0)
    assert drawn[:20] == [
        starts(load_audio(data, 1000, 9.99, "random", g)[None])[0] for _ in range(20)
    ]
    with pytest.raises(ValueError, match="center, random, windows, not 'left'"):
        load_audio(data, 1000, 1, "left")


@pytest.mark.slow
@pytest.mark.parametrize("format, subtype", [("WAV", "PCM_U8"), ("FLAC", "PCM_16")])
def test_an_hour_is_not_decoded(tmp_path, monkeypatch, format, subtype):
    decoded, read = [], sf.SoundFile.read

    def counted(sound, frames, **kwargs):
        decoded.append(frames)
        return read(sound, frames, **kwargs)

    monkeypatch.setattr(sf.SoundFile, "read", counted)
    with sf.SoundFile(tmp_path / "hour.wav", "w", 8000, 1, subtype, format=format) as file:
        for minute in range(60):
            file.write(np.full(60 * 8000, minute / 64, np.float32))
    for crop, windows, limit in (("center", 1, 4), ("random", 1, 4), ("windows", 64, 40)):
        decoded.clear()
        tracemalloc.start()
        got = load_audio(tmp_path / "hour.wav", 44100, 1, crop)
        peak = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        assert got.shape == ((44100,) if windows == 1 else (64, 44100))
        assert sum(decoded) <= windows * 2 * 8000  # a second each, and what resampling needs
        assert peak < limit  # the whole hour would be 110 MiB
    assert (got[:, 22050] - torch.linspace(0, 59 / 64, 64)).abs().max() < 0.02


@pytest.mark.parametrize(
    "format, subtype", [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS")]
)
def test_a_file_cut_off_gives_what_decodes(tmp_path, format, subtype):
    wave = music(80_000)[:, 0]
    data = as_bytes(wave, 8000, format, subtype)
    (tmp_path / "cut.wav").write_bytes(data[: len(data) // 2])
    got = load_audio(tmp_path / "cut.wav", 8000, 2).numpy()
    energy = fftconvolve(wave**2, np.ones(16000), "valid") * (got**2).sum()
    scores = fftconvolve(wave, got[::-1], "valid") / np.sqrt(energy)
    assert scores.max() > 0.95  # a real stretch of it,
    assert 8_000 < scores.argmax() < 20_000  # about the middle of the first half


def test_a_header_without_samples_is_an_error(tmp_path):
    data = as_bytes(music(80_000), 8000, "FLAC", "PCM_16")
    (tmp_path / "stub.flac").write_bytes(data[:200])
    with pytest.raises(AudioError, match="stub.flac: holds no samples that decode"):
        load_audio(tmp_path / "stub.flac", 8000, 2)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "is empty"),
        (b"hello, world" * 100, "cannot be decoded as audio"),
        (None, "No such file"),
        ("folder", "directory"),
        (as_bytes(np.zeros(0), 8000), "holds no samples"),
        (as_bytes(np.r_[np.zeros(99), np.nan], 8000), "NaN or infinite"),
        (as_bytes(music(8000) * 1e30, 8000), r"samples up to 8e\+29, where full scale is 1"),
        (as_bytes(-np.eye(1, 8000, 9)[0] * 40, 8000), "samples up to 40, where full scale is 1"),
        (as_bytes(music(8000) * 32767, 8000), "on an integer's scale; .*volume=1/32768"),
        (b"\0\0\0\x20ftypM4A " + bytes(500), "is MP4 .*convert it: ffmpeg -i .*wav"),
        (b"\xff\xf1\x50\x80" + bytes(range(256)) * 20, "is AAC.*ffmpeg"),
        (
            bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c") + bytes(500),
            "is Windows Media.*ffmpeg",
        ),
        (b"\x1a\x45\xdf\xa3" + bytes(500), "is Matroska or WebM.*ffmpeg"),
        (b"RIFF\x10\0\0\0AVI LIST" + bytes(500), "is AVI video.*ffmpeg"),
        (b"\n<!DOCTYPE html><html>quota</html>" * 9, "is a web page"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "is only a Git LFS pointer",
        ),
        (b"PK\x03\x04" + bytes(40) + as_bytes(music(8000), 8000), "is an archive"),
        (as_bytes(np.r_[np.zeros(99), -np.inf], 8000), "NaN or infinite"),
    ],
    ids=[
        *("empty", "text", "missing", "folder", "no samples", "NaN", "overflow"),
        *("a negative peak", "integer scale"),
        *("m4a", "aac", "wma", "webm", "avi", "web page", "lfs", "zip", "infinity"),
    ],
)
def test_errors_name_the_file_and_the_reason(tmp_path, content, reason):
    path = tmp_path / "bad one.wav"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
        with pytest.raises(AudioError, match=f"<{len(content)} bytes>: .*{reason}"):
            load_audio(content, 8000, 1)
    with pytest.raises(AudioError, match=f"bad one.wav: .*{reason}") as error:
        load_audio(path, 8000, 1)
    assert isinstance(error.value, ValueError)


def test_the_command_that_converts_names_the_files(tmp_path):
    path = tmp_path / "my song.m4a"
    path.write_bytes(b"\0\0\0\x20ftypM4A " + bytes(500))
    with pytest.raises(AudioError) as error:
        load_audio(path, 8000, 1)
    assert f"ffmpeg -i '{path}' '{tmp_path / 'my song.wav'}'" in str(error.value)


def test_levels_of_good_files():
    """Float files may exceed full scale; silence is a sound."""
    loud = load_audio(as_bytes(music(8000) * 12, 8000), 8000, 1)
    assert loud.abs().max() == pytest.approx(9.6, rel=1e-3)
    assert load_audio(as_bytes(np.zeros(8000), 8000), 8000, 1).abs().max() == 0
    with pytest.raises(AudioError):  # in the part that is heard, wherever it lies
        load_audio(as_bytes(np.r_[np.zeros(8000), 33.0, np.zeros(8000)], 8000), 8000, 1, "windows")


CONTAINERS = [
    ("WAV", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
    ("AIFF", "PCM_16"),
    ("AU", "PCM_16"),
]
TAG = b"ID3\x04\0\0\0\0\x08\0TIT2\0\0\0\x10\0\0" + bytes(1014)  # a tag of 1034 bytes


@pytest.mark.parametrize("format, subtype", CONTAINERS)
@pytest.mark.parametrize("junk", [bytes(5000), b"\xef\xbb\xbf", b"\r\n", TAG])
def test_bytes_before_the_header_change_nothing(format, subtype, junk):
    data = as_bytes(music(24_000), 8000, format, subtype)
    wanted = load_audio(data, 8000, 1, "windows")
    assert torch.equal(load_audio(junk + data, 8000, 1, "windows"), wanted)


def test_a_line_of_text_before_the_header_changes_nothing():
    for format, subtype in CONTAINERS[:4]:
        data = as_bytes(music(24_000), 8000, format, subtype)
        said = b"Warning: headers already sent\n" + data
        assert torch.equal(load_audio(said, 8000, 1), load_audio(data, 8000, 1))


def pitches(waves, rate):
    """The loudest frequency of each row, in Hz."""
    spectra = np.abs(np.fft.rfft(waves.numpy()))
    return (spectra.argmax(1) * rate / waves.shape[1]).round().astype(int).tolist()


@pytest.mark.parametrize("format, subtype", [c for c in CONTAINERS if c[0] not in ("WAV", "AIFF")])
def test_joined_files_are_heard_whole(tmp_path, format, subtype):
    def tone(hz, rate=16000, channels=1):
        t = np.arange(4 * rate) / rate
        wave = np.repeat(0.3 * np.sin(2 * np.pi * hz * t)[:, None], channels, 1)
        return as_bytes(wave, rate, format, subtype)

    whole = tone(440) + tone(880) + tone(1760, 24000, 2)
    waves = load_audio(whole, 16000, 2, "windows")
    assert waves.shape == (6, 32000)
    assert np.allclose(pitches(waves, 16000), [440, 440, 880, 880, 1760, 1760], atol=5)
    (tmp_path / "whole").write_bytes(bytes(3) + whole)
    assert torch.equal(load_audio(tmp_path / "whole", 16000, 2, "windows"), waves)
    other = as_bytes(music(8000), 16000, "WAV" if format == "AU" else "AU", "PCM_16")
    assert len(load_audio(tone(440) + other, 16000, 2, "windows")) == 2  # another format's
    tail = tone(440) + b"LIST" + bytes(4000) + b"TAG" + bytes(125)  # no sound
    assert len(load_audio(tail, 16000, 2, "windows")) == 2


@pytest.mark.parametrize("large", [1 << 22, 9000])
def test_blocks_before_an_error_come_once(large):
    wave = music(80_000)[:, 0]
    data = as_bytes(wave, 8000, "FLAC", "PCM_16")
    got = decode(io.BytesIO(data[: len(data) // 2]), large)
    assert 20_000 < len(got) < 60_000 and np.abs(got - wave[: len(got)]).max() < 1e-4


def test_a_cut_mp3_is_not_garbled():
    t = np.arange(4 * 16000) / 16000
    data = as_bytes(0.3 * np.sin(2 * np.pi * 880 * t), 16000, "MP3", "MPEG_LAYER_III")
    waves = load_audio(data[: len(data) * 3 // 4], 16000, 0.5, "windows")
    assert len(waves) > 4 and np.allclose(pitches(waves[:-1], 16000), 880, atol=5)


def test_streams_side_by_side_are_not_joined_ones():
    """An Ogg file with two streams has both first pages at its start."""
    data = as_bytes(music(80_000)[:, 0], 8000, "OGG", "VORBIS")
    first = data[: data.index(b"OggS", 4)]
    other = first[:14] + b"\x77\x77\x77\x77" + first[18:]  # another serial number
    assert further_chains(io.BytesIO(first + other + data[len(first) :])) == []
    assert further_chains(io.BytesIO(data + data)) == [len(data)]


def test_a_place_across_two_blocks_is_found():
    data = bytes(7) + b"fLaC" + bytes(7) + b"fLaC"
    assert all(places(io.BytesIO(data), b"fLaC", block) == [7, 18] for block in range(4, 30))


@pytest.mark.parametrize("format, subtype", CONTAINERS)
def test_damage_anywhere_is_an_audio_error_or_sound(format, subtype):
    data, rng = as_bytes(music(4000, 2), 8000, format, subtype), np.random.default_rng(0)
    for _ in range(60):
        hurt = bytearray(data)
        for place in rng.integers(0, min(len(data), 120), 3):
            hurt[place] = rng.integers(256)
        with suppress(AudioError):
            got = load_audio(bytes(hurt[: rng.integers(20, len(data))]), 16000, 0.5, "windows")
            assert got.shape[1] == 8000 and got.isfinite().all() and got.abs().max() <= 40
