import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from voxinstruct_jax.evaluation.statistics import holm, interval, mcnemar, paired, wilson, win_tie_loss


def word_errors(count, rate, seed):
    random = np.random.default_rng(seed)
    words = random.integers(5, 20, count).astype(float)
    return list(zip(random.binomial(words.astype(int), rate).astype(float), words, strict=True))


def test_intervals_of_shares_are_those_of_the_table():
    table = {
        (80.0, 100): (0.711, 0.867),
        (160.0, 200): (0.739, 0.850),
        (174.0, 200): (0.816, 0.910),
        (400.0, 500): (0.763, 0.833),
    }
    for (right, total), ends in table.items():
        assert wilson(right, total) == pytest.approx(ends, abs=6e-4)


def test_nineteen_in_twenty_intervals_hold_the_truth():
    holds = 0
    for seed in range(60):
        n, d = zip(*word_errors(100, 0.1, seed), strict=True)
        low, high = interval(n, d, range(100), seed=seed, resamples=500)
        holds += low <= 0.1 <= high
    assert holds >= 51


def test_items_of_one_cluster_are_no_further_evidence():
    n, d = zip(*word_errors(50, 0.2, 0), strict=True)
    low, high = interval(n, d, range(50), resamples=2000)
    repeated = interval(n * 4, d * 4, list(range(50)) * 4, resamples=2000)
    alone = interval(n * 4, d * 4, range(200), resamples=2000)
    assert repeated == pytest.approx((low, high), rel=0.05)
    assert alone[1] - alone[0] < 0.6 * (high - low)


def test_what_cannot_be_resampled_has_no_interval():
    assert interval([1.0], [3.0], ["a"]) is None
    assert interval([0.0, 0.0], [3.0, 4.0], ["a", "b"]) is None
    assert paired([(1.0, 2.0)], [(1.0, 2.0)], ["a"]) is None


def test_a_system_against_itself_differs_by_nothing():
    items = word_errors(40, 0.1, 0)
    found = paired(items, items, range(40), resamples=500)
    assert (found.value, found.ci_low, found.ci_high, found.p) == (0, 0, 0, 1)


def test_known_differences_are_found_and_none_where_there_is_none():
    alike = [
        paired(word_errors(100, 0.1, s), word_errors(100, 0.1, s + 500), range(100), resamples=300).p for s in range(40)
    ]
    assert sum(p < 0.05 for p in alike) <= 5
    items = word_errors(200, 0.05, 1)
    worse = [(n + 1.0, d) if place % 10 == 0 else (n, d) for place, (n, d) in enumerate(items)]
    found = paired(items, worse, range(200), resamples=2000)
    assert found.value == pytest.approx(20 / sum(d for _, d in items))
    assert found.ci_low > 0
    assert found.p < 0.01


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_test_of_the_disagreements(first, second):
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


def test_right_or_wrong_scores_are_counted_and_others_drawn():
    right = [(1.0, 1.0)] * 30
    fewer = [(float(place >= 16), 1.0) for place in range(30)]
    assert paired(right, fewer, range(30), resamples=100).p == mcnemar(16, 0) < 1e-4
    clustered = paired(right, fewer, [place // 2 for place in range(30)], resamples=100).p
    assert clustered >= 1 / 101  # drawn: items of one sentence are no evidence of their own


def test_intervals_of_a_skewed_difference_lean_to_the_long_side():
    random = np.random.default_rng(0)
    worse = [(float(gain), 1.0) for gain in random.exponential(1.0, 40) ** 2]
    found = paired([(0.0, 1.0)] * 40, worse, range(40))
    assert found.ci_high - found.value > 1.4 * (found.value - found.ci_low) > 0


def test_draws_follow_from_the_seed():
    n, d = zip(*word_errors(50, 0.2, 0), strict=True)
    assert interval(n, d, range(50), seed=1) == interval(n, d, range(50), seed=1)
    assert interval(n, d, range(50), seed=1) != interval(n, d, range(50), seed=2)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_is_between_one_test_and_bonferroni(p_values):
    corrected = holm(p_values)
    assert all(p <= c <= min(1.0, p * len(p_values)) + 1e-12 for p, c in zip(p_values, corrected, strict=True))
    assert [corrected[i] for i in np.argsort(p_values)] == sorted(corrected)


def test_holm_of_a_worked_case():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_wins_ties_and_losses_count_the_better_direction():
    assert win_tie_loss([1.0, 2.0, 3.0, 4.0], [2.0, 2.05, 1.0, 4.0], better="higher", tie=0.1) == (1, 2, 1)
    assert win_tie_loss([0.1, 0.2], [0.0, 0.3], better="lower", tie=0.0) == (1, 0, 1)
