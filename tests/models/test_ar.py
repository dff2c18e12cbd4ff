import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxinstruct_jax.config import ConfigError, InputError, from_dict, to_dict
from voxinstruct_jax.models.ar import ARConfig, ARModel
from voxinstruct_jax.models.conditioning import NUM_DURATIONS, expected_durations, place_text, slot_positions
from voxinstruct_jax.models.llama import LlamaConfig, init_cache
from voxinstruct_jax.vocabulary import ACOUSTIC, SEMANTIC, Vocabulary

VOCABULARY = Vocabulary(num_semantic=9, codebook_size=6, num_codebooks=3)
CONFIG = ARConfig.tiny(vocabulary=VOCABULARY, channel_sizes=(11, 7))


@functools.partial(jax.jit, static_argnums=0)
def run(graph, state, batch, drops, key):
    """The hot path: plain jit over split state."""
    return nnx.merge(graph, state)(batch, *drops, key=key)


def make_forward(model):
    def forward(batch, *, drop_text=False, drop_semantic=False, key=None):
        drops = tuple(jnp.broadcast_to(drop, batch.segment_ids.shape) for drop in (drop_text, drop_semantic))
        return np.asarray(run(*nnx.split(model), batch, drops, key))

    return forward


@pytest.fixture(scope="module")
def model(build):
    return build(ARModel, CONFIG)


@pytest.fixture(scope="module")
def forward(model):
    return make_forward(model)


def edit(batch, field, place, value):
    return dataclasses.replace(batch, **{field: getattr(batch, field).at[place].set(value)})


def test_paper_size():
    """The original trains 207,432,704 weights, 1530 x 1024 of them in a table that it never reads."""
    model = nnx.eval_shape(lambda: ARModel(ARConfig.paper(), rngs=nnx.Rngs(0)))
    trained = sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    frozen = sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.state(model))) - trained
    assert trained == 205_865_984 == 207_432_704 - 1530 * 1024
    assert frozen == 277_040_256


def test_every_weight_names_its_axes():
    model = nnx.eval_shape(lambda: ARModel(ARConfig.paper(), rngs=nnx.Rngs(0)))
    names = {"vocab", "embed", "heads", "mlp", "layers", None}
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        axes = variable.get_metadata()["out_sharding"]
        assert len(axes) == len(variable.shape), path
        assert set(axes) <= names, path


def test_small_models_keep_to_the_release_limits():
    config = ARConfig.small(vocabulary=Vocabulary(), channel_sizes=(512, 128))
    model = nnx.eval_shape(lambda: ARModel(config, rngs=nnx.Rngs(0)))
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.state(model))) <= 25_000_000


def test_packed_clips_equal_separate_ones(forward, separate, packed, clips):
    alone, together = forward(separate), forward(packed)
    first, second = (clip.length for clip in clips)
    np.testing.assert_allclose(together[0, :first], alone[0, :first], atol=1e-4)
    np.testing.assert_allclose(together[0, first : first + second], alone[1, :second], atol=1e-4)
    np.testing.assert_allclose(together[1, :second], alone[1, :second], atol=1e-4)
    np.testing.assert_allclose(together[1, second : first + second], alone[0, :first], atol=1e-4)


def test_padding_content_never_matters(forward, separate, clips):
    noisy = edit(separate, "tokens", (0, 0, slice(clips[0].length, None)), 5)
    noisy = edit(noisy, "text_tokens", (0, slice(4, None)), 3)
    length = clips[0].length
    np.testing.assert_array_equal(forward(noisy)[0, :length], forward(separate)[0, :length])
    assert np.isfinite(forward(separate)).all()


def test_audio_is_causal(forward, separate, clips):
    place = clips[0].length - 3
    before, after = forward(separate), forward(edit(separate, "tokens", (0, 0, place), VOCABULARY.acoustic_offset + 5))
    np.testing.assert_array_equal(before[0, :place], after[0, :place])
    assert np.abs(before[0, place] - after[0, place]).max() > 1e-3


@pytest.mark.parametrize(("attention", "sees"), [("bidirectional", True), ("causal", False)])
def test_text_sees_later_text_unless_causal(build, separate, attention, sees):
    """Through the blocks alone: an encoder that mixes nothing passes an edit on to its own slot only."""
    model = build(ARModel, dataclasses.replace(CONFIG, text_attention=attention))
    for block in model.text.encoder.blocks:
        block.attention.output.kernel[...] = jnp.zeros((4, 8, 32))
    forward = make_forward(model)
    moved = np.abs(forward(edit(separate, "text_tokens", (0, 3, 0), 9)) - forward(separate))[0].max(axis=-1)
    assert ((moved[:3] > 1e-4) == sees).all()
    assert (moved[3:14] > 1e-4).all()


def test_later_text_edit_reaches_all_of_the_clip_and_nothing_else(forward, separate, packed, clips):
    changed = forward(edit(packed, "text_tokens", (0, 3, 0), 9)) - forward(packed)
    first, second = (clip.length for clip in clips)
    moved = np.abs(changed).max(axis=-1)
    assert (moved[0, :first] > 1e-4).all()
    assert (moved[0, first : first + second] == 0).all()
    assert (moved[1] == 0).all()


