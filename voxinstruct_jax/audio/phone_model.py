"""When each phone is spoken: a phone model fitted from speech and its text alone, and forced alignment by it.

One Gaussian a phone over discriminative features, found by alternating alignment and fit (Viterbi training) from an
even spread of each clip's phones. Read `fit_phone_model`, then `PhoneModel.align`.

Source:
    Rabiner 1989, "A tutorial on hidden Markov models", sections III-B and VI-B (segmental k-means); Fisher's linear
    discriminant for `discriminants`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from voxinstruct_jax.checkpoints.weights import load_weights

__all__ = ["PhoneModel", "SpokenClip", "discriminants", "fit_phone_model", "load_phone_model", "whiten"]

PCA_DIM = 120
LATENT_DIM = 40
PRIOR_FRAMES = 50.0
"""Weight of the common variance in that of a phone: rare phones have few frames."""
MIN_VARIANCE = 0.02
IMPOSSIBLE = -1e30


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpokenClip:
    """A clip to fit on."""

    features: Float[np.ndarray, "frame dim"]
    labels: Int[np.ndarray, " phone"]
    """Phones in their order, those that may be left out included; the first and the last are silence."""
    optional: Bool[np.ndarray, " phone"]
    """True where a phone may be left out; two such phones never follow one another."""
    active: tuple[int, int]
    """First frame that is not quiet, and the end of the last one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhoneModel:
    """One Gaussian with a diagonal covariance a phone, over projected features."""

    labels: tuple[str, ...]
    mean: Float[np.ndarray, " dim"]
    """Subtracted from features before the projection."""
    projection: Float[np.ndarray, "dim latent"]
    means: Float[np.ndarray, "label latent"]
    variances: Float[np.ndarray, "label latent"]

    def align(
        self,
        features: Float[np.ndarray, "frame dim"],
        labels: Int[np.ndarray, " phone"],
        optional: Bool[np.ndarray, " phone"],
    ) -> Int[np.ndarray, " frame"] | None:
        """Returns which phone (place in `labels`) each frame belongs to; None if there are more phones than frames.

        Args:
            features: Of one clip.
            labels: As in `SpokenClip`, numbers into the model's own labels.
            optional: As in `SpokenClip`.
        """
        if np.count_nonzero(~optional) > len(features):
            return None
        latents = (features.astype(np.float32) - self.mean) @ self.projection
        return _viterbi(_log_likelihoods(latents, self.means, self.variances)[:, labels], optional)


def fit_phone_model(
    clips: Sequence[SpokenClip],
    labels: tuple[str, ...],
    *,
    num_rounds: int = 7,
    tick: Callable[[], Any] = lambda: None,
) -> tuple[PhoneModel, list[Int[np.ndarray, " _"]]]:
    """Fits a model and returns it with the alignment of each clip.

    Args:
        clips: With no more phones than frames each.
        labels: Names of the numbers in the clips.
        num_rounds: Alternations of fit and alignment; the first three use principal components, the later ones
            discriminants of the phones found so far.
        tick: Called after each clip of each round.
    """
    frames = np.concatenate([clip.features for clip in clips]).astype(np.float32)
    mean, whitening = whiten(frames, PCA_DIM)
    white = (frames - mean) @ whitening
    starts = np.cumsum([0, *(len(clip.features) for clip in clips)])
    paths = [_even_spread(clip) for clip in clips]
    turn = np.eye(PCA_DIM, LATENT_DIM + LATENT_DIM // 2, dtype=np.float32)
    means = variances = np.zeros((0, 0), np.float32)
    for number in range(num_rounds):
        classes = np.concatenate([clip.labels[path] for clip, path in zip(clips, paths, strict=True)])
        if number >= 3:
            turn = discriminants(white, classes, LATENT_DIM)
        latents = white @ turn
        means, variances = _gaussians(latents, classes, len(labels))
        for index, clip in enumerate(clips):
            scores = _log_likelihoods(latents[starts[index] : starts[index + 1]], means, variances)
            paths[index] = _viterbi(scores[:, clip.labels], clip.optional)
            tick()
    model = PhoneModel(labels=labels, mean=mean, projection=whitening @ turn, means=means, variances=variances)
    return model, paths


def load_phone_model(folder: Path) -> PhoneModel | None:
    """Opens the phone model of a folder of semantic units; None if they were fitted without phones."""
    settings, arrays = load_weights(folder)
    if "phones" not in arrays:
        return None
    fields = {name: np.asarray(value) for name, value in arrays["phones"].items()}
    return PhoneModel(labels=tuple(settings["phones"]), mean=np.asarray(arrays["mean"]), **fields)


def whiten(
    features: Float[np.ndarray, "frame dim"], count: int
) -> tuple[Float[np.ndarray, " dim"], Float[np.ndarray, "dim count"]]:
    """Returns the mean and the principal axes, scaled to unit variance."""
    mean = features.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov((features - mean).T))
    leading = slice(None, -count - 1, -1)
    return mean, (vectors[:, leading] / np.sqrt(values[leading])).astype(np.float32)


