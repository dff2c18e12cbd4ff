import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.diffusion.path import Path, PathConfig
from voxinstruct_jax.diffusion.times import Grid, TimeDensity, sample_times, time_grid

LINEAR = Path(PathConfig())
EDM = Path(PathConfig(schedule="edm", prediction="edm"))


def draw(density, path=LINEAR, count=20_000):
    return np.asarray(sample_times(jax.random.split(jax.random.key(0), count), density, path))


def test_uniform_and_logit_normal_times_have_their_moments():
    uniform, normal = draw(TimeDensity()), draw(TimeDensity(kind="logit_normal", mean=0.5, std=2.0))
    assert uniform.mean() == pytest.approx(0.5, abs=0.01)
    assert uniform.var() == pytest.approx(1 / 12, rel=0.03)
    logits = np.log(normal / (1 - normal))
    assert (logits.mean(), logits.std()) == (pytest.approx(0.5, abs=0.05), pytest.approx(2, rel=0.03))


def test_u_shaped_times_have_their_density():
    """p(t) = 2 (e^4t + e^4(1-t)) / (e^4 - 1) / 4 x 4: its share below 1/4 by integration."""
    places = np.linspace(0, 1, 100_001)
    density = np.exp(4 * places) + np.exp(4 * (1 - places))
    expected = density[:25_001].sum() / density.sum()
    assert (draw(TimeDensity(kind="u_shaped")) < 0.25).mean() == pytest.approx(expected, abs=0.01)


def test_edm_times_have_log_normal_noise():
    times = draw(TimeDensity(kind="log_normal_noise", mean=-1.2, std=1.2), EDM)
    levels = np.log(EDM.sigma(times.astype(np.float64)))
    assert (levels.mean(), levels.std()) == (pytest.approx(-1.2, abs=0.03), pytest.approx(1.2, rel=0.03))


def test_a_row_s_time_follows_from_its_key_alone():
    keys = jax.random.split(jax.random.key(3), 5)
    density = TimeDensity(kind="logit_normal", shift=3.0)
    whole = sample_times(keys, density, LINEAR)
    np.testing.assert_array_equal(whole[2:4], sample_times(keys[2:4], density, LINEAR))


@given(st.sampled_from(["uniform", "sway", "last_short"]), st.integers(2, 60), st.floats(-1, 1.7), st.floats(0.2, 5))
def test_grids_fall_from_one_to_zero(kind, steps, sway, shift):
    times = time_grid(Grid(kind=kind, steps=steps, sway=sway, shift=shift), LINEAR)
    assert (times[0], times[-1], len(times)) == (1.0, 0.0, steps + 1)
    assert (np.diff(times) < 0).all()


def test_grids_follow_their_formulas():
    sway = time_grid(Grid(kind="sway", steps=4), LINEAR)
    np.testing.assert_allclose(1 - sway, 1 - np.cos(np.pi / 2 * np.linspace(0, 1, 5)), atol=1e-12)
    released = time_grid(Grid(kind="last_short", steps=100), LINEAR)
    np.testing.assert_allclose(np.diff(released)[:-1], -0.999 / 99, rtol=1e-9)
    assert released[-2] == pytest.approx(0.001)
    levels = EDM.sigma(time_grid(Grid(kind="karras", steps=3), EDM))
    middle = ((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7
    np.testing.assert_allclose(levels, [80, middle, 0.002, 0], rtol=1e-9)
    assert time_grid(Grid(steps=2, shift=3.0), LINEAR)[1] == pytest.approx(0.75)


def test_grids_and_densities_that_make_no_sense_are_refused():
    for wrong in ({"steps": 0}, {"sway": 3.0}, {"shift": 0.0}):
        with pytest.raises(ConfigError, match="grid: steps"):
            Grid(**wrong)
    with pytest.raises(ConfigError, match=r"times.std: 0.0 must be above 0"):
        TimeDensity(std=0.0)
    with pytest.raises(ConfigError, match="'karras' needs a path"):
        time_grid(Grid(kind="karras"), LINEAR)
    assert jnp.isfinite(draw(TimeDensity(kind="logit_normal", std=50.0), count=64)).all()
