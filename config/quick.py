"""A first run on real text, on a laptop or a GPU: fetched, built and embedded first.

torchrun train.py quick
"""

config = dict(
    out="out/quick",
    build="shards.quick",
    train="data/quick/train",
    val="data/quick/val",
    # the weights of the paper's mixture, as far as they are here
    mixture={
        "audiocaps": 40,
        "clotho": 40,
        "clothoaqa": 50,
        "macs": 50,
        "musiccaps": 50,
        "song_describer": 50,
        "fsd50k": 50,
        "vggsound": 50,
        "esc50": 20,
    },
    llm="HuggingFaceTB/SmolLM2-135M-Instruct",
    clap="microsoft/msclap",
    template="chat",
    prefix=8,
    tokens=8,
    width=512,
    layers=2,
    variance=0.002,
    batch_size=32,
    micro_batch=32,
    steps=4000,
    lr=3e-4,
    schedule="cosine",
    warmup=100,
    log_every=20,
    val_every=500,
    save_every=500,
)
