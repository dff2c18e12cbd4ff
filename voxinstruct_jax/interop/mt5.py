"""mT5 encoders of Hugging Face: their keys, and the encoder alone as the original runs it.

Read `load_mt5`; `mt5_weights` is the table of keys, which the VoxInstruct release shares with adapters added.
"""

import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from voxinstruct_jax.config import InputError, from_dict
from voxinstruct_jax.interop.keys import (
    Weight,
    check_depth,
    export_tensors,
    heads_in,
    heads_out,
    import_module,
    merge_ties,
    same,
    settings_of,
    transposed,
)
from voxinstruct_jax.interop.tensors import read_folder, write_safetensors
from voxinstruct_jax.text.encoder import TextEncoder, TextEncoderConfig

__all__ = ["MT5", "MT5_TIES", "export_mt5", "load_mt5", "mt5_config", "mt5_prefix", "mt5_weights"]

MT5_TIES = {"encoder.embed_tokens.weight": "shared.weight"}
"""The embedding has two names in the original; which of them a file holds depends on its format."""

FINAL_NORM = "encoder.final_layer_norm.weight"
UNUSED_PARTS = ("decoder.", "lm_head.")
"""Of a whole mT5, which also writes text."""

SIZES: dict[str, tuple[str, int | float]] = {
    "d_model": ("model_dim", 512),
    "num_layers": ("num_layers", 8),
    "num_heads": ("num_heads", 6),
    "d_kv": ("head_dim", 64),
    "d_ff": ("ffn_dim", 1024),
    "relative_attention_num_buckets": ("num_buckets", 32),
    "relative_attention_max_distance": ("max_distance", 128),
    "dropout_rate": ("dropout", 0.1),
}
"""The original's setting → ours, and the original's default."""

Ids = Int[Array | np.ndarray, "batch text"]
Mask = Int[Array | np.ndarray, "batch text"] | Bool[Array | np.ndarray, "batch text"]


class MT5:
    """A frozen encoder that takes ids and a mask, as the original does.

    Attributes:
        encoder: The module.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self._parts = nnx.split(encoder)

    def __call__(self, ids: Ids, mask: Mask) -> Float[Array, "batch text dim"]:
        """Encodes texts.

        Args:
            ids: Of the SentencePiece model, `</s>` at the end, 0 as padding.
            mask: 1 or True at real tokens; the others are not seen, and their own rows mean nothing.
        """
        return self.hidden_states(ids, mask)[-1]

    def hidden_states(self, ids: Ids, mask: Mask) -> tuple[Float[Array, "batch text dim"], ...]:
        """Returns the embeddings, what each block but the last gives, and the result (after the final norm)."""
        return _hidden_states(*self._parts, jnp.asarray(ids), jnp.asarray(mask) > 0)


@functools.partial(jax.jit, static_argnums=0)
def _hidden_states(graph: Any, state: Any, ids: Array, mask: Array) -> tuple[Array, ...]:
    encoder, observed = nnx.merge(graph, state), []
    # Not by the embedding's own lookup, which gives zero for padding: here id 0 has a row like any other, and padding
    # looks at real tokens, too, so that all rows equal the original's.
    rows = encoder.embedding.table[...][ids]
    seen = jnp.broadcast_to(mask[:, None], (*mask.shape, mask.shape[1]))
    last = encoder.encode(rows, seen, observed=observed)
    return (*observed, last)


def load_mt5(folder: str | os.PathLike[str]) -> MT5:
    """Loads the encoder of an mT5 (or T5 v1.1) folder in the style of Hugging Face.

    Args:
        folder: `config.json` and weights (safetensors or PyTorch), of the encoder alone or of the whole model.

    Raises:
        InputError: A file is missing or damaged, the model is of another kind, or its keys and shapes do not fit.
    """
    settings, tensors = read_folder(folder)
    source, prefix = str(folder), mt5_prefix(tensors)
    check_depth(tensors, source, num_layers=settings.get("num_layers"))
    with settings_of(source):
        config = mt5_config(settings, source)
    tensors = merge_ties(tensors, {prefix + tie: prefix + key for tie, key in MT5_TIES.items()}, source)
    unused = [key for key in tensors if key.startswith(tuple(prefix + part for part in UNUSED_PARTS))]
    weights = mt5_weights(config, prefix)
    encoder = import_module(
        lambda: TextEncoder(config, rngs=nnx.Rngs(0)), weights, tensors, source=source, unused=unused
    )
    return MT5(encoder)


def export_mt5(mt5: MT5, folder: str | os.PathLike[str]) -> None:
    """Writes a folder that Hugging Face's `MT5EncoderModel` reads: `config.json` and `model.safetensors`."""
    folder, config = Path(folder), mt5.encoder.config
    tensors = export_tensors(mt5.encoder, mt5_weights(config))
    write_safetensors(folder / "model.safetensors", tensors)
    named = {"architectures": ["MT5EncoderModel"], "model_type": "mt5", "feed_forward_proj": "gated-gelu"}
    sizes = {theirs: getattr(config, ours) for theirs, (ours, _) in SIZES.items()}
    settings = {**named, "vocab_size": config.channel_sizes[0], "layer_norm_epsilon": 1e-6, **sizes}
    (folder / "config.json").write_text(json.dumps(settings, indent=1) + "\n")


