"""
CLAP: text and audio as unit vectors in one space (paper, section 3.1). Frozen everywhere but in the tiny world.

    clap = load_clap("microsoft/msclap")             # the paper's encoder; or "laion/clap-htsat-unfused", or a folder
    t = clap.encode_text(["a dog barks"])            # (1, 1024)
    a = encode_file(clap, "dog.wav")                 # (1024,)

One class covers two kinds of checkpoint, both built from transformers' own towers:
- "msclap": GPT-2, read at its last token, and HTSAT; the paper uses Microsoft's 2023 checkpoint (facts, section 3)
- "laion": RoBERTa and HTSAT, any CLAP that transformers can load

Anything else with encode_text, encode_audio, dim, sample_rate and seconds serves as well: load_clap("module:factory").
"""

import importlib
import json
import os
import re
from dataclasses import asdict, dataclass, field, replace
from functools import wraps
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    ClapAudioConfig,
    ClapAudioModel,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextConfig,
    ClapTextModel,
    GPT2Config,
    GPT2Model,
)
from transformers.audio_utils import mel_filter_bank
from transformers.models.clap.modeling_clap import ClapProjectionLayer

from audio import load_audio

# --- the model --------------------------------------------------------------------------------------------------------


@dataclass
class CLAPConfig:
    """The defaults are msclap's 2023 checkpoint. What text and audio leave out, transformers' defaults fill in."""

    kind: str = "msclap"  # or "laion"
    text: dict = field(
        default_factory=dict
    )  # of GPT2Config | ClapTextConfig; the vocabulary is the tokenizer's
    audio: dict = field(
        default_factory=dict
    )  # of ClapAudioConfig: HTSAT, 64 mel bins, spec_size 256
    dim: int = 1024  # of the shared space
    sample_rate: int = 44100  # Hz
    seconds: float = 7.0  # of audio that the tower sees at once
    n_fft: int = 1024  # samples, also the Hann window's length
    hop: int = 320  # samples
    fmin: float = 50.0  # Hz
    fmax: float = 14000.0  # Hz
    mel_scale: str = "slaney"  # or "htk": torchaudio's, LAION's fused checkpoints
    max_tokens: int = 77  # as both were trained; longer texts are cut, their end stays
    dropout: float = 0.5  # of msclap's projection, while training
    official: bool = False  # msclap's way to find the last token, which a "!" in the text moves


class Projection(nn.Module):
    """msclap's projection into the shared space: e = W1 x; LayerNorm(e + dropout(W2 gelu(e))). (B, d_in) -> (B, dim)"""

    def __init__(self, d_in, dim, dropout):
        super().__init__()
        self.linear1 = nn.Linear(d_in, dim, bias=False)
        self.linear2 = nn.Linear(dim, dim, bias=False)
        self.layer_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        e = self.linear1(x)
        return self.layer_norm(e + self.dropout(self.linear2(F.gelu(e))))


def encoding(method):
    """No gradients and eval mode while the method runs: batch norm and dropout must not see what is only encoded."""

    @wraps(method)
    def run(self, *args, **kwargs):
        was = self.training
        self.eval()
        try:
            with torch.no_grad():
                return method(self, *args, **kwargs)
        finally:
            self.train(was)

    return run


