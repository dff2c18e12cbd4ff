import numpy as np
import pytest

from voxinstruct_jax.judges.dnsmos import DNSMOS_SCORES, DnsMos

pytest.importorskip("speechmos")
RATE = 16_000


@pytest.fixture(scope="module")
def judge():
    return DnsMos()


@pytest.fixture(scope="module")
def prompt():
    import json
    from pathlib import Path

    import soundfile
    import soxr

    folder = Path(__file__).parents[1] / "corpus" / "asterisk"
    row = json.loads((folder / "manifest.jsonl").read_text("utf-8").splitlines()[0])
    samples, rate = soundfile.read(folder / row["audio"], dtype="float32")
    return np.clip(soxr.resample(samples, rate, RATE), -1, 1).astype(np.float32)


def test_scores_are_those_of_the_original_program(judge, prompt):
    # speechmos 0.0.1.1 with librosa, on this clip
    expected = {"ovrl": 2.9314, "sig": 3.2930, "bak": 3.8241, "p808": 3.9250}
    assert judge.scores(prompt) == pytest.approx(expected, abs=0.01)


def test_noise_is_heard(judge, prompt):
    white = np.random.default_rng(0).standard_normal(len(prompt)).astype(np.float32)
    noisy = np.clip(prompt + white * np.sqrt(np.mean(prompt**2)) * 10 ** (-5 / 20), -1, 1)
    clean, bad = judge.scores(prompt), judge.scores(noisy)
    assert bad["bak"] < clean["bak"] - 1
    assert bad["ovrl"] < clean["ovrl"] - 0.5
    assert tuple(clean) == DNSMOS_SCORES
    assert "dnsmos" in judge.fingerprint
