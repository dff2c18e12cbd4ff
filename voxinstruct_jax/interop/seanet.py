"""Keys of SEANet's encoder and decoder, which EnCodec and Mimi share, in the names of transformers.

One departure: transposed convolutions are `.convtr.` here, so that each program's name for them follows by renaming.
"""

from collections.abc import Callable, Iterable

import numpy as np

from voxinstruct_jax.audio.seanet import SeanetConfig
from voxinstruct_jax.interop.keys import Weight, same, transposed
from voxinstruct_jax.interop.weight_norm import normed_kernel

__all__ = ["PAD_MODES", "seanet_keys"]

PAD_MODES = {"reflect": "reflect", "constant": "constant", "replicate": "edge"}
"""PyTorch's name → ours."""

Turn = Callable[[np.ndarray], np.ndarray]


def seanet_keys(config: SeanetConfig, *, normed: bool) -> list[Weight]:
    """Returns the keys of `encoder` and `decoder`.

    Args:
        config: Sizes.
        normed: Whether convolutions are stored as direction and norm.
    """
    return [*_encoder(config, normed), *_decoder(config, normed)]


def _encoder(config: SeanetConfig, normed: bool) -> Iterable[Weight]:
    yield from _convolution("encoder.layers.0.conv", "encoder/first", normed)
    at = 1
    for stage in range(len(config.ratios)):
        ours = f"encoder/stages/{stage}"
        for unit in range(config.num_residual_layers):
            yield from _residual_unit(config, f"encoder.layers.{at + unit}", f"{ours}/units/{unit}", normed)
        at += config.num_residual_layers + 1  # an activation lies between
        yield from _convolution(f"encoder.layers.{at}.conv", f"{ours}/downsample", normed)
        at += 1
    if config.num_lstm_layers:
        yield from _lstm(config, f"encoder.layers.{at}.lstm", "encoder/lstm")
        at += 1
    yield from _convolution(f"encoder.layers.{at + 1}.conv", "encoder/last", normed)


def _decoder(config: SeanetConfig, normed: bool) -> Iterable[Weight]:
    yield from _convolution("decoder.layers.0.conv", "decoder/first", normed)
    at = 1
    if config.num_lstm_layers:
        yield from _lstm(config, "decoder.layers.1.lstm", "decoder/lstm")
        at += 1
    for stage, ratio in enumerate(config.ratios):
        ours = f"decoder/stages/{stage}"
        yield from _upsampling(f"decoder.layers.{at + 1}.convtr", f"{ours}/upsample", ratio, normed)
        at += 2
        for unit in range(config.num_residual_layers):
            yield from _residual_unit(config, f"decoder.layers.{at + unit}", f"{ours}/units/{unit}", normed)
        at += config.num_residual_layers
    yield from _convolution(f"decoder.layers.{at + 1}.conv", "decoder/last", normed)


def _residual_unit(config: SeanetConfig, theirs: str, ours: str, normed: bool) -> Iterable[Weight]:
    yield from _convolution(f"{theirs}.block.1.conv", f"{ours}/dilated", normed)
    yield from _convolution(f"{theirs}.block.3.conv", f"{ours}/pointwise", normed)
    if config.shortcut_conv:
        yield from _convolution(f"{theirs}.shortcut.conv", f"{ours}/shortcut", normed)


def _convolution(theirs: str, ours: str, normed: bool) -> Iterable[Weight]:
    """PyTorch's (out, in, taps) to (taps, in, out)."""

    def turn(weight: np.ndarray) -> np.ndarray:
        return weight.transpose(2, 1, 0)

    yield _kernel(theirs, ours, normed, turn, turn)
    yield same(f"{theirs}.bias", f"{ours}/bias")


def _upsampling(theirs: str, ours: str, stride: int, normed: bool) -> Iterable[Weight]:
    """PyTorch's transposed (in, out, 2 strides) to `CausalUpsample`'s (2, in, stride x out)."""

    def read(weight: np.ndarray) -> np.ndarray:
        inputs, outputs, _ = weight.shape
        taps = weight.transpose(2, 0, 1).reshape(2, stride, inputs, outputs)[::-1]
        return taps.transpose(0, 2, 1, 3).reshape(2, inputs, stride * outputs)

    def write(kernel: np.ndarray) -> np.ndarray:
        inputs = kernel.shape[1]
        taps = kernel.reshape(2, inputs, stride, -1).transpose(0, 2, 1, 3)[::-1]
        return taps.reshape(2 * stride, inputs, -1).transpose(1, 2, 0)

    yield _kernel(theirs, ours, normed, read, write)
    yield same(f"{theirs}.bias", f"{ours}/bias")


def _kernel(theirs: str, ours: str, normed: bool, read: Turn, write: Turn) -> Weight:
    path = f"{ours}/kernel"
    if not normed:
        return Weight(path, (f"{theirs}.weight",), read, lambda kernel: (write(kernel),))
    return normed_kernel(theirs, path, read, write)


def _lstm(config: SeanetConfig, theirs: str, ours: str) -> Iterable[Weight]:
    for layer in range(config.num_lstm_layers):
        path = f"{ours}/layers/{layer}"
        yield transposed(f"{theirs}.weight_ih_l{layer}", f"{path}/input_kernel")
        yield same(f"{theirs}.weight_hh_l{layer}", f"{path}/recurrent_kernel")
        biases = (f"{theirs}.bias_ih_l{layer}", f"{theirs}.bias_hh_l{layer}")
        yield Weight(f"{path}/bias", biases, np.add, lambda bias: (bias, np.zeros_like(bias)))
