"""Training: one loop for codec, AR and NAR. Start at `loop.train`, then `step`, `objectives`, `experiment`."""
