"""Training of the project's own codec by spectral distances."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from voxinstruct_jax.audio.codec import CodecConfig, MelCodec
from voxinstruct_jax.audio.spectrogram import MelConfig, log_mel, stft
from voxinstruct_jax.config import fingerprint
from voxinstruct_jax.data.manifest import read_manifest
from voxinstruct_jax.data.segments import SegmentBatches, build_cache
from voxinstruct_jax.sharding.mesh import MeshConfig
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.step import Metrics
from voxinstruct_jax.training.task import Task, TrainConfig, identity

__all__ = ["CodecExperiment", "CodecObjective", "SegmentData", "codec_loss", "codec_task"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodecObjective:
    """Weights of the loss terms and the analysis windows (samples)."""

    stft_windows: tuple[int, ...] = (512, 1024, 2048)
    mel_weight: float = 1.0
    stft_weight: float = 0.5
    commitment_weight: float = 0.25


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentData:
    """Random crops of the clips of a manifest."""

    manifest: str = "tests/corpus/generated/manifest.jsonl"
    cache: str = ""  # folder for the decoded audio; empty = `audio-cache` beside the manifest
    segment_s: float = 1.28
    rows: int = 16
    gain_db: float = 6.0  # each crop is scaled by a gain drawn from plus or minus this


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodecExperiment:
    """Trains the codec."""

    model: CodecConfig = dataclasses.field(default_factory=CodecConfig.small)
    objective: CodecObjective = CodecObjective()
    data: SegmentData = SegmentData()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()


def codec_loss(
    config: CodecObjective, model: MelCodec, samples: Float[Array, "batch sample"], key: jax.Array
) -> tuple[Float[Array, ""], Metrics]:
    """Mel and STFT distances between speech and its reconstruction, and the commitment of the latents.

    Source:
        Vocos (Siuzdak 2023), section 3.4 (L1 on log-mel); Parallel WaveGAN (Yamamoto et al. 2020), section 2.2
        (log STFT magnitudes at several windows).
    """
    result = model.reconstruct(samples, key)
    mel = _mel_distance(samples, result.samples, model.config.mel)
    spectral = _stft_distance(samples, result.samples, config.stft_windows)
    loss = config.mel_weight * mel + config.stft_weight * spectral + config.commitment_weight * result.commitment
    return loss, {
        "mel_l1": mel,
        "stft_l1": spectral,
        "commitment": result.commitment,
        "perplexity_first": result.perplexity[0],
        "perplexity_last": result.perplexity[-1],
    }


def codec_task(experiment: CodecExperiment) -> Task:
    """Opens the data and makes the experiment ready."""
    data, config = experiment.data, experiment.model
    paths = [row.audio for row in read_manifest(data.manifest)]
    cache = build_cache(paths, data.cache or Path(data.manifest).parent / "audio-cache", config.sample_rate)
    segment = round(data.segment_s * config.frame_rate) * config.hop_length
    batches = SegmentBatches(cache, segment, data.rows, experiment.train.seed, gain_db=data.gain_db)
    rows = dataclasses.replace(data, manifest="", cache="")
    return Task(
        build_model=lambda rngs: MelCodec(config, rngs=rngs),
        objective=functools.partial(codec_loss, experiment.objective),
        batches=batches,
        count_tokens=lambda samples: samples.size // config.hop_length,
        optimizer=experiment.optimizer,
        train=experiment.train,
        mesh=experiment.mesh,
        identity=identity(
            "codec",
            fingerprint([[Path(path).name for path in paths], int(cache.offsets[-1])]),
            experiment.train,
            model=config,
            objective=experiment.objective,
            optimizer=experiment.optimizer,
            batch=rows,
        ),
    )


def _mel_distance(a: Array, b: Array, mel: MelConfig) -> Float[Array, ""]:
    return jnp.mean(jnp.abs(log_mel(a, mel) - log_mel(b, mel)))


def _stft_distance(a: Array, b: Array, windows: tuple[int, ...]) -> Float[Array, ""]:
    def log_magnitude(samples: Array, n_fft: int) -> Array:
        # 1e-4 keeps quiet bins from ruling the loss; the inner constant keeps the gradient of |0| finite
        return jnp.log(jnp.abs(stft(samples, n_fft, n_fft // 4) + 1e-7) + 1e-4)

    return sum((jnp.mean(jnp.abs(log_magnitude(a, n) - log_magnitude(b, n))) for n in windows), jnp.zeros(())) / len(
        windows
    )
