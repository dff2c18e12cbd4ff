"""Training: one loop for codec, AR and NAR. Start at `loop.train`, then `step`, `codec`, `ar`, `nar`."""
