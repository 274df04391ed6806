"""The tiny world's tokenizer and losses."""

import math

import pytest
import torch

from shards.tiny.models import (
    ANSWERS_COUNT,
    Line,
    contrastive_loss,
    make_tokenizer,
    next_token_loss,
)


@pytest.fixture(scope="module")
def words():
    return make_tokenizer(["a dog barks", "dog bark, siren"])


def test_a_word_is_a_token_and_any_text_comes_back(words):
    assert words.tokenize("a dog barks") == ["a", "Ġdog", "Ġbarks"]
    assert len(words) == 1 + 256 + len({"Ġdog", "Ġbarks", "dog", "Ġbark", "Ġsiren"})
    for text in ("dog barks, a siren", "Zebras? über 7!", "dogs"):
        ids = words(text)["input_ids"]
        assert words.eos_token_id not in ids
        assert words.decode(ids) == text


class Guess(torch.nn.Module):
    """Logits by token and place, as a stand-in for a language model."""

    def __init__(self, vocabulary=7, width=9):
        super().__init__()
        self.table = torch.randn(vocabulary, width, vocabulary, generator=torch.manual_seed(0))

    def forward(self, input_ids):
        places = torch.arange(input_ids.shape[1])
        out = torch.nn.Module()
        out.logits = self.table[input_ids, places]
        return out


def test_answers_count_more_and_padding_nothing():
    lines = [Line([1, 2, 3, 4, 5, 6], 4), Line([2, 6, 1], 1)]
    model, total, weights = Guess(), 0.0, 0.0
    for ids, answer in lines:
        for i in range(1, len(ids)):
            chance = model.table[ids[i - 1], i - 1].softmax(0)[ids[i]].item()
            weight = ANSWERS_COUNT if i >= answer else 1.0
            total, weights = total - weight * math.log(chance), weights + weight
    assert math.isclose(next_token_loss(model, lines).item(), total / weights, rel_tol=1e-5)


def test_clips_with_the_same_text_are_all_right():
    logits = torch.tensor([[9.0, 9.0, 0.0], [9.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
    alike, different = ["rain", "rain", "dog"], ["rain", "wind", "dog"]
    assert contrastive_loss(logits, alike) == pytest.approx(contrastive_loss(logits, different))
    sure = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
    assert contrastive_loss(sure, different) < 0.01 < contrastive_loss(sure, alike)
