"""HuBERT's weights from Hugging Face folders and fairseq checkpoints and back; its k-means from joblib files.

Both layouts are one table of keys (`hubert_keys`), written with Hugging Face's names; fairseq's follow by renaming.
"""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from voxinstruct_jax.audio.hubert import Hubert, HubertConfig
from voxinstruct_jax.audio.semantic import FEATURE_RATE, SemanticUnits
from voxinstruct_jax.config import InputError, from_dict
from voxinstruct_jax.interop.keys import (
    Weight,
    check_depth,
    convolution,
    export_tensors,
    import_module,
    same,
    settings_of,
    transposed,
)
from voxinstruct_jax.interop.pytorch_files import read_pytorch
from voxinstruct_jax.interop.restricted_pickle import Placeholder
from voxinstruct_jax.interop.tensors import read_centroids, read_folder, read_settings, read_tensors, write_safetensors
from voxinstruct_jax.interop.weight_norm import DIRECTION, norm_names, normed_kernel

__all__ = ["export_hubert", "hubert_keys", "load_hubert", "load_kmeans"]

SIZES = {
    "hidden_size": "model_dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "ffn_dim",
    "conv_dim": "conv_dims",
    "conv_kernel": "conv_kernels",
    "conv_stride": "conv_strides",
    "num_conv_pos_embeddings": "position_kernel",
    "num_conv_pos_embedding_groups": "position_groups",
    "layer_norm_eps": "epsilon",
    "feat_extract_norm": "conv_norm",
    "conv_bias": "conv_bias",
    "do_stable_layer_norm": "norm_first",
}
"""Hugging Face's setting → ours."""

FORM = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "feat_proj_layer_norm": True,
    "conv_pos_batch_norm": False,
}
"""What `Hubert` computes; Hugging Face's defaults, so a setting that is not there has this value."""

UNUSED = frozenset({"final_proj.weight", "final_proj.bias", "label_embs_concat", "lm_head.weight", "lm_head.bias"})
"""Heads of pre-training (fairseq) and of speech recognition: behind the last hidden layer."""

HEAD_DIM = 64
"""Of HuBERT base; the number of heads does not show in the shapes."""

FAIRSEQ_NAMES = (
    (r"^(feature_extractor\.conv_layers\.\d+)\.conv\.", r"\1.0."),
    (r"^feature_projection\.layer_norm\.", "layer_norm."),
    (r"^feature_projection\.projection\.", "post_extract_proj."),
    (r"^encoder\.pos_conv_embed\.conv\.", "encoder.pos_conv.0."),
    (r"\.attention\.", ".self_attn."),
    (r"^(encoder\.layers\.\d+)\.layer_norm\.", r"\1.self_attn_layer_norm."),
    (r"\.feed_forward\.intermediate_dense\.", ".fc1."),
    (r"\.feed_forward\.output_dense\.", ".fc2."),
    (r"^masked_spec_embed$", "mask_emb"),
)
"""Hugging Face's name → fairseq's."""

FAIRSEQ_CONV_NORM = r"^(feature_extractor\.conv_layers\.\d+)\.layer_norm\."
"""The same of the norm behind a convolution, which lies one deeper in the large form: `.2.1.` for `.2.`."""


def load_hubert(
    path: str | os.PathLike[str], *, config: HubertConfig | None = None, dtype: DTypeLike = "float32"
) -> Hubert:
    """Loads HuBERT, base or large.

    Args:
        path: A folder in the style of Hugging Face (`config.json` with safetensors or a PyTorch file), or one file of
            weights: a fairseq checkpoint such as `hubert_base_ls960.pt`, or a state dict with either kind of names.
        config: Sizes. None: those of `config.json`; of a single file those of its shapes, with the usual strides and,
            unless the checkpoint says otherwise, heads 64 wide, and norms first where every convolution has a norm.
        dtype: Of the computation.

    Raises:
        InputError: The file is missing or damaged, of another form, or its weights do not fit; each key that is
            missing, left over or of another shape is named.
        ConfigError: The sizes do not fit one another.
    """
    path = Path(path)
    if path.is_dir():
        settings, tensors = read_folder(path)
    else:
        settings, tensors = _read_file(path)
    tensors = {key.removeprefix("hubert."): array for key, array in tensors.items()}
    rename = _naming(tensors)
    _check_form(settings, path)
    with settings_of(str(path)):
        named = "hidden_size" in settings
        config = config or (_config(settings, path) if named else _measure(settings, tensors, rename, path))
    if settings.get("mask_time_prob") == settings.get("mask_feature_prob") == 0:  # made without a mask embedding
        tensors.setdefault(rename("masked_spec_embed"), np.zeros(config.model_dim, np.float32))
    check_depth(tensors, str(path), num_hidden_layers=config.num_layers, conv_dim=len(config.conv_dims))
    return import_module(
        lambda: Hubert(config, dtype=dtype, rngs=nnx.Rngs(0)),
        hubert_keys(config, rename),
        tensors,
        source=str(path),
        unused=UNUSED,
    )


