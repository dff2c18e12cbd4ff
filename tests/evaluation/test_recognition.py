import json

import numpy as np
import pytest

from voxinstruct_jax.audio.waveform import write_audio
from voxinstruct_jax.evaluation.recognition import Spoken, judge_items, summarise, write_judged

RATE = 16_000


class Parrot:
    """Hears what it was told to, in order."""

    def __init__(self, *texts):
        self.texts = list(texts)
        self.lengths = []

    def transcribe(self, samples, sample_rate, language=None):
        self.lengths.append(len(samples))
        return self.texts.pop(0)


@pytest.fixture
def spoken(tmp_path):
    def make(name, transcript, language="en", seconds=0.1):
        audio = tmp_path / f"{name}.wav"
        if seconds:
            write_audio(audio, np.zeros(int(seconds * RATE), np.float32), RATE, tag="test")
        return Spoken(id=name, audio=audio, transcript=transcript, language=language)

    return make


def test_corpus_rate_adds_errors_before_dividing(spoken):
    items = [spoken("a", "a"), spoken("b", "one cat sat on that mat by our old door")]
    summary = summarise(judge_items(items, Parrot("b c d e f", "one cat sat on that mat by our old door")))
    assert [(s.name, s.errors, s.length) for s in summary] == [("wer", 5, 11)]
    assert summary[0].value == pytest.approx(5 / 11)
    assert (summary[0].evaluated, summary[0].total, summary[0].perfect) == (2, 2, 1)


def test_mandarin_gets_characters_and_toneless_pinyin(spoken):
    summary = summarise(judge_items([spoken("a", "他买了碗。", "zh")], Parrot("她买了晚")))
    assert {s.name: (s.errors, s.length) for s in summary} == {"cer": (2, 4), "pinyin_error_rate": (0, 4)}


def test_missing_audio_counts_as_all_deletions_and_is_named(spoken):
    judged = judge_items([spoken("a", "red green blue", seconds=0), spoken("b", "yes")], Parrot("yes"))
    (summary,) = summarise(judged)
    assert (summary.errors, summary.length, summary.missing, summary.evaluated) == (3, 4, 1, 2)
    assert "no such audio file" in judged[0].problem


def test_item_without_words_or_judge_is_left_out_of_the_count_but_not_of_the_total(spoken):
    items = [spoken("a", "..."), spoken("b", "yes"), spoken("c", "bonjour", "fr")]
    judged = judge_items(items, Parrot("x", "yes", "bonjour"))
    english, french = summarise(judged)
    assert (english.evaluated, english.total, english.value) == (1, 2, 0.0)
    assert (french.evaluated, french.total, french.value) == (0, 1, None)
    assert "'fr'" in judged[2].problem


def test_runaway_is_heard_for_a_minute_and_flagged(spoken):
    parrot = Parrot("so")
    (judged,) = judge_items([spoken("a", "so", seconds=61)], parrot)
    assert parrot.lengths == [60 * RATE]
    assert "first 60 s" in judged.problem
    assert not judged.missing


def test_results_are_json_lines_sorted_by_id_whatever_the_order(spoken, tmp_path):
    items = [spoken("b", "two"), spoken("a", "one")]
    forward, backward = tmp_path / "forward.jsonl", tmp_path / "backward.jsonl"
    write_judged(forward, judge_items(items, Parrot("two", "won")))
    write_judged(backward, judge_items(items[::-1], Parrot("won", "two")))
    assert forward.read_bytes() == backward.read_bytes()
    rows = [json.loads(line) for line in forward.read_text("utf-8").splitlines()]
    assert [row["id"] for row in rows] == ["a", "b"]
    assert rows[0]["counts"] == [{"errors": 1, "length": 1, "unit": "word"}]
