import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.vocabulary import (
    ACOUSTIC,
    SEMANTIC,
    Layout,
    PackedBatch,
    Vocabulary,
    audio_times,
    build_layout,
    build_prompt,
    deduplicate,
    expand,
    parse_layout,
    prompt_semantic_length,
    text_times,
)

VOCABULARY = Vocabulary()
SMALL = Vocabulary(languages=("en", "zh", "de"), num_semantic=7, codebook_size=5, num_codebooks=3)
units_lists = st.lists(st.integers(0, SMALL.num_semantic - 1), max_size=12)
frames = st.lists(st.lists(st.integers(0, SMALL.codebook_size - 1), min_size=3, max_size=3), max_size=6)
languages = st.sampled_from(SMALL.languages)


def to_codes(frame_list):
    return np.array(frame_list, np.int32).reshape(-1, SMALL.num_codebooks).T


def test_paper_ids():
    assert (VOCABULARY.language_id("en"), VOCABULARY.language_id("zh")) == (1, 2)
    assert (VOCABULARY.semantic_offset, VOCABULARY.acoustic_offset) == (3, 503)
    assert (VOCABULARY.bos, VOCABULARY.eos1, VOCABULARY.eos2, VOCABULARY.size) == (1527, 1528, 1529, 1530)
    assert VOCABULARY.nar_head_size == 1027


def test_ids_follow_sizes():
    # 1 pad, 3 languages, 7 units, 5 codes, then BOS, EOS1, EOS2.
    assert (SMALL.semantic_offset, SMALL.acoustic_offset, SMALL.bos, SMALL.size) == (4, 11, 16, 19)
    assert [SMALL.language_name(i) for i in (1, 2, 3)] == ["en", "zh", "de"]
    np.testing.assert_array_equal(SMALL.is_semantic(np.array([0, 3, 4, 10, 11, 16])), [0, 0, 1, 1, 0, 0])


def test_worked_example():
    """Units 17 17 240 499, codes 100 q + t: the hand-worked table of the original's layout."""
    semantic_tokens, run_lengths = deduplicate(np.array([17, 17, 240, 499]))
    assert semantic_tokens.tolist() == [17, 240, 499]
    assert run_lengths.tolist() == [2, 1, 1]
    layout = build_layout(VOCABULARY, "en", semantic_tokens, 100 * np.arange(8)[:, None] + np.arange(5))
    assert layout.tokens[0].tolist() == [1527, 1, 20, 243, 502, 1528, 503, 504, 505, 506, 507, 1529]
    assert layout.tokens[3].tolist() == [1527, 1, 20, 243, 502, 1528, 803, 804, 805, 806, 807, 1529]
    assert layout.part_ids.tolist() == [SEMANTIC] * 6 + [ACOUSTIC] * 6
    assert layout.tokens.shape == (8, 12)


@settings(deadline=None, max_examples=50)
@given(languages, units_lists, frames)
def test_layout_round_trip(language, units, frame_list):
    layout = build_layout(SMALL, language, np.array(units, np.int32), to_codes(frame_list))
    parsed_language, semantic_tokens, codes = parse_layout(SMALL, layout)
    assert (parsed_language, semantic_tokens.tolist()) == (language, units)
    np.testing.assert_array_equal(codes, to_codes(frame_list))
    rebuilt = build_layout(SMALL, parsed_language, semantic_tokens, codes)
    np.testing.assert_array_equal(rebuilt.tokens, layout.tokens)
    np.testing.assert_array_equal(rebuilt.part_ids, layout.part_ids)


