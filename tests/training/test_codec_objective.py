import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxinstruct_jax.audio.codec import CodecConfig, CodecTraining, MelCodec
from voxinstruct_jax.training.codec import CodecObjective, codec_loss
from voxinstruct_jax.training.optimizer import OptimizerConfig, make_optimizer
from voxinstruct_jax.training.step import init_state, make_train_step

OBJECTIVE = CodecObjective(stft_windows=(256, 512), mel_weight=2.0, stft_weight=0.5, commitment_weight=0.25)


class Copier(MelCodec):
    """Gives its input back, scaled."""

    def __init__(self, scale):
        self.config, self.scale = CodecConfig.tiny(), scale

    def reconstruct(self, samples, key):
        return CodecTraining(self.scale * samples, jnp.asarray(0.8), jnp.asarray([5.0, 4.0, 3.0, 2.0]))


@pytest.fixture(scope="module")
def noise():
    return jnp.asarray(np.random.default_rng(0).uniform(-0.4, 0.4, (2, 3840)), jnp.float32)


def evaluate(scale, samples):
    return jax.jit(lambda samples: codec_loss(OBJECTIVE, Copier(scale), samples, jax.random.key(0)))(samples)


def test_a_perfect_copy_costs_its_commitment_alone(noise):
    loss, metrics = evaluate(1.0, noise)
    assert float(loss) == pytest.approx(0.25 * 0.8)
    assert float(metrics["mel_l1"]) == float(metrics["stft_l1"]) == 0
    assert float(metrics["perplexity_first"]) == 5
    assert float(metrics["perplexity_last"]) == 2


def test_a_copy_of_half_the_level_costs_log_2_in_either_distance(noise):
    loss, metrics = evaluate(0.5, noise)
    assert float(metrics["mel_l1"]) == pytest.approx(math.log(2), rel=1e-3)
    assert float(metrics["stft_l1"]) == pytest.approx(math.log(2), rel=1e-2)  # the quietest bins meet the constant
    assert float(loss) == pytest.approx(2.0 * math.log(2) + 0.5 * math.log(2) + 0.25 * 0.8, rel=1e-2)


def test_silence_has_a_finite_gradient():
    def loss(scale):
        return codec_loss(OBJECTIVE, Copier(scale), jnp.zeros((1, 1920)), jax.random.key(0))[0]

    assert np.isfinite(float(jax.jit(jax.grad(loss))(1.0)))


def test_a_tiny_codec_learns_a_handful_of_tones():
    tiny = CodecConfig.tiny()
    config = dataclasses.replace(tiny, vocos=dataclasses.replace(tiny.vocos, num_layers=1))
    time = np.arange(9600) / 24_000
    tones = np.stack([0.3 * np.sin(2 * np.pi * hz * time) for hz in (220, 440, 880, 1760)])
    samples = jnp.asarray(tones, jnp.float32)
    optimizer = make_optimizer(OptimizerConfig(peak_lr=3e-3, warmup_steps=5, weight_decay=0.0, max_grad_norm=1.0))
    objective = CodecObjective(stft_windows=(512,))

    def codec_objective(model, batch, key):
        return codec_loss(objective, model, batch, key)

    model = MelCodec(config, rngs=nnx.Rngs(0))
    step = make_train_step(model, codec_objective, optimizer, seed=0)
    state = init_state(model, optimizer)
    losses = []
    for _ in range(60):
        state, metrics = step(state, samples)
        losses.append(float(metrics["mel_l1"]))
    assert losses[-1] < 0.5 * losses[0]
    assert int(state.step) == 60
