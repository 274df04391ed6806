"""An encoder pair that is to work: its vectors are checked, and told from another encoder's.

ready            before an encoder is used: on the device, and its vectors are finite unit rows
probe            what it makes of a few texts, kept wherever its vectors go
check_encoder    whether a model was trained on this encoder's vectors
faster           bfloat16, where that is faster and changes nothing
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from disk import DataError, reading

VARIED = (  # texts that no useful encoder takes for one another
    "a dog barks",
    "a baby cries",
    "calm piano music",
    "an electric guitar plays a fast solo",
    "cars pass on a busy road",
    "a man gives a speech",
    "thunder and heavy rain",
    "someone hammers on metal",
)
# The highest mean cosine of VARIED. The tiny world's CLAP has 0.74, msclap's sizes with random
# weights 0.60; laion/larger_clap_music, whose text tower is useless, has 0.9993.
COLLAPSED = 0.98
LEAST_COSINE = 0.999  # of two vectors of one text or sound, but for half precision


def ready(clap, name: str, device: str | torch.device = "cpu"):
    """The encoder pair on the device, its vectors checked: before it is used for work.

    Raises DataError, as check_vectors does.
    """
    if isinstance(clap, nn.Module):
        clap.to(device)
    check_vectors(clap, name)
    return clap


def trial_waves(clap) -> Tensor:
    """(2, samples): a noise and a tone."""
    samples = round(clap.sample_rate * clap.seconds)
    noise = 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(0))
    tone = 0.1 * torch.sin(2 * torch.pi * 440 / clap.sample_rate * torch.arange(samples))
    return torch.stack([noise, tone])


def check_vectors(clap, name: str) -> None:
    """Raises DataError that names the encoder, unless both towers make finite unit rows (N, dim).

    So it does where very different texts get nearly the same vector: no model learns from those.
    """
    waves, own = trial_waves(clap), "it is the encoder's own error: try it by itself"
    with reading(f"{name}: encode_text of {len(VARIED)} texts", own):
        texts = clap.encode_text(list(VARIED))
    check_rows(texts, len(VARIED), clap.dim, f"{name}: encode_text")
    with reading(f"{name}: encode_text of 2 texts", own):
        again = clap.encode_text(list(VARIED[:2]))
    check_rows(again, 2, clap.dim, f"{name}: encode_text")
    with reading(f"{name}: encode_audio of a noise and a tone", own):
        sounds = clap.encode_audio(waves)
    check_rows(sounds, len(waves), clap.dim, f"{name}: encode_audio")
    if F.cosine_similarity(texts[:2].double(), again.double()).min() < LEAST_COSINE:
        raise DataError(
            f"{name}: encode_text makes other vectors of the same two texts when they stand beside "
            "others, or at the next call: is it in eval mode, and does it keep padding out?"
        )
    texts, n = texts.cpu().double(), len(VARIED)
    cosines = texts @ texts.T  # (N, N)
    mean = (cosines.sum() - cosines.trace()).item() / (n * (n - 1))
    if mean > COLLAPSED:
        raise DataError(
            f"{name}: its text tower has collapsed: texts such as {VARIED[0]!r} and {VARIED[2]!r} "
            f"have a mean cosine of {mean:.4f} with one another; choose another encoder"
        )


def check_rows(rows, n: int, dim: int, what: str) -> None:
    """Raises DataError, which begins with `what`, unless rows are n finite unit vectors of dim."""
    if not isinstance(rows, Tensor):
        raise DataError(
            f"{what} returns {type(rows).__name__}, where a tensor ({n}, {dim}) belongs"
        )
    shape = tuple(rows.shape)
    if shape != (n, dim):
        raise DataError(
            f"{what} makes {shape} of {n} inputs, where ({n}, {dim}) belongs: see `dim`"
        )
    if not rows.isfinite().all():
        raise DataError(f"{what} makes vectors that are not finite")
    if rows.requires_grad:
        raise DataError(f"{what} makes vectors with gradients: compute them under torch.no_grad()")
    lengths = rows.cpu().double().norm(dim=1)
    if (lengths - 1).abs().max() > 0.01:  # half precision leaves 0.004
        raise DataError(
            f"{what} makes vectors of length {lengths.min():.3g} to {lengths.max():.3g}, where "
            "unit rows belong: normalise them"
        )


def gains(clap) -> bool:
    """Whether one of our encoders is faster in bfloat16 where it is: on a GPU that computes in it.

    A CPU does not gain. At msclap's sizes, on one core with AVX512-BF16, the audio tower takes as
    long as in float32 and the text tower 1.7 times as long.
    """
    return clap.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def faster(clap, tower: str) -> str:
    """Lets a tower, "text" or "audio", encode in bfloat16 where that is faster; a line about it.

    Both ways are tried first: below LEAST_COSINE the tower stays in float32. The line is empty
    where nothing is gained, and for an encoder pair of one's own, which knows best.
    """
    if not hasattr(clap, "fast_towers") or not gains(clap):
        return ""
    before, waves = clap.fast_towers, trial_waves(clap)
    vectors = []  # in float32, in bfloat16
    for towers in ((), (tower,)):
        clap.fast_towers = towers
        inputs = {"text": list(VARIED), "audio": waves}[tower]
        encode = {"text": clap.encode_text, "audio": clap.encode_audio}[tower]
        vectors.append(encode(inputs))
    cosine = F.cosine_similarity(*vectors).min().item()
    if cosine >= LEAST_COSINE:
        clap.fast_towers = tuple({*before, tower})
        return f"the {tower} tower encodes in bfloat16: cosine {cosine:.5f} with float32"
    clap.fast_towers = before
    return f"the {tower} tower encodes in float32: in bfloat16 the cosine with it is {cosine:.5f}"


PROBES = ("a dog barks", "rain falls on a roof", "calm piano music")


def probe(clap) -> list[float]:
    """What tells an encoder pair from another of the same name: 16 numbers of each of PROBES.

    They go where its vectors go, and are compared by `same_encoder` before these are used.
    """
    return [round(x, 4) for x in clap.encode_text(list(PROBES))[:, :16].flatten().tolist()]


def same_encoder(a: list[float], b: list[float]) -> bool:
    """Whether two probes are of one encoder, but for rounding, half precision's included."""
    return len(a) == len(b) and all(abs(x - y) < 0.02 for x, y in zip(a, b))


def check_encoder(trained: list[float] | None, dim: int, clap, name: str) -> None:
    """Raises DataError where the model was trained on vectors of another encoder than this CLAP.

    trained: MATS.probe, what the encoder of the training vectors made of a few texts; None where
    the model does not say. dim: of these vectors.
    """
    if clap.dim != dim:
        raise DataError(
            f"the model was trained on vectors of {dim} numbers, and those of {name} have "
            f"{clap.dim}: config.json's field clap names another CLAP than in training"
        )
    if trained is not None and not same_encoder(trained, probe(clap)):
        raise DataError(
            f"the model was trained on vectors of another encoder than {name} is now: "
            "it has changed since"
        )
