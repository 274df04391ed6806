"""msclap's own package: the bench and tests/test_clap.py compare clap.py with it.

It is installed without its dependencies: it pins old versions of numpy and transformers. Stubs
stand in for torchaudio and librosa, which it imports and which neither comparison needs.
"""

import sys
from types import ModuleType, SimpleNamespace
from unittest.mock import patch

import numpy as np
from scipy import signal
from transformers import GPT2Config, GPT2Model

INSTALL = "pip install --no-deps msclap==1.3.4 torchlibrosa==0.1.0"


def msclap() -> tuple:
    """msclap's wrapper class, and its 2023 model with random weights in eval mode.

    Raises ImportError where it is not installed.
    """
    stubs = make_stubs()
    before = {name: sys.modules.get(name) for name in stubs}
    sys.modules.update(stubs)
    try:
        from msclap import CLAP
        from msclap.models import clap

        gpt2 = SimpleNamespace(from_pretrained=lambda _: GPT2Model(GPT2Config()))
        with patch.object(clap, "AutoModel", gpt2):
            model = clap.CLAP("HTSAT", 44100, 1024, 320, 64, 50, 8000, 527, 768, "gpt2", 768, 1024)
    finally:
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module
    return CLAP, model.eval()


def make_stubs() -> dict[str, ModuleType]:
    """Stand-ins for the parts of torchaudio and librosa that msclap imports, by name."""
    names = ("torchaudio", "torchaudio.transforms", "librosa", "librosa.filters", "librosa.util")
    stubs = {name: ModuleType(name) for name in names}
    stubs["torchaudio"].transforms = stubs["torchaudio.transforms"]
    stubs["librosa"].filters = filters = stubs["librosa.filters"]
    stubs["librosa"].util = util = stubs["librosa.util"]
    filters.mel, filters.get_window = random_mel, get_window
    util.pad_center = lambda window, size: window
    return stubs


def random_mel(n_fft: int, n_mels: int, **_) -> np.ndarray:
    return np.random.default_rng(0).random((n_mels, n_fft // 2 + 1)) ** 20


def get_window(name: str, n: int, fftbins: bool) -> np.ndarray:
    return signal.get_window(name, n, fftbins=fftbins)
