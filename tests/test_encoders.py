import copy

import pytest
import torch
from conftest import small_clap
from servers import KEY
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, CLIPTextConfig, CLIPTextModelWithProjection

from disk import DataError
from scoring.encoders import text_encoder

TEXTS = ["dog", "cat", "A cow calls near a river", "dog"]


@pytest.fixture(scope="module")
def folders(tokenizer, tmp_path_factory):
    """A random sentence encoder, and a random text tower of CLIP."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token, end = tokenizer.eos_token, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", end)]
    )
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=40,
    )
    clip = CLIPTextConfig(**sizes, projection_dim=8, eos_token_id=end, pad_token_id=end)
    models = {
        "sentences": BertModel(BertConfig(**sizes)),
        "clip": CLIPTextModelWithProjection(clip),
    }
    for name, model in models.items():
        path = tmp_path_factory.mktemp(name)
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        models[name] = str(path)
    return models


def test_clap_is_loaded_when_it_is_first_needed():
    class Tower:
        def encode_text(self, texts):
            return torch.eye(len(texts))

    loaded = []

    def clap():
        loaded.append(1)
        return Tower()

    encode = text_encoder("clap", clap)
    assert not loaded and encode(["a", "b"]).tolist() == [[1, 0], [0, 1]] and loaded


def test_an_endpoint_gives_unit_rows(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.answer = lambda body, k: {
        "data": [
            {"index": i, "embedding": [3 * len(text), 4 * len(text)]}
            for i, text in enumerate(body["input"])
        ]
    }
    rows = text_encoder(f"{server.url}#small", None)(["a", "bb"])
    want = torch.tensor([[0.6, 0.8], [0.6, 0.8]], dtype=torch.float64)
    torch.testing.assert_close(rows, want)
    text_encoder(server.url, None)(["a"])
    models = [body["model"] for _, _, body in server.requests]
    assert models == ["small", "text-embedding-ada-002"]


def test_claps_own_tower_computes_in_float64_and_stays_as_it_was(tokenizer):
    clap = small_clap(tokenizer)
    encode = text_encoder("clap", lambda: clap)
    rows = encode(TEXTS)
    alone = torch.cat([encode([text]) for text in TEXTS])
    torch.testing.assert_close(rows, alone, rtol=0, atol=1e-14)
    assert rows.dtype == torch.float64 and clap.encode_text(TEXTS).dtype == torch.float32
    torch.testing.assert_close(rows.float(), clap.encode_text(TEXTS), rtol=0, atol=1e-6)


def test_a_model_that_cannot_be_loaded_is_named_in_one_line(tmp_path):
    for name in (str(tmp_path / "nowhere"), str(tmp_path)):  # missing; without a model
        with pytest.raises(DataError, match="the text encoder .*; get it first") as e:
            text_encoder(name, None)
        assert "\n" not in str(e.value) and name in str(e.value)


def test_control_tokens_in_an_answer_are_text(folders, tokenizer):
    """An end token in the middle would be read as CLIP's end: all behind it would not count."""
    end = tokenizer.eos_token
    encode = text_encoder(folders["clip"], None)
    one, other = encode([f"a dog {end} barks", f"a dog {end} and a horse near a river"])
    assert (one - other).abs().max() > 1e-6


def test_lone_surrogates_are_taken_by_all(folders, tokenizer):
    odd = ["a dog \ud83d", "a dog ?"]
    clap = small_clap(tokenizer)
    for encode in (text_encoder(folders["clip"], None), text_encoder("clap", lambda: clap)):
        rows = encode(odd)
        torch.testing.assert_close(rows[0], rows[1])


@pytest.mark.parametrize("name, width", [("sentences", 16), ("clip", 8)])
def test_a_text_does_not_change_with_the_others_of_its_batch(folders, name, width):
    encode = text_encoder(folders[name], None)
    rows = encode(TEXTS)
    assert rows.shape == (4, width) and not rows.requires_grad
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(4, dtype=torch.float64))
    same = dict(rtol=0, atol=1e-14)  # some hundred roundings of float64
    torch.testing.assert_close(rows, torch.cat([encode([text]) for text in TEXTS]), **same)
    torch.testing.assert_close(rows, encode(TEXTS, batch=1), **same)
    assert not torch.allclose(rows[0], rows[2])
