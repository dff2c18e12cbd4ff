"""Convolutions over time, and the ConvNeXt block that codec and vocoder share."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from voxinstruct_jax.layers.parameter import Axes, Initializer, make_param

__all__ = ["Conv", "ConvNeXtBlock", "DepthwiseConv"]


class Conv(nnx.Module):
    """A full convolution over time, zero-padded to keep the length; of kernel size 1 a linear map."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        axes: Axes,
        *,
        init: Initializer,
        bias: bool = True,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Makes the kernel.

        Args:
            shape: Places seen (an odd number), channels read, channels made.
            axes: Logical axes of the channels read and made.
            init: Initial values.
            bias: Whether a number a channel is added, zero at first.
            dtype: Of the computation and the result.
            rngs: Draws the values.
        """
        self.kernel = make_param(init(rngs.params(), shape), (None, *axes))
        self.bias = make_param(jnp.zeros(shape[2]), axes[1:]) if bias else None
        self.dtype = dtype

    def __call__(self, x: Float[Array, "batch time inputs"]) -> Float[Array, "batch time outputs"]:
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        if len(kernel) == 1:
            y = x @ kernel[0]
        else:
            y = jax.lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class DepthwiseConv(nnx.Module):
    """One filter a channel over time, zero-padded to keep the length.

    Written as a sum of shifted products: XLA's grouped convolution is some ten times slower on CPU, and the sum fuses
    into one pass on every backend.
    """

    def __init__(self, dim: int, kernel_size: int, *, rngs: nnx.Rngs) -> None:
        bound = kernel_size**-0.5
        self.kernel = nnx.Param(jax.random.uniform(rngs.params(), (kernel_size, dim), minval=-bound, maxval=bound))
        self.bias = nnx.Param(jnp.zeros(dim))

    def __call__(self, x: Float[Array, "batch time dim"]) -> Float[Array, "batch time dim"]:
        kernel = self.kernel[...]
        size, time = kernel.shape[0], x.shape[1]
        padded = jnp.pad(x, ((0, 0), (size // 2, (size - 1) // 2), (0, 0)))
        return sum((padded[:, i : i + time] * kernel[i] for i in range(size)), self.bias[...])


class ConvNeXtBlock(nnx.Module):
    """Depthwise convolution, norm, two pointwise layers, a learnt scale, added to the input.

    Source:
        ConvNeXt (Liu et al. 2022) over time, as in Vocos (Siuzdak 2023), section 3.
    """

    def __init__(self, dim: int, ffn_dim: int, *, scale: float, rngs: nnx.Rngs) -> None:
        self.depthwise = DepthwiseConv(dim, 7, rngs=rngs)
        self.norm = nnx.LayerNorm(dim, epsilon=1e-6, rngs=rngs)
        init = nnx.initializers.truncated_normal(0.02)
        self.expand = nnx.Linear(dim, ffn_dim, kernel_init=init, rngs=rngs)
        self.project = nnx.Linear(ffn_dim, dim, kernel_init=init, rngs=rngs)
        self.gamma = nnx.Param(jnp.full(dim, scale))

    def __call__(self, x: Float[Array, "batch time dim"]) -> Float[Array, "batch time dim"]:
        y = self.expand(self.norm(self.depthwise(x)))
        return x + self.gamma[...] * self.project(jax.nn.gelu(y, approximate=True))
