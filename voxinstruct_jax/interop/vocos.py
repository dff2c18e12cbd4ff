"""The published Vocos' weights from its folders and back."""

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from voxinstruct_jax.audio.published_vocos import (
    CodeVocos,
    CodeVocosConfig,
    FeatureVocosConfig,
    MelVocos,
    MelVocosConfig,
)
from voxinstruct_jax.config import ConfigError, InputError, from_dict
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
from voxinstruct_jax.interop.tensors import read_folder, write_safetensors

__all__ = ["export_vocos", "load_vocos", "vocos_keys"]

EMBEDDED_CODEC = "feature_extractor.encodec."
"""Keys of a whole EnCodec, which some copies of the file hold beside the table of codes."""

WINDOWS = ("head.istft.window", "feature_extractor.mel_spec.spectrogram.window")
SAMPLE_RATE = 24_000
USUAL_CODEBOOK_SIZE = 1024
ROUNDING = 1e-6
"""Bandwidths are decimal fractions: a whole number of codebooks may come out a little below."""
BACKBONE_SIZES = {
    "input_channels": "feature_dim",
    "dim": "dim",
    "intermediate_dim": "ffn_dim",
    "num_layers": "num_layers",
    "adanorm_num_embeddings": "num_conditions",
}
HEAD_SIZES = {"n_fft": "n_fft", "hop_length": "hop_length", "padding": "padding"}


def load_vocos(
    folder: str | os.PathLike[str], *, codebook_size: int | None = None, dtype: DTypeLike = jnp.float32
) -> CodeVocos | MelVocos:
    """Loads Vocos for EnCodec's codes or for mel spectrograms, as its `config.yaml` says.

    Args:
        folder: `config.yaml` with `pytorch_model.bin` or `model.safetensors`.
        codebook_size: Entries a codebook, which the settings do not hold; by default as follows from the bandwidths
            and the number of rows in the table.
        dtype: Of the matrix products.

    Raises:
        InputError: The folder is missing or damaged, of another form, or its weights do not fit; each key that is
            missing, left over or of another shape is named.
    """
    place = Path(folder)
    settings, tensors = read_folder(place)
    tensors = {key: array for key, array in tensors.items() if not key.startswith(EMBEDDED_CODEC)}
    with settings_of(str(place)):
        kind, extractor, features = _parts(settings, place)
        if kind == "EncodecFeatures":
            config = _code_config(features, extractor, tensors, codebook_size, place)
        else:
            config = _mel_config(features, extractor, place)
    _check_windows(tensors, features, place)
    tensors = {key: array for key, array in tensors.items() if key not in WINDOWS}
    check_depth(tensors, str(place), num_layers=features.num_layers)
    weights = vocos_keys(config)
    if isinstance(config, CodeVocosConfig):
        return import_module(
            lambda: CodeVocos(config, dtype=dtype, rngs=nnx.Rngs(0)), weights, tensors, source=str(place)
        )
    return import_module(lambda: MelVocos(config, dtype=dtype, rngs=nnx.Rngs(0)), weights, tensors, source=str(place))


def export_vocos(vocos: CodeVocos | MelVocos, folder: str | os.PathLike[str]) -> None:
    """Writes a folder with the original's settings and keys: `config.yaml` and `model.safetensors`.

    Loaded again it gives the same weights bit for bit.
    """
    import yaml

    folder, features = Path(folder), vocos.config.features
    tensors = export_tensors(vocos, vocos_keys(vocos.config))
    tensors[WINDOWS[0]] = _hann(features.n_fft)
    if isinstance(vocos.config, MelVocosConfig):
        tensors[WINDOWS[1]] = _hann(vocos.config.mel_n_fft)
    write_safetensors(folder / "model.safetensors", tensors)
    backbone = {theirs: getattr(features, ours) for theirs, ours in BACKBONE_SIZES.items()}
    if features.num_conditions == 1:
        del backbone["adanorm_num_embeddings"]
    head = {theirs: getattr(features, ours) for theirs, ours in HEAD_SIZES.items()}
    settings = {
        "feature_extractor": _extractor_settings(vocos.config),
        "backbone": {"class_path": "vocos.models.VocosBackbone", "init_args": backbone},
        "head": {"class_path": "vocos.heads.ISTFTHead", "init_args": {"dim": features.dim, **head}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))


