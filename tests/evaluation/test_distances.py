import numpy as np
import pytest

from voxinstruct_jax.evaluation.pairs import compare_pitch, compare_spectra, warping_path
from voxinstruct_jax.evaluation.reconstruction import compare_reconstruction
from voxinstruct_jax.evaluation.sets import frechet_distance, kernel_distance, mean_dissimilarity, vendi_score
from voxinstruct_jax.judges.pitch import pitch_track

pytest.importorskip("pyworld")
pytest.importorskip("pystoi")
RATE = 16_000


@pytest.fixture(scope="module")
def clip(prompts):
    return prompts[0][0]


def noise(clip, snr_db):
    white = np.random.default_rng(0).standard_normal(len(clip))
    return (clip + white * np.sqrt(np.mean(clip**2)) * 10 ** (-snr_db / 20)).astype(np.float32)


# --- mel-cepstral distortion -----------------------------------------------------------------------------------------


def mcd(generated, reference):
    return compare_spectra(np.asarray(generated, np.float32), reference).mcd_db


def test_volume_and_padding_do_not_count_and_the_same_clip_is_zero(clip):
    assert mcd(clip, clip) == 0
    assert mcd(0.5 * clip, clip) == pytest.approx(0, abs=1e-3)
    padded = compare_spectra(np.pad(clip, RATE // 2), clip)
    assert padded.mcd_db == pytest.approx(0, abs=1e-3)
    assert padded.ratio == pytest.approx(1)


def test_worse_sound_is_further_away(clip, prompts):
    import soxr

    faster = soxr.resample(clip, RATE * 1.03, RATE)
    white = np.random.default_rng(0).standard_normal(len(clip)) * 0.1
    distances = [mcd(faster, clip), mcd(noise(clip, 20), clip), mcd(prompts[1][0], clip), mcd(white, clip)]
    assert distances == sorted(distances)
    # Ranges of one clip of another speaker: 2.68, 7.17, 9.96, 14.1
    for found, usual in zip(distances, (2.7, 7.2, 10, 14.1), strict=True):
        assert found == pytest.approx(usual, rel=0.3)


def test_silence_and_runaways_have_no_distance(clip):
    assert compare_spectra(np.zeros(RATE, np.float32), clip) is None
    assert compare_spectra(np.tile(clip, 4), clip) is None


def test_the_warping_path_of_a_worked_case():
    one, other = warping_path(np.array([[0.0], [1.0], [2.0]]), np.array([[0.0], [1.0], [1.0], [2.0]]))
    assert one.tolist() == [0, 1, 1, 2]
    assert other.tolist() == [0, 1, 2, 3]


def test_the_warping_path_is_the_cheapest_of_all():
    def cheapest(cost, row, column):
        if row < 0 or column < 0:
            return np.inf
        if row == column == 0:
            return cost[0, 0]
        return cost[row, column] + min(
            cheapest(cost, row - 1, column - 1), cheapest(cost, row - 1, column), cheapest(cost, row, column - 1)
        )

    random = np.random.default_rng(0)
    for rows, columns in ((1, 1), (1, 4), (4, 3), (5, 5)):
        one, other = random.standard_normal((rows, 2)), random.standard_normal((columns, 2))
        cost = np.linalg.norm(one[:, None] - other[None], axis=2)
        path = warping_path(one, other)
        assert cost[path].sum() == pytest.approx(cheapest(cost, rows - 1, columns - 1))


def test_pitch_of_a_clip_against_itself_and_against_one_that_is_higher(clip):
    import soxr

    def against(samples):
        path = compare_spectra(samples, clip)
        return compare_pitch(pitch_track(samples, RATE), pitch_track(clip, RATE), path)

    same = against(clip)
    assert (same["rmse_hz"], same["gpe20"], same["vde"], same["ffe"]) == (0, 0, 0, 0)
    assert same["correlation"] == pytest.approx(1)
    higher = against(soxr.resample(clip, RATE * 1.06, RATE).astype(np.float32))
    assert higher["rmse_cents"] == pytest.approx(1200 * np.log2(1.06), rel=0.25)
    assert higher["correlation"] > 0.95
    assert higher["gpe20"] < 0.05


# --- reconstruction --------------------------------------------------------------------------------------------------


def test_a_perfect_reconstruction_scores_as_such_and_volume_shows_where_it_must(clip):
    same = compare_reconstruction(clip, clip)
    assert same["stoi"] == pytest.approx(1, abs=1e-3)
    assert same["si_sdr"] == 100
    assert max(same[name] for name in ("mel_l1", "spectral_convergence", "log_magnitude", "lsd")) == 0
    half = compare_reconstruction(0.5 * clip, clip)
    assert half["stoi"] == pytest.approx(1, abs=1e-3)
    assert half["spectral_convergence"] == pytest.approx(0.5, abs=0.01)
    assert half["mel_l1"] == pytest.approx(np.log(2), abs=0.03)
    assert half["si_sdr"] == 100


def test_noise_lowers_every_score_of_reconstruction(clip):
    little, much = (compare_reconstruction(noise(clip, snr), clip) for snr in (20, 5))
    assert little["si_sdr"] == pytest.approx(20, abs=0.2)
    assert much["si_sdr"] == pytest.approx(5, abs=0.3)
    assert 1 > little["stoi"] > much["stoi"]
    assert little["estoi"] > much["estoi"]
    for name in ("mel_l1", "spectral_convergence", "log_magnitude", "lsd"):
        assert 0 < little[name] < much[name]


def test_a_shift_is_found_before_anything_is_measured(clip):
    late = compare_reconstruction(np.concatenate([np.zeros(160, np.float32), clip[:-160]]), clip)
    assert late["si_sdr"] == 100
    assert late["stoi"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: np.zeros_like(x), "silent"),
        (lambda x: x[: RATE // 4], "lengths differ"),
        (lambda x: np.tile(x, 2), "lengths differ"),
    ],
)
def test_what_cannot_be_measured_says_why(clip, change, reason):
    assert reason in compare_reconstruction(change(clip), clip)


# --- sets ------------------------------------------------------------------------------------------------------------


def test_frechet_distance_of_shifted_gaussians():
    random = np.random.default_rng(0)
    one, other = random.standard_normal((2, 20_000, 3))
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(one, other + 2) == pytest.approx(12, rel=0.03)
    assert frechet_distance(one, 3 * other) == pytest.approx(3 * 4, rel=0.05)


def test_small_sets_are_biased_as_is_known_and_the_kernel_distance_is_not():
    random = np.random.default_rng(0)
    reference = random.standard_normal((8_000, 128))
    assert frechet_distance(random.standard_normal((500, 128)), reference) == pytest.approx(9.5, rel=0.1)
    near = kernel_distance(random.standard_normal((1_000, 128)), reference[:1_000])
    far = kernel_distance(random.standard_normal((1_000, 128)) + 0.1, reference[:1_000])
    assert abs(near) < 5e-3 < far


def test_vendi_score_counts_unlike_rows():
    assert vendi_score(np.ones((5, 1))) == pytest.approx(1)
    assert vendi_score(np.eye(5)) == pytest.approx(5)
    assert mean_dissimilarity(np.eye(3)) == pytest.approx(1)
