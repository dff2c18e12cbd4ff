"""Pure networks: the AR and NAR codec language models and the LLaMA blocks they share."""
