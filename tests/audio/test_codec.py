import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxinstruct_jax.audio.codec import CodecConfig, MelCodec
from voxinstruct_jax.audio.spectrogram import MelConfig
from voxinstruct_jax.audio.vocos import MAX_MAGNITUDE, Vocos, VocosConfig
from voxinstruct_jax.config import ConfigError, from_dict, to_dict

GRAPH, ABSTRACT = nnx.split(nnx.eval_shape(lambda: MelCodec(CodecConfig.tiny(), rngs=nnx.Rngs(0))))
encode = jax.jit(lambda state, samples: nnx.merge(GRAPH, state).encode(samples))


@pytest.fixture(scope="module")
def state():
    """Filled from NumPy: JAX's draws would take longer to compile than all the tests here."""
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.2 * random.standard_normal(leaf.shape), leaf.dtype), ABSTRACT)


@pytest.fixture(scope="module")
def noise():
    return jnp.asarray(np.random.default_rng(0).uniform(-0.5, 0.5, (2, 1920)), jnp.float32)


def test_the_small_codec_has_25_frames_a_second():
    config = CodecConfig.small()
    assert (config.sample_rate, config.hop_length, config.frame_rate) == (24_000, 960, 25.0)
    assert (config.num_codebooks, config.codebook_size, config.num_units) == (6, 1024, 256)


def test_the_small_codec_has_between_five_and_six_million_weights():
    codec = nnx.eval_shape(lambda: MelCodec(CodecConfig.small(), rngs=nnx.Rngs(0)))
    assert 5e6 < sum(leaf.size for leaf in jax.tree.leaves(nnx.state(codec, nnx.Param))) < 6e6


@pytest.mark.parametrize(("num_samples", "frames"), [(960, 1), (961, 2), (2880, 3), (3839, 4)])
def test_a_clip_has_a_frame_for_every_started_hop_and_comes_back_as_whole_frames(num_samples, frames):
    samples = jax.ShapeDtypeStruct((2, num_samples), jnp.float32)
    codes = jax.eval_shape(encode, ABSTRACT, samples)
    assert codes.shape == (2, 4, frames)
    decoded = jax.eval_shape(lambda state, codes: nnx.merge(GRAPH, state).decode(codes), ABSTRACT, codes)
    assert decoded.shape == (2, frames * 960)


def test_codes_do_not_depend_on_the_neighbours_and_lie_in_the_codebook(state, noise):
    codes = encode(state, noise)
    assert codes.dtype == jnp.int32
    assert int(codes.min()) >= 0
    assert int(codes.max()) < 32
    beside_silence = encode(state, noise.at[0].set(0.0))
    np.testing.assert_array_equal(beside_silence[1], codes[1])
    assert not np.array_equal(beside_silence[0], codes[0])


def test_silence_after_the_end_fills_the_last_frame(state, noise):
    np.testing.assert_array_equal(encode(state, noise[:, :1500]), encode(state, noise.at[:, 1500:].set(0.0)))


def test_training_moves_the_codebooks_and_no_weight(state, noise):
    @jax.jit
    def reconstruct(state):
        module = nnx.merge(GRAPH, state)
        result = module.reconstruct(noise, jax.random.key(0))
        assert result.unit_logits is None
        return result.samples, result.perplexity, nnx.split_state(nnx.state(module), nnx.Param, ...)

    samples, perplexity, (params_after, rest_after) = reconstruct(state)
    params, rest = nnx.split_state(state, nnx.Param, ...)
    assert samples.shape == noise.shape
    assert perplexity.shape == (4,)
    jax.tree.map(np.testing.assert_array_equal, params, params_after)
    assert all(
        not np.array_equal(before, after)
        for before, after in zip(jax.tree.leaves(rest), jax.tree.leaves(rest_after), strict=True)
    )


def test_unit_logits_come_from_the_first_codebook_alone(noise):
    config = dataclasses.replace(CodecConfig.tiny(), num_units=7)
    graph, abstract = nnx.split(nnx.eval_shape(lambda: MelCodec(config, rngs=nnx.Rngs(0))))
    random = np.random.default_rng(0)
    state = jax.tree.map(lambda leaf: jnp.asarray(0.2 * random.standard_normal(leaf.shape), leaf.dtype), abstract)

    @jax.jit
    def unit_logits(state):
        module = nnx.merge(graph, state)
        codes = module.encode(noise)
        return module.reconstruct(noise, jax.random.key(0)).unit_logits, codes

    logits, codes = unit_logits(state)
    first = np.asarray(state["quantizer"]["entries"][...])[0][np.asarray(codes[:, 0])]
    head = state["unit_head"]
    np.testing.assert_allclose(logits, first @ head["kernel"][...] + head["bias"][...], atol=1e-4)
    assert logits.shape == (2, 2, 7)


def test_vocos_bounds_its_magnitudes():
    config = VocosConfig(dim=8, ffn_dim=8, num_layers=1, n_fft=32, hop_length=8)

    @jax.jit
    def loud():
        vocos = Vocos(config, rngs=nnx.Rngs(0))
        vocos.head.bias[...] = jnp.full(34, 80.0)  # exp(80) = 5e34
        return vocos(jnp.zeros((1, 6, 8)))

    samples = loud()
    assert samples.shape == (1, 48)
    assert float(jnp.abs(samples).max()) < 17 * MAX_MAGNITUDE


def test_a_codec_configuration_survives_storage():
    config = CodecConfig.tiny()
    assert from_dict(CodecConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_hops_of_mel_and_vocoder_must_agree():
    with pytest.raises(ConfigError, match=r"hop_length 240 must equal mel.hop_length 256"):
        dataclasses.replace(CodecConfig.tiny(), mel=MelConfig(hop_length=256))
