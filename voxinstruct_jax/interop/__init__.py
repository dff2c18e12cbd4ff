"""Weights of other programs to our modules and back; the one place that knows their files and key names."""
