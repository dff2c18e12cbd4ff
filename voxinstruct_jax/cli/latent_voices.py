"""From an experiment that trains a denoiser to the settings of the voice that it gives."""

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.lengths import fit_lengths
from voxinstruct_jax.latent_voice import LatentVoiceConfig
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.training.diffusion import DiffusionExperiment
from voxinstruct_jax.training.distillation import DistillationExperiment

__all__ = ["latent_voice_config"]


def latent_voice_config(experiment: DiffusionExperiment | DistillationExperiment) -> LatentVoiceConfig:
    """Returns the voice's settings; how long words take is fitted on the manifest that the experiment trains on.

    Raises:
        InputError: The manifest cannot be read.
    """
    data = experiment.data
    try:
        length = fit_lengths(data.manifest)
    except InputError as error:
        raise InputError(
            f"{error}: lengths of speech are fitted on the training manifest; convert in the folder of training"
        ) from error
    return LatentVoiceConfig(
        diffusion=experiment.diffusion,
        length=length,
        clip_s=data.clip_s,
        pad_is_silence=data.pad_is_silence,
        prompts=experiment.model.source and "zeroshotts" in data.tasks,
        text_fingerprint=PronunciationTokenizer().fingerprint,
    )
