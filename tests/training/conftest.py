import jax
import jax.numpy as jnp
import numpy as np
import pytest

from voxinstruct_jax.audio.spectrogram import istft, mel_filters, stft
from voxinstruct_jax.data.packing import Clip, pack
from voxinstruct_jax.vocabulary import Vocabulary, build_layout


@pytest.fixture(scope="session")
def heard():
    """Turns natural-log mel spectrograms into sound by Griffin and Lim's method: no vocoder has to be trained."""

    def hear(log_mels, config, rounds=16):
        bounded = np.clip(log_mels, -12, 3)  # a network that has learnt nothing may say anything
        magnitude = np.maximum(np.exp(bounded) @ np.linalg.pinv(mel_filters(config)), 0)
        phase = jnp.exp(2j * np.pi * np.random.default_rng(0).random(magnitude.shape))

        def turn(phase, _):
            samples = istft(magnitude * phase, config.n_fft, config.hop_length)
            found = stft(samples, config.n_fft, config.hop_length)
            return found / jnp.maximum(jnp.abs(found), 1e-8), None

        found = jax.jit(lambda phase: istft(
            magnitude * jax.lax.scan(turn, phase, length=rounds)[0], config.n_fft, config.hop_length
        ))(phase)  # fmt: skip
        return np.asarray(found)

    return hear


@pytest.fixture(scope="session")
def make_batch():
    """Packs clips given as (units, codes), each with `num_text` text slots, all of one row together."""

    def make(vocabulary, rows, *, num_text=2, text_width=8, time_width=48):
        text_tokens = np.ones((num_text, 1), np.int32)
        clips = [
            [Clip(text_tokens=text_tokens, layout=build_layout(vocabulary, "en", units, codes)) for units, codes in row]
            for row in rows
        ]
        batch = pack(clips, text_width=text_width, time_width=time_width, clip_ids=np.arange(len(rows)))
        return jax.tree.map(jnp.asarray, batch)

    return make


@pytest.fixture(scope="session")
def worked_example(make_batch):
    """Full-size ids: units 17, 240, 499 and code t of codebook q = 100 q + t, five frames; two text slots."""
    codes = 100 * np.arange(8)[:, None] + np.arange(5)
    return make_batch(Vocabulary(), [[(np.array([17, 240, 499]), codes)]], text_width=2, time_width=16)
