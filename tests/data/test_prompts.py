"""Voice prompts lent by other clips: who lends, how much, and how the row shows it."""

import numpy as np
import pytest

from voxinstruct_jax.data.batches import BatchConfig, TokenBatches
from voxinstruct_jax.data.packing import SpeakerIndex, draw_prompts, unpack
from voxinstruct_jax.data.prepare import prepare
from voxinstruct_jax.data.shards import Lengths
from voxinstruct_jax.vocabulary import Vocabulary


def make_lengths(speakers: list[int], frames: list[int]) -> Lengths:
    count = len(speakers)
    return Lengths(
        frames=np.array(frames, np.int32),
        semantic=np.ones(count, np.int32),
        text=np.ones(count, np.int32),
        text_offsets=np.arange(count + 1, dtype=np.int64),
        speakers=np.array(speakers, np.int32),
    )


def draw(lengths, *, seed=0, **settings):
    records, index = np.arange(len(lengths.frames)), SpeakerIndex.of(lengths.speakers)
    return draw_prompts(records, lengths, index, np.random.default_rng(seed), **settings)


def test_prompts_come_from_another_clip_of_the_same_speaker():
    lengths = make_lengths([1, 2, 1, 2, 0, 0, 3] * 20, [50] * 140)
    donors, frames = draw(lengths, ratio=1.0, max_frames=30)
    lent = frames > 0
    assert lent.any()
    assert (lengths.speakers[donors[lent]] == lengths.speakers[lent]).all()
    assert (donors[lent] != np.flatnonzero(lent)).all()
    assert not frames[lengths.speakers == 0].any()
    assert frames[lent].min() >= 10
    assert frames.max() <= 30


def test_a_speaker_of_one_clip_lends_nothing():
    _, frames = draw(make_lengths([1, 2, 3], [50] * 3), ratio=1.0, max_frames=30)
    assert not frames.any()


def test_a_prompt_is_never_longer_than_its_clip():
    _, frames = draw(make_lengths([1, 1, 1, 1], [4, 4, 4, 4]), ratio=1.0, max_frames=30)
    assert set(frames.tolist()) <= {0, 4}


def test_prompts_are_drawn_as_often_as_asked():
    _, frames = draw(make_lengths([1] * 2000, [50] * 2000), ratio=0.25, max_frames=30)
    assert np.mean(frames > 0) == pytest.approx(0.25, abs=0.04)


def test_rows_hold_the_lent_codes_before_the_clips_own(tmp_path, rows, encoders, letters, vocabulary):
    reader = prepare(rows, tmp_path / "shards", encoders, shard_size=10, progress=False)
    config = BatchConfig(text_width=160, time_width=512, rows=2, prompt_ratio=1.0, max_prompt_frames=6)
    batches = TokenBatches(reader, letters(), vocabulary, config)
    chosen = [each for row in batches.chosen(0) for each in row]
    clips = [clip for row in unpack(batches[0]) for clip in row]
    assert any(clip.prompt_frames for clip in clips)
    for each, clip in zip(chosen, clips, strict=True):
        codes = clip.layout.tokens[:, clip.layout.part_ids == 2][:, :-1] - vocabulary.acoustic_offset
        own, lender = reader[each.record].codes, reader[each.prompt_record].codes
        frames = each.prompt_frames
        assert not frames or reader[each.prompt_record].speaker == each.example.speaker
        assert clip.prompt_frames == frames
        np.testing.assert_array_equal(codes[:, frames:], own)
        np.testing.assert_array_equal(codes[:, :frames], lender[:, :frames])


def test_a_vocabulary_of_fewer_codebooks_reads_the_leading_ones(tmp_path, rows, encoders, letters):
    reader = prepare(rows, tmp_path / "shards", encoders, shard_size=10, progress=False)
    fewer = Vocabulary(num_semantic=20, codebook_size=64, num_codebooks=2)
    config = BatchConfig(text_width=160, time_width=512, rows=2)
    batch = TokenBatches(reader, letters(), fewer, config)[0]
    whole = TokenBatches(reader, letters(), Vocabulary(num_semantic=20, codebook_size=64, num_codebooks=3), config)[0]
    np.testing.assert_array_equal(batch.tokens, np.asarray(whole.tokens)[:, :2])
