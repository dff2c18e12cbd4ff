"""From conditions to tokens: sampling, the autoregressive loop, iterative masked decoding."""
