"""Semantic units: k-means over speech features, at their own rate or pooled to the codec's frame rate.

The paper takes HuBERT's ninth layer; where its weights are not at hand Whisper's fourth encoder layer stands in
(`whisper.py`). The units say what is spoken, hardly by whom: that is what makes the AR model's first stage learnable.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from voxinstruct_jax.audio.quantizer import nearest
from voxinstruct_jax.checkpoints.weights import load_weights

__all__ = ["FEATURE_RATE", "FeatureSource", "Projection", "SemanticUnits", "fit_units", "load_units", "pool"]

FEATURE_RATE = 50.0
"""Of all feature sources, Hz."""
OWN_RATE = 25.0
"""Of units fitted here, Hz: those of the embedded codec's frames."""


@runtime_checkable
class FeatureSource(Protocol):
    """Gives features of 16 kHz speech at a fixed frame rate (50 Hz).

    `features_of` gives those of several clips, computed `batch_size` at a time; each clip's are its own, whatever
    clips are beside it.
    """

    @property
    def name(self) -> str: ...

    def features(self, samples: Float[np.ndarray, " sample"]) -> Float[np.ndarray, "frame dim"]: ...
    def features_of(
        self, clips: Sequence[Float[np.ndarray, " _"]], batch_size: int
    ) -> list[Float[np.ndarray, "_ dim"]]: ...


@dataclasses.dataclass(frozen=True)
class Projection:
    """A linear view of features: `(features - mean) @ matrix`."""

    mean: Float[np.ndarray, " dim"]
    matrix: Float[np.ndarray, "dim latent"]

    def __call__(self, features: Float[np.ndarray, "frame dim"]) -> Float[np.ndarray, "frame latent"]:
        return (features.astype(np.float32) - self.mean) @ self.matrix


@dataclasses.dataclass(frozen=True)
class SemanticUnits:
    """Frozen centroids, jointly for all languages."""

    centroids: Float[Array, "unit latent"]
    source: str
    """Name of the feature source they were fitted on."""
    projection: Projection | None = None
    """What the centroids see of the features; None = all."""
    frame_rate: float = OWN_RATE
    """Hz; features are averaged down to it."""

    @property
    def layer(self) -> int:
        """Layer of the feature source, which stands at the end of its name."""
        return int(self.source.rpartition("layer")[2])

    def assign(self, features: Float[np.ndarray, "frame dim"]) -> Int[np.ndarray, " frame"]:
        """Returns the nearest unit of every frame, repeats included (see `vocabulary.deduplicate`)."""
        seen = features if self.projection is None else self.projection(features)
        return np.asarray(_nearest(jnp.asarray(seen), self.centroids), np.int32)

    def follow(
        self, features: Float[np.ndarray, "feature_frame dim"], *, codec_rate: float, frames: int
    ) -> Int[np.ndarray, " frame"]:
        """Returns the units of a clip: one a codec frame where the codec has their rate, else at their own rate.

        Args:
            features: Of the clip, at `FEATURE_RATE`.
            codec_rate: Codec frames a second, Hz.
            frames: Codec frames of the clip.
        """
        factor = round(FEATURE_RATE / self.frame_rate)
        count = frames if self.frame_rate == codec_rate else -(-len(features) // factor)
        return self.assign(pool(features, factor, count))


def load_units(folder: Path) -> SemanticUnits:
    """Opens the units of a voice, or of any folder in which centroids are stored.

    Raises:
        InputError: The folder is missing or damaged.
    """
    settings, arrays = load_weights(folder)
    projection = None
    if "projection" in arrays:
        projection = Projection(np.asarray(arrays["mean"]), np.asarray(arrays["projection"]))
    source = settings["source"]
    # Folders made before the rate was stored: the paper's units are not pooled, those fitted here are.
    rate = settings.get("frame_rate", FEATURE_RATE if source.startswith("hubert") else OWN_RATE)
    return SemanticUnits(jnp.asarray(arrays["centroids"]), source, projection, rate)


def pool(features: Float[np.ndarray, "frame dim"], factor: int, frames: int) -> Float[np.ndarray, "pooled dim"]:
    """Averages `factor` neighbours and fits the result to the codec's number of frames.

    The last frame is repeated where the codec, which rounds up, has one more.
    """
    wanted = factor * frames
    padded = np.pad(features[:wanted], ((0, max(0, wanted - len(features))), (0, 0)), mode="edge")
    return padded.reshape(frames, factor, -1).mean(axis=1)


def fit_units(
    features: Iterable[Float[np.ndarray, "_ dim"]],
    count: int,
    *,
    seed: int,
    source: str,
    projection: Projection | None = None,
) -> SemanticUnits:
    """Fits centroids by mini-batch k-means (scikit-learn, of the `prepare` extra)."""
    from sklearn.cluster import MiniBatchKMeans

    everything = np.concatenate([clip if projection is None else projection(clip) for clip in features])
    model = MiniBatchKMeans(
        count, random_state=seed, batch_size=8192, n_init="auto", max_iter=60, reassignment_ratio=1e-3
    )
    model.fit(everything)
    return SemanticUnits(jnp.asarray(model.cluster_centers_, jnp.float32), source, projection)


_nearest = jax.jit(nearest)
