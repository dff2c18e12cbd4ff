"""What a decoder makes of linguistic features."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxinstruct_jax.audio.codec import CodecConfig, MelCodec
from voxinstruct_jax.audio.linguistic import MELODY_SPREAD, Melody, follow_melody
from voxinstruct_jax.config import ConfigError

SIZES = (5, 3, 4, 3, 4)
UNKNOWN = -np.ones((1, 4, 5), np.int32)


def known(frames: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.stack([random.integers(0, size, (1, frames)) for size in SIZES], axis=-1).astype(np.int32)


def test_a_melody_does_not_depend_on_the_padding_behind_a_clip():
    melody = Melody(SIZES, 8, 2, rngs=nnx.Rngs(0))
    features = known(6)
    padded = np.concatenate([features, UNKNOWN], axis=1)
    alone, beside = melody(jnp.asarray(features)), melody(jnp.asarray(padded))
    assert alone.shape == (1, 12)
    np.testing.assert_allclose(beside[:, :12], alone, atol=1e-5)


def test_dropout_hides_features_only_with_a_key():
    melody = Melody(SIZES, 8, 2, rngs=nnx.Rngs(0))
    features = jnp.asarray(known(6))
    told = melody(features, dropout_rate=0.5)
    np.testing.assert_array_equal(told, melody(features))
    assert not np.allclose(told, melody(features, dropout_rate=0.5, key=jax.random.key(0)))


def test_voiced_frames_follow_the_melody_about_the_median_that_they_have():
    features = known(3)
    pitch = jnp.array([[100.0, 0.0, 200.0, 400.0, 0.0, 800.0]])
    semitones = jnp.array([[0.0, 50.0, 12.0, 24.0, 50.0, 36.0]]) / MELODY_SPREAD
    found = follow_melody(pitch, semitones + 7.0, jnp.asarray(features))
    np.testing.assert_allclose(found, pitch, rtol=1e-5)  # the melody is the course that it has
    flat = np.asarray(follow_melody(pitch, jnp.zeros((1, 6)), jnp.asarray(features)))
    voiced = np.asarray(pitch) > 0
    np.testing.assert_allclose(flat[voiced], 2**0.5 * 200, rtol=1e-5)
    assert (flat[~voiced] == 0).all()


def test_frames_of_which_nothing_is_known_keep_their_pitch():
    features = np.concatenate([UNKNOWN[:, :1], known(2)], axis=1)
    pitch = jnp.array([[100.0, 110.0, 200.0, 400.0, 200.0, 400.0]])
    found = np.asarray(follow_melody(pitch, jnp.zeros((1, 6)), jnp.asarray(features)))
    np.testing.assert_array_equal(found[0, :2], [100.0, 110.0])
    np.testing.assert_allclose(found[0, 2:], 2**0.5 * 200, rtol=1e-5)
    np.testing.assert_array_equal(follow_melody(pitch, jnp.zeros((1, 6)), jnp.full((1, 3, 5), -1)), pitch)


def test_what_is_said_changes_the_tune_of_decoded_codes():
    tiny = CodecConfig.tiny()
    source = dataclasses.replace(tiny.vocos, source_rate=tiny.sample_rate)
    config = dataclasses.replace(tiny, vocos=source, feature_sizes=SIZES, melody_dim=8)
    codec = MelCodec(config, rngs=nnx.Rngs(0))
    codec.vocos.pitch_head.bias[...] = codec.vocos.pitch_head.bias[...].at[40].set(9.0)  # voiced throughout
    codes = np.zeros((1, config.num_codebooks, 6), np.int32)
    told = known(6)
    plain, tuned = codec.decode(codes), codec.decode(codes, told)
    assert plain.shape == tuned.shape
    codec.melody.last.kernel[...] = 0 * codec.melody.last.kernel[...]
    assert not np.allclose(codec.decode(codes, told), tuned, atol=1e-4)


def test_a_melody_without_features_or_source_is_refused():
    with pytest.raises(ConfigError, match=r"melody_dim: a melody needs feature_sizes"):
        CodecConfig(melody_dim=8)
