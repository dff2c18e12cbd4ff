import jax
import jax.numpy as jnp
import numpy as np
import pytest

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.layers.execution import Execution
from voxinstruct_jax.layers.packed_attention import TextRows, Visibility, attend_packed, resolve_backend

CLIPS = ((20, 40), (30, 25), (5, 6))
"""Text slots and audio slots of the clips of both rows; the rest of a row is padding."""
TIME, TEXT = 200, 96


@pytest.fixture(scope="module")
def rows():
    """Segment ids of two equal rows, and their text once more in narrow rows."""
    segments, is_text = np.zeros((2, TIME), np.int32), np.zeros((2, TIME), bool)
    index, text_segments = np.zeros((2, TIME), np.int32), np.zeros((2, TEXT), np.int32)
    at = text_at = 0
    for number, (text, audio) in enumerate(CLIPS, 1):
        segments[:, at : at + text + audio] = number
        is_text[:, at : at + text] = True
        index[:, at : at + text] = np.arange(text_at, text_at + text)
        text_segments[:, text_at : text_at + text] = number
        at, text_at = at + text + audio, text_at + text
    text_rows = TextRows(is_text=jnp.asarray(is_text), index=jnp.asarray(index), segment_ids=jnp.asarray(text_segments))
    return jnp.asarray(segments), text_rows


@pytest.mark.parametrize("backend", ["splash", "triton"])
@pytest.mark.parametrize("kind", ["both ways", "causal", "text both ways"])
def test_kernels_agree_with_the_reference_forward_and_backward(rows, backend, kind):
    segments, text = rows
    visibility = Visibility(
        segment_ids=segments, causal=kind != "both ways", text=text if kind == "text both ways" else None
    )
    random = np.random.default_rng(0)
    query = jnp.asarray(random.standard_normal((2, TIME, 4, 16)), jnp.float32)
    key, value = (jnp.asarray(random.standard_normal((2, TIME, 2, 16)), jnp.float32) for _ in range(2))

    def total(backend):
        def run(query, key, value):
            found = attend_packed(query, key, value, visibility, backend=backend)
            return jnp.sum(jnp.where((segments > 0)[..., None, None], found, 0) * jnp.cos(jnp.arange(16.0)))

        return jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2)))(query, key, value)

    (expected, expected_grads), (found, grads) = total("reference"), total(backend)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    for got, wanted in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_the_platform_and_dropout_choose_the_program():
    assert resolve_backend("auto", 0.0) == "reference"  # these tests run on a CPU
    assert resolve_backend("auto", 0.1) == "reference"
    assert resolve_backend("splash", 0.0) == "splash"
    with pytest.raises(ConfigError, match=r"attention 'splash' has no dropout; set --model.dropout 0"):
        resolve_backend("splash", 0.1)


def test_a_negative_chunk_is_refused():
    with pytest.raises(ConfigError, match=r"execution\.loss_chunk: -1 is below 0"):
        Execution(loss_chunk=-1)
