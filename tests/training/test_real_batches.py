"""Batches of the bundled tokens, through the models: what packing and hosts must not change."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxinstruct_jax.data.batches import BatchConfig, ClipForm, TokenBatches
from voxinstruct_jax.data.packing import pack, unpack
from voxinstruct_jax.data.shards import ShardReader
from voxinstruct_jax.models.ar import ARConfig, ARModel
from voxinstruct_jax.models.nar import NARConfig, NARModel
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.training.language_model import clip_uniform, row_keys
from voxinstruct_jax.training.nar import NARObjective, draw_masks
from voxinstruct_jax.vocabulary import Vocabulary

DEV = Path(__file__).parents[2] / "corpus" / "dev"
VOCABULARY = Vocabulary(num_semantic=256, codebook_size=1024, num_codebooks=4)
CONFIG = BatchConfig(text_width=320, time_width=512, rows=8, prompt_ratio=1.0, max_prompt_frames=20)


@pytest.fixture(scope="module", params=[True, False], ids=["aligned", "sequence"])
def batches(request):
    tokenizer = PronunciationTokenizer()
    return TokenBatches(ShardReader(DEV), tokenizer, VOCABULARY, CONFIG, form=ClipForm(aligned=request.param))


@pytest.mark.parametrize("kind", ["ar", "nar"])
def test_a_packed_clip_gets_the_logits_it_gets_alone(batches, kind):
    """With voice prompts, in rows of several real clips."""
    timing = "aligned" if batches[0].times is not None else "sequence"
    config_class, model_class = {"ar": (ARConfig, ARModel), "nar": (NARConfig, NARModel)}[kind]
    config = config_class.tiny(vocabulary=VOCABULARY, channel_sizes=PronunciationTokenizer().channel_sizes)
    model = model_class(dataclasses.replace(config, timing=timing), rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)

    @jax.jit
    def forward(state, batch):
        nothing = jnp.zeros(batch.segment_ids.shape, bool)
        merged = nnx.merge(graph, state)
        if kind == "ar":
            return merged(batch, nothing, nothing)
        return merged(batch, jnp.full(len(batch.segment_ids), 2), nothing)

    row = max(unpack(batches[0]), key=len)
    assert len(row) > 1
    assert any(clip.prompt_frames for clip in row)
    rows = [row, *([clip] for clip in row)]
    batch = pack(rows, text_width=320, time_width=512, clip_ids=np.arange(len(rows)))
    together, *alone = np.asarray(forward(state, jax.tree.map(jnp.asarray, batch)))
    for segment, logits in enumerate(alone, 1):
        mine = together[batch.segment_ids[0] == segment]
        np.testing.assert_allclose(mine, logits[: len(mine)], atol=2e-4)
        assert np.abs(logits[: len(mine)]).max() > 0.1


def test_masks_and_drops_follow_from_step_and_row_however_many_hosts_read_them(batches):
    config = NARConfig.tiny(vocabulary=VOCABULARY, channel_sizes=PronunciationTokenizer().channel_sizes)

    @functools.partial(jax.jit, static_argnums=0)
    def draw(seed, batch, step):
        key = jax.random.fold_in(jax.random.key(seed), step)
        found = draw_masks(NARObjective(), config, batch, key)
        return found.codebook, found.tokens, found.masked, clip_uniform(row_keys(key, batch), batch.segment_ids)

    batch = jax.tree.map(jnp.asarray, batches[3])
    whole = draw(7, batch, 3)
    for first, last in ((0, 2), (2, 8)):
        host = jax.tree.map(lambda array, first=first, last=last: array[first:last], batch)
        for part, all_rows in zip(draw(7, host, 3), whole, strict=True):
            np.testing.assert_array_equal(part, all_rows[first:last])
    for other in (draw(7, batch, 4), draw(8, batch, 3)):
        assert (np.asarray(other[2]) != np.asarray(whole[2])).any()
        assert (np.asarray(other[3]) != np.asarray(whole[3])).any()
