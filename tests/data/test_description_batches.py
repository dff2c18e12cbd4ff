import dataclasses
from pathlib import Path

import numpy as np
import pytest

from voxinstruct_jax.attributes import class_numbers
from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.data.description_batches import DescriptionBatches, DescriptionData
from voxinstruct_jax.data.shards import ShardReader, is_stressed
from voxinstruct_jax.text.tokenizer import (
    CONCEPT_CHANNEL,
    OUTSIDE_QUOTES,
    QUOTE_CHANNEL,
    PronunciationTokenizer,
    spread_durations,
)

READER = ShardReader(Path(__file__).parents[2] / "corpus" / "dev")
TOKENIZER = PronunciationTokenizer()
DATA = DescriptionData(rows=6, text_width=120)


def make(data=DATA, seed=3, **options):
    return DescriptionBatches(READER, TOKENIZER, data, seed, **options)


def test_rows_are_instructions_of_clips_beside_what_is_known_of_them():
    known = {}
    for record in range(len(READER)):
        for text in READER[record].instructions:
            known.setdefault(TOKENIZER.encode(text).tobytes(), []).append(class_numbers(READER[record].attributes))
    batch = make(dataclasses.replace(DATA, written=0.0))[5]
    assert batch.text_tokens.shape == (6, 120, len(TOKENIZER.channel_sizes))
    for text, segments, attributes in zip(batch.text_tokens, batch.text_segment_ids, batch.attributes, strict=True):
        length = int(segments.sum())
        assert segments[:length].all()
        assert not text[length:].any()
        assert any((attributes == numbers).all() for numbers in known[text[:length].tobytes()])


def test_durations_stand_at_the_words_of_a_clip_and_nowhere_in_what_is_written_anew():
    spoken = {}
    for record in range(len(READER)):
        for text in READER[record].instructions:
            spoken.setdefault(TOKENIZER.encode(text).tobytes(), []).append(READER[record].durations)
    batch = make(dataclasses.replace(DATA, written=0.0))[5]
    for text, segments, durations in zip(batch.text_tokens, batch.text_segment_ids, batch.durations, strict=True):
        length = int(segments.sum())
        assert (durations[length:] == -1).all()
        candidates = spoken[text[:length].tobytes()]
        assert any((spread_durations(text[:length], each) == durations[:length]).all() for each in candidates)
        assert durations[:length].max() > 0


def test_what_is_written_anew_has_durations_for_clips_with_stressed_words_alone():
    """Their instructions say what was spoken; the others describe somebody who was not."""
    stressed = [READER[record] for record in range(len(READER)) if is_stressed(READER[record])]
    batches, known = make(dataclasses.replace(DATA, rows=40, text_width=200, written=1.0)), 0
    for durations in np.concatenate([batches[step].durations for step in range(3)]):
        if (durations >= 0).any():
            known += 1
            assert any(durations[durations >= 0].sum() == example.durations.sum() for example in stressed)
    assert 0 < known < 40


def test_descriptions_are_written_for_people_whom_no_clip_has():
    batches = make(DescriptionData(rows=60, text_width=200, written=1.0))
    words = {25: 1, 24: 2, 23: 1, 22: 2}  # grandmother, grandfather, aunt, uncle: concepts, and classes of gender
    numbers = PronunciationTokenizer().encode('A grandmother: "X"')[:, CONCEPT_CHANNEL].tolist()
    assert 25 in numbers
    met = set()
    for batch in (batches[0], batches[1]):
        assert len(np.unique(batch.attributes, axis=0)) > 20
        for text, attributes in zip(batch.text_tokens, batch.attributes, strict=True):
            outside = text[text[:, QUOTE_CHANNEL] == OUTSIDE_QUOTES, CONCEPT_CHANNEL]
            for concept in set(outside.tolist()) & words.keys():
                met.add(concept)
                assert attributes[0] == words[concept]
    assert met
    with pytest.raises(ConfigError, match=r"data\.written: 1\.5 is not within \[0, 1\]"):
        DescriptionData(written=1.5)


def test_a_batch_follows_from_seed_and_step_whatever_the_hosts():
    whole, halves = make()[2], [make(host_rows=(0, 3))[2], make(host_rows=(3, 6))[2]]
    for name in ("text_tokens", "text_segment_ids", "attributes", "durations", "row_ids"):
        np.testing.assert_array_equal(getattr(whole, name), np.concatenate([getattr(half, name) for half in halves]))
    assert whole.row_ids.tolist() == list(range(12, 18))
    for other in (make()[3], make(seed=4)[2]):
        assert (whole.text_tokens != other.text_tokens).any()


def test_the_fingerprint_tells_shapes_apart():
    assert make().fingerprint == make(seed=9).fingerprint
    assert make().fingerprint != make(DescriptionData(rows=7, text_width=120)).fingerprint


def test_what_does_not_fit_is_said():
    with pytest.raises(InputError, match=r"step 0: 20 drawn instructions are longer than 3 tokens; .*data\.text_width"):
        make(DescriptionData(rows=1, text_width=3))[0]
    with pytest.raises(ConfigError, match="data: rows 0 and text_width 160 must be at least 1"):
        DescriptionData(rows=0)
