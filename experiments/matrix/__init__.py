"""Language models of many families, small and random: `python -m experiments.matrix`."""
