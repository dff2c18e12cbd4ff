"""The phone model on clips whose phones are blobs in feature space, with known boundaries, and its search by itself."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxinstruct_jax.audio.phone_model import PhoneModel, SpokenClip, discriminants, fit_phone_model, whiten

LABELS = ("silence", *"abcdefgh")
NUM_FEATURES, SIGNAL_DIM = 130, 12


@dataclass(frozen=True)
class Spoken:
    """A synthetic clip and which phone each of its frames is."""

    clip: SpokenClip
    path: np.ndarray


def speak(random: np.random.Generator, centres: np.ndarray) -> Spoken:
    """Two or three words of two or three phones; silence around and between them, or none."""
    words = np.split(random.permutation(len(LABELS) - 1) + 1, (2, 5))[: random.integers(2, 4)]  # none follows itself
    labels = [0, *itertools.chain(*([*word.tolist(), 0] for word in words))]
    optional = [label == 0 for label in labels]
    frames = [int(random.integers(2, 9)) * int(not silent or random.random() < 0.6) for silent in optional]
    path = np.repeat(np.arange(len(labels)), frames)
    features = 0.5 * random.standard_normal((len(path), NUM_FEATURES))
    features[:, :SIGNAL_DIM] += centres[np.array(labels)[path]]
    (loud,) = np.nonzero(np.array(labels)[path])
    clip = SpokenClip(
        features=features.astype(np.float32),
        labels=np.array(labels),
        optional=np.array(optional),
        active=(int(loud[0]), int(loud[-1]) + 1),
    )
    return Spoken(clip, path)


@pytest.fixture(scope="module")
def corpus():
    random = np.random.default_rng(0)
    centres = 2 * random.standard_normal((len(LABELS), SIGNAL_DIM))
    return [speak(random, centres) for _ in range(110)]


@pytest.fixture(scope="module")
def fitted(corpus):
    """A model fitted to all clips but the last ten, its alignments, and how often it told that a clip was done."""
    ticks = []
    clips = [spoken.clip for spoken in corpus[:-10]]
    model, paths = fit_phone_model(clips, LABELS, num_rounds=5, tick=lambda: ticks.append(1))
    return model, paths, len(ticks)


def starts(clip: SpokenClip, path: np.ndarray) -> np.ndarray:
    """First frame of each phone that must be spoken."""
    return np.searchsorted(path, np.flatnonzero(~clip.optional))


def share_within_a_frame(pairs) -> float:
    return float(np.mean(np.concatenate([np.abs(starts(clip, a) - starts(clip, b)) <= 1 for clip, a, b in pairs])))


def test_boundaries_are_found_from_the_order_of_phones_alone(corpus, fitted):
    _, paths, ticks = fitted
    assert share_within_a_frame((s.clip, path, s.path) for s, path in zip(corpus, paths, strict=False)) > 0.95
    assert ticks == 5 * 100


def test_silence_is_left_out_where_there_is_none(corpus, fitted):
    right = [
        set(found[spoken.clip.optional[found]]) == set(spoken.path[spoken.clip.optional[spoken.path]])
        for spoken, found in zip(corpus, fitted[1], strict=False)
    ]
    assert np.mean(right) > 0.9


def test_clips_that_were_not_fitted_are_aligned_too(corpus, fitted):
    model = fitted[0]
    found = [model.align(s.clip.features, s.clip.labels, s.clip.optional) for s in corpus[-10:]]
    assert share_within_a_frame((s.clip, path, s.path) for s, path in zip(corpus[-10:], found, strict=True)) > 0.95


def test_the_model_aligns_as_its_last_round_did(corpus, fitted):
    model, paths, _ = fitted
    for spoken, path in zip(corpus[:10], paths, strict=False):
        again = model.align(spoken.clip.features.astype(np.float16), spoken.clip.labels, spoken.clip.optional)
        assert np.mean(again == path) > 0.98


def test_more_phones_than_frames_have_no_alignment(corpus, fitted):
    clip = corpus[0].clip
    needed = int(np.count_nonzero(~clip.optional))
    assert fitted[0].align(clip.features[: needed - 1], clip.labels, clip.optional) is None
    tight = fitted[0].align(clip.features[:needed], clip.labels, clip.optional)
    np.testing.assert_array_equal(tight, np.flatnonzero(~clip.optional))


def by_hand(means: np.ndarray) -> PhoneModel:
    """One direction, unit variances."""
    return PhoneModel(
        labels=tuple(map(str, range(len(means)))),
        mean=np.zeros(1, np.float32),
        projection=np.ones((1, 1), np.float32),
        means=means.astype(np.float32),
        variances=np.ones((len(means), 1), np.float32),
    )


def is_path(path: tuple[int, ...], optional: np.ndarray) -> bool:
    """Whether a sequence of places goes forward through all that must be spoken."""
    return set(np.flatnonzero(~optional)) <= set(path)


patterns = st.lists(st.booleans(), min_size=1, max_size=5).filter(
    lambda optional: not any(one and other for one, other in itertools.pairwise(optional))
)


@settings(deadline=None, max_examples=60)
@given(patterns, st.integers(1, 6), st.integers(0, 999))
def test_the_path_is_the_best_of_all_that_go_forward(optional, num_frames, seed):
    optional, random = np.array(optional), np.random.default_rng(seed)
    means, features = random.standard_normal((len(optional), 1)), random.standard_normal((num_frames, 1))
    found = by_hand(means).align(features.astype(np.float32), np.arange(len(optional)), optional)
    if np.count_nonzero(~optional) > num_frames:
        assert found is None
        return
    assert (np.diff(found) >= 0).all()
    assert is_path(tuple(found.tolist()), optional)
    scores = -0.5 * (features - means.T) ** 2
    paths = itertools.combinations_with_replacement(range(len(optional)), num_frames)
    best = max(scores[np.arange(num_frames), path].sum() for path in paths if is_path(path, optional))
    assert scores[np.arange(num_frames), found].sum() == pytest.approx(best, abs=1e-4)


def test_a_text_of_hundreds_of_phones_is_aligned():
    means = np.arange(300.0)[:, None]
    features = np.repeat(means, 2, axis=0).astype(np.float32)
    found = by_hand(means).align(features, np.arange(300), np.zeros(300, bool))
    np.testing.assert_array_equal(found, np.repeat(np.arange(300), 2))


def test_a_phone_with_a_wide_spread_takes_the_frames_that_are_far_from_all():
    model = PhoneModel(
        labels=("narrow", "wide"),
        mean=np.array([10.0], np.float32),
        projection=np.array([[2.0]], np.float32),
        means=np.array([[0.0], [0.0]], np.float32),
        variances=np.array([[0.1], [9.0]], np.float32),
    )
    # latents 2 (x - 10): 0, .2, 4, -4; variance .1 wins near 0, 9 far from it
    found = model.align(np.array([[10.0], [10.1], [12.0], [8.0]], np.float32), np.array([0, 1]), np.zeros(2, bool))
    np.testing.assert_array_equal(found, [0, 0, 1, 1])


def test_whitened_features_have_unit_variance_and_no_correlation():
    random = np.random.default_rng(0)
    features = (random.standard_normal((4000, 5)) @ random.standard_normal((5, 5)) + 3).astype(np.float32)
    mean, axes = whiten(features, 3)
    white = (features - mean) @ axes
    np.testing.assert_allclose(np.cov(white.T), np.eye(3), atol=1e-3)
    # the leading axes: what the other two leave is less than any of them has
    kept = np.linalg.norm(axes, axis=0) ** -2  # variance along each
    assert (np.diff(kept) <= 0).all()
    assert kept[0] == pytest.approx(np.linalg.eigvalsh(np.cov(features.T))[-1], rel=1e-3)


def test_discriminants_are_fishers_direction_with_unit_spread_within_a_class():
    """Two classes whose means differ along x, but whose spread is slanted: x alone is not the best view."""
    random = np.random.default_rng(0)
    within = np.array([[4.0, 3.0, 0.0], [3.0, 4.0, 0.0], [0.0, 0.0, 9.0]])
    classes = random.integers(0, 2, 8000)
    apart = np.array([3.0, 0.0, 0.0])
    features = random.multivariate_normal(np.zeros(3), within, 8000) + np.outer(classes, apart)
    axes = discriminants(features.astype(np.float32), classes, 2)
    fisher = np.linalg.solve(within, apart)
    cosine = axes[:, 0] @ fisher / np.linalg.norm(axes[:, 0]) / np.linalg.norm(fisher)
    assert abs(cosine) > 0.999
    seen = features @ axes
    centres = np.stack([seen[classes == number].mean(axis=0) for number in range(2)])
    np.testing.assert_allclose(np.cov((seen - centres[classes]).T), np.eye(2), atol=0.02)
    # d' of the best view is sqrt(apart' within^-1 apart) = 2.27; x alone has 1.5, other directions none
    distance = np.abs(centres[1] - centres[0])
    assert distance[0] == pytest.approx(np.sqrt(apart @ fisher), rel=0.03)
    assert distance[1] < 0.1
