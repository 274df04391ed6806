"""A sound file, of any format and length, to windows of samples."""

import io
import math
import os
from contextlib import ExitStack
from functools import partial

import numpy as np
import soundfile as sf
import soxr
import torch


class AudioError(ValueError):
    """Audio that cannot be used. The message names the file and the reason."""


def load_audio(file, sample_rate, seconds, crop="center", generator=None, max_windows=64):
    """Decodes, mixes the channels down to their mean, resamples, and tiles (when short) or crops (when long).

    file: a path, bytes, or a binary file object; wav, flac, ogg, mp3 and whatever else libsndfile knows, told apart by
    content, not by name. Only the part that is needed is decoded.
    crop: "center", the same at every call; "random", the paper's, drawn from generator; "windows", evenly spaced over
    the whole file, without gaps up to max_windows * seconds (see encode_file).
    Returns float32 (T,), or (W, T) for "windows", T = round(sample_rate * seconds). A file that is cut off gives what
    decodes. Raises AudioError when there is no such file, nothing decodes, or samples are NaN or infinite.
    """
    if crop not in ("center", "random", "windows"):
        raise ValueError(f"crop must be 'center', 'random' or 'windows', not {crop!r}")
    is_path, is_bytes = (
        isinstance(file, (str, os.PathLike)),
        isinstance(file, (bytes, bytearray, memoryview)),
    )
    name = (
        os.fspath(file)
        if is_path
        else f"<{len(file)} bytes>"
        if is_bytes
        else str(getattr(file, "name", file))
    )
    with ExitStack() as stack:
        try:
            raw = (
                stack.enter_context(open(file, "rb"))
                if is_path
                else io.BytesIO(file)
                if is_bytes
                else file
            )
            if not raw.seekable() or name.lower().endswith(
                ".raw"
            ):  # the one name that soundfile would believe
                raw = io.BytesIO(raw.read())
            if not raw.seek(0, os.SEEK_END):
                raise AudioError(f"{name}: is empty")
            raw.seek(0)
            sound = stack.enter_context(sf.SoundFile(raw))
            how = (
                sound.samplerate,
                sample_rate,
                round(sample_rate * seconds),
                crop,
                generator,
                max_windows,
            )
            try:
                read_frames(
                    sound, sound.frames - 1, sound.frames
                )  # a header can promise more than there is
                return cut(partial(read_frames, sound), sound.frames, *how)
            except (EOFError, sf.LibsndfileError):
                wave = decode(raw)
                if len(wave) == 0:
                    raise AudioError(f"{name}: holds no samples that decode") from None
                return cut(lambda start, stop: wave[start:stop], len(wave), *how)
        except OSError as e:
            raise AudioError(f"{name}: {e.strerror or e}") from e
        except sf.LibsndfileError as e:
            raise AudioError(
                f"{name}: cannot be decoded as audio (libsndfile: {e.error_string})"
            ) from e
        except FloatingPointError:
            raise AudioError(f"{name}: holds NaN or infinite samples") from None


def read_frames(sound, start, stop):
    """Frames [start, stop) of an open SoundFile as mono. Raises EOFError when some are not there."""
    sound.seek(start)
    wave = sound.read(stop - start, dtype="float32", always_2d=True).mean(1)
    if len(wave) < stop - start:
        raise EOFError
    return wave


def decode(raw, block=4096):
    """Every frame of a binary file up to the first block that does not decode, as mono."""
    blocks = []
    raw.seek(0)
    with sf.SoundFile(raw) as sound:  # opened again: a decoder that failed stays failed
        try:
            while not blocks or len(blocks[-1]):
                blocks.append(sound.read(block, dtype="float32", always_2d=True).mean(1))
        except sf.LibsndfileError:
            pass
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def cut(read, total, rate, sample_rate, length, crop, generator, max_windows):
    """The part of a sound of `total` frames at `rate` that the crop asks for, at sample_rate. See load_audio.

    Positions are counted after resampling, and a part is read with a margin from a point where both rates' samples
    coincide: it is what resampling everything and cropping then would give.
    """
    up, down = sample_rate // math.gcd(rate, sample_rate), rate // math.gcd(rate, sample_rate)
    n, margin = total * up // down, sample_rate // 10

    def resampled(start, stop):
        wave = read(start, stop)
        if not np.isfinite(wave).all():
            raise FloatingPointError
        out = soxr.resample(wave, rate, sample_rate) if rate != sample_rate else wave
        return torch.from_numpy(
            out if len(out) else wave
        )  # soxr makes nothing of one frame at a higher rate

    if n <= length:
        wave = resampled(0, total)
        wave = wave.repeat(math.ceil(length / len(wave)))[:length]
        return wave[None] if crop == "windows" else wave
    if crop == "center":
        starts = [(n - length) // 2]
    elif crop == "random":
        starts = [torch.randint(n - length + 1, (1,), generator=generator).item()]
    else:
        count = min(math.ceil(n / length), max_windows)
        starts = [round(i * (n - length) / max(count - 1, 1)) for i in range(count)]
    parts = []
    for start in starts:
        k = max(0, start - margin) // up  # frame k * down is sample k * up
        wave = resampled(k * down, min(total, math.ceil((start + length + margin) * down / up)))
        parts.append(wave[start - k * up :][:length])
    return torch.stack(parts) if crop == "windows" else parts[0]
