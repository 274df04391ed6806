"""MATS-GPT2 (section 4.1): 90,000 updates of 128, on two A100s in the paper.

torchrun --nproc_per_node=2 train.py mats_gpt2
torchrun --nproc_per_node=2 train.py mats_gpt2 --skip_missing    without sources that are missing
torchrun --nproc_per_node=2 train.py mats_gpt2 --val=SHARDS      with the loss on held-out shards
"""

# The released training's weights, by the sources of shards/audiotia.py; WavCaps' 200 is divided by
# the size of its parts. RAVDESS and AudioSet's weak labels (Table S5) have no weight there: give
# them one to use them.
audiotia = {
    "openaqa": 300,
    "musicqa": 300,
    "openaqa_music": 180,
    "wavcaps_freesound": 130,
    "wavcaps_audioset": 54,
    "wavcaps_bbc": 15,
    "wavcaps_soundbible": 1,
    "cremad": 70,
    "macs": 50,
    "audioset_strong": 50,
    "fsd50k": 50,
    "vggsound": 50,
    "musiccaps": 50,
    "openaqa_captions": 50,
    "song_describer": 50,
    "clothoaqa": 50,
    "audiocaps": 40,
    "clotho": 40,
    "vocalsound": 20,
    "dcase2017": 20,
    "esc50": 20,
    "urbansound8k": 20,
    "tut2017": 20,
    "sesa": 20,
    "beijing_opera": 20,
    "gtzan": 20,
}
config = dict(
    out="out/mats_gpt2",
    train="data/audiotia-msclap",
    mixture=audiotia,
    llm="gpt2",
    llm_dtype="bfloat16",
    clap="microsoft/msclap",
    template="{audio}{instruction}",
    batch_size=128,
    micro_batch=64,
    steps=90_000,
    lr=5e-5,
    schedule="linear",
    warmup=2000,
    dtype="bfloat16",
    compile=True,
    workers=4,
)
