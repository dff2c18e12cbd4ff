import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from flax import nnx

from voxinstruct_jax.audio.codec import CodecConfig, CodecTraining, MelCodec
from voxinstruct_jax.training.codec import CodecExperiment, CodecObjective, SegmentData, codec_loss, codec_task
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


def test_the_task_reads_whole_codec_frames_and_is_the_same_run_wherever_its_cache_lies(tmp_path):
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", random.uniform(-0.5, 0.5, 9000), 24_000)
    rows = [{"id": name, "audio": f"{name}.wav", "language": "en", "transcript": name} for name in ("a", "b")]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = SegmentData(manifest=str(tmp_path / "manifest.jsonl"), segment_s=0.13, rows=3)
    task = codec_task(CodecExperiment(model=CodecConfig.tiny(), data=data))
    assert task.batches[0].shape == (3, 2880)  # .13 s is 3.25 frames of 960 samples
    assert task.count_tokens(task.batches[0]) == 9
    elsewhere = dataclasses.replace(data, cache=str(tmp_path / "other"))
    assert codec_task(CodecExperiment(model=CodecConfig.tiny(), data=elsewhere)).identity == task.identity
    longer = dataclasses.replace(data, segment_s=0.5)
    other = codec_task(CodecExperiment(model=CodecConfig.tiny(), data=longer)).identity
    assert [name for name in other if other[name] != task.identity[name]] == ["batch"]


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
