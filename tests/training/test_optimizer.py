import jax.numpy as jnp
import numpy as np
import pytest

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.training.optimizer import OptimizerConfig, learning_rate, make_optimizer


@pytest.mark.parametrize(
    ("step", "expected"), [(5_000, 5.0e-5), (10_000, 1.0e-4), (100_000, 3.16e-5), (999_999, 1.00e-5)]
)
def test_the_learning_rate_is_that_of_the_paper(step, expected):
    assert float(learning_rate(OptimizerConfig())(step)) == pytest.approx(expected, rel=2e-3)


def test_the_learning_rate_does_not_double_at_a_million_steps_as_the_release_does():
    schedule = learning_rate(OptimizerConfig())
    assert float(schedule(1_000_000)) == pytest.approx(1e-5, rel=1e-3)
    assert float(schedule(2_000_000)) == pytest.approx(1e-4 * (10_000 / 2_000_000) ** 0.5, rel=1e-3)


def test_the_learning_rate_is_finite_at_the_first_step():
    assert 0 < float(learning_rate(OptimizerConfig())(jnp.asarray(0))) <= 1e-8


def test_a_cosine_starts_at_zero_peaks_after_the_warm_up_and_ends_at_its_share():
    config = OptimizerConfig(peak_lr=2e-3, warmup_steps=10, decay="cosine", decay_steps=110, final_lr_ratio=0.1)
    schedule = learning_rate(config)
    found = [float(schedule(step)) for step in (0, 5, 10, 60, 110, 500)]
    np.testing.assert_allclose(found, [0, 1e-3, 2e-3, 1.1e-3, 2e-4, 2e-4], rtol=1e-5)


def test_weights_decay_and_vectors_do_not():
    config = OptimizerConfig(peak_lr=0.5, warmup_steps=1, weight_decay=0.2)
    optimizer = make_optimizer(config)
    params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 3.0)}
    updates, _ = optimizer.update({"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.5 * 0.2 * 3.0, rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], 0)


def test_a_large_gradient_is_clipped_by_the_norm_of_all_of_it():
    # Adam's first step has the size of the learning rate whatever the gradient, so look at the moments it keeps
    config = OptimizerConfig(max_grad_norm=5.0, beta1=0.9)
    optimizer = make_optimizer(config)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    _, (_, adam) = optimizer.update(
        {"a": jnp.asarray([30.0]), "b": jnp.asarray([40.0])}, optimizer.init(params), params
    )
    np.testing.assert_allclose(adam[0].mu["a"], 0.1 * 3.0, rtol=1e-5)
    np.testing.assert_allclose(adam[0].mu["b"], 0.1 * 4.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peak_lr": 0.0}, r"peak_lr 0\.0 must be above 0"),
        ({"warmup_steps": 0}, "warmup_steps 0 at least 1"),
        ({"decay": "cosine", "decay_steps": 10, "warmup_steps": 10}, "decay_steps 10 must be above warmup_steps 10"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        OptimizerConfig(**change)
