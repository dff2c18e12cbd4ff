"""EnCodec's weights from transformers' folders and the original program's files, and back.

Both layouts are one table of keys (`encodec_keys`), written with transformers' names; the others follow by renaming.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from voxinstruct_jax.audio.encodec import Encodec, EncodecConfig
from voxinstruct_jax.audio.seanet import SeanetConfig
from voxinstruct_jax.config import InputError, from_dict
from voxinstruct_jax.interop.keys import Weight, check_depth, export_tensors, import_module, settings_of
from voxinstruct_jax.interop.seanet import PAD_MODES, seanet_keys
from voxinstruct_jax.interop.tensors import read_folder, read_tensors, write_safetensors
from voxinstruct_jax.interop.weight_norm import DIRECTION, norm_names

__all__ = ["encodec_keys", "export_encodec", "load_encodec"]

SIZES = {
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
    "num_lstm_layers": "num_lstm_layers",
}
"""Transformers' setting → ours in `SeanetConfig`; both have the same defaults."""

FORM = {
    "audio_channels": 1,
    "normalize": False,
    "chunk_length_s": None,
    "norm_type": "weight_norm",
    "use_causal_conv": True,
    "trim_right_ratio": 1.0,
}
"""What `Encodec` computes; transformers' defaults, so a setting that is not there has this value."""

STATISTICS = ("embed_avg", "cluster_size", "inited")
"""Of each codebook: state of its training."""

PAPER_CODEBOOKS = 8
ROUNDING = 1e-6
"""Bandwidths are decimal fractions: a whole number of codebooks may come out a little below."""


def load_encodec(path: str | os.PathLike[str], *, dtype: DTypeLike = jnp.float32) -> Encodec:
    """Loads EnCodec at 24 kHz.

    Args:
        path: A folder of transformers' `EncodecModel`, a folder or a file of the original program
            (`encodec_24khz-d7cc33bc.th`); without a `config.json` sizes follow from the shapes.
        dtype: Of the convolutions.

    Raises:
        InputError: The file is missing or damaged, of another form (48 kHz), or its weights do not fit; each key that
            is missing, left over or of another shape is named.
    """
    place = Path(path)
    settings, tensors = _read(place)
    normed, rename = _naming(tensors)
    with settings_of(str(place)):
        config = _config(settings, tensors, rename, place)
    if not normed:
        raise InputError(f"{place}: no weight norms here (weight_g, weight_v); give the file as it was published")
    sizes = config.seanet
    check_depth(
        tensors,
        str(place),
        num_lstm_layers=sizes.num_lstm_layers,
        num_residual_layers=sizes.num_residual_layers,
        codebooks=config.stack_size,
    )
    unused = {rename(f"quantizer.layers.{q}.codebook.{name}") for q in range(config.stack_size) for name in STATISTICS}
    return import_module(
        lambda: Encodec(config, dtype=dtype, rngs=nnx.Rngs(0)),
        encodec_keys(config, rename),
        tensors,
        source=str(place),
        unused=unused,
    )


def export_encodec(codec: Encodec, folder: str | os.PathLike[str]) -> None:
    """Writes a folder that transformers' `EncodecModel` reads: `config.json` and `model.safetensors`.

    Loaded again it gives the same weights bit for bit. Convolutions are stored as the folded weight and its norm and
    the sum of an LSTM's biases as one of them, so these arrays can differ from those they were once loaded from.
    """
    folder, config = Path(folder), codec.config
    tensors = export_tensors(codec, encodec_keys(config))
    for q in range(config.stack_size):
        key = f"quantizer.layers.{q}.codebook"
        tensors[f"{key}.embed_avg"] = tensors[f"{key}.embed"]
        tensors[f"{key}.cluster_size"] = np.ones(config.codebook_size, np.float32)
        tensors[f"{key}.inited"] = np.ones(1, np.float32)
    write_safetensors(folder / "model.safetensors", tensors)
    sizes = {theirs: getattr(config.seanet, ours) for theirs, ours in SIZES.items()}
    bit_s = math.log2(config.codebook_size) * config.frame_rate
    settings = {
        "architectures": ["EncodecModel"],
        "model_type": "encodec",
        "sampling_rate": config.sample_rate,
        "codebook_size": config.codebook_size,
        "codebook_dim": config.seanet.latent_dim,
        "pad_mode": next(name for name, mode in PAD_MODES.items() if mode == config.seanet.pad_mode),
        "target_bandwidths": [bit_s * count / 1000 for count in _usual_counts(config.stack_size)],
    }
    (folder / "config.json").write_text(json.dumps({**settings, **FORM, **sizes}, indent=1) + "\n")


def encodec_keys(config: EncodecConfig, rename: Callable[[str], str] | None = None) -> list[Weight]:
    """Returns the table of keys; `rename` turns those of `interop.seanet` into a file's, by default transformers'."""
    entries = Weight(
        "entries",
        tuple(f"quantizer.layers.{q}.codebook.embed" for q in range(config.stack_size)),
        lambda *tables: np.stack(tables),
        tuple,
    )
    rename = rename or _transformers_name
    table = [*seanet_keys(config.seanet, normed=True), entries]
    return [dataclasses.replace(weight, keys=tuple(map(rename, weight.keys))) for weight in table]


