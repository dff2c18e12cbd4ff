"""Samples spoken while a model trains: the model at work with the other parts of a voice that is there already."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from voxinstruct_jax.cli.latent_voices import LatentExperiment, latent_voice_config
from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.judges.asr import load_asr
from voxinstruct_jax.judges.transcripts import error_counts
from voxinstruct_jax.latent_voice import make_latent_voice, make_model, open_vocoder
from voxinstruct_jax.models.ar import ARModel
from voxinstruct_jax.models.nar import NARModel
from voxinstruct_jax.text.subword import open_tokenizer
from voxinstruct_jax.training.ar import ARExperiment
from voxinstruct_jax.training.distillation import DistillationExperiment
from voxinstruct_jax.training.loop import Sampler
from voxinstruct_jax.training.nar import NARExperiment
from voxinstruct_jax.voice import Voice, load
from voxinstruct_jax.voice_folder import Loaded
from voxinstruct_jax.voices import AnyVoice

__all__ = ["SENTENCES", "make_sampler"]

SENTENCES = (
    ("en", 'A woman says slowly: "The train leaves at seven."', "The train leaves at seven."),
    ("en", 'An angry man shouts: "Give it back to me!"', "Give it back to me!"),
    ("zh", "一个男孩高兴地说：“今天天气很好。”", "今天天气很好。"),
)
"""Language, instruction, content."""
LONGEST_S = 8.0
"""An untrained model does not end by itself."""


def make_sampler(experiment: Any, out: Path) -> Sampler:
    """Returns what speaks samples into `out/samples`.

    Raises:
        ConfigError: It is neither of AR nor of NAR nor of a model of latents that speaks by itself.
        InputError: The voice that lends the other parts is missing, or its parts do not fit the model.
    """
    if isinstance(experiment, LatentExperiment) and not isinstance(experiment, DistillationExperiment):
        put_in = _latent_voice(experiment)
    elif isinstance(experiment, ARExperiment | NARExperiment):
        put_in = _fit(experiment, load(experiment.train.sample_voice or None))
    else:
        raise ConfigError("--train.sample-every: only AR, NAR and denoisers speak samples")
    listen = _listener()

    def sample(step: int, weights: Any) -> list[dict[str, Any]]:
        voice, folder = put_in(weights), out / "samples" / f"step-{step:07d}"
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for number, (language, instruction, content) in enumerate(SENTENCES):
            audio = voice.synthesize(instruction, language=language, max_duration_s=LONGEST_S)
            path = folder / f"{number}-{language}.wav"
            audio.save(path)
            row = {"file": str(path.relative_to(out)), "instruction": instruction, "duration_s": audio.duration_s}
            rows.append(row | {"finish_reason": audio.finish_reason, **listen(audio, content)})
        return rows

    return sample


def _fit(experiment: Any, lender: Voice) -> Callable[[Any], Voice]:
    """Checks that the model fits the other parts; returns what makes a voice of its weights."""
    kind = "ar" if isinstance(experiment, ARExperiment) else "nar"
    model, other = experiment.model, (lender.nar if kind == "ar" else lender.ar).config
    for name in ("num_semantic", "codebook_size", "languages"):
        if getattr(model.vocabulary, name) != getattr(other.vocabulary, name):
            raise _unfit(
                lender, f"vocabulary.{name} {getattr(other.vocabulary, name)}", getattr(model.vocabulary, name)
            )
    for name in ("timing", "text_form", "semantic"):
        if getattr(model, name) != getattr(other, name):
            raise _unfit(lender, f"{name} {getattr(other, name)}", getattr(model, name))
    filled, config = model.vocabulary.num_codebooks - 1, lender.config
    if kind == "nar" and filled > len(config.num_steps):
        raise _unfit(lender, f"{len(config.num_steps) + 1} codebooks", filled + 1)
    if kind == "nar":
        config = dataclasses.replace(config, num_steps=config.num_steps[:filled])
    tokenizer = open_tokenizer(experiment.data.tokenizer, model.text_encoder.channel_sizes[0])
    if other.text_encoder.channel_sizes != model.text_encoder.channel_sizes:
        raise _unfit(lender, f"text channels {other.text_encoder.channel_sizes}", model.text_encoder.channel_sizes)
    model_class: Any = ARModel if kind == "ar" else NARModel

    def put_in(weights: Any) -> Voice:
        graph, state = nnx.split(nnx.eval_shape(lambda: model_class(model, rngs=nnx.Rngs(0))))
        nnx.replace_by_pure_dict(state, _as_arrays(weights))
        return dataclasses.replace(
            lender,
            name=f"{kind} in training",
            config=config,
            tokenizer=tokenizer,
            **{kind: Loaded(graph, state, model)},
        )

    return put_in


def _latent_voice(experiment: LatentExperiment) -> Callable[[Any], AnyVoice]:
    """Checks that a denoiser can be heard; returns what makes a voice of its weights."""
    latents, vocoder = experiment.latents, None
    if latents.spectrogram is not None:
        if not experiment.train.sample_voice:
            raise InputError(
                "these latents are spectrograms: name a folder that holds a vocoder/ for them with "
                "--train.sample-voice, or leave --train.sample-every out"
            )
        vocoder = open_vocoder(Path(experiment.train.sample_voice), latents)
    config = latent_voice_config(experiment)

    def put_in(weights: Any) -> AnyVoice:
        abstract = nnx.eval_shape(lambda: make_model(experiment.model, latents, rngs=nnx.Rngs(0)))
        graph, state = nnx.split(abstract)
        nnx.replace_by_pure_dict(state, _as_arrays(weights))
        model = Loaded(graph, state, experiment.model)
        return make_latent_voice("denoiser in training", config, model, latents, vocoder)

    return put_in


def _as_arrays(tree: Any) -> Any:
    return {key: _as_arrays(value) for key, value in tree.items()} if isinstance(tree, dict) else jnp.asarray(tree)


def _unfit(lender: Voice, has: str, wanted: Any) -> InputError:
    return InputError(
        f"{lender.folder}: cannot lend its parts for samples, it has {has}, the model {wanted}; name another voice "
        "with --train.sample-voice, or leave --train.sample-every out"
    )


def _listener() -> Callable[[Any, str], dict[str, Any]]:
    """What Whisper hears, where the extra `asr` is installed."""
    try:
        asr = load_asr()
    except InputError:
        return lambda audio, content: {}

    def listen(audio: Any, content: str) -> dict[str, Any]:
        heard = asr.transcribe(audio.samples, audio.sample_rate, audio.language)
        return {"heard": heard, "error": error_counts(content, heard, audio.language).rate}

    return listen
