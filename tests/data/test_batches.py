import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.data.batches import BatchConfig, ClipForm, TokenBatches, token_batches
from voxinstruct_jax.data.packing import unpack
from voxinstruct_jax.text.tokenizer import INSIDE_QUOTES, QUOTE_CHANNEL
from voxinstruct_jax.vocabulary import PackedBatch, Vocabulary, expand, parse_layout

CONFIG = BatchConfig(text_width=96, time_width=256, rows=4, seed=3, max_clips=8)


def arrays(batch: PackedBatch) -> dict[str, np.ndarray]:
    """The fields that a batch has."""
    values = {item.name: getattr(batch, item.name) for item in dataclasses.fields(PackedBatch)}
    return {name: value for name, value in values.items() if value is not None}


def same(one: PackedBatch, other: PackedBatch) -> bool:
    mine, theirs = arrays(one), arrays(other)
    return mine.keys() == theirs.keys() and all(np.array_equal(mine[name], theirs[name]) for name in mine)


@pytest.fixture(scope="module")
def batches(reader, vocabulary, letters) -> TokenBatches:
    return TokenBatches(reader, letters(), vocabulary, CONFIG)


def test_batches_have_the_static_widths_and_row_numbers(batches):
    batch = batches[5]
    assert batch.text_tokens.shape == (4, 96, 2)
    assert batch.tokens.shape == (4, 3, 256)
    assert batch.clip_ids.tolist() == [0, 1, 2, 3]
    assert all(array.dtype == np.int32 for array in arrays(batch).values())
    assert not {"times", "text_durations"} & arrays(batch).keys()


def test_rows_hold_the_chosen_clips_with_the_drawn_instruction(batches, reader, vocabulary, letters):
    for step in (0, 3, 9):
        for row, chosen in zip(unpack(batches[step]), batches.chosen(step), strict=True):
            assert len(row) == len(chosen) > 0
            for clip, each in zip(row, chosen, strict=True):
                example = reader[each.record]
                language, semantic_tokens, codes = parse_layout(vocabulary, clip.layout)
                assert language == example.language
                np.testing.assert_array_equal(semantic_tokens, example.semantic_tokens)
                np.testing.assert_array_equal(codes, example.codes)
                drawn = example.instructions[each.variant]
                np.testing.assert_array_equal(clip.text_tokens, letters().encode(drawn))


@pytest.mark.parametrize("num_hosts", [2, 4])
def test_any_number_of_hosts_sees_the_same_batch(batches, reader, vocabulary, num_hosts, letters):
    share = CONFIG.rows // num_hosts
    hosts = [
        TokenBatches(reader, letters(), vocabulary, CONFIG, host_rows=(share * host, share * (host + 1)))
        for host in range(num_hosts)
    ]
    for step in (0, 2, 11):
        parts = [host[step] for host in hosts]
        for name, whole in arrays(batches[step]).items():
            np.testing.assert_array_equal(np.concatenate([arrays(part)[name] for part in parts]), whole)
    assert {host.fingerprint for host in hosts} == {batches.fingerprint}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_sees_the_steps_it_would_have_seen(batches, workers):
    whole = list(token_batches(batches, start_step=0, num_steps=12))
    resumed = list(token_batches(batches, start_step=7, num_steps=5, workers=workers))
    assert len(whole) == 12
    assert all(same(one, other) for one, other in zip(whole[7:], resumed, strict=True))
    assert all(same(batch, batches[step]) for step, batch in enumerate(whole))
    backwards = {step: batches[step] for step in (11, 0, 5)}
    assert all(same(batch, whole[step]) for step, batch in backwards.items())


def test_a_late_step_needs_none_of_those_before_it(batches, reader, vocabulary, letters):
    """Ten million steps on, as fast as the first; and the same to one who comes from the step before."""
    late = 10_000_000
    fresh = TokenBatches(reader, letters(), vocabulary, CONFIG)
    batches[late - 1]
    assert same(fresh[late], batches[late])


