"""Waveforms, spectrograms, the neural codec and semantic units: everything between samples and tokens."""
