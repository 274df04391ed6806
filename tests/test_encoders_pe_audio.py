"""encoders/pe_audio.py against the forward of transformers' PeAudioModel, with random weights."""

import json

import pytest
import soundfile as sf
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    PeAudioConfig,
    PeAudioFeatureExtractor,
    PeAudioFrameLevelModel,
    PeAudioModel,
    PeAudioProcessor,
    PeAudioVideoConfig,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from clap import CLAP, encode_file, load_clap
from disk import DataError, write_tensors
from encoders.checks import ready
from encoders.pe_audio import PEAudio
from scoring.encoders import text_encoder

RATE, HOP = 2000, 60  # Hz, samples of one frame
TEXTS = ["a dog barks", "rain", "", "cars pass on a busy road while a man gives a speech", "music"]
TEXT = dict(
    model_type="modernbert",
    vocab_size=320,
    hidden_size=24,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    cls_token_id=1,
    sep_token_id=2,
    max_position_embeddings=600,
)
AUDIO = dict(
    dac_config=dict(
        encoder_hidden_size=4, downsampling_ratios=[3, 4, 5], codebook_dim=8, hidden_size=16
    ),
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    head_dim=16,
)


def tokenizer():
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    marks = ["[PAD]", "[CLS]", "[SEP]"]
    letters = pre_tokenizers.ByteLevel.alphabet()
    how = dict(special_tokens=marks, initial_alphabet=letters, show_progress=False)
    tok.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=320, **how))
    ends = [(mark, tok.token_to_id(mark)) for mark in marks[1:]]
    tok.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = dict(pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    return PreTrainedTokenizerFast(tokenizer_object=tok, **names)


def random(kind=PeAudioModel):
    """Weights so large that different inputs give different outputs."""
    torch.manual_seed(0)
    model = kind(PeAudioConfig(text_config=TEXT, audio_config=AUDIO)).eval()
    for name, p in model.named_parameters():
        if p.ndim > 1 and "embedding" not in name:
            p.data.normal_(0, 1.5 * p[0].numel() ** -0.5)
    model.text_model.embeddings.tok_embeddings.weight.data.normal_()
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(a checkpoint's folder, what transformers makes of it)."""
    folder, model = tmp_path_factory.mktemp("pe"), random()
    extractor = PeAudioFeatureExtractor(sampling_rate=RATE, hop_length=HOP)
    model.save_pretrained(folder)
    tok = tokenizer()
    PeAudioProcessor(extractor, tok).save_pretrained(folder)
    return folder, model, extractor, tok


@pytest.fixture(scope="module")
def pair(saved):
    return load_clap(str(saved[0]))


def sounds():
    """Of 1,3 and 10 seconds: a tone, a noise, a noise that is no whole number of frames."""
    g, t = torch.Generator().manual_seed(0), torch.arange(RATE)
    tone = 0.5 * torch.sin(0.3 * t)
    waves = [tone, 0.1 * torch.randn(10 * RATE, generator=g), torch.randn(3011, generator=g) * 0.3]
    assert [len(wave) % HOP == 0 for wave in waves] == [False, False, False]
    return [wave.numpy() for wave in waves]


def forward(saved, texts, wave):
    """transformers' own forward of one sound and some texts, as unit rows."""
    _, model, extractor, tok = saved
    inputs = extractor(wave, sampling_rate=RATE, return_tensors="pt")
    tokens = tok(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        out = model(**tokens, **inputs)
    return F.normalize(out.text_audio_embeds, dim=-1), F.normalize(out.audio_embeds, dim=-1)[0]


def padded(waves):
    return torch.stack([F.pad(torch.tensor(w), (0, 10 * RATE - len(w))) for w in waves])


def test_both_towers_are_transformers_own(saved, pair, tmp_path):
    assert isinstance(pair, PEAudio) and (pair.dim, pair.sample_rate) == (24, RATE)
    waves = sounds()
    texts, audio = zip(*(forward(saved, TEXTS, wave) for wave in waves))
    theirs = torch.stack(audio)
    cosines = theirs @ theirs.T
    assert cosines[~torch.eye(3, dtype=bool)].max() < 0.99  # a comparison can fail
    assert (pair.encode_audio(padded(waves)) - theirs).abs().max() < 1e-5
    assert (pair.encode_text(TEXTS) - texts[0]).abs().max() < 1e-5
    for i, wave in enumerate(waves):  # through a file: nothing is repeated
        sf.write(tmp_path / "a.wav", wave, RATE, "FLOAT")
        assert (encode_file(pair, tmp_path / "a.wav") - theirs[i]).abs().max() < 1e-5
    assert ready(pair, "pe") is pair and not any(p.requires_grad for p in pair.parameters())


def test_a_row_does_not_depend_on_its_batch(pair):
    waves = padded(sounds())
    waves = torch.cat([waves, waves.flip(0), torch.zeros(1, 10 * RATE)])
    alone = torch.cat([pair.encode_audio(wave[None]) for wave in waves])
    for size in (1, 2, None):
        assert (pair.encode_audio(waves, batch_size=size) - alone).abs().max() < 1e-6
    assert (alone[0] - alone[1]).abs().max() > 1e-2 and alone[6].isfinite().all()
    alone = torch.cat([pair.encode_text([text]) for text in TEXTS * 2])
    for size in (1, 3, None):
        assert (pair.encode_text(TEXTS * 2, batch_size=size) - alone).abs().max() < 1e-5
    assert (alone[0] - alone[1]).abs().max() > 1e-2
    assert pair.encode_text([]).shape == (0, 24)
    assert pair.encode_audio(waves[:0]).shape == (0, 24)


def test_it_stays_frozen_and_transformers_says_as_much_as_before(saved):
    level = logging.get_verbosity()
    pair = load_clap(str(saved[0])).train()
    assert not any(module.training for module in pair.modules())
    assert logging.get_verbosity() == level


def test_text_matching_computes_in_float64(pair):
    encode = text_encoder("clap", lambda: pair)
    rows = encode(TEXTS)
    assert rows.dtype == torch.float64 and pair.encode_text(TEXTS).dtype == torch.float32
    alone = torch.cat([encode([text]) for text in TEXTS])
    torch.testing.assert_close(rows, alone, rtol=0, atol=1e-12)
    torch.testing.assert_close(rows.float(), pair.encode_text(TEXTS), rtol=0, atol=1e-5)


def test_what_it_cannot_take_is_named(pair):
    with pytest.raises(TypeError, match="a list of texts"):
        pair.encode_text("a dog")
    with pytest.raises(ValueError, match=r"\(N, 20000\), 10 s at 2000 Hz"):
        pair.encode_audio(torch.zeros(1, RATE))
    waves = padded(sounds())
    waves[1, 100] = float("nan")
    with pytest.raises(ValueError, match="audio row 1: NaN"):
        pair.encode_audio(waves)


def test_long_texts_keep_their_end_and_are_counted(saved, pair):
    words, before = "a dog barks " * 300, pair.cut
    (ids,) = pair.token_ids([words])
    theirs = saved[3](words, truncation=True, max_length=512).input_ids
    assert ids == theirs and len(ids) == 512 and pair.cut == before + 1
    (ids,) = pair.token_ids(["a [SEP] dog"])  # a control token in a text is text
    assert ids.count(2) == 1


def wrapped(saved, folder):
    """A checkpoint as PeAudioVideoModel.save_pretrained writes it, which itself needs timm."""
    path, model, *parts = saved
    video = dict(audio_video_config=dict(audio_config=AUDIO), text_config=TEXT)
    try:
        config = PeAudioVideoConfig(**video, architectures=["PeAudioVideoModel"])
    except ImportError as error:  # transformers 5.17
        pytest.skip(f"this transformers reads the video tower's config with timm alone: {error}")
    config.save_pretrained(folder)
    state = {
        key if key.startswith("text_model.") else f"audio_model.{key}": tensor
        for key, tensor in model.state_dict().items()
    }
    state["video_model.video_head.proj.weight"] = torch.zeros(2, 2)
    state["audio_video_encoder.norm.weight"] = torch.zeros(2)
    write_tensors(state, folder / "model.safetensors", {"format": "pt"})
    for part in parts:
        part.save_pretrained(folder)
    return state


def test_of_an_audio_video_checkpoint_audio_and_text_are_read(saved, pair, tmp_path):
    wrapped(saved, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "pe_audio_video"
    both = load_clap(str(tmp_path))
    waves = padded(sounds())
    assert (both.encode_audio(waves) - pair.encode_audio(waves)).abs().max() < 1e-6
    assert (both.encode_text(TEXTS) - pair.encode_text(TEXTS)).abs().max() < 1e-6


def test_an_incomplete_checkpoint_is_named(saved, tmp_path):
    state = wrapped(saved, tmp_path)
    del state["audio_model.audio_head.proj.weight"]
    write_tensors(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match="missing 1 of PE-AV's tensors: audio_head.proj.weight"):
        load_clap(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"half")
    with pytest.raises(DataError, match="^PE-AV .*; get it again, or name another$"):
        load_clap(str(tmp_path))


def test_a_checkpoint_of_frames_and_another_familys_are_refused(saved, tmp_path):
    random(PeAudioFrameLevelModel).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="a vector of every frame, and none of a whole clip"):
        load_clap(str(tmp_path))
    with pytest.raises(DataError, match="model_type 'pe_audio', not 'clap'"):
        CLAP.from_pretrained(str(saved[0]))
