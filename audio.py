"""A sound file of any format -> float32 windows of samples, as CLAP takes them.

    load_audio("dog.wav", 44100, 7)                     # (308700,): the 7 s in the middle
    load_audio("song.mp3", 44100, 7, crop="windows")    # (W, 308700): from first to last sample

    frames [start, stop) of the file ──► mean of the channels ──► resample ──► tile or crop

Only the frames that the windows need are decoded: an hour of sound costs no more than a short clip.
Resampling computes each sample from its neighbours. So a window is read with a margin on both
sides, which is dropped after resampling: the result is a part of the whole resampled sound.
"""

import io
import math
import os
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

import numpy as np
import soundfile as sf
import soxr
import torch

CROPS = ("center", "random", "windows")
Bytes = bytes | bytearray | memoryview
PathLike = str | os.PathLike


class AudioError(ValueError):
    """Audio that cannot be used. The message names the file and the reason."""


def load_audio(
    file: PathLike | Bytes | BinaryIO,
    sample_rate: int,
    seconds: float,
    crop: str = "center",
    generator: torch.Generator | None = None,
    max_windows: int = 64,
) -> torch.Tensor:
    """Float32 samples (T,), or (W, T) for crop "windows", with T = round(sample_rate * seconds).

    file: wav, flac, ogg, mp3 or whatever else libsndfile knows, told apart by content, not by name.
    The channels become their mean. A sound shorter than T is tiled, a longer one is cropped.
    crop: "center", the same at every call; "random", the paper's, drawn from generator; "windows",
    evenly spaced over the whole file, without gaps up to max_windows * seconds (see encode_file).
    A truncated file gives the part that decodes. Raises AudioError where the file is missing,
    nothing decodes, or samples are NaN or infinite.
    """
    if crop not in CROPS:
        raise ValueError(f"crop must be one of {', '.join(CROPS)}, not {crop!r}")
    wanted = Crop(sample_rate, round(sample_rate * seconds), crop, generator, max_windows)
    try:
        with open_binary(file) as stream:
            raw = rewound(stream)
            with sf.SoundFile(raw) as sound:
                return cut_sound(sound, raw, wanted)
    except OSError as e:
        raise AudioError(f"{name_of(file)}: {e.strerror or e}") from e
    except sf.LibsndfileError as e:
        reason = f"cannot be decoded as audio (libsndfile: {e.error_string})"
        raise AudioError(f"{name_of(file)}: {reason}") from e
    except AudioError as e:
        raise AudioError(f"{name_of(file)}: {e}") from None


# --- the file ---


def name_of(file):
    """The file's name in messages."""
    if isinstance(file, Bytes):
        return f"<{len(file)} bytes>"
    if isinstance(file, PathLike):
        return os.fspath(file)
    return str(getattr(file, "name", file))


def open_binary(file):
    """A context that gives a binary stream; it closes only a stream opened here."""
    if isinstance(file, PathLike):
        return open(file, "rb")
    if isinstance(file, Bytes):
        return io.BytesIO(file)
    return nullcontext(file)


def rewound(stream):
    """The stream at its start, in memory where it cannot seek. Raises AudioError if it is empty."""
    # soundfile reads any file whose name ends in .raw as samples without a header
    if not stream.seekable() or str(getattr(stream, "name", "")).lower().endswith(".raw"):
        stream = io.BytesIO(stream.read())
    if stream.seek(0, os.SEEK_END) == 0:
        raise AudioError("is empty")
    stream.seek(0)
    return stream


def cut_sound(sound, raw, crop):
    """The crop of an open SoundFile, or of everything that decodes where frames are missing."""
    read = partial(read_frames, sound)
    try:
        read(sound.frames - 1, sound.frames)  # a header can promise more frames than there are
        return cut(read, sound.frames, sound.samplerate, crop)
    except (EOFError, sf.LibsndfileError):
        wave = decode(raw)
    if len(wave) == 0:
        raise AudioError("holds no samples that decode")
    return cut(lambda start, stop: wave[start:stop], len(wave), sound.samplerate, crop)


def read_mono(sound, count):
    """The next frames of an open SoundFile, at most `count`, as the mean of their channels."""
    return sound.read(count, dtype="float32", always_2d=True).mean(1)


def read_frames(sound, start, stop):
    """Frames [start, stop) of an open SoundFile. Raises EOFError where some are missing."""
    sound.seek(start)
    wave = read_mono(sound, stop - start)
    if len(wave) < stop - start:
        raise EOFError
    return wave


def decode(raw, block=4096):
    """Every frame of a binary file up to the first block that does not decode."""
    raw.seek(0)
    blocks = [np.zeros(0, np.float32)]
    # opened again, because a decoder that failed once fails for good
    with sf.SoundFile(raw) as sound, suppress(sf.LibsndfileError):
        while len(wave := read_mono(sound, block)) > 0:
            blocks.append(wave)
    return np.concatenate(blocks)


# --- the windows ---


@dataclass(frozen=True)
class Crop:
    """The windows that load_audio was asked for, `length` samples each at `sample_rate`."""

    sample_rate: int
    length: int
    kind: str
    generator: torch.Generator | None
    max_windows: int

    def starts(self, total: int) -> list[int]:
        """The first sample of each window in a sound of `total` samples, at least `length`."""
        room = total - self.length
        if self.kind == "center":
            return [room // 2]
        if self.kind == "random":
            return [torch.randint(room + 1, (1,), generator=self.generator).item()]
        count = min(math.ceil(total / self.length), self.max_windows)
        return [round(i * room / max(count - 1, 1)) for i in range(count)]


def cut(read, frames: int, rate: int, crop: Crop) -> torch.Tensor:
    """The crop (T,) or (W, T) of a sound of so many frames at `rate`; read(start, stop) gives them.

    Frame f of the file lies at f / rate seconds, sample i of the result at i / sample_rate.
    Both lie at the same time where f * up = i * down, with up / down = sample_rate / rate in lowest
    terms: at f = k * down, i = k * up for k = 0, 1, 2 ... A window is read from the last such frame
    that leaves a margin before it, so that its part, resampled, begins at sample k * up.
    """
    common = math.gcd(rate, crop.sample_rate)
    up, down = crop.sample_rate // common, rate // common
    total = frames * up // down  # samples
    if total <= crop.length:
        wave = resample(read(0, frames), rate, crop.sample_rate)
        windows = wave.repeat(math.ceil(crop.length / len(wave)))[None, : crop.length]
    else:
        margin, parts = crop.sample_rate // 10, []
        for start in crop.starts(total):
            k = max(0, start - margin) // up
            stop = min(frames, math.ceil((start + crop.length + margin) * down / up))
            wave = resample(read(k * down, stop), rate, crop.sample_rate)
            parts.append(wave[start - k * up :][: crop.length])
        windows = torch.stack(parts)
    return windows if crop.kind == "windows" else windows[0]


def resample(wave, rate, sample_rate):
    """An array at `rate` -> a tensor at `sample_rate`. Raises AudioError for NaN or infinity."""
    if not np.isfinite(wave).all():
        raise AudioError("holds NaN or infinite samples")
    resampled = wave if rate == sample_rate else soxr.resample(wave, rate, sample_rate)
    # soxr makes nothing of a single frame at a higher rate: keep the frame
    return torch.from_numpy(resampled if len(resampled) else wave)
