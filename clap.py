"""CLAP: text and audio as unit vectors in one space (section 3.1). Frozen but in the tiny world.

    clap = load_clap("microsoft/msclap")     # the paper's; or "laion/clap-htsat-unfused", a folder
    t = clap.encode_text(["a dog barks"])    # (1, 1024)
    a = encode_file(clap, "dog.wav")         # (1024,)

One class covers two kinds of checkpoint, both built from transformers' own towers:
- "msclap": GPT-2, read at its last token, and HTSAT; the paper uses Microsoft's 2023 checkpoint
- "laion": RoBERTa and HTSAT, any CLAP that transformers can load

PE-AV is in encoders/. Anything else with encode_text, encode_audio, dim, sample_rate and seconds
serves as well: load_clap("module:factory").
"""

import importlib
import json
import os
from dataclasses import asdict, dataclass, field, replace
from functools import wraps
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange
from huggingface_hub import hf_hub_download
from torch import Tensor
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

from audio import PADDINGS, load_audio
from disk import (
    DataError,
    is_code,
    is_path,
    read_json,
    read_tensors,
    reading,
    write_atomic,
    write_tensors,
)

# --- the model ---


@dataclass
class CLAPConfig:
    """The defaults are msclap's 2023 checkpoint; text and audio add to transformers' defaults."""

    kind: str = "msclap"  # or "laion"
    # of GPT2Config or ClapTextConfig; the size of the vocabulary is the tokenizer's
    text: dict = field(default_factory=dict)
    audio: dict = field(default_factory=dict)  # of ClapAudioConfig: 64 mel bins, spec_size 256
    dim: int = 1024  # of the shared space
    sample_rate: int = 44100  # Hz
    seconds: float = 7.0  # of audio that the tower sees at once
    n_fft: int = 1024  # samples, also the Hann window's length
    hop: int = 320  # samples
    padding: str = "tile"  # of clips shorter than that: a name in audio.PADDINGS
    fmin: float = 50.0  # Hz
    fmax: float = 14000.0  # Hz
    mel_scale: str = "slaney"  # or "htk": torchaudio's, LAION's fused checkpoints
    max_tokens: int = 77  # as both were trained; longer texts are cut, their end stays
    dropout: float = 0.5  # of msclap's projection, while training
    official: bool = False  # msclap's way to find the last token, which a "!" in the text moves


class Projection(nn.Module):
    """msclap's, (B, d_in) -> (B, dim): LayerNorm(e + dropout(W2 gelu(e))) with e = W1 x."""

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
    """The method in eval mode and without gradients, so that batch norm learns nothing from it.

    A caller's autocast does not reach it: `precision` decides its arithmetic.
    """

    @wraps(method)
    def run(self, *args, **kwargs):
        was_training = self.training
        if was_training:
            self.eval()
        try:
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                return method(self, *args, **kwargs)
        finally:
            if was_training:
                self.train()

    return run


def precision(clap, tower: str):
    """The arithmetic of a tower, "text" or "audio": bfloat16 where `faster` has chosen it."""
    return torch.autocast(clap.device.type, torch.bfloat16, enabled=tower in clap.fast_towers)


