"""Blocks of rows: every clip once a pass, none lost, any block from nothing."""

import dataclasses
import pickle
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from voxinstruct_jax.data.mixture import Mixture
from voxinstruct_jax.data.plan import BatchConfig, Planner
from voxinstruct_jax.data.shards import Lengths, ShardReader

COUNT = 2500
CONFIG = BatchConfig(text_width=384, time_width=2560, rows=16, seed=3)


class Folder(ShardReader):
    """As much of a reader as plans need: clips of 1 to 20 s, mean near 5 s, at 75 codes and 35 units a second."""

    def __init__(self, count):
        self.count, self.folder = count, Path("speech")
        random = np.random.default_rng(count)
        seconds = np.clip(random.lognormal(np.log(4.2), 0.6, count), 1, 20)
        self.lengths = Lengths(
            frames=(75 * seconds).astype(np.int32),
            semantic=(35 * seconds).astype(np.int32),
            text=np.repeat((4 * seconds).astype(np.int32), 3) + np.tile(np.array([40, 30, 2], np.int32), count),
            text_offsets=np.arange(0, 3 * count + 1, 3),
            speakers=random.integers(0, 40, count).astype(np.int32),
        )

    def __len__(self):
        return self.count

    def __reduce__(self):
        return Folder, (self.count,)


def planner(count, **changes):
    return Planner([Folder(count)], dataclasses.replace(CONFIG, **changes), Mixture())


def columns(plan):
    return {item.name: getattr(plan.clips, item.name) for item in dataclasses.fields(plan.clips)}


def same(one, other):
    return np.array_equal(one.offsets, other.offsets) and all(
        np.array_equal(values, columns(other)[name]) for name, values in columns(one).items()
    )


@pytest.fixture(scope="module")
def planned():
    found = planner(COUNT)
    return found, [found.block(block) for block in range(8)]


def test_rows_keep_their_widths_and_little_stays_empty(planned):
    found, plans = planned
    for plan in plans:
        assert len(plan) == found.block_rows
        sums = np.add.reduceat(plan.clips.slots, plan.offsets[:-1])
        assert sums.max() <= 2560
        assert np.add.reduceat(plan.clips.text, plan.offsets[:-1]).max() <= 384
        assert sums.sum() / (len(plan) * 2560) > 0.95
    summary = found.summary()
    assert summary.waste < 0.05
    assert summary.clips_per_step == pytest.approx(16 * len(plans[0].clips) / len(plans[0]))
    assert summary.too_long == 0


def test_every_clip_comes_once_a_pass_and_none_is_lost_between_blocks(planned):
    """Two lanes of four blocks: what waits in one block comes in the next one of its lane."""
    plans = planned[1]
    assert not any(len(plan.crowded_out) for plan in plans)
    met = Counter(record for plan in plans for record in plan.clips.records.tolist())
    waiting = Counter(record for plan in plans[-2:] for record in plan.waiting.records.tolist())
    drawn = met + waiting
    passes = drawn.total() // COUNT
    assert {drawn[record] for record in range(COUNT)} <= {passes, passes + 1}


def test_clips_that_found_no_room_come_in_the_next_block():
    """Blocks made too small on purpose."""
    tight = planner(COUNT, rows=8)
    tight.block_clips = round(tight.block_clips * 1.03)
    first, second, third = (tight.block(block) for block in range(3))
    assert len(first.waiting) > 20
    assert set(first.waiting.records.tolist()) <= set(second.clips.records.tolist()) | set(
        second.crowded_out.records.tolist()
    )
    again = planner(COUNT, rows=8)
    again.block_clips = tight.block_clips
    assert same(again.block(2), third)


def test_any_block_is_the_same_made_from_nothing_in_another_order_or_process(planned):
    found, plans = planned
    for block in (7, 3):
        assert same(planner(COUNT).block(block), plans[block])
    assert same(pickle.loads(pickle.dumps(found)).block(6), plans[6])


def test_several_threads_get_the_same_plans(planned):
    _, plans = planned
    fresh, results = planner(COUNT), {}
    threads = [threading.Thread(target=lambda b=b: results.update({b: fresh.block(b)})) for b in (0, 5, 2, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(plan, plans[block]) for block, plan in results.items())
    assert len(results) == 4


def test_every_row_of_a_run_has_its_own_place():
    found = planner(600, rows=16)
    places = [found.place(step, row) for step in range(3 * found.block_rows) for row in range(16)]
    assert len(set(places)) == len(places)
    assert all(place < found.block_rows for _, place in places)


def test_a_host_plans_its_own_lanes_only():
    found = planner(4000, rows=32)
    assert {found.place(step, row)[0] % 4 for step in range(200) for row in range(8, 16)} == {1}


def test_passes_seeds_and_blocks_have_their_own_order(planned):
    _, plans = planned
    other = planner(COUNT, seed=4).block(0)
    orders = [
        plans[0].clips.records[:50].tolist(),
        plans[1].clips.records[:50].tolist(),
        other.clips.records[:50].tolist(),
    ]
    assert orders[0] != orders[1] != orders[2] != orders[0]


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_handful_of_clips_is_enough(count):
    found = planner(count)
    met = Counter(r for block in range(40) for r in found.block(block).clips.records.tolist())
    assert set(met) == set(range(count))
    assert found.block_rows >= 1


def test_rows_of_one_clip_each_lose_none():
    found = planner(300, max_clips=1, rows=8)
    plans = [found.block(block) for block in range(4)]
    assert not any(len(plan.crowded_out) for plan in plans)
    met = Counter(record for plan in plans for record in plan.clips.records.tolist())
    assert sum(met.values()) == 4 * found.block_rows


@pytest.mark.parametrize("text_width", [160, 280])
def test_rows_are_full_of_whatever_is_scarce(text_width):
    """Where text is scarcer than time, or as scarce, text is what the rows are full of."""
    summary = planner(COUNT, text_width=text_width).summary()
    assert min(summary.waste, summary.text_waste) < 0.06
