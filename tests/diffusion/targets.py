"""Distributions whose denoiser is known: what a perfect network would say."""

import jax
import jax.numpy as jnp
import numpy as np

from voxinstruct_jax.diffusion.path import Prediction


def sees(path, x0_of):
    """A denoiser from the posterior mean of data given (x_t, alpha, sigma)."""

    def denoise(x_t, t):
        alpha, sigma = (f(t)[:, None, None] for f in (path.alpha, path.sigma))
        x0 = x0_of(x_t, alpha, sigma)
        return Prediction(x0, (x_t - alpha * x0) / jnp.maximum(sigma, 1e-6))

    return denoise


def gaussian(path, mean, std):
    """Every number from N(mean, std²)."""
    return sees(
        path, lambda x, alpha, sigma: mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x - alpha * mean)
    )


def covariance(kind, size):
    """Of a sequence of unit variance: AR(1) with lag-1 correlation .9, or a Brownian bridge (whose ends are pinned)."""
    places = np.arange(size)
    if kind == "ar1":
        return 0.9 ** np.abs(places[:, None] - places)
    inner = (places + 1) / (size + 1)
    bridge = np.minimum(inner[:, None], inner) - inner[:, None] * inner
    return bridge / np.sqrt(np.outer(np.diag(bridge), np.diag(bridge)))


def sequence(path, cov, mean=0.0):
    """Frames (time axis) from N(mean, cov), the same in each channel."""
    values, vectors = (jnp.asarray(part, jnp.float32) for part in np.linalg.eigh(cov))

    def x0_of(x, alpha, sigma):
        turned = jnp.einsum("btc,tk->bkc", x - alpha * mean, vectors, precision="highest")
        gain = alpha * values[:, None] / (alpha**2 * values[:, None] + sigma**2)
        return mean + jnp.einsum("bkc,tk->btc", gain * turned, vectors, precision="highest")

    return sees(path, x0_of)


RING = np.stack([np.cos(np.pi / 4 * np.arange(8)), np.sin(np.pi / 4 * np.arange(8))], -1)
"""Means of eight Gaussians in the plane, of standard deviation .1."""


def ring(path, std=0.1):
    """A mixture of eight Gaussians over the two channels of each frame."""
    means = jnp.asarray(RING, jnp.float32)

    def x0_of(x, alpha, sigma):
        total = (alpha**2 * std**2 + sigma**2)[..., None]
        distance = jnp.square(x[:, :, None] - alpha[..., None] * means).sum(-1, keepdims=True)
        share = jax.nn.softmax(-distance / (2 * total), axis=2)
        posterior = means + alpha[..., None] * std**2 / total * (x[:, :, None] - alpha[..., None] * means)
        return (share * posterior).sum(2)

    return sees(path, x0_of)
