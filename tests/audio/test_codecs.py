"""What holds for every codec: lengths, ranges, leading codebooks, storage; and EnCodec with Vocos on awkward sounds."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxinstruct_jax.audio.codecs import KINDS, EncodecVocosConfig, codec_classes
from voxinstruct_jax.audio.encodec import EncodecConfig
from voxinstruct_jax.audio.mimi import MimiConfig
from voxinstruct_jax.audio.published_vocos import CodeVocosConfig
from voxinstruct_jax.audio.waveform import read_audio
from voxinstruct_jax.checkpoints.weights import load_weights, save_weights
from voxinstruct_jax.config import ConfigError, InputError, from_dict, to_dict

KINDS_SIZE = 32
"""Entries a codebook of every tiny codec."""
CORPUS = Path(__file__).parents[1] / "corpus" / "asterisk" / "audio"


def random_codec(kind):
    """A tiny codec of random numbers, drawn by NumPy: to compile the usual initial values takes far longer."""
    config_class, codec_class = codec_classes(kind)
    random = np.random.default_rng(0)

    def draw(leaf):
        scale = np.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else 0.2
        return jnp.asarray(scale * random.standard_normal(leaf.shape), leaf.dtype)

    graph, state = nnx.split(nnx.eval_shape(lambda: codec_class(config_class.tiny(), rngs=nnx.Rngs(0))))
    return nnx.merge(graph, jax.tree.map(draw, state))


@pytest.fixture(scope="module", params=sorted(KINDS))
def codec(request):
    return random_codec(request.param)


@pytest.fixture(scope="module")
def pair():
    return random_codec("encodec_vocos")


@pytest.fixture(scope="module")
def speech():
    """30 s of phone announcements, one after another."""
    parts, total = [], 0
    for path in sorted(CORPUS.glob("*.ogg")):
        parts.append(read_audio(path, 24_000))
        total += len(parts[-1])
        if total >= 30 * 24_000:
            break
    return np.concatenate(parts)[: 30 * 24_000]


def test_a_frame_for_every_started_hop_and_a_hop_for_every_frame(codec):
    config = codec.config
    assert config.frame_rate * config.hop_length == config.sample_rate
    samples = jnp.sin(jnp.arange(2 * config.hop_length + 1.0))[None]
    codes = codec.encode(samples)
    assert codes.shape == (1, config.num_codebooks, 3)
    assert codes.dtype == jnp.int32
    assert 0 <= int(codes.min()) <= int(codes.max()) < config.codebook_size
    decoded = codec.decode(codes)
    assert decoded.shape == (1, 3 * config.hop_length)
    assert decoded.dtype == jnp.float32
    np.testing.assert_array_equal(codec.encode(samples, 2), codes[:, :2])
    assert codec.decode(codes[:, :2]).shape == decoded.shape


def test_more_codebooks_than_there_are_is_an_error(codec):
    with pytest.raises(InputError, match="99 codebooks are asked for; this codec has 1 to"):
        codec.encode(jnp.zeros((1, 4000)), num_codebooks=99)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_codec_survives_storage_in_a_voice_folder(kind, tmp_path):
    codec = random_codec(kind)
    settings = {"kind": kind, "model": to_dict(codec.config), "step": 0}
    save_weights(tmp_path / "codec", nnx.to_pure_dict(nnx.state(codec)), settings, card="# Codec\n")
    stored, arrays = load_weights(tmp_path / "codec")
    config_class, codec_class = codec_classes(stored["kind"])
    config = from_dict(config_class, stored["model"])
    assert config == codec.config
    graph, state = nnx.split(nnx.eval_shape(lambda: codec_class(config, rngs=nnx.Rngs(0))))
    nnx.replace_by_pure_dict(state, arrays)
    again = nnx.merge(graph, state)
    for one, other in zip(jax.tree.leaves(nnx.state(again)), jax.tree.leaves(nnx.state(codec)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_codes_that_there_are_not_are_an_error(codec):
    """JAX itself would take the nearest entry that there is."""
    with pytest.raises(InputError, match="there are no frames to decode"):
        codec.decode(np.zeros((1, 4, 0), np.int32))
    for wrong in (-1, codec.config.codebook_size):
        codes = np.zeros((1, 2, 3), np.int32)
        codes[0, 1, 2] = wrong
        with pytest.raises(InputError, match=rf"codes run from .* to .*; this codec has 0 to {KINDS_SIZE - 1}"):
            codec.decode(codes)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((1, 0), np.float32), "there are no samples; give at least one"),
        (np.array([[0.1, np.nan, 0.2]], np.float32), "samples hold NaN or infinity"),
        (np.array([[0.1, -np.inf]]), "samples hold NaN or infinity"),
        (np.arange(900, dtype=np.int16)[None], r"samples are int16; give floats from -1 to 1, .* / 32768"),
    ],
)
def test_what_is_no_sound_is_an_error(codec, samples, message):
    with pytest.raises(InputError, match=message) as refusal:
        codec.encode(samples)
    assert "\n" not in str(refusal.value)


def test_loud_samples_are_taken_as_they_are(pair, speech):
    """As the original does: there is no limit at 1, so nothing is clipped on the way."""
    loud = (3.0 / np.abs(speech).max()) * speech[None, 24_000:30_000]
    assert (np.asarray(pair.encode(loud)) != np.asarray(pair.encode(np.clip(loud, -1, 1)))).any()
    np.testing.assert_array_equal(pair.encode(loud.astype(np.float64)), pair.encode(loud.astype(np.float32)))


def test_an_unknown_kind_names_the_known_ones():
    with pytest.raises(InputError, match="no codec of kind 'dac'; known: codec, encodec, encodec_vocos, mimi"):
        codec_classes("dac")


@pytest.mark.parametrize(
    "make",
    [
        lambda speech: speech[:1],
        lambda speech: speech[24_000 : 24_000 + 320],
        lambda speech: speech,
        lambda speech: np.zeros(4_000, np.float32),
        lambda speech: np.clip(100 * speech[24_000:30_001], -1, 1),
    ],
    ids=["one sample", "one frame", "30 s", "silence", "clipping"],
)
def test_encodec_and_vocos_take_any_sound(pair, speech, make):
    samples = make(speech)[None]
    frames = -(-samples.shape[1] // 320)
    codes = pair.encode(samples)
    assert codes.shape == (1, 8, frames)
    assert 0 <= int(codes.min()) <= int(codes.max()) < 32
    decoded = np.asarray(pair.decode(codes))
    assert decoded.shape == (1, frames * 320)
    assert np.isfinite(decoded).all()
    assert np.abs(decoded).max() > 0


def test_silence_settles_to_one_code_a_codebook(pair):
    codes = np.asarray(pair.encode(np.zeros((1, 16_000), np.float32)))
    np.testing.assert_array_equal(codes[:, :, 40:], np.broadcast_to(codes[:, :, -1:], (1, 8, 10)))


def test_what_follows_does_not_change_the_frames_before(pair, speech):
    samples, cut = speech[None, : 320 * 60], 320 * 41
    latents = jax.jit(type(pair.encodec).latents)
    whole, first = latents(pair.encodec, samples), latents(pair.encodec, samples[:, :cut])
    np.testing.assert_allclose(first, whole[:, :41], atol=1e-4 * float(jnp.abs(whole).max()))


def test_bandwidths_of_encodec_are_numbers_of_codebooks():
    config = EncodecConfig()
    assert [config.codebooks_at(kbit_s) for kbit_s in (1.5, 3.0, 6.0, 12.0, 24.0)] == [2, 4, 8, 16, 32]
    with pytest.raises(ConfigError, match=r"48.0 kbit/s would take 64 codebooks; there are 1 to 32"):
        config.codebooks_at(48.0)
    with pytest.raises(ConfigError, match=r"0.5 kbit/s would take 0"):
        config.codebooks_at(0.5)


def test_published_sizes():
    def count(kind):
        config_class, codec_class = codec_classes(kind)
        leaves = jax.tree.leaves(nnx.state(nnx.eval_shape(lambda: codec_class(config_class(), rngs=nnx.Rngs(0)))))
        return sum(int(np.prod(leaf.shape)) for leaf in leaves)

    norms_of_convolutions, second_biases_of_lstms = 4_993, 4 * 2048  # ours are folded in
    network = 14_851_810 - norms_of_convolutions - second_biases_of_lstms
    assert count("encodec") == network + 32 * 1024 * 128
    assert count("encodec_vocos") - count("encodec") == 10_081_410
    assert (EncodecConfig().frame_rate, MimiConfig().frame_rate, MimiConfig().hop_length) == (75.0, 12.5, 1920)


def test_parts_that_do_not_fit_together_are_refused():
    with pytest.raises(ConfigError, match="must agree on hop_length and codebook_size"):
        EncodecVocosConfig(vocos=CodeVocosConfig(codebook_size=512))
    with pytest.raises(ConfigError, match="num_codebooks 32: vocos has 16 at most"):
        EncodecVocosConfig(encodec=EncodecConfig(num_codebooks=32))
    with pytest.raises(ConfigError, match="num_codebooks 33 must be from 1 to stack_size 32"):
        EncodecConfig(num_codebooks=33)


def test_configurations_are_plain_json():
    for config_class, _ in KINDS.values():
        for config in (config_class(), config_class.tiny()):
            assert from_dict(config_class, json.loads(json.dumps(to_dict(config)))) == config
