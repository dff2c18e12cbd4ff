"""Students of denoisers that are known: what their losses ask for, and what few steps of them reach."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from targets import RING, gaussian, ring

from voxinstruct_jax.diffusion.distillation import consistency_loss, flow_step, matching_loss, reflow_pairs
from voxinstruct_jax.diffusion.objective import diffusion_loss
from voxinstruct_jax.diffusion.path import Path, PathConfig, Prediction
from voxinstruct_jax.diffusion.solvers import SamplerConfig, draw_noise, sample
from voxinstruct_jax.diffusion.times import Grid, time_grid

LINEAR = Path(PathConfig())
COSINE = Path(PathConfig(schedule="cosine", prediction="v"))
EDM = Path(PathConfig(schedule="edm", prediction="edm"))
VP = Path(PathConfig(schedule="vp_linear", prediction="epsilon"))
MEAN, STD = 1.0, 0.5


def rows(seed, count, channels=1):
    return draw_noise(jax.random.split(jax.random.key(seed), count), 1, channels)


def answers(path):
    """The consistency function of N(MEAN, STD²) as a denoiser: where the flow leads from (x, t)."""

    def denoise(x, t):
        alpha, sigma = (f(t)[:, None, None] for f in (path.alpha, path.sigma))
        x0 = MEAN + STD * (x - alpha * MEAN) / jnp.sqrt(alpha**2 * STD**2 + sigma**2)
        return Prediction(x0, (x - alpha * x0) / jnp.maximum(sigma, 1e-6))

    return denoise


@pytest.mark.parametrize("path", [LINEAR, COSINE, EDM, Path(PathConfig(prediction="data_velocity"))])
def test_what_a_student_says_of_data_is_the_data(path):
    """The boundary condition, whatever the network's output."""
    x, output = rows(0, 5), 10 * rows(1, 5)
    np.testing.assert_allclose(path.to_prediction(output, x, jnp.zeros(5)).x0, x, atol=1e-6)


@pytest.mark.parametrize("path", [LINEAR, COSINE, EDM, VP], ids=["linear", "cosine", "edm", "vp"])
def test_a_step_of_the_teacher_follows_the_flow(path):
    """Of a Gaussian the flow is known: what lies z deviations from the mean stays there. Third order for one step."""
    z = rows(2, 64)
    level = jnp.linspace(0.4, 0.6, 64)

    def at(t):
        alpha, sigma = (f(t)[:, None, None] for f in (path.alpha, path.sigma))
        return alpha * MEAN + jnp.sqrt(alpha**2 * STD**2 + sigma**2) * z

    def error(gap):
        return float(
            jnp.abs(flow_step(gaussian(path, MEAN, STD), path, at(level), level, level - gap) - at(level - gap)).max()
        )

    assert error(0.04) < error(0.08) / 5
    landed = flow_step(gaussian(path, MEAN, STD), path, at(level), level, jnp.zeros(64))
    euler = gaussian(path, MEAN, STD)(at(level), level).x0
    np.testing.assert_allclose(landed, euler, atol=1e-5)  # nothing is asked of the network at t = 0


@pytest.mark.parametrize("path", [LINEAR, COSINE, EDM], ids=["linear", "cosine", "edm"])
def test_the_true_answers_cost_nothing_and_others_do(path):
    noise, x0 = rows(3, 400), MEAN + STD * rows(4, 400)
    times = jnp.asarray(time_grid(Grid(kind="karras" if path is EDM else "uniform", steps=60), path), jnp.float32)
    index = jax.random.randint(jax.random.key(5), (400,), 0, 59)
    t, u = times[index], times[index + 1]
    pair, mask = (path.add_noise(x0, noise, t), t, u), jnp.ones((400, 1), bool)
    teacher, true = gaussian(path, MEAN, STD), answers(path)

    def cost(student):
        return float(consistency_loss(path, student, student, teacher, pair, mask).mean())

    assert cost(true) < 1e-5
    assert cost(teacher) > 20 * cost(true)  # the mean of the data is no point of it


