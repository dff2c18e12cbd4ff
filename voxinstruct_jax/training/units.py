"""Fitting of semantic units: k-means over features of a manifest's clips. No loop over steps, so not a `Task`."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from voxinstruct_jax.audio.semantic import FeatureSource, SemanticUnits, fit_units, pool
from voxinstruct_jax.audio.waveform import read_audio
from voxinstruct_jax.audio.whisper import load_whisper_encoder
from voxinstruct_jax.checkpoints.weights import load_weights, save_weights
from voxinstruct_jax.config import ConfigError, InputError, to_dict
from voxinstruct_jax.data.manifest import Row, read_manifest
from voxinstruct_jax.data.progress import progress_bar

__all__ = ["UnitsExperiment", "load_units", "train_units"]

FEATURE_SAMPLE_RATE = 16_000
FEATURES_A_FRAME = 2  # 50 Hz features to 25 Hz frames


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitsExperiment:
    """Fits the units of a voice."""

    manifest: str = "tests/corpus/generated/manifest.jsonl"
    num_units: int = 500
    layer: int = 4
    """Of Whisper's encoder."""
    max_clips: int = 4000
    """Clips that the fit sees, drawn by the seed."""
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.num_units, self.layer, self.max_clips) < 1:
            raise ConfigError("num_units, layer and max_clips must be at least 1")


def train_units(experiment: UnitsExperiment, out: Path) -> SemanticUnits:
    """Fits the units and writes them as a weights folder.

    Raises:
        InputError: The manifest has no readable clips, or the feature source is not installed.
    """
    rows = read_manifest(experiment.manifest)
    chosen = np.random.default_rng(experiment.seed).permutation(len(rows))[: experiment.max_clips]
    source = load_whisper_encoder(experiment.layer)
    features = list(_pooled_features([rows[i] for i in chosen], source))
    frames = sum(map(len, features))
    if frames < experiment.num_units:
        raise InputError(
            f"{experiment.manifest}: {frames} frames are too few for {experiment.num_units} units; add speech"
        )
    units = fit_units(features, experiment.num_units, seed=experiment.seed, source=source.name)
    card = (
        f"# Semantic units\n\n{experiment.num_units} centroids of {source.name}, pooled to 25 Hz, fitted on "
        f"{frames} frames of {len(features)} clips by mini-batch k-means (seed {experiment.seed}).\n"
    )
    made = dataclasses.replace(experiment, manifest=Path(experiment.manifest).name)  # a release names no machine's path
    settings = {"kind": "units", "source": source.name, "experiment": to_dict(made)}
    save_weights(out, {"centroids": units.centroids}, settings, card=card)
    return units


def load_units(folder: Path) -> SemanticUnits:
    """Opens units that `train_units` wrote."""
    settings, arrays = load_weights(folder)
    return SemanticUnits(jnp.asarray(arrays["centroids"]), settings["source"])


def _pooled_features(rows: list[Row], source: FeatureSource) -> Iterator[np.ndarray]:
    with progress_bar("Reading features", len(rows)) as advance:
        for row in rows:
            samples = read_audio(row.audio, FEATURE_SAMPLE_RATE)
            frames = -(-len(samples) // (320 * FEATURES_A_FRAME))
            yield pool(source.features(samples), FEATURES_A_FRAME, frames)
            advance()