def mt5_config(settings: Mapping[str, Any], source: str) -> TextEncoderConfig:
    """Reads sizes from the original's `config.json`; what is left out has the original's default.

    Raises:
        InputError: The model is no T5, or of a form that is not supported here.
        ConfigError: A size is of the wrong type or out of range.
    """
    wanted = {"model_type": ("mt5", "t5"), "feed_forward_proj": ("gated-gelu",), "layer_norm_epsilon": (1e-6,)}
    for name, values in wanted.items():
        if settings.get(name, values[0]) not in values:
            raise InputError(f"{source}: {name} is {settings[name]!r}; only mT5 and T5 v1.1 ({values[0]}) can be read")
    sizes = {ours: settings.get(theirs, default) for theirs, (ours, default) in SIZES.items()}
    return from_dict(TextEncoderConfig, {"channel_sizes": [settings.get("vocab_size", 250112)], **sizes}, path=source)


def mt5_prefix(tensors: Mapping[str, Any]) -> str:
    """Returns what stands before `encoder.` and `shared.` in the keys: nothing, or the names of a wrapper."""
    return next((key.removesuffix(FINAL_NORM) for key in tensors if key.endswith(FINAL_NORM)), "")


def mt5_weights(config: TextEncoderConfig, prefix: str = "", *, root: str = "") -> list[Weight]:
    """The table of keys.

    Args:
        config: With adapters, queries and values have the names that peft gives them.
        prefix: Before each foreign key (`mt5_prefix`).
        root: Before each path of ours.
    """
    theirs, heads = f"{prefix}encoder", config.num_heads
    bias = f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    weights = [
        same(f"{prefix}shared.weight", f"{root}embedding/table"),
        same(bias, f"{root}relative_bias"),
        same(f"{theirs}.final_layer_norm.weight", f"{root}norm/weight"),
    ]
    for number in range(config.num_layers):
        block, ours = f"{theirs}.block.{number}.layer", f"{root}blocks/{number}"
        attention, ffn = f"{block}.0.SelfAttention", f"{block}.1.DenseReluDense"
        weights += [
            *_adapted(f"{attention}.q", f"{ours}/attention/query", config),
            heads_out(f"{attention}.k.weight", f"{ours}/attention/key/kernel", heads),
            *_adapted(f"{attention}.v", f"{ours}/attention/value", config),
            heads_in(f"{attention}.o.weight", f"{ours}/attention/output/kernel", heads),
            same(f"{block}.0.layer_norm.weight", f"{ours}/attention_norm/weight"),
            transposed(f"{ffn}.wi_0.weight", f"{ours}/ffn/gate/kernel"),
            transposed(f"{ffn}.wi_1.weight", f"{ours}/ffn/up/kernel"),
            transposed(f"{ffn}.wo.weight", f"{ours}/ffn/output/kernel"),
            same(f"{block}.1.layer_norm.weight", f"{ours}/ffn_norm/weight"),
        ]
    return weights


def _adapted(key: str, path: str, config: TextEncoderConfig) -> list[Weight]:
    """A projection that may have an adapter."""
    if not config.lora_rank:
        return [heads_out(f"{key}.weight", f"{path}/base/kernel", config.num_heads)]
    return [
        heads_out(f"{key}.base_layer.weight", f"{path}/base/kernel", config.num_heads),
        transposed(f"{key}.lora_A.default.weight", f"{path}/down"),
        heads_out(f"{key}.lora_B.default.weight", f"{path}/up", config.num_heads),
    ]
