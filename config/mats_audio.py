"""MATS-Audio (section 4.1, B.2): MATS-LLaMA supervised by audio, on AudioAIA (Table S6).

torchrun --nproc_per_node=2 train.py mats_audio
"""

from config.mats_gpt2 import audiotia
from config.mats_llama import config as mats_llama

# of Table S5, not in S6
TEST_ONLY = {
    "cremad",
    "vocalsound",
    "esc50",
    "urbansound8k",
    "beijing_opera",
    "gtzan",
    "song_describer",
}
config = mats_llama | dict(
    out="out/mats_audio",
    train="data/audioaia-msclap",
    supervision="audio",
    mixture={name: weight for name, weight in audiotia.items() if name not in TEST_ONLY},
)