def test_without_text_its_content_does_not_matter(forward, separate):
    edited = edit(separate, "text_tokens", (0, 1), 5)
    np.testing.assert_array_equal(forward(separate, drop_text=True)[0], forward(edited, drop_text=True)[0])
    assert np.abs(forward(separate)[0] - forward(separate, drop_text=True)[0]).max() > 1e-3


def test_without_semantic_tokens_only_the_language_is_left(forward, separate, clips):
    """Text 4, BOS, LANG, then units at 6 to 8."""
    length = clips[0].length
    base = forward(separate, drop_semantic=True)[0, :length]
    other_units = edit(separate, "tokens", (0, 0, slice(6, 9)), VOCABULARY.semantic_offset + 8)
    np.testing.assert_array_equal(forward(other_units, drop_semantic=True)[0, :length], base)
    other_language = edit(separate, "tokens", (0, 0, 5), VOCABULARY.language_id("en"))
    assert np.abs(forward(other_language, drop_semantic=True)[0, :length] - base).max() > 1e-3
    other_code = edit(separate, "tokens", (0, 0, 10), VOCABULARY.acoustic_offset)
    assert np.abs(forward(other_code, drop_semantic=True)[0, :length] - base).max() > 1e-3


def test_drops_are_per_clip(forward, packed, clips):
    """Dropping the text of one packed clip leaves its neighbour as it was."""
    dropped, kept = forward(packed, drop_text=packed.segment_ids == 1), forward(packed)
    second = slice(clips[0].length, clips[0].length + clips[1].length)
    np.testing.assert_allclose(dropped[0, second], kept[0, second], atol=1e-5)
    assert np.abs(dropped[0, : clips[0].length] - kept[0, : clips[0].length]).max() > 1e-3


@pytest.fixture(scope="module")
def aligned(build):
    return build(ARModel, dataclasses.replace(CONFIG, timing="aligned"))


@pytest.fixture(scope="module")
def aligned_forward(aligned):
    return make_forward(aligned)


def test_aligned_models_need_times(aligned_forward, separate):
    with pytest.raises(InputError, match="an aligned model needs times; prepare the data with units that know phones"):
        aligned_forward(dataclasses.replace(separate, times=None))


def test_packed_clips_equal_separate_ones_by_their_times(aligned_forward, separate, packed, clips):
    alone, together = aligned_forward(separate), aligned_forward(packed)
    first, second = (clip.length for clip in clips)
    np.testing.assert_allclose(together[0, :first], alone[0, :first], atol=1e-4)
    np.testing.assert_allclose(together[0, first : first + second], alone[1, :second], atol=1e-4)
    np.testing.assert_allclose(together[1, second : first + second], alone[0, :first], atol=1e-4)


def test_only_distances_in_time_matter(aligned_forward, forward, separate, clips):
    shifts = jnp.array([[7.25], [-30.5]])
    moved = dataclasses.replace(separate, times=separate.times + shifts)
    parted = edit(separate, "times", (0, slice(0, 4)), separate.times[0, :4] + 1.5)  # the text alone
    base, lengths = aligned_forward(separate), [clip.length for clip in clips]
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(aligned_forward(moved)[row, :length], base[row, :length], atol=1e-3)
    assert np.abs(aligned_forward(parted) - base)[0, 4 : lengths[0]].max(axis=-1).min() > 3e-3
    np.testing.assert_array_equal(forward(parted), forward(separate))  # places count where nothing is aligned


def test_places_do_not_matter_to_aligned_models(aligned_forward, forward, separate):
    turned = dataclasses.replace(separate, positions=separate.positions[:, ::-1])
    np.testing.assert_array_equal(aligned_forward(turned), aligned_forward(separate))
    assert np.abs(forward(turned) - forward(separate)).max() > 1e-2


def test_durations_are_read_off_the_text_rows(aligned, model, separate):
    rows = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 32)), jnp.float32)
    logits = aligned.duration_logits(rows, jnp.zeros((2, 3, 2), jnp.int32))
    np.testing.assert_allclose(logits, np.asarray(rows) @ aligned.duration_head.kernel[...], atol=1e-4)
    assert logits.shape == (2, 3, NUM_DURATIONS)
    assert not hasattr(model, "duration_head")


def test_expected_durations_are_means_in_half_frames():
    logits = np.full((3, NUM_DURATIONS), -100.0, np.float32)
    logits[0, 5] = 0
    logits[1, [2, 8]] = 0
    logits[2] = 0
    np.testing.assert_allclose(expected_durations(jnp.asarray(logits)), [5.0, 5.0, 31.5], rtol=1e-5)


def test_predicting_from_text_rows_equals_the_whole_call(aligned, aligned_forward, separate):
    @jax.jit
    def predict(state, batch):
        module, nowhere = nnx.merge(nnx.graphdef(aligned), state), jnp.zeros(batch.segment_ids.shape, bool)
        text_rows = module.embed_text(batch.text_tokens, batch.text_segment_ids)
        return module.predict(batch, text_rows, nowhere, nowhere)

    np.testing.assert_allclose(predict(nnx.state(aligned), separate), aligned_forward(separate), atol=1e-5)