PROCESSES = """
import dataclasses, json, os, sys
import numpy as np
from voxinstruct_jax.data.batches import BatchConfig, ClipForm, TokenBatches, token_batches
from voxinstruct_jax.data.shards import ShardReader
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.vocabulary import Vocabulary

def host(out, first, last, start, count):
    config = BatchConfig(text_width=160, time_width=400, rows=8, seed=5, max_clips=5, prompt_ratio=0.5)
    vocabulary = Vocabulary(num_semantic=20, codebook_size=64, num_codebooks=3)
    reader, rows, form = ShardReader(sys.argv[1]), (first, last), ClipForm(aligned=True, attributes=True)
    batches = TokenBatches(reader, PronunciationTokenizer(), vocabulary, config, form=form, host_rows=rows)
    for step, batch in enumerate(token_batches(batches, start_step=start, num_steps=count), start):
        arrays = {item.name: getattr(batch, item.name) for item in dataclasses.fields(batch)}
        np.savez(f"{out}/{first}-{step}.npz", **arrays)

children = []
for job in json.loads(sys.argv[2]):  # one import for all; each child opens its own files and threads
    child = os.fork()
    if not child:
        failed = 1
        try:
            host(*job)
            failed = 0
        finally:
            os._exit(failed)
    children.append(child)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


@pytest.mark.slow
def test_one_two_and_four_processes_see_the_same_global_batches_before_and_after_a_restart(timed_reader, tmp_path):
    """Each process reads its own rows; those of two and four are started anew in the middle, with another number."""
    jobs = []
    for name, num_hosts, start, count in (
        ("1", 1, 0, 3),
        ("1", 1, 37, 3),
        ("2", 2, 0, 3),
        ("4", 4, 0, 3),
        ("2", 4, 37, 3),
        ("4", 2, 37, 3),
    ):
        (tmp_path / name).mkdir(exist_ok=True)
        share = 8 // num_hosts
        jobs += [(str(tmp_path / name), share * host, share * (host + 1), start, count) for host in range(num_hosts)]
    command = [sys.executable, "-c", PROCESSES, str(timed_reader.folder), json.dumps(jobs)]
    subprocess.run(command, check=True)
    for step in (0, 1, 2, 37, 38, 39):
        whole = np.load(tmp_path / "1" / f"0-{step}.npz")
        for name in ("2", "4"):
            files = sorted((tmp_path / name).glob(f"*-{step}.npz"), key=lambda path: int(path.stem.split("-")[0]))
            assert len(files) in (2, 4)
            parts = [np.load(file) for file in files]
            for key in whole.files:
                np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), whole[key])


def test_the_seed_changes_batches_and_fingerprint(batches, reader, vocabulary, letters):
    other = TokenBatches(reader, letters(), vocabulary, dataclasses.replace(CONFIG, seed=4))
    assert not same(batches[0], other[0])
    assert batches.fingerprint != other.fingerprint


def test_description_free_ratio_one_trains_on_quoted_transcripts_alone(reader, vocabulary, letters):
    config = dataclasses.replace(CONFIG, description_free_ratio=1.0)
    batches = TokenBatches(reader, letters(), vocabulary, config)
    quoted = [letters().encode(reader[record].instructions[-1]).tolist() for record in range(len(reader))]
    assert all(clip.text_tokens.tolist() in quoted for row in unpack(batches[0]) for clip in row)


def test_clips_too_long_for_a_row_are_left_out_and_counted(reader, vocabulary, letters):
    config = dataclasses.replace(CONFIG, time_width=60, description_free_ratio=1.0)
    planner = TokenBatches(reader, letters(), vocabulary, config).planner
    examples = [reader[record] for record in range(len(reader))]
    needs = [len(e.instructions[-1]) + 1 + 4 + len(e.semantic_tokens) + e.codes.shape[1] for e in examples]
    too_long = {record for record, slots in enumerate(needs) if slots > 60}
    plans = [planner.block(block) for block in range(4)]
    assert {record for plan in plans for record in plan.too_long.records.tolist()} == too_long
    assert not {record for plan in plans for record in plan.clips.records.tolist()} & too_long
    assert planner.summary().too_long == pytest.approx(len(too_long) / 30, abs=0.1)
    with pytest.raises(InputError, match="no clip fits a row of 96 text and 10 time slots"):
        TokenBatches(reader, letters(), vocabulary, dataclasses.replace(CONFIG, time_width=10))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_codebooks": 4}, "3 codebooks, the vocabulary has 4"),
        ({"codebook_size": 60}, "codec indices reach 63, the model's vocabulary holds 60"),
        ({"num_semantic": 19}, "semantic tokens reach 19, the model's vocabulary holds 19"),
        ({"languages": ("zh",)}, "languages en are not in the vocabulary"),
    ],
)
def test_data_of_another_vocabulary_is_refused(reader, vocabulary, change, message, letters):
    with pytest.raises(InputError, match=message):
        TokenBatches(reader, letters(), dataclasses.replace(vocabulary, **change), CONFIG)


def test_data_counted_by_another_tokenizer_is_refused(reader, vocabulary, letters):
    with pytest.raises(InputError, match="another tokenizer; count it anew in a copy"):
        TokenBatches(reader, letters(fingerprint="other"), vocabulary, CONFIG)


def test_wrong_settings_say_the_rule(reader, vocabulary, letters):
    with pytest.raises(ConfigError, match="rows: 0 is below 1"):
        BatchConfig(rows=0)
    with pytest.raises(ConfigError, match=r"description_free_ratio: 1.5 is no probability"):
        BatchConfig(description_free_ratio=1.5)
    with pytest.raises(ConfigError, match="no part of the 4 rows"):
        TokenBatches(reader, letters(), Vocabulary(), CONFIG, host_rows=(2, 5))


ALIGNED = BatchConfig(text_width=160, time_width=400, rows=3, seed=3, max_clips=5, prompt_ratio=0.6)


@pytest.fixture(scope="module")
def aligned(timed_reader, timed_encoders, vocabulary) -> TokenBatches:
    return TokenBatches(timed_reader, timed_encoders.tokenizer, vocabulary, ALIGNED, form=ClipForm(aligned=True))


def times_by_hand(durations, num_frames, prompt_frames, semantic=True):
    """Slot by slot, in frames: text in the middle of its time, and each audio slot half a frame after the last one."""
    times, spoken = [], 0
    for half_frames in durations:
        times.append((spoken + half_frames / 2) / 2)
        spoken += half_frames
    times += [-1.5, -0.5]  # BOS, LANG
    times += [frame + 0.5 for frame in range(num_frames) if semantic]
    times += [-prompt_frames - 0.5]  # EOS1
    times += [frame + 0.5 - prompt_frames for frame in range(prompt_frames + num_frames)]
    return [*times, num_frames + 0.5]  # EOS2


def test_aligned_batches_tell_when_each_slot_is_spoken(aligned, timed_reader, vocabulary):
    prompted, seen = 0, []
    for step in range(8):
        batch = aligned[step]
        for index, (clips, chosen) in enumerate(zip(unpack(batch), aligned.chosen(step), strict=True)):
            for segment, (each, clip) in enumerate(zip(chosen, clips, strict=True), 1):
                example = timed_reader[each.record]
                num_frames, lent = example.codes.shape[1], each.prompt_frames
                _, units, codes = parse_layout(vocabulary, clip.layout)
                np.testing.assert_array_equal(units, expand(example.semantic_tokens, example.run_lengths))
                np.testing.assert_array_equal(codes[:, lent:], example.codes)
                states = clip.text_tokens[:, QUOTE_CHANNEL]
                spoken = clip.durations[states == INSIDE_QUOTES]
                np.testing.assert_array_equal(spoken, example.durations[1:-1])
                assert clip.durations.sum() == 2 * num_frames
                assert not clip.durations[states == 1].any()  # outside the quotes
                expected = times_by_hand(clip.durations.tolist(), num_frames, lent)
                assert batch.times[index][batch.segment_ids[index] == segment].tolist() == expected
                prompted += lent > 0
                seen.append(each.record)
    assert 0 < prompted < len(seen)
    assert len(seen) > 10


@pytest.mark.parametrize("form", ["content", "style_and_content"])
def test_a_model_may_read_style_and_content_apart_and_no_semantic_tokens(
    aligned, timed_reader, timed_encoders, vocabulary, form
):
    tokenizer, config = timed_encoders.tokenizer, dataclasses.replace(ALIGNED, description_free_ratio=0.0)
    apart = ClipForm(aligned=True, text=form, semantic=False)
    batches = TokenBatches(timed_reader, tokenizer, vocabulary, config, form=apart)
    assert batches.fingerprint != aligned.fingerprint
    assert batches.planner.summary().clips_per_step > aligned.planner.summary().clips_per_step
    lengths = []
    for step in range(6):
        batch = batches[step]
        for index, (clips, chosen) in enumerate(zip(unpack(batch), batches.chosen(step), strict=True)):
            for segment, (each, clip) in enumerate(zip(chosen, clips, strict=True), 1):
                example, lent = timed_reader[each.record], each.prompt_frames
                language, units, codes = parse_layout(vocabulary, clip.layout)
                assert (language, len(units)) == (example.language, 0)
                np.testing.assert_array_equal(codes[:, lent:], example.codes)
                whole = tokenizer.encode(example.instructions[each.variant])
                lengths.append(len(whole) - len(clip.text_tokens))
                spoken = clip.durations[clip.text_tokens[:, QUOTE_CHANNEL] == INSIDE_QUOTES]
                np.testing.assert_array_equal(spoken, example.durations[1:-1])
                assert clip.durations.sum() == 2 * example.codes.shape[1]
                expected = times_by_hand(clip.durations.tolist(), example.codes.shape[1], lent, semantic=False)
                assert batch.times[index][batch.segment_ids[index] == segment].tolist() == expected
    assert max(lengths) > 0 if form == "content" else not any(lengths)


def test_rows_are_planned_with_room_for_semantic_tokens_at_the_frame_rate(timed_reader, timed_encoders, vocabulary):
    """De-duplicated, more clips would be thought to fit."""
    config = dataclasses.replace(ALIGNED, time_width=160, prompt_ratio=0.0, description_free_ratio=1.0)
    kinds = [
        TokenBatches(timed_reader, timed_encoders.tokenizer, vocabulary, config, form=ClipForm(aligned=aligned))
        for aligned in (True, False)
    ]
    clips = [batches.planner.summary().clips_per_step for batches in kinds]
    assert clips[0] < clips[1]
    for step in range(12):
        kinds[0][step]  # which `pack` refuses if anything does not fit


def test_aligned_batches_are_another_run(aligned, timed_reader, timed_encoders, vocabulary):
    plain = TokenBatches(timed_reader, timed_encoders.tokenizer, vocabulary, ALIGNED)
    assert plain.fingerprint != aligned.fingerprint
    assert plain[0].times is None


def test_data_without_durations_cannot_be_aligned(reader, vocabulary, letters):
    with pytest.raises(InputError, match="no durations of characters; prepare it with units that know phones"):
        TokenBatches(reader, letters(), vocabulary, CONFIG, form=ClipForm(aligned=True))
