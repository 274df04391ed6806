"""Encoder pairs that clap.load_clap finds by a checkpoint's config.json, beside clap.CLAP."""
