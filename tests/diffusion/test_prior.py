"""Paths around a prior: where Grad-TTS's ends, what a bridge holds fast, and what both reach with exact denoisers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from targets import covariance

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.diffusion.denoiser import make_denoiser
from voxinstruct_jax.diffusion.path import Path, PathConfig, Prediction
from voxinstruct_jax.diffusion.solvers import SOLVERS, SamplerConfig, draw_noise, sample
from voxinstruct_jax.diffusion.systems import SYSTEMS
from voxinstruct_jax.diffusion.times import Grid
from voxinstruct_jax.models.conditions import Conditions

MEAN_REVERTING, BRIDGE = SYSTEMS["grad_tts"].path, SYSTEMS["bridge"].path


def drawn(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def posterior(path, mean_of, cov):
    """Exact denoiser where data given the prior is N(mean_of(prior), cov) along time, alike in each channel."""
    values, vectors = (jnp.asarray(part, jnp.float32) for part in np.linalg.eigh(np.atleast_2d(cov)))

    def denoise(x, t):
        alpha, sigma = (f(t)[:, None, None] for f in (path.alpha, path.sigma))
        mean = mean_of(path.prior) - path.prior
        away = path.beside(x) - alpha * mean
        turned = jnp.einsum("btc,tk->bkc", away, vectors, precision="highest")
        gain = alpha * values[:, None] / (alpha**2 * values[:, None] + sigma**2)
        found = mean + jnp.einsum("bkc,tk->btc", gain * turned, vectors, precision="highest")
        return Prediction(path.around(found), (path.beside(x) - alpha * found) / jnp.maximum(sigma, 1e-6))

    return denoise


def run(config, prior, mean_of, cov, *, steps, solver="euler", temperature=1.0, seed=0):
    path = Path(config, prior)
    settings = SamplerConfig(solver=solver, grid=Grid(steps=steps), temperature=temperature)
    keys = jax.random.split(jax.random.key(seed), len(prior))
    solve = jax.jit(functools.partial(sample, posterior(path, mean_of, cov), path, config=settings))
    return np.asarray(solve(draw_noise(keys, *prior.shape[1:]), keys=keys), np.float64)


# --- the forward process ----------------------------------------------------------------------------------------------


def test_grad_tts_ends_at_its_prior_with_unit_variance():
    x0, prior, noise = 0.3 + 2 * drawn(0, 400, 50, 2), 5 + drawn(1, 400, 50, 2), drawn(2, 400, 50, 2)
    path = Path(MEAN_REVERTING, prior)
    end = path.add_noise(x0, noise, jnp.ones(400)) - prior
    assert float(end.mean()) == pytest.approx(0.0067 * (0.3 - 5), abs=0.02)  # exp(-B / 2) of the way is left
    assert float(end.std()) == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(path.add_noise(x0, noise, jnp.zeros(400)), x0, atol=1e-5)


def test_the_mean_reverting_path_is_what_its_sde_comes_to():
    """Simulates dx = (prior - x) beta / 2 dt + sqrt(beta) dw from x0 = 1.5 towards prior -0.5."""
    random, x, steps = np.random.default_rng(0), np.full(20_000, 1.5), 400
    for step in range(steps):
        t = 0.4 * (step + 0.5) / steps
        rate, span = 0.05 + 19.95 * t, 0.4 / steps
        x += 0.5 * rate * (-0.5 - x) * span + np.sqrt(rate * span) * random.standard_normal(len(x))
    path, ones = Path(MEAN_REVERTING, jnp.full((20_000, 1, 1), -0.5)), jnp.ones((20_000, 1, 1))
    exact = path.add_noise(1.5 * ones, drawn(1, 20_000, 1, 1), jnp.full(20_000, 0.4))
    assert float(exact.mean()) == pytest.approx(x.mean(), abs=0.02)
    assert float(exact.std()) == pytest.approx(x.std(), rel=0.02)


@given(st.floats(0.001, 5), st.floats(0.01, 60), st.integers(0, 99))
def test_a_bridge_is_pinned_at_both_ends(low, high, seed):
    config = PathConfig(schedule="bridge", prediction="x0", beta_min=low, beta_max=high)
    x0, x1, noise = drawn(seed, 2, 3, 4), drawn(seed + 1, 2, 3, 4), 100 * drawn(seed + 2, 2, 3, 4)
    path = Path(config, x1)
    np.testing.assert_array_equal(path.add_noise(jnp.zeros_like(x0), noise, jnp.ones(2)), x1)
    np.testing.assert_allclose(path.add_noise(x0, noise, jnp.zeros(2)), x0, atol=1e-6)
    np.testing.assert_allclose(path.add_noise(x0, noise, jnp.ones(2)), x1, atol=1e-6)


def test_a_bridge_has_the_marginals_of_its_diffusion():
    """q and r are the diffusion's variance before and after t: mean (r x0 + q x1) / S, variance q r / S."""
    t = np.linspace(0.01, 0.99, 9)
    q = 0.01 * t + 0.5 * 19.99 * t**2
    total = 0.01 + 0.5 * 19.99
    path = Path(BRIDGE)
    np.testing.assert_allclose(path.alpha(t), (total - q) / total, rtol=1e-9)
    np.testing.assert_allclose(path.sigma(t), np.sqrt(q * (total - q) / total), rtol=1e-9)