class CLAP(nn.Module):
    """Two towers and two projections. `CLAP.from_pretrained` gives a frozen one; `CLAP(config, tokenizer)` a fresh,
    trainable one, at any size:

        config = CLAPConfig(text=dict(n_embd=128, n_layer=2, n_head=4), dim=128, sample_rate=16000, seconds=2, hop=512,
                            fmax=8000, audio=dict(spec_size=64, patch_embeds_hidden_size=24, depths=[2, 2],
                                                  num_attention_heads=[2, 4], window_size=8))
        clap = CLAP(config, tokenizer).train()
        mels = clap.mel(waves)                                            # once: it has no parameters
        a = F.normalize(clap.audio_features(mels), dim=-1)                # (B, dim)
        t = F.normalize(clap.text_features(*clap.tokenize(texts)), dim=-1)
        logits, same = a @ t.T / 0.07, torch.arange(len(a))
        loss = (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2
        ...
        clap.freeze().save_pretrained("tiny_clap")

    Audio batch norm learns running statistics (momentum 0.1): train a few dozen steps before believing encode_audio.

    Attributes: config, tokenizer, dim, sample_rate (Hz), seconds, samples (in one clip), device.
    Raises ValueError where the sizes do not fit together, TypeError on a tokenizer without an end token.
    """

    def __init__(self, config, tokenizer):
        super().__init__()
        config = replace(config, text={"vocab_size": len(tokenizer), **config.text})
        self.config, self.tokenizer, self.frozen = config, tokenizer, False
        self.dim, self.sample_rate, self.seconds = config.dim, config.sample_rate, config.seconds
        self.samples = round(config.sample_rate * config.seconds)
        audio = ClapAudioConfig(**{**config.audio, "projection_dim": config.dim})
        audio.hidden_size = audio.patch_embeds_hidden_size * 2 ** (len(audio.depths) - 1)
        check_audio(config, audio)
        self.audio_model = ClapAudioModel(audio)
        if config.kind == "msclap":
            if tokenizer.eos_token is None:
                raise TypeError("a text is read at its end token: the tokenizer needs an eos_token")
            self.suffix, self.pad_id = (
                " " + tokenizer.eos_token,
                0,
            )  # as msclap writes it, space and all
            self.end = tokenizer(self.suffix).input_ids
            text = GPT2Config(**{"bos_token_id": None, "eos_token_id": None, **config.text})
            self.text_model = GPT2Model(text)
            self.text_projection = Projection(text.n_embd, config.dim, config.dropout)
            self.audio_projection = Projection(audio.hidden_size, config.dim, config.dropout)
        elif config.kind == "laion":
            self.suffix, self.pad_id = "", config.text.get("pad_token_id", 1)
            self.end = tokenizer("").input_ids[-1:]
            text = ClapTextConfig(**{**config.text, "projection_dim": config.dim})
            self.text_model = ClapTextModel(text)
            self.text_projection, self.audio_projection = (
                ClapProjectionLayer(text),
                ClapProjectionLayer(audio),
            )
        else:
            raise ValueError(f"kind must be 'msclap' or 'laion', not {config.kind!r}")
        norm = "slaney" if config.mel_scale == "slaney" else None
        mel = mel_filter_bank(
            config.n_fft // 2 + 1,
            audio.num_mel_bins,
            config.fmin,
            config.fmax,
            config.sample_rate,
            norm=norm,
            mel_scale=config.mel_scale,
        )
        self.register_buffer(
            "mel_matrix", torch.tensor(mel, dtype=torch.float32)
        )  # (n_fft/2 + 1, n_mels)
        self.register_buffer("window", torch.hann_window(config.n_fft), persistent=False)

    @property
    def device(self):
        return self.mel_matrix.device

    def freeze(self):
        """No gradients, and eval mode for good: .train() no longer wakes dropout or batch norm. Returns self."""
        self.frozen = True
        return self.requires_grad_(False).eval()

    def train(self, mode=True):
        return super().train(mode and not self.frozen)

    # text

    def token_ids(self, texts):
        """list of N texts -> list of N lists of ids, each at most max_tokens long and closed by the end token."""
        if isinstance(texts, str):
            raise TypeError("a list of texts is needed, not one string")
        if not texts:
            return []
        keep = self.config.max_tokens - len(self.end)
        ids = self.tokenizer([t + self.suffix for t in texts], verbose=False).input_ids
        return [i if len(i) <= self.config.max_tokens else i[:keep] + self.end for i in ids]

    def collate(self, ids):
        """list of B lists of ids -> ids (B, L), mask (B, L), on the device; L is the longest of the batch."""
        length = torch.tensor([len(i) for i in ids])
        out = torch.full((len(ids), int(length.max())), self.pad_id)
        mask = torch.arange(out.shape[1]) < length[:, None]
        out[mask] = torch.tensor([t for i in ids for t in i])
        return out.to(self.device), mask.long().to(self.device)

    def tokenize(self, texts):
        """list of B texts -> ids (B, L), mask (B, L): the arguments of text_features."""
        return self.collate(self.token_ids(texts))

    def text_features(self, ids, mask):
        """ids (B, L), mask (B, L), 1 at real tokens -> (B, dim), with gradients, not normalised."""
        if self.config.kind == "laion":
            return self.text_projection(
                self.text_model(input_ids=ids, attention_mask=mask).pooler_output
            )
        # causal attention: padding on the right cannot reach the last real token, so the tower needs no mask
        hidden = self.text_model(input_ids=ids, use_cache=False).last_hidden_state  # (B, L, n_embd)
        last = (ids != 0).sum(1) - 1 if self.config.official else mask.sum(1) - 1
        return self.text_projection(hidden[torch.arange(len(ids), device=ids.device), last])

    @encoding
    def encode_text(self, texts, batch_size=None):
        """list of N texts -> (N, dim) float32 unit rows on the device. A row does not depend on the other texts."""
        batch_size = batch_size or (
            16 if self.device.type == "cpu" else 256
        )  # 256 is 2.5 times slower on a CPU
        ids = self.token_ids(texts)
        order = sorted(
            range(len(ids)), key=lambda i: len(ids[i])
        )  # batches of like length: little is padded
        out = torch.empty(len(ids), self.dim, device=self.device)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            out[rows] = F.normalize(
                self.text_features(*self.collate([ids[i] for i in rows])).float(), dim=-1
            )
        return out

    # audio

    @torch.no_grad()
    def mel(self, wave):
        """(B, samples) in [-1, 1] -> log-mel spectrogram (B, frames, n_mels) in dB, frames = samples // hop + 1."""
        c = self.config
        spec = torch.stft(
            wave, c.n_fft, c.hop, window=self.window, return_complex=True
        )  # (B, n_fft/2 + 1, frames)
        power = torch.view_as_real(spec).square().sum(-1)
        return 10 * (power.transpose(1, 2) @ self.mel_matrix).clamp(min=1e-10).log10()

    def audio_features(self, mel):
        """(B, frames, n_mels), what mel() returns -> (B, dim), with gradients, not normalised."""
        # is_longer is for LAION's fused checkpoints alone: a clip that fits is not fused
        longer = torch.zeros(len(mel), 1, dtype=torch.bool, device=mel.device)
        pooled = self.audio_model(input_features=mel[:, None], is_longer=longer).pooler_output
        return self.audio_projection(pooled)

    @encoding
    def encode_audio(self, waves, batch_size=None):
        """(N, samples) float32 in [-1, 1] at sample_rate -> (N, dim) float32 unit rows on the device.

        Raises ValueError on another length (load_audio gives the right one) and on rows that hold NaN or infinity.
        """
        if waves.ndim != 2 or waves.shape[1] != self.samples:
            raise ValueError(
                f"encode_audio takes (N, {self.samples}), {self.seconds:g} s at {self.sample_rate} Hz, "
                f"not {tuple(waves.shape)}: load_audio tiles and crops"
            )
        batch_size = batch_size or (4 if self.device.type == "cpu" else 64)
        out = torch.empty(len(waves), self.dim, device=self.device)
        for start in range(0, len(waves), batch_size):
            wave = waves[start : start + batch_size].to(self.device, torch.float32)
            out[start : start + batch_size] = F.normalize(
                self.audio_features(self.mel(wave)).float(), dim=-1
            )
        # NaN and infinity, and samples whose power overflows, all arrive here as NaN
        bad = (~out.isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                f"audio row{'s' * (len(bad) > 1)} {', '.join(map(str, bad))}: NaN, infinite or absurdly "
                "large samples"
            )
        return out

    # files

    def save_pretrained(self, folder):
        """Writes config.json, model.safetensors and the tokenizer's files."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(asdict(self.config), indent=2) + "\n")
        save_file(
            {k: v.contiguous() for k, v in self.state_dict().items()}, folder / "model.safetensors"
        )
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, name, tokenizer=None, official=None):
        """A frozen CLAP in eval mode, on the CPU. name is one of
        - "microsoft/msclap" (or "msclap-2023"), or the path of its checkpoint file; the tokenizer is GPT-2's
        - a folder written by save_pretrained
        - any CLAP of transformers, by name or folder: "laion/clap-htsat-unfused" (with a fused one, each clip is taken
          as one that fits its window, which is what encode_audio is given)

        tokenizer: an object, name or folder to use instead of the checkpoint's. official: overrides the config's.
        Raises ValueError when name is none of these or tensors are missing.
        """
        if name in ("microsoft/msclap", "msclap-2023"):
            name = hf_hub_download("microsoft/msclap", "CLAP_weights_2023.pth")
        if Path(name).is_file():
            config, state, default = (
                CLAPConfig(text={"vocab_size": 50257}),
                msclap_state(name),
                "gpt2",
            )
        else:
            config, state, default = *read_folder(str(name)), name
        if tokenizer is None or isinstance(tokenizer, (str, os.PathLike)):
            tokenizer = AutoTokenizer.from_pretrained(tokenizer or default)
        if official is not None:
            config.official = official
        clap = cls(config, tokenizer)
        if config.kind == "laion":
            state.setdefault(
                "mel_matrix", clap.mel_matrix
            )  # transformers' checkpoints do not hold it
        missing = sorted(clap.state_dict().keys() - state.keys())
        if missing:
            raise ValueError(
                f"{name} lacks {len(missing)} of CLAP's tensors: {', '.join(missing[:5])} ..."
            )
        clap.load_state_dict(state, strict=False)  # msclap's classifier heads are left out
        return clap.freeze()


def check_audio(config, audio):
    """HTSAT folds the spectrogram, n_mels x frames, into a square of spec_size; says what to change when it cannot."""
    fold, rest = divmod(audio.spec_size, audio.num_mel_bins)
    frames = round(config.sample_rate * config.seconds) // config.hop + 1
    stages = len(audio.depths)
    stride = audio.patch_stride if isinstance(audio.patch_stride, int) else audio.patch_stride[0]
    grid, odd = divmod(audio.spec_size, stride * 2 ** (stages - 1))
    if rest:
        raise ValueError(
            f"spec_size {audio.spec_size} must be a multiple of num_mel_bins {audio.num_mel_bins}"
        )
    if frames > fold * audio.spec_size:
        raise ValueError(
            f"{config.seconds:g} s make {frames} frames and HTSAT takes {fold * audio.spec_size} at most: "
            "raise hop or spec_size"
        )
    if len(audio.num_attention_heads) != stages:
        raise ValueError(
            f"{stages} depths but {len(audio.num_attention_heads)} num_attention_heads"
        )
    if odd or grid < audio.window_size or grid % fold:
        raise ValueError(
            f"the last of {stages} stages sees a grid of {grid} patches: it must be whole, a multiple of "
            f"{fold} and at least window_size {audio.window_size}"
        )


def read_folder(name):
    """(config, state dict) of a folder or hub name: ours, or transformers' CLAP."""
    try:
        local = Path(name)
        get = (
            (lambda file: local / file)
            if local.is_dir()
            else (lambda file: hf_hub_download(name, file))
        )
        config = json.loads(Path(get("config.json")).read_text())
        if "kind" in config:
            return CLAPConfig(**config), load_file(get("model.safetensors"))
        if config.get("model_type") != "clap":
            raise ValueError(
                f"its config.json says model_type {config.get('model_type')!r}, not 'clap'"
            )
        extractor = ClapFeatureExtractor.from_pretrained(name)
        model = ClapModel.from_pretrained(name, dtype=torch.float32)
    except (OSError, ValueError) as e:
        raise ValueError(
            f"cannot read a CLAP from {name!r}, which should be a checkpoint file, a folder written by "
            f"save_pretrained, or a CLAP of transformers: {e}"
        ) from e
    c = model.config
    shared = {"projection_dim": c.projection_dim, "projection_hidden_act": c.projection_hidden_act}
    config = CLAPConfig(
        kind="laion",
        dim=c.projection_dim,
        text={**c.text_config.to_diff_dict(), **shared},
        audio={**c.audio_config.to_diff_dict(), **shared},
        sample_rate=extractor.sampling_rate,
        seconds=extractor.max_length_s,
        n_fft=extractor.fft_window_size,
        hop=extractor.hop_length,
        fmin=extractor.frequency_min,
        fmax=extractor.frequency_max,
        # the extractor's choice: torchaudio's filters for a fused checkpoint, librosa's otherwise
        mel_scale="htk" if c.audio_config.enable_fusion else "slaney",
    )
    return config, {k: v for k, v in model.state_dict().items() if not k.startswith("logit_scale")}


