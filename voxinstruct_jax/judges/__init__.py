"""Measures and judges of speech: what `data/` annotates by and `evaluation/` scores by."""
