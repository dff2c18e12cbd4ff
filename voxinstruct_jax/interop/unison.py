"""The transformer of UNISON's release (D20 and D24), and back.

The release rotates neighbouring dimensions of a head, we the first half with the second: queries, keys and their norms
are put in our order, in the text's stream too, which is not rotated but meets the audio's. It counts time from 0 to 1
where our own runs count to 1000: sample with `RELEASE`.
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from flax import nnx

from voxinstruct_jax.config import InputError
from voxinstruct_jax.diffusion.systems import SYSTEMS, DiffusionConfig
from voxinstruct_jax.interop.keys import (
    Weight,
    convolution,
    export_tensors,
    heads_out,
    import_module,
    same,
    settings_of,
    transposed,
)
from voxinstruct_jax.interop.tensors import read_tensors, write_safetensors
from voxinstruct_jax.models.llama import ComputeType
from voxinstruct_jax.models.mmdit import MMDiT, MMDiTConfig

__all__ = ["RELEASE", "export_unison", "load_unison", "unison_keys"]

RELEASE: DiffusionConfig = dataclasses.replace(
    SYSTEMS["unison"], path=dataclasses.replace(SYSTEMS["unison"].path, time_scale=1.0)
)
"""How the release's weights are sampled: as ours of this system, but the sinusoids read times of 0 to 1."""

FILE = "model.safetensors"
ROTARY_DIMS = 96
SINGLE_STREAM = "single_blocks."
"""Start of keys of the variants in the paper's ablation, which were not released."""


def load_unison(
    path: str | os.PathLike[str], *, rotary_dims: int = ROTARY_DIMS, dtype: ComputeType = "float32"
) -> MMDiT:
    """Loads the transformer; it reads the states of its text encoder, which is not among the files.

    Args:
        path: `model.safetensors`, a file of PyTorch with the same tensors, or a folder with the former.
        rotary_dims: Of a head's dimensions those that are rotated, which the shapes don't tell.
        dtype: Of the computation.

    Raises:
        InputError: The file is missing or damaged, of another form, or its weights do not fit; each key that is
            missing, left over or of another shape is named.
        ConfigError: There are not so many dimensions to rotate.
    """
    place = Path(path)
    place = place / FILE if place.is_dir() else place
    tensors = read_tensors(place)
    with settings_of(str(place)):
        config = dataclasses.replace(_measure(tensors, rotary_dims, place), dtype=dtype)
    return import_module(lambda: MMDiT(config, rngs=nnx.Rngs(0)), unison_keys(config), tensors, source=str(place))


def export_unison(network: MMDiT, folder: str | os.PathLike[str]) -> None:
    """Writes `model.safetensors`, which the release loads; loaded again it gives the same weights bit for bit.

    Raises:
        InputError: The network is not of the release's form.
    """
    config = network.config
    form = dataclasses.replace(
        MMDiTConfig.unison(joint_blocks=config.joint_blocks, latent_channels=config.latent_channels),
        model_dim=config.model_dim,
        num_heads=config.num_heads,
        rotary_dims=config.rotary_dims,
        text_dim=config.text_dim,
        embedder_kernel_size=config.embedder_kernel_size,
        dtype=config.dtype,
    )
    if config != form:
        other = next(
            field.name for field in dataclasses.fields(form) if getattr(config, field.name) != getattr(form, field.name)
        )
        raise InputError(f"UNISON's release has no such form: another {other} ({getattr(config, other)})")
    write_safetensors(Path(folder) / FILE, export_tensors(network, unison_keys(config)))


def unison_keys(config: MMDiTConfig) -> list[Weight]:
    """Returns the table of keys."""
    table = [
        convolution("img_in.proj.0.conv.weight", "embedder/first/kernel"),
        same("img_in.proj.0.conv.bias", "embedder/first/bias"),
        convolution("img_in.proj.2.w1.conv.weight", "embedder/gate/kernel"),
        convolution("img_in.proj.2.w2.conv.weight", "embedder/down/kernel"),
        convolution("img_in.proj.2.w3.conv.weight", "embedder/up/kernel"),
        *_affine("time_in.mlp.0", "time/first"),
        *_affine("time_in.mlp.2", "time/second"),
        *_modulation("final_layer.adaLN_modulation.1", "head_modulation", 2),
        *_pointwise("final_layer.linear", "head"),
    ]
    for index in range(config.joint_blocks):
        theirs, ours = f"double_blocks.{index}", f"joint_blocks/{index}"
        table += [
            *_affine(f"deep_fusion_projs.{index}", f"{ours}/projection"),
            *_stream(f"{theirs}.img", f"{ours}/audio", config, parts=6),
            *_pointwise(f"{theirs}.img_attn_proj", f"{ours}/audio/output"),
            *_pointwise(f"{theirs}.img_mlp.fc1", f"{ours}/audio/up"),
            *_pointwise(f"{theirs}.img_mlp.fc2", f"{ours}/audio/down"),
            *_stream(f"{theirs}.txt", f"{ours}/text", config, parts=2),
        ]
    return table


