"""MATS-LLaMA (section 4.1): 90,000 updates of 96; the paper counts micro-steps.

torchrun --nproc_per_node=2 train.py mats_llama
"""

from config.mats_gpt2 import audiotia

config = dict(
    out="out/mats_llama",
    train="data/audiotia-msclap",
    mixture=audiotia,
    llm="lmsys/vicuna-7b-v1.5",
    llm_dtype="bfloat16",
    clap="microsoft/msclap",
    template="USER: <Speech>{audio}</Speech> {tag} {instruction}\nASSISTANT:",
    batch_size=96,
    micro_batch=12,
    steps=90_000,
    lr=3e-5,
    schedule="cosine",
    warmup=3000,
    dtype="bfloat16",
    compile=True,
    workers=4,
)
