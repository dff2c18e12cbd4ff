"""From an experiment that trains a model of latents to the settings of the voice that it gives."""

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.lengths import fit_lengths
from voxinstruct_jax.latent_voice import LatentVoiceConfig
from voxinstruct_jax.models.mmdit import MMDiTConfig
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.training.diffusion import DiffusionExperiment
from voxinstruct_jax.training.distillation import DistillationExperiment
from voxinstruct_jax.training.grad_tts import GradTTSExperiment
from voxinstruct_jax.training.masked_latents import MaskedLatentsExperiment

__all__ = ["LATENT_EXPERIMENTS", "LatentExperiment", "latent_voice_config"]

LatentExperiment = DiffusionExperiment | DistillationExperiment | GradTTSExperiment | MaskedLatentsExperiment
LATENT_EXPERIMENTS: dict[str, type[LatentExperiment]] = {
    "diffusion": DiffusionExperiment,
    "distillation": DistillationExperiment,
    "grad_tts": GradTTSExperiment,
    "masked_latents": MaskedLatentsExperiment,
}
"""By the kind of their runs."""


def latent_voice_config(experiment: LatentExperiment) -> LatentVoiceConfig:
    """Returns the voice's settings.

    How long words take is fitted on the manifest that the experiment trains on, unless the model says it (Grad-TTS).

    Raises:
        InputError: The manifest cannot be read.
    """
    data, text_fingerprint = experiment.data, PronunciationTokenizer().fingerprint
    if isinstance(experiment, GradTTSExperiment):
        return LatentVoiceConfig(diffusion=experiment.diffusion, clip_s=data.clip_s, text_fingerprint=text_fingerprint)
    masked = {"rounds": experiment.masking.rounds} if isinstance(experiment, MaskedLatentsExperiment) else {}
    model = experiment.model
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
        prompts=isinstance(model, MMDiTConfig) and model.source and "zeroshotts" in data.tasks,
        text_fingerprint=text_fingerprint,
        **masked,
    )
