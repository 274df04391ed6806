"""The tiny world: sounds, instruments, scenes, words, questions, and the models made of them."""


def build(root) -> None:
    """Makes the world in `root`, where it is missing (world.py)."""
    from shards.tiny import world

    world.build(root)