def export_hubert(hubert: Hubert, folder: str | os.PathLike[str]) -> None:
    """Writes a folder that Hugging Face's `HubertModel` reads: `config.json` and `model.safetensors`.

    Loaded again, here or there, it gives the same weights bit for bit. The positional convolution is stored as the
    folded weight and its norm, so these two arrays can differ from those it was once loaded from.
    """
    folder = Path(folder)
    write_safetensors(folder / "model.safetensors", export_tensors(hubert, hubert_keys(hubert.config)))
    values = dataclasses.asdict(hubert.config)
    sizes = {theirs: values[ours] for theirs, ours in SIZES.items()}
    named = {
        "architectures": ["HubertModel"],
        "model_type": "hubert",
        "num_feat_extract_layers": len(values["conv_dims"]),
    }
    (folder / "config.json").write_text(json.dumps({**named, **FORM, **sizes}, indent=1) + "\n")


def load_kmeans(path: str | os.PathLike[str], *, source: str = "hubert-12x768-layer9") -> SemanticUnits:
    """Loads the centroids of a k-means over HuBERT features.

    Args:
        path: The joblib file of a scikit-learn model, such as `hubert_base_ls960_L9_km500.bin`; nothing of it is run.
        source: Name of the features it was fitted on (`audio.hubert.HubertFeatures.name`).

    Raises:
        InputError: The file is missing or damaged, or holds no centroids.
    """
    return SemanticUnits(jnp.asarray(read_centroids(path)), source, frame_rate=FEATURE_RATE)


def hubert_keys(config: HubertConfig, rename: Callable[[str], str] = lambda key: key) -> list[Weight]:
    """Returns the table of keys; `rename` turns Hugging Face's present names into those of a file."""
    table = [
        *_affine(transposed, "feature_projection.projection", "projection", "kernel"),
        *_affine(same, "feature_projection.layer_norm", "channel_norm", "scale"),
        *_affine(same, "encoder.layer_norm", "norm", "scale"),
        same("encoder.pos_conv_embed.conv.bias", "position/bias"),
        normed_kernel("encoder.pos_conv_embed.conv", "position/kernel", _turn, _turn, axis=2),
        same("masked_spec_embed", "mask_embedding"),
    ]
    for i in range(len(config.conv_dims)):
        theirs, ours = f"feature_extractor.conv_layers.{i}", f"front_end/convs/{i}"
        table.append(convolution(f"{theirs}.conv.weight", f"{ours}/kernel"))
        if config.conv_bias:
            table.append(same(f"{theirs}.conv.bias", f"{ours}/bias"))
        if config.conv_norm == "layer":
            table += _affine(same, f"{theirs}.layer_norm", f"front_end/norms/{i}", "scale")
        elif i == 0:
            table += _affine(same, f"{theirs}.layer_norm", "front_end/norm", "scale")
    for i in range(config.num_layers):
        theirs, ours = f"encoder.layers.{i}", f"blocks/{i}"
        for name, part in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "out")):
            table += _affine(transposed, f"{theirs}.attention.{part}_proj", f"{ours}/{name}", "kernel")
        table += _affine(same, f"{theirs}.layer_norm", f"{ours}/attention_norm", "scale")
        table += _affine(transposed, f"{theirs}.feed_forward.intermediate_dense", f"{ours}/expand", "kernel")
        table += _affine(transposed, f"{theirs}.feed_forward.output_dense", f"{ours}/project", "kernel")
        table += _affine(same, f"{theirs}.final_layer_norm", f"{ours}/ffn_norm", "scale")
    return [dataclasses.replace(weight, keys=tuple(rename(key) for key in weight.keys)) for weight in table]


