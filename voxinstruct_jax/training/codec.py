"""Training of the project's own codec: spectral distances, then discriminators too.

Two more stages start from the first one's weights (`--train.init-from`): against discriminators, with
`objective.adversarial_weight` above 0, and of the decoder alone on the codes that a voice predicts (`data.codes`).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Float32, Int

from voxinstruct_jax.audio.codec import ENCODER_PARTS, CodecConfig, CodecTraining, MelCodec
from voxinstruct_jax.audio.discriminators import DiscriminatorConfig, Judgement, SpectrumDiscriminators
from voxinstruct_jax.audio.harmonics import pitch_loss
from voxinstruct_jax.audio.semantic import load_units
from voxinstruct_jax.audio.spectrogram import MelConfig, log_mel, stft
from voxinstruct_jax.audio.waveform import read_audio
from voxinstruct_jax.audio.whisper import WhisperEncoder, block_outputs, load_whisper_encoder
from voxinstruct_jax.config import ConfigError, InputError, fingerprint
from voxinstruct_jax.data.manifest import read_manifest
from voxinstruct_jax.data.predicted_codes import PredictedClip, read_codes
from voxinstruct_jax.data.progress import progress_bar
from voxinstruct_jax.data.segments import (
    INT16_SCALE,
    AudioCache,
    FrameTokens,
    SegmentBatch,
    SegmentBatches,
    build_cache,
)
from voxinstruct_jax.data.store import sha256
from voxinstruct_jax.judges.pitch import pitch_track
from voxinstruct_jax.layers.parameter import freeze
from voxinstruct_jax.sharding.mesh import MeshConfig, build_mesh, row_shares
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.step import Mean, StepConfig
from voxinstruct_jax.training.task import Program, Task, TrainConfig, identity
from voxinstruct_jax.training.units import FEATURE_SAMPLE_RATE, clip_units

__all__ = [
    "AdversarialCodec",
    "CodecExperiment",
    "CodecObjective",
    "SegmentData",
    "codec_loss",
    "codec_program",
    "codec_task",
    "hearing_distance",
    "mel_distance",
    "open_clips",
    "open_coded_clips",
    "segment_task",
    "stft_distance",
]


HEARING_LAYERS = 4
"""Blocks of Whisper base whose outputs are compared; the fourth is the one that units are made of."""
HEARING_STRIDE = 2
"""One crop in so many is heard: all of them would cost more than twice the rest of a step."""
TRUE_SHARE = 0.3
"""Share of crops that a decoder of predicted codes makes of true codes, so that it does not unlearn them. It is told
nothing else of these, as of a voice prompt: what is said in a prompt is not known."""
WRONG_SHARE, WRONG_FRAMES = 0.2, 2
"""Share of the other crops' frames whose codes are of another moment of the crop, and how many there are in a row: AR
models err, and where codes and what is said differ, the decoder is to keep to what is said."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodecObjective:
    """Weights of the loss terms and the analysis windows (samples)."""

    stft_windows: tuple[int, ...] = (512, 1024, 2048)
    mel_weight: float = 1.0
    stft_weight: float = 0.5
    commitment_weight: float = 0.25
    unit_weight: float = 0.0
    """Of the cross-entropy of semantic units given the first codebook."""
    pitch_weight: float = 0.1
    """Of the cross-entropy of the pitch of each mel frame, for a codec with a harmonic source."""
    hearing_weight: float = 0.0
    """Of the distance between what a speech recogniser's encoder makes of speech and reconstruction."""
    adversarial_weight: float = 0.0
    """Of what the discriminators think of the reconstruction; 0 = there are none."""
    feature_weight: float = 2.0
    """Of the distance between the discriminators' features of speech and reconstruction."""

    def __post_init__(self) -> None:
        if min(dataclasses.astuple(self)[1:]) < 0:
            raise ConfigError("objective: no weight may be below 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentData:
    """Random crops of the clips of a manifest."""

    manifest: str = "tests/corpus/generated/manifest.jsonl"
    cache: str = ""  # folder for the decoded audio; empty = `audio-cache` beside the manifest
    segment_s: float = 1.28
    rows: int = 16
    gain_db: float = 6.0  # each crop is scaled by a gain drawn from plus or minus this
    units: str = ""
    """Folder of the semantic units that the first codebook must tell; empty = none."""
    codes: str = ""
    """File of the codes that a voice predicts for the clips (`launch/predict_codes.py`): the decoder alone is trained,
    to make of them what the clips are. Clips that are not in it are left out. Empty = codec and clips alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodecExperiment:
    """Trains the codec."""

    model: CodecConfig = dataclasses.field(default_factory=CodecConfig.small)
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    """Of adversarial training."""
    objective: CodecObjective = CodecObjective()
    data: SegmentData = SegmentData()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    step: StepConfig = StepConfig()
    mesh: MeshConfig = MeshConfig()


class AdversarialCodec(MelCodec):
    """A codec with the discriminators that it is trained against; exported without them."""

    def __init__(self, config: CodecConfig, discriminator: DiscriminatorConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        self.discriminator = SpectrumDiscriminators(discriminator, rngs=rngs)


def codec_program(experiment: CodecExperiment) -> Program:
    """What is computed in a step."""
    config, discriminator = experiment.model, experiment.discriminator

    def build(rngs: nnx.Rngs) -> MelCodec:
        model = MelCodec(config, rngs=rngs)
        if experiment.objective.adversarial_weight:
            model = AdversarialCodec(config, discriminator, rngs=rngs)
        if experiment.data.codes:
            for name in vars(model).keys() & ENCODER_PARTS:
                freeze(getattr(model, name))
        if config.melody_dim:
            freeze(model.melody)  # it is trained by itself (`training.melody`)
        return model

    ear = None
    if experiment.objective.hearing_weight:
        loaded = load_whisper_encoder(HEARING_LAYERS)
        # arrays of the host become constants of the program, on however many devices it runs
        ear = dataclasses.replace(loaded, weights=jax.tree.map(np.asarray, loaded.weights))
    return Program(build_model=build, objective=functools.partial(codec_loss, experiment.objective, ear=ear))


def codec_loss(
    config: CodecObjective,
    model: MelCodec,
    batch: SegmentBatch,
    key: jax.Array,
    *,
    ear: WhisperEncoder | None = None,
) -> tuple[list[Mean], dict[str, Mean]]:
    """Mel and STFT distances between speech and its reconstruction, commitment, semantic units, pitch, and hearing.

    A first codebook that tells the units carries what is said: with few codes, or with later codebooks guessed, speech
    stays intelligible. What an encoder of a speech recogniser hears weighs the cells of a spectrogram by what they say.

    Source:
        Vocos (Siuzdak 2023), section 3.4 (L1 on log-mel); Parallel WaveGAN (Yamamoto et al. 2020), section 2.2
        (log STFT magnitudes at several windows); SpeechTokenizer (Zhang et al. 2023), section 3.2 (the first
        quantiser is taught by semantic tokens).
    """
    # The source has the true pitch, so that what the filters learn does not wait for what the pitch head does.
    pitch = jnp.asarray(batch.pitch) if model.config.vocos.source_rate else None
    if batch.codes.shape[1]:
        codes, features = _partly_true(model, batch, key)
        made, pitch_logits = model.sound(model.quantizer.decode(codes), features, pitch)
        loss, metrics = jnp.zeros(()), {}
    else:
        result = model.reconstruct(batch.samples, key, pitch)
        made, pitch_logits = result.samples, result.pitch_logits
        loss, metrics = _code_losses(config, result, batch)
    if pitch is not None and pitch_logits is not None:
        metrics["pitch_loss"] = jnp.mean(pitch_loss(pitch_logits, pitch))
        loss += config.pitch_weight * metrics["pitch_loss"]
    mel = mel_distance(batch.samples, made, model.config.mel)
    spectral = stft_distance(batch.samples, made, config.stft_windows)
    loss += config.mel_weight * mel + config.stft_weight * spectral
    metrics |= {"mel_l1": mel, "stft_l1": spectral}
    if config.hearing_weight and ear is not None:
        speech, heard = batch.samples[::HEARING_STRIDE], made[::HEARING_STRIDE]
        metrics["hearing"] = hearing_distance(ear, speech, heard, model.config.sample_rate)
        loss += config.hearing_weight * metrics["hearing"]
    if isinstance(model, AdversarialCodec):
        judged = _adversarial_losses(model.discriminator, batch.samples, made)
        metrics |= judged
        fooled = judged["adversarial_loss"] + config.feature_weight * judged["feature_loss"]
        loss += config.adversarial_weight * fooled + judged["discriminator_loss"]
    # every crop is as long as any other, so parts of a batch weigh the same
    one = jnp.ones(())
    return [Mean(loss, one)], {name: Mean(value, one) for name, value in metrics.items()}


def _partly_true(
    model: MelCodec, batch: SegmentBatch, key: jax.Array
) -> tuple[Int[Array, "batch codebook frame"], Int[Array, "batch frame feature"] | None]:
    """Codes and features of each crop: some have their own codes and no features, the others those predicted."""
    true = model.quantizer.encode(model.latents(batch.samples))[:, : batch.codes.shape[1]]
    show_key, wrong_key = jax.random.split(key)
    shown = jax.random.bernoulli(show_key, TRUE_SHARE, (len(true), 1, 1))
    if not batch.features.shape[1]:
        return jnp.where(shown, true, batch.codes), None
    predicted = _partly_wrong(jnp.asarray(batch.codes), wrong_key)
    return jnp.where(shown, true, predicted), jnp.where(shown, -1, batch.features)


def _partly_wrong(codes: Int[Array, "batch codebook frame"], key: jax.Array) -> Int[Array, "batch codebook frame"]:
    """Codes with some stretches taken from elsewhere in the crop."""
    batch, _, frames = codes.shape
    shift_key, place_key = jax.random.split(key)
    shifts = jax.random.randint(shift_key, (batch,), frames // 4, frames - frames // 4 + 1)
    elsewhere = jax.vmap(lambda crop, shift: jnp.roll(crop, shift, axis=-1))(codes, shifts)
    stretches = jax.random.bernoulli(place_key, WRONG_SHARE, (batch, 1, -(-frames // WRONG_FRAMES)))
    return jnp.where(jnp.repeat(stretches, WRONG_FRAMES, axis=-1)[..., :frames], elsewhere, codes)


def _code_losses(
    config: CodecObjective, result: CodecTraining, batch: SegmentBatch
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """What the codes themselves are judged by."""
    metrics = {
        "commitment": result.commitment,
        "perplexity_first": result.perplexity[0],
        "perplexity_last": result.perplexity[-1],
    }
    loss = config.commitment_weight * result.commitment
    if config.unit_weight and result.unit_logits is not None:
        metrics["unit_loss"] = _unit_loss(result.unit_logits, batch.units)
        loss += config.unit_weight * metrics["unit_loss"]
    return loss, metrics


def codec_task(experiment: CodecExperiment) -> Task:
    """Opens the data and makes the experiment ready.

    Raises:
        ConfigError: Semantic units are asked for and not given, or are more than the model tells apart.
        InputError: The data cannot be read, or no clip has codes.
    """
    data, config = experiment.data, experiment.model
    if data.codes and (data.gain_db or experiment.objective.unit_weight):
        raise ConfigError("data.codes: the codes are of clips as they are; set gain_db and unit_weight to 0")
    if data.codes:
        cache, paths, tokens = open_coded_clips(data, config)
    else:
        paths = [row.audio for row in read_manifest(data.manifest)]
        folder = Path(data.cache or Path(data.manifest).parent / "audio-cache")
        cache, tokens = build_cache(paths, folder, config.sample_rate), FrameTokens(frame_samples=config.hop_length)
        if experiment.objective.unit_weight:
            tokens = dataclasses.replace(tokens, units=_clip_units(experiment, cache, paths, folder))
        tokens = _with_pitch(tokens, config, cache, folder)
    further = {"discriminator": experiment.discriminator} if experiment.objective.adversarial_weight else {}
    return segment_task("codec", experiment, codec_program(experiment), cache, paths, tokens=tokens, **further)


def open_coded_clips(data: SegmentData, config: CodecConfig) -> tuple[AudioCache, list[str], FrameTokens]:
    """Opens the clips of a manifest whose codes are in `data.codes`: their sound, files, codes, features and pitch.

    Raises:
        InputError: The data cannot be read, or no clip has codes, or others than it has frames for.
    """
    predicted = read_codes(data.codes, config)
    rows = [row for row in read_manifest(data.manifest) if row.id in predicted]
    if not rows:
        raise InputError(f"{data.codes}: no codes of any clip of {data.manifest}")
    paths = [row.audio for row in rows]
    folder = Path(data.cache or Path(data.manifest).parent / "audio-cache-coded")
    cache = build_cache(paths, folder, config.sample_rate)
    frames = -(-np.diff(cache.offsets) // config.hop_length)
    clips = [_to_the_end(predicted[row.id], wanted) for row, wanted in zip(rows, frames.tolist(), strict=True)]
    for row, clip, wanted in zip(rows, clips, frames.tolist(), strict=True):
        if wanted and clip.codes.shape[1] != wanted:
            raise InputError(f"{data.codes}: {clip.codes.shape[1]} frames of {row.id}, its sound has {wanted}")
    features = [clip.features for clip in clips] if config.feature_sizes else ()
    codes = [clip.codes for clip in clips]
    tokens = FrameTokens(frame_samples=config.hop_length, codes=codes, features=features)
    return cache, paths, _with_pitch(tokens, config, cache, folder)


def _to_the_end(clip: PredictedClip, frames: int) -> PredictedClip:
    """The clip, its last frame twice where one is missing: a manifest's rounded duration can leave out some samples."""
    if not 0 < clip.codes.shape[1] == frames - 1:
        return clip
    return PredictedClip(
        codes=np.pad(clip.codes, ((0, 0), (0, 1)), mode="edge"),
        features=np.pad(clip.features, ((0, 1), (0, 0)), mode="edge"),
    )


def open_clips(data: SegmentData, sample_rate: int) -> tuple[AudioCache, list[str]]:
    """Opens the clips of a manifest at a sample rate (Hz), in a cache of that rate's own; returns their files too.

    Raises:
        InputError: The data cannot be read.
    """
    paths = [row.audio for row in read_manifest(data.manifest)]
    folder = Path(data.cache or Path(data.manifest).parent / f"audio-cache-{sample_rate}")
    return build_cache(paths, folder, sample_rate), paths


def segment_task(
    kind: str,
    experiment: Any,
    program: Program,
    cache: AudioCache,
    paths: list[str],
    *,
    tokens: FrameTokens | None = None,
    **further: Any,
) -> Task:
    """Makes an experiment on random crops of clips ready: that of the codec, the Mel-VAE or the vocoder.

    Args:
        kind: Of the run.
        experiment: With `model`, `objective`, `data` (`SegmentData`), `optimizer`, `train`, `step` and `mesh`.
        program: What is computed in a step.
        cache: The decoded clips.
        paths: Where they came from.
        tokens: Semantic units or codes of the clips, where the objective reads them.
        **further: What is part of the run's identity besides.
    """
    data, config = experiment.data, experiment.model
    codes = sha256(Path(data.codes)) if data.codes else ""
    batches = SegmentBatches(
        cache,
        round(data.segment_s * config.frame_rate) * config.hop_length,
        data.rows,
        experiment.train.seed,
        gain_db=data.gain_db,
        tokens=tokens,
        host_rows=row_shares(build_mesh(experiment.mesh), data.rows),
    )
    return Task(
        program=program,
        batches=batches,
        count_tokens=lambda batch: batch.samples.size // config.hop_length,
        count_audio_s=lambda batch: batch.samples.size / config.sample_rate,
        count_flops=None,
        rows=data.rows,
        optimizer=experiment.optimizer,
        train=experiment.train,
        step=experiment.step,
        mesh=experiment.mesh,
        identity=identity(
            kind,
            fingerprint([[Path(path).name for path in paths], int(cache.offsets[-1])]),
            experiment.train,
            model=config,
            objective=experiment.objective,
            optimizer=experiment.optimizer,
            batch=dataclasses.replace(data, manifest="", cache="", units="", codes=codes),
            **further,
        ),
    )


def _clip_units(
    experiment: CodecExperiment, cache: AudioCache, paths: list[str], folder: Path
) -> list[Int[np.ndarray, " _"]]:
    """Units of every clip, kept beside the decoded audio: they take longer to make than a thousand steps to read."""
    config = experiment.model
    if not experiment.data.units or not config.num_units:
        raise ConfigError("objective.unit_weight asks for semantic units; give data.units and model.num_units")
    units = load_units(Path(experiment.data.units))
    if len(units.centroids) != config.num_units:
        raise ConfigError(
            f"model.num_units: {config.num_units}, but {experiment.data.units} holds {len(units.centroids)}"
        )
    lengths = -(-np.diff(cache.offsets) // config.hop_length)
    stored = folder / f"units-{fingerprint(np.asarray(units.centroids).tobytes().hex())}.npy"

    def make() -> Iterator[Int[np.ndarray, " _"]]:
        source = load_whisper_encoder(units.layer)
        for path, frames in zip(paths, lengths.tolist(), strict=True):
            if frames:
                samples = read_audio(path, FEATURE_SAMPLE_RATE)
                yield clip_units(units, source, samples, frames).astype(np.int16)
            else:
                yield np.zeros(0, np.int16)

    return _kept(stored, "Reading units", make, lengths)


def _with_pitch(tokens: FrameTokens, config: CodecConfig, cache: AudioCache, folder: Path) -> FrameTokens:
    """With the pitch of the clips, for a codec with a harmonic source."""
    if not config.vocos.source_rate:
        return tokens
    return dataclasses.replace(tokens, pitch=_clip_pitch(config, cache, folder), pitch_frames=config.downsample)


def _clip_pitch(config: CodecConfig, cache: AudioCache, folder: Path) -> list[Float32[np.ndarray, " _"]]:
    """Pitch of every mel frame of every clip, kept beside the decoded audio."""
    lengths = -(-np.diff(cache.offsets) // config.hop_length) * config.downsample

    def make() -> Iterator[Float32[np.ndarray, " _"]]:
        for index, frames in enumerate(lengths.tolist()):
            track = pitch_track(cache.clip(index) / INT16_SCALE, config.sample_rate)
            yield track.at((np.arange(frames) + 0.5) * config.mel.hop_length / config.sample_rate)

    return _kept(folder / f"pitch-{config.mel.hop_length}.npy", "Tracking pitch", make, lengths)


def _kept(
    stored: Path, title: str, make: Callable[[], Iterator[np.ndarray]], lengths: Int[np.ndarray, " clip"]
) -> list[np.ndarray]:
    """What a file holds of the frames of every clip; made clip by clip where there is none yet."""
    if not stored.exists():
        found = []
        with progress_bar(title, len(lengths)) as advance:
            for frames in make():
                found.append(frames)
                advance()
        partial = stored.with_suffix(".partial.npy")
        np.save(partial, np.concatenate(found))
        partial.replace(stored)
    return np.split(np.load(stored), np.cumsum(lengths)[:-1])


def _unit_loss(logits: Float[Array, "batch frame unit"], units: Int[Array, "batch frame"]) -> Float[Array, ""]:
    known = units >= 0
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(units, 0))
    return jnp.sum(loss * known) / jnp.maximum(jnp.sum(known), 1)


def _adversarial_losses(
    discriminator: SpectrumDiscriminators, real: Float[Array, "batch sample"], made: Float[Array, "batch sample"]
) -> dict[str, Float[Array, ""]]:
    """Losses of both sides in one pass: each sees the other as a constant.

    Source:
        Hinge losses and feature matching as EnCodec (Défossez et al. 2022), section 3.4: relu(1 - D(x)) +
        relu(1 + D(y)) for the discriminators, relu(1 - D(y)) for the codec, and the L1 distance of the features of
        y and x over the mean magnitude of those of x.
    """
    graph, state = nnx.split(discriminator)
    constant = nnx.merge(graph, jax.tree.map(jax.lax.stop_gradient, state))
    of_real, of_made = discriminator(real), discriminator(jax.lax.stop_gradient(made))
    seen, wanted = constant(made), jax.lax.stop_gradient(of_real)
    return {
        "discriminator_loss": _hinge(of_real, 1.0) + _hinge(of_made, -1.0),
        "adversarial_loss": _hinge(seen, 1.0),
        "feature_loss": _mean(
            [
                jnp.mean(jnp.abs(a - b)) / (jnp.mean(jnp.abs(b)) + 1e-5)
                for one, other in zip(seen, wanted, strict=True)
                for a, b in zip(one.features, other.features, strict=True)
            ]
        ),
    }


def _hinge(judged: list[Judgement], sign: float) -> Float[Array, ""]:
    """0 where every verdict is beyond `sign`."""
    return _mean([jnp.mean(jax.nn.relu(1 - sign * logits)) for each in judged for logits in each.logits])


def _mean(values: list[Float[Array, ""]]) -> Float[Array, ""]:
    return sum(values, jnp.zeros(())) / len(values)


def mel_distance(a: Float[Array, "batch sample"], b: Float[Array, "batch sample"], mel: MelConfig) -> Float[Array, ""]:
    """Mean distance of natural-log mel cells."""
    return jnp.mean(jnp.abs(log_mel(a, mel) - log_mel(b, mel)))


def stft_distance(
    a: Float[Array, "batch sample"], b: Float[Array, "batch sample"], windows: tuple[int, ...]
) -> Float[Array, ""]:
    """Mean distance of natural-log magnitudes, over analysis windows in samples."""

    def log_magnitude(samples: Array, n_fft: int) -> Array:
        # 1e-4 keeps quiet bins from ruling the loss; the inner constant keeps the gradient of |0| finite
        return jnp.log(jnp.abs(stft(samples, n_fft, n_fft // 4) + 1e-7) + 1e-4)

    return sum((jnp.mean(jnp.abs(log_magnitude(a, n) - log_magnitude(b, n))) for n in windows), jnp.zeros(())) / len(
        windows
    )


def hearing_distance(
    ear: WhisperEncoder, speech: Float[Array, "batch sample"], made: Float[Array, "batch sample"], sample_rate: int
) -> Float[Array, ""]:
    """Mean distance of a recogniser's states over its blocks, in standard deviations of each channel of the speech.

    Source:
        Deep feature losses (Germain et al. 2018, "Speech Denoising with Deep Feature Losses", section 2.2), with an
        encoder trained to recognise words in place of a classifier of sounds.
    """
    wanted, found = (block_outputs(ear.weights, samples, ear.layer, sample_rate) for samples in (speech, made))
    distances = [
        jnp.mean(jnp.abs(ours - theirs) / (jnp.std(theirs, (0, 1)) + 1e-3))
        for ours, theirs in zip(found, jax.lax.stop_gradient(wanted), strict=True)
    ]
    return _mean(distances)
