"""The tiny world on a laptop's CPU: `torchrun train.py && python eval.py`. shards/tiny.py makes what it needs."""
config = dict(
    out="out/tiny", build="shards.tiny", train="data/tiny/train", val="data/tiny/val",
    llm="data/tiny/llm", clap="data/tiny/clap", dim=128, template="{audio}\n{instruction}", max_answer=40,
    prefix=8, tokens=8, width=128, layers=3, heads=4, variance=0.03, memory=2000, clusters=40,
    batch_size=64, micro_batch=64, steps=560, lr=2e-3, schedule="cosine", warmup=40, lanes=4, workers=1,
    log_every=20, val_every=280, save_every=280,
)
