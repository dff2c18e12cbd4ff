"""Paths: each way of predicting says the same of data and noise; both papers' conventions are mirror images."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxinstruct_jax.config import ConfigError, from_dict, to_dict
from voxinstruct_jax.diffusion.path import Path, PathConfig

PAIRS = [
    *[("linear", kind) for kind in ("x0", "epsilon", "v", "velocity", "data_velocity")],
    *[(schedule, kind) for schedule in ("cosine", "vp_linear") for kind in ("x0", "epsilon", "v")],
    ("edm", "edm"),
    ("bridge", "x0"),
]
PREDICTIONS = {"edm": "edm", "bridge": "x0"}
paths = st.sampled_from(PAIRS).map(lambda pair: Path(PathConfig(schedule=pair[0], prediction=pair[1])))


def drawn(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@given(paths, st.floats(0.05, 0.95), st.integers(0, 99))
def test_a_target_says_what_data_and_noise_were(path, time, seed):
    x0, noise, t = drawn(seed, 2, 3, 4), drawn(seed + 1, 2, 3, 4), jnp.full(2, time)
    x_t = path.add_noise(x0, noise, t)
    found = path.to_prediction(path.target(x0, noise, t), x_t, t)
    scale = float(path.sigma(t)[0]) if path.config.schedule == "edm" else 1.0
    np.testing.assert_allclose(found.x0, x0, atol=2e-3 if path.config.schedule == "vp_linear" else 3e-5 * max(scale, 1))
    np.testing.assert_allclose(found.epsilon, noise, atol=2e-3)


@given(paths, st.floats(0.05, 0.95), st.integers(0, 99))
def test_an_output_and_what_it_stands_for_are_one_to_one(path, time, seed):
    x_t, output, t = drawn(seed, 2, 3, 4), drawn(seed + 1, 2, 3, 4), jnp.full(2, time)
    found = path.to_prediction(output, x_t, t)
    scale = float(jnp.abs(found.x0).max() + jnp.abs(found.epsilon).max())
    rounding = 5e-3 if path.config.schedule == "edm" else 2e-4  # where sigma is small, data and x_t all but agree
    np.testing.assert_allclose(path.from_prediction(found, x_t, t), output, atol=rounding * max(scale, 1))
    rebuilt = path.alpha(t)[:, None, None] * found.x0 + path.sigma(t)[:, None, None] * found.epsilon
    np.testing.assert_allclose(rebuilt, x_t, atol=1e-4 * max(scale, 1))


@given(st.sampled_from(["linear", "cosine", "vp_linear", "edm", "bridge"]), st.floats(0.02, 0.98))
def test_a_time_follows_from_its_noise_level(schedule, time):
    path = Path(PathConfig(schedule=schedule, prediction=PREDICTIONS.get(schedule, "x0")))
    t = np.array([time])
    np.testing.assert_allclose(path.time_of(path.sigma(t) / path.alpha(t)), t, rtol=1e-9)


@given(st.sampled_from(["linear", "cosine", "vp_linear", "edm", "bridge"]), st.floats(0.05, 0.9))
def test_rates_are_the_derivatives_of_the_schedule(schedule, time):
    path = Path(PathConfig(schedule=schedule, prediction=PREDICTIONS.get(schedule, "x0")))
    near = np.array([time, time + 1e-6])
    span = np.diff(path.clock(near))
    for found, values in zip(path.rates(near[:1]), (path.alpha(near), path.sigma(near)), strict=True):
        np.testing.assert_allclose(found, np.diff(values) / span, rtol=1e-3, atol=1e-4)


def test_schedules_run_from_data_to_noise():
    for schedule in ("linear", "cosine", "vp_linear"):
        path, ends = Path(PathConfig(schedule=schedule, prediction="v")), np.array([0.0, 1.0])
        np.testing.assert_allclose(path.alpha(ends), [1, 0], atol=0.01)
        np.testing.assert_allclose(path.sigma(ends), [0, 1], atol=1e-4)


def test_the_two_papers_mirror_each_other():
    """UNISON: clean at 0, target noise - data. InstructAudio: clean at 1, target data - noise."""
    unison = Path(PathConfig())
    instruct_audio = Path(PathConfig(prediction="data_velocity", data_at_one=True))
    x0, noise, t = drawn(0, 2, 3, 4), drawn(1, 2, 3, 4), jnp.array([0.2, 0.7])
    np.testing.assert_array_equal(unison.target(x0, noise, t), noise - x0)
    np.testing.assert_array_equal(instruct_audio.target(x0, noise, t), x0 - noise)
    np.testing.assert_allclose(unison.time_input(t), 1000 * t)
    np.testing.assert_allclose(instruct_audio.time_input(t), 1000 * (1 - t))
    x_t, output = unison.add_noise(x0, noise, t), drawn(2, 2, 3, 4)
    one, other = unison.to_prediction(output, x_t, t), instruct_audio.to_prediction(-output, x_t, t)
    np.testing.assert_allclose(one.x0, other.x0, atol=1e-6)
    np.testing.assert_allclose(one.epsilon, other.epsilon, atol=1e-6)


@pytest.mark.parametrize("level", [0.002, 0.1, 1.0, 80.0])
def test_what_an_edm_network_reads_and_gives_has_unit_variance(level):
    path = Path(PathConfig(schedule="edm", prediction="edm", data_std=0.5))
    x0, noise = 0.5 * drawn(0, 40_000, 1, 2), drawn(1, 40_000, 1, 2)
    t = jnp.full(40_000, path.time_of(np.array(level)), jnp.float32)
    assert float(jnp.var(path.target(x0, noise, t))) == pytest.approx(1, abs=0.02)
    assert float(jnp.var(path.scale_input(path.add_noise(x0, noise, t), t))) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "cosine"}, "'velocity' belongs to the linear schedule"),
        ({"prediction": "edm"}, "belong together"),
        ({"schedule": "bridge", "prediction": "epsilon"}, "a bridge has no 'epsilon' at its end"),
        ({"sigma_max": 0.0}, "path.sigma_max: 0.0 must be above 0"),
        ({"schedule": "edm", "prediction": "edm", "data_at_one": True}, "told the noise level"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        PathConfig(**settings)


def test_systems_survive_storage_and_fit_together():
    from voxinstruct_jax.diffusion.solvers import evaluations
    from voxinstruct_jax.diffusion.systems import SYSTEMS, DiffusionConfig
    from voxinstruct_jax.diffusion.times import time_grid

    for config in SYSTEMS.values():
        assert from_dict(DiffusionConfig, to_dict(config)) == config
        assert len(time_grid(config.sampler.grid, Path(config.path))) == config.sampler.grid.steps + 1
        assert sum(share for _, share in config.drop) < 1
    assert dict(SYSTEMS["f5_tts"].drop) == {("source",): 0.24, ("text", "content", "source"): 0.2}
    for drop, message in (
        (((("text",), 0.6), (("content",), 0.6)), r"\[0.6, 0.6\] must be at least 0 and sum to at most 1"),
        (((("words",), 0.1),), "diffusion.drop: 'words' is none of text"),
    ):
        with pytest.raises(ConfigError, match=message):
            DiffusionConfig(drop=drop)
    assert evaluations(SYSTEMS["unison"].sampler) == 100
    assert evaluations(SYSTEMS["edm_sound"].sampler) == 63
