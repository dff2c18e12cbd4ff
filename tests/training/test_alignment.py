"""The guided attention loss: where it looks, and that following it moves attention to the spoken words."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from voxinstruct_jax.data.packing import Clip, pack
from voxinstruct_jax.models.ar import ARConfig, ARModel
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.training.alignment import guided_attention_loss, relative_place
from voxinstruct_jax.vocabulary import Vocabulary, build_layout

VOCABULARY = Vocabulary(num_semantic=20, codebook_size=32, num_codebooks=2)


def make_batch():
    tokenizer = PronunciationTokenizer()
    layout = build_layout(VOCABULARY, "en", np.arange(8), np.arange(20).reshape(2, 10))
    clip = Clip(text_tokens=tokenizer.encode('A man says "we won"'), layout=layout)
    rows = pack([[clip]], text_width=32, time_width=64, clip_ids=np.array([0]))
    return tokenizer, jax.tree.map(jnp.asarray, rows)


def test_places_are_shares_of_the_chosen_slots_of_a_clip():
    segment_ids = jnp.array([[1, 1, 1, 1, 2, 2, 0]])
    chosen = jnp.array([[False, True, True, False, True, False, False]])
    place, has_any = relative_place(segment_ids, chosen)
    np.testing.assert_allclose(place[0, jnp.array([1, 2, 4])], [0.25, 0.75, 0.5])
    np.testing.assert_array_equal(has_any[0], [True, True, True, True, True, True, False])


def test_following_the_loss_moves_attention_to_the_diagonal():
    tokenizer, batch = make_batch()
    config = ARConfig.tiny(vocabulary=VOCABULARY, channel_sizes=tokenizer.channel_sizes)
    graph, params, rest = nnx.split(ARModel(config, rngs=nnx.Rngs(0)), nnx.Param, ...)
    everywhere, nowhere = jnp.ones((1, 64), bool), jnp.zeros((1, 64), bool)

    def loss_fn(params):
        model, observed = nnx.merge(graph, params, rest), []
        model(batch, nowhere, nowhere, observed=observed)
        return guided_attention_loss(model, batch, observed, (1,), everywhere)

    optimizer = optax.adam(1e-2)
    step = jax.jit(lambda p, s: optimizer.update(jax.grad(loss_fn)(p), s, p))
    first, state = float(loss_fn(params)), optimizer.init(params)
    for _ in range(40):
        updates, state = step(params, state)
        params = optax.apply_updates(params, updates)
    assert float(loss_fn(params)) < first - 0.5


def test_clips_without_their_text_do_not_count():
    tokenizer, batch = make_batch()
    model = ARModel(ARConfig.tiny(vocabulary=VOCABULARY, channel_sizes=tokenizer.channel_sizes), rngs=nnx.Rngs(0))
    nowhere, observed = jnp.zeros((1, 64), bool), []
    model(batch, nowhere, nowhere, observed=observed)
    assert float(guided_attention_loss(model, batch, observed, (1,), nowhere)) == 0