def _read(place: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if place.is_file():
        return {}, read_tensors(place)
    files = sorted(place.glob("encodec_24khz*.th"))
    if files and not (place / "config.json").is_file():
        return {}, read_tensors(files[0])
    return read_folder(place)


def _naming(tensors: Mapping[str, Any]) -> tuple[bool, Callable[[str], str]]:
    """Returns whether there are weight norms, and the function from the names of `interop.seanet` to a file's."""
    normed, fold = norm_names(tensors)
    original = any(key.startswith("encoder.model.") for key in tensors)
    return normed, lambda key: fold(_original_name(key) if original else _transformers_name(key))


def _transformers_name(key: str) -> str:
    return key.replace(".convtr.", ".conv.")


def _original_name(key: str) -> str:
    key = re.sub(r"^(encoder|decoder)\.layers\.", r"\1.model.", key)
    key = re.sub(r"\.(conv|convtr)\.", r".\1.\1.", key)
    return key.replace("quantizer.layers.", "quantizer.vq.layers.").replace(".codebook.", "._codebook.")


def _config(
    settings: Mapping[str, Any], tensors: Mapping[str, np.ndarray], rename: Callable[[str], str], place: Path
) -> EncodecConfig:
    other = [name for name, value in FORM.items() if settings.get(name, value) != value]
    if settings.get("codebook_dim") not in (None, settings.get("hidden_size", SeanetConfig().latent_dim)):
        other.append("codebook_dim")
    if settings.get("pad_mode", "reflect") not in PAD_MODES:
        other.append("pad_mode")
    if other:
        raise InputError(f"{place}: only the causal mono form of 24 kHz is supported, this one has another {other[0]}")
    if not settings:
        return _measure(tensors, rename, place)
    sizes = {ours: settings[theirs] for theirs, ours in SIZES.items() if theirs in settings}
    seanet = from_dict(SeanetConfig, {**sizes, "pad_mode": PAD_MODES[settings.get("pad_mode", "reflect")]})
    general = {
        "sample_rate": settings.get("sampling_rate", 24_000),
        "codebook_size": settings.get("codebook_size", 1024),
    }
    bandwidths = settings.get("target_bandwidths")
    if bandwidths:
        bits = math.ceil(general["sample_rate"] / seanet.hop_length) * math.ceil(math.log2(general["codebook_size"]))
        stack_size = int(1000 * bandwidths[-1] / bits + ROUNDING)
    else:
        stack_size = _count_codebooks(tensors, rename)
    return EncodecConfig(
        seanet=seanet, **general, stack_size=stack_size, num_codebooks=min(PAPER_CODEBOOKS, stack_size)
    )


def _measure(tensors: Mapping[str, np.ndarray], rename: Callable[[str], str], place: Path) -> EncodecConfig:
    """Sizes from shapes; number and kind of layers are those of the 24 kHz model."""
    usual = SeanetConfig()

    def shape(key: str) -> tuple[int, ...]:
        found = tensors.get(rename(key))
        if found is None:
            raise InputError(f"{place}: no EnCodec weights here (it has no {rename(key)})")
        return found.shape

    direction = f"conv.{DIRECTION}"
    num_filters, _, kernel_size = shape(f"encoder.layers.0.{direction}")
    latent_dim, _, last_kernel_size = shape(f"encoder.layers.15.{direction}")
    seanet = SeanetConfig(
        num_filters=num_filters,
        latent_dim=latent_dim,
        ratios=tuple(shape(f"encoder.layers.{3 * stage}.{direction}")[2] // 2 for stage in (4, 3, 2, 1)),
        kernel_size=kernel_size,
        last_kernel_size=last_kernel_size,
        residual_kernel_size=shape(f"encoder.layers.1.block.1.{direction}")[2],
        compress=usual.compress,
    )
    stack_size = max(_count_codebooks(tensors, rename), 1)
    return EncodecConfig(
        seanet=seanet,
        codebook_size=shape("quantizer.layers.0.codebook.embed")[0],
        stack_size=stack_size,
        num_codebooks=min(PAPER_CODEBOOKS, stack_size),
    )


def _count_codebooks(tensors: Mapping[str, Any], rename: Callable[[str], str]) -> int:
    pattern = re.escape(rename("quantizer.layers.N.codebook.embed")).replace("N", r"(\d+)")
    return 1 + max((int(found[1]) for key in tensors if (found := re.fullmatch(pattern, key))), default=-1)


def _usual_counts(stack_size: int) -> list[int]:
    """2, 4, 8 ... codebooks up to all of them, one bandwidth each."""
    counts = [2**power for power in range(1, 12) if 2**power < stack_size]
    return [*counts, stack_size]
