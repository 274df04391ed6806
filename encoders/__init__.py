"""Encoder pairs beside clap.CLAP, and the checks that every pair goes through."""
