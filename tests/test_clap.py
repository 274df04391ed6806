"""clap.py against msclap's package, transformers' ClapModel, numpy and soundfile."""

import re
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    PreTrainedTokenizerFast,
)

from audio import load_audio
from clap import CLAP, CLAPConfig, encode_file, load_clap
from disk import DataError, read_tensors, write_tensors
from encoders.checks import probe, same_encoder
from experiments.bench import oracle

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
TEXTS = [
    "A dog barks",
    "rain",
    "",
    "Wind blows! Then a loud bang! And a car passes by",
    "footsteps on gravel, birds",
    "a man speaks while " + "a bell rings and " * 30 + "a train passes",
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small models gain nothing from two threads, and lose much where the other core is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def bpe():
    """A small byte-level BPE whose id 0 is "!", as GPT-2's is."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=320,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return tok


@pytest.fixture(scope="module")
def tok():
    tok = PreTrainedTokenizerFast(tokenizer_object=bpe(), eos_token="<|endoftext|>")
    assert tok.convert_tokens_to_ids("!") == 0 and tok.eos_token_id > 0
    return tok


def shake(model, seed=0):
    """Weights so large that different inputs give different outputs; batch norm as if trained."""
    g = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data.normal_(0, p[0].numel() ** -0.5 if p.ndim > 1 else 0.2, generator=g)
    for m in model.modules():
        if isinstance(m, (torch.nn.LayerNorm, torch.nn.BatchNorm2d)):
            m.weight.data += 1
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.uniform_(-40, -10, generator=g)
            m.running_var.uniform_(50, 400, generator=g)
    return model


def small(tok, **changes):
    config = dict(
        text=dict(n_embd=32, n_layer=2, n_head=2),
        dim=24,
        sample_rate=8000,
        seconds=1,
        n_fft=512,
        hop=256,
        fmax=4000,
        max_tokens=20,
        audio=dict(
            spec_size=32,
            num_mel_bins=32,
            patch_embeds_hidden_size=8,
            depths=[2, 2],
            num_attention_heads=[2, 4],
            window_size=4,
        ),
    )
    torch.manual_seed(0)
    return CLAP(CLAPConfig(**{**config, **changes}), tok)


@pytest.fixture
def clap(tok):
    return shake(small(tok)).freeze()


def sounds(n, samples):
    """(n, samples): silence, white noise, then ever higher tones with a little noise."""
    g, t = torch.Generator().manual_seed(0), torch.arange(samples)
    waves = [torch.zeros(samples), 0.1 * torch.randn(samples, generator=g)]
    waves += [
        0.5 * torch.sin(0.1 * 1.5**i * t) + 0.003 * torch.randn(samples, generator=g)
        for i in range(n - 2)
    ]
    return torch.stack(waves)


def differ(x, least=1e-2):
    """The rows of x are really different: a comparison of such rows can fail."""
    return all((x[i] - x[j]).abs().max() > least for i in range(len(x)) for j in range(i))


# --- parity ---


@pytest.fixture(scope="module")
def msclap_oracle():
    try:
        Wrapper, model = oracle.msclap()
    except ImportError as e:
        pytest.skip(f"msclap's package is the oracle: {oracle.INSTALL} ({e})")
    frozen = {
        n: p.clone() for n, p in model.named_parameters() if "extractor" in n
    }  # DFT and mel matrices
    shake(model)
    model.load_state_dict(frozen, strict=False)
    return Wrapper, model


@pytest.mark.slow
def test_msclap_parity(msclap_oracle, tok, tmp_path):
    Wrapper, msclap = msclap_oracle
    torch.save({"model": msclap.state_dict()}, tmp_path / "CLAP_weights_2023.pth")
    gpt2 = DATA / "gpt2_tokenizer"
    tok = AutoTokenizer.from_pretrained(gpt2) if gpt2.exists() else tok
    clap = CLAP.from_pretrained(tmp_path / "CLAP_weights_2023.pth", tokenizer=tok)
    assert (clap.dim, clap.sample_rate, clap.seconds, clap.samples) == (1024, 44100, 7, 308700)
    assert not any(p.requires_grad for p in clap.parameters())

    # text, prepared by msclap's own wrapper; it cannot take more than 77 tokens
    padded = (
        AutoTokenizer.from_pretrained(gpt2)
        if gpt2.exists()
        else PreTrainedTokenizerFast(tokenizer_object=bpe(), eos_token="<|endoftext|>")
    )
    padded.add_special_tokens({"pad_token": "!"})
    wrapper = Wrapper.__new__(Wrapper)
    wrapper.tokenizer, wrapper.use_cuda, wrapper.token_keys = (
        padded,
        False,
        ["input_ids", "attention_mask"],
    )
    wrapper.args = types.SimpleNamespace(text_model="gpt2", text_len=77)
    if not hasattr(padded, "encode_plus"):
        padded.encode_plus = lambda text, **kwargs: padded(text, **kwargs)
    texts = [t for t in TEXTS if len(clap.token_ids([t])[0]) <= 76]
    with torch.no_grad():
        theirs = F.normalize(msclap.caption_encoder(wrapper.preprocess_text(texts)), dim=-1)
    assert len(texts) >= 5 and differ(theirs)
    ours, marks = clap.encode_text(texts), torch.tensor(["!" in t for t in texts])
    assert (ours - theirs)[~marks].abs().max() < 1e-5
    assert (ours - theirs)[marks].abs().max() > 1e-2  # msclap counts "!" as padding, we do not
    clap.config.official = True
    assert (clap.encode_text(texts) - theirs).abs().max() < 1e-5

    # audio: synthetic, and real recordings where there are some
    waves = sounds(4, 308700)
    real = sorted((DATA / "esc10").glob("*/*.ogg"))[::200]
    waves = torch.cat([waves, *(load_audio(f, 44100, 7)[None] for f in real)])
    with torch.no_grad():
        theirs = F.normalize(msclap.audio_encoder(waves)[0], dim=-1)
    assert differ(theirs, 5e-3)
    assert (clap.encode_audio(waves, batch_size=4) - theirs).abs().max() < 1e-5


def laion(folder, fusion):
    """A small random ClapModel, its tokenizer and extractor, saved as transformers saves them."""
    t = bpe()
    t.add_special_tokens(["<s>", "<pad>", "</s>"])
    s, pad, end = (t.token_to_id(x) for x in ("<s>", "<pad>", "</s>"))
    t.post_processor = processors.RobertaProcessing(("</s>", end), ("<s>", s))
    tok = PreTrainedTokenizerFast(
        tokenizer_object=t,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_input_names=["input_ids", "attention_mask"],
    )
    text = dict(
        vocab_size=len(tok),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        pad_token_id=pad,
        max_position_embeddings=pad + 100,
    )
    audio = dict(
        spec_size=64,
        num_mel_bins=64,
        patch_embeds_hidden_size=8,
        depths=[2, 2],
        num_attention_heads=[2, 4],
        hidden_size=16,
        window_size=8,
        enable_fusion=fusion,
        fusion_type="aff_2d" if fusion else None,
    )
    model = shake(
        ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=24))
    ).eval()
    extractor = ClapFeatureExtractor(
        sampling_rate=16000,
        max_length_s=1,
        hop_length=256,
        frequency_max=8000,
        truncation="fusion" if fusion else "rand_trunc",
    )
    for part in (model, tok, extractor):
        part.save_pretrained(folder)
    return model, tok, extractor


@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad"])
def test_short_files_are_filled_up_as_the_checkpoint_says(tmp_path, padding):
    """Against ClapFeatureExtractor on the short wave, and ClapModel on what it makes of it."""
    model, _, extractor = laion(tmp_path, False)
    extractor.padding = padding
    extractor.save_pretrained(tmp_path)
    clap, wave = load_clap(str(tmp_path)), sounds(3, 6000)[2]
    sf.write(tmp_path / "short.wav", wave.numpy(), 16000, "FLOAT")
    mel = extractor(wave.numpy(), sampling_rate=16000, return_tensors="pt")["input_features"]
    with torch.no_grad():
        longer = torch.zeros(1, 1, dtype=bool)
        theirs = model.get_audio_features(input_features=mel, is_longer=longer).pooler_output[0]
    assert (encode_file(clap, tmp_path / "short.wav") - theirs).abs().max() < 1e-5
    clap.save_pretrained(tmp_path / "ours")
    ours = load_clap(str(tmp_path / "ours"))
    assert (encode_file(ours, tmp_path / "short.wav") - theirs).abs().max() < 1e-5
    clap.padding = "tile" if padding != "repeat" else "zero"  # the difference shows
    assert (encode_file(clap, tmp_path / "short.wav") - theirs).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("fusion", [False, True])
def test_laion_parity(fusion, tmp_path):
    model, tok, extractor = laion(tmp_path / "hf", fusion)
    clap = CLAP.from_pretrained(tmp_path / "hf")
    assert (clap.dim, clap.sample_rate, clap.seconds, clap.training) == (24, 16000, 1, False)
    waves = sounds(4, 16000)
    texts = TEXTS[:5]
    with torch.no_grad():
        text = model.get_text_features(
            **tok(texts, padding=True, return_tensors="pt")
        ).pooler_output
        mel = extractor(list(waves.numpy()), sampling_rate=16000, return_tensors="pt")[
            "input_features"
        ]
        # no clip is longer than the window; the extractor would call one of each batch "longer"
        audio = model.get_audio_features(
            input_features=mel, is_longer=torch.zeros(4, 1, dtype=bool)
        ).pooler_output
    assert differ(text) and differ(audio)
    assert (clap.encode_text(texts) - text).abs().max() < 1e-5
    assert (
        clap.mel(waves) - mel[:, 0]
    ).abs().max() < 2e-3  # dB; numpy's FFT is in double precision
    assert (clap.encode_audio(waves) - audio).abs().max() < 1e-5
    long = clap.token_ids([TEXTS[5]])[0]  # </s> stays
    assert len(long) == 77 and long[-1] == tok.eos_token_id and long[0] == tok.bos_token_id

    clap.mel_matrix.mul_(0.9)  # what was saved counts, not a fresh matrix
    clap.save_pretrained(tmp_path / "ours")
    again = CLAP.from_pretrained(tmp_path / "ours")
    assert torch.equal(again.encode_text(TEXTS), clap.encode_text(TEXTS))
    assert torch.equal(again.encode_audio(waves), clap.encode_audio(waves))


def test_mel_is_the_textbook_one(clap):
    """Against numpy: centred, reflected, periodic Hann, power, mel matrix, decibels."""
    wave = sounds(2, clap.samples)[1]
    n, hop = clap.config.n_fft, clap.config.hop
    padded = np.pad(wave.double().numpy(), n // 2, mode="reflect")
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)
    frames = [padded[i : i + n] * hann for i in range(0, len(wave) + 1, hop)]
    power = np.abs(np.fft.rfft(frames)) ** 2
    expected = 10 * np.log10(np.maximum(power @ clap.mel_matrix.double().numpy(), 1e-10))
    got = clap.mel(torch.stack([wave, torch.zeros_like(wave)]))
    assert got.shape == (2, clap.samples // hop + 1, 32)
    assert np.abs(got[0].numpy() - expected).max() < 1e-3
    assert (got[1] == -100).all()


# --- text ---


def alone(clap, text):
    """The vector of one text by hand: no padding, no batch, the hidden state at the last token."""
    ids = clap.tokenizer(text + " <|endoftext|>").input_ids
    if len(ids) > clap.config.max_tokens:
        ids = ids[: clap.config.max_tokens - 2] + clap.tokenizer(" <|endoftext|>").input_ids
    with torch.no_grad():
        hidden = clap.text_model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        return F.normalize(clap.text_projection(hidden), dim=-1)


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_text_does_not_depend_on_its_batch(clap, batch_size):
    got = clap.encode_text(TEXTS * 2, batch_size=batch_size)
    expected = torch.stack([alone(clap, t) for t in TEXTS * 2])
    assert differ(expected[:6])
    assert got.dtype == torch.float32 and not got.requires_grad
    assert (got - expected).abs().max() < 1e-6
    assert (got.norm(dim=1) - 1).abs().max() < 1e-6


def test_little_is_padded(clap, monkeypatch):
    """Neighbours in length share a batch, which is as wide as its longest text and no wider."""
    widths, text_features = [], clap.text_features
    monkeypatch.setattr(
        clap,
        "text_features",
        lambda ids, mask: widths.append(ids.shape) or text_features(ids, mask),
    )
    lengths = sorted(len(i) for i in clap.token_ids(TEXTS))
    clap.encode_text(TEXTS, batch_size=2)
    assert [tuple(w) for w in widths] == [(2, n) for n in lengths[1::2]] and len(
        set(lengths[1::2])
    ) > 1


def test_long_text_keeps_its_end(clap):
    end = clap.tokenizer(" <|endoftext|>").input_ids
    ids = clap.token_ids(TEXTS)
    assert max(map(len, ids)) == 20 and all(i[-2:] == end for i in ids)
    whole = clap.tokenizer(TEXTS[5] + " <|endoftext|>").input_ids
    assert len(whole) > 20 and ids[5] == whole[:18] + end


def test_exclamation_mark_moves_only_the_official_vector(clap):
    text = "rain! on! a roof"
    ids = clap.tokenizer(text + " <|endoftext|>").input_ids
    assert ids.count(0) == 2
    hidden = clap.text_model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    vectors = F.normalize(clap.text_projection(hidden), dim=-1)
    assert (clap.encode_text([text, TEXTS[5]])[0] - vectors[-1]).abs().max() < 1e-6
    clap.config.official = True
    assert (clap.encode_text([text, TEXTS[5]])[0] - vectors[-3]).abs().max() < 1e-6


def test_no_texts_and_one_string(clap):
    assert clap.encode_text([]).shape == (0, 24) and clap.encode_audio(
        torch.zeros(0, 8000)
    ).shape == (0, 24)
    with pytest.raises(TypeError, match="list of texts"):
        clap.encode_text("a dog")


# --- audio vectors ---


def test_audio_does_not_depend_on_its_batch(clap):
    waves = sounds(5, 8000)
    got = clap.encode_audio(waves, batch_size=2)
    one = torch.cat([F.normalize(clap.audio_features(clap.mel(w[None])), dim=-1) for w in waves])
    assert differ(one) and got.dtype == torch.float32 and not got.requires_grad
    assert (got - one).abs().max() < 1e-6 and (got.norm(dim=1) - 1).abs().max() < 1e-6


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_bad_rows_are_named(clap, value):
    waves = sounds(5, 8000)
    waves[3, 100] = value
    with pytest.raises(ValueError, match=r"audio row 3: .*NaN"):
        clap.encode_audio(waves, batch_size=2)


@pytest.mark.parametrize("shape", [(8000,), (2, 7999), (2, 1, 8000)])
def test_wrong_length_says_the_right_one(clap, shape):
    with pytest.raises(ValueError, match=r"\(N, 8000\), 1 s at 8000 Hz"):
        clap.encode_audio(torch.zeros(shape))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_agrees_with_cpu(clap):
    waves = sounds(3, 8000)
    text, audio = clap.encode_text(TEXTS), clap.encode_audio(waves)
    clap.cuda()
    assert clap.device.type == "cuda" and clap.encode_text(TEXTS).device.type == "cuda"
    assert (clap.encode_text(TEXTS).cpu() - text).abs().max() < 1e-3
    assert (clap.encode_audio(waves).cpu() - audio).abs().max() < 1e-3


def test_encode_file_averages_windows(clap, tmp_path):
    sf.write(tmp_path / "long.wav", sounds(6, 5000).flatten().numpy(), 8000, "FLOAT")
    windows = load_audio(tmp_path / "long.wav", 8000, 1, "windows")
    assert windows.shape == (4, 8000)
    mean = sum(clap.encode_audio(w[None])[0].double() for w in windows)
    got = encode_file(clap, tmp_path / "long.wav", "windows")
    assert got.shape == (24,) and (got - mean / mean.norm()).abs().max() < 1e-6
    center = clap.encode_audio(load_audio(tmp_path / "long.wav", 8000, 1)[None])[0]
    assert (encode_file(clap, tmp_path / "long.wav") - center).abs().max() < 1e-6 and (
        got - center
    ).abs().max() > 1e-4


# --- saved, frozen, trained ---


def test_round_trip_is_exact(clap, tmp_path):
    clap.mel_matrix.mul_(0.9)  # the checkpoint's matrix, not a fresh one
    clap.save_pretrained(tmp_path)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        f.name for f in tmp_path.iterdir()
    }
    assert not [f for f in tmp_path.iterdir() if f.suffix in (".bin", ".pt", ".pth", ".pkl")]
    again = CLAP.from_pretrained(str(tmp_path))
    assert again.config == clap.config
    for name, tensor in clap.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert torch.equal(again.encode_text(TEXTS), clap.encode_text(TEXTS))
    assert torch.equal(again.encode_audio(sounds(2, 8000)), clap.encode_audio(sounds(2, 8000)))
    assert CLAP.from_pretrained(tmp_path, official=True).config.official


def test_frozen_stays_in_eval_mode(clap, tmp_path):
    clap.save_pretrained(tmp_path)
    loaded = CLAP.from_pretrained(tmp_path)
    before = loaded.encode_text(TEXTS)
    torch.nn.Sequential(loaded).train()  # as a trainer would, through the parent
    assert not any(m.training for m in loaded.modules()) and not any(
        p.requires_grad for p in loaded.parameters()
    )
    with torch.no_grad():
        rain = loaded.tokenize(["rain"])
        assert torch.equal(loaded.text_features(*rain), loaded.text_features(*rain))
    assert torch.equal(loaded.encode_text(TEXTS), before)


def test_encoding_while_training_changes_nothing(tok):
    clap = small(tok).train()
    state = {k: v.clone() for k, v in clap.state_dict().items()}
    a, t = clap.encode_audio(sounds(3, 8000)), clap.encode_text(TEXTS)
    assert torch.equal(a, clap.encode_audio(sounds(3, 8000))) and torch.equal(
        t, clap.encode_text(TEXTS)
    )
    assert clap.training and all(torch.equal(v, state[k]) for k, v in clap.state_dict().items())


@pytest.mark.slow
def test_a_small_one_trains(tok):
    """The example of the docstring: gradients reach every parameter, and tones find their names."""
    clap = small(tok, dropout=0.0).train()
    names = ["a low hum", "a tone", "a whistle", "a hiss", "a bell", "silence"]
    waves = sounds(6, 8000)
    mels, same = clap.mel(waves), torch.arange(len(names))
    for step in range(40):
        a = F.normalize(clap.audio_features(mels), dim=-1)
        b = F.normalize(clap.text_features(*clap.tokenize(names)), dim=-1)
        logits = a @ b.T / 0.07
        loss = (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2
        clap.zero_grad()
        loss.backward()
        if step == 0:
            assert [
                n for n, p in clap.named_parameters() if p.grad is None or not p.grad.any()
            ] == []
        with torch.no_grad():
            for p in clap.parameters():
                p -= 0.03 * p.grad / (p.grad.norm() + 1e-6)
    assert loss.item() < 1
    assert (
        (clap.encode_audio(waves) @ clap.encode_text(names).T).argmax(1) == same
    ).float().mean() > 0.6


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(hop=100), "make 81 frames and HTSAT takes 32"),
        (
            dict(audio=dict(spec_size=48, num_mel_bins=32)),
            "spec_size 48 must be a multiple of num_mel_bins 32",
        ),
        (
            dict(audio=dict(spec_size=32, num_mel_bins=32, depths=[2, 2], num_attention_heads=[2])),
            "2 depths but 1",
        ),
        (
            dict(
                audio=dict(
                    spec_size=32,
                    num_mel_bins=32,
                    depths=[2, 2],
                    num_attention_heads=[2, 4],
                    window_size=8,
                )
            ),
            "at least window_size 8",
        ),
        (dict(kind="clip"), "'msclap' or 'laion', not 'clip'"),
    ],
)
def test_sizes_that_do_not_fit_are_explained(tok, changes, message):
    with pytest.raises(ValueError, match=message):
        small(tok, **changes)


def test_a_tokenizer_without_an_end_is_refused():
    with pytest.raises(TypeError, match="eos_token"):
        small(PreTrainedTokenizerFast(tokenizer_object=bpe()))


def test_what_is_no_clap_is_named(tok, tmp_path):
    for name in (str(tmp_path / "nowhere"), "no-such/model"):
        with pytest.raises(ValueError, match=f"cannot read a CLAP from '{name}'"):
            CLAP.from_pretrained(name)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="model_type 'gpt2', not 'clap'"):
        CLAP.from_pretrained(tmp_path)
    (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="broken.pth is no msclap checkpoint"):
        CLAP.from_pretrained(tmp_path / "broken.pth", tokenizer=tok)
    torch.save({"epoch": 1}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth is no msclap checkpoint"):
        CLAP.from_pretrained(tmp_path / "other.pth", tokenizer=tok)


def test_control_tokens_in_a_text_are_text(clap):
    """The end token that closes a text is the only one."""
    end = clap.tokenizer.eos_token
    for text in ("a dog barks", f"a dog {end} barks", end, ""):
        (ids,) = clap.token_ids([text])
        assert ids[-1] == clap.tokenizer.eos_token_id and ids.count(ids[-1]) == 1
    (plain,) = clap.token_ids(["a dog barks"])
    assert plain == clap.tokenizer(f"a dog barks {end}").input_ids  # msclap's own way


def test_texts_that_are_cut_are_counted(clap):
    most, before = clap.config.max_tokens, clap.cut
    texts = ["a dog", "rain " * (most + 5), "a dog " * 2 * most]
    assert [len(ids) <= most for ids in clap.token_ids(texts)] == [True] * 3
    assert clap.cut == before + 2


def test_a_probe_tells_encoders_apart(clap):
    again = probe(clap)
    assert same_encoder(again, probe(clap)) and len(again) == 48
    other = CLAP(clap.config, clap.tokenizer)
    assert not same_encoder(again, probe(other)) and not same_encoder(again, again[:-1])
    assert same_encoder(again, [x + 0.004 for x in again])  # bfloat16's rounding


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"<html>busy</html>"])
def test_a_damaged_clap_is_named(clap, tmp_path, name, content):
    clap.save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(str(tmp_path))) as error:
        CLAP.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_a_clap_that_is_nowhere_is_named(tmp_path):
    with pytest.raises(DataError, match="'../nowhere': there is no such folder"):
        CLAP.from_pretrained("../nowhere")
    (tmp_path / "weights.pth").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(DataError, match="weights.pth is no msclap checkpoint"):
        CLAP.from_pretrained(tmp_path / "weights.pth")


def test_missing_tensors_are_named(clap, tmp_path):
    clap.save_pretrained(tmp_path)
    state = read_tensors(tmp_path / "model.safetensors")
    del state["text_projection.linear2.weight"], state["mel_matrix"]
    write_tensors(state, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match="missing 2 of CLAP's tensors: mel_matrix, text_projection.linear2.weight"
    ):
        CLAP.from_pretrained(tmp_path)


MY_PAIR = """
class Pair:
    dim, sample_rate, seconds = 3, 16000, 2.0

    def encode_text(self, texts):
        return len(texts)

    def encode_audio(self, waves):
        return waves


class Half:
    dim = 3
    encode_text = 1


class Mirror(Pair):
    padding = "mirror"
"""


def test_your_own_pair(clap, tmp_path, monkeypatch):
    (tmp_path / "my_pair.py").write_text(MY_PAIR)
    monkeypatch.syspath_prepend(tmp_path)
    pair = load_clap("my_pair:Pair")
    assert pair.encode_text(["a", "b"]) == 2 and pair.sample_rate == 16000
    with pytest.raises(
        DataError, match="my_pair:Half returned .* missing encode_audio, sample_rate, seconds"
    ):
        load_clap("my_pair:Half")
    with pytest.raises(DataError, match="my_pair:Mirror: padding must be one of .*'mirror'"):
        load_clap("my_pair:Mirror")
    with pytest.raises(DataError, match="my_pair:Nothing: .*no attribute 'Nothing'.*factory"):
        load_clap("my_pair:Nothing")
    with pytest.raises(DataError, match="no_such_pair:Pair: No module"):
        load_clap("no_such_pair:Pair")
    clap.save_pretrained(tmp_path / "saved")
    assert torch.equal(
        load_clap(str(tmp_path / "saved")).encode_text(TEXTS), clap.encode_text(TEXTS)
    )
