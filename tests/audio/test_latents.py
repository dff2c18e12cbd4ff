"""Latents of the own codec, on real speech by the embedded one."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxinstruct_jax.audio.codec import CodecConfig
from voxinstruct_jax.audio.latents import LatentConfig, LatentSpace
from voxinstruct_jax.audio.mel_vae import MelVAEConfig
from voxinstruct_jax.audio.waveform import read_audio
from voxinstruct_jax.checkpoints.weights import load_weights
from voxinstruct_jax.config import ConfigError, from_dict
from voxinstruct_jax.data.manifest import read_manifest
from voxinstruct_jax.layers.parameter import FrozenParam

ROOT = Path(__file__).parents[2]
CORPUS, CODEC = ROOT / "tests/corpus/generated/manifest.jsonl", ROOT / "voxinstruct_jax/release/codec"
SAMPLES = 2 * 24_000


@pytest.fixture(scope="module")
def space():
    """The latent space of the embedded codec: graph and arrays."""
    settings, arrays = load_weights(CODEC)
    config = LatentConfig(codec=from_dict(CodecConfig, settings["model"]))
    graph, state = nnx.split(nnx.eval_shape(lambda: LatentSpace(config, rngs=nnx.Rngs(0))))
    nnx.replace_by_pure_dict(state, {"codec": arrays})
    return graph, state


@pytest.fixture(scope="module")
def speech():
    clips = [read_audio(row.audio, 24_000)[:SAMPLES] for row in read_manifest(CORPUS)[::2]]
    return np.stack([clip for clip in clips if len(clip) == SAMPLES])


@pytest.fixture(scope="module")
def latents(space, speech):
    graph, state = space
    return np.asarray(jax.jit(lambda state, x: nnx.merge(graph, state).encode(x))(state, speech))


def test_latents_of_speech_have_unit_variance_in_every_channel(latents, speech):
    assert latents.shape == (len(speech), 50, 64)
    flat = latents.reshape(-1, 64)
    assert np.abs(flat.mean(0)).mean() < 0.2
    assert np.abs(flat.mean(0)).max() < 0.5
    assert 0.75 < flat.std(0).min() < flat.std(0).max() < 1.3


def test_they_sound_as_the_codes_do(space, speech, latents):
    graph, state = space

    @jax.jit
    def both(state, samples, latents):
        space = nnx.merge(graph, state)
        return space.waveform(latents), space.codec.decode(space.codec.encode(samples))

    ours, codes = both(state, speech[:2], latents[:2])
    assert ours.shape == (2, SAMPLES)
    # Made about standard and back to rounding, which a pitch that is told from the latents adds up in its phase.
    np.testing.assert_allclose(ours, codes, atol=1e-2)


def test_training_leaves_the_codec_alone(space):
    assert not jax.tree.leaves(nnx.filter_state(space[1], nnx.Param))
    assert jax.tree.leaves(nnx.filter_state(space[1], FrozenParam))


def test_latents_are_decoded_the_way_their_kind_asks(space):
    graph, state = space
    whole = nnx.merge(graph, state)
    assert whole.config.spectrogram is None
    with pytest.raises(ConfigError, match="decoded to a waveform, not to a spectrogram"):
        whole.decode(jnp.zeros((1, 2, 64)))
    plain = LatentSpace(LatentConfig(), rngs=nnx.Rngs(0))
    assert plain.config.spectrogram == plain.config.mel
    with pytest.raises(ConfigError, match="only latents of a codec"):
        plain.waveform(jnp.zeros((1, 2, 32)))
    with pytest.raises(ConfigError, match="a codec or a vae, not both"):
        LatentConfig(codec=CodecConfig.tiny(), vae=MelVAEConfig.small())
