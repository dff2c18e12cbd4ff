import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.packing import Clip, draw_variants, pack, plan_rows, unpack
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


@settings(deadline=None, max_examples=40)
@given(lengths, st.integers(1, 5), st.integers(0, 3), st.integers(0, 3))
def test_every_record_is_in_one_row_or_left_out_and_rows_keep_their_widths(pairs, max_clips, seed, epoch):
    text, audio = np.array(pairs).T
    limits = {"text_width": 32, "time_width": 128, "max_clips": max_clips, "seed": seed, "epoch": epoch}
    plan = plan_rows(text, audio, **limits)
    assert sorted([*plan.records, *plan.left_out]) == list(range(len(pairs)))
    too_long = [i for i, (t, a) in enumerate(pairs) if t > 32 or t + a > 128]
    assert plan.left_out.tolist() == too_long
    for index in range(len(plan)):
        row = plan.row(index)
        assert 1 <= len(row) <= max_clips
        assert text[row].sum() <= 32
        assert (text + audio)[row].sum() <= 128
    again = plan_rows(text, audio, **limits)
    np.testing.assert_array_equal(plan.records, again.records)
    np.testing.assert_array_equal(plan.offsets, again.offsets)


def test_epochs_and_seeds_have_their_own_order():
    text, audio = np.full(50, 2), np.full(50, 20)
    plans = [
        plan_rows(text, audio, text_width=32, time_width=128, max_clips=9, seed=seed, epoch=epoch).records.tolist()
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert plans[0] != plans[1] != plans[2] != plans[0]


def test_rows_are_well_filled():
    random = np.random.default_rng(0)
    text, audio = random.integers(20, 80, 2000), random.integers(40, 250, 2000)
    plan = plan_rows(text, audio, text_width=512, time_width=1024, max_clips=32, seed=0, epoch=0)
    assert (text + audio).sum() / (len(plan) * 1024) > 0.95


def test_variants_are_drawn_with_the_asked_ratio_and_uniformly():
    num_variants = np.tile([1, 2, 4], 20_000)
    drawn = draw_variants(num_variants, description_free_ratio=0.1, seed=3, epoch=1)
    assert (drawn[0::3] == 0).all()
    assert np.mean(drawn[1::3] == 1) == pytest.approx(0.1, abs=0.01)
    shares = np.bincount(drawn[2::3], minlength=4) / 20_000
    np.testing.assert_allclose(shares, [0.3, 0.3, 0.3, 0.1], atol=0.012)
    again = draw_variants(num_variants, description_free_ratio=0.1, seed=3, epoch=1)
    np.testing.assert_array_equal(drawn, again)
    assert (drawn != draw_variants(num_variants, description_free_ratio=0.1, seed=3, epoch=2)).any()
