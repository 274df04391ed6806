"""A first run on real text, on a laptop or a GPU: fetched, built and embedded first.

torchrun train.py quick
"""

config = dict(
    out="out/quick",
    build="shards.quick",
    train="data/quick/train",
    val="data/quick/val",
    # the weights of the paper's mixture; music's long captions have less
    mixture={
        "audiocaps": 40,
        "clotho": 40,
        "clothoaqa": 50,
        "macs": 50,
        "musiccaps": 20,
        "song_describer": 10,
        "fsd50k": 50,
        "vggsound": 50,
        "esc50": 20,
    },
    llm="HuggingFaceTB/SmolLM2-135M-Instruct",
    clap="microsoft/msclap",
    template="{audio}\n{instruction}",
    prefix=8,
    tokens=8,
    width=512,
    layers=1,
    variance=0.0008,  # a cosine of 0.74 in 1024 dimensions: the paper's 0.015 leaves 0.25
    batch_size=16,
    micro_batch=16,
    steps=4000,
    lr=2e-3,
    schedule="cosine",
    warmup=100,
    log_every=20,
    val_every=500,
    save_every=500,
)
