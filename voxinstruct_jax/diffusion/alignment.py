"""Monotonic alignment search: how long each token of a sequence lasts, by what its frames are most likely to be."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Int32

from voxinstruct_jax.config import InputError

__all__ = ["gaussian_log_likelihood", "monotonic_alignment", "stretch"]


def monotonic_alignment(
    log_likelihood: Float[Array, "batch token time"],
    num_tokens: Int[Array | np.ndarray, " batch"],
    num_frames: Int[Array | np.ndarray, " batch"],
) -> Int32[Array, "batch token"]:
    """Returns the frames that each token lasts on the likeliest path: all tokens in order, one frame at least each.

    Gradients stop here.

    Args:
        log_likelihood: Of each frame if it belonged to each token; not read at padding.
        num_tokens: Real tokens of each row; padding lasts 0 frames.
        num_frames: Real frames of each row, which its durations add up to. In a traced program a row with fewer frames
            than tokens gives no alignment: its durations mean nothing.

    Raises:
        InputError: A row has fewer frames than tokens.

    Source:
        Glow-TTS (arXiv 2005.11129), as in Grad-TTS (arXiv 2105.06337).
    """
    counts = jnp.asarray(num_tokens), jnp.asarray(num_frames)
    if not any(isinstance(count, Tracer) for count in counts) and bool((counts[1] < counts[0]).any()):
        row = int(jnp.argmax(counts[1] < counts[0]))
        raise InputError(
            f"row {row}: {counts[0][row]} tokens cannot share {counts[1][row]} frames; each needs one of its own"
        )
    scores = jnp.moveaxis(jax.lax.stop_gradient(log_likelihood).astype(jnp.float32), -1, 0)
    tokens = jnp.arange(scores.shape[2])
    before = jnp.where(tokens == 0, 0.0, -jnp.inf) * jnp.ones_like(scores[0])

    def forward(best: Array, score: Array) -> tuple[Array, Array]:
        """Best sum up to a frame that ends at each token, and whether the token begins there."""
        moved = jnp.pad(best[:, :-1], ((0, 0), (1, 0)), constant_values=-jnp.inf)
        return jnp.maximum(best, moved) + score, moved > best

    # the first frame belongs to the first token whatever is said of it
    _, begins = jax.lax.scan(forward, jnp.where(tokens == 0, scores[0], before), scores[1:])
    begins = jnp.concatenate([jnp.zeros_like(begins[:1]), begins]) if len(begins) else jnp.zeros(scores.shape, bool)

    def back(token: Array, turn: tuple[Array, Array]) -> tuple[Array, Array]:
        frame, begin = turn
        inside = frame < counts[1]
        here = (tokens == token[:, None]) & inside[:, None]
        return token - (here & begin).any(1), here

    frames = jnp.arange(len(scores))
    _, path = jax.lax.scan(back, counts[0].astype(jnp.int32) - 1, (frames, begins), reverse=True)
    return path.sum(0).astype(jnp.int32)


def gaussian_log_likelihood(
    means: Float[Array, "batch token channel"], frames: Float[Array, "batch time channel"]
) -> Float[Array, "batch token time"]:
    """Of frames under N(mean, 1) of each token, but for a constant."""
    product = jnp.einsum("bnc,btc->bnt", means, frames, precision=jax.lax.Precision.HIGHEST)
    return product - 0.5 * (jnp.square(means).sum(-1)[:, :, None] + jnp.square(frames).sum(-1)[:, None])


def stretch(
    values: Float[Array, "batch token channel"], durations: Int[Array, "batch token"], num_frames: int
) -> tuple[Float[Array, "batch time channel"], Bool[Array, "batch time"]]:
    """Repeats each token's values as long as it lasts; zeros follow.

    Returns:
        The frames, and which of them belong to a token.
    """
    ends, frames = jnp.cumsum(durations, axis=1), jnp.arange(num_frames)
    token = (frames[:, None] >= ends[:, None]).sum(-1)
    real = token < values.shape[1]
    token = jnp.minimum(token, values.shape[1] - 1)
    return jnp.where(real[..., None], jnp.take_along_axis(values, token[..., None], axis=1), 0), real
