"""An encoder pair by hand, whose nearest label is known: it hears a few words and little else."""

import torch
import torch.nn.functional as F

TOPICS = ("dog", "fox", "cat", "rain", "thunder")


class Topics:
    """A text's vector counts TOPICS, and weakly its letters. `calls` are the lists it was given.

    It refuses a text with "!", and makes NaN of one with "?".
    """

    dim, sample_rate, seconds = len(TOPICS) + 26, 8000, 1.0

    def __init__(self):
        self.calls = []

    def encode_text(self, texts):
        self.calls.append(list(texts))
        if any("!" in text for text in texts):
            raise ValueError("no !")
        rows = torch.tensor([self.row(text.lower()) for text in texts])
        return F.normalize(rows, dim=-1)

    def row(self, text):
        if "?" in text:
            return [float("nan")] * self.dim
        letters = [text.count(chr(ord("a") + i)) for i in range(26)]
        return [20.0 * text.count(topic) for topic in TOPICS] + [1.0 * n for n in letters]

    def encode_audio(self, waves):
        return torch.eye(self.dim)[: len(waves)]


class Choosy(Topics):
    """It takes "quiet" and "distance" for a cat."""

    def row(self, text):
        return super().row(text.replace("quiet", "cat cat").replace("distance", "cat cat"))


class Tones(Topics):
    """It hears a tone of 500 Hz as the first topic, of 1,000 Hz as the second, and so on."""

    def encode_text(self, texts):
        return super().encode_text([text.replace("!", ".").replace("?", ".") for text in texts])

    def encode_audio(self, waves):
        peaks = torch.fft.rfft(waves).abs().argmax(1) / waves.shape[1] * self.sample_rate  # Hz
        heard = (peaks / 500 - 1).round().long().clamp(0, len(TOPICS) - 1)
        return super().encode_text([TOPICS[i] for i in heard])


def tones():
    return Tones()
