"""What only a set of items says: spread of takes, order of classes, distances, speed, use of codes."""

import numpy as np
import pytest
import soundfile

from voxinstruct_jax.evaluation.evaluate import EvaluationRequest, evaluate
from voxinstruct_jax.evaluation.evidence import in_this_process

RATE = 16_000


@pytest.fixture
def rows(spoken, tmp_path):
    """Evaluates what was added; rows over everything, by metric."""

    def run(*metrics, judges=None, skip=()):
        request = EvaluationRequest(
            source=spoken.folder, out=tmp_path / "out", metrics=metrics, judges=judges or {}, skip=skip
        )
        return {row.metric: row for row in evaluate(request, in_this_process, progress=False).rows}

    return run


def tone(spoken, name, *, hertz=150, seconds=1.5, peak=0.3, **columns):
    path = spoken.add(name, columns.pop("transcript", "so it is"), "", **columns)
    time_s = np.arange(round(seconds * RATE)) / RATE
    soundfile.write(path, peak * (2 * ((time_s * hertz) % 1) - 1), RATE)


def test_the_spread_of_takes_is_heard_where_nothing_else_needs_their_judge(spoken, rows):
    for place in range(4):
        tone(spoken, f"take-{place}", hertz=120 * 2 ** (place / 12), seconds=1.5 * 1.1**place, instruction="Say it.")
    for place in range(3):
        tone(spoken, f"other-{place}", instruction="Say that.")
    found = rows("diversity.f0", "diversity.duration")
    assert found["diversity.f0"].value == pytest.approx(np.std(range(4), ddof=1), abs=0.1)
    assert found["diversity.duration"].value == pytest.approx(np.std(range(4), ddof=1) * np.log(1.1), rel=0.01)
    assert (found["diversity.f0"].evaluated, found["diversity.f0"].total) == (1, 1)


def test_order_is_told_by_pairs_and_by_ranks(spoken, rows):
    for name, hertz in {"low": 110, "normal": 200, "high": 150}.items():
        tone(spoken, name, hertz=hertz, attributes={"pitch": name}, transcript="one two three four five")
    found = rows("order.pitch")
    assert found["order.pitch"].value == pytest.approx(2 / 3, abs=1e-5)
    assert found["order.pitch.spearman"].value == pytest.approx(0.5)
    assert "order.pitch" not in rows("attribute.pitch", skip=("order",))


def test_classes_of_sound_give_divergence_and_inception_score(spoken, rows):
    tone(spoken, "same", peak=0.3, reference_audio="same.wav")
    tone(spoken, "other", peak=0.9, reference_audio="same.wav")
    found = rows("kl", "is", judges={"classes.mine": "stub_judges:Classifier"})
    true, made = np.array([0.3, 0.7, 0.2]) / 1.2, np.array([0.9, 0.1, 0.2]) / 1.2
    assert found["kl.mine"].value == pytest.approx(np.sum(true * np.log(true / made)) / 2, rel=1e-2)
    mean = (true + made) / 2
    expected = np.exp((np.sum(true * np.log(true / mean)) + np.sum(made * np.log(made / mean))) / 2)
    assert found["is.mine"].value == pytest.approx(expected, rel=1e-2)
    assert found["kl.panns"].skipped == 2


def test_every_judge_that_embeds_gives_distances_beside_those_of_two_halves(spoken, rows):
    for place in range(24):
        tone(spoken, f"{place:02d}", peak=0.2 + 0.02 * place, reference_audio=f"{23 - place:02d}.wav")
    found = rows("mmd.mine", "fd.mine", judges={"similarity.mine": "stub_judges:Embedder"})
    assert found["mmd.mine"].value == pytest.approx(0, abs=0.02)
    assert found["mmd.mine.real_half"].evaluated == 24
    assert found["fd.mine"].value is None
    assert "24 items, 30 are needed" in found["fd.mine"].note


def test_speed_is_that_of_the_results(spoken, rows):
    for place, spent in enumerate((0.5, 1.0, 3.0)):
        tone(spoken, f"{place}", seconds=2.0, timings={"synthesis_s": spent, "finished_unix_s": 100.0 + 4 * place})
    found = rows("rtf", "throughput", "latency")
    assert found["rtf"].value == pytest.approx(4.5 / 6)
    assert found["throughput.worker"].value == pytest.approx(6 / 4.5, rel=1e-4)
    assert found["throughput.wall"].value == pytest.approx(4 / 8)
    assert found["latency.p50"].value == 1.0
    assert (found["latency.p50"].evaluated, found["latency.p50"].total) == (3, 3)


def test_use_of_codes_is_counted_by_codebook_and_a_size_is_never_guessed(spoken, rows):
    even, one = [0, 1, 2, 3] * 25, [7] * 100
    tone(spoken, "a", seconds=2.0, codes=[even, one], codebook_size=8)
    tone(spoken, "b", seconds=2.0)
    found = rows("codec")
    assert found["codec.bitrate"].value == pytest.approx(200 * 3 / 2)
    assert found["codec.entropy"].value == pytest.approx(100 * 2 / 2)
    assert found["codec.perplexity"].value == pytest.approx((4 + 1) / 2)
    assert found["codec.used"].value == pytest.approx((4 / 8 + 1 / 8) / 2)
    assert "by codebook: 4, 1" in found["codec.perplexity"].note
    assert (found["codec.used"].evaluated, found["codec.used"].total) == (1, 2)
    spoken.rows[0].pop("codebook_size")
    spoken.write()
    assert {"codec.entropy", "codec.perplexity"} == {name for name in rows("codec") if name.startswith("codec")}


def test_codes_that_are_none_set_the_row_aside(spoken, tmp_path):
    tone(spoken, "a", codes=[[1, -2]])
    tone(spoken, "b")
    request = EvaluationRequest(source=spoken.folder, out=tmp_path / "out", metrics=("energy",))
    [rejected] = evaluate(request, in_this_process, progress=False).rejected
    assert "column 'codes': expected a list of lists" in rejected.reason