def test_part_embedding_is_added_by_part(model):
    tokens, rows = jnp.array([[5, 5, 5]]), jnp.full((1, 3, 32), 7.0)
    x = model.embed(tokens, jnp.array([[0, SEMANTIC, ACOUSTIC]]), rows)[0]
    parts = model.part_embedding[...]
    np.testing.assert_allclose(x[2] - x[1], parts[ACOUSTIC] - parts[SEMANTIC], atol=1e-5)
    np.testing.assert_allclose(x[0], 7 + parts[0], atol=1e-5)
    np.testing.assert_allclose(x[1], model.token_embedding.table[...][5] + parts[SEMANTIC], atol=1e-5)


def decode_in_chunks(model, batch, row, chunks, *, gap):
    """Hidden states of one row by cached decoding; cache slots start `gap` later than positions."""
    graph, state = nnx.split(model)

    @jax.jit
    def embed(state):
        module = nnx.merge(graph, state)
        text_rows = module.embed_text(batch.text_tokens, batch.text_segment_ids)
        placed = place_text(text_rows, batch, jnp.zeros(batch.segment_ids.shape, bool))
        return module.embed(batch.tokens[:, 0], batch.part_ids, placed)[row : row + 1]

    @jax.jit
    def step(state, x, positions, cache, slot, mask):
        module = nnx.merge(graph, state)
        hidden, cache = module.decode(x, positions, cache, slot, mask)
        return module.logits(hidden), cache

    x, logits, start = embed(state), [], 0
    all_positions = slot_positions(batch, model.config.timing)[row : row + 1]
    slots = 24
    cache = init_cache(model.config.backbone, 1, slots)
    num_text = int((batch.part_ids[row, :10] == 0).sum())
    for size in chunks:
        queries, keys = np.arange(start, start + size)[:, None], np.arange(slots)[None] - gap
        mask = (keys >= 0) & ((keys <= queries) | (keys < num_text))
        part = slice(start, start + size)
        slot = jnp.asarray(start + gap, jnp.int32)
        out, cache = step(state, x[:, part], all_positions[:, part], cache, slot, jnp.asarray(mask[None]))
        logits.append(out[0])
        start += size
    return np.concatenate(logits)


@pytest.mark.parametrize("gap", [0, 5])
def test_cached_decoding_equals_the_whole_pass(model, forward, separate, clips, gap):
    """A prefill with the text, single steps, and a chunk, in a cache with and without unused slots before it."""
    length = clips[0].length
    decoded = decode_in_chunks(model, separate, 0, [6, 1, 1, 1, length - 9], gap=gap)
    np.testing.assert_allclose(decoded, forward(separate)[0, :length], atol=1e-4)


def test_cached_decoding_at_moments_equals_the_whole_pass(aligned, aligned_forward, separate, clips):
    """Also where they lie between frames, and at another place than in the whole frames of the fixture."""
    moved = dataclasses.replace(separate, times=1.3 * separate.times - 0.85)
    length = clips[0].length
    decoded = decode_in_chunks(aligned, moved, 0, [6, 1, 1, length - 8], gap=3)
    np.testing.assert_allclose(decoded, aligned_forward(moved)[0, :length], atol=1e-4)
    assert np.abs(decoded - aligned_forward(separate)[0, :length]).max() > 1e-2


def test_dropout_follows_its_key(forward, separate):
    first, again, other = (forward(separate, key=jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_bfloat16_keeps_weights_and_logits_in_float32(build, forward, separate, clips):
    low = build(ARModel, dataclasses.replace(CONFIG, dtype="bfloat16"))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(nnx.state(low)))
    length = clips[0].length
    logits, expected = make_forward(low)(separate)[0, :length], forward(separate)[0, :length]
    assert logits.dtype == np.float32
    # bfloat16 keeps 8 bits; errors of some ten roundings add up.
    assert np.abs(logits - expected).mean() < 0.05 * np.abs(expected).mean()


def test_config_survives_a_round_trip():
    assert from_dict(ARConfig, to_dict(CONFIG)) == CONFIG
    assert hash(CONFIG) == hash(from_dict(ARConfig, to_dict(CONFIG)))


@pytest.mark.parametrize(
    ("build_config", "message"),
    [
        (lambda: from_dict(ARConfig, to_dict(CONFIG) | {"text_attention": "both"}), "text_attention"),
        (lambda: from_dict(ARConfig, to_dict(CONFIG) | {"dtype": "float16"}), "dtype"),
        (lambda: from_dict(ARConfig, to_dict(CONFIG) | {"timing": "late"}), "timing"),
        (lambda: dataclasses.replace(LlamaConfig.tiny(), num_kv_heads=3), "num_heads 4 must be a multiple"),
        (lambda: dataclasses.replace(LlamaConfig.tiny(), num_layers=0), "num_layers: 0"),
        (lambda: dataclasses.replace(LlamaConfig.tiny(), dropout=1.0), "dropout"),
    ],
)
def test_impossible_configs_are_refused(build_config, message):
    with pytest.raises(ConfigError, match=message):
        build_config()
