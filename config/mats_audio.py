"""MATS-Audio (section 4.1, B.2): MATS-LLaMA's configuration, supervised by audio instead of text.

    torchrun --nproc_per_node=2 train.py mats_audio --train=data/audioaia --val=data/audioaia-val
"""
from config.mats_llama import config as mats_llama

config = mats_llama | dict(out="out/mats_audio", train="data/audioaia", val="data/audioaia-val", supervision="audio")