def test_a_bridge_between_ar1_sequences_has_their_marginals():
    """x1 ~ N(0, C), x0 = .8 x1 + N(.1, D): at t a Gaussian whose moments follow from both ends."""
    rows, frames, t = 4000, 6, 0.3
    cov, own = covariance("ar1", frames), 0.09 * 0.6 ** np.abs(np.subtract.outer(np.arange(6), np.arange(6)))
    random = np.random.default_rng(0)
    x1 = random.multivariate_normal(np.zeros(frames), cov, rows)
    x0 = 0.8 * x1 + random.multivariate_normal(np.full(frames, 0.1), own, rows)
    path = Path(BRIDGE, jnp.asarray(x1[..., None], jnp.float32))
    found = path.add_noise(jnp.asarray(x0[..., None], jnp.float32), drawn(3, rows, frames, 1), jnp.full(rows, t))[
        ..., 0
    ]
    alpha, sigma = float(path.alpha(np.array(t))), float(path.sigma(np.array(t)))
    scale = 0.8 * alpha + 1 - alpha
    np.testing.assert_allclose(found.mean(0), 0.1 * alpha, atol=0.08)
    expected = scale**2 * cov + alpha**2 * own + sigma**2 * np.eye(frames)
    np.testing.assert_allclose(np.cov(np.asarray(found).T), expected, atol=0.12)


@given(st.sampled_from(["vp_linear", "cosine", "linear", "bridge"]), st.floats(0.1, 0.9), st.integers(0, 99))
def test_targets_and_predictions_are_one_to_one_around_a_prior(schedule, time, seed):
    kind = "x0" if schedule == "bridge" else ("x0", "epsilon", "v")[seed % 3]
    x0, noise, prior = drawn(seed, 2, 3, 4), drawn(seed + 1, 2, 3, 4), 3 + drawn(seed + 2, 2, 3, 4)
    path, t = Path(PathConfig(schedule=schedule, prediction=kind), prior), jnp.full(2, time)
    x_t = path.add_noise(x0, noise, t)
    found = path.to_prediction(path.target(x0, noise, t), x_t, t)
    np.testing.assert_allclose(found.x0, x0, atol=1e-2 if schedule == "vp_linear" else 1e-4)
    np.testing.assert_allclose(found.epsilon, noise, atol=2e-3)


def test_a_schedule_that_ends_at_no_prior_is_refused():
    with pytest.raises(ConfigError, match="'edm' keeps all of the data"):
        Path(PathConfig(schedule="edm", prediction="edm"), jnp.zeros((1, 1, 1)))


