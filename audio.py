"""A sound file of any format -> float32 windows of samples, as CLAP takes them.

    load_audio("dog.wav", 44100, 7)                     # (308700,): the 7 s in the middle
    load_audio("song.mp3", 44100, 7, crop="windows")    # (W, 308700): from first to last sample

    frames [start, stop) of the file ──► mean of the channels ──► resample ──► repeat or crop

Only the frames that the windows need are decoded: an hour of sound costs no more than a short clip.
Resampling computes each sample from its neighbours. So a window is read with a margin on both
sides, which is dropped after resampling: the result is a part of the whole resampled sound.

Real files are not always whole. Bytes in front of the header are skipped. Files that were joined
(cat a.mp3 b.mp3, a chained Ogg stream) are read one after the other, though libsndfile reads the
first alone. Whatever cannot be used ends in an AudioError that says what to do.
"""

import io
import math
import os
import shlex
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile as sf
import soxr
import torch

from disk import recognised

CROPS = ("center", "random", "windows")
PADDINGS = {  # of a sound shorter than the window
    "tile": "repeated, the last repeat cut off: msclap's",
    "repeat": "repeated as often as it fits whole, then zeros: LAION's",
    "zero": "zeros behind it",
}
Bytes = bytes | bytearray | memoryview
PathLike = str | os.PathLike
HEAD = 1 << 16  # bytes at the start of a file in which its header is searched
# The largest sample, where full scale is 1. No mixer leaves peaks of 30 dB over full scale; and on
# the scale of 16-bit integers the same peak would be 60 dB below full scale, which is next to
# silence. So a larger one is a float file on an integer's scale, or damaged.
PEAK = 32.0


class AudioError(ValueError):
    """Audio that cannot be used. The message names the file and the reason."""


def load_audio(
    file: PathLike | Bytes | BinaryIO,
    sample_rate: int,
    seconds: float,
    crop: str = "center",
    generator: torch.Generator | None = None,
    max_windows: int = 64,
    padding: str = "tile",
) -> torch.Tensor:
    """Float32 samples (T,), or (W, T) for crop "windows", with T = round(sample_rate * seconds).

    file: wav, flac, ogg, mp3 or whatever else libsndfile knows, told apart by content, not by name.
    The channels become their mean. A sound shorter than T is filled up as PADDINGS tells, a longer
    one is cropped.
    crop: "center", the same at every call; "random", the paper's, drawn from generator; "windows",
    evenly spaced over the whole file, without gaps up to max_windows * seconds (see encode_file).
    A truncated file gives the part that decodes. Raises AudioError where the file is missing,
    nothing decodes, or samples are NaN, infinite or larger than PEAK.
    """
    if crop not in CROPS:
        raise ValueError(f"crop must be one of {', '.join(CROPS)}, not {crop!r}")
    if padding not in PADDINGS:
        raise ValueError(f"padding must be one of {', '.join(PADDINGS)}, not {padding!r}")
    length = round(sample_rate * seconds)
    wanted = Crop(sample_rate, length, crop, generator, max_windows, padding)
    try:
        with open_binary(file) as stream:
            raw = rewound(stream)
            sound, raw = open_sound(raw, file)
            with sound:
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
        return open(file, "rb", buffering=0)  # libsndfile reads it too, from the same place
    if isinstance(file, Bytes):
        return io.BytesIO(file)
    return nullcontext(file)


def rewound(stream):
    """The stream at its start, in memory where it cannot seek. Raises AudioError if it is empty."""
    if not stream.seekable():
        stream = io.BytesIO(stream.read())
    if stream.seek(0, os.SEEK_END) == 0:
        raise AudioError("is empty")
    stream.seek(0)
    return stream


class Steady:
    """A stream for libsndfile, which asks for places before its start where a header is damaged.

    soundfile would print a traceback for each. It has no name: soundfile reads any file whose name
    ends in .raw as samples without a header.
    """

    def __init__(self, stream):
        self.read, self.tell = stream.read, stream.tell
        self.move = stream.seek

    def seek(self, offset: int, whence: int = 0) -> int:
        with suppress(ValueError, OSError):
            self.move(offset, whence)
        return self.tell()


def sound_file(raw) -> sf.SoundFile:
    """The sound of a stream, from its start. Raises LibsndfileError.

    libsndfile reads a file itself: in a callback of soundfile's, Ctrl-C would be lost.
    """
    raw.seek(0)
    if isinstance(raw, io.FileIO):
        return sf.SoundFile(raw.fileno(), closefd=False)
    return sf.SoundFile(Steady(raw))


