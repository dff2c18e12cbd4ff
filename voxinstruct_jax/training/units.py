"""Fitting of semantic units: k-means over features of a manifest's clips. No loop over steps, so not a `Task`.

With `num_discriminants` the clips are first aligned with their phones, and the units see of the features what tells
phones (with tone and stress) apart. Such units follow from the text, which a small model can learn in hours; the
alignment itself is kept for `prepare`.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from voxinstruct_jax.audio.phone_model import PhoneModel, SpokenClip, discriminants, fit_phone_model, whiten
from voxinstruct_jax.audio.semantic import FeatureSource, Projection, SemanticUnits, fit_units, pool
from voxinstruct_jax.audio.waveform import read_audio
from voxinstruct_jax.audio.whisper import load_whisper_encoder
from voxinstruct_jax.checkpoints.weights import save_weights
from voxinstruct_jax.config import ConfigError, InputError, to_dict
from voxinstruct_jax.data.durations import quoted
from voxinstruct_jax.data.manifest import Row, read_manifest
from voxinstruct_jax.data.progress import progress_bar
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer, SpokenPhone

__all__ = ["UnitsExperiment", "clip_units", "train_units"]

FEATURE_SAMPLE_RATE = 16_000
FEATURE_SAMPLES = 320
FEATURES_A_FRAME = 2  # 50 Hz features to 25 Hz frames
PCA_DIM = 120
ROUNDS = 7
QUIET_NEPERS = 7.0  # natural log of power below the loudest frame: 30 dB


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitsExperiment:
    """Fits the units of a voice."""

    manifest: str = "tests/corpus/generated/manifest.jsonl"
    num_units: int = 500
    layer: int = 4
    """Of Whisper's encoder."""
    num_discriminants: int = 0
    """Directions of the features that units see, those that tell phones apart; 0 = the features themselves."""
    max_clips: int = 4000
    """Clips that the fit sees, drawn by the seed."""
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.num_units, self.layer, self.max_clips) < 1 or not 0 <= self.num_discriminants <= PCA_DIM:
            raise ConfigError(
                f"num_units, layer and max_clips must be at least 1, num_discriminants from 0 to {PCA_DIM}"
            )


def train_units(experiment: UnitsExperiment, out: Path) -> SemanticUnits:
    """Fits the units and writes them as a weights folder.

    Raises:
        InputError: The manifest has no readable clips, or the feature source is not installed.
    """
    everything = read_manifest(experiment.manifest)
    chosen = np.random.default_rng(experiment.seed).permutation(len(everything))[: experiment.max_clips]
    rows = [everything[i] for i in chosen]
    source = load_whisper_encoder(experiment.layer)
    clips = list(_read_features(rows, source))
    weights: dict[str, Any] = {}
    labels: tuple[str, ...] = ()
    projection = None
    if experiment.num_discriminants:
        model, projection = _fit_phones(rows, clips, experiment.num_discriminants)
        labels, weights = model.labels, _phone_weights(model, projection)
    pooled = [pool(features, FEATURES_A_FRAME, -(-len(features) // FEATURES_A_FRAME)) for features, _ in clips]
    frames = sum(map(len, pooled))
    if frames < experiment.num_units:
        raise InputError(
            f"{experiment.manifest}: {frames} frames are too few for {experiment.num_units} units; add speech"
        )
    units = fit_units(pooled, experiment.num_units, seed=experiment.seed, source=source.name, projection=projection)
    seen = f"{experiment.num_discriminants} discriminants of phones in " if experiment.num_discriminants else ""
    card = (
        f"# Semantic units\n\n{experiment.num_units} centroids of {seen}{source.name}, pooled to 25 Hz, fitted on "
        f"{frames} frames of {len(pooled)} clips by mini-batch k-means (seed {experiment.seed}).\n"
    )
    made = dataclasses.replace(experiment, manifest=Path(experiment.manifest).name)  # a release names no machine's path
    settings = {
        "kind": "units",
        "source": source.name,
        "frame_rate": units.frame_rate,
        "phones": list(labels),
        "experiment": to_dict(made),
    }
    save_weights(out, {"centroids": units.centroids, **weights}, settings, card=card)
    return units


def clip_units(
    units: SemanticUnits, source: FeatureSource, samples: Float[np.ndarray, " sample"], frames: int
) -> Int[np.ndarray, " frame"]:
    """Returns the unit of each of `frames` codec frames of 16 kHz samples."""
    return units.assign(pool(source.features(samples), FEATURES_A_FRAME, frames))


def _phone_weights(model: PhoneModel, projection: Projection) -> dict[str, Any]:
    phones = {name: getattr(model, name) for name in ("projection", "means", "variances")}
    return {"mean": projection.mean, "projection": projection.matrix, "phones": phones}


def _fit_phones(
    rows: Sequence[Row], clips: Sequence[tuple[np.ndarray, tuple[int, int]]], count: int
) -> tuple[PhoneModel, Projection]:
    """Aligns the clips with their phones; returns the phone model and what of the features tells phones apart."""
    tokenizer = PronunciationTokenizer()
    usable: list[tuple[list[SpokenPhone], SpokenClip]] = []
    spoken = [tokenizer.spoken_phones(quoted(row.transcript)) for row in rows]
    labels = tuple(sorted({phone.base_label for phones in spoken for phone in phones}))
    numbers = {label: number for number, label in enumerate(labels)}
    for phones, (features, active) in zip(spoken, clips, strict=True):
        optional = np.array([phone.optional for phone in phones], bool)
        if 0 < np.count_nonzero(~optional) <= active[1] - active[0]:
            ids = np.array([numbers[phone.base_label] for phone in phones])
            usable.append((phones, SpokenClip(features=features, labels=ids, optional=optional, active=active)))
    if not usable:
        raise InputError("no clip of the manifest has a transcript that fits its length; check the transcripts")
    with progress_bar("Aligning phones", ROUNDS * len(usable)) as advance:
        model, paths = fit_phone_model([clip for _, clip in usable], labels, num_rounds=ROUNDS, tick=advance)
    toned = [phones[place].label for (phones, _), path in zip(usable, paths, strict=True) for place in path]
    _, classes = np.unique(np.array(toned), return_inverse=True)
    frames = np.concatenate([clip.features for _, clip in usable]).astype(np.float32)
    mean, whitening = whiten(frames, PCA_DIM)
    turn = discriminants((frames - mean) @ whitening, classes, count)
    return model, Projection(mean, whitening @ turn)


def _read_features(rows: Sequence[Row], source: FeatureSource) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    """Features of each clip at 50 Hz, and where it is not quiet."""
    with progress_bar("Reading features", len(rows)) as advance:
        for row in rows:
            samples = read_audio(row.audio, FEATURE_SAMPLE_RATE)
            # halves the memory, and is finer than the features are
            yield source.features(samples).astype(np.float16), _active(samples)
            advance()


def _active(samples: Float[np.ndarray, " sample"]) -> tuple[int, int]:
    frames = -(-len(samples) // FEATURE_SAMPLES)
    padded = np.pad(samples, (0, frames * FEATURE_SAMPLES - len(samples)))
    power = np.log(np.mean(padded.reshape(frames, FEATURE_SAMPLES) ** 2, axis=1) + 1e-9)
    (loud,) = np.nonzero(power > power.max() - QUIET_NEPERS)
    return int(loud[0]), int(loud[-1]) + 1