# --- sampling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [25, 100])
@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp_2m"])
def test_grad_tts_reaches_its_target_with_an_exact_score(solver, steps):
    prior = jnp.full((60, 60, 1), 2.5)
    found = run(MEAN_REVERTING, prior, lambda prior: 0.4 * prior, 0.09 * np.eye(60), steps=steps, solver=solver)
    assert found.mean() == pytest.approx(1, abs=0.03)
    assert found.std() == pytest.approx(0.3, rel=0.2 if steps == 25 else 0.06)


def test_temperature_narrows_what_grad_tts_starts_from():
    prior = jnp.zeros((60, 60, 1))
    settings = {"steps": 100, "solver": "heun"}
    plain, cool = (
        run(MEAN_REVERTING, prior, lambda prior: prior, 0.09 * np.eye(60), temperature=each, **settings)
        for each in (1.0, 1.5)
    )
    assert cool.std() / plain.std() == pytest.approx(1.5**-0.5, rel=0.02)


@pytest.mark.parametrize(
    ("solver", "steps", "expected"),
    [
        ("ancestral", 2, 0.048), ("ancestral", 10, 0.178), ("ancestral", 50, 0.254),
        ("euler", 2, 0.049), ("euler", 10, 0.193), ("euler", 50, 0.276),
    ],
)  # fmt: skip
def test_a_bridge_by_its_sde_and_its_ode(solver, steps, expected):
    """To N(.8 x1 + .1, .3²): few steps give nearly the mean, whatever the solver; means agree throughout."""
    prior = 2 * drawn(0, 100, 40, 1)
    found = run(BRIDGE, prior, lambda prior: 0.8 * prior + 0.1, 0.09 * np.eye(40), steps=steps, solver=solver)
    away = found - (0.8 * np.asarray(prior, np.float64) + 0.1)
    assert away.mean() == pytest.approx(0, abs=0.02)
    assert away.std() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("solver", sorted(SOLVERS.keys() - {"consistency"}))  # which is for students
def test_every_solver_crosses_a_bridge_to_a_correlated_sequence(solver):
    cov = 0.25 * covariance("ar1", 12)
    prior = 0.5 * drawn(1, 150, 12, 20)
    found = run(BRIDGE, prior, lambda prior: 0.5 * prior - 0.2, cov, steps=60, solver=solver)
    away = np.moveaxis(found - (0.5 * np.asarray(prior) - 0.2), 1, -1).reshape(-1, 12)
    np.testing.assert_allclose(away.mean(0), 0, atol=0.05)
    np.testing.assert_allclose(np.cov(away.T), cov, atol=0.06 if solver in {"ancestral", "churn"} else 0.04)


def test_a_bridge_without_a_doubt_lands_on_its_data():
    prior = drawn(0, 3, 4, 2)
    for steps in (1, 6):
        found = run(BRIDGE, prior, lambda prior: 2 * prior + 1, 1e-12 * np.eye(4), steps=steps)
        np.testing.assert_allclose(found, 2 * np.asarray(prior) + 1, atol=1e-5)


def test_hooks_and_networks_see_values_not_differences():
    prior, seen = jnp.full((2, 3, 1), 7.0), []

    def network(x, t, conditions, frame_mask):
        seen.append(x)
        return jnp.full_like(x, 6.0)

    path = Path(BRIDGE, prior)
    denoiser = make_denoiser(network, path, Conditions(), jnp.ones((2, 3), bool))
    keys = jax.random.split(jax.random.key(0), 2)
    with jax.disable_jit():
        found = sample(
            denoiser, path, draw_noise(keys, 3, 1), SamplerConfig(grid=Grid(steps=3)), keys=keys,
            before_step=lambda x, t, own: x, after_x0=lambda x0, t: jnp.minimum(x0, 5.5),
        )  # fmt: skip
        limited = sample(
            denoiser, path, draw_noise(keys, 3, 1), SamplerConfig(grid=Grid(steps=2), limit=4.5), keys=keys
        )
    np.testing.assert_allclose(limited, 4.5, atol=1e-5)
    np.testing.assert_allclose(seen[0], prior, atol=0.02)
    np.testing.assert_allclose(found, 5.5, atol=1e-5)
