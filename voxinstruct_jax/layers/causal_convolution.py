"""Convolutions that see no later input, to a lower and to a higher rate."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from voxinstruct_jax.layers.parameter import make_param, uniform

__all__ = ["CausalConv", "CausalUpsample", "PadMode", "pad_time"]

PadMode = Literal["reflect", "constant", "edge"]
"""What stands before the first and after the last input: the signal mirrored, zeros, or its end value repeated."""


class CausalConv(nnx.Module):
    """A convolution over time; `ceil(time / stride)` outputs.

    All padding lies on the left, but for what fills the last stride on the right.

    Source:
        EnCodec (Défossez et al. 2022), section 3.1, with the padding of its program.
    """

    def __init__(  # noqa: PLR0913 - the field's usual settings of a convolution; most have defaults
        self,
        inputs: int,
        outputs: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        pad_mode: PadMode = "reflect",
        use_bias: bool = True,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        init = uniform((inputs * kernel_size) ** -0.5)
        self.kernel = make_param(init(rngs.params(), (kernel_size, inputs, outputs)), (None, None, "mlp"))
        self.bias = make_param(jnp.zeros(outputs), ("mlp",)) if use_bias else None
        self.stride, self.dilation, self.dtype = stride, dilation, dtype
        self.pad_mode: PadMode = pad_mode

    def __call__(self, x: Float[Array, "batch time inputs"]) -> Float[Array, "batch frame outputs"]:
        kernel = self.kernel[...].astype(self.dtype)
        left = (kernel.shape[0] - 1) * self.dilation + 1 - self.stride
        y = jax.lax.conv_general_dilated(
            pad_time(x.astype(self.dtype), left, -x.shape[1] % self.stride, self.pad_mode),
            kernel,
            (self.stride,),
            "VALID",
            rhs_dilation=(self.dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class CausalUpsample(nnx.Module):
    """A transposed convolution with a kernel of two strides, cut on the right to `time * stride` outputs.

    Output `t * stride + j` is input t times tap j plus input t - 1 times tap `stride + j`. So it is a plain convolution
    of two taps to `stride * outputs` channels; XLA's own transposed convolution takes twice as long on CPU.
    """

    def __init__(
        self, inputs: int, outputs: int, *, stride: int, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        init = uniform((inputs * 2) ** -0.5)
        self.kernel = make_param(init(rngs.params(), (2, inputs, stride * outputs)), (None, None, "mlp"))
        """Taps of input t - 1, then those of input t; outputs are numbered within their place of the stride."""
        self.bias = make_param(jnp.zeros(outputs), ("mlp",))
        self.stride, self.dtype = stride, dtype

    def __call__(self, x: Float[Array, "batch frame inputs"]) -> Float[Array, "batch time outputs"]:
        batch, frames, _ = x.shape
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            self.kernel[...].astype(self.dtype),
            (1,),
            ((1, 0),),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        return y.reshape(batch, frames * self.stride, -1) + self.bias[...].astype(self.dtype)


def pad_time(
    x: Float[Array, "batch time dim"], left: int, right: int, mode: PadMode
) -> Float[Array, "batch padded dim"]:
    """Pads the time axis; a signal too short to be mirrored is first made longer by zeros, which are cut off again."""
    missing = max(0, max(left, right) - x.shape[1] + 1) if mode == "reflect" else 0
    padded = jnp.pad(jnp.pad(x, ((0, 0), (0, missing), (0, 0))), ((0, 0), (left, right), (0, 0)), mode=mode)
    return padded[:, : padded.shape[1] - missing]
