"""Linear maps and token tables."""

import math

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from voxinstruct_jax.layers.parameter import Axes, Initializer, LoRAParam, make_param, normal, uniform

__all__ = ["AdaptedDense", "Affine", "Dense", "TokenEmbedding", "cast_kernels", "put_outputs_first"]

FEW_ROWS = 16


class Dense(nnx.Module):
    """A linear map without bias over the last axes: `(..., *inputs)` to `(..., *outputs)`, so heads keep their axis."""

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        axes: Axes,
        *,
        init: Initializer,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Makes the kernel.

        Args:
            inputs: Sizes of the axes that are summed over.
            outputs: Sizes of the axes that come instead.
            axes: Logical axes of the kernel, inputs first.
            init: Initial values.
            dtype: Of the computation and the result; the kernel itself is float32.
            rngs: Draws the values.
        """
        self.kernel = make_param(init(rngs.params(), (*inputs, *outputs)), axes)
        self.num_inputs = len(inputs)
        self.dtype = dtype
        self.outputs_first = False
        """Whether the kernel's axes were turned (`put_outputs_first`)."""

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        x, kernel, inputs = x.astype(self.dtype), self.kernel[...].astype(self.dtype), self.num_inputs
        if not self.outputs_first:
            return jnp.tensordot(x, kernel, axes=inputs)
        summed = tuple(range(kernel.ndim - inputs, kernel.ndim)), tuple(range(x.ndim - inputs, x.ndim))
        if math.prod(x.shape[:-inputs]) > FEW_ROWS:
            return jnp.tensordot(x, kernel, axes=summed[::-1])
        y, outputs = jnp.tensordot(kernel, x, axes=summed), kernel.ndim - inputs
        return jnp.moveaxis(y, range(outputs), range(-outputs, 0))


class Affine(nnx.Module):
    """A linear map with a bias, which starts at zero."""

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        axes: Axes,
        *,
        init: Initializer,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """As `Dense`."""
        self.map = Dense(inputs, outputs, axes, init=init, dtype=dtype, rngs=rngs)
        self.bias = make_param(jnp.zeros(outputs), axes[len(inputs) :])

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        y = self.map(x)
        return y + self.bias[...].astype(y.dtype)


def put_outputs_first(module: nnx.Module) -> None:
    """Turns the kernels of a module's linear maps, in place: outputs first, as a CPU reads them best for a few rows.

    The maps stay what they are, to rounding. Two to three times faster for the rows of one step of decoding, where the
    kernel's values are each used once a row, and a tenth to a fifth for many rows. Turned weights fit no file.
    """
    for part in _linear_maps(module):
        if not part.outputs_first:
            kernel, inputs = part.kernel[...], part.num_inputs
            part.kernel.set_value(jnp.transpose(kernel, (*range(inputs, kernel.ndim), *range(inputs))))
            axes = part.kernel.get_metadata()["out_sharding"]
            part.kernel.set_metadata(out_sharding=(*axes[inputs:], *axes[:inputs]))
            part.outputs_first = True


def cast_kernels(module: nnx.Module, dtype: DTypeLike) -> None:
    """Keeps the kernels of a module's linear maps in another type, in place; what they compute in is `Dense.dtype`."""
    for part in _linear_maps(module):
        part.kernel.set_value(part.kernel[...].astype(dtype))


def _linear_maps(module: nnx.Module) -> list[Dense]:
    return [part for _, part in nnx.iter_modules(module) if isinstance(part, Dense)]


class AdaptedDense(Dense):
    """A linear map of one input axis whose kernel W is joined by a low-rank one: W x + (alpha / rank) B (A x).

    Its kernel stands where that of a `Dense` does, so weights trained without adapters fit.

    Source:
        Hu et al. 2021, section 4.1; A starts as uniform noise and B as zero, so the sum starts at W.
    """

    def __init__(
        self,
        inputs: tuple[int],
        outputs: tuple[int, ...],
        axes: Axes,
        *,
        adapter: tuple[int, float],
        init: Initializer,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """As `Dense`, with the adapter's rank and alpha; it counts `alpha / rank` times."""
        super().__init__(inputs, outputs, axes, init=init, dtype=dtype, rngs=rngs)
        rank, alpha = adapter
        self.scale = alpha / rank
        down = uniform(inputs[0] ** -0.5)(rngs.params(), (inputs[0], rank))
        self.lora_down = make_param(down, (axes[0], None), kind=LoRAParam)
        self.lora_up = make_param(jnp.zeros((rank, *outputs)), (None, *axes[1:]), kind=LoRAParam)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        low = x.astype(self.dtype) @ self.lora_down[...].astype(self.dtype)
        return super().__call__(x) + self.scale * jnp.tensordot(low, self.lora_up[...].astype(self.dtype), axes=1)


class TokenEmbedding(nnx.Module):
    """One or more tables whose row 0 is padding: zero, and without gradient. Lookups in several tables are summed."""

    def __init__(self, num_rows: tuple[int, ...], dim: int, *, init: Initializer | None = None, rngs: nnx.Rngs) -> None:
        """Makes the tables, joined into one array of `sum(num_rows)` rows.

        Args:
            num_rows: Rows of each table.
            dim: Width of a row.
            init: Initial values; by default N(0, .02²).
            rngs: Draws the values.
        """
        self.offsets = tuple(sum(num_rows[:i]) for i in range(len(num_rows)))
        rows = (init or normal(0.02))(rngs.params(), (sum(num_rows), dim))
        self.table = make_param(rows.at[jnp.array(self.offsets)].set(0), ("vocab", "embed"))

    def __call__(self, tokens: Int[Array, "... table"]) -> Float[Array, "... dim"]:
        """Sums the rows of all tables, in float32: a low-precision lookup would add up gradients in low precision."""
        table = self.table[...]
        rows = (
            jnp.where(tokens[..., i, None] == 0, 0, table[tokens[..., i] + offset])
            for i, offset in enumerate(self.offsets)
        )
        return sum(rows, jnp.zeros((*tokens.shape[:-1], table.shape[-1]), table.dtype))
