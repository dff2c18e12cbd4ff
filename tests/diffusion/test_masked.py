"""Masked generation of frames: what is hidden, in which order it is found, and that the head draws what it is told."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from targets import covariance

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.diffusion.guidance import single
from voxinstruct_jax.diffusion.masked import (
    MaskingConfig,
    draw_masks,
    draw_shares,
    fill_frames,
    frame_denoiser,
    sample_masked,
)
from voxinstruct_jax.diffusion.objective import diffusion_loss
from voxinstruct_jax.diffusion.path import Path, PathConfig
from voxinstruct_jax.diffusion.solvers import SamplerConfig, draw_noise, sample
from voxinstruct_jax.diffusion.systems import DiffusionConfig
from voxinstruct_jax.diffusion.times import Grid
from voxinstruct_jax.models.conditions import Conditions
from voxinstruct_jax.models.masked_latents import MaskedLatents, MaskedLatentsConfig, TokenHead, TokenHeadConfig
from voxinstruct_jax.models.mmdit import MMDiTConfig
from voxinstruct_jax.models.unmasking import reveal_totals

COSINE_V = PathConfig(schedule="cosine", prediction="v")


def keys_of(seed, count):
    return jax.random.split(jax.random.key(seed), count)


def test_hidden_shares_are_those_of_the_papers():
    keys = keys_of(0, 20_000)
    mar, maskgit = draw_shares(keys, "truncated_normal"), draw_shares(keys, "cosine")
    assert float(mar.mean()) == pytest.approx(0.867, abs=0.003)
    assert float(mar.min()) >= 0.7
    assert float(mar.max()) <= 1
    assert float(maskgit.mean()) == pytest.approx(2 / np.pi, abs=0.006)
    assert float((maskgit < 0.5).mean()) == pytest.approx(1 / 3, abs=0.01)


def test_any_set_of_real_frames_may_be_hidden():
    candidates = jnp.arange(10) < jnp.array([[10], [7]])
    candidates = jnp.repeat(candidates, 2000, axis=0).at[:, 0].set(False)  # a prompt
    masked = np.asarray(draw_masks(keys_of(1, 4000), jnp.full(4000, 0.5), candidates))
    assert set(masked[:2000].sum(1)) == {5}  # half of nine, rounded up
    assert set(masked[2000:].sum(1)) == {3}
    assert not masked[:, 0].any()
    assert not masked[2000:, 7:].any()
    np.testing.assert_allclose(masked[:2000, 1:].mean(0), 5 / 9, atol=0.05)
    pairs = masked[:2000, 1:].astype(float)
    np.testing.assert_allclose(np.triu(np.corrcoef(pairs.T), 1)[np.triu_indices(9, 1)], -1 / 8, atol=0.08)


@pytest.mark.parametrize("rounds", [1, 5, 30])
def test_every_frame_is_found_once_and_what_is_known_stays(rounds):
    hidden = jnp.ones((3, 12), bool).at[0, :4].set(False).at[2].set(False)
    known = jnp.where(hidden, jnp.nan, 7.0)[..., None]

    def propose(latents, still, keys, share):
        assert latents.shape == (3, 12, 1)
        # a value tells how many frames were still hidden when it was drawn
        return jnp.where(still, still.sum(1, keepdims=True), -1.0)[..., None]

    found = np.asarray(jax.jit(lambda keys: fill_frames(propose, known, hidden, keys, rounds))(keys_of(2, 3)))[..., 0]
    assert (found[~np.asarray(hidden)] == 7).all()
    for row, count in ((0, 8), (1, 12)):
        drawn = found[row][np.asarray(hidden[row])]
        assert drawn.min() > 0  # every one was due while it was hidden
        totals = np.append(0, reveal_totals(rounds, 12)[:, count])
        expected = np.repeat(count - totals[:-1], np.diff(totals))
        assert sorted(drawn) == sorted(expected)


FRAMES = 10


def exact_ar1(latents, still, keys, share):
    """Draws each frame from its distribution given those that are known, apart from its neighbours."""
    cov = jnp.asarray(covariance("ar1", FRAMES), jnp.float32)
    seen = (~still).astype(jnp.float32)
    among = cov * seen[:, :, None] * seen[:, None] + jax.vmap(jnp.diag)(1 - seen)
    gain = jnp.linalg.solve(among, (cov * seen[:, None]).swapaxes(1, 2)).swapaxes(1, 2)  # frame by known frame
    mean = jnp.einsum("bij,bjc->bic", gain, latents * seen[..., None], precision="highest")
    left = 1 - (gain * cov * seen[:, None]).sum(2)
    return mean + jnp.sqrt(jnp.maximum(left, 0))[..., None] * draw_noise(keys, FRAMES, latents.shape[2])


@pytest.mark.parametrize("rounds", [1, 40])
def test_with_exact_conditionals_enough_rounds_give_the_distribution(rounds):
    """AR(1). A round a frame is exact, whatever the order; all frames in one round know nothing of each other."""
    hidden = jnp.ones((1500, FRAMES), bool)
    fill = jax.jit(lambda keys: fill_frames(exact_ar1, jnp.zeros((1500, FRAMES, 8)), hidden, keys, rounds))
    found = np.moveaxis(np.asarray(fill(keys_of(3, 1500))), 1, -1).reshape(-1, FRAMES)
    expected = covariance("ar1", FRAMES) if rounds == 40 else np.eye(FRAMES)
    np.testing.assert_allclose(np.cov(found.T), expected, atol=0.06)


def test_a_gap_is_filled_given_both_sides():
    cov, hidden = covariance("ar1", FRAMES), np.zeros(FRAMES, bool)
    hidden[4:7] = True
    known = (np.linalg.cholesky(cov) @ np.random.default_rng(0).standard_normal((600, FRAMES, 4))).astype(np.float32)
    gain = cov[np.ix_(hidden, ~hidden)] @ np.linalg.inv(cov[np.ix_(~hidden, ~hidden)])
    mean = np.einsum("ij,bjc->bic", gain, known[:, ~hidden])
    fill = jax.jit(lambda known, keys: fill_frames(exact_ar1, known, jnp.broadcast_to(hidden, (600, FRAMES)), keys, 12))
    found = np.asarray(fill(known, keys_of(4, 600)))
    np.testing.assert_array_equal(found[:, ~hidden], known[:, ~hidden])
    off = np.moveaxis(found[:, hidden] - mean, 1, -1).reshape(-1, 3)
    np.testing.assert_allclose(off.mean(0), 0, atol=0.05)
    left = cov[np.ix_(hidden, hidden)] - gain @ cov[np.ix_(~hidden, hidden)]
    np.testing.assert_allclose(np.cov(off.T), left, atol=0.05)


def test_the_head_learns_a_distribution_and_not_its_mean():
    """Told c, a frame is c or -c, each with noise of .2: a regression would say 0."""
    path, count, batch = Path(COSINE_V), 500, 128
    head = TokenHead(TokenHeadConfig(model_dim=48, num_layers=2), 1, 1, rngs=nnx.Rngs(0))
    graph, weights = nnx.split(head)
    optimizer = optax.adam(optax.cosine_decay_schedule(4e-3, count))

    def turn(carry, key):
        weights, moments = carry
        keys = jax.random.split(key, 5)
        told = jax.random.uniform(keys[0], (batch, 1), minval=0.5, maxval=1.5)
        sign = jnp.where(jax.random.bernoulli(keys[1], shape=(batch, 1)), 1.0, -1.0)
        x0 = (sign * told + 0.2 * jax.random.normal(keys[2], (batch, 1)))[:, None]
        noise, t = jax.random.normal(keys[3], x0.shape), jax.random.uniform(keys[4], (batch,), minval=1e-3)

        def cost(weights):
            head = nnx.merge(graph, weights)
            mask = jnp.ones((batch, 1), bool)
            return diffusion_loss(path, lambda x, time: head(x, time, told), x0, noise, t, mask).mean()

        updates, moments = optimizer.update(jax.grad(cost)(weights), moments)
        return (optax.apply_updates(weights, updates), moments), None

    @jax.jit
    def learn(weights):
        keys = jax.random.split(jax.random.key(1), count)
        return jax.lax.scan(turn, (weights, optimizer.init(weights)), keys)[0][0]

    trained = nnx.merge(graph, learn(weights))
    config = DiffusionConfig(path=COSINE_V, sampler=SamplerConfig(solver="ancestral", grid=Grid(steps=40)))
    told = jnp.repeat(jnp.array([0.7, 1.3]), 500)[None, :, None]
    denoiser = frame_denoiser(trained, config, path, told, jnp.ones(1000))
    keys = keys_of(5, 1000)
    solve = jax.jit(functools.partial(sample, denoiser, path, config=config.sampler))
    found = np.asarray(solve(draw_noise(keys, 1, 1), keys=keys)).reshape(2, 500)
    assert np.abs(found).mean(1) == pytest.approx([0.7, 1.3], abs=0.08)
    assert np.abs(found).std(1) == pytest.approx([0.2, 0.2], abs=0.06)
    assert (found > 0).mean(1) == pytest.approx([0.5, 0.5], abs=0.1)


@pytest.fixture(scope="module")
def model():
    """A tiny model whose weights are random: a fresh one says nothing."""
    network = MMDiTConfig(
        latent_channels=4, output_channels=6, model_dim=16, num_heads=2, joint_blocks=1, rotary_dims=4, text_dim=6,
        embedder="lite",
    )  # fmt: skip
    built = MaskedLatents(
        MaskedLatentsConfig(network=network, head=TokenHeadConfig(model_dim=16, num_layers=1)), rngs=nnx.Rngs(0)
    )
    graph, state = nnx.split(built)
    return graph, jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(0), leaf.shape), state)


def text(value):
    return Conditions(text=value * jnp.ones((2, 1, 3, 6)), text_mask=jnp.ones((2, 3), bool))


def test_a_model_generates_behind_a_prompt(model):
    graph, state = model
    config = DiffusionConfig(
        path=COSINE_V, guidance=single(2.0, ("text",)), sampler=SamplerConfig(solver="ancestral", grid=Grid(steps=3))
    )
    frame_mask = jnp.arange(8) < jnp.array([[8], [6]])
    hidden = jnp.arange(8) >= 3
    hidden = jnp.broadcast_to(hidden, (2, 8))
    known = jnp.where(hidden[..., None], jnp.nan, jax.random.normal(jax.random.key(1), (2, 8, 3)))

    @jax.jit
    def generate(state, known, frame_mask, conditions, keys):
        merged = nnx.merge(graph, state)
        return sample_masked(merged, config, 4, conditions, known, hidden, frame_mask, keys)

    keys = keys_of(6, 2)
    found = np.asarray(generate(state, known, frame_mask, text(0.5), keys))
    np.testing.assert_array_equal(found[:, :3], known[:, :3])
    assert np.isfinite(found[np.asarray(frame_mask)]).all()
    assert found[0, 3:].std() > 0.1
    other = np.asarray(generate(state, known, frame_mask, text(-1.0), keys))
    assert np.abs(found - other)[0, 3:].max() > 1e-3
    # a row follows from its own key, conditions and prompt
    turned = np.asarray(generate(state, known[::-1], frame_mask[::-1], text(0.5), keys[::-1]))
    np.testing.assert_allclose(turned[::-1][np.asarray(frame_mask)], found[np.asarray(frame_mask)], atol=1e-4)


def test_hidden_frames_are_not_read(model):
    graph, state = model
    masked = jnp.arange(6) % 2 == jnp.array([[0], [1]])
    frame_mask, latents = jnp.ones((2, 6), bool), jax.random.normal(jax.random.key(2), (2, 6, 3))

    @jax.jit
    def describe(latents, masked):
        return nnx.merge(graph, state).describe(latents, masked, text(0.5), frame_mask)

    told, hidden = describe(latents, masked), masked[..., None]
    assert told.shape == (2, 6, 6)
    np.testing.assert_array_equal(told, describe(jnp.where(hidden, 1e3, latents), masked))
    assert np.abs(told - describe(jnp.where(hidden, latents, 1.0), masked)).max() > 0.01
    # a hidden frame is no frame of zeros
    assert np.abs(told - describe(jnp.where(hidden, 0.0, latents), jnp.zeros_like(masked))).max() > 0.01


def test_guidance_of_frames_grows_with_what_is_known(model):
    graph, state = model
    merged = nnx.merge(graph, state)
    config = DiffusionConfig(path=COSINE_V, guidance=single(3.0, ("text",)))
    told, x, t = (
        jax.random.normal(jax.random.key(3), (2, 5, 6)), jax.random.normal(jax.random.key(4), (5, 1, 3)),
        jnp.linspace(0.2, 0.8, 5),
    )  # fmt: skip

    def at(strength, branches=told):
        return frame_denoiser(merged.head, config, Path(COSINE_V), branches, jnp.full(5, strength))(x, t).x0

    alone = at(0.0, jnp.stack([told[0], told[0]]))
    other = at(0.0, jnp.stack([told[1], told[1]]))
    np.testing.assert_allclose(at(0.0), alone, atol=1e-5)
    np.testing.assert_allclose(at(1.0), other + 3 * (alone - other), atol=1e-4)
    np.testing.assert_allclose(at(0.5), other + 2 * (alone - other), atol=1e-4)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="draws 0 and rounds 64 must be at least 1"):
        MaskingConfig(draws=0)
    with pytest.raises(ConfigError, match="model_dim 0 and num_layers 3"):
        TokenHeadConfig(model_dim=0)
    with pytest.raises(ConfigError, match="one latent channel more"):
        MaskedLatentsConfig(network=MMDiTConfig(latent_channels=4))