@pytest.mark.parametrize("path", [LINEAR, EDM], ids=["linear", "edm"])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_consistent_student_samples_in_few_steps(path, steps):
    config = SamplerConfig(solver="consistency", grid=Grid(kind="karras" if path is EDM else "uniform", steps=steps))
    keys = jax.random.split(jax.random.key(1), 64)
    found = sample(answers(path), path, draw_noise(keys, 64, 1), config, keys=keys)
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(found.std()) == pytest.approx(STD, rel=0.03)
    teacher = sample(gaussian(path, MEAN, STD), path, draw_noise(keys, 64, 1), config, keys=keys)
    assert float(teacher.std()) < 0.6 * STD  # which is why there are students


def network_of(sizes, key):
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        (jax.random.normal(k, (a, b)) * a**-0.5, jnp.zeros(b)) for k, a, b in zip(keys, sizes, sizes[1:], strict=False)
    ]


def apply(weights, x, t):
    y = jnp.concatenate([x[:, 0], t[:, None], jnp.sin(4 * t)[:, None], jnp.cos(4 * t)[:, None]], -1)
    for number, (kernel, bias) in enumerate(weights):
        y = y @ kernel + bias
        y = jnp.tanh(y) if number < len(weights) - 1 else y
    return y[:, None]


def student_of(weights):
    return lambda x, t: LINEAR.to_prediction(apply(weights, x, t), x, t)


def sliced_wasserstein(a, b):
    """Mean distance of sorted projections on 32 directions."""
    angles = np.pi * np.arange(32) / 32
    directions = np.stack([np.cos(angles), np.sin(angles)])
    return np.abs(np.sort(a @ directions, 0) - np.sort(b @ directions, 0)).mean()


def test_a_small_student_beats_its_teacher_in_as_many_steps():
    """A ring of eight Gaussians and its exact denoiser, distilled into 9,000 weights."""
    teacher, batch, count = ring(LINEAR), 256, 1200
    times = jnp.asarray(time_grid(Grid(steps=16), LINEAR), jnp.float32)
    optimizer = optax.adam(optax.cosine_decay_schedule(4e-3, count))
    means = jnp.asarray(RING, jnp.float32)

    def data(key, size):
        which, near = jax.random.split(key)
        return means[jax.random.randint(which, (size, 1), 0, 8)] + 0.1 * jax.random.normal(near, (size, 1, 2))

    def turn(carry, key):
        weights, slow, moments = carry
        keys = jax.random.split(key, 3)
        index = jax.random.randint(keys[0], (batch,), 0, 16)
        t, u = times[index], times[index + 1]
        pair = (LINEAR.add_noise(data(keys[1], batch), jax.random.normal(keys[2], (batch, 1, 2)), t), t, u)

        def cost(weights):
            mask = jnp.ones((batch, 1), bool)
            return consistency_loss(LINEAR, student_of(weights), student_of(slow), teacher, pair, mask).mean()

        updates, moments = optimizer.update(jax.grad(cost)(weights), moments)
        weights = optax.apply_updates(weights, updates)
        return (weights, optax.incremental_update(weights, slow, 0.05), moments), None

    weights = network_of([5, 64, 64, 64, 2], jax.random.key(0))
    start = (weights, weights, optimizer.init(weights))
    run = jax.jit(lambda start: jax.lax.scan(turn, start, jax.random.split(jax.random.key(1), count))[0])
    trained = run(start)[1]
    keys = jax.random.split(jax.random.key(9), 3000)
    true = np.asarray(data(jax.random.key(10), 3000))[:, 0]

    def distance(denoiser, solver, steps):
        config = SamplerConfig(solver=solver, grid=Grid(steps=steps))
        solve = jax.jit(functools.partial(sample, denoiser, LINEAR, config=config))
        return sliced_wasserstein(np.asarray(solve(draw_noise(keys, 1, 2), keys=keys))[:, 0], true)

    for steps in (1, 2):
        ours, theirs = distance(student_of(trained), "consistency", steps), distance(teacher, "euler", steps)
        assert ours < 0.5 * theirs, (steps, ours, theirs)


