"""PE-AV, Meta's Perception Encoder of audio and text, by transformers' towers.

    clap = load_clap("facebook/pe-av-base")     # 48 kHz; small, base and large, Apache-2.0

Of the audio-video checkpoints (facebook/pe-av-*, model_type pe_audio_video) the audio and the text
tower are read, and nothing of the video. So are checkpoints of PeAudioModel (pe_audio). Those of
frames (facebook/pe-a-frame-*) have no vector of a whole clip, and are refused.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PeAudioFeatureExtractor, PeAudioModel
from transformers.utils import logging

from clap import check_finite, check_waves, encoding, precision
from disk import DataError, reading


class PEAudio(nn.Module):
    """A frozen PeAudioModel as an encoder pair: see clap.load_clap.

    A short clip is computed at its own length, as the model was trained: nothing is repeated, and
    no padding is in it. So a row does not depend on the others. Zeros at the end of a row are what
    load_audio filled it up with, and are cut off, as a file's own digital silence there is.

    Attributes: those of an encoder pair; samples (in one window), max_tokens, cut (texts so far
    that were longer), fast_towers (those that encode in bfloat16), device.
    """

    padding = "zero"
    # The model takes any length. 10 s is that of the clips of AudioSet and AudioCaps: those are
    # heard whole, and of longer files the windows' mean is taken.
    seconds = 10.0
    max_tokens = 512  # as the authors' own transform cuts texts

    def __init__(self, model: PeAudioModel, tokenizer, sample_rate: int):
        super().__init__()
        self.model, self.tokenizer, self.sample_rate = model, tokenizer, sample_rate
        self.dim = model.config.text_config.hidden_size
        self.samples = round(sample_rate * self.seconds)
        self.hop = model.config.audio_config.dac_config.hop_length  # samples of one frame
        self.cut, self.fast_towers = 0, ()
        self.requires_grad_(False).eval()

    @property
    def device(self):
        return self.model.text_audio_logit_scale.device

    def train(self, mode=True):
        return super().train(False)

    def token_ids(self, texts: list[str]) -> list[list[int]]:
        """The ids of N texts, each at most max_tokens long and closed by the end token."""
        if isinstance(texts, str):
            raise TypeError("a list of texts is needed, not one string")
        if not texts:
            return []
        ids = self.tokenizer(texts, verbose=False, split_special_tokens=True).input_ids
        most = self.max_tokens
        self.cut += sum(len(row) > most for row in ids)
        return [row if len(row) <= most else [*row[: most - 1], row[-1]] for row in ids]

    @encoding
    def encode_text(self, texts: list[str], batch_size: int | None = None) -> Tensor:
        """(N, dim) unit rows on the device, float32, or float64 where the model is.

        A row does not depend on the other texts.
        """
        batch_size = batch_size or (16 if self.device.type == "cpu" else 256)
        ids = [torch.tensor(row) for row in self.token_ids(texts)]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # so that little is padded
        dtype = torch.promote_types(self.model.text_audio_logit_scale.dtype, torch.float32)
        out = torch.empty(len(ids), self.dim, dtype=dtype, device=self.device)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            part = [ids[i] for i in rows]
            pad = self.model.config.text_config.pad_token_id or 0
            padded = nn.utils.rnn.pad_sequence(part, batch_first=True, padding_value=pad)  # (B, L)
            mask = nn.utils.rnn.pad_sequence([torch.ones_like(i) for i in part], batch_first=True)
            with precision(self, "text"):
                said = self.model.text_model(
                    input_ids=padded.to(self.device),
                    attention_mask=mask.to(self.device),
                    output_hidden_states=True,
                )
                features = self.model.text_audio_head(said.hidden_states[-1][:, 0])  # (B, dim)
            out[rows] = F.normalize(features.to(dtype), dim=-1)
        return out

    @encoding
    def encode_audio(self, waves: Tensor, batch_size: int | None = None) -> Tensor:
        """(N, dim) float32 unit rows on the device, of (N, samples) in [-1, 1] at sample_rate.

        Raises ValueError for another length (load_audio gives this one) and for NaN or infinity.
        """
        check_waves(self, waves)
        batch_size = batch_size or (4 if self.device.type == "cpu" else 64)
        out = torch.empty(len(waves), self.dim, device=self.device)
        sounds = [self.sound(wave) for wave in waves.float().cpu().numpy()]
        for rows in of_one_length(sounds, batch_size):
            values = torch.from_numpy(np.stack([sounds[i] for i in rows]))[:, None]  # (B, 1, T)
            with precision(self, "audio"):
                pooled = self.model.audio_encoder(values.to(self.device)).pooler_output
                features = self.model.audio_head(pooled)  # (B, dim)
            out[rows] = F.normalize(features.float(), dim=-1)
        check_finite(out)
        return out

    def sound(self, wave: np.ndarray) -> np.ndarray:
        """A row without the zeros at its end, reflected up to a whole frame. Silence stays."""
        heard = np.flatnonzero(wave)
        length = heard[-1] + 1 if len(heard) else len(wave)
        whole = math.ceil(length / self.hop) * self.hop
        return np.pad(wave[:length], (0, whole - length), "reflect")

    @classmethod
    def from_pretrained(cls, name: str) -> "PEAudio":
        """The encoder pair of a checkpoint, by folder or hub name, on the CPU. Raises DataError."""
        name = str(name)
        with reading(f"PE-AV {name!r}", "get it again, or name another"), quiet():
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
            if "PeAudioFrameLevelModel" in (config.architectures or ()):
                raise DataError(
                    f"{name} makes a vector of every frame, and none of a whole clip: take one of "
                    "facebook/pe-av-*"
                )
            if config.model_type == "pe_audio_video":
                config = config.audio_config
            extractor = PeAudioFeatureExtractor.from_pretrained(name)
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            model, found = PeAudioModel.from_pretrained(
                name, config=config, dtype=torch.float32, output_loading_info=True
            )
        if missing := sorted(found["missing_keys"]):
            some = ", ".join(missing[:5])
            raise DataError(f"{name}: missing {len(missing)} of PE-AV's tensors: {some} ...")
        return cls(model, tokenizer, extractor.sampling_rate)


def of_one_length(sounds: list[np.ndarray], batch_size: int) -> Iterator[list[int]]:
    """The places of sounds of the same length, at most batch_size at once."""
    places = defaultdict(list)
    for i, sound in enumerate(sounds):
        places[len(sound)].append(i)
    for rows in places.values():
        for start in range(0, len(rows), batch_size):
            yield rows[start : start + batch_size]


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' list of the tensors that are not read: all of the video's."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
