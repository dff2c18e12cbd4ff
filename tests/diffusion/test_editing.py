"""Inversion and infilling with denoisers that are known: what comes back, and what stands in the gap."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from targets import RING, covariance, gaussian, ring, sequence

from voxinstruct_jax.audio.latents import LatentConfig
from voxinstruct_jax.audio.spectrogram import MelConfig
from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.diffusion.editing import (
    EditConfig,
    InfillConfig,
    edit,
    edit_latents,
    infill,
    infill_latents,
    invert,
)
from voxinstruct_jax.diffusion.guidance import single
from voxinstruct_jax.diffusion.path import Path, PathConfig, Prediction
from voxinstruct_jax.diffusion.solvers import SamplerConfig, solve
from voxinstruct_jax.diffusion.systems import DiffusionConfig
from voxinstruct_jax.diffusion.times import Grid, time_grid
from voxinstruct_jax.models.conditions import Conditions
from voxinstruct_jax.models.latent_diffusion import LatentDiffusion
from voxinstruct_jax.models.mmdit import MMDiTConfig

LINEAR = Path(PathConfig())
COSINE = Path(PathConfig(schedule="cosine", prediction="v"))
EDM = Path(PathConfig(schedule="edm", prediction="edm"))


def grid_of(path, steps):
    return Grid(kind="karras" if path is EDM else "uniform", steps=steps)


def round_trip(path, latents, steps, passes):
    """Error of going to noise and back by Euler's steps."""
    times, denoiser = time_grid(grid_of(path, steps), path), ring(path)

    @jax.jit
    def there_and_back(x):
        return solve(denoiser, path, invert(denoiser, path, x, times, passes=passes), times, SamplerConfig())

    return float(jnp.sqrt(jnp.square(there_and_back(latents) - latents).mean()))


@pytest.fixture(scope="module")
def ring_latents():
    angles = jax.random.randint(jax.random.key(3), (20, 20), 0, 8)
    return jnp.asarray(RING, jnp.float32)[angles] + 0.1 * jax.random.normal(jax.random.key(4), (20, 20, 2))


@pytest.mark.parametrize("path", [LINEAR, COSINE, EDM], ids=["linear", "cosine", "edm"])
def test_the_way_to_noise_and_back_ends_closer_with_more_steps_and_passes(path, ring_latents):
    coarse, fine, exact = (round_trip(path, ring_latents, *how) for how in ((12, 0), (48, 0), (48, 5)))
    assert fine < coarse / 2.5
    assert exact < fine / 4
    assert exact < 5e-3


def test_inverted_latents_are_noise(ring_latents):
    noise = jax.jit(lambda x: invert(ring(LINEAR), LINEAR, x, time_grid(Grid(steps=50), LINEAR), passes=2))(
        ring_latents
    )
    assert float(noise.mean()) == pytest.approx(0, abs=0.1)
    assert float(noise.std()) == pytest.approx(1, abs=0.12)  # Euler's steps shrink: their inverse widens


def test_an_edit_moves_what_it_is_told_and_keeps_the_rest():
    """From N(-.5, .3²) to N(.8, .3²): each value keeps its place in the distribution."""
    z = np.linspace(-2, 2, 21).reshape(1, -1, 1)
    latents = jnp.asarray(-0.5 + 0.3 * z, jnp.float32)
    source, target = gaussian(LINEAR, -0.5, 0.3), gaussian(LINEAR, 0.8, 0.3)
    sampler = SamplerConfig(grid=Grid(steps=100))
    found = jax.jit(lambda x: edit(source, target, LINEAR, x, sampler, EditConfig(start=1.0)))(latents)
    np.testing.assert_allclose(found, 0.8 + 0.3 * z, atol=0.02)
    same = jax.jit(lambda x: edit(source, source, LINEAR, x, sampler, EditConfig(start=0.7, passes=8)))(latents)
    np.testing.assert_allclose(same, latents, atol=1e-4)
    # a shorter way keeps more of what was there
    little = jax.jit(lambda x: edit(source, target, LINEAR, x, sampler, EditConfig(start=0.2)))(latents)
    assert -0.5 < float(little.mean()) < 0.3


