"""Building blocks that text, audio and models share: attention, norms, rotary positions, linear maps, convolutions."""
