"""Operations that training on a batch takes at least: what MFU counts. Recomputation and padding never count.

Source:
    Kaplan et al. 2020, section 2.1 (6 operations a weight and token), with attention counted by pairs of slots as in
    PaLM (Chowdhery et al. 2022), appendix B: 12 a layer, width and pair, one half of it where attention is causal.
"""

import dataclasses

import numpy as np

from voxinstruct_jax.models.llama import LlamaConfig
from voxinstruct_jax.text.encoder import TextEncoderConfig
from voxinstruct_jax.vocabulary import PackedBatch

__all__ = ["BatchFlops", "batch_flops", "block_weights", "language_model_flops", "text_block_weights"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchFlops:
    """Operations by what is counted in a batch."""

    a_slot: float
    """A real slot of the row that the blocks read: products with weights."""
    a_pair: float
    """A pair of slots of one clip: attention."""
    a_text_token: float
    """A real token of the text row: the encoder's products with weights."""
    a_text_pair: float
    """A pair of text tokens of one clip: the encoder's attention."""


def language_model_flops(
    backbone: LlamaConfig,
    text_encoder: TextEncoderConfig,
    head_size: int,
    *,
    causal: bool,
    further_weights: int = 0,
) -> BatchFlops:
    """Counts a model: 6 operations a trained weight and token, 4 a frozen one that gradients pass through to adapters.

    Args:
        backbone: The blocks.
        text_encoder: Frozen but for its adapters where it has some.
        head_size: Classes of the head that a slot is multiplied with.
        causal: Whether a slot sees earlier ones only.
        further_weights: Ahead of the blocks, that a slot is multiplied with.
    """
    text_width = text_encoder.num_heads * text_encoder.head_dim
    share = 0.5 if causal else 1.0
    passes = 4 if text_encoder.lora_rank else 6
    return BatchFlops(
        a_slot=6.0 * (backbone.num_layers * block_weights(backbone) + backbone.model_dim * head_size + further_weights),
        a_pair=12.0 * backbone.num_layers * backbone.num_heads * backbone.head_dim * share,
        a_text_token=float(passes * text_encoder.num_layers * text_block_weights(text_encoder)),
        a_text_pair=12.0 * text_encoder.num_layers * text_width,
    )


def block_weights(backbone: LlamaConfig) -> int:
    """Weights of a block that tokens are multiplied with."""
    heads = 2 * backbone.num_heads + 2 * backbone.num_kv_heads
    return backbone.model_dim * (backbone.head_dim * heads + 3 * backbone.ffn_dim)


def text_block_weights(encoder: TextEncoderConfig) -> int:
    """The same of the text encoder."""
    return encoder.model_dim * (4 * encoder.num_heads * encoder.head_dim + 3 * encoder.ffn_dim)


def batch_flops(flops: BatchFlops, batch: PackedBatch) -> float:
    """Operations of a train step on these rows."""
    slots, pairs = _count(np.asarray(batch.segment_ids))
    text, text_pairs = _count(np.asarray(batch.text_segment_ids))
    return slots * flops.a_slot + pairs * flops.a_pair + text * flops.a_text_token + text_pairs * flops.a_text_pair


def _count(segment_ids: np.ndarray) -> tuple[int, int]:
    """Real places, and pairs of places that share a segment."""
    places = pairs = 0
    for row in segment_ids:
        lengths = np.bincount(row)[1:]
        places += int(lengths.sum())
        pairs += int(np.square(lengths.astype(np.int64)).sum())
    return places, pairs
