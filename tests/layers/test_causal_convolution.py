import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxinstruct_jax.layers.causal_convolution import CausalConv, CausalUpsample, pad_time
from voxinstruct_jax.layers.lstm import LSTM

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("reflect", [3, 2, 1, 2, 3, 4, 3]),
        ("constant", [0, 0, 1, 2, 3, 4, 0]),
        ("edge", [1, 1, 1, 2, 3, 4, 4]),
    ],
)
def test_padding_modes(mode, expected):
    padded = pad_time(jnp.arange(1.0, 5)[None, :, None], 2, 1, mode)
    np.testing.assert_array_equal(padded[0, :, 0], expected)


def test_a_signal_too_short_to_mirror_is_filled_up_with_zeros_that_are_cut_off_again():
    one, two = jnp.array([[[7.0]]]), jnp.array([[[7.0], [8.0]]])
    np.testing.assert_array_equal(pad_time(one, 3, 0, "reflect")[0, :, 0], [0, 0, 0, 7])
    np.testing.assert_array_equal(pad_time(two, 3, 1, "reflect")[0, :, 0], [0, 0, 8, 7, 8, 0])


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (1, 2), (3, 1)])
def test_there_is_an_output_for_every_started_stride_and_none_sees_the_future(stride, dilation):
    conv = CausalConv(2, 3, 2 * stride + 1, stride=stride, dilation=dilation, pad_mode="edge", rngs=nnx.Rngs(0))
    x = jnp.asarray(RANDOM.standard_normal((1, 20, 2)), jnp.float32)
    y = jax.jit(conv)(x)
    assert y.shape == (1, -(-20 // stride), 3)
    for frame in range(4):
        changed = jax.jit(conv)(x.at[:, (frame + 1) * stride :].set(9.0))
        np.testing.assert_array_equal(changed[:, : frame + 1], y[:, : frame + 1])
        assert not np.array_equal(changed[:, frame + 1], y[:, frame + 1])


@pytest.mark.parametrize("stride", [1, 2, 5])
def test_upsampling_is_the_transposed_convolution_cut_on_the_right(stride):
    up = CausalUpsample(3, 4, stride=stride, rngs=nnx.Rngs(0))
    up.bias[...] = jnp.arange(4.0)
    x = jnp.asarray(RANDOM.standard_normal((2, 7, 3)), jnp.float32)
    before, own = up.kernel[...].reshape(2, 3, stride, 4)
    expected = np.tile(np.arange(4.0), (2, 8 * stride, 1))
    for t in range(7):
        for j in range(stride):
            expected[:, t * stride + j] += x[:, t] @ own[:, j]
            expected[:, (t + 1) * stride + j] += x[:, t] @ before[:, j]
    np.testing.assert_allclose(up(x), expected[:, : 7 * stride], atol=1e-5)


def test_lstm_equals_its_equations_step_by_step():
    lstm = LSTM(4, 2, rngs=nnx.Rngs(0))
    for layer in lstm.layers:
        layer.bias[...] = jnp.asarray(RANDOM.standard_normal(16), jnp.float32)
    x = RANDOM.standard_normal((3, 6, 4)).astype(np.float32)
    expected = x
    for layer in lstm.layers:
        hidden, cell, outputs = np.zeros((3, 4)), np.zeros((3, 4)), []
        for t in range(6):
            gates = expected[:, t] @ np.asarray(layer.input_kernel[...])
            gates = gates + hidden @ np.asarray(layer.recurrent_kernel[...]).T + np.asarray(layer.bias[...])
            enter, forget, candidate, leave = np.split(gates, 4, axis=-1)
            cell = cell / (1 + np.exp(-forget)) + np.tanh(candidate) / (1 + np.exp(-enter))
            hidden = np.tanh(cell) / (1 + np.exp(-leave))
            outputs.append(hidden)
        expected = np.stack(outputs, axis=1)
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(lstm(jnp.asarray(x)), x + expected, atol=1e-5)