def vocos_keys(config: CodeVocosConfig | MelVocosConfig) -> list[Weight]:
    """Returns the table of keys."""
    return [*_feature_keys(config), *_network_keys(config.features)]


def _feature_keys(config: CodeVocosConfig | MelVocosConfig) -> Iterable[Weight]:
    if isinstance(config, MelVocosConfig):
        yield same("feature_extractor.mel_spec.mel_scale.fb", "filters")
        return
    stack_size = config.stack_size
    yield Weight(
        "entries",
        ("feature_extractor.codebook_weights",),
        lambda a: a.reshape(stack_size, -1, a.shape[-1]),
        lambda a: (a.reshape(-1, a.shape[-1]),),
    )


def _network_keys(features: FeatureVocosConfig) -> Iterable[Weight]:
    conditioned = features.num_conditions > 1
    yield convolution("backbone.embed.weight", "vocos/embed/kernel")
    yield same("backbone.embed.bias", "vocos/embed/bias")
    yield from _norm("backbone.norm", "vocos/norm", conditioned)
    yield from _norm("backbone.final_layer_norm", "vocos/final_norm", conditioned=False)
    yield transposed("head.out.weight", "vocos/head/kernel")
    yield same("head.out.bias", "vocos/head/bias")
    for index in range(features.num_layers):
        theirs, ours = f"backbone.convnext.{index}", f"vocos/blocks/{index}"
        # One filter a channel: (dim, 1, taps) to (taps, dim).
        yield Weight(
            f"{ours}/depthwise/kernel", (f"{theirs}.dwconv.weight",), lambda a: a[:, 0].T, lambda a: (a.T[:, None],)
        )
        yield same(f"{theirs}.dwconv.bias", f"{ours}/depthwise/bias")
        yield from _norm(f"{theirs}.norm", f"{ours}/norm", conditioned)
        yield same(f"{theirs}.gamma", f"{ours}/gamma")
        for part, name in (("pwconv1", "expand"), ("pwconv2", "project")):
            yield transposed(f"{theirs}.{part}.weight", f"{ours}/{name}/kernel")
            yield same(f"{theirs}.{part}.bias", f"{ours}/{name}/bias")


def _norm(theirs: str, ours: str, conditioned: bool) -> Iterable[Weight]:
    if conditioned:
        yield same(f"{theirs}.scale.weight", f"{ours}/scale")
        yield same(f"{theirs}.shift.weight", f"{ours}/shift")
        return
    for part, name in (("weight", "scale"), ("bias", "shift")):
        yield Weight(f"{ours}/{name}", (f"{theirs}.{part}",), lambda a: a[None], lambda a: (a[0],))


def _parts(settings: Mapping[str, Any], place: Path) -> tuple[str, dict[str, Any], FeatureVocosConfig]:
    """Kind and settings of the feature extractor, and the sizes behind it."""
    kinds, arguments = {}, {}
    for part in ("feature_extractor", "backbone", "head"):
        chosen = settings.get(part)
        if not isinstance(chosen, Mapping) or not isinstance(chosen.get("class_path"), str):
            raise InputError(f"{place}: config.yaml has no {part} with a class_path; copy or download it again")
        kinds[part] = chosen["class_path"].rpartition(".")[2]
        arguments[part] = dict(chosen.get("init_args") or {})
    if kinds["feature_extractor"] not in ("EncodecFeatures", "MelSpectrogramFeatures"):
        raise InputError(f"{place}: features by {kinds['feature_extractor']} are not supported")
    if kinds["backbone"] != "VocosBackbone" or kinds["head"] != "ISTFTHead":
        raise InputError(f"{place}: only VocosBackbone with ISTFTHead is supported, here is {kinds['backbone']}")
    backbone, head = arguments["backbone"], arguments["head"]
    sizes = {ours: backbone[theirs] for theirs, ours in BACKBONE_SIZES.items() if theirs in backbone}
    sizes["num_conditions"] = sizes.get("num_conditions") or 1
    sizes |= {ours: head[theirs] for theirs, ours in HEAD_SIZES.items() if theirs in head}
    try:
        features = from_dict(FeatureVocosConfig, {"padding": "same", **sizes})
    except ConfigError as error:
        raise InputError(f"{place}: config.yaml: {error}") from error
    return kinds["feature_extractor"], arguments["feature_extractor"], features