class CLAP(nn.Module):
    """Two towers and two projections. `CLAP.from_pretrained` gives a frozen one; `CLAP(config,
    tokenizer)` a fresh, trainable one, at any size:

        audio = dict(spec_size=64, patch_embeds_hidden_size=24, depths=[2, 2],
                     num_attention_heads=[2, 4], window_size=8)
        config = CLAPConfig(text=dict(n_embd=128, n_layer=2, n_head=4), audio=audio, dim=128,
                            sample_rate=16000, seconds=2, hop=512, fmax=8000)
        clap = CLAP(config, tokenizer).train()
        mels = clap.mel(waves)                                            # once: no parameters
        a = F.normalize(clap.audio_features(mels), dim=-1)                # (B, dim)
        t = F.normalize(clap.text_features(*clap.tokenize(texts)), dim=-1)
        logits, same = a @ t.T / 0.07, torch.arange(len(a))
        loss = (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2
        ...
        clap.freeze().save_pretrained("tiny_clap")

    Audio batch norm learns running statistics (momentum 0.1): encode_audio is reliable only after a
    few dozen training steps.

    Attributes: config, tokenizer, dim, sample_rate (Hz), seconds, samples (in one clip), padding,
    device, max_tokens, cut (texts so far that were longer than max_tokens), fast_towers (those that
    encode in bfloat16: see encoders.checks.faster).
    Raises ValueError if the sizes do not fit, TypeError if the tokenizer has no end token.
    """

    def __init__(self, config: CLAPConfig, tokenizer):
        super().__init__()
        config = replace(config, text={"vocab_size": len(tokenizer), **config.text})
        self.config, self.tokenizer, self.frozen, self.cut = config, tokenizer, False, 0
        self.dim, self.sample_rate, self.seconds = config.dim, config.sample_rate, config.seconds
        self.padding, self.max_tokens, self.fast_towers = config.padding, config.max_tokens, ()
        self.samples = round(config.sample_rate * config.seconds)
        check_padding(config.padding)
        audio = ClapAudioConfig(**{**config.audio, "projection_dim": config.dim})
        audio.hidden_size = audio.patch_embeds_hidden_size * 2 ** (len(audio.depths) - 1)
        check_audio(config, audio)
        self.audio_model = ClapAudioModel(audio)
        if config.kind == "msclap":
            self._build_msclap(audio)
        elif config.kind == "laion":
            self._build_laion(audio)
        else:
            raise ValueError(f"kind must be 'msclap' or 'laion', not {config.kind!r}")
        self.register_buffer("mel_matrix", mel_matrix(config, audio.num_mel_bins))
        self.register_buffer("window", torch.hann_window(config.n_fft), persistent=False)

    def _build_msclap(self, audio):
        config, end = self.config, self.tokenizer.eos_token
        if end is None:
            raise TypeError("a text is read at its end token: the tokenizer needs an eos_token")
        # as msclap writes it, space and all
        self.space, self.close, self.pad_id = " ", [self.tokenizer.eos_token_id], 0
        self.end = self.tokenizer(" " + end).input_ids
        text = GPT2Config(**{"bos_token_id": None, "eos_token_id": None, **config.text})
        self.text_model = GPT2Model(text)
        self.text_projection = Projection(text.n_embd, config.dim, config.dropout)
        self.audio_projection = Projection(audio.hidden_size, config.dim, config.dropout)

    def _build_laion(self, audio):
        config = self.config
        self.space, self.close, self.pad_id = "", [], config.text.get("pad_token_id", 1)
        self.end = self.tokenizer("").input_ids[-1:]
        text = ClapTextConfig(**{**config.text, "projection_dim": config.dim})
        self.text_model = ClapTextModel(text)
        self.text_projection = ClapProjectionLayer(text)
        self.audio_projection = ClapProjectionLayer(audio)

    @property
    def device(self):
        return self.mel_matrix.device

    def freeze(self) -> "CLAP":
        """Itself, without gradients, in eval mode for good: .train() no longer changes anything."""
        self.frozen = True
        return self.requires_grad_(False).eval()

    def train(self, mode=True):
        return super().train(mode and not self.frozen)

    # text

    def token_ids(self, texts: list[str]) -> list[list[int]]:
        """The ids of N texts, each at most max_tokens long and closed by the end token.

        A control token that is written in a text is plain text.
        """
        if isinstance(texts, str):
            raise TypeError("a list of texts is needed, not one string")
        if not texts:
            return []
        most = self.config.max_tokens
        keep = most - len(self.end)
        spaced = [text + self.space for text in texts]
        ids = self.tokenizer(spaced, verbose=False, split_special_tokens=True).input_ids
        ids = [row + self.close for row in ids]
        self.cut += sum(len(row) > most for row in ids)
        return [row if len(row) <= most else row[:keep] + self.end for row in ids]

    def collate(self, ids: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Ids (B, L), mask (B, L), on the device; L is the longest of the B lists."""
        length = torch.tensor([len(row) for row in ids])
        padded = torch.full((len(ids), int(length.max())), self.pad_id)
        mask = torch.arange(padded.shape[1]) < length[:, None]
        padded[mask] = torch.tensor([token for row in ids for token in row])
        return padded.to(self.device), mask.long().to(self.device)

    def tokenize(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Ids (B, L), mask (B, L) of B texts: the arguments of text_features."""
        return self.collate(self.token_ids(texts))

    def text_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, dim), with gradients, not normalised. ids (B, L), mask (B, L) is 1 at real tokens."""
        if self.config.kind == "laion":
            pooled = self.text_model(input_ids=ids, attention_mask=mask).pooler_output
            return self.text_projection(pooled)
        # causal attention: padding on the right cannot reach the last real token, so no mask
        hidden = self.text_model(input_ids=ids, use_cache=False).last_hidden_state  # (B, L, n_embd)
        real = ids != 0 if self.config.official else mask
        last = real.sum(1) - 1
        return self.text_projection(hidden[torch.arange(len(ids), device=ids.device), last])

    @encoding
    def encode_text(self, texts: list[str], batch_size: int | None = None) -> Tensor:
        """(N, dim) unit rows on the device, float32, or float64 where the CLAP is.

        A row does not depend on the other texts.
        """
        # 256 is 2.5 times slower on a CPU
        batch_size = batch_size or (16 if self.device.type == "cpu" else 256)
        ids = self.token_ids(texts)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # so that little is padded
        dtype = torch.promote_types(self.mel_matrix.dtype, torch.float32)
        out = torch.empty(len(ids), self.dim, dtype=dtype, device=self.device)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            with precision(self, "text"):
                features = self.text_features(*self.collate([ids[i] for i in rows]))
            out[rows] = F.normalize(features.to(dtype), dim=-1)
        return out

    # audio

    @torch.no_grad()
    def mel(self, wave: Tensor) -> Tensor:
        """(B, T, F) log-mel spectrogram in dB, T = samples // hop + 1, of waves (B, samples)."""
        c = self.config
        spectrum = torch.stft(wave, c.n_fft, c.hop, window=self.window, return_complex=True)
        power = torch.view_as_real(spectrum).square().sum(-1)  # (B, n_fft / 2 + 1, T)
        power = rearrange(power, "b f t -> b t f") @ self.mel_matrix
        return 10 * power.clamp(min=1e-10).log10()

    def audio_features(self, mel: Tensor) -> Tensor:
        """(B, dim), with gradients, not normalised, of the (B, T, F) that mel() returns."""
        # is_longer is for LAION's fused checkpoints alone: a clip that fits is not fused
        longer = torch.zeros(len(mel), 1, dtype=torch.bool, device=mel.device)
        image = rearrange(mel, "b t f -> b 1 t f")
        return self.audio_projection(self.audio_model(image, is_longer=longer).pooler_output)

    @encoding
    def encode_audio(self, waves: Tensor, batch_size: int | None = None) -> Tensor:
        """(N, dim) float32 unit rows on the device, of (N, samples) in [-1, 1] at sample_rate.

        Raises ValueError for another length (load_audio gives this one) and for NaN or infinity.
        """
        check_waves(self, waves)
        batch_size = batch_size or (4 if self.device.type == "cpu" else 64)
        out = torch.empty(len(waves), self.dim, device=self.device)
        for start in range(0, len(waves), batch_size):
            rows = slice(start, start + batch_size)
            mel = self.mel(waves[rows].to(self.device, torch.float32))
            with precision(self, "audio"):
                features = self.audio_features(mel)
            out[rows] = F.normalize(features.float(), dim=-1)
        check_finite(out)
        return out

    # files

    def save_pretrained(self, folder):
        """Writes config.json, model.safetensors and the tokenizer's files."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = json.dumps(asdict(self.config), indent=2) + "\n"
        write_atomic(folder / "config.json", config.encode())
        state = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        write_tensors(state, folder / "model.safetensors")
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, name, tokenizer=None, official: bool | None = None) -> "CLAP":
        """A frozen CLAP in eval mode, on the CPU. name is one of
        - "microsoft/msclap" (or "msclap-2023"), or its checkpoint file; the tokenizer is GPT-2's
        - a folder written by save_pretrained
        - any CLAP of transformers, by name or folder: "laion/clap-htsat-unfused". A fused one takes
          each clip as one that fits its window, as those of encode_audio do

        tokenizer: an object, name or folder to use instead of the checkpoint's. official: overrides
        the config's. Raises DataError if name is none of these or tensors are missing.
        """
        if name in MSCLAP:
            with reading(f"CLAP {name!r}", "it is downloaded once, and this needs the network"):
                name = hf_hub_download("microsoft/msclap", "CLAP_weights_2023.pth")
        if Path(name).is_file():
            config, state = CLAPConfig(text={"vocab_size": 50257}), msclap_state(name)
            default = "gpt2"
        else:
            config, state = read_folder(str(name))
            default = name
        if official is not None:
            config.official = official
        if tokenizer is None:
            tokenizer = default
        if isinstance(tokenizer, str | os.PathLike):
            with reading(f"CLAP's tokenizer {str(tokenizer)!r}", "get it again, or name another"):
                tokenizer = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
        fit = "its config.json does not fit: damaged, or of another version?"
        with reading(f"CLAP {str(name)!r}", fit):
            clap = cls(config, tokenizer)
        if config.kind == "laion":  # transformers' checkpoints have no mel matrix
            state.setdefault("mel_matrix", clap.mel_matrix)
        missing = sorted(clap.state_dict().keys() - state.keys())
        if missing:
            some = f"{len(missing)} of CLAP's tensors: {', '.join(missing[:5])} ..."
            raise DataError(f"{name}: missing {some}")
        with reading(f"CLAP {str(name)!r}", "its tensors do not fit its config.json"):
            clap.load_state_dict(state, strict=False)  # msclap's classifier heads are left out
        return clap.freeze()


def check_waves(clap, waves: Tensor) -> None:
    """Raises ValueError unless these are windows (N, samples)."""
    if waves.ndim != 2 or waves.shape[1] != clap.samples:
        raise ValueError(
            f"encode_audio takes (N, {clap.samples}), {clap.seconds:g} s at {clap.sample_rate} "
            f"Hz, not {tuple(waves.shape)}: windows_of fills up and crops"
        )


def check_finite(vectors: Tensor) -> None:
    """Raises ValueError that names the rows of NaN.

    NaN and infinity in a sound, and samples whose power overflows, all become NaN.
    """
    bad = (~vectors.isfinite().all(1)).nonzero()[:, 0].tolist()
    if bad:
        rows = ", ".join(map(str, bad))
        raise ValueError(f"audio row {rows}: NaN, infinite or much too large samples")


def mel_matrix(config, bins):
    """Mel filters (n_fft / 2 + 1, bins); Slaney's scale goes with Slaney's norm."""
    norm = "slaney" if config.mel_scale == "slaney" else None
    sizes = config.n_fft // 2 + 1, bins, config.fmin, config.fmax, config.sample_rate
    return torch.tensor(mel_filter_bank(*sizes, norm, config.mel_scale), dtype=torch.float32)


def check_audio(config, audio):
    """Raises ValueError, with the size to change, unless HTSAT can take the spectrogram.

    HTSAT folds it, frames x mel bins, into a square of spec_size.
    """
    size, bins = audio.spec_size, audio.num_mel_bins
    fold, rest = divmod(size, bins)
    if rest:
        raise ValueError(f"spec_size {size} must be a multiple of num_mel_bins {bins}")
    frames = round(config.sample_rate * config.seconds) // config.hop + 1
    if frames > fold * size:
        found = f"{config.seconds:g} s make {frames} frames"
        raise ValueError(f"{found} and HTSAT takes {fold * size} at most: raise hop or spec_size")
    stages, heads = len(audio.depths), len(audio.num_attention_heads)
    if heads != stages:
        raise ValueError(f"{stages} depths but {heads} num_attention_heads")
    stride = audio.patch_stride if isinstance(audio.patch_stride, int) else audio.patch_stride[0]
    grid, odd = divmod(size, stride * 2 ** (stages - 1))
    if odd or grid < audio.window_size or grid % fold:
        raise ValueError(
            f"the last of {stages} stages sees a grid of {grid} patches: it must be whole, a "
            f"multiple of {fold} and at least window_size {audio.window_size}"
        )


def check_padding(name) -> None:
    """Raises ValueError unless audio.py can fill up short clips so."""
    if name not in PADDINGS:
        raise ValueError(f"padding must be one of {', '.join(PADDINGS)}, not {name!r}")


# --- checkpoints ---


MSCLAP = ("microsoft/msclap", "msclap-2023")
KINDS = "a checkpoint file, a folder written by save_pretrained, or a CLAP or PE-AV of transformers"


def find_file(name, file):
    """The path of a file in a folder, or of one downloaded from a hub repository."""
    if is_path(name) and not Path(name).exists():
        raise FileNotFoundError("there is no such folder")
    return Path(name, file) if Path(name).is_dir() else Path(hf_hub_download(name, file))


def read_folder(name: str) -> tuple[CLAPConfig, dict]:
    """Config and state dict of a folder or hub name: ours, or transformers' CLAP."""
    with reading(f"cannot read a CLAP from {name!r}", f"expected {KINDS}"):
        config = read_json(find_file(name, "config.json"))
        if "kind" in config:
            return CLAPConfig(**config), read_tensors(find_file(name, "model.safetensors"))
        kind = config.get("model_type")
        if kind != "clap":
            raise ValueError(f"its config.json says model_type {kind!r}, not 'clap'")
        return read_transformers(name)


