"""The speed of every part: `python -m experiments.bench`. __main__.py lists the parts."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported, as in train.py