def msclap_state(path):
    """The tensors of an msclap 2023 checkpoint under our names (facts, section 3)."""
    rename = [
        ("caption_encoder.base.", "text_model."),
        ("caption_encoder.projection.", "text_projection."),
        ("audio_encoder.projection.", "audio_projection."),
        ("audio_encoder.base.htsat.logmel_extractor.melW", "mel_matrix"),
        ("audio_encoder.base.htsat.", "audio_model.audio_encoder."),
        (".bn0.", ".batch_norm."),
        (".norm1.", ".layernorm_before."),
        (".norm2.", ".layernorm_after."),
        (".mlp.fc1.", ".intermediate.dense."),
        (".mlp.fc2.", ".output.dense."),
        (".attn.proj.", ".attention.output.dense."),
        (".attn.rel", ".attention.self.rel"),
    ]
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)["model"]
    except Exception as e:
        raise ValueError(
            f"{path} is no msclap checkpoint, a dict with tensors under 'model': {e!r}"
        ) from e
    state = {}
    for key, tensor in saved.items():
        for old, new in rename:
            key = key.replace(old, new)
        if ".attn.qkv." in key:
            for part, t in zip(("query", "key", "value"), tensor.chunk(3)):
                state[key.replace(".attn.qkv.", f".attention.self.{part}.")] = t
        else:
            state[key] = tensor
    return state


def load_clap(name):
    """CLAP.from_pretrained(name), or what "package.module:factory" returns when called: your own pair of encoders.

    Such a pair needs encode_text(list of N texts) -> (N, dim) and encode_audio((N, samples)) -> (N, dim), both unit
    rows, and dim, sample_rate (Hz) and seconds. Raises TypeError with the list of what it lacks.
    """
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", str(name)):
        return CLAP.from_pretrained(name)
    module, factory = name.split(":")
    clap = getattr(importlib.import_module(module), factory)()
    lacking = [
        a
        for a in ("encode_text", "encode_audio", "dim", "sample_rate", "seconds")
        if not hasattr(clap, a)
    ]
    if lacking:
        raise TypeError(f"what {name} returned is no encoder pair: it lacks {', '.join(lacking)}")
    return clap


def encode_file(clap, file, crop="center", generator=None):
    """One audio file -> (dim,) unit vector, by any encoder pair; crop as load_audio's.

    "windows" gives the mean of the windows' unit vectors, made unit again: for long audio. Raises AudioError.
    """
    waves = load_audio(file, clap.sample_rate, clap.seconds, crop, generator)
    return F.normalize(clap.encode_audio(waves.reshape(-1, waves.shape[-1])).mean(0), dim=-1)