# ClapFeatureExtractor's words for audio.PADDINGS
THEIR_PADDING = {"repeatpad": "repeat", "repeat": "tile", "pad": "zero"}


def read_transformers(name):
    """Config and state dict of a CLAP of transformers."""
    extractor = ClapFeatureExtractor.from_pretrained(name)
    model = ClapModel.from_pretrained(name, dtype=torch.float32)
    theirs = model.config
    shared = {name: getattr(theirs, name) for name in ("projection_dim", "projection_hidden_act")}
    config = CLAPConfig(
        kind="laion",
        dim=theirs.projection_dim,
        text={**theirs.text_config.to_diff_dict(), **shared},
        audio={**theirs.audio_config.to_diff_dict(), **shared},
        sample_rate=extractor.sampling_rate,
        seconds=extractor.max_length_s,
        n_fft=extractor.fft_window_size,
        hop=extractor.hop_length,
        padding=THEIR_PADDING[extractor.padding],
        fmin=extractor.frequency_min,
        fmax=extractor.frequency_max,
        # the extractor's choice: torchaudio's filters for a fused checkpoint, librosa's otherwise
        mel_scale="htk" if theirs.audio_config.enable_fusion else "slaney",
    )
    state = model.state_dict()
    return config, {key: state[key] for key in state if not key.startswith("logit_scale")}