def _code_config(
    features: FeatureVocosConfig,
    extractor: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    codebook_size: int | None,
    place: Path,
) -> CodeVocosConfig:
    if extractor.get("encodec_model", "encodec_24khz") != "encodec_24khz":
        raise InputError(f"{place}: only the codes of encodec_24khz are supported, not {extractor['encodec_model']}")
    rows = len(tensors.get("feature_extractor.codebook_weights", np.zeros((USUAL_CODEBOOK_SIZE, 0))))
    size = codebook_size or _codebook_size(rows, max(extractor.get("bandwidths", [12.0])), features.hop_length)
    if rows % size:
        raise InputError(f"{place}: a table of {rows} rows does not hold codebooks of {size}; give codebook_size")
    return CodeVocosConfig(features=features, codebook_size=size, stack_size=rows // size)


def _mel_config(features: FeatureVocosConfig, extractor: Mapping[str, Any], place: Path) -> MelVocosConfig:
    if extractor.get("hop_length", 256) != features.hop_length or extractor.get("n_mels", 100) != features.feature_dim:
        raise InputError(f"{place}: feature_extractor and head disagree on the hop, or on the number of mels")
    values = {
        "features": dataclasses.asdict(features),
        "sample_rate": extractor.get("sample_rate", SAMPLE_RATE),
        "mel_n_fft": extractor.get("n_fft", 1024),
        "mel_padding": extractor.get("padding", "center"),
    }
    return from_dict(MelVocosConfig, values, path=str(place))


def _codebook_size(rows: int, kbit_s: float, hop_length: int) -> int:
    """The power of two of which the largest bandwidth takes as many codebooks as fill the table; 1024 if none does."""
    for bits in range(20, 0, -1):
        if rows == 2**bits * int(kbit_s * 1000 / (bits * SAMPLE_RATE / hop_length) + ROUNDING):
            return 2**bits
    return USUAL_CODEBOOK_SIZE


def _check_windows(tensors: Mapping[str, np.ndarray], features: FeatureVocosConfig, place: Path) -> None:
    """Windows are stored, but every published file has Hann's, which is the only one that we compute with."""
    for key in WINDOWS:
        window = tensors.get(key)
        if window is None:
            continue
        hann = _hann(len(window))
        allowed = 1e-5 if window.dtype.itemsize > 2 else 4e-3  # half precision
        if np.abs(window.astype(np.float32) - hann).max() > allowed or (
            key == WINDOWS[0] and len(window) != features.n_fft
        ):
            raise InputError(f"{place}: {key} is not the Hann window of {features.n_fft}; only that is supported")


def _extractor_settings(config: CodeVocosConfig | MelVocosConfig) -> dict[str, Any]:
    if isinstance(config, MelVocosConfig):
        arguments = {
            "sample_rate": config.sample_rate,
            "n_fft": config.mel_n_fft,
            "hop_length": config.features.hop_length,
            "n_mels": config.features.feature_dim,
            "padding": config.mel_padding,
        }
        return {"class_path": "vocos.feature_extractors.MelSpectrogramFeatures", "init_args": arguments}
    bit_s = math.log2(config.codebook_size) * SAMPLE_RATE / config.features.hop_length
    counts = [count for count in (2, 4, 8, 16) if count < config.stack_size]
    bandwidths = [bit_s * count / 1000 for count in (*counts, config.stack_size)]
    arguments = {"encodec_model": "encodec_24khz", "bandwidths": bandwidths}
    return {"class_path": "vocos.feature_extractors.EncodecFeatures", "init_args": arguments}


def _hann(length: int) -> np.ndarray:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)
