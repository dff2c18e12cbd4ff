"""Long short-term memory over a whole sequence."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from voxinstruct_jax.layers.parameter import make_param, uniform

__all__ = ["LSTM", "LSTMLayer"]


class LSTMLayer(nnx.Module):
    """One layer that starts from a zero state.

    Source:
        Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000. Gates lie in the order input, forget,
        cell, output; the two biases of PyTorch's layer are one here, their sum.
    """

    def __init__(self, dim: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> None:
        init = uniform(dim**-0.5)
        self.input_kernel = make_param(init(rngs.params(), (dim, 4 * dim)), ("embed", "mlp"))
        # Outputs first: the product with one vector a step reads whole rows, a fifth faster on CPU.
        self.recurrent_kernel = make_param(init(rngs.params(), (4 * dim, dim)), ("mlp", "embed"))
        self.bias = make_param(jnp.zeros(4 * dim), ("mlp",))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "batch time dim"]) -> Float[Array, "batch time dim"]:
        """Returns the outputs of all steps. The cell is kept in float32 whatever the type of the computation."""
        # Only the recurrent product has to wait for the step before; the rest is one product over all steps.
        inputs = x.astype(self.dtype) @ self.input_kernel[...].astype(self.dtype)
        inputs = inputs.astype(jnp.float32) + self.bias[...]
        recurrent = self.recurrent_kernel[...].astype(self.dtype)

        def step(
            state: tuple[Array, Array], given: Float[Array, "batch gates"]
        ) -> tuple[tuple[Array, Array], Float[Array, "batch dim"]]:
            output, cell = state
            product = jnp.einsum("bd,gd->bg", output, recurrent, preferred_element_type=jnp.float32)
            enter, forget, candidate, leave = jnp.split(given + product, 4, axis=-1)
            cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(enter) * jnp.tanh(candidate)
            output = (jax.nn.sigmoid(leave) * jnp.tanh(cell)).astype(self.dtype)
            return (output, cell), output

        batch, _, dim = x.shape
        start = jnp.zeros((batch, dim), self.dtype), jnp.zeros((batch, dim))
        _, outputs = jax.lax.scan(step, start, jnp.swapaxes(inputs, 0, 1))
        return jnp.swapaxes(outputs, 0, 1)


class LSTM(nnx.Module):
    """Stacked layers, their input added to the result."""

    def __init__(self, dim: int, num_layers: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([LSTMLayer(dim, dtype=dtype, rngs=rngs) for _ in range(num_layers)])

    def __call__(self, x: Float[Array, "batch time dim"]) -> Float[Array, "batch time dim"]:
        y = x
        for layer in self.layers:
            y = layer(y)
        return x + y
