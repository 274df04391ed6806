"""msclap's own package, held against clap.py in tests/test_clap.py and in bench.py.

Installed without what it pins (old versions of numpy and transformers) and without torchaudio: stubs stand for the parts that it
imports and that neither needs.
"""

import sys
import types
from unittest.mock import patch

import numpy as np
from scipy.signal import get_window
from transformers import GPT2Config, GPT2Model

INSTALL = "pip install --no-deps msclap==1.3.4 torchlibrosa==0.1.0"


def msclap():
    """(its wrapper class, its 2023 model with random weights, in eval mode). Raises ImportError where it is not installed."""

    def stub(name, **attributes):
        module = types.ModuleType(name)
        module.__dict__.update(attributes)
        return module

    mel = lambda n_fft, n_mels, **_: np.random.default_rng(0).random((n_mels, n_fft // 2 + 1)) ** 20
    filters = stub(
        "librosa.filters",
        mel=mel,
        get_window=lambda name, n, fftbins: get_window(name, n, fftbins=fftbins),
    )
    util = stub("librosa.util", pad_center=lambda window, size: window)
    stubs = {
        "torchaudio.transforms": stub("torchaudio.transforms"),
        "librosa.filters": filters,
        "librosa.util": util,
    }
    stubs |= {
        "torchaudio": stub("torchaudio", transforms=stubs["torchaudio.transforms"]),
        "librosa": stub("librosa", filters=filters, util=util),
    }
    before = {name: sys.modules.get(name) for name in stubs}
    sys.modules.update(stubs)
    try:
        from msclap import CLAP as Wrapper
        from msclap.models import clap as module

        with patch.object(
            module,
            "AutoModel",
            types.SimpleNamespace(from_pretrained=lambda _: GPT2Model(GPT2Config())),
        ):
            model = module.CLAP(
                "HTSAT", 44100, 1024, 320, 64, 50, 8000, 527, 768, "gpt2", 768, 1024
            )
    finally:
        for name, module in before.items():
            sys.modules.pop(name) if module is None else sys.modules.update({name: module})
    return Wrapper, model.eval()