def msclap_state(path):
    """The tensors of an msclap 2023 checkpoint under our names."""
    renamed = [
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
        need = "a dict with tensors under 'model'"
        first = str(e).partition("\n")[0][:200]
        raise DataError(f"{path} is no msclap checkpoint, {need}: {first}; get it again") from e
    state = {}
    for key, tensor in saved.items():
        for theirs, ours in renamed:
            key = key.replace(theirs, ours)
        if ".attn.qkv." in key:
            for part, third in zip(("query", "key", "value"), tensor.chunk(3)):
                state[key.replace(".attn.qkv.", f".attention.self.{part}.")] = third
        else:
            state[key] = tensor
    return state


# --- any encoder pair ---


def model_type(name: str) -> str | None:
    """The model_type in a checkpoint's config.json; None for msclap's, and for folders of ours."""
    if name in MSCLAP or Path(name).is_file():
        return None
    with reading(f"cannot read a CLAP from {name!r}", f"expected {KINDS}"):
        return read_json(find_file(name, "config.json")).get("model_type")


def load_clap(name):
    """CLAP.from_pretrained(name), a PE-AV, or your own pair of encoders: "package.module:factory",
    called.

    Such a pair needs encode_text(list of N texts) -> (N, dim) and encode_audio((N, samples)) ->
    (N, dim), both unit rows, and dim, sample_rate (Hz) and seconds; optionally padding, a name in
    audio.PADDINGS (otherwise "tile"). Raises DataError where it cannot be imported, and where it
    lacks one of these.
    """
    if not is_code(str(name)):
        if model_type(str(name)) in ("pe_audio", "pe_audio_video"):
            from encoders.pe_audio import PEAudio

            return PEAudio.from_pretrained(name)
        return CLAP.from_pretrained(name)
    module, factory = name.split(":")
    with reading(f"--clap {name}", "expected package.module:factory that can be imported here"):
        make = getattr(importlib.import_module(module), factory)
    with reading(f"--clap {name}", "called without arguments, it should return an encoder pair"):
        clap = make()
    needed = ("encode_text", "encode_audio", "dim", "sample_rate", "seconds")
    missing = [name for name in needed if not hasattr(clap, name)]
    if missing:
        raise DataError(f"{name} returned no encoder pair: missing {', '.join(missing)}")
    if type(clap.dim) is not int or not clap.dim > 0:
        raise DataError(f"{name}: dim is {clap.dim!r}, expected a whole number above 0")
    for key in ("sample_rate", "seconds"):
        value = getattr(clap, key)
        if not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise DataError(f"{name}: {key} is {value!r}, expected a number above 0")
    with reading(f"--clap {name}", "its attribute tells how short clips are filled up"):
        check_padding(getattr(clap, "padding", "tile"))
    return clap


def windows_of(clap, file, crop: str = "center", generator=None) -> Tensor:
    """(W, samples) of a sound file, as this encoder pair takes them. W is 1 but for crop "windows".

    Raises AudioError.
    """
    padding = getattr(clap, "padding", "tile")
    wave = load_audio(file, clap.sample_rate, clap.seconds, crop, generator, padding=padding)
    return rearrange(wave, "... t -> (...) t")


def encode_file(clap, file, crop: str = "center", generator=None) -> Tensor:
    """The unit vector (dim,) of one audio file, by any encoder pair; crop as load_audio's.

    "windows" gives the mean of the windows' unit vectors, made unit again: for long audio. Raises
    AudioError.
    """
    vectors = clap.encode_audio(windows_of(clap, file, crop, generator))  # (W, dim)
    return F.normalize(vectors.mean(0), dim=-1)
