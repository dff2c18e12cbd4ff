"""Guidance against closed forms, and the properties that mixing must keep."""

import functools
from pathlib import Path as Path_

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxinstruct_jax.cli.experiments import load_experiment
from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.diffusion.denoiser import make_denoiser
from voxinstruct_jax.diffusion.guidance import DenoiserGuidance, double, dual, mix, nested, rescale, single, unguided
from voxinstruct_jax.diffusion.path import Path, PathConfig, Prediction
from voxinstruct_jax.diffusion.solvers import SamplerConfig, draw_noise, sample
from voxinstruct_jax.diffusion.systems import SYSTEMS
from voxinstruct_jax.diffusion.times import Grid
from voxinstruct_jax.guidance import Guidance, acoustic_weights
from voxinstruct_jax.models.conditions import Conditions, null_conditions

scale = st.floats(0, 9, width=32)
LINEAR = Path(PathConfig())
WHOLE = jnp.ones((2, 3), bool)


def outputs(seed, branches):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((branches, 2, 3, 4)), jnp.float32)


def at(*times):
    return jnp.array(times)


@given(scale, scale, st.integers(0, 50))
def test_rules_are_their_papers_equations(a, b, seed):
    full, one, other, null = outputs(seed, 4)
    t = at(0.3, 0.8)
    cases = [
        (single(a), (full, null), null + a * (full - null)),
        (dual(a, b), (full, one, other, null), full + a * (one - null) + b * (other - null)),
        (double(a, b), (full, one, null), null + a * (one + b * (full - one) - null)),
    ]
    inner = one + a * (full - one)
    cases.append((nested(a, b), (full, one, other), other + b * (inner - other)))
    for guidance, branches, expected in cases:
        found = mix(jnp.stack(branches), guidance, t, WHOLE)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-4 * (1 + a) * (1 + b))


def test_nested_guidance_has_the_weights_of_the_language_model():
    found = nested(3.0, 1.5)
    np.testing.assert_allclose(found.weights, acoustic_weights(Guidance()))
    swapped = nested(1.5, 3.0, ("content",), ("text",))
    assert not np.allclose(found.weights, swapped.weights)  # the order matters


@given(scale, st.integers(0, 50))
def test_equal_branches_give_themselves_and_scale_one_the_conditional(w, seed):
    same = jnp.broadcast_to(outputs(seed, 1), (2, 2, 3, 4))
    np.testing.assert_allclose(mix(same, single(w), at(0.1, 0.9), WHOLE), same[0], atol=1e-4)
    both = outputs(seed, 2)
    np.testing.assert_allclose(mix(both, single(1.0), at(0.1, 0.9), WHOLE), both[0], atol=1e-5)


def test_outside_its_interval_guidance_rests():
    guidance = DenoiserGuidance(branches=((), ("text",)), weights=(3.0, -2.0), interval=(0.2, 0.6))
    both = outputs(0, 2)
    found = mix(both, guidance, at(0.3, 0.9), WHOLE)
    np.testing.assert_allclose(found[0], 3 * both[0, 0] - 2 * both[1, 0], atol=1e-5)
    np.testing.assert_allclose(found[1], both[0, 1], atol=1e-6)


def test_full_rescaling_restores_the_deviation_of_real_frames():
    mask = jnp.array([[True, True, False], [True, True, True]])
    mixed, conditional = 7 * outputs(1, 1)[0], outputs(2, 1)[0]
    found = np.asarray(rescale(mixed, conditional, mask, 1.0))
    assert found[0, :2].std() == pytest.approx(float(jnp.std(conditional[0, :2])), rel=1e-4)
    padded = rescale(mixed.at[0, 2].set(1e4), conditional.at[0, 2].set(-1e4), mask, 1.0)
    np.testing.assert_allclose(padded[0, :2], found[0, :2], rtol=1e-5)
    np.testing.assert_allclose(rescale(mixed, conditional, mask, 0.0), mixed)
    half = np.asarray(rescale(mixed, conditional, mask, 0.7))[1].std()
    assert half == pytest.approx(0.7 * float(jnp.std(conditional[1])) + 0.3 * float(jnp.std(mixed[1])), rel=1e-4)


def gaussian_backbone(null_std):
    """Says the velocity of N(1, .5²) where it sees its text, and of N(0, null_std²) where it does not."""

    def backbone(x, time, conditions, frame_mask):
        t = (time / 1000)[:, None, None]
        seen = conditions.text_mask.any(1)[:, None, None]
        mean, std = jnp.where(seen, 1.0, 0.0), jnp.where(seen, 0.5, null_std)
        alpha = 1 - t
        x0 = mean + alpha * std**2 / (alpha**2 * std**2 + t**2) * (x - alpha * mean)
        return LINEAR.from_prediction(Prediction(x0, (x - alpha * x0) / jnp.maximum(t, 1e-6)), x, time / 1000)

    return backbone


def guided_samples(guidance, null_std, *, rows=16, frames=64):
    conditions = Conditions(text=jnp.zeros((rows, 1, 2, 3)), text_mask=jnp.ones((rows, 2), bool))
    mask = jnp.ones((rows, frames), bool)
    denoiser = make_denoiser(gaussian_backbone(null_std), LINEAR, conditions, mask, guidance)
    noise = draw_noise(jax.random.split(jax.random.key(0), rows), frames, 1)
    config = SamplerConfig(solver="heun", grid=Grid(steps=60))
    return np.asarray(jax.jit(functools.partial(sample, denoiser, LINEAR, config=config))(noise))


