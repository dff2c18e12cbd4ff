"""Residual vector quantisation with codebooks that follow their members (EMA), for the project's own codec."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from voxinstruct_jax.config import ConfigError, InputError

__all__ = [
    "Codebook",
    "Quantised",
    "QuantizerConfig",
    "ResidualQuantizer",
    "check_codebooks",
    "check_codes",
    "decode_residual",
    "encode_residual",
    "nearest",
]

SMALLEST_MEMBERSHIP, SMALLEST_STD = 1e-6, 1e-3
"""Of an entry and of a channel, where a quantiser was never trained."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """Residual quantiser: stacked codebooks over one latent vector a frame."""

    latent_dim: int = 64
    num_codebooks: int = 8
    codebook_size: int = 512
    decay: float = 0.99  # of the running means, a training step
    revive_below: float = 0.03  # share of the mean membership under which a code is moved to a latent of the batch
    dropout: float = 0.5  # share of clips trained with a random number of leading codebooks

    def __post_init__(self) -> None:
        if min(self.latent_dim, self.num_codebooks, self.codebook_size) < 1:
            raise ConfigError("latent_dim, num_codebooks and codebook_size must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantised:
    """What a training pass through the quantiser gives; gradients pass straight to the latents."""

    latents: Float[Array, "batch frame latent"]
    """By as many codebooks as each clip drew."""
    first: Float[Array, "batch frame latent"]
    """By the first codebook alone."""
    commitment: Float[Array, ""]
    perplexity: Float[Array, " codebook"]
    """Of each codebook's use in this batch."""


class Codebook(nnx.Variable):
    """Codebook entries and their statistics: state that training updates without gradients."""


