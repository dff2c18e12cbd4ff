import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxinstruct_jax.layers.convolution import ConvNeXtBlock, DepthwiseConv


@pytest.mark.parametrize("kernel_size", [4, 7])
def test_depthwise_convolution_slides_one_filter_a_channel_over_zero_padding(kernel_size):
    layer = DepthwiseConv(3, kernel_size, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.asarray([0.5, -1.0, 2.0])
    x = np.random.default_rng(0).standard_normal((2, 9, 3)).astype(np.float32)
    kernel = np.asarray(layer.kernel[...])
    padded = np.pad(x, ((0, 0), (kernel_size // 2, (kernel_size - 1) // 2), (0, 0)))
    expected = np.stack(
        [(padded[:, t : t + kernel_size] * kernel).sum(axis=1) + np.asarray(layer.bias[...]) for t in range(9)], axis=1
    )
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, atol=1e-5)


def test_a_block_of_scale_zero_changes_nothing_and_one_of_scale_one_sees_three_steps_each_way():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 12, 4)), jnp.float32)
    np.testing.assert_array_equal(ConvNeXtBlock(4, 8, scale=0.0, rngs=nnx.Rngs(0))(x), x)
    block = ConvNeXtBlock(4, 8, scale=1.0, rngs=nnx.Rngs(0))
    graph, state = nnx.split(block)
    block = nnx.merge(graph, jax.tree.map(lambda a: a * 10 if a.ndim > 1 else a, state))
    changed = np.abs(np.asarray(block(x.at[0, 6].add(1.0)) - block(x))).max(axis=(0, 2)) > 1e-6
    np.testing.assert_array_equal(np.flatnonzero(changed), np.arange(3, 10))
