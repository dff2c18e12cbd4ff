import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxinstruct_jax.layers.execution import Execution
from voxinstruct_jax.layers.packed_attention import Visibility
from voxinstruct_jax.models.llama import Llama, LlamaConfig

CONFIG = LlamaConfig(num_layers=3, model_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, ffn_dim=32, dropout=0.2)


@functools.cache
def gradients(execution, dropout):
    key = jax.random.key(1) if dropout else None
    model = Llama(CONFIG, execution=execution, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 16)), jnp.float32)
    visibility = Visibility(segment_ids=jnp.ones((2, 6), jnp.int32), causal=True)
    positions = jnp.broadcast_to(jnp.arange(6), (2, 6))

    def loss(params):
        return jnp.sum(jnp.sin(nnx.merge(graph, params)(x, positions, visibility, key=key)))

    return jax.jit(jax.grad(loss))(params)


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize(
    ("remat", "scan"),
    [("none", True), *((remat, scan) for remat in ("dots", "names", "full") for scan in (False, True))],
)
def test_gradients_do_not_depend_on_how_blocks_are_run(remat, scan, dropout):
    expected, found = gradients(Execution(), dropout), gradients(Execution(remat=remat, scan=scan), dropout)
    jax.tree.map(lambda got, wanted: np.testing.assert_allclose(got, wanted, atol=2e-5), found, expected)