FRAMES, GAP = 24, slice(9, 15)


@pytest.fixture(scope="module")
def gap():
    """AR(1) rows with a gap, and what is true in it given the rest: mean and covariance."""
    cov = covariance("ar1", FRAMES)
    keep = np.ones(FRAMES, bool)
    keep[GAP] = False
    known = np.linalg.cholesky(cov) @ np.random.default_rng(0).standard_normal((32, FRAMES, 16))
    gain = cov[np.ix_(~keep, keep)] @ np.linalg.inv(cov[np.ix_(keep, keep)])
    left = cov[np.ix_(~keep, ~keep)] - gain @ cov[np.ix_(keep, ~keep)]
    mean = np.einsum("uk,bkc->buc", gain, known[:, keep])
    return {"cov": cov, "keep": keep, "known": jnp.asarray(known, jnp.float32), "mean": mean, "cov_left": left}


def filled(gap, path, config, *, solver, steps):
    """(slope of the found on the true conditional mean, variance about it over the true one) in the gap."""
    keep = jnp.broadcast_to(gap["keep"], (32, FRAMES))
    keys = jax.random.split(jax.random.key(1), 32)
    sampler = SamplerConfig(solver=solver, grid=grid_of(path, steps))

    @jax.jit
    def fill(known, keys):
        # what stands in the gap beforehand must not be read
        asked = jnp.where(keep[..., None], known, jnp.nan)
        return infill(sequence(path, gap["cov"]), path, asked, keep, keys, sampler, config)

    found = np.asarray(fill(gap["known"], keys), np.float64)
    np.testing.assert_array_equal(found[:, gap["keep"]], np.asarray(gap["known"])[:, gap["keep"]])
    inside, mean = found[:, GAP], gap["mean"]
    slope = (inside * mean).sum() / (mean**2).sum()
    spread = np.square(inside - mean).mean((0, 2)) / np.diag(gap["cov_left"])
    return slope, spread.mean()


@pytest.mark.parametrize(
    ("path", "solver", "steps"), [(LINEAR, "heun", 12), (LINEAR, "euler", 60), (COSINE, "heun", 9), (EDM, "heun", 32)]
)
def test_infilling_by_the_posterior_has_the_conditional_mean_and_variance(gap, path, solver, steps):
    slope, spread = filled(gap, path, InfillConfig(method="posterior"), solver=solver, steps=steps)
    assert slope == pytest.approx(1, abs=0.05)
    assert spread == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("how", ["replace", "posterior", "edit"])
def test_around_a_prior_the_same_is_done_to_what_values_differ_by(gap, how):
    """Data that lies a constant beside its prior: filled in or edited, the difference comes out as without a prior."""
    config = PathConfig(schedule="vp_linear", prediction="epsilon")
    keep = jnp.broadcast_to(gap["keep"], (4, FRAMES))
    known, keys = gap["known"][:4], jax.random.split(jax.random.key(6), 4)
    sampler, settings = SamplerConfig(grid=Grid(steps=6)), InfillConfig(resample=3, iterations=4)
    plain = sequence(Path(config), gap["cov"])

    def found(prior):
        path = Path(config, prior)

        def denoiser(x_t, t):
            inner = plain(path.beside(x_t), t)
            return Prediction(path.around(inner.x0), inner.epsilon)

        values = path.around(known)
        if how == "edit":
            return edit(denoiser, denoiser, path, values, sampler, EditConfig(start=0.5, passes=1))
        method = dataclasses.replace(settings, method=how)
        return infill(denoiser, path, values, keep, keys, sampler, method)

    prior = jnp.broadcast_to(jnp.linspace(-3, 3, FRAMES)[:, None], known.shape)
    np.testing.assert_allclose(jax.jit(found)(prior) - prior, jax.jit(lambda: found(None))(), atol=2e-4)


