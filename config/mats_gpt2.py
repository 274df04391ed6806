"""MATS-GPT2 (section 4.1): 90,000 updates of 128, lr 5e-5 linear after 2,000 of warm-up; two A100s in the paper.

    torchrun --nproc_per_node=2 train.py mats_gpt2 --train=data/audiotia --val=data/audiotia-val
"""
config = dict(
    out="out/mats_gpt2", train="data/audiotia", val="data/audiotia-val",
    llm="gpt2", llm_dtype="bfloat16", clap="microsoft/msclap", template="{audio}{instruction}",
    batch_size=128, micro_batch=64, steps=90_000, lr=5e-5, schedule="linear", warmup=2000,
    dtype="bfloat16", compile=True, workers=4,
)
