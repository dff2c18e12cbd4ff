import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.packing import Clip, pack, plan_rows, unpack
from voxinstruct_jax.vocabulary import ACOUSTIC, SEMANTIC, TEXT, Vocabulary, build_layout

VOCABULARY = Vocabulary(num_semantic=20, codebook_size=64, num_codebooks=2)


def make_clip(random: np.random.Generator, text: int, semantic: int, frames: int, *, timed: bool = False) -> Clip:
    layout = build_layout(VOCABULARY, "en", random.integers(0, 20, semantic), random.integers(0, 64, (2, frames)))
    durations = random.integers(0, 9, text).astype(np.int32) if timed else None
    text_tokens = random.integers(1, 9, (text, 3)).astype(np.int32)
    return Clip(text_tokens=text_tokens, layout=layout, prompt_frames=frames // 2, durations=durations)


def test_a_row_of_two_clips_is_laid_out_slot_by_slot():
    first = Clip(
        text_tokens=np.array([[5], [6]], np.int32),
        layout=build_layout(VOCABULARY, "zh", np.array([3]), np.array([[7], [8]])),
    )
    second = Clip(
        text_tokens=np.array([[9]], np.int32),
        layout=build_layout(VOCABULARY, "en", np.array([0]), np.zeros((2, 0), int)),
    )
    batch = pack([[first, second]], text_width=4, time_width=16, clip_ids=np.array([41]))
    # Ids by hand: languages 1 and 2, units from 3, codes from 23, BOS 87, EOS1 88, EOS2 89.
    assert batch.text_tokens[0, :, 0].tolist() == [5, 6, 9, 0]
    assert batch.text_segment_ids[0].tolist() == [1, 1, 2, 0]
    assert batch.tokens[0].tolist() == [
        [0, 0, 87, 2, 6, 88, 30, 89, 0, 87, 1, 3, 88, 89, 0, 0],
        [0, 0, 87, 2, 6, 88, 31, 89, 0, 87, 1, 3, 88, 89, 0, 0],
    ]
    t, s, a = TEXT, SEMANTIC, ACOUSTIC
    assert batch.part_ids[0].tolist() == [t, t, s, s, s, s, a, a, t, s, s, s, s, a, 0, 0]
    assert batch.segment_ids[0].tolist() == [1] * 8 + [2] * 6 + [0, 0]
    assert batch.positions[0].tolist() == [*range(8), *range(6), 0, 0]
    assert batch.text_index[0].tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]
    assert batch.clip_ids.tolist() == [41]
    assert batch.times is None
    assert batch.text_durations is None


def test_slots_of_timed_clips_stand_where_they_are_spoken():
    """Three frames after a prompt of one; then a clip of one frame without a prompt."""
    first = Clip(
        text_tokens=np.array([[5], [6], [7]], np.int32),
        layout=build_layout(VOCABULARY, "zh", np.array([3, 3, 4]), np.zeros((2, 4), int)),
        prompt_frames=1,
        durations=np.array([1, 4, 1], np.int32),
    )
    second = Clip(
        text_tokens=np.array([[9]], np.int32),
        layout=build_layout(VOCABULARY, "en", np.array([0]), np.zeros((2, 1), int)),
        durations=np.array([2], np.int32),
    )
    batch = pack([[first, second]], text_width=5, time_width=24, clip_ids=np.array([0]))
    assert batch.text_durations[0].tolist() == [1, 4, 1, 2, 0]
    text = [0.25, 1.5, 2.75]
    semantic = [-1.5, -0.5, 0.5, 1.5, 2.5]  # BOS LANG and three frames
    acoustic = [-1.5, -0.5, 0.5, 1.5, 2.5, 3.5]  # EOS1, the prompt's frame, three frames, EOS2
    other = [0.5, -1.5, -0.5, 0.5, -0.5, 0.5, 1.5]
    assert batch.times[0].tolist() == [*text, *semantic, *acoustic, *other, 0, 0, 0]
    assert batch.times.dtype == np.float32


sizes = st.tuples(st.integers(1, 6), st.integers(0, 5), st.integers(0, 7))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(sizes, min_size=1, max_size=4), min_size=1, max_size=3), st.integers(0, 99), st.booleans())
def test_unpack_gives_back_what_pack_was_given(shape, seed, timed):
    random = np.random.default_rng(seed)
    rows = [[make_clip(random, *size, timed=timed) for size in row] for row in shape]
    batch = pack(rows, text_width=24, time_width=96, clip_ids=np.arange(len(rows)))
    found = unpack(batch)
    assert [len(row) for row in found] == [len(row) for row in rows]
    for row, again in zip(rows, found, strict=True):
        for clip, copy in zip(row, again, strict=True):
            np.testing.assert_array_equal(clip.text_tokens, copy.text_tokens)
            np.testing.assert_array_equal(clip.layout.tokens, copy.layout.tokens)
            np.testing.assert_array_equal(clip.layout.part_ids, copy.layout.part_ids)
            assert clip.prompt_frames == copy.prompt_frames
            assert (copy.durations is not None) == timed
            if timed:
                np.testing.assert_array_equal(clip.durations, copy.durations)


