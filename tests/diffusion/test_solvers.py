"""Solvers on distributions whose denoiser is known: what they reach, and how fast with the number of steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from targets import covariance, gaussian, ring, sequence

from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.diffusion.path import Path, PathConfig, Prediction
from voxinstruct_jax.diffusion.solvers import SOLVERS, SamplerConfig, draw_noise, evaluations, sample
from voxinstruct_jax.diffusion.times import Grid

LINEAR = Path(PathConfig())
COSINE = Path(PathConfig(schedule="cosine", prediction="v"))
VP = Path(PathConfig(schedule="vp_linear", prediction="epsilon"))
EDM = Path(PathConfig(schedule="edm", prediction="edm"))


def grid_of(path, steps):
    return Grid(kind="karras" if path is EDM else "uniform", steps=steps)


def run(denoiser, path, shape, *, solver="euler", steps=20, seed=0, **settings):
    rows, frames, channels = shape
    keys = jax.random.split(jax.random.key(seed), rows)
    config = SamplerConfig(solver=solver, grid=grid_of(path, steps), **settings)
    solve = jax.jit(functools.partial(sample, denoiser, path, config=config))
    return np.asarray(solve(draw_noise(keys, frames, channels), keys=keys), np.float64)


@pytest.mark.parametrize("path", [LINEAR, COSINE, EDM], ids=["linear", "cosine", "edm"])
@pytest.mark.parametrize("solver", sorted({*SOLVERS} - {"consistency"}))  # it needs a student
def test_every_solver_reaches_a_gaussian_on_every_path(solver, path):
    found = run(gaussian(path, 0.7, 0.5), path, (64, 64, 1), solver=solver, steps=60)
    assert found.mean() == pytest.approx(0.7, abs=0.03)
    assert found.std() == pytest.approx(0.5, rel=0.13 if solver in {"euler", "ancestral"} else 0.03)  # of first order


@pytest.mark.parametrize(
    ("path", "solver", "order"),
    [
        (LINEAR, "euler", 1), (LINEAR, "heun", 2), (LINEAR, "midpoint", 2), (LINEAR, "dpmpp_2m", 2),
        (COSINE, "euler", 1), (COSINE, "heun", 2), (EDM, "euler", 1), (EDM, "heun", 2), (EDM, "midpoint", 2),
        (EDM, "dpmpp_2m", 2),
    ],
)  # fmt: skip
def test_errors_shrink_with_the_order_of_the_solver(path, solver, order):
    """The flow of a Gaussian in closed form: what lies z standard deviations from the mean stays there."""
    mean, std = 0.0, 0.5
    z = np.linspace(-2, 2, 9).reshape(1, 9, 1)
    start, top = jnp.asarray(z, jnp.float32), float(path.sigma(np.ones(1))[0])
    # at t = 1 the noisy value has deviation sqrt(alpha² std² + sigma²)
    exact = mean + std * z * top / np.sqrt(float(path.alpha(np.ones(1))[0]) ** 2 * std**2 + top**2)
    errors = []
    # what 2M reads of the step before is far away in log signal-to-noise at both ends of a linear path
    for steps in (80, 160) if (path, solver) == (LINEAR, "dpmpp_2m") else (20, 40):
        config = SamplerConfig(solver=solver, grid=grid_of(path, steps))
        found = jax.jit(functools.partial(sample, gaussian(path, mean, std), path, config=config))(start)
        errors.append(np.abs(np.asarray(found) - exact).max())
    assert 2 ** (order - 0.35) < errors[0] / errors[1] < 2 ** (order + 1.2)


@pytest.mark.parametrize(
    ("solver", "steps", "expected"),
    [("euler", 8, 0.639), ("euler", 32, 0.895), ("midpoint", 8, 0.998), ("heun", 32, 1.0), ("dpmpp_2m", 32, 1.0)],
)
def test_first_order_steps_shrink_a_correlated_sequence(solver, steps, expected):
    """AR(1), lag-1 correlation .9, on the linear path: variance by solver and steps."""
    found = run(sequence(LINEAR, covariance("ar1", 32)), LINEAR, (64, 32, 32), solver=solver, steps=steps)
    assert (found**2).mean() == pytest.approx(expected, rel=0.04)
    assert (found[:, 1:] * found[:, :-1]).mean() / (found**2).mean() > 0.85


def test_a_brownian_bridge_comes_out_with_its_covariance():
    cov = covariance("bridge", 12)
    found = run(sequence(LINEAR, cov, mean=0.3), LINEAR, (200, 12, 40), solver="heun", steps=24)
    flat = np.moveaxis(found, 1, -1).reshape(-1, 12)
    np.testing.assert_allclose(flat.mean(0), 0.3, atol=0.05)
    np.testing.assert_allclose(np.cov(flat.T), cov, atol=0.06)


@pytest.mark.parametrize("path", [LINEAR, VP, EDM], ids=["linear", "vp", "edm"])
@pytest.mark.parametrize("solver", ["dpmpp_2m", "ancestral"])
def test_a_mixture_keeps_all_of_its_modes(path, solver):
    found = run(ring(path), path, (40, 100, 2), solver=solver, steps=60).reshape(-1, 2)
    angles = np.round(np.arctan2(found[:, 1], found[:, 0]) / (np.pi / 4)).astype(int) % 8
    shares = np.bincount(angles, minlength=8) / len(found)
    np.testing.assert_allclose(shares, 1 / 8, atol=0.025)
    radii = np.linalg.norm(found, axis=1)
    assert (np.abs(radii - 1) < 0.35).mean() > 0.98
    assert radii.mean() == pytest.approx(1.0, abs=0.02)


def test_one_step_gives_the_mean_of_the_data():
    found = run(ring(LINEAR), LINEAR, (8, 8, 2), steps=1)
    np.testing.assert_allclose(found, 0, atol=1e-5)


def test_euler_with_the_true_velocity_takes_any_number_of_steps():
    """Where data is one point the flow is straight: a single step lands on it."""
    for steps in (1, 7):
        found = run(gaussian(LINEAR, 0.25, 1e-6), LINEAR, (2, 3, 4), steps=steps)
        np.testing.assert_allclose(found, 0.25, atol=1e-5)


def test_without_noise_the_ancestral_solver_is_euler_s():
    denoiser = ring(COSINE)
    plain = run(denoiser, COSINE, (4, 5, 2), steps=9)
    np.testing.assert_allclose(run(denoiser, COSINE, (4, 5, 2), solver="ancestral", eta=0.0, steps=9), plain, atol=1e-5)


def test_churn_of_nothing_is_heun_and_some_churn_stirs():
    denoiser = gaussian(EDM, 0.3, 0.5)
    plain = run(denoiser, EDM, (4, 5, 2), solver="heun", steps=12)
    still = run(denoiser, EDM, (4, 5, 2), solver="churn", churn=0.0, steps=12)
    np.testing.assert_allclose(still, plain, atol=1e-4)
    assert np.abs(run(denoiser, EDM, (4, 5, 2), solver="churn", steps=12) - plain).max() > 0.01


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_a_row_does_not_depend_on_its_neighbours(solver):
    keys = jax.random.split(jax.random.key(1), 4)
    config = SamplerConfig(solver=solver, grid=Grid(steps=3))
    solve = jax.jit(functools.partial(sample, ring(LINEAR), LINEAR, config=config))
    noise = draw_noise(keys, 3, 2)
    whole, swapped = solve(noise, keys=keys), solve(noise[::-1], keys=keys[::-1])
    np.testing.assert_array_equal(whole[::-1], swapped)


def test_longer_noise_begins_as_shorter_noise():
    keys = jax.random.split(jax.random.key(5), 2)
    np.testing.assert_array_equal(draw_noise(keys, 16, 3)[:, :10], draw_noise(keys, 10, 3))


def test_a_projection_holds_for_every_sample():
    keys = jax.random.split(jax.random.key(0), 50)
    config = SamplerConfig(grid=Grid(steps=40))
    free, bound = (
        np.asarray(
            jax.jit(functools.partial(sample, ring(LINEAR), LINEAR, config=config, after_x0=after))(
                draw_noise(keys, 20, 2)
            )
        )
        for after in (None, lambda x0, t: x0.at[..., 0].set(jnp.maximum(x0[..., 0], 0.3)))
    )
    assert (free[..., 0] < 0.3).mean() > 0.5
    assert bound[..., 0].min() >= 0.3 - 1e-5


def test_a_limit_tames_a_network_that_underrates_the_noise():
    exact = gaussian(VP, 0.2, 0.5)

    def erring(x, t):
        epsilon = 0.7 * exact(x, t).epsilon
        return Prediction((x - VP.sigma(t)[:, None, None] * epsilon) / VP.alpha(t)[:, None, None], epsilon)

    assert np.abs(run(erring, VP, (4, 5, 2), steps=30)).max() > 6
    assert np.abs(run(erring, VP, (4, 5, 2), steps=30, limit=3.0)).max() <= 3
    plain, limited = (run(exact, VP, (4, 5, 2), steps=30, limit=limit) for limit in (0.0, 4.0))
    np.testing.assert_allclose(limited, plain, atol=1e-3)  # what is true is within it


def test_a_change_before_each_step_is_made_with_keys_of_its_own():
    keys, seen = jax.random.split(jax.random.key(0), 3), []

    def before(x, t, step_keys):
        seen.append(step_keys.shape)
        return jnp.zeros_like(x)

    config = SamplerConfig(grid=Grid(steps=5))
    found = sample(gaussian(LINEAR, 0.4, 0.1), LINEAR, draw_noise(keys, 2, 2), config, keys=keys, before_step=before)
    assert seen
    assert seen[0] == (3,)
    assert np.isfinite(found).all()
    with pytest.raises(InputError, match="draws random numbers"):
        sample(gaussian(LINEAR, 0.4, 0.1), LINEAR, draw_noise(keys, 2, 2), config, before_step=before)
    with pytest.raises(InputError, match="solver 'ancestral' draws random numbers"):
        sample(ring(LINEAR), LINEAR, draw_noise(keys, 2, 2), SamplerConfig(solver="ancestral"))


def test_evaluations_are_what_is_run():
    for solver in sorted(SOLVERS):
        count = []

        def denoise(x, t, count=count):
            jax.debug.callback(lambda: count.append(1))
            return gaussian(LINEAR, 0.0, 1.0)(x, t)

        config = SamplerConfig(solver=solver, grid=Grid(steps=4))
        keys = jax.random.split(jax.random.key(0), 2)
        jax.block_until_ready(sample(denoise, LINEAR, draw_noise(keys, 2, 1), config, keys=keys))
        jax.effects_barrier()
        assert len(count) == evaluations(config)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match=r"eta 1.5 must lie in \[0, 1\]"):
        SamplerConfig(eta=1.5)
    with pytest.raises(ConfigError, match=r"limit -1.0 be at least 0"):
        SamplerConfig(limit=-1.0)
