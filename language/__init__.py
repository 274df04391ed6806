"""The language model: its prompt (prompt.py), and how it is loaded and trained (model.py)."""
