import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxinstruct_jax.audio.semantic import Projection, SemanticUnits, fit_units, load_units, pool
from voxinstruct_jax.checkpoints.weights import save_weights
from voxinstruct_jax.config import InputError


def test_pool_averages_neighbours():
    features = np.array([[0, 10], [2, 20], [4, 30], [8, 50]], np.float32)
    np.testing.assert_array_equal(pool(features, 2, 2), [[1, 15], [6, 40]])


def test_pool_repeats_the_last_frame_where_the_codec_has_more_and_cuts_where_it_has_fewer():
    features = np.array([[1.0], [3.0], [5.0]], np.float32)
    np.testing.assert_array_equal(pool(features, 2, 3), [[2.0], [5.0], [5.0]])
    np.testing.assert_array_equal(pool(features, 2, 1), [[2.0]])


@given(length=st.integers(1, 20), factor=st.integers(1, 4), frames=st.integers(1, 12))
def test_pool_has_as_many_frames_as_were_asked_for(length, factor, frames):
    assert pool(np.ones((length, 3), np.float32), factor, frames).shape == (frames, 3)


def test_each_frame_gets_its_nearest_unit_repeats_included():
    units = SemanticUnits(jnp.asarray([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]]), "by hand")
    found = units.assign(np.array([[1, 1], [9, 2], [9, 1], [2, 7]], np.float32))
    np.testing.assert_array_equal(found, [0, 1, 1, 2])
    assert found.dtype == np.int32


def test_units_see_what_their_projection_shows(tmp_path):
    """The second direction alone, from its mean 10 on."""
    projection = Projection(np.array([0.0, 10.0], np.float32), np.array([[0.0], [2.0]], np.float32))
    units = SemanticUnits(jnp.asarray([[0.0], [8.0]]), "by hand-layer7", projection)
    features = np.array([[900, 10], [-900, 14], [0, 11.9], [0, 12.1]], np.float16)
    np.testing.assert_array_equal(projection(features), 2 * (features[:, 1:].astype(np.float32) - 10))
    np.testing.assert_array_equal(units.assign(features), [0, 1, 0, 1])
    assert units.layer == 7
    arrays = {"centroids": units.centroids, "mean": projection.mean, "projection": projection.matrix}
    save_weights(tmp_path / "units", arrays, {"kind": "units", "source": units.source}, card="# Test\n")
    again = load_units(tmp_path / "units")
    np.testing.assert_array_equal(again.assign(features), units.assign(features))
    assert again.source == units.source
    with pytest.raises(InputError):
        load_units(tmp_path / "none")


def test_fitting_sees_what_the_projection_shows():
    pytest.importorskip("sklearn", reason="fitting units needs the prepare extra")
    random = np.random.default_rng(0)
    told, loud = random.integers(0, 2, 200), 100 * random.integers(0, 2, 200)
    features = np.stack([told * 4, loud], axis=1) + random.standard_normal((200, 2)) / 10
    projection = Projection(np.zeros(2, np.float32), np.array([[1.0], [0.0]], np.float32))
    units = fit_units([features.astype(np.float32)], 2, seed=0, source="points", projection=projection)
    assert units.projection is projection
    np.testing.assert_allclose(np.sort(units.centroids, axis=0), [[0], [4]], atol=0.1)
    assert len(set(zip(units.assign(features.astype(np.float32)).tolist(), told.tolist(), strict=True))) == 2


def test_fitting_finds_well_separated_clusters():
    pytest.importorskip("sklearn", reason="fitting units needs the prepare extra")
    random = np.random.default_rng(0)
    centres = np.array([[0, 0, 0], [20, 0, 0], [0, 20, 0], [0, 0, 20]], np.float32)
    labels = [random.integers(0, 4, 50) for _ in range(4)]
    clips = [(centres[label] + random.standard_normal((50, 3))).astype(np.float32) for label in labels]
    units = fit_units(clips, 4, seed=0, source="points")
    assert units.source == "points"
    np.testing.assert_allclose(centres[_nearest_centre(units, centres)], units.centroids, atol=1)
    assert sorted(_nearest_centre(units, centres)) == [0, 1, 2, 3]
    for clip, label in zip(clips, labels, strict=True):
        np.testing.assert_array_equal(_nearest_centre(units, centres)[units.assign(clip)], label)


def _nearest_centre(units, centres):
    """Which true cluster each unit stands for."""
    return np.linalg.norm(np.asarray(units.centroids)[:, None] - centres[None], axis=-1).argmin(axis=1)


def test_units_follow_the_codec_where_it_has_their_rate_and_keep_their_own_elsewhere():
    features = np.arange(11.0, dtype=np.float32)[:, None]
    table = jnp.arange(12.0)[:, None]
    own, pooled = SemanticUnits(table, "x", frame_rate=50.0), SemanticUnits(2 * table + 0.5, "x", frame_rate=25.0)
    assert own.follow(features, codec_rate=75.0, frames=17).tolist() == list(range(11))
    assert own.follow(features, codec_rate=50.0, frames=12).tolist() == [*range(11), 10]
    assert pooled.follow(features, codec_rate=25.0, frames=5).tolist() == [0, 1, 2, 3, 4]
    assert pooled.follow(features, codec_rate=75.0, frames=17).tolist() == [0, 1, 2, 3, 4, 5]


def test_the_rate_of_units_is_stored_and_older_folders_have_the_usual_one(tmp_path):
    for source, setting, rate in (
        ("hubert-16-layer1", {}, 50.0),
        ("whisper-base-layer4", {}, 25.0),
        ("whisper-base-layer4", {"frame_rate": 12.5}, 12.5),
    ):
        settings = {"kind": "units", "source": source, **setting}
        save_weights(tmp_path / "units", {"centroids": jnp.zeros((2, 3))}, settings, card="# Test\n")
        assert load_units(tmp_path / "units").frame_rate == rate