@settings(deadline=None, max_examples=50)
@given(languages, units_lists, units_lists, frames, frames)
def test_decoding_from_a_prompt_gives_the_layout_of_both(language, units, more_units, frame_list, more_frames):
    """The prompt's prefixes, then newly generated tokens, are the layout of prompt and new clip joined."""
    prompt = build_prompt(SMALL, language, np.array(units, np.int32), to_codes(frame_list))
    new_semantic = np.array(more_units, np.int32) + SMALL.semantic_offset
    new_acoustic = to_codes(more_frames) + SMALL.acoustic_offset
    rows = [
        np.r_[prompt.semantic_prefix, new_semantic, SMALL.eos1, prompt.acoustic_prefix[q], new_acoustic[q], SMALL.eos2]
        for q in range(SMALL.num_codebooks)
    ]
    num_semantic = 3 + len(units) + len(more_units)
    parts = np.where(np.arange(len(rows[0])) < num_semantic, SEMANTIC, ACOUSTIC).astype(np.int32)
    parsed = parse_layout(SMALL, Layout(tokens=np.stack(rows).astype(np.int32), part_ids=parts))
    assert parsed[0] == language
    assert parsed[1].tolist() == units + more_units
    np.testing.assert_array_equal(parsed[2], to_codes(frame_list + more_frames))


def test_prompt_without_language_leaves_its_slot_empty():
    prompt = build_prompt(VOCABULARY, None, np.array([5]), np.zeros((8, 0), np.int32))
    assert prompt.semantic_prefix.tolist() == [1527, 0, 8]
    assert prompt.acoustic_prefix.shape == (8, 0)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 3), max_size=20))
def test_expand_undoes_deduplicate(units):
    semantic_tokens, run_lengths = deduplicate(np.array(units, np.int32))
    assert expand(semantic_tokens, run_lengths).tolist() == units
    assert (np.diff(semantic_tokens) != 0).all()
    assert (run_lengths >= 1).all()


def test_prompt_keeps_more_of_a_longer_prompt():
    kept = [prompt_semantic_length(n) for n in (0, 5, 20, 24, 30, 60, 100, 200)]
    assert kept == [0, 0, 0, 4, 10, 40, 80, 160]
    lengths = [prompt_semantic_length(n) for n in range(300)]
    assert lengths == sorted(lengths)


def test_text_stands_in_the_middle_of_its_time():
    # half frames 2 | 4 | 0 | 1: from 0 to 1, from 1 to 3, at 3, from 3 to 3.5 frames
    found = text_times(np.array([2, 4, 0, 1]))
    np.testing.assert_array_equal(found, [0.5, 2.0, 3.0, 3.25])
    rows = text_times(jnp.asarray([[2, 4, 0, 1], [0, 0, 0, 6]]))
    np.testing.assert_array_equal(rows, [[0.5, 2.0, 3.0, 3.25], [0.0, 0.0, 0.0, 1.5]])


def test_slots_of_a_clip_stand_where_their_frames_are_heard():
    # BOS LANG ST ST | EOS1 AT AT EOS2
    np.testing.assert_array_equal(audio_times(2, 2, 0), [-1.5, -0.5, 0.5, 1.5, -0.5, 0.5, 1.5, 2.5])
    # three frames of a voice prompt end where the clip begins
    expected = [-1.5, -0.5, 0.5, -3.5, -2.5, -1.5, -0.5, 0.5, 1.5]
    np.testing.assert_array_equal(audio_times(1, 1, 3), expected)
    assert audio_times(1, 1, 3).dtype == np.float32


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 20), st.integers(0, 20))
def test_what_predicts_a_frame_has_one_time_in_both_stages(num_frames, prompt_frames):
    layout = build_layout(SMALL, "en", np.zeros(num_frames, int), np.zeros((3, prompt_frames + num_frames), int))
    times = audio_times(num_frames, num_frames, prompt_frames)
    assert len(times) == len(layout.part_ids)
    semantic = times[layout.part_ids == SEMANTIC][1 : 1 + num_frames]  # LANG predicts the first, and so on
    acoustic = times[layout.part_ids == ACOUSTIC][:-1]
    first = times[layout.tokens[0] == SMALL.eos1] if not prompt_frames else acoustic[prompt_frames - 1 : prompt_frames]
    own = np.concatenate([first, acoustic[prompt_frames:]])[:num_frames]
    np.testing.assert_array_equal(semantic, own)


