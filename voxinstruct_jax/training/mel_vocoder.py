"""Training of a vocoder for log-mel spectrograms by spectral distances."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from voxinstruct_jax.audio.spectrogram import MelConfig
from voxinstruct_jax.audio.vocos import MelVocoder, MelVocoderConfig
from voxinstruct_jax.data.segments import SegmentBatch
from voxinstruct_jax.sharding.mesh import MeshConfig
from voxinstruct_jax.training.codec import SegmentData, mel_distance, open_clips, segment_task, stft_distance
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.step import Mean, StepConfig
from voxinstruct_jax.training.task import Program, Task, TrainConfig

__all__ = ["MelVocoderExperiment", "MelVocoderObjective", "mel_vocoder_loss", "mel_vocoder_task"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MelVocoderObjective:
    """Weights of the loss terms and the analysis windows (samples)."""

    stft_windows: tuple[int, ...] = (512, 1024, 2048)
    mel_weight: float = 1.0
    stft_weight: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class MelVocoderExperiment:
    """Trains the vocoder."""

    model: MelVocoderConfig
    objective: MelVocoderObjective = MelVocoderObjective()
    data: SegmentData = SegmentData()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    step: StepConfig = StepConfig()
    mesh: MeshConfig = MeshConfig()


def mel_vocoder_loss(
    config: MelVocoderObjective, model: MelVocoder, batch: SegmentBatch, key: jax.Array
) -> tuple[list[Mean], dict[str, Mean]]:
    """Mel and STFT distances between speech and what comes back from its spectrogram, as of the codec.

    The mel distance is taken on the vocoder's input and on 80 bins: few bins do not tell what lies between them.

    Source:
        Vocos (Siuzdak 2023), section 3.4, without its discriminators.
    """
    made = model.reconstruct(batch.samples)
    rate = model.config.sample_rate
    fine = MelConfig(sample_rate=rate, num_mels=80, n_fft=1024, hop_length=256, f_max=rate / 2)
    mel = 0.5 * (mel_distance(batch.samples, made, model.config.mel) + mel_distance(batch.samples, made, fine))
    spectral = stft_distance(batch.samples, made, config.stft_windows)
    one = jnp.ones(())
    loss = config.mel_weight * mel + config.stft_weight * spectral
    return [Mean(loss, one)], {"mel_l1": Mean(mel, one), "stft_l1": Mean(spectral, one)}


def mel_vocoder_task(experiment: MelVocoderExperiment) -> Task:
    """Opens the data and makes the experiment ready.

    Raises:
        InputError: The data cannot be read.
    """
    config = experiment.model
    cache, paths = open_clips(experiment.data, config.sample_rate)
    program = Program(
        build_model=lambda rngs: MelVocoder(config, rngs=rngs),
        objective=functools.partial(mel_vocoder_loss, experiment.objective),
    )
    return segment_task("mel_vocoder", experiment, program, cache, paths)
