"""Mimi's weights from transformers' folders and back."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from voxinstruct_jax.audio.mimi import DOWNSAMPLE, Mimi, MimiConfig, MimiTransformerConfig
from voxinstruct_jax.audio.seanet import SeanetConfig
from voxinstruct_jax.config import InputError, from_dict
from voxinstruct_jax.interop.keys import (
    Weight,
    check_depth,
    convolution,
    export_tensors,
    heads_in,
    heads_out,
    import_module,
    same,
    settings_of,
    transposed,
)
from voxinstruct_jax.interop.seanet import PAD_MODES, seanet_keys
from voxinstruct_jax.interop.tensors import read_folder, write_safetensors
from voxinstruct_jax.interop.weight_norm import norm_names

__all__ = ["export_mimi", "load_mimi", "mimi_keys"]

SEANET_SIZES = {
    "num_filters": "num_filters",
    "hidden_size": "latent_dim",
    "upsampling_ratios": "ratios",
    "kernel_size": "kernel_size",
    "last_kernel_size": "last_kernel_size",
    "residual_kernel_size": "residual_kernel_size",
    "num_residual_layers": "num_residual_layers",
    "dilation_growth_rate": "dilation_growth",
    "compress": "compress",
    "use_conv_shortcut": "shortcut_conv",
}
TRANSFORMER_SIZES = {
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "intermediate_size": "ffn_dim",
    "sliding_window": "window",
    "rope_theta": "rope_theta",
    "norm_eps": "norm_epsilon",
}
SIZES = {
    "sampling_rate": "sample_rate",
    "codebook_dim": "codebook_dim",
    "codebook_size": "codebook_size",
    "num_semantic_quantizers": "num_semantic_codebooks",
    "num_quantizers": "stack_size",
}
"""Transformers' setting → ours, in the three parts of the config; all have the same defaults."""

FORM = {
    "audio_channels": 1,
    "use_causal_conv": True,
    "trim_right_ratio": 1.0,
    "hidden_act": "gelu",
    "attention_bias": False,
    "rope_scaling": None,
}
"""What `Mimi` computes; transformers' defaults, so a setting that is not there has this value."""

USUAL_CODEBOOKS = 8
EPSILON = 1e-5
"""Least membership of a codebook's entry, by which its stored sum is divided."""


def load_mimi(folder: str | os.PathLike[str], *, dtype: DTypeLike = jnp.float32) -> Mimi:
    """Loads Mimi from a folder of transformers' `MimiModel`.

    Args:
        folder: `config.json` with `model.safetensors` or a PyTorch file.
        dtype: Of convolutions and matrix products.

    Raises:
        InputError: The folder is missing or damaged, of another form, or its weights do not fit; each key that is
            missing, left over or of another shape is named.
    """
    place = Path(folder)
    settings, tensors = read_folder(place)
    with settings_of(str(place)):
        config = _config(settings, place)
    normed, fold = norm_names(tensors)
    check_depth(
        tensors,
        str(place),
        num_hidden_layers=config.transformer.num_layers,
        num_residual_layers=config.seanet.num_residual_layers,
        num_quantizers=config.stack_size,
    )
    unused = [f"{key}.initialized" for key in _codebooks(config)]
    return import_module(
        lambda: Mimi(config, dtype=dtype, rngs=nnx.Rngs(0)),
        mimi_keys(config, normed=normed, rename=fold),
        tensors,
        source=str(place),
        unused=unused,
    )


def export_mimi(codec: Mimi, folder: str | os.PathLike[str]) -> None:
    """Writes a folder that transformers' `MimiModel` reads: `config.json` and `model.safetensors`.

    Loaded again it gives the same weights bit for bit. Each codebook's entries are stored as sums of one member.
    """
    folder, config = Path(folder), codec.config
    tensors = export_tensors(codec, mimi_keys(config))
    tensors |= {f"{key}.initialized": np.ones(1, np.float32) for key in _codebooks(config)}
    write_safetensors(folder / "model.safetensors", tensors)
    settings = {
        "architectures": ["MimiModel"],
        "model_type": "mimi",
        "frame_rate": config.frame_rate,
        "pad_mode": next(name for name, mode in PAD_MODES.items() if mode == config.seanet.pad_mode),
        "upsample_groups": config.seanet.latent_dim,
        "vector_quantization_hidden_dimension": config.codebook_dim,
        **FORM,
        **{theirs: getattr(config.seanet, ours) for theirs, ours in SEANET_SIZES.items()},
        **{theirs: getattr(config.transformer, ours) for theirs, ours in TRANSFORMER_SIZES.items()},
        **{theirs: getattr(config, ours) for theirs, ours in SIZES.items()},
    }
    (folder / "config.json").write_text(json.dumps(settings, indent=1) + "\n")


def mimi_keys(
    config: MimiConfig, *, normed: bool = False, rename: Callable[[str], str] = lambda key: key
) -> list[Weight]:
    """Returns the table of keys.

    Args:
        config: Sizes.
        normed: Whether convolutions are stored as direction and norm; the published file has them folded.
        rename: To a file's names of direction and norm.
    """
    table = [
        *seanet_keys(config.seanet, normed=normed),
        *_transformer(config.transformer, "encoder_transformer"),
        *_transformer(config.transformer, "decoder_transformer"),
        convolution("downsample.conv.weight", "downsample/kernel"),
        Weight("upsample", ("upsample.conv.weight",), _read_upsample, _write_upsample),
        *_quantizer("semantic", config.num_semantic_codebooks),
        *_quantizer("acoustic", config.stack_size - config.num_semantic_codebooks),
    ]
    return [
        dataclasses.replace(weight, keys=tuple(rename(key.replace(".convtr.", ".conv.")) for key in weight.keys))
        for weight in table
    ]


