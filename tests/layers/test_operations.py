import jax
import jax.numpy as jnp

from voxinstruct_jax.layers.operations import count_operations


def test_products_loops_branches_and_convolutions_are_counted():
    x, w = jnp.zeros((3, 4)), jnp.zeros((4, 4))
    product = 2 * 3 * 4 * 4
    assert count_operations(lambda x: jnp.tanh(x @ w), x) == product
    assert count_operations(lambda x: jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=5)[0], x) == 5 * product
    assert count_operations(lambda x: jax.lax.cond(x.sum() > 0, lambda: x @ w @ w, lambda: x), x) == 2 * product
    assert count_operations(jax.jit(lambda x: jax.checkpoint(lambda y: y @ w)(x)), x) == product
    # the gradient of a product is two of them; that of the input alone is one
    assert count_operations(jax.grad(lambda w: (x @ w).sum()), w) == 2 * product

    def convolution(x):
        kernel = jnp.zeros((3, 4, 6))
        return jax.lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))

    assert count_operations(convolution, jnp.zeros((2, 10, 4))) == 2 * (2 * 10 * 6) * (3 * 4)
