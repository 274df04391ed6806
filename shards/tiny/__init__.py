"""The tiny world: sounds, instruments, scenes, words, questions, and the models made of them."""

from pathlib import Path


def build(cfg) -> None:
    """Makes the world in the folder of a run's training shards, where it is missing (world.py)."""
    from shards.tiny import world

    world.build(Path(cfg.train).parent)