def _transformer(config: MimiTransformerConfig, name: str) -> Iterable[Weight]:
    for index in range(config.num_layers):
        theirs, ours = f"{name}.layers.{index}", f"{name}/blocks/{index}"
        yield heads_out(f"{theirs}.self_attn.q_proj.weight", f"{ours}/query/kernel", config.num_heads)
        yield heads_out(f"{theirs}.self_attn.k_proj.weight", f"{ours}/key/kernel", config.num_kv_heads)
        yield heads_out(f"{theirs}.self_attn.v_proj.weight", f"{ours}/value/kernel", config.num_kv_heads)
        yield heads_in(f"{theirs}.self_attn.o_proj.weight", f"{ours}/output/kernel", config.num_heads)
        yield same(f"{theirs}.self_attn_layer_scale.scale", f"{ours}/attention_scale")
        yield same(f"{theirs}.mlp_layer_scale.scale", f"{ours}/ffn_scale")
        yield transposed(f"{theirs}.mlp.fc1.weight", f"{ours}/expand/kernel")
        yield transposed(f"{theirs}.mlp.fc2.weight", f"{ours}/project/kernel")
        for part, norm in (("input_layernorm", "attention_norm"), ("post_attention_layernorm", "ffn_norm")):
            yield same(f"{theirs}.{part}.weight", f"{ours}/{norm}/scale")
            yield same(f"{theirs}.{part}.bias", f"{ours}/{norm}/bias")


def _quantizer(name: str, num_codebooks: int) -> Iterable[Weight]:
    """Each codebook is stored as the sum of its members and their number."""
    theirs = f"quantizer.{name}_residual_vector_quantizer"
    for part, ours in (("input_proj", "enter"), ("output_proj", "leave")):
        yield Weight(f"{name}/{ours}", (f"{theirs}.{part}.weight",), lambda a: a[..., 0].T, lambda a: (a.T[..., None],))
    books = [f"{theirs}.layers.{q}.codebook" for q in range(num_codebooks)]

    def read(*arrays: np.ndarray) -> np.ndarray:
        sums, members = np.stack(arrays[:num_codebooks]), np.stack(arrays[num_codebooks:])
        return sums / np.maximum(members, np.float32(EPSILON))[..., None]

    yield Weight(
        f"{name}/entries",
        (*(f"{book}.embed_sum" for book in books), *(f"{book}.cluster_usage" for book in books)),
        read,
        lambda entries: (*entries, *np.ones(entries.shape[:2], np.float32)),
    )


def _codebooks(config: MimiConfig) -> Iterable[str]:
    counts = {"semantic": config.num_semantic_codebooks, "acoustic": config.stack_size - config.num_semantic_codebooks}
    for name, count in counts.items():
        for q in range(count):
            yield f"quantizer.{name}_residual_vector_quantizer.layers.{q}.codebook"


def _read_upsample(weight: np.ndarray) -> np.ndarray:
    """PyTorch's (dim, 1, 2 strides) to (2, stride, dim), the taps of the frame before first."""
    return weight[:, 0].T.reshape(2, DOWNSAMPLE, -1)[::-1]


def _write_upsample(taps: np.ndarray) -> tuple[np.ndarray]:
    return (taps[::-1].reshape(2 * DOWNSAMPLE, -1).T[:, None],)


def _config(settings: Mapping[str, Any], place: Path) -> MimiConfig:
    usual = MimiConfig()
    dim = settings.get("hidden_size", usual.seanet.latent_dim)
    inner = settings.get("codebook_dim") or dim
    form = {**FORM, "upsample_groups": dim, "vector_quantization_hidden_dimension": inner}
    defaults = {"upsample_groups": 512, "vector_quantization_hidden_dimension": 256}
    other = [name for name, value in form.items() if settings.get(name, defaults.get(name, value)) != value]
    if inner == dim:
        other.append("codebook_dim")  # there would be no projections
    if settings.get("pad_mode", "constant") not in PAD_MODES:
        other.append("pad_mode")
    if other:
        raise InputError(f"{place}: only the form of kyutai/mimi is supported, this one has another {other[0]}")
    sizes = {ours: settings[theirs] for theirs, ours in SIZES.items() if theirs in settings}
    heads = settings.get("num_attention_heads", usual.transformer.num_heads)
    transformer = _chosen(usual.transformer, TRANSFORMER_SIZES, {"head_dim": dim // heads, **_present(settings)})
    seanet = _chosen(usual.seanet, SEANET_SIZES, settings)
    pad_mode = PAD_MODES[settings.get("pad_mode", "constant")]
    stack_size = sizes.get("stack_size", usual.stack_size)
    values = {
        **dataclasses.asdict(usual),
        **sizes,
        "codebook_dim": inner,
        "num_codebooks": min(USUAL_CODEBOOKS, stack_size),
        "transformer": transformer,
        "seanet": {**seanet, "pad_mode": pad_mode},
    }
    config = from_dict(MimiConfig, values)
    if settings.get("frame_rate") not in (None, config.frame_rate):
        raise InputError(f"{place}: frame_rate {settings['frame_rate']} does not follow from the ratios")
    return config


def _present(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _chosen(
    usual: SeanetConfig | MimiTransformerConfig, names: Mapping[str, str], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The usual values of a part, but for those that the settings give."""
    return {
        **dataclasses.asdict(usual),
        **{ours: settings[theirs] for theirs, ours in names.items() if theirs in settings},
    }
