"""The tiny world on a laptop's CPU, which shards/tiny/world.py makes first.

torchrun train.py && python eval.py
"""

config = dict(
    out="out/tiny",
    build="shards.tiny",
    train="data/tiny/train",
    val="data/tiny/val",
    llm="data/tiny/llm",
    clap="data/tiny/clap",
    dim=128,
    template="{audio}\n{instruction}",
    max_answer=40,
    prefix=8,
    tokens=8,
    width=128,
    layers=1,
    heads=4,
    lora_rank=16,
    lora_alpha=64,
    lora_dropout=0.0,
    lora_targets="q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
    variance=0.003,  # a cosine of 0.85 in 128 dimensions, where 0.015 would leave 0.58
    batch_size=32,
    micro_batch=32,
    steps=1200,
    lr=3e-3,
    schedule="cosine",
    warmup=40,
    lanes=2,
    workers=1,
    log_every=25,
    val_every=600,
    save_every=600,
)