def made_by(weights, z):
    return weights[0] * z + weights[1]


def test_matching_rests_at_the_teacher_s_distribution_and_leads_there():
    """A student a z + b, its denoiser in closed form; the teacher is N(1, .5²)."""
    real, mask = gaussian(LINEAR, MEAN, STD), jnp.ones((256, 1), bool)

    def gradient(weights, key):
        keys = jax.random.split(key, 3)
        z, noise = (jax.random.normal(k, (256, 1, 1)) for k in keys[:2])
        t = jax.random.uniform(keys[2], (256,), minval=0.02, maxval=0.98)
        still = jax.lax.stop_gradient(weights)
        fake = gaussian(LINEAR, still[1], jnp.abs(still[0]))
        return jax.grad(lambda w: matching_loss(LINEAR, made_by(w, z), real, fake, noise, t, mask).mean())(weights)

    many = jax.jit(lambda w: jax.vmap(gradient, (None, 0))(w, jax.random.split(jax.random.key(0), 40)).mean(0))
    np.testing.assert_allclose(many(jnp.array([STD, MEAN])), 0, atol=1e-5)
    wide, low = many(jnp.array([0.8, MEAN])), many(jnp.array([STD, 0.6]))
    assert wide[0] > 0.01  # too wide: narrower
    assert low[1] < -0.01  # too low: up

    @jax.jit
    def learn(weights):
        optimizer = optax.adam(optax.cosine_decay_schedule(0.02, 800))

        def turn(carry, key):
            weights, moments = carry
            updates, moments = optimizer.update(gradient(weights, key), moments)
            return (optax.apply_updates(weights, updates), moments), None

        keys = jax.random.split(jax.random.key(1), 800)
        return jax.lax.scan(turn, (weights, optimizer.init(weights)), keys)[0][0]

    scale, shift = learn(jnp.array([0.1, -1.0]))
    assert abs(float(scale)) == pytest.approx(STD, rel=0.05)
    assert float(shift) == pytest.approx(MEAN, abs=0.03)


def test_frames_that_do_not_count_pull_at_no_student():
    mask = jnp.array([[True, False], [False, False]])
    made, noise = jnp.ones((2, 2, 3)), jnp.ones((2, 2, 3))
    real, fake = gaussian(LINEAR, MEAN, STD), gaussian(LINEAR, 0.0, 1.0)
    t = jnp.array([0.4, 0.4])
    found = jax.grad(lambda x: matching_loss(LINEAR, x, real, fake, noise, t, mask).sum())(made)
    assert found[0, 0].any()
    assert not found[0, 1].any()
    assert not found[1].any()


def test_reflowed_pairs_do_not_cross_and_make_one_step_enough():
    noise = jnp.sort(rows(6, 300), axis=0)
    data = jax.jit(lambda z: reflow_pairs(gaussian(LINEAR, MEAN, STD), LINEAR, z, Grid(steps=40)))(noise)
    assert (jnp.diff(data[:, 0, 0]) > 0).all()
    np.testing.assert_allclose(data, MEAN + STD * noise, atol=5e-3)

    def straight(x, time):
        """The velocity of the lines between a noise z and MEAN + STD z."""
        t = (time / 1000)[:, None, None]
        z = (x - (1 - t) * MEAN) / ((1 - t) * STD + t)
        return z - (MEAN + STD * z)

    t, mask = jnp.linspace(0.05, 1, 300), jnp.ones((300, 1), bool)
    paired, strangers = (
        diffusion_loss(LINEAR, straight, x0, noise, t, mask).mean() for x0 in (data, jnp.roll(data, 77, axis=0))
    )
    assert float(paired) < 1e-3
    assert float(strangers) > 0.3

    def denoise(x, t):
        return LINEAR.to_prediction(straight(x, 1000 * t), x, t)

    once = sample(denoise, LINEAR, noise, SamplerConfig(grid=Grid(steps=1)))
    np.testing.assert_allclose(once, data, atol=1e-2)
