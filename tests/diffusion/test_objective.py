"""Every objective's optimum is the true denoiser, in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from targets import gaussian

from voxinstruct_jax.diffusion.objective import diffusion_loss, trivial_loss
from voxinstruct_jax.diffusion.path import Path, PathConfig
from voxinstruct_jax.diffusion.solvers import draw_noise

KINDS = [
    ("linear", "velocity"), ("linear", "data_velocity"), ("linear", "x0"), ("cosine", "v"), ("cosine", "epsilon"),
    ("edm", "edm"),
]  # fmt: skip
MEAN, STD, ROWS = 0.6, 0.5, 8000


def path_of(pair):
    return Path(PathConfig(schedule=pair[0], prediction=pair[1], data_std=STD))


def fitted(path, times):
    """At each time the affine function of x_t that costs least under the objective: least squares on its gradient.

    The objective is quadratic in (slope, offset), so one Newton step from zero is its minimum.
    """
    keys = jax.random.split(jax.random.key(0), ROWS)
    noise = draw_noise(keys, 1, 1)
    x0 = MEAN + STD * draw_noise(jax.random.split(jax.random.key(1), ROWS), 1, 1)
    mask = jnp.ones((ROWS, 1), bool)

    def cost(weights, t):
        def predict(x, _):
            return weights[0] * x + weights[1]

        return diffusion_loss(path, predict, x0, noise, jnp.full(ROWS, t), mask).mean()

    def best(t):
        zero = jnp.zeros(2)
        return jnp.linalg.solve(jax.hessian(cost)(zero, t), -jax.grad(cost)(zero, t))

    return jax.jit(jax.vmap(best))(times)


@pytest.mark.parametrize("pair", KINDS, ids="-".join)
def test_the_optimum_of_every_objective_is_the_exact_denoiser(pair):
    """Solvers see a denoiser only, so what they reach from the exact one (`test_solvers`) they reach from this."""
    path = path_of(pair)
    times = jnp.array([0.15, 0.5, 0.85])
    exact = gaussian(path, MEAN, STD)
    for t, (slope, offset) in zip(times, fitted(path, times), strict=True):
        t = t[None]
        x_t = path.sigma(t) * jnp.linspace(-2, 2, 5)[None, :, None] + path.alpha(t) * MEAN
        found = path.to_prediction(slope * path.scale_input(x_t, t) + offset, x_t, t)
        np.testing.assert_allclose(found.x0, exact(x_t, t).x0, atol=0.05)


@pytest.mark.parametrize("pair", KINDS, ids="-".join)
def test_the_true_denoiser_costs_what_the_posterior_leaves(pair):
    path = path_of(pair)
    x0 = MEAN + STD * draw_noise(jax.random.split(jax.random.key(1), 500), 8, 2)
    noise = draw_noise(jax.random.split(jax.random.key(3), 500), 8, 2)
    t = jnp.full(500, 0.4)
    alpha, sigma = float(path.alpha(t)[0]), float(path.sigma(t)[0])
    x_t = path.add_noise(x0, noise, t)
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    best = MEAN + gain * (x_t - alpha * MEAN)
    left = (1 - alpha * gain) * STD**2  # variance of the data given x_t
    output = path.target(best, (x_t - alpha * best) / sigma, t)
    cost = diffusion_loss(path, lambda *_: output, x0, noise, t, jnp.ones((500, 8), bool)).mean()
    per_x0 = {
        "x0": 1, "epsilon": (alpha / sigma) ** 2, "v": ((alpha**2 + sigma**2) / sigma) ** 2, "velocity": sigma**-2,
        "data_velocity": sigma**-2, "edm": (sigma**2 + STD**2) / (sigma * STD) ** 2,
    }[pair[1]]  # fmt: skip
    assert float(cost) == pytest.approx(per_x0 * left, rel=0.06)
    capped = diffusion_loss(path, lambda *_: output, x0, noise, t, jnp.ones((500, 8), bool), weighting="min_snr").mean()
    assert float(capped) == pytest.approx(min((alpha / sigma) ** 2, 5) * left, rel=0.06)


def test_frames_that_do_not_count_leave_no_trace():
    path, mask = Path(PathConfig()), jnp.array([[True, True, False], [False, False, False]])
    x0, noise = jnp.ones((2, 3, 2)), jnp.zeros((2, 3, 2))
    t = jnp.array([0.5, 0.5])

    def cost(output):
        return diffusion_loss(path, lambda *_: output, x0, noise, t, mask)

    output = jnp.zeros((2, 3, 2)).at[0, 2].set(1e6)
    np.testing.assert_allclose(cost(output), [1.0, 0.0])
    gradient = jax.grad(lambda o: cost(o).sum())(output)
    assert not gradient[0, 2].any()
    assert not gradient[1].any()


def test_the_trivial_predictor_costs_one_plus_the_variance():
    path = Path(PathConfig())
    x0, noise = (draw_noise(jax.random.split(jax.random.key(seed), 200), 10, 4) for seed in (0, 1))
    cost = trivial_loss(path, x0, noise, jnp.full(200, 0.5), jnp.ones((200, 10), bool)).mean()
    assert float(cost) == pytest.approx(2.0, rel=0.05)