def _stream(theirs: str, ours: str, config: MMDiTConfig, *, parts: int) -> Iterable[Weight]:
    """Modulation, queries, keys and values of one stream."""
    heads = config.num_heads
    yield from _modulation(f"{theirs}_mod.linear", f"{ours}/modulation", parts)
    for letter, name in (("q", "query"), ("k", "key")):
        key, order = f"{theirs}_attn_{letter}", _rotary_order(config)
        yield _reordered(heads_out(f"{key}.weight", f"{ours}/{name}/map/kernel", heads), order)
        yield _reordered(_by_head(f"{key}.bias", f"{ours}/{name}/bias", heads), order)
        yield _reordered(same(f"{key}_norm.weight", f"{ours}/{name}_norm/weight"), order)
    yield heads_out(f"{theirs}_attn_v.weight", f"{ours}/value/map/kernel", heads)
    yield _by_head(f"{theirs}_attn_v.bias", f"{ours}/value/bias", heads)


def _rotary_order(config: MMDiTConfig) -> np.ndarray:
    """Dimensions of a head: the first of each pair, the second of each, those that are not rotated."""
    rotated = config.rotary_dims
    return np.r_[0:rotated:2, 1:rotated:2, rotated : config.head_dim]


def _reordered(weight: Weight, order: np.ndarray) -> Weight:
    """With the last axis put in another order."""
    back = np.argsort(order)
    return dataclasses.replace(
        weight, read=lambda a: weight.read(a)[..., order], write=lambda a: weight.write(a[..., back])
    )


def _affine(theirs: str, ours: str) -> Iterable[Weight]:
    yield transposed(f"{theirs}.weight", f"{ours}/map/kernel")
    yield same(f"{theirs}.bias", f"{ours}/bias")


def _pointwise(theirs: str, ours: str) -> Iterable[Weight]:
    """A linear map that is a convolution of kernel size 1 here."""
    yield Weight(f"{ours}/kernel", (f"{theirs}.weight",), lambda a: a.T[None], lambda a: (a[0].T,))
    yield same(f"{theirs}.bias", f"{ours}/bias")


def _modulation(theirs: str, ours: str, parts: int) -> Iterable[Weight]:
    """Shifts, scales and gates, one below the other there, on an axis of their own here."""
    yield heads_out(f"{theirs}.weight", f"{ours}/map/kernel", parts)
    yield _by_head(f"{theirs}.bias", f"{ours}/bias", parts)


def _by_head(key: str, path: str, count: int) -> Weight:
    return Weight(path, (key,), lambda a: a.reshape(count, -1), lambda a: (a.reshape(-1),))


def _measure(tensors: Mapping[str, np.ndarray], rotary_dims: int, place: Path) -> MMDiTConfig:
    def shape(key: str) -> tuple[int, ...]:
        if key not in tensors:
            raise InputError(f"{place}: no transformer of UNISON's release here (it has no {key})")
        return tensors[key].shape

    if any(key.startswith(SINGLE_STREAM) for key in tensors):
        raise InputError(f"{place}: single-stream blocks; only the released form, of double blocks alone, is supported")
    model_dim, _, kernel_size = shape("img_in.proj.0.conv.weight")
    (head_dim,) = shape("double_blocks.0.img_attn_q_norm.weight")
    blocks = {int(found[1]) for key in tensors if (found := re.match(r"double_blocks\.(\d+)\.", key))}
    config = MMDiTConfig.unison(joint_blocks=len(blocks), latent_channels=shape("final_layer.linear.weight")[0])
    return dataclasses.replace(
        config,
        model_dim=model_dim,
        num_heads=model_dim // head_dim,
        rotary_dims=rotary_dims,
        text_dim=shape("deep_fusion_projs.0.weight")[1],
        embedder_kernel_size=kernel_size,
    )