def discriminants(
    features: Float[np.ndarray, "frame dim"], classes: Int[np.ndarray, " frame"], count: int
) -> Float[np.ndarray, "dim count"]:
    """Returns the directions along which classes differ most against their own spread, each with unit spread.

    Source:
        Fisher's linear discriminant, several classes: eigenvectors of within⁻¹ · between.
    """
    sizes, centres = _centres(features, classes, int(classes.max()) + 1)
    within = np.cov((features - centres[classes]).T) + 1e-4 * np.eye(features.shape[1])
    centred = centres - features.mean(axis=0)
    between = (centred * (sizes / sizes.sum())[:, None]).T @ centred
    root = np.linalg.inv(np.linalg.cholesky(within))
    _, vectors = np.linalg.eigh(root @ between @ root.T)
    return (root.T @ vectors[:, ::-1][:, :count]).astype(np.float32)


def _even_spread(clip: SpokenClip) -> Int[np.ndarray, " frame"]:
    """Phones that must be spoken share the active part evenly; what is quiet at the ends is silence."""
    path = np.zeros(len(clip.features), np.int64)
    begin, end = clip.active
    spoken = np.flatnonzero(~clip.optional)
    path[begin:end] = spoken[np.arange(end - begin) * len(spoken) // max(end - begin, 1)] if len(spoken) else 0
    path[end:] = len(clip.labels) - 1
    return path


def _centres(
    features: np.ndarray, classes: np.ndarray, count: int
) -> tuple[Float[np.ndarray, " label"], Float[np.ndarray, "label dim"]]:
    sizes = np.bincount(classes, minlength=count) + 1e-3
    sums = [np.bincount(classes, weights=column, minlength=count) for column in features.T]
    return sizes, (np.stack(sums, axis=1) / sizes[:, None]).astype(np.float32)


def _gaussians(
    latents: np.ndarray, classes: np.ndarray, count: int
) -> tuple[Float[np.ndarray, "label latent"], Float[np.ndarray, "label latent"]]:
    sizes, means = _centres(latents, classes, count)
    _, variances = _centres((latents - means[classes]) ** 2, classes, count)
    common = ((latents - means[classes]) ** 2).mean(axis=0)
    variances = (variances * sizes[:, None] + PRIOR_FRAMES * common) / (sizes[:, None] + PRIOR_FRAMES)
    return means, np.maximum(variances, MIN_VARIANCE).astype(np.float32)


def _log_likelihoods(
    latents: Float[np.ndarray, "frame latent"],
    means: Float[np.ndarray, "label latent"],
    variances: Float[np.ndarray, "label latent"],
) -> Float[np.ndarray, "frame label"]:
    """Up to a constant."""
    precision = 1 / variances
    squares = latents**2 @ precision.T - 2 * latents @ (means * precision).T + (means**2 * precision).sum(axis=1)
    return -0.5 * (squares + np.log(variances).sum(axis=1))


def _viterbi(
    scores: Float[np.ndarray, "frame phone"], optional: Bool[np.ndarray, " phone"]
) -> Int[np.ndarray, " frame"]:
    """The best path through the phones from left to right; an optional one may be passed over."""
    frames, phones = scores.shape
    reachable = np.full(phones, IMPOSSIBLE)
    reachable[0] = scores[0, 0]
    if optional[0] and phones > 1:
        reachable[1] = scores[0, 1]
    jumpable = np.zeros(phones, bool)
    jumpable[2:] = optional[1:-1]
    moves = np.zeros((frames, phones), np.int8)
    for frame in range(1, frames):
        step = np.concatenate([[IMPOSSIBLE], reachable[:-1]])
        jump = np.where(jumpable, np.concatenate([[IMPOSSIBLE], step[:-1]]), IMPOSSIBLE)
        choices = np.stack([reachable, step, jump])
        moves[frame] = choices.argmax(axis=0)
        reachable = choices.max(axis=0) + scores[frame]
    place = phones - 1
    if optional[-1] and phones > 1 and reachable[-2] > reachable[-1]:
        place -= 1
    path = np.zeros(frames, np.int64)
    for frame in range(frames - 1, -1, -1):
        path[frame] = place
        place -= int(moves[frame, place])
    return path