@pytest.mark.parametrize(
    ("language", "units", "codes", "message"),
    [
        ("fr", [1], np.zeros((3, 1), int), "language 'fr' is unknown; use one of en, zh, de"),
        ("en", [7], np.zeros((3, 1), int), "semantic tokens run from 7 to 7; allowed are 0 to 6"),
        ("en", [-1], np.zeros((3, 1), int), "semantic tokens run from -1"),
        ("en", [1], np.full((3, 1), 5), "codes run from 5 to 5; allowed are 0 to 4"),
        ("en", [1], np.zeros((2, 1), int), "expected 3 codebooks x frames"),
    ],
)
def test_values_out_of_range_are_refused(language, units, codes, message):
    with pytest.raises(InputError, match=message):
        build_layout(SMALL, language, np.array(units), codes)


def _damage(tokens, place, token):
    tokens = tokens.copy()
    tokens[place] = token
    return tokens


@pytest.mark.parametrize(
    ("place", "token"),
    [
        ((slice(None), 0), SMALL.eos2),  # no BOS
        ((0, 1), SMALL.semantic_offset),  # no language
        ((0, 4), SMALL.pad),  # no EOS1
        ((0, 2), SMALL.eos1),  # two EOS1
        ((0, 3), SMALL.acoustic_offset),  # a code among the semantic tokens
        ((1, 3), SMALL.semantic_offset + 3),  # rows differ in a semantic token
        ((2, 5), SMALL.pad),  # a code is missing
        ((1, -1), SMALL.eos1),  # a row without EOS2
    ],
)
def test_malformed_layouts_are_refused(place, token):
    layout = build_layout(SMALL, "en", np.array([1, 2]), np.ones((3, 2), int))
    with pytest.raises(InputError):
        parse_layout(SMALL, dataclasses.replace(layout, tokens=_damage(layout.tokens, place, token)))


def test_wrong_part_ids_are_refused():
    layout = build_layout(SMALL, "en", np.array([1, 2]), np.ones((3, 2), int))
    with pytest.raises(InputError, match="malformed"):
        parse_layout(SMALL, dataclasses.replace(layout, part_ids=_damage(layout.part_ids, 4, ACOUSTIC)))


@pytest.mark.parametrize("settings", [{"num_semantic": 0}, {"languages": ()}, {"languages": ("en", "en")}])
def test_impossible_vocabularies_are_refused(settings):
    with pytest.raises(ConfigError, match="vocabulary"):
        Vocabulary(**settings)


def test_packed_batch_is_a_pytree_of_its_arrays():
    fields = [field.name for field in dataclasses.fields(PackedBatch)]
    widths = {"text_tokens": (1, 2, 1), "tokens": (1, 3, 4), "clip_ids": (1,)}
    widths |= dict.fromkeys(("text_segment_ids", "text_durations"), (1, 2)) | {"text_attributes": (1, 2, 4)}
    dtypes = {"times": np.float32}
    batch = PackedBatch(
        **{name: np.full(widths.get(name, (1, 4)), i, dtypes.get(name, np.int32)) for i, name in enumerate(fields)}
    )
    doubled = jax.tree.map(lambda x: 2 * x, batch)
    assert [int(np.ravel(getattr(doubled, name))[0]) for name in fields] == [2 * i for i in range(len(fields))]


@pytest.mark.parametrize(
    ("num_units", "kept"), [(5, 0), (10, 0), (15, 10), (20, 0), (24, 4), (30, 10), (60, 40), (100, 80)]
)
def test_the_release_keeps_more_of_some_short_prompts(num_units, kept):
    assert prompt_semantic_length(num_units, uneven=True) == kept
    assert prompt_semantic_length(num_units) == (0 if num_units == 15 else kept)