@pytest.mark.parametrize("w", [1.0, 2.0, 5.0])
def test_between_gaussians_of_one_width_guidance_moves_the_mean_alone(w):
    """Conditional N(1, .5²), null N(0, .5²): the guided flow ends at N(w, .5²)."""
    found = guided_samples(single(w, ("text",)), 0.5)
    assert found.mean() == pytest.approx(w, abs=0.05)
    assert found.std() == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize(("w", "mean", "std"), [(2.0, 1.318, 0.223), (3.0, 1.397, 0.100)])
def test_against_a_wider_null_guidance_kills_the_spread(w, mean, std):
    """Null N(0, 1.118²): figures of the guided probability flow, worked out for the noise levels of EDM."""
    found = guided_samples(single(w, ("text",)), 1.118)
    assert found.mean() == pytest.approx(mean, abs=0.05)
    assert found.std() == pytest.approx(std, abs=0.03)


def told_backbone(error):
    """Says the noise of N(m, .5²), m = 0.4 in channel 0 where text is seen, -0.3 in channel 1 where content is."""
    path = Path(SYSTEMS["voice_ldm"].path)

    def backbone(x, time, conditions, frame_mask):
        t = (time / 1000)[:, None, None]
        seen = (part.any(1).astype(jnp.float32) for part in (conditions.text_mask, conditions.content_mask))
        mean = (jnp.stack(list(seen), -1) * jnp.array([0.4, -0.3]))[:, None]
        alpha, sigma = path.alpha(t), path.sigma(t)
        return sigma * (x - alpha * mean) / (alpha**2 * 0.25 + sigma**2) + error

    return path, backbone


@functools.cache
def dual_means(first, second, error=0.0):
    path, backbone = told_backbone(error)
    conditions = Conditions(
        text=jnp.zeros((8, 1, 2, 3)), text_mask=jnp.ones((8, 2), bool),
        content=jnp.ones((8, 4), jnp.int32), content_mask=jnp.ones((8, 4), bool),
    )  # fmt: skip
    denoiser = make_denoiser(backbone, path, conditions, jnp.ones((8, 200), bool), dual(first, second))
    noise = draw_noise(jax.random.split(jax.random.key(0), 8), 200, 2)
    solve = jax.jit(functools.partial(sample, denoiser, path, config=SYSTEMS["voice_ldm"].sampler))
    return np.asarray(solve(noise))


@pytest.mark.parametrize(("first", "second"), [(0.0, 0.0), (1.0, 9.0), (5.0, 0.0), (2.0, 3.0)])
def test_each_weight_of_dual_guidance_moves_its_own_share(first, second):
    """VoiceLDM's formula where the conditions are independent: a condition's shift grows by its own weight."""
    found = dual_means(first, second)
    expected = [0.4 * (1 + first), -0.3 * (1 + second)]
    np.testing.assert_allclose(found.mean((0, 1)), expected, atol=0.06)
    np.testing.assert_allclose(found.std((0, 1)), 0.5, atol=0.06)


def test_a_network_that_errs_on_pure_noise_does_no_harm():
    """There the data would be the error divided by nothing."""
    np.testing.assert_allclose(dual_means(1.0, 1.0, error=0.05).mean((0, 1)), [0.8, -0.6], atol=0.4)


def test_voice_ldm_is_a_configuration():
    """Described and told what is said, each left out by itself and both together."""
    experiment = load_experiment(str(Path_(__file__).parents[2] / "configs" / "voice_ldm_small.py"))
    settings = experiment.diffusion
    assert settings.guidance == dual(1.0, 9.0)
    assert {slots for slots, _ in settings.drop} == {("text",), ("content",), ("text", "content")}
    assert experiment.model.phones is not None
    assert experiment.data.phone_width > 0


def test_unguided_denoisers_run_one_branch():
    rows = []

    def backbone(x, time, conditions, frame_mask):
        rows.append(len(x))
        return x

    conditions = Conditions(text=jnp.zeros((2, 1, 2, 3)), text_mask=jnp.ones((2, 2), bool))
    for guidance in (unguided(), single(2.0), dual(1.0, 9.0)):
        make_denoiser(backbone, LINEAR, conditions, WHOLE, guidance)(jnp.zeros((2, 3, 4)), at(0.5, 0.5))
    assert rows == [2, 4, 8]


def test_a_dropped_slot_is_gone_on_its_rows_only():
    conditions = Conditions(
        text=jnp.ones((2, 1, 2, 3)),
        text_mask=jnp.ones((2, 2), bool),
        content=jnp.ones((2, 4), jnp.int32),
        content_mask=jnp.ones((2, 4), bool),
        source=jnp.ones((2, 3, 4)),
        task_tag=jnp.ones((2, 3)),
    )
    found = null_conditions(conditions, ("text", "source"), jnp.array([True, False]))
    assert found.text_mask.any(1).tolist() == [False, True]
    assert found.content_mask.all()
    assert found.source.any((1, 2)).tolist() == [False, True]
    assert found.task_tag.all()
    with pytest.raises(ConfigError, match="'texts' is none of text, content, source"):
        null_conditions(conditions, ("texts",), jnp.array([True, False]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"branches": (("text",),), "weights": (1.0,)}, "the first branch must drop nothing"),
        ({"branches": ((), ("text",)), "weights": (2.0, 0.0)}, "sum to 1"),
        ({"branches": ((), ("txt",)), "weights": (2.0, -1.0)}, "guidance.branches: 'txt' is none of text, content"),
        ({"rescale": 1.5}, "must lie in"),
        ({"interval": (0.6, 0.2)}, "must lie in"),
    ],
)
def test_rules_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        DenoiserGuidance(**settings)