def open_sound(raw, file):
    """(an open SoundFile, the stream that it reads). Raises AudioError or LibsndfileError."""
    head = part(raw, 0, HEAD).getvalue()
    start = after_tag(head)
    # behind a tag, libsndfile is right about these alone
    if start == 0 or head[start : start + 4] == b"fLaC" or head[start : start + 1] == b"\xff":
        try:
            return sound_file(raw), raw
        except sf.LibsndfileError as e:
            if problem := other_kind(head[start:], file):
                raise AudioError(problem) from e
            if not (starts := headers(head)):
                raise
    else:
        starts = [start, *headers(head)]
    size = raw.seek(0, os.SEEK_END)
    for start in starts:
        with suppress(sf.LibsndfileError):
            rest = part(raw, start, size)
            return sound_file(rest), rest
    return sound_file(raw), raw  # raises


def after_tag(head: bytes) -> int:
    """Where the sound begins behind an ID3 tag, which any format may have in front of it."""
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size


def headers(head: bytes) -> list[int]:
    """Where a sound may begin behind bytes that do not belong to it, at most one place a format."""
    found = {head.find(magic) for magic in (b"RIFF", b"RF64", b"fLaC", b"OggS", b"FORM", b"ID3")}
    found.add(len(head) - len(head.lstrip(b"\0 \r\n\t\xef\xbb\xbf")))
    return sorted(found - {-1, 0, len(head)})


CONTAINERS = {  # how files begin that libsndfile does not read
    b"\x30\x26\xb2\x75": "Windows Media (wma)",
    b"\x1a\x45\xdf\xa3": "Matroska or WebM",
    b"ADIF": "AAC",
    b"#!AMR": "AMR",
    b"MAC ": "Monkey's Audio",
    b"wvpk": "WavPack",
    b"MPCK": "Musepack",
    b".RMF": "RealMedia",
    b"FLV": "Flash video",
    b"\x00\x00\x01\xba": "MPEG video",
}


def other_kind(head: bytes, file) -> str:
    """What a file is that cannot be decoded, and what to do; empty where that is unknown."""
    if known := recognised(head):
        return known
    if head.startswith((b"PK\x03\x04", b"7z\xbc\xaf", b"Rar!")) or head[257:262] == b"ustar":
        return "is an archive: unpack it first"
    kind = next((kind for magic, kind in CONTAINERS.items() if head.startswith(magic)), "")
    if head[4:8] == b"ftyp":
        kind = "MP4 (m4a, mp4, mov)"
    elif head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        kind = "AVI video"
    elif head[:1] == b"\xff" and len(head) > 1 and head[1] & 0xF6 == 0xF0:
        kind = "AAC"  # in ADTS frames: MPEG audio of layer 0
    if not kind:
        return ""
    name, wav = "IN", "OUT.wav"
    if isinstance(file, PathLike) and not isinstance(file, bytes):
        name, wav = (shlex.quote(os.fspath(x)) for x in (file, Path(file).with_suffix(".wav")))
    return f"is {kind}, which libsndfile does not read; convert it: ffmpeg -i {name} {wav}"


def cut_sound(sound, raw, crop):
    """The crop of an open SoundFile. Where frames are missing or files joined, all are decoded."""
    further = joined(sound, raw)
    if whole(sound) and not further:
        return cut(partial(read_frames, sound), sound.frames, sound.samplerate, crop)
    wave = np.concatenate([decode(raw), *(decode_next(sound, stream) for stream in further)])
    if len(wave) == 0:
        raise AudioError("holds no samples that decode")
    return cut(lambda start, stop: wave[start:stop], len(wave), sound.samplerate, crop)


def whole(sound) -> bool:
    """Whether the last frame is there: a header can promise more frames than there are."""
    try:
        read_frames(sound, sound.frames - 1, sound.frames)
        return True
    except (EOFError, sf.LibsndfileError):
        return False


def joined(sound, raw) -> list[io.BytesIO]:
    """What may be the further streams of a file: libsndfile reads the first alone."""
    if sound.format in ("OGG", "FLAC"):
        find = further_chains if sound.format == "OGG" else further_flacs
        starts = find(raw)
        size = raw.seek(0, os.SEEK_END)
        return [part(raw, start, stop) for start, stop in pairwise([*starts, size])]
    streams = []
    while whole(sound):
        end, size = raw.tell(), raw.seek(0, os.SEEK_END)  # libsndfile has read as far as `end`
        if end >= size:
            break
        raw = part(raw, end, size)
        try:
            other = sound_file(raw)
        except sf.LibsndfileError:
            break
        if other.format != sound.format:
            break
        sound = other
        streams.append(raw)
    return streams