class ResidualQuantizer(nnx.Module):
    """Each codebook quantises what the ones before it left over.

    Source:
        SoundStream (Zeghidour et al. 2021), section III-C: EMA codebooks, quantizer dropout; dead codes are replaced
        by latents of the batch (its Jukebox reference).
    """

    def __init__(self, config: QuantizerConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        shape = (config.num_codebooks, config.codebook_size)
        self.entries = Codebook(0.02 * jax.random.normal(rngs.params(), (*shape, config.latent_dim)))
        # running number of latents a step; 0 = never used, so revived at once
        self.members = Codebook(jnp.zeros(shape))

    def encode(self, latents: Float[Array, "batch frame latent"]) -> Int[Array, "batch codebook frame"]:
        """Returns the nearest entries, codebook by codebook."""
        return encode_residual(latents, self.entries[...])

    def decode(self, codes: Int[Array, "batch codebook frame"]) -> Float[Array, "batch frame latent"]:
        """Returns the sum of the entries; fewer leading codebooks than configured are allowed."""
        return decode_residual(codes, self.entries[...])

    def statistics(self) -> tuple[Float[Array, " latent"], Float[Array, " latent"]]:
        """Mean and standard deviation of what `decode` gives of all codebooks, from how often training chose each.

        Entries are the means of what they stand for, so a codebook adds nothing to the mean under any entry of those
        before it, and variances add up.
        """
        entries, members = self.entries[...], jnp.maximum(self.members[...], SMALLEST_MEMBERSHIP)
        share = (members / members.sum(1, keepdims=True))[..., None]
        means = (share * entries).sum(1)
        variances = (share * jnp.square(entries - means[:, None])).sum(1)
        return means.sum(0), jnp.maximum(jnp.sqrt(variances.sum(0)), SMALLEST_STD)

    def train_step(self, latents: Float[Array, "batch frame latent"], key: jax.Array) -> "Quantised":
        """Quantises with straight-through gradients and moves the codebooks towards their members."""
        keep_key, amount_key, revive_key = jax.random.split(key, 3)
        batch, config = latents.shape[0], self.config
        amount = jax.random.randint(amount_key, (batch,), 1, config.num_codebooks + 1)
        whole = jax.random.uniform(keep_key, (batch,)) >= config.dropout
        active = jnp.where(whole, config.num_codebooks, amount)
        residual, quantised, commitment, perplexity = latents, jnp.zeros_like(latents), jnp.zeros(()), []
        first = self.entries[...][0][nearest(latents, self.entries[...][0])]
        for q in range(config.num_codebooks):
            index = nearest(residual, self.entries[...][q])
            chosen = self.entries[...][q][index]
            used = (q < active)[:, None, None]
            commitment += jnp.mean(used * (residual - jax.lax.stop_gradient(chosen)) ** 2)
            perplexity.append(
                self._follow(q, jax.lax.stop_gradient(residual), index, jax.random.fold_in(revive_key, q))
            )
            quantised = quantised + used * chosen
            residual = residual - jax.lax.stop_gradient(chosen)
        return Quantised(
            latents=latents + jax.lax.stop_gradient(quantised - latents),
            first=latents + jax.lax.stop_gradient(first - latents),
            commitment=commitment / config.num_codebooks,
            perplexity=jnp.stack(perplexity),
        )

    def _follow(self, q: int, latents: Array, index: Array, key: jax.Array) -> Float[Array, ""]:
        """One EMA update of codebook q; returns the perplexity of its use."""
        config, flat = self.config, latents.reshape(-1, self.config.latent_dim)
        one_hot = jax.nn.one_hot(index.reshape(-1), config.codebook_size, dtype=flat.dtype)
        count = one_hot.sum(0)
        members = config.decay * self.members[...][q] + (1 - config.decay) * count
        # entries are running sums over running numbers of their members
        before = self.members[...][q][:, None] * self.entries[...][q]
        sums = config.decay * before + (1 - config.decay) * one_hot.T @ flat
        fresh = len(flat) / config.codebook_size  # mean membership
        dead = members < config.revive_below * fresh
        donors = flat[jax.random.randint(key, (config.codebook_size,), 0, len(flat))]
        members = jnp.where(dead, fresh, members)
        sums = jnp.where(dead[:, None], donors * fresh, sums)
        self.members[...] = self.members[...].at[q].set(members)
        self.entries[...] = self.entries[...].at[q].set(sums / members[:, None])
        share = count / len(flat)
        return jnp.exp(-jnp.sum(share * jnp.log(share + 1e-10)))


def check_codebooks(count: int, stack_size: int) -> int:
    """Returns `count`.

    Raises:
        InputError: There are not as many codebooks, or none is asked for.
    """
    if not 1 <= count <= stack_size:
        raise InputError(f"{count} codebooks are asked for; this codec has 1 to {stack_size}")
    return count


def check_codes(
    codes: Int[Array | np.ndarray, "batch codebook frame"], stack_size: int, codebook_size: int
) -> Int[Array, "batch codebook frame"]:
    """Returns codes that can be turned into sound; while a program is traced their values are not looked at.

    Raises:
        InputError: There are not as many codebooks or entries, or no frames.
    """
    if codes.ndim != 3:
        raise InputError(f"codes have the shape {codes.shape}; give [batch, codebook, frame]")
    check_codebooks(codes.shape[1], stack_size)
    if not codes.shape[2]:
        raise InputError("there are no frames to decode; give codes of at least one")
    if not isinstance(codes, Tracer):
        low, high = int(np.min(codes)), int(np.max(codes))
        if low < 0 or high >= codebook_size:
            raise InputError(f"codes run from {low} to {high}; this codec has 0 to {codebook_size - 1}")
    return jnp.asarray(codes)


def encode_residual(
    latents: Float[Array, "batch frame latent"], codebooks: Float[Array, "codebook size latent"]
) -> Int[Array, "batch codebook frame"]:
    """Returns the nearest entry of each codebook to what the ones before it left over."""
    codes, residual = [], latents
    for entries in codebooks:
        index = nearest(residual, entries)
        codes.append(index)
        residual = residual - entries[index]
    return jnp.stack(codes, axis=1).astype(jnp.int32)


def decode_residual(
    codes: Int[Array, "batch codebook frame"], codebooks: Float[Array, "all_codebooks size latent"]
) -> Float[Array, "batch frame latent"]:
    """Returns the sum of the entries; `codes` may hold fewer codebooks than there are."""
    return sum((codebooks[q][codes[:, q]] for q in range(1, codes.shape[1])), codebooks[0][codes[:, 0]])


def nearest(latents: Float[Array, "*batch latent"], entries: Float[Array, "size latent"]) -> Int[Array, " *batch"]:
    """Index of the entry with the least squared distance.

    Highest matmul precision: accelerators' default is not float32, and a code must not depend on the device.
    """
    product = jnp.einsum("...d,nd->...n", latents, entries, precision=jax.lax.Precision.HIGHEST)
    return jnp.argmin(jnp.sum(entries**2, axis=-1) - 2 * product, axis=-1)
