"""The published weights of MMAudio's audio autoencoder, which UNISON uses as well, and back.

Both forms are read: 16 kHz (`v1-16.pth`) and 44.1 kHz (`v1-44.pth`). The 16 kHz form takes the logarithm of its
spectrogram to the base of 10, ours the natural one: its statistics are scaled by ln 10, and the network sees the same.
"""

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from flax import nnx

from voxinstruct_jax.audio.mel_vae import (
    BLOCKS_DOWN,
    BLOCKS_UP,
    SMALLEST_VARIANCE,
    STATISTICS_RATE,
    MelVAE,
    MelVAEConfig,
)
from voxinstruct_jax.config import InputError
from voxinstruct_jax.interop.keys import Weight, convolution, export_tensors, import_module
from voxinstruct_jax.interop.pytorch_files import write_pytorch
from voxinstruct_jax.interop.tensors import read_tensors

__all__ = ["export_mmaudio_vae", "load_mmaudio_vae", "mmaudio_vae_keys"]

FILES = {80: "v1-16.pth", 128: "v1-44.pth"}
"""By the number of mel bins."""
SPECTROGRAMS = {80: MelVAEConfig.at_31_hz().mel, 128: MelVAEConfig.at_43_hz().mel}
UNITS = {80: math.log(10), 128: 1.0}
"""Of the logarithm, in ours."""


def load_mmaudio_vae(path: str | os.PathLike[str], *, scale: float = 1.0) -> MelVAE:
    """Loads the VAE; widths and channels follow from the shapes.

    Args:
        path: `v1-16.pth` or `v1-44.pth`, the same tensors as safetensors, or a folder with one of the two files.
        scale: What the posterior's mean is multiplied by to be a latent; UNISON's is 0.5.

    Raises:
        InputError: The file is missing or damaged, of another form, or its weights do not fit; each key that is
            missing, left over or of another shape is named.
    """
    if not scale > 0:
        raise InputError(f"scale {scale} must be above 0")
    place = _find(Path(path))
    tensors = read_tensors(place)
    config = _measure(tensors, place)
    weights = mmaudio_vae_keys(config, scale=scale)
    return import_module(lambda: MelVAE(config, rngs=nnx.Rngs(0)), weights, tensors, source=str(place))


def export_mmaudio_vae(vae: MelVAE, folder: str | os.PathLike[str]) -> None:
    """Writes `v1-16.pth` or `v1-44.pth`, which the original loads.

    Loaded again it gives the same weights; the spectrogram's statistics are the same to rounding. Those of the latents
    have no place in the file: the original leaves the posterior's mean as it is.

    Raises:
        InputError: The original has no such form.
    """
    config = vae.config
    bins = config.mel.num_mels
    if SPECTROGRAMS.get(bins) != config.mel or config.encoder_multiples != (1, 2, 4):
        raise InputError(f"MMAudio's VAE has no such form ({config.mel}, widths {config.encoder_multiples})")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = export_tensors(vae, mmaudio_vae_keys(config))
    write_pytorch(folder / FILES[bins], {key: array.astype(np.float32) for key, array in tensors.items()})


def mmaudio_vae_keys(config: MelVAEConfig, *, scale: float = 1.0) -> list[Weight]:
    """Returns the table of keys; `scale` as in `load_mmaudio_vae`."""
    levels = len(config.encoder_multiples)
    widths = [multiple * config.model_dim for multiple in config.encoder_multiples]
    table = [
        convolution("encoder.conv_in.weight", "first/kernel"),
        convolution("encoder.down.0.downsample.conv1.weight", "down/0/kernel"),
        convolution("encoder.down.0.downsample.conv2.weight", "down/1/kernel"),
        convolution("encoder.conv_out.weight", "to_latent/kernel"),
        convolution("decoder.conv_in.weight", "from_latent/kernel"),
        convolution("decoder.up.1.upsample.conv.weight", "up/kernel"),
        convolution("decoder.conv_out.weight", "last/kernel"),
        *_middle("encoder.mid", "encoder_middle"),
        *_middle("decoder.mid", "decoder_middle"),
        Weight(
            "gain",
            ("encoder.learnable_gain", "decoder.learnable_gain"),
            lambda *gains: np.stack(gains),
            lambda a: tuple(map(np.asarray, a)),
        ),
        *_statistics(config, scale),
    ]
    inputs = config.model_dim
    for level, width in enumerate(widths):
        for index in range(BLOCKS_DOWN):
            ours = f"encoder/{level * BLOCKS_DOWN + index}"
            table += _block(f"encoder.down.{level}.block.{index}", ours, shortcut=inputs != width)
            inputs = width
    for level, width in reversed(list(enumerate(widths))):
        for index in range(BLOCKS_UP):
            ours = f"decoder/{(levels - 1 - level) * BLOCKS_UP + index}"
            table += _block(f"decoder.up.{level}.block.{index}", ours, shortcut=inputs != width)
            inputs = width
    return table