def part(raw, start: int, stop: int) -> io.BytesIO:
    raw.seek(start)
    return io.BytesIO(raw.read(stop - start))


def further_flacs(raw) -> list[int]:
    return places(raw, b"fLaC\0\0\0\x22")[1:]


def places(raw, magic: bytes, block: int = 1 << 20) -> list[int]:
    """All places of some bytes in a file."""
    found, before, at = [], b"", 0
    raw.seek(0)
    while data := raw.read(block):
        data = before + data
        start = data.find(magic)
        while start >= 0:
            found.append(at - len(before) + start)
            start = data.find(magic, start + 1)
        at += len(data) - len(before)
        before = data[1 - len(magic) :]
    return found


def further_chains(raw) -> list[int]:
    """The first page of each chain of an Ogg file but the first.

    A chain begins with the first pages of its streams, side by side; only then come others.
    """
    starts, last = [], None
    for place in places(raw, b"OggS\0"):
        raw.seek(place + 5)
        is_first = bool(int.from_bytes(raw.read(1)) & 2)
        if is_first and last is False:
            starts.append(place)
        last = is_first
    return starts


def decode_next(sound, stream):
    """Every frame of a further stream, at the first one's rate; none where it is no sound."""
    try:
        with sound_file(stream) as other:
            rate = other.samplerate
        wave = decode(stream)
    except sf.LibsndfileError:
        return np.zeros(0, np.float32)
    return soxr.resample(wave, rate, sound.samplerate) if rate != sound.samplerate else wave


def read_mono(sound, count):
    """The next frames of an open SoundFile, at most `count`, as the mean of their channels."""
    try:
        return sound.read(count, dtype="float32", always_2d=True).mean(1)
    except ValueError as e:  # a damaged mp3 can have read more frames than it says there are
        raise EOFError from e


def read_frames(sound, start, stop):
    """Frames [start, stop) of an open SoundFile. Raises EOFError where some are missing."""
    sound.seek(start)
    wave = read_mono(sound, stop - start)
    if len(wave) < stop - start:
        raise EOFError
    return wave


def decode(raw, large: int = 1 << 22):
    """Every frame of a binary file up to the first that does not decode."""
    blocks, count = [np.zeros(0, np.float32)], 0
    # Large blocks: soundfile seeks after each, and an mp3 decoder that has to seek garbles the next
    # frames. Small ones find the place of an error. A decoder that failed once fails for good.
    for samples in (large, 1 << 12):
        with sound_file(raw) as sound, suppress(sf.LibsndfileError, EOFError):
            sound.seek(count)
            while len(wave := read_mono(sound, -(-samples // sound.channels))) > 0:
                blocks.append(wave)
                count += len(wave)
            break
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
    padding: str

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
        windows = filled(wave, crop.length, crop.padding)[None]
    else:
        margin, parts = crop.sample_rate // 10, []
        for start in crop.starts(total):
            k = max(0, start - margin) // up
            stop = min(frames, math.ceil((start + crop.length + margin) * down / up))
            wave = resample(read(k * down, stop), rate, crop.sample_rate)
            parts.append(wave[start - k * up :][: crop.length])
        windows = torch.stack(parts)
    return windows if crop.kind == "windows" else windows[0]


def filled(wave: torch.Tensor, length: int, padding: str) -> torch.Tensor:
    """The wave (n,), n <= length but for rounding, as a window (length,): see PADDINGS."""
    times = {"tile": math.ceil(length / len(wave)), "repeat": length // len(wave), "zero": 1}
    wave = wave.repeat(max(1, times[padding]))[:length]
    return torch.nn.functional.pad(wave, (0, length - len(wave)))


def resample(wave, rate, sample_rate):
    """An array at `rate` -> a tensor at `sample_rate`.

    Raises AudioError for NaN, infinity and samples over PEAK.
    """
    if not np.isfinite(wave).all():
        raise AudioError("holds NaN or infinite samples")
    peak = np.abs(wave).max(initial=0)
    if peak > PEAK:
        raise AudioError(
            f"holds samples up to {peak:.3g}, where full scale is 1: damaged, or on an integer's "
            "scale; then divide them (ffmpeg -i IN -af volume=1/32768 OUT.wav)"
        )
    resampled = wave if rate == sample_rate else soxr.resample(wave, rate, sample_rate)
    # soxr makes nothing of a single frame at a higher rate: keep the frame
    return torch.from_numpy(resampled if len(resampled) else wave)
