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


@pytest.fixture(scope="module")
def codec():
    return MelCodec(CodecConfig.tiny(), rngs=nnx.Rngs(0))


def test_the_small_codec_has_25_frames_a_second():
    config = CodecConfig.small()
    assert (config.sample_rate, config.hop_length, config.frame_rate) == (24_000, 960, 25.0)
    assert (config.num_codebooks, config.codebook_size) == (8, 512)


def test_the_small_codec_has_about_five_million_weights():
    codec = nnx.eval_shape(lambda: MelCodec(CodecConfig.small(), rngs=nnx.Rngs(0)))
    assert 4e6 < sum(leaf.size for leaf in jax.tree.leaves(nnx.state(codec, nnx.Param))) < 6e6


@pytest.mark.parametrize(("num_samples", "frames"), [(960, 1), (961, 2), (2880, 3), (3839, 4)])
def test_a_clip_has_a_frame_for_every_started_hop_and_comes_back_as_whole_frames(num_samples, frames):
    codec = nnx.eval_shape(lambda: MelCodec(CodecConfig.tiny(), rngs=nnx.Rngs(0)))
    codes = jax.eval_shape(lambda: codec.encode(jnp.zeros((2, num_samples))))
    assert codes.shape == (2, 4, frames)
    assert jax.eval_shape(lambda: codec.decode(jnp.zeros((2, 4, frames), jnp.int32))).shape == (2, frames * 960)


def test_codes_do_not_depend_on_the_batch_and_lie_in_the_codebook(codec):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 2880)).astype(np.float32)
    together = codec.encode(jnp.asarray(samples))
    assert together.dtype == jnp.int32
    assert (int(together.min()) >= 0, int(together.max()) < 32) == (True, True)
    np.testing.assert_array_equal(codec.encode(jnp.asarray(samples[1:]))[0], together[1])


def test_silence_after_the_end_fills_the_last_frame(codec):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 1500)).astype(np.float32)
    padded = np.pad(samples, ((0, 0), (0, 420)))
    np.testing.assert_array_equal(codec.encode(jnp.asarray(samples)), codec.encode(jnp.asarray(padded)))


def test_reconstruction_moves_the_codebooks_and_nothing_else(codec):
    graph, params, rest = nnx.split(codec, nnx.Param, ...)
    module = nnx.merge(graph, params, rest, copy=True)
    samples = jnp.asarray(np.random.default_rng(0).uniform(-0.5, 0.5, (2, 1920)), jnp.float32)
    result = module.reconstruct(samples, jax.random.key(0))
    assert result.samples.shape == samples.shape
    assert result.perplexity.shape == (4,)
    _, params_after, rest_after = nnx.split(module, nnx.Param, ...)
    jax.tree.map(np.testing.assert_array_equal, params, params_after)
    assert not np.array_equal(rest_after["quantizer"]["entries"][...], rest["quantizer"]["entries"][...])


def test_vocos_bounds_its_magnitudes():
    config = VocosConfig(dim=8, ffn_dim=8, num_layers=1, n_fft=32, hop_length=8)
    vocos = Vocos(config, rngs=nnx.Rngs(0))
    vocos.head.bias[...] = jnp.full(34, 80.0)  # exp(80) would be beyond float32
    samples = vocos(jnp.zeros((1, 6, 8)))
    assert samples.shape == (1, 48)
    assert float(jnp.abs(samples).max()) < 17 * MAX_MAGNITUDE


def test_a_codec_configuration_survives_storage():
    config = CodecConfig.tiny()
    assert from_dict(CodecConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_hops_of_mel_and_vocoder_must_agree():
    with pytest.raises(ConfigError, match="hop_length 240 must equal mel.hop_length 256"):
        dataclasses.replace(CodecConfig.tiny(), mel=MelConfig(hop_length=256))
