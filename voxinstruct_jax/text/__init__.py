"""From an instruction to embeddings: tokenizers, pronunciation and the text encoder."""