def _affine(turn: Callable[[str, str], Weight], theirs: str, ours: str, name: str) -> list[Weight]:
    return [turn(f"{theirs}.weight", f"{ours}/{name}"), same(f"{theirs}.bias", f"{ours}/bias")]


def _turn(weight: np.ndarray) -> np.ndarray:
    """(out, in, taps) to (taps, in, out), or back."""
    return weight.transpose(2, 1, 0)


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Settings, as far as there are any in the checkpoint or beside the file, and tensors."""
    tensors = read_tensors(path)
    if (path.parent / "config.json").is_file():
        return read_settings(path.parent), tensors
    if path.suffix == ".safetensors":
        return {}, tensors
    checkpoint = read_pytorch(path)
    settings = checkpoint.get("cfg") or {}
    arguments = checkpoint.get("args")
    if isinstance(settings, dict) and isinstance(settings.get("model"), dict):
        return settings["model"], tensors
    return (arguments.state if isinstance(arguments, Placeholder) else {}), tensors


def _naming(tensors: Mapping[str, Any]) -> Callable[[str], str]:
    """Gives the function from Hugging Face's present names to those of a table of tensors."""
    rules: tuple[tuple[str, str], ...] = ()
    if any(key.startswith("post_extract_proj.") for key in tensors):
        deep = any(re.match(r"feature_extractor\.conv_layers\.0\.2\.1\.", key) for key in tensors)
        rules = (*FAIRSEQ_NAMES, (FAIRSEQ_CONV_NORM, r"\1.2.1." if deep else r"\1.2."))
    _, norm_name = norm_names(tensors)

    def rename(key: str) -> str:
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        return norm_name(key)

    return rename


def _check_form(settings: Mapping[str, Any], path: Path) -> None:
    """Raises an `InputError` for what `Hubert` does not compute."""
    other = [name for name, value in FORM.items() if settings.get(name, value) != value]
    if other:
        raise InputError(f"{path}: HuBERT with {other[0]} {settings[other[0]]!r} is not supported")


def _config(settings: Mapping[str, Any], path: Path) -> HubertConfig:
    chosen = {ours: settings[theirs] for theirs, ours in SIZES.items() if theirs in settings}
    return from_dict(HubertConfig, chosen, path=f"settings of {path}")


def _measure(
    settings: Mapping[str, Any], tensors: Mapping[str, np.ndarray], rename: Callable[[str], str], path: Path
) -> HubertConfig:
    """Sizes from the shapes of a file without Hugging Face's settings."""

    def shape(key: str, axes: int) -> tuple[int, ...]:
        array = tensors.get(rename(key))
        if array is None or array.ndim != axes:
            raise InputError(f"{path}: no HuBERT in here (no {rename(key)} of {axes} axes)")
        return array.shape

    names = [f"feature_extractor.conv_layers.{i}" for i in range(len(tensors))]
    convs = [shape(f"{name}.conv.weight", 3) for name in names if rename(f"{name}.conv.weight") in tensors]
    if len(convs) != len(HubertConfig().conv_strides):
        raise InputError(f"{path}: {len(convs)} convolutions, HuBERT has 7; name all sizes by `config`")
    layer_norms = rename(f"{names[1]}.layer_norm.weight") in tensors
    numbers = [re.match(r"encoder\.layers\.(\d+)\.", key) for key in tensors]
    model_dim, _ = shape("feature_projection.projection.weight", 2)
    _, group_dim, taps = shape(f"encoder.pos_conv_embed.conv.{DIRECTION}", 3)
    return HubertConfig(
        conv_dims=tuple(size[0] for size in convs),
        conv_kernels=tuple(size[2] for size in convs),
        model_dim=model_dim,
        num_layers=1 + max((int(number[1]) for number in numbers if number), default=0),
        num_heads=settings.get("encoder_attention_heads") or max(1, model_dim // HEAD_DIM),
        ffn_dim=shape("encoder.layers.0.feed_forward.intermediate_dense.weight", 2)[0],
        position_kernel=taps,
        position_groups=model_dim // group_dim,
        conv_norm="layer" if layer_norms else "group",
        conv_bias=rename(f"{names[0]}.conv.bias") in tensors,
        norm_first=bool(settings.get("layer_norm_first", layer_norms)),
    )