def _block(theirs: str, ours: str, *, shortcut: bool) -> Iterable[Weight]:
    yield convolution(f"{theirs}.conv1.weight", f"{ours}/first/kernel")
    yield convolution(f"{theirs}.conv2.weight", f"{ours}/second/kernel")
    if shortcut:
        yield convolution(f"{theirs}.nin_shortcut.weight", f"{ours}/shortcut/kernel")


def _middle(theirs: str, ours: str) -> Iterable[Weight]:
    yield from _block(f"{theirs}.block_1", f"{ours}/0", shortcut=False)
    yield Weight(f"{ours}/1/projection/kernel", (f"{theirs}.attn_1.qkv.weight",), _part_roles, _mix_roles)
    yield convolution(f"{theirs}.attn_1.proj_out.weight", f"{ours}/1/output/kernel")
    yield from _block(f"{theirs}.block_2", f"{ours}/2", shortcut=False)


def _part_roles(rows: np.ndarray) -> np.ndarray:
    """Rows that are query, key and value by turns, (3 dim, dim, 1), to all of each, (1, dim, 3 dim)."""
    dim = rows.shape[1]
    return rows.reshape(dim, 3, dim).transpose(2, 1, 0).reshape(1, dim, 3 * dim)


def _mix_roles(kernel: np.ndarray) -> tuple[np.ndarray]:
    dim = kernel.shape[1]
    return (kernel.reshape(dim, 3, dim).transpose(2, 1, 0).reshape(3 * dim, dim, 1),)


def _statistics(config: MelVAEConfig, scale: float) -> Iterable[Weight]:
    """The spectrogram's stand in the file; the latents' are the scale, which does not. Both count as settled."""
    unit, channels = UNITS[config.mel.num_mels], config.latent_channels

    def write_std(variance: np.ndarray) -> tuple[np.ndarray]:
        return (np.sqrt(variance.astype(np.float64) + SMALLEST_VARIANCE).reshape(1, -1, 1) / unit,)

    yield Weight(
        "mel_statistics/mean",
        ("data_mean",),
        lambda a: a.astype(np.float64).reshape(-1) * unit,
        lambda a: (a.astype(np.float64).reshape(1, -1, 1) / unit,),
    )
    yield Weight(
        "mel_statistics/variance",
        ("data_std",),
        lambda a: np.square(a.astype(np.float64).reshape(-1) * unit) - SMALLEST_VARIANCE,
        write_std,
    )
    yield _constant("mel_statistics/count", np.asarray(1 / STATISTICS_RATE))
    yield _constant("latent_statistics/mean", np.zeros(channels))
    yield _constant("latent_statistics/variance", np.full(channels, scale**-2 - SMALLEST_VARIANCE))
    yield _constant("latent_statistics/count", np.asarray(1 / STATISTICS_RATE))


def _constant(path: str, value: np.ndarray) -> Weight:
    """A number that no foreign key holds."""
    return Weight(path, (), lambda: value, lambda a: ())


def _find(place: Path) -> Path:
    if not place.is_dir():
        return place
    files = [place / name for name in FILES.values() if (place / name).is_file()]
    if len(files) != 1:
        raise InputError(f"{place}: give the file, or a folder with one of {', '.join(FILES.values())}")
    return files[0]


def _measure(tensors: Mapping[str, np.ndarray], place: Path) -> MelVAEConfig:
    def shape(key: str) -> tuple[int, ...]:
        found = tensors.get(key)
        if found is None or found.ndim != 3:
            raise InputError(f"{place}: no weights of MMAudio's VAE here (it has no convolution {key})")
        return found.shape

    width, bins, _ = shape("encoder.conv_in.weight")
    if bins not in SPECTROGRAMS:
        known = " or ".join(map(str, SPECTROGRAMS))
        raise InputError(f"{place}: spectrograms of {bins} bins; MMAudio's VAE has {known}")
    _, latent_channels, _ = shape("decoder.conv_in.weight")
    return MelVAEConfig(mel=SPECTROGRAMS[bins], latent_channels=latent_channels, model_dim=width)
