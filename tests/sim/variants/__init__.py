"""Variants of the product's parts, each without one rule of the protocol; `sim/mutants.py` says which."""
