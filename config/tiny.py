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
    variance=0.015,
    memory=2000,
    clusters=40,
    batch_size=32,
    micro_batch=32,
    steps=900,
    lr=2e-3,
    schedule="cosine",
    warmup=40,
    lanes=2,
    workers=1,
    log_every=25,
    val_every=300,
    save_every=300,
)