@settings(deadline=None, max_examples=30)
@given(st.lists(sizes, min_size=1, max_size=5), st.integers(0, 99))
def test_gathered_text_stands_in_its_own_clip_and_order(shape, seed):
    random = np.random.default_rng(seed)
    clips = [make_clip(random, *size) for size in shape]
    batch = pack([clips], text_width=32, time_width=128, clip_ids=np.zeros(1, int))
    for segment, clip in enumerate(clips, 1):
        slots = np.flatnonzero(batch.segment_ids[0] == segment)
        text_slots = slots[: len(clip.text_tokens)]
        np.testing.assert_array_equal(batch.positions[0, slots], np.arange(len(slots)))
        np.testing.assert_array_equal(batch.text_tokens[0][batch.text_index[0, text_slots]], clip.text_tokens)
        assert (batch.text_segment_ids[0][batch.text_index[0, text_slots]] == segment).all()
        assert (batch.part_ids[0, text_slots] == TEXT).all()
        assert (batch.part_ids[0, slots[len(text_slots) :]] != TEXT).all()
    padding = batch.segment_ids[0] == 0
    assert padding.sum() == 128 - sum(len(clip.text_tokens) + len(clip.layout.part_ids) for clip in clips)
    assert not batch.tokens[0][:, padding].any()


def test_clips_that_do_not_fit_are_refused():
    clip = make_clip(np.random.default_rng(0), 3, 2, 4)
    with pytest.raises(InputError, match="row 0: its clips need more than 2 text"):
        pack([[clip]], text_width=2, time_width=64, clip_ids=np.zeros(1, int))
    with pytest.raises(InputError, match="or 12 time slots"):
        pack([[clip]], text_width=8, time_width=12, clip_ids=np.zeros(1, int))
    pack([[clip]], text_width=3, time_width=13, clip_ids=np.zeros(1, int))


lengths = st.lists(st.tuples(st.integers(1, 40), st.integers(4, 120)), min_size=1, max_size=200)
LIMITS = {"text_width": 32, "time_width": 128}


@settings(deadline=None, max_examples=40)
@given(lengths, st.integers(1, 5), st.integers(0, 9))
def test_every_clip_is_in_one_row_or_left_over_and_rows_keep_their_widths(pairs, max_clips, num_late):
    text, audio = np.array(pairs).T
    slots, num_late = text + audio, min(num_late, len(pairs))
    plan = plan_rows(text, slots, **LIMITS, max_clips=max_clips, num_late=num_late)
    assert sorted([*plan.clips, *plan.left_over]) == list(range(len(pairs)))
    too_long = [i for i, (t, a) in enumerate(pairs) if t > 32 or t + a > 128]
    assert plan.left_over.tolist() == too_long
    for index in range(len(plan)):
        row = plan.row(index)
        assert 1 <= len(row) <= max_clips
        assert text[row].sum() <= 32
        assert slots[row].sum() <= 128


@settings(deadline=None, max_examples=40)
@given(lengths, st.integers(1, 40))
def test_a_given_number_of_rows_is_kept_and_none_is_empty(pairs, num_rows):
    text, audio = np.minimum(np.array(pairs), [32, 96]).T
    plan = plan_rows(text, text + audio, **LIMITS, max_clips=5, num_rows=num_rows)
    assert len(plan) == num_rows
    assert (np.diff(plan.offsets) >= 1).all()
    assert all((text + audio)[plan.row(index)].sum() <= 128 for index in range(num_rows))
    placed = set(plan.clips.tolist())
    assert placed | set(plan.left_over.tolist()) == set(range(len(pairs)))
    assert not placed & set(plan.left_over.tolist())
    if len(pairs) >= num_rows:
        assert len(placed) == len(plan.clips)  # nothing comes twice while there are clips for all rows


@settings(deadline=None, max_examples=40)
@given(lengths, lengths, st.integers(1, 20))
def test_late_clips_change_nothing_for_the_others(pairs, late, num_rows):
    """What waits for the next block must not depend on what waited before."""
    text, audio = np.minimum(np.array(pairs + late), [32, 96]).T
    limits = {**LIMITS, "max_clips": 5, "num_rows": num_rows}
    alone = plan_rows(text[: len(pairs)], (text + audio)[: len(pairs)], **limits)
    together = plan_rows(text, text + audio, **limits, num_late=len(late))
    own = together.left_over[together.left_over < len(pairs)]
    np.testing.assert_array_equal(own, alone.left_over)


def speech_like(random, count, slot_rate, text_rate):
    """Clips of 1 to 20 s, mean near 5 s, as in GigaSpeech and WenetSpeech; in (text tokens, slots)."""
    seconds = np.clip(random.lognormal(np.log(4.2), 0.6, count), 1, 20)
    text = np.maximum((seconds * text_rate).astype(int), 2)
    return text, text + 4 + (seconds * slot_rate).astype(int)


@pytest.mark.parametrize(
    ("slot_rate", "text_rate", "text_width", "time_width"), [(75 + 33, 4, 256, 2560), (2 * 25, 15, 512, 1536)]
)
def test_less_than_a_twentieth_of_the_slots_stays_empty(slot_rate, text_rate, text_width, time_width):
    text, slots = speech_like(np.random.default_rng(0), 3000, slot_rate, text_rate)
    plan = plan_rows(text, slots, text_width=text_width, time_width=time_width, max_clips=32)
    assert not len(plan.left_over)
    assert slots.sum() / (len(plan) * time_width) > 0.97