def test_infilling_by_replacement_follows_the_rest_better_when_resampled(gap):
    """Of plain replacement the field's toy measurements say: slope about .5, variance 1.8 times the true one."""
    once, often = (filled(gap, LINEAR, InfillConfig(resample=count), solver="ancestral", steps=40) for count in (1, 8))
    assert once[0] < 0.75
    assert once[1] > 1.5
    assert often[0] > 0.85
    assert often[1] == pytest.approx(1, abs=0.2)


def test_a_row_is_filled_alike_whatever_its_neighbours_are(gap):
    keys = jax.random.split(jax.random.key(2), 3)
    known, keep = gap["known"][:3], jnp.broadcast_to(gap["keep"], (3, FRAMES))
    keep = keep.at[1].set(jnp.arange(FRAMES) < 5)
    for method in ("replace", "posterior"):
        config = InfillConfig(method=method, resample=2, iterations=3)

        @jax.jit
        def fill(known, keep, keys, config=config):
            denoiser = sequence(LINEAR, gap["cov"])
            return infill(denoiser, LINEAR, known, keep, keys, SamplerConfig(grid=Grid(steps=4)), config)

        whole = fill(known, keep, keys)
        np.testing.assert_allclose(whole[::-1], fill(known[::-1], keep[::-1], keys[::-1]), atol=1e-5)


def test_a_network_fills_in_and_edits():
    """Through a whole model: known frames stay, the conditions of the gap are heard, padding is no harm."""
    config = MMDiTConfig(latent_channels=4, model_dim=16, num_heads=2, joint_blocks=1, rotary_dims=4, text_dim=6,
                         embedder="lite")  # fmt: skip
    mel = MelConfig(sample_rate=8000, num_mels=4, n_fft=256, hop_length=128, f_max=4000.0)
    model = LatentDiffusion(config, LatentConfig(mel=mel), rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    # a fresh network predicts nothing
    state = jax.tree.map(lambda leaf: leaf + 0.2 * jax.random.normal(jax.random.key(0), leaf.shape), state)
    settings = DiffusionConfig(guidance=single(2.0, ("text",)), sampler=SamplerConfig(grid=Grid(steps=3)))
    latents = jax.random.normal(jax.random.key(1), (2, 6, 4))
    frame_mask = jnp.arange(6) < jnp.array([[6], [5]])
    keep = (jnp.arange(6) < 2) & frame_mask
    keys = jax.random.split(jax.random.key(2), 2)
    one, other = (
        Conditions(text=value * jnp.ones((2, 1, 3, 6)), text_mask=jnp.ones((2, 3), bool)) for value in (0.5, -1.0)
    )

    def filling(method):
        how = InfillConfig(method=method, resample=2, iterations=2)
        return jax.jit(
            lambda state, text: infill_latents(
                nnx.merge(graph, state), settings, text, latents, keep, frame_mask, keys, how
            )
        )

    for method in ("replace", "posterior"):
        fill = filling(method)
        found = fill(state, one)
        np.testing.assert_array_equal(found[keep], latents[keep])
        assert np.isfinite(found).all()
        assert np.abs(found - fill(state, other))[:, 2:5].max() > 1e-4

    def change(state, target, start):
        model = nnx.merge(graph, state)
        plain = DiffusionConfig(sampler=SamplerConfig(grid=Grid(steps=12)))
        return edit_latents(model, plain, one, target, latents, frame_mask, EditConfig(start=start, passes=6))

    same, moved = (jax.jit(change, static_argnums=2)(state, target, 0.5) for target in (one, other))
    np.testing.assert_allclose(same[frame_mask], latents[frame_mask], atol=0.02)
    assert np.abs(moved - same)[frame_mask].max() > 1e-3


@pytest.mark.parametrize("settings", [{"resample": 0}, {"iterations": 0}])
def test_numbers_of_infilling_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match="must be at least 1"):
        InfillConfig(**settings)


@pytest.mark.parametrize("settings", [{"start": 0.0}, {"start": 1.5}, {"passes": -1}])
def test_numbers_of_an_edit_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match="must lie above 0"):
        EditConfig(**settings)
